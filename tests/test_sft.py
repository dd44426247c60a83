"""`unmask sft`: instructions and answers in, a tuned model or an adapter out that others can load."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from runs import curve, make_model, run, same_weights
from safetensors.torch import load_file

from unmask import models
from unmask.__main__ import main
from unmask.report import read_metrics
from unmask.template import Template

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "stone", "river", "hill"]


def make_chats(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """Alpaca rows: a few words, to be said again."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        said = " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))
        made.append({"instruction": "Say again", "input": said, "output": said})
    path.write_text(json.dumps(made))
    return path


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"{make_chats(tmp_path_factory.mktemp('chats') / 'chats.json')}[train:32,test:8]"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> Path:
    """A small LLaDA with weights, whose context holds a conversation spelt in bytes."""
    from unmask import checkpoint

    folder = make_model(tmp_path_factory.mktemp("base") / "empty", byte_tokenizer, max_sequence_length=160)
    loaded = models.load(str(folder), fresh=True)
    checkpoint.save(loaded.model, loaded.tokenizer, folder.with_name("base"))
    return folder.with_name("base")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> Path:
    """A small Qwen2 with weights, as it comes: causal, without a mask token in its config."""
    config = transformers.Qwen2Config(
        vocab_size=len(byte_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=160,
        eos_token_id=byte_tokenizer.eos_token_id,
        pad_token_id=byte_tokenizer.pad_token_id,
        bos_token_id=byte_tokenizer.bos_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen")
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


USUAL = {
    "max_length": 140,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "logging_steps": 1,
    "eval_steps": 100,
    "save_steps": 100,
    "bf16": False,
    "num_proc": 1,
}
LORA = {"lora": True, "r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


def words(model: Path, data: str, out: Path, **settings: Any) -> list[str]:
    given = {"model_name_or_path": model, "dataset_args": data, "output_dir": out, **USUAL, **settings}
    return ["sft", *(word for key, value in given.items() if value is not None for word in (f"--{key}", str(value)))]


def sft(model: Path, data: str, out: Path, *, expect: int = 0, **settings: Any) -> list[dict[str, Any]]:
    assert main(words(model, data, out, **settings)) == expect
    return read_metrics(out)


def refused(capsys: pytest.CaptureFixture[str], told: str, arguments: list[str]) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unmask:")]
    assert len(lines) == 1
    assert re.search(told, lines[0]), lines[0]


# ---------------------------------------------------------------------------------------------------------------------
# What comes out


def test_tuning_lowers_the_bound_of_the_answers(tmp_path: Path, base: Path, chats: str) -> None:
    lines = sft(base, chats, tmp_path / "run", max_steps=30, learning_rate=1e-2, eval_on_start=True)
    bounds = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert bounds[-1] < 0.7 * bounds[0]


def test_lora_leaves_an_adapter_and_the_base_as_it_was(tmp_path: Path, base: Path, chats: str) -> None:
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    sft(base, chats, tmp_path / "run", **LORA)
    final = tmp_path / "run" / "checkpoint-final"
    assert (final / "adapter_model.safetensors").is_file()
    assert not (final / "model.safetensors").exists()
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 0 < told["trainable"] < told["parameters"]
    worn = models.load(str(final), causal=None)
    assert worn.adapter == str(final)
    assert not worn.causal


def test_the_tuned_models_chat_prompt_is_the_prompt_it_was_trained_on(tmp_path: Path, base: Path, chats: str) -> None:
    """Also with a template of one's own, which goes with the checkpoint."""
    mine = tmp_path / "mine.jinja"
    mine.write_text(
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}: {{ m['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant: {% endif %}"
    )
    sft(base, chats, tmp_path / "run", max_steps=1, chat_template=mine)
    loaded = models.load(str(tmp_path / "run" / "checkpoint-final"))
    turns = [{"role": "user", "content": "Say again\n\nred"}, {"role": "assistant", "content": "red"}]
    question, answer = Template(loaded.tokenizer).turns(turns)
    assert Template(loaded.tokenizer).prompt(turns[:1]) == question.ids
    assert loaded.tokenizer.decode(question.ids) == (
        "<|start_header_id|>user: Say again\n\nred<|eot_id|><|start_header_id|>assistant: "
    )
    assert loaded.tokenizer.decode(answer.ids) == "red<|eot_id|>"


def test_packing_changes_neither_loss_nor_validation(tmp_path: Path, base: Path, chats: str) -> None:
    kept = {"eos_tail": "8", **LORA}
    one = sft(base, chats, tmp_path / "one", packing=False, **kept)
    two = sft(base, chats, tmp_path / "two", packing=True, **kept)
    for key in ("loss", "grad_norm"):
        for (a,), (b,) in zip(curve(one, key), curve(two, key), strict=True):
            assert a == pytest.approx(b, rel=1e-4)
    assert one[-1]["eval_loss"] == pytest.approx(two[-1]["eval_loss"], rel=1e-5)


def test_one_by_eight_is_eight_by_one(tmp_path: Path, base: Path, chats: str) -> None:
    """With the tail that goes up to the longest row of the step, wherever in the step that is."""
    made = []
    for rows, micro in ((1, 8), (8, 1)):
        how = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": micro}
        made.append(sft(base, chats, tmp_path / f"{rows}", eos_tail="step", group_by_length=False, **how))
    for (a,), (b,) in zip(curve(made[0], "loss"), curve(made[1], "loss"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("lora", [{}, {**LORA, "lora_dropout": 0.1}], ids=["whole", "lora"])
def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path, base: Path, chats: str, lora: dict) -> None:
    """Dropout too: its random state is in the checkpoint."""
    usual = {"max_steps": 6, **lora}
    whole = sft(base, chats, tmp_path / "whole", **usual)
    sft(base, chats, tmp_path / "cut", save_steps=3, **usual)
    for path in (tmp_path / "cut" / "checkpoint-6", tmp_path / "cut" / "checkpoint-final"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink()
        path.rmdir()
    again = sft(base, chats, tmp_path / "cut", save_steps=3, resume_from_checkpoint="auto", **usual)
    assert curve(again, "step", "loss", "grad_norm") == curve(whole, "step", "loss", "grad_norm")
    one, two = (tmp_path / name / "checkpoint-final" for name in ("whole", "cut"))
    if lora:
        a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    else:
        assert same_weights(one, two)


def test_an_adapter_is_trained_on(tmp_path: Path, base: Path, chats: str) -> None:
    sft(base, chats, tmp_path / "one", **LORA)
    first = tmp_path / "one" / "checkpoint-final"
    sft(first, chats, tmp_path / "two", lora=True)
    a, b = (load_file(f / "adapter_model.safetensors") for f in (first, tmp_path / "two" / "checkpoint-final"))
    assert a.keys() == b.keys()
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_prepared_rows_and_conversations_give_the_same_run(tmp_path: Path, base: Path, chats: str) -> None:
    out = tmp_path / "rows"
    made = ["--model_name_or_path", str(base), "--dataset_args", chats, "--output_dir", str(out), "--num_proc", "1"]
    assert main(["prepare", "sft", *made, "--max_length", "140", "--shuffle_rows", "false"]) == 0
    one = sft(base, chats, tmp_path / "one")
    two = sft(base, str(out), tmp_path / "two", load_preprocessed_data=True)
    assert curve(one, "loss") == curve(two, "loss")
    assert one[-1]["eval_loss"] == two[-1]["eval_loss"]


# ---------------------------------------------------------------------------------------------------------------------
# Left to right


def test_a_causal_model_is_tuned_as_it_is(tmp_path: Path, causal: Path, chats: str) -> None:
    """Its loss is transformers' own, on the rows and in the order of the masked objective."""
    lines = sft(causal, chats, tmp_path / "run", objective="autoregressive", eval_on_start=True, learning_rate=1e-2)
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]
    tuned = models.load(str(tmp_path / "run" / "checkpoint-final"), causal=None)
    assert tuned.causal
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-final")
    ids = torch.tensor([Template(tuned.tokenizer).prompt([{"role": "user", "content": "hi"}])])
    assert torch.equal(plain(ids).logits, tuned.model(ids).logits)


def test_a_causal_model_becomes_a_mask_predictor(tmp_path: Path, causal: Path, chats: str) -> None:
    sft(causal, chats, tmp_path / "run", **LORA)
    worn = models.load(str(tmp_path / "run" / "checkpoint-final"), causal=None)
    assert not worn.causal
    ids = torch.arange(8)[None]
    other = ids.clone()
    other[0, -1] = 100
    assert not torch.equal(worn.model(ids).logits[0, 0], worn.model(other).logits[0, 0])


# ---------------------------------------------------------------------------------------------------------------------
# The tutorial's recipe


def test_the_tutorials_recipe_runs_on_its_own_data(tmp_path: Path, base: Path, shared: Path) -> None:
    """seed/llada-8b-sft.yaml with other paths and sizes, on rows that `unmask prepare sft` made of Chinese Alpaca."""
    alpaca = shared / "data" / "alpaca" / "alpaca_zh_train.json"
    rows = tmp_path / "alpaca-zh-gpt"
    made = ["--model_name_or_path", str(base), "--dataset_args", f"{alpaca}[train:60]", "--output_dir", str(rows)]
    assert main(["prepare", "sft", *made, "--max_length", "160", "--num_proc", "1"]) == 0
    recipe = yaml.safe_load((shared / "seed" / "llada-8b-sft.yaml").read_text(encoding="utf-8"))
    changed = {
        "model_name_or_path": str(base),
        "dataset_args": f"{rows}[train:16,test:4]",
        "output_dir": str(tmp_path / "run"),
        "max_length": 160,
        "report_to": "none",
        "max_steps": 2,
    }
    assert set(changed) <= {*recipe, "report_to"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changed))
    assert main(["sft", "--configs", str(path)]) == 0
    final = tmp_path / "run" / "checkpoint-final"
    settings = json.loads((final / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (32, 64, 0.05)
    assert len(settings["target_modules"]) == 7
    assert main(["merge", "--lora_path", str(final), "--base_model_path", str(base), "--merge_path", f"{final}-m"]) == 0
    assert models.load(f"{final}-m").model.config.model_type == "llada"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["script", "accelerate"])
def test_the_launchers_give_the_same_run(tmp_path: Path, base: Path, chats: str, launcher: str) -> None:
    import sys

    root = Path(__file__).resolve().parent.parent
    settings = words(base, chats, tmp_path / "run", **LORA)[1:]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dict(zip((w[2:] for w in settings[::2]), settings[1::2], strict=True))))
    if launcher == "script":
        done = run(["bash", str(root / "scripts" / "train-sft.sh")], PYTHON=sys.executable, CONFIG=str(recipe))
    else:
        start = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(root / "configs" / "cpu.yaml"),
        ]
        done = run([*start, "-m", "unmask", "sft", "--config", str(recipe)])
    assert done.returncode == 0, done.stderr
    here = sft(base, chats, tmp_path / "here", **LORA)
    for (one,), (other,) in zip(curve(read_metrics(tmp_path / "run"), "loss"), curve(here, "loss"), strict=True):
        assert one == pytest.approx(other)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"r": 8}, "--r is a setting of LoRA; add --lora true"),
        ({"lora": True, "r": 0}, "r is 0|--r is 0"),
        ({"lora": True, "target_modules": "q_prj"}, "q_prj.*q_proj"),
        ({"from_scratch": True}, "--from_scratch true"),
        ({"dataset_args": None}, "no data given"),
        ({"truncation": "left"}, "truncation.*left"),
        ({"train_on": "lasst"}, "train_on.*lasst"),
        ({"eos_tail": "blok:3"}, "--eos_tail 'blok:3'"),
        ({"packing": True, "eos_tail": "step"}, "--packing with --eos_tail step"),
        ({"objective": "autoregressive", "eos_tail": "step"}, "needs no tail"),
        ({"chat_template": "no.jinja"}, "no.jinja"),
        ({"max_length": 1}, "--max_length"),
        ({"max_length": 100_000}, "beyond the model's 160"),
        ({"text_field": "x"}, "unknown option --text_field"),
        ({"max_steps": 0}, "--max_steps is 0"),
    ],
    ids=lambda v: ",".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else None,
)
def test_bad_settings(
    tmp_path: Path, base: Path, chats: str, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = words(base, chats, tmp_path / "run", **changes)
    if changes.get("dataset_args", "") is None:
        at = arguments.index("--output_dir")
        arguments = ["sft", *arguments[1:3], *arguments[at:]]
    refused(capsys, told, arguments)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"question": "a", "answer": "b"}] * 4, "answer.*question|question.*answer"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}] * 4, "row 0"),
        ([{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}] * 4, "row 0.*empty"),
        ([{"input_ids": [1, 2, 999], "labels": [-100, 2, 999]}] * 4, "999"),
        ([{"input_ids": [1, 2, 3]}] * 4, "labels"),
    ],
    ids=["columns", "roles", "empty", "ids", "labels"],
)
def test_bad_data(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], told: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(capsys, told, words(base, str(path), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_not_tuned_whole(tmp_path: Path, base: Path, chats: str, capsys: Any) -> None:
    sft(base, chats, tmp_path / "one", **LORA)
    refused(
        capsys, "is an adapter; type --lora true", words(tmp_path / "one" / "checkpoint-final", chats, tmp_path / "x")
    )


def test_an_adapter_that_is_trained_on_keeps_its_shape(tmp_path: Path, base: Path, chats: str, capsys: Any) -> None:
    sft(base, chats, tmp_path / "one", **LORA)
    refused(
        capsys,
        "--r would change nothing",
        words(tmp_path / "one" / "checkpoint-final", chats, tmp_path / "x", lora=True, r=8),
    )


def test_a_recipe_with_lora_can_be_told_to_train_all_weights(tmp_path: Path, base: Path, chats: str) -> None:
    sft(base, chats, tmp_path / "run", lora=False, r=8, lora_alpha=16, max_steps=1)
    assert (tmp_path / "run" / "checkpoint-final" / "model.safetensors").is_file()


def test_an_answer_that_was_cut_in_preparing_gets_no_end(tmp_path: Path, base: Path, chats: str, capsys: Any) -> None:
    out = tmp_path / "rows"
    made = ["--model_name_or_path", str(base), "--dataset_args", chats, "--output_dir", str(out), "--num_proc", "1"]
    assert main(["prepare", "sft", *made, "--max_length", "80"]) == 0
    lines = sft(base, str(out), tmp_path / "run", max_steps=1, eos_tail="16", max_length=140)
    import datasets

    kept = datasets.load_from_disk(str(out))["test"]
    learnt = sum(min(16, 80 - len(row["input_ids"])) + sum(i != -100 for i in row["labels"]) for row in kept)
    assert any(len(row["input_ids"]) == 80 for row in kept)
    assert lines[-1]["eval_tokens"] == learnt


def test_an_adapter_of_others_on_a_causal_base_is_read(tmp_path: Path, causal: Path) -> None:
    """As peft alone saves it: no tokenizer, nothing of ours beside it."""
    from peft import LoraConfig, get_peft_model

    bare = transformers.AutoModelForCausalLM.from_pretrained(causal)
    get_peft_model(bare, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "a"
    )
    loaded = models.load(str(tmp_path / "a"), causal=None, base=str(causal))
    assert loaded.causal
    assert loaded.adapter == str(tmp_path / "a")


def test_a_model_without_weights_is_named(tmp_path: Path, model: Path, chats: str, capsys: Any) -> None:
    refused(capsys, "has no weights", words(model, chats, tmp_path / "run", max_length=60))


def test_a_run_with_another_adapter_is_not_gone_on_with(tmp_path: Path, base: Path, chats: str, capsys: Any) -> None:
    sft(base, chats, tmp_path / "run", save_steps=2, **LORA)
    again = words(base, chats, tmp_path / "run", save_steps=2, resume_from_checkpoint="auto", **(LORA | {"r": 8}))
    refused(capsys, "belongs to another run: lora", again)
