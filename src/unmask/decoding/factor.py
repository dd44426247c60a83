"""`factor`: the more places are written at once, the surer each must be (Fast-dLLM, arXiv:2505.22618).

In:  the confidence at the open places of the block.
Out: the surest n of them, n as large as the factor allows.
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
    """Rule: factor"""

    factor: float = option(1.0, "Write the surest n places while (n + 1)(1 - confidence of the n-th) is below this.")

    def check(self) -> None:
        """UserError for a factor under which nothing ever passes, or that is no number."""
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise UserError(f"--factor is {self.factor}; it must be above 0.")


class Rule(decoding.Rule):
    """The longest prefix of c_1 ≥ c_2 ≥ … with (n + 1)(1 - c_n) < factor, and at least the planned share.

    The left side never falls as n grows. So to stop at the first failure, as the paper and its code do, and to count
    all that pass, as dllm does, are one: no failure stands before a pass. The paper's code differs elsewhere: if the
    last of the open places is the first to fail, it is written all the same (`if top_i in (0, len - 1): top_i += 1`),
    so the last two open places always go together, however unsure the model is. We follow the definition.
    """

    settings: Settings

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        sure = seen.confidence.double().sort(descending=True).values
        rank = torch.arange(1, len(sure) + 1)
        count = int(((rank + 1) * (1 - sure) < self.settings.factor).sum())
        return seen.choice(decoding.highest(row, seen.places, seen.confidence, max(count, row.share)))
