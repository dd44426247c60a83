"""What scripts/planning.py found, told: a CSV, tables in Markdown, a picture.

In:  for each way of asking what was solved (`Asked`).
Out: results.csv, planning.png, and the tables between two marks in README.md, whose other words stay as they are.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask import report
from unmask.measure import wilson

MASKED, CAUSAL = "masked", "autoregressive"
BEGIN, END = "<!-- tables: written by scripts/planning.py -->", "<!-- end of tables -->"
BANDS = 4  # groups of puzzles by their number of blanks
COLUMNS = (
    *("kind", "rule", "steps", "seed", "forward_passes", "puzzles", "solved", "share", "low", "high"),
    *("singles_solved", "singles", "blanks_right", "blanks", "parameters", "training_tokens", "training_steps"),
    *("learning_rate", "training_cpu_seconds", "asking_cpu_seconds"),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """How a model of one kind is asked."""

    kind: str
    rule: str
    steps: int | None = None  # None: as many as the rule takes

    @property
    def name(self) -> str:
        return "-".join(str(word).replace(" ", "_") for word in (self.kind, self.rule, self.steps) if word)


@dataclasses.dataclass
class Asked:
    """A cell, the seed of the model that was asked, what came of it, and the facts of the model's training.

    part: solved, blanks_right, blanks, by_singles, forward_passes: each a list, of a number for each puzzle.
    """

    cell: Cell
    seed: int
    part: dict[str, Any]
    run: dict[str, Any]

    def head(self) -> list[str]:
        return [self.cell.kind, self.cell.rule, str(self.cell.steps or "–"), str(self.seed)]


def line(one: Asked) -> dict[str, Any]:
    """A line of results.csv. share: solved of all, low and high its 95 % interval (Wilson's).

    singles_solved: of those that follow by singles alone. blanks_right: of all puzzles' blank cells.
    """
    cell, part, run = one.cell, one.part, one.run
    solved, count = sum(part["solved"]), len(part["solved"])
    low, high = wilson(solved, count)
    easy = [s for s, singles in zip(part["solved"], part["by_singles"], strict=True) if singles]
    values = (
        *(cell.kind, cell.rule, cell.steps or "", one.seed, round(sum(part["forward_passes"]) / count, 2)),
        *(count, solved, round(solved / count, 4), round(low, 4), round(high, 4), sum(easy), len(easy)),
        *(sum(part["blanks_right"]), sum(part["blanks"]), run["parameters"], run["tokens"], run["settings"]["steps"]),
        *(run["settings"]["learning_rate"], run["cpu_seconds"], part["cpu_seconds"]),
    )
    return dict(zip(COLUMNS, values, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def bands(part: dict[str, Any]) -> list[tuple[int, int]]:
    """Numbers of blanks in `BANDS` groups of puzzles, as equal as they can be: (fewest, most) of each."""
    blanks = sorted(part["blanks"])
    edges = sorted({blanks[len(blanks) * i // BANDS] for i in range(BANDS)})
    return [(low, high - 1) for low, high in zip(edges, [*edges[1:], blanks[-1] + 1], strict=True)]


def in_band(parts: Sequence[dict[str, Any]], band: tuple[int, int]) -> tuple[int, int]:
    """(solved, puzzles) of those with so many blanks."""
    pairs = [pair for part in parts for pair in zip(part["solved"], part["blanks"], strict=True)]
    some = [solved for solved, blanks in pairs if band[0] <= blanks <= band[1]]
    return sum(some), len(some)


def percent(right: int, count: int) -> str:
    """`81.4 (77.7–84.6)`: a share in % with its 95 % interval."""
    low, high = wilson(right, count)
    return f"{100 * right / count:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def tables(found: Sequence[Asked]) -> str:
    """All tables of README.md."""
    groups = bands(found[0].part)
    head = ["kind", "rule", "steps", "seed"]
    asked = [[*head, "forward passes", "solved, %", "blanks right, %", "CPU s"]]
    by_blanks = [[*head, *(f"{low}–{high} blanks" for low, high in groups)]]
    runs: dict[tuple[str, int], list[str]] = {}
    for one in found:
        told, run = line(one), one.run
        share = f"{100 * told['blanks_right'] / told['blanks']:.1f}"
        solved = percent(told["solved"], told["puzzles"])
        cpu = f"{told['asking_cpu_seconds']:.0f}"
        asked.append([*one.head(), f"{told['forward_passes']:.1f}", solved, share, cpu])
        by_blanks.append([*one.head(), *(percent(*in_band([one.part], group)) for group in groups)])
        sign = "≤ " if one.cell.kind == MASKED else ""
        runs[one.cell.kind, one.seed] = [
            *(one.cell.kind, str(one.seed), f"{run['parameters']:,}", f"{run['settings']['learning_rate']:g}"),
            *(f"{run['settings']['steps']:,}", f"{run['tokens']:,}", f"{sign}{run['loss']:.4f} ± {run['loss_se']:.4f}"),
            f"{run['cpu_seconds']:,.0f}" + (" since it went on" if run["resumed"] else ""),
        ]
    trained = [["kind", "seed", "parameters", "learning rate", "steps", "tokens", "validation, nats/token", "CPU s"]]
    titles = {
        f"Puzzles solved, of {len(found[0].part['solved'])}, with 95 % intervals (Wilson). CPU s: of asking all "
        "of them as one batch.": asked,
        "The same by the number of blank cells, %:": by_blanks,
        "What training took, and what it came to on puzzles that are not asked:": [*trained, *runs.values()],
    }
    return "\n\n".join(f"{title}\n\n{markdown(rows)}" for title, rows in titles.items())


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    whole = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in whole)


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def spot(right: int, count: int) -> tuple[float, float, float]:
    """A share in % and the lengths of its error bar, down and up."""
    low, high = wilson(right, count)
    share = right / count
    return 100 * share, max(0.0, 100 * (share - low)), max(0.0, 100 * (high - share))


def draw(path: Path, found: Sequence[Asked]) -> None:
    """Puzzles solved over forward passes, and over blanks, as PNG; several seeds' puzzles are counted together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    parts: dict[Cell, list[dict[str, Any]]] = {}
    for one in found:
        parts.setdefault(one.cell, []).append(one.part)
    groups, most = bands(found[0].part), max(cell.steps or 1 for cell in parts)
    for i, (kind, rule) in enumerate(dict.fromkeys((cell.kind, cell.rule) for cell in parts)):
        style: dict[str, Any] = {"color": f"C{i}", "marker": "Dosv^P"[i % 6], "capsize": 3, "linewidth": 1}
        style["label"] = f"{kind}: {rule.replace('_', ' ')}"
        mine = [cell for cell in parts if (cell.kind, cell.rule) == (kind, rule)]
        spots = []
        for cell in mine:
            solved = [mark for part in parts[cell] for mark in part["solved"]]
            passes = [n for part in parts[cell] for n in part["forward_passes"]]
            spots.append((sum(passes) / len(passes), *spot(sum(solved), len(solved))))
        x, y, down, up = zip(*sorted(spots), strict=True)
        left.errorbar(x, y, [down, up], **style)
        for cell in [cell for cell in mine if cell.steps in (most, None)][:1]:
            y, down, up = zip(*(spot(*in_band(parts[cell], group)) for group in groups), strict=True)
            right.errorbar([sum(group) / 2 + (i - 2) / 8 for group in groups], y, [down, up], **style)
    ticks = sorted({cell.steps for cell in parts if cell.steps})
    left.set(xlabel="forward passes an answer", ylabel="puzzles solved, % (95 %)", xscale="log", ylim=(-3, 103))
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    left.set_title("all puzzles")
    right.set_xlabel("blank cells")
    right.set_title(f"by blanks, in {most} passes (threshold: fewer)")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    with report.written_aside(path) as aside:
        figure.savefig(aside, format="png")


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def tell(folder: Path, found: Sequence[Asked]) -> str:
    """Write all three; returns the tables."""
    with report.written_aside(folder / "results.csv") as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(line(one) for one in found)
    draw(folder / "planning.png", found)
    text, readme = tables(found), folder / "README.md"
    before = f"# A task where order matters\n\n{BEGIN}\n{END}\n\n![Puzzles solved](planning.png)\n"
    if readme.is_file():
        before = readme.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    with report.written_aside(readme) as aside:
        aside.write_text(between.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", before), encoding="utf-8")
    return text
