"""Checkpoints: ordinary folders of a model, with what a run needs to go on.

In:  a run's folder.  Out: the checkpoint to go on from, or one clear line why there is none.

A checkpoint is written aside, gets a manifest with hashes, is flushed to the disk and then gets its name: a run that is
killed at any moment leaves whole checkpoints only.
"""

from __future__ import annotations

import errno
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import ids, sealed
from unmask.config import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE, OPTIMIZER, STREAM, GUARD = "trainer_state.json", "optimizer.pt", "stream.json", "guard.json"
FINAL = "checkpoint-final"


def numbered(run: Path) -> list[Path]:
    """checkpoint-N folders of a run, the newest (largest N) first."""
    found = [p for p in run.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: -step_of(p))


def noted(checkpoint: str | None, name: str) -> dict[str, Any] | None:
    """What a checkpoint says in a JSON file of ours, STREAM or GUARD; None where it has none."""
    path = Path(checkpoint or "") / name
    found: dict[str, Any] | None = (
        json.loads(path.read_text(encoding="utf-8")) if checkpoint and path.is_file() else None
    )
    return found


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def aside(run: Path, step: int) -> Path:
    """Where a checkpoint is written: a folder whose name the Trainer gives, in one that is not looked at."""
    return run / f".checkpoint-{step}.part" / f"checkpoint-{step}"


def finish(written: Path, about: dict[str, Any]) -> None:
    """What lies aside becomes a checkpoint of the run."""
    sealed.seal(written, about)
    sealed.publish(written, written.parents[1] / written.name)
    sealed.remove(written.parent)


def tidy(run: Path) -> None:
    """Delete what a run that was killed left half written."""
    for left in list(sealed.leftovers(run)):
        sealed.remove(left)


def engine_of(checkpoint: Path) -> dict[str, Any]:
    """What wrote a checkpoint's optimiser: {"engine", "processes"}; empty where nobody noted it."""
    return (sealed.read(checkpoint) or {}).get("training", {})


def check_engine(checkpoint: Path, engine: str, processes: int) -> None:
    """UserError where this engine cannot go on with a checkpoint's optimiser.

    Args:
        engine: plain, ddp, fsdp1, fsdp2 or zero1 to zero3. A plain optimiser is that of DDP; others have files of their
            own. DeepSpeed 0.19 reads its shards on as many processes as wrote them.
    """
    before = engine_of(checkpoint)
    theirs, many = before.get("engine"), before.get("processes")
    alike = ("plain", "ddp")
    if theirs is None or (theirs in alike and engine in alike):
        return
    start_anew = (
        f"Its weights can be read anywhere: --model_name_or_path {checkpoint} --from_scratch false begins a new run "
        "from them, with a fresh optimiser and another --output_dir."
    )
    if theirs != engine:
        raise UserError(
            f"the optimiser in {checkpoint} was saved by {theirs}, and this run uses {engine}. {start_anew}"
        )
    if engine.startswith("zero") and many != processes:
        raise UserError(
            f"DeepSpeed's optimiser in {checkpoint} was saved by {many} processes, and goes on with as many only; here "
            f"there are {processes}. {start_anew}"
        )


def fault(checkpoint: Path, hashes: bool = False) -> str | None:
    """Why a checkpoint cannot be resumed, or None if it can.

    Args:
        hashes: read every file and compare it with the manifest; else only sizes are looked at.
    """
    problem = sealed.fault(checkpoint, hashes)
    if problem is not None:
        return problem
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


def newest_whole(found: list[Path]) -> Path | None:
    """The first without a fault of checkpoints that stand the newest first; their hashes are not looked at."""
    return next((path for path in found if fault(path) is None), None)


def keep(run: Path, limit: int, best: str | None) -> None:
    """Delete the oldest numbered checkpoints of a run beyond `limit`; never the best one, never the last whole one."""
    found = numbered(run)
    spared = {Path(best).resolve()} if best else set()
    whole = newest_whole(found)
    spared |= {whole.resolve()} if whole else set()
    for old in found[limit:]:
        if old.resolve() not in spared:
            sealed.remove(old)


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
        problem = fault(path, hashes=True)
        if problem:
            raise UserError(f"cannot go on from {asked}: {problem}.")
        return path, remarks
    for path in numbered(run):
        problem = fault(path, hashes=True)
        if problem is None:
            return path, remarks
        remarks.append(f"passed over {path.name}: {problem}.")
    why = f" ({remarks[0]})" if remarks else ""
    raise UserError(f"no checkpoint to go on from in {run}{why}; --overwrite_output_dir starts anew.")


def owes_validation(checkpoint: Path) -> bool:
    """Whether a checkpoint's step was one of validation, and stopping there left it out."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    step, every = state["global_step"], state.get("eval_steps") or 0
    looked = any("eval_loss" in line and line["step"] == step for line in state["log_history"])
    return bool(every >= 1 and step % every == 0 and not looked)


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
    with replaced(folder) as part:
        model.save_pretrained(part, **how)
        tokenizer.save_pretrained(part)
        ids.portable(part)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """As `sealed.replaced`; what the disk is to blame for is told in one line."""
    try:
        with sealed.replaced(folder) as part:
            yield part
    except BaseException as error:
        line = why_not(error, folder.parent)
        if line is None:
            raise
        raise UserError(
            f"{line}: {folder.name} was not written, its part was removed. Mend that, then go on with "
            "--resume_from_checkpoint auto."
        ) from None


def why_not(error: BaseException, folder: Path) -> str | None:
    """Why something could not be written, if it is the disk's fault."""
    if disk_full(error):
        return f"no space left on the disk of {folder}"
    while not isinstance(error, OSError):
        if error.__cause__ is None and error.__context__ is None:
            return None
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"cannot write to {folder} ({error.strerror or error})"


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota (torch and safetensors wrap the number in text)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # torch.save (2.13) on a full tmpfs: "[enforce fail at inline_container.cc:672] . unexpected pos 38976 vs 38864"
        if any(words in str(error) for words in ("No space left", "PytorchStreamWriter failed", "unexpected pos")):
            return True
        error = error.__cause__ or error.__context__
    return False
