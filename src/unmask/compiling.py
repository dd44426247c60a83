"""`torch.compile` for training: the blocks that a network repeats, each by itself.

In:  keys of `transformers.TrainingArguments`, a model.  Out: the same model, whose layers are compiled when first run.
"""

from __future__ import annotations

from typing import Any

import torch

from unmask import attention
from unmask.config import UserError

KEYS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")


def asked(more: dict[str, Any], device: str) -> dict[str, Any] | None:
    """How `torch.compile` is asked for; None where it is not. UserError where it cannot work."""
    on, backend, mode = (more.get(key) for key in KEYS)
    if not (on or backend or mode):
        return None
    backend = backend or "inductor"
    if backend not in torch.compiler.list_backends(()):
        known = ", ".join(torch.compiler.list_backends())
        raise UserError(f"--torch_compile_backend {backend}: there is {known}.")
    if backend == "inductor" and device == "cpu":
        from torch._inductor import cpp_builder, exc  # takes a second to load

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise UserError("--torch_compile needs a C++ compiler on a CPU; install g++, or leave it out.") from None
    return {"backend": backend, "mode": mode}


def layers(model: Any, how: dict[str, Any]) -> None:
    """Compile the blocks that a network repeats, each in its place, so that names and hooks stay.

    Not the whole: the loss is made where the head stands, with another number of places in each batch.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    if not found:
        raise UserError(f"--torch_compile: {type(model).__name__} does not say which layers it repeats; leave it out.")
    attention.for_compiling()
    for layer in found:
        layer.compile(**how)
