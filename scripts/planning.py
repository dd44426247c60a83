#!/usr/bin/env python3
"""A task where order matters: Sudoku, learnt by masked diffusion and left to right at equal compute.

    python scripts/planning.py                      # what docs/studies/planning holds: 15 minutes of one core
    python scripts/planning.py --steps 100 --train_rows 2000 --test_rows 50 --results_dir output/planning/results

In:  nothing but flags; puzzles are made (`unmask.puzzles`).
Out: in --results_dir a small JSON for each part that is done, results.csv, planning.png, and the table in README.md.

Both kinds start from the same weights and see the same rows in the same order, for as many steps, by `unmask sft`; each
with that of the learning rates whose run is best on puzzles kept for it. (Runs of 150 steps did not tell them apart.)
A part that is done is not done again, so a study that was stopped goes on where it stood, on this machine or, with the
parts, on another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planning_table import CAUSAL, MASKED, Asked, Cell, tell

from unmask import checkpoint, puzzles, report
from unmask.__main__ import told
from unmask.config import UserError, option, parse

HOW = {
    # Every masked cell counts the same: what is asked for is the answer, not a bound on its likelihood.
    MASKED: ["--objective", "masked", "--objective_args", "weight=none,normalise=masked", "--eos_tail", "none"],
    CAUSAL: ["--objective", "autoregressive"],
}
# A row is 1 + 36 + 1 + 36 + 1 tokens: with the words of LLaDA's template it would be a third longer.
TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- message['content'] + ('<|eot_id|>' if message['role'] == 'assistant' else '<|end_header_id|>') -}}
{%- endfor -%}
"""
VOCABULARY = 262  # the 256 bytes and the six special tokens: every digit is a token of its own


@dataclasses.dataclass
class PlanningArguments:
    """Planning"""

    output_dir: str = option("output/planning", "Folder for puzzles, models and runs.")
    results_dir: str = option("docs/studies/planning", "Folder for what is kept: parts, CSV, table, picture.")
    seeds: list[int] = option([1], "Seeds of weights, order and noise; each is a run of each kind.")
    puzzle_seed: int = option(0, "Seed of the puzzles.")
    train_rows: int = option(60_000, "Puzzles to learn from.")
    test_rows: int = option(300, "Puzzles that are asked, and as many others on which learning rates are chosen.")
    fewest: int = option(8, "Blank cells of a puzzle, at least.")
    most: int = option(24, "Blank cells of a puzzle, at most.")
    width: int = option(128, "Width of the model.")
    layers: int = option(4, "Layers of the model.")
    steps: int = option(1000, "Steps of training.")
    batch_size: int = option(32, "Puzzles a step.")
    rates: list[float] = option([1e-3], "Learning rates; of several each has a whole run with the first seed.")


def cells(shape: puzzles.Shape) -> list[Cell]:
    """All that is asked."""
    n = shape.cells
    each = [("left_to_right", n), ("random", n), ("reference", n), ("margin", n)]
    each += [("reference", steps) for steps in (n // 2, n // 4, n // 9, 1)]
    return [Cell(CAUSAL, "left to right", n), *(Cell(MASKED, *one) for one in each), Cell(MASKED, "threshold")]


@dataclasses.dataclass
class Study:
    """What the parts share."""

    asked: PlanningArguments
    shape: puzzles.Shape

    @property
    def home(self) -> Path:
        return Path(self.asked.output_dir)

    @property
    def length(self) -> int:
        """Tokens of a row: puzzle and solution, and what `TEMPLATE` puts around them."""
        return 2 * self.shape.cells + 3

    def part(self, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
        """A part that was done before; UserError when it was done by other settings."""
        path = Path(self.asked.results_dir) / "parts" / f"{name}.json"
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        differs = sorted(k for k in {*found["settings"], *settings} if found["settings"].get(k) != settings.get(k))
        if differs:
            raise UserError(f"{path} was made by other settings ({', '.join(differs)}); name another --results_dir.")
        return found

    def keep(self, name: str, settings: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """Write a part down."""
        whole = {"settings": settings, **found, "versions": report.versions()}
        path = Path(self.asked.results_dir) / "parts" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items()]
        with report.written_aside(path) as aside:
            aside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return whole


# ---------------------------------------------------------------------------------------------------------------------
# What both kinds are given


def write_rows(study: Study) -> list[puzzles.Row]:
    """Write puzzles/train.jsonl, puzzles/test.jsonl (for validation) and asked.jsonl; returns what is asked."""
    asked = study.asked
    path, seal = study.home / "asked.jsonl", study.home / "puzzles.json"
    recipe = [
        asked.puzzle_seed,
        asked.train_rows,
        asked.test_rows,
        asked.fewest,
        asked.most,
        *dataclasses.astuple(study.shape),
    ]
    if not (seal.is_file() and json.loads(seal.read_text(encoding="utf-8")) == recipe):
        report.say(f"making {asked.train_rows + 2 * asked.test_rows:,} puzzles")
        counts = [asked.test_rows, asked.test_rows, asked.train_rows]
        parts = puzzles.rows(asked.puzzle_seed, counts, (asked.fewest, asked.most), study.shape)
        (study.home / "puzzles").mkdir(parents=True, exist_ok=True)
        files = (path, study.home / "puzzles" / "test.jsonl", study.home / "puzzles" / "train.jsonl")
        for file, rows in zip(files, parts, strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        report.write_json(seal, recipe)  # last: it says that all are there
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def start(study: Study, seed: int) -> Path:
    """The folder of an untrained model, which both kinds start from."""
    from unmask import init, models, tokenizer

    asked = study.asked
    folder = study.home / f"start-w{asked.width}-l{asked.layers}-s{seed}"
    if models.weight_files(folder):
        return folder
    report.quiet()
    (study.home / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    tokenizer.save(tokenizer.train([study.shape.digits], VOCABULARY), study.home / "tokenizer")
    sizes = f"d_model={asked.width},n_layers={asked.layers},mlp_hidden_size={3 * asked.width},weight_tying=true"
    words = ["llada-200k", "--set", sizes, "--max_length", str(study.length), "--overwrite"]
    init.main([*words, "--tokenizer", str(study.home / "tokenizer"), "--output_dir", str(folder)])
    models.load(str(folder), fresh=True, seed=seed).model.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Training


def run_name(kind: str, seed: int, rate: float) -> str:
    return f"run-{kind}-{rate:g}-s{seed}"


def run_settings(study: Study, kind: str, seed: int, rate: float) -> dict[str, Any]:
    """All that a run comes of."""
    names = ("puzzle_seed", "train_rows", "test_rows", "fewest", "most", "width", "layers", "batch_size", "steps")
    same = {name: getattr(study.asked, name) for name in names}
    return same | {"kind": kind, "seed": seed, "learning_rate": rate, "how": HOW[kind]}


def run_folder(study: Study, kind: str, seed: int, rate: float) -> Path:
    """Of these settings alone: others in the same output_dir neither go on with its checkpoints nor are asked by it."""
    key = report.digest(run_settings(study, kind, seed, rate))[:8]
    return study.home / f"{run_name(kind, seed, rate)}-{key}"


def trained(study: Study, kind: str, seed: int, rate: float, *, model: bool = False) -> dict[str, Any]:
    """A run of `unmask sft`, by that command: its facts. The model is in `run_folder`/checkpoint-final.

    Args:
        model: whether that is needed, too, where the facts are known from another machine.
    """
    asked, name = study.asked, run_name(kind, seed, rate)
    run, steps, settings = run_folder(study, kind, seed, rate), asked.steps, run_settings(study, kind, seed, rate)
    found = study.part(name, settings)
    if found and not (model and not (run / checkpoint.FINAL).is_dir()):
        return found
    write_rows(study)
    words = ["sft", "--model_name_or_path", str(start(study, seed)), "--dataset_args", str(study.home / "puzzles")]
    words += ["--output_dir", str(run), "--chat_template", str(study.home / "template.jinja"), *HOW[kind]]
    words += ["--max_steps", str(steps), "--learning_rate", str(rate), "--seed", str(seed)]
    words += ["--max_length", str(study.length), "--per_device_train_batch_size", str(asked.batch_size)]
    words += ["--per_device_eval_batch_size", "250", "--gradient_accumulation_steps", "1", "--group_by_length", "false"]
    words += ["--warmup_steps", "0.05", "--weight_decay", "0.01", "--adam_beta2", "0.99", "--bf16", "false"]
    words += ["--eval_strategy", "no", "--save_steps", "0.2", "--logging_steps", str(max(1, steps // 60))]
    again = bool(checkpoint.numbered(run))
    report.say(f"{name}: unmask {' '.join(words)}")
    before, began = spent(), time.monotonic()
    more = ["--resume_from_checkpoint", "auto"] if again else ["--overwrite_output_dir"]
    code = command([*words, *more])
    if code:
        raise UserError(f"{name}: training ended with code {code}; what it said stands above.", code)
    seconds, clock = spent() - before, time.monotonic() - began
    last = [line for line in report.read_metrics(run) if "eval_loss" in line][-1]
    manifest = json.loads((run / report.MANIFEST).read_text(encoding="utf-8"))
    return study.keep(
        name,
        settings,
        {
            "loss": last["eval_loss"],
            "loss_se": last["eval_loss_se"],
            "parameters": manifest["parameters"],
            "tokens": steps * asked.batch_size * study.length,
            "cpu_seconds": round(seconds, 1),
            "seconds": round(clock, 1),
            "resumed": again,  # then the seconds are those since
            "curve": [(m["step"], round(m["loss"], 4)) for m in report.read_metrics(run) if "loss" in m],
        },
    )


def command(words: list[str]) -> int:
    """The exit code of `unmask …`, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "unmask", *words], check=False).returncode


def spent() -> float:
    """CPU seconds of this process and of those that it waited for (on Windows of this one alone)."""
    return sum(os.times()[:4])


def best_rate(study: Study, kind: str) -> float:
    """The learning rate whose run with the first seed has the lowest loss on the validation puzzles."""
    asked = study.asked
    loss = {rate: trained(study, kind, asked.seeds[0], rate)["loss"] for rate in asked.rates}
    return min(loss, key=lambda rate: loss[rate])


# ---------------------------------------------------------------------------------------------------------------------
# Asking


def answers(study: Study, cell: Cell, model: Path, rows: Sequence[puzzles.Row]) -> tuple[list[str], list[int]]:
    """Answers to puzzles, and the forward passes of each. The end of the answer's turn is given: it is the 37th token.

    All are asked at once: the network's passes are what is compared, and the seconds are those of such a batch.
    """
    import torch

    from unmask import models, sample
    from unmask.template import Template

    causal, n = cell.kind == CAUSAL, study.shape.cells
    loaded = models.load(str(model), causal=causal)
    template = Template(loaded.tokenizer)
    prompts = [template.prompt([{"role": "user", "content": row["instruction"]}]) for row in rows]
    if causal:
        ids = torch.tensor(prompts)
        written = loaded.model.generate(ids, torch.ones_like(ids), max_new_tokens=n, do_sample=False)[:, ids.shape[1] :]
        return loaded.tokenizer.batch_decode(written, skip_special_tokens=True), [n] * len(rows)
    canvases: list[list[int | None]] = [[*prompt, *[None] * n, *template.ends] for prompt in prompts]
    settings: dict[str, Any] = {"rule": cell.rule, "seed": study.asked.puzzle_seed}
    settings |= {"steps": cell.steps} if cell.steps else {}
    every = sample.TextArguments(batch_size=len(rows))
    found = list(sample.answers(loaded, [""] * len(rows), canvases, settings, every))
    return [answer.pieces[1] for answer in found], [answer.passes for answer in found]


def ask(study: Study, cell: Cell, seed: int, rate: float) -> Asked:
    """A cell's part: what of each puzzle is right."""
    facts = trained(study, cell.kind, seed, rate)
    name = f"ask-{cell.name}-s{seed}"
    settings = {"cell": dataclasses.asdict(cell), "model": facts["settings"]}
    found = study.part(name, settings)
    if found:
        return Asked(cell, seed, found, facts)
    trained(study, cell.kind, seed, rate, model=True)
    rows = write_rows(study)
    report.say(f"{name}: {len(rows)} puzzles")
    before = spent()
    given, passes = answers(study, cell, run_folder(study, cell.kind, seed, rate) / checkpoint.FINAL, rows)
    took = spent() - before
    asked, solved = [row["instruction"] for row in rows], [row["output"] for row in rows]
    triples = list(zip(asked, given, solved, strict=True))
    found = study.keep(
        name,
        settings,
        {
            "solved": [int(puzzles.right(puzzle, answer, study.shape)) for puzzle, answer, _ in triples],
            "blanks_right": [puzzles.blanks_right(*one)[0] for one in triples],
            "blanks": [puzzle.count(puzzles.BLANK) for puzzle in asked],
            "by_singles": [int(puzzles.BLANK not in puzzles.by_singles(puzzle, study.shape)) for puzzle in asked],
            "forward_passes": passes,
            "cpu_seconds": round(took, 1),
        },
    )
    return Asked(cell, seed, found, facts)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def main(argv: list[str]) -> int:
    """The study, from flags to table."""
    asked: PlanningArguments = parse("planning.py", __doc__.splitlines()[0], [PlanningArguments], argv).groups[0]
    for name in ("train_rows", "test_rows", "fewest", "width", "layers", "steps", "batch_size"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name} is {getattr(asked, name)}; it must be at least 1.")
    if asked.most < asked.fewest or not asked.rates or not asked.seeds:
        raise UserError("--most must not be below --fewest, and --rates and --seeds name one at least.")
    study = Study(asked, puzzles.Shape())
    Path(asked.results_dir).mkdir(parents=True, exist_ok=True)
    rates = {kind: best_rate(study, kind) for kind in HOW}
    found = [ask(study, cell, seed, rates[cell.kind]) for seed in asked.seeds for cell in cells(study.shape)]
    print(tell(Path(asked.results_dir), found))
    report.say(f"the results are in {asked.results_dir}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices so small gain little from more threads
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(told(str(error), error.code))
    except KeyboardInterrupt:
        sys.exit(130)
