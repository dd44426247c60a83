"""A conversation with a model: what was said, by which settings the next answer is written, what it cost.

In:  questions, settings, commands' wishes.  Out: prompts as rows to be written, answers kept, a file of messages.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask import report
from unmask.canvas import Row
from unmask.config import UserError, cast, hints, nearest, option
from unmask.options import Options
from unmask.reader import LEGACY, PLUG_INS, encode
from unmask.screen import BROKEN

if TYPE_CHECKING:
    from unmask.answer import Writer
    from unmask.chats import Message
    from unmask.template import Template

NEW_TOKENS = 128
LEAST = 16  # an answer of fewer tokens, because the conversation fills the model, is not worth asking for
RETRY = 1 << 20  # a retry's row number lies so far from its turn's, and no conversation has as many turns


@dataclasses.dataclass
class ChatOptions(Options):
    """Decoding"""

    steps: int | None = option(128, "Denoising steps of an answer: at least one a block, at most one a token.")
    block_size: int | None = option(
        32, "Places filled before the next ones are begun: 1 writes left to right, none is pure diffusion."
    )
    eos_stop: bool = option(True, "Stop once an end of text or turn stands and everything before it does.")


@dataclasses.dataclass
class ChatLength:
    """Length"""

    max_new_tokens: int | None = option(None, f"Tokens of an answer at most; {NEW_TOKENS} if left out.")
    max_length: int | None = option(
        None, "Alone, the same. Beside --max_new_tokens: tokens of conversation and answer together."
    )

    def settle(self) -> str:
        """Give every length its meaning; returns what is to be said about it. UserError for one below 1."""
        for name, value in dataclasses.asdict(self).items():
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")
        said = ""
        if self.max_new_tokens is None and self.max_length is not None:
            said = f" (--max_length {self.max_length} alone means so many new tokens)"
            self.max_new_tokens, self.max_length = self.max_length, None
        self.max_new_tokens = self.max_new_tokens or NEW_TOKENS
        return said


@dataclasses.dataclass
class Answer:
    """An answer, whole or broken off.

    Attributes:
        tokens: up to the end of text. passes: forward passes. seconds: of writing. kept: it is in the conversation.
    """

    question: str
    text: str
    tokens: int
    passes: int
    seconds: float
    reason: Literal["stop", "length", "interrupted"]
    retries: int = 0
    kept: bool = False


class Conversation:
    """Turns of questions and answers.

    Args:
        template: None continues each text by itself, so that there are no turns.
        given: decoding settings that the user chose, of `Options` and the rule.

    Raises:
        UserError: settings that cannot be.
    """

    def __init__(
        self, writer: Writer, template: Template | None, system: str | None, length: ChatLength, given: dict[str, Any]
    ) -> None:
        self.writer, self.template, self.system, self.length, self.given = writer, template, system, length, given
        self.turns: list[Answer] = []
        self.answered: list[Answer] = []  # all there were, for the statistics
        self.pending: tuple[str, int] | None = None  # a question without an answer, and how often it was retried
        self.at = 0
        self.saved: dict[str, Any] | None = None
        if system and not template:
            raise UserError("--system needs a chat template; without one a text is continued as it is.")
        self._check(given)

    # -----------------------------------------------------------------------------------------------------------------
    # Questions and answers

    def begin(self, question: str, retries: int = 0, at: int | None = None) -> tuple[Row, str]:
        """The row of a question's answer, and a remark on its length, if any.

        Args:
            at: the number of turns that stand before it; all, if left out.
        """
        self.at, self.pending = len(self.turns) if at is None else at, (question, retries)
        if self.template:
            prompt = self.template.prompt([*self._messages(self.at), {"role": "user", "content": question}])
        else:
            prompt = encode(self.writer.loaded, question)
        new, remark = self._room(len(prompt))
        # Each turn and each retry draws its own random numbers; the same conversation draws the same.
        return self._row(prompt, new, self.settings(), self.at + RETRY * retries), remark

    def _row(self, prompt: list[int], new: int, settings: dict[str, Any], number: int = 0) -> Row:
        """A row to be written, in no more steps than it has places: short answers are not remarked on."""
        if settings.get("steps"):
            settings = settings | {"steps": min(settings["steps"], new)}
        return self.writer.begin(prompt, new, settings, number)

    def finish(self, row: Row, seconds: float) -> Answer:
        """The answer that stands in a row. It is kept if it has text; half of one replaces no whole one."""
        ids, ended = self.writer.answer(row)
        assert self.pending
        question, retries = self.pending
        text = self.writer.text(row)
        passes = row.passes
        reason: Any = "stop" if ended else "length" if row.finished else "interrupted"
        if reason == "interrupted":
            text = text.rstrip(BROKEN)  # a letter of which only some bytes stand
        answer = Answer(question, text, len(ids), passes, seconds, reason, retries)
        self.answered.append(answer)
        if reason == "interrupted" and self.at < len(self.turns):
            self.turns[self.at].retries, self.pending = retries, None
        elif text.strip():
            answer.kept, self.pending = True, None
            self.turns[self.at :] = [answer]
        return answer

    def again(self) -> tuple[str, int, int]:
        """The last question, how often it has then been retried, and the turns before it."""
        if self.pending:
            return self.pending[0], self.pending[1] + 1, self.at
        if not self.turns:
            raise UserError("there is no question to ask again.")
        return self.turns[-1].question, self.turns[-1].retries + 1, len(self.turns) - 1

    def undo(self) -> Answer:
        """Take the last turn back."""
        if not self.turns:
            raise UserError("there is nothing to take back.")
        self.at = len(self.turns) - 1
        return self.turns.pop()

    def new(self) -> None:
        """Forget what was said; the system text and all settings stay."""
        self.turns, self.pending, self.at, self.saved = [], None, 0, None

    def tell(self, system: str | None) -> None:
        """Another system text, from the next question on."""
        if not self.template:
            raise UserError("a system text needs a chat template; here a text is continued as it is.")
        self.system = system

    def _messages(self, turns: int) -> list[Message]:
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[:turns]:
            found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.text}]
        return found

    def _room(self, prompt: int) -> tuple[int, str]:
        asked, most, whole = self.length.max_new_tokens or NEW_TOKENS, self.writer.max_length, self.length.max_length
        limit = min((n for n in (most, whole) if n is not None), default=prompt + asked)
        who = "--max_length allows" if limit == whole else "the model holds"
        left = limit - prompt
        if left >= asked:
            return asked, ""
        ways = "/new begins anew, /undo takes a turn back"
        if left < min(asked, LEAST):
            raise UserError(
                f"the conversation has {prompt} tokens with this question, and {who} {limit}: there is no room for an "
                f"answer. {ways if self.at else 'Ask more briefly'}; /retry asks it again."
            )
        return left, f"{who} {limit} tokens, which leaves {left} for this answer; {ways}."

    # -----------------------------------------------------------------------------------------------------------------
    # Settings

    def settings(self, given: dict[str, Any] | None = None) -> dict[str, Any]:
        """All decoding settings that are handed on: this command's defaults, and what was given."""
        from unmask.answer import LEFT_TO_RIGHT

        causal = self.writer.loaded.causal
        chosen = self.given if given is None else given
        usual = dataclasses.asdict(ChatOptions())
        return {k: v for k, v in usual.items() if v is not None and (not causal or k in LEFT_TO_RIGHT)} | chosen

    def set(self, words: dict[str, str]) -> list[str]:
        """Change settings, all or none; an empty value brings the default back. Returns their names."""
        from unmask import decoding

        given, length = dict(self.given), dataclasses.replace(self.length)
        pairs = {LEGACY.get(name, name): value for name, value in words.items()}
        usual = ChatOptions()
        chosen = {
            name: pairs.get(name) or ("" if name in pairs else given.get(name, "")) or getattr(usual, name)
            for name in PLUG_INS
        }
        lengths, ours = hints(ChatLength), hints(ChatOptions)
        kinds = ours | decoding.plug_in_settings(**chosen)
        for name, value in pairs.items():
            if name in lengths:
                setattr(length, name, cast(value, lengths[name], name))
            elif name not in kinds:
                raise UserError(f"unknown setting {name!r}.{nearest(name, [*kinds, *lengths])} /set lists them.")
            elif value:
                given[name] = cast(value, kinds[name], name)
            else:
                given.pop(name, None)
        if length.max_new_tokens is None:
            length.max_new_tokens = NEW_TOKENS
        length.settle()
        self._check(given)
        self.given, self.length = given, length
        return list(pairs)

    def listing(self) -> dict[str, Any]:
        """All settings that have a value."""
        found = dataclasses.asdict(self.length) | self.settings()
        return {name: value for name, value in found.items() if value not in (None, [], {}, False)}

    def _check(self, given: dict[str, Any]) -> None:
        """UserError for settings that would fail at the next question, by beginning a small one."""
        self._row([0], 4, self.settings(given))

    # -----------------------------------------------------------------------------------------------------------------
    # What is left of it

    def save(self, name: str) -> str:
        """Add the conversation to a file of conversations, in the place of what was saved of it before.

        Raises:
            UserError: nothing to save; a file that is not json or jsonl, holds something else, or cannot be written.
        """
        if not self.turns or not self.template:
            raise UserError("there is no conversation to save.")
        path = Path(name).expanduser()
        if path.suffix not in (".json", ".jsonl"):
            raise UserError(f"cannot save to {name!r}: it must end in .jsonl (or .json).")
        rows = _rows(path)
        row = {"messages": self._messages(len(self.turns))}
        place = rows.index(self.saved) if self.saved in rows else len(rows)
        rows[place:] = [row, *rows[place + 1 :]]
        lines = [json.dumps(one, ensure_ascii=False) for one in rows]
        text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
        try:
            with report.written_aside(path) as aside:
                aside.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {name}: {error.strerror}.") from None
        self.saved = row
        return f"{count(len(self.turns), 'turn')} saved in {path}, which has {count(len(rows), 'conversation')}."

    def statistics(self) -> list[str]:
        """Lines on the last answer and on all of them."""
        if not self.answered:
            return ["nothing has been answered yet."]
        last = self.answered[-1]
        how = {"stop": "it ended by itself", "length": "it was cut at its limit", "interrupted": "it was stopped"}
        lines = [f"last answer: {cost([last])}; {how[last.reason]}"]
        if len(self.answered) > 1:
            lines.append(f"all {len(self.answered)} answers: {cost(self.answered)}")
        return lines


def cost(answers: list[Answer]) -> str:
    """Tokens up to the end of text, how fast they came, and how many forward passes that took."""
    tokens, passes = sum(a.tokens for a in answers), sum(a.passes for a in answers)
    seconds = sum(a.seconds for a in answers)
    speed = report.amount(tokens / max(seconds, 1e-9))
    return f"{count(tokens, 'token')} in {seconds:.2f} s ({speed} tokens/s), {count(passes, 'forward pass', 'es')}"


def count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _rows(path: Path) -> list[Any]:
    """The conversations of a file; none when it is not there."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(x) for x in text.split("\n") if x.strip()]
    except (OSError, ValueError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "messages" in row for row in rows):
        raise UserError(f"{path} is there and holds something other than conversations; name another file.")
    return rows
