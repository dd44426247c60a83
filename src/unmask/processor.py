"""How fast this machine multiplies, measured and not looked up.

In:  a kind of number.  Out: operations a second.

A processor that knows bfloat16 need not be faster with it: a Zen 4 makes twice as many products a second as in float32,
a Sapphire Rapids whose AMX is hidden from a virtual machine half as many (docs/log.md, 2026-11-30).
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

SIDE = 1024  # of the matrices: 2 GFLOP a product, some 10 ms on two cores
WIDE_SIDE = 8192  # the same for a GPU, which smaller ones do not fill
CLEARLY = 1.3  # times faster, before it is believed: two runs on one machine should choose the same


@functools.cache
def rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations a second in products of matrices on all the threads torch has; measured once in a process, 0.1 s."""
    side = SIDE if device == "cpu" else WIDE_SIDE
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    wait = getattr(torch, device).synchronize if device != "cpu" else (lambda: None)
    seconds = []
    with torch.autocast(device, enabled=False), torch.no_grad():  # else autocast would make both the same
        torch.mm(a, b)
        for _ in range(5):
            wait()
            began = time.perf_counter()
            torch.mm(a, b)
            wait()
            seconds.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(seconds)


def here(device: str, bfloat16: bool) -> float | None:
    """The rate of a kind of device, if there is one here."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device != "cpu" and (there is None or there.type != torch.device(device).type):
        return None
    return rate(torch.bfloat16 if bfloat16 else torch.float32, device)


def float32_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in float32, which are also more exact, are clearly faster here than in a narrower kind."""
    if device.type != "cpu" or torch.finfo(dtype).bits >= 32:
        return False
    return rate(torch.float32) > CLEARLY * rate(dtype)


Product = Callable[..., Tensor]
"""(a, b, room where a product may be put) → a @ b."""


def products(device: torch.device, dtype: torch.dtype) -> Product:
    """The fastest way here to multiply a few hundred rows by a wide matrix.

    On a CPU torch 2.13 leaves float32 to MKL, which on an AMD Zen 4 makes 130 to 180 billion operations a second of
    such products; oneDNN makes 200 of them. Both are exact to float32.
    """
    return _by_onednn if device.type == "cpu" and dtype == torch.float32 and onednn_is_faster() else by_mm


BETTER = 1.1  # times, before it is taken


def by_mm(a: Tensor, b: Tensor, room: Tensor | None = None) -> Tensor:
    return torch.mm(a, b) if room is None else torch.mm(a, b, out=room)


def _by_onednn(a: Tensor, b: Tensor, room: Tensor | None = None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")  # what inductor calls for linear
    return made  # it takes no room


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN is the faster one for float32; measured once in a process, 0.1 s.

    The best of six in turn are compared, since whatever else the machine does slows both: two runs should choose alike.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    a, b = torch.ones(256, 448), torch.ones(16384, 448).t()
    best: dict[Product, float] = {}
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        for _ in range(6):
            for way in (by_mm, _by_onednn):
                began = time.perf_counter()
                way(a, b)
                best[way] = min(best.get(way, math.inf), time.perf_counter() - began)
    return best[by_mm] > BETTER * best[_by_onednn]
