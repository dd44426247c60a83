"""What a model writes while it learns: the same training as without, one loop, files that know where they stand."""

from __future__ import annotations

import json
from typing import Any

import accelerate
import pytest
import torch
import transformers
from runs import curve, launch, make_model, pretrain, same_weights, words
from test_sft import base, causal, chats, sft  # noqa: F401

from unmask import models, report, sampling
from unmask.config import TrainingArguments, UserError
from unmask.sampling import QUESTIONS, Sampler, cut
from unmask.trackers import Trackers


@pytest.fixture
def data(text):
    return f"{text}[train:50,test:10]"


def samples(folder):
    return report.read_metrics(folder, report.SAMPLES)


def sampler(folder, loaded, *, chat=False, **settings):
    return Sampler(TrainingArguments(sample_every=1, **settings), loaded, folder, Trackers([], folder), chat=chat)


@pytest.fixture(scope="module")
def loaded(model):
    return models.load(str(model), fresh=True)


# -- training is what it would be


def test_samples_do_not_change_training(model, data, tmp_path):
    drawn = {"sample_args": "temperature=1.0", "sample_max_new_tokens": 6}
    plain = pretrain(model, data, tmp_path / "plain")
    watched = pretrain(model, data, tmp_path / "watched", sample_every=1, sample_prompts="a tiny", **drawn)
    assert curve(watched, "loss", "grad_norm") == curve(plain, "loss", "grad_norm")
    assert same_weights(tmp_path / "plain" / "checkpoint-final", tmp_path / "watched" / "checkpoint-final")
    assert len(samples(tmp_path / "watched")) == 6
    assert not (tmp_path / "plain" / report.SAMPLES).exists()


def test_samples_with_dropout_do_not_change_training(tmp_path, byte_tokenizer, data):
    model = make_model(tmp_path / "model", byte_tokenizer, attention_dropout=0.3)
    one = pretrain(model, data, tmp_path / "one", max_steps=3)
    two = pretrain(model, data, tmp_path / "two", max_steps=3, sample_every=1, sample_max_new_tokens=4)
    assert curve(one, "loss") == curve(two, "loss")
    assert same_weights(tmp_path / "one" / "checkpoint-final", tmp_path / "two" / "checkpoint-final")


def test_writing_leaves_modes_and_randomness_as_they_were(loaded, tmp_path):
    model = loaded.model.train()
    frozen = model.get_input_embeddings().eval()
    before = {name: part.training for name, part in model.named_modules()}
    assert {True, False} == set(before.values())
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    sampler(tmp_path, loaded, sample_args={"temperature": 1.0}, sample_max_new_tokens=4).write(1)
    assert {name: part.training for name, part in model.named_modules()} == before
    assert torch.equal(torch.random.get_rng_state(), state)
    frozen.train()


def test_the_mode_comes_back_after_an_error_too(loaded, tmp_path, monkeypatch):
    def fail(row):
        assert not loaded.model.training
        raise RuntimeError("out of memory")
        yield

    made = sampler(tmp_path, loaded)
    loaded.model.train()
    monkeypatch.setattr(made.writer, "write", fail)
    with pytest.raises(RuntimeError):
        made.write(1)
    assert loaded.model.training


def test_a_sample_that_fails_is_told_once_and_training_goes_on(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Sampler, "write", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory\nmore")))
    lines = pretrain(model, data, tmp_path / "run", max_steps=3, sample_every=1)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    told = [line for line in capsys.readouterr().err.splitlines() if "no samples" in line]
    assert len(told) == 1
    assert "RuntimeError: out of memory)" in told[0]


# -- when


def run_of(made, folder, steps, stop_at=None):
    """Go through a run without a model; returns the steps at which samples were written."""
    args, written = transformers.TrainingArguments(str(folder)), []
    accelerate.Accelerator(cpu=True)
    state, control = transformers.TrainerState(max_steps=steps), transformers.TrainerControl()
    state.is_world_process_zero = True
    made.write = lambda step, narrow: written.append(step) or []
    made.show = lambda found: None
    made.on_train_begin(args, state, control)
    for state.global_step in range(1, steps + 1):
        control.should_training_stop = state.global_step in (stop_at, steps)
        made.on_step_end(args, state, control)
    return written


@pytest.mark.parametrize(
    ("every", "steps"), [(2, [2, 4, 5]), (2.9, [2, 4, 5]), (0.4, [2, 4, 5]), (0.5, [3, 5]), (9, [5])]
)
def test_samples_come_every_so_many_steps_and_at_the_end(loaded, tmp_path, every, steps):
    made = sampler(tmp_path, loaded)
    made.every = every
    assert run_of(made, tmp_path, 5) == steps


def test_a_run_that_is_stopped_does_not_wait_for_samples(loaded, tmp_path):
    assert run_of(sampler(tmp_path, loaded), tmp_path, 3, stop_at=2) == [1, 3]


def test_weights_that_are_shared_out_are_left_alone_and_said(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "is_deepspeed_zero3_enabled", lambda: True)
    assert run_of(sampler(tmp_path, loaded), tmp_path, 3) == []
    assert "samples are left out" in capsys.readouterr().err


def test_a_resumed_run_has_the_samples_of_one_that_was_never_stopped(model, data, tmp_path):
    usual = {"max_steps": 6, "save_steps": 3, "sample_every": 2, "sample_max_new_tokens": 6}
    usual |= {"sample_args": "temperature=1.0"}
    pretrain(model, data, tmp_path / "run", **usual)
    whole = samples(tmp_path / "run")
    assert [line["step"] for line in whole] == [2, 4, 6]
    for left in ("checkpoint-6", "checkpoint-final"):
        (tmp_path / "run" / left).rename(tmp_path / left)
    with (tmp_path / "run" / report.SAMPLES).open("a") as file:
        file.write('{"step": 6, "cut by a cr')
    pretrain(model, data, tmp_path / "run", resume_from_checkpoint="auto", **usual)
    assert samples(tmp_path / "run") == whole
    assert same_weights(tmp_path / "checkpoint-final", tmp_path / "run" / "checkpoint-final")


@pytest.mark.slow
def test_of_two_processes_one_writes_and_the_curve_is_the_same(model, data, tmp_path):
    shape = {"max_steps": 4, "per_device_train_batch_size": 2, "sample_every": 2, "sample_max_new_tokens": 4}
    one = pretrain(model, data, tmp_path / "one", gradient_accumulation_steps=2, **shape)
    done = launch(2, words(model, data, tmp_path / "two", **shape | {"gradient_accumulation_steps": 1}))
    assert done.returncode == 0, done.stderr[-3000:]
    two = report.read_metrics(tmp_path / "two")
    for a, b in zip(curve(one, "loss", "grad_norm"), curve(two, "loss", "grad_norm"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert [line["step"] for line in samples(tmp_path / "two")] == [2, 4]


# -- what


def test_a_text_is_gone_on_from_as_it_is(loaded, tmp_path):
    [line] = sampler(tmp_path, loaded, sample_prompts=["<|mdm_mask|> a"], sample_max_new_tokens=5).write(7)
    assert line["step"] == 7
    assert line["prompt"] == "<|mdm_mask|> a"
    assert line["tokens"] <= 5
    assert line["finish_reason"] == ("stop" if line["tokens"] < 5 else "length")


def test_without_prompts_it_begins_with_nothing_or_answers_two_questions(loaded, base, tmp_path):  # noqa: F811
    assert [asked.prompt for asked in sampler(tmp_path, loaded).asked] == [""]
    chat = sampler(tmp_path, models.load(str(base)), chat=True)
    assert [asked.prompt for asked in chat.asked] == QUESTIONS


def test_texts_are_drawn_and_questions_answered_as_chat_does(loaded, base, causal, tmp_path):  # noqa: F811
    assert sampler(tmp_path, loaded).settings == {"temperature": 1.0, "remasking": "random"}
    assert sampler(tmp_path, loaded, sample_args={"rule": "threshold"}).settings == {
        "temperature": 1.0,
        "rule": "threshold",
    }
    answering = sampler(tmp_path, models.load(str(base)), chat=True, sample_args={"steps": 8}).settings
    assert answering == {"block_size": 32, "eos_stop": True, "steps": 8}
    assert sampler(tmp_path, models.load(str(causal), causal=True)).settings == {"temperature": 1.0}


def test_a_sample_is_what_the_loop_writes(loaded, tmp_path):
    greedy = {"temperature": 0, "remasking": "low_confidence"}
    made = sampler(tmp_path, loaded, sample_prompts=["a tiny model"], sample_max_new_tokens=6, sample_args=greedy)
    [line] = made.write(1)
    ids = torch.tensor([loaded.tokenizer.encode("a tiny model", add_special_tokens=False)])
    whole = loaded.model.eval().generate(ids, max_new_tokens=6)
    assert line["text"] == loaded.tokenizer.decode(whole[0, ids.shape[1] :][: line["tokens"]])


@pytest.mark.parametrize("kind", ["masked", "autoregressive", "lora"])
def test_questions_are_answered_through_the_chat_template(request, chats, tmp_path, kind):  # noqa: F811
    model = request.getfixturevalue("causal" if kind == "autoregressive" else "base")
    more: dict[str, Any] = {"objective": "autoregressive"} if kind == "autoregressive" else {}
    more |= {"lora": True} if kind == "lora" else {}
    asked = {"sample_every": 2, "sample_prompts": "Say again", "sample_max_new_tokens": 8}
    sft(model, chats, tmp_path / "plain", **more)
    sft(model, chats, tmp_path / "run", **more, **asked)
    assert [(line["step"], line["prompt"]) for line in samples(tmp_path / "run")] == [
        (2, "Say again"),
        (4, "Say again"),
    ]
    name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    one, two = ((tmp_path / run / "checkpoint-final" / name).read_bytes() for run in ("plain", "run"))
    assert one == two


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_args": "cache=dual,block_size=4"},
        {"sample_args": "rule=threshold,steps=99", "bf16": True},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "objective": "autoregressive", "bf16": True},
    ],
    ids=lambda s: ",".join(f"{key}={value}" for key, value in s.items()),
)
def test_samples_are_written_however_the_model_is_trained_and_read(model, data, tmp_path, capsys, settings):
    usual = {"max_steps": 2, "sample_every": 1, "sample_max_new_tokens": 12, "sample_prompts": "the"}
    pretrain(model, data, tmp_path / "run", **usual, **settings)
    assert [line["step"] for line in samples(tmp_path / "run")] == [1, 2]
    assert "no samples" not in capsys.readouterr().err


def test_a_causal_model_begins_with_the_beginning_of_a_text(model, data, tmp_path):
    pretrain(model, data, tmp_path / "run", objective="autoregressive", max_steps=2, sample_every=2)
    assert [line["prompt"] for line in samples(tmp_path / "run")] == [""]


def test_the_model_holds_the_sample(loaded, tmp_path):
    made = sampler(tmp_path, loaded, sample_prompts=["a" * 60], sample_max_new_tokens=50)
    assert [asked.new for asked in made.asked] == [4]


def test_samples_are_short_lines_on_standard_error(model, data, tmp_path, capsys):
    pretrain(model, data, tmp_path / "run", max_steps=2, sample_every=2, sample_prompts="a\ntiny \x1b[31m")
    told = capsys.readouterr()
    [line] = [line for line in told.err.splitlines() if line.startswith("step 2: a tiny")]
    assert "\x1b" not in told.err
    assert len(line) <= sampling.LINE * 2
    assert told.out == ""
    [written] = samples(tmp_path / "run")
    assert json.loads(json.dumps(written)).keys() == {"step", "prompt", "text", "tokens", "finish_reason"}


def test_a_line_is_cut_where_it_is_too_long():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"


# -- what cannot be


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sample_every": -1}, "--sample_every is -1"),
        ({"sample_every": "nan"}, "--sample_every is nan"),
        ({"sample_every": 1, "sample_max_new_tokens": 0}, "--sample_max_new_tokens is 0"),
        ({"sample_every": 1, "sample_args": "temprature=1"}, "Did you mean 'temperature'"),
        ({"sample_every": 1, "sample_prompts": "a" * 64}, "has 64 tokens, and the model holds 64"),
    ],
)
def test_settings_that_cannot_be_are_told_before_the_run(model, data, tmp_path, capsys, settings, told):
    pretrain(model, data, tmp_path / "run", expect=2, **settings)
    said = capsys.readouterr().err.strip().splitlines()
    assert told in said[-1]
    assert not (tmp_path / "run").exists()


def test_samples_can_be_turned_off_beside_their_prompts():
    given = {"sample_every", "sample_prompts"}
    assert not sampling.wanted(TrainingArguments(sample_every=0, sample_prompts=["a"]), given)
    with pytest.raises(UserError, match="say how often"):
        sampling.wanted(TrainingArguments(sample_prompts=["a"]), {"sample_prompts"})


def test_a_setting_of_unmasking_is_none_of_a_causal_model(causal, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="writes left to right"):
        sampler(tmp_path, models.load(str(causal), causal=True), sample_args={"block_size": 4})
