"""A run that is killed at any moment goes on, and ends where the run that was left alone ends, bit for bit.

KILLS=1000 for more of them; SEED=7 for other moments.
"""

import os
import random
import time

import pytest
from runs import curve, same_weights, words

from unmask import checkpoint
from unmask.report import read_metrics

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "200"))
STEPS = 40
USUAL = {
    "max_steps": STEPS,
    "save_steps": 1,
    "save_total_limit": 2,
    "max_length": 16,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "random_length_ratio": 0.3,
}
WAYS = {"rows": {}, "stream": {"streaming": True, "shuffle": False}, "shuffled stream": {"streaming": True}}


def begin(forks, model, spec, folder, settings):
    again = {"resume_from_checkpoint": "auto"} if checkpoint.numbered(folder) else {"overwrite_output_dir": True}
    return forks.start(
        ["pretrain", *words(model, spec, folder, **USUAL, **settings, **again)], folder.with_suffix(".log")
    )


@pytest.mark.parametrize("way", WAYS)
def test_killed_runs_end_as_the_one_that_was_left_alone(way, forks, model, text, tmp_path, capsys):
    spec, settings = f"{text}[train:50,test:10]", WAYS[way]
    alone = tmp_path / "alone"
    began = time.monotonic()
    first = begin(forks, model, spec, alone, settings)
    assert first.wait() == 0, alone.with_suffix(".log").read_text()[-3000:]
    longest = time.monotonic() - began
    draw = random.Random(f"{os.environ.get('SEED', '0')} {way}")
    kills = saving = runs = 0
    while kills < -(-KILLS // len(WAYS)):
        runs += 1
        folder = tmp_path / f"run-{runs}"
        log = folder.with_suffix(".log")
        while True:
            process = begin(forks, model, spec, folder, settings)
            if process.ends_within(draw.uniform(0, 0.8 * longest)):
                assert process.wait() == 0, log.read_text()[-3000:]
                break
            process.kill()
            process.wait()
            kills += 1
            saving += any(folder.glob(".*"))  # what a kill in the middle of writing or deleting leaves
            for saved in checkpoint.numbered(folder):
                assert checkpoint.fault(saved, hashes=True) is None, f"{saved} after {kills} kills"
        assert same_weights(folder / "checkpoint-final", alone / "checkpoint-final")
        assert curve(read_metrics(folder), "step", "loss") == curve(read_metrics(alone), "step", "loss")
        assert not [path.name for path in folder.glob(".*")]  # nothing half written is left
    assert saving  # or none of this was tried inside saving
    with capsys.disabled():
        print(f"\n{way}: {kills} kills in {runs} runs, {saving} of them inside saving; all ended alike")
