"""A canvas that grows with its answer (DAEDAL, arXiv:2508.00819).

In:  a row with as many open places as its answer may have at most.
Out: the row with few, and more of them where the model finds no end in sight or is at a loss.

Before the first step the canvas grows until the model expects the text to end within it: until the mean probability of
an end over its last `window` places is `end_expected`. While it is written, an open place of the block at hand that the
model is less sure of than `unsure` becomes 1 + `grow_by` places, at most one a step and only while the end is not that
well expected. The official code looks at those of the last places whose likeliest token is the end; so do we.
"""

from __future__ import annotations

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
    grow_by: int = option(8, "Places added at once.")
    window: int = option(32, "Last places of the canvas where an end is looked for.")
    end_expected: float = option(0.5, "Before the first step: mean probability of an end there that is enough.")
    end_certain: float = option(0.9, "While it is written: mean probability of an end there that is enough.")
    unsure: float = option(0.1, "A place that the model is less sure of than this may become several.")

    def check(self) -> None:
        """UserError for values that cannot be."""
        for name in ("initial_length", "grow_by", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("end_expected", "end_certain", "unsure"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be from 0 to 1.")


@dataclass
class Growth:
    """How a row grows: its settings, how many places it may still get, and whether its first length is found."""

    settings: Settings
    left: int
    sized: bool = False


def shorten(row: Row, settings: Settings) -> None:
    """Leave a row `initial_length` of its open places; UserError where they are not its end."""
    places = torch.nonzero(row.free).flatten()
    if len(places) and len(places) != len(row.ids) - int(places[0]):
        raise UserError("--canvas grow needs answers at the row's end, without gaps or constraints; use fixed.")
    if len(places) and not row.reading.ends:
        raise UserError("--canvas grow looks for the end of text, and the model names none; give --eos_token_id.")
    left = max(0, len(places) - settings.initial_length)
    row.growth = Growth(settings, left)
    row.cut_to(len(row.ids) - left)


@torch.no_grad()
def before(predict: Predict, row: Row) -> None:
    """Find a row's first length, if it grows and none is found yet: a forward pass for each `grow_by` places."""
    growth = row.growth
    if growth is None or growth.sized:
        return
    growth.sized = True
    while growth.left:
        places = tail(row, growth.settings.window)
        if expected_end(row, look(predict, Pass([View(row, row.ids, places, places)]))[row]) >= (
            growth.settings.end_expected
        ):
            return
        extend(row, int(places[-1]))


def wider(view: View) -> View:
    """A view that also reads where an end is looked for, if its row grows."""
    growth = view.row.growth
    if growth is None or not growth.left:
        return view
    places = torch.cat([view.places, tail(view.row, growth.settings.window)]).unique()
    return dataclasses.replace(view, read=places, places=places)


def after(row: Row, seen: Seen) -> None:
    """Make room in the block at hand where the model was at a loss at this step. seen: of a view made `wider`."""
    growth = row.growth
    if growth is None or row.finished or not growth.left:
        return
    here = torch.isin(seen.places, row.candidates())
    if not bool(here.any()):
        return
    sure = seen.confidence.masked_fill(~here, torch.inf)
    end = 1.0 if row.end(row.reading.ends) is not None else expected_end(row, seen)
    if float(sure.min()) < growth.settings.unsure and end < growth.settings.end_certain:
        extend(row, int(seen.places[sure.argmin()]))


def extend(row: Row, place: int) -> None:
    """More open places before this one, as many as there may be."""
    growth = row.growth
    more = min(growth.settings.grow_by, growth.left)
    growth.left -= more
    row.grow(place, more)


def tail(row: Row, window: int) -> Tensor:
    """(n,) the last open places, at most `window`."""
    return torch.nonzero(row.open).flatten()[-window:]


def expected_end(row: Row, seen: Seen) -> float:
    """The mean probability of an end over those last places where it is the likeliest token; 0 if it is nowhere."""
    last = seen.places >= len(row.ids) - row.growth.settings.window
    ends = last & torch.isin(seen.tokens, torch.tensor(row.reading.ends))
    return float(seen.confidence[ends].mean()) if bool(ends.any()) else 0.0
