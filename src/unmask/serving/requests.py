"""What clients ask → jobs for the engine.

In:  bodies (`unmask.serving.wire`).  Out: jobs whose rows are ready to be stepped, or `Refused`, which names the field.

A text never becomes control tokens, and the rule and the cache are names of built-in ones: a path would run a file.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pkgutil
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask import caches, decoding
from unmask.answer import LEFT_TO_RIGHT
from unmask.canvas import Canvas, Row
from unmask.config import UserError
from unmask.conversation import NEW_TOKENS
from unmask.gaps import parse_gaps
from unmask.memory import aligned
from unmask.options import Options
from unmask.reader import encode
from unmask.replay import Recorder
from unmask.serving import wire
from unmask.serving.engine import Engine
from unmask.serving.jobs import Choice, Job
from unmask.serving.presets import PRESETS
from unmask.template import Template

RULES = tuple(sorted(m.name for m in pkgutil.iter_modules(decoding.__path__)))
CACHES = tuple(sorted(m.name for m in pkgutil.iter_modules(caches.__path__)))
Places = list[int | None]
Spans = tuple[tuple[int, int], ...]
LOGPROBS = 1 << 16  # of a request: they are megabytes, and spelt while all others wait
OURS = frozenset(field.name for field in dataclasses.fields(Options))


class Refused(Exception):
    """A question that is not answered. param: the field that is wrong. after: seconds until it may be asked again."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.after = status, message, param, code, after


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        new: tokens of an answer, and of all gaps. prompt: tokens of a prompt; None: what the model holds. choices:
            answers of a request, over all prompts. stops: stop strings; stop_length: letters of one. steps: denoising
            steps. messages: of a conversation; each answer among them costs a rendering of all that is before it.
            seconds: until it is cut short.
    """

    new: int = 4096
    prompt: int | None = None
    choices: int = 16
    stops: int = 8
    stop_length: int = 200
    steps: int = 4096
    messages: int = 256
    seconds: float = 600.0


class Maker:
    """Makes jobs.

    Args:
        given: decoding settings that the server was started with. new: tokens of an answer if nobody says.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        limits: Limits,
        given: dict[str, Any],
        template: str | bool | None,
        new: int = NEW_TOKENS,
    ) -> None:
        self.engine, self.name, self.limits, self.given, self.new = engine, name, limits, given, new
        loaded = engine.loaded
        self.causal, self.created = loaded.causal, time.time()
        # Tokenizers may not be used by two threads at once (transformers sets switches on them while they encode), so
        # the engine has its own, those who encode take turns with another, and the event loop decodes with a third.
        self.loaded = dataclasses.replace(loaded, tokenizer=copy.deepcopy(loaded.tokenizer))
        self.decoder = copy.deepcopy(loaded.tokenizer)
        self.ends = frozenset(i for ids in engine.writer.ends.values() for i in ids)
        self.turn = threading.Lock()
        self.template: Template | None = None
        if template is not False:
            try:
                self.template = Template(self.loaded.tokenizer, None if template is True else template)
            except UserError:
                if template is not None:
                    raise
        self.max_length = engine.writer.max_length
        config = loaded.model.config
        heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 1)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.place_bytes = 2 * config.num_hidden_layers * heads * width * loaded.model.dtype.itemsize

    def question(self, text: str) -> list[int]:
        """A text as a question, or, without a template, as the beginning of a text."""
        if self.template is None:
            return self.encode(text, "prompt")
        with self.turn:
            return self.template.prompt([{"role": "user", "content": text}])

    # -----------------------------------------------------------------------------------------------------------------
    # The three kinds of questions

    def chat(self, body: wire.ChatRequest) -> Job:
        """A conversation's answer."""
        if self.template is None:
            raise Refused(400, "this model has no chat template; ask /v1/completions instead.", "messages")
        if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
            raise Refused(
                400, "max_tokens and max_completion_tokens are two names of the same; give one.", "max_tokens"
            )
        if len(body.messages) > self.limits.messages:
            words = f"there are {len(body.messages)} messages; at most {self.limits.messages} are taken."
            raise Refused(400, words, "messages")
        messages: list[Any] = []
        for message in body.messages:
            parts = message.content
            text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": legible(text, "messages")})
        with self.turn:
            try:
                prompt = self.template.prompt(messages)
            except UserError as error:
                raise Refused(400, str(error), "messages") from None
        logprobs = body.top_logprobs or 0 if body.logprobs else None
        if body.top_logprobs is not None and not body.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true.", "top_logprobs")
        new = body.max_completion_tokens or body.max_tokens
        return self.answers(body, [prompt], new, "chatcmpl", logprobs)

    def completion(self, body: wire.CompletionRequest) -> Job:
        """A text's continuation, or what fills the gap before its suffix."""
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if not texts:
            raise Refused(400, "prompt is an empty list; give a text.", "prompt")
        self.check_number(len(texts) * (body.n or 1))
        prompts = [self.encode(text, "prompt") for text in texts]
        if not body.suffix:
            if self.causal and not all(prompts):
                raise Refused(400, "prompt is empty, and a model that writes left to right needs a token.", "prompt")
            return self.answers(body, prompts, body.max_tokens, "cmpl", body.logprobs)
        if body.logprobs is not None:
            raise Refused(400, "logprobs are not told of gaps; leave it out, or suffix.", "logprobs")
        if body.stop:
            raise Refused(400, "stop has no meaning with a suffix: the gap is max_tokens long; leave it out.", "stop")
        suffix = self.encode(body.suffix, "suffix")
        length = self.length(body.max_tokens, 0)
        gap: Places = [None] * length
        rows = [([*prompt, *gap, *suffix], ((len(prompt), len(prompt) + length),)) for prompt in prompts]
        return self.gaps(body, rows, "cmpl", "suffix")

    def infill(self, body: wire.InfillRequest) -> Job:
        """A text's gaps."""
        if (body.text is None) == (body.parts is None):
            raise Refused(400, "give text or parts, one of them.", "text")
        if body.text is not None:
            try:
                pieces = parse_gaps(legible(body.text, "text"))
            except (UserError, ValueError) as error:
                raise Refused(400, str(error), "text") from None
        else:
            pieces = [part if isinstance(part, str) else part.gap for part in body.parts or []]
        name = "parts" if body.text is None else "text"
        total = sum(piece for piece in pieces if isinstance(piece, int))
        if not total:
            raise Refused(400, 'there is no gap; write {{8}} in text, or {"gap": 8} in parts.', name)
        self.length(total, 0, name)
        row: Places = []
        spans: list[tuple[int, int]] = []
        for piece in pieces:
            if isinstance(piece, int):
                spans.append((len(row), len(row) + piece))
            row += [None] * piece if isinstance(piece, int) else self.encode(piece, name)
        return self.gaps(body, [(row, tuple(spans))], "infill", name)

    # -----------------------------------------------------------------------------------------------------------------
    # Rows

    def answers(
        self, body: wire.Generating, prompts: Sequence[list[int]], new: int | None, kind: str, logprobs: int | None
    ) -> Job:
        """A job of rows that go on from prompts."""
        if logprobs is not None and body.stream:
            raise Refused(400, "logprobs are told with whole answers; leave out logprobs, or stream.", "logprobs")
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        if len(stops) > self.limits.stops:
            raise Refused(400, f"stop has {len(stops)} texts; at most {self.limits.stops} are taken.", "stop")
        for stop in stops:
            if not 0 < len(legible(stop, "stop")) <= self.limits.stop_length:
                raise Refused(400, f"a text of stop must have 1 to {self.limits.stop_length} letters.", "stop")
        settings = self.settings(body) | ({"stop_strings": list(stops)} if stops else {})
        n = body.n or 1
        self.check_number(n * len(prompts))
        choices: list[Choice] = []
        for prompt in prompts:
            self.check_prompt(len(prompt))
            length = self.length(new, len(prompt))
            if logprobs is not None and n * len(prompts) * length * max(1, logprobs) > LOGPROBS:
                words = f"answers × tokens × alternatives are more than {LOGPROBS:,} log-probabilities; ask for fewer."
                raise Refused(400, words, "logprobs")
            for number in range(n):
                row = self.checked(lambda p=prompt, m=length, k=number: self.row(p, m, settings, k))  # type: ignore[misc]
                choices.append(self.choice(row, len(choices), body, settings, logprobs))
        return self.job(kind, "answer", choices, sum(map(len, prompts)), body)

    def row(self, prompt: list[int], new: int, settings: dict[str, Any], number: int) -> Row:
        return self.engine.writer.begin(prompt, new, self.with_steps(settings, new), number)

    def with_steps(self, settings: dict[str, Any], new: int) -> dict[str, Any]:
        """No more steps than tokens; and, where nobody names them, no more than may be named."""
        steps = settings.get("steps") or (new if self.causal else self.limits.steps)
        return settings if steps >= new and not settings.get("steps") else settings | {"steps": min(steps, new)}

    def gaps(self, body: wire.Asked, texts: Sequence[tuple[Places, Spans]], kind: str, name: str) -> Job:
        """A job of rows in which gaps are filled. texts: ids, and where each gap begins and ends."""
        if self.causal:
            raise Refused(400, f"{name}: this model writes left to right, so it fills no gaps.", name)
        for field, asked in (("eos_stop", body.eos_stop), ("min_new_tokens", body.min_new_tokens)):
            if asked:
                raise Refused(400, f"{field} is for answers, and gaps have their lengths; leave it out.", field)
        settings = self.settings(body) | {"eos_stop": False}
        n = body.n or 1
        self.check_number(n * len(texts))
        choices: list[Choice] = []
        given = 0
        for text, spans in texts:
            new = sum(token is None for token in text)
            given += len(text) - new
            self.check_prompt(len(text) - new)
            if self.max_length is not None and len(text) > self.max_length:
                raise self.too_long(len(text) - new, new, name)
            for number in range(n):
                row = self.checked(lambda t=text, k=number, m=new: self.gap_row(t, settings, k, m))  # type: ignore[misc]
                choices.append(self.choice(row, len(choices), body, settings, None))
                choices[-1].gaps = spans
        return self.job(kind, "gaps", choices, given, body)

    def gap_row(self, text: Places, settings: dict[str, Any], number: int, new: int) -> Row:
        settings, writer = self.with_steps(settings, new), self.engine.writer
        [row] = Canvas.of([text], writer.predict.mask_id, first=number).rows
        decoding.prepare(writer.predict, [row], tokenizer=self.engine.loaded.tokenizer, **(writer.ends | settings))
        return row

    def choice(self, row: Row, index: int, body: wire.Asked, settings: dict[str, Any], logprobs: int | None) -> Choice:
        if row.rule is not None and row.rule.limit(row) > max(self.limits.steps, 2 * int(row.free.sum())):
            words = f"these settings may take {row.rule.limit(row)} steps; at most {self.limits.steps} are taken."
            raise Refused(400, words, "rule_args")
        keeps = self.causal or (row.cache is not None and row.cache.keeps)
        if logprobs is not None:
            row.reading = dataclasses.replace(row.reading, alternatives=max(1, logprobs))
        choice = Choice(row, index, logprobs=logprobs)
        if keeps:
            length = choice.length if self.causal else aligned(choice.length)
            choice.cache_bytes = choice.views * length * self.place_bytes
        if not self.engine.fits(choice):
            room = self.engine.room
            raise Refused(
                400,
                f"prompt and answer are {choice.places:,} places; this server has room for {room.places:,}, and "
                f"{room.cache_bytes / 2**20:,.0f} MiB of keys and values.",
                "max_tokens",
                "context_length_exceeded",
            )
        if body.diffusing:
            choice.recorder = Recorder(self.decoder, row, self.named(settings))
        return choice

    def job(self, kind: str, way: Any, choices: list[Choice], prompt: int, body: wire.Asked) -> Job:
        if body.diffusing and not body.stream:
            raise Refused(400, "diffusing shows steps as they are taken; it needs stream: true.", "diffusing")
        if body.diffusing and self.causal:
            raise Refused(400, "diffusing: this model writes left to right; there is no canvas to show.", "diffusing")
        if body.stream_options is not None and not body.stream:
            raise Refused(400, "stream_options needs stream: true.", "stream_options")
        seconds = min(body.timeout or math.inf, self.limits.seconds)
        return Job(f"{kind}-{secrets.token_hex(12)}", way, choices, prompt, deadline=time.monotonic() + seconds)

    # -----------------------------------------------------------------------------------------------------------------
    # Settings and limits

    def settings(self, body: wire.Asked) -> dict[str, Any]:
        """The decoding settings of a request: the preset's, the server's, its own; the later ones win."""
        fields = set(wire.Decoding.model_fields) - {"preset"}
        asked = {name: value for name in fields if (value := getattr(body, name)) is not None}
        if "block_length" in asked:
            block = asked.pop("block_length")
            if asked.setdefault("block_size", block) != block:
                raise Refused(400, "block_size and block_length are two names of the same; give one.", "block_length")
        for name, known in (("rule", RULES), ("cache", CACHES)):
            if name in asked and asked[name] not in known and asked[name] != self.given.get(name):
                raise Refused(400, f"{name} is {asked[name]!r}; it must be one of {', '.join(known)}.", name)
        if asked.get("steps", 0) > self.limits.steps:
            raise Refused(400, f"steps is {asked['steps']}; at most {self.limits.steps} are taken.", "steps")
        if self.causal:
            for name in asked:
                if name not in LEFT_TO_RIGHT:
                    raise Refused(400, f"{name} belongs to models that unmask; this one writes left to right.", name)
        if body.preset and self.causal:
            raise Refused(400, "preset belongs to models that unmask; this one writes left to right.", "preset")
        base = self.given
        if body.preset:
            base = options_of(base) | PRESETS[body.preset].settings
        if any(asked.get(name, base.get(name)) != base.get(name) for name in ("rule", "cache", "canvas")):
            base = options_of(base)  # other rules and caches know nothing of these settings
        settings = base | asked
        if not settings.get("temperature"):
            # Clients send top_p 1 with everything, and limits that limit nothing beside temperature 0.
            names = ("top_p", "top_k") if asked.get("temperature") == 0 else ()
            settings = {k: v for k, v in settings.items() if k not in names and (k, v) != ("top_p", 1)}
        return {"seed": secrets.randbits(62)} | settings if "seed" not in asked else settings

    def checked(self, make: Callable[[], Row]) -> Row:
        """A row, or what is wrong with its settings, told in the words of this API."""
        try:
            return make()
        except UserError as error:
            words = str(error).replace("--", "")
            for path, name in zip(self.given.values(), self.named(self.given).values(), strict=True):
                words = words.replace(str(path), str(name)) if path != name else words
            named = re.findall(r"\w+", words)
            field = next((word for word in named if word in wire.Decoding.model_fields), None)
            raise Refused(400, words, field) from None

    @staticmethod
    def named(settings: dict[str, Any]) -> dict[str, Any]:
        """The settings as anybody may see them: a rule or cache of the server's own by its name, not by its path."""
        return {k: Path(v).stem if k in ("rule", "cache") and v else v for k, v in settings.items()}

    def encode(self, text: str, name: str) -> list[int]:
        with self.turn:
            return encode(self.loaded, legible(text, name))

    def length(self, asked: int | None, prompt: int, name: str = "max_tokens") -> int:
        """How long an answer is. Without a number, what the server gives or the model has room for."""
        if asked is not None and asked > self.limits.new:
            raise Refused(400, f"{name} is {asked}; at most {self.limits.new} tokens are written.", name)
        if self.max_length is None:
            return asked or min(self.new, self.limits.new)
        left = self.max_length - prompt
        if asked is None and left >= 1:
            return min(self.new, self.limits.new, left)
        if asked is None or asked > left:
            raise self.too_long(prompt, asked or 1, name)
        return asked

    def too_long(self, prompt: int, new: int, name: str) -> Refused:
        words = (
            f"the prompt's {prompt} tokens and {new} new ones are {prompt + new}; the model holds {self.max_length}."
        )
        return Refused(400, words, name, "context_length_exceeded")

    def check_prompt(self, tokens: int) -> None:
        most = self.limits.prompt
        if most is not None and tokens > most:
            raise Refused(
                400, f"the prompt has {tokens} tokens; at most {most} are taken.", "prompt", "context_length_exceeded"
            )

    def check_number(self, choices: int) -> None:
        if choices > self.limits.choices:
            raise Refused(400, f"{choices} answers are asked for; at most {self.limits.choices} are given.", "n")


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that every rule and cache has."""
    return {name: value for name, value in settings.items() if name in OURS and name not in ("rule_args", "cache_args")}


def legible(text: str, name: str) -> str:
    """The text, unless it holds half of a UTF-16 pair, which is no letter and has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{name} holds half of a surrogate pair, which is no text.", name) from None
    return text
