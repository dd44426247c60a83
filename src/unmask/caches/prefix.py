"""`prefix`: what stands before the block at hand is computed once a block (Fast-dLLM, arXiv:2505.22618, section 3.2).

In:  a row in the middle of a block.  Out: the block and everything behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import caches
from unmask.canvas import Row


@dataclass
class Settings(caches.Settings):
    """Cache: prefix"""


class Cache(caches.Blockwise):
    """What is given up: tokens before the block do not see what is written in it until the next refresh."""

    def around(self, row: Row, start: int, end: int) -> Tensor:
        return caches.span(start, len(row.ids))
