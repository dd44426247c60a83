"""Trackers run without a login, or say what to install; curves and samples stand in them; none can end a run."""

import importlib.util
import json
import os
import socket
import sys
import types

import pytest
import transformers
from runs import pretrain, same_weights
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from unmask import report
from unmask.config import UserError
from unmask.trackers import BEGIN, Trackers, set_up

LEVELS = ["0.1", "0.3", "0.5", "0.7", "0.9"]
CURVES = ["train/loss", "train/learning_rate", "train/grad_norm", "train/tokens", "train/tokens_per_second"]
CURVES += ["eval/loss", "eval/loss_se", "eval/bits_per_byte"]


@pytest.fixture
def data(text):
    return f"{text}[train:50,test:10]"


@pytest.fixture
def installed(monkeypatch):
    """Makes modules look installed or missing."""
    real = importlib.util.find_spec

    def choose(**there):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: there[name] or None if name in there else real(name, *a)
        )

    return choose


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No key, no setting of the user's, no network but this machine, and a folder where nobody else writes."""
    for name in list(os.environ):
        if name.startswith(("SWANLAB", "WANDB", "TRACKIO", "TENSORBOARD")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path / "swanlab"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    real = socket.socket.connect

    def connect(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise AssertionError(f"a tracker reaches for {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


# -- checked before the run


@pytest.mark.parametrize(("board", "mode"), [(True, "local"), (False, "offline")])
def test_swanlab_without_a_key_runs_on_this_machine_and_says_so(installed, monkeypatch, tmp_path, capsys, board, mode):
    installed(swanlab=True, swanboard=board)
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path))
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    assert set_up(["swanlab"]) == ["swanlab"]
    assert os.environ["SWANLAB_MODE"] == mode
    assert f"{mode} mode" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SWANLAB_API_KEY", "SWANLAB_MODE"])
def test_swanlabs_own_settings_are_left_alone(installed, monkeypatch, tmp_path, name):
    installed(swanlab=True, swanboard=True)
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path))
    monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("SWANLAB_PROJECT", "mine")
    set_up(["swanlab"])
    assert os.environ.get("SWANLAB_MODE") == ("mine" if name == "SWANLAB_MODE" else None)
    assert os.environ["SWANLAB_PROJECT"] == "mine"


def test_a_missing_tracker_prints_its_install_command(installed):
    installed(wandb=False)
    with pytest.raises(UserError, match="pip install wandb"):
        set_up(["wandb"])


# -- names and ids


class Stub(types.SimpleNamespace):
    """A tracker's package that notes how a run was begun."""

    def __init__(self, **more):
        super().__init__(begun=[], finished=0, run=None, has_run=lambda: self.run is not None, **more)

    def init(self, **how):
        self.begun.append({key: value for key, value in how.items() if value is not None})
        self.run = types.SimpleNamespace(id=how.get("id") or f"id{len(self.begun)}", name=how.get("name"))
        return self.run

    def finish(self):
        self.finished += 1
        self.run = None


VARIABLES = {
    "swanlab": {"project": "SWANLAB_PROJECT", "name": "SWANLAB_EXP_NAME", "id": "SWANLAB_RUN_ID"},
    "wandb": {"project": "WANDB_PROJECT", "name": "WANDB_NAME", "id": "WANDB_RUN_ID"},
}


@pytest.mark.parametrize("name", VARIABLES)
def test_the_users_environment_comes_before_the_settings_and_is_never_changed(alone, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, stub := Stub())
    BEGIN[name](Trackers([], tmp_path, "ours", "our project"), None, None)
    assert stub.begun == [{"name": "ours", "project": "our project"}]
    stub.run = None
    for variable in VARIABLES[name].values():
        monkeypatch.setenv(variable, "mine")
    before = dict(os.environ)
    BEGIN[name](Trackers([], tmp_path, "ours", "our project"), None, None)
    assert {key: stub.begun[1][key] for key in VARIABLES[name]} == dict.fromkeys(VARIABLES[name], "mine")
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", VARIABLES)
def test_a_resumed_run_goes_on_in_the_trackers_run_and_a_new_one_does_not(alone, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, stub := Stub())
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        stub.run = None
        BEGIN[name](Trackers([], tmp_path / folder), None, None)
    first, again, other = stub.begun
    assert again["id"] == "id1"
    assert again["resume"] == "allow"
    assert first["name"] == again["name"] == "a"
    assert other["name"] == "b"
    assert "id" not in first | other


@pytest.mark.parametrize("name", VARIABLES)
def test_a_run_that_the_user_began_is_taken_and_not_ended(alone, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, stub := Stub())
    stub.init()
    ours = Trackers([], tmp_path)
    ours.members[name] = transformers.TrainerCallback()
    ours.on_train_begin(None, None, None)
    ours.finish()
    assert (len(stub.begun), stub.finished) == (1, 0)


# -- a tracker that is down


def broken(event):
    """An integration that raises at an event."""

    def fail(self, *args, **known):
        raise ConnectionError(f"no way at {event}\nand more")

    return type("Down", (transformers.TrainerCallback,), {event: fail})


EVENTS = [name for name in vars(transformers.TrainerCallback) if name.startswith("on_")]


def test_there_are_events():
    assert {"on_init_end", "on_train_begin", "on_log", "on_evaluate", "on_save", "on_train_end"} <= set(EVENTS)


@pytest.mark.parametrize("event", ["__init__", *EVENTS])
def test_a_tracker_that_fails_is_named_once_and_left(monkeypatch, tmp_path, capsys, event):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "codecarbon", broken(event))
    ours = Trackers(["codecarbon"], tmp_path)
    for _ in range(2):
        for name in EVENTS:
            getattr(ours, name)(None, None, None, **{"metrics": {}} if name == "on_predict" else {})
        ours.finish()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("codecarbon failed")
    assert f"ConnectionError: no way at {event})" in told[0]
    assert ours.members == {}


def test_the_other_trackers_go_on(monkeypatch, tmp_path, capsys):
    heard = []
    fine = type(
        "Fine", (transformers.TrainerCallback,), {"on_log": lambda self, *a, logs=None, **k: heard.append(logs)}
    )
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "codecarbon", broken("on_log"))
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "mlflow", fine)
    ours = Trackers(["codecarbon", "mlflow"], tmp_path)
    ours.on_log(None, None, None, logs={"loss": 1.0})
    ours.on_log(None, None, None, logs={"loss": 2.0})
    assert heard == [{"loss": 1.0}, {"loss": 2.0}]


@pytest.mark.parametrize(
    "event", ["__init__", "on_init_end", "on_train_begin", "on_log", "on_evaluate", "on_train_end"]
)
def test_training_goes_on_without_a_tracker_that_fails(installed, monkeypatch, model, data, tmp_path, capsys, event):
    installed(codecarbon=True)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "codecarbon", broken(event))
    lines = pretrain(model, data, tmp_path / "run", report_to="codecarbon", max_steps=2)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert (tmp_path / "run" / "checkpoint-final" / "model.safetensors").is_file()
    told = [line for line in capsys.readouterr().err.splitlines() if "codecarbon" in line]
    assert len(told) == 1
    assert "training goes on" in told[0]


def test_a_tracker_that_wants_to_leave_is_let_go(monkeypatch, tmp_path, capsys):
    def leave(self, *args, **known):
        sys.exit("log in first")

    leaver = type("Leaver", (transformers.TrainerCallback,), {"on_train_begin": leave})
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "codecarbon", leaver)
    Trackers(["codecarbon"], tmp_path).on_train_begin(None, None, None)
    assert "SystemExit: log in first" in capsys.readouterr().err


def test_ctrl_c_is_no_failure_of_a_tracker(monkeypatch, tmp_path):
    def stop(self, *args, **known):
        raise KeyboardInterrupt

    monkeypatch.setitem(
        INTEGRATION_TO_CALLBACK, "codecarbon", type("Stop", (transformers.TrainerCallback,), {"on_log": stop})
    )
    with pytest.raises(KeyboardInterrupt):
        Trackers(["codecarbon"], tmp_path).on_log(None, None, None, logs={})


# -- what stands in them

SAMPLED = {"sample_every": 2, "sample_max_new_tokens": 8, "sample_prompts": "a <b> *tiny*", "eval_steps": 2}


def events(folder):
    """Tag → [(step, value)] of scalars, and of texts, as TensorBoard's pages read them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    read = EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0, "text": 0})
    read.Reload()
    scalars, texts = {}, {}
    for tag in read.Tags()["tensors"]:
        found = [(event.step, make_ndarray(event.tensor_proto).item()) for event in read.Tensors(tag)]
        if read.SummaryMetadata(tag).plugin_data.plugin_name == "text":
            texts[tag.removesuffix("/text_summary")] = [(step, value.decode()) for step, value in found]
        else:
            scalars[tag] = found
    return scalars, texts


def test_tensorboard_has_curves_noise_levels_and_samples(alone, model, data, tmp_path):
    pytest.importorskip("tensorboard")
    lines = pretrain(model, data, tmp_path / "run", report_to="tensorboard", max_steps=4, eval_draws=5, **SAMPLED)
    scalars, texts = events(tmp_path / "run" / report.TENSORBOARD)
    assert {*CURVES, *(f"eval/nats_at_{level}" for level in LEVELS)} <= scalars.keys()
    for tag, key in (("train/loss", "loss"), ("train/tokens", "tokens")):
        told = [(line["step"], pytest.approx(line[key])) for line in lines if "loss" in line]
        assert scalars[tag] == told
    at = "eval_nats_at_0.5"
    assert scalars["eval/nats_at_0.5"] == [(line["step"], pytest.approx(line[at])) for line in lines if at in line]
    written = report.read_metrics(tmp_path / "run", report.SAMPLES)
    assert [step for step, _ in texts["samples/1"]] == [2, 4] == [line["step"] for line in written]
    assert all(text.startswith("**a &#60;b&#62; &#42;tiny&#42;**<br>") for _, text in texts["samples/1"])
    assert not (tmp_path / "runs").exists()


def test_tensorboard_of_a_resumed_run_is_one_curve(alone, model, data, tmp_path):
    pytest.importorskip("tensorboard")
    usual = {"report_to": "tensorboard", "max_steps": 6, "save_steps": 3, **SAMPLED}
    pretrain(model, data, tmp_path / "run", **usual)
    whole = events(tmp_path / "run" / report.TENSORBOARD)
    for left in ("checkpoint-6", "checkpoint-final"):
        (tmp_path / "run" / left).rename(tmp_path / left)
    pretrain(model, data, tmp_path / "run", resume_from_checkpoint="auto", **usual)
    again = events(tmp_path / "run" / report.TENSORBOARD)
    assert again[0]["train/loss"] == whole[0]["train/loss"]
    assert [step for step, _ in again[0]["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert again[1]["samples/1"] == whole[1]["samples/1"]
    assert [step for step, _ in again[1]["samples/1"]] == [2, 4, 6]


def test_the_end_of_a_run_validated_again_writes_into_its_folder(alone, model, data, tmp_path):
    pytest.importorskip("tensorboard")
    usual = {"report_to": "tensorboard", "max_steps": 2, "eval_strategy": "no"}
    pretrain(model, data, tmp_path / "run", **usual)
    pretrain(model, data, tmp_path / "run", resume_from_checkpoint="auto", **usual)
    assert [path.parent for path in tmp_path.rglob("events.out*")] == [tmp_path / "run" / report.TENSORBOARD] * 2
    assert [step for step, _ in events(tmp_path / "run" / report.TENSORBOARD)[0]["eval/loss"]] == [2, 2]


def test_a_run_begun_anew_forgets_what_its_trackers_had(alone, model, data, tmp_path):
    pytest.importorskip("tensorboard")
    usual = {"report_to": "tensorboard", "max_steps": 2, **SAMPLED}
    pretrain(model, data, tmp_path / "run", **usual)
    (tmp_path / "run" / report.TRACKERS).write_text('{"wandb": "old"}')
    pretrain(model, data, tmp_path / "run", overwrite_output_dir=True, **usual)
    assert len(list(tmp_path.rglob("events.out*"))) == 1
    assert not (tmp_path / "run" / report.TRACKERS).exists()
    assert [line["step"] for line in report.read_metrics(tmp_path / "run", report.SAMPLES)] == [2]


def test_the_users_folder_for_tensorboard_is_taken(alone, monkeypatch, model, data, tmp_path):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    pretrain(model, data, tmp_path / "run", report_to="tensorboard", max_steps=2)
    assert [path.parent for path in tmp_path.rglob("events.out*")] == [tmp_path / "mine"]


def test_trackers_do_not_change_the_run(alone, model, data, tmp_path):
    pytest.importorskip("tensorboard")
    pretrain(model, data, tmp_path / "one", max_steps=3)
    pretrain(model, data, tmp_path / "two", max_steps=3, report_to="tensorboard")
    assert same_weights(tmp_path / "one" / "checkpoint-final", tmp_path / "two" / "checkpoint-final")


def test_swanlab_has_curves_and_samples_on_this_machine_alone(alone, model, data, tmp_path, capsys):
    pytest.importorskip("swanlab")
    pytest.importorskip("swanboard")
    usual = {"report_to": "swanlab", "max_steps": 4, "run_name": "mine", "project": "ours", **SAMPLED}
    pretrain(model, data, tmp_path / "run", **usual)
    assert "local mode" in capsys.readouterr().err
    [run] = (tmp_path / "swanlog").glob("run-*")
    found = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    text = "\n".join(path.read_text(errors="ignore") for path in found.values())
    for tag in [*CURVES, "eval/nats_at_0.5", "samples/1"]:
        assert tag in text or any(tag.replace("/", "%2F") in name for name in found), tag
    assert json.loads((tmp_path / "run" / report.TRACKERS).read_text())["swanlab"]


def test_swanlab_takes_the_project_that_transformers_documents(alone, monkeypatch, tmp_path):
    """swanlab 0.10.3 by itself fails on SWANLAB_PROJECT."""
    swanlab = pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_PROJECT", "mine")
    ours = Trackers([], tmp_path, "a run", "the config's")
    BEGIN["swanlab"](ours, None, None)
    try:
        assert swanlab.get_run().name == "a run"
        assert os.environ["SWANLAB_PROJECT"] == "mine"
    finally:
        swanlab.finish()


def test_wandb_has_curves_and_samples_offline(alone, monkeypatch, model, data, tmp_path, capsys):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    usual = {"report_to": "wandb", "max_steps": 4, "run_name": "mine", "project": "ours", **SAMPLED}
    pretrain(model, data, tmp_path / "run", **usual)
    assert "offline mode" in capsys.readouterr().err
    wandb.teardown()  # its service writes the file, and may be at it still
    [log] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    told = log.read_bytes()
    for tag in [*CURVES, "eval/nats_at_0.5", "samples"]:
        assert tag.encode() in told, tag
    tables = [json.loads(path.read_text()) for path in (tmp_path / "wandb").rglob("*.table.json")]
    assert sorted(table["data"][0][:2] for table in tables) == [[2, "a <b> *tiny*"], [4, "a <b> *tiny*"]]


def test_trackio_has_curves_and_samples_at_the_optimisers_steps(alone, model, data, tmp_path, capsys):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    usual = {"report_to": "trackio", "max_steps": 4, "run_name": "mine", "project": "ours", "save_steps": 2, **SAMPLED}
    pretrain(model, data, tmp_path / "run", **usual)
    assert capsys.readouterr().out == ""
    lines = SQLiteStorage.get_logs("ours", "mine")
    seen = {key: [line["step"] for line in lines if key in line] for line in lines for key in line}
    assert seen["train/loss"] == [1, 2, 3, 4]
    assert seen["eval/nats_at_0.5"] == seen["samples"] == [2, 4]
    assert set(CURVES) <= seen.keys()
