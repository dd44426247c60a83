"""Data sets on the disk: in which way they lie there, and what is in them.

In:  the folder of one data set, a file, or one of the files that MBPP's, GSM8K's and HumanEval's authors give out.
Out: split → `datasets.Dataset`; the digest of what was read.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.config import UserError

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLIT_FILE = re.compile(
    r"(?i)(?P<stem>(.*[-_.])?(?P<split>train|training|validation|valid|val|dev|test|testing))"
    r"([-_.]\d+(-of-\d+)?)?(\.jsonl|\.json|\.csv|\.parquet)(\.gz)?"
)
CANONICAL = {"training": "train", "testing": "test", "valid": "validation", "val": "validation"}
"""A split's other spellings → the one that tasks use."""

OFFICIAL = {
    "openai/gsm8k": ("main", {"question", "answer"}),
    "google-research-datasets/mbpp": (
        "full",
        {"task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"},
    ),
    "openai/openai_humaneval": (None, {"task_id", "prompt", "entry_point", "canonical_solution", "test"}),
}
"""Data set → the hub's configuration, and the columns of the file that its authors give out."""

MBPP = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
"""Split → task_id, as the authors' README divides mbpp.jsonl."""


# ---------------------------------------------------------------------------------------------------------------------
# How they lie there


def layout(folder: Path) -> str | None:
    """How a data set lies in its folder: disk (save_to_disk), hub (a clone with a card), files (named by split)."""
    if not folder.is_dir():
        return None
    if (folder / "dataset_dict.json").is_file():
        return "disk"
    card = folder / "README.md"
    if card.is_file() and re.match(r"---\s*\n(.*\n)*?configs:", card.read_text("utf-8", errors="replace")[:100_000]):
        return "hub"
    return "files" if any(_named_by_split(folder)) or any(_named_by_split(folder / "data")) else None


def _named_by_split(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = SPLIT_FILE.fullmatch(file.name)
        if match and file.is_file() and not file.name.startswith("."):
            yield file, match


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Split → its files, where their names say it.

    Raises:
        UserError: several files for a split that are not numbered parts of one.
    """
    found: dict[str, list[Path]] = {}
    stems: dict[str, str] = {}
    for file, match in _named_by_split(folder):
        split, stem = canonical(match), match["stem"] + kind_of(file)
        if stems.setdefault(split, stem) != stem:
            raise UserError(f"{folder} has two files for the split {split}: {found[split][0].name} and {file.name}.")
        found.setdefault(split, []).append(file)
    return found


def canonical(match: re.Match[str]) -> str:
    """The split of a SPLIT_FILE under the name that tasks use."""
    split = match["split"].lower()
    return CANONICAL.get(split, split)


def kind_of(file: Path) -> str:
    """The reader of `datasets` for a file, "" for a file that is no data."""
    return KINDS.get(Path(file.name.lower().removesuffix(".gz")).suffix, "")


def recognised(file: Path) -> tuple[str, str]:
    """(data set, split or "" for all) of an official file, told by its first row; ("", "") for any other."""
    if not file.name.lower().endswith((".jsonl", ".jsonl.gz")) or not file.is_file():
        return "", ""
    try:
        with (gzip.open if file.name.endswith(".gz") else open)(file, "rt", encoding="utf-8") as lines:
            row = json.loads(next(iter(lines), ""))
    except (ValueError, OSError):  # not JSON, not text, not packed: none of these files; whoever asks for it says so
        return "", ""
    columns = set(row) if isinstance(row, dict) else set()
    name = next((name for name, (_, wanted) in OFFICIAL.items() if columns == wanted), "")
    if name != "openai/gsm8k":
        return name, ""
    split = file.name.partition(".")[0]
    return (name, split) if split in ("train", "test") and "####" in str(row["answer"]) else ("", "")


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def open_folder(folder: Path, config: str | None, inside: dict[str, Any]) -> Mapping[str, Any]:
    """A folder of any `layout`.

    Args:
        config: which configuration, where the folder has a card that lists several.
        inside: data_dir, data_files: what a task wants of the folder; `datasets` then finds its own way.

    Raises:
        UserError: it cannot be read.
    """
    import datasets
    from datasets.load import load_dataset

    from unmask.sources import READ_ERRORS, one_line

    how = layout(folder)
    if how == "files" and not inside:
        return read_files(split_files(folder) or split_files(folder / "data"))
    try:
        if how == "disk":
            return datasets.load_from_disk(str(folder))
        return load_dataset(str(folder), config, **inside)
    except (*READ_ERRORS, RuntimeError) as error:  # RuntimeError for a folder that is a script (datasets 5.2)
        raise UserError(f"--local_data: cannot read {folder}: {one_line(error)}.") from None


def read_files(files: Mapping[str, Sequence[Path]]) -> Mapping[str, Any]:
    """Data files by split, each with the reader of `datasets` for its kind, which guesses the columns' types.

    Raises:
        UserError: a file that cannot be read, or is of no kind in KINDS.
    """
    from datasets.load import load_dataset  # not `datasets.load_dataset`, which local.active binds anew

    from unmask.sources import READ_ERRORS, one_line

    found = {}
    for split, some in files.items():
        kind = kind_of(some[0])
        if not kind:
            raise UserError(f"--local_data: {some[0]} is no data file; expected {', '.join(KINDS)}.")
        # Escaped and absolute: `datasets` takes every path for a pattern.
        patterns = [glob.escape(str(one.absolute())) for one in some]
        try:
            found[split] = load_dataset(kind, data_files={split: patterns})[split]
        except READ_ERRORS as error:
            raise UserError(f"--local_data: cannot read {', '.join(map(str, some))}: {one_line(error)}.") from None
    return found


def read_official(name: str, files: Mapping[str, Path]) -> Mapping[str, Any]:
    """One of OFFICIAL from its files, in the hub's splits. files: split ("" for all) → file."""
    if name != "google-research-datasets/mbpp":
        return read_files({split or "test": [file] for split, file in files.items()})
    rows = read_files({"test": [files[""]]})["test"]
    rows = rows.select(sorted(range(len(rows)), key=rows["task_id"][:].__getitem__))  # the hub's order
    numbers = rows["task_id"][:]
    return {split: rows.select([i for i, n in enumerate(numbers) if n in some]) for split, some in MBPP.items()}


def digest(sources: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, or of a folder, that of the list of all files' names and digests."""
    files = [(one, one.name) for one in sources if one.is_file()]
    for folder in sources:
        inner = sorted(one for one in folder.rglob("*") if one.is_file()) if folder.is_dir() else []
        files += [(one, one.relative_to(folder).as_posix()) for one in inner]
    each = []
    for file, name in files:
        with file.open("rb") as stream:
            each.append((name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return each[0][1] if len(each) == 1 else hashlib.sha256(json.dumps(each).encode()).hexdigest()
