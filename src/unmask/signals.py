"""One forward pass: what rows show the network, and what is read of its answer.

In:  views of rows.  Out: for each row, tokens, how sure the model is of them, and what its rule needs beyond that.

The head is applied to the places asked for and nothing else, in chunks, where it stands in the model (`read`): the
logits of a whole canvas never exist.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.canvas import Choice, Row
from unmask.config import UserError
from unmask.predict import Head, Predict

EXTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": lambda p: torch.special.entr(p).sum(-1),
    "margin": lambda p: p.topk(2).values @ p.new_tensor([1.0, -1.0]),
}
"""What a rule may need beyond tokens and confidence: probabilities (n, vocabulary) → (n,). "logits" is a need too."""

PIECE = 32
"""Places of a row whose noise is drawn at once. Fixed, so that a row's noise does not depend on the other rows."""

CHUNK = 1 << 25
"""Logits held at once: 128 MB in float32. The head is applied to so many (place, token) pairs at a time."""


ALIGN = 16
"""On a CPU, rows are padded to a multiple of so many places and the head gets at least as many. Seen with torch 2.13:
at other widths, and for fewer, sums are taken in an order that depends on the padding, and where two places are equally
sure but for the last bits, a row would be written in another order alone than in a batch."""


@dataclass(eq=False)
class View:
    """What one row shows the network at one step.

    Attributes:
        ids: (n,) tokens shown. read: (k,) which of them, ascending, are to be spoken of. places: (k,) the row's places
            they stand for. positions: (n,) for rotary embeddings; None counts from 0. attention: (n, n), true where
            the first sees the second; None: all see all.
        bare: this is the half of guidance that does not see what is given.
    """

    row: Row
    ids: Tensor
    read: Tensor
    places: Tensor
    positions: Tensor | None = None
    attention: Tensor | None = None
    bare: bool = False

    def without_given(self) -> View:
        """The same with all given tokens masked, but those in `cfg_keep_tokens`."""
        given = torch.zeros(len(self.ids), dtype=torch.bool)
        given[: len(self.row.free)] = ~self.row.free
        given &= ~torch.isin(self.ids, torch.tensor(self.row.reading.keep, dtype=torch.long))
        return dataclasses.replace(self, ids=self.ids.masked_fill(given, self.row.mask_id), bare=True)


@dataclass
class Seen:
    """What was read at `places` (n,): `tokens` (n,), their `confidence` (n,), and what the rule needs, else None.

    All on the CPU but `logits` (n, vocabulary), which stay on the device; guided and suppressed, without noise.
    """

    places: Tensor
    tokens: Tensor
    confidence: Tensor
    entropy: Tensor | None = None
    margin: Tensor | None = None
    logits: Tensor | None = None

    def choice(self, which: Tensor | slice = slice(None)) -> Choice:
        """Write the tokens read at these entries: a mask (n,) or indexes."""
        return Choice(self.places[which], self.tokens[which], self.confidence[which])


def look(predict: Predict, views: Sequence[View], cache: Any = None) -> dict[Row, Seen]:
    """One forward pass: each row's view laid flush left, so that a row is the same alone and in any batch."""
    device = predict.device
    count, width = len(views), max(len(v.ids) for v in views)
    if device.type == "cpu":
        most = getattr(predict, "max_length", None) or width + ALIGN
        width = max(width, min(-(-width // ALIGN) * ALIGN, most))
    ids = torch.zeros(count, width, dtype=torch.long)
    real, keep = torch.zeros(count, width, dtype=torch.bool), torch.zeros(count, width, dtype=torch.bool)
    for i, view in enumerate(views):
        ids[i, : len(view.ids)], real[i, : len(view.ids)], keep[i, view.read] = view.ids, True, True
    attention = positions = None
    if any(v.attention is not None for v in views):
        attention = torch.zeros(count, 1, width, width, dtype=torch.bool)
        for i, view in enumerate(views):
            n = len(view.ids)
            attention[i, 0, :n, :n] = True if view.attention is None else view.attention
            attention[i, 0, n:, :1] = True  # a row of padding that sees nothing would be NaN
    elif not bool(real.all()):
        attention = real
    if any(v.positions is not None for v in views):
        positions = torch.arange(width).repeat(count, 1)
        for i, view in enumerate(views):
            if view.positions is not None:
                positions[i, : len(view.ids)] = view.positions
    reader = Reader(views, predict)
    predict(
        ids.to(device),
        attention=None if attention is None else attention.to(device),
        positions=None if positions is None else positions.to(device),
        cache=cache,
        keep=keep.to(device),
        read=reader,
    )
    return reader.seen()


class Reader:
    """Hidden states → tokens, confidence and what the rules need; no more logits exist at once than `CHUNK`."""

    def __init__(self, views: Sequence[View], predict: Predict) -> None:
        self.mask_id, self.places_at_once = predict.mask_id, CHUNK // predict.vocab_size
        starts = itertools.accumulate((len(v.read) for v in views), initial=0)
        at = list(zip(views, starts, strict=False))
        self.start = {v.row: start for v, start in at if not v.bare}
        self.bare_start = {v.row: start for v, start in at if v.bare}
        self.views = [v for v in views if not v.bare]
        self.found: dict[Row, list[dict[str, Tensor]]] = {v.row: [] for v in self.views}

    def __call__(self, hidden: Tensor, head: Head) -> Tensor:
        """hidden: (kept places of all views, width). Returns the tokens read, (places of all rows,)."""
        return torch.cat([self.read(group, hidden, head) for group in self.groups()])

    def groups(self) -> Iterator[list[tuple[Row, int, int]]]:
        """Pieces (row, from, to) of what is read, together as far as they are read alike and fit in a chunk."""
        group: list[tuple[Row, int, int]] = []
        size = 0
        for view in self.views:
            for at in range(0, len(view.read), PIECE):
                to = min(at + PIECE, len(view.read))
                if group and (size + to - at > self.places_at_once or not alike(group[0][0], view.row)):
                    yield group
                    group, size = [], 0
                group.append((view.row, at, to))
                size += to - at
        if group:
            yield group

    def read(self, group: list[tuple[Row, int, int]], hidden: Tensor, head: Head) -> Tensor:
        row = group[0][0]
        reading, needs = row.reading, row.rule.needs

        def logits_at(start: dict[Row, int]) -> Tensor:
            index = torch.cat([torch.arange(start[r] + at, start[r] + to) for r, at, to in group])
            count = len(index)
            if hidden.device.type == "cpu" and count < ALIGN:
                index = torch.cat([index, index[:1].expand(ALIGN - count)])
            found = head(hidden[index.to(hidden.device)])[:count]
            return found if found.dtype == torch.float64 else found.float()

        logits = logits_at(self.start)
        if reading.cfg_scale:
            bare = logits_at(self.bare_start)
            logits = bare + (reading.cfg_scale + 1) * (logits - bare)
        if reading.never:
            logits[:, list(reading.never)] = -torch.inf
        if reading.last:
            believed = logits.index_fill(1, torch.tensor(reading.last, device=logits.device), -torch.inf)
            p = torch.softmax(believed, -1)
        else:
            p = torch.softmax(logits, -1)  # the mask's share counts, as in LLaDA's sampler; it is only never written
        logits[:, self.mask_id] = -torch.inf
        if reading.temperature:
            ends = list(itertools.accumulate(to - at for _, at, to in group))
            tokens = torch.cat(
                [draw(r, logits[end - (to - at) : end]) for (r, at, to), end in zip(group, ends, strict=True)]
            )
        else:
            tokens = logits.argmax(-1)
        confidence = p.gather(-1, tokens[:, None])[:, 0]
        if bool(confidence.isnan().any()):
            raise UserError(
                "the model's answers are not numbers (NaN): its weights are broken, or float16 is too narrow."
            )
        found = {"tokens": tokens.cpu(), "confidence": confidence.float().cpu()}
        found |= {name: EXTRA[name](p).float().cpu() for name in needs if name in EXTRA}
        if "logits" in needs:
            found["logits"] = logits
        end = 0
        for r, at, to in group:
            begin, end = end, end + to - at
            self.found[r].append({name: value[begin:end] for name, value in found.items()})
        return tokens

    def seen(self) -> dict[Row, Seen]:
        found: dict[Row, Seen] = {}
        for view in self.views:
            parts = self.found[view.row]
            found[view.row] = Seen(
                view.places, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            )
        return found


def alike(a: Row, b: Row) -> bool:
    """Whether one reading of logits serves both rows."""
    return a.reading == b.reading and a.rule.needs == b.rule.needs


def draw(row: Row, logits: Tensor) -> Tensor:
    """Tokens (n,) drawn from softmax(logits (n, vocabulary) / temperature), by the row's own generator.

    Gumbel's trick: argmax of l - T·log(-log u), u uniform; LLaDA's exp(l) / (-log u)^T without its overflow.
    """
    # float64: noise of low precision lowers the temperature unseen (arXiv:2409.02908). Apple's GPUs have none.
    device = logits.device if logits.device.type in ("cpu", "cuda") else torch.device("cpu")
    source = row.generator("tokens", device)
    tokens = []
    for piece in logits.split(PIECE):
        u = torch.rand(piece.shape, dtype=torch.float64, device=device, generator=source)
        tokens.append(u.log_().neg_().log_().mul_(-row.reading.temperature).add_(piece.to(device)).argmax(-1))
    return torch.cat(tokens).to(logits.device)
