"""Attention for packed rows: a token sees its own conversation only, whatever computes the attention.

In:  segments (rows, places): the number of the conversation at each place, -1 at padding; a model's config.
Out: what a `transformers` network has to be given besides its ids.

Position ids alone do not keep conversations apart once `is_causal = False`, and each back end wants a mask of its own
kind: a boolean one is right in sdpa and silently wrong in eager attention, which adds it to the scores (transformers
5.23).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from unmask.config import UserError

MASKED = ("sdpa", "eager", "flex_attention")  # these get a mask
FLASH = ("flash_attention_2", "flash_attention_3")  # these get the lengths of what lies end to end


def positions(segments: Tensor) -> Tensor:
    """The place of each token in its own conversation, from 0: (rows, places)."""
    place = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return place - torch.where(begins, place, 0).cummax(1).values


def check(config: Any) -> None:
    """UserError for a back end whose mask for packed rows is not known."""
    used = config._attn_implementation
    if used not in MASKED + FLASH:
        raise UserError(
            f"packing does not know how {used!r} keeps conversations apart; use --attn_implementation "
            f"{', '.join(MASKED + FLASH[:-1])} or {FLASH[-1]}, or --packing false."
        )


def packed(config: Any, segments: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the network's forward for rows of several conversations each.

    Padding sees padding, never nothing: a row of the mask without a single place would be 0/0.

    Args:
        segments: (rows, places). dtype: of the embeddings, for masks that are added to the scores.
    """
    check(config)
    own = positions(segments)
    rows, places = segments.shape
    if config._attn_implementation in FLASH:
        # the kernels want one long row; transformers 5.23 lays the rows end to end itself when it is told the lengths,
        # but finds them by itself only in a batch of one row
        lengths, longest = prepare_fa_kwargs_from_position_ids(own)
        told = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        return {"position_ids": own, **dict(zip(told, (*lengths, *(int(most) for most in longest)), strict=True))}
    for key in ("sliding_window", "attention_chunk_size"):
        window = getattr(config, key, None)
        if window and window < places:
            raise UserError(
                f"packing gives every layer the same mask, which this model's {key} of {window} forbids for "
                f"conversations of {places} tokens; lower --max_length, or --packing false."
            )
    make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    mask = make(
        batch_size=rows,
        q_length=places,
        kv_length=places,
        mask_function=sees(segments, getattr(config, "is_causal", True)),
        allow_is_causal_skip=False,
        dtype=dtype,
        device=segments.device,
        config=config,
    )
    return {"position_ids": own, "attention_mask": mask}


def understood(config: Any, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (rows, 1, places that ask, places that are asked), true where one may look, as the back end takes it."""
    used = config._attn_implementation
    if used == "sdpa":
        return mask
    if used == "eager":  # which adds it to the scores
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    raise UserError(f"this decoding rule hides places from one another, which {used!r} cannot; use sdpa or eager.")


def sees(segments: Tensor, causal: bool) -> Callable[..., Tensor]:
    """(row, head, place that asks, place that is asked) → whether it may look."""

    def may(row: Tensor, head: Tensor, asks: Tensor, asked: Tensor) -> Tensor:
        same = segments[row, asks] == segments[row, asked]
        return same & (asked <= asks) if causal else same

    return may
