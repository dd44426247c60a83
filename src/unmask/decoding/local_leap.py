"""`local_leap`: near a place that is sure, less is enough (LocalLeap, arXiv:2510.07081).

In:  the confidence at the open places of the block.
Out: the anchors, and the places around them that pass a lower threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import decoding
from unmask.canvas import Row
from unmask.config import UserError, option


@dataclass
class Settings:
    """Rule: local_leap"""

    anchor: float = option(0.9, "Places with at least this confidence are anchors, and are written.")
    radius: int = option(4, "Places to either side of an anchor that count as near it.")
    relaxed: float = option(0.75, "Near an anchor, this confidence is enough. At most --anchor.")

    def check(self) -> None:
        """UserError for thresholds out of range or the wrong way round."""
        for name in ("anchor", "relaxed"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be above 0 and at most 1.")
        if self.relaxed > self.anchor:
            raise UserError(f"--relaxed is {self.relaxed}; it must be at most --anchor, {self.anchor}.")
        if self.radius < 0:
            raise UserError(f"--radius is {self.radius}; it must be 0 or more.")


class Rule(decoding.Confident):
    """{i : c_i ≥ anchor} ∪ {i : c_i ≥ relaxed, |i - j| ≤ radius for an anchor j}, and at least the planned share.

    Anchors are those of this step, in the block at hand; distance counts places of the row, written ones too.
    """

    settings: Settings

    def passing(self, row: Row, seen: decoding.Seen) -> Tensor:
        anchor = seen.confidence >= self.settings.anchor
        apart = (seen.places[:, None] - seen.places[anchor]).abs()
        near = (apart <= self.settings.radius).any(1)
        return anchor | (near & (seen.confidence >= self.settings.relaxed))
