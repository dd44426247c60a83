"""Data ready for training: `unmask prepare pretrain`, and what `unmask pretrain` calls.

In:  the data settings, a tokenizer.
Out: training and test rows of tokens; from the command, the same in a folder (a DatasetDict written by `save_to_disk`)
     with `prepared.json`: which tokenizer and settings made them, and how much there is.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import DataArguments, UserError, hints, nearest, option, parse

if TYPE_CHECKING:
    import datasets

NOTE = "prepared.json"
TASKS = {"pretrain": "text → rows of --max_length tokens, for `unmask pretrain`"}


@dataclasses.dataclass
class Rows:
    """Rows of tokens to train on and to validate on.

    tokenised_before: the data came as tokens. documents: how many rows there were before; None for a stream.
    """

    train: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset | datasets.IterableDataset | None
    remarks: list[str]
    tokenised_before: bool
    documents: dict[str, int | None] = dataclasses.field(default_factory=dict)


def rows(data: DataArguments, tokenizer: Any, *, seed: int, vocab_size: int, need_test: bool = True) -> Rows:
    """What `data.dataset_args` names, as rows of tokens: tokenised and grouped, or checked if they are tokens already.

    Validation rows that are less than one row of `max_length` are kept as one short row, `drop_tail` or not.

    Raises:
        UserError: all that `corpus.load`, `tokens.group` and `tokens.rows_already` refuse; tokens made by another
            tokenizer; tokens where `load_preprocessed_data` says that there are none.
    """
    import datasets

    from unmask import corpus, tokens

    loaded = corpus.load(
        data.dataset_args or "", streaming=data.streaming, text_field=data.text_field, seed=seed, need_test=need_test
    )
    remarks = list(loaded.remarks)
    parts = {"train": loaded.train, **({"test": loaded.test} if loaded.test is not None else {})}
    ready: dict[str, Any] = {}
    if loaded.tokenised:
        if data.load_preprocessed_data is False:
            raise UserError(
                f"{data.dataset_args!r} holds tokens (a column input_ids), and --load_preprocessed_data false says it "
                "does not; leave that out, or name data with text."
            )
        for source in loaded.sources:
            remarks += _check_note(source, tokenizer, data.max_length)
    elif data.load_preprocessed_data:
        other = [str(s) for s in loaded.sources if not (s / "state.json").is_file() and not _is_dict(s)]
        remarks += [f"{name} is no folder of save_to_disk (load_preprocessed_data); read as it is" for name in other]
    for name, part in parts.items():
        with _in_the(name):
            if loaded.tokenised:
                ready[name] = tokens.rows_already(part, data.max_length, vocab_size)
                continue
            ready[name] = tokens.group(
                part,
                tokenizer,
                text_field=data.text_field,
                max_length=data.max_length,
                insert_eos=data.insert_eos,
                drop_tail=data.drop_tail,
                keep_lone=name == "test",
                num_proc=data.num_proc,
                disable_caching=data.disable_caching,
                desc=f"Tokenising {name} rows",
            )
    test = ready.get("test")
    if isinstance(test, datasets.Dataset) and not loaded.tokenised and count(test)["tokens"] < data.max_length:
        remarks.append(
            f"the validation rows are {count(test)['tokens']:,} tokens, less than one row: kept as a short one"
        )
    documents = {name: len(part) if isinstance(part, datasets.Dataset) else None for name, part in parts.items()}
    return Rows(ready["train"], test, remarks, loaded.tokenised, documents)


@contextmanager
def _in_the(name: str) -> Iterator[None]:
    """Errors about validation rows say so."""
    try:
        yield
    except UserError as error:
        raise UserError(f"in the validation rows: {error}" if name == "test" else str(error)) from None


def _is_dict(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file()


def _check_note(source: Path, tokenizer: Any, max_length: int) -> list[str]:
    """Remarks about data that `unmask prepare` wrote; UserError when another tokenizer made them."""
    from unmask import tokens

    folder = next((f for f in (source, source.parent) if (f / NOTE).is_file()), None)
    if folder is None:
        return [f"{source} holds tokens; nothing tells which tokenizer made them (`unmask prepare` would)"]
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        made_by, name, length = note["tokenizer_fingerprint"], note["tokenizer"], note["settings"]["max_length"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {folder / NOTE}: {error!r}. Prepare the data again.") from None
    if made_by != tokens.tokenizer_fingerprint(tokenizer, special=False):
        mine = getattr(tokenizer, "name_or_path", "") or "this model"
        raise UserError(
            f"{folder} was made with the tokenizer of {name}, and that of {mine} is another. Prepare the data again: "
            f"unmask prepare pretrain --model_name_or_path {mine} --dataset_args … --output_dir …"
        )
    return [f"{folder} was made with --max_length {length}, which stays"] if length < max_length else []


def count(rows: datasets.Dataset) -> dict[str, int]:
    """Rows and tokens of a data set whose rows, all but the last, are equally long."""
    last = len(rows[-1]["input_ids"]) if len(rows) else 0
    first = len(rows[0]["input_ids"]) if len(rows) else 0
    return {"rows": len(rows), "tokens": max(0, len(rows) - 1) * first + last}


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclasses.dataclass
class Settings:
    """Prepare"""

    model_name_or_path: str | None = option(None, "Model folder or hub name, for its tokenizer.")
    output_dir: str | None = option(None, "Folder to write; name it in --dataset_args of `unmask pretrain`.")
    overwrite: bool = option(False, "Replace an --output_dir that an earlier `unmask prepare` wrote.")
    seed: int = option(42, "Draws the rows that are held out, where the data have no test rows.")


USED = ("dataset_args", "text_field", "max_length", "insert_eos", "drop_tail", "num_proc", "disable_caching")


def _data_settings() -> type:
    """The settings of `unmask pretrain`'s data that matter here, under the same names."""
    kinds = hints(DataArguments)
    same = {
        f.name: dataclasses.field(default=f.default, metadata=f.metadata) for f in dataclasses.fields(DataArguments)
    }
    made = dataclasses.make_dataclass("DataSettings", [(name, kinds[name], same[name]) for name in USED])
    made.__doc__ = DataArguments.__doc__
    return made


def main(argv: list[str]) -> int:
    """`unmask prepare TASK …`."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: unmask prepare TASK [options]\n\nWrite tokens to disk once, for many runs.\n")
        for task, what in TASKS.items():
            print(f"  {task:<12}{what}")
        print("\n`unmask prepare TASK --help` lists the options.")
        return 0
    if argv[0] not in TASKS:
        hint = nearest(argv[0], TASKS)
        raise UserError(
            f"cannot prepare {argv[0]!r}; there is `unmask prepare {'`, `unmask prepare '.join(TASKS)}`.{hint}"
        )
    parsed = parse("unmask prepare pretrain", TASKS["pretrain"], [Settings, _data_settings()], argv[1:])
    return pretrain(parsed.groups[0], DataArguments(**dataclasses.asdict(parsed.groups[1])))


def pretrain(settings: Settings, data: DataArguments) -> int:
    """Write training and test rows of tokens to `settings.output_dir`, and print how many there are."""
    for name, value in (("model_name_or_path", settings.model_name_or_path), ("output_dir", settings.output_dir)):
        if not value:
            raise UserError(f"--{name} is missing; `unmask prepare pretrain --help` lists the options.")
    out = Path(str(settings.output_dir))
    _check_free(out, settings.overwrite)

    from unmask import models, report, tokens

    report.quiet()
    tokenizer = models.load_tokenizer(str(settings.model_name_or_path))
    ready = rows(data, tokenizer, seed=settings.seed, vocab_size=len(tokenizer))
    report.say(*ready.remarks)
    if ready.tokenised_before:
        raise UserError(f"{data.dataset_args!r} holds tokens already; `unmask pretrain` takes it as it is.")
    parts = {"train": ready.train, **({"test": ready.test} if ready.test is not None else {})}
    counts = {name: {"documents": ready.documents[name], **count(part)} for name, part in parts.items()}
    note = {
        "tokenizer": str(settings.model_name_or_path),
        "tokenizer_fingerprint": tokens.tokenizer_fingerprint(tokenizer, special=False),
        "settings": {name: getattr(data, name) for name in USED} | {"seed": settings.seed},
        "splits": {
            name: {**counts[name], "fingerprint": tokens.data_fingerprint(part)} for name, part in parts.items()
        },
        "versions": report.versions(),
    }
    _write(out, parts, note)
    for name, has in counts.items():
        print(f"{name:<6}{has['documents']:>12,} documents {has['tokens']:>15,} tokens {has['rows']:>11,} rows")
    print(f"{out}: rows of {data.max_length:,} tokens. Train on them: unmask pretrain --dataset_args {str(out)!r} …")
    return 0


def _check_free(out: Path, overwrite: bool) -> None:
    """UserError unless `out` is free, or is ours to replace."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / NOTE).is_file():
        raise UserError(f"{out} exists and was not written by `unmask prepare`; give another --output_dir.")
    if not overwrite:
        raise UserError(f"{out} holds prepared data; type --overwrite to replace them, or give another --output_dir.")


def _write(out: Path, parts: dict[str, Any], note: dict[str, Any]) -> None:
    """All of it, or nothing: written aside, then renamed. What stood there before goes last."""
    import datasets

    from unmask import report

    aside, before = (out.with_name(f".{out.name}.{end}") for end in ("part", "before"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        datasets.DatasetDict(parts).save_to_disk(str(aside))
        report.write_json(aside / NOTE, note)
        if out.exists():
            out.rename(before)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if before.exists() and not out.exists():
            before.rename(out)
        shutil.rmtree(before, ignore_errors=True)
