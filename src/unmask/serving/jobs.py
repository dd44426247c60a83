"""What the engine works on: a job is one request, a choice one of its answers.

In:  rows (`unmask.canvas.Row`), ready to be stepped.
Out: what can be told of them at any time, from any thread. The engine's thread alone touches rows; it leaves snapshots
(`ready`, the recorder's notes, `reason`) that others read.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from unmask.generation import standing
from unmask.screen import BROKEN

if TYPE_CHECKING:
    from unmask.canvas import Row
    from unmask.replay import Recorder

Reason = Literal["stop", "length", "cancelled", "timeout", "error"]
Kind = Literal["answer", "gaps"]


@dataclass(eq=False)
class Choice:
    """One answer.

    Attributes:
        index: which of its job's. views: 2 with guidance, which reads a row twice, else 1. length: places of the canvas
            when it has grown as far as it may. cache_bytes: what the keys and values of its views take at most.
        recorder: notes every step, where the client wants to see them.
        gaps: first place and place after the last of each gap, where there are some. logprobs: how many alternatives to
            each token are told; None: no log-probabilities.
        steps: of a model that writes left to right, the row after each token.
        ready: ids of the answer that are sure to stay. reason: why it is done; None until then.
    """

    row: Row
    index: int
    cache_bytes: int = 0
    recorder: Recorder | None = None
    gaps: tuple[tuple[int, int], ...] = ()
    logprobs: int | None = None
    steps: Iterator[Row] | None = None
    ready: list[int] = field(default_factory=list)
    reason: Reason | None = None
    job: Job = field(init=False)

    @property
    def views(self) -> int:
        return 2 if self.row.reading.cfg_scale else 1

    @property
    def length(self) -> int:
        return len(self.row.ids) + (self.row.growth.left if self.row.growth else 0)

    @property
    def places(self) -> int:
        return self.length * self.views

    def publish(self) -> None:
        """Leave a snapshot of the row; by the engine, after it wrote to it."""
        row = self.row
        if self.recorder:
            self.recorder.note(row)
        if row.finished:
            ready = len(row.answer)
        elif row.rule is None:
            ready = int(torch.nonzero(row.open)[0]) - row.start if bool(row.open.any()) else len(row.answer)
        else:
            ready = standing(row)
        if ready > len(self.ready):
            self.ready = row.answer[:ready].tolist()


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        prompt: tokens of all its prompts. owner: the key that asked, by number; None where no keys are needed.
        deadline: on `time.monotonic`'s clock. wake: called from the engine's thread whenever there is news.
        error: what went wrong, for the server's log; clients are told less.
    """

    id: str
    kind: Kind
    choices: list[Choice]
    prompt: int
    owner: int | None = None
    deadline: float = math.inf
    wake: Callable[[], None] = lambda: None
    created: float = field(default_factory=time.time)
    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    done: float | None = None
    error: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        for choice in self.choices:
            choice.job = self

    @property
    def finished(self) -> bool:
        return all(choice.reason for choice in self.choices)

    @property
    def passes(self) -> int:
        return sum(choice.row.passes for choice in self.choices)


def safe(text: str, strings: tuple[str, ...]) -> str:
    """As much of a text as can be shown before it is done: no letter cut in two, nothing that may begin a stop string.

    A stop string that stands whole in the text cuts it.
    """
    for at in (text.find(string) for string in strings):
        if at >= 0:
            text = text[:at]
    text = text.rstrip(BROKEN)
    begun = max((n for string in strings for n in range(1, len(string)) if text.endswith(string[:n])), default=0)
    return text[: len(text) - begun]


def news(job: Job) -> Any:
    """Something that differs whenever there is more to tell of a job."""
    return [(len(c.ready), c.reason, len(c.recorder.noted) if c.recorder else 0) for c in job.choices]
