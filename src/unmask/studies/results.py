"""What a study measured, in order: runs, their curves, their best checkpoints, means over seeds, lower envelopes.

In:  results.csv, one line a look at the validation rows (`COLUMNS`).
Out: `Results`: runs by arm, unique tokens and epochs, with estimates that carry their 95 % intervals. Losses are nats
per token; compute is in FLOPs, 6 · parameters · tokens. No torch.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unmask.values import UserError

COLUMNS = (
    *("run", "arm", "objective", "kind", "unique_tokens", "epochs", "seed", "parameters"),
    *("step", "epoch", "tokens", "flops", "train_loss"),
    *("loss", "loss_se", "bits_per_byte", "bits_per_byte_se", "draws", "final"),
)
WORDS = ("run", "arm", "objective", "kind")
KINDS = ("exact", "bound")
MAY_BE_EMPTY = ("train_loss", "loss_se", "bits_per_byte", "bits_per_byte_se", "draws", "parameters")

# Student's t for a two-sided 95 % interval, by degrees of freedom (any textbook's table); between them 1/df is linear.
STUDENT = (
    *((1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (6, 2.4469), (7, 2.3646), (8, 2.3060)),
    *((9, 2.2622), (10, 2.2281), (12, 2.1788), (15, 2.1314), (20, 2.0860), (30, 2.0423), (60, 2.0003)),
    *((120, 1.9799), (math.inf, 1.9600)),
)


def student(df: float) -> float:
    """How many standard errors make a two-sided 95 % interval."""
    return float(np.interp(1 / df, [1 / k for k, _ in STUDENT[::-1]], [t for _, t in STUDENT[::-1]]))


class Estimate(NamedTuple):
    """A mean with its standard error. df: of that error, ∞ where one run's look told it. seeds: how many runs."""

    value: float
    se: float
    df: float
    seeds: int

    @property
    def half(self) -> float:
        """Half of the 95 % interval."""
        return student(self.df) * self.se

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    @property
    def source(self) -> str:
        return f"{self.seeds} seeds" if self.seeds > 1 else "1 seed: the look's own error"


def over_seeds(values: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray) -> Estimate:
    """The mean; its error from the spread over seeds, or the look's own where there is one seed.

    The two are not the same thing: the first is about training again on the same validation rows, the second about
    other rows and other noise. Both are labelled where they are shown (`Estimate.source`).
    """
    n = len(values)
    if n == 1:
        return Estimate(float(values[0]), float(errors[0]), math.inf, 1)
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n), n - 1, n)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """first - second, taken as independent (Welch 1947; degrees of freedom by Satterthwaite).

    Both looked at the same rows, so a look's own errors are in part the same and the interval is rather too wide.
    """
    parts = (first.se**2, second.se**2)
    spread = sum(v**2 / e.df for v, e in zip(parts, (first, second), strict=True))
    df = sum(parts) ** 2 / spread if spread > 0 else math.inf
    return Estimate(first.value - second.value, math.sqrt(sum(parts)), df, min(first.seeds, second.seeds))


class Look(NamedTuple):
    """One look at the validation rows."""

    step: int
    epoch: float
    tokens: float
    flops: float
    train_loss: float
    loss: float
    se: float
    bits: float
    bits_se: float
    draws: int
    final: bool


@dataclass(frozen=True)
class Run:
    """One training run. looks: by step, each step once, losses finite. finished: its final look is there."""

    name: str
    arm: str
    objective: str
    kind: str
    unique: int
    epochs: float
    seed: int
    parameters: int
    looks: tuple[Look, ...]
    finished: bool

    @functools.cached_property
    def best(self) -> Look:
        """The checkpoint with the lowest validation loss; the earliest of equals."""
        return min(self.looks, key=lambda look: (look.loss, look.step))

    @property
    def last(self) -> Look:
        return self.looks[-1]

    @property
    def trained(self) -> bool:
        """Whether there is a loss after the first step: one that went astray at once has none."""
        return any(look.step > 0 for look in self.looks)


@dataclass(frozen=True)
class Cell:
    """The seeds of one arm at one number of unique tokens and one budget of epochs."""

    arm: str
    kind: str
    unique: int
    epochs: float
    runs: tuple[Run, ...]

    @functools.cached_property
    def best(self) -> Estimate:
        """The loss of each seed's best checkpoint."""
        return over_seeds([run.best.loss for run in self.runs], [run.best.se for run in self.runs])

    @functools.cached_property
    def best_bits(self) -> Estimate:
        """The same checkpoints in bits per byte."""
        return over_seeds([run.best.bits for run in self.runs], [run.best.bits_se for run in self.runs])

    @functools.cached_property
    def last(self) -> Estimate:
        return over_seeds([run.last.loss for run in self.runs], [run.last.se for run in self.runs])

    @property
    def best_epoch(self) -> float:
        return float(np.mean([run.best.epoch for run in self.runs]))

    def between(self, first: float, after: float) -> Estimate | None:
        """The lowest loss at epochs ≥ first and < after; None where a seed has no look there."""
        lows = []
        for run in self.runs:
            some = [look for look in run.looks if first <= look.epoch < after]
            if not some:
                return None
            lows.append(min(some, key=lambda look: look.loss))
        return over_seeds([look.loss for look in lows], [look.se for look in lows])

    @functools.cached_property
    def steps(self) -> list[int]:
        """Those at which every seed was looked at."""
        return sorted(set.intersection(*({look.step for look in run.looks} for run in self.runs)))

    def column(self, name: str) -> np.ndarray:
        """(seeds, steps): a figure of each look."""
        by_step = [{look.step: getattr(look, name) for look in run.looks} for run in self.runs]
        return np.array([[found[step] for step in self.steps] for found in by_step], dtype=float)

    @functools.cached_property
    def losses(self) -> np.ndarray:
        return self.column("loss")

    @functools.cached_property
    def flops(self) -> np.ndarray:
        return self.column("flops")[0]

    @functools.cached_property
    def epoch(self) -> np.ndarray:
        return self.column("epoch")[0]

    @functools.cached_property
    def curve(self) -> list[Estimate]:
        """The mean over seeds at each of `steps`."""
        errors = self.column("se")
        return [over_seeds(self.losses[:, i], errors[:, i]) for i in range(len(self.steps))]


class Envelope(NamedTuple):
    """The lowest loss for a compute: flops rising, loss falling, each point the best so far."""

    flops: np.ndarray
    loss: np.ndarray

    def at(self, flops: Any) -> np.ndarray:
        """The loss between points is linear in log compute; ∞ before the first, the last one's after the last."""
        return np.interp(np.log(flops), np.log(self.flops), self.loss, left=math.inf)


def envelope(flops: np.ndarray, loss: np.ndarray) -> Envelope:
    """The points that no other beats with as little compute. Looks before training (no compute) do not count."""
    kept = flops > 0
    order = np.lexsort((loss[kept], flops[kept]))
    flops, loss = flops[kept][order], loss[kept][order]
    before = np.concatenate([[math.inf], np.minimum.accumulate(loss)[:-1]])
    return Envelope(flops[loss < before], loss[loss < before])


@dataclass(frozen=True)
class Results:
    """All of a study. runs: those that can be read; unfinished, diverged: names of those that were left out."""

    runs: tuple[Run, ...]
    unfinished: tuple[str, ...] = ()
    diverged: tuple[str, ...] = ()

    @functools.cached_property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.runs))

    @functools.cached_property
    def uniques(self) -> list[int]:
        """The numbers of unique tokens, smallest first."""
        return sorted({run.unique for run in self.runs})

    @functools.cached_property
    def by_cell(self) -> dict[tuple[str, int], list[Cell]]:
        found: dict[tuple[str, int, float], list[Run]] = {}
        for run in self.runs:
            found.setdefault((run.arm, run.unique, run.epochs), []).append(run)
        cells: dict[tuple[str, int], list[Cell]] = {}
        for (arm, unique, epochs), some in sorted(found.items(), key=lambda item: item[0]):
            cell = Cell(arm, some[0].kind, unique, epochs, tuple(sorted(some, key=lambda run: run.seed)))
            cells.setdefault((arm, unique), []).append(cell)
        return cells

    def cells(self, arms: str | Iterable[str], unique: int) -> list[Cell]:
        """An arm's, or several arms', by rising budget of epochs; none where nothing was run."""
        names = [arms] if isinstance(arms, str) else list(arms)
        return [cell for arm in names for cell in self.by_cell.get((arm, unique), [])]

    def best(self, arms: str | Iterable[str], unique: int) -> Cell | None:
        """The budget (and arm) whose best checkpoints have the lowest mean loss: the minimum over grid and looks."""
        return min(self.cells(arms, unique), key=lambda cell: cell.best.value, default=None)

    def kind(self, arm: str) -> str:
        return next(run.kind for run in self.runs if run.arm == arm)

    def envelope(self, arms: str | Iterable[str], unique: int) -> Envelope | None:
        """Of the curves' means over seeds."""
        cells = self.cells(arms, unique)
        if not cells:
            return None
        found = envelope(
            np.concatenate([cell.flops for cell in cells]), np.concatenate([cell.losses.mean(0) for cell in cells])
        )
        return found if len(found.flops) else None


def read(path: Path) -> Results:
    """results.csv; UserError where it is not one."""
    if not path.is_file():
        raise UserError(f"no results at {path}; expected the CSV that a study leaves; run `unmask study` first.")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} has no column {', '.join(missing)}; expected {','.join(COLUMNS)}.")
        lines = [checked(line, f"{path}, line {reader.line_num}") for line in reader]
    if not lines:
        raise UserError(f"{path} has no look in it; expected a line for each; run `unmask study` first.")
    by_run: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_run.setdefault(line["run"], []).append(line)
    runs = [run_of(some, path) for some in by_run.values()]
    kinds: dict[str, Run] = {}
    for run in runs:
        other = kinds.setdefault(run.arm, run)
        if other.kind != run.kind:
            raise UserError(f"{path}: {run.name} is {run.kind} and {other.name} {other.kind}; an arm has one kind.")
    return Results(
        runs=tuple(run for run in runs if run.finished and run.trained),
        unfinished=tuple(run.name for run in runs if not run.finished),
        diverged=tuple(run.name for run in runs if run.finished and not run.trained),
    )


def checked(line: dict[str, Any], where: str) -> dict[str, Any]:
    """A line's words as numbers where they are numbers."""
    found: dict[str, Any] = {}
    for name in COLUMNS:
        text = (line[name] or "").strip()
        if name in WORDS:
            if not text:
                raise UserError(f"{where}: {name} is empty; expected a word.")
            found[name] = text
            continue
        try:
            found[name] = math.nan if not text and name in MAY_BE_EMPTY else float(text)
        except ValueError:
            raise UserError(f"{where}: {name} is {text!r}; expected a number.") from None
    if found["kind"] not in KINDS:
        raise UserError(f"{where}: kind is {found['kind']!r}; expected {' or '.join(KINDS)}.")
    if math.isfinite(found["loss"]) and math.isnan(found["loss_se"]):
        raise UserError(f"{where}: loss_se is empty beside a loss of {found['loss']}; expected its standard error.")
    whole = ("unique_tokens", "seed", "step", "final")
    for name in whole:
        if not float(found[name]).is_integer():
            raise UserError(f"{where}: {name} is {line[name]!r}; expected a whole number.")
    if found["unique_tokens"] <= 0 or found["epochs"] <= 0:
        raise UserError(
            f"{where}: unique_tokens and epochs are {line['unique_tokens']}, {line['epochs']}; expected > 0."
        )
    return found


def run_of(lines: list[dict[str, Any]], path: Path) -> Run:
    """One run of its lines: the final look takes the place of the other one at its step."""
    first = lines[0]
    for name in ("arm", "objective", "kind", "unique_tokens", "epochs", "seed"):
        if len({line[name] for line in lines}) > 1:
            raise UserError(f"{path}: the lines of {first['run']} differ in {name}; expected one run under one name.")
    places = [(line["step"], line["final"]) for line in lines]
    if len(set(places)) < len(places):
        raise UserError(f"{path}: {first['run']} has the same step twice; expected one line a look.")
    if len(ends := {line["step"] for line in lines if line["final"]}) > 1:
        raise UserError(f"{path}: {first['run']} has {len(ends)} final looks; expected one.")
    by_step = {line["step"]: line for line in sorted(lines, key=lambda line: (line["step"], line["final"]))}
    whole = lambda number: 0 if math.isnan(number) else round(number)  # noqa: E731
    looks = tuple(
        Look(
            step=int(line["step"]),
            **{name: line[name] for name in ("epoch", "tokens", "flops", "train_loss", "loss")},
            se=line["loss_se"],
            bits=line["bits_per_byte"],
            bits_se=line["bits_per_byte_se"],
            draws=whole(line["draws"]),
            final=bool(line["final"]),
        )
        for line in by_step.values()
        if math.isfinite(line["loss"])  # a run that went astray has looks without a number
    )
    return Run(
        name=first["run"],
        arm=first["arm"],
        objective=first["objective"],
        kind=first["kind"],
        unique=int(first["unique_tokens"]),
        epochs=first["epochs"],
        seed=int(first["seed"]),
        parameters=whole(first["parameters"]),
        looks=looks,
        finished=bool(ends),
    )
