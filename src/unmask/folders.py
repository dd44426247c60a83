"""A run's folder: what may be written there, and how to go on with what is there.

In:  the folder, what the user asked for.  Out: nothing, or one line that says what to type instead.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from unmask import checkpoint, report
from unmask.config import UserError


def holds_run(folder: Path) -> bool:
    return any(p.exists() for p in (folder / report.MANIFEST, folder / checkpoint.FINAL, *checkpoint.numbered(folder)))


def check_folder(folder: Path, resume: str | None, overwrite: bool) -> None:
    """UserError when the folder holds a run and the user did not say what to do with it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; name a folder.")
    if resume and overwrite:
        raise UserError("--resume_from_checkpoint and --overwrite_output_dir contradict each other; keep one.")
    if holds_run(folder) and not resume and not overwrite:
        raise UserError(
            f"{folder} already holds a run; type --resume_from_checkpoint auto to go on with it, or "
            "--overwrite_output_dir to delete it and start anew."
        )
    parent = folder if folder.exists() else next(p for p in folder.absolute().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"cannot write to {parent}; name another --output_dir.")


def clear(folder: Path) -> None:
    """Delete what a run left in its folder, and nothing else."""
    inner = (checkpoint.FINAL, report.TENSORBOARD, report.DIVERGENCE)
    for path in [*checkpoint.numbered(folder), *(folder / name for name in inner)]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (report.METRICS, report.SAMPLES, report.CURVE, report.MANIFEST, report.TRACKERS):
        (folder / name).unlink(missing_ok=True)


def check_branch(folder: Path, resume: Path) -> None:
    """UserError when going on from a checkpoint would overwrite another run, or later steps of this one."""
    if resume.parent.resolve() != folder.resolve():
        if holds_run(folder):
            raise UserError(f"{folder} holds a run of its own, and {resume} is another's; name a new --output_dir.")
        return
    later = [p for p in checkpoint.numbered(folder) if checkpoint.step_of(p) > checkpoint.step_of(resume)]
    whole = checkpoint.newest_whole(later)
    if whole is not None:
        raise UserError(
            f"{whole.name} is later than {resume.name} and would be overwritten; go on with "
            "--resume_from_checkpoint auto, or name a new --output_dir to branch off."
        )


def check_same_run(folder: Path, manifest: dict[str, Any]) -> None:
    """UserError when the folder's run differs from this one in what makes its curve."""
    path = folder / report.MANIFEST
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8")).get("identity", {})
    now = manifest["identity"]
    other = [f"{key} {before.get(key)!r} there, {now[key]!r} here" for key in now if before.get(key) != now[key]]
    if other:
        raise UserError(
            f"{folder} belongs to another run: {'; '.join(other)}. Give the same settings to go on with it, or another "
            "--output_dir."
        )


def resume_command(command: str, overwrites: bool = False) -> str:
    """The command that goes on with a run, from the one that began it. `overwrites`: its settings say to start anew."""
    words: list[str] = []
    drop = False
    for word in shlex.split(command):
        flag = word.replace("-", "_").split("=")[0]
        if flag in ("__overwrite_output_dir", "__resume_from_checkpoint"):
            drop = "=" not in word
        elif drop and not word.startswith("--"):
            drop = False
        else:
            drop = False
            words.append(word)
    words += ["--overwrite_output_dir", "false"] if overwrites and "--config" in command else []
    return shlex.join([*words, "--resume_from_checkpoint", "auto"])
