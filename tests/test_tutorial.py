"""The table in docs/tutorial.md: each row is tried, no name of the tutorial is missing, both languages say the same.

What is expected of a row stands here; what is typed is read from the table. The names were copied from the tutorial.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
import transformers
from runs import make_model, run
from texts import bpe, jsonl, numbered
from tiny import tiny

from unmask import (
    __main__,
    adapters,
    corpus,
    evaluation,
    hub,
    instruct,
    models,
    prepare,
    reader,
    serve,
    spec,
    terminal,
    tokens,
    training_settings,
)
from unmask.__main__ import COMMANDS, main
from unmask.adapters import LoraArguments
from unmask.config import DataArguments, ModelArguments, Parsed, TrainingArguments, UserError
from unmask.harness import code as programs
from unmask.harness.asking import Evaluation
from unmask.instruct import SFTDataArguments

ROOT = Path(__file__).resolve().parent.parent
PAGE, CHINESE = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "tutorial.zh-CN.md"
LLADA, QWEN = "examples/llada", "examples/qwen"

# ---------------------------------------------------------------------------------------------------------------------
# The table


class Row(NamedTuple):
    names: list[str]
    kind: str
    state: str
    here: str

    @property
    def typed(self) -> str:
        """What the last column has to be typed: the first that stands between backticks."""
        return code(self.here)[0]

    @property
    def to(self) -> str:
        return code(self.state)[0]

    @property
    def reason(self) -> str:
        return self.state.split(": ", 1)[1]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def table(page: Path) -> list[Row]:
    """The rows of the page's tables of four columns, without their headings."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [c.strip().replace(r"\|", "|") for c in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if len(cells) == 4 and cells[0].startswith("`"):
            found.append(Row(code(cells[0]), *cells[1:]))
    return found


ROWS = table(PAGE)
FOUND = {name: row for row in ROWS for name in row.names}


def of(kind: str, *states: str) -> list[str]:
    """The names of one kind whose state begins so."""
    return [name for name, row in FOUND.items() if row.kind == kind and row.state.split()[0].rstrip(":") in states]


# ---------------------------------------------------------------------------------------------------------------------
# What a command makes of what is typed


class Read(Exception):
    """A command has read its settings; it need not do anything."""


def read(words: list[str]) -> dict[str, Any]:
    """Name → value of every setting that `unmask COMMAND …` reads from its words, and `given`."""
    file, function, _ = COMMANDS[words[0]]
    module = importlib.import_module(f"unmask.{file}")
    where = module if hasattr(module, "parse") else reader  # where `sample` and its kin read their options
    parse = where.parse

    def spy(*args: Any, **more: Any) -> Any:
        raise Read(parse(*args, **more))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, "parse", spy)
        with pytest.raises(Read) as done:
            getattr(module, function)(list(words[1:]))
    parsed: Parsed = done.value.args[0]
    values = {f.name: getattr(group, f.name) for group in parsed.groups for f in dataclasses.fields(group)}
    return {**values, **parsed.more, "given": parsed.given, "parsed": parsed}


def script(path: str, *words: str) -> list[list[str]]:
    """The commands that a script of the repository runs when it is called with these words."""
    ran: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(__main__, "main", lambda argv: ran.append(argv) or 0)
        patch.setattr(sys, "argv", [path, *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / path), run_name="__main__")
    assert left.value.code == 0
    return ran


def refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says so, and exit code 2."""
    capsys.readouterr()
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unmask:")]
    assert len(lines) == 1
    assert told in lines[0]


SCRIPTS = {"sft": f"{LLADA}/sft.py", "pt": f"{LLADA}/pt.py", "qwen": f"{QWEN}/sft.py"}


def setting(where: str, key: str, value: str, folder: Path) -> dict[str, Any]:
    """What a training script reads of a key; from a YAML file and from a flag it is the same."""
    file = folder / "one.yaml"
    file.write_text(f"{key}: {value}\n")
    named, flagged = (read(script(SCRIPTS[where], *w)[0]) for w in (["--configs", str(file)], [f"--{key}={value}"]))
    for name in named.keys() - {"parsed"}:
        assert plain(named[name]) == plain(flagged[name])
    return named


def plain(value: Any) -> Any:
    """Lists of names without the commas and blanks between them."""
    return re.findall(r"\w+", str(value)) if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------------------------
# Keys

# key → the scripts that take it, what it becomes
KEYS: dict[str, tuple[str, Any]] = {
    "model_name_or_path": ("sft pt qwen", "models/llada-8b"),
    "dtype": ("sft pt qwen", "bfloat16"),
    "load_in_4bit": ("sft", False),
    "attn_implementation": ("sft pt", "sdpa"),
    "lora": ("sft qwen", True),
    "target_modules": ("sft qwen", ["q_proj", "v_proj"]),
    "r": ("sft qwen", 32),
    "lora_alpha": ("sft qwen", 64),
    "lora_dropout": ("sft qwen", 0.05),
    "bias": ("sft qwen", "none"),
    "modules_to_save": ("sft qwen", ["lm_head"]),
    "dataset_args": ("sft pt qwen", "data/alpaca-zh-gpt[train:2000,test:200]"),
    "num_proc": ("sft pt qwen", 8),
    "disable_caching": ("sft pt qwen", True),
    "max_length": ("sft pt qwen", 1024),
    "truncation": ("sft qwen", "filter"),
    "load_preprocessed_data": ("sft pt", True),
    "mask_prompt_loss": ("sft", False),
    "text_field": ("pt", "body"),
    "streaming": ("pt", True),
    "drop_tail": ("pt", False),
    "insert_eos": ("pt", False),
    "random_length_ratio": ("pt", 0.01),
    "output_dir": ("sft pt qwen", "output/run"),
    "run_name": ("sft pt qwen", "test-1"),
    "report_to": ("sft pt qwen", ["swanlab"]),
    "overwrite_output_dir": ("sft pt qwen", True),
    "seed": ("sft pt qwen", 42),
    "bf16": ("sft pt qwen", True),
    "per_device_train_batch_size": ("sft pt qwen", 2),
    "per_device_eval_batch_size": ("sft pt qwen", 2),
    "gradient_accumulation_steps": ("sft pt qwen", 8),
    "learning_rate": ("sft pt qwen", 2e-5),
    "lr_scheduler_type": ("sft pt qwen", "cosine"),
    "warmup_ratio": ("sft pt qwen", 0.1),
    "warmup_steps": ("sft pt qwen", 2000),
    "num_train_epochs": ("sft pt qwen", 3),
    "max_steps": ("sft pt qwen", 1_000_000),
    "logging_steps": ("sft pt qwen", 10),
    "eval_strategy": ("sft pt qwen", "steps"),
    "eval_steps": ("sft pt qwen", 0.25),
    "save_steps": ("sft pt qwen", 100),
    "save_only_model": ("sft pt qwen", True),
    "save_total_limit": ("sft pt qwen", 2),
    "eval_on_start": ("sft pt qwen", False),
    "group_by_length": ("sft pt qwen", True),
    "per_gpu_train_batch_size": ("sft pt qwen", 2),
    "per_gpu_eval_batch_size": ("sft pt qwen", 2),
    "no_cuda": ("sft pt qwen", True),
}

# key → the scripts that refuse it, and a value to refuse
WRONG: dict[str, tuple[str, str]] = {
    "truncation: clip": ("sft qwen", "clip"),
    **{f"pt.py: {key}": ("pt", "true") for key in ("lora", "load_in_4bit")},
    **{f"pt.py: {key}": ("pt", "q_proj") for key in ("target_modules", "modules_to_save")},
    **{f"pt.py: {key}": ("pt", "32") for key in ("r", "lora_alpha", "lora_dropout")},
    "pt.py: bias": ("pt", "all"),
    "pt.py: truncation": ("pt", "right"),
    **dict.fromkeys(
        (
            *("use_mps_device", "adafactor", "jit_mode_eval", "use_legacy_prediction_loop"),
            *("include_inputs_for_metrics", "include_tokens_per_second", "include_num_input_tokens_seen"),
            *("tpu_metrics_debug", "push_to_hub", "auto_find_batch_size", "dataloader_drop_last", "do_train"),
            *("remove_unused_columns", "use_liger_kernel"),
        ),
        ("sft pt qwen", "true"),
    ),
    **dict.fromkeys(("save_safetensors", "do_eval", "disable_tqdm"), ("sft pt qwen", "false")),
    **dict.fromkeys(("logging_dir", "torchdynamo", "ray_scope", "mp_parameters"), ("sft pt qwen", "some")),
    **dict.fromkeys(("fp16_opt_level", "half_precision_backend", "fp16_backend"), ("sft pt qwen", "O2")),
    **dict.fromkeys(("tpu_num_cores", "fsdp_min_num_params", "past_index", "data_seed"), ("sft pt qwen", "8")),
    "fsdp_transformer_layer_cls_to_wrap": ("sft pt qwen", "LLaDABlock"),
    "label_smoothing_factor": ("sft pt qwen", "0.1"),
    **{f"push_to_hub_{what}": ("sft pt qwen", "me") for what in ("model_id", "organization", "token")},
}

# What may be left in an old file, because it asks for what is done anyway.
HARMLESS = {
    **dict.fromkeys(("lora", "load_in_4bit"), ("pt", "false")),
    "bias": ("pt", "none"),
    "modules_to_save": ("pt", "null"),
    "mask_prompt_loss": ("pt", "false"),
    "save_safetensors": ("sft pt qwen", "true"),
    "disable_tqdm": ("sft pt qwen", "true"),
    "remove_unused_columns": ("sft pt qwen", "false"),
    "do_eval": ("sft pt qwen", "true"),
    **dict.fromkeys(("fp16_backend", "half_precision_backend"), ("sft pt qwen", "auto")),
    "past_index": ("sft pt qwen", "-1"),
    **dict.fromkeys(("use_mps_device", "adafactor", "jit_mode_eval"), ("sft pt qwen", "false")),
    "push_to_hub_token": ("sft pt qwen", "null"),
    "streaming": ("sft", "false"),
}

# The fields of transformers 4.57's TrainingArguments that can be set: all but `_n_gpu`.
FIELDS = re.findall(
    r"\w+",
    """
    output_dir overwrite_output_dir do_train do_eval do_predict eval_strategy prediction_loss_only
    per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size per_gpu_eval_batch_size
    gradient_accumulation_steps eval_accumulation_steps eval_delay torch_empty_cache_steps learning_rate
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps lr_scheduler_type
    lr_scheduler_kwargs warmup_ratio warmup_steps log_level log_level_replica log_on_each_node logging_dir
    logging_strategy logging_first_step logging_steps logging_nan_inf_filter save_strategy save_steps
    save_total_limit save_safetensors save_on_each_node save_only_model restore_callback_states_from_checkpoint
    no_cuda use_cpu use_mps_device seed data_seed jit_mode_eval bf16 fp16 fp16_opt_level half_precision_backend
    bf16_full_eval fp16_full_eval tf32 local_rank ddp_backend tpu_num_cores tpu_metrics_debug debug
    dataloader_drop_last eval_steps dataloader_num_workers dataloader_prefetch_factor past_index run_name
    disable_tqdm remove_unused_columns label_names load_best_model_at_end metric_for_best_model greater_is_better
    ignore_data_skip fsdp fsdp_min_num_params fsdp_config fsdp_transformer_layer_cls_to_wrap accelerator_config
    parallelism_config deepspeed label_smoothing_factor optim optim_args adafactor group_by_length
    length_column_name report_to project trackio_space_id ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers dataloader_pin_memory dataloader_persistent_workers skip_memory_metrics
    use_legacy_prediction_loop push_to_hub resume_from_checkpoint hub_model_id hub_strategy hub_token
    hub_private_repo hub_always_push hub_revision gradient_checkpointing gradient_checkpointing_kwargs
    include_inputs_for_metrics include_for_metrics eval_do_concat_batches fp16_backend push_to_hub_model_id
    push_to_hub_organization push_to_hub_token mp_parameters auto_find_batch_size full_determinism torchdynamo
    ray_scope ddp_timeout torch_compile torch_compile_backend torch_compile_mode include_tokens_per_second
    include_num_input_tokens_seen neftune_noise_alpha optim_target_modules batch_eval_metrics eval_on_start
    use_liger_kernel liger_kernel_config eval_use_gather_object average_tokens_across_devices
    """,
)

OTHER = "any other field of TrainingArguments"


def training_of(values: dict[str, Any], folder: Path) -> transformers.TrainingArguments:
    """The arguments that reach the Trainer."""
    training = next(group for group in values["parsed"].groups if isinstance(group, TrainingArguments))
    training.output_dir = training.output_dir or str(folder / "run")
    return training_settings.to_transformers(training, values["parsed"].more, values["given"])


@pytest.mark.parametrize("key", [key for key in of("key", "works", "maps") if key != OTHER])
def test_a_key_becomes_what_it_says(key: str, tmp_path: Path) -> None:
    row = FOUND[key]
    target, value = row.typed.split(": ", 1)
    assert target == (row.to if row.state.startswith("maps") else key)
    scripts, expected = KEYS[key]
    for where in scripts.split():
        values = setting(where, key, value, tmp_path)
        assert values[target] == expected
        assert target in values["given"]
        if target == "warmup_ratio":
            assert training_of(values, tmp_path).warmup_steps == expected
        elif target in {f.name for f in dataclasses.fields(transformers.TrainingArguments)}:
            assert getattr(training_of(values, tmp_path), target) == expected


@pytest.mark.parametrize("key", of("key", "refused"))
def test_a_key_is_refused_with_the_reason(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a flag and from a file; nothing is made."""
    monkeypatch.chdir(tmp_path)
    scripts, value = WRONG[key]
    name = key.removeprefix("pt.py: ").split(":")[0]
    file = tmp_path / "one.yaml"
    file.write_text(f"{name}: {value}\n")
    for where in scripts.split():
        for words in ([f"--{name}", value], ["--configs", str(file)]):
            (typed,) = script(SCRIPTS[where], "--dataset_args", "some", "--output_dir", "run", *words)
            refused(typed, FOUND[key].reason, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["one.yaml"]


@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_that_asks_for_nothing_may_stay(key: str, tmp_path: Path) -> None:
    scripts, value = HARMLESS[key]
    for where in scripts.split():
        values = setting(where, key, value, tmp_path)
        assert training_of(values, tmp_path)


def test_every_field_of_the_old_trainer_is_taken_mapped_or_refused(tmp_path: Path) -> None:
    """Nothing else is left over, and each that is taken reaches the Trainer with its value."""
    assert len(FIELDS) == len(set(FIELDS)) == 132
    now = {f.name: f for f in dataclasses.fields(transformers.TrainingArguments)}
    ours = {f.name for f in dataclasses.fields(TrainingArguments)}
    dropped = {*of("key", "refused")} | {*of("key", "maps")}
    assert {name for name in FIELDS if name not in now} <= ours | dropped
    assert {
        name
        for name in FIELDS
        if name in training_settings.REFUSED or name in training_settings.GONE or name in training_settings.LEGACY
    } <= dropped
    taken = {name for name in FIELDS if name in now and name not in ours | dropped}
    taken.remove("use_cpu")  # false is refused by transformers where there is nothing else; `no_cuda` tries true
    usual = {
        name: value for name in taken if isinstance(value := now[name].default, (bool, int, float, str)) and value != ""
    }
    assert len(usual) > 30
    assert taken >= OTHERWISE.keys()
    for name, value in {**usual, **OTHERWISE}.items():
        values = setting("sft", name, value if isinstance(value, str) else json.dumps(value), tmp_path)
        arguments = training_of(values, tmp_path)
        alone = transformers.TrainingArguments(str(tmp_path), **{"use_cpu": arguments.use_cpu, name: value})
        assert getattr(arguments, name) == getattr(alone, name)


OTHERWISE = {
    "max_grad_norm": 0.5,
    "adam_epsilon": 1e-6,
    "adam_beta1": 0.8,
    "optim": "adafactor",
    "neftune_noise_alpha": 5.0,
    "gradient_checkpointing": True,
    "logging_first_step": True,
    "eval_delay": 2.0,
    "dataloader_num_workers": 1,
    "ddp_timeout": 60,
}


# ---------------------------------------------------------------------------------------------------------------------
# Keys that change rows or the model do so


def alpaca(path: Path, n: int, letter: str = "a", **more: Any) -> Path:
    path.write_text(
        json.dumps([{"instruction": f"{letter}{i}", "input": "", "output": "ok", **more} for i in range(n)])
    )
    return path


def rows_of(tokenizer: Any, dataset: str | Path, **settings: Any) -> Any:
    settings = {"num_proc": 1, "max_length": 200, **settings}
    data = SFTDataArguments(dataset_args=str(dataset), **settings)
    return instruct.rows(data, tokenizer, seed=42, vocab_size=len(tokenizer), need_test=False)


def texts_of(tokenizer: Any, path: Path, **settings: Any) -> Any:
    data = DataArguments(dataset_args=f"{path}[train:8,test:2]", num_proc=1, **settings)
    return prepare.rows(data, tokenizer, seed=42, vocab_size=len(tokenizer))


def test_mask_prompt_loss_learns_the_answer_alone_or_all(tmp_path: Path, byte_tokenizer: Any) -> None:
    data = alpaca(tmp_path / "a.json", 3)
    alone, both = (rows_of(byte_tokenizer, data, mask_prompt_loss=yes).train[0] for yes in (True, False))
    assert alone["labels"][: alone["prompt_len"]] == [-100] * alone["prompt_len"]
    assert alone["labels"][alone["prompt_len"] :] == alone["input_ids"][alone["prompt_len"] :]
    assert both["labels"] == both["input_ids"] == alone["input_ids"]


def test_truncation_cuts_or_leaves_out(tmp_path: Path, byte_tokenizer: Any) -> None:
    data = tmp_path / "a.json"
    data.write_text(json.dumps([{"instruction": "a", "output": "x" * n} for n in (5, 300)]))
    right, filtered = (rows_of(byte_tokenizer, data, truncation=how, max_length=150) for how in ("right", "filter"))
    assert [len(row["input_ids"]) == 150 for row in right.train] == [False, True]
    assert (
        right.train[1]["input_ids"][:100] == rows_of(byte_tokenizer, data, max_length=999).train[1]["input_ids"][:100]
    )
    assert len(filtered.train) == 1


def test_load_preprocessed_data_takes_tokens_as_they_are(tmp_path: Path, byte_tokenizer: Any) -> None:
    rows = {"input_ids": [[1, 2, 3, 4]], "labels": [[-100, -100, 3, 4]], "prompt_len": [2]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "tokens"))
    taken = rows_of(byte_tokenizer, tmp_path / "tokens", load_preprocessed_data=True).train
    assert taken[0] == {name: column[0] for name, column in rows.items()}


def test_disable_caching_leaves_the_cache_alone() -> None:
    cached = Path(datasets.config.HF_DATASETS_CACHE)
    with tokens.results(False) as kept, tokens.results(True) as temporary:
        assert cached in kept.parents
        assert cached not in temporary.parents


def test_the_keys_of_pretraining_change_its_rows(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "t.jsonl", ["abcde"] * 10, column="body")
    usual = {"text_field": "body", "max_length": 16}
    end = byte_tokenizer.eos_token_id
    rows = texts_of(byte_tokenizer, path, **usual).train["input_ids"]
    assert [len(row) for row in rows] == [16, 16, 16]  # 8 documents of 5 bytes and an end
    assert [row.count(end) for row in rows] == [2, 3, 3]
    plain = texts_of(byte_tokenizer, path, **usual, insert_eos=False, drop_tail=False).train["input_ids"]
    assert [len(row) for row in plain] == [16, 16, 8]
    assert end not in itertools.chain(*plain)
    stream = texts_of(byte_tokenizer, path, **usual, streaming=True).train
    assert isinstance(stream, datasets.IterableDataset)
    assert [row["input_ids"] for row in stream] == rows


def test_the_keys_of_lora_reach_peft() -> None:
    for targets in (["q_proj, v_proj"], ["q_proj,", "v_proj"], ["q_proj", "v_proj"]):  # however it was typed
        given = {"r": 3, "lora_alpha": 12, "lora_dropout": 0.25, "bias": "all", "modules_to_save": ["lm_head"]}
        worn = adapters.attach(tiny("llada"), LoraArguments(lora=True, target_modules=targets, **given))
        config = worn.peft_config["default"]
        assert {name: getattr(config, name) for name in given} == given
        wrapped = {name.split(".")[-2] for name, _ in worn.named_modules() if name.endswith(".lora_A")}
        assert wrapped == {"q_proj", "v_proj"}


def test_all_linear_is_the_tutorials_seven_matrices_without_the_head() -> None:
    worn = adapters.attach(tiny("llada"), LoraArguments(lora=True))
    wrapped = {name.split(".")[-2] for name, _ in worn.named_modules() if name.endswith(".lora_A")}
    assert len(wrapped) == 7
    assert "lm_head" not in wrapped


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is said where there is no GPU")
def test_four_bits_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(UserError, match="4bit"):
        adapters.quantised("cpu")


@pytest.mark.parametrize(
    ("name", "where"), [("llada-8b-sft", "sft"), ("llada-100M-pt", "pt"), ("qwen2.5-7b-alpaca", "qwen")]
)
def test_the_tutorials_own_files_are_read_whole(name: str, where: str, shared: Path, tmp_path: Path) -> None:
    file = shared / "seed" / f"{name}.yaml"
    keys = set(re.findall(r"(?m)^(\w+):", file.read_text(encoding="utf-8")))
    values = read(script(SCRIPTS[where], "--configs", str(file))[0])
    assert keys <= KEYS.keys()
    assert keys <= values["given"]
    assert training_of(values, tmp_path).max_steps == 10


# ---------------------------------------------------------------------------------------------------------------------
# Options

# option → the scripts that take it, the setting, its value
OPTIONS: dict[str, tuple[str, str, Any]] = {
    "--model_name_or_path": ("chat sample qwen", "model", "M"),
    "--seed": ("chat sample qwen", "seed", 42),
    "--chat_template": ("chat qwen", "chat_template", "False"),
    "--visualize": ("chat sample", "visualize", False),
    "--no_X": ("chat sample", "visualize", False),
    "--steps": ("chat sample", "steps", 128),
    "--max_new_tokens": ("chat sample qwen", "max_new_tokens", 128),
    "--max_length": ("chat sample qwen", "max_length", 128),
    "--block_size": ("chat sample", "block_size", 32),
    "--block_length": ("chat sample", "block_size", 32),
    "--gen_length": ("chat sample qwen", "max_new_tokens", 128),
    "--temperature": ("chat sample qwen", "temperature", 0.7),
    "--remasking": ("chat sample", "remasking", "random"),
    "--stochastic_transfer": ("chat sample", "stochastic_transfer", True),
    "--cfg_scale": ("chat sample", "cfg_scale", 0.5),
    "--cfg_keep_tokens": ("chat sample", "cfg_keep_tokens", [1, 2]),
    "--suppress_tokens": ("chat sample", "suppress_tokens", [1, 2]),
    "--begin_suppress_tokens": ("chat sample", "begin_suppress_tokens", [1, 2]),
    "[126081;126348]": ("chat sample", "suppress_tokens", [126081, 126348]),
    "--right_shift_logits": ("chat sample", "right_shift_logits", False),
    "sample.py: --max_length": ("sample", "max_length", 128),
    "qwen/chat.py: --model_name_or_path": ("qwen", "model", "M"),
    "qwen/chat.py: --max_new_tokens": ("qwen", "max_new_tokens", 256),
    "qwen/chat.py: --temperature": ("qwen", "temperature", 0),
}
TALKERS = {"chat": f"{LLADA}/chat.py", "sample": f"{LLADA}/sample.py", "qwen": f"{QWEN}/chat.py"}


@pytest.mark.parametrize("option", [name for name in of("option", "works", "maps") if name in OPTIONS])
def test_an_option_becomes_what_it_says(option: str, tmp_path: Path) -> None:
    """With underscores or dashes, with a blank or `=`; and from a file."""
    row = FOUND[option]
    scripts, target, expected = OPTIONS[option]
    name, *rest = row.typed.split()
    forms = [[name, *rest], [name.replace("_", "-").replace("--", "--", 1), *rest]]
    if option in ("--block_length", "--gen_length"):
        assert name == row.to
        forms.append([option, *rest])
    if len(rest) == 1:
        forms.append([f"{name}={rest[0]}"])
    if len(rest) == 1 and not option.startswith("["):
        (tmp_path / "one.yaml").write_text(f"{name[2:]}: {rest[0]}\n")
        forms.append(["--configs", str(tmp_path / "one.yaml")])
    if option == "--chat_template":
        forms += [["--no_chat_template"], ["--no-chat-template"]]
    for where in scripts.split():
        for words in forms:
            got = read(script(TALKERS[where], *words)[0])[target]
            assert str(got).lower() == expected.lower() if option == "--chat_template" else got == expected


def test_what_qwens_chat_leaves_out_is_the_tutorials() -> None:
    values = read(script(TALKERS["qwen"], "--model_name_or_path", "M")[0])
    assert (values["max_new_tokens"], values["temperature"]) == (1024, 0.7)
    assert values["system"] == "You are a helpful assistant."


def test_a_key_with_nothing_behind_it_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("debug:\nmax_steps:\nneftune_noise_alpha: null\n")
    values = read(script(SCRIPTS["sft"], "--configs", str(tmp_path / "c.yaml"))[0])
    assert "debug" not in values
    assert (values["max_steps"], values["neftune_noise_alpha"]) == (-1, None)


def test_flags_beside_a_config_file_override_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("max_steps: 10\nlearning_rate: 2e-5\n")
    assert "overrides" in FOUND["--configs FILE"].here
    for where, flag in itertools.product(SCRIPTS, ("--configs", "--config", "--config_file")):
        values = read(script(SCRIPTS[where], flag, str(tmp_path / "c.yaml"), "--max_steps", "20")[0])
        assert (values["max_steps"], values["learning_rate"]) == (20, 2e-5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> Path:
    """A small LLaDA with weights."""
    from unmask import checkpoint

    empty = make_model(tmp_path_factory.mktemp("weights") / "empty", byte_tokenizer, max_sequence_length=160)
    loaded = models.load(str(empty), fresh=True)
    checkpoint.save(loaded.model, loaded.tokenizer, empty.with_name("full"))
    return empty.with_name("full")


MUCH = "--steps 4 --max_new_tokens 8 --block_size 4 --temperature 0.7 --seed 1 --cfg_scale 0.5 --cfg_keep_tokens 66 67"
ALL = [
    f"{MUCH} --remasking random --stochastic_transfer True --suppress_tokens [65;66] --right_shift_logits False",
    f"{MUCH} --remasking low_confidence --begin_suppress_tokens 65 66 --no_visualize",
]


@pytest.mark.parametrize("words", ALL, ids=["random", "low_confidence"])
@pytest.mark.parametrize("command", ["chat", "sample"])
def test_all_options_together_write_an_answer(
    command: str, words: str, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--model_name_or_path", str(weights), "-p", "Once", *words.split()]) == 0
    assert capfd.readouterr().out.strip("\n")


def test_return_dict_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for where in ("chat", "sample"):
        refused(script(TALKERS[where], "--return_dict", "True")[0], FOUND["--return_dict"].reason, capsys)


@pytest.mark.parametrize("where", TALKERS)
def test_an_args_file_beside_a_script_is_refused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / Path(TALKERS[where]).name
    here.with_suffix(".args").write_text("--steps 64\n")
    (words, *_) = script(TALKERS[where], "--model_name_or_path", "M")
    monkeypatch.setattr(sys, "argv", [str(here)])
    refused(words, FOUND["chat.args"].reason, capsys)
    refused(words, here.with_suffix(".args").name, capsys)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation

# key of --model_args → where it goes, its value
MODEL_ARGS: dict[str, tuple[str, Any]] = {
    "pretrained": ("model.model", "M"),
    "model_path": ("model.model", "M"),
    "dtype": ("model.dtype", "bfloat16"),
    "device": ("model.device", "cpu"),
    "right_shift_logits": ("model.right_shift_logits", False),
    "mc_num": ("scoring.mc_num", 1),
    "is_check_greedy": ("scoring.is_check_greedy", False),
    "max_new_tokens": ("scoring.max_new_tokens", 256),
    "gen_length": ("scoring.max_new_tokens", 256),
    "max_length": ("scoring.max_length", 1024),
    "batch_size": ("batch_size", 4),
    "cfg": ("decoding.cfg_scale", 0.5),
    "cfg_scale": ("decoding.cfg_scale", 0.5),
    "steps": ("decoding.steps", 256),
    "block_size": ("decoding.block_size", 64),
    "block_length": ("decoding.block_size", 64),
    "remasking": ("decoding.remasking", "random"),
    "temperature": ("decoding.temperature", 0.5),
    "suppress_tokens": ("decoding.suppress_tokens", [126081, 126348]),
    "max_batch_size": ("batch_size", 4),
    "begin_suppress_tokens": ("decoding.begin_suppress_tokens", [126081, 126348]),
    "logits_eos_inf": ("decoding.logits_eos_inf", True),
    "confidence_eos_eot_inf": ("decoding.confidence_eos_eot_inf", True),
}
# flag of the harness → what it becomes
HARNESS: dict[str, Callable[[Evaluation], bool]] = {
    "--tasks": lambda wanted: wanted.tasks.tasks == ["cmmlu"],
    "--model llada_dist": lambda wanted: wanted.kind == "llada_dist",
    "--model {llada,mdlm,dream}": lambda wanted: wanted.kind in ("llada", "mdlm", "dream"),
    "--num_fewshot": lambda wanted: wanted.tasks.num_fewshot == 5,
    "--apply_chat_template": lambda wanted: wanted.tasks.apply_chat_template == "true",
    "--fewshot_as_multiturn": lambda wanted: wanted.tasks.fewshot_as_multiturn is True,
    "--output_path": lambda wanted: wanted.output.output_path == "P",
    "--log_samples": lambda wanted: wanted.output.log_samples,
    "--limit": lambda wanted: wanted.tasks.limit == 10,
    "--batch_size": lambda wanted: wanted.asked().batch_size == 4,
    "--max_batch_size": lambda wanted: wanted.asked().batch_size == 4,
    "--confirm_run_unsafe_code": lambda wanted: wanted.output.confirm_run_unsafe_code,
}
BAD_EVAL = {"eval.py: --model {bd3lm,bert}": ("bd3lm", "bert")}
EVALUATED = {f"--model_args {key}=…" for key in MODEL_ARGS} | {f"eval.py: {flag}" for flag in HARNESS} | {*BAD_EVAL}


def evaluated(words: list[str]) -> Evaluation:
    """What `unmask eval …` is asked to do; nothing is loaded."""
    pytest.importorskip("lm_eval")
    found: list[Evaluation] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "evaluate", found.append)
        assert main(words) == 0
    return found[0]


BY_ITS_PATH = "dllm/pipelines/llada/eval.py"


@pytest.mark.parametrize("key", MODEL_ARGS)
def test_a_key_of_model_args_becomes_what_it_says(key: str) -> None:
    """As the table has it typed; any other value there fails."""
    row = FOUND[f"--model_args {key}=…"]
    assert row.state == "works"
    flag, typed = row.typed.split(" ", 1)
    where, expected = MODEL_ARGS[key]
    model = [] if where == "model.model" else ["pretrained=M"]
    words = ["--tasks", "cmmlu", "--model", "llada", flag, ",".join([*model, typed])]
    wanted = evaluated(script(BY_ITS_PATH, *words)[0])
    got: Any = wanted.asked().record()
    for part in where.split("."):
        got = got[part]
    assert (got, type(got)) == (expected, type(expected))
    assert typed.partition("=")[0] == key


@pytest.mark.parametrize("flag", HARNESS)
def test_a_flag_of_the_harness_becomes_what_it_says(flag: str) -> None:
    row = FOUND[f"eval.py: {flag}"]
    assert row.state == "works"
    assert flag.split()[0] in row.typed
    usual = [] if "--tasks" in row.typed else ["--tasks", "arc_easy"]
    model = [] if "--model " in row.typed else ["--model", "llada"]
    for typed in code(row.here) if "{" in flag else [row.typed]:
        words = [*usual, *model, "--model_args", "pretrained=M", *typed.split()]
        assert HARNESS[flag](evaluated(script(BY_ITS_PATH, *words)[0])), typed


def test_what_the_tutorials_evaluation_ignored_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    for name, kinds in BAD_EVAL.items():
        for kind in kinds:
            words = ["--model", kind, "--model_args", "pretrained=M"]
            refused(script(BY_ITS_PATH, "--tasks", "cmmlu", *words)[0], FOUND[name].reason, capsys)


# ---------------------------------------------------------------------------------------------------------------------
# Dataset specs

TEN = numbered(10, "a")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with texts: `path` of ten rows, files a and b of ten, and others with odd names."""
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_dict({"text": TEN}).save_to_disk("path")
    datasets.Dataset.from_dict({"text": numbered(5010)}).save_to_disk("big")
    parts = {"train": TEN, "validation": numbered(5, "v")}
    datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in parts.items()}).save_to_disk("dict")
    for name in ("a", "b", "x=1", "x+y", "x|y"):
        jsonl(tmp_path / f"{name}.jsonl", numbered(10, name[0]))
    rows = [{"text": text, "lang": "zh" if i % 2 else "en"} for i, text in enumerate(TEN)]
    (tmp_path / "lang.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = "configs:\n" + "".join(f"- config_name: {n}\n  data_files: {n}.jsonl\n" for n in ("one", "two"))
    for name in ("one", "two"):
        jsonl(tmp_path / "many" / f"{name}.jsonl", numbered(10, name))
    (tmp_path / "many" / "README.md").write_text(f"---\n{configs}---\n")
    return tmp_path


# spec → what is typed, rows of training, rows of validation; None: those that are held out
SPECS: dict[str, tuple[str, list[str], list[str] | None]] = {
    "path": ("path", TEN, None),
    "path[train:2000,test:200]": ("path[train:6,test:2]", TEN[:6], TEN[6:8]),
    "[test:200]": ("path[test:2]", TEN[2:], TEN[:2]),
    "1000_000": ("path[train:1_0]", TEN, None),
    "5_000": ("big[train:5_000,test:1_0]", numbered(5000), numbered(5010)[5000:]),
    "[ train : 5 ]": ("path[ train : 5 ]", TEN[:5], None),
    "[]": ("path[]", TEN, None),
    "a[train:5] + b[train:7,test:3]": (
        "a.jsonl[train:5] + b.jsonl[train:7,test:3]",
        TEN[:5] + numbered(7, "b"),
        numbered(10, "b")[7:],
    ),
    "a | b": ("a.jsonl | b.jsonl", TEN + numbered(10, "b"), None),
    "name:X": ("many[name:two]", numbered(10, "two"), None),
    "lang:X": ("lang.jsonl[lang:zh]", TEN[1::2], None),
    "DatasetDict on disk": ("dict[train:3,test:2]", TEN[:3], numbered(2, "v")),
    "[train:10%]": ("path[train:10%,test:10%]", TEN[:1], TEN[1:2]),
    "[train:0.5]": ("path[train:0.5,test:0.5]", TEN[:5], TEN[5:]),
    "a path with =": ("x=1.jsonl", numbered(10, "x"), None),
    "a path with +": ("x+y.jsonl", numbered(10, "x"), None),
    "a path with |": ("x|y.jsonl[train:2,test:1] | a.jsonl[train:1]", [*numbered(2, "x"), TEN[0]], ["x 2"]),
}
BAD_SPECS = {
    "path[train:9,test:3] of 10 rows": "path[train:9,test:3]",
    "name:X of files": "a.jsonl[name:en]",
    "lang:X without a column lang": "path[lang:en]",
    "[train:-1]": "path[train:-1]",
    "[train=5]": "path[train=5]",
    "key=value,…": "dataset_name_or_path=path,train=5",
    "path[train:5][test:2]": "path[train:5][test:2]",
}
# name on the hub → its columns (some of its rows), its splits, its configurations
HUB: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "tatsu-lab/alpaca": ({"instruction": "a", "input": "", "output": "b", "text": "c"}, ["train"], []),
    "allenai/tulu-3-sft-mixture": ({"id": "1", "messages": [("user", "a"), ("assistant", "b")]}, ["train"], []),
    "HuggingFaceTB/smoltalk": ({"messages": [("user", "a"), ("assistant", "b")]}, ["train", "test"], ["all"]),
    "OpenCoder-LLM/opc-sft-stage1": ({"instruction": "a", "output": "b"}, ["train"], ["X"]),
    "OpenCoder-LLM/opc-sft-stage2": ({"instruction": "a", "output": "b"}, ["train"], ["X"]),
    "HuggingFaceH4/ultrachat_200k": (
        {"prompt": "a", "messages": [("user", "a"), ("assistant", "b")]},
        ["train_sft", "test_sft", "train_gen", "test_gen"],
        [],
    ),
    "opc-annealing-corpus": ({"text": "a", "lang": "python"}, ["train"], ["X"]),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_gives_its_rows(name: str, data: Path) -> None:
    assert FOUND[name].state == "works"
    typed, wanted, validated = SPECS[name]
    got = corpus.load(typed)
    train_rows, test_rows = ([row["text"] for row in part] for part in (got.train, got.test))
    if validated is None:
        assert sorted(train_rows + test_rows) == sorted(wanted)
        assert len(test_rows) == 1
        assert any("held out" in remark for remark in got.remarks)
    else:
        assert (train_rows, test_rows) == (wanted, validated)


@pytest.mark.parametrize("name", ["path[train:2000,test:200]", "a[train:5] + b[train:7,test:3]", "[train:10%]"])
def test_tuning_reads_the_same_spec(name: str, tmp_path: Path, monkeypatch: Any, byte_tokenizer: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for letter in "ab":
        alpaca(tmp_path / f"{letter}.json", 10, letter)
    typed, *wanted = SPECS[name]
    typed = typed.replace("path", "a.json").replace(".jsonl", ".json")
    got = rows_of(byte_tokenizer, typed)
    for part, rows in zip((got.train, got.test), wanted, strict=True):
        spoken = [re.findall(r"\b[ab]\d", byte_tokenizer.decode(row["input_ids"]))[0] for row in part]
        assert spoken == [row.replace(" ", "") for row in rows or []]


def test_a_grammar_of_large_numbers() -> None:
    assert spec.parse("path[train:1000_000,test:5_000]")[0].splits == {"train": 1_000_000, "test": 5_000}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_a_spec_is_refused_with_the_reason(
    name: str, data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", str(weights), "--dataset_args", BAD_SPECS[name], "--output_dir", "out"]
    refused(["prepare", "pretrain", *words, "--num_proc", "1"], FOUND[name].reason, capsys)
    assert not (data / "out").exists()


def the_hub(name: str, config: str | None, **_: Any) -> datasets.DatasetDict:
    """In the place of `datasets.load_dataset`: what it gives for a name on the hub, and how it refuses."""
    row, splits, configs = HUB[name.removeprefix("OpenCoder-LLM/") if name.endswith("corpus") else name]
    if configs and config not in configs:
        raise ValueError(f"Config name is missing. Please pick one among the available configs: {configs}")
    row = {
        key: [{"role": role, "content": said} for role, said in value] if isinstance(value, list) else value
        for key, value in row.items()
    }
    return datasets.DatasetDict({split: datasets.Dataset.from_list([row] * 20) for split in splits})


@pytest.mark.parametrize("name", HUB)
def test_the_tutorials_data_sets_are_read_under_their_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unmask.sources.datasets.load_dataset", the_hub)
    row, mapped = FOUND[name], FOUND[name].state.startswith("maps")
    typed = row.to.replace("stage1", "stage2") if name.endswith("stage2") else row.to if mapped else row.typed
    if name == "opc-annealing-corpus":
        data = DataArguments(dataset_args=typed, max_length=4, num_proc=1)
        assert len(prepare.rows(data, byte_tokenizer, seed=1, vocab_size=len(byte_tokenizer)).train)
        return
    got = rows_of(byte_tokenizer, typed)
    share = "[train:95%,test:5%]" in typed
    assert len(got.train) == (19 if share else 20)
    assert len(got.test or []) == {"tatsu-lab/alpaca": 1, "allenai/tulu-3-sft-mixture": 1}.get(
        name, 20 if name == "HuggingFaceTB/smoltalk" else 0
    )
    if mapped:
        with pytest.raises(UserError, match=re.escape("[name:…]" if HUB[name][2] else "[split:NAME]")):
            rows_of(byte_tokenizer, name)


def test_streaming_is_for_pretraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FOUND["streaming: true"].state == "works"
    jsonl(tmp_path / "t.jsonl", numbered(10))
    got = corpus.load(f"{tmp_path / 't.jsonl'}[train:4,test:2]", streaming=True)
    assert [row["text"] for row in got.train] == numbered(4)
    base = ["--dataset_args", "t", "--output_dir", str(tmp_path / "run"), "--streaming", "true"]
    refused(script(SCRIPTS["pt"], *base)[0], "--streaming needs --max_steps", capsys)
    refused(script(SCRIPTS["sft"], *base)[0], FOUND["sft.py: streaming: true"].reason, capsys)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


class Shop(NamedTuple):
    """What the checks of commands work with."""

    folder: Path
    weights: Path
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]


def fetched(shop: Shop, words: list[str]) -> dict[str, Any]:
    """What `unmask download …` would fetch."""
    asked: dict[str, Any] = {}

    def fetch(name: str, **more: Any) -> Path:
        asked.update(name=name, **more)
        return Path("there")

    shop.patch.setattr(hub, "fetch", fetch)
    assert main(words) == 0
    return asked


def unmask_of(row: Row) -> list[str]:
    """The words behind `unmask` of the command in the last column."""
    return shlex.split(next(c for c in code(row.here) if c.startswith("unmask ")))[1:]


def check_requirements(row: Row, shop: Shop) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    ours = {re.match(r"[\w-]+", line)[0] for line in lines}  # type: ignore[index]
    theirs = {"transformers", "modelscope", "peft", "swanlab", "accelerate", "addict", "evalscope", "datasets"}
    theirs |= {"torch", "torchvision", "torchaudio", "deepspeed"}
    assert theirs - ours == theirs & set(re.findall(r"\w+", row.here))
    assert "-e ." in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def check_download(row: Row, shop: Shop) -> None:
    asked = fetched(shop, unmask_of(row))
    old = row.names[0].split()
    kind = "dataset" if any("--dataset" in word for word in old) else "model"
    assert asked["name"] in old
    assert asked["kind"] == kind
    assert asked["source"] == ("modelscope" if old[0] == "modelscope" else "hf")
    assert asked["local_dir"] in ("D", "M")
    assert asked["allow_patterns"] == (["P"] if "--allow_patterns" in old else None)


def check_notebook(row: Row, shop: Shop) -> None:
    data = alpaca(shop.folder / "data.json", 30)
    model, out = shop.weights, shop.folder / "out"
    words = [{"M": str(model), "D": str(data), "O": str(out)}.get(word, word) for word in unmask_of(row)]
    for _ in range(2):
        assert main([*words, "--num_proc", "1", "--overwrite"]) == 0
        made = datasets.load_from_disk(str(out))["train"]
        assert set(made.column_names) == {"input_ids", "labels", "prompt_len"}
        tokenizer = models.load_tokenizer(str(model))
        order = [int(re.findall(r"\ba(\d+)", tokenizer.decode(ids))[0]) for ids in made["input_ids"]]
        assert order == datasets.Dataset.from_dict({"n": list(range(30))}).shuffle(seed=42)["n"]


def check_snippet(row: Row, shop: Shop) -> None:
    path, out = jsonl(shop.folder / "path.jsonl", TEN), str(shop.folder / "out")
    datasets.load_dataset("json", data_files=str(path), split="train").save_to_disk(out)
    for name in (out, str(path)):
        assert corpus.load(f"{name}[train:8,test:2]").train["text"] == TEN[:8]


def check_count(row: Row, shop: Shop) -> None:
    assert main(unmask_of(row)) == 0
    printed = shop.capsys.readouterr().out.replace(",", "")
    assert row.names[0] in printed
    vocabulary = re.findall(r"(?:embedding|head) +(\d+)", printed)
    assert sum(map(int, vocabulary)) == 113_311_744


def launched(shop: Shop, *words: str, **environment: str) -> list[str]:
    """What a launcher of `scripts/` would have Python run; a stand-in for Python prints it."""
    python = shop.folder / "python"
    python.write_text(
        '#!/bin/sh\ncase "$1 $2" in *current_accelerator*) echo cpu 2; exit ;; esac\n'
        'printf "%s\\n" "$NCCL_DEBUG" "$CUDA_VISIBLE_DEVICES" "$TORCH_DISTRIBUTED_DEBUG" '
        '"$TORCH_NCCL_ASYNC_ERROR_HANDLING"\nshift 2\nprintf "%s\\n" "$@"\n'
    )
    python.chmod(0o755)
    surroundings = {**os.environ, "PYTHON": str(python), **environment}
    done = subprocess.run(["bash", *words], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_launched(words: list[str], flags: list[str], shop: Shop) -> None:
    """`accelerate launch …` as words: it parses, its script is there, and that one's command reads the recipe."""
    from accelerate.commands.launch import launch_command_parser

    shop.patch.chdir(ROOT)
    parsed = launch_command_parser().parse_args(words)
    assert (ROOT / parsed.config_file).is_file()
    (command,) = script(parsed.training_script, *parsed.training_script_args, *flags)
    values = read(command)
    assert values["max_steps"] == 3
    assert command[0] == ("pretrain" if parsed.training_script.endswith("pt.py") else "sft")
    qwen = "qwen" in parsed.training_script
    assert values["objective"] == ("autoregressive" if qwen else "masked")
    assert ("qwen" in values["model_name_or_path"]) == qwen


def check_bash(row: Row, shop: Shop) -> None:
    words = launched(shop, *row.names[0].split()[1:])[4:]
    check_launched(words, ["--max_steps", "3"], shop)


def check_example(row: Row, shop: Shop) -> None:
    check_launched(["--config_file", "configs/ddp.yaml", *row.names[1].split()], ["--max_steps", "3"], shop)


def check_accelerate(row: Row, shop: Shop) -> None:
    check_launched(row.names[0].split()[2:], ["--max_steps", "3"], shop)


def check_qwen3(row: Row, shop: Shop) -> None:
    config, *words = shlex.split(row.typed)
    name, value = config.split("=")
    got = launched(shop, *words[1:], **{name: value})[4:]
    assert got[-2:] == ["--configs", row.names[0]]
    check_launched(got, ["--max_steps", "3"], shop)


def check_accelerates_files(row: Row, shop: Shop) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {name: load_config_from_file(str(ROOT / name)).distributed_type.value for name in row.names}
    theirs = {
        "cpu": "NO",
        "ddp": "MULTI_GPU",
        "fsdp": "FSDP",
        **dict.fromkeys(("zero1", "zero2", "zero3"), "DEEPSPEED"),
    }
    assert kinds == {name: theirs[Path(name).stem] for name in row.names}


def check_merge(row: Row, shop: Shop) -> None:
    path, *words = row.names[0].split()[1:]
    (command,) = script(path, *words)
    values = read(command)
    assert [values[key] for key in ("lora_path", "base_model_path", "merge_path")] == ["A", "B", "C"]


def check_chat(row: Row, shop: Shop) -> None:
    """The settings are those typed; and the command answers, with a small model in M's place."""
    words = row.names[0].split()
    path = next(word for word in words if word.endswith(".py"))
    flags = words[words.index(path) + 1 :]
    typed = dict(zip(flags[::2], flags[1::2], strict=True))
    (command,) = script(path, *flags)
    values = read(command)
    for flag, value in typed.items():
        assert str(values[{"--model_name_or_path": "model"}.get(flag, flag[2:])]) == value
    command[command.index("M")] = str(shop.weights)
    shorter = ["--max_length", "8"] if "--max_length" in typed else ["--max_new_tokens", "8"]
    assert main([*command, "-p", "Hi", *shorter]) == 0
    said = shop.capsys.readouterr()
    assert "up to 8 new tokens" in said.err
    assert ("means so many new tokens" in said.err) == ("--max_length" in typed)
    assert ("no chat template" in said.err) == ("--chat_template" in typed)


def check_sample(row: Row, shop: Shop) -> None:
    """Two prompts continued, two texts filled; with a small model in M's place both are written."""
    commands = script(f"{LLADA}/sample.py", "--model_name_or_path", str(shop.weights), "--steps", "2")
    assert [words[0] for words in commands] == ["sample", "infill"]
    assert [len(read(words)["prompt"]) for words in commands] == [2, 2]
    assert main(commands[1]) == 0
    written = shop.capsys.readouterr().out
    assert all(part in written for part in ("The weather today is", "in the park.", "It was a gift."))


def check_old_sft_tool(row: Row, shop: Shop) -> None:
    values = read(["prepare", "sft", *row.names[0].split()[2:]])
    for key in ("model_name_or_path", "dataset_args", "output_dir"):
        assert values[key] == row.names[0].split()[row.names[0].split().index(f"--{key}") + 1]
    assert (values["mask_prompt_loss"], values["num_proc"], values["remove_columns"]) == (True, 32, False)
    data, out = alpaca(shop.folder / "data.json", 3, source="x"), shop.folder / "out"
    words = ["--model_name_or_path", str(shop.weights), "--dataset_args", str(data), "--output_dir", str(out)]
    assert main(["prepare", "sft", *words, "--num_proc", "1", "--remove_columns", "False"]) == 0
    assert "--remove_columns false" in shop.capsys.readouterr().err
    assert set(datasets.load_from_disk(str(out))["train"].column_names) == {"input_ids", "labels", "prompt_len"}


def check_map_fn(row: Row, shop: Shop) -> None:
    refused(["prepare", "sft", *row.names[0].split()], row.reason, shop.capsys)


def check_old_pt_tool(row: Row, shop: Shop) -> None:
    values = read(["prepare", "pretrain", *row.names[0].split()[2:]])
    expected = {"text_field": "text", "max_length": 1024, "insert_eos": True, "drop_tail": True, "num_proc": 32}
    expected |= {"model_name_or_path": "M", "dataset_args": "D", "output_dir": "O", "remove_columns": False}
    assert {key: values[key] for key in expected} == expected


def check_where_the_old_tool_wrote(row: Row, shop: Shop) -> None:
    data, out = jsonl(shop.folder / "t.jsonl", TEN), shop.folder / "out"
    words = ["--model_name_or_path", str(shop.weights), "--dataset_args", str(data), "--output_dir", str(out)]
    assert main(["prepare", "pretrain", *words, "--max_length", "16", "--num_proc", "1", "--drop_tail", "False"]) == 0
    assert datasets.load_from_disk(str(out))["train"].column_names == ["input_ids"]
    settings = json.loads((out / "prepared.json").read_text())["settings"]
    assert {k: settings[k] for k in ("max_length", "insert_eos", "drop_tail")} == {
        "max_length": 16,
        "insert_eos": True,
        "drop_tail": False,
    }


def check_old_merge_tool(row: Row, shop: Shop) -> None:
    values = read(["merge", *row.names[0].split()[2:]])
    assert [values[key] for key in ("lora_path", "base_model_path", "merge_path")] == ["A", "B", "C"]
    assert (values["dtype"], values["push_to_hub"]) == ("fp16", False)


def check_push(row: Row, shop: Shop) -> None:
    refused(["merge", "--lora_path", "A", "--merge_path", "C", *row.names[0].split()], row.reason, shop.capsys)


def scored(shop: Shop, words: list[str]) -> Evaluation:
    """What `[NAME=VALUE …] bash scripts/eval-….sh [flags]` has `unmask eval` do, by way of accelerate's launcher."""
    from accelerate.commands.launch import launch_command_parser

    given = dict(words.pop(0).split("=", 1) for _ in range(words.index("bash")))
    surroundings = {"MODEL": str(shop.weights), "OUTPUT": "P", "LOCAL_DATA": "", **given}
    parsed = launch_command_parser().parse_args(launched(shop, *words[1:], **surroundings)[4:])
    (command,) = script(parsed.training_script, *parsed.training_script_args)
    return evaluated(command)


def settings_of(wanted: Evaluation) -> dict[str, Any]:
    """All that an evaluation is, but for the model's place."""
    found = {name: dataclasses.asdict(getattr(wanted, name)) for name in ("tasks", "scoring", "output")}
    words = dict(word.split("=", 1) for word in str(found["tasks"].pop("model_args")).split(","))
    assert words.pop("pretrained")
    return {**found, "model_args": words, "decoding": wanted.decoding}


def check_eval(row: Row, shop: Shop) -> None:
    """The script and the path ask for the same, and that is what the tutorial's line says."""
    path = next(name for name in row.names if name.startswith("accelerate"))
    words = shlex.split(path)
    (command,) = script(BY_ITS_PATH, *words[words.index(BY_ITS_PATH) + 1 :])
    ours, theirs = (settings_of(w) for w in (scored(shop, row.names[0].split()), evaluated(command)))
    assert ours == theirs
    assert ours["model_args"] == {
        **{"is_check_greedy": "False", "mc_num": "1", "max_length": "1024"},
        **{"steps": "256", "block_size": "64", "cfg": "0.0"},
    }
    assert ours["tasks"]["tasks"] == ["cmmlu"]
    assert (ours["tasks"]["apply_chat_template"], ours["tasks"]["max_batch_size"]) == ("true", 4)
    from accelerate.commands.launch import launch_command_parser

    shop.patch.chdir(ROOT)
    assert Path(launch_command_parser().parse_args(words[2:]).training_script).is_file()


def check_eval_task(row: Row, shop: Shop) -> None:
    wanted = scored(shop, row.typed.split())
    old = row.names[0].split()
    assert (wanted.tasks.tasks, wanted.tasks.num_fewshot) == ([old[1]], int(old[3]))


def check_eval_qwen(row: Row, shop: Shop) -> None:
    """Qwen gets what LLaDA gets: the same tasks, template and length; it is the model that differs."""
    words = row.typed.split()
    qwen, llada = (
        scored(shop, [word.replace("eval-qwen", name) for word in words]) for name in ("eval-qwen", "eval-llada")
    )
    ours, theirs = settings_of(qwen), settings_of(llada)
    assert (qwen.kind, llada.kind) == ("unmask", "llada")
    assert (ours["tasks"], ours["output"]) == (theirs["tasks"], theirs["output"])
    assert (qwen.asked().scoring.objective, llada.asked().scoring.objective) == ("autoregressive", None)
    assert qwen.asked().scoring.max_length == llada.asked().scoring.max_length
    if row.names[0].startswith("evalscope"):
        assert row.to == "unmask eval"
        assert ours["tasks"]["tasks"] == ["ceval-valid"]


def check_serve(row: Row, shop: Shop) -> None:
    """The name and the port, in the tutorial's spelling; tests/test_serve.py asks a server."""
    asked: list[Any] = []
    shop.patch.setattr(serve, "_run", lambda reader, about, *rest: asked.append(about.served_model_name) or 0)
    shop.patch.setattr(
        serve, "listen", lambda host, port: asked.append(port) or types.SimpleNamespace(close=lambda: None)
    )
    assert main(unmask_of(row)) == 0
    assert asked == [8000, "qwen2.5"]


CHECKS: dict[str, Callable[[Row, Shop], None]] = {
    "pip install -r requirements.txt": check_requirements,
    "modelscope download --dataset AI-ModelScope/alpaca-gpt4-data-zh --local_dir D": check_download,
    "modelscope download --model GSAI-ML/LLaDA-8B-Base --local_dir M": check_download,
    "data.ipynb": check_notebook,
    "load_dataset(path,split='train').save_to_disk(out)": check_snippet,
    "124327616": check_count,
    "bash scripts/train-pt.sh": check_bash,
    "bash scripts/train-sft.sh": check_bash,
    "bash scripts/train-qwen.sh": check_bash,
    "bash scripts/train-qwen-pt.sh": check_bash,
    "examples/qwen/pt.py --configs configs/qwen2.5-100M-pt.yaml": check_example,
    **{
        f"accelerate launch --config_file configs/ddp.yaml --num_processes 1 {what}": check_accelerate
        for what in (
            "examples/llada/pt.py --configs configs/llada-100M-pt.yaml",
            "examples/llada/sft.py --configs configs/llada-8b-sft.yaml",
            "examples/qwen/sft.py --configs configs/qwen2.5-7b-alpaca.yaml",
        )
    },
    "configs/qwen3-8b-alpaca.yaml": check_qwen3,
    **{f"configs/{name}.yaml": check_accelerates_files for name in ("cpu", "ddp", "fsdp", "zero1", "zero2", "zero3")},
    "python merge.py --lora_path A --base_model_path B --merge_path C": check_merge,
    "python examples/llada/merge.py --lora_path A --base_model_path B --merge_path C": check_merge,
    "python -u examples/llada/chat.py --model_name_or_path M --steps 128 --max_length 128 --block_size 32": check_chat,
    "python -u examples/llada/chat.py --model_name_or_path M --chat_template False": check_chat,
    "python -u examples/llada/sample.py --model_name_or_path M": check_sample,
    "python examples/qwen/chat.py --model_name_or_path M --max_new_tokens 256 --temperature 0.7": check_chat,
    "python dllm/tools/preprocess_sft_dataset.py --model_name_or_path GSAI-ML/LLaDA-8B-Base --sft_map_fn_path "
    "dllm.utils.default_mdlm_sft_map_fn --dataset_args HuggingFaceTB/smoltalk --output_dir data/sft/llada/smoltalk "
    "--mask_prompt_loss True --num_proc 32 --remove_columns False": check_old_sft_tool,
    "--sft_map_fn_path my.function": check_map_fn,
    "python dllm/tools/preprocess_pt_dataset.py --model_name_or_path M --dataset_args D --output_dir O --text_field "
    "text --max_length 1024 --insert_eos True --drop_tail True --remove_columns False --num_proc 32": check_old_pt_tool,
    "output_dir/max_length-…-insert_eos-…-drop_tail-…": check_where_the_old_tool_wrote,
    "python dllm/tools/merge_peft_adapter.py --adapter_model_name_or_path A --output_model_name_or_path C --dtype fp16 "
    "--push_to_hub False --base_model_name_or_path B": check_old_merge_tool,
    "--push_to_hub True": check_push,
    "python dllm/tools/download_hf_model.py --model_id M": check_download,
    "python dllm/tools/download_hf_dataset.py --dataset_id D --allow_patterns P": check_download,
    "bash scripts/eval-llada.sh": check_eval,
    "accelerate launch --num_processes 1 dllm/pipelines/llada/eval.py --tasks cmmlu --model llada "
    "--apply_chat_template --output_path P --log_samples --max_batch_size 4 --model_args "
    '"pretrained=…,is_check_greedy=False,mc_num=1,max_length=1024,steps=256,block_size=64,cfg=0.0"': check_eval,
    "--tasks ceval-valid --num_fewshot 5": check_eval_task,
    "bash scripts/eval-qwen.sh": check_eval_qwen,
    """evalscope eval --model M --generation-config '{"max_length":1024}' --datasets ceval --dataset-args """
    """'{"ceval":{"local_path":…}}' --work-dir W""": check_eval_qwen,
    "--served-model-name qwen2.5 --port 8000": check_serve,
    "evalscope --eval-type service --eval-batch-size 4 --api-url … --api-key EMPTY": check_serve,
}


@pytest.fixture
def shop(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shop:
    return Shop(tmp_path, weights, monkeypatch, capsys)


@pytest.mark.parametrize("name", CHECKS)
def test_a_command_does_what_the_table_says(name: str, shop: Shop) -> None:
    assert FOUND[name].kind == "command"
    CHECKS[name](FOUND[name], shop)


LIBRARY = {"A2D": "", "BD3LM": "objective", "EditFlow": "objective"}
LIBRARY |= {"Dream": "family", "LLaDA2": "family", "BERT": "family"}


@pytest.mark.parametrize("name", [name for name, what in LIBRARY.items() if what])
def test_a_part_of_the_library_that_is_not_here_is_refused(
    name: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", str(model), "--dataset_args", str(text), "--output_dir", str(tmp_path / "run")]
    words += ["--max_length", "16", "--num_proc", "1", "--bf16", "false", f"--{LIBRARY[name]}", name.lower()]
    refused(["pretrain", *words], FOUND[name].reason, capsys)


def test_a_causal_model_becomes_a_mask_predictor(tmp_path: Path, byte_tokenizer: Any) -> None:
    assert FOUND["A2D"].to == "unmask sft"
    ends = {f"{end}_token_id": getattr(byte_tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    made = tiny("qwen2", causal=True, vocab_size=len(byte_tokenizer))
    for name, value in ends.items():
        setattr(made.config, name, value)
    made.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    assert not models.load(ModelArguments(model_name_or_path=str(tmp_path)), causal=False).model.config.is_causal


# ---------------------------------------------------------------------------------------------------------------------
# Environment variables


def check_swanlab(patch: pytest.MonkeyPatch, folder: Path) -> None:
    begun: dict[str, Any] = {}

    def init(**more: Any) -> types.SimpleNamespace:
        begun.update(more)
        return types.SimpleNamespace(id="one")

    patch.setitem(sys.modules, "swanlab", types.SimpleNamespace(has_run=lambda: False, init=init))
    patch.setenv("SWANLAB_PROJECT", "mine")
    from unmask import trackers

    trackers.BEGIN["swanlab"](trackers.Trackers([], folder, "run", "the config's"), None, None)
    assert begun["project"] == os.environ["SWANLAB_PROJECT"] == "mine"


def check_models_dir(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Training, reading and preparing find a model by its name alone."""
    base = make_model(folder / "models" / "mine", bpe())
    patch.chdir(folder)
    patch.setenv("BASE_MODELS_DIR", str(folder / "models"))
    assert models.load(ModelArguments(model_name_or_path="mine"), fresh=True).fresh
    jsonl(folder / "t.jsonl", TEN)
    words = ["--model_name_or_path", "mine", "--dataset_args", "t.jsonl", "--output_dir", "out", "--max_length", "8"]
    assert main(["prepare", "pretrain", *words, "--num_proc", "1"]) == 0
    assert models.find("mine") == str(base)
    patch.delenv("BASE_MODELS_DIR")
    with pytest.raises(UserError, match=r"no model folder './mine'"):
        models.find("./mine")


def check_datasets_dir(patch: pytest.MonkeyPatch, folder: Path) -> None:
    jsonl(folder / "all" / "mine.jsonl", TEN)
    (folder / "work").mkdir()
    patch.chdir(folder / "work")
    with pytest.raises(UserError, match=r"no file or folder 'mine.jsonl'"):
        corpus.load("mine.jsonl")
    patch.setenv("BASE_DATASETS_DIR", str(folder / "all"))
    assert corpus.load("mine.jsonl[train:2,test:1]").train["text"] == TEN[:2]


def check_python_path(patch: pytest.MonkeyPatch, folder: Path) -> None:
    done = run([sys.executable, "-m", "unmask", "--version"], PYTHONPATH="../")
    assert done.returncode == 0, done.stderr


def check_passed_on(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """What is set for a launcher reaches the training, as it was set."""
    shop = Shop(folder, folder, patch, None)  # type: ignore[arg-type]
    given = {"NCCL_DEBUG": "warn", "CUDA_VISIBLE_DEVICES": "5", "TORCH_DISTRIBUTED_DEBUG": "DETAIL"}
    given |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    assert launched(shop, "scripts/train-sft.sh", **given)[:4] == list(given.values())


def check_offline(variable: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    def check(patch: pytest.MonkeyPatch, folder: Path) -> None:
        """In a process of its own, since libraries read it once. No name is looked up."""
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        ask = (
            "from unmask import corpus\ncorpus.load('some/name')"
            if variable == "HF_DATASETS_OFFLINE"
            else "import huggingface_hub.constants as c; assert c.HF_HUB_OFFLINE; raise SystemExit('offline')"
        )
        surroundings = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {variable: "1"}
        done = subprocess.run([sys.executable, "-c", ask], env=surroundings, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 1
        assert "offline" in done.stderr.lower()

    return check


def check_cache(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    with tokens.results(False) as kept, tokens.results(True) as temporary:
        assert kept == folder / "cache" / "unmask"
        assert folder / "cache" not in temporary.parents
    source = Path(str(datasets.config.__file__)).read_text(encoding="utf-8")
    assert re.search(r'HF_DATASETS_CACHE = .*(getenv|environ).*"HF_DATASETS_CACHE"', source)


def check_temporary(patch: pytest.MonkeyPatch, folder: Path) -> None:
    assert FOUND["HF_DATASETS_TEMP_DIR"].to == "TMPDIR"
    assert not readers_of("HF_DATASETS_TEMP_DIR")
    ask = "from unmask import tokens\nwith tokens.results(True) as folder: print(folder)"
    done = run([sys.executable, "-c", ask], TMPDIR=str(folder))
    assert folder in Path(done.stdout.strip()).parents


def readers_of(variable: str) -> list[str]:
    """Files of the libraries for data and models, and of ours, that name a variable."""
    import huggingface_hub

    found = []
    for package in (datasets, huggingface_hub, sys.modules["unmask"]):
        folder = Path(str(package.__file__)).parent
        found += [str(p) for p in folder.rglob("*.py") if variable in p.read_text(encoding="utf-8", errors="replace")]
    return found


def check_unread(patch: pytest.MonkeyPatch, folder: Path, variable: str = "HF_DATASETS_SKIP_VERIFY") -> None:
    assert readers_of("HF_HUB_OFFLINE")  # the search finds what is there
    assert not readers_of(variable)


def check_remote_code(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """What `datasets` says of a repository that is a script becomes one line; the script is not run."""
    (folder / "mine").mkdir()
    (folder / "mine" / "mine.py").write_text("raise SystemExit('the script ran')")
    patch.setenv("HF_DATASETS_TRUST_REMOTE_CODE", "True")
    load = datasets.load_dataset
    at = str(folder / "mine" / "mine.py")
    patch.setattr("unmask.sources.datasets.load_dataset", lambda name, *_, **more: load(at, **more))
    with pytest.raises(UserError, match=FOUND["HF_DATASETS_TRUST_REMOTE_CODE=True"].reason):
        corpus.load("hf:some/mine")


def check_code(patch: pytest.MonkeyPatch, folder: Path) -> None:
    name = "HF_ALLOW_CODE_EVAL"
    patch.delenv(name, raising=False)
    with pytest.raises(UserError, match=name):
        programs.check_allowed(["humaneval_local"])
    patch.setenv(name, "1")
    programs.check_allowed(["humaneval_local"])


def check_term(patch: pytest.MonkeyPatch, folder: Path) -> None:
    stream = types.SimpleNamespace(isatty=lambda: True)
    patch.setattr(terminal.sys, "stdin", stream)
    patch.setattr(terminal.sys, "stdout", stream)
    for term, drawn in (("xterm", True), ("dumb", False)):
        patch.setenv("TERM", term)
        assert terminal.is_terminal() is drawn


VARIABLES: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "SWANLAB_PROJECT": check_swanlab,
    "BASE_MODELS_DIR": check_models_dir,
    "BASE_DATASETS_DIR": check_datasets_dir,
    "PYTHONPATH=../": check_python_path,
    "CUDA_VISIBLE_DEVICES=5": check_passed_on,
    "TORCH_NCCL_ASYNC_ERROR_HANDLING=1": check_passed_on,
    "NCCL_DEBUG=warn": check_passed_on,
    "TORCH_DISTRIBUTED_DEBUG=DETAIL": check_passed_on,
    "HF_DATASETS_OFFLINE=1": check_offline("HF_DATASETS_OFFLINE"),
    "TRANSFORMERS_OFFLINE=1": check_offline("TRANSFORMERS_OFFLINE"),
    "HF_DATASETS_CACHE": check_cache,
    "HF_DATASETS_TEMP_DIR": check_temporary,
    "HF_DATASETS_SKIP_VERIFY=1": check_unread,
    "VLLM_USE_MODELSCOPE": lambda patch, folder: check_unread(patch, folder, "VLLM_USE_MODELSCOPE"),
    "HF_DATASETS_TRUST_REMOTE_CODE=True": check_remote_code,
    "HF_ALLOW_CODE_EVAL=1": check_code,
    "TERM": check_term,
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_does_what_the_table_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FOUND[name].kind == "variable"
    VARIABLES[name](monkeypatch, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is missing

INVENTORY: dict[str, set[str]] = {
    "command": CHECKS.keys(),
    "library": {*LIBRARY},
    "key": KEYS.keys() | WRONG.keys() | {OTHER},
    "option": OPTIONS.keys() | {"--configs FILE", "--return_dict", "chat.args"} | EVALUATED,
    "spec": SPECS.keys() | BAD_SPECS.keys() | HUB.keys() | {"streaming: true", "sft.py: streaming: true"},
    "variable": VARIABLES.keys(),
}


@pytest.mark.parametrize("kind", INVENTORY)
def test_the_table_has_every_name_once_and_no_other(kind: str) -> None:
    names = [name for row in ROWS if row.kind == kind for name in row.names]
    assert sorted(names) == sorted(INVENTORY[kind])


def test_every_row_is_of_a_kind_and_a_state() -> None:
    assert {row.kind for row in ROWS} == INVENTORY.keys()
    states = r"works|maps to `[^`]+`|refused: \S.*|no effect: \S.*"
    assert not [row for row in ROWS if not re.fullmatch(states, row.state) or not row.here]
    assert sum(map(len, INVENTORY.values())) == sum(len(row.names) for row in ROWS) == len(FOUND)


def test_the_chinese_table_says_the_same() -> None:
    words = {"可用": "works", "对应": "maps", "拒绝": "refused", "不起作用": "no"}
    kinds = {
        "命令": "command",
        "库": "library",
        "配置项": "key",
        "选项": "option",
        "数据集": "spec",
        "变量": "variable",
    }
    for ours, theirs in zip(ROWS, table(CHINESE), strict=True):
        assert theirs.names == ours.names
        assert kinds[theirs.kind] == ours.kind
        assert words[re.match(r"[^\W\d_]+", theirs.state)[0]] == ours.state.split()[0].rstrip(":")  # type: ignore[index]
        assert code(theirs.here) == code(ours.here)
        if ours.state.startswith("refused"):
            assert code(theirs.state)[-1] == ours.reason
        elif ours.state.startswith("maps"):
            assert code(theirs.state) == code(ours.state)


NOT_TYPED = {
    "dllm": "the package of the tutorial's code",
    "HfArgumentParser.parse_dict": "how its files were read",
    "Some keys are not used by the HfArgumentParser: [...]": "what it said of an unknown key",
    "hf_cache_rank*": "a folder that it made",
    "max_steps: 10": "a value of its files",
    "_get_logits": "a function of it",
    "parse_spec": "a function of it",
}


def test_every_name_in_the_inventory_of_features_is_covered(shared: Path) -> None:
    """Each that stands between backticks, each key and each variable of sections 1.1 to 1.4 and 1.8."""
    if not (shared / "research" / "features.md").is_file():
        pytest.skip("needs ../shared/research/features.md, the inventory of the tutorial")
    text = (shared / "research" / "features.md").read_text(encoding="utf-8").replace(r"\|", "|")
    sections = {found[1]: found[0] for found in re.finditer(r"(?ms)^## (1\.\d) .*?(?=^#)", text)}
    named = [name for s in ("1.1", "1.2", "1.3", "1.4", "1.8") for name in code(sections[s])]
    named = [name for name in named if not name.startswith("/")]  # paths on the machine of its author
    assert len(named) > 100
    everything = "\n".join([*FOUND, *(typed for row in ROWS for typed in code(row.here))])
    gone = [name for name in named if name not in NOT_TYPED and not is_covered(name, everything)]
    assert not gone
    keys = re.findall(r"(?m)^\| ([^|]+) \|", sections["1.2"])[2:]
    words = {w for cell in keys for w in re.findall(r"\b[a-z][a-z_0-9]+\b", re.sub(r"\([^)]*\)", "", cell))}
    prose = {"any", "other", "of", "the", "fields", "transformers", "key", "eval", "per_device_train_batch_size"}
    assert words - prose <= FOUND.keys()
    variables = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", re.sub(r"\([^)]*\)", "", sections["1.8"].replace("DETAIL", ""))))
    assert variables - {"TEMP_DIR"} <= {re.split(r"=", name)[0] for name in INVENTORY["variable"]}


def is_covered(name: str, everything: str) -> bool:
    """Whether a name stands in the table, as it is or, for a line of several words, each of its options."""
    name = name.removesuffix(" …").replace("… ", "")
    if name in everything or name in ("dllm/pipelines/*", "dllm/core/*"):  # what is in these has rows of its own
        return True
    flags = re.findall(r"--\w+", name)
    return bool(flags) and all(flag in everything for flag in flags)
