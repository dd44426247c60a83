"""Trackers run without a login, or say what to install."""

import os
import sys

import pytest

from unmask.config import UserError
from unmask.trackers import set_up, start


@pytest.fixture
def installed(monkeypatch):
    """Makes modules look installed or missing."""
    import importlib.util

    real = importlib.util.find_spec

    def choose(**there):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: there[name] or None if name in there else real(name, *a)
        )

    return choose


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


@pytest.mark.parametrize("running", [False, True])
def test_swanlab_begins_one_run_with_the_users_names(monkeypatch, running):
    import types

    begun = []
    fake = types.SimpleNamespace(has_run=lambda: running, init=lambda **how: begun.append(how))
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    monkeypatch.setenv("SWANLAB_PROJECT", "mine")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    start(["swanlab"], "a run", resumed=True)
    wanted = {"mode": "offline", "project": "mine", "name": "a run", "id": None, "resume": "allow"}
    assert begun == ([] if running else [wanted])
