"""The command `unmask quickstart`: the whole road on this machine's own text, in minutes and without a download.

In:  the documentation and sources of Python's standard library, which are on every machine.
Out: a tokenizer, a small LLaDA trained on them, its validation bound beside two baselines, samples and a filled gap.

Each step is a command that anyone can type, and is printed as such before it runs.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from unmask.config import UserError, option, parse

# Folders of the standard library that are not prose or code one would want to read: tests, tables, applications.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "idlelib", "lib2to3"}
LEFT_OUT |= {"turtledemo", "pydoc_data", "ensurepip", "__pycache__", "lib-dynload"}
HELD_OUT = 0.02
PROMPTS = ["def __init__(self, ", "import ", '"""Return ']
GAP = ("    if not isinstance(", "):\n        raise TypeError(")


@dataclasses.dataclass
class QuickstartArguments:
    """Quickstart"""

    output_dir: str = option("output/quickstart", "Folder for everything that is made; made anew each time.")
    steps: int = option(1600, "Optimiser steps: fewer is quicker and worse.")
    vocab_size: int = option(
        268, "Size of the tokenizer's vocabulary: little more than the 256 bytes, so that minutes are enough."
    )
    seed: int = option(42, "Seed of weights, order, noise and samples.")


def library() -> Iterator[tuple[str, str]]:
    """(name, text) of each document: Python's own topics of help, and the sources with their docstrings."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield f"help/{name}", text
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        where = path.relative_to(folder)
        if not LEFT_OUT & set(where.parts):
            yield str(where), path.read_text(encoding="utf-8", errors="ignore")


def write_text(folder: Path, seed: int) -> tuple[Path, int]:
    """Write the documents as train.jsonl and test.jsonl; returns the first and how many bytes there are."""
    documents = [(name, text) for name, text in library() if text.strip()]
    if len(documents) < 100:
        raise UserError(
            "this Python came without the sources of its standard library; use another one, or train on your own text "
            "with `unmask pretrain`."
        )
    random.Random(seed).shuffle(documents)
    held = round(HELD_OUT * len(documents))
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, part in zip(paths, (documents[held:], documents[:held]), strict=True):
        with path.open("w", encoding="utf-8") as file:
            for name, text in part:
                file.write(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
    return paths[0], sum(len(text.encode()) for _, text in documents)


def step(number: int, of: int, what: str, command: list[str] | None = None) -> None:
    print(f"\n[{number}/{of}] {what}", flush=True)
    if command:
        print(
            "      unmask " + " ".join(word if word and " " not in word else f'"{word}"' for word in command),
            flush=True,
        )


def main(argv: list[str]) -> int:
    """`unmask quickstart [--steps N]`"""
    about = "Train a small masked diffusion model on the documentation and sources of Python's standard library."
    arguments = parse("unmask quickstart", about, [QuickstartArguments], argv).groups[0]
    if arguments.steps < 1:
        raise UserError(f"--steps is {arguments.steps}; it must be at least 1.")
    began = time.monotonic()
    home = Path(arguments.output_dir)

    step(1, 6, "text: the documentation and sources of Python's standard library")
    train, size = write_text(home / "text", arguments.seed)
    print(f"      {size / 1e6:.1f} MB of text in {train.parent}; {HELD_OUT:.0%} of the documents held out")

    from unmask import init, pretrain, report, sample, tokenizer
    from unmask import train as training

    report.quiet()
    words = ["--corpus", str(train), "--vocab_size", str(arguments.vocab_size), "--output_dir", str(home / "tokenizer")]
    step(2, 6, "a tokenizer for that text", ["tokenizer", *words])
    tokenizer.main([*words, "--overwrite"])

    words = [
        "llada-1M",
        "--set",
        "weight_tying=true",
        "--tokenizer",
        str(home / "tokenizer"),
        "--output_dir",
        str(home / "model"),
    ]
    step(3, 6, "a small LLaDA: config and tokenizer, no weights yet", ["init", *words])
    init.main([*words, "--overwrite"])

    settings = {
        "model_name_or_path": home / "model",
        "dataset_args": train.parent,
        "output_dir": home / "run",
        "max_length": 128,
        "max_steps": arguments.steps,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "learning_rate": 4e-3,
        "warmup_ratio": 0.05,
        "eval_on_start": True,
        "bf16": False,  # for matrices so small, conversions cost more than bfloat16 saves on a CPU
        "eval_steps": 0.5,
        "save_steps": 0.5,
        "logging_steps": max(1, arguments.steps // 100),
        "seed": arguments.seed,
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    step(4, 6, "pretraining", ["pretrain", *words])
    parsed = pretrain.parse_pretrain([*words, "--overwrite_output_dir"])
    run = pretrain.prepare_pretrain(parsed, words)
    unigram = baseline(run)
    code = training.go(run)
    if code:
        return code

    step(5, 6, "what it learnt: nats per token on the held-out documents")
    lines = [line for line in report.read_metrics(home / "run") if "eval_loss" in line]
    show_bounds(lines[0], lines[-1], unigram, arguments.vocab_size)

    model = str(home / "run" / "checkpoint-final")
    words = [
        "--model",
        model,
        "--max_new_tokens",
        "64",
        "--steps",
        "64",
        "--temperature",
        "0.5",
        "--seed",
        str(arguments.seed),
    ]
    prompts = [word for prompt in PROMPTS for word in ("-p", prompt)]
    step(6, 6, "samples, and a gap filled from both sides", ["sample", *words[:6], "-p", PROMPTS[0]])
    sample.main([*words, *prompts])
    print()
    sample.main_infill(["--model", model, "--seed", str(arguments.seed), "-p", "{{8}}".join(GAP)])
    print(
        f"\ndone in {report.duration(time.monotonic() - began)}. The loss curve: {home / 'run' / report.CURVE}\n"
        f'next: unmask sample --model {model} -p "class "\n'
        "      unmask pretrain --help, and the guide in docs/"
    )
    return 0


def baseline(run: object) -> float:
    """Nats per token, on a run's validation rows, of a model that knows token frequencies alone."""
    import numpy as np

    from unmask import validate

    trainer = run.trainer  # type: ignore[attr-defined]
    size = trainer.model.config.vocab_size
    counts = np.zeros(size)
    for batch in trainer.train_dataset.with_format("numpy").iter(1000):
        counts += np.bincount(np.concatenate(list(batch["input_ids"])), minlength=size)
    return validate.unigram(counts, trainer.eval_dataset.with_format("numpy")["input_ids"])


def show_bounds(before: dict[str, float], after: dict[str, float], unigram: float, vocabulary: int) -> None:
    """The table of the last step: an untrained model, the unigram baseline, the trained model."""
    from rich.console import Console
    from rich.table import Table

    per_byte = after["eval_bits_per_byte"] / after["eval_loss"]
    table = Table(box=None, padding=(0, 2, 0, 6))
    for title, side in (("", "left"), ("nats/token", "right"), ("bits/byte", "right")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    for name, value, error in (
        ("untrained model, at most", before["eval_loss"], before["eval_loss_se"]),
        ("token frequencies alone (unigram)", unigram, 0.0),
        ("trained model, at most", after["eval_loss"], after["eval_loss_se"]),
    ):
        spread = f" ± {error:.3f}" if error else "        "
        table.add_row(name, f"{value:.3f}{spread}", f"{value * per_byte:.3f}")
    Console().print(table)
    print(f"      {1 - after['eval_loss'] / unigram:.0%} below the unigram baseline")
