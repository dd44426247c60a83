"""The command `unmask compare A B …`: two or more results of `unmask eval`, question by question.

In:  folders of results with their samples (also lm-eval's own); the first is what the others are compared with.
Out: one table on standard output, scores and paired differences with 95 % intervals and tests; with --output a file.
"""

from __future__ import annotations

import dataclasses
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask import report
from unmask.compare_pairs import Line, Paired, chosen, odd, otherwise, remarks, scored
from unmask.compare_runs import Run, read
from unmask.compare_stats import FLIPS, MCNEMAR, holm
from unmask.config import UserError, nearest, option, parse

ALL = "all"
SHOWN = 400  # characters of a prompt's end and of an answer that an example shows


@dataclasses.dataclass
class CompareArguments:
    """Comparison"""

    runs: list[str] = option(
        [], "Folders of results; the others are compared with the first. Also as bare words: unmask compare A B."
    )
    tasks: list[str] = option([], "Only these tasks or groups; `*` stands for anything: cmmlu, mmlu_*.")
    metric: list[str] = option([], "Only these metrics: acc, exact_match, …")
    examples: int = option(0, "Show so many questions that one got right and the other wrong, of each kind.")
    output: str | None = option(None, "Write it all to a FILE.json or FILE.md, too.")

    def check(self) -> None:
        """UserError for settings that cannot be."""
        if len(self.runs) < 2:
            raise UserError(f"{len(self.runs)} folders to compare; type at least two: unmask compare A B.")
        if len(self.runs) > len(string.ascii_uppercase):
            raise UserError(f"{len(self.runs)} folders to compare; at most {len(string.ascii_uppercase)} fit.")
        if self.examples < 0:
            raise UserError(f"--examples is {self.examples}; it must be 0 or more.")
        if self.output is None:
            return
        path = Path(self.output)
        if path.suffix not in (".json", ".md"):
            raise UserError(f"--output is {self.output!r}; name a file that ends in .json or .md.")
        if path.exists():
            raise UserError(f"--output {path} is there already; name another, or delete it.")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"cannot write --output {path}: {above} is no folder that can be written to.")


# ---------------------------------------------------------------------------------------------------------------------
# The table


def lines_of(pairs: Sequence[Paired], tasks: Sequence[str], wanted: Sequence[str]) -> list[Line]:
    """Tasks one by one, then groups, then all together. Holm's correction goes over the tests of single tasks."""
    there = {name for paired in pairs for task in tasks for name in paired.metrics(task)}
    plain = {name.removeprefix("ln ").partition(",")[0]: name for name in there}
    for name in wanted:
        if name not in {*there, *plain}:
            raise UserError(f"--metric {name}: no such metric that both have.{nearest(name, plain)}")

    def lines(label: str, some: Sequence[str], seen: set[tuple[str, ...]] | None = None) -> list[Line]:
        """Of each metric; pooled over the tasks that have it, unless it is so few that nothing is pooled."""
        made = []
        names = dict.fromkeys(name for task in some for paired in pairs for name in paired.metrics(task))
        for metric in names:
            if wanted and not {metric, metric.removeprefix("ln ").partition(",")[0]} & set(wanted):
                continue
            having = [task for task in some if all(metric in paired.metrics(task) for paired in pairs)]
            key = (metric, *having)
            if seen is not None and (len(having) < 2 or key in seen):
                continue
            if seen is not None:
                seen.add(key)
            parts = 0 if seen is None else len(having)
            made += [line for paired in pairs if (line := paired.line(label, having, metric, parts))]
        return made

    found = [line for task in tasks for line in lines(task, [task])]
    if not found:
        raise UserError("no metric that all have on the same questions.")
    for line, p in zip(found, holm([line.known["p"] for line in found]), strict=True):
        line.known["p_holm"] = p if len(found) > 1 else None
    pooled: set[tuple[str, ...]] = set()
    for name, members in pairs[0].first.groups.items():
        found += lines(name, [task for task in tasks if task in members], pooled)
    return found + lines(ALL, tasks, pooled)


def with_interval(known: dict[str, Any], which: str) -> str:
    value, interval = known[which], known[f"{which}_interval"]
    if known["kind"] == "right or wrong":
        return f"{100 * value:.1f} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"
    return f"{value:.4g}" + ("" if interval is None else f" ({interval[0]:.4g} to {interval[1]:.4g})")


def difference(known: dict[str, Any]) -> str:
    from unmask.bench import points

    value, interval = known["difference"], known["difference_interval"]
    if known["kind"] == "right or wrong":
        return points(value, interval)
    return f"{value:+.3g}" + ("" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.2g}")


def p_of(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.0005 else f"{value:.3f}"


def table(lines: Sequence[Line], letters: Sequence[str]) -> list[list[str]]:
    """Rows of words, the head first."""
    several = len(letters) > 2
    two = "other" if several else letters[1]
    head = ["task", "metric", *(["other"] if several else []), "N", "A (95 %)", f"{two} (95 %)", f"{two} − A (95 %)"]
    rows = [[*head, "p", "Holm", "changed"]]
    for line in lines:
        known = line.known
        name = f"{line.task} ({line.parts} tasks)" if line.parts else line.task
        words = [name, line.metric, *([line.letter] if several else []), f"{known['questions']:,}"]
        words += [with_interval(known, "first"), with_interval(known, "second"), difference(known)]
        words += [p_of(known["p"]) + ("*" if known["test"] == FLIPS else ""), p_of(known.get("p_holm"))]
        rows.append([*words, f"+{known['gained']:,} −{known['lost']:,}"])
    if not any(line.known.get("p_holm") is not None for line in lines):
        at = rows[0].index("Holm")
        rows = [row[:at] + row[at + 1 :] for row in rows]
    return rows


def legend(lines: Sequence[Line], runs: dict[str, Run]) -> list[str]:
    """Who A, B, … are, and what the columns mean."""
    found = []
    for letter, run in runs.items():
        model = run.known.get("model")
        name = model.get("name") if isinstance(model, dict) else run.known.get("model_name")
        found.append(" · ".join(word for word in (f"{letter}: {run.path}", str(name or ""), scored(run)) if word))
    kinds = {line.known["test"] for line in lines}
    found.append("scores of right or wrong in %; changed: questions on which the second is better (+) and worse (−)")
    if MCNEMAR in kinds:
        found.append("p: exact McNemar test, two-sided, on the questions that only one got right; intervals: Wilson")
    if FLIPS in kinds:
        found.append("p*: sign flips of the paired differences, all or 10,000; intervals: mean ± 1.96 standard errors")
    corrected = sum(line.known.get("p_holm") is not None for line in lines)
    if corrected:
        found.append(f"Holm: p corrected for the {corrected} tests of single tasks (Holm 1979); groups are pooled")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Examples


def options_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(prompt, continuation) of each request; lm-eval's files name them, ours list them."""
    given = row.get("arguments") or []
    some = list(given.values()) if isinstance(given, dict) else given
    parts = [list(one.values()) if isinstance(one, dict) else one for one in some]
    pairs = [one if isinstance(one, list) else [one] for one in parts]
    return [(str(one[0]), str(one[1]) if len(one) > 1 else "") for one in pairs if one]


def wanted_of(row: dict[str, Any]) -> str:
    """The wanted answer; of choices the text of the one that the target numbers."""
    target, words = str(row.get("target")), [continuation.strip() for _, continuation in options_of(row)]
    return words[int(target)] if len(words) > 1 and target.isdecimal() and int(target) < len(words) else target


def answer_of(row: dict[str, Any]) -> str:
    """What a model answered: the likeliest choice and every choice's log-likelihood, or the text that was taken."""
    given = row.get("filtered_resps") or []
    try:
        scores = [float(one[0]) for one in given if isinstance(one, list) and len(one) == 2]
    except ValueError:
        scores = []
    if given and len(scores) == len(given):
        words = [continuation.strip() for _, continuation in options_of(row)]
        best = max(range(len(scores)), key=scores.__getitem__)
        return f"{words[best]}  ({', '.join(f'{w[:20]} {s:.2f}' for w, s in zip(words, scores, strict=True))})"
    return " | ".join(str(one) for one in given)


def spread(some: Sequence[Any], number: int) -> list[Any]:
    """So many of them, at even distances."""
    return [some[i * len(some) // number] for i in range(number)] if number < len(some) else list(some)


def examples(paired: Paired, metric: str, number: int) -> list[dict[str, Any]]:
    """Questions that one of two runs got right by a metric and the other wrong, each way."""
    found = []
    for right, wrong, sign in (("A", paired.letter, -1), (paired.letter, "A", 1)):
        some = [
            (task, doc, a.places[metric], b.places[metric])
            for task, questions in paired.tasks.items()
            for doc, (a, b) in questions.items()
            if metric in a.values and metric in b.values and b.values[metric].value - a.values[metric].value == sign
        ]
        for task, doc, one, two in spread(some, number):
            rows = paired.first.line(task, one), paired.second.line(task, two)
            asked = options_of(rows[0])
            known = {"right": right, "wrong": wrong, "of": len(some), "task": task, "doc_id": doc, "metric": metric}
            known |= {"prompt": asked[0][0] if asked else "", "target": wanted_of(rows[0])}
            found.append({**known, "answers": {"A": answer_of(rows[0]), paired.letter: answer_of(rows[1])}})
    return found


def in_words(known: dict[str, Any]) -> str:
    """An example as text."""

    def end(text: str, sign: str, last: bool = False) -> str:
        cut = text if len(text) <= SHOWN else f"…{text[-SHOWN:]}" if last else f"{text[:SHOWN]}…"
        return cut.strip().replace("\n", f"\n{sign}")

    head = f"{known['right']} right, {known['wrong']} wrong ({known['metric']}, one of {known['of']:,})"
    lines = [f"{head}: {known['task']}, question {known['doc_id']}", f"  | {end(known['prompt'], '  | ', last=True)}"]
    lines += [f"  wanted: {end(known['target'], '          ')}"]
    lines += [f"  {letter}: {end(text, '     ')}" for letter, text in known["answers"].items()]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def compare(arguments: CompareArguments) -> tuple[list[Line], dict[str, Run], list[str], list[dict[str, Any]]]:
    """(lines of the table, runs by letter, remarks, examples).

    Raises:
        UserError: what cannot be read or compared.
    """
    runs = dict(zip(string.ascii_uppercase, map(read, arguments.runs), strict=False))
    first, *others = runs.values()
    tasks = chosen([first, *others], arguments.tasks)
    pairs = [Paired(first, run, letter) for letter, run in list(runs.items())[1:]]
    said: list[str] = []
    for task in tasks:
        ours = first.questions(task)
        said += otherwise(first, "A", task, ours)
        for paired in pairs:
            said += otherwise(paired.second, paired.letter, task, paired.add(task, ours))
    found = [remark for letter, run in runs.items() for remark in odd(run, letter)]
    found += [remark for paired in pairs for remark in remarks(paired, tasks)]
    found += [f"{said[0]}{f' (and {len(said) - 1} more such)' if len(said) > 1 else ''}."] if said else []
    lines = lines_of(pairs, tasks, arguments.metric)
    shown: list[dict[str, Any]] = []
    if arguments.examples:
        metric = next((line.metric for line in lines if line.known["kind"] == "right or wrong"), None)
        if metric is None:
            raise UserError("--examples needs a metric that is right or wrong; these runs have numbers only.")
        shown = [known for paired in pairs for known in examples(paired, metric, arguments.examples)]
    return lines, runs, list(dict.fromkeys(found)), shown


def write(path: Path, rows: list[list[str]], notes: list[str], lines: Sequence[Line], **more: Any) -> None:
    """A comparison as Markdown, or as JSON with every figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        told = [{**dataclasses.asdict(line), **line.known} for line in lines]
        for one in told:
            del one["known"]
        report.write_json(path, {"lines": told, "notes": notes, **more})
        return
    from unmask.bench import markdown

    blocks = [f"```text\n{in_words(known)}\n```\n" for known in more["examples"]]
    with report.written_aside(path) as aside:
        aside.write_text("\n".join([markdown(rows, [*notes, *more["remarks"]]), *blocks]), encoding="utf-8")


def main(argv: list[str]) -> int:
    """`unmask compare A B [C …] [--tasks …] [--metric …] [--examples N] [--output FILE]`"""
    about = "Compare results of `unmask eval`, question by question: unmask compare A B."
    first = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    words = ["--runs", *argv[:first], *argv[first:]] if first else argv
    arguments = parse("unmask compare", about, [CompareArguments], words).groups[0]
    arguments.tasks = [name.strip() for typed in arguments.tasks for name in typed.split(",") if name.strip()]
    arguments.check()
    from unmask.bench import show

    lines, runs, said, shown = compare(arguments)
    rows, notes = table(lines, list(runs)), legend(lines, runs)
    report.say(*said)
    show(rows, ["", *notes, *(f"\n{in_words(known)}" for known in shown)])
    if arguments.output:
        told = {letter: {"path": str(run.file), "model": run.known.get("model")} for letter, run in runs.items()}
        write(Path(arguments.output), rows, notes, lines, runs=told, remarks=said, examples=shown)
    return 0
