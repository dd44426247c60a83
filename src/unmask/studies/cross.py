"""Where the masked arm overtakes the autoregressive one, and how that place moves with the amount of text.

In:  a study's results.
Out: `Crossing` per number of unique tokens and definition, with the gap, its slope and an extrapolation where there is
none; `Critical`: log C_crit = a + b · log U, b with its interval. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unmask.studies.fit import percentiles
from unmask.studies.results import Cell, Envelope, Estimate, Results, difference, envelope

EQUAL, BEST, TUNED = "equal compute", "AR's best", "tuned AR's best"
MEANING = {
    EQUAL: "the masked arm's lowest loss so far falls below the AR arm's lowest so far with as much compute",
    BEST: "it falls below the AR arm's lowest loss at any compute",
    TUNED: "it falls below the lowest loss of the AR arm and the tuned AR arms at any compute",
}
DRAWS, SEED = 400, 0
LAST_BUDGETS = 3
"""The slope in log epochs is that of so many of the largest budgets: further back the curve is steeper."""
PAPER_FACTOR, PAPER_EXPONENT = 2.12e15, 2.174
"""C_crit = 2.12e15 · (U / 1e6)^2.174 FLOPs (arXiv 2507.15857, fitted on U of 25M to 100M)."""


@dataclass(frozen=True)
class Crossing:
    """One number of unique tokens, one definition (`MEANING`).

    flops, epochs: None where there is none; the intervals' ends are ∞ where more than 2.5 % of draws have none.
    searched: the most compute (epochs) of the masked arm. drawn: the crossing's compute in each draw, ∞ for none.
    gap: the masked arm's lowest loss less what it is held against; slope: of its loss per e-fold of epochs.
    extrapolated_epochs: where a straight line in log epochs would cross; None where the slope does not lead there.
    """

    unique: int
    against: str
    flops: float | None
    interval: tuple[float, float] | None
    searched: float
    searched_epochs: float
    per_epoch: float
    drawn: np.ndarray
    gap: Estimate
    slope: Estimate | None
    extrapolated_epochs: float | None

    @property
    def epochs(self) -> float | None:
        return None if self.flops is None else self.flops / self.per_epoch

    @property
    def epochs_interval(self) -> tuple[float, float] | None:
        return self.interval and (self.interval[0] / self.per_epoch, self.interval[1] / self.per_epoch)

    @property
    def extrapolated(self) -> float | None:
        """The same in FLOPs."""
        return None if self.extrapolated_epochs is None else self.extrapolated_epochs * self.per_epoch


@dataclass(frozen=True)
class Critical:
    """log C_crit = log factor + exponent · log(U / 1e6). why: it is not identified; "" if it is."""

    uniques: tuple[int, ...]
    factor: float = math.nan
    exponent: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    why: str = ""


def lasting(masked: Envelope, other: Envelope, until: float) -> float | None:
    """The compute from which on the first stays below the second up to `until`; None where it is not below at the end.

    Both are linear in log compute between their points, so their difference is, too, between the points of both. A dip
    below at the very start, which noise makes, is no crossing as long as it does not last.
    """
    first = max(masked.flops[0], other.flops[0])
    places = np.unique(np.concatenate([masked.flops, other.flops, [until]]))
    places = places[(places >= first) & (places <= until)]
    if not len(places):
        return None
    apart = masked.at(places) - other.at(places)
    if apart[-1] >= 0:
        return None
    above = np.flatnonzero(apart >= 0)
    if not len(above):
        return float(places[0])
    i = above[-1]
    share = apart[i] / (apart[i] - apart[i + 1])
    return float(np.exp(np.log(places[i]) + share * (np.log(places[i + 1]) - np.log(places[i]))))


def drawn_curves(cells: Sequence[Cell], generator: np.random.Generator | None) -> list[np.ndarray]:
    """Each cell's mean curve; with a generator, as it might have come out with other seeds, rows and noise.

    Several seeds are drawn again among themselves, their scatter widened by √(n/(n-1)), because a sample of n scatters
    less about its own mean. One seed's curve is moved as a whole by its look's error: a run's looks see the same rows.
    """
    found = []
    for cell in cells:
        mean, n = cell.losses.mean(0), len(cell.runs)
        if generator is not None and n > 1:
            again = cell.losses[generator.integers(0, n, n)].mean(0)
            mean = mean + math.sqrt(n / (n - 1)) * (again - mean)
        elif generator is not None:
            mean = mean + cell.best.se * generator.standard_normal()
        found.append(mean)
    return found


def level(loss: float, flops: float) -> Envelope:
    """One loss at any compute, from `flops` on."""
    return Envelope(np.array([flops]), np.array([loss]))


def cross(
    masked: Sequence[Cell], other: Sequence[Cell], against: str, generator: np.random.Generator | None = None
) -> float | None:
    """The crossing's compute, of the curves as measured or as drawn."""
    envelopes = []
    for cells in (masked, other):
        curves = drawn_curves(cells, generator)
        envelopes.append(envelope(np.concatenate([cell.flops for cell in cells]), np.concatenate(curves)))
    ours, theirs = envelopes
    if not len(ours.flops) or not len(theirs.flops):
        return None
    until = max(float(cell.flops[-1]) for cell in masked)
    if against != EQUAL:
        theirs = level(float(theirs.loss[-1]), float(ours.flops[0]))
    return lasting(ours, theirs, until)


def slope_of(cells: Sequence[Cell]) -> Estimate | None:
    """Nats per token and e-fold of epochs, through the largest budgets' best losses; None with fewer than two."""
    last = sorted(cells, key=lambda cell: cell.epochs)[-LAST_BUDGETS:]
    if len(last) < 2:
        return None
    x = np.log([cell.epochs for cell in last])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    value = float(weights @ np.array([cell.best.value for cell in last]))
    se = math.sqrt(float((weights**2) @ np.array([cell.best.se for cell in last]) ** 2))
    return Estimate(value, se, min(cell.best.df for cell in last), min(cell.best.seeds for cell in last))


def crossing(
    results: Results, unique: int, masked_arm: str, ar_arms: Sequence[str], against: str, draws: int = DRAWS
) -> Crossing | None:
    """At one number of unique tokens; None where one of the two was not run."""
    masked, other = results.cells(masked_arm, unique), results.cells(ar_arms, unique)
    best, theirs = results.best(masked_arm, unique), results.best(ar_arms, unique)
    if not masked or not other or best is None or theirs is None:
        return None
    longest = max(masked, key=lambda cell: cell.flops[-1])
    searched, per_epoch = float(longest.flops[-1]), float(longest.flops[-1] / longest.epoch[-1])
    found = cross(masked, other, against)
    generator = np.random.default_rng(SEED)
    drawn = np.array([cross(masked, other, against, generator) or math.inf for _ in range(draws)])
    gap, slope = difference(best.best, theirs.best), slope_of(masked)
    further = None
    if found is None and slope is not None and slope.value < 0 and gap.value > 0:
        exponent = gap.value / -slope.value
        further = float(longest.epoch[-1]) * math.exp(exponent) if exponent < 50 else None
    return Crossing(
        unique=unique,
        against=against,
        flops=found,
        interval=None if found is None else percentiles(drawn),
        searched=searched,
        searched_epochs=float(longest.epoch[-1]),
        per_epoch=per_epoch,
        drawn=drawn,
        gap=gap,
        slope=slope,
        extrapolated_epochs=further,
    )


def fit_critical(crossings: Sequence[Crossing]) -> Critical:
    """The exponent of C_crit in U by least squares in the logarithms; its interval from the crossings' own draws.

    A draw in which the smallest U has no crossing says nothing about the exponent's lower end, one in which another U
    has none nothing about its upper end.
    """
    some = sorted((one for one in crossings if one.flops is not None), key=lambda one: one.unique)
    uniques = tuple(one.unique for one in some)
    if len(some) < 2:
        return Critical(uniques, why=f"{len(some)} of {len(crossings)} amounts of text have a crossing, two are needed")
    x = np.log(np.array(uniques, dtype=float) / 1e6)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    y = np.log([one.flops or math.nan for one in some])
    exponent = float(weights @ y)
    factor = float(np.exp(y.mean() - exponent * x.mean()))
    drawn = []
    for row in zip(*(one.drawn for one in some), strict=True):
        none = np.isinf(row)
        drawn.append(-math.inf if none[0] else math.inf if none.any() else float(weights @ np.log(row)))
    low, high = percentiles(np.array(drawn), -math.inf, math.inf)
    why = "" if math.isfinite(low) and math.isfinite(high) else "a crossing itself has no bounded interval"
    return Critical(uniques, factor, exponent, low, high, why)


def paper(unique: float) -> float:
    """The paper's C_crit in FLOPs; below 25M unique tokens an extrapolation."""
    return PAPER_FACTOR * (unique / 1e6) ** PAPER_EXPONENT
