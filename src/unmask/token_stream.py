"""Ids laid end to end and cut; and a stream of such rows that goes on where it was left.

In:  ids of documents, or a stream of `datasets` with text.
Out: `Cut`: ids → rows; `stream`: rows {"input_ids"} as a stream, whose `state_dict` says where it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
from datasets import iterable_dataset
from numpy.typing import NDArray

from unmask.config import UserError
from unmask.encode import Encoder, Ids

FEATURES = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
BATCH = 64  # documents read at once


def checked(texts: list[Any], first: int, text_field: str) -> list[str]:
    """Texts, when they all are; first: number of the first one."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"row {first + i:,}: {text_field!r} is {'null' if text is None else repr(text)[:60]}, not text; "
                "leave such rows out of the data, or give them a text."
            )
    return texts


class Cut:
    """Ids, piece by piece → rows (n, length); what is left over waits for the next piece.

    Args:
        rest, count: what waits, and how many ids there were: of one to go on from.
    """

    def __init__(self, length: int, drop_tail: bool, keep_lone: bool, rest: Iterable[int] = (), count: int = 0) -> None:
        self.length, self.drop_tail, self.keep_lone = length, drop_tail, keep_lone
        self.rest: Ids = np.array(list(rest), dtype=np.int32)
        self.count = count

    def add(self, piece: Ids) -> NDArray[np.int32]:
        self.count += len(piece)
        whole = (len(self.rest) + len(piece)) // self.length * self.length
        every = np.concatenate([self.rest, piece])
        self.rest = every[whole:].copy()  # a view would keep all of it in memory
        return every[:whole].reshape(-1, self.length)

    def tail(self) -> NDArray[np.int32]:
        """The last row, shorter: (1, < length), or (0, length) where it is dropped; UserError: too little text."""
        if not self.count:
            raise UserError("the data hold no text: not one token came of them.")
        if len(self.rest) and (not self.drop_tail or (self.keep_lone and self.count < self.length)):
            return self.rest[None]
        if self.count < self.length:
            raise UserError(
                f"the data hold {self.count:,} tokens, fewer than one row of --max_length {self.length:,}; give more "
                f"text, --max_length {self.count} or less, or --drop_tail false."
            )
        return np.zeros((0, self.length), dtype=np.int32)


def stream(rows: Any, encoder: Encoder, text_field: str, **how: Any) -> datasets.IterableDataset:
    """Rows of a stream of text. `how`: the arguments of `Cut`.

    Its `state_dict` is where the reader of the text stands, how many rows of that batch of documents were given, and
    the tokens left over: what was read before is not tokenised again. A shuffle buffer in the stream of text is not in
    the state of `datasets` 5.2; then the text is read and tokenised from its start, and the rows given are passed over.
    """
    info = datasets.DatasetInfo(features=FEATURES)
    return datasets.IterableDataset(_Rows(rows, encoder, text_field, how), info=info)


def remembers(examples: Any) -> bool:
    """Whether a stream's `state_dict` says all: not so where it shuffles by a buffer, whose content it leaves out."""
    if isinstance(examples, iterable_dataset.BufferShuffledExamplesIterable):
        return False
    inner = vars(examples)
    below = [inner[name] for name in ("ex_iterable", "_ex_iterable") if name in inner]
    return all(remembers(one) for one in [*below, *inner.get("ex_iterables", [])])


class _Rows(iterable_dataset._BaseExamplesIterable):
    """What `datasets` 5.2 asks of the source of a stream; its from_generator keeps no state but a count of rows."""

    num_shards = 1
    is_typed = True
    features = FEATURES
    ex_iterables = ()  # `sleep_on_threads_shutdown` looks into them

    def __init__(self, rows: Any, encoder: Encoder, text_field: str, how: dict[str, Any]) -> None:
        super().__init__()
        self.rows, self.encoder, self.text_field, self.how = rows, encoder, text_field, how
        self.remembers = remembers(rows)

    def _init_state_dict(self) -> dict[str, Any]:
        # `rest` is a tuple: of a list, `load_state_dict` of `datasets` 5.2 would take as many items as are there.
        state: dict[str, Any] = {"rows": None, "documents": 0, "rest": (), "count": 0, "given": 0}
        self._state_dict = {"type": type(self).__name__, **state}
        return self._state_dict

    def shuffle_data_sources(self, generator: np.random.Generator) -> _Rows:
        return self

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> _Rows:
        return self

    def reshard_data_sources(self) -> _Rows:
        return self

    def __iter__(self) -> Iterator[tuple[int, dict[str, list[int]]]]:
        state: dict[str, Any] = self._state_dict if self._state_dict is not None else self._init_state_dict()
        rows = copy.copy(self.rows)  # a state that is loaded stays, and the next epoch begins at the beginning
        if state["rows"] is not None:
            rows.load_state_dict(state["rows"])
        cut = Cut(**self.how, rest=state["rest"], count=state["count"])
        documents, passed = state["documents"], state["given"]
        # In batches, because the row by row iterator of `datasets` 5.2 leaves files out in a DataLoader's worker.
        for batch in rows.iter(batch_size=BATCH):
            texts = checked(batch[self.text_field], documents, self.text_field)
            documents += len(texts)
            made = cut.add(self.encoder.flat(texts)[0])
            yield from self._give(made[passed:], state)
            passed = max(0, passed - len(made))
            if self.remembers:
                state.update(rows=rows.state_dict(), documents=documents, rest=tuple(cut.rest.tolist()))
                state.update(count=cut.count, given=0)
        yield from self._give(cut.tail()[passed:], state)

    def _give(self, made: NDArray[np.int32], state: dict[str, Any]) -> Iterator[tuple[int, dict[str, list[int]]]]:
        for row in made.tolist():
            state["given"] += 1
            yield state["given"], {"input_ids": row}
