"""Checkpoints: ordinary folders of a model, with what a run needs to go on.

In:  a run's folder.  Out: the checkpoint to go on from, or one clear line why there is none.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import ids
from unmask.config import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE, OPTIMIZER, STREAM = "trainer_state.json", "optimizer.pt", "stream.json"
FINAL = "checkpoint-final"


def numbered(run: Path) -> list[Path]:
    """checkpoint-N folders of a run, the newest (largest N) first."""
    found = [p for p in run.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: -step_of(p))


def stream_state(checkpoint: str | None) -> dict[str, Any] | None:
    """Where a stream of rows stood when a checkpoint was saved; None where that is not known."""
    path = Path(checkpoint or "") / STREAM
    found: dict[str, Any] | None = (
        json.loads(path.read_text(encoding="utf-8")) if checkpoint and path.is_file() else None
    )
    return found


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed, or None if it can."""
    if not (checkpoint / STATE).is_file():
        return f"it has no {STATE}"
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return f"its {STATE} is cut short"
    if not {"global_step", "max_steps", "log_history"} <= state.keys():
        return f"its {STATE} is not one of the Trainer's"
    shards = sorted(checkpoint.glob("*.safetensors"))
    if not shards and not any(checkpoint.glob("pytorch_model*")) and not (checkpoint / "pytorch_model_fsdp_0").exists():
        return "it has no weights"
    for shard in shards:
        problem = truncated(shard)
        if problem:
            return problem
    sharded = any(checkpoint.glob("global_step*")) or any(checkpoint.glob("optimizer_*"))
    if not (checkpoint / OPTIMIZER).is_file() and not sharded:
        return "it was saved with save_only_model, without the optimiser"
    if not sharded and not (checkpoint / "scheduler.pt").is_file():
        return "it has no scheduler.pt"
    for path in (checkpoint / OPTIMIZER, checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")):
        if path.is_file() and not zipfile.is_zipfile(path):  # torch.save writes zip files
            return f"its {path.name} is cut short"
    return None


def keep(run: Path, limit: int, best: str | None) -> None:
    """Delete the oldest numbered checkpoints of a run beyond `limit`, never the best one."""
    for old in numbered(run)[limit:]:
        if best is None or old.resolve() != Path(best).resolve():
            shutil.rmtree(old, ignore_errors=True)


def truncated(shard: Path) -> str | None:
    """Whether a safetensors file is shorter than its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"its {shard.name} is cut short or damaged ({error})"


def to_resume(run: Path, asked: str) -> tuple[Path, list[str]]:
    """The checkpoint to go on from, and remarks about those passed over.

    Args:
        asked: `auto` for the newest whole checkpoint of the run, or a checkpoint's path.
    """
    remarks: list[str] = []
    if asked.lower() not in ("auto", "true", "last", "latest"):
        path = Path(asked)
        if not path.is_dir():
            there = ", ".join(p.name for p in numbered(run)) or "none"
            raise UserError(
                f"no checkpoint {asked!r}; {run} has: {there}. `--resume_from_checkpoint auto` takes the newest."
            )
        problem = fault(path)
        if problem:
            raise UserError(f"cannot go on from {asked}: {problem}.")
        return path, remarks
    for path in numbered(run):
        problem = fault(path)
        if problem is None:
            return path, remarks
        remarks.append(f"passed over {path.name}: {problem}.")
    why = f" ({remarks[0]})" if remarks else ""
    raise UserError(f"no checkpoint to go on from in {run}{why}; --overwrite_output_dir starts anew.")


def fits(checkpoint: Path, model: PreTrainedModel) -> None:
    """UserError when a checkpoint's tensors have other names or shapes than the model's."""
    from safetensors import safe_open

    from unmask.models import official_shapes

    wanted = official_shapes(model)
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                shape = list(file.get_slice(name).get_shape())
                if name not in wanted:
                    raise UserError(f"{checkpoint} belongs to another model: this one has no tensor {name}.")
                if shape != wanted[name]:
                    raise UserError(
                        f"{checkpoint} belongs to another model: {name} has shape {shape} there, {wanted[name]} here."
                    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, **how: Any) -> None:
    """A model folder: weights under the official names, config, tokenizer. Written aside, then renamed."""
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    with all_or_nothing(aside):
        model.save_pretrained(aside, **how)
        tokenizer.save_pretrained(aside)
        ids.portable(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[None]:
    """Writes into a folder that does not stay when something goes wrong; a full disk is told in one line."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if disk_full(error):
            raise UserError(
                f"no space left on the disk of {folder.parent}: the checkpoint was not written, its part was removed. "
                "Free some space, then go on with --resume_from_checkpoint auto."
            ) from None
        raise


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota (torch and safetensors wrap the number in text)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in str(error) or "PytorchStreamWriter failed" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
