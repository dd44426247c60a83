"""A canvas that grows with its answer (DAEDAL, arXiv:2508.00819).

In:  a row with as many open places as its answer may have at most.
Out: the row with few, and more of them where the model finds no end in sight or is at a loss.

Before the first step the canvas grows until the model expects the text to end within it: until the mean probability of
an end over its last `window` places is `end_expected`. While it is written, an open place of the block at hand that the
model is less sure of than `unsure` becomes `grow_by` places, at most one a step and only while the end is not that well
expected.

A place counts with 0 where an end is not the likeliest token, as in the official code. That code differs from us, and
from its paper, in two ways: its mean is over the last `window` places where an end is the likeliest, wherever they
stand, and before the first step it puts half a window of ends behind the canvas.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.canvas import Row
from unmask.config import UserError, option
from unmask.predict import Predict
from unmask.signals import Pass, Seen, View, look


@dataclass
class Settings:
    """Canvas: grow"""

    initial_length: int = option(64, "Open places of an answer at first.")
    grow_by: int = option(8, "Places added at once before the first step; then, places that one becomes.")
    window: int = option(32, "Last places of the canvas where an end is looked for.")
    end_expected: float = option(0.5, "Before the first step: mean probability of an end there that is enough.")
    end_certain: float = option(0.9, "While it is written: mean probability of an end there that is enough.")
    unsure: float = option(0.1, "A place that the model is less sure of than this may become several.")

    def check(self) -> None:
        """UserError for values that cannot be."""
        for name, least in (("initial_length", 1), ("grow_by", 2), ("window", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("end_expected", "end_certain", "unsure"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be from 0 to 1.")


@dataclass
class Growth:
    """How a row grows: its settings, how many places it may still get, and whether its first length is found.

    steps, block_size: of the row's plan, as they were asked for. seen: what was read at the last step. tried: places
    that were added so far in search of the first length.
    """

    settings: Settings
    left: int
    steps: int | None = None
    block_size: int | None = None
    sized: bool = False
    seen: Seen | None = None
    tried: int = 0


def shorten(row: Row, settings: Settings, steps: int | None = None, block_size: int | None = None) -> None:
    """Leave a row `initial_length` of its open places, before it has a plan.

    Raises:
        UserError: its open places are not its end; no token ends a text, or none may be written.
    """
    places = torch.nonzero(row.free).flatten()
    if len(places) and len(places) != len(row.ids) - int(places[0]):
        raise UserError("--canvas grow needs answers at the row's end, without gaps or constraints; use fixed.")
    if len(places) and not row.reading.ends:
        raise UserError("--canvas grow looks for the end of text, and the model names none; give --eos_token_id.")
    if len(places) and {*row.reading.ends} <= {*row.reading.never, *row.reading.last}:
        raise UserError("--canvas grow looks for the end of text, which other options hold back; use --canvas fixed.")
    left = max(0, len(places) - settings.initial_length)
    row.growth = Growth(settings, left, steps, block_size)
    row.cut_to(len(row.ids) - left)


def before(predict: Predict, row: Row) -> None:
    """Let a row grow before a step: to its first length, a pass for each `grow_by` places; then where it is needed."""
    if row.growth is None:
        return
    if row.growth.sized:
        return make_room(row)
    while not size(predict, row):
        pass


@torch.no_grad()
def size(predict: Predict, row: Row) -> bool:
    """One pass of the search for a row's first length; whether it is found, after which the row has it and its plan.

    For those who step many rows, and let no row wait for another's search.
    """
    growth = row.growth
    # read as the official code does, greedily and without guidance; a copy, so that the row's own reading stays
    probe = copy.copy(row)
    probe.reading = dataclasses.replace(row.reading, temperature=0.0, cfg_scale=0.0, top_k=None, top_p=None)
    if growth.tried < growth.left:
        ids = torch.cat([row.ids, row.ids.new_full((growth.tried,), row.mask_id)])
        places = last(row, len(ids))
        seen = look(predict, Pass([View(probe, ids, places, places)]))[probe]
        row.passes, row.computed = probe.passes, probe.computed
        if expected_end(row, seen, ids) < growth.settings.end_expected:
            growth.tried += min(growth.settings.grow_by, growth.left - growth.tried)
            if growth.tried < growth.left:
                return False
    growth.sized = True
    if more := growth.tried:
        growth.left -= more
        row.grow(len(row.ids) - 1, more)
        row.plan(growth.steps, growth.block_size)
    return True


def wider(view: View) -> View:
    """A view that also reads the whole block, and where an end is looked for, if its row grows."""
    row = view.row
    if row.growth is None or not row.growth.left:
        return view
    end = last(row, len(row.ids))
    places = torch.cat([view.places, row.candidates(), end[row.open[end]]]).unique()
    return dataclasses.replace(view, read=places, places=places)


def after(row: Row, seen: Seen) -> None:
    """Remember what was read at a step, of a view made `wider`: whoever hears of it sees the row as it was written."""
    if row.growth is not None:
        row.growth.seen = seen


def make_room(row: Row) -> None:
    """More places in the block at hand where the model was at a loss at the last step."""
    growth, seen = row.growth, row.growth.seen
    # at a block's beginning, what was read is of the block before
    if seen is None or not growth.left or not row.taken:
        return
    here = torch.isin(seen.places, row.candidates())
    end = row.end(row.reading.ends)
    if end is not None:  # nobody reads what stands behind it
        here &= seen.places < end
    sure = seen.confidence.masked_fill(~here, torch.inf)
    if float(sure.min()) >= growth.settings.unsure:
        return
    if expected_end(row, seen, row.ids) < growth.settings.end_certain:
        more = min(growth.settings.grow_by - 1, growth.left)
        growth.left -= more
        row.grow(int(seen.places[sure.argmin()]), more)


def last(row: Row, length: int) -> Tensor:
    """(n,) the last places of the answer, at most `window`, if the row ends after `length`."""
    return torch.arange(max(row.start, length - row.growth.settings.window), length)


def expected_end(row: Row, seen: Seen, ids: Tensor) -> float:
    """The mean probability of an end over the last places of `ids`, which are the row's, or more of them.

    A place counts with 0 where an end is not the likeliest, and with 1 where one was written before this step.
    """
    ends = torch.tensor(row.reading.ends)
    p = torch.isin(ids, ends).float()
    p[seen.places] = seen.confidence * torch.isin(seen.tokens, ends)
    return float(p[last(row, len(ids))].mean())
