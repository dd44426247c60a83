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
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from unmask import kept, processor
from unmask.predict import Head

# Bytes of logits at once, of float32 ones on a GPU, which needs more places for its products to fill it. On a CPU they
# lie where the table's gradient comes later, which for the tutorial's model is as large.
CHUNK = {"cpu": 224 << 20, "other": 512 << 20}
LARGE = 1 << 22  # numbers in a head, below which no way to multiply is looked for
WORDS = 1 << 14  # of the vocabulary, whose logits a CPU makes at once
CACHED = 8 << 20  # bytes of float32 logits that a processor's cache holds while they become gradients
TINY = 1e-30  # of a probability: below it, it is told from its logit
SCALE: ContextVar[Tensor | float] = ContextVar("SCALE", default=1.0)  # of the loss; see `scaled`
PLAIN: tuple[type, ...] = (Tensor, nn.Parameter)  # kinds of weights that are just numbers


def weighted(hidden: Tensor, head: Head, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Σ weight · nats, a scalar with gradient; nats (n,), without.

    Args:
        hidden: (n, width). targets: (n,) token ids. weight: (n,), float32, which is no function of the model.

    The gradients are made at once and scaled in the backward pass, which can therefore run once only.
    """
    module, plain = _module(head), linear(head)
    if plain is not None:
        more = [plain.weight] if plain.bias is None else [plain.weight, plain.bias]
        if not torch.is_grad_enabled():
            nats, _ = _by_hand(head, targets, weight.float(), hidden, (False,) * (1 + len(more)), tuple(more))
            return (nats * weight).sum(), nats
    elif module is None or not torch.is_grad_enabled():
        nats = cross_entropy(hidden, head, targets)
        return (nats * weight).sum(), nats.detach()
    else:
        more = [p for p in module.parameters() if p.requires_grad]
    total, nats = _Weighted.apply(head, plain is not None, targets, weight.float(), hidden, *more)
    return total, nats


@contextmanager
def scaled(by: Tensor | float) -> Iterator[None]:
    """Inside, losses are made of which the caller takes `by` times as much: their gradients are made as large at once.

    It spares a pass over the head's gradient. A backward pass with another factor is right as well.
    """
    token = SCALE.set(by)
    try:
        yield
    finally:
        SCALE.reset(token)


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
    if own is nn.Linear.forward and isinstance(module, nn.Linear) and type(module.weight) in PLAIN:
        return module
    return None


def _module(head: Head) -> nn.Module | None:
    return getattr(head, "module", None)


def chunks(hidden: Tensor, module: nn.Module | None, dtype: torch.dtype = torch.float32) -> Iterator[slice]:
    """Slices of about as many places each, whose logits are at most CHUNK bytes.

    Args:
        dtype: of the logits, where no wider copy of a whole chunk is made: on a CPU.
    """
    n = len(hidden)
    vocabulary = getattr(module, "out_features", None) or 1 << 17  # a wrapper that does not say: LLaDA's size
    width = torch.finfo(dtype).bits // 8 if hidden.device.type == "cpu" else 4
    most = max(1, CHUNK.get(hidden.device.type, CHUNK["other"]) // (width * vocabulary))
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
        # On a CPU, where a pass over the gradient costs time; float16 may have no numbers as small.
        scale = SCALE.get() if weight.device.type == "cpu" else 1.0
        ctx.scale = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device)
        nats, ctx.made = make(head, targets, weight * ctx.scale, hidden, wants, more)
        ctx.mark_non_differentiable(nats)
        return (nats * weight).sum(), nats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError("the gradients of this loss were handed out already; make the loss again.")
        more = grad / ctx.scale
        if not _is_one(more):
            made = [one if one is None else one.mul_(more.to(one.dtype)) for one in made]
        return (None, None, None, None, *made)


def _is_one(number: Tensor) -> bool:
    return number.device.type == "cpu" and bool(number == 1)  # to ask a GPU would be to wait for it


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

    With z = W h + b, the gradient of nats is p - onehot(target) for z, where p = softmax(z) takes the place of z. On a
    CPU all of it goes by pieces of the vocabulary, whose logits are in the cache for one product after the other, and
    of which a copy in another precision takes little room.
    """
    matrix, bias = more[0], more[1] if len(more) > 1 else None
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else matrix.dtype
    if processor.float32_is_faster(dtype, hidden.device):
        dtype = torch.float32
    full = torch.promote_types(dtype, torch.float32)  # of sums and of probabilities
    words = [slice(None)]
    if device == "cpu":
        words = [slice(start, start + WORDS) for start in range(0, len(matrix), WORDS)]
    nats = weight.new_empty(len(hidden))
    with torch.autocast(device, enabled=False):
        small = matrix.numel() < LARGE
        times = processor.by_mm if small else processor.products(matrix.device, dtype)
        d_hidden = torch.empty_like(hidden) if wants[0] else None
        d_matrix = kept.empty("gradient", matrix.shape, full, matrix.device) if wants[1] else None
        d_bias = torch.zeros_like(bias, dtype=full) if bias is not None and wants[2] else None
        parts = list(chunks(hidden, head.module, dtype))
        room = None
        if times is processor.by_mm:
            most = max((at.stop - at.start for at in parts), default=0)
            room = kept.empty(kept.SCRATCH, (most * len(matrix),), dtype, matrix.device)
        first = True
        for at in parts:
            h, share = hidden[at].to(dtype), weight[at, None]
            heavy = (h * share).to(dtype)
            z: list[Tensor] = []
            for some in words:
                w, start = matrix[some].to(dtype), len(h) * (some.start or 0)
                here = room if room is None else room[start : start + len(h) * len(w)].view(len(h), len(w))
                z.append(times(h, w.t(), here))
                if bias is not None:
                    z[-1] += bias[some].to(dtype)
            nats[at] = _logits_to_gradients(z, targets[at], weight[at], hidden[at], more, d_bias, any(wants))
            d_h = None
            for some, d in zip(words, z, strict=True):
                if d_hidden is not None:
                    share_of_h = times(d, matrix[some].to(dtype)).to(full)
                    d_h = share_of_h if d_h is None else d_h.add_(share_of_h)
                if d_matrix is not None:
                    rows = d_matrix[some]
                    if dtype == full:
                        torch.addmm(rows, d.t(), heavy, beta=0 if first else 1, out=rows)
                    else:
                        product = torch.mm(d.t(), heavy)
                        rows.copy_(product) if first else rows.add_(product)
            if d_hidden is not None and d_h is not None:
                d_hidden[at] = d_h * share
            first = False
        if first and d_matrix is not None:
            d_matrix.zero_()  # there were no places
    made = [d_hidden, d_matrix if d_matrix is None else d_matrix.to(matrix.dtype)]
    if bias is not None:
        made.append(d_bias if d_bias is None else d_bias.to(bias.dtype))
    return nats, made


def _logits_to_gradients(
    z: list[Tensor],
    targets: Tensor,
    weight: Tensor,
    hidden: Tensor,
    more: tuple[Tensor, ...],
    d_bias: Tensor | None,
    gradients: bool,
) -> Tensor:
    """Puts softmax(z) - onehot(target) in the place of the logits z, (n, words) each; the targets' nats (n,).

    A few places at a time on a CPU: they stay in its cache, while they are read and written several times.
    """
    n, sizes, dtype = len(targets), [one.shape[1] for one in z], torch.promote_types(z[0].dtype, torch.float32)
    rows = max(1, CACHED // (4 * sum(sizes))) if z[0].device.type == "cpu" else max(1, n)
    in_place = len(z) == 1 and z[0].dtype == dtype
    room = z[0] if in_place else z[0].new_empty(min(rows, n), sum(sizes), dtype=dtype)
    found = []
    for start in range(0, n, rows):
        at = slice(start, min(start + rows, n))
        p = room[at] if in_place else room[: at.stop - at.start]
        parts = p.split(sizes, 1)
        if not in_place:
            for part, one in zip(parts, z, strict=True):
                part.copy_(one[at])
        found.append(_softmax(p, targets[at], hidden[at], more))
        if not gradients:
            continue
        p[torch.arange(len(p), device=p.device), targets[at]] -= 1
        if d_bias is not None:
            d_bias += weight[at].to(dtype) @ p
        if not in_place:
            for part, one in zip(parts, z, strict=True):
                one[at].copy_(part)
    return torch.cat(found) if found else z[0].new_empty(0, dtype=dtype)


def _softmax(z: Tensor, targets: Tensor, hidden: Tensor, more: tuple[Tensor, ...]) -> Tensor:
    """Puts softmax(z) in the place of logits z (n, vocabulary); the targets' nats (n,)."""
    at = targets[:, None]
    if z.device.type != "cpu":
        logs = functional.log_softmax(z, -1)
        nats = -logs.gather(1, at)[:, 0]
        torch.exp(logs, out=z)
        return nats
    # One reading and one writing instead of two: log p is taken of p, where p is no longer near the smallest number
    # there is.
    torch.softmax(z, -1, out=z)
    p = z.gather(1, at)[:, 0]
    nats = -p.log()
    rare = _rare(p)
    if len(rare):
        again = functional.linear(hidden[rare].to(more[0].dtype), *more).float()
        nats[rare] = functional.cross_entropy(again, targets[rare], reduction="none").to(nats.dtype)
    return nats


def _rare(p: Tensor) -> Tensor:
    """Numbers of the places whose probability is too small to take its logarithm."""
    return (p < TINY).nonzero()[:, 0]
