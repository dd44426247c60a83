"""Text to tokens.

In:  rows {"text"}, a tokenizer.
Out: rows {"input_ids"}: int32 ids, `max_length` of them in a row. Documents are tokenised without special tokens, each
     followed by the end of text, laid end to end and cut; only the tail of the whole corpus is shorter, or dropped.

The rows depend on the documents, the tokenizer and the settings; not on processes, batch sizes or streaming. What a
document says is always text: `<|mdm_mask|>` typed in one becomes the tokens of these letters, never the mask.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from unmask.config import UserError
from unmask.encode import CALL, Encode, Encoder, Ids, end_of_text, end_to_end, in_processes
from unmask.encode import token_bytes as token_bytes
from unmask.encode import tokenizer_fingerprint as tokenizer_fingerprint
from unmask.fast_encode import Differs
from unmask.report import say
from unmask.token_stream import FEATURES as FEATURES
from unmask.token_stream import Cut, checked, stream

RowsT = TypeVar("RowsT", datasets.Dataset, datasets.IterableDataset)

FORMAT = 1  # raise it when the same text and settings give other rows: earlier results in the cache are then left alone
WORTH_A_PROCESS = 8 << 20  # bytes of text that repay starting one more process
WORTH_FAST = 4 << 20  # bytes of text that repay building the fast encoder, which takes up to 2 s


# ---------------------------------------------------------------------------------------------------------------------
# Rows of text to rows of tokens


def group(
    rows: RowsT,
    tokenizer: Any,
    *,
    text_field: str = "text",
    max_length: int = 1024,
    insert_eos: bool = True,
    drop_tail: bool = True,
    keep_lone: bool = False,
    num_proc: int = 8,
    disable_caching: bool = False,
    desc: str = "Tokenising",
) -> RowsT:
    """Documents to rows of `max_length` ids in one column, `input_ids`; a Dataset gives a Dataset, a stream a stream.

    A Dataset is tokenised at once, with a progress bar, and the result kept in the cache of `datasets`. A stream is
    tokenised as it is read, in one shard; skipping n rows reads and tokenises what lies before. Going on from its
    `state_dict` does not, unless the stream of text shuffles (token_stream.py); either way come the rows that an
    uninterrupted reader gets.

    Args:
        insert_eos: end of text after each document.
        drop_tail: leave out what follows the last whole row; else that row is shorter.
        keep_lone: keep the tail all the same where it is all there is: for validation rows, which may be few.
        num_proc: processes at most, and no more than there are cores or than the text repays.
        disable_caching: keep nothing; the result lies in a temporary folder until the program ends.

    Raises:
        UserError: no end-of-text token, a row that is not text, fewer tokens than one row. A stream raises when read.
    """
    if max_length < 1 or num_proc < 1:
        raise UserError(f"--max_length is {max_length} and --num_proc {num_proc}; both must be at least 1.")
    if text_field not in (rows.column_names or [text_field]):
        raise UserError(f"no column {text_field!r} in the data; there are {', '.join(rows.column_names or [])}.")
    if insert_eos:
        end_of_text(tokenizer)
    how: dict[str, Any] = {"length": max_length, "drop_tail": drop_tail, "keep_lone": keep_lone}
    if isinstance(rows, datasets.IterableDataset):
        return stream(rows, Encoder(tokenizer, insert_eos, fast_after=WORTH_FAST), text_field, **how)
    # A result that is not kept needs no name that other runs know, which takes a second for a large vocabulary.
    encoder = _encoder(rows, tokenizer, insert_eos) if disable_caching else None
    made_by = (encoder and encoder.name_here) or tokenizer_fingerprint(tokenizer, special=False)
    texts = result_name(FORMAT, rows._fingerprint, made_by, text_field, insert_eos)
    grouped = result_name(texts, how)
    with results(disable_caching) as folder:
        file = folder / f"rows-{grouped}.arrow"
        if disable_caching or not file.is_file():
            where = (texts, folder, not disable_caching)
            encoder = encoder or _encoder(rows, tokenizer, insert_eos)
            done = _tokenised(rows, encoder, text_field, num_proc, desc, *where)
            _write(file, _cut(done, **how))
    result = datasets.Dataset.from_file(str(file))
    result._fingerprint = grouped  # else `datasets` 5.2 derives one from the file's path and date
    return result


def result_name(*what: Any) -> str:
    """What a result in the cache is called: a hash of what it comes of."""
    return str(xxhash.xxh3_128_hexdigest(repr(what).encode()))


def _tokenised(
    rows: datasets.Dataset,
    encoder: Encoder,
    text_field: str,
    most: int,
    desc: str,
    name: str,
    folder: Path,
    cached: bool,
) -> datasets.Dataset:
    """The ids of each document, kept under `name`: another --max_length begins from here."""
    size = _bytes(rows)
    batch = max(1, min(4000, int(CALL / (size / max(1, len(rows)) + 1))))

    def tokenise() -> datasets.Dataset:
        workers = int(min(most, cores(), len(rows) // batch, 1 + size / WORTH_A_PROCESS))
        if encoder.fast is not None or workers <= (1 if encoder.backend is None else 2):
            # The encoder's own threads do it: with the ordinary one of `tokenizers`, two processes took 7.7 s where two
            # threads took 6.0 s (20 MB of text).
            workers = 1
        with in_processes(encoder, workers) as work:
            encode = encoder.flat if workers == 1 else lambda texts: end_to_end(work(texts))
            return rows.with_format("arrow").map(
                _documents,
                batched=True,
                batch_size=batch * workers,
                writer_batch_size=batch,
                with_indices=True,
                remove_columns=rows.column_names,
                features=FEATURES,
                fn_kwargs={"encode": encode, "text_field": text_field},
                new_fingerprint=name,
                cache_file_name=str(folder / f"documents-{name}.arrow"),
                load_from_cache_file=cached,
                desc=desc,
            )

    try:
        return tokenise()
    except Differs as error:
        say(f"{error} This run begins the text again with the ordinary tokenizer")
        encoder.fast = None
        return tokenise()


def _bytes(rows: datasets.Dataset) -> float:
    """Bytes of text, about: `data` may hold more rows than were selected."""
    return float(rows.data.nbytes * len(rows) / max(1, len(rows.data)))


def _encoder(rows: datasets.Dataset, tokenizer: Any, insert_eos: bool) -> Encoder:
    return Encoder(tokenizer, insert_eos, fast_after=0 if _bytes(rows) >= WORTH_FAST else None)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _documents(table: pa.Table, indices: list[int], encode: Encode, text_field: str) -> pa.Table:
    ids, ends = encode(checked(table[text_field].to_pylist(), indices[0], text_field))
    if len(ids) > np.iinfo(np.int32).max:
        raise UserError(
            f"row {indices[0]:,} and what follows it are too long to tokenise; cut the document into several."
        )
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.table({"input_ids": pa.ListArray.from_arrays(offsets, ids)})


def _cut(documents: datasets.Dataset, **how: Any) -> Iterator[Ids]:
    """The ids of all documents, end to end and cut: (rows, length), and last the tail, (1, < length)."""
    cut = Cut(**how)
    for table in documents.with_format("arrow").iter(batch_size=1000):
        yield cut.add(table["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False))
    yield cut.tail()


def _write(file: Path, blocks: Iterable[Ids]) -> None:
    """Rows into an Arrow file, put in place when it is whole."""
    schema = FEATURES.arrow_schema
    aside = file.with_suffix(f".{os.getpid()}.part")
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for block in blocks:
                offsets = np.arange(len(block) + 1, dtype=np.int32) * block.shape[1]
                writer.write_batch(pa.record_batch([pa.ListArray.from_arrays(offsets, block.ravel())], schema=schema))
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def results(disable_caching: bool) -> Iterator[Path]:
    """The folder for results: of the cache, or a temporary one. A full disk is the user's to see to."""
    try:
        folder = Path(
            datasets.fingerprint.get_temporary_cache_files_directory()
            if disable_caching
            else Path(datasets.config.HF_DATASETS_CACHE) / "unmask"
        )
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left for tokens in {datasets.config.HF_DATASETS_CACHE}; make room, or set "
            "HF_DATASETS_CACHE to a folder on another disk."
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# Rows that are tokens already


def rows_already(rows: RowsT, max_length: int, vocab_size: int) -> RowsT:
    """Data that came as tokens, checked: `input_ids`, and `labels` and `prompt_len` where there are any.

    Raises:
        UserError: an id outside the vocabulary, a row longer than `max_length` or empty, ids that are no numbers. A
            stream raises when read.
    """
    if isinstance(rows, datasets.IterableDataset):
        names = rows.column_names or list(next(iter(rows), {}))
        limits = {"rows": rows, "keep": _kept(names), "max_length": max_length, "vocab_size": vocab_size}
        return datasets.IterableDataset.from_generator(_checked_stream, gen_kwargs=limits)
    rows = rows.select_columns(_kept(rows.column_names).split())
    longest = 0
    for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000):
        column = table["input_ids"].combine_chunks()
        if not (_is_list(column.type) and pa.types.is_integer(column.type.value_type)):
            raise UserError(f"the column 'input_ids' holds {column.type}; expected lists of whole numbers.")
        lengths = pc.list_value_length(column)
        longest = max(longest, pc.max(lengths).as_py() or 0)
        least, most = pc.min_max(column.flatten()).values()
        _check_ids(least.as_py(), most.as_py(), vocab_size)
        if column.null_count or pc.min(lengths).as_py() == 0:
            raise UserError("a row of the data has no tokens; leave it out.")
    _check_length(longest, max_length)
    return rows


def _kept(names: list[str]) -> str:
    """The columns to keep, in one text: a list given to a generator of `datasets` would be taken for its shards."""
    return " ".join(name for name in ("input_ids", "labels", "prompt_len") if name in names)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _check_ids(least: int | None, most: int | None, vocab_size: int) -> None:
    for found in (least, most):
        if found is not None and not 0 <= found < vocab_size:
            raise UserError(
                f"the data hold token {found:,}, and the model knows 0 to {vocab_size - 1:,}: they were made "
                "with another tokenizer. Prepare them again with this model's."
            )


def _check_length(longest: int, max_length: int) -> None:
    if longest > max_length:
        raise UserError(
            f"the longest row of the data has {longest:,} tokens, more than --max_length {max_length:,}; say "
            f"--max_length {longest}, or prepare the data again."
        )


def _checked_stream(rows: Any, keep: str, max_length: int, vocab_size: int) -> Iterator[dict[str, Any]]:
    names = keep.split()
    for batch in rows.iter(batch_size=256):
        for values in zip(*(batch[name] for name in names), strict=True):
            ids = values[0]
            if not ids:
                raise UserError("a row of the data has no tokens; leave it out.")
            _check_ids(min(ids), max(ids), vocab_size)
            _check_length(len(ids), max_length)
            yield dict(zip(names, values, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# What a data set is


def data_fingerprint(rows: datasets.Dataset | datasets.IterableDataset | None) -> str | None:
    """A hash of all that is in a Dataset, wherever it lies and however it is stored; of a stream, of its first 100.

    None for no data. 1 GB of tokens takes about a second.
    """
    if rows is None:
        return None
    digest = xxhash.xxh3_128()
    if isinstance(rows, datasets.IterableDataset):
        for row in rows.take(100):
            digest.update(json.dumps(row, sort_keys=True, default=repr).encode())
        return "stream-" + digest.hexdigest()
    names = sorted(rows.column_names)
    digest.update(repr((len(rows), names)).encode())
    for table in rows.with_format("arrow").iter(batch_size=1000):
        for name in names:
            column = table[name].combine_chunks()
            if _is_list(column.type) and pa.types.is_integer(column.type.value_type) and not column.null_count:
                # As int64, so that the width they are stored in does not count.
                digest.update(pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64))
                digest.update(column.flatten().to_numpy(zero_copy_only=False).astype(np.int64))
            else:
                digest.update(json.dumps(column.to_pylist(), sort_keys=True, default=repr).encode())
    return digest.hexdigest()
