"""`random`: any places, as the reverse process has it (LLaDA, arXiv:2502.09992, algorithm 4).

In:  the open places of the block.
Out: as many of them as `steps` plans, drawn before the model is asked: it is asked about nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import decoding
from unmask.canvas import Choice, Row
from unmask.config import UserError


@dataclass
class Settings:
    """Rule: random"""


class Rule(decoding.Rule):
    """Every open place is as likely as any other. The same draws as of `reference` with `remasking random`."""

    def enter(self, row: Row) -> None:
        if row.reading.last:
            raise UserError(
                "the rule random looks at no confidence, so --begin_suppress_tokens and --confidence_eos_eot_inf "
                "cannot hold tokens back; use --rule reference, or --suppress_tokens."
            )

    def places(self, row: Row) -> Tensor:
        return decoding.drawn_places(row)

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        return seen.choice()
