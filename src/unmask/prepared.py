"""What training gets of its data, and what `unmask prepare` leaves beside it on the disk.

In:  a folder of tokens.
Out: `Rows`; the note in the folder, `prepared.json`: which tokenizer, template and settings made the tokens; one line
     where that does not go with the model at hand.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.values import UserError

if TYPE_CHECKING:
    import datasets

NOTE = "prepared.json"


@dataclasses.dataclass
class Rows:
    """Rows of tokens to train on and to validate on.

    tokenised_before: the data came as tokens. documents: how many rows there were before; None for a stream.
    dropped: how many of these were left out, by reason.
    """

    train: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset | datasets.IterableDataset | None
    remarks: list[str]
    tokenised_before: bool
    documents: dict[str, int | None] = dataclasses.field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


@contextmanager
def in_the(name: str) -> Iterator[None]:
    """Errors about validation rows say so."""
    try:
        yield
    except UserError as error:
        raise UserError(f"in the validation rows: {error}" if name == "test" else str(error)) from None


def folder_of(source: Path) -> Path | None:
    """The folder with the note about tokens in `source`: itself, or the one it is a split of; None: no note."""
    return next((folder for folder in (source, source.parent) if (folder / NOTE).is_file()), None)


def read(folder: Path) -> dict[str, Any]:
    """A folder's note; UserError when it cannot be read or lacks what every note has."""
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        for key in (note["tokenizer"], note["tokenizer_fingerprint"], note["settings"]["max_length"]):
            if key is None:
                raise ValueError("a value is missing")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {folder / NOTE}: {error!r}. Prepare the data again.") from None
    return note


def check(source: Path, tokenizer: Any, max_length: int, task: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The note about the tokens in `source`, if there is one, and remarks about them.

    Raises:
        UserError: tokens that another tokenizer made, or for another task.
    """
    from unmask.encode import tokenizer_fingerprint

    folder = folder_of(source)
    if folder is None:
        return None, [f"{source} holds tokens; nothing tells which tokenizer made them (`unmask prepare` would)"]
    note = read(folder)
    mine = getattr(tokenizer, "name_or_path", "") or "this model"
    again = f"unmask prepare {task} --model_name_or_path {mine} --dataset_args … --output_dir …"
    if note["tokenizer_fingerprint"] != tokenizer_fingerprint(tokenizer, special=False):
        raise UserError(
            f"{folder} was made with the tokenizer of {note['tokenizer']}, and that of {mine} is another. Prepare the "
            f"data again: {again}"
        )
    made_for = note.get("task", "pretrain")
    if made_for != task:
        raise UserError(f"{folder} was prepared for `unmask {made_for}`; for this: {again}")
    length = note["settings"]["max_length"]
    return note, [f"{folder} was made with --max_length {length}, which stays"] if length < max_length else []
