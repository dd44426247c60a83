"""The noise: how much of a text is masked at time t, what a masked token weighs, and which places are masked.

In:  (seed, epoch, place) of a row, or t itself.  Out: t, the masked places, their weight. Pure functions: the same
three numbers give the same noise on any machine, in any process, in any batch.

A row's *place* is its number in the epoch's order, given before packing, batching and sharding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.config import UserError, nearest

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# 2^64 / golden ratio: the additive sequence with the lowest discrepancy (each new point falls into the largest gap).
GOLDEN = 0x9E3779B97F4A7C15
# What a random number is for, so that two uses at one place are independent.
TIME, MASK, LENGTH, ORDER = range(4)


@dataclass(frozen=True)
class Schedule:
    """α(t), the share of tokens still seen at time t, and the weight of a masked token, w(t) = -α'(t) / (1 - α(t)).

    The bound is the same for every schedule (MDLM, arXiv:2406.07524, eq. 10; invariance in section 3.5); its variance
    and what training dwells on are not.
    """

    name: str
    alpha: Callable[[float], float]
    weight: Callable[[float], float]


SCHEDULES = {
    # LLaDA (arXiv:2502.09992, eq. 3): a share t is masked, each weighs 1/t.
    "linear": Schedule("linear", lambda t: 1 - t, lambda t: 1 / t),
    # MaskGIT (arXiv:2202.04200), MD4 (arXiv:2406.04329): α = 1 - cos(π/2 · (1 - t)), so w = π/2 · tan(π/2 · (1 - t)).
    "cosine": Schedule(
        "cosine",
        lambda t: 1 - math.cos(math.pi / 2 * (1 - t)),
        lambda t: math.pi / 2 * math.tan(math.pi / 2 * (1 - t)),
    ),
}


def schedule(name: str) -> Schedule:
    """The schedule called `name`; UserError when there is none."""
    if name not in SCHEDULES:
        raise UserError(f"no schedule called {name!r}; there are {', '.join(SCHEDULES)}.{nearest(name, SCHEDULES)}")
    return SCHEDULES[name]


def generator(seed: int, epoch: int, place: int, use: int) -> np.random.Generator:
    """The random numbers of one row for one use; epoch -1 is validation, whose noise never changes."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch + 1, place, use])))


def time(seed: int, epoch: int, place: int) -> float:
    """t of a row, in [0, 1): evenly spread over any run of neighbouring places, so also over any batch.

    t = frac(u + place / golden ratio) with u drawn once an epoch: a low-discrepancy sequence in the manner of VDM
    (arXiv:2107.00630, appendix I.1) that needs no batch size.
    """
    start = int(generator(seed, epoch, 0, TIME).integers(0, 2**64, dtype=np.uint64))
    return ((start + place * GOLDEN) % 2**64) / 2**64


def rate(t: float, eps: float, by: Schedule) -> tuple[float, float]:
    """(share of tokens to mask, weight of a masked token) at t in [0, 1].

    As LLaDA's guidelines do, t is first squeezed into [eps, 1]: t' = (1 - eps) t + eps, since w explodes at 0.
    """
    squeezed = (1 - eps) * t + eps
    return 1 - by.alpha(squeezed), by.weight(squeezed)


def mask(share: float, candidates: Mask, random: np.random.Generator) -> Mask:
    """Each candidate place is masked with probability `share`, independently (places,)."""
    # drawn for every place, candidate or not: hiding the prompt must not shift the answer's noise
    return (random.random(len(candidates)) < share) & candidates


def mask_exactly(count: int, candidates: Mask, random: np.random.Generator) -> Mask:
    """Exactly `count` of the candidate places are masked, every set of that size equally likely (places,)."""
    chosen = np.zeros(len(candidates), dtype=bool)
    chosen[random.permutation(np.flatnonzero(candidates))[:count]] = True
    return chosen


def count_at(t: float, candidates: int) -> int:
    """t in [0, 1) → how many of `candidates` places to mask, each of 1 … candidates equally likely."""
    return min(candidates, 1 + math.floor(t * candidates))
