"""Large pieces of memory, kept from step to step on a CPU.

In:  a name, a shape.  Out: an empty tensor, in the memory that it had a step ago.

glibc gives out whatever fits of what was given back, and so would break such pieces up for smaller ones: a step of the
tutorial's model held 0.8 GB that nothing used (docs/log.md, 2026-11-30). The allocator of a GPU knows better.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SCRATCH = "scratch"  # logits, which the loss is done with when the table's gradient takes their place
LEAST = 16 << 20  # bytes, below which a piece is nobody's trouble
USES: Any = getattr(torch._C, "_storage_Use_Count", None)  # torch 2.13 has it; without it nothing is kept

_storages: dict[str, torch.UntypedStorage] = {}


def empty(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`; for each name the memory of the last one, if that is over.

    A piece that somebody still holds, as an optimiser that is not done holds a gradient, stays theirs.
    """
    made = torch.empty(0, dtype=dtype, device=device)
    size = math.prod(shape) * made.element_size()
    if device.type != "cpu" or size < LEAST or USES is None or type(made) is not Tensor:
        return torch.empty(shape, dtype=dtype, device=device)
    storage = _storages.get(name)
    if storage is None or storage.nbytes() < size or USES(storage._cdata) > 1:
        storage = None
        _storages.pop(name, None)  # first, so that both are not there at once
        storage = _storages[name] = torch.UntypedStorage(size)
    return made.set_(storage, 0, shape)  # type: ignore[call-overload]
