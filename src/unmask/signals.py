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
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from unmask.canvas import Choice, Row
from unmask.options import Reading
from unmask.predict import Head, Predict

if TYPE_CHECKING:
    from unmask.memory import Memory

EXTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": lambda p: torch.special.entr(p).sum(-1),
    "margin": lambda p: p.topk(2).values @ p.new_tensor([1.0, -1.0]),
}
"""What a rule may need beyond tokens and confidence, made of probabilities (n, vocabulary) → (n,). It may also need
"logits" and "probs" (n, vocabulary), and "standing" (n,), the probability of the token that stands at the place now."""

PIECE = 32
"""Places of a row whose noise is drawn at once. Fixed, so that a row's noise does not depend on the other rows."""

CHUNK = 1 << 25
"""Logits held at once: 128 MB in float32. The head is applied to so many (place, token) pairs at a time."""


ALIGN = 16
"""On a CPU, rows are padded to a multiple of so many places and the head gets at least as many. Seen with torch 2.13:
at other widths, and for fewer, sums are taken in an order that depends on the padding, and where two places are equally
sure but for the last bits, a row would be written in another order alone than in a batch."""

Half = TypeVar("Half")
"""What stands for one half of guidance: with the prompt, or without."""


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

    All on the CPU but `logits` and `probs` (n, vocabulary), which stay on the device. Logits are guided, adjusted and
    suppressed, without noise; probabilities are what confidence is taken from: tokens that are written last have none.
    likeliest, likelihoods: (n, k) the k likeliest tokens and their probabilities, where a row asks for alternatives.
    """

    places: Tensor
    tokens: Tensor
    confidence: Tensor
    entropy: Tensor | None = None
    margin: Tensor | None = None
    standing: Tensor | None = None
    logits: Tensor | None = None
    probs: Tensor | None = None
    likeliest: Tensor | None = None
    likelihoods: Tensor | None = None

    def of(self, places: Tensor) -> Seen:
        """What was read at some of the places."""
        if len(places) == len(self.places):
            return self
        which = torch.isin(self.places, places)
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Seen(**{name: value if value is None else value[which] for name, value in fields.items()})  # type: ignore[arg-type]

    def alternatives(self, places: Tensor) -> dict[int, list[tuple[int, float]]]:
        """For those of `places` that were read: the likeliest tokens and their probabilities, likeliest first."""
        if self.likeliest is None or self.likelihoods is None:
            return {}
        at = {place: i for i, place in enumerate(self.places.tolist())}
        found = [place for place in places.tolist() if place in at]
        which = [at[place] for place in found]
        rows = zip(self.likeliest[which].tolist(), self.likelihoods[which].tolist(), strict=True)
        return {place: list(zip(ids, p, strict=True)) for place, (ids, p) in zip(found, rows, strict=True)}

    def choice(self, which: Tensor | slice = slice(None)) -> Choice:
        """Write the tokens read at these entries: a mask (n,) or indexes."""
        return Choice(self.places[which], self.tokens[which], self.confidence[which])


@dataclass
class Pass:
    """One forward pass: views that go together, the memory it works with, whether that answers for what is left out."""

    views: list[View]
    memory: Memory | None = None
    kept: bool = False


def look(predict: Predict, one: Pass) -> dict[Row, Seen]:
    """One forward pass: each row's view laid flush left, so that a row is the same alone and in any batch."""
    device, views = predict.device, one.views
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
    if one.memory is not None:
        kept = one.memory.begin(one, width)
        attention = attention if kept is None else None if bool(kept.all()) else kept
    reader = Reader(views, predict)
    predict(
        ids.to(device),
        attention=None if attention is None else attention.to(device),
        positions=None if positions is None else positions.to(device),
        cache=one.memory,
        keep=keep.to(device),
        read=reader,
    )
    if one.memory is not None:
        one.memory.computed(one)
    for view in views:
        view.row.passes, view.row.computed = view.row.passes + 1, view.row.computed + len(view.ids)
    return reader.seen()


class Reader:
    """Hidden states → tokens, confidence and what the rules need; no more logits exist at once than `CHUNK`."""

    def __init__(self, views: Sequence[View], predict: Predict) -> None:
        self.mask_id, self.places_at_once = predict.mask_id, CHUNK // predict.vocab_size
        starts = itertools.accumulate((len(v.read) for v in views), initial=0)
        at = list(zip(views, starts, strict=False))
        self.start = {v.row: start for v, start in at if not v.bare}
        self.bare_start = {v.row: start for v, start in at if v.bare}
        self.linear_head = getattr(predict, "linear_head", False)
        self.views = [v for v in views if not v.bare]
        self.places = {v.row: v.places for v in self.views}
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

        def hidden_at(start: dict[Row, int]) -> Tensor:
            index = torch.cat([torch.arange(start[r] + at, start[r] + to) for r, at, to in group])
            if hidden.device.type == "cpu" and len(index) < ALIGN:
                index = torch.cat([index, index[:1].expand(ALIGN - len(index))])
            return hidden[index.to(hidden.device)]

        def logits_of(some: Tensor) -> Tensor:
            found = head(some)[:count]
            return found if found.dtype == torch.float64 else found.float()

        count = sum(to - at for _, at, to in group)
        logits = guided(reading.cfg_scale, hidden_at, (self.start, self.bare_start), logits_of, self.linear_head)
        if reading.never:
            logits[:, list(reading.never)] = -torch.inf
        if reading.least and reading.ends:
            early = torch.cat([self.places[r][at:to] < r.start + reading.least for r, at, to in group])
            barred = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
            barred[list(reading.ends)] = True
            logits.masked_fill_(early.to(logits.device)[:, None] & barred, -torch.inf)
        if row.rule.adjusts:
            logits = row.rule.adjust(row, torch.cat([self.places[r][at:to] for r, at, to in group]), logits)
        if reading.last:
            believed = logits.index_fill(1, torch.tensor(reading.last, device=logits.device), -torch.inf)
            p = torch.softmax(believed, -1)
        else:
            p = torch.softmax(logits, -1)  # the mask's share counts, as in LLaDA's sampler; it is only never written
        logits[:, self.mask_id] = -torch.inf
        if reading.temperature:
            possible = likeliest(logits, reading)
            ends = list(itertools.accumulate(to - at for _, at, to in group))
            tokens = torch.cat(
                [draw(r, possible[end - (to - at) : end]) for (r, at, to), end in zip(group, ends, strict=True)]
            )
        else:
            tokens = logits.argmax(-1)
        confidence = p.gather(-1, tokens[:, None])[:, 0]
        if bool(confidence.isnan().any()):
            raise NotNumbers
        found = {"tokens": tokens.cpu(), "confidence": confidence.float().cpu()}
        found |= {name: EXTRA[name](p).float().cpu() for name in needs if name in EXTRA}
        if "standing" in needs:
            standing = torch.cat([r.ids[self.places[r][at:to]] for r, at, to in group]).to(p.device)
            found["standing"] = p.gather(-1, standing[:, None])[:, 0].float().cpu()
        found |= {name: value for name, value in (("logits", logits), ("probs", p)) if name in needs}
        if reading.alternatives:
            top = p.topk(min(reading.alternatives, p.shape[-1]))
            found |= {"likeliest": top.indices.cpu(), "likelihoods": top.values.float().cpu()}
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
    if a.rule.adjusts or b.rule.adjusts:
        return a is b
    return a.reading == b.reading and a.rule.needs == b.rule.needs


def guided(
    scale: float,
    hidden_at: Callable[[Half], Tensor],
    halves: tuple[Half, Half],
    logits_of: Callable[[Tensor], Tensor],
    linear: bool,
) -> Tensor:
    """Logits (n, vocabulary): bare + (scale + 1) · (prompted - bare), or, at scale 0, prompted.

    A head that is linear gives the same for the hidden states so combined, at half the cost; but not where they are
    rounded to half width.
    """
    seeing, bare = halves
    if not scale:
        return logits_of(hidden_at(seeing))
    with_prompt, without = hidden_at(seeing), hidden_at(bare)
    if linear and with_prompt.dtype in (torch.float32, torch.float64):
        return logits_of(without + (scale + 1) * (with_prompt - without))
    of_bare = logits_of(without)
    return of_bare + (scale + 1) * (logits_of(with_prompt) - of_bare)


def likeliest(logits: Tensor, reading: Reading) -> Tensor:
    """Logits (n, vocabulary) with -inf for what top_k and top_p leave out; the likeliest token always stays.

    As `transformers` has it: the temperature first, then the k likeliest, then the fewest that reach top_p among them.
    """
    if reading.top_k is None and reading.top_p is None:
        return logits
    order = logits.sort(-1, descending=True)
    values = order.values
    if reading.top_k is not None:
        values = values.clone()
        values[:, reading.top_k :] = -torch.inf
    if reading.top_p is not None:
        p = torch.softmax(values / reading.temperature, -1)
        out = p.cumsum(-1) - p >= reading.top_p
        out[:, 0] = False
        values = values.masked_fill(out, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order.indices, values)


class NotNumbers(Exception):
    """The model answered NaN."""


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
