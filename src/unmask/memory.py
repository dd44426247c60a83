"""Keys and values of rows, kept from pass to pass: a `transformers` cache whose places can be rewritten.

In:  views of rows, and the policy of each (`unmask.caches`).
Out: forward passes: whole rows, whose keys and values are kept, and windows, which answer from those of the rest.

A row has a slot in every layer's store; a window's keys and values go to their places there, wherever they lie. So rows
of unequal lengths, at different blocks and with different policies share a pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as TransformersCache
from transformers.cache_utils import CacheLayerMixin

from unmask.canvas import Change, Row
from unmask.signals import ALIGN, Pass, View

Key = tuple[Row, bool]
"""A row, or its half of guidance that does not see what is given."""


def aligned(length: int) -> int:
    """The places that a store has for a row of so many."""
    return -(-length // ALIGN) * ALIGN


class Memory(TransformersCache):
    """What rows remember. It lives as long as they do; a row that is finished is forgotten."""

    def __init__(self) -> None:
        # transformers 5.23 calls it without arguments for each layer it meets; a bound layer does what a class would
        super().__init__(layer_class_to_replicate=lambda: Store(self))
        self.slots: dict[Key, int] = {}
        self.stale: dict[Row, Tensor] = {}  # (length,) places that changed since they were computed
        self.plan = Plan()

    def passes(self, views: Sequence[View], *, shift: int = 0, padded: bool = True) -> list[Pass]:
        """The forward passes of a step.

        Args:
            shift: place i is spoken of at place i - shift, which has to be computed too. padded: rows and windows of
                unequal lengths may share a pass.
        """
        groups: dict[tuple[Any, ...], list[View]] = {}
        for view in views:
            row, kind = view.row, "plain"
            if row.cache is not None and row.cache.keeps and view.attention is None:
                view, kind = self.narrowed(view, shift)
            shape = () if padded or kind != "window" else (len(view.ids), len(row.ids))
            groups.setdefault((kind, *shape), []).append(view)
        found = []
        for (kind, *_), some in groups.items():
            if kind == "plain":
                found.append(Pass(some))
            else:
                some.sort(key=self.slot)  # so that all rows together are the store itself, not a copy of it
                found.append(Pass(some, self, kept=kind == "window"))
        return found

    def narrowed(self, view: View, shift: int) -> tuple[View, str]:
        """What of a view has to be computed, and whether that is the whole of it."""
        row = view.row
        stale, reach = self.stale.get(row), row.cache.reach(row)
        end = len(row.ids) if reach is None else reach
        window = row.cache.window(row) if stale is not None and len(stale) == len(row.ids) else None
        if window is None:
            return dataclasses.replace(view, ids=view.ids[:end]), "whole"
        wanted = self.stale[row].clone()
        wanted[window] = True
        for back in range(shift + 1):
            wanted[(view.places - back).clamp(min=0)] = True
        places = torch.nonzero(wanted[:end]).flatten()
        if len(places) == len(row.ids):
            return view, "whole"
        read = torch.searchsorted(places, view.places)
        return dataclasses.replace(view, ids=view.ids[places], read=read, positions=places), "window"

    def slot(self, view: View) -> int:
        return self.slots.setdefault((view.row, view.bare), len(self.slots))

    def begin(self, one: Pass, width: int) -> Tensor | None:
        """Get ready for a pass whose rows are `width` wide; returns which kept places are real, if not all are."""
        slots = torch.tensor([self.slot(view) for view in one.views])
        of = torch.tensor([len(view.ids) for view in one.views])
        rows, columns = torch.nonzero(torch.arange(width) < of[:, None], as_tuple=True)
        whole = torch.arange(width).repeat(len(of), 1)
        if not one.kept:
            self.plan = Plan(slots, len(self.slots), rows, columns, whole[rows, columns], width, None)
            return None
        for i, view in enumerate(one.views):
            assert view.positions is not None
            whole[i, : of[i]] = view.positions
        lengths = [view.row.cache.reach(view.row) or len(view.row.ids) for view in one.views]
        kept = aligned(max(lengths))
        self.plan = Plan(slots, len(self.slots), rows, columns, whole[rows, columns], kept, kept)
        return torch.arange(kept) < torch.tensor(lengths)[:, None]

    def computed(self, one: Pass) -> None:
        """The pass is done: what it computed is fresh."""
        for view in one.views:
            row = view.row
            if view.positions is None:
                self.stale[row] = torch.arange(len(row.ids)) >= len(view.ids)
            else:
                self.stale[row][view.positions] = False

    def wrote(self, change: Change) -> None:
        """A row was written to; a finished one is forgotten."""
        row = change.row
        if row.finished:
            self.forget(row)
        elif row in self.stale:
            for places in (change.places, change.reopened):
                if places is not None and len(self.stale[row]) == len(row.ids):
                    self.stale[row][places] = True

    def forget(self, row: Row) -> None:
        """Give a row's slots to the last ones, so that there is no gap."""
        self.stale.pop(row, None)
        for key in ((row, False), (row, True)):
            slot = self.slots.pop(key, None)
            if slot is None:
                continue
            last = max(self.slots, key=self.slots.__getitem__, default=None)
            if last is not None and self.slots[last] > slot:
                for layer in self.layers:
                    layer.move(self.slots[last], slot)
                self.slots[last] = slot
        if not self.slots:
            self.layers.clear()

    @property
    def longest(self) -> int:
        """Places of the longest row that has a slot, as a store has them."""
        return aligned(max((len(row.ids) for row, _ in self.slots), default=0))

    @property
    def bytes(self) -> int:
        """Of all keys and values."""
        stores = [values for layer in list(self.layers) for values in (layer.keys, layer.values) if values is not None]
        return sum(values.nbytes for values in stores)


@dataclasses.dataclass
class Plan:
    """Where the keys and values of a pass go.

    Attributes:
        slots: (rows of the pass,). count: slots in all. rows, columns: (n,) the real places of the pass, row by row.
        places: (n,) where each lies in its own row. length: places a slot needs. kept: how many of them are seen;
            None: only what the pass computes.
    """

    slots: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    count: int = 0
    rows: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    columns: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    places: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    length: int = 0
    kept: int | None = None


class Store(CacheLayerMixin):
    """One layer's keys and values: (slots, heads, places, head width)."""

    is_sliding = False

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.keys: Tensor | None
        self.values: Tensor | None
        self.memory = memory

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for what the rows of now need; what stands there of them stays."""
        plan = self.memory.plan
        old: tuple[Any, Any] = (self.keys, self.values)
        count, length = plan.count, max(plan.length, self.memory.longest)
        if old[0] is not None and count <= old[0].shape[0] and plan.length <= old[0].shape[2]:
            return
        heads = key_states.shape[1]
        self.keys = key_states.new_zeros(count, heads, length, key_states.shape[-1])
        self.values = value_states.new_zeros(count, heads, length, value_states.shape[-1])
        for new, before in zip((self.keys, self.values), old, strict=True):
            if before is not None:
                slots, places = min(count, before.shape[0]), min(length, before.shape[2])
                new[:slots, :, :places] = before[:slots, :, :places]
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put a pass's keys and values (rows, heads, computed places, head width) in their places; returns all seen."""
        self.lazy_initialization(key_states, value_states)
        plan = self.memory.plan
        assert self.keys is not None
        assert self.values is not None
        slots = plan.slots[plan.rows]
        self.keys[slots, :, plan.places] = key_states[plan.rows, :, plan.columns]
        self.values[slots, :, plan.places] = value_states[plan.rows, :, plan.columns]
        if plan.kept is None:
            return key_states, value_states
        if bool((plan.slots == torch.arange(len(plan.slots))).all()):
            n = len(plan.slots)
            return self.keys[:n, :, : plan.kept], self.values[:n, :, : plan.kept]
        at = plan.slots.to(self.keys.device)
        return self.keys[at][:, :, : plan.kept], self.values[at][:, :, : plan.kept]

    def move(self, source: int, target: int) -> None:
        """The row in one slot goes to another."""
        for values in (self.keys, self.values):
            if values is not None and source < len(values):
                values[target] = values[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.memory.plan.kept or query_length, 0

    def get_seq_length(self) -> int:
        return 0  # positions are given with each pass

    def get_max_length(self) -> int:
        return -1
