"""Training through the command line: the same curve however a step is shared, stopped or watched."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from runs import (
    SETTINGS,
    curve,
    launch,
    make_model,
    make_text,
    pretrain,
    run,
    same_weights,
    wait_for_steps,
    weights,
    words,
)

from unmask import checkpoint, sealed
from unmask.__main__ import main
from unmask.folders import resume_command


@pytest.fixture(scope="module")
def data(text):
    return f"{text}[train:50,test:10]"


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """An uninterrupted run: (folder, metrics)."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, pretrain(model, data, out)


def close(one, two, rel=1e-5):
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=rel)


# -- invariants


@pytest.mark.parametrize(("rows", "micro"), [(8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("settings", [{}, {"random_length_ratio": 0.5, "objective_args": "normalise=token"}])
def test_eight_by_one_is_one_by_eight(model, data, tmp_path, rows, micro, settings):
    shape = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": micro, "max_steps": 4}
    reference = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 4}
    one = pretrain(model, data, tmp_path / "one", **settings, **shape)
    two = pretrain(model, data, tmp_path / "two", **settings, **reference)
    close(curve(one, "loss", "grad_norm"), curve(two, "loss", "grad_norm"))


def test_two_processes_are_one_over_an_epochs_end_too(model, text, tmp_path):
    """37 rows and 8 in a step: the last step of each epoch has 5, which two processes cannot share evenly."""
    data = f"{text}[train:13,test:9]"
    shape = {"max_steps": None, "num_train_epochs": 3, "eval_strategy": "epoch", "save_steps": 8}
    one = pretrain(model, data, tmp_path / "one", per_device_train_batch_size=2, gradient_accumulation_steps=4, **shape)
    rows = json.loads((tmp_path / "one" / "run.json").read_text())["identity"]["rows_per_step"]
    assert rows == 8
    steps = curve(one, "step")[-1][0] / 3
    done = launch(
        2, words(model, data, tmp_path / "two", per_device_train_batch_size=2, gradient_accumulation_steps=2, **shape)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert steps == int(steps) > 1
    close(curve(one, "loss", "grad_norm"), curve(two, "loss", "grad_norm"))
    evaluations = [[line["eval_loss"] for line in lines if "eval_loss" in line] for lines in (one, two)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    assert {line["eval_tokens"] for line in one if "eval_tokens" in line} == {
        line["eval_tokens"] for line in two if "eval_tokens" in line
    }


RESUMED = [
    {},
    {"dataloader_num_workers": 2},
    {"streaming": True},
    {"streaming": True, "dataloader_num_workers": 2, "shuffle": False},
    {"random_length_ratio": 0.3, "lr_scheduler_type": "linear"},
]


@pytest.mark.parametrize("settings", RESUMED, ids=lambda s: ",".join(s) or "plain")
def test_stop_and_resume_is_uninterrupted_bit_for_bit(model, text, tmp_path, settings):
    """Step 5 is in the middle of the second epoch (3 steps each)."""
    data = f"{text}[train:6,test:5]"
    usual = {"max_steps": 8, "save_steps": 5, "per_device_train_batch_size": 4, **settings}
    whole = pretrain(model, data, tmp_path / "run", **usual)
    final = tmp_path / "whole"
    (tmp_path / "run" / "checkpoint-final").rename(final)
    for left in ("checkpoint-8",):
        for path in sorted((tmp_path / "run" / left).iterdir()):
            path.unlink()
        (tmp_path / "run" / left).rmdir()
    resumed = pretrain(model, data, tmp_path / "run", resume_from_checkpoint="auto", **usual)
    assert curve(resumed, "step", "loss", "grad_norm", "learning_rate") == curve(
        whole, "step", "loss", "grad_norm", "learning_rate"
    )
    assert same_weights(final, tmp_path / "run" / "checkpoint-final")
    assert [line["step"] for line in resumed if "loss" in line] == list(range(1, 9))


def test_a_resumed_stream_tokenises_nothing_that_was_read_before(model, tmp_path, monkeypatch):
    from unmask.encode import Encoder

    counted, flat = [0], Encoder.flat

    def counting(self, texts):
        counted[0] += len(texts)
        return flat(self, texts)

    monkeypatch.setattr(Encoder, "flat", counting)
    data = f"{make_text(tmp_path / 'long.jsonl', documents=900)}[train:800,test:5]"
    usual = {"max_steps": 300, "save_steps": 280, "streaming": True, "shuffle": False}
    whole = pretrain(model, data, tmp_path / "run", **usual)
    read, counted[0] = counted[0], 0
    for left in ("checkpoint-final", "checkpoint-300"):
        shutil.rmtree(tmp_path / "run" / left, ignore_errors=True)
    assert (tmp_path / "run" / "checkpoint-280" / "stream.json").is_file()
    resumed = pretrain(model, data, tmp_path / "run", resume_from_checkpoint="auto", **usual)
    assert curve(resumed, "step", "loss", "grad_norm", "epoch") == curve(whole, "step", "loss", "grad_norm", "epoch")
    assert counted[0] <= read - 128  # it reads 64 at once, and 64 before it begins


def test_a_stream_trains_as_the_data_set_does_in_file_order(model, data, tmp_path):
    one = pretrain(model, data, tmp_path / "one", shuffle=False)
    two = pretrain(model, data, tmp_path / "two", shuffle=False, streaming=True)
    assert curve(one, "loss", "grad_norm") == curve(two, "loss", "grad_norm")


def test_evaluation_does_not_change_training(model, data, tmp_path, whole):
    watched = pretrain(model, data, tmp_path / "watched", eval_steps=1, eval_on_start=True)
    assert curve(watched, "loss", "grad_norm") == curve(whole[1], "loss", "grad_norm")
    assert same_weights(tmp_path / "watched" / "checkpoint-final", whole[0] / "checkpoint-final")


def test_two_evaluations_of_the_same_weights_give_the_same_number(model, data, tmp_path):
    lines = pretrain(model, data, tmp_path / "run", learning_rate=0.0, eval_steps=2, random_length_ratio=0.5)
    found = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(found) == 3
    assert len(set(found)) == 1


def test_the_evaluation_batch_does_not_change_the_number(model, data, tmp_path, whole):
    lines = pretrain(model, data, tmp_path / "run", per_device_eval_batch_size=1)
    ours, theirs = (next(line for line in lines if "eval_loss" in line) for lines in (lines, whole[1]))
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-6)
    assert ours["eval_tokens"] == theirs["eval_tokens"]


def test_more_draws_lower_the_standard_error(model, data, tmp_path, whole):
    lines = pretrain(model, data, tmp_path / "run", eval_draws=16)
    error = [next(line["eval_loss_se"] for line in lines if "eval_loss" in line) for lines in (lines, whole[1])]
    assert error[0] < error[1]


def test_group_by_length_and_gradient_checkpointing_are_understood(model, data, tmp_path):
    settings = {"group_by_length": True, "gradient_checkpointing": True, "drop_tail": False}
    assert curve(pretrain(model, data, tmp_path / "run", **settings), "loss")


# -- what a run leaves


def test_a_run_leaves_what_it_says(whole):
    folder, lines = whole
    names = {path.name for path in folder.iterdir()}
    assert names >= {"checkpoint-6", "checkpoint-final", "metrics.jsonl", "loss.png", "run.json"}
    assert (folder / "checkpoint-6" / "optimizer.pt").exists()
    assert not (folder / "checkpoint-final" / "optimizer.pt").exists()
    assert (folder / "checkpoint-final" / "tokenizer.json").exists()
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["settings"]["data"]["max_length"] == 16
    assert manifest["settings"]["training"]["seed"] == 42
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["parameters"] == sum(w.numel() for w in weights(folder / "checkpoint-final").values())
    last = [line for line in lines if "eval_loss" in line][-1]
    assert last["step"] == 6
    assert last["eval_loss_se"] > 0
    # a byte-level vocabulary: all tokens but the ends of text are one byte
    assert last["eval_loss"] / math.log(2) < last["eval_bits_per_byte"] < 1.1 * last["eval_loss"] / math.log(2)


def test_the_final_model_loads_with_transformers_alone(whole):
    import transformers

    folder = whole[0] / "checkpoint-final"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.model_type == "llada"
    assert transformers.AutoTokenizer.from_pretrained(folder).mask_token == "<|mdm_mask|>"
    assert all(w.dtype == torch.float32 for w in loaded.parameters())


def test_training_lowers_the_bound(model, data, tmp_path):
    lines = pretrain(
        model, data, tmp_path / "run", max_steps=60, learning_rate=1e-2, eval_on_start=True, logging_steps=20
    )
    bounds = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert bounds[-1] < bounds[0] - 1


def test_bfloat16_arithmetic_keeps_float32_weights(model, data, tmp_path, whole):
    lines = pretrain(model, data, tmp_path / "run", bf16=True)
    close(curve(lines, "loss"), curve(whole[1], "loss"), rel=3e-2)
    assert curve(lines, "loss") != curve(whole[1], "loss")
    stored = torch.load(tmp_path / "run" / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert all(s["exp_avg"].dtype == torch.float32 for s in stored["state"].values())


def test_without_test_rows_some_are_held_out_and_said(model, text, tmp_path, capsys):
    lines = pretrain(model, str(text), tmp_path / "run", max_steps=1)
    assert any("eval_loss" in line for line in lines)
    assert "held out 1 of 60" in capsys.readouterr().err


# -- the tutorial's file, launchers, plug-ins


def tutorial(shared, tmp_path, model, data, **changes):
    settings = yaml.safe_load((shared / "seed" / "llada-100M-pt.yaml").read_text())
    settings |= {"model_name_or_path": str(model), "dataset_args": data, "output_dir": str(tmp_path / "run")}
    settings |= {"max_steps": 3, "max_length": 16, "warmup_steps": 1, **changes}
    path = tmp_path / "pt.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("flag", ["--config", "--configs"])
def test_the_tutorials_file_runs(shared, tmp_path, model, text, flag):
    path = tutorial(shared, tmp_path, model, f"{text}[train:5_0, test:10]")
    assert main(["pretrain", flag, str(path), "--learning_rate", "2e-5"]) == 0
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["settings"]["training"]["learning_rate"] == 2e-5
    assert manifest["settings"]["training"]["gradient_accumulation_steps"] == 8


def test_the_tutorials_file_runs_under_accelerate_launch(shared, tmp_path, model, data):
    path = tutorial(shared, tmp_path, model, data)
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(root / "configs" / "cpu.yaml")]
    done = run([*command, "-m", "unmask", "pretrain", "--configs", str(path)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoint-final" / "model.safetensors").exists()


def test_an_objective_from_a_file_is_used(model, data, tmp_path):
    example = Path(__file__).parent.parent / "examples" / "custom_objective.py"
    assert len(example.read_text().splitlines()) <= 40
    lines = pretrain(model, data, tmp_path / "run", objective=str(example))
    assert curve(lines, "loss")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["objective"]["name"] == str(example)


def test_old_keys_are_understood(model, data, tmp_path):
    lines = pretrain(model, data, tmp_path / "run", warmup_steps=None, warmup_ratio=0.5, evaluation_strategy="no")
    rates = [rate for (rate,) in curve(lines, "learning_rate")]
    assert rates.index(max(rates)) in (2, 3)


# -- stopping


def test_ctrl_c_saves_and_says_how_to_go_on(model, data, tmp_path):
    out = tmp_path / "run"
    arguments = words(model, data, out, max_steps=100_000, logging_steps=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "unmask", "pretrain", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(process, out)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "--resume_from_checkpoint auto" in told
    assert "Traceback" not in told
    saved = list(out.glob("checkpoint-*"))
    assert len(saved) == 1
    assert (saved[0] / "optimizer.pt").exists()
    step = int(saved[0].name.split("-")[1])
    assert step >= 3
    assert f"stopped at step {step}" in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--a 'x y'", "--a 'x y' --resume_from_checkpoint auto"),
        ("--overwrite_output_dir --a 1", "--a 1 --resume_from_checkpoint auto"),
        ("--overwrite_output_dir True --a 1", "--a 1 --resume_from_checkpoint auto"),
        (
            "--a 'my run --overwrite_output_dir true'",
            "--a 'my run --overwrite_output_dir true' --resume_from_checkpoint auto",
        ),
        ("--resume_from_checkpoint run/checkpoint-6 --a 1", "--a 1 --resume_from_checkpoint auto"),
        ("--a 1 --overwrite-output-dir=True", "--a 1 --resume_from_checkpoint auto"),
        ("--a 1 --resume_from_checkpoint auto", "--a 1 --resume_from_checkpoint auto"),
    ],
)
def test_the_command_to_go_on_is_the_same_but_for_resuming(given, told):
    assert resume_command(f"unmask pretrain {given}") == f"unmask pretrain {told}"


def test_warnings_before_the_first_step(model, data, tmp_path, capsys):
    pretrain(model, data, tmp_path / "run", warmup_steps=2000, max_steps=2, eval_steps=200, save_steps=1000)
    told = capsys.readouterr().err
    assert "warm-up (2000 steps) outlasts the run (2 steps)" in told
    assert "no validation falls inside the run of 2 steps" in told
    assert "no checkpoint falls inside the run of 2 steps" in told


def test_output_is_quiet_where_there_is_no_terminal(model, data, tmp_path):
    done = run([sys.executable, "-m", "unmask", "pretrain", *words(model, data, tmp_path / "run")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) < 12, done.stderr
    assert SETTINGS["max_steps"] == 6


def test_tensorboard_gets_the_curves(model, data, tmp_path):
    pytest.importorskip("tensorboard")
    pretrain(model, data, tmp_path / "run", report_to="tensorboard", max_steps=2)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_a_run_that_was_stopped_at_a_step_of_validation_makes_up_for_it(tmp_path, byte_tokenizer):
    """Told to stop there, a run saves and does not validate; told nothing, it has, and does not do so again."""
    model, data = make_model(tmp_path / "model", byte_tokenizer), make_text(tmp_path / "text.jsonl")
    how = {"eval_steps": 2, "save_steps": 1, "save_total_limit": 9, "eval_on_start": True}
    spec = f"{data}[train:50,test:10]"
    whole = pretrain(model, spec, tmp_path / "run", **how)
    looked = [line["step"] for line in whole if "eval_loss" in line]
    assert looked == [0, 2, 4, 6]
    for step, owes in ((1, False), (2, True)):
        run = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "run", run)
        for later in [run / "checkpoint-final", *(run / f"checkpoint-{n}" for n in range(step + 1, 7))]:
            shutil.rmtree(later)
        held = run / f"checkpoint-{step}"
        assert not checkpoint.owes_validation(held)
        if owes:  # as it is where the signal came in that very step
            state = json.loads((held / "trainer_state.json").read_text())
            state["log_history"] = [line for line in state["log_history"] if line["step"] != 2 or "loss" in line]
            (held / "trainer_state.json").write_text(json.dumps(state))
            (held / "manifest.json").unlink()
            sealed.seal(held, {})
            lines = (run / "metrics.jsonl").read_text().splitlines()
            kept = [line for line in lines if not (json.loads(line)["step"] == 2 and "eval_loss" in line)]
            (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
        lines = pretrain(model, spec, run, **how, resume_from_checkpoint="auto")
        assert [line["step"] for line in lines if "eval_loss" in line] == looked
        assert [line["eval_loss"] for line in lines if "eval_loss" in line] == [
            line["eval_loss"] for line in whole if "eval_loss" in line
        ]
