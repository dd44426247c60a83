"""`unmask estimate`: the settings of a run in, bytes and operations out, and nothing is loaded or written."""

import json
import os
import typing

import pytest

from unmask import estimation, processor
from unmask.__main__ import main

SMALL = ["--model_name_or_path", "llada-200k", "--max_length", "32", "--per_device_train_batch_size", "2"]


def asked(capsys, *words, kind="pretrain"):
    assert main(["estimate", kind, *SMALL, *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_table_says_what_goes_where(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", "pretrain", *SMALL, "--max_steps", "50"]) == 0
    told = capsys.readouterr().out
    for word in ("weights", "gradients", "optimiser", "in passing", "a step: 16 rows, 512 tokens", "50 steps: about"):
        assert word in told
    assert not os.listdir(tmp_path), "nothing is written"


def test_the_parts_make_the_peak(capsys):
    found = asked(capsys)
    assert found["peak_bytes"] == pytest.approx(sum(found["bytes"].values()), abs=10)
    assert found["rows_per_step"] == 2 * 8
    assert found["tokens_per_step"] == 2 * 8 * 32
    assert found["seconds_per_step"] > 0


WAYS = [
    ("ddp", (), ("weights", "gradients", "optimiser")),
    ("zero1", ("optimiser",), ("weights", "gradients", "buckets")),
    ("zero2", ("optimiser", "gradients"), ("weights", "buckets")),
    ("zero3", ("optimiser", "gradients", "weights"), ("buckets",)),
    ("fsdp", ("optimiser", "gradients", "weights"), ("passing",)),
    ("zero2-offload", (), ("weights", "buckets")),
    ("zero3-offload", (), ("gathered", "buckets")),
    ("fsdp-offload", (), ("gathered", "passing")),
]


@pytest.mark.parametrize(("sharding", "shared", "whole"), WAYS)
def test_devices_share_what_the_way_of_sharing_says(sharding, shared, whole, capsys):
    one, four = (asked(capsys, "--num_processes", count, "--sharding", sharding) for count in "14")
    for name in shared:
        assert four["bytes"][name] == pytest.approx(one["bytes"][name] / 4, abs=1)
    for name in whole:
        assert four["bytes"][name] == pytest.approx(one["bytes"][name], rel=1e-3)
        assert four["bytes"][name] > 0
    assert four["offloaded_bytes"] == pytest.approx(one["offloaded_bytes"] / 4, abs=1)


def test_what_is_offloaded_is_what_lay_on_the_device(capsys):
    for way in ("zero2", "zero3", "fsdp"):
        here, away = (asked(capsys, "--num_processes", "2", "--sharding", way + off) for off in ("", "-offload"))
        gone = here["bytes"].keys() - away["bytes"].keys()
        assert gone == {"optimiser", "gradients"} | ({"weights"} if way != "zero2" else set())
        more = 2 * here["bytes"]["gradients"] if way != "fsdp" else here["bytes"]["gradients"]  # there in float32
        rest = sum(here["bytes"][name] for name in gone - {"gradients"})
        assert away["offloaded_bytes"] == pytest.approx(rest + more, rel=1e-3)
        assert here["offloaded_bytes"] == 0


def test_the_ways_that_compute_in_bfloat16_keep_what_they_keep(capsys):
    """Bytes a parameter under AdamW: of DeepSpeed 2 and 2, and 12 of its optimiser; of FSDP2 4, 4 and 8."""
    for way, each in (("zero1", (2, 2, 12)), ("zero3", (2, 2, 12)), ("fsdp", (4, 4, 8)), ("ddp", (4, 4, 8))):
        found = asked(capsys, "--sharding", way)
        for name, size in zip(("weights", "gradients", "optimiser"), each, strict=True):
            assert found["bytes"][name] == pytest.approx(size * found["parameters"], rel=0.02), (way, name)
    whole = asked(capsys, "--sharding", "zero2", "--bf16", "false")
    assert whole["bytes"]["weights"] == pytest.approx(4 * whole["parameters"], rel=0.02)


def test_what_lies_off_the_device_is_told(capsys):
    assert main(["estimate", "pretrain", *SMALL, "--sharding", "fsdp-offload"]) == 0
    told = capsys.readouterr().out
    assert "fsdp-offload over 1 devices" in told
    assert "and in the machine's memory, for each device" in told


def test_settings_are_those_of_the_run(capsys):
    usual = asked(capsys)["bytes"]
    assert asked(capsys, "--optim", "sgd")["bytes"]["optimiser"] == 0
    assert asked(capsys, "--gradient_checkpointing", "true")["bytes"]["passing"] < usual["passing"]
    assert asked(capsys, "--bf16", "false")["bytes"]["passing"] != usual["passing"]
    lora = asked(capsys, "--lora", "true", "--target_modules", "q_proj", kind="sft")
    assert lora["trained"] < lora["parameters"] / 100
    assert asked(capsys, "--packing", "true", "--row_length", "8", kind="sft")["tokens_per_step"] == 2 * 8 * 8


def test_a_device_that_is_not_here_has_no_time(capsys, monkeypatch):
    monkeypatch.setattr(processor, "here", lambda device, bfloat16: None)
    assert main(["estimate", "pretrain", *SMALL, "--device", "cuda"]) == 0
    told = capsys.readouterr().out
    assert "how long that takes is known where there is a cuda" in told


def test_four_bits_take_a_quarter_of_what_is_frozen(capsys):
    lora = ["--lora", "true", "--target_modules", "q_proj", "--device", "cuda", "--dtype", "bfloat16"]
    whole = asked(capsys, *lora, kind="sft")["bytes"]["weights"]
    four = asked(capsys, *lora, "--load_in_4bit", "true", kind="sft")["bytes"]["weights"]
    assert four < whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "estimate what? Not ''"),
        (["eval"], "estimate what? Not 'eval'"),
        (["pretrain"], "nothing to start from; name a preset"),
        (["pretrain", "--model_name_or_path", "llada-100N"], "Did you mean"),
        (["pretrain", *SMALL, "--num_processes", "0"], "--num_processes is 0; it must be at least 1"),
        (["pretrain", *SMALL, "--row_length", "0"], "--row_length is 0; it must be at least 1"),
        (["pretrain", *SMALL, "--sharding", "zero4"], "zero4"),
        (["pretrain", *SMALL, "--lora", "true"], "pretraining changes every weight"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys):
    assert main(["estimate", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told


def test_the_tutorials_recipes_can_be_estimated(capsys):
    for kind, recipe, model in (
        ("pretrain", "configs/llada-100M-pt.yaml", "llada-100M"),
        ("sft", "configs/llada-8b-sft.yaml", "llada-200k"),
    ):
        assert main(["estimate", kind, "--config", recipe, "--model_name_or_path", model, "--max_length", "64"]) == 0
        assert "trillion operations" in capsys.readouterr().out


def test_every_way_of_sharing_says_what_it_shares():
    ways = set(typing.get_args(estimation.Sharding))
    assert ways == {*estimation.SHARED, *estimation.OFF} == {way for way, *_ in WAYS}
