"""The study's pictures, each as wide as a telephone shows legibly: one panel below the other.

In:  results, roles, crossings, fits.  Out: PNG files; the same input gives the same bytes.

Colours are Okabe and Ito's, which all kinds of colour blindness keep apart; what a colour says a marker says, too:
filled circles are exact losses, open diamonds are bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unmask.report import amount, written_aside
from unmask.studies.claims import Roles
from unmask.studies.cross import BEST, EQUAL, Critical, Crossing, paper
from unmask.studies.fit import Repeats, points_of
from unmask.studies.results import Cell, Results

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKER = {"exact": "o", "bound": "D"}
WIDTH, DPI = 5.4, 160
LOSS = "validation loss, nats/token"


@contextmanager
def canvas(path: Path, rows: int = 1, height: float = 3.4, extra: float = 0.6) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of so many panels that is written to `path` afterwards."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context({"font.size": 11, "axes.titlesize": 11, "legend.fontsize": 9.5, "font.family": "DejaVu Sans"}):
        figure = Figure(
            figsize=(WIDTH, rows * height + extra), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)
        )
        FigureCanvasAgg(figure)
        panels = [figure.add_subplot(rows, 1, i + 1) for i in range(rows)]
        for panel in panels:
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        yield figure, panels
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            # Without the name and version of matplotlib, so that a later one may write the same bytes.
            figure.savefig(aside, format="png", metadata={"Software": None})


def colours(results: Results, roles: Roles) -> dict[str, str]:
    rest = [arm for arm in (*roles.tuned, *results.arms) if arm not in (roles.baseline, roles.masked)]
    found = {arm: OTHERS[i % len(OTHERS)] for i, arm in enumerate(dict.fromkeys(rest))}
    return found | {roles.baseline: BLUE, roles.masked: ORANGE}


def labelled(results: Results, arm: str) -> str:
    return f"{arm} ({results.kind(arm)})"


def marked(kind: str, colour: str) -> dict[str, Any]:
    """A filled circle or an open diamond."""
    face = colour if kind == "exact" else "white"
    return {"marker": MARKER[kind], "color": colour, "markerfacecolor": face, "markeredgewidth": 1.6}


def legend(figure: Any, handles: Sequence[Any], columns: int = 2) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def handle(label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **({"linestyle": "none", "color": GREY} | style))


def both(results: Results, roles: Roles, unique: int) -> list[Cell]:
    return results.cells([roles.baseline, roles.masked], unique)


def frame(panel: Any, low: float, high: float) -> None:
    pad = 0.05 * (high - low) + 1e-6
    panel.set_ylim(low - pad, high + pad)


def plain_numbers(axis: Any) -> None:
    """1, 10, 100 on a logarithmic axis instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def exact_and_bound(results: Results, arms: Sequence[str], shade: dict[str, str]) -> list[Any]:
    known = [arm for arm in arms if arm in results.arms]
    return [handle(labelled(results, arm), linestyle="-", **marked(results.kind(arm), shade[arm])) for arm in known]


def draw_epochs(path: Path, results: Results, roles: Roles) -> None:
    """Validation against epochs: a curve for each budget, its mean over seeds with the 95 % band, its best look."""
    shade = colours(results, roles)
    uniques = [unique for unique in results.uniques if both(results, roles, unique)]
    with canvas(path, len(uniques), extra=0.9) as (figure, panels):
        for unique, panel in zip(uniques, panels, strict=True):
            cells = both(results, roles, unique)
            lowest = min(cell.best.value for cell in cells)
            nothing = max(cell.losses.mean(0)[0] for cell in cells)
            ends = max(cell.last.value for cell in cells)
            for cell in cells:
                colour, after = shade[cell.arm], cell.epoch > 0
                curve = [one for one, kept in zip(cell.curve, after, strict=True) if kept]
                epochs, loss = cell.epoch[after], np.array([one.value for one in curve])
                panel.plot(epochs, loss, color=colour, linewidth=1.1, alpha=0.75)
                if len(cell.runs) > 1:
                    half = np.array([one.half for one in curve])
                    panel.fill_between(epochs, loss - half, loss + half, color=colour, alpha=0.15, linewidth=0)
                best = cell.best
                panel.errorbar(
                    [cell.best_epoch], [best.value], [best.half], elinewidth=1.2, capsize=2, markersize=6,
                    linestyle="none", zorder=3, **marked(cell.kind, colour),
                )  # fmt: skip
                if cell.last.value <= max(nothing, lowest + 1):
                    panel.annotate(
                        f"{cell.epochs:g}", (epochs[-1], loss[-1]), (7, 0), textcoords="offset points", fontsize=8,
                        color=colour, va="center",
                    )  # fmt: skip
            panel.set_xscale("log")
            plain_numbers(panel.xaxis)
            panel.set_xlim(min(0.5, min(cell.epochs for cell in cells)), 1.4 * max(cell.epochs for cell in cells))
            frame(panel, lowest, max(lowest + 0.3, min(nothing, max(ends + 0.2, lowest + 1))))
            panel.set(ylabel=LOSS, title=f"{amount(unique)} unique tokens", xlabel="epochs trained")
        handles = exact_and_bound(results, [roles.baseline, roles.masked], shade)
        handles += [
            handle("best checkpoint of a budget", marker="o", markerfacecolor="none"),
            handle("numbers: budgets; bands: 95 %"),
        ]
        legend(figure, handles)


def draw_compute(path: Path, results: Results, roles: Roles, crossings: Sequence[Crossing]) -> None:
    """Validation against compute: all looks, the lower envelopes, where they cross."""
    shade = colours(results, roles)
    uniques = [unique for unique in results.uniques if both(results, roles, unique)]
    signs = {BEST: ("P", "below AR's best at any compute (95 %)"), EQUAL: ("*", "crossing at equal compute (95 %)")}
    with canvas(path, len(uniques), extra=1.0) as (figure, panels):
        for unique, panel in zip(uniques, panels, strict=True):
            cells = both(results, roles, unique)
            for cell in cells:
                trained = cell.flops > 0
                panel.plot(
                    cell.flops[trained], cell.losses.mean(0)[trained], color=shade[cell.arm], linewidth=0.8, alpha=0.35
                )
            shapes = {arm: results.envelope(arm, unique) for arm in (roles.baseline, roles.masked)}
            most = max(float(cell.flops[-1]) for cell in cells)
            for arm, shape in shapes.items():
                if shape is not None:
                    panel.plot(
                        [*shape.flops, most], [*shape.loss, shape.loss[-1]], color=shade[arm], linewidth=2.4,
                        linestyle="-" if results.kind(arm) == "exact" else "--",
                    )  # fmt: skip
            for one in sorted(crossings, key=lambda one: one.against == EQUAL):  # the star on top
                shape = shapes[roles.masked]
                if one.unique == unique and one.against in signs and one.flops is not None and shape is not None:
                    low, high = one.interval or (one.flops, one.flops)
                    sides = [[one.flops - low], [min(high, most) - one.flops]]
                    panel.errorbar(
                        [one.flops], [float(shape.at(one.flops))], xerr=np.maximum(sides, 0), color="black", capsize=3,
                        marker=signs[one.against][0], markersize=11, markerfacecolor="#F0E442", zorder=4,
                    )  # fmt: skip
            lowest = min(cell.best.value for cell in cells)
            start = max(cell.losses.mean(0)[0] for cell in cells)
            panel.set_xscale("log")
            panel.set_xlim(most / 3e3, 1.5 * most)
            highest = max(cell.best.value for cell in cells)  # so that no arm falls out of the picture
            frame(panel, lowest, min(start, max(lowest + 1.2, highest + 0.3)))
            panel.set(ylabel=LOSS, xlabel="training compute, FLOPs (6 · parameters · tokens)")
            panel.set_title(f"{amount(unique)} unique tokens")
        handles = [
            handle(f"{labelled(results, arm)}, lowest so far", color=shade[arm], linewidth=2.4, linestyle=style)
            for arm, style in ((roles.baseline, "-"), (roles.masked, "--"))
            if arm in results.arms
        ]
        found = {one.against for one in crossings if one.flops is not None}
        handles += [
            handle(words, color="black", marker=sign, markersize=10, markerfacecolor="#F0E442")
            for against, (sign, words) in signs.items()
            if against in found
        ]
        legend(figure, handles, 1)


def draw_arms(path: Path, results: Results, roles: Roles) -> None:
    """All arms side by side: the best checkpoint over the grid, with its 95 % interval."""
    shade = colours(results, roles)
    first = [roles.baseline, *roles.tuned]
    last = [roles.masked]
    arms = [arm for arm in dict.fromkeys([*first, *results.arms]) if arm in results.arms and arm not in last]
    arms += [arm for arm in last if arm in results.arms]
    height = 0.36 * len(arms) + 1.0
    with canvas(path, len(results.uniques), height, 0.5) as (figure, panels):
        for unique, panel in zip(results.uniques, panels, strict=True):
            shown = [(arm, cell) for arm in arms if (cell := results.best(arm, unique))]
            if reference := results.best(roles.baseline, unique):
                panel.axvline(reference.best.value, color=BLUE, linewidth=1, linestyle=":")
            for i, (arm, cell) in enumerate(shown):
                panel.errorbar(
                    [cell.best.value], [i], xerr=[cell.best.half], capsize=3, markersize=7, linestyle="none",
                    **marked(cell.kind, shade[arm]),
                )  # fmt: skip
                panel.annotate(
                    f"{cell.best.value:.3f} at {cell.best_epoch:.3g} ep", (cell.best.value, i), (0, 7),
                    textcoords="offset points", fontsize=8.5, ha="center", color="#333333",
                )  # fmt: skip
            panel.set_yticks(range(len(shown)), [labelled(results, arm) for arm, _ in shown])
            panel.set_ylim(len(shown) - 0.5, -0.8)
            panel.margins(x=0.15)
            panel.set(xlabel=f"lowest {LOSS}", title=f"{amount(unique)} unique tokens")
        words = {"exact": "exact loss", "bound": "bound: the loss is at most this"}
        kinds = [kind for kind in words if any(run.kind == kind for run in results.runs)]
        legend(figure, [handle(words[kind], **marked(kind, GREY)) for kind in kinds])


def draw_repeats(path: Path, results: Results, fits: Sequence[Repeats]) -> None:
    """What the law of repeated data says beside what was measured, an arm a panel, a line a number of unique tokens."""
    fits = [fit for fit in fits if fit.points]
    with canvas(path, len(fits), 3.5, 0.7) as (figure, panels):
        shade = {unique: OTHERS[i % len(OTHERS)] for i, unique in enumerate(results.uniques)}
        for fit, panel in zip(fits, panels, strict=True):
            points = points_of(results, fit.arm)
            kind = results.kind(fit.arm)
            longest = max(epochs for _, epochs, _ in points)
            for unique in dict.fromkeys(unique for unique, _, _ in points):
                some = [(epochs, one) for its, epochs, one in points if its == unique]
                panel.errorbar(
                    [epochs for epochs, _ in some], [one.value for _, one in some], [one.half for _, one in some],
                    capsize=2, markersize=6, linestyle="none", **marked(kind, shade[unique]),
                )  # fmt: skip
                if fit.law is not None:
                    epochs = np.geomspace(min(e for e, _ in some), longest, 80)
                    panel.plot(epochs, fit.law(np.full(80, float(unique)), epochs), color=shade[unique], linewidth=1.3)
            panel.set_xscale("log")
            plain_numbers(panel.xaxis)
            panel.set(xlabel="epochs at most", ylabel=f"lowest {LOSS}", title=f"{fit.arm} ({kind}): {in_words(fit)}")
        legend(
            figure,
            [handle(f"{amount(unique)} unique tokens", color=shade[unique], marker="s") for unique in shade]
            + [handle("the fitted law", linestyle="-")],
            3,
        )


def in_words(fit: Repeats) -> str:
    if fit.law is None:
        return "no fit"
    if fit.why:
        return "R_D* is not identified"
    return f"R_D* = {fit.law.repeats:.3g} [{fit.low:.3g}, {fit.high:.3g}]"


def draw_critical(path: Path, crossings: Sequence[Crossing], critical: Critical) -> None:
    """The crossing's compute against unique tokens, the fitted power law, and the paper's carried far down."""
    some = sorted((one for one in crossings if one.against == EQUAL), key=lambda one: one.unique)
    with canvas(path, 1, 4.2, 1.0) as (figure, (panel,)):
        seen: list[Any] = []
        for one in some:
            if one.flops is not None:
                low, high = one.interval or (one.flops, one.flops)
                sides = [[max(0.0, one.flops - low)], [0.0 if math.isinf(high) else max(0.0, high - one.flops)]]
                panel.errorbar(
                    [one.unique], [one.flops], yerr=sides, color=ORANGE, marker="*", markersize=12, capsize=3, zorder=3
                )
                seen.append("crossing, 95 %")
            else:
                panel.plot([one.unique], [one.searched], color=ORANGE, marker="^", markersize=9, linestyle="none")
                seen.append("no crossing up to here")
                if one.extrapolated is not None and one.extrapolated < 1e3 * one.searched:
                    panel.plot([one.unique], [one.extrapolated], marker="x", color=GREY, markersize=8)
                    seen.append("extrapolated crossing")
        ends = np.array([0.6 * some[0].unique, 1.7 * some[-1].unique])
        if math.isfinite(critical.exponent):
            panel.plot(ends, critical.factor * (ends / 1e6) ** critical.exponent, color=ORANGE, linewidth=1.5)
        panel.plot(ends, [paper(unique) for unique in ends], color=GREY, linewidth=1.5, linestyle="--")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set(xlabel="unique tokens U", ylabel="crossing at equal compute, FLOPs")
        panel.set_xticks([one.unique for one in some], [amount(one.unique) for one in some])
        panel.set_xticks([], minor=True)
        looks = {"crossing, 95 %": ("*", ORANGE), "no crossing up to here": ("^", ORANGE)}
        looks["extrapolated crossing"] = ("x", GREY)
        handles = [
            handle(words, marker=looks[words][0], color=looks[words][1], markersize=9) for words in dict.fromkeys(seen)
        ]
        if math.isfinite(critical.exponent):
            words = f"C ∝ U^{critical.exponent:.2f} [{critical.low:.2f}, {critical.high:.2f}]"
            handles.append(handle(words, color=ORANGE, linestyle="-"))
        handles.append(handle("the paper's law (U^2.174), extrapolated below its 25M", linestyle="--"))
        legend(figure, handles, 1)
