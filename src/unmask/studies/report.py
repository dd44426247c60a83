"""A study's report: report.md with its pictures beside it, report.html in one file.

In:  the folder to write to, results.csv (costs.csv beside it, if any), the study's settings.
Out: report.md, report.html, plots/*.png. The same input gives the same bytes: no clock is read. No torch.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.report import amount, written_aside
from unmask.studies import plot
from unmask.studies.claims import Claim, Roles, figure, grade, missing, names, roles_of
from unmask.studies.cross import BEST, EQUAL, MEANING, TUNED, Critical, Crossing, crossing, fit_critical, paper
from unmask.studies.fit import Repeats, fit_repeats
from unmask.studies.page import Block, Bullets, Code, Heading, Picture, Table, Text, markdown, page
from unmask.studies.results import Cell, Estimate, Results, read

MARKDOWN, PAGE, PLOTS, COSTS = "report.md", "report.html", "plots", "costs.csv"
PAPER = "[arXiv 2507.15857](https://arxiv.org/abs/2507.15857)"
QUESTION = (
    "Trained again and again on the same few tokens, does a masked diffusion language model reach a lower validation "
    "loss than an autoregressive one of the same architecture? That is what “Diffusion Beats Autoregressive in "
    f"Data-Constrained Settings” ({PAPER}) claims."
)


@dataclass(frozen=True)
class Study:
    """All that is read out of the results."""

    results: Results
    roles: Roles
    crossings: list[Crossing]
    critical: Critical
    fits: list[Repeats]
    claims: list[Claim]

    def named(self, arm: str) -> str:
        return plot.labelled(self.results, arm) if arm in self.results.arms else arm


def analyse(results: Results, settings: dict[str, Any]) -> Study:
    """Crossings, fits and claims."""
    roles = roles_of(results, settings)
    crossings = []
    for unique in results.uniques:
        against: dict[str, Sequence[str]] = {EQUAL: [roles.baseline], BEST: [roles.baseline]}
        if results.cells(roles.baseline, unique) and results.cells(roles.tuned, unique):
            against[TUNED] = roles.ar
        found = (crossing(results, unique, roles.masked, arms, words) for words, arms in against.items())
        crossings += [one for one in found if one is not None]
    critical = fit_critical([one for one in crossings if one.against == EQUAL])
    fits = [fit_repeats(results, arm) for arm in (roles.baseline, roles.masked)]
    return Study(results, roles, crossings, critical, fits, grade(results, roles, crossings, critical))


def write(folder: Path, results: Path, settings: dict[str, Any]) -> None:
    """report.md, report.html and plots/ in `folder`, of a results.csv and a study's YAML as parsed.

    Of the settings it reads name, title, question, claims (baseline, tuned, masked), planned (names of all runs),
    command, notes, text and model; each may be absent.
    """
    study = analyse(read(results), settings)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(folder, study)
    title = str(settings.get("title") or settings.get("name") or "Masked diffusion and autoregression on few tokens")
    blocks: list[Block] = [Heading(title, 1), Text(str(settings.get("question") or QUESTION))]
    blocks += [*answers(study), *what_was_run(study, settings), *lowest(study, pictures), *curves(study, pictures)]
    blocks += [*repeats(study, pictures), *critical_compute(study, pictures), *limits(study, settings)]
    blocks += [*costs(results.parent / COSTS), *again(settings)]
    for name, text in ((MARKDOWN, markdown(blocks)), (PAGE, page(blocks, title, folder))):
        with written_aside(folder / name) as aside:
            aside.write_text(text, encoding="utf-8", newline="\n")


def draw(folder: Path, study: Study) -> set[str]:
    """The pictures that these results allow, by name; those of an earlier report that they do not are removed."""
    results, roles = study.results, study.roles
    compared = any(plot.both(results, roles, unique) for unique in results.uniques)
    at = {name: folder / PLOTS / f"{name}.png" for name in ("epochs", "compute", "arms", "repeats", "critical")}
    made = {"arms"}
    plot.draw_arms(at["arms"], results, roles)
    if compared:
        plot.draw_epochs(at["epochs"], results, roles)
        plot.draw_compute(at["compute"], results, roles, study.crossings)
        made |= {"epochs", "compute"}
    if any(fit.points for fit in study.fits):
        plot.draw_repeats(at["repeats"], results, study.fits)
        made.add("repeats")
    if any(one.against == EQUAL for one in study.crossings):
        plot.draw_critical(at["critical"], study.crossings, study.critical)
        made.add("critical")
    for name in at.keys() - made:
        at[name].unlink(missing_ok=True)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Figures as words


def compute(value: float | None) -> str:
    return "–" if value is None else "∞" if math.isinf(value) else f"{value:.2e}".replace("e+", "e")


def number(value: float | None) -> str:
    return "–" if value is None else "∞" if math.isinf(value) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def ranged(value: float | None, interval: tuple[float, float] | None, words: Any) -> str:
    return words(value) if interval is None else f"{words(value)} [{words(interval[0])}, {words(interval[1])}]"


def below_or(kind: str, one: Estimate, digits: int = 3) -> str:
    """With its sign: ≤ for a bound."""
    return f"{'≤ ' if kind == 'bound' else ''}{one.value:.{digits}f} ± {one.half:.{digits}f}"


def short(value: Any) -> str:
    """A setting on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(one)}" for key, one in value.items() if one not in (None, "", [], {}))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def picture(pictures: set[str], name: str, alt: str, caption: str) -> Iterator[Block]:
    if name in pictures:
        yield Picture(f"{PLOTS}/{name}.png", alt, caption)


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def answers(study: Study) -> Iterator[Block]:
    yield Heading("The claims")
    rows = [[one.name, one.statement, f"**{one.grade}**", one.reason] for one in study.claims]
    yield Table(["", "claim", "grade", "rests on"], rows, words=4)
    yield Text(
        f"Losses are in nats per token; AR is the arm `{study.roles.baseline}`, masked `{study.roles.masked}`. A "
        "difference counts when its 95 % interval excludes 0. A grade over several amounts of text U is yes or no "
        "where all of them agree, otherwise undecided."
    )
    details = [
        [one.name, amount(part.unique or 0), f"**{part.grade}**", part.reason]
        for one in study.claims
        for part in one.parts
        if len(one.parts) > 1
    ]
    if details:
        yield Table(["", "U", "grade", "figures"], details, words=4)


def what_was_run(study: Study, settings: dict[str, Any]) -> Iterator[Block]:
    results, rows = study.results, []
    yield Heading("What was run")
    told = ("text", "tokenizer", "model", "training")
    known = [f"{key}: {short(settings[key])}" for key in told if settings.get(key)]
    sizes = sorted({run.parameters for run in results.runs})
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    total = sum(run.last.tokens for run in results.runs)
    known.append(
        f"{len(results.runs)} runs of a model with {size} parameters; {amount(total)} tokens trained on in all, "
        f"{compute(sum(run.last.flops for run in results.runs))} FLOPs (6 · parameters · tokens)"
    )
    yield Bullets(known)
    arms = settings.get("arms") or {}
    about = {name: str(arm.get("about", "")) for name, arm in arms.items() if isinstance(arm, dict)}
    for arm in results.arms:
        for unique in results.uniques:
            if cells := results.cells(arm, unique):
                budgets = ", ".join(f"{cell.epochs:g} (×{len(cell.runs)})" for cell in cells)
                rows.append([arm, about.get(arm, ""), results.kind(arm), amount(unique), budgets])
    yield Table(["arm", "what it is", "loss is", "unique tokens", "epochs (× seeds)"], rows, words=5)
    named = {*results.arms, *study.roles.ar, study.roles.masked}
    every = [name for unique in results.uniques for name in missing(results, study.roles, named, unique)]
    gone = [name for name in (*study.roles.planned, *results.unfinished) if name not in {r.name for r in results.runs}]
    gone = list(dict.fromkeys([*every, *gone]))
    yield Text(f"Missing: {names(gone, 12)}." if gone else "No run that is known of is missing.")
    if results.diverged:
        yield Text(f"Ended without a loss that is a number, and left out: {names(results.diverged, 12)}.")


def same_budget(results: Results) -> Iterator[Block]:
    """Arms of one kind that were trained as long, side by side."""
    groups: dict[tuple[int, float, str], list[Cell]] = {}
    for unique in results.uniques:
        for cell in results.cells(results.arms, unique):
            groups.setdefault((unique, cell.epochs, cell.kind), []).append(cell)
    rows = []
    for (unique, epochs, kind), cells in sorted(groups.items()):
        if len(cells) > 1:
            order = sorted(cells, key=lambda cell: cell.best.value)
            told = ", ".join(f"{cell.arm} {below_or(kind, cell.best)}" for cell in order)
            rows.append([amount(unique), f"{epochs:g}", kind, told])
    if rows:
        yield Text("Arms of one kind after the same budget, the lowest first (nats/token at the best checkpoint):")
        yield Table(["U", "epochs", "loss is", "arms"], rows, words=4)


def lowest(study: Study, pictures: set[str]) -> Iterator[Block]:
    results, rows = study.results, []
    yield Heading("Lowest losses")
    yield Text(
        "Of each arm the budget whose best checkpoints have the lowest mean over seeds: the minimum over grid and "
        "checkpoints. ± is half of the 95 % interval: Student's t over seeds where there are several, else 1.96 "
        "standard errors of the one look, over validation rows and noise. ≤ marks a bound."
    )
    for unique in results.uniques:
        for arm in results.arms:
            if cell := results.best(arm, unique):
                bits = "–" if math.isnan(cell.best_bits.value) else below_or(cell.kind, cell.best_bits)
                epochs = f"{number(cell.best_epoch)} of {cell.epochs:g}"
                start = [amount(unique), arm, cell.kind, below_or(cell.kind, cell.best), bits]
                rows.append([*start, epochs, below_or(cell.kind, cell.last), cell.best.source.split(":")[0]])
    header = ["U", "arm", "loss is", "nats/token", "bits/byte", "best epoch", "end of that run", "± from"]
    yield Table(header, rows, words=3)
    yield Text("Budgets differ: an arm that was run for fewer epochs than another had less time to get lower.")
    yield from same_budget(results)
    alt = "Lowest validation loss of each arm, with intervals, for each number of unique tokens"
    yield from picture(pictures, "arms", alt, f"{alt}. The dotted line is AR's; bounds are open diamonds.")


def curves(study: Study, pictures: set[str]) -> Iterator[Block]:
    yield Heading("Validation against epochs and compute")
    alt = "Validation loss against epochs, a curve for each budget, for AR and masked"
    yield from picture(
        pictures,
        "epochs",
        alt,
        f"{alt}: means over seeds, 95 % bands where there are several, best checkpoints marked.",
    )
    alt = "Validation loss against training compute with the lower envelopes of AR and masked"
    yield from picture(pictures, "compute", alt, f"{alt}, and where they cross.")
    if not study.crossings:
        yield Text("No crossing was sought: an arm is missing.")
        return
    yield Heading("Crossings", 3)
    yield Bullets([f"**{name}**: {words}" for name, words in MEANING.items() if held(study, name)])
    rows = []
    for one in study.crossings:
        if one.flops is None:
            epochs, flops = f"none up to {number(one.searched_epochs)}", f"none up to {compute(one.searched)}"
        else:
            epochs = ranged(one.epochs, one.epochs_interval, number)
            flops = ranged(one.flops, one.interval, compute)
        slope = "–" if one.slope is None else figure(one.slope, True)
        further = number(one.extrapolated_epochs)
        rows.append([amount(one.unique), one.against, epochs, flops, figure(one.gap, True), slope, further])
    header = ["U", "against", "epochs", "FLOPs", "gap", "slope", "extrapolated"]
    yield Table(header, rows, words=2)
    yield Text(
        "From the crossing on the masked curve stays below; between looks it is linear in log compute. The intervals "
        "are of curves drawn again (seeds among themselves, a single seed moved by its look's error); ∞: more than "
        "2.5 % of the draws do not cross. The gap is the masked arm's lowest bound less the AR arms' lowest loss; the "
        "slope is that of the masked arm's largest budgets, in nats per token and e-fold of epochs. “Extrapolated” is "
        "where a straight line in log epochs would lead from there: a guess, and too early a one where the curve "
        "flattens."
    )


def held(study: Study, against: str) -> list[Crossing]:
    return [one for one in study.crossings if one.against == against]


def repeats(study: Study, pictures: set[str]) -> Iterator[Block]:
    yield Heading("What repeats are worth")
    yield Text(
        "`D' = U + U·R·(1 − exp(−(E − 1)/R))`, `loss = E0 + B/D'^b` ([arXiv 2305.16264](https://arxiv.org/abs/"
        "2305.16264), at one size of model) through the lowest loss that at most E epochs have led to; R is R_D*. The "
        "paper has 31.19 for AR (31.93 in its text) and 493.89 for masked (512.85), from losses at the ends of runs."
    )
    rows = []
    for fit in study.fits:
        if (law := fit.law) is None:
            rows.append([study.named(fit.arm), *"–––––", str(fit.points)])
            continue
        value, interval = "–" if fit.why else number(law.repeats), f"[{number(fit.low)}, {number(fit.high)}]"
        rest = [f"{law.exponent:.3f}", f"{law.floor:.3f}", f"{fit.noise:.4f}", str(fit.points)]
        rows.append([study.named(fit.arm), value, interval, *rest])
    yield Table(["arm", "R_D*", "95 %", "b", "E0, nats/token", "scatter, nats/token", "points"], rows)
    if unknown := [f"{study.named(fit.arm)} is not identified: {fit.why}." for fit in study.fits if fit.why]:
        yield Bullets([f"R_D* of {words}" for words in unknown])
    alt = "The law of repeated data beside the measured losses"
    yield from picture(pictures, "repeats", alt, f"{alt}. Intervals of R_D* are a parametric bootstrap.")


def critical_compute(study: Study, pictures: set[str]) -> Iterator[Block]:
    known = study.critical
    yield Heading("Critical compute")
    if not math.isfinite(known.exponent):
        yield Text(f"No law of the crossing's compute: {known.why}.")
    else:
        bounds = f"[{number_or(known.low)}, {number_or(known.high)}]"
        words = (
            f"C_crit = {compute(known.factor)} · (U/1M)^{known.exponent:.2f}, 95 % interval of the exponent {bounds}"
        )
        few = " Two amounts of text make a line without a test of it." if len(known.uniques) == 2 else ""
        unsure = f" Not identified: {known.why}." if known.why else ""
        yield Text(f"{words}, from {len(known.uniques)} crossings at equal compute.{few}{unsure}")
    at = ", ".join(f"{compute(paper(unique))} at U = {amount(unique)}" for unique in study.results.uniques)
    yield Text(
        f"The paper has 2.12e15 · (U/1M)^2.174 FLOPs, fitted on 25M to 100M unique tokens at the best size of model "
        f"for each compute. Carried down to this study, far outside its range, it says {at}."
    )
    alt = "Compute of the crossing against unique tokens, with the paper's law"
    yield from picture(pictures, "critical", alt, f"{alt} (dashed: the paper's, extrapolated).")


def number_or(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "−∞" if value < 0 else "∞"


def limits(study: Study, settings: dict[str, Any]) -> Iterator[Block]:
    results = study.results
    size = amount(max(run.parameters for run in results.runs))
    yield Heading("Where this differs from the paper, and its limits")
    items = [
        f"Scale: {size} parameters and U of {' and '.join(map(amount, results.uniques))}, where the paper has 7M to "
        "2.5B and 25M to 500M. Its critical compute is a prediction here, carried far outside its range.",
        "One size of model: the paper takes the best size for each compute. A size too small to over-fit helps AR.",
        "A bound is compared with an exact loss. Where the bound is below, the masked model's own loss is below as "
        "well; where it is above, nothing is known of the slack between them.",
        "The lowest of many looks is a little too low, most for the arm with the most looks; for masked models all "
        "looks of a run see the same noise, which keeps that small.",
        "An interval over seeds is about training again, on the same validation rows; one from a single look is about "
        "other rows and other noise, and holds nothing of what another seed would change. Looks share their rows, so "
        "differences of single seeds are surer than their intervals say.",
        "Looks in the middle of a run have a learning rate that is still high: the envelope there is above what a "
        "shorter run would have reached.",
        "R_D* goes by the best that so many epochs led to. Past an arm's best budget that is the same loss again, so "
        "its fit rests on fewer figures than it has points.",
        "One text and one validation split.",
        *map(str, settings.get("notes") or ()),
    ]
    yield Bullets(items)


def costs(path: Path) -> Iterator[Block]:
    """What costs.csv says: hours by machine."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    machines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        key = tuple((line.get(name) or "–").strip() for name in ("machine", "threads", "versions"))
        machines.setdefault(key, []).append(line)
    yield Heading("What it cost")
    rows = []
    for (machine, threads, versions), some in sorted(machines.items()):
        wall = sum(seconds(line.get("seconds")) or 0.0 for line in some) / 3600
        cpus = [value for line in some if (value := seconds(line.get("cpu"))) is not None]
        hours = f"{sum(cpus) / 3600:.2f}" if cpus else f"{wall * (seconds(threads) or 1):.2f}"
        rows.append([machine, threads, versions, str(len({line.get("run") for line in some})), f"{wall:.2f}", hours])
    yield Table(["machine", "threads", "versions", "runs", "hours", "CPU hours"], rows, words=3)
    running, used = (math.fsum(float(row[i]) for row in rows) for i in (4, 5))
    yield Text(
        f"In all {running:.2f} hours, those of runs side by side added up, and {used:.2f} CPU hours (hours × threads "
        "where they were not measured)."
    )


def seconds(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def again(settings: dict[str, Any]) -> Iterator[Block]:
    yield Heading("To repeat it")
    name = settings.get("name")
    command = settings.get("command") or (f"unmask study configs/study/{name}.yaml" if name else None)
    if command:
        yield Code(str(command))
    yield Text(
        "It goes on where it stopped and leaves out what is done; with `--report_only` it makes this report again."
    )
