"""Unmask: pretrain, fine-tune, sample from, evaluate and serve masked diffusion language models.

The public names load what they need when they are first used; importing the package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name → where it lives
PUBLIC = {
    "load": "unmask.models",
    "predictor": "unmask.models",
    "generate": "unmask.decoding",
    "unmask": "unmask.decoding",
    "Trainer": "unmask.trainer",
    "UserError": "unmask.config",
}
__all__ = [*PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
