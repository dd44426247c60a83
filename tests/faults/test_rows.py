"""Rows that can no longer be read: one line, and nothing of what was learnt is lost. Streams go on to the row."""

import gzip
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from runs import curve, make_text, pretrain, words

from unmask import checkpoint
from unmask.__main__ import main

pytestmark = pytest.mark.slow

USUAL = {"max_steps": 4000, "save_steps": 100000, "eval_strategy": "no", "streaming": True, "shuffle": False}
USUAL |= {"lr_scheduler_type": "constant", "warmup_steps": 0}


def test_a_file_that_vanishes_from_a_stream_ends_the_run_in_a_line_with_a_checkpoint(model, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i in (0, 1):
        make_text(data / f"part-{i}.jsonl", 400, seed=i)
    folder, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "unmask", "pretrain", *words(model, f"{data}[test:10]", folder, **USUAL)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=env)
    while not (folder / "metrics.jsonl").exists():
        assert run.poll() is None, log.read_text()
        time.sleep(0.01)
    (data / "part-1.jsonl").unlink()
    assert run.wait(300) == 2, log.read_text()[-3000:]
    said = log.read_text().strip().splitlines()
    assert "cannot be read" in said[-1]
    assert "part-1.jsonl" in said[-1]
    assert not [line for line in said if "Traceback" in line]
    (saved,) = checkpoint.numbered(folder)
    assert saved.name in said[-1]
    assert checkpoint.fault(saved, hashes=True) is None
    make_text(data / "part-1.jsonl", 400, seed=1)
    more = {**USUAL, "max_steps": checkpoint.step_of(saved) + 5}
    alone = pretrain(model, f"{data}[test:10]", tmp_path / "alone", **more)
    lines = pretrain(model, f"{data}[test:10]", folder, **more, resume_from_checkpoint="auto")
    assert [step for step, _ in curve(lines, "step", "loss")] == [step for step, _ in curve(alone, "step", "loss")]
    found, wanted = (torch.tensor([loss for _, loss in curve(some, "step", "loss")]) for some in (lines, alone))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)  # this process has more threads


@pytest.mark.parametrize("what", ["text", "tokens"])
def test_damaged_files_are_named_in_a_line_before_anything_starts(what, model, text, tmp_path, capsys):
    if what == "text":
        bad = tmp_path / "text.jsonl.gz"
        bad.write_bytes(gzip.compress(text.read_bytes())[:200])
        spec = f"{bad}[test:2]"
    else:
        spec = f"{text}[train:50,test:10]"
        tokens = tmp_path / "tokens"
        asked = {
            "model_name_or_path": model,
            "dataset_args": spec,
            "max_length": 16,
            "output_dir": tokens,
            "num_proc": 1,
        }
        flags = [word for key, value in asked.items() for word in (f"--{key}", str(value))]
        assert main(["prepare", "pretrain", *flags]) == 0
        (shard,) = (tokens / "train").glob("*.arrow")
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        spec = str(tokens)
    capsys.readouterr()
    assert main(["pretrain", *words(model, spec, tmp_path / "run", num_proc=1)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert json.dumps(spec.split("[")[0])[1:-1] in said[-1] or tokens.name in said[-1]
    assert not (tmp_path / "run").exists()
