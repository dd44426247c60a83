"""Cache policies: which places of a row are computed anew at a step. One file here is one policy.

In:  a row, as it stands before a step.
Out: the places whose keys and values are computed at this step; all others are answered from those of before.

A policy is one file here or elsewhere (`cache="my/cache.py"`) with a dataclass `Settings` and a class `Cache`:

    class Cache(caches.Cache):
        def window(self, row):                  # None computes all of them: a refresh, exact at that step
            return None if row.taken == 0 else row.blocks[row.block]

What else must be computed is added by the loop: places that are read, and places that changed since they were last
computed. So a policy cannot answer from what is no longer there, whatever the rule does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmask.canvas import Row
from unmask.config import UserError, option


@dataclass
class Settings:
    """What every policy that forgets takes."""

    refresh_every: int | None = option(
        None, "Compute everything anew every so many steps of a block, and not only at its first."
    )

    def check(self) -> None:
        """UserError for a value that cannot be."""
        if self.refresh_every is not None and self.refresh_every < 1:
            raise UserError(f"--refresh_every is {self.refresh_every}; it must be at least 1.")


class Cache:
    """The base of every policy. `exact`: it never answers otherwise than a full pass. `keeps`: it keeps anything."""

    exact: ClassVar[bool] = False
    keeps: ClassVar[bool] = True

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def window(self, row: Row) -> Tensor | None:
        """(n,) the places to compute, ascending; None for all."""
        raise NotImplementedError

    def reach(self, row: Row) -> int | None:
        """How many places, from the row's start, are seen at all; None for all. For models that see no later block."""
        return None


class Blockwise(Cache):
    """Everything is computed at a block's first step, by the pass that also decodes it, and every `refresh_every`."""

    def window(self, row: Row) -> Tensor | None:
        every = self.settings.refresh_every
        if row.taken == 0 or (every and row.taken % every == 0):
            return None
        block = row.blocks[row.block]
        return self.around(row, int(block[0]), int(block[-1]) + 1)

    def around(self, row: Row, start: int, end: int) -> Tensor:
        """(n,) the places to compute while the block that spans start … end - 1 is written."""
        raise NotImplementedError


def span(start: int, end: int) -> Tensor:
    """The places start … end - 1."""
    return torch.arange(start, end)
