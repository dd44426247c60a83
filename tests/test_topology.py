"""The curve does not depend on how many processes share a step, nor on the engine by which they do."""

import importlib.util
import json
import shutil
import sys

import pytest
from runs import SENTENCE, curve, make_model, pretrain, run, weights, words
from safetensors.torch import load_file

from unmask import checkpoint, sealed
from unmask.__main__ import main
from unmask.config import UserError
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


def start(way, processes, tmp_path, arguments, timeout=400, command="pretrain"):
    """A run by some processes; (what was done, what wrapped the model)."""
    seen = tmp_path / f"{way}-{processes}.json"
    seen.unlink(missing_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = run(
        [sys.executable, *launcher, "-m", "tests.topology", way.rstrip("4"), str(seen), command, *arguments], timeout
    )
    return done, json.loads(seen.read_text()) if seen.exists() else {}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, byte_tokenizer):
    return make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer)


@pytest.fixture(scope="module")
def spec(text):
    return f"{text}[train:50,test:10]"


@pytest.fixture(scope="module")
def whole_run(tiny, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    pretrain(tiny, spec, folder, **USUAL, **shape(1))
    return folder


@pytest.fixture(scope="module")
def alone(whole_run):
    lines = read_metrics(whole_run)
    epochs = [line["epoch"] for line in lines if "loss" in line]
    assert epochs[0] < 1 < epochs[-1]  # over an epoch's end
    return lines


@pytest.mark.parametrize("way", WAYS)
def test_loss_curves_are_those_of_one_process(way, alone, whole_run, tiny, spec, tmp_path):
    needs(way)
    processes, wrapper, share = WAYS[way]
    arguments = words(tiny, spec, tmp_path / "run", **USUAL, **shape(processes))
    done, seen = start(way, processes, tmp_path, arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert seen["wrapper"] == wrapper
    assert seen["held"] <= share * seen["numbers"] * 1.1
    if way != "ddp" and processes == 2:
        assert seen["moved"] <= 0.5 * seen["numbers"] * 1.1
    assert seen["engine"] == way.rstrip("4")
    assert ("model.layers.1" in seen["units"]) == (way == "fsdp2")  # each layer by itself
    lines = read_metrics(tmp_path / "run")
    mine, theirs = curve(lines, "step", "loss"), curve(alone, "step", "loss")
    assert len(mine) == len(theirs) == STEPS
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(mine, theirs, strict=True)) < 1e-5
    held, whole = ([line["eval_loss"] for line in some if "eval_loss" in line] for some in (lines, alone))
    assert held == pytest.approx(whole, rel=1e-5)
    last = tmp_path / "run" / f"checkpoint-{STEPS}"
    assert sealed.read(last)["training"] == {"engine": way.rstrip("4"), "processes": processes}
    assert checkpoint.fault(last, hashes=True) is None
    for folder in (last, tmp_path / "run" / "checkpoint-final"):  # whole weights, which every engine reads
        mine, theirs = weights(folder), weights(whole_run / "checkpoint-final")
        assert mine.keys() == theirs.keys()
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in theirs) < 1e-3


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "zero2", "zero3"])
def test_an_adapter_learns_the_same_by_every_engine(way, whole_run, tmp_path):
    needs(way)
    chats = tmp_path / "chats.jsonl"
    turns = [[SENTENCE.split()[i % 9 :][:n] for n in (3, 4)] for i in range(60)]
    chats.write_text("\n".join(json.dumps({"instruction": " ".join(q), "output": " ".join(a)}) for q, a in turns))
    settings = {"max_length": 64, "max_steps": 6, "save_steps": 3, "lora": True, "lora_dropout": 0, "packing": False}
    found = {}
    for name, processes in (("ddp", 1), (way, 2)):
        folder = tmp_path / f"{name}-{processes}"
        usual = settings | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4 // processes}
        arguments = words(whole_run / "checkpoint-final", f"{chats}[train:50,test:10]", folder, **usual)
        done, seen = start(name, processes, tmp_path, arguments, command="sft")
        assert done.returncode == 0, done.stderr[-3000:]
        saved = [
            load_file(folder / name / "adapter_model.safetensors") for name in ("checkpoint-6", "checkpoint-final")
        ]
        found[processes] = curve(read_metrics(folder), "step", "loss"), saved
        assert (folder / "checkpoint-3" / "unmask.json").exists()
    assert seen["wrapper"].startswith({"d": "Distr", "f": "FSDPPeft", "z": "DeepSpeed"}[way[0]])
    if way == "fsdp2":
        assert "base_model.model.model.layers.1" in seen["units"]
    (one, theirs), (two, mine) = found[1], found[2]
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(one, two, strict=True)) < 1e-5
    for a, b in zip(theirs, mine, strict=True):
        assert a.keys() == b.keys()
        assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5


RESUMED = [("ddp", 2, 1), ("ddp", 1, 2), ("ddp", 2, 4), ("fsdp2", 2, 4), *((f"zero{n}", 2, 2) for n in (1, 2, 3))]


@pytest.mark.parametrize(("way", "before", "after"), RESUMED)
def test_a_run_goes_on_with_another_number_of_processes(way, before, after, alone, tiny, spec, tmp_path):
    """In the middle of an epoch: optimiser, rows and noise are those of the run that was never stopped."""
    needs(way)
    folder = tmp_path / "run"
    usual = USUAL | {"save_steps": 20, "save_total_limit": 50}
    done, _ = start(way, before, tmp_path, words(tiny, spec, folder, **usual, **shape(before)))
    assert done.returncode == 0, done.stderr[-3000:]
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


def test_an_optimiser_of_another_engine_is_refused_in_a_line_that_says_what_to_type(tiny, spec, tmp_path, capsys):
    folder = tmp_path / "run"
    pretrain(tiny, spec, folder, **USUAL | {"max_steps": 2, "save_steps": 2}, **shape(1))
    saved = folder / "checkpoint-2"
    about = sealed.read(saved)
    for engine, processes, now, many, said in (
        ("fsdp2", 2, "plain", 1, "was saved by fsdp2, and this run uses plain"),
        ("zero2", 2, "zero3", 2, "was saved by zero2, and this run uses zero3"),
        ("zero2", 2, "zero2", 4, "was saved by 2 processes"),
    ):
        sealed.seal(saved, {"training": {"engine": engine, "processes": processes}})
        with pytest.raises(UserError, match=said):
            checkpoint.check_engine(saved, now, many)
    for engine, now in (("plain", "ddp"), ("ddp", "plain"), ("fsdp2", "fsdp2")):
        sealed.seal(saved, {"training": {"engine": engine, "processes": 2}})
        checkpoint.check_engine(saved, now, 4)
    sealed.seal(saved, about | {"training": {"engine": "zero2", "processes": 2}})
    capsys.readouterr()
    again = words(tiny, spec, folder, **USUAL, **shape(1), resume_from_checkpoint="auto")
    assert main(["pretrain", *again]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--model_name_or_path {saved} --from_scratch false" in line
    assert pretrain(saved, spec, tmp_path / "new", **USUAL | {"max_steps": 2}, **shape(1), from_scratch=False)
