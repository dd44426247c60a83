"""The curve does not depend on how many processes share a step, nor on the engine by which they do."""

import importlib.util
import json
import sys

import pytest
from runs import curve, make_model, pretrain, run, words

from unmask import checkpoint, sealed
from unmask.report import read_metrics

pytestmark = pytest.mark.slow

WAYS = {
    "ddp": (2, "DistributedDataParallel", 1.0),
    "ddp4": (4, "DistributedDataParallel", 1.0),
    "fsdp2": (2, "FSDPLLaDAModelLM", 0.5),
    "zero1": (2, "DeepSpeedEngine", 1.0),
    "zero2": (2, "DeepSpeedEngine", 1.0),
    "zero3": (2, "DeepSpeedEngine", 0.5),
}
ROWS = 8
STEPS = 50
USUAL = {"max_steps": STEPS, "save_steps": 1000, "weight_decay": 0.1, "eval_steps": 25}


def shape(processes):
    return {"per_device_train_batch_size": 2, "gradient_accumulation_steps": ROWS // 2 // processes}


def needs(way):
    if way.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install deepspeed")


def start(way, processes, tmp_path, arguments, timeout=400):
    """A run by some processes; (what was done, what wrapped the model)."""
    seen = tmp_path / f"{way}-{processes}.json"
    seen.unlink(missing_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = run(
        [sys.executable, *launcher, "-m", "tests.topology", way.rstrip("4"), str(seen), "pretrain", *arguments], timeout
    )
    return done, json.loads(seen.read_text()) if seen.exists() else {}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, byte_tokenizer):
    return make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer)


@pytest.fixture(scope="module")
def spec(text):
    return f"{text}[train:50,test:10]"


@pytest.fixture(scope="module")
def alone(tiny, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    lines = pretrain(tiny, spec, folder, **USUAL, **shape(1))
    epochs = [line["epoch"] for line in lines if "loss" in line]
    assert epochs[0] < 1 < epochs[-1]  # over an epoch's end
    return lines


@pytest.mark.parametrize("way", WAYS)
def test_loss_curves_are_those_of_one_process(way, alone, tiny, spec, tmp_path):
    needs(way)
    processes, wrapper, share = WAYS[way]
    arguments = words(tiny, spec, tmp_path / "run", **USUAL, **shape(processes))
    done, seen = start(way, processes, tmp_path, arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert seen["wrapper"] == wrapper
    assert seen["held"] <= share * seen["numbers"] * 1.1
    assert seen["engine"] == way.rstrip("4")
    lines = read_metrics(tmp_path / "run")
    mine, theirs = curve(lines, "step", "loss"), curve(alone, "step", "loss")
    assert len(mine) == len(theirs) == STEPS
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(mine, theirs, strict=True)) < 1e-5
    held, whole = ([line["eval_loss"] for line in some if "eval_loss" in line] for some in (lines, alone))
    assert held == pytest.approx(whole, rel=1e-5)
    last = tmp_path / "run" / f"checkpoint-{STEPS}"
    assert sealed.read(last)["training"] == {"engine": way.rstrip("4"), "processes": processes}
    assert checkpoint.fault(last, hashes=True) is None


@pytest.mark.parametrize(("way", "before", "after"), [("ddp", 2, 1), ("ddp", 1, 2), ("ddp", 2, 4), ("fsdp2", 2, 4)])
def test_a_run_goes_on_with_another_number_of_processes(way, before, after, alone, tiny, spec, tmp_path):
    """In the middle of an epoch: optimiser, rows and noise are those of the run that was never stopped."""
    folder = tmp_path / "run"
    usual = USUAL | {"save_steps": 20, "save_total_limit": 50}
    done, _ = start(way, before, tmp_path, words(tiny, spec, folder, **usual, **shape(before)))
    assert done.returncode == 0, done.stderr[-3000:]
    import shutil

    for step in (40, 50):
        shutil.rmtree(folder / f"checkpoint-{step}")
    shutil.rmtree(folder / "checkpoint-final")
    again = words(tiny, spec, folder, **usual, **shape(after), resume_from_checkpoint="auto")
    done, _ = start(way, after, tmp_path, again)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from checkpoint-20" in done.stderr
    mine, theirs = curve(read_metrics(folder), "step", "loss"), curve(alone, "step", "loss")
    assert [a[0] for a in mine] == [b[0] for b in theirs]
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(mine, theirs, strict=True)) < 1e-5
