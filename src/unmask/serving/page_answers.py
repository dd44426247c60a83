"""What a tab of the page asks, and its answers: begun, followed while they are written, kept to be shown again.

In:  bodies (`unmask.serving.wire`).
Out: `Answer`s. What is new of one is handed, in pieces that JSON can hold, to whoever shows it; all of it can be had at
any time, so that it can be shown anew in another language or after the page was loaded again.

Nothing here knows how it looks. All runs in the event loop; the engine's thread only wakes it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from unmask.serving import replies, wire
from unmask.serving.engine import Closed, Engine, Full
from unmask.serving.jobs import Choice, Job
from unmask.serving.requests import Maker, Refused

if TYPE_CHECKING:
    from unmask.canvas import Row

ALTERNATIVES = 5
FRAME = 1 / 15  # seconds between two looks at an answer: more than eyes need is not sent

Kind = Literal["chat", "completion", "infill"]


class Entries(list[dict[str, Any]]):
    """A recorder's notes, each with the likeliest tokens of the places that it says were written.

    They are put in before an entry can be seen, since another thread reads the list.
    """

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row

    def append(self, entry: dict[str, Any]) -> None:
        known = self.row.alternatives
        sure = [place for place, _, confidence in entry["written"] if confidence is not None and place in known]
        found = [[place, [[token, round(p, 6)] for token, p in known[place]]] for place in sure]
        super().append(entry | {"alternatives": found})


class Feed(replies.Canvas):
    """The same as clients of the API are shown, with names for all tokens that it speaks of."""

    def __init__(self, maker: Maker, choice: Choice) -> None:
        super().__init__(maker, choice)
        self.named: set[int] = set()

    def news(self) -> dict[str, Any]:
        found = super().news()
        ids: set[int | None] = {token for token, *_ in found.get("places", [])}
        for step in found.get("steps", []):
            ids |= {token for _, token, *_ in step["written"]}
            ids |= {token for _, some in step.get("alternatives", []) for token, _ in some}
        new = sorted({token for token in ids if token is not None} - self.named)
        if new:
            self.named |= set(new)
            found["tokens"] = {str(token): self.spelling.named(token) for token in new}
            found["special"] = sorted(set(new) & self.spelling.special)
        return found


@dataclass
class Trouble:
    """Why there is no answer.

    Attributes:
        code: one of the API's. message: its words. after: seconds until it may be asked again.
    """

    code: str
    message: str
    after: float | None = None


@dataclass(eq=False)
class Answer:
    """One answer, as far as it is known.

    Attributes:
        places, start, span, steps: as in a replay (`unmask.replay`). tokens: id → its name. special: ids of control
            tokens. text: what it says. end: how it ended, with what it took; None while it is being written.
        show: is handed what is new.
    """

    kind: Kind
    causal: bool = False
    places: list[Any] = field(default_factory=list)
    start: int = 0
    span: list[int] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    special: list[int] = field(default_factory=list)
    text: str = ""
    end: dict[str, Any] | None = None
    trouble: Trouble | None = None
    job: Job | None = None
    show: Callable[[dict[str, Any]], None] = lambda news: None

    @property
    def running(self) -> bool:
        return self.end is None and self.trouble is None

    def tell(self, news: dict[str, Any]) -> None:
        """Keep what is new, and show it."""
        if not news:
            return
        self.steps += news.get("steps", [])
        self.tokens |= news.get("tokens", {})
        self.special += news.get("special", [])
        self.text += news.get("text", "")
        for name in ("places", "start", "span", "end"):
            if name in news:
                setattr(self, name, news[name])
        self.show(news)

    def state(self) -> dict[str, Any]:
        """All of it, for one who has seen nothing yet."""
        names = ("places", "start", "span", "steps", "tokens", "special", "end", "kind", "causal")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found["steps"] = list(self.steps)  # what is shown later is added there and here by different hands
        found["tokens"], found["special"] = dict(self.tokens), list(self.special)
        return found | ({"text": self.text} if self.causal else {})

    def record(self) -> dict[str, Any] | None:
        """A replay of it, whose steps also have `alternatives`: [[place, [[id, probability]]]]."""
        recorder = self.job.choices[0].recorder if self.job else None
        if recorder is None:
            return None
        found = recorder.record()
        return found | {"tokens": found["tokens"] | self.tokens}


class Desk:
    """One tab's access to the engine.

    Args:
        owner: the key that was given, by number; None where no keys are needed.

    Attributes:
        wanted: whether anybody still waits for answers. too_many: counts a question; the seconds until the next may
            come, if there were too many of late.
    """

    def __init__(self, engine: Engine, maker: Maker, owner: int | None) -> None:
        self.engine, self.maker, self.owner = engine, maker, owner
        self.wanted: Callable[[], bool] = lambda: True
        self.too_many: Callable[[], int | None] = lambda: None

    async def ask(self, answer: Answer, fields: dict[str, Any]) -> None:
        """Have an answer written to its end; what goes wrong stands in its `trouble`."""
        after = self.too_many()
        if after:
            answer.trouble = Trouble("rate_limit_exceeded", f"too many requests; try again in {after} s.", after)
            return
        try:
            answer.job = await self.begin(answer.kind, fields)
            await self.follow(answer, answer.job)
        except Refused as error:
            answer.trouble = Trouble(error.code or "refused", error.message, error.after)
        finally:
            if answer.running:  # by an error of ours, or because the server ends: it is not waited for for ever
                answer.trouble = Trouble("failed", replies.failure()["error"]["message"])
            if answer.job and not answer.job.finished:
                self.engine.cancel(answer.job)

    async def begin(self, kind: Kind, fields: dict[str, Any]) -> Job:
        """A job that is made but not yet submitted; `Refused` for one that cannot be."""
        maker = self.maker
        shapes: dict[Kind, tuple[Any, Callable[[Any], Job]]] = {
            "chat": (wire.ChatRequest, maker.chat),
            "completion": (wire.CompletionRequest, maker.completion),
            "infill": (wire.InfillRequest, maker.infill),
        }
        shape, make = shapes[kind]
        try:
            body = shape(**fields, stream=True, diffusing=None if maker.causal else True)
        except ValidationError as error:
            first = error.errors()[0]
            raise Refused(400, f"{'.'.join(map(str, first['loc'][:2]))}: {first['msg']}", code="invalid") from None
        job = await run_in_threadpool(make, body)
        for choice in job.choices:
            choice.row.reading = dataclasses.replace(choice.row.reading, alternatives=ALTERNATIVES)
            if choice.recorder:
                choice.recorder.noted = Entries(choice.row)
        job.owner = self.owner
        return job

    async def follow(self, answer: Answer, job: Job) -> None:
        """Submit a job and tell of it until it is done."""
        if not answer.running:  # stopped while the job was made
            return
        watch = replies.News()
        job.wake = watch.wake
        [choice] = job.choices
        feed = Feed(self.maker, choice) if choice.recorder else None
        if not self.wanted():  # the tab was closed while the job was made
            raise asyncio.CancelledError
        try:
            self.engine.submit(job)
        except Full as error:
            answer.trouble = Trouble("queue_full", "too many requests wait; try again later.", error.after)
            return
        except Closed:
            answer.trouble = Trouble("stopping", "the server is stopping.")
            return
        if feed:
            answer.tell(feed.news())
        while True:
            reason = choice.reason  # before the rest: what is told with it is then all there is
            news: dict[str, Any] = feed.news() if feed else {}
            if reason == "error":
                answer.tell(news)
                answer.trouble = Trouble("failed", replies.failure()["error"]["message"])
                return
            if answer.causal:
                text = replies.answer_text(self.maker, choice)
                new = text[replies.common(answer.text, text) :]
                news |= {"text": new} if new else {}
            if reason:
                if not answer.causal:
                    infill = answer.kind == "infill"
                    whole = replies.filled(self.maker, choice)[0] if infill else replies.answer_text(self.maker, choice)
                    answer.text = whole
                usage = replies.usage(self.maker, job)
                news["end"] = {
                    "reason": reason,
                    "tokens": usage.completion_tokens,
                    "passes": usage.forward_passes,
                    "seconds": round((job.done or time.monotonic()) - job.asked, 3),
                }
            answer.tell(news)
            if reason:
                return
            await watch.wait()
            await asyncio.sleep(FRAME)

    def stop(self, answers: Sequence[Answer | None]) -> None:
        """Let go of what is being written."""
        for answer in answers:
            if answer and answer.job and not answer.job.finished:
                self.engine.cancel(answer.job)
            elif answer and answer.running and not answer.job:  # not asked yet, or its job is still being made
                answer.tell({"end": {"reason": "cancelled", "tokens": 0, "passes": 0, "seconds": 0.0}})


@dataclass
class Turn:
    """A question of a conversation and its answer."""

    question: str
    answer: Answer


@dataclass(eq=False)
class Session:
    """What stands in a tab.

    Attributes:
        settings: as they were set, by name; what is None is the server's. filled: the text whose gaps were
            filled last. compared, labels: two answers to the same question, and the rules that they were written by;
            comparing: what was asked; rules: those that are chosen. drafts: what is typed, by panel. view: who shows
            all this now.
    """

    panel: str = "chat"
    turns: list[Turn] = field(default_factory=list)
    filled: Answer | None = None
    compared: list[Answer] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    comparing: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    rules: list[str | None] = field(default_factory=lambda: [None, None])
    drafts: dict[str, str] = field(default_factory=dict)
    view: Any = None
    seen: float = field(default_factory=time.monotonic)

    @property
    def answers(self) -> list[Answer]:
        return [*(turn.answer for turn in self.turns), *([self.filled] if self.filled else []), *self.compared]

    def messages(self, question: str) -> list[dict[str, str]]:
        """The conversation so far, and a question; turns that brought no text are left out."""
        told: list[dict[str, str]] = []
        for turn in self.turns:
            if turn.answer.text:
                told += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer.text}]
        return [*told, {"role": "user", "content": question}]


class Sessions:
    """Sessions by tab: a page that is loaded anew, or in another language, finds what stood there.

    Args:
        most: sessions that are kept; those that were not looked at for longest go first. age: seconds that one is kept
            whose tab is closed: it holds what somebody said.
    """

    def __init__(self, most: int = 64, age: float = 900.0) -> None:
        self.most, self.age, self.kept = most, age, {}  # type: ignore[var-annotated]

    def of(self, tab: str) -> Session:
        gone = [old for old, one in self.kept.items() if one.view is None and time.monotonic() - one.seen > self.age]
        for old in gone:
            del self.kept[old]
        found: Session = self.kept.pop(tab, None) or Session()
        found.seen = time.monotonic()
        self.kept[tab] = found  # behind the others: a dict keeps the order
        for old in list(self.kept):
            if len(self.kept) <= self.most:
                break
            if self.kept[old].view is None:
                del self.kept[old]
        return found
