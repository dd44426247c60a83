"""`unmask estimate` beside what runs then use: `python benchmarks/estimate.py`.

In:  nothing: models with random weights, Python's own library as text, a tokenizer trained on it.
Out: for each of six runs the bytes estimated, and the most that fresh processes held, medians of five:
     results/estimate.json.

The allocator's settings are those that a run chooses for itself (`unmask.advice.keep_memory`), the same every time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import sides

RESULTS = Path(__file__).parent / "results"
LLADA = "126464"  # rows of LLaDA's table
BOTH = ["--gradient_accumulation_steps", "1", "--per_device_eval_batch_size", "1"]
# name → (command, preset, rows of its table, settings)
RUNS: dict[str, tuple[str, str, str, str]] = {
    "pretrain 124M, 2 × 1,024, bfloat16": (
        *("pretrain", "llada-100M", LLADA),
        "--per_device_train_batch_size 2 --max_length 1024",
    ),
    "pretrain 124M, 1 × 512 twice, float32": (
        *("pretrain", "llada-100M", LLADA),
        "--per_device_train_batch_size 1 --max_length 512 --bf16 false --gradient_accumulation_steps 2",
    ),
    "pretrain 27M, 8 × 512, bfloat16": (
        *("pretrain", "llada-25M", "2000"),
        "--per_device_train_batch_size 8 --max_length 512",
    ),
    "pretrain 27M, 8 × 512, checkpointed, SGD": (
        *("pretrain", "llada-25M", "2000"),
        "--per_device_train_batch_size 8 --max_length 512 --optim sgd --gradient_checkpointing true",
    ),
    "sft 90M, LoRA, 4 × 512, bfloat16": (
        *("sft", "llada-25M", "64000"),
        "--per_device_train_batch_size 4 --max_length 512 --lora true --eos_tail none",
    ),
    "sft 90M, whole, 4 × 512 packed, float32": (
        *("sft", "llada-25M", "64000"),
        "--per_device_train_batch_size 4 --max_length 512 --bf16 false --packing true",
    ),
}


def unmask(*words: str | Path) -> bytes:
    return subprocess.run([sys.executable, "-m", "unmask", *words], stdout=subprocess.PIPE, check=True).stdout


def prepare(folder: Path) -> None:
    """Text, conversations as long as rows can be, a tokenizer."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))[:60]]
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for text in [one for one in texts if len(one) > 8000] * 4:
            file.write(json.dumps({"instruction": "Go on.", "output": text}) + "\n")
    unmask("tokenizer", "--dataset_args", folder / "text.jsonl", "--vocab_size", "1000", "--output_dir", folder / "tok")


def model(folder: Path, preset: str, rows: str, weights: bool) -> Path:
    made = folder / f"{preset}-{rows}{'-weights' if weights else ''}"
    if not made.exists():
        unmask("init", preset, "--tokenizer", folder / "tok", "--vocab_size", rows, "--output_dir", made)
        if weights:
            import transformers

            from unmask import models

            config = models.load_config(str(made))
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(made)
    return made


def held(command: list[str]) -> int:
    """The most bytes a process of this command held in memory."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}.")
    return int(usage.ru_maxrss) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5, help="fresh ones of each run")
    parser.add_argument("--only", nargs="+", type=int, help="numbers of runs, from 0")
    parser.add_argument("--output", type=Path, default=RESULTS / "estimate.json")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        for number, (name, (kind, preset, rows, settings)) in enumerate(RUNS.items()):
            if arguments.only and number not in arguments.only:
                continue
            where = model(folder, preset, rows, weights=kind == "sft")
            words = [*BOTH, *settings.split(), "--model_name_or_path", str(where), "--max_steps", "3"]
            estimate = json.loads(unmask("estimate", kind, *words, "--json"))
            data = folder / ("chats.jsonl" if kind == "sft" else "text.jsonl")
            words += ["--dataset_args", f"{data}[train:40,test:1]", "--output_dir", str(folder / "run")]
            words += ["--overwrite_output_dir", "true", "--save_strategy", "no", "--eval_strategy", "no"]
            words += ["--logging_steps", "1", "--warmup_steps", "1"]
            command = [sys.executable, "-m", "unmask", kind, *words]
            measured = [held(command) for _ in range(arguments.processes)]
            found[name] = {
                "command": f"unmask {kind} {settings}",
                "estimated": estimate["peak_bytes"],
                "parts": estimate["bytes"],
                "measured": round(statistics.median(measured)),
                "processes": measured,
            }
            off = found[name]["estimated"] / found[name]["measured"] - 1
            print(f"{name}: {off:+.1%} of {found[name]['measured'] / 2**30:.2f} GiB", file=sys.stderr, flush=True)
    result = {
        "command": " ".join(["python", "benchmarks/estimate.py", *sys.argv[1:]]),
        "machine": sides.machine("torch", "transformers", "accelerate", "peft", "unmask"),
        "runs": found,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
