"""Which model it is that was evaluated, so that a score can be traced to weights.

In:  a loaded model and what was asked.  Out: a name, a fingerprint, and what is told of how it was trained.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from unmask import report
from unmask.adapter_folder import WEIGHTS, base_of
from unmask.adapter_folder import fingerprint as fingerprint_of_weights
from unmask.harness.arguments import Asked


def fingerprint(asked: Asked) -> str | None:
    """Of the weights: the same for the same values, wherever they lie; with an adapter of both together. None for a
    model of the hub that is not on this machine as a folder."""
    folder = Path(str(asked.model.model))
    if not folder.is_dir():
        return None
    worn = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not worn:
        return fingerprint_of_weights(folder)
    base = asked.model.base_model_path or base_of(folder)
    made = hashlib.sha256(str(fingerprint_of_weights(base) if Path(base).is_dir() else base).encode())
    for path in worn:
        made.update(path.read_bytes())
    return made.hexdigest()[:16]


def instruct(asked: Asked) -> bool | None:
    """Whether it was tuned on instructions, as far as its run or its name tells; None where nothing does."""
    folder = Path(str(asked.model.model))
    for place in (folder, folder.parent):
        if (place / report.MANIFEST).is_file():
            told = json.loads((place / report.MANIFEST).read_text(encoding="utf-8"))
            return bool(told.get("command") == "sft")
    return True if re.search(r"instruct|chat|sft", folder.name.lower()) else None


def described(asked: Asked, loaded: Any) -> dict[str, Any]:
    """Which model it is, for the results."""
    model = loaded.model
    return {
        "name": asked.model.model,
        "fingerprint": fingerprint(asked),
        "family": loaded.family.name,
        "objective": "autoregressive" if loaded.causal else "masked",
        "adapter": loaded.adapter,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
        "model_type": model.config.model_type,
    }
