"""The canvas: what stands where, which places are open, and in which blocks and steps they fill.

In:  token ids with gaps (None is an open place), and `Options`.
Out: rows with a plan. Open places are kept by their number in the row, never by comparing ids with the mask's, so a
user who types the mask's text loses nothing.

torch is imported inside functions: the commands show `Options` in `--help`, which must answer at once.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from unmask.config import UserError, option

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class Options:
    """Decoding"""

    steps: int | None = option(
        None,
        "Denoising steps of the whole answer: at least one a block, at most one a token. One a token if left out.",
    )
    block_size: int | None = option(
        None,
        "Places filled before the next ones are begun: 1 writes left to right, the whole answer (if left out) is pure "
        "diffusion.",
    )
    temperature: float = option(0.0, "0 takes the likeliest token; 1 draws from the model's own distribution.")
    cfg_scale: float = option(0.0, "Guidance: logits = bare + (cfg_scale + 1) · (prompted - bare). 0: none.")
    cfg_keep_tokens: list[int] = option([], "Ids of prompt tokens that the bare half of guidance may still see.")
    suppress_tokens: list[int] = option([], "Ids of tokens that are never written.")
    begin_suppress_tokens: list[int] = option(
        [], "Ids of tokens that are written last: their confidence counts as none."
    )
    logits_eos_inf: bool = option(False, "Never write the end of text (as --suppress_tokens with its id).")
    confidence_eos_eot_inf: bool = option(
        False, "Write end of text and end of turn last (as --begin_suppress_tokens with their ids)."
    )
    eos_stop: bool = option(False, "Stop once an end of text stands and everything before it does; the rest is filled.")
    eos_token_id: list[int] | None = option(None, "Ids that end a text. Known from the model if left out.")
    eot_token_id: list[int] | None = option(None, "Ids that end a turn. Known from the tokenizer if left out.")
    compat: Literal["llada"] | None = option(
        None, "llada: as the official code, its slip in --confidence_eos_eot_inf at temperature > 0 included."
    )
    rule: str = option(
        "reference", "Which places are written at each step: a name in `unmask/decoding`, or path/to/file.py."
    )
    rule_args: dict[str, Any] = option({}, "Settings of the rule, as `key=value,key=value`.")
    seed: int = option(42, "Seed; each row draws from its own generator, made from it and the row's number.")

    def check(self) -> None:
        """UserError for a value that cannot work."""
        for name in ("steps", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"--{name} is {value}; it must be 0 or more.")


@dataclass(frozen=True)
class Reading:
    """`Options` resolved to ids, as the logits are read. Rows that share one instance are read together."""

    temperature: float = 0.0
    cfg_scale: float = 0.0
    never: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()


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
        ids: (length,) token ids, the mask's id where open. open: (length,) still to be written.
        free: (length,) may be written at all; everything else is given and never altered.
        number: the row's number among all rows asked for; with the seed it makes the row's random numbers.
        written_at: (length,) the step a place was last written at, 0 if given or open. confidence: (length,) the
            model's probability of what was written, NaN elsewhere.
        blocks: the free places of each block. planned: the steps of each block.
        block, step: where the row stands. finished: "length" or "stop" when nothing is left to do.
        rule: the row's rule (`unmask.decoding.Rule`). state: whatever the rule remembers about this row.
    """

    ids: Tensor
    free: Tensor
    mask_id: int
    number: int = 0
    rule: Any = None
    reading: Reading = field(default_factory=Reading)
    seed: int = 0
    blocks: list[Tensor] = field(default_factory=list)
    planned: list[int] = field(default_factory=list)
    block: int = 0
    step: int = 0
    state: Any = None
    finished: Literal["length", "stop"] | None = None

    def __post_init__(self) -> None:
        import torch

        self.ids, self.free = self.ids.clone(), self.free.clone()
        self.ids[self.free] = self.mask_id
        self.open = self.free.clone()
        self.written_at = torch.zeros(len(self.ids), dtype=torch.int32)
        self.confidence = torch.full((len(self.ids),), math.nan)
        self._generators: dict[str, torch.Generator] = {}

    @property
    def answer(self) -> Tensor:
        """(free places,) the ids that were or will be written."""
        return self.ids[self.free]

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
            self.rule.enter(self)
        else:
            self.finished = "length"

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
        self.step += 1
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
                self.rule.enter(self)
                return
        self.block, self.finished = len(self.blocks), "length"

    def _stop_at_an_end(self) -> None:
        """Finish if an end of text stands with nothing open before it; what is still open is filled with it."""
        if not self.reading.stops:
            return
        answer = self.answer.tolist()
        ends = [i for i, token in enumerate(answer) if token in self.reading.stops]
        if ends and not bool(self.open[self.free][: ends[0]].any()):
            self.ids[self.open] = answer[ends[0]]
            self.open[:] = False
            self.finished = "stop"


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
    """Rows that are filled together. They may differ in everything."""

    rows: list[Row]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int | None]], mask_id: int, *, first: int = 0) -> Canvas:
        """Token ids in which None is an open place; `first` is the number of the first row."""
        import torch

        if mask_id is None:
            raise UserError("the model names no mask token, so it fills nothing; set mask_token_id in its config.json.")
        rows = []
        for number, text in enumerate(texts, start=first):
            ids = torch.tensor([mask_id if token is None else int(token) for token in text], dtype=torch.long)
            free = torch.tensor([token is None for token in text], dtype=torch.bool)
            rows.append(Row(ids, free, mask_id, number))
        return cls(rows)

    @classmethod
    def after(
        cls, prompts: Sequence[Sequence[int]], new: int | Sequence[int], mask_id: int, *, first: int = 0
    ) -> Canvas:
        """Prompts, each followed by `new` open places."""
        lengths = [new] * len(prompts) if isinstance(new, int) else new
        return cls.of([[*p, *[None] * n] for p, n in zip(prompts, lengths, strict=True)], mask_id, first=first)

    @property
    def done(self) -> bool:
        return all(row.finished for row in self.rows)

    @property
    def planned(self) -> int:
        """Steps until every row is done, if no rule needs fewer."""
        return max((sum(row.planned) for row in self.rows), default=0)


GAP = re.compile(r"(\\*)\{\{(\d+)\}\}")


def parse_gaps(text: str) -> list[str | int]:
    r"""`"return {{8}}\n"` → ["return ", 8, "\n"]: text, and gaps of so many tokens.

    A backslash before the braces keeps them as text: `\{{8}}` is the text `{{8}}`, `\\{{8}}` a backslash and a gap.
    Braces around anything but a number are text as they are.
    """
    pieces: list[str | int] = []
    start = 0

    def add(piece: str) -> None:
        if pieces and isinstance(pieces[-1], str):
            piece = str(pieces.pop()) + piece
        if piece:
            pieces.append(piece)

    for found in GAP.finditer(text):
        slashes, size = found.group(1), int(found.group(2))
        add(text[start : found.start()] + "\\" * (len(slashes) // 2))
        if len(slashes) % 2:
            add(text[found.start() + len(slashes) : found.end()])
        elif size < 1:
            raise UserError(f"the gap {found.group()!r} has no token; a gap has at least 1, as in {{{{8}}}}.")
        else:
            pieces.append(size)
        start = found.end()
    add(text[start:])
    return pieces
