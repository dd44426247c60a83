"""A process that is killed ends the whole job, soon and in a clear line; the job goes on from what was saved."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forks import ended
from runs import curve, pretrain, words

from unmask import checkpoint
from unmask.report import read_metrics

pytestmark = pytest.mark.slow

STEPS = 60
SOON = 60  # seconds in which the whole job has to end
USUAL = {"max_steps": STEPS, "save_steps": 10, "eval_strategy": "no", "save_total_limit": 50}
SHARED = {**USUAL, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}  # by two processes


def children(pid: int) -> list[int]:
    """Processes that this one started, with theirs."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *children(child)]
    return found


def workers(pid: int) -> list[int]:
    """Those among them that train."""

    def trains(child: int) -> bool:
        with contextlib.suppress(OSError):
            return b"\0pretrain\0" in Path(f"/proc/{child}/cmdline").read_bytes()
        return False

    return [child for child in children(pid) if trains(child)]


def torchrun(*options: str, log: Path, within: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    command = [*within, sys.executable, "-m", "torch.distributed.run", *options, "-m", "unmask", "pretrain"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return lambda arguments: subprocess.Popen(
        [*command, *arguments], stdout=log.open("a"), stderr=subprocess.STDOUT, env=env, start_new_session=True
    )


def wait_for(what, *processes: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert all(process.poll() is None for process in processes), log.read_text()[-4000:]
        assert time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.05)


def end(process: subprocess.Popen, log: Path) -> int:
    """The exit code of a job that has to end by itself; what is left of one that does not is killed."""
    try:
        return process.wait(SOON)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still there after {SOON} s:\n{log.read_text()[-4000:]}")


@pytest.fixture
def alone(model, text, tmp_path):
    """The same run by one process that nobody kills."""
    usual = {**USUAL, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    return curve(pretrain(model, f"{text}[train:50,test:10]", tmp_path / "alone", **usual), "step", "loss")


def assert_same_curve(found, wanted):
    assert [a[0] for a in found] == [b[0] for b in wanted]
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(found, wanted, strict=True)) < 1e-5


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_which_goes_on_by_one(victim, alone, model, text, tmp_path):
    folder, log, spec = tmp_path / "run", tmp_path / "log", f"{text}[train:50,test:10]"
    arguments = words(model, spec, folder, **SHARED)
    job = torchrun("--standalone", "--nproc_per_node", "2", log=log)(arguments)
    wait_for(lambda: checkpoint.numbered(folder), job, log=log)
    mine = sorted(workers(job.pid))
    assert len(mine) == 2
    os.kill(mine[victim], signal.SIGKILL)
    assert end(job, log) != 0
    said = log.read_text()
    assert "another process of this run is gone" in said or "Signal 9 (SIGKILL)" in said
    assert all(ended(pid) for pid in mine)
    assert all(checkpoint.fault(path, hashes=True) is None for path in checkpoint.numbered(folder))
    usual = {**USUAL, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    lines = pretrain(model, spec, folder, **usual, resume_from_checkpoint="auto")
    assert_same_curve(curve(lines, "step", "loss"), alone)


def test_a_killed_reader_of_rows_ends_the_run_in_a_line_and_loses_nothing(alone, model, text, tmp_path):
    folder, log, spec = tmp_path / "run", tmp_path / "log", f"{text}[train:50,test:10]"
    usual = {**USUAL, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 2}
    arguments = words(model, spec, folder, **usual, dataloader_num_workers=2)
    command = [sys.executable, "-m", "unmask", "pretrain", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stdout=log.open("a"), stderr=subprocess.STDOUT, env=env, start_new_session=True)
    wait_for(lambda: checkpoint.numbered(folder) and len(workers(run.pid)) == 2, run, log=log)
    os.kill(workers(run.pid)[0], signal.SIGKILL)
    assert end(run, log) == 2
    last = log.read_text().strip().splitlines()[-1]
    assert "a process that reads rows is gone: DataLoader worker" in last
    assert "Traceback" not in log.read_text()
    lines = pretrain(model, spec, folder, **usual, resume_from_checkpoint="auto")
    assert_same_curve(curve(lines, "step", "loss"), alone)


# -- two machines


def two_machines(tmp_path):
    """(command before a node's command, its address, its interface) for two nodes; and what takes them down again.

    Each has a network of its own, joined by a cable, where the machine lets one make such; else both share this one's.
    """
    own = os.getpid()  # tests run side by side
    names, cable = (f"unmask-a-{own}", f"unmask-b-{own}"), (f"un0-{own}", f"un1-{own}")
    made = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", cable[0], "type", "veth", "peer", "name", cable[1]],
        *(["ip", "link", "set", cable[i], "netns", names[i]] for i in (0, 1)),
        *(["ip", "-n", names[i], "addr", "add", f"10.231.7.{i + 1}/24", "dev", cable[i]] for i in (0, 1)),
        *(["ip", "-n", names[i], "link", "set", dev, "up"] for i in (0, 1) for dev in (cable[i], "lo")),
    ]

    def down():
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    down()
    try:
        for command in made:
            subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        down()
        return [((), "127.0.0.1", "lo"), ((), "127.0.0.1", "lo")], lambda: None
    return [(("ip", "netns", "exec", names[i]), f"10.231.7.{i + 1}", cable[i]) for i in (0, 1)], down


@pytest.mark.parametrize("lost", [0, 1])
def test_two_machines_train_lose_one_end_clearly_and_go_on(lost, alone, model, text, tmp_path):
    """lost: which one; where processes find one another is on the first."""
    folder, spec = tmp_path / "run", f"{text}[train:50,test:10]"
    nodes, down = two_machines(tmp_path)
    logs = [tmp_path / f"log-{i}" for i in (0, 1)]

    def start(arguments):
        jobs = []
        for i, (within, address, interface) in enumerate(nodes):
            rendezvous = [
                "--rdzv_backend",
                "c10d",
                "--rdzv_endpoint",
                f"{nodes[0][1]}:{20000 + os.getpid() % 10000}",
                "--rdzv_id",
                "unmask",
            ]
            # torch asks whether the name of this machine stands for that address, which no name does here
            rendezvous += ["--rdzv_conf", f"is_host={'true' if i == 0 else 'false'}"]
            options = ["--nnodes", "2", "--nproc_per_node", "1", "--local_addr", address, *rendezvous]
            made = torchrun(*options, log=logs[i], within=within, GLOO_SOCKET_IFNAME=interface)
            jobs.append(made(arguments))
        return jobs

    try:
        jobs = start(words(model, spec, folder, **SHARED))
        wait_for(lambda: checkpoint.numbered(folder), *jobs, log=logs[0])
        os.killpg(jobs[lost].pid, signal.SIGKILL)
        for pid in workers(jobs[lost].pid):
            os.kill(pid, signal.SIGKILL)
        jobs[lost].wait()
        other = 1 - lost
        assert end(jobs[other], logs[other]) != 0
        assert "another process of this run is gone" in logs[other].read_text()
        assert all(checkpoint.fault(path, hashes=True) is None for path in checkpoint.numbered(folder))
        jobs = start([*words(model, spec, folder, **SHARED), "--resume_from_checkpoint", "auto"])
        codes = [job.wait(240) for job in jobs]
        assert codes == [0, 0], logs[0].read_text()[-4000:]
    finally:
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        down()
    assert_same_curve(curve(read_metrics(folder), "step", "loss"), alone)
