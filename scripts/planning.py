#!/usr/bin/env python3
"""A task where order matters: Sudoku, learnt by masked diffusion and left to right at equal compute.

    python scripts/planning.py                      # what docs/studies/planning holds: about an hour on one core
    python scripts/planning.py --steps 100 --train_rows 2000 --test_rows 50 --results_dir output/planning/results

In:  nothing but flags; puzzles are made (`unmask.puzzles`).
Out: in --results_dir a small JSON for each part that is done, results.csv, planning.png, and the table in README.md.

Both kinds start from the same weights and see the same rows in the same order, for as many steps, by `unmask sft`; each
with the learning rate that a short run on other puzzles favours. A part that is done is not done again, so a study that
was stopped goes on where it stood, on this machine or, with the parts, on another.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask import checkpoint, puzzles, report
from unmask.__main__ import told
from unmask.config import UserError, option, parse
from unmask.measure import wilson

MASKED, CAUSAL = "masked", "autoregressive"
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
TABLE = ("<!-- table: written by scripts/planning.py -->", "<!-- end of table -->")
BANDS = 4  # groups of test puzzles by their number of blanks


@dataclasses.dataclass
class PlanningArguments:
    """Planning"""

    output_dir: str = option("output/planning", "Folder for puzzles, models and runs.")
    results_dir: str = option("docs/studies/planning", "Folder for what is kept: parts, CSV, table, picture.")
    seeds: list[int] = option([1], "Seeds of weights, order and noise; each is a run of each kind.")
    puzzle_seed: int = option(0, "Seed of the puzzles.")
    train_rows: int = option(96_000, "Puzzles to learn from.")
    test_rows: int = option(500, "Puzzles that are asked, and as many others on which learning rates are chosen.")
    fewest: int = option(8, "Blank cells of a puzzle, at least.")
    most: int = option(24, "Blank cells of a puzzle, at most.")
    width: int = option(128, "Width of the model.")
    layers: int = option(4, "Layers of the model.")
    steps: int = option(1500, "Steps of training.")
    batch_size: int = option(64, "Puzzles a step.")
    rates: list[float] = option([1e-3, 2e-3, 4e-3], "Learning rates tried for each kind.")
    rate_steps: int = option(150, "Steps of each of these short runs.")


@dataclasses.dataclass
class Cell:
    """A line of the table: how a model of one kind is asked."""

    kind: str
    rule: str
    steps: int | None = None  # None: as many as the rule takes

    @property
    def name(self) -> str:
        return "-".join(str(word) for word in (self.kind, self.rule, self.steps) if word)


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
        report.say(f"{name}: done before")
        return found

    def keep(self, name: str, settings: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """Write a part down."""
        whole = {"settings": settings, **found, "versions": report.versions()}
        path = Path(self.asked.results_dir) / "parts" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(path, whole)
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

    asked, folder = study.asked, study.home / f"start-s{seed}"
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


def trained(study: Study, name: str, kind: str, seed: int, rate: float, steps: int) -> dict[str, Any]:
    """A run of `unmask sft`, by that command: its facts. The model is in output_dir/name/checkpoint-final."""
    asked, run = study.asked, study.home / name
    facts = dataclasses.asdict(asked)
    same = {k: facts[k] for k in ("puzzle_seed", "train_rows", "fewest", "most", "width", "layers", "batch_size")}
    settings = same | {"kind": kind, "seed": seed, "learning_rate": rate, "steps": steps, "how": HOW[kind]}
    found = study.part(name, settings)
    if found and (run / checkpoint.FINAL).is_dir():
        return found
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
    code = subprocess.run([sys.executable, "-m", "unmask", *words, *more], check=False).returncode
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


def spent() -> float:
    """CPU seconds of this process and of those that it waited for."""
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in use)


def best_rate(study: Study, kind: str) -> float:
    """The learning rate whose short run has the lowest loss on the validation puzzles."""
    asked = study.asked
    seed = asked.seeds[0]
    short = {
        rate: trained(study, f"rate-{kind}-{rate:g}", kind, seed, rate, asked.rate_steps)["loss"]
        for rate in asked.rates
    }
    return min(short, key=lambda rate: short[rate])


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


def ask(study: Study, cell: Cell, seed: int, rows: Sequence[puzzles.Row], run: dict[str, Any]) -> dict[str, Any]:
    """A cell's part: what of each puzzle is right."""
    name = f"ask-{cell.name.replace(' ', '_')}-s{seed}"
    settings = {"cell": dataclasses.asdict(cell), "model": run["settings"], "test_rows": len(rows)}
    found = study.part(name, settings)
    if found:
        return found
    before = spent()
    given, passes = answers(study, cell, study.home / f"run-{cell.kind}-s{seed}" / checkpoint.FINAL, rows)
    took = spent() - before
    asked = [row["instruction"] for row in rows]
    pairs = list(zip(rows, given, strict=True))
    return study.keep(
        name,
        settings,
        {
            "solved": [int(puzzles.right(row["instruction"], answer, study.shape)) for row, answer in pairs],
            "blanks_right": [
                puzzles.blanks_right(row["instruction"], answer, row["output"])[0] for row, answer in pairs
            ],
            "blanks": [puzzle.count(puzzles.BLANK) for puzzle in asked],
            "by_singles": [int(puzzles.BLANK not in puzzles.by_singles(puzzle, study.shape)) for puzzle in asked],
            "forward_passes": passes,
            "cpu_seconds": round(took, 1),
        },
    )


# ---------------------------------------------------------------------------------------------------------------------
# Telling


COLUMNS = (
    *("kind", "rule", "steps", "seed", "forward_passes", "puzzles", "solved", "share", "low", "high"),
    *("singles_solved", "singles", "blanks_right", "blanks", "parameters", "training_tokens", "training_steps"),
    *("learning_rate", "training_cpu_seconds", "asking_cpu_seconds"),
)


def line(cell: Cell, seed: int, part: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """A line of results.csv. share: solved of all, low and high its 95 % interval (Wilson's)."""
    solved, count = sum(part["solved"]), len(part["solved"])
    low, high = wilson(solved, count)
    easy = [s for s, singles in zip(part["solved"], part["by_singles"], strict=True) if singles]
    values = (
        *(cell.kind, cell.rule, cell.steps or "", seed, round(sum(part["forward_passes"]) / count, 2)),
        *(count, solved, round(solved / count, 4), round(low, 4), round(high, 4), sum(easy), len(easy)),
        *(sum(part["blanks_right"]), sum(part["blanks"]), run["parameters"], run["tokens"], run["settings"]["steps"]),
        *(run["settings"]["learning_rate"], run["cpu_seconds"], part["cpu_seconds"]),
    )
    return dict(zip(COLUMNS, values, strict=True))


def bands(parts: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """The test puzzles' numbers of blanks in `BANDS` groups as equal as they can be: (fewest, most) of each."""
    blanks = sorted(blank for part in parts[:1] for blank in part["blanks"])
    edges = sorted({blanks[len(blanks) * i // BANDS] for i in range(BANDS)})
    return [(low, high - 1) for low, high in zip(edges, [*edges[1:], blanks[-1] + 1], strict=True)]


def in_band(part: dict[str, Any], band: tuple[int, int]) -> tuple[int, int]:
    """(solved, puzzles) of those with so many blanks."""
    some = [s for s, blank in zip(part["solved"], part["blanks"], strict=True) if band[0] <= blank <= band[1]]
    return sum(some), len(some)


def percent(right: int, count: int) -> str:
    """`81.4 (77.7–84.6)`: a share in % with its 95 % interval."""
    low, high = wilson(right, count)
    return f"{100 * right / count:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def tables(found: Sequence[tuple[Cell, int, dict[str, Any], dict[str, Any]]]) -> str:
    """The tables of README.md."""
    groups = bands([part for _, _, part, _ in found])
    head = ["kind", "rule", "steps", "seed", "passes", "solved, %", "blanks right, %", "CPU s"]
    out = [head, ["---"] * len(head)]
    for cell, seed, part, run in found:
        one = line(cell, seed, part, run)
        cells_right = f"{100 * one['blanks_right'] / one['blanks']:.1f}"
        solved = percent(one["solved"], one["puzzles"])
        out.append(
            [
                cell.kind,
                cell.rule,
                str(cell.steps or "–"),
                str(seed),
                f"{one['forward_passes']:.1f}",
                solved,
                cells_right,
            ]
            + [f"{one['asking_cpu_seconds']:.0f}"]
        )
    by = [["kind", "rule", "steps", "seed", *(f"{low}–{high} blanks" for low, high in groups)]]
    by += [["---"] * len(by[0])]
    for cell, seed, part, _ in found:
        by.append(
            [cell.kind, cell.rule, str(cell.steps or "–"), str(seed), *(percent(*in_band(part, g)) for g in groups)]
        )
    runs = [["kind", "seed", "parameters", "learning rate", "steps", "tokens", "validation, nats/token", "CPU s"]]
    runs += [["---"] * len(runs[0])]
    told_of: set[tuple[str, int]] = set()
    for cell, seed, _, run in found:
        if (cell.kind, seed) not in told_of:
            told_of.add((cell.kind, seed))
            mark = "≤ " if cell.kind == MASKED else ""
            runs.append(
                [cell.kind, str(seed), f"{run['parameters']:,}", f"{run['settings']['learning_rate']:g}"]
                + [
                    f"{run['settings']['steps']:,}",
                    f"{run['tokens']:,}",
                    f"{mark}{run['loss']:.4f} ± {run['loss_se']:.4f}",
                ]
                + [f"{run['cpu_seconds']:,.0f}" + (" since it went on" if run["resumed"] else "")]
            )
    count = len(found[0][2]["solved"])
    titles = (
        f"Puzzles solved, of {count}, with 95 % intervals (Wilson); CPU seconds of asking all of them at once:",
        "The same by the number of blanks:",
        "What it took:",
    )
    return "\n\n".join(
        f"{title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)
        for title, rows in zip(titles, (out, by, runs), strict=True)
    )


def draw(path: Path, found: Sequence[tuple[Cell, int, dict[str, Any], dict[str, Any]]]) -> None:
    """Puzzles solved over forward passes, and over blanks, as PNG; of several seeds the mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    merged: dict[str, tuple[Cell, list[dict[str, Any]]]] = {}
    for cell, _, part, _ in found:
        merged.setdefault(cell.name, (cell, []))[1].append(part)
    most = max(cell.steps or 1 for cell, _, _, _ in found)
    groups = bands([part for _, _, part, _ in found])
    names = list(dict.fromkeys((cell.kind, cell.rule) for cell, _ in merged.values()))
    styles = {name: {"color": f"C{i}", "marker": "os^DvP"[i % 6]} for i, name in enumerate(names)}
    for name in names:
        some = [(cell, parts) for cell, parts in merged.values() if (cell.kind, cell.rule) == name]
        label = f"{name[0]}, {name[1].replace('_', ' ')}"
        spots = []
        for _, parts in some:
            solved, count = sum(sum(p["solved"]) for p in parts), sum(len(p["solved"]) for p in parts)
            low, high = wilson(solved, count)
            passes = sum(sum(p["forward_passes"]) for p in parts) / count
            spots.append((passes, 100 * solved / count, 100 * low, 100 * high))
        spots.sort()
        x, y, lows, highs = (list(values) for values in zip(*spots, strict=True))
        bars = [
            [max(0, v - low) for v, low in zip(y, lows, strict=True)],
            [max(0, h - v) for v, h in zip(y, highs, strict=True)],
        ]
        left.errorbar(x, y, bars, label=label, capsize=3, linestyle="-", linewidth=1, **styles[name])
        whole = [parts for cell, parts in some if cell.steps in (most, None)]
        for parts in whole[:1]:
            counts = [[in_band(part, group) for part in parts] for group in groups]
            sums = [(sum(a for a, _ in one), sum(b for _, b in one)) for one in counts]
            mid = [(low + high) / 2 for low, high in groups]
            y = [100 * a / b for a, b in sums]
            ends = [wilson(a, b) for a, b in sums]
            bars = [
                [max(0, v - 100 * low) for v, (low, _) in zip(y, ends, strict=True)],
                [max(0, 100 * high - v) for v, (_, high) in zip(y, ends, strict=True)],
            ]
            right.errorbar(mid, y, bars, label=label, capsize=3, linewidth=1, **styles[name])
    left.set(xlabel="forward passes an answer", ylabel="puzzles solved, % (95 %)", xscale="log", ylim=(-3, 103))
    ticks = sorted({cell.steps for cell, _ in merged.values() if cell.steps})
    left.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    left.minorticks_off()
    right.set(xlabel="blank cells", title="one cell a pass, and threshold")
    left.set(title="all puzzles")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=9)
    with report.written_aside(path) as aside:
        figure.savefig(aside, format="png")


def tell(study: Study, found: Sequence[tuple[Cell, int, dict[str, Any], dict[str, Any]]]) -> str:
    """Write results.csv, the picture and the tables into README.md; returns the tables."""
    folder = Path(study.asked.results_dir)
    with report.written_aside(folder / "results.csv") as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(line(*one) for one in found)
    draw(folder / "planning.png", found)
    text = tables(found)
    readme = folder / "README.md"
    before = (
        readme.read_text(encoding="utf-8")
        if readme.is_file()
        else f"# A task where order matters\n\n{TABLE[0]}\n{TABLE[1]}\n"
    )
    around = re.compile(re.escape(TABLE[0]) + ".*" + re.escape(TABLE[1]), re.DOTALL)
    with report.written_aside(readme) as aside:
        aside.write_text(around.sub(lambda _: f"{TABLE[0]}\n\n{text}\n\n{TABLE[1]}", before), encoding="utf-8")
    return text


def main(argv: list[str]) -> int:
    """The study, from flags to table."""
    asked: PlanningArguments = parse("planning.py", __doc__.splitlines()[0], [PlanningArguments], argv).groups[0]
    for name in ("train_rows", "test_rows", "fewest", "width", "layers", "steps", "batch_size", "rate_steps"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name} is {getattr(asked, name)}; it must be at least 1.")
    if asked.most < asked.fewest or not asked.rates or not asked.seeds:
        raise UserError("--most must not be below --fewest, and --rates and --seeds name one at least.")
    study = Study(asked, puzzles.Shape())
    Path(asked.results_dir).mkdir(parents=True, exist_ok=True)
    rows = write_rows(study)
    found = []
    rates = {kind: best_rate(study, kind) for kind in HOW}
    for seed in asked.seeds:
        runs = {kind: trained(study, f"run-{kind}-s{seed}", kind, seed, rates[kind], asked.steps) for kind in HOW}
        found += [
            (cell, seed, ask(study, cell, seed, rows, runs[cell.kind]), runs[cell.kind]) for cell in cells(study.shape)
        ]
    print(tell(study, found))
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
