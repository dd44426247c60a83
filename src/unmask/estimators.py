"""Estimators of likelihood: which masked inputs to look at, and what to make of what they show.

In:  a request (given tokens, then a target) and what its looks showed.
Out: the looks; log p of the target, in nats, and its standard error. No network here: `unmask.likelihood` looks.

A masked model has no one pass that says how probable a text is. By `Settings.likelihood`:

    exact_count    l of the target's L places masked, l uniform in 1 … L, weight L/l (LLaDA, arXiv:2502.09992, eq. 6)
    bernoulli      each place masked with probability t, weight 1/t (eq. 3)
    exact          the expectation of both, over every set of masked places; for short targets
    left_to_right  the chain rule in one order: L passes (SMDM, arXiv:2410.18514)
    any_order      the chain rule in `mc_num` random orders
    confidence     the chain rule in the order of the model's own confidence (iLLaDA's scoring of choices)

The first three and any_order have the same expectation, a lower bound on log p of the model that draws an order at
random (AO-ARM, arXiv:2110.02037); left_to_right is a likelihood of its own. confidence looks at the target for its
order, so that its value ranks choices and is no likelihood. A causal model has its exact value in one pass, whatever is
asked.

A *look* is an input with some places masked, and places whose tokens are wanted. Noise is a function of (seed, place of
the request, draw), as in validation: neither order nor batch nor process changes a number, and targets of one length at
one place share their masks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unmask import noise
from unmask.config import UserError, option

VALIDATION = -1
"""The epoch of noise that never changes; `unmask.batches` has it too."""
LONGEST_EXACT = 12
"""Tokens whose every set of masks is looked at: 4,095 looks."""
EPS = 1e-3
"""Bernoulli's t is drawn from [EPS, 1], as in training: down to 0, 1/t has no finite variance."""

Kind = Literal["exact_count", "bernoulli", "exact", "left_to_right", "any_order", "confidence"]


@dataclass
class Settings:
    """Likelihood"""

    likelihood: Kind = option(
        "exact_count",
        "How a masked model's likelihood is estimated: exact_count (LLaDA's), bernoulli, exact (short targets), "
        "left_to_right, any_order, confidence (iLLaDA's, for choices). A causal model's is exact.",
    )
    mc_num: int = option(
        128, "Draws of the masks of a target; so few tokens that fewer looks give the exact value cost only those."
    )
    cfg_scale: float = option(0.0, "Guidance, as in decoding. What it gives is no likelihood of the model's.")
    seed: int = option(42, "Seed of the masks.")

    def check(self) -> None:
        if self.mc_num < 1:
            raise UserError(f"mc_num is {self.mc_num}; it must be at least 1.")
        if not (math.isfinite(self.cfg_scale) and self.cfg_scale >= 0):
            raise UserError(f"cfg_scale is {self.cfg_scale}; it must be 0 or more.")


@dataclass(frozen=True)
class Request:
    """The likelihood of `target` where `given` stands before it.

    Attributes:
        place: with the seed it makes the noise; requests with one place share masks where their targets are as long.
    """

    given: tuple[int, ...]
    target: tuple[int, ...]
    place: int = 0


@dataclass(frozen=True)
class Score:
    """A request's value.

    Attributes:
        nats: log p, or what estimates its bound. se: standard error of the estimate; 0 if nothing was drawn, None if
            one draw cannot tell. looks: inputs it asked for, of which others may have asked too. greedy: whether the
            likeliest token stood at every place that was read; None where the target was not read as one writes.
    """

    nats: float
    se: float | None
    looks: int
    greedy: bool | None


# ---------------------------------------------------------------------------------------------------------------------
# Looks


def longest_first(request: Request) -> tuple[int, tuple[int, ...], int]:
    """The order of scoring: like lengths together, and requests that may share an input one after the other."""
    return -len(request.given) - len(request.target), request.given, len(request.target)


class Look(NamedTuple):
    """A target with some places masked, (L,) of bool, and the ascending places in it whose tokens are wanted."""

    masked: NDArray[np.bool_]
    read: NDArray[np.int64]


class Found(NamedTuple):
    """What a look showed at each place read, (n,): log p of the target's token; whether it is the likeliest."""

    nats: NDArray[np.float64]
    best: NDArray[np.bool_]


Plan = Generator[list[Look], list[Found], Score]
"""What a request wants to see: it yields looks, is sent what they showed, and returns the score."""


def hidden(masked: NDArray[np.bool_]) -> Look:
    """A look at all the masked places."""
    return Look(masked, np.flatnonzero(masked))


def causal(request: Request) -> Plan:
    """Σ log p(token i | tokens before i), in one look."""
    length = len(request.target)
    [found] = yield [Look(np.zeros(length, dtype=bool), np.arange(length))]
    return Score(float(found.nats.sum()), 0.0, 1, bool(found.best.all()))


def masked(request: Request, settings: Settings) -> Plan:
    """The value of a request by `settings`; a target of one token is exact in one look, whatever the estimator."""
    length, kind = len(request.target), settings.likelihood
    if kind == "exact" and length > LONGEST_EXACT:
        raise UserError(
            f"a target of {length} tokens has 2^{length} - 1 sets of masks; likelihood exact takes up to "
            f"{LONGEST_EXACT} tokens, exact_count any number."
        )
    if length == 1:
        return alone()
    if kind == "exact" or (kind == "exact_count" and length <= LONGEST_EXACT and 2**length - 1 <= settings.mc_num):
        return enumerated(length)
    plans = {
        "exact_count": lambda: drawn(request, settings, counted),
        "bernoulli": lambda: drawn(request, settings, tossed),
        "left_to_right": lambda: chained(length, [np.arange(length)]),
        "any_order": lambda: chained(length, orders(request, settings)),
        "confidence": lambda: surest_first(length),
    }
    return plans[kind]()


def alone() -> Plan:
    """One token, exact in one look."""
    [found] = yield [hidden(np.ones(1, dtype=bool))]
    return Score(float(found.nats.sum()), 0.0, 1, bool(found.best.all()))


def enumerated(length: int) -> Plan:
    """E over l uniform in 1 … L and every set S of l places of L/l Σ_S log p: each weighs (l - 1)! (L - l)! / L!."""
    looks = [hidden(np.array(bits)) for bits in itertools.product([False, True], repeat=length) if any(bits)]
    found = yield looks
    orders = math.factorial
    weights = [orders(n - 1) * orders(length - n) / orders(length) for n in range(1, 1 + length)]
    total = sum(weights[len(one.nats) - 1] * one.nats.sum() for one in found)
    return Score(float(total), 0.0, len(looks), None)


class Drawn(NamedTuple):
    """One draw of masks: at which t, which places, and what Σ log p weighs."""

    t: float
    masked: NDArray[np.bool_]
    weight: float


def counted(t: float, length: int, random: np.random.Generator) -> Drawn:
    """Exactly l places, l uniform in 1 … L as t is in [0, 1)."""
    count = noise.count_at(t, length)
    return Drawn(t, noise.mask_exactly(count, np.ones(length, dtype=bool), random), length / count)


def tossed(t: float, length: int, random: np.random.Generator) -> Drawn:
    """Each place with probability t."""
    share, weight = noise.rate(t, EPS, noise.SCHEDULES["linear"])
    return Drawn(t, noise.mask(share, np.ones(length, dtype=bool), random), weight)


def drawn(request: Request, settings: Settings, draw: Callable[[float, int, np.random.Generator], Drawn]) -> Plan:
    """The mean of `mc_num` draws; t spreads evenly over them, as over the rows of validation."""
    draws = []
    for i in range(settings.mc_num):
        place = request.place * settings.mc_num + i
        random = noise.generator(settings.seed, VALIDATION, place, noise.MASK)
        draws.append(draw(noise.time(settings.seed, VALIDATION, place), len(request.target), random))
    draws.sort(key=lambda one: one.t)
    looks = [hidden(one.masked) for one in draws if one.masked.any()]
    shown = iter((yield looks) if looks else ())  # Bernoulli's draws may mask nothing, and then cost nothing
    values = np.array([one.weight * next(shown).nats.sum() if one.masked.any() else 0.0 for one in draws])
    return Score(float(values.mean()), systematic_error(values), len(looks), None)


def systematic_error(values: NDArray[np.float64]) -> float | None:
    """The standard error of the mean of draws in the order of their t, which are spread evenly; None for one.

    √(Σ (x_{i+1} - x_i)² / (2 (n - 1) n)): differences of neighbours, so that what changes with t alone is not taken for
    noise (Wolter, An Investigation of Some Estimators of Variance for Systematic Sampling, JASA 1984, estimator 2).
    """
    count = len(values)
    return None if count < 2 else math.sqrt(float((np.diff(values) ** 2).sum()) / (2 * (count - 1) * count))


def orders(request: Request, settings: Settings) -> list[NDArray[np.int64]]:
    found = []
    for i in range(settings.mc_num):
        place = request.place * settings.mc_num + i
        found.append(noise.generator(settings.seed, VALIDATION, place, noise.ORDER).permutation(len(request.target)))
    return found


def chained(length: int, by: list[NDArray[np.int64]]) -> Plan:
    """Σ_i log p(x_σ(i) | given, x_σ(<i)), the mean over the orders σ."""
    looks = []
    for order in by:
        hide = np.ones(length, dtype=bool)
        for place in order:
            looks.append(Look(hide.copy(), np.array([place])))
            hide[place] = False
    found = yield looks
    values = np.array([float(one.nats[0]) for one in found]).reshape(len(by), length).sum(1)
    error = 0.0 if len(by) == 1 else float(values.std(ddof=1) / math.sqrt(len(by)))
    return Score(float(values.mean()), error, len(looks), None)


def surest_first(length: int) -> Plan:
    """The chain rule, next always the place whose own token the model is surest of (iLLaDA, arXiv:2606.25331)."""
    hide, total = np.ones(length, dtype=bool), 0.0
    while hide.any():
        look = hidden(hide.copy())
        [found] = yield [look]
        surest = int(found.nats.argmax())
        total += float(found.nats[surest])
        hide[look.read[surest]] = False
    return Score(total, 0.0, length, None)
