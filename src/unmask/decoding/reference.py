"""`reference`: LLaDA's sampler (arXiv:2502.09992, algorithms 4 and 5; the official generate.py), token for token.

In:  what the model says at the open places of the block.
Out: per step a fixed number of places: the surest ones, or random ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask import decoding
from unmask.canvas import Choice, Row
from unmask.config import UserError, option


@dataclass
class Settings:
    """Rule: reference"""

    remasking: Literal["low_confidence", "random"] = option(
        "low_confidence", "Which places a step writes: those the model is surest of, or any."
    )
    stochastic_transfer: bool = option(
        False, "Draw how many places a step writes, as the reverse process does, instead of equal shares."
    )


class Rule(decoding.Rule):
    """Writes n // steps places a step, one more in the first n % steps of them."""

    settings: Settings

    def enter(self, row: Row) -> None:
        if self.settings.remasking == "random" and row.reading.last:
            raise UserError(
                "remasking random looks at no confidence, so --begin_suppress_tokens and --confidence_eos_eot_inf "
                "cannot hold tokens back; use remasking low_confidence, or --suppress_tokens."
            )
        if self.settings.stochastic_transfer:
            row.shares = self.drawn_shares(row, len(row.candidates()), len(row.shares))

    def drawn_shares(self, row: Row, places: int, steps: int) -> list[int]:
        """From time t to s each open place is written with probability (t - s) / t, here 1 / (steps left).

        A step that would write nothing is left out: it would cost a forward pass and change nothing.
        """
        shares = []
        for left in range(steps, 0, -1):
            share = int((torch.rand(places, generator=row.generator("shares")) < 1 / left).sum())
            shares.append(share)
            places -= share
        return [share for share in shares if share]

    def places(self, row: Row) -> Tensor:
        """Random places are drawn before the model is asked, so that it is asked about nothing else."""
        return row.candidates() if self.settings.remasking == "low_confidence" else decoding.drawn_places(row)

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        if self.settings.remasking == "random":
            return seen.choice()
        return seen.choice(decoding.highest(row, seen.places, seen.confidence, row.share))
