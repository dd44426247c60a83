"""-log p of tokens from hidden states and head, without the whole logits.

In:  hidden states (n, width) at the places that are asked for, the head, the tokens (n,), what each place weighs.
Out: nats (n,), and their weighted sum, whose gradients are made where the logits are.

A vocabulary is much wider than a network: of a small model's step most is spent here. So logits are made a chunk of
places at a time, and since a place's weight is known before, its gradient is made in the forward pass, from the same
logits: three products of matrices, and not four as when logits are made anew in the backward pass. (The idea is that
of fused linear cross-entropy: Liger Kernel, arXiv:2410.10989; `torch.nn.functional.linear_cross_entropy`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from unmask import processor
from unmask.predict import Head

# Bytes of float32 logits at once. On a CPU 250 places of LLaDA's vocabulary are within 7 % of what 500 reach, in half
# the memory (benchmarks/loss.py); a GPU needs more places for its products to fill it.
CHUNK = {"cpu": 128 << 20, "other": 512 << 20}
TINY = 1e-30  # of a probability: below it, it is told from its logit


@torch.compiler.disable  # traced, it would be compiled anew for each number of places
def weighted(hidden: Tensor, head: Head, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Σ weight · nats, a scalar with gradient; nats (n,), without.

    Args:
        hidden: (n, width). targets: (n,) token ids. weight: (n,), float32, which is no function of the model.

    The gradients are made at once and scaled in the backward pass, which can therefore run once only.
    """
    module, plain = _module(head), linear(head)
    if module is None or not torch.is_grad_enabled():
        nats = cross_entropy(hidden, head, targets)
        return (nats * weight).sum(), nats.detach()
    if plain is not None:
        more = [plain.weight] if plain.bias is None else [plain.weight, plain.bias]
    else:
        more = [p for p in module.parameters() if p.requires_grad]
    total, nats = _Weighted.apply(head, plain is not None, targets, weight.float(), hidden, *more)
    return total, nats


@torch.compiler.disable
def cross_entropy(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Nats (n,), float32, each with its gradient: for losses that are no weighted sum. Logits are made twice."""

    def nats(some: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(head(some).float(), wanted, reduction="none")

    if _module(head) is None or not len(hidden):
        return nats(hidden, targets)
    found = []
    for at in chunks(hidden, _module(head)):
        some = hidden[at], targets[at]
        found.append(checkpoint(nats, *some, use_reentrant=False) if torch.is_grad_enabled() else nats(*some))
    return torch.cat(found)


def linear(head: Head) -> nn.Linear | None:
    """The head as a matrix, where it is one: not with an adapter, quantised weights or a hook's own forward."""
    module = _module(head)
    own = getattr(getattr(head, "forward", None), "__func__", None)
    if own is nn.Linear.forward and isinstance(module, nn.Linear) and type(module.weight) in (Tensor, nn.Parameter):
        return module
    return None


def _module(head: Head) -> nn.Module | None:
    return getattr(head, "module", None)


def chunks(hidden: Tensor, module: nn.Module | None) -> Iterator[slice]:
    """Slices of about as many places each, whose logits are at most CHUNK bytes."""
    n = len(hidden)
    vocabulary = getattr(module, "out_features", None) or 1 << 17  # a wrapper that does not say: LLaDA's size
    most = max(1, CHUNK.get(hidden.device.type, CHUNK["other"]) // (4 * vocabulary))
    parts = -(-n // most)
    for part in range(parts):
        yield slice(part * n // parts, (part + 1) * n // parts)


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Any, plain: bool, targets: Tensor, weight: Tensor, hidden: Tensor, *more: Tensor
    ) -> tuple[Tensor, Tensor]:
        make = _by_hand if plain else _by_autograd
        wants = ctx.needs_input_grad[4:]
        nats, made = make(head, targets, weight, hidden, wants, more)
        ctx.made = made
        ctx.mark_non_differentiable(nats)
        return (nats * weight).sum(), nats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError("the gradients of this loss were handed out already; make the loss again.")
        return (None, None, None, None, *(one if one is None else one.mul_(grad.to(one.dtype)) for one in made))


def _by_autograd(
    head: Any, targets: Tensor, weight: Tensor, hidden: Tensor, wants: tuple[bool, ...], more: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """Nats, and gradients of `hidden` and of what else is trained, chunk by chunk, through whatever the head is."""
    nats = weight.new_empty(len(hidden))
    asked = [i for i, wanted in enumerate(wants) if wanted]
    made: list[Tensor | None] = [
        torch.zeros_like(one) if wanted else None for one, wanted in zip((hidden, *more), wants, strict=True)
    ]
    for at in chunks(hidden, head.module):
        with torch.enable_grad():
            some = hidden[at].detach().requires_grad_(wants[0])
            own = functional.cross_entropy(head(some).float(), targets[at], reduction="none")
            inputs = [(some, *more)[i] for i in asked]
            grads = torch.autograd.grad((own * weight[at]).sum(), inputs) if inputs else ()
        nats[at] = own.detach()
        for i, grad in zip(asked, grads, strict=True):
            whole = made[i]
            assert whole is not None
            (whole[at] if i == 0 else whole).add_(grad)
    return nats, made


def _by_hand(
    head: Any, targets: Tensor, weight: Tensor, hidden: Tensor, wants: tuple[bool, ...], more: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """The same where the head is a matrix: no copies of logits, sums kept in float32 at least.

    With z = W h + b, the gradient of nats is p - onehot(target) for z, where p = softmax(z) takes the place of z.
    """
    matrix, bias = more[0], more[1] if len(more) > 1 else None
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else matrix.dtype
    if processor.float32_is_faster(dtype, hidden.device):
        dtype = torch.float32
    nats = weight.new_empty(len(hidden))
    sizes = [at.stop - at.start for at in chunks(hidden, head.module)]
    with torch.autocast(device, enabled=False):
        w = matrix.to(dtype)
        full = torch.promote_types(dtype, torch.float32)  # of sums and of probabilities
        logits = hidden.new_empty(max(sizes, default=0), len(matrix), dtype=dtype)
        wide = logits if dtype == full else logits.new_empty(logits.shape, dtype=full)
        d_hidden = torch.empty_like(hidden) if wants[0] else None
        d_matrix = torch.zeros_like(matrix, dtype=full) if wants[1] and not sizes else None
        d_bias = torch.zeros_like(bias, dtype=full) if bias is not None and wants[2] else None
        for at, n in zip(chunks(hidden, head.module), sizes, strict=True):
            h, share = hidden[at].to(dtype), weight[at, None]
            z = torch.mm(h, w.t(), out=logits[:n])
            if bias is not None:
                z += bias.to(dtype)
            p = z if dtype == full else wide[:n].copy_(z)
            nats[at] = _softmax(p, targets[at], h, w, bias)
            if not any(wants):
                continue
            p[torch.arange(n, device=p.device), targets[at]] -= 1
            d = p if dtype == full else z.copy_(p)
            if d_hidden is not None:
                d_hidden[at] = torch.mm(d, w) * share
            if wants[1]:
                heavy = (h * share).to(dtype)
                if d_matrix is None:
                    d_matrix = torch.mm(d.t(), heavy).to(full)
                elif dtype == full:
                    d_matrix.addmm_(d.t(), heavy)
                else:
                    d_matrix += torch.mm(d.t(), heavy)
            if d_bias is not None:
                d_bias += weight[at].to(full) @ p
    made = [d_hidden, d_matrix if d_matrix is None else d_matrix.to(matrix.dtype)]
    if bias is not None:
        made.append(d_bias if d_bias is None else d_bias.to(bias.dtype))
    return nats, made


def _softmax(z: Tensor, targets: Tensor, h: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Puts softmax(z) in the place of logits z (n, vocabulary); the targets' nats (n,)."""
    at = targets[:, None]
    if z.device.type != "cpu":
        logs = functional.log_softmax(z, -1)
        nats = -logs.gather(1, at)[:, 0]
        torch.exp(logs, out=z)
        return nats
    # One reading and one writing of the chunk instead of two: log p is taken of p, where p is no longer near the
    # smallest number there is. A row fits into the cache, the chunk does not.
    torch.softmax(z, -1, out=z)
    p = z.gather(1, at)[:, 0]
    nats = -p.log()
    rare = (p < TINY).nonzero()[:, 0]
    if len(rare):
        again = functional.linear(h[rare], w, None if bias is None else bias.to(w.dtype)).float()
        nats[rare] = functional.cross_entropy(again, targets[rare], reduction="none")
    return nats
