"""The results folder: scores, every prompt and answer, and all that made them.

In:  what lm-eval gives back, details of each request.
Out: results.json, samples_TASK.jsonl and eval.json in one folder; the table for the terminal.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unmask import report
from unmask.config import UserError
from unmask.harness.store import FILES

RESULTS, BEGUN = "results.json", "eval.json"
SHOWN = 3
SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "exact", "contains", "pass@1")
"""Metrics of which 0 is suspicious."""


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def check(folder: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether a stopped run of the same settings is to be gone on with.

    Args:
        settings: all that the answers hang on.

    Raises:
        UserError: the folder holds results, or a run of other settings, or something else.
    """
    begun = folder / BEGUN
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_path {folder} is a file; name a folder.")
    if overwrite and begun.exists():
        return False
    if (folder / RESULTS).exists():
        raise UserError(
            f"{folder} holds results already; name another --output_path, or type --overwrite to replace them."
        )
    if begun.exists():
        there, here = json.loads(begun.read_text(encoding="utf-8"))["settings"], json.loads(json.dumps(settings))
        if there != here:
            differs = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
            raise UserError(
                f"{folder} holds a run that was stopped, with other settings ({', '.join(differs)}); name another "
                "--output_path, or type --overwrite to begin anew."
            )
        return True
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no evaluation; name another --output_path.")
    return False


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or empty it of an earlier evaluation."""
    for path in [*folder.glob("samples_*.jsonl"), *folder.glob(FILES), folder / RESULTS]:
        path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / BEGUN, {"settings": settings, "versions": report.versions()})


@contextlib.contextmanager
def nothing_left(folder: str | None) -> Iterator[None]:
    """A run that is refused before its first answer leaves no folder."""
    try:
        yield
    except UserError:
        mine = Path(str(folder))
        if folder and mine.is_dir() and not any(path.stat().st_size for path in mine.glob(FILES)):
            for path in [*mine.glob(FILES), mine / BEGUN]:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process is still at it
                mine.rmdir()
        raise


def commit() -> str | None:
    """The commit of Unmask's source, with `+` where files have changed since; None outside a repository."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    found = git("rev-parse", "HEAD")
    return found and found + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")


def write(folder: Path, results: dict[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> None:
    """All files, the results last: a folder with results.json is whole."""
    for task, rows in samples.items():
        name = f"samples_{task.replace('/', '_')}.jsonl"
        with report.written_aside(folder / name) as aside, aside.open("w", encoding="utf-8") as file:
            for row in sorted(rows, key=lambda row: row["doc_id"]):
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    report.write_json(folder / RESULTS, results)


# ---------------------------------------------------------------------------------------------------------------------
# Details of requests


def add_details(samples: Mapping[str, list[dict[str, Any]]], details: Mapping[Any, dict[str, Any]]) -> None:
    """To each question, what is known of its requests: passes, tokens, standard errors."""
    for task, rows in samples.items():
        for row in rows:
            known = [details.get((task, row["doc_id"], i)) for i in range(len(row["arguments"]))]
            if any(known):
                row["details"] = known


def decoding(details: Mapping[Any, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each task that generates: answers, tokens up to the end of text, forward passes, seconds and their ratios."""
    found: dict[str, dict[str, float]] = {}
    for (task, _, _), one in details.items():
        if "forward_passes" not in one:
            continue
        total = found.setdefault(task, {"answers": 0, "tokens": 0, "forward_passes": 0, "seconds": 0.0})
        total["answers"] += 1
        for name in ("tokens", "forward_passes", "seconds"):
            total[name] += one[name]
    for total in found.values():
        total["tokens_per_forward"] = total["tokens"] / max(total["forward_passes"], 1)
        total["tokens_per_second"] = total["tokens"] / max(total["seconds"], 1e-9)
    return found


def texts(details: Mapping[Any, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each task that scores whole texts: windows, tokens, nats per token and the standard error of the draws."""
    found: dict[str, dict[str, Any]] = {}
    for (task, _, _), one in details.items():
        if "windows" not in one:
            continue
        total = found.setdefault(task, {"windows": 0, "tokens": 0, "nats": 0.0, "variance": 0.0})
        for name in ("windows", "tokens", "nats"):
            total[name] += one[name]
        known = None not in (total["variance"], one["se"])
        total["variance"] = total["variance"] + one["se"] ** 2 if known else None
    for total in found.values():
        total["nats_per_token"], variance = -total.pop("nats") / total["tokens"], total.pop("variance")
        total["se"] = None if variance is None else math.sqrt(variance) / total["tokens"]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What is shown


def metrics_of(scores: Mapping[str, Any]) -> Iterable[tuple[str, str, float, float | None]]:
    """(metric, filter, value, standard error) of one task's scores as lm-eval gives them."""
    for key, value in scores.items():
        metric, sign, by = key.partition(",")
        if not sign or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = scores.get(f"{metric}_stderr,{by}")
        yield metric, by, float(value), float(error) if isinstance(error, int | float) else None


def table(results: Mapping[str, Any], published: Mapping[str, float]) -> list[list[str]]:
    """Rows of words, the head first: groups before their tasks."""
    groups, tasks = results.get("groups") or {}, results["results"]
    order = [*groups, *(name for name in tasks if name not in groups)]
    rows = [["task", "shots", "questions", "metric", "score", "95 %", "published"]]
    for name in order:
        scores = groups.get(name) or tasks[name]
        asked = (results.get("n-samples") or {}).get(name, {}).get("effective") or scores.get("sample_len") or ""
        for i, (metric, by, value, error) in enumerate(metrics_of(scores)):
            what = metric if by in ("none", "") else f"{metric} ({by})"
            words = [name, str((results.get("n-shot") or {}).get(name, "")), f"{asked:,}" if asked else ""]
            known = published.get(name)
            rows.append(
                [
                    *(words if not i else ["", "", ""]),
                    what,
                    f"{value:.4f}",
                    interval(metric, value, error, asked),
                    f"{known / 100:.3f}" if known is not None and not i else "",
                ]
            )
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in used] for row in rows]


def interval(metric: str, value: float, error: float | None, asked: Any) -> str:
    """95 %: Wilson's of a share of so many questions, which is not empty at 0 either; else ± 1.96 standard errors."""
    if metric in SHARES and asked:
        from unmask.measure import wilson

        low, high = wilson(round(value * asked), asked)
        return f"{low:.4f}–{high:.4f}"
    return "" if error is None or math.isnan(error) else f"± {1.96 * error:.4f}"


def suspicious(results: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """What to look at: groups, and tasks in none, whose score is 0 or exactly that of guessing, with three answers."""
    lines: list[str] = []
    groups, held = results.get("groups") or {}, results.get("group_subtasks") or {}
    inside = {task for name in groups for task in held.get(name, ())}
    for name, scores in {**results["results"], **groups}.items():
        rows = [row for task in (held.get(name) or [name]) for row in samples.get(task, ())]
        for metric, by, value, _ in metrics_of(scores) if name not in inside else ():
            mine = [row for row in rows if row.get("filter", by) == by and metric in row.get("metrics", ())]
            if metric not in SHARES or not mine:
                continue
            choices = [len(row["arguments"]) for row in mine]
            chance = sum(1 / n for n in choices) / len(choices) if max(choices) > 1 else None
            if value and not (chance is not None and math.isclose(value, chance, abs_tol=1e-9)):
                continue
            what = "0" if not value else f"{value:.4f}, exactly that of guessing"
            lines.append(f"{name}: {metric} is {what}. Look at what was asked and answered:")
            lines += [line for row in mine[:SHOWN] for line in shown(row)]
            break
    return lines


def shown(row: Mapping[str, Any]) -> list[str]:
    """One question in a few lines."""
    asked = row["arguments"][0]
    prompt = str(asked[0]) if isinstance(asked, list | tuple) else str(asked)
    lines = [f"  question {row['doc_id']}: …{short(prompt[-160:])}"]
    if len(row["arguments"]) > 1:
        values = [one[0][0] if isinstance(one[0], list | tuple) else one[0] for one in row["resps"]]
        lines.append(
            "    choices: "
            + " | ".join(f"{short(str(a[1]))} {v:.2f}" for a, v in zip(row["arguments"], values, strict=False))
        )
    else:
        lines.append(f"    answer: {short(str(row['resps'][0][0]))}")
        lines.append(f"    taken: {short(str(row['filtered_resps'][0]))}")
    lines.append(f"    wanted: {short(str(row['target']))}")
    return lines


def short(text: str, most: int = 160) -> str:
    text = " ".join(text.split()) or "(nothing)"
    return text if len(text) <= most else text[: most - 1] + "…"
