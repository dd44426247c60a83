"""The command `unmask quickstart`: the whole road on this machine's own text, in minutes and without a download.

In:  the documentation and sources of Python's standard library, which are on every machine.
Out: a tokenizer and a small LLaDA trained on them, its validation bound beside two baselines, samples and a filled gap;
     then the same model tuned on five tasks, its accuracies before and after; an adapter on top, merged, and asked.

Each step is a command that anyone can type, and is printed as such before it runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from unmask import report, tasks
from unmask.config import UserError, option, parse

# Folders of the standard library that are not prose or code one would want to read: tests, tables, applications.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "idlelib", "lib2to3"}
LEFT_OUT |= {"turtledemo", "pydoc_data", "ensurepip", "__pycache__", "lib-dynload"}
HELD_OUT = 0.02
PROMPTS = ["def __init__(self, ", "import ", '"""Return ']
ROWS, HELD = 4000, 200  # rows of each task to train on, and questions held out
STEPS = 10
# What suits matrices so small on a CPU, where conversions cost more than bfloat16 saves.
SMALL: dict[str, object] = {
    "per_device_eval_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "warmup_ratio": 0.05,
    "bf16": False,
    "eval_steps": 0.5,
    "save_steps": 0.5,
}
CANVAS = 16  # places of an answer
GAP = ("    if not isinstance(", "):\n        raise TypeError(")


@dataclasses.dataclass
class QuickstartArguments:
    """Quickstart"""

    output_dir: str = option("output/quickstart", "Folder for everything that is made; made anew each time.")
    steps: int = option(1600, "Steps of pretraining: fewer is quicker and worse.")
    tune_steps: int = option(2400, "Steps of tuning on the five tasks.")
    adapter_steps: int = option(300, "Steps of the adapter's tuning on docstrings.")
    vocab_size: int = option(
        266,
        "Size of the tokenizer's vocabulary: the 256 bytes and indentation, so that words are spelt letter by letter.",
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


def write_instructions(home: Path, seed: int) -> tuple[list[tasks.Row], list[tasks.Row]]:
    """Write the five tasks' rows, and those of the adapter with docstrings among them; returns the five tasks'."""
    texts = [text for _, text in library()]
    train, test = tasks.make(seed, tasks.words_of(texts), ROWS, HELD)
    asked = tasks.docstrings(texts)
    random.Random(seed).shuffle(asked)
    held = len(asked) // 20
    # The adapter sees as many rows of the tasks as docstrings, so that it does not unlearn them.
    parts = {"tasks": (train, test), "docstrings": (asked[held:] + train[: len(asked)], asked[:held])}
    for name, both in parts.items():
        folder = home / name
        folder.mkdir(parents=True, exist_ok=True)
        for part, rows in zip(("train", "test"), both, strict=True):
            with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row) + "\n")
    return train, test


def step(number: int, what: str, command: list[str] | None = None) -> None:
    print(f"\n[{number}/{STEPS}] {what}", flush=True)
    if command:
        print(
            "      unmask " + " ".join(word if word and " " not in word else f'"{word}"' for word in command),
            flush=True,
        )


def words_of(settings: dict[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def main(argv: list[str]) -> int:
    """`unmask quickstart [--steps N]`"""
    about = "Train, tune and ask a small masked diffusion model, all from what Python's standard library holds."
    arguments = parse("unmask quickstart", about, [QuickstartArguments], argv).groups[0]
    for name in ("steps", "tune_steps", "adapter_steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1.")
    # For matrices so small a second thread of torch gains little, and on a busy machine the two wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    home = Path(arguments.output_dir)
    code = pretrained(home, arguments) or tuned(home, arguments)
    if code == 0:
        print(
            f"\ndone in {report.duration(time.monotonic() - began)}. Loss curves: {home / 'run' / report.CURVE}, "
            f"{home / 'tuned' / report.CURVE}\nnext: unmask chat --model {home / 'merged'}\n"
            f'      unmask sample --model {home / "run" / "checkpoint-final"} -p "class "\n'
            "      unmask pretrain --help, unmask sft --help, and the guide in docs/"
        )
    return code


# ---------------------------------------------------------------------------------------------------------------------
# Text, and a model of it


def pretrained(home: Path, arguments: QuickstartArguments) -> int:
    """Steps 1 to 6; the exit code."""
    step(1, "text: the documentation and sources of Python's standard library")
    train, size = write_text(home / "text", arguments.seed)
    print(f"      {size / 1e6:.1f} MB of text in {train.parent}; {HELD_OUT:.0%} of the documents held out")

    from unmask import init, pretrain, sample, tokenizer
    from unmask import train as training

    report.quiet()
    words = ["--corpus", str(train), "--vocab_size", str(arguments.vocab_size), "--output_dir", str(home / "tokenizer")]
    step(2, "a tokenizer for that text", ["tokenizer", *words])
    tokenizer.main([*words, "--overwrite"])

    words = ["llada-200k", "--set", "weight_tying=true", "--tokenizer", str(home / "tokenizer")]
    words += ["--output_dir", str(home / "model")]
    step(3, "a small LLaDA: config and tokenizer, no weights yet", ["init", *words])
    init.main([*words, "--overwrite"])

    words = words_of(
        {
            "model_name_or_path": home / "model",
            "dataset_args": train.parent,
            "output_dir": home / "run",
            "max_length": 128,
            "max_steps": arguments.steps,
            **SMALL,
            "per_device_train_batch_size": 16,
            "learning_rate": 4e-3,
            "eval_on_start": True,
            "logging_steps": max(1, arguments.steps // 100),
            "seed": arguments.seed,
        }
    )
    step(4, "pretraining", ["pretrain", *words])
    run = pretrain.prepare_pretrain(pretrain.parse_pretrain([*words, "--overwrite_output_dir"]), words)
    unigram = baseline(run)
    code = training.go(run)
    if code:
        return code

    step(5, "what it learnt: nats per token on the held-out documents")
    lines = [line for line in report.read_metrics(home / "run") if "eval_loss" in line]
    show_bounds(lines[0], lines[-1], unigram, arguments.vocab_size)

    model = str(home / "run" / "checkpoint-final")
    words = ["--model", model, "--max_new_tokens", "64", "--steps", "64", "--temperature", "0.5"]
    prompts = [word for prompt in PROMPTS for word in ("-p", prompt)]
    step(6, "samples, and a gap filled from both sides", ["sample", *words, "-p", PROMPTS[0]])
    sample.main([*words, "--seed", str(arguments.seed), *prompts])
    print()
    return sample.main_infill(["--model", model, "--seed", str(arguments.seed), "-p", "{{8}}".join(GAP)])


# ---------------------------------------------------------------------------------------------------------------------
# Instructions, and a model that follows them


def tuned(home: Path, arguments: QuickstartArguments) -> int:
    """Steps 7 to 10; the exit code."""
    from unmask import chat, merge, sft
    from unmask import train as training

    train, test = write_instructions(home, arguments.seed)
    step(7, f"instructions: five tasks, {ROWS:,} questions each to learn from and {HELD} others to be asked")
    print("      " + " · ".join(asked.format("…") for asked, _ in tasks.TASKS.values()))
    model = home / "run" / "checkpoint-final"
    before = tasks.right(test, ask(model, test))
    how = SMALL | {"max_length": 128, "eos_tail": f"block:{CANVAS}", "group_by_length": False, "seed": arguments.seed}
    words = words_of(
        {
            "model_name_or_path": model,
            "dataset_args": home / "tasks",
            "output_dir": home / "tuned",
            "max_steps": arguments.tune_steps,
            **how,
            "per_device_train_batch_size": 32,
            "learning_rate": 3e-3,
            # Every masked letter counts the same: what is asked for is the answer, not a bound on its likelihood.
            "objective_args": "weight=none,normalise=masked",
            "adam_beta2": 0.99,
            "weight_decay": 0.0,
            "logging_steps": max(1, arguments.tune_steps // 100),
        }
    )
    step(8, "tuning", ["sft", *words])
    code = training.go(sft.prepare_sft(sft.parse_sft([*words, "--overwrite_output_dir"]), words))
    if code:
        return code
    model = home / "tuned" / "checkpoint-final"
    show_accuracies(before, tasks.right(test, ask(model, test)), tasks.most_frequent(train, test))

    words = words_of(
        {
            "model_name_or_path": model,
            "dataset_args": home / "docstrings",
            "output_dir": home / "adapter",
            "max_steps": arguments.adapter_steps,
            **how,
            "lora": True,
            "per_device_train_batch_size": 32,
            "learning_rate": 3e-3,
            "logging_steps": max(1, arguments.adapter_steps // 30),
        }
    )
    step(9, "an adapter on top (LoRA), from functions and their docstrings; then merged", ["sft", *words])
    code = training.go(sft.prepare_sft(sft.parse_sft([*words, "--overwrite_output_dir"]), words))
    if code:
        return code
    words = ["--lora_path", str(home / "adapter" / "checkpoint-final"), "--merge_path", str(home / "merged")]
    print("      unmask " + " ".join(["merge", *words]), flush=True)
    merge.main([*words, "--overwrite"])
    share = tasks.right(test, ask(home / "merged", test))
    print(f"      the merged model's accuracy on the five tasks: {sum(share.values()) / len(share):.0%}")

    words = ["--model", str(home / "merged"), "--block_size", str(CANVAS)]
    questions = [test[HELD]["instruction"], test[-1]["instruction"], "What does sort do?"]
    step(10, "asked", ["chat", *words, "--max_new_tokens", str(CANVAS), "-p", questions[0]])
    for question, length in zip(questions, (CANVAS, CANVAS, 4 * CANVAS), strict=True):
        print(f"\n{question}", flush=True)
        chat.main([*words, "--max_new_tokens", str(length), "-p", question])
    return 0


def ask(model: Path, rows: list[tasks.Row]) -> list[str]:
    """A model's answers to questions, each on a canvas of its own, by the loop that chat and sampling use."""
    from unmask import models, reader, sample
    from unmask.template import Template

    loaded = models.load(str(model))
    template = Template(loaded.tokenizer)
    prompts = [template.prompt([{"role": "user", "content": row["instruction"]}]) for row in rows]
    canvases: list[list[int | None]] = [[*prompt, *[None] * CANVAS] for prompt in prompts]
    eos, eot = reader.ends_of(loaded)
    settings = {"steps": CANVAS // 2, "eos_token_id": eos, "eot_token_id": [*eot, *template.ends]}
    found = sample.answers(loaded, ["" for _ in rows], canvases, settings, sample.TextArguments(batch_size=200))
    return ["".join(answer.pieces[1:]) for answer in found]


def show_accuracies(before: dict[str, float], after: dict[str, float], baseline: dict[str, float]) -> None:
    """The table of the five tasks."""
    from rich.console import Console
    from rich.table import Table

    print(f"\n      right answers to {HELD} questions each, whose words and numbers were never trained on\n")
    table = Table(box=None, padding=(0, 2, 0, 6))
    for title, side in (("", "left"), ("before", "right"), ("after", "right"), ("most frequent answer", "right")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    columns = (before, after, baseline)
    for task in tasks.TASKS:
        table.add_row(task, *(f"{column[task]:.0%}" for column in columns))
    means = [sum(column.values()) / len(column) for column in columns]
    table.add_row("mean", *(f"{mean:.1%}" for mean in means), style="bold")
    Console().print(table)
    print(f"      {100 * (means[1] - means[2]):.0f} points above the most frequent answer")


# ---------------------------------------------------------------------------------------------------------------------
# What the bound is compared with


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
