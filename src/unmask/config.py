"""Settings: a YAML file and flags in, dataclasses out.

In:  `--config FILE` (also spelled `--configs`, `--config_file`) and `--key value` flags; a flag overrides the file.
Out: the dataclasses that a command asked for. An unknown key is an error that names the nearest real one.

This file imports nothing heavy: `unmask COMMAND --help` must answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from unmask.plugins import load_file as load_file
from unmask.plugins import named as named
from unmask.values import Refused as Refused
from unmask.values import UserError as UserError
from unmask.values import cast as cast
from unmask.values import nearest as nearest
from unmask.values import read_yaml as read_yaml
from unmask.values import refuse


def option(default: Any, help: str, *, aliases: Sequence[str] = (), metavar: str | None = None) -> Any:
    """A dataclass field with its `--help` text; a mutable default is copied for each instance."""
    metadata = {"help": help, "aliases": tuple(aliases), "metavar": metavar}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------------
# The settings that several commands share


@dataclasses.dataclass
class ModelArguments:
    """Model"""

    model_name_or_path: str | None = option(
        None, "Model folder or hub name. For `pretrain`: a folder with config and tokenizer, made by `unmask init`."
    )
    from_scratch: bool | None = option(
        None,
        "Start from fresh weights (true) or go on from those in the folder (false). Asked for if the folder has any.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "What the weights are kept in. Training keeps float32 and computes in bfloat16 (see --bf16)."
    )
    attn_implementation: str | None = option(
        None, "Attention back end: sdpa, eager, flash_attention_2, flex_attention."
    )
    mask_token: str | None = option(
        None, "The token that means 'not yet known', for a model whose config or tokenizer does not name it."
    )
    family: str | None = option(
        None, "Model family: a name from `unmask/models` or path/to/file.py. Told from the config if left out."
    )


@dataclasses.dataclass
class DataArguments:
    """Data"""

    dataset_args: str | None = option(
        None,
        "What to train on: `path[train:2000,test:200]`, `hub/name[train:90%,test:10%]`, `path[split:NAME]`, `a + b`. "
        "Sources: json, jsonl, csv, parquet, txt (files or folders, compressed too; `[by:line]` makes each line of a "
        "txt a document), a `save_to_disk` folder, a hub name (`hf:NAME`, `ms:NAME` for ModelScope).",
    )
    text_field: str = option("text", "Column that holds the text.")
    streaming: bool = option(False, "Read the data as it comes instead of tokenising it first. Needs --max_steps.")
    num_proc: int = option(8, "Worker processes for tokenising; never more than there are processor cores.")
    drop_tail: bool = option(True, "Drop the tokens after the last full row of --max_length.")
    max_length: int = option(1024, "Tokens in a row.")
    load_preprocessed_data: bool | None = option(
        None, "The data are a `save_to_disk` folder. Its columns say whether they are text or already tokens."
    )
    insert_eos: bool = option(True, "Put an end-of-text token after each document.")
    random_length_ratio: float = option(
        0.01, "Share of the training rows that are cut to a random length (LLaDA: 1 %)."
    )
    disable_caching: bool = option(False, "Tokenise anew instead of taking earlier results from the cache.")
    shuffle: bool = option(True, "A new order each epoch, drawn from --seed. false: in the order of the file.")
    shuffle_buffer: int = option(10_000, "Rows held in memory to shuffle a stream.")


@dataclasses.dataclass
class TrainingArguments:
    """Training

    Only what Unmask sets otherwise than `transformers.TrainingArguments`, or explains; every other field of that class
    is accepted too (`--help_all` lists them).
    """

    output_dir: str | None = option(None, "The run's folder: checkpoints, metrics.jsonl, loss curve, manifest.")
    run_name: str | None = option(None, "Name shown by trackers; the folder's if left out.")
    objective: str = option("masked", "What is learnt: a name from `unmask/objectives` or path/to/file.py.")
    objective_args: dict[str, Any] = option({}, "Settings of the objective, as `key=value,key=value`.")
    learning_rate: float = option(3e-4, "Peak learning rate.")
    lr_scheduler_type: str = option("cosine", "Shape of the learning rate: cosine, linear, constant_with_warmup, …")
    warmup_steps: float = option(0.1, "Steps of warm-up; below 1: a share of the run.")
    warmup_ratio: float | None = option(None, "The same as a share of the run, as transformers 4 spelled it.")
    num_train_epochs: float = option(1.0, "Passes over the data.")
    max_steps: int = option(-1, "Optimiser steps; overrides --num_train_epochs.")
    per_device_train_batch_size: int = option(2, "Rows a device takes at once.")
    per_device_eval_batch_size: int = option(2, "The same, in validation.")
    gradient_accumulation_steps: int = option(8, "Batches added up for one optimiser step.")
    logging_steps: float = option(10, "Steps between two lines of metrics.jsonl.")
    eval_strategy: str = option("steps", "When to validate: steps, epoch or no. There is always one at the end.")
    eval_steps: float = option(200, "Steps between two validations; below 1: a share of the run.")
    eval_draws: int = option(1, "Independent noise for each validation row: n of them cost n times as much.")
    eval_on_start: bool = option(False, "Validate before the first step.")
    save_strategy: str = option("steps", "When to save: steps, epoch or no. There is always a checkpoint at the end.")
    save_steps: float = option(1000, "Steps between two checkpoints; below 1: a share of the run.")
    save_total_limit: int | None = option(2, "Checkpoints kept, the newest first.")
    save_only_model: bool = option(
        False, "Leave the optimiser out of checkpoints: smaller, but they cannot be resumed."
    )
    resume_from_checkpoint: str | None = option(None, "Go on from a checkpoint: `auto` for the newest, or its path.")
    overwrite_output_dir: bool = option(False, "Delete an earlier run in --output_dir and start anew.")
    group_by_length: bool = option(False, "Put rows of like length into the same step.")
    seed: int = option(42, "Seed of weights, order and noise.")
    bf16: bool = option(True, "Compute in bfloat16; weights and optimiser stay in float32.")
    report_to: list[str] = option(["none"], "Trackers: swanlab, tensorboard, wandb, trackio, … or none.")
    sample_every: float = option(
        0, "Steps between two samples of what it writes; below 1: a share of the run. 0: none."
    )
    sample_prompts: list[str] = option([], "Texts to go on from; in sft, questions. Left out: nothing; two questions.")
    sample_max_new_tokens: int = option(64, "Tokens of a sample.")
    sample_args: dict[str, Any] = option({}, "Decoding settings of samples, as `key=value,key=value`.")
    weight_decay: float = option(0.1, "AdamW weight decay (LLaDA: 0.1).")
    adam_beta2: float = option(0.95, "AdamW's second moment (SMDM: 0.95).")
    on_divergence: Literal["stop", "rollback", "off"] = option(
        "stop",
        "Steps whose gradient is no number or blown up are left out, their rows saved. After --max_skipped_steps of "
        "them in a row: stop, or rollback to the last checkpoint from before. off: no step is looked at.",
    )
    max_skipped_steps: int = option(5, "Steps left out in a row, at which --on_divergence comes in.")
    max_grad_norm_factor: float = option(
        1000.0, "A gradient is blown up above so many times the median norm of the last 100 steps; 0: never."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Loose values into settings


def hints(group: type) -> dict[str, Any]:
    """Field name → type, evaluated."""
    return typing.get_type_hints(group)


def build(group: type, values: dict[str, Any]) -> Any:
    """An instance of a settings dataclass from loose values, each cast to its field's type; unknown keys are errors."""
    known = {f.name for f in dataclasses.fields(group)}
    for key in values:
        if key not in known:
            raise UserError(f"unknown setting {key!r}; there are {', '.join(sorted(known))}.{nearest(key, known)}")
    kinds = hints(group)
    return group(**{key: cast(value, kinds[key], key) for key, value in values.items()})


# ---------------------------------------------------------------------------------------------------------------------
# The command line


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}. `{self.prog} --help` lists the options.")


def is_switch(kind: Any) -> bool:
    return kind in (bool, bool | None)


def is_list(kind: Any) -> bool:
    return list in {typing.get_origin(kind), *(typing.get_origin(a) for a in typing.get_args(kind))}


def _metavar(kind: Any) -> str:
    args = [a for a in typing.get_args(kind) if a is not type(None)]
    if typing.get_origin(kind) in (Union, types.UnionType) and args:
        return _metavar(args[0])
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    if typing.get_origin(kind) is list:
        return _metavar(args[0]) if args else "TEXT"
    if typing.get_origin(kind) is dict:
        return "KEY=VALUE,…"
    return {int: "N", float: "X", bool: "true|false"}.get(kind, "TEXT")


def _shown(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return f" [{str(value).lower()}]"
    if isinstance(value, list):
        return f" [{','.join(map(str, value))}]"
    return f" [{value}]"


Extra = Callable[[], dict[str, Any]]
"""Gives the further keys a command accepts, with their types: called only when a key is not among the groups."""


class Parsed(typing.NamedTuple):
    """What `parse` read: one instance per settings class, values of further keys, names of the keys the user set."""

    groups: list[Any]
    more: dict[str, Any]
    given: set[str]


def parse(
    prog: str,
    description: str,
    groups: Sequence[type],
    argv: Sequence[str],
    *,
    extra: Extra | None = None,
    legacy: dict[str, str] | None = None,
    refused: Refused | None = None,
    positional: tuple[str, str] | None = None,
) -> Parsed:
    """Read a command's settings.

    Args:
        groups: settings dataclasses, each a group in `--help`, headed by the first line of its docstring.
        extra: further accepted keys and their types (the fields of `transformers.TrainingArguments`).
        legacy: old spellings of keys → today's, taken from files and flags alike.
        refused: keys known from elsewhere that cannot be here, with the reason; see `values.Refused`.
        positional: name and help of one optional positional argument, which must be a field of a group.

    Returns:
        One instance per group, the values given for `extra` keys, and the names of all keys that the user set.
    """
    legacy = legacy or {}
    _no_args_file()
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [options]",
        description=description,
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
    )
    general = parser.add_argument_group("General")
    general.add_argument("-h", "--help", action="store_true", help="Show this page.")
    if extra is not None:
        general.add_argument(
            "--help_all", action="store_true", help="Show also the further settings that are accepted."
        )
    general.add_argument(
        "--config", "--configs", "--config_file", dest="config", metavar="FILE", help="YAML file; flags override it."
    )
    kinds: dict[str, Any] = {}
    if positional:
        parser.add_argument(positional[0], nargs="?", default=argparse.SUPPRESS, help=positional[1])
    for group in groups:
        types_of = hints(group)
        doc = (group.__doc__ or group.__name__).strip().splitlines()
        box = parser.add_argument_group(doc[0].strip())
        for field in dataclasses.fields(group):
            name, kind = field.name, types_of[field.name]
            kinds[name] = kind
            if positional and name == positional[0]:
                continue
            default = getattr(group(), name)
            flags = ["--" + name] + [a if a.startswith("-") else "--" + a for a in field.metadata.get("aliases", ())]
            text = (field.metadata.get("help", "") + _shown(default)).replace("%", "%%")
            shape: dict[str, Any] = {"metavar": field.metadata.get("metavar") or _metavar(kind)}
            if is_switch(kind):
                shape |= {"nargs": "?", "const": "true"}
            elif is_list(kind):
                shape |= {"nargs": "*", "action": _Append}
            elif typing.get_origin(kind) is dict:
                shape |= {"action": _Append}
            box.add_argument(*flags, dest=name, default=argparse.SUPPRESS, help=text, **shape)
    space, rest = parser.parse_known_args([_underscored(word) for word in argv])
    if space.help or getattr(space, "help_all", False):
        _print_help(parser, extra if getattr(space, "help_all", False) else None)
        raise SystemExit(0)

    values: dict[str, tuple[Any, str]] = {}
    if space.config:
        for key, value in read_yaml(space.config).items():
            values[legacy.get(key, key)] = (value, f"{space.config}: ")
    for key, value in vars(space).items():
        if key not in ("help", "help_all", "config"):
            values[key] = (value, "")
    for key, value in _loose(rest, parser.prog).items():
        values[legacy.get(key, key)] = (value, "")

    more: dict[str, Any] = {}
    further: dict[str, Any] | None = None
    for key, (value, where) in values.items():
        if key in kinds or refuse(key, value, refused or {}):
            continue
        bare = key.removeprefix("no_")
        if key.startswith("no_") and bare in kinds and is_switch(kinds[bare]):
            continue
        if further is None:
            further = extra() if extra else {}
        if key in further:
            if value is not None or further[key] is Any or type(None) in typing.get_args(further[key]):
                more[key] = cast(value, further[key], key)
            continue
        known = [*kinds, *further]
        what = f"{where}unknown key {key!r}." if where else f"unknown option --{key}."
        raise UserError(f"{what}{nearest(key, known)} `{prog} --help` lists the options.")

    instances: list[Any] = []
    given: set[str] = set()
    for group in groups:
        mine: dict[str, Any] = {}
        for field in dataclasses.fields(group):
            if field.name in values:
                value, where = values[field.name]
                if value is None and type(None) not in typing.get_args(kinds[field.name]):
                    continue  # `key:` with nothing behind it, in YAML: the default
                try:
                    mine[field.name] = cast(value, kinds[field.name], field.name)
                except UserError as error:
                    raise UserError(f"{where}{error}") from None
            elif "no_" + field.name in values and is_switch(kinds[field.name]):
                mine[field.name] = False
        given |= set(mine)
        instances.append(group(**mine))
    return Parsed(instances, more, given | set(more))


def _no_args_file() -> None:
    """UserError for a `SCRIPT.args`, from which `transformers.HfArgumentParser` would take more flags."""
    file = Path(sys.argv[0] or "-").with_suffix(".args")
    if file.is_file():
        raise UserError(f"{file} is not read; write its flags as `key: value` into a YAML file, for --config FILE.")


def _underscored(word: str) -> str:
    """`--max-length=5` → `--max_length=5`: dashes and underscores in a flag's name are the same."""
    name, sign, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + sign + value if name.startswith("--") else word


class _Append(argparse.Action):
    """`--prompt a --prompt b` and `--prompt a b` both give ["a", "b"]; `--set a=1 --set b=2` is `--set a=1,b=2`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        now = [*(before or []), *values] if isinstance(values, list) else f"{before},{values}" if before else values
        setattr(namespace, self.dest, now)


def _loose(words: list[str], prog: str) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--switch` that argparse did not know, as a dict."""
    found: dict[str, Any] = {}
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not word.startswith("--"):
            raise UserError(f"did not expect {word!r}. `{prog} --help` lists the options.")
        key, _, value = word[2:].partition("=")
        if "=" not in word:
            value = "true"
            taken = []
            while i < len(words) and not words[i].startswith("--"):
                taken.append(words[i])
                i += 1
            if taken:
                value = taken[0] if len(taken) == 1 else taken  # type: ignore[assignment]
        found[key.replace("-", "_")] = value
    return found


def _print_help(parser: argparse.ArgumentParser, extra: Extra | None) -> None:
    parser.print_help()
    if extra is not None:
        sys.stdout.write("\nFurther settings:\n")
        for name, kind in sorted(extra().items()):
            sys.stdout.write(f"  --{name} {_metavar(kind)}\n")
