"""`threshold`: all places the model is sure enough of (Fast-dLLM, arXiv:2505.22618, algorithm 1).

In:  the confidence at the open places of the block.
Out: those not below `threshold`; if they are fewer than `steps` plans, the surest that it plans.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import decoding
from unmask.canvas import Row
from unmask.config import UserError, option


@dataclass
class Settings:
    """Rule: threshold"""

    threshold: float = option(0.9, "Write every place with at least this confidence, above 0 and at most 1.")

    def check(self) -> None:
        """UserError for what is no probability, or lets everything pass."""
        if not 0 < self.threshold <= 1:
            raise UserError(f"--threshold is {self.threshold}; it must be above 0 and at most 1.")


class Rule(decoding.Confident):
    """{i : c_i ≥ threshold}, and at least the planned share, the surest first.

    One step a token is planned if `steps` is left out: the surest place alone is then the fall-back, as in Fast-dLLM.
    With `steps` it is LLaDA2.0's rule: the surest n / steps where fewer pass (generate() of its model file).
    """

    settings: Settings

    def passing(self, row: Row, seen: decoding.Seen) -> Tensor:
        return seen.confidence >= self.settings.threshold
