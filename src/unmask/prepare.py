"""Data ready for training: `unmask prepare pretrain`, `unmask prepare sft`, and what `unmask pretrain` calls.

In:  the data settings, a tokenizer.
Out: training and test rows of tokens; from the commands, the same in a folder (a DatasetDict written by `save_to_disk`)
     with `prepared.json`: which tokenizer and settings made them, and how much there is. `instruct.py` makes
     the rows of conversations.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import prepared
from unmask.config import DataArguments, Refused, UserError, hints, nearest, option, parse
from unmask.instruct import SFTDataArguments
from unmask.prepared import NOTE as NOTE
from unmask.prepared import Rows as Rows

if TYPE_CHECKING:
    import datasets

TASKS = {
    "pretrain": "text → rows of --max_length tokens, for `unmask pretrain`",
    "sft": "conversations → prompts and answers as tokens, for `unmask sft`",
}


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
            remarks += prepared.check(source, tokenizer, data.max_length, "pretrain")[1]
    elif data.load_preprocessed_data:
        other = [str(s) for s in loaded.sources if not (s / "state.json").is_file() and not _is_dict(s)]
        remarks += [f"{name} is no folder of save_to_disk (load_preprocessed_data); read as it is" for name in other]
    for name, part in parts.items():
        with prepared.in_the(name):
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


def _is_dict(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file()


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
    output_dir: str | None = option(None, "Folder to write; name it in --dataset_args of the training.")
    overwrite: bool = option(False, "Replace an --output_dir that an earlier `unmask prepare` wrote.")
    remove_columns: bool = option(True, "Other columns than the tokens' are left out; false says so and does the same.")
    seed: int = option(42, "Draws the rows that are held out, where the data have no test rows.")


@dataclasses.dataclass
class SFTSettings(Settings):
    __doc__ = Settings.__doc__

    seed: int = option(42, "Draws the order of the rows, and the prefixes of --train_on prefix.")
    shuffle_rows: bool = option(True, "Write the rows in an order drawn from --seed, so that the first are any rows.")


USED = ("dataset_args", "text_field", "max_length", "insert_eos", "drop_tail", "num_proc", "disable_caching")
USED_SFT = (
    *("dataset_args", "max_length", "truncation", "mask_prompt_loss", "chat_template", "train_on", "bad_rows"),
    *("num_proc", "disable_caching"),
)


# dllm's tools for the same take these, too.
REFUSED: Refused = {
    "sft_map_fn_path": (
        "dllm.utils.default_mdlm_sft_map_fn",
        "names a Python function, and none is called: --chat_template FILE, --train_on and --mask_prompt_loss say how "
        "conversations become tokens.",
    ),
}


def settings_class(groups: Sequence[type], names: Iterable[str] | None = None) -> type:
    """One settings class with the fields of several, or those of them that are named; of a name that stands in more
    than one, the last one's."""
    found: dict[str, tuple[Any, Any]] = {}
    for group in groups:
        kinds = hints(group)
        for f in dataclasses.fields(group):
            same = dataclasses.field(default=f.default, default_factory=f.default_factory, metadata=f.metadata)
            found[f.name] = (kinds[f.name], same)
    made = dataclasses.make_dataclass("DataSettings", [(name, *found[name]) for name in names or found])
    made.__doc__ = groups[0].__doc__
    return made


def main(argv: list[str]) -> int:
    """`unmask prepare TASK …`."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: unmask prepare TASK [options]\n\nWrite tokens to disk once, for many runs.\n")
        for task, what in TASKS.items():
            print(f"  {task:<12}{what}")
        print("\n`unmask prepare TASK --help` lists the options.")
        return 0
    task = argv[0]
    if task not in TASKS:
        hint = nearest(task, TASKS)
        raise UserError(
            f"cannot prepare {task!r}; there is `unmask prepare {'`, `unmask prepare '.join(TASKS)}`.{hint}"
        )
    kind, used = (SFTDataArguments, USED_SFT) if task == "sft" else (DataArguments, USED)
    settings_of: type = SFTSettings if task == "sft" else Settings
    groups = [settings_of, settings_class([kind], used)]
    refused = REFUSED if task == "sft" else {}
    parsed = parse(f"unmask prepare {task}", TASKS[task], groups, argv[1:], refused=refused)
    settings: Any = parsed.groups[0]
    data: Any = kind(**dataclasses.asdict(parsed.groups[1]))
    for name, value in (("model_name_or_path", settings.model_name_or_path), ("output_dir", settings.output_dir)):
        if not value:
            raise UserError(f"--{name} is missing; `unmask prepare {task} --help` lists the options.")
    _check_free(Path(str(settings.output_dir)), settings.overwrite)

    from unmask import models, report

    report.quiet()
    if not settings.remove_columns:
        report.say("--remove_columns false: only the tokens' columns are written all the same; no other is trained on.")
    name = str(settings.model_name_or_path)
    bare = Path(name).is_dir() and not Path(name, "config.json").is_file()  # a tokenizer alone will do
    tokenizer = models.load_tokenizer(name if bare else models.find(name))
    return (sft if task == "sft" else pretrain)(settings, data, tokenizer)


def pretrain(settings: Settings, data: DataArguments, tokenizer: Any) -> int:
    """Write training and test rows of tokens to `settings.output_dir`, and print how many there are."""
    ready = rows(data, tokenizer, seed=settings.seed, vocab_size=len(tokenizer))
    parts = _parts("pretrain", data.dataset_args, ready)
    counts = {name: {"documents": ready.documents[name], **count(part)} for name, part in parts.items()}
    out = _written("pretrain", settings, tokenizer, {name: getattr(data, name) for name in USED}, parts, counts, {})
    for name, has in counts.items():
        print(f"{name:<6}{has['documents']:>12,} documents {has['tokens']:>15,} tokens {has['rows']:>11,} rows")
    print(f"{out}: rows of {data.max_length:,} tokens. Train on them: unmask pretrain --dataset_args {str(out)!r} …")
    return 0


def sft(settings: SFTSettings, data: SFTDataArguments, tokenizer: Any) -> int:
    """Write prompts and answers as tokens to `settings.output_dir`, and print how many there are.

    Test rows are written where the data have them or the spec asks for them; none are held out, since the training's
    own spec, such as `[train:2000,test:200]`, then takes rows from the one split there is.
    """
    from unmask import instruct, labels
    from unmask.template import Template

    ready = instruct.rows(data, tokenizer, seed=settings.seed, vocab_size=len(tokenizer), need_test=False)
    parts = _parts("sft", data.dataset_args, ready)
    if settings.shuffle_rows:
        parts = {name: part.shuffle(seed=settings.seed) for name, part in parts.items()}
    counts: dict[str, dict[str, Any]] = {
        name: {"documents": ready.documents[name], **labels.count(part), "dropped": ready.dropped[name]}
        for name, part in parts.items()
    }
    template = Template(tokenizer, data.chat_template)
    more = {"template_fingerprint": template.fingerprint, "chat_template": template.source}
    asked = {name: getattr(data, name) for name in USED_SFT} | {"shuffle_rows": settings.shuffle_rows}
    out = _written("sft", settings, tokenizer, asked, parts, counts, more)
    for name, has in counts.items():
        left_out = sum(has["dropped"].values())
        print(
            f"{name:<6}{has['rows']:>11,} rows {has['tokens']:>15,} tokens {has['learnt']:>15,} of them learnt"
            + (f" {left_out:>9,} rows left out" if left_out else "")
        )
    test = "" if "test" in parts else f"[test:{200 if counts['train']['rows'] >= 2000 else '10%'}]"
    print(
        f"{out}: rows of at most {data.max_length:,} tokens. Train on them: unmask sft --dataset_args '{out}{test}' …"
    )
    return 0


def _parts(task: str, spec: str | None, ready: Rows) -> dict[str, Any]:
    """The splits that are there; their remarks are said."""
    from unmask import report

    report.say(*ready.remarks)
    if ready.tokenised_before:
        raise UserError(f"{spec!r} holds tokens already; `unmask {task}` takes it as it is.")
    return {"train": ready.train, **({"test": ready.test} if ready.test is not None else {})}


def _written(
    task: str,
    settings: Settings,
    tokenizer: Any,
    asked: dict[str, Any],
    parts: dict[str, Any],
    counts: dict[str, Any],
    more: dict[str, Any],
) -> Path:
    """The folder, with its note."""
    from unmask import report, tokens

    note = {
        "task": task,
        "tokenizer": str(settings.model_name_or_path),
        "tokenizer_fingerprint": tokens.tokenizer_fingerprint(tokenizer, special=False),
        **more,
        "settings": asked | {"seed": settings.seed},
        "splits": {
            name: {**counts[name], "fingerprint": tokens.data_fingerprint(part)} for name, part in parts.items()
        },
        "versions": report.versions(),
    }
    out = Path(str(settings.output_dir))
    _write(out, parts, note)
    return out


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
