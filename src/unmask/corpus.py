"""Where text comes from.

In:  a dataset spec (`spec.py` has its grammar): `path[train:2000,test:200]`, `hub/name`, `ms:name`, `a + b`.
Out: a Corpus: training and test rows, each a `datasets.Dataset` or, for a stream, an `IterableDataset` of documents
     {"text"}, or of tokens where the data have a column `input_ids`; and remarks for the user.

Test rows are, in this order: those of a split of the data set's own (test, else validation); the rows after the
training rows, when the spec asks for test rows; a share of the training rows, held out. No row is ever in both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from unmask.config import UserError, nearest
from unmask.sources import READ_ERRORS, Rows, Source, open_part, unreadable
from unmask.spec import TEST_NAMES, Part
from unmask.spec import parse as parse

BATCH = 64  # rows of a stream read at once


@dataclass
class Corpus:
    """Rows to train on and rows to validate on. `sources`: the local files and folders that were read."""

    train: Rows
    test: Rows | None
    tokenised: bool
    remarks: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)


def load(
    spec: str,
    *,
    streaming: bool = False,
    text_field: str | None = "text",
    keep: Collection[str] = (),
    seed: int = 42,
    hold_out: float = 0.01,
    hold_out_most: int = 1000,
    need_test: bool = True,
) -> Corpus:
    """Open the data that a spec names.

    Args:
        streaming: give IterableDatasets: the same rows in the same order, read as they come.
        text_field: the column with the text, the only one kept; None keeps all columns and checks none.
        keep: with `text_field` None, keep only these columns, of those that are there; for none of them, keep all.
        seed: draws the rows held out.
        hold_out: share of the training rows held out when `need_test` and there are no test rows; at least one row, at
            most `hold_out_most`. Of a lone document, its end. Of a stream, whose length nobody knows, the first rows:
            a tenth of those it has, counted up to `hold_out_most`.

    Raises:
        UserError: a path, split, column or row that is not there, text that is not text, data that cannot be read.
            Streams raise it where the trouble is, in the middle of the rows.
    """
    trains: list[Rows] = []
    tests: list[Rows] = []
    remarks: list[str] = []
    sources: list[Path] = []
    holds: dict[bool, str] = {}
    for part in parse(spec):
        source = open_part(part, streaming)
        sources += [source.path] if source.path else []
        for rows, into in zip(_choose(part, source, remarks), (trains, tests), strict=True):
            if rows is not None:
                rows, tokenised = _columns(rows, part, text_field, keep)
                into.append(rows)
                holds[tokenised] = part.name
    if len(holds) > 1:
        raise UserError(f"{holds[True]!r} holds tokens and {holds[False]!r} text; they cannot be joined in one spec.")
    if not trains:
        raise UserError(f"{spec!r} leaves no rows to train on: all are for validation.")
    train, test = _joined(trains, streaming), _joined(tests, streaming) if tests else None
    if test is None and need_test:
        train, test = _held_out(train, text_field, seed, hold_out, hold_out_most, remarks)
    if streaming:
        train, test = _stream(train), _stream(test) if test is not None else None
    return Corpus(train, test, True in holds, remarks, sources)


# ---------------------------------------------------------------------------------------------------------------------
# The rows that a spec asks for


def _choose(part: Part, source: Source, remarks: list[str]) -> tuple[Rows | None, Rows | None]:
    """Training and test rows of a part; None where it has none of them."""
    splits, named = source.splits, part.options.get("split")
    key = next((k for k in part.splits if k != "train"), "test")
    if named and named not in splits:
        raise UserError(f"{part.name!r} has no split {named!r}; there are {', '.join(splits)}.{nearest(named, splits)}")
    base = named or ("train" if "train" in splits else next(iter(splits)))
    if base not in ("train", named):
        if len(splits) > 1:
            raise UserError(f"{part.name!r} has no split 'train'; there are {', '.join(splits)}: say [split:NAME].")
        remarks.append(f"{part.name}: trains on its only split, {base!r}")
    own = None if named else next((n for n in (key, *TEST_NAMES) if n in splits and n != base), None)
    rows, train, test = splits[base], part.splits.get("train"), part.splits.get(key)
    if own:
        remarks.append(f"{part.name}: test rows are of its own split {own!r}")
        return _slice(rows, 0, train, part, source), _slice(splits[own], 0, test, part, source)
    if source.lone and any(isinstance(amount, float) for amount in (train, test)):
        return _shares(rows, train, test, part, source)
    total = len(rows) if isinstance(rows, datasets.Dataset) else None
    first, second = _count(train, total, part), _count(test, total, part)
    if total is not None and (first or 0) + (second or 0) > total:
        raise _too_few(part, (first or 0) + (second or 0), total, source)
    if second is None:
        return _slice(rows, 0, first, part, source), None
    if first is None:
        if second == total:
            return None, rows
        remarks.append(f"{part.name}: the first {second:,} rows are for validation, the rest for training")
        return _slice(rows, second, None, part, source), _slice(rows, 0, second, part, source)
    return _slice(rows, 0, first, part, source), _slice(rows, first, second, part, source)


def _shares(
    rows: Rows, train: int | float | None, test: int | float | None, part: Part, source: Source
) -> tuple[Rows, Rows | None]:
    """Shares of the one document that a txt file is: parts of its text."""
    first = 1 - (test or 0) if train is None else train
    if isinstance(train, int) or isinstance(test, int) or first <= 0 or first + (test or 0) > 1 + 1e-9:
        raise UserError(f"'{part}': this file is one document; give shares that make 100 % at most.{_finer(part)}")
    rows = _slice(rows, 0, None, Part(part.name), source)
    return _piece(rows, "text", 0, first), _piece(rows, "text", first, first + test) if test else None


def _count(amount: int | float | None, total: int | None, part: Part) -> int | None:
    """Rows that an amount stands for: a share of `total` is rounded down, to at least one row."""
    if amount is None or isinstance(amount, int):
        return amount
    if total is None:
        raise UserError(f"'{part}': a stream has no known length, so give rows instead of a share, e.g. train:2000.")
    return _share(amount, total)


def _share(share: float, total: int) -> int:
    """Rounded down, to at least one row; 1e-9 because 0.29 · 100 is 28.999…"""
    return max(1, int(share * total + 1e-9))


def _too_few(part: Part, asked: int, there: int, source: Source) -> UserError:
    hint = _finer(part) if source.options.get("sample_by") == "document" else ""
    return UserError(f"'{part}' asks for {asked:,} rows; there are {there:,}.{hint}")


def _finer(part: Part) -> str:
    return f" A txt file is one document, unless {part.name}[by:line,…] or [by:paragraph,…] says otherwise."


def _slice(rows: Rows, start: int, amount: int | float | None, part: Part, source: Source) -> Rows:
    """Rows start, start + 1, …: `amount` of them or all that follow; of these, those in the language that is asked."""
    if isinstance(rows, datasets.Dataset):
        wanted = _count(amount, len(rows), part)
        if wanted is not None and start + wanted > len(rows):
            raise _too_few(part, start + wanted, len(rows), source)
        rows = rows.select(range(start, len(rows) if wanted is None else start + wanted))
    else:
        wanted = _count(amount, None, part)
        some = rows.skip(start) if start else rows
        some = some if wanted is None else some.take(wanted)
        watch = {"rows": some, "start": start, "wanted": wanted, "part": part, "source": source}
        rows = datasets.IterableDataset.from_generator(_watched, features=some.features, gen_kwargs=watch)
    if "lang" in part.options:
        names = list(next(iter(rows), {"lang": ""}))
        if "lang" not in names:
            raise UserError(f"'{part}': no column 'lang'; there are {', '.join(names)}.")
        rows = rows.filter(_is, fn_kwargs={"value": part.options["lang"]}, input_columns="lang")
    return rows


def _is(found: Any, value: str) -> bool:
    return str(found) == value


def _watched(rows: Any, start: int, wanted: int | None, part: Part, source: Source) -> Iterator[dict[str, Any]]:
    """The rows of a stream; a UserError where a file breaks off or the rows run out.

    In batches, because the row by row iterator of `datasets` 5.2 leaves files out in a DataLoader's worker.
    """
    seen = 0
    try:
        for batch in rows.iter(batch_size=BATCH):
            for values in zip(*batch.values(), strict=True):
                seen += 1
                yield dict(zip(batch, values, strict=True))
    except READ_ERRORS as error:
        raise unreadable(source, error) from None
    if wanted is not None and seen < wanted:
        raise _too_few(part, start + wanted, start + seen, source)


def _columns(rows: Rows, part: Part, text_field: str | None, keep: Collection[str]) -> tuple[Rows, bool]:
    """Rows with only the text column, and False; or rows as they are, and True when they are tokens already."""
    first = next(iter(rows), None)
    if first is None:
        raise UserError(f"'{part}' is an empty data set: it has no rows.")
    if "input_ids" in first or text_field is None:
        some = [name for name in first if name in keep]
        return rows.select_columns(some) if some and "input_ids" not in first else rows, "input_ids" in first
    if text_field not in first:
        raise UserError(
            f"{part.name!r} has no column {text_field!r}; there are {', '.join(first)}. Say which holds the text: "
            f"--text_field NAME.{nearest(text_field, first)}"
        )
    kind = (rows.features or {}).get(text_field)
    held = getattr(kind, "dtype", "") or (kind and str(kind)) or type(first[text_field]).__name__
    if held not in ("string", "large_string", "str"):
        raise UserError(f"{part.name!r}: the column {text_field!r} holds {held}, not text. Say --text_field NAME.")
    rows = rows.select_columns([text_field])
    if isinstance(rows, datasets.IterableDataset):  # says what it holds, so that streams can be joined
        rows = rows.cast(datasets.Features({text_field: datasets.Value("string")}))
    return rows, False


def _stream(rows: Rows) -> datasets.IterableDataset:
    return rows.to_iterable_dataset() if isinstance(rows, datasets.Dataset) else rows


def _joined(parts: list[Rows], streaming: bool) -> Rows:
    """The rows of all parts, one after the other, in the first part's types."""
    if len(parts) == 1:
        return parts[0]
    try:
        if streaming and not all(isinstance(p, datasets.Dataset) for p in parts):
            parts = [_stream(p) for p in parts]
        types = parts[0].features
        same = [p if types is None or p.features == types else p.cast(types) for p in parts]
        return datasets.concatenate_datasets(same)
    except (ValueError, pa.ArrowException):
        names = " and ".join(f"({', '.join(p.column_names or ['…'])})" for p in parts)
        raise UserError(f"these data sets cannot be joined: their columns are {names}.") from None


# ---------------------------------------------------------------------------------------------------------------------
# Rows held out


def _held_out(
    rows: Rows, text_field: str | None, seed: int, share: float, most: int, remarks: list[str]
) -> tuple[Rows, Rows]:
    """Training rows without those held out for validation, and those."""
    stream = isinstance(rows, datasets.IterableDataset)
    total = sum(1 for _ in rows.take(most)) if stream else len(rows)
    if total == 1:
        if text_field not in (rows.column_names or [text_field]):
            raise UserError(
                "there is 1 row and no test rows, so nothing can be held out for validation; give [test:N]."
            )
        remarks.append(
            f"held out the last {100 * share:g} % of the only document for validation. If the lines or paragraphs of a "
            "txt file are documents of their own, say path[by:line] or path[by:paragraph]"
        )
        return _piece(rows, text_field or "", 0, 1 - share), _piece(rows, text_field or "", 1 - share, 1)
    if stream:
        held = max(1, total // 10)
        remarks.append(f"held out the first {held:,} rows of the stream for validation; [test:N] sets another number")
        return rows.skip(held), rows.take(held)
    held = min(most, _share(share, total))
    drawn = np.sort(np.random.default_rng(seed).choice(total, held, replace=False))
    remarks.append(f"held out {held:,} of {total:,} rows (seed {seed}) for validation; [test:N] sets another number")
    return rows.select(np.delete(np.arange(total), drawn)), rows.select(drawn)


def _piece(rows: Rows, field: str, start: float, stop: float) -> Rows:
    """From share `start` to share `stop` of a document's characters."""
    return rows.map(_cut, fn_kwargs={"field": field, "start": start, "stop": stop})


def _cut(row: dict[str, Any], field: str, start: float, stop: float) -> dict[str, Any]:
    text = row[field] or ""
    places = [round(share * len(text)) for share in (start, stop)]
    # after a line, if there is one
    start, stop = (at if at in (0, len(text)) else text.rfind("\n", 0, at) + 1 or at for at in places)
    return {**row, field: text[start:stop]}
