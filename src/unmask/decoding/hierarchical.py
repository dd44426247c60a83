"""`hierarchical`: one place in each gap, so that what is written together stands apart (dInfer, arXiv:2510.08666).

In:  the confidence at the open places of the block.
Out: the surest place of every run of open places if it is sure enough, and all that are very sure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import decoding
from unmask.canvas import Row
from unmask.config import UserError, option


@dataclass
class Settings:
    """Rule: hierarchical"""

    low: float = option(0.62, "The surest place of a run of open places is written if its confidence is above this.")
    high: float = option(0.92, "Every place with a confidence above this is written.")

    def check(self) -> None:
        """UserError for thresholds out of range or the wrong way round."""
        for name in ("low", "high"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be from 0 to 1.")
        if self.low > self.high:
            raise UserError(f"--low is {self.low}; it must be at most --high, {self.high}.")


class Rule(decoding.Confident):
    """{argmax of a run : c > low} ∪ {i : c_i > high}, and at least the planned share, the surest first.

    A run is a stretch of open places of the block with nothing written or given between them. Each place that is
    written parts a run in two, so gaps halve as in a binary search. Of equally sure places the leftmost counts.
    """

    settings: Settings

    def passing(self, row: Row, seen: decoding.Seen) -> Tensor:
        sure = seen.confidence
        starts = (torch.nonzero(seen.places.diff() != 1).flatten() + 1).tolist()
        best = torch.stack([run[sure[run].argmax()] for run in torch.arange(len(sure)).tensor_split(starts)])
        which = sure > self.settings.high
        which[best] |= sure[best] > self.settings.low
        return which
