"""The last layer only where somebody asks: what it makes elsewhere is read by nobody.

In:  a model, the places that are asked for.  Out: forwards for parts of its last layer, which answer nought elsewhere.

Of a text half is masked on average, and of a conversation the prompt is never asked for. Keys and values are needed of
every place; queries, what follows them, and the layer's feed-forward part are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Whose parts behind attention look at each place by itself, and after which comes a norm alone (transformers 5.23)."""
MOST = 0.9  # of the places asked for, above which picking them costs what it saves


def only(model: Any, keep: Tensor) -> tuple[dict[nn.Module, list[Tensor]], dict[nn.Module, Callable[[Tensor], Tensor]]]:
    """Attention → the places of each row that ask; module → its forward at these. Nothing where nothing is gained.

    Args:
        keep: (rows, places), what is read of the last layer's output.
    """
    layer = _of(model)
    rows = None if layer is None else asked(keep)
    if layer is None or rows is None:
        return {}, {}
    attention, mlp = layer.self_attn, layer.mlp
    places = torch.cat([places + number * keep.shape[1] for number, places in enumerate(rows)])
    return {attention: rows}, {part: _at(places, part.forward) for part in (attention.o_proj, mlp)}


def asked(keep: Tensor) -> list[Tensor] | None:
    """Of each row the numbers of the places where `keep` is true; None where that is nearly all of them.

    A row of which nothing is asked asks its first place: each weight has its part in each loss, if only nought, or DDP
    would wait for its gradient for ever.
    """
    rows = [row.nonzero()[:, 0] if row.any() else keep.new_zeros(1, dtype=torch.long) for row in keep]
    return rows if sum(map(len, rows)) <= MOST * keep.numel() else None


def _of(model: Any) -> Any:
    """The last layer of a network in training, where its parts are known and each is run once."""
    if not (torch.is_grad_enabled() and model.training) or model.is_activation_checkpointing:
        return None  # a layer that is run again in the backward pass would find its own forwards there
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    last: Any = layers[-1] if layers else None
    compiled = last is not None and last._compiled_call_impl is not None
    return last if type(last).__name__ in LAYERS and not compiled else None


def _at(places: Tensor, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """(rows, places, width) → (rows, places, other width): `forward` of some places, nought elsewhere.

    Args:
        places: (n,) numbers in all rows, laid end to end.
    """

    def some(hidden: Tensor) -> Tensor:
        made = forward(hidden.flatten(0, 1).index_select(0, places))
        whole = made.new_zeros(hidden.shape[0] * hidden.shape[1], made.shape[-1])
        return whole.index_copy(0, places, made).view(*hidden.shape[:2], -1)

    return some
