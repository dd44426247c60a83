"""Two models on the same questions: what the difference is, and whether chance explains it.

In:  for each question the value of the first and of the second; for log-likelihoods also its words or bytes.
Out: `figures`: scores, difference, 95 % intervals, p of a paired test; `holm`: p of several tests at once.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

DRAWS = 10_000
"""Random sign flips; where there are no more than so many in all, each is tried once."""
SEED = 0
MCNEMAR, FLIPS = "exact McNemar", "sign flips"

Interval = tuple[float, float]


def mcnemar(gained: int, lost: int) -> float:
    """p of the exact McNemar test: two-sided binomial with ½ on the questions that only one of the two got right.

    McNemar 1947; the exact form is in Agresti, Categorical Data Analysis, 10.1.
    """
    total, fewer = gained + lost, min(gained, lost)
    ways, tail = 1, 0
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (total - k) // (k + 1)
    return min(1.0, 2 * tail / 2**total)  # whole numbers: Python rounds their ratio rightly whatever their size


def sign_flips(differences: Sequence[float]) -> float:
    """p of the paired permutation test: how often the sum is as far from 0 when each difference's sign is drawn.

    All 2**n flips are tried where they are at most `DRAWS`. Otherwise `DRAWS` are drawn from `SEED` and the one that
    was seen counts too, so that p is never 0 (Phipson & Smyth 2010).
    """
    some = [value for value in differences if value]  # flipping a 0 changes nothing
    if not some:
        return 1.0
    seen = abs(math.fsum(some)) - 1e-9 * math.fsum(map(abs, some))  # sums made in another order are as far, too
    if 2 ** len(some) <= DRAWS:
        flips = itertools.product((1, -1), repeat=len(some))
        far = sum(abs(sum(s * value for s, value in zip(signs, some, strict=True))) >= seen for signs in flips)
        return far / 2 ** len(some)
    import numpy

    generator, values = numpy.random.default_rng(SEED), numpy.array(some)
    far, left, most = 0, DRAWS, max(1, 4_000_000 // len(some))  # 4 million signs at once: 36 MB
    while left:
        now = min(left, most)
        signs = generator.integers(0, 2, (now, len(some)), dtype=numpy.int8)
        far += int((abs((2.0 * signs - 1) @ values) >= seen).sum())
        left -= now
    return (far + 1) / (DRAWS + 1)


def holm(values: Sequence[float]) -> list[float]:
    """p of each of several tests so that one of them errs with at most 5 % where all are below 0.05 (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        found[i] = highest
    return found


def shares(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Numbers whose mean is Σ values / Σ weights, and whose spread is that of the ratio (linearised: Cochran, ch. 6).

    With equal weights of 1 they are the values themselves.
    """
    ratio, each = math.fsum(values) / math.fsum(weights), statistics.fmean(weights)
    return [ratio + (value - ratio * weight) / each for value, weight in zip(values, weights, strict=True)]


def figures(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float] | None = None, *, higher: bool = True
) -> dict[str, Any]:
    """What two models' values on the same questions tell, by name.

    Args:
        weights: words or bytes of each question, for values that are summed over them. higher: is better.

    Returns:
        questions; kind: `right or wrong` or `number`; first, second: the scores, with their interval (Wilson's for
        right or wrong, mean ± 1.96 se for numbers); difference: second - first, with the interval of the pairs;
        gained, lost: questions on which the second is better, worse; test and p. An interval of one number is None.
    """
    from unmask.measure import paired, wilson

    differences = [b - a for a, b in zip(first, second, strict=True)]
    marks = weights is None and {*first, *second} <= {0.0, 1.0}
    each = [1.0] * len(differences) if weights is None else weights

    def score(values: Sequence[float]) -> tuple[float, Interval | None]:
        if marks:
            right = round(sum(values))
            return right / len(values), wilson(right, len(values))
        mean, interval = paired(shares(values, each))
        return mean, interval

    difference, interval = paired(differences if weights is None else shares(differences, each))
    up, down = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    gained, lost = (up, down) if higher else (down, up)
    (one, one_interval), (two, two_interval) = score(first), score(second)
    return {
        "questions": len(differences),
        "kind": "right or wrong" if marks else "number",
        "first": one,
        "first_interval": one_interval,
        "second": two,
        "second_interval": two_interval,
        "difference": difference,
        "difference_interval": interval,
        "gained": gained,
        "lost": lost,
        "test": MCNEMAR if marks else FLIPS,
        "p": mcnemar(gained, lost) if marks else sign_flips(differences),
    }
