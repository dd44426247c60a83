"""Steps that would ruin the model are left out; what comes after several of them is as wished."""

import copy
import json
import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from runs import curve, pretrain, same_weights, weights, words

from unmask import divergence
from unmask.__main__ import main
from unmask.config import UserError
from unmask.divergence import FEW, Guard
from unmask.report import read_metrics
from unmask.trainer import Trainer


@pytest.fixture
def spec(text):
    return f"{text}[train:50,test:10]"


def spoil(monkeypatch, *steps, by=math.nan):
    """The gradient of these steps, counted from 1, is multiplied by something."""
    step = transformers.Trainer.training_step

    def training_step(self, model, *given, **more):
        loss = step(self, model, *given, **more)
        if self.state.global_step + 1 in steps:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= by
            loss = loss * by
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)


# -- the judgement


@given(norms=st.lists(st.floats(0.1, 10), min_size=FEW, max_size=200), bad=st.sampled_from([math.nan, math.inf, 1e9]))
def test_a_bad_step_is_told_and_does_not_change_what_is_usual(norms, bad):
    guard, other = Guard(), Guard()
    for step, norm in enumerate(norms):
        assert guard.look(norm, step) is None
        other.look(norm, step)
    assert str(bad) in guard.look(bad, len(norms)) or "1e+09" in guard.look(bad, len(norms))
    assert list(guard.norms) == list(other.norms)


def test_without_a_past_no_norm_is_blown_up():
    guard = Guard()
    assert guard.look(1.0, 0) is None
    assert guard.look(1e12, 1) is None


def test_a_factor_of_nought_looks_for_numbers_alone():
    guard = Guard(factor=0)
    for step in range(50):
        guard.look(1.0, step)
    assert guard.look(1e12, 50) is None
    assert guard.look(math.inf, 51)


def test_so_many_in_a_row_are_too_many_and_a_good_one_between_makes_them_none():
    guard = Guard(most=2)
    for step, (norm, gives_up) in enumerate([(math.nan, False), (1.0, False), (math.nan, False), (math.nan, True)]):
        guard.look(norm, step)
        assert guard.gives_up == gives_up
    assert guard.first == 2


def test_a_resumed_guard_judges_as_the_old_one():
    guard = Guard()
    for step in range(30):
        guard.look(1.0 + step, step)
    again = Guard()
    again.go_on(json.loads(json.dumps(guard.state())))
    assert again.look(1e6, 30) == guard.look(1e6, 30)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"factor": 0.5}, {"factor": -1.0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="it must be"):
        Guard(**wrong)


# -- runs


def test_a_step_that_is_left_out_leaves_the_weights_and_the_rest_of_the_curve_alone(
    model, spec, tmp_path, monkeypatch, capsys
):
    """As a step whose learning rate is nought, without a trace in the optimiser."""
    spoil(monkeypatch, 3)
    lines = pretrain(model, spec, tmp_path / "run", save_steps=1, save_total_limit=50, lr_scheduler_type="constant")
    assert same_weights(tmp_path / "run/checkpoint-2", tmp_path / "run/checkpoint-3")
    assert not same_weights(tmp_path / "run/checkpoint-3", tmp_path / "run/checkpoint-4")
    said = [line for line in lines if line.get("skipped_steps")]
    assert [line["step"] for line in said] == [3]
    assert "loss" not in said[0]
    assert [step for step, _ in curve(lines, "step", "loss")] == [1, 2, 4, 5, 6]
    assert all(math.isfinite(loss) for _, loss in curve(lines, "step", "loss"))
    assert "step 3 is left out" in capsys.readouterr().err
    for name, tensor in weights(tmp_path / "run/checkpoint-final").items():
        assert tensor.isfinite().all(), name


def test_the_mean_of_several_steps_is_that_of_the_good_ones(model, spec, tmp_path, monkeypatch):
    each = pretrain(model, spec, tmp_path / "each", learning_rate=0, weight_decay=0)
    spoil(monkeypatch, 2)
    lines = pretrain(model, spec, tmp_path / "run", learning_rate=0, weight_decay=0, logging_steps=3)
    wanted = dict(curve(each, "step", "loss"))
    found = dict(curve(lines, "step", "loss"))
    assert found[3] == pytest.approx((wanted[1] + wanted[3]) / 2, rel=1e-6)
    assert found[6] == pytest.approx((wanted[4] + wanted[5] + wanted[6]) / 3, rel=1e-6)
    assert [line.get("skipped_steps") for line in lines if "loss" in line] == [1, None]


def test_the_rows_of_such_a_step_are_kept(model, spec, tmp_path, monkeypatch, byte_tokenizer):
    spoil(monkeypatch, 3)
    pretrain(model, spec, tmp_path / "run")
    (path,) = (tmp_path / "run" / divergence.FOLDER).iterdir()
    assert path.name == "step-3-process-0.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 4
    assert len({row["place"] for row in rows}) == 4
    for row in rows:
        assert byte_tokenizer.decode(row["input_ids"]) == row["text"]
        assert 0 < row["t"] <= 1
        assert all(place < len(row["input_ids"]) for place in row["masked"])
        assert row["nats"] >= 0


def test_after_so_many_in_a_row_the_run_ends_with_a_code_of_its_own(model, spec, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 3, 4, 5, 6, 7, 8)
    arguments = words(model, spec, tmp_path / "run", max_steps=20, save_steps=1, max_skipped_steps=3)
    assert main(["pretrain", *arguments]) == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the run has diverged: 3 steps in a row were left out" in said
    assert "the last checkpoint from before is checkpoint-2" in said  # which newer ones of the streak did not drive out
    assert not (tmp_path / "run" / "checkpoint-final").exists()


def test_rollback_takes_the_weights_from_before_and_the_rows_that_come(model, spec, tmp_path, monkeypatch, capsys):
    usual = {"max_steps": 12, "save_steps": 2, "save_total_limit": 50, "max_skipped_steps": 2}
    spoil(monkeypatch, 6, 7)
    back, moments = Trainer._roll_back, {}

    def roll_back(self, folder):
        back(self, folder)
        self.model.save_pretrained(tmp_path / "after")
        moments.update(copy.deepcopy(self.optimizer.state_dict()["state"]))

    monkeypatch.setattr(Trainer, "_roll_back", roll_back)
    lines = pretrain(model, spec, tmp_path / "run", **usual, on_divergence="rollback", lr_scheduler_type="constant")
    assert "went back to the weights of checkpoint-4" in capsys.readouterr().err
    assert [step for step, _ in curve(lines, "step", "loss")] == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    assert same_weights(tmp_path / "after", tmp_path / "run/checkpoint-4")
    wanted = torch.load(tmp_path / "run/checkpoint-4/optimizer.pt")["state"]
    assert moments.keys() == wanted.keys()
    assert all(torch.equal(moments[n]["exp_avg"], wanted[n]["exp_avg"]) for n in wanted)


def test_going_back_has_an_end(model, spec, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, *range(4, 100))
    arguments = words(model, spec, tmp_path / "run", max_steps=60, save_steps=1, max_skipped_steps=2)
    arguments += ["--save_total_limit", "50", "--on_divergence", "rollback"]
    assert main(["pretrain", *arguments]) == 3
    said = capsys.readouterr().err
    assert said.count("went back to the weights of") == divergence.ROLLBACKS
    assert f"after {divergence.ROLLBACKS} times of going back" in said.strip().splitlines()[-1]


def test_a_blown_up_gradient_is_left_out_too(model, spec, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 25, by=1e6)
    lines = pretrain(model, spec, tmp_path / "run", max_steps=28)
    assert [line["step"] for line in lines if line.get("skipped_steps")] == [25]
    assert "is usual" in capsys.readouterr().err


def test_off_looks_at_nothing(model, spec, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 3)
    arguments = words(model, spec, tmp_path / "run", on_divergence="off")
    assert main(["pretrain", *arguments]) == 3
    assert "the loss is nan at step 3" in capsys.readouterr().err


def test_stopped_and_resumed_in_a_streak_it_is_the_uninterrupted_run(model, spec, tmp_path, monkeypatch):
    usual = {"max_steps": 10, "save_steps": 1, "save_total_limit": 50, "max_skipped_steps": 3}
    spoil(monkeypatch, 4, 5, 8)
    pretrain(model, spec, tmp_path / "whole", **usual)
    pretrain(model, spec, tmp_path / "parts", **usual)
    import shutil

    for step in range(5, 11):
        shutil.rmtree(tmp_path / f"parts/checkpoint-{step}")
    lines = pretrain(model, spec, tmp_path / "parts", **usual, resume_from_checkpoint="auto")
    assert same_weights(tmp_path / "parts/checkpoint-final", tmp_path / "whole/checkpoint-final")
    for some in (lines, read_metrics(tmp_path / "whole")):
        assert [line["step"] for line in some if line.get("skipped_steps")] == [4, 5, 8]
