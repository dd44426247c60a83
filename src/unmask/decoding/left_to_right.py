"""`left_to_right`: the leftmost open places, as an autoregressive model writes.

In:  the open places of the block.
Out: as many of them as `steps` plans, from the left. The model is asked about nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import decoding
from unmask.canvas import Choice, Row
from unmask.config import UserError


@dataclass
class Settings:
    """Rule: left_to_right"""


class Rule(decoding.Rule):
    """One token a step, from the left, if `steps` is left out."""

    def enter(self, row: Row) -> None:
        if row.reading.last:
            raise UserError(
                "the rule left_to_right writes in order, so --begin_suppress_tokens and --confidence_eos_eot_inf "
                "cannot hold tokens back; use --rule reference, or --suppress_tokens."
            )

    def places(self, row: Row) -> Tensor:
        return row.candidates()[: row.share]

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        return seen.choice()
