"""`delayed`: a token is kept one step after it was written (dKV-Cache-Decode, arXiv:2505.15781).

In:  a row.  Out: its open places; what was just written is computed once more by the loop, and then kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import caches
from unmask.canvas import Row
from unmask.config import option


@dataclass
class Settings(caches.Settings):
    """Cache: delayed"""

    refresh_every: int | None = option(
        8,
        "Compute everything anew every so many steps (the paper's 8 for LLaDA, 4 for Dream); none: only at first.",
    )


class Cache(caches.Cache):
    """What is given up: given and written tokens do not see what is written after them until the next refresh."""

    def window(self, row: Row) -> Tensor | None:
        every = self.settings.refresh_every
        if row.step == 0 or (every and row.step % every == 0):
            return None
        return torch.nonzero(row.open).flatten()
