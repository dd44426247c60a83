"""The embedding's forward pass for training on a CPU: its gradient is made where logits were before.

In:  ids, an embedding.  Out: their vectors; the gradient is the one that torch makes.

That gradient is as large as the table, 227 MB for the tutorial's model, and comes last in a backward pass, when memory
is in pieces and the loss has no more use for its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unmask import kept


def forward(embedding: nn.Embedding) -> Any:
    """A forward for this embedding; None where its own serves as well."""
    weight = embedding.weight
    simple = (
        type(embedding).forward is nn.Embedding.forward
        and "forward" not in vars(embedding)
        and type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not (embedding.sparse or embedding.scale_grad_by_freq)
        and embedding.max_norm is None
        and embedding.padding_idx is None
    )
    if not simple or weight.numel() * weight.element_size() < kept.LEAST:
        return None
    return lambda ids: _Lookup.apply(ids, embedding.weight)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        made = kept.empty(kept.SCRATCH, ctx.shape, ctx.dtype, grad.device).zero_()
        return None, made.index_add_(0, ids.flatten(), grad.reshape(-1, ctx.shape[1]).to(ctx.dtype))
