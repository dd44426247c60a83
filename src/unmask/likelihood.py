"""Likelihood: how probable texts are to a model, many at once.

In:  `predict` (`unmask.predict.Predict`, never a model class) and requests.
Out: log p of each target, in nats, and its standard error, by the estimators of `unmask.estimators`.

Looks at equal inputs share a row of a pass, so the four letters of a multiple-choice question cost one; the head is
applied only at the places whose tokens are wanted.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.config import UserError
from unmask.estimators import Found, Look, Plan, Request, Score, Settings, causal, longest_first, masked
from unmask.predict import Head, Predict
from unmask.signals import ALIGN, CHUNK, guided

PLACES_AT_ONCE = {"cpu": 1 << 13, "cuda": 1 << 16}
"""Places of a batch (rows × length) where no number of rows is asked for."""
WIDTHS = {"cpu": ALIGN, "cuda": 64}
"""Rows of one pass are padded to the same multiple of so many places: padding costs as much as text."""
AT_ONCE = 1 << 24
"""Logits at once on a CPU, 64 MB: with torch 2.13 larger pieces take longer for each place, since what is given back to
the system after one is fetched again, page by page, for the next; smaller ones multiply more slowly."""

# ---------------------------------------------------------------------------------------------------------------------
# Rows that looks share, and the passes over them


@dataclass(eq=False)
class Input:
    """One row of a pass: its ids as the model sees them, and who wants to know what of it.

    wanted: (place, token) → nothing yet, then (log p, whether likeliest). start: of the target. many: others of exactly
    this length come with it, so that it needs no padding.
    """

    ids: NDArray[np.int64]
    start: int
    many: bool = False
    wanted: dict[tuple[int, int], tuple[float, bool]] = field(default_factory=dict)
    askers: list[Work] = field(default_factory=list)


@dataclass(eq=False)
class Work:
    """A request under way: its plan, the looks it waits for, on which inputs, and how many of those are missing."""

    number: int
    request: Request
    plan: Plan
    looks: list[Look] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    missing: int = 0


Waiting = dict[tuple[bytes, int, bool], Input]
"""Inputs that wait for their pass, by what makes them equal."""


class Scorer:
    """Scores requests, many at once.

    Args:
        predict: of a causal model, one whose place i speaks of token i + 1 (`forward.Predictor(model, shift=0)`), so
            that a target's last token is not shown.
        causal: the model sees only what stands before; then nothing is masked.
        batch_size: rows of a pass; as many as `PLACES_AT_ONCE` allows if left out. It changes the speed, not a score.

    Attributes:
        rows: inputs that were passed through the model. looks: that were asked for.
    """

    def __init__(
        self, predict: Predict, settings: Settings | None = None, *, causal: bool = False, batch_size: int | None = None
    ) -> None:
        self.predict, self.settings, self.causal = predict, settings or Settings(), causal
        self.settings.check()
        if causal and self.settings.cfg_scale:
            raise UserError("cfg_scale masks the prompt, and a causal model has no mask; leave it out.")
        self.batch_size = batch_size
        self.rows = self.looks = 0

    def scores(self, requests: Sequence[Request]) -> Iterator[tuple[int, Score]]:
        """(number of the request, its score), the longest first, as they come.

        Raises:
            UserError: an empty target; one the model cannot hold; a causal model with nothing given; NaN.
        """
        for number, request in enumerate(requests):
            self.check(number, request)
        waiting: Waiting = {}
        for number in sorted(range(len(requests)), key=lambda i: longest_first(requests[i])):
            request = requests[number]
            plan = causal(request) if self.causal else masked(request, self.settings)
            try:
                looks = next(plan)
            except StopIteration as stop:  # nothing to look at
                yield number, stop.value
                continue
            self.ask(Work(number, request, plan), looks, waiting)
            while len(waiting) > 2 * self.room(waiting):
                yield from self.run(waiting)
        while waiting:
            yield from self.run(waiting)

    def check(self, number: int, request: Request) -> None:
        """UserError for a request that cannot be scored."""
        given, target = len(request.given), len(request.target)
        most = getattr(self.predict, "max_length", None)
        if not target:
            raise UserError(f"request {number}: the target is empty; there is nothing to score.")
        if most is not None and given + target - self.causal > most:
            raise UserError(
                f"request {number}: {given} given and {target} target tokens are {given + target}; the model holds "
                f"{most}."
            )
        if self.causal and not given:
            raise UserError(f"request {number}: a causal model needs a token before the target, and none is given.")
        if (
            not 0
            <= min(request.given + request.target)
            <= max(request.given + request.target)
            < self.predict.vocab_size
        ):
            raise UserError(
                f"request {number} has token ids outside the model's vocabulary of {self.predict.vocab_size}."
            )

    def room(self, waiting: Waiting) -> int:
        """Rows of the next pass."""
        if self.batch_size or not waiting:
            return self.batch_size or 1
        places = PLACES_AT_ONCE.get(self.predict.device.type, PLACES_AT_ONCE["cuda"])
        return max(1, places // len(next(iter(waiting.values())).ids))

    def width(self, one: Input) -> int:
        """Places of an input and its padding."""
        if one.many:
            return len(one.ids)
        step = WIDTHS.get(self.predict.device.type, WIDTHS["cuda"])
        most = getattr(self.predict, "max_length", None) or len(one.ids) + step
        return max(len(one.ids), min(-(-len(one.ids) // step) * step, most))

    def ask(self, work: Work, looks: list[Look], waiting: Waiting) -> None:
        """Put looks on the inputs that wait, where an equal one waits on that."""
        work.looks, work.inputs = looks, []
        self.looks += len(looks)
        start, target = len(work.request.given), work.request.target
        clean = np.array([*work.request.given, *target], dtype=np.int64)
        # told by the request alone: a row's width must not hang on its company, or the last bits of its score would
        many = len(looks) >= ALIGN
        for look in looks:
            ids = clean[:-1] if self.causal else clean.copy()
            ids[start:][look.masked[: len(ids) - start]] = self.predict.mask_id or 0  # a causal look masks nothing
            key = (ids.tobytes(), start if self.settings.cfg_scale else 0, many)
            one = waiting.setdefault(key, Input(ids, start, many))
            for place in look.read.tolist():
                one.wanted.setdefault((start + place - self.causal, target[place]), (math.nan, False))
            if work not in one.askers:
                one.askers.append(work)
            work.inputs.append(one)
        work.missing = len(set(work.inputs))

    def run(self, waiting: Waiting) -> Iterator[tuple[int, Score]]:
        """One pass over the inputs that wait longest; what is done by it."""
        width = self.width(next(iter(waiting.values())))
        many = next(iter(waiting.values())).many
        alike = (key for key, one in waiting.items() if (self.width(one), one.many) == (width, many))
        inputs = [waiting.pop(key) for key in list(itertools.islice(alike, self.room(waiting)))]
        self.look_at(inputs)
        self.rows += len(inputs)
        for work in itertools.chain.from_iterable(one.askers for one in inputs):
            work.missing -= 1
            if work.missing:
                continue
            try:
                self.ask(work, work.plan.send(self.found(work)), waiting)
            except StopIteration as stop:
                yield work.number, stop.value

    def found(self, work: Work) -> list[Found]:
        """What a request's looks showed."""
        start, target = len(work.request.given) - self.causal, work.request.target
        shown = [
            [one.wanted[start + place, target[place]] for place in look.read.tolist()]
            for look, one in zip(work.looks, work.inputs, strict=True)
        ]
        return [Found(np.array([nats for nats, _ in some]), np.array([best for _, best in some])) for some in shown]

    @torch.no_grad()
    def look_at(self, inputs: list[Input]) -> None:
        """Fill in what is wanted of inputs, in one pass (two rows each with guidance)."""
        device, scale = self.predict.device, self.settings.cfg_scale
        width = self.width(inputs[0])
        count = len(inputs)
        ids = torch.zeros(count, width, dtype=torch.long)
        real, keep = torch.zeros(count, width, dtype=torch.bool), torch.zeros(count, width, dtype=torch.bool)
        pairs: list[tuple[int, int]] = []
        kept = 0
        for i, one in enumerate(inputs):
            ids[i, : len(one.ids)], real[i, : len(one.ids)] = torch.from_numpy(one.ids), True
            places = sorted({place for place, _ in one.wanted})
            keep[i, places] = True
            at = {place: kept + j for j, place in enumerate(places)}
            pairs += [(at[place], token) for place, token in one.wanted]
            kept += len(places)
        if scale:
            bare = ids.clone()
            for i, one in enumerate(inputs):
                bare[i, : one.start] = self.predict.mask_id
            ids, real, keep = torch.cat([ids, bare]), real.repeat(2, 1), keep.repeat(2, 1)
        found = self.predict(
            ids.to(device),
            attention=None if bool(real.all()) else real.to(device),
            keep=keep.to(device),
            read=Reader(pairs, kept, scale, self.predict),
        ).tolist()
        if any(math.isnan(nats) for nats, _ in found):
            where = getattr(self.predict, "where_nan", None)
            raise UserError(
                "the model's answers are not numbers (NaN): its weights are broken, or float16 is too narrow."
                + (where(torch.from_numpy(inputs[0].ids)) if where else "")
            )
        values = iter(found)
        for one in inputs:
            one.wanted = {pair: (nats, bool(best)) for pair, (nats, best) in zip(one.wanted, values, strict=False)}


class Reader:
    """Hidden states → log p of tokens at places, and whether they are the likeliest: (pairs, 2), in float64.

    Args:
        pairs: (kept place, token). kept: places kept; with guidance as many again follow, without the prompt.
    """

    def __init__(self, pairs: list[tuple[int, int]], kept: int, scale: float, predict: Predict) -> None:
        self.at = torch.tensor([place for place, _ in pairs])
        self.tokens = torch.tensor([token for _, token in pairs])
        self.kept, self.scale, self.linear = kept, scale, getattr(predict, "linear_head", False)
        self.step = max(ALIGN, (AT_ONCE if predict.device.type == "cpu" else CHUNK) // predict.vocab_size)

    def __call__(self, hidden: Tensor, head: Head) -> Tensor:
        device, parts, order = hidden.device, [], []
        for start in range(0, self.kept, self.step):
            stop = min(start + self.step, self.kept)
            rows = torch.arange(start, stop)
            if device.type == "cpu" and stop - start < ALIGN:
                rows = torch.cat([rows, rows[:1].expand(ALIGN - (stop - start))])
            rows = rows.to(device)
            at_half = functools.partial(lambda rows, half: hidden[rows + half], rows)
            logits = guided(self.scale, at_half, (0, self.kept), head, self.linear)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            mine = torch.nonzero((self.at >= start) & (self.at < stop)).flatten()
            at, tokens = (self.at[mine] - start).to(device), self.tokens[mine].to(device)
            # not logsumexp, whose exp of what is far below the best takes ten times as long on a CPU (torch 2.13)
            # in place on a CPU, where a second piece of 64 MB costs more than what is computed of it
            logits = torch.log_softmax(logits, -1, out=logits if device.type == "cpu" else None)
            nats = logits[at, tokens]
            best = nats == logits.amax(-1)[at]
            likeliest = torch.nonzero(best).flatten()  # of several as good the first, as argmax has it
            best[likeliest] = logits[at[likeliest]].argmax(-1) == tokens[likeliest]
            parts.append(torch.stack([nats.double().cpu(), best.double().cpu()], 1))
            order.append(mine)
        found = torch.empty(len(self.at), 2, dtype=torch.float64)
        found[torch.cat(order)] = torch.cat(parts)
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Long texts


def windows(ids: Sequence[int], most: int, prefix: int | None) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A text of any length as (given, target) that the model holds, each token scored once.

    Each but the last scores `most` tokens, with a prefix after one token given (lm-eval's `get_rolling_token_windows`
    with `context_len` 1). The last is as long: what it does not score stands before as given.

    Args:
        most: tokens the model holds. prefix: the token before the first, for a causal model; None for a masked one.
    """
    ids, found = tuple(ids), []
    extra = (
        0 if prefix is None else 1
    )  # of the given tokens, one makes no room for itself: the last target is not shown
    for start in range(0, len(ids), most):
        target = ids[start : start + most]
        first = () if prefix is None else (prefix,)
        found.append((ids[max(0, start + len(target) - most - extra) : start] if start else first, target))
    return found
