"""The canvas: what stands where, which places are open, and in which blocks and steps they fill.

In:  token ids with gaps (None is an open place).
Out: rows with a plan. Open places are kept by their number in the row, never by comparing ids with the mask's, so a
user who types the mask's text loses nothing.

torch is imported inside functions: commands that read gaps must answer `--help` at once.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from unmask.config import UserError
from unmask.gaps import with_constraints
from unmask.options import Reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def steps_per_block(steps: int, sizes: Sequence[int]) -> list[int]:
    """`steps` split over blocks of `sizes` places: at least 1 each, never more than a block has places.

    Each further step goes to the block that would write the most places at a step; so equal blocks get equal steps,
    as LLaDA's sampler splits them where they divide.
    """
    plan = [1] * len(sizes)
    crowded: list[tuple[float, int]] = [(-size, block) for block, size in enumerate(sizes) if size > 1]
    heapq.heapify(crowded)
    for _ in range(steps - len(sizes)):
        if not crowded:
            break
        _, block = heapq.heappop(crowded)
        plan[block] += 1
        if plan[block] < sizes[block]:
            heapq.heappush(crowded, (-sizes[block] / plan[block], block))
    return plan


def places_per_step(places: int, steps: int) -> list[int]:
    """`places` split over `steps` ≤ `places`, the larger shares first (LLaDA, `get_num_transfer_tokens`)."""
    return [places // steps + (1 if i < places % steps else 0) for i in range(steps)]


@dataclass(eq=False)
class Row:
    """One answer in the making. Tensors are on the CPU; places are counted from the row's own start.

    Attributes:
        ids: (length,) token ids, the mask's id where open. open: (length,) still to be written. free: (length,) may be
            written at all; everything else is given and never altered.
        number: the row's number among all rows asked for; with the seed it makes the row's random numbers.
        written_at: (length,) the step a place was last written at, 0 if given or open. confidence: (length,) the
            model's probability of what was written, NaN elsewhere.
        start: where the answer begins: the first free place, if nobody says otherwise. blocks: the free places of each
            block. planned: the steps of each block. block, step: where the row stands.
        shares: how many places each step of this block is planned to write; taken: steps done in this block.
            finished: "length" or "stop" when nothing is left to do.
        rule: the row's rule (`unmask.decoding.Rule`). state: whatever the rule remembers about this row. cache: its
            cache policy (`unmask.caches.Cache`). growth: how it grows (`unmask.growth.Growth`), or None.
        stopped: ids of an answer → how many of them stand before one of the `stop_strings`, or None; cut: what it said
            when the row stopped.
        passes: forward passes that it took part in, both halves of guidance counted. computed: places of those.
        alternatives: place → the likeliest tokens when it was last written, with their probabilities.
    """

    ids: Tensor
    free: Tensor
    mask_id: int
    number: int = 0
    start: int = -1
    rule: Any = None
    cache: Any = None
    stopped: Callable[[list[int]], int | None] | None = None
    stop_strings: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)
    seed: int = 0
    blocks: list[Tensor] = field(default_factory=list)
    planned: list[int] = field(default_factory=list)
    block: int = 0
    step: int = 0
    shares: list[int] = field(default_factory=list)
    taken: int = 0
    state: Any = None
    passes: int = 0
    computed: int = 0
    finished: Literal["length", "stop"] | None = None
    cut: int | None = None
    growth: Any = None
    alternatives: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        self.ids, self.free = self.ids.clone(), self.free.clone()
        if self.start < 0:
            self.start = int(self.free.int().argmax()) if bool(self.free.any()) else len(self.ids)
        self.ids[self.free] = self.mask_id
        self.open = self.free.clone()
        self.written_at = torch.zeros(len(self.ids), dtype=torch.int32)
        self.confidence = torch.full((len(self.ids),), math.nan)
        self._generators: dict[str, torch.Generator] = {}

    @property
    def answer(self) -> Tensor:
        """(places from `start` on,) the ids that were or will be written, and what is given among them."""
        return self.ids[self.start :]

    @property
    def share(self) -> int:
        """How many places this step is planned to write, at least; 1 beyond the plan. Never more than are open."""
        planned = self.shares[self.taken] if self.taken < len(self.shares) else 1
        return min(planned, len(self.candidates()))

    @property
    def tokens(self) -> int:
        """Tokens written up to the first end of text or turn, that one included, or up to a stop string."""
        place = self.end(self.reading.ends)
        stop = len(self.ids) if place is None else place + 1
        return int(self.free[: stop if self.cut is None else self.start + self.cut].sum())

    def candidates(self) -> Tensor:
        """(n,) the open places of the block at hand, in ascending order."""
        places = self.blocks[self.block]
        return places[self.open[places]]

    def generator(self, use: str, device: torch.device | str = "cpu") -> torch.Generator:
        """The row's own source of random numbers for one use; nobody else's drawing moves it."""
        import torch

        if use not in self._generators:
            words = f"{self.seed}/{self.number}/{use}".encode()
            seed = int.from_bytes(
                hashlib.blake2b(words, digest_size=4).digest(), "big"
            )  # torch's CPU source takes 32 bits
            self._generators[use] = torch.Generator(device).manual_seed(seed)
        return self._generators[use]

    def plan(self, steps: int | None, block_size: int | None) -> None:
        """Split the free places into blocks, in their order and across gaps, and the steps over the blocks."""
        import torch

        places = torch.nonzero(self.free).flatten()
        if len(places):
            self.blocks = list(torch.split(places, block_size or len(places)))
            self.planned = steps_per_block(steps or len(places), [len(b) for b in self.blocks])
            self._enter()
        else:
            self.finished = "length"

    def _enter(self) -> None:
        """Begin the block at hand."""
        open_places = len(self.candidates())
        self.shares = places_per_step(open_places, min(self.planned[self.block], open_places))
        self.taken = 0
        self.rule.enter(self)

    def write(self, choice: Choice) -> Change:
        """Put down what the rule chose, and go on to the next block or the end.

        Raises:
            UserError: a rule that writes nothing, alters what is given or writes the mask: that file is wrong.
        """
        name = type(self.rule).__module__
        places, tokens, reopen = choice.places, choice.tokens, choice.reopen
        if (reopen is not None or choice.stay) and not self.rule.revises:
            raise UserError(f"the rule in {name} reopens or stays; only a rule with `revises = True` may.")
        writable = self.free if self.rule.revises else self.open
        if not bool(writable[places].all()) or (reopen is not None and not bool(self.free[reopen].all())):
            also = "" if self.rule.revises else " (only a rule with `revises = True` writes twice)"
            raise UserError(f"the rule in {name} wrote to a place that is not its to write{also}: {places.tolist()}.")
        if bool((tokens == self.mask_id).any()):
            raise UserError(f"the rule in {name} wrote the mask token.")
        if not len(places) and not self.rule.revises:
            raise UserError(
                f"the rule in {name} wrote nothing at step {self.step + 1}; it must write at least one place."
            )
        self.step, self.taken = self.step + 1, self.taken + 1
        self.ids[places], self.open[places] = tokens, False
        self.written_at[places], self.confidence[places] = self.step, choice.confidence
        if reopen is not None:
            self.ids[reopen], self.open[reopen] = self.mask_id, True
            self.written_at[reopen], self.confidence[reopen] = 0, math.nan
        settled = not bool(self.open[self.blocks[self.block]].any()) and not choice.stay
        if settled or not self.rule.revises:
            self._stop_at_an_end()
        if settled and not self.finished:
            self._go_on()
        if not self.finished and self.step >= self.rule.limit(self):
            raise UserError(f"the rule in {name} is not done after {self.step} steps, all that it may take.")
        return Change(self, places, tokens, choice.confidence, reopen)

    def _go_on(self) -> None:
        """To the first block with open places (a rule may have written ahead, or reopened behind), or to the end."""
        for block in range(0 if self.rule.revises else self.block + 1, len(self.blocks)):
            if bool(self.open[self.blocks[block]].any()):
                self.block = block
                self._enter()
                return
        self.block, self.finished = len(self.blocks), "length"

    def end(self, among: tuple[int, ...]) -> int | None:
        """The first place of the answer, behind all that is given, where one of these tokens was written; or None."""
        import torch

        given = torch.nonzero(~self.free).flatten()
        start = max(self.start, int(given[-1]) + 1 if len(given) else 0)
        found = torch.isin(self.ids[start:], torch.tensor(among, dtype=torch.long)) & ~self.open[start:]
        return start + int(found.int().argmax()) if bool(found.any()) else None

    def _stop_at_an_end(self) -> None:
        """Finish if an end of text, or a stop string, stands with nothing open before it; the rest becomes the end."""
        if self.reading.stops:
            place = self.end(self.reading.stops)
            if place is not None and not bool(self.open[:place].any()):
                # a stop string before the end may have become whole at this very step
                self.cut = self.stopped(self.ids[self.start : place].tolist()) if self.stopped else None
                return self._fill_with(int(self.ids[place]))
        if self.stopped:
            opened = self.open[self.start :]
            ready = int(opened.int().argmax()) if bool(opened.any()) else len(opened)
            self.cut = self.stopped(self.answer[:ready].tolist())
            if self.cut is not None:
                self._fill_with(self.reading.ends[0])

    def _fill_with(self, token: int) -> None:
        self.ids[self.open] = token
        self.open[:] = False
        self.finished = "stop"

    def cut_to(self, length: int) -> None:
        """Leave the first `length` places; not for rows with a plan."""
        for name in ("ids", "free", "open", "written_at", "confidence"):
            setattr(self, name, getattr(self, name)[:length])

    def grow(self, place: int, more: int) -> None:
        """Put `more` open places before an open place of the block at hand; what stands behind moves back."""
        import torch

        def longer(values: Tensor, new: Any) -> Tensor:
            return torch.cat([values[:place], torch.full((more,), new, dtype=values.dtype), values[place:]])

        self.ids, self.free = longer(self.ids, self.mask_id), longer(self.free, True)
        self.open = longer(self.open, True)
        self.written_at, self.confidence = longer(self.written_at, 0), longer(self.confidence, math.nan)
        self.blocks = [torch.where(places >= place, places + more, places) for places in self.blocks]
        new = torch.arange(place, place + more)
        self.blocks[self.block] = torch.cat([self.blocks[self.block], new]).sort().values
        self.planned[self.block] += more
        self.shares += [1] * more
        self.alternatives = {at + more * (at >= place): found for at, found in self.alternatives.items()}


@dataclass
class Choice:
    """What a rule wants of one step: `tokens` (n,) at `places` (n,) of the row, with their `confidence` (n,).

    Only a rule that revises may write where something was written, `reopen` places, or `stay` in a block that is full.
    """

    places: Tensor
    tokens: Tensor
    confidence: Tensor
    reopen: Tensor | None = None
    stay: bool = False


@dataclass
class Change:
    """What one step did to one row."""

    row: Row
    places: Tensor
    tokens: Tensor
    confidence: Tensor
    reopened: Tensor | None = None


@dataclass
class Canvas:
    """Rows that are filled together. They may differ in everything. longest: places of the longest answer."""

    rows: list[Row]
    longest: int = 0

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[int | None]], mask_id: int, *, first: int = 0, starts: Sequence[int] | None = None
    ) -> Canvas:
        """Token ids in which None is an open place.

        Args:
            first: the number of the first row. starts: where each answer begins; at the first open place if left out.
        """
        import torch

        if mask_id is None:
            raise UserError("the model names no mask token, so it fills nothing; set mask_token_id in its config.json.")
        rows = []
        for number, text in enumerate(texts):
            ids = torch.tensor([mask_id if token is None else int(token) for token in text], dtype=torch.long)
            free = torch.tensor([token is None for token in text], dtype=torch.bool)
            rows.append(Row(ids, free, mask_id, first + number, starts[number] if starts else -1))
        return cls(rows)

    @classmethod
    def after(
        cls,
        prompts: Sequence[Sequence[int]],
        new: int | Sequence[int],
        mask_id: int,
        *,
        first: int = 0,
        constraints: Mapping[int, int | Sequence[int]] | None = None,
    ) -> Canvas:
        """Prompts, each followed by an answer of `new` open places.

        Args:
            constraints: place in the answer, from 0 → the token or tokens that stand there. They are given: never open.

        Raises:
            UserError: a constraint outside the answer, or on top of another.
        """
        lengths = [new] * len(prompts) if isinstance(new, int) else new
        answers = [with_constraints(n, constraints or {}) for n in lengths]
        texts = [[*p, *answer] for p, answer in zip(prompts, answers, strict=True)]
        canvas = cls.of(texts, mask_id, first=first, starts=[len(p) for p in prompts])
        canvas.longest = new if isinstance(new, int) else max(new, default=0)
        return canvas

    @property
    def done(self) -> bool:
        return all(row.finished for row in self.rows)

    @property
    def planned(self) -> int:
        """Steps until every row is done, if no rule needs fewer."""
        return max((sum(row.planned) for row in self.rows), default=0)
