"""The one view of a model that objectives, decoding and likelihood get: a function from ids to what the head says.

In:  ids with some places masked.  Out: logits, or whatever a reader makes of hidden states and head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""Hidden states (n, width) → logits (n, vocabulary)."""

Read = Callable[[Tensor, Head], Tensor]
"""(hidden states (n, width), head) → what is wanted of them. It runs where the head stands in the model's forward pass,
so that the hooks of DDP, FSDP and ZeRO fire for the head too; it may apply the head in chunks."""


class Predict(Protocol):
    """A model as a function. Place i of its answer speaks of token i, whatever the family's shift."""

    mask_id: int
    """The mask's token id; a causal model may have none."""
    vocab_size: int

    @property
    def device(self) -> torch.device: ...

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
        """Logits at the places where `keep` is true: (kept, vocabulary), row by row.

        Args:
            ids: (rows, places). attention: (rows, places), false at padding, or a 4-D mask of the back end.
            positions: (rows, places), for rotary embeddings; counted from 0 if left out.
            segments: (rows, places), instead of attention and positions where several conversations share a row: the
                number of the conversation at each place, -1 at padding. None of them sees another.
            cache: a `transformers` cache. keep: (rows, places); None gives (rows, places, vocabulary).
            read: what to return instead of logits.
        """
        ...
