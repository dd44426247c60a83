"""A disk that is full or read-only: what was saved stays whole, the run says so, and goes on when that is mended."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import same_weights, words

pytestmark = pytest.mark.slow

USUAL = {"max_steps": 40, "save_steps": 10, "save_total_limit": 50, "eval_strategy": "no"}


def may_mount() -> bool:
    """Whether a file system of one's own can be had: in a name space, which needs no rights where the kernel lets."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_what_was_saved_stays_and_the_run_goes_on_when_there_is_room(fault, model, text, tmp_path):
    if not may_mount():
        pytest.skip("needs `unshare` with name spaces for users and mounts")
    spec = f"{text}[train:50,test:10]"
    from unmask.__main__ import main

    assert main(["pretrain", *words(model, spec, tmp_path / "alone", **USUAL)]) == 0
    size = sum(p.stat().st_size for p in (tmp_path / "alone/checkpoint-10").rglob("*"))
    disk = tmp_path / "disk"
    disk.mkdir()
    driver = Path(__file__).with_name("on_a_disk.py")
    command = ["unshare", "-Urm", sys.executable, str(driver), fault, str(disk), str(size), str(tmp_path / "kept")]
    arguments = words(model, spec, disk / "run", **USUAL)
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert same_weights(tmp_path / "kept", tmp_path / "alone/checkpoint-final")
