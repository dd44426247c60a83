"""`margin`: first where the likeliest token is furthest ahead of the next (Dream's `topk_margin`; arXiv:2502.06768).

In:  p₁ - p₂ at the open places of the block, of the two likeliest tokens.
Out: as many places as `steps` plans, of the largest margin.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import decoding
from unmask.canvas import Row


@dataclass
class Settings:
    """Rule: margin"""


class Rule(decoding.Planned):
    """Score: p₁ - p₂. The margin is the distribution's, whichever token was drawn from it."""

    needs = frozenset({"margin"})

    def score(self, row: Row, seen: decoding.Seen) -> Tensor:
        assert seen.margin is not None
        return seen.margin
