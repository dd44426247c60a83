"""The engine: a thread that steps all rows of all requests, wherever each stands.

In:  jobs.  Out: their rows written, each as it would be alone.

A tick drops rows whose client has gone or whose time is up, admits waiting ones as far as there is room, steps every
row once, and leaves snapshots. No row waits for another to come to a block's or an answer's end. Waiting rows are
admitted in the order they came: one that is too large for the room left waits, and those behind it with it, so that it
is not overtaken for ever.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unmask import decoding, growth, report
from unmask.answer import Writer, left_to_right
from unmask.config import UserError
from unmask.memory import Memory
from unmask.serving.jobs import Choice, Job, Reason
from unmask.serving.metrics import Metrics
from unmask.signals import NotNumbers

if TYPE_CHECKING:
    from unmask.canvas import Row
    from unmask.models import Loaded


FAILURES = (UserError, NotNumbers, RuntimeError, MemoryError, ArithmeticError, LookupError, TypeError, ValueError)
"""What a row may do wrong without the engine being broken."""


@dataclass(frozen=True)
class Room:
    """How much is worked on at once, and how much may wait.

    Attributes:
        rows: stepped together. places: of their canvases. cache_bytes: of their keys and values. queue: rows waiting.
    """

    rows: int = 16
    places: int = 16_384
    cache_bytes: int = 4 << 30
    queue: int = 64


class Full(Exception):
    """The queue has no room. after: seconds until it may have."""

    def __init__(self, after: float) -> None:
        super().__init__()
        self.after = after


class Closed(Exception):
    """The engine takes nothing more: it is to stop, or it broke."""


class Engine:
    """Steps rows in a thread of its own. Its methods may be called from any other."""

    def __init__(self, loaded: Loaded, room: Room | None = None, metrics: Metrics | None = None) -> None:
        self.loaded, self.writer = loaded, Writer(loaded)
        self.room, self.metrics = room or Room(), metrics or Metrics()
        self.memory = Memory()
        self.running: list[Choice] = []
        self.waiting: deque[Choice] = deque()
        self.jobs: dict[str, Job] = {}
        self.changed = threading.Condition()
        self.closing = self.broken = False
        self.pace = 0.0  # seconds that a row takes, lately
        self.metrics.watch(self)
        self.thread = threading.Thread(target=self._run, name="unmask-engine", daemon=True)

    # -----------------------------------------------------------------------------------------------------------------
    # For others

    def start(self) -> Engine:
        self.thread.start()
        return self

    @property
    def ready(self) -> bool:
        return self.thread.is_alive() and not self.closing and not self.broken

    def fits(self, choice: Choice) -> bool:
        """Whether there would be room for a choice if nothing else ran."""
        return choice.places <= self.room.places and choice.cache_bytes <= self.room.cache_bytes

    def submit(self, job: Job) -> None:
        """Take a job, whole or not at all.

        Raises:
            Full: too many rows wait. Closed: the engine takes nothing more.
        """
        with self.changed:
            if not self.ready:
                raise Closed
            if self.waiting and len(self.waiting) + len(job.choices) > self.room.queue:
                raise Full(max(1.0, math.ceil(self.pace * len(self.waiting) / self.room.rows)))
            self.jobs[job.id] = job
            self.waiting.extend(job.choices)
            self.changed.notify()

    def cancel(self, job: Job) -> None:
        """Let go of a job; its rows are free after the step that is under way."""
        job.cancelled.set()
        with self.changed:
            self.changed.notify()

    def close(self, patience: float = 0.0) -> None:
        """Take nothing more; finish what is there within `patience` seconds, then stop."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(patience)
        for job in list(self.jobs.values()):
            self.cancel(job)
        self.thread.join()

    # -----------------------------------------------------------------------------------------------------------------
    # The thread

    def _run(self) -> None:
        try:
            while self._wait():
                self.tick()
        except BaseException as error:  # nothing may be left waiting for a thread that is gone
            self.broken = True
            report.say(f"unmask serve: the engine broke ({type(error).__name__}: {error}); start the server anew.")
            with self.changed:
                left = [*self.running, *self.waiting]
                self.running, self.waiting = [], deque()
            for choice in left:
                choice.job.error = "the engine broke"
                self._end(choice, "error")
            if not isinstance(error, Exception):
                raise

    def _wait(self) -> bool:
        """Until there is work; false when there is none and never will be."""
        with self.changed:
            while not self.running and not self.waiting:
                if self.closing:
                    return False
                self.changed.wait()
        return True

    @torch.no_grad()
    def tick(self) -> None:
        """One step of everything that is there."""
        self._drop()
        self._admit()
        if not self.running:
            return
        began = time.monotonic()
        written = sum(map(self._step, self._groups()))
        for choice in self.running:
            if choice.reason is None:
                self._tell(choice)
        self.metrics.stepped(time.monotonic() - began, len(self.running), written)
        self.running = [choice for choice in self.running if choice.reason is None]

    def _drop(self) -> None:
        """Rows that nobody waits for any more."""
        now = time.monotonic()
        with self.changed:
            for some in (self.running, self.waiting):
                for choice in some:
                    if choice.job.cancelled.is_set():
                        self._end(choice, "cancelled")
                    elif now > choice.job.deadline:
                        self._end(choice, "timeout")
            self.running = [choice for choice in self.running if choice.reason is None]
            self.waiting = deque(choice for choice in self.waiting if choice.reason is None)

    def _admit(self) -> None:
        with self.changed:
            while self.waiting and self._has_room(self.waiting[0]):
                choice = self.waiting.popleft()
                if self.loaded.causal:
                    choice.steps = left_to_right(self.loaded.model, choice.row)
                if choice.row.finished:  # all of it was given
                    self._tell(choice)
                else:
                    self.running.append(choice)

    def _has_room(self, choice: Choice) -> bool:
        some = [*self.running, choice]
        return (
            len(some) <= self.room.rows
            and sum(c.places for c in some) <= self.room.places
            and self._cache_bytes(some) <= self.room.cache_bytes
        )

    def _cache_bytes(self, some: Sequence[Choice]) -> int:
        """What the keys and values of some rows take at most: in one store, each has as much room as the longest."""
        if self.loaded.causal:
            return sum(c.cache_bytes for c in some)
        keep = [c for c in some if c.cache_bytes]
        return sum(c.views for c in keep) * max((c.cache_bytes // c.views for c in keep), default=0)

    @property
    def kept_bytes(self) -> int:
        """What keys and values take now."""
        return self._cache_bytes(list(self.running)) if self.loaded.causal else self.memory.bytes

    # -----------------------------------------------------------------------------------------------------------------
    # Steps

    def _groups(self) -> list[list[Choice]]:
        """Rows that share a step: padded to the longest, they have no more places than the room. Causal: each alone."""
        if self.loaded.causal:
            return [[choice] for choice in self.running]
        groups: list[list[Choice]] = []
        views = 0
        for choice in sorted(self.running, key=lambda choice: len(choice.row.ids)):
            views += choice.views
            if not groups or views * len(choice.row.ids) > self.room.places:
                groups.append([])
                views = choice.views
            groups[-1].append(choice)
        return groups

    def _step(self, some: Sequence[Choice]) -> int:
        """Step some rows together; where that fails, in halves, so that only those that fail alone are given up.

        Returns how many tokens were written.
        """
        try:
            if self.loaded.causal:
                for choice in some:
                    next(choice.steps or iter(()), None)
                return len(some)
            predict = self.writer.predict
            # a search for a length may take hundreds of passes, so it has one a tick
            sized = [c.row for c in some if not c.row.growth or c.row.growth.sized or growth.size(predict, c.row)]
            return sum(len(change.places) for change in decoding.step(predict, sized, self.memory))
        except FAILURES as error:
            if torch.cuda.is_available() and isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            alive = [choice for choice in some if choice.reason is None]
            for choice in alive:  # whether what is kept of a row still fits it, nobody knows now
                self.memory.forget(choice.row)
            if len(alive) > 1:
                half = len(alive) // 2
                return self._step(alive[:half]) + self._step(alive[half:])
            for choice in alive:
                report.say(f"unmask serve: {choice.job.id} failed ({type(error).__name__}: {error})")
                choice.job.error = str(error)
                self._end(choice, "error")
            return 0

    def _tell(self, choice: Choice) -> None:
        """Leave a snapshot of a row that was stepped."""
        choice.publish()
        job = choice.job
        if job.first is None and choice.ready:
            job.first = time.monotonic()
            self.metrics.first(job.first - job.asked)
        if choice.row.finished:
            self._end(choice, self._reason(choice.row))
        else:
            job.wake()

    def _reason(self, row: Row) -> Reason:
        if row.finished == "stop" or row.cut is not None:
            return "stop"
        return "stop" if row.end(row.reading.ends) is not None else "length"

    def _end(self, choice: Choice, reason: Reason) -> None:
        self.memory.forget(choice.row)
        if choice.steps is not None:
            choice.steps.close()  # type: ignore[attr-defined]
        choice.steps, choice.reason = None, reason
        job = choice.job
        if job.finished:
            job.done = time.monotonic()
            took = job.done - job.asked
            self.pace = took if not self.pace else 0.9 * self.pace + 0.1 * took
            self.jobs.pop(job.id, None)
            self.metrics.finished(job)
        job.wake()
