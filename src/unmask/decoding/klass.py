"""`klass`: places where the model is sure and no longer changes its mind (KLASS, arXiv:2511.05664).

In:  confidence and probabilities at the open places of the block, step after step.
Out: those sure enough whose distribution has stood still for some steps; if too few do, the surest of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import decoding
from unmask.canvas import Choice, Row
from unmask.config import UserError, option

TINY = 1e-12
"""Added to both probabilities inside the logarithms, as in the paper's code: what underflows to 0 is not infinite."""


@dataclass
class Settings:
    """Rule: klass"""

    # The defaults of the paper's code. The paper tunes both for LLaDA: 0.6 and 0.015 on GSM8K, 0.6 and 0.01 on MATH,
    # 0.9 and 0.01 on HumanEval, 0.7 and 0.01 on MBPP.
    confidence: float = option(0.9, "A place may be written above this confidence. Above 0, at most 1.")
    kl: float = option(0.01, "A place stands still while KL(this step || the step before) is below this, in nats.")
    history: int = option(2, "Steps in a row that a place must have stood still.")

    def check(self) -> None:
        """UserError for what is no probability, no divergence or no number of steps."""
        if not 0 < self.confidence <= 1:
            raise UserError(f"--confidence is {self.confidence}; it must be above 0 and at most 1.")
        if not (math.isfinite(self.kl) and self.kl > 0):
            raise UserError(f"--kl is {self.kl}; it must be above 0.")
        if self.history < 1:
            raise UserError(f"--history is {self.history}; it must be at least 1.")


@dataclass
class Memory:
    """The last step: `probs` (n, vocabulary) at `places` (n,), and for how many steps each has `stood` still (n,)."""

    length: int
    places: Tensor
    probs: Tensor
    stood: Tensor


class Rule(decoding.Rule):
    """{i : c_i > confidence, KL_t(i) < kl at the last `history` steps}; if fewer than planned, the surest besides.

    KL_t(i) = Σ_v p_t(v) (log p_t(v) - log p_{t-1}(v)). It needs a step before, so nothing is ready in the first
    `history` steps of a block. The paper's code remembers the whole canvas in float64, so that a place may have stood
    still before its block began; here only the open places of the block are kept, in float32.
    """

    settings: Settings
    needs = frozenset({"probs"})

    def enter(self, row: Row) -> None:
        row.state = None

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        ready = (seen.confidence > self.settings.confidence) & (self.stood(row, seen) >= self.settings.history)
        missing = row.share - int(ready.sum())
        if missing > 0:
            # Not the surest of all: a sure place that still moves is what the rule is there to hold back.
            ready |= decoding.highest(row, seen.places, seen.confidence.masked_fill(ready, -torch.inf), missing)
        return seen.choice(ready)

    def stood(self, row: Row, seen: decoding.Seen) -> Tensor:
        """(n,) steps in a row, this one the last, at which the places stood still."""
        assert seen.probs is not None
        probs, before = seen.probs.float(), row.state
        stood = torch.zeros(len(seen.places), dtype=torch.long)
        # A row that grew has moved its places: what is known of them is of others.
        if before is not None and before.length == len(row.ids):
            kept = torch.isin(before.places, seen.places)
            last = before.probs[kept.to(before.probs.device)]
            kl = (probs * ((probs + TINY).log() - (last + TINY).log())).sum(-1).cpu()
            stood = torch.where(kl < self.settings.kl, before.stood[kept] + 1, 0)
        row.state = Memory(len(row.ids), seen.places, probs, stood)
        return stood
