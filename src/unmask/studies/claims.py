"""The study's claims T1 to T5 (after arXiv 2507.15857), graded yes, no or undecided, with what each grade rests on.

In:  results, which arms play which part, the crossings.
Out: `Claim`, with a `Part` for each number of unique tokens. No torch.

A run that was planned and is missing makes a grade undecided wherever it could overturn it, and is named. The masked
arm's figure is an upper bound on its loss: below an exact loss it is below whatever the slack; above, slack may be all
of the difference, and the reason says so.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unmask.report import amount
from unmask.studies.cross import EQUAL, Critical, Crossing
from unmask.studies.fit import percentiles
from unmask.studies.results import Cell, Estimate, Results, difference

YES, NO, UNDECIDED = "yes", "no", "undecided"
MOST_EPOCHS = 50
"""T1: the minimum of the paper's AR curves lies at 20 to 50 epochs; one later than that is not what it found."""
RISE = 2.0
"""T1: a rise counts from so many standard errors on, if its 95 % interval (wider with few seeds) excludes 0 as well."""
TIMES = 10
"""T2: the paper's R_D* of the two kinds are 16 times apart; ten times is the nearest round number that is less."""

NAME = re.compile(r"(?P<arm>.+)-u(?P<unique>\d+)-e(?P<epochs>[\d.]+)-s(?P<seed>\d+)")


@dataclass(frozen=True)
class Roles:
    """Which arms are compared. planned: names of all runs of the grid, where the caller knows them."""

    baseline: str
    masked: str
    tuned: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()

    @property
    def ar(self) -> tuple[str, ...]:
        """The AR arm and the tuned ones."""
        return (self.baseline, *self.tuned)


@dataclass(frozen=True)
class Part:
    """A claim at one number of unique tokens (None: over all)."""

    unique: int | None
    grade: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """name: T1 to T5. reason: one line."""

    name: str
    statement: str
    grade: str
    reason: str
    parts: tuple[Part, ...] = field(default=())


def roles_of(results: Results, settings: dict[str, Any]) -> Roles:
    """From the settings' `claims`; where they say nothing, by the arms' names and kinds."""
    known = settings.get("claims") or {}
    of = {run.arm: run.objective for run in results.runs}

    def first(objective: str, usual: str) -> str:
        return usual if usual in of else next((arm for arm, its in of.items() if its == objective), usual)

    baseline = known.get("baseline") or first("autoregressive", "ar")
    masked = known.get("masked") or first("masked", "masked")
    others = [arm for arm, its in of.items() if its == "autoregressive" and arm != baseline]
    tuned = known["tuned"] if known.get("tuned") is not None else others
    tuned = [tuned] if isinstance(tuned, str) else tuned
    return Roles(baseline, masked, tuple(tuned), tuple(map(str, settings.get("planned") or ())))


def missing(results: Results, roles: Roles, arms: Iterable[str], unique: int, budgets: bool = False) -> list[str]:
    """Names of runs of these arms that were planned or begun and have no result.

    budgets: only those whose epochs no seed has run; a seed less widens an interval but overturns nothing.
    """
    there, arms = {run.name for run in results.runs}, set(arms)
    ran = {(run.arm, run.unique, run.epochs) for run in results.runs}
    found = []
    for name in dict.fromkeys((*roles.planned, *results.unfinished, *results.diverged)):
        match = NAME.fullmatch(name)
        if match is None or name in there or match["arm"] not in arms or int(match["unique"]) != unique:
            continue
        if not budgets or (match["arm"], unique, float(match["epochs"])) not in ran:
            found.append(name)
    return found


def names(some: Sequence[str], most: int = 4) -> str:
    more = f" and {len(some) - most} more" if len(some) > most else ""
    return ", ".join(some[:most]) + more


def figure(one: Estimate, sign: bool = False) -> str:
    return f"{one.value:{'+' if sign else ''}.3f} ± {one.half:.3f}"


def told(cell: Cell) -> str:
    """A cell's best loss in words."""
    return f"{'≤ ' if cell.kind == 'bound' else ''}{figure(cell.best)} ({cell.arm}, {cell.kind})"


def counts(one: Estimate) -> int:
    """-1 or 1 where the 95 % interval excludes 0; 0 where it does not."""
    return (one.low > 0) - (one.high < 0)


def unsettled(grade: str, reason: str, gone: Sequence[str]) -> tuple[str, str]:
    """The grade, or undecided where runs that could overturn it are missing."""
    if grade != UNDECIDED and gone:
        return UNDECIDED, f"{reason}; as it stands {grade}, but missing: {names(gone)}"
    return grade, f"{reason}; missing: {names(gone)}" if gone else reason


# ---------------------------------------------------------------------------------------------------------------------
# One claim at one number of unique tokens


def u_shaped(results: Results, roles: Roles, unique: int) -> tuple[str, str]:
    """T1."""
    best, cells = results.best(roles.baseline, unique), results.cells(roles.baseline, unique)
    gone = missing(results, roles, [roles.baseline], unique, budgets=True)
    if best is None:
        return unsettled(UNDECIDED, f"no run of {roles.baseline}", gone)
    longest = max(cells, key=lambda cell: cell.epochs)
    rise, at = difference(longest.last, best.best), best.best_epoch
    rises = counts(rise) > 0 and rise.value > RISE * rise.se
    told_of = f"lowest {figure(best.best)} at {at:.3g} epochs, {figure(rise, True)} by {longest.epochs:g} epochs"
    if rises and at <= MOST_EPOCHS:
        return YES, told_of  # more budgets can make the minimum only deeper, and the rise with it
    if rises or longest.epochs > MOST_EPOCHS:
        return unsettled(NO, told_of if rises else f"{told_of}: no rise that counts", gone)
    return unsettled(UNDECIDED, f"{told_of}: not trained beyond {MOST_EPOCHS} epochs", gone)


def still_falls(results: Results, roles: Roles, unique: int) -> tuple[str, str]:
    """T2."""
    ar, cells = results.best(roles.baseline, unique), results.cells(roles.masked, unique)
    gone = missing(results, roles, [roles.masked], unique, budgets=True)
    if ar is None or not cells:
        return unsettled(UNDECIDED, f"no run of {roles.masked if ar else roles.baseline}", gone)
    at = TIMES * ar.best_epoch * (1 - 1e-6)
    after = [one for cell in cells if (one := cell.between(at, math.inf))]
    before = [one for cell in cells if (one := cell.between(0, at))]
    longest = max(cells, key=lambda cell: cell.epochs)
    if not after or not before:
        best = results.best(roles.masked, unique)
        assert best is not None
        rise = difference(longest.last, best.best)
        words = f"trained for {longest.epochs:g} epochs, {TIMES} × {ar.best_epoch:.3g} are asked"
        if not after and counts(rise) > 0 and rise.value > RISE * rise.se:
            return unsettled(NO, f"{words}; the bound has risen by {figure(rise)} before", gone)
        return unsettled(UNDECIDED, words, gone)
    change = difference(min(after, key=lambda one: one.value), min(before, key=lambda one: one.value))
    words = (
        f"{figure(change, True)} from before {TIMES} × {ar.best_epoch:.3g} epochs to after (up to {longest.epochs:g})"
    )
    if counts(change) < 0:
        return YES, words
    return unsettled(NO if counts(change) > 0 else UNDECIDED, words, gone)


def below(results: Results, roles: Roles, unique: int, ar_arms: Sequence[str]) -> tuple[str, str]:
    """T3 and T4: the masked arm's lowest bound against the lowest loss of these arms, over grids and checkpoints."""
    ours, theirs = results.best(roles.masked, unique), results.best(ar_arms, unique)
    of_masked = missing(results, roles, [roles.masked], unique, budgets=True)
    of_ar = missing(results, roles, ar_arms, unique, budgets=True)
    unrun = [f"every run of {arm}" for arm in ar_arms if not results.cells(arm, unique)]
    known = {match["arm"] for name in of_ar if (match := NAME.fullmatch(name))}
    of_ar += [words for words in unrun if words.removeprefix("every run of ") not in known]
    if ours is None or theirs is None:
        return unsettled(UNDECIDED, "one of the two was not run", [*of_masked, *of_ar])
    apart = difference(ours.best, theirs.best)
    words = f"{told(ours)} against {told(theirs)}: {figure(apart, True)}"
    if counts(apart) < 0:
        return unsettled(YES, words, of_ar)
    if counts(apart) > 0:
        slack = "; the bound's slack may hide a lower loss" if ours.kind == "bound" and theirs.kind == "exact" else ""
        longest = max(cell.epochs for cell in results.cells(roles.masked, unique))
        return unsettled(NO, f"{words} with up to {longest:g} epochs{slack}", of_masked)
    return unsettled(UNDECIDED, f"{words}: the interval holds 0", [*of_masked, *of_ar])


# ---------------------------------------------------------------------------------------------------------------------
# Over all numbers of unique tokens


def together(name: str, statement: str, parts: Sequence[Part]) -> Claim:
    """yes where all parts are yes, no where all are no; else undecided."""
    kinds = {part.grade for part in parts}
    grade = kinds.pop() if len(kinds) == 1 else UNDECIDED
    if len(parts) == 1:
        return Claim(name, statement, grade, f"U = {amount(parts[0].unique or 0)}: {parts[0].reason}", tuple(parts))
    words = [f"{part.grade} at U = {amount(part.unique or 0)}" for part in parts]
    return Claim(name, statement, grade, ", ".join(words) or "no runs", tuple(parts))


def grows(
    small: Crossing, large: Crossing, of: Callable[[Crossing], tuple[float | None, float, np.ndarray, float]]
) -> int:
    """1: the crossing is later with more text; -1: earlier; 0: cannot be told.

    A crossing that was not found lies beyond what was searched, which is enough where that is beyond the other's
    interval.
    """
    (at, searched, drawn, high), (their_at, their_searched, their_drawn, their_high) = of(small), of(large)
    if at is not None and their_at is not None:
        both = np.isfinite(drawn) & np.isfinite(their_drawn)
        if both.mean() < 0.95:  # an interval of what is left would leave out the draws without a crossing
            return 0
        low, high = percentiles(np.log(their_drawn[both] / drawn[both]))
        return (low > 0) - (high < 0)
    if at is not None:
        return int(their_searched > high)
    return -int(their_at is not None and searched > their_high)


def in_flops(one: Crossing) -> tuple[float | None, float, np.ndarray, float]:
    return one.flops, one.searched, one.drawn, one.interval[1] if one.interval else math.inf


def in_epochs(one: Crossing) -> tuple[float | None, float, np.ndarray, float]:
    high = one.epochs_interval[1] if one.epochs_interval else math.inf
    return one.epochs, one.searched_epochs, one.drawn / one.per_epoch, high


def moved(crossings: Sequence[Crossing], critical: Critical) -> tuple[str, str]:
    """T5."""
    some = sorted((one for one in crossings if one.against == EQUAL), key=lambda one: one.unique)
    words = ", ".join(
        f"U = {amount(one.unique)}: "
        + (f"none up to {one.searched_epochs:.3g} epochs" if one.epochs is None else f"{one.epochs:.3g} epochs")
        for one in some
    )
    if len(some) < 2:
        return UNDECIDED, f"{words or 'no crossing was sought'}; two amounts of text are needed"
    steps = [(grows(a, b, in_flops), grows(a, b, in_epochs)) for a, b in itertools.pairwise(some)]
    if critical.why:
        words += "; no exponent: " + critical.why
    else:
        words += f"; C_crit ∝ U^{critical.exponent:.2f} [{critical.low:.2f}, {critical.high:.2f}]"
    if all(step == (1, 1) for step in steps):
        return YES, words
    if any(-1 in step for step in steps):
        what = "compute" if any(step[0] == -1 for step in steps) else "epochs"
        return NO, f"{words}; in {what} it comes earlier with more text"
    unclear = [what for i, what in enumerate(("compute", "epochs")) if any(step[i] == 0 for step in steps)]
    return UNDECIDED, f"{words}; its growth in {' and '.join(unclear)} cannot be told"


def grade(results: Results, roles: Roles, crossings: Sequence[Crossing], critical: Critical) -> list[Claim]:
    """T1 to T5."""
    planned = [match for name in roles.planned if (match := NAME.fullmatch(name))]
    uniques = sorted({*results.uniques, *(int(match["unique"]) for match in planned)})

    def parts(of: Callable[[int], tuple[str, str]], arms: Iterable[str]) -> list[Part]:
        """At each U where one of the arms was run or was to be; all where no plan is known."""
        arms = set(arms)
        ran = {cell.unique for arm in arms for unique in uniques for cell in results.cells(arm, unique)}
        meant = ran | {int(match["unique"]) for match in planned if match["arm"] in arms}
        return [Part(unique, *of(unique)) for unique in uniques if unique in meant or not planned]

    claims = [
        together(
            "T1",
            f"AR validation loss is U-shaped in epochs: lowest by {MOST_EPOCHS} epochs, then rising",
            parts(lambda u: u_shaped(results, roles, u), [roles.baseline]),
        ),
        together(
            "T2",
            f"The masked arm's bound still falls at {TIMES} times the epochs of AR's lowest loss",
            parts(lambda u: still_falls(results, roles, u), [roles.masked]),
        ),
        together(
            "T3",
            "The masked arm's lowest bound is below AR's lowest loss",
            parts(lambda u: below(results, roles, u, [roles.baseline]), [roles.baseline, roles.masked]),
        ),
    ]
    statement = "T3 holds against tuned AR, too" + (f" ({', '.join(roles.tuned)})" if roles.tuned else "")
    if roles.tuned:
        claims.append(together("T4", statement, parts(lambda u: below(results, roles, u, roles.ar), roles.tuned)))
    else:
        claims.append(Claim("T4", statement, UNDECIDED, "no tuned AR arm is named or was run"))
    claims.append(
        Claim("T5", "The crossing moves to more epochs and more compute with more text", *moved(crossings, critical))
    )
    return claims
