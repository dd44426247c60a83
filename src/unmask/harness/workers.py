"""Several processes that share the questions.

In:  what `accelerate launch` or torchrun put into the environment.  Out: which process this is, of how many.
"""

from __future__ import annotations

import os
from typing import Any


def several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _state() -> Any:
    """The processes, connected. Without a GPU by gloo: accelerate asks for CUDA's library otherwise."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def processes() -> tuple[int, int]:
    """(this process's number, how many there are); (0, 1) alone."""
    if not several():
        return 0, 1
    state = _state()
    return int(state.process_index), int(state.num_processes)


def local() -> int:
    """This process's number on its machine."""
    return int(_state().local_process_index)
