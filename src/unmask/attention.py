"""Attention for packed rows: a token sees its own conversation only, whatever computes the attention.

In:  segments (rows, places): the number of the conversation at each place, -1 at padding; a model's config.
Out: what a `transformers` network has to be given besides its ids.

Position ids alone do not keep conversations apart once `is_causal = False`, and each back end wants a mask of its own
kind: a boolean one is right in sdpa and silently wrong in eager attention, which adds it to the scores (transformers
5.23).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unmask import bfloat16_attention
from unmask.config import UserError

MASKED = ("sdpa", "eager", "flex_attention")  # these get a mask
FLASH = ("flash_attention_2", "flash_attention_3")  # these get the lengths of what lies end to end
ONE_BY_ONE = "sdpa_one_by_one"  # sdpa, but of packed conversations each by itself
END_TO_END = (*FLASH, ONE_BY_ONE)  # a row may be as long as all conversations together: they are not looked at squared


def one_by_one(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    **how: Any,
) -> tuple[Tensor, None]:
    """sdpa, and where lengths are told, each conversation of the one long row by itself.

    sdpa with a mask multiplies the whole square; of 2,048 tokens in conversations of 130 one part in 16 is needed. On a
    CPU a call a conversation costs little beside what it saves; on a GPU flash kernels do the same in one.
    """
    if cu_seq_lens_q is None:
        return _one(module, query, key, value, attention_mask, _asked.get(module), **how), None
    parts = [
        _one(module, query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop], None, None, **how)
        for start, stop in itertools.pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(parts, 1), None


def _one(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    asked: list[Tensor] | None,
    **how: Any,
) -> Tensor:
    """(rows, places, heads, width)"""
    causal = how.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    usual = all(value is None or value is False or name in HEEDED for name, value in how.items())
    if not usual or mask is not None or causal:
        asked = None
    if usual and bfloat16_attention.serves(query, key, mask, causal, how.get("dropout", 0.0)):
        scale = how.get("scaling") or query.shape[-1] ** -0.5
        return bfloat16_attention.attend(query, key, value, scale, asked).transpose(1, 2).contiguous()
    if asked is not None:
        return _some(module, query, key, value, asked, **how)
    made: Tensor = sdpa_attention_forward(module, query, key, value, mask, **how)[0]
    return made


def _some(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, asked: list[Tensor], **how: Any
) -> Tensor:
    """The same, of each row's places that are asked for; nought elsewhere. (rows, places, heads, width)"""
    made = []
    for row, places in enumerate(asked):
        one = slice(row, row + 1)
        some = sdpa_attention_forward(module, query[one, :, places], key[one], value[one], None, **how)[0]
        made.append(some.new_zeros(1, query.shape[2], *some.shape[2:]).index_copy(1, places, some))
    return torch.cat(made)


_asked: dict[torch.nn.Module, list[Tensor]] = {}


@contextlib.contextmanager
def only_at(module: torch.nn.Module, rows: list[Tensor]) -> Iterator[None]:
    """While inside, this attention answers of each row at these places only, where it goes by ONE_BY_ONE."""
    _asked[module] = rows
    try:
        yield
    finally:
        del _asked[module]


ALL_ATTENTION_FUNCTIONS.register(ONE_BY_ONE, one_by_one)
ALL_MASK_ATTENTION_FUNCTIONS.register(ONE_BY_ONE, sdpa_mask)


def for_compiling() -> None:
    """Leave what goes by each batch's lengths out of compiled layers. Loading the compiler takes seconds."""
    ALL_ATTENTION_FUNCTIONS.register(ONE_BY_ONE, torch.compiler.disable(one_by_one))


def for_training(model: Any) -> None:
    """Let a model on a CPU take packed conversations one by one, and whole rows in bfloat16 by products of matrices."""
    windows = any(getattr(model.config, key, None) for key in WINDOWS)
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu" and not windows:
        model.set_attn_implementation(ONE_BY_ONE)


HEEDED = ("is_causal", "dropout", "scaling", "position_ids", "cache_position")  # or of no meaning to attention itself
WINDOWS = ("sliding_window", "attention_chunk_size")


def positions(segments: Tensor) -> Tensor:
    """The place of each token in its own conversation, from 0: (rows, places)."""
    place = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return place - torch.where(begins, place, 0).cummax(1).values


def check(config: Any) -> None:
    """UserError for a back end whose mask for packed rows is not known."""
    used = config._attn_implementation
    if used not in MASKED + END_TO_END:
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
    if config._attn_implementation in END_TO_END:
        # the kernels want one long row; transformers 5.23 lays the rows end to end itself when it is told the lengths,
        # but finds them by itself only in a batch of one row
        lengths, longest = prepare_fa_kwargs_from_position_ids(own)
        if config._attn_implementation == ONE_BY_ONE:
            (lengths, _), _ = prepare_fa_kwargs_from_position_ids(own)
            if rows > 1:
                raise ValueError("packed conversations that are taken one by one lie in one row.")
            # a mask of four dimensions is taken as it is, so that none as wide as the row is made; nobody reads it
            unread = segments.new_ones(1, 1, 1, 1, dtype=torch.bool)
            return {"position_ids": own, "cu_seq_lens_q": lengths, "attention_mask": unread}
        told = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        return {"position_ids": own, **dict(zip(told, (*lengths, *(int(most) for most in longest)), strict=True))}
    for key in WINDOWS:
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
    if used in ("sdpa", ONE_BY_ONE):
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
