"""A job's choices as clients read them: text, reasons, usage, log-probabilities, and streams of all that.

In:  jobs in the making or done.  Out: bodies (`unmask.serving.wire`), and server-sent events.

A stream only ever adds text: what is told of an answer is what stands before its first open place, no letter cut in
two, nothing that may be the beginning of a stop string.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from unmask.replay_text import Spelling
from unmask.screen import BROKEN, before_any, pieces_of, text_of
from unmask.serving import wire
from unmask.serving.jobs import Choice, Job, news, safe
from unmask.serving.requests import Maker

FRAME = 0.05  # seconds between two looks at the canvas that a client is shown
PING = 15.0  # seconds of silence after which a comment is sent, so that nobody on the way hangs up
FINISH: dict[str, wire.Finish] = {"stop": "stop", "length": "length", "timeout": "length", "cancelled": "length"}


class News:
    """Wakes a coroutine when the engine's thread has something to tell. Made in the event loop."""

    def __init__(self) -> None:
        self.loop, self.event, self.posted = asyncio.get_running_loop(), asyncio.Event(), False

    def wake(self) -> None:
        if not self.posted:
            self.posted = True
            try:
                self.loop.call_soon_threadsafe(self._set)
            except RuntimeError:  # the loop is closed: nobody listens any more
                return

    def _set(self) -> None:
        self.posted = False
        self.event.set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Until there is news (true) or the time is up."""
        try:
            await asyncio.wait_for(self.event.wait(), seconds)
        except TimeoutError:
            return False
        self.event.clear()
        return True


# ---------------------------------------------------------------------------------------------------------------------
# Text


def ids_of(maker: Maker, choice: Choice) -> list[int]:
    """An answer's ids that stand for sure, without its end and what follows that."""
    row = choice.row
    ends = maker.ends.union(row.reading.stops)
    ids = choice.ready[: next((i for i, token in enumerate(choice.ready) if token in ends), len(choice.ready))]
    return ids if row.cut is None or choice.reason is None else ids[: row.cut]


def answer_text(maker: Maker, choice: Choice) -> str:
    """An answer as far as it can be told."""
    row = choice.row
    strings = row.stop_strings
    if choice.reason is None:
        return safe(text_of(maker.decoder, ids_of(maker, choice)), strings)
    if row.cut is not None:
        ids = choice.ready[: next((i for i, one in enumerate(choice.ready) if one in maker.ends), len(choice.ready))]
        return before_any(text_of(maker.decoder, ids), strings)
    text = text_of(maker.decoder, ids_of(maker, choice))
    return text if choice.reason in ("stop", "length") else text.rstrip(BROKEN)


def filled(maker: Maker, choice: Choice) -> tuple[str, list[str]]:
    """A text whose gaps are filled, and what was filled in."""
    ids, last = choice.row.ids.tolist(), last_of(maker, choice)
    cuts = [0, *(min(place, last) for span in choice.gaps for place in span)]
    return text_of(maker.decoder, ids[:last]), pieces_of(maker.decoder, ids, cuts)[1::2]


def last_of(maker: Maker, choice: Choice) -> int:
    """Where a text with gaps ends: at its end, or where the model ended a gap at its end."""
    ids = choice.row.ids.tolist()
    if not choice.gaps or choice.gaps[-1][1] < len(ids):
        return len(ids)
    return next((place for place in range(choice.gaps[-1][0], len(ids)) if ids[place] in maker.ends), len(ids))


def text_of_choice(maker: Maker, choice: Choice) -> str:
    """What a choice says: its answer, or what fills its gap."""
    if choice.job.kind == "answer":
        return answer_text(maker, choice)
    return "".join(filled(maker, choice)[1]) if choice.reason else ""


def logprobs(maker: Maker, choice: Choice, chat: bool) -> dict[str, Any] | None:
    """Log-probabilities of an answer's tokens at the step that wrote them; they do not add up to a likelihood."""
    row = choice.row
    most = choice.logprobs
    if most is None:
        return None
    ids = ids_of(maker, choice)
    spelling = Spelling(maker.decoder)

    def log(p: float) -> float:
        return max(math.log(p), -9999.0) if p > 0 else -9999.0

    def told(token: int, p: float) -> dict[str, Any]:
        text = spelling.named(token)
        return {"token": text, "logprob": log(p), "bytes": None if spelling.is_part(token) else list(text.encode())}

    content = []
    for place, token in enumerate(ids, row.start):
        sure = float(row.confidence[place])
        entry = told(token, 0.0 if math.isnan(sure) else sure)
        entry["top_logprobs"] = [told(i, p) for i, p in row.alternatives.get(place, [])[:most]]
        content.append(entry)
    if chat:
        return {"content": content, "refusal": None, "measure": "denoising"}
    return {
        "tokens": [entry["token"] for entry in content],
        "token_logprobs": [entry["logprob"] for entry in content],
        "top_logprobs": [{t["token"]: t["logprob"] for t in entry["top_logprobs"]} for entry in content],
        "measure": "denoising",
    }


def usage(maker: Maker, job: Job) -> wire.Usage:
    """Tokens and forward passes of a job so far."""
    if job.kind == "answer":
        written = sum(len(ids_of(maker, choice)) for choice in job.choices)
    else:
        rows = [(choice.row, last_of(maker, choice)) for choice in job.choices]
        written = sum(int((row.free & ~row.open)[:last].sum()) for row, last in rows)
    passes = job.passes
    return wire.Usage(
        prompt_tokens=job.prompt,
        completion_tokens=written,
        total_tokens=job.prompt + written,
        forward_passes=passes,
        tokens_per_forward=round(written / passes, 4) if passes else 0.0,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Whole answers


def whole(maker: Maker, job: Job, kind: str) -> wire.ChatAnswer | wire.CompletionAnswer | wire.InfillAnswer:
    """The body for a job that is done."""
    about: dict[str, Any] = {"id": job.id, "created": int(job.created), "model": maker.name, "usage": usage(maker, job)}
    choices: list[Any] = []
    for choice in job.choices:
        reason = choice.reason or "length"
        ended: dict[str, Any] = {"index": choice.index, "finish_reason": FINISH[reason], "reason": reason}
        if kind == "infill":
            text, gaps = filled(maker, choice)
            choices.append(wire.InfillChoice(text=text, gaps=gaps, **ended))
        elif kind == "chat":
            ended["logprobs"] = logprobs(maker, choice, True)
            choices.append(wire.ChatChoice(message=wire.Reply(content=text_of_choice(maker, choice)), **ended))
        else:
            ended["logprobs"] = logprobs(maker, choice, False)
            choices.append(wire.TextChoice(text=text_of_choice(maker, choice), **ended))
    made: Any = {"chat": wire.ChatAnswer, "infill": wire.InfillAnswer}.get(kind, wire.CompletionAnswer)
    return made(choices=choices, **about)


# ---------------------------------------------------------------------------------------------------------------------
# Streams

OBJECTS = {"chat": "chat.completion.chunk", "completion": "text_completion", "infill": "infill.chunk"}


LINES = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "\x85\u2028\u2029"})
"""What some clients take for the end of a line, and the standard of server-sent events does not."""


def event(body: Any) -> bytes:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: " + text.translate(LINES).encode() + b"\n\n"


async def stream(maker: Maker, job: Job, watch: News, kind: str, *, with_usage: bool) -> AsyncIterator[bytes]:
    """A job's answers as they become certain, and a comment where nothing was sent for long."""
    last = time.monotonic()
    async with contextlib.aclosing(events(maker, job, watch, kind, with_usage=with_usage)) as found:
        async for one in found:
            now = time.monotonic()
            if one or now - last >= PING:
                last = now
                yield one or b": still here\n\n"


async def events(maker: Maker, job: Job, watch: News, kind: str, *, with_usage: bool) -> AsyncGenerator[bytes]:
    """The events of a stream; an empty one whenever there was nothing to tell."""
    base: dict[str, Any] = {"id": job.id, "object": OBJECTS[kind], "created": int(job.created), "model": maker.name}
    if with_usage:
        base["usage"] = None
    sent = dict.fromkeys(job.choices, "")
    drawn = {choice: Canvas(maker, choice) for choice in job.choices if choice.recorder}
    told: set[Choice] = set()

    def chunk(choice: Choice, text: str | None, reason: str | None = None, /, **more: Any) -> bytes:
        one: dict[str, Any] = {"index": choice.index, "finish_reason": None if reason is None else FINISH[reason]}
        if kind == "chat":
            one["delta"] = {} if text is None else {"content": text}
        elif kind == "completion":
            one["text"] = text or ""
        if reason is not None:
            one["reason"] = reason
        return event({**base, "choices": [one | more]})

    if kind == "chat":
        for choice in job.choices:
            yield chunk(choice, None, delta={"role": "assistant", "content": ""})
    seen: Any = None
    while True:
        state = news(job)
        if state != seen:
            before, seen = seen or [None] * len(state), state
            for choice, was, now in zip(job.choices, before, state, strict=True):
                if choice in told or was == now:
                    continue
                reason = choice.reason  # before the text: what is told with it is then all there is
                if choice in drawn and (steps := drawn[choice].news()):
                    yield event({**base, "choices": [], "diffusion": {"index": choice.index, **steps}})
                if reason == "error":
                    yield event(failure())
                    return
                if kind != "infill":
                    text = text_of_choice(maker, choice)
                    old = sent[choice]
                    if text.startswith(old) or reason:
                        new = text[common(old, text) :]
                        if new:
                            sent[choice] = text
                            yield chunk(choice, new)
                if reason:
                    told.add(choice)
                    more: dict[str, Any] = {}
                    if kind == "infill":
                        more["text"], more["gaps"] = filled(maker, choice)
                    yield chunk(choice, None, reason, **more)
            if drawn:
                await asyncio.sleep(FRAME)
        if len(told) == len(job.choices):
            break
        await watch.wait(PING / 4)
        yield b""
    if with_usage:
        yield event({**base, "choices": [], "usage": usage(maker, job).model_dump()})
    yield b"data: [DONE]\n\n"


def common(one: str, other: str) -> int:
    """How many letters two texts begin alike with."""
    if other.startswith(one):
        return len(one)
    both = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))


def failure() -> dict[str, Any]:
    """What clients are told when the model failed; the server's log says more."""
    return {
        "error": {"message": "the model failed on this request.", "type": "server_error", "param": None, "code": None}
    }


class Canvas:
    """A row's steps as a replay (`unmask.replay`), piece by piece: first its head, then its steps."""

    def __init__(self, maker: Maker, choice: Choice) -> None:
        assert choice.recorder is not None
        self.recorder, self.spelling = choice.recorder, Spelling(maker.decoder)
        first = self.recorder.first
        self.ids: list[int | None] = [
            None if is_open else i for i, is_open in zip(first.ids.tolist(), first.open.tolist(), strict=True)
        ]
        self.texts: list[str | None] = [None] * len(self.ids)
        self.spelling.spell(self.ids, self.texts, range(len(self.ids)))
        free = (~first.free).tolist()
        self.head: dict[str, Any] | None = {
            "places": [list(p) for p in zip(self.ids, self.texts, free, strict=True)],
            "start": choice.row.start,
            "span": self.recorder.first_span,
        }
        self.at = 0

    def news(self) -> dict[str, Any]:
        """What is new since it was last asked; empty when nothing is."""
        found, self.head = self.head or {}, None
        entries: Sequence[dict[str, Any]] = self.recorder.noted[self.at :]
        self.at += len(entries)
        if entries:
            found["steps"] = [self.spelling.step(entry, self.ids, self.texts) for entry in entries]
        return found
