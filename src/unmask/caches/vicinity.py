"""`vicinity`: the block at hand and its neighbours are computed at every step (dInfer, arXiv:2510.08666).

In:  a row in the middle of a block.  Out: the block with some places before and behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import caches
from unmask.canvas import Row
from unmask.config import UserError, option


@dataclass
class Settings(caches.Settings):
    """Cache: vicinity"""

    vicinity: int = option(16, "Places before the block, and as many behind it, that are computed with it.")
    warm_up: int = option(4, "Steps at the answer's beginning that compute everything.")

    def check(self) -> None:
        super().check()
        for name in ("vicinity", "warm_up"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be 0 or more.")


class Cache(caches.Blockwise):
    """What is given up: as with `dual`, but only by what stands farther off."""

    def window(self, row: Row) -> Tensor | None:
        return None if row.step < self.settings.warm_up else super().window(row)

    def around(self, row: Row, start: int, end: int) -> Tensor:
        wide = self.settings.vicinity
        return caches.span(max(0, start - wide), min(len(row.ids), end + wide))
