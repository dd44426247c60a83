"""Small runs for tests: a tiny model folder, a little corpus, `unmask pretrain` in this process or in several."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from unmask.__main__ import main
from unmask.report import read_metrics

SENTENCE = "the a tiny model writes masks in any order and learns from every word that was hidden before it"


def make_model(folder: Path, tokenizer, **config) -> Path:
    """A model folder of about 20k parameters, without weights."""
    from unmask.init import make_config

    values = {
        "model_type": "llada",
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "mlp_hidden_size": 64,
        "max_sequence_length": 64,
        "rope_theta": 10000.0,
        "embedding_size": len(tokenizer),
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "architectures": ["LLaDAModelLM"],
        **config,
    }
    make_config(values).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_text(path: Path, documents: int = 60, seed: int = 0) -> Path:
    """A jsonl of short documents."""
    draw = random.Random(seed)
    lines = [
        json.dumps({"text": " ".join(draw.choices(SENTENCE.split(), k=draw.randint(8, 30)))}) for _ in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


SETTINGS = {
    "max_length": 16,
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "logging_steps": 1,
    "eval_steps": 100,
    "save_steps": 100,
    "bf16": False,
    "num_proc": 1,
}


def words(model: Path, data: str, out: Path, **settings) -> list[str]:
    """The arguments of a `pretrain` command."""
    given = {"model_name_or_path": model, "dataset_args": data, "output_dir": out, **SETTINGS, **settings}
    return [word for key, value in given.items() if value is not None for word in (f"--{key}", str(value))]


def pretrain(model: Path, data: str, out: Path, *, expect: int = 0, **settings) -> list[dict]:
    """Run `unmask pretrain` in this process; returns the lines of metrics.jsonl."""
    code = main(["pretrain", *words(model, data, out, **settings)])
    assert code == expect
    return read_metrics(out)


def launch(processes: int, arguments: list[str], timeout: int = 300) -> subprocess.CompletedProcess:
    """`unmask pretrain` in several processes on the CPU, by torchrun (`accelerate launch --cpu` starts only one)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return run([*command, "-m", "unmask", "pretrain", *arguments], timeout)


def wait_for_steps(process: subprocess.Popen, folder: Path, lines: int = 3) -> None:
    """Until a run has written more lines of metrics than that; it must not end before."""
    metrics = folder / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and metrics.read_text().count("\n") > lines:
            break
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.1)


def run(command: list[str], timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
    """A command with its output caught; one thread of torch, no network."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def curve(lines: list[dict], *keys: str) -> list[tuple[float, ...]]:
    """The values of the training lines."""
    return [tuple(line[key] for key in keys) for line in lines if "loss" in line]
