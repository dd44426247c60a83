"""Attention of a whole row in bfloat16 on a CPU, for training: products of matrices, one head after the other.

In:  queries, keys, values.  Out: what each place takes from all others; nothing where another way is better.

torch 2.13's flash kernel for the CPU makes some 150 billion operations a second in bfloat16 where products of matrices
make 400 (docs/log.md, 2026-11-30). Scores are float32 here, too, so that errors are those of the flash kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask import processor

LEAST = 256  # places, below which calls cost more than products
KEPT = 32 << 20  # bytes of weights that a layer keeps for the backward pass; of longer rows they are made again


def serves(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> bool:
    """Whether this is for such a call. (rows, heads, places, width)"""
    narrow = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return (
        query.device.type == "cpu"
        and (narrow or query.dtype == torch.bfloat16)
        and mask is None
        and not causal
        and not dropout
        and torch.is_grad_enabled()
        and query.requires_grad
        and query.shape[2] == key.shape[2] >= LEAST
    )


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, asked: list[Tensor] | None = None) -> Tensor:
    """(rows, heads, places, width); keys and values may have fewer heads, each for several of the queries'.

    Args:
        asked: of each row the places whose answers are wanted; others are nought.
    """
    with torch.autocast("cpu", enabled=False):
        made: Tensor = _Attention.apply(*(one.to(torch.bfloat16) for one in (query, key, value)), scale, asked)
    return made


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, asked: list[Tensor] | None
    ) -> Tensor:
        rows, heads, places, _ = query.shape
        ctx.scale, ctx.shared, ctx.asked = scale, heads // key.shape[1], asked
        size = (rows, places, heads, value.shape[3])
        made = (query.new_empty(size) if asked is None else query.new_zeros(size)).transpose(1, 2)
        most = places if asked is None else max(map(len, asked))
        keeps = rows * heads * most * places * query.element_size() <= KEPT
        kept = query.new_empty(rows, heads, most, places) if keeps else None
        for row in range(rows):
            at = slice(None) if asked is None else asked[row]
            for head in range(heads):
                of = row, head // ctx.shared
                q = query[row, head][at]
                weights = _weights(q, key[of], scale, None if kept is None else kept[row, head, : len(q)])
                made[row, head, at] = weights @ value[of]
        ctx.save_for_backward(query, key, value, *([kept] if kept is not None else []))
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        d_query = torch.empty_like(query) if ctx.asked is None else torch.zeros_like(query)
        d_key, d_value = (torch.zeros_like(one) if ctx.shared > 1 else torch.empty_like(one) for one in (key, value))
        for row in range(query.shape[0]):
            places = slice(None) if ctx.asked is None else ctx.asked[row]
            for head in range(query.shape[1]):
                at, of = (row, head, places), (row, head // ctx.shared)
                q, k, g = query[at], key[of], grad[at].contiguous()
                weights = kept[0][row, head, : len(q)] if kept else _weights(q, k, ctx.scale, None)
                d_weights = g @ value[of].t()
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scale)
                d_query[at] = d_scores @ k
                for whole, made in ((d_value, weights.t() @ g), (d_key, d_scores.t() @ q)):
                    if ctx.shared > 1:
                        whole[of] += made
                    else:
                        whole[of] = made
        return d_query, d_key, d_value, None, None


def _weights(query: Tensor, key: Tensor, scale: float, room: Tensor | None) -> Tensor:
    """softmax(scale · query · key'): (places, places). Scores are float32: rounded, large ones would be off by much."""
    scores = processor.products(query.device, torch.float32)(query.float() * scale, key.float().t())
    weights = torch.softmax(scores, -1, out=scores)
    return weights.to(query.dtype) if room is None else room.copy_(weights)
