"""`none`: every place is computed at every step. Exact.

In:  a row.  Out: all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import caches
from unmask.canvas import Row


@dataclass
class Settings:
    """Cache: none"""


class Cache(caches.Cache):
    """Keeps nothing."""

    exact = True
    keeps = False

    def window(self, row: Row) -> Tensor | None:
        return None
