"""`dual`: everything but the block at hand is computed once a block (Fast-dLLM's DualCache, arXiv:2505.22618).

In:  a row in the middle of a block.  Out: the block.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import caches
from unmask.canvas import Row


@dataclass
class Settings(caches.Settings):
    """Cache: dual"""


class Cache(caches.Blockwise):
    """What is given up: neither what stands before the block nor the masks behind it see what is written in it."""

    def around(self, row: Row, start: int, end: int) -> Tensor:
        return caches.span(start, end)
