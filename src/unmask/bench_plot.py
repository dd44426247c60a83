"""The picture of `unmask bench decode`: quality over speed.

In:  results and their figures (`unmask.measure`).
Out: a PNG. Each cell is a spot with its name: the colour is its rule's, the marker its cache's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import report

if TYPE_CHECKING:
    from unmask.measure import Result

DISTANCES = (7, 18, 32, 48, 66, 90)
"""Points between a spot and its name, tried from the nearest on."""
DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))


def draw(path: Path, results: Sequence[Result], figures: Sequence[dict[str, Any]], title: str) -> None:
    """Quality over speed as PNG: accuracy with its 95 % interval, or agreement with the baseline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [(r.cell, known) for r, known in zip(results, figures, strict=True) if "refused" not in known]
    quality = "accuracy" if "accuracy" in shown[0][1] else "same_tokens"
    rules, caches = (list(dict.fromkeys(getattr(c, k) for c, _ in shown)) for k in ("rule", "cache"))
    figure = Figure(figsize=(13, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    colour = {rule: f"C{i % 10}" for i, rule in enumerate(rules)}
    marker = {cache: "os^DvPX*<>"[i % 10] for i, cache in enumerate(caches)}
    axes = figure.subplots(1, 2, sharey=True)
    spots: list[list[tuple[float, float, str, str]]] = [[], []]
    for i, name in enumerate(("tokens_per_forward", "tokens_per_second")):
        panel = axes[i]
        for cell, known in shown:
            x, y = known[name], 100 * known[quality]
            if x is None:
                continue
            low, high = known.get("accuracy_interval", (y / 100, y / 100))
            errors = [[max(0.0, y - 100 * low)], [max(0.0, 100 * high - y)]]
            style = {"color": colour[cell.rule], "marker": marker[cell.cache], "markersize": 8, "capsize": 2}
            faint = (*to_rgb(colour[cell.rule]), 0.4)
            panel.errorbar(
                [x], [y], yerr=errors if high > low else None, elinewidth=1, ecolor=faint, linestyle="none", **style
            )
            cached = "" if cell.cache == "none" else f" · {short(cell.cache, caches)}"
            spots[i].append((x, y, short(cell.rule, rules) + cached, colour[cell.rule]))
        panel.margins(0.18)
        panel.set_xlabel(name.replace("_", " "))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy, % (95 %)" if quality == "accuracy" else "tokens equal to the baseline's, %")
    handles = [Line2D([], [], linestyle="none", marker="o", color=colour[rule], label=rule) for rule in rules]
    handles += [Line2D([], [], linestyle="none", marker=marker[c], color="#666666", label=c) for c in caches]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names are put where there is room, so nothing may move any more
    for panel, some in zip(axes, spots, strict=True):
        write_names(panel, some)
    with report.written_aside(path) as aside:
        figure.savefig(aside, format="png")


def short(typed: str, all_typed: Sequence[str]) -> str:
    """`prefix:refresh_every=8` → `prefix`, if no other one is of that name; the legend has the whole."""
    name, _, args = typed.partition(":")
    if [one.partition(":")[0] for one in all_typed].count(name) == 1:
        return name
    return args if args.startswith(f"{name}=") else f"{name} {args}".strip()


def write_names(panel: Any, spots: Sequence[tuple[float, float, str, str]]) -> None:
    """Each spot's name (x, y, name, colour) beside it, or at the end of a line where others are in the way."""
    from matplotlib.text import Text

    renderer = panel.figure.canvas.get_renderer()
    at = [panel.transData.transform(spot[:2]) for spot in spots]
    taken: list[Any] = []
    for x, y, name, colour in sorted(spots):
        tried: list[tuple[int, int, Any, Any]] = []
        for distance, (right, up) in itertools.product(DISTANCES, DIRECTIONS):
            note = panel.annotate(
                name,
                (x, y),
                (right * min(distance, 24), up * distance),
                textcoords="offset points",
                ha=("right", "center", "left")[right + 1],
                va="bottom" if up > 0 else "top",
                fontsize=8,
                color=colour,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6} if distance > DISTANCES[0] else None,
            )
            note.update_positions(renderer)
            box = Text.get_window_extent(note, renderer)  # the words alone, without their line
            outside = not (panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1 and panel.bbox.y0 <= box.y0)
            covered = sum(box.padded(6).contains(*spot) for spot in at)
            tried.append((10 * outside + covered + sum(map(box.overlaps, taken)), len(tried), note, box))
            if not tried[-1][0]:
                break
        _, _, best, box = min(tried, key=lambda one: one[:2])
        for _, _, note, _ in tried:
            if note is not best:
                note.remove()
        taken.append(box)
