"""How fast this machine multiplies, measured and not looked up.

In:  a kind of number.  Out: operations a second.

A processor that knows bfloat16 need not be faster with it: a Zen 4 makes twice as many products a second as in float32,
a Sapphire Rapids whose AMX is hidden from a virtual machine half as many (docs/log.md, 2026-11-24).
"""

from __future__ import annotations

import functools
import statistics
import time

import torch

SIDE = 1024  # of the matrices: 2 GFLOP a product, some 10 ms on two cores
CLEARLY = 1.3  # times faster, before it is believed: two runs on one machine should choose the same


@functools.cache
def rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations a second in products of matrices on all the threads torch has; measured once in a process, 0.1 s."""
    a, b = (torch.ones(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
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
    return 2 * SIDE**3 / statistics.median(seconds)


def float32_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in float32, which are also more exact, are clearly faster here than in a narrower kind."""
    if device.type != "cpu" or torch.finfo(dtype).bits >= 32:
        return False
    return rate(torch.float32) > CLEARLY * rate(dtype)
