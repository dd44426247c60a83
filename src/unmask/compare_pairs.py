"""Two runs side by side: their common tasks, their common questions, and what else than the models differs.

In:  runs, as read.
Out: `Paired`, which makes the lines of a comparison; remarks for the user; UserError for questions that differ.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from unmask.compare_runs import Question, Run, Value
from unmask.compare_stats import figures
from unmask.config import UserError, nearest


@dataclasses.dataclass
class Line:
    """One comparison of the table: the run of that letter with the first. parts: tasks pooled; 0 for a task alone."""

    task: str
    metric: str
    letter: str
    known: dict[str, Any]
    parts: int = 0


Pair = tuple[Question, Question]


@dataclasses.dataclass
class Paired:
    """The questions that two runs share. letter: of the second. only: task → those that (the first, the second) has."""

    first: Run
    second: Run
    letter: str
    tasks: dict[str, dict[Any, Pair]] = dataclasses.field(default_factory=dict)
    only: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def add(self, task: str, ours: dict[Any, Question]) -> dict[Any, Question]:
        """Pair a task's questions, those of the first run given; returns the second's.

        Raises:
            UserError: a question that is not the same, or none in common.
        """
        theirs = self.second.questions(task)
        shared = [doc for doc in ours if doc in theirs]
        for doc in shared:
            if ours[doc].hashes["doc"] != theirs[doc].hashes["doc"]:
                raise UserError(
                    f"question {doc} of {task} is not the same in {self.first.path} and {self.second.path} "
                    f"(doc_hash {str(ours[doc].hashes['doc'])[:12]} and {str(theirs[doc].hashes['doc'])[:12]}): "
                    "other data or another version of the task; evaluate both on the same."
                )
        if not shared:
            raise UserError(f"{self.first.path} and {self.second.path} have no question of {task} in common.")
        self.tasks[task] = {doc: (ours[doc], theirs[doc]) for doc in shared}
        self.only[task] = (len(ours) - len(shared), len(theirs) - len(shared))
        return theirs

    def metrics(self, task: str) -> list[str]:
        """Those that both have numbers for, in the order of the first run's samples."""
        both = self.tasks[task].values()
        second = {name for _, b in both for name in b.values}
        return [name for name in dict.fromkeys(name for a, _ in both for name in a.values) if name in second]

    def values(self, task: str, metric: str) -> Iterator[tuple[Value, Value]]:
        for a, b in self.tasks[task].values():
            if metric in a.values and metric in b.values:
                one, two = a.values[metric], b.values[metric]
                if one.weight != two.weight:
                    raise UserError(f"{metric} of {task} goes over {one.weight} in one run, {two.weight} in the other.")
                yield one, two

    def line(self, label: str, tasks: Sequence[str], metric: str, parts: int = 0) -> Line | None:
        """The comparison over all questions of the tasks; None where none has this metric, or not the same kind."""
        some = [pair for task in tasks for pair in self.values(task, metric)]
        weighted = {a.weight is not None for a, _ in some}
        higher = {self.first.higher(task, metric) for task in tasks}
        if not some or len(weighted) > 1 or len(higher) > 1:
            return None
        weights = [a.weight or 0.0 for a, _ in some] if True in weighted else None
        known = figures([a.value for a, _ in some], [b.value for _, b in some], weights, higher=higher.pop())
        return Line(label, metric, self.letter, known, parts)


def chosen(runs: Sequence[Run], wanted: Sequence[str]) -> list[str]:
    """The tasks that all runs have samples of, in the first one's order; of these only those that are wanted."""
    common = [task for task in runs[0].samples if all(task in run.samples for run in runs[1:])]
    if not common:
        names = "; ".join(f"{run.path} has {', '.join(list(run.samples)[:5])}" for run in runs)
        raise UserError(f"no task that all have: {names}.")
    groups = {name: tasks for run in reversed(runs) for name, tasks in run.groups.items()}
    found: set[str] = set()
    for typed in wanted:
        hits = {task for task in common if fnmatch.fnmatchcase(task, typed)}
        for name in fnmatch.filter(groups, typed):
            hits |= set(groups[name]) & set(common)
        if not hits:
            raise UserError(f"--tasks {typed}: no such task that all have.{nearest(typed, [*common, *groups])}")
        found |= hits
    return [task for task in common if not wanted or task in found]


# ---------------------------------------------------------------------------------------------------------------------
# What stands in the way of a comparison


def scored(run: Run) -> str:
    """How a run's log-likelihoods came about, as far as it tells: `masked, exact_count`."""
    model = run.known.get("model")
    objective = (model.get("objective") if isinstance(model, dict) else None) or run.settings("objective")
    likelihood = "exact" if objective == "autoregressive" else run.settings("likelihood")
    return ", ".join(str(word) for word in (objective, likelihood) if word)


def harness(run: Run) -> str:
    versions = run.known.get("versions") or {}
    version = run.known.get("lm_eval_version") or versions.get("lm_eval") or versions.get("lm-eval") or "?"
    return f"{'unmask with ' if 'settings' in run.known else ''}lm-eval {version}"


def template(run: Run) -> bool | None:
    told = run.settings("apply_chat_template")
    if told is None and "chat_template" not in run.known:
        return None
    return str(told or run.known.get("chat_template") or "false").lower() != "false"


def named(tasks: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 64 more`."""
    names = list(tasks)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def remarks(paired: Paired, tasks: Sequence[str]) -> list[str]:
    """One sentence for each thing that makes two runs other than their models differ."""
    a, b, two = paired.first, paired.second, paired.letter
    found = []
    shots = {task: tuple((run.known.get("n-shot") or {}).get(task) for run in (a, b)) for task in tasks}
    other = {task: n for task, n in shots.items() if None not in n and n[0] != n[1]}
    if other:
        one = next(iter(other.values()))
        found.append(f"A had {one[0]} examples in the prompt and {two} {one[1]} (--num_fewshot): {named(other)}.")
    if None not in (template(a), template(b)) and template(a) != template(b):
        on, off = ("A", two) if template(a) else (two, "A")
        found.append(f"{on} was asked through its chat template and {off} was not (--apply_chat_template).")
    questions = [pair for task in tasks for pair in paired.tasks[task].values()]
    for name, what in (("prompt", "prompts differ"), ("target", "wanted answers differ")):
        number = sum(p.hashes[name] != q.hashes[name] for p, q in questions)
        if number and not (name == "prompt" and found):
            found.append(f"A and {two}: the {what} in {number:,} of {len(questions):,} questions ({name}_hash).")
    if harness(a) != harness(b):
        found.append(f"A was scored by {harness(a)}, {two} by {harness(b)}.")
    if scored(a) != scored(b):
        found.append(
            f"the log-likelihoods of A are {scored(a) or 'of a kind it does not tell'}, those of {two} "
            f"{scored(b) or 'of a kind it does not tell'}: a bound or an estimate beside an exact value is not the "
            "same quantity."
        )
    limits = a.settings("limit"), b.settings("limit")
    if limits[0] != limits[1]:
        found.append(f"A has --limit {limits[0] or 'none'} and {two} {limits[1] or 'none'}.")
    for i, letter in enumerate(("A", two)):
        left = {task: only[i] for task, only in paired.only.items() if only[i]}
        if left:
            found.append(f"left out: {sum(left.values()):,} questions that only {letter} has, of {named(left)}.")
        run, there = (a, b)[i], (b, a)[i]
        alone = [task for task in run.samples if task not in there.samples]
        if alone:
            found.append(f"left out: tasks that only {letter} has: {named(alone)}.")
    lost = len(questions) - sum(bool(p.values.keys() & q.values.keys()) for p, q in questions)
    if lost:
        found.append(f"A and {two}: {lost:,} questions have no number in one of the two and are left out.")
    return found


def odd(run: Run, letter: str) -> list[str]:
    """What of a run is not as it seems, by itself."""
    found = []
    if run.newest_of > 1:
        found.append(f"{letter}: {run.file.name} is the newest of {run.newest_of} results in {run.file.parent}.")
    if run.odd:
        found.append(f"{letter}: a question's {named(sorted(run.odd))} is no number and is not compared.")
    silent = [name for name in run.known.get("groups") or {} if name not in run.groups]
    if silent:
        found.append(f'{letter}: no "group_subtasks" tells what belongs to {named(silent)}; not pooled.')
    bare = [name for name in run.known["results"] if name not in {*run.samples, *run.groups, *silent}]
    if bare:
        found.append(f"{letter}: no samples of {named(bare)}; not compared.")
    return found


def otherwise(run: Run, letter: str, task: str, questions: dict[Any, Question]) -> Iterator[str]:
    """Metrics of which the results tell something else than the mean of the questions."""
    for metric, told in run.known["results"][task].items():
        name, _, kind = metric.partition(",")
        key = name if kind == "none" else metric
        values = [question.values[key].value for question in questions.values() if key in question.values]
        if values and isinstance(told, (int, float)):
            mean = sum(values) / len(values)
            if not abs(mean - told) <= 1e-6 * max(1.0, abs(told)) and key != "bits_per_byte":
                yield f"{letter}: {key} of {task} is {told:.4g} in its results, and the mean of its samples {mean:.4g}"
