"""Rows to tensors, with the noise of each row.

In:  rows {"input_ids", "labels"?} and where they stand: (epoch, place).
Out: batches of tensors: input_ids, supervised, attention (only where there is padding), t, masked, weight; behind an
answer the end-of-text tail that was asked for, which is learnt.

The rows of an epoch are put in order once, and each gets its place in that order before anything is split. Optimiser
step s takes the places from s·G to (s+1)·G, with G rows in the global batch, and hands them to processes and
micro-batches. So the noise and the loss of a step do not depend on how many processes or micro-batches share it, no row
is repeated or dropped at an epoch's end, and a run can stop and go on in the middle of an epoch. Where an epoch's last
step is short, filler rows that bear no loss keep the processes in step.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from unmask import noise, objectives
from unmask.config import UserError
from unmask.objectives import Objective
from unmask.tail import Tail
from unmask.token_stream import remembers

FILLER = -1
AHEAD = 8  # steps of a stream whose end is remembered
VALIDATION = -1  # the epoch of validation noise, which never changes


class Ticket(NamedTuple):
    """One row's seat: which row of the data, at which place of which epoch. row = FILLER bears no loss.

    longest: tokens in the longest row of its optimiser step, as prepared; 0 where nobody asks.
    """

    row: int
    place: int
    epoch: int
    longest: int = 0


class Split(NamedTuple):
    """How an optimiser step is shared: rows a process takes at once, micro-batches, processes, this process."""

    rows: int
    micro: int = 1
    processes: int = 1
    process: int = 0

    @property
    def step(self) -> int:
        """Rows in one optimiser step, over all processes."""
        return self.rows * self.micro * self.processes


def order(rows: int, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """The row at each place of an epoch: (rows,)."""
    if not shuffle:
        return np.arange(rows)
    return noise.generator(seed, epoch, 0, noise.ORDER).permutation(rows)


def lengths(rows: Any) -> NDArray[np.int64]:
    """Tokens in each row of a data set of `datasets`: (rows,). Asked of Arrow, which makes no lists of ids for it."""
    tables = rows.select_columns("input_ids").with_format("arrow").iter(10_000)
    found = [pyarrow.compute.list_value_length(table["input_ids"]).to_numpy() for table in tables]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found]).astype(np.int64)


def grouped(
    found: NDArray[np.int64], lengths: NDArray[np.int64], step: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The same rows with those of like length in the same step: each 50 steps are sorted, then the steps shuffled."""
    window = 50 * step
    by_length = [
        part[np.argsort(-lengths[part], kind="stable")] for part in np.split(found, range(window, len(found), window))
    ]
    found = np.concatenate(by_length)
    whole = len(found) // step
    mixed = noise.generator(seed, epoch, 1, noise.ORDER).permutation(whole)
    return np.concatenate([found[: whole * step].reshape(whole, step)[mixed].reshape(-1), found[whole * step :]])


# Validation rows that share a longest row, for the tail `step`: fixed, so that the number reported for a model depends
# neither on how many rows a step of training has nor on how many processes there are.
TOGETHER = 64


def longest_of_likes(sizes: NDArray[np.int64], by_length: bool) -> NDArray[np.int64]:
    """For each validation row, the longest of the TOGETHER that share its tail: neighbours, or rows of like length as
    training has them. It hangs on neither batches nor processes. (rows,) → (rows,)"""
    longest = np.zeros_like(sizes)
    order = np.argsort(-sizes, kind="stable") if by_length else np.arange(len(sizes))
    for start in range(0, len(sizes), TOGETHER):
        some = order[start : start + TOGETHER]
        longest[some] = sizes[some].max()
    return longest


def shares(step: list[Ticket], split: Split) -> Iterator[list[Ticket]]:
    """One optimiser step's rows → this process's micro-batches; every process gets as many of them."""
    each = split.rows * split.processes
    for start in range(0, len(step), each):
        part = step[start : start + each]
        mine = part[split.process :: split.processes]  # a short step is spread evenly over the processes
        if len(part) < each:
            most = -(-len(part) // split.processes)
            mine = mine + [Ticket(FILLER, 0, part[0].epoch)] * (most - len(mine))
        yield mine


class Places:
    """Batch sampler over a data set with a length: yields lists of tickets. `set_epoch` chooses the epoch.

    Args:
        lengths: (rows,) tokens in each row, for the tickets' `longest`. by_length: rows of like length into a step.
    """

    def __init__(
        self,
        rows: int,
        split: Split,
        *,
        seed: int,
        shuffle: bool = True,
        lengths: Sequence[int] | NDArray[np.int64] | None = None,
        by_length: bool = False,
    ) -> None:
        self.rows, self.split, self.seed, self.shuffle, self.epoch = rows, split, seed, shuffle, 0
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.by_length = by_length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this process in an epoch."""
        whole, rest = divmod(self.rows, self.split.step)
        return whole * self.split.micro + -(-rest // (self.split.rows * self.split.processes))

    def __iter__(self) -> Iterator[list[Ticket]]:
        rows = order(self.rows, self.seed, self.epoch, self.shuffle)
        if self.by_length and self.lengths is not None:
            rows = grouped(rows, self.lengths, self.split.step, self.seed, self.epoch)
        for start in range(0, self.rows, self.split.step):
            step = rows[start : start + self.split.step]
            longest = 0 if self.lengths is None else int(self.lengths[step].max())
            tickets = [Ticket(int(row), start + i, self.epoch, longest) for i, row in enumerate(step)]
            yield from shares(tickets, self.split)


class Seated(Dataset[Any]):
    """A data set asked by tickets: [(row, place, epoch), …] → [(tokens, ticket), …]."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, tickets: list[Ticket]) -> list[tuple[dict[str, Any], Ticket]]:
        wanted = [max(ticket.row, 0) for ticket in tickets]
        found = self.rows[wanted]
        return [({k: v[i] for k, v in found.items()}, ticket) for i, ticket in enumerate(tickets)]


class Stream(IterableDataset[Any]):
    """A data set without a length as micro-batches of (tokens, ticket), epoch after epoch, without end.

    Every process and worker reads the whole stream and takes its own part: of W workers each takes every W-th batch,
    so that the loader, which asks the workers in turn, puts them together in the same order as without workers.

    To go on later: `state(step)` after a step, and `go_on(state)` before reading. Only without workers, which keep
    what they know to themselves, and only for rows whose `state_dict` says all, so not for rows shuffled by a buffer;
    else there is no state, and what was read before is read again.
    """

    def __init__(self, rows: Any, split: Split, collate: Collate) -> None:
        self.rows, self.split, self.collate = rows, split, collate
        self._start: dict[str, Any] = {"step": 0, "epoch": 0, "place": 0, "rows": None}
        self._states: dict[int, dict[str, Any]] = {}
        self._passed = 0
        self._remembers = hasattr(rows, "state_dict") and remembers(rows)

    def state(self, step: int) -> dict[str, Any] | None:
        """Where the stream stands after so many optimiser steps, for JSON; None where that is not known."""
        return self._states.get(step)

    def go_on(self, state: dict[str, Any], passed: bool = False) -> None:
        """Begin at a state: the first micro-batch is that of the step after it.

        Args:
            passed: an empty one comes for each micro-batch before it, for a loader that passes over so many.
        """
        self._start, self._passed = state, state["step"] * self.split.micro if passed else 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            # A stream of `datasets` 5.2 splits itself among torch's workers unasked (IterableDataset.__iter__), which
            # changes the order with their number; hidden from it, each worker reads all of it.
            torch.utils.data._utils.worker._worker_info = None
        for i in range(number, self._passed, of):
            yield {"passed": torch.tensor(i)}
        for i, batch in enumerate(self._micro_batches(), self._passed):
            if i % of == number:
                yield self.collate(batch)

    def _micro_batches(self) -> Iterator[list[tuple[dict[str, Any], Ticket]]]:
        step, epoch, place = (self._start[name] for name in ("step", "epoch", "place"))
        rows = self.rows
        if self._start["rows"] is not None:
            rows = copy.copy(rows)  # which alone begins there; the next epoch begins at the beginning
            rows.load_state_dict(self._start["rows"])
        while True:
            if hasattr(rows, "set_epoch"):
                rows.set_epoch(epoch)
            held: list[tuple[dict[str, Any], Ticket]] = []
            for row in rows:
                held.append((row, Ticket(place, place, epoch)))
                place += 1
                if len(held) == self.split.step:
                    step += 1
                    self._note(step, epoch, place, rows)
                    yield from self._shared(held)
                    held = []
            if held:
                step += 1
                self._note(step, epoch, place, rows)
                yield from self._shared(held)
            if not place:
                return
            epoch, place, rows = epoch + 1, 0, self.rows

    def _note(self, step: int, epoch: int, place: int, rows: Any) -> None:
        """Keep where a step ends. A loader reads ahead by a batch or two, so the last few steps are kept."""
        if self._remembers:
            state = {"step": step, "epoch": epoch, "place": place, "rows": rows.state_dict()}
            self._states = {n: s for n, s in self._states.items() if n > step - AHEAD} | {step: state}

    def _shared(self, held: list[tuple[dict[str, Any], Ticket]]) -> Iterator[list[tuple[dict[str, Any], Ticket]]]:
        longest = max(len(tokens["input_ids"]) for tokens, _ in held)
        row = {ticket._replace(longest=longest): tokens for tokens, ticket in held}
        filler = held[0][0]
        for mine in shares(list(row), self.split):
            yield [(row.get(ticket, filler), ticket) for ticket in mine]
        # The Trainer counts `micro` micro-batches to a step of a stream: an epoch's short last step gets empty ones.
        made = -(-len(held) // (self.split.rows * self.split.processes))
        for _ in range(self.split.micro - made):
            yield [(filler, Ticket(FILLER, 0, held[0][1].epoch))]


class Collate:
    """[(tokens, ticket), …] → a batch of tensors with its noise.

    Args:
        objective: draws the noise. seed: of the noise. pad_id: what stands where a row has ended.
        random_length_ratio: share of rows cut to a random length (LLaDA trains 1 % of them so); 0 in validation.
        exact: noise by the exact-count estimator, as validation draws it.
        tail: what comes behind the answer of a row with labels. end_id: the end of text it is made of.
        max_length: no tail makes a row longer than this. t: noise level of every row, from 0 to 1, to look at; each
            row's own if left out.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        seed: int,
        pad_id: int,
        random_length_ratio: float = 0.0,
        exact: bool = False,
        tail: Tail | None = None,
        end_id: int | None = None,
        max_length: int | None = None,
        t: float | None = None,
    ) -> None:
        self.objective, self.seed, self.pad_id, self.t = objective, seed, pad_id, t
        self.random_length_ratio, self.exact = random_length_ratio, exact
        self.tail, self.max_length = tail or Tail(), max_length
        if self.tail.kind != "none" and end_id is None:
            raise UserError(f"--eos_tail {self.tail}: the tokenizer has no end-of-text token; use --eos_tail none.")
        self.end_id = -1 if end_id is None else end_id
        self.gives_first = objectives.gives_first(objective)

    def __call__(self, rows: list[tuple[dict[str, Any], Ticket]]) -> dict[str, Tensor]:
        made = [self._row(tokens, ticket) for tokens, ticket in rows]
        length = max(len(row["input_ids"]) for row in made)
        batch = {
            "input_ids": torch.full((len(made), length), self.pad_id, dtype=torch.long),
            "supervised": torch.zeros((len(made), length), dtype=torch.bool),
            "masked": torch.zeros((len(made), length), dtype=torch.bool),
            "weight": torch.zeros((len(made), length)),
        }
        for key in made[0].keys() - batch.keys() - {"t"}:
            batch[key] = torch.zeros((len(made), length), dtype=torch.from_numpy(made[0][key]).dtype)
        attention = torch.zeros((len(made), length), dtype=torch.bool)
        for i, row in enumerate(made):
            n = len(row["input_ids"])
            attention[i, :n] = True
            for key, values in batch.items():
                values[i, :n] = torch.from_numpy(row[key])
        if not attention.all():
            batch["attention"] = attention
        batch["t"] = torch.tensor([row["t"] for row in made])
        batch["place"] = torch.tensor([FILLER if t.row == FILLER else t.place for _, t in rows])
        return batch

    def _row(self, tokens: dict[str, Any], ticket: Ticket) -> dict[str, Any]:
        ids = np.asarray(tokens["input_ids"], dtype=np.int64)
        supervised = np.ones(len(ids), dtype=bool)
        whole_answer = tokens.get("labels") is not None
        if whole_answer:
            supervised = np.asarray(tokens["labels"]) != -100
        if ticket.row == FILLER:
            ids, supervised = ids[:1], np.zeros(1, dtype=bool)
        where = (self.seed, ticket.epoch, ticket.place)
        if self.random_length_ratio:
            random = noise.generator(*where, noise.LENGTH)
            if random.random() < self.random_length_ratio and len(ids) > 1:
                keep = int(random.integers(1, len(ids) + 1))
                whole_answer &= keep == len(ids)
                ids, supervised = ids[:keep], supervised[:keep]
        if whole_answer:
            extra = self._tail(supervised, ticket.longest)
            ids = np.append(ids, np.full(extra, self.end_id))
            supervised = np.append(supervised, np.ones(extra, dtype=bool))
        if self.gives_first:
            supervised[:1] = False
        t = noise.time(*where) if self.t is None else self.t
        drawn = self.objective.noise(supervised, t, noise.generator(*where, noise.MASK), self.exact)
        row = {"input_ids": ids, "supervised": supervised, "masked": drawn.masked, "weight": drawn.weight, "t": t}
        return {**getattr(drawn, "more", {}), **row}

    def _tail(self, supervised: NDArray[np.bool_], longest: int) -> int:
        """How many end-of-text tokens come behind a row: none where it does not end in an answer."""
        prompt = np.flatnonzero(~supervised)
        answer = len(supervised) - 1 - int(prompt[-1]) if len(prompt) else len(supervised)
        most = self.max_length if self.max_length is not None else sys.maxsize
        return self.tail.length(len(supervised), answer, longest, most) if answer else 0


class Loader(DataLoader[Any]):
    """A DataLoader whose epoch can be set: `accelerate` is not asked to shard what is sharded already."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, Places):
            self.batch_sampler.set_epoch(epoch)
