"""From a name to rows: files, folders and hubs, opened with the readers of `datasets`.

In:  a part of a spec.  Out: a Source: its splits, each a `datasets.Dataset` or, for a stream, an `IterableDataset`.

`datasets` turns files into Arrow tables in its cache (HF_DATASETS_CACHE) once; `save_to_disk` folders are mapped into
memory where they lie. Streams are read as they come and leave nothing on the disk.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import fsspec
import pyarrow as pa
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.table import CastError

from unmask.config import UserError
from unmask.spec import TEST_NAMES, TRAIN_NAMES, Part, find, near

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
PACKED = (".gz", ".bz2", ".xz", ".zst")
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "config.json", "configuration.json"}
SAMPLE_BY = {"file": "document", "paragraph": "paragraph", "line": "line"}  # ours → that of datasets' reader of text
READ_ERRORS = (DatasetsError, pa.ArrowException, ValueError, OSError, EOFError, StopIteration)
"""What the readers raise for a file that they cannot read; StopIteration for one without a row (datasets 5.2, json)."""


@dataclass
class Source:
    """What a part's name stands for, before its options choose rows.

    path: the local file or folder. kind, files, options: what was read and how, for data files.
    """

    splits: Mapping[str, Rows]
    path: Path | None = None
    kind: str = ""
    files: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def lone(self) -> bool:
        """Whether all of it is one document: a txt file, as a whole."""
        return self.options.get("sample_by") == "document" and len(self.files) == 1


def open_part(part: Part, streaming: bool) -> Source:
    """Find what a part names and open it.

    A `save_to_disk` folder is opened as Datasets even for a stream: its length is known and costs nothing.

    Raises:
        UserError: nothing there, not readable, empty, not data, several kinds mixed, or an option that does not apply.
    """
    name = part.name
    if name.startswith("hf:"):
        return _library(name[3:], part, streaming)
    if name.startswith("ms:"):
        from unmask import hub

        path: Path | None = Path(hub.fetch(name[3:], source="modelscope", kind="dataset", local_dir=None))
    else:
        path = find(name)
    if path is None:
        pattern = os.path.expanduser(name)
        if re.search(r"[*?]", name) and (files := [Path(f) for f in sorted(glob.glob(pattern, recursive=True))]):
            return _files(part, {"train": [f for f in files if f.is_file()]}, streaming, files[0].parent)
        hint, mistyped = near(name)
        if _kind(name) or name.startswith(".") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise UserError(f"no file or folder {name!r}.{hint}")
        if mistyped:
            raise UserError(f"no file or folder {name!r}.{hint} A data set of that name on the hub is hf:{name}.")
        return _library(name, part, streaming, hint)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        _check_options(part, "is a folder written by save_to_disk")
        try:
            got = datasets.load_from_disk(str(path))
        except IndexError:  # datasets 5.2 writes no file for no rows, and then looks for one
            raise UserError(f"{part.name!r} is an empty data set: it has no rows.") from None
        except READ_ERRORS as error:
            raise UserError(f"cannot read {path}, a folder written by save_to_disk: {one_line(error)}.") from None
        return Source(got if isinstance(got, dict) else {"train": got}, path)
    if _has_card(path):
        return _library(str(path), part, streaming)
    return _files(part, _layout(path) if path.is_dir() else {"train": [path]}, streaming, path)


def _has_card(folder: Path) -> bool:
    """Whether a folder is a clone of a hub's repository whose README.md lists which file belongs where."""
    card = folder / "README.md"
    head = r"---\s*\n(.*\n)*?configs:"
    return card.is_file() and re.match(head, card.read_text("utf-8", errors="replace")[:100_000]) is not None


def _check_options(part: Part, what: str, *, configurations: bool = False, text: bool = False) -> None:
    """UserError for an option that would do nothing here."""
    if "name" in part.options and not configurations:
        raise UserError(f"dataset spec '{part}': name: is for data sets in several configurations, and here {what}.")
    if "by" in part.options and not text:
        raise UserError(f"dataset spec '{part}': by: is for txt files, and here {what}.")


def _library(name: str, part: Part, streaming: bool, hint: str = "") -> Source:
    """A data set in which `datasets` finds its own way: on the hub, or a folder with a card."""
    _check_options(part, "is a data set with a layout of its own", configurations=True)
    try:
        got = datasets.load_dataset(name, part.options.get("name"), streaming=streaming)
    except DatasetNotFoundError as error:
        why = f"no file or folder {name!r} here, and no such data set on the hub ({one_line(error)}).{hint}"
    except ConnectionError as error:
        why = f"no file or folder {name!r} here, and the hub does not answer ({one_line(error)}).{hint}"
        why += f" Where it is reachable, `unmask download {name} --dataset` fetches the files."
    except (*READ_ERRORS, RuntimeError) as error:  # RuntimeError for a repository that is a script (datasets 5.2)
        why = f"cannot load the data set {name!r}: {one_line(error)}. A configuration is chosen by {name}[name:…]."
    else:
        return Source(got, find(name))
    raise UserError(why)


def _kind(path: str | Path) -> str:
    """`a.jsonl.gz` → "json"; "" for what is no data file."""
    name = Path(path).name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return KINDS.get(Path(name).suffix, "")


def _layout(folder: Path) -> dict[str, list[Path]]:
    """The data files of a folder by split, sorted.

    The first step of a file's path inside the folder may tell the split: `test.jsonl`, `valid/a.txt`,
    `c4-train.00000.json.gz`, `data/validation-00000-of-00001.parquet`. All others are for training.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        steps = path.relative_to(folder).parts
        hidden = any(step.startswith((".", "__")) for step in steps)
        if hidden or path.name in NOT_DATA or not _kind(path) or not path.is_file():
            continue
        words = set(re.split(r"[-._ 0-9]+", steps[steps[0] == "data" and len(steps) > 1].lower()))
        split = None if words & set(TRAIN_NAMES) else next((n for n in TEST_NAMES if n in words), None)
        found.setdefault(split or "train", []).append(path)
    return found


def _files(part: Part, files: dict[str, list[Path]], streaming: bool, path: Path) -> Source:
    """Open data files, all of one kind, with the reader that `datasets` has for it."""
    every = [f for some in files.values() for f in some]
    kinds = {kind: [f.name for f in every if _kind(f) == kind] for kind in sorted({_kind(f) for f in every})}
    if not every or "" in kinds:
        what = "is no data file" if every else "holds no data files"
        raise UserError(
            f"{part.name!r} {what}. Data are {', '.join(KINDS)} (also {', '.join(PACKED)}), or save_to_disk."
        )
    if len(kinds) > 1:
        most = max(every, key=lambda f: f.stat().st_size)
        mix = "; ".join(f"{kind}: {', '.join(n[:3])}{', …' if len(n) > 3 else ''}" for kind, n in kinds.items())
        raise UserError(f"{part.name!r} mixes kinds of data ({mix}). Name one, e.g. {f'{part.name}/*{most.suffix}'!r}.")
    kind = next(iter(kinds))
    _check_options(part, f"are {kind} files", text=kind == "text")
    if not any(f.stat().st_size for f in every):
        raise UserError(f"{part.name!r} is empty (0 bytes).")
    if any(f.suffix == ".zst" for f in every) and not datasets.config.ZSTANDARD_AVAILABLE:
        raise UserError(f"{part.name!r} is packed as .zst, which needs a package: pip install zstandard")
    options: dict[str, Any] = {}
    if kind == "text":
        options = {"sample_by": SAMPLE_BY[part.options.get("by", "file")]}
    elif kind == "csv":
        options = _csv(every[0])
    source = Source({}, path, kind, [str(f) for f in every], options)
    # Escaped and absolute: `datasets` takes every path for a pattern.
    patterns = {split: [glob.escape(str(f.absolute())) for f in some] for split, some in files.items()}
    try:
        with _hushed():
            source.splits = datasets.load_dataset(kind, data_files=patterns, streaming=streaming, **options)
    except READ_ERRORS as error:
        raise unreadable(source, error) from None
    if options.get("sample_by") in ("paragraph", "line"):
        source.splits = {split: _without_blanks(rows) for split, rows in source.splits.items()}
    return source


def _csv(path: Path) -> dict[str, Any]:
    """Options that read every column as text: an empty cell is "", and `NA` or `007` stay what they are."""
    import pandas

    separator = "\t" if ".tsv" in path.suffixes else ","
    try:
        columns = pandas.read_csv(path, sep=separator, nrows=0).columns
    except READ_ERRORS as error:
        raise UserError(f"cannot read {path}: {one_line(error)}.") from None
    features = datasets.Features({str(column): datasets.Value("string") for column in columns})
    return {"sep": separator, "features": features, "keep_default_na": False, "na_filter": False}


def _has_words(texts: list[str]) -> list[bool]:
    return [bool(text.strip()) for text in texts]


def _without_blanks(rows: Rows) -> Rows:
    kept = rows.filter(_has_words, batched=True, input_columns="text")
    # A filtered Dataset reads through a table of indices: spared where nothing was blank.
    return rows if isinstance(rows, datasets.Dataset) and len(kept) == len(rows) else kept


# ---------------------------------------------------------------------------------------------------------------------
# What went wrong


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """No log lines of `datasets` about a file that we report ourselves."""
    before = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(before)


def _root(error: BaseException) -> BaseException:
    """What `datasets` wrapped."""
    while isinstance(error, DatasetsError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """The innermost reason of an exception, in one line without a full stop."""
    error = _root(error)
    return " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")


def unreadable(source: Source, error: BaseException) -> UserError:
    """Which file, and in json which line, cannot be read; found by reading each file again, alone."""
    for file in source.files:
        data = glob.escape(os.path.abspath(file))
        try:
            with _hushed():
                rows = datasets.load_dataset(
                    source.kind, data_files=data, split="train", streaming=True, **source.options
                )
                for _ in rows.iter(batch_size=1000):
                    pass
        except READ_ERRORS as found:
            where = _bad_line(file) if source.kind == "json" else file
            return UserError(f"cannot read {where}: {one_line(found)}.")
    some = ", ".join(source.files[:3]) + (", …" if len(source.files) > 3 else "")
    if isinstance(_root(error), CastError):
        return UserError(f"the files {some} have different columns; join them by name: 'a.jsonl + b.jsonl'.")
    return UserError(f"cannot read {some}: {one_line(error)}.")


def _bad_line(file: str) -> str:
    """`file, line 7` for the first line of a jsonl file that is not JSON; else the file's name."""
    with contextlib.suppress(*READ_ERRORS), fsspec.open(file, "rb", compression="infer") as lines:
        for at, line in enumerate(lines, 1):
            try:
                json.loads(line.strip() or b"0")
            except ValueError:
                return file if at == 1 and line.strip() in (b"[", b"{") else f"{file}, line {at}"
    return file
