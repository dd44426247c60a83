"""Folders of results, read for a comparison: those of `unmask eval`, and lm-eval's own.

In:  a folder (or its results file).
Out: a `Run`: what made it, its tasks and groups, and each question's values; UserError for what cannot be read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from unmask.config import UserError

# lm-eval logs these as a log-likelihood, or with the words or bytes it goes over: (how a nat is counted, shown as).
# Their scores are exponents of means, so what is compared is the mean itself, lower is better.
LOGS = {
    "bits_per_byte": (math.log(2), "bits_per_byte"),
    "byte_perplexity": (1.0, "ln byte_perplexity"),
    "word_perplexity": (1.0, "ln word_perplexity"),
    "perplexity": (1.0, "ln perplexity"),
}


class Value(NamedTuple):
    """A question's value under one metric; weight: its words or bytes, where it is summed over those."""

    value: float
    weight: float | None = None


@dataclass
class Question:
    """A line of samples, or several if there are several filters.

    Attributes:
        hashes: of the question (`doc`), the prompt as rendered, the wanted answer. values: by metric. places: where
        the line of each metric stands, as a byte of the task's file.
    """

    hashes: dict[str, str | None]
    values: dict[str, Value] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """A results file and what lies beside it. samples: task → its file. newest_of: how many there were to take."""

    path: Path
    file: Path
    known: dict[str, Any]
    samples: dict[str, Path]
    newest_of: int = 1
    odd: set[str] = field(default_factory=set)  # metrics that are no numbers

    def settings(self, *names: str) -> Any:
        """The first of the settings that is known, wherever a harness writes it; else None."""
        for name in names:
            for place in ("settings", "config"):
                given = self.known.get(place)
                given = given if isinstance(given, dict) else {}
                inner = given.get("model_args")
                if isinstance(inner, str):
                    inner = dict(part.partition("=")[::2] for part in inner.split(","))
                for holder in (given, inner if isinstance(inner, dict) else {}):
                    if holder.get(name) is not None:
                        return holder[name]
        return None

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group → the tasks in it, groups in groups opened."""
        direct: dict[str, list[str]] = self.known.get("group_subtasks") or {}

        def leaves(name: str, above: tuple[str, ...] = ()) -> list[str]:
            if not direct.get(name) or name in above:
                return [name]
            return [leaf for child in direct[name] for leaf in leaves(child, (*above, name))]

        return {name: list(dict.fromkeys(leaves(name))) for name, children in direct.items() if children}

    def higher(self, task: str, metric: str) -> bool:
        """Whether more is better; what nobody told is taken as so."""
        name = metric.removeprefix("ln ").partition(",")[0]
        told = ((self.known.get("higher_is_better") or {}).get(task) or {}).get(name)
        return name not in LOGS if told is None else bool(told)

    def questions(self, task: str) -> dict[Any, Question]:
        """doc_id → the question, in the order of the file."""
        found: dict[Any, Question] = {}
        path, at = self.samples[task], 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._take(read_line(path, number, line), at, task, f"{path}, line {number}", found)
                at += len(line)
        return found

    def _take(self, row: dict[str, Any], at: int, task: str, where: str, found: dict[Any, Question]) -> None:
        """One line of samples into `found`."""
        doc, hashes = row.get("doc_id"), {name: row.get(f"{name}_hash") for name in ("doc", "prompt", "target")}
        if doc is None or hashes["doc"] is None:
            raise UserError(f"{where}: no doc_id or no doc_hash; it was not written by `unmask eval` or lm-eval 0.4.")
        question = found.setdefault(doc, Question(hashes))
        if question.hashes["doc"] != hashes["doc"]:
            raise UserError(f"{where}: another question than the earlier one with doc_id {doc}; are these two runs?")
        kind = row.get("filter", "none")
        names = row.get("metrics") or [
            name for name in row if f"{name},{kind}" in (self.known["results"].get(task) or {})
        ]
        for name in names:
            tail = "" if kind == "none" else f",{kind}"
            shown = LOGS[name][1] if name in LOGS else name
            if f"{shown}{tail}" in question.places:
                raise UserError(f"{where}: question {doc} stands there twice; delete one of the two.")
            question.places[f"{shown}{tail}"] = at
            value = value_of(name, row.get(name))
            if value is None:
                self.odd.add(shown)
            else:
                question.values[f"{shown}{tail}"] = value

    def line(self, task: str, at: int) -> dict[str, Any]:
        """The line of samples at a byte of its file."""
        with self.samples[task].open("rb") as file:
            file.seek(at)
            return read_line(self.samples[task], 0, file.readline())


def read_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: not a JSON object; was the run stopped while it wrote?")
    return row


def value_of(name: str, logged: Any) -> Value | None:
    """What lm-eval logged for one question, as a number; None for what is none."""
    parts = logged if isinstance(logged, list) and len(logged) == 2 and name in LOGS else [logged]
    if not all(isinstance(part, (bool, int, float)) and math.isfinite(part) for part in parts):
        return None
    if name not in LOGS:
        return Value(float(parts[0]))
    return Value(-parts[0] / LOGS[name][0], float(parts[1]) if len(parts) == 2 else None)


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def results_files(folder: Path) -> list[Path]:
    """The results files in a folder, oldest first: lm-eval's names carry the time, and ours stands for the newest."""
    return [*sorted(folder.glob("results_*.json")), *folder.glob("results.json")]


def find(name: str) -> tuple[Path, int]:
    """(the newest results file of a folder, of how many).

    Raises:
        UserError: no such folder, nothing in it, or several models one folder deeper.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".json":
        return path, 1
    if not path.is_dir():
        raise UserError(f"no folder {name!r}; give the --output_path of an `unmask eval`.")
    files = results_files(path)
    if not files:
        deeper = {folder: results_files(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
        deeper = {folder: some for folder, some in deeper.items() if some}
        if len(deeper) > 1:
            raise UserError(f"{name} holds results of several runs; name one: {', '.join(map(str, deeper))}.")
        files = next(iter(deeper.values()), [])
    if not files:
        raise UserError(f"{name} holds no results.json and no results_….json; give the --output_path of an eval.")
    return files[-1], len(files)


def read(name: str) -> Run:
    """A run; UserError where there is none, or none with samples."""
    file, count = find(name)
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{file} is not JSON; was the run stopped while it wrote?") from None
    if not (isinstance(known, dict) and isinstance(known.get("results"), dict)):
        raise UserError(f'{file} holds no "results"; give the --output_path of an eval.')
    # lm-eval's samples carry the time of their results; a second run into the same folder has another
    date = (re.fullmatch(r"results(_.*)?", file.stem) or re.fullmatch(r".*?(_\d{4}-.*)", file.stem) or [None, None])[1]
    samples = {}
    for task in known["results"]:
        path = file.with_name(f"samples_{task.replace('/', '_')}{date or ''}.jsonl")
        if path.is_file():
            samples[task] = path
    if not samples:
        raise UserError(f"no samples beside {file}, so no question can be compared; run the eval with --log_samples.")
    return Run(Path(name), file, known, samples, count)
