"""Packing: short conversations share a row of the forward pass and do not see one another.

In:  `predict`, and what it is asked: one conversation a row, padded.  Out: the same answers, from fewer, fuller rows.

Only the forward pass is packed. What a conversation's noise is, what it weighs and which step it belongs to is settled
before, so that the loss is that of the unpacked run by construction, and an objective never knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.config import UserError
from unmask.predict import Head, Predict, Read


def first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """Conversations of these lengths → rows of their numbers, none longer than the longest conversation.

    First-fit decreasing: the longest first, each into the first row with room; at most 11/9 of the fewest rows there
    could be plus 2/3 of a row (Dósa 2007).
    """
    most = max(lengths, default=0)
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        row = next((r for r, left in enumerate(room) if left >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(most)
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


class Packed:
    """`predict` whose rows are packed before the network sees them: asked and answering like `predict` itself."""

    def __init__(self, predict: Predict) -> None:
        self.predict, self.mask_id, self.vocab_size = predict, predict.mask_id, predict.vocab_size

    @property
    def device(self) -> torch.device:
        return self.predict.device

    def __call__(
        self,
        ids: Tensor,
        *,
        attention: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Any = None,
        keep: Tensor | None = None,
        read: Read | None = None,
    ) -> Tensor:
        """See `unmask.predict.Predict`; `attention` is (rows, places), `keep` is false where it is."""
        if positions is not None:
            raise UserError("this objective puts tokens into other places, which packing cannot; --packing false.")
        if segments is not None or cache is not None:
            raise ValueError("what is packed here has places of its own: no segments or cache.")
        lengths = [ids.shape[1]] * len(ids) if attention is None else attention.sum(1).tolist()
        together = getattr(self.predict, "end_to_end", False)  # no row is too long, so one will do, without padding
        rows = [list(range(len(lengths)))] if together else first_fit(lengths)
        if attention is None or (len(rows) == len(lengths) and not together):  # nothing to gain
            return self.predict(ids, attention=attention, keep=keep, read=read)
        wanted = attention if keep is None else keep
        if (wanted & ~attention).any():
            raise ValueError("a place that is padding was asked for.")
        width = sum(lengths) if together else max(lengths)
        shape = (len(rows), width)
        start, numbers = [0] * len(lengths), torch.full(shape, -1)
        for r, row in enumerate(rows):
            at = 0
            for number in row:
                start[number] = r * width + at
                numbers[r, at : at + lengths[number]] = number
                at += lengths[number]
        # where each token stands in the packed rows, laid end to end: (rows, places), meaningless at padding
        where = torch.tensor(start, device=ids.device)[:, None] + attention.cumsum(1) - 1
        packed = ids.new_zeros(shape).view(-1)
        packed[where[attention]] = ids[attention]
        asked = where[wanted]
        kept = torch.zeros(shape, dtype=torch.bool, device=ids.device).view(-1)
        kept[asked] = True
        order = asked.argsort().argsort()  # the network answers in the order of the packed rows

        def in_order(hidden: Tensor, head: Head) -> Tensor:
            return read(hidden[order], head) if read else head(hidden[order])

        found = self.predict(packed.view(shape), segments=numbers.to(ids.device), keep=kept.view(shape), read=in_order)
        if keep is not None:
            return found
        whole = found.new_zeros(*ids.shape, *found.shape[1:])
        whole[attention] = found
        return whole


@torch.no_grad()
def refuse_leaks(predict: Predict, name: str) -> None:
    """UserError unless, of two packed conversations, each answers the same whatever the other says.

    Not every network heeds its mask (recurrent and convolutional ones have none).
    """
    segments = torch.arange(8, device=predict.device)[None] // 4
    ids = torch.arange(8, device=predict.device)[None] % predict.vocab_size
    before = predict(ids, segments=segments)
    for number in (0, 1):
        changed = torch.where(segments == number, (ids + 1) % predict.vocab_size, ids)
        after = predict(changed, segments=segments)
        if not torch.equal(before[segments != number], after[segments != number]):
            raise UserError(
                f"packing does not work with {name}: packed conversations see one another; --packing false."
            )
