"""`entropy_bound`: as many places as depend on each other little enough (EB-Sampler, arXiv:2505.24857).

In:  the entropy at the open places of the block, in nats.
Out: those of lowest entropy, as many as the bound allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from unmask import decoding
from unmask.canvas import Choice, Row
from unmask.config import UserError, option


@dataclass
class Settings:
    """Rule: entropy_bound"""

    gamma: float = option(0.1, "Nats that the entropies of places written at once may sum to, the largest left out.")

    def check(self) -> None:
        """UserError for a bound below 0 or that is no number."""
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise UserError(f"--gamma is {self.gamma}; it must be 0 or more.")


class Rule(decoding.Rule):
    """The longest prefix of H_1 ≤ H_2 ≤ … with ΣH - max H ≤ gamma, and at least the planned share.

    The sum without its largest term bounds how far the joint distribution of the places is from the product of their
    own. The largest is the last of the prefix, so the first place always passes. (JetEngine keeps the largest in the
    sum; that is stricter and not the paper's rule.)
    """

    needs = frozenset({"entropy"})
    settings: Settings

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        assert seen.entropy is not None
        # a token that is written last has no confidence, but the entropy of its place may be low
        held = seen.confidence == 0
        before = seen.entropy[~held].double().sort().values.cumsum(0).roll(1)
        before[:1] = 0
        count = max(int((before <= self.settings.gamma).sum()), row.share)
        score = (-seen.entropy).masked_fill(held, -torch.finfo(torch.float32).max)
        return seen.choice(decoding.highest(row, seen.places, score, count))
