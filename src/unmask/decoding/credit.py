"""`credit`: a token that keeps being the likeliest is believed sooner (CreditDecoding, arXiv:2510.06133).

In:  the logits at the open places of the block, step after step.
Out: logits raised by what each token was credited with so far; then as a threshold on confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import decoding
from unmask.canvas import Row
from unmask.config import UserError, option


@dataclass
class Settings:
    """Rule: credit"""

    # The constants of dInfer, where the authors published the rule.
    threshold: float = option(0.9, "Write every place whose confidence, credit counted, is at least this.")
    decay: float = option(0.8, "What a step leaves of the credit given before. 0 to 1.")
    gamma: float = option(0.2, "A step credits the likeliest token with its probability to this power. 0 or more.")
    alpha: float = option(0.7, "Logits rise by this times log(1 + credit). 0 is no credit: the rule threshold.")

    def check(self) -> None:
        """UserError for what is no probability, no share or no number."""
        if not 0 < self.threshold <= 1:
            raise UserError(f"--threshold is {self.threshold}; it must be above 0 and at most 1.")
        if not 0 <= self.decay <= 1:
            raise UserError(f"--decay is {self.decay}; it must be 0 to 1.")
        for name in ("gamma", "alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"--{name} is {getattr(self, name)}; it must be 0 or more.")


@dataclass
class Credits:
    """`given` (n, vocabulary), float32, to the tokens at `places` (n,) of a row of `length`."""

    length: int
    places: Tensor
    given: Tensor


class Rule(decoding.Confident):
    """C ← decay·C, C[argmax p] += (max p)^gamma; then softmax(logits + alpha·log(1 + C)) is read as by `threshold`.

    p is the softmax of the logits without credit. The mask and suppressed tokens, which are never written, earn none.
    C is the row's own, of the block's places, and 0 where a block begins. (dInfer keys it by the block's bounds, so two
    requests with equal bounds share it.) It takes 4 bytes for each place of the block and token of the vocabulary:
    16 MB for 32 places and LLaDA's 126,464 tokens.
    """

    settings: Settings
    adjusts = True

    def enter(self, row: Row) -> None:
        row.state = None

    def adjust(self, row: Row, places: Tensor, logits: Tensor) -> Tensor:
        """logits: (n, vocabulary) at places (n,), each once a step, → with credit, (n, vocabulary)."""
        # A row that grew has moved its places: the credit given so far would be that of others.
        if row.state is None or row.state.length != len(row.ids):
            block = row.candidates()
            zeros = torch.zeros(len(block), logits.shape[-1], device=logits.device)
            row.state = Credits(len(row.ids), block, zeros)
        ours = torch.isin(places, row.state.places)
        if not bool(ours.all()):  # a canvas that grows is looked at beyond the block too
            some, fused = ours.to(logits.device), logits.clone()
            fused[some] = self.adjust(row, places[ours], logits[some])
            return fused
        index = torch.searchsorted(row.state.places, places).to(logits.device)
        credit = row.state.given[index] * self.settings.decay
        never = torch.tensor(row.reading.never, dtype=torch.long, device=logits.device)
        p = torch.softmax(logits.float().index_fill(-1, never, -torch.inf), -1)
        p[:, row.mask_id] = 0
        p, likeliest = p.max(-1, keepdim=True)
        credit.scatter_add_(-1, likeliest, p**self.settings.gamma)
        row.state.given[index] = credit
        return logits + self.settings.alpha * credit.log1p()

    def passing(self, row: Row, seen: decoding.Seen) -> Tensor:
        return seen.confidence >= self.settings.threshold
