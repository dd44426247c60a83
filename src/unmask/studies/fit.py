"""What repeated data are worth: the law of Muennighoff et al. (arXiv:2305.16264) fitted to a study's losses.

In:  points (unique tokens U, epochs E, loss) of one arm with one size of model.
Out: `Repeats`: R_D*, the number of repeats after which further ones fade, with a bootstrap interval; or why there is
none. No torch.

    D' = U + U · R_D* · (1 - exp(-(E - 1) / R_D*))      L = E0 + B / D'^b

For given R_D* and b the law is a straight line in E0 and B. So a grid over the two others, made finer around its best
place, looks everywhere and cannot be caught in a wrong valley as a descent from one start can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unmask.studies.results import Estimate, Results, student

R_RANGE = (0.3, 3e4)
"""Where R_D* is sought. At the upper end repeats are worth as much as fresh tokens in any grid that can be run."""
B_RANGE = (0.02, 3.0)
AT_THE_END = 0.8
"""An R_D* within this factor of an end of R_RANGE has no end there."""
LEAST_POINTS, LEAST_EPOCHS = 6, 3
"""Four numbers are fitted: six points leave two to tell the noise; R_D* is a bend, and three epochs make one."""
HUBER = 1.345
"""Residuals beyond so many standard deviations weigh less (95 % efficient on normal noise: Huber 1981)."""
DRAWS, SEED = 200, 0


class Law(NamedTuple):
    """The four numbers of the law."""

    repeats: float
    exponent: float
    floor: float
    factor: float

    def __call__(self, unique: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        return self.floor + self.factor * effective(unique, epochs, self.repeats) ** -self.exponent


@dataclass(frozen=True)
class Repeats:
    """R_D* of one arm. low, high: 95 %, 0 and ∞ where the data set no end. why: it is not identified; "" if it is."""

    arm: str
    points: int
    law: Law | None = None
    low: float = 0.0
    high: float = math.inf
    noise: float = math.nan
    why: str = ""


def effective(unique: np.ndarray, epochs: np.ndarray, repeats: np.ndarray | float) -> np.ndarray:
    """D': the fresh tokens that E passes over U are worth. Less than one pass is just fewer tokens."""
    more = np.maximum(epochs - 1, 0.0)
    return unique * (np.minimum(epochs, 1.0) - repeats * np.expm1(-more / repeats))


def line(inputs: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E0, B ≥ 0 and the weighted squares that are left, of each row of inputs (candidates, points)."""
    total = weights.sum()
    mean_x, mean_y = inputs @ weights / total, float(loss @ weights / total)
    apart = inputs - mean_x[:, None]
    slope = np.maximum(apart @ (weights * (loss - mean_y)) / np.maximum(apart**2 @ weights, 1e-300), 0.0)
    floor = mean_y - slope * mean_x
    through = np.maximum(inputs @ (weights * loss) / np.maximum(inputs**2 @ weights, 1e-300), 0.0)
    slope, floor = np.where(floor < 0, through, slope), np.maximum(floor, 0.0)  # a loss below 0 there is none
    left = loss - floor[:, None] - slope[:, None] * inputs
    return floor, slope, left**2 @ weights


def search(unique: np.ndarray, epochs: np.ndarray, loss: np.ndarray, weights: np.ndarray, size: int) -> Law:
    """The law with the fewest weighted squares: a grid of size × size, eight times made finer around its best place."""
    limits = [(math.log(low), math.log(high)) for low, high in (R_RANGE, B_RANGE)]
    windows = limits
    best: tuple[float, Law] = (math.inf, Law(1.0, 1.0, 0.0, 0.0))
    scale = float(np.exp(np.mean(np.log(unique))))  # D'/scale is near 1: no power of it under- or overflows
    for _ in range(9):
        r, b = (np.exp(np.linspace(low, high, size)) for low, high in windows)
        amounts = effective(unique, epochs, r[:, None]) / scale
        inputs = (amounts[:, None, :] ** -b[None, :, None]).reshape(size * size, -1)
        floor, slope, squares = line(inputs, loss, weights)
        i = int(np.argmin(squares))
        if squares[i] < best[0]:
            found = Law(float(r[i // size]), float(b[i % size]), float(floor[i]), float(slope[i]))
            best = (float(squares[i]), found)
        centres = np.log([best[1].repeats, best[1].exponent])
        halves = [0.2 * (high - low) for low, high in windows]
        windows = [
            (max(low, centre - half), min(high, centre + half))
            for centre, half, (low, high) in zip(centres, halves, limits, strict=True)
        ]
    law = best[1]
    return law._replace(factor=law.factor * scale**law.exponent)


def fit_law(unique: np.ndarray, epochs: np.ndarray, loss: np.ndarray, size: int = 31) -> Law:
    """Robust least squares: outliers (Huber) weigh less, their scale told by the median residual."""
    weights = np.ones_like(loss)
    law = search(unique, epochs, loss, weights, size)
    for _ in range(4):
        left = np.abs(loss - law(unique, epochs))
        scale = 1.4826 * float(np.median(left)) * math.sqrt(len(loss) / max(1, len(loss) - 4))
        renewed = np.minimum(1.0, HUBER * max(scale, 1e-9) / np.maximum(left, 1e-12))
        if np.allclose(renewed, weights, atol=0.01):
            break
        weights = renewed
        law = search(unique, epochs, loss, weights, size)
    return law


def percentiles(values: np.ndarray, lowest: float = 0.0, highest: float = math.inf) -> tuple[float, float]:
    """The 95 % interval of draws; an end that more than 2.5 % of them do not reach is `lowest` or `highest`."""
    some = np.sort(values)
    low, high = some[int(0.025 * (len(some) - 1))], some[math.ceil(0.975 * (len(some) - 1))]
    return (float(low) if np.isfinite(low) else lowest), (float(high) if np.isfinite(high) else highest)


def fit_points(
    arm: str,
    unique: np.ndarray,
    epochs: np.ndarray,
    loss: np.ndarray,
    errors: np.ndarray | None = None,
    draws: int = DRAWS,
) -> Repeats:
    """R_D* of points. errors: of each, from seeds; 0 where it is not known.

    The interval is a parametric bootstrap: losses drawn around the fitted law, with the scatter of the points around
    it or the seeds' own where that is larger, and fitted again. It knows how far the law is from the points, which
    seeds drawn again do not. The scatter is widened as Student's t is wider than the normal: told by ten points, four
    of whose degrees of freedom the law takes, it is known badly. So 91 of 100 such intervals hold what was planted;
    without that, 86.
    """
    n, kinds = len(loss), len(np.unique(epochs))
    if n < LEAST_POINTS or kinds < LEAST_EPOCHS:
        need = f"at least {LEAST_POINTS} points and {LEAST_EPOCHS} budgets of epochs"
        return Repeats(arm, n, why=f"too few points: {n} of {kinds} budgets of epochs, {need} are needed")
    law = fit_law(unique, epochs, loss)
    mean = law(unique, epochs)
    noise = math.sqrt(float(((loss - mean) ** 2).sum()) / (n - 4))
    spread = student(n - 4) / student(math.inf) * np.maximum(noise, 0.0 if errors is None else errors)
    generator = np.random.default_rng(SEED)
    drawn = [fit_law(unique, epochs, mean + spread * generator.standard_normal(n), 21).repeats for _ in range(draws)]
    top, bottom = AT_THE_END * R_RANGE[1], R_RANGE[0] / AT_THE_END
    found = np.array([math.inf if r >= top else -math.inf if r <= bottom else r for r in drawn])
    low, high = percentiles(found)
    why = ""
    if law.factor == 0.0:
        why = "the loss does not fall with data"
    elif law.repeats >= top or math.isinf(high):
        why = "no upper end: within these budgets the loss does not tell repeats from fresh tokens"
    elif law.repeats <= bottom or low == 0.0:
        why = "no lower end: the loss does not tell whether repeats are worth anything"
    return Repeats(arm, n, law, low, high, noise, why)


def points_of(results: Results, arm: str) -> list[tuple[int, float, Estimate]]:
    """U, E and the lowest loss that at most E epochs over U have led to, over budgets and checkpoints.

    The paper took the last loss of each run. The law never rises with epochs, so an arm that over-fits does not follow
    it to the end of its runs; and its longer runs' best checkpoints, whose learning rate has not fallen yet, are above
    the ends of shorter ones. What E epochs can be made worth is the best of all of them.
    """
    found = []
    for unique in results.uniques:
        lowest: Estimate | None = None
        for cell in results.cells(arm, unique):
            lowest = cell.best if lowest is None or cell.best.value < lowest.value else lowest
            found.append((unique, cell.epochs, lowest))
    return found


def fit_repeats(results: Results, arm: str, draws: int = DRAWS) -> Repeats:
    """R_D* of one arm over all its unique tokens and budgets."""
    points = points_of(results, arm)
    if not points:
        return Repeats(arm, 0, why="no runs")
    rows = [(unique, epochs, one.value, one.se if one.seeds > 1 else 0.0) for unique, epochs, one in points]
    unique, epochs, loss, errors = np.array(rows, dtype=float).T
    return fit_points(arm, unique, epochs, loss, errors, draws)
