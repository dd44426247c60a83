"""Rules and caches side by side: every one decodes the same prompts, and what that costs and gives is counted.

In:  a model as a function, prompts as ids, cells (a rule and a cache each), decoding settings.
Out: a `Result` for each cell, its `figures` beside those of `reference` without a cache, which always runs,
     and a `record` for a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unmask import decoding, report
from unmask.canvas import Canvas, Row
from unmask.config import UserError, build, cast, named
from unmask.predict import Predict

Z = statistics.NormalDist().inv_cdf(0.975)
"""Standard errors on each side of a 95 % interval."""

Judge = Callable[[int, list[int]], bool]
"""(number of the prompt, ids written before the end) → whether that answer is right."""


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


@dataclass(frozen=True)
class Cell:
    """One way to decode: a rule and a cache, each as it is typed, `threshold:threshold=0.9`."""

    rule: str = "reference"
    cache: str = "none"

    def __str__(self) -> str:
        return f"{self.rule} + {self.cache}"

    def settings(self) -> dict[str, Any]:
        """What `decoding.prepare` is told of it."""
        found: dict[str, Any] = {}
        for kind, typed in (("rule", self.rule), ("cache", self.cache)):
            name, args = parts(typed, kind)
            found |= {kind: name, f"{kind}_args": args}
        return found


BASELINE = Cell()


def parts(typed: str, kind: str) -> tuple[str, dict[str, Any]]:
    """`prefix:refresh_every=8` → ("prefix", {"refresh_every": 8}); the name may be a path to a file."""
    name, args = re.fullmatch(r"(.*?)(?::(\w+=.*))?", typed.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    if not name or name.endswith(":"):
        raise UserError(f"{typed!r} names no {kind}; type NAME or NAME:key=value,key=value.")
    return name, cast(args or {}, dict[str, Any], kind)


def cells(rules: Sequence[str], caches: Sequence[str]) -> list[Cell]:
    """Every rule with every cache, the baseline first; UserError for a name or setting that there is not."""
    for kind, folder, some in (("rule", "decoding", rules), ("cache", "caches", caches)):
        for typed in some:
            name, args = parts(typed, kind)
            file = named(folder, name)
            if not (hasattr(file, "Settings") and hasattr(file, kind.capitalize())):
                raise UserError(f"{name!r} is no {kind}: it needs classes Settings and {kind.capitalize()}.")
            try:
                made = build(file.Settings, args)
                if hasattr(made, "check"):
                    made.check()
            except UserError as error:
                raise UserError(f"{typed}: {error}") from None
    return list(dict.fromkeys([BASELINE, *(Cell(r.strip(), c.strip()) for r in rules for c in caches)]))


# ---------------------------------------------------------------------------------------------------------------------
# Running


@dataclass
class Answer:
    """What one row cost and became.

    Attributes:
        ids: the answer up to and including its end. tokens: how many of them were written. passes: forward passes it
        took part in. computed: places computed in those. length: of the row, prompt included. right: None: not asked.
    """

    ids: list[int]
    tokens: int
    passes: int
    computed: int
    length: int
    right: bool | None = None


@dataclass
class Result:
    """A cell's answers, in the order of the prompts.

    Attributes:
        seconds: of decoding all prompts, once a repeat. peak: bytes above what was taken before, in the batch with the
        most places; None where the system does not tell. changed: answers that came out otherwise in a later repeat.
        refused: why this cell cannot be; there are no figures then.
    """

    cell: Cell
    answers: list[Answer] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    changed: int = 0
    refused: str = ""


def run(
    predict: Predict,
    prompts: Sequence[Sequence[int]],
    new: Sequence[int],
    wanted: Sequence[Cell],
    settings: dict[str, Any],
    *,
    repeats: int = 3,
    batch_size: int = 1,
    judge: Judge | None = None,
) -> list[Result]:
    """Decode all prompts in every cell, `repeats` times; the first result is the baseline's.

    The cells take turns at each batch, so that a slow minute of the machine hits them all. Before that each has the
    batch with the most places once, uncounted; its memory is taken there, so that this costs no time that is counted.

    Args:
        new: tokens to write after each prompt. settings: for `decoding.prepare`, but rule and cache.

    Raises:
        UserError: the baseline cannot run. What another cell refuses is its result.
    """
    results = [Result(cell) for cell in dict.fromkeys([BASELINE, *wanted])]
    batches = [range(at, min(at + batch_size, len(prompts))) for at in range(0, len(prompts), batch_size)]

    def prepared(cell: Cell, batch: range) -> Canvas:
        some = [prompts[i] for i in batch], [new[i] for i in batch]
        canvas = Canvas.after(*some, predict.mask_id, first=batch[0])
        decoding.prepare(predict, canvas.rows, **settings, **cell.settings())
        return canvas

    for result in results:
        with refusal(result):
            for batch in batches:
                prepared(result.cell, batch)

    widest = max(batches, key=lambda batch: len(batch) * max(len(prompts[i]) + new[i] for i in batch))
    rounds = [(repeat, batch) for repeat in range(repeats) for batch in batches]
    bar = report.Bar("measuring", (len(rounds) + 1) * sum(map(runs, results)))
    done = itertools.count(1)
    try:
        decoding.fill(predict, prepared(BASELINE, widest))  # libraries make room for themselves at the first pass
        for result in filter(runs, results):
            bar.to(next(done), f"warming up, {result.cell}")
            with refusal(result):
                canvas, peak = prepared(result.cell, widest), Peak(predict.device)
                with peak:
                    decoding.fill(predict, canvas)
                result.peak = peak.bytes
        for repeat, batch in rounds:
            for result in filter(runs, results):
                bar.to(next(done), str(result.cell))
                with refusal(result):
                    timed(predict, prepared(result.cell, batch), batch, repeat, result, judge)
    finally:
        bar.close()
    return results


def runs(result: Result) -> bool:
    return not result.refused


def timed(predict: Predict, canvas: Canvas, batch: range, repeat: int, result: Result, judge: Judge | None) -> None:
    """Fill a prepared canvas against the clock and add to the result."""
    wait(predict.device)
    began = time.perf_counter()
    decoding.fill(predict, canvas)
    wait(predict.device)
    took = time.perf_counter() - began
    if repeat == len(result.seconds):
        result.seconds.append(0.0)
    result.seconds[repeat] += took
    for number, row in zip(batch, canvas.rows, strict=True):
        answer, before = answer_of(row)
        if repeat:
            result.changed += answer.ids != result.answers[number].ids
        else:
            answer.right = judge(number, before) if judge else None
            result.answers.append(answer)


@contextlib.contextmanager
def refusal(result: Result) -> Iterator[None]:
    """A UserError is the cell's result; the baseline's is everybody's."""
    try:
        yield
    except UserError as error:
        if result.cell == BASELINE:
            raise
        result.refused = str(error)


def answer_of(row: Row) -> tuple[Answer, list[int]]:
    """A finished row's answer, and its ids before the end of text, the end of turn or the stop string."""
    start, ids = row.start, row.answer.tolist()
    end = row.end(row.reading.ends)
    last = len(ids) if end is None else end - start
    before = ids[: last if row.cut is None else min(last, row.cut)]
    return Answer(ids[: last + 1], row.tokens, row.passes, row.computed, len(row.ids)), before


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told: it answers before it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Peak:
    """`with Peak(device) as peak:` → `peak.bytes`: the most memory taken inside, above what was taken before.

    On CUDA what torch's allocator gave out; on a CPU under Linux what the process had in memory (VmHWM - VmRSS of
    /proc/self/status; proc(5)). None elsewhere, and where the system forbids to reset its count.
    """

    bytes: int | None = None

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, -1

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device.type == "cuda":
            wait(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "cpu" and sys.platform == "linux":
            with contextlib.suppress(AttributeError):  # not every C library has it
                ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system: else it hides a peak
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
                self.before = resident("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        if self.before < 0:
            return
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        else:
            self.bytes = max(0, resident("VmHWM") - self.before)


def resident(name: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share, `right` of `count` (Wilson 1927, the score interval)."""
    share, square = right / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(differences: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean of differences over the same prompts, and its 95 % interval, mean ± 1.96 sd / √n; None for one alone."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, None
    half = Z * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, (mean - half, mean + half)


def equal_share(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of places with equal tokens, of the longer answer's places."""
    most = max(len(one), len(other))
    return sum(a == b for a, b in zip(one, other, strict=False)) / most if most else 1.0


def figures(result: Result, baseline: Result) -> dict[str, Any]:
    """A cell's figures by name; None where there is nothing to say.

    forward_passes: per answer. tokens_per_forward: tokens up to and including the end of text, per pass of their row.
    full_forwards: places computed, as forward passes over the whole row, per answer. tokens_per_second: median of the
    repeats; speedup: median of the repeats' ratios to the baseline. seconds: median. peak_bytes. same_answers: share
    of answers equal to the baseline's up to the end; same_tokens: mean share of equal tokens. accuracy and difference
    (to the baseline, paired), with 95 % intervals; gained, lost: answers right here alone, and there alone.
    """
    if result.refused:
        return {"refused": result.refused}
    mine, theirs = result.answers, baseline.answers
    tokens, passes = sum(a.tokens for a in mine), sum(a.passes for a in mine)
    rates = [tokens / seconds for seconds in result.seconds]
    usual = [sum(a.tokens for a in theirs) / seconds for seconds in baseline.seconds]
    pairs = list(zip(mine, theirs, strict=True))
    found: dict[str, Any] = {
        "answers": len(mine),
        "tokens": tokens,
        "forward_passes": passes / len(mine),
        "tokens_per_forward": tokens / passes if passes else None,
        "full_forwards": statistics.fmean(a.computed / a.length for a in mine),
        "tokens_per_second": statistics.median(rates),
        "speedup": statistics.median(a / b for a, b in zip(rates, usual, strict=True)),
        "seconds": statistics.median(result.seconds),
        "peak_bytes": result.peak,
        "same_answers": statistics.fmean(a.ids == b.ids for a, b in pairs),
        "same_tokens": statistics.fmean(equal_share(a.ids, b.ids) for a, b in pairs),
        "changed_on_repeat": result.changed,
    }
    marks = [(a.right, b.right) for a, b in pairs if a.right is not None and b.right is not None]
    if marks:
        right = sum(a for a, _ in marks)
        mean, interval = paired([int(a) - int(b) for a, b in marks])
        found |= {
            "right": right,
            "accuracy": right / len(marks),
            "accuracy_interval": wilson(right, len(marks)),
            "difference": mean,
            "difference_interval": interval,
            "gained": marks.count((True, False)),
            "lost": marks.count((False, True)),
        }
    return found


def record(result: Result, known: dict[str, Any], baseline: Result) -> dict[str, Any]:
    """A cell for a file: its figures, the seconds of each repeat, and every answer's facts, in the prompts' order."""
    found = {"rule": result.cell.rule, "cache": result.cell.cache, **known}
    if result.refused:
        return found
    mine = result.answers
    facts = {name: [getattr(a, name) for a in mine] for name in ("tokens", "passes", "computed", "length", "right")}
    same = [a.ids == b.ids for a, b in zip(mine, baseline.answers, strict=True)]
    return {**found, "seconds_of_each_repeat": result.seconds, "of_each_answer": {**facts, "same": same}}


def machine(model: Any) -> dict[str, Any]:
    """What it ran on."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
