#!/usr/bin/env python3
"""Rules × caches over one task, in one table: what each scores, and what that costs.

    python scripts/eval-rules.py --model FOLDER --tasks gsm8k --local_data DIR --max_new_tokens 64 --block_size 16 \
        --rules reference threshold:threshold=0.9 --caches none dual --limit 50 --output_dir output/rules

In:  the flags of `unmask eval`; rules and caches, each as NAME or NAME:key=value,key=value.
Out: a table; in --output_dir the same as table.md and table.json, and every cell's results folder, which
     `unmask compare` reads. The model is loaded once. A grid that was stopped goes on where it stood.

`reference` without a cache, the baseline, always runs: each cell's answers are compared with its own, question by
question. Tasks whose answers are scored by likelihood write nothing, so that rules mean nothing to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from unmask import report
from unmask.__main__ import told
from unmask.bench import markdown, show
from unmask.benchmark import evaluate, make
from unmask.compare import CompareArguments, compare, difference, with_interval
from unmask.compare_stats import FLIPS
from unmask.config import UserError, option
from unmask.evaluation import REFUSED as NOT_HERE
from unmask.evaluation import check
from unmask.harness import arguments, asking, flags, identity, results, workers
from unmask.harness.asking import Evaluation
from unmask.harness.flags import ResultArguments, TaskArguments
from unmask.measure import cells as cells_of
from unmask.measure import parts
from unmask.reader import ReaderArguments, read

ONE = "takes one; here --rules and --caches take several."
REFUSED = NOT_HERE | {"rule": ONE, "cache": ONE, "rule_args": ONE, "cache_args": ONE, "preset": "sets rules itself."}
REFUSED |= {"output_path": "is a cell's own; name --output_dir.", "repeat": "repeats one evaluation."}
OWN = ("--rules", "--caches", "--output_dir")


@dataclasses.dataclass
class GridArguments:
    """Grid"""

    rules: list[str] = option(["reference", "threshold"], "Rules, as NAME or NAME:key=value,key=value.")
    caches: list[str] = option(["none"], "Caches, spelled the same way. Every rule runs with every one of them.")
    output_dir: str | None = option(None, "Folder for the table and the results of every cell.")


def folder_of(cell: Any, out: Path) -> Path:
    """The results folder of a cell: its words, as far as a file's name can hold them."""
    return out / re.sub(r"[^\w.=,+-]+", "_", f"{cell.rule}+{cell.cache}")


def of_cell(wanted: Evaluation, cell: Any, out: Path) -> Evaluation:
    """The evaluation of one cell, with the words by which `unmask eval` would run it alone."""
    words, ours = list[str](), False
    for word in wanted.argv:
        ours = word.partition("=")[0] in OWN if word.startswith("--") else ours
        words += [] if ours else [word]
    for kind, typed in (("rule", cell.rule), ("cache", cell.cache)):
        name = parts(typed, kind)[0]
        words += [f"--{kind}", name, *([f"--{kind}_args", typed[len(name) + 1 :]] if typed != name else [])]
    return dataclasses.replace(
        wanted,
        output=dataclasses.replace(wanted.output, output_path=str(folder_of(cell, out))),
        decoding=wanted.decoding | cell.settings(),
        argv=words,
    )


def before(mine: Evaluation, fingerprint: str | None) -> dict[str, Any] | None:
    """A cell's results from an earlier run; None where there are none, or where they are to be replaced.

    Args:
        fingerprint: of the model's weights.

    Raises:
        UserError: results, or a stopped run, of other settings or of another model: no line of the same table.
    """
    folder, settings = Path(str(mine.output.output_path)), json.loads(json.dumps(asking.record(mine, None)))
    if mine.output.overwrite or not (folder / results.RESULTS).is_file():
        results.check(folder, settings, mine.output.overwrite)
        return None
    there = dict(json.loads((folder / results.RESULTS).read_text(encoding="utf-8")))
    old = there["settings"] | {"weights": there["model"].get("fingerprint")}
    new = settings | {"weights": fingerprint}
    differs = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if differs:
        raise UserError(
            f"{folder} holds results of other settings ({', '.join(differs)}); name another --output_dir, or type "
            "--overwrite to replace them."
        )
    return there


def run(mine: Evaluation, cell: Any, model: list[Any]) -> dict[str, Any] | None:
    """A cell's results; {"refused": why} for what cannot be, None in all processes but the first.

    Args:
        model: of one element once it is loaded.
    """
    if not model:
        model.append(make(mine))
    report.say(f"{cell}:")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluate(mine, model[0])
    except UserError as error:
        return {"refused": str(error)}


def table(cells: list[Any], found: list[dict[str, Any]], out: Path) -> list[list[str]]:
    """Rows of words, the head first; a line for each metric of a cell."""
    rows = [["rule", "cache", "metric", "score", "to baseline", "p", "passes", "tokens/pass", "tokens/s", "speed"]]
    usual = speed(found[0])
    for cell, whole in zip(cells, found, strict=True):
        if "refused" in whole:
            rows.append([cell.rule, cell.cache, "refused", *[""] * 7])
            continue
        lines = compare(CompareArguments(runs=[str(folder_of(c, out)) for c in (cells[0], cell)]))[0]
        lines = [line for line in lines if not line.parts]
        cost = whole["decoding"].values()
        passes = sum(one["forward_passes"] for one in cost) / max(sum(one["answers"] for one in cost), 1)
        tokens = sum(one["tokens"] for one in cost) / max(sum(one["forward_passes"] for one in cost), 1)
        words = [f"{passes:.1f}", f"{tokens:.2f}", report.amount(speed(whole)), f"{speed(whole) / usual:.2f}×"]
        for i, line in enumerate(lines):
            known = line.known
            name = line.metric if len({one.task for one in lines}) == 1 else f"{line.task} {line.metric}"
            score, against = with_interval(known, "second"), ["", ""]
            if cell != cells[0]:
                against = [difference(known), f"{known['p']:.3f}{'*' if known['test'] == FLIPS else ''}"]
            head = [cell.rule, cell.cache] if not i else ["", ""]
            rows.append([*head, name, score, *against, *(words if not i else [""] * 4)])
    return rows


def speed(whole: dict[str, Any]) -> float:
    """Tokens a second up to the end of text, over all tasks."""
    cost = list(whole["decoding"].values())
    return float(sum(one["tokens"] for one in cost) / max(sum(one["seconds"] for one in cost), 1e-9))


def main(argv: list[str]) -> int:
    """The grid, from flags to table."""
    groups = [ReaderArguments, TaskArguments, arguments.ScoringArguments, ResultArguments, GridArguments]
    words = flags.normalised(argv)
    chosen, _, decoding = read("eval-rules.py", __doc__.splitlines()[0], words, groups, refused=REFUSED)
    reader, tasks, scoring, output, grid = chosen
    if not grid.output_dir:
        raise UserError("no folder for the results; type --output_dir FOLDER.")
    wanted = Evaluation(reader, tasks, scoring, output, decoding, words)
    check(wanted)
    if wanted.kind not in arguments.OURS:
        raise UserError(f"--model {wanted.kind} is lm-eval's own and has no rules and caches.")
    out, cells = Path(grid.output_dir), cells_of(grid.rules, grid.caches)
    each = [of_cell(wanted, cell, out) for cell in cells]
    weights = identity.fingerprint(each[0].asked())
    done = [before(mine, weights) for mine in each]  # all of them before hours are spent on the first
    model: list[Any] = []
    found: list[dict[str, Any]] = []
    for mine, cell, there in zip(each, cells, done, strict=True):
        if there:
            report.say(f"{cell}: done before, in {folder_of(cell, out)}")
        found.append(there or run(mine, cell, model) or {})
    if workers.processes()[0]:
        return 0  # the first process has all answers, and tells
    if "refused" in found[0]:
        raise UserError(found[0]["refused"])
    if not all(whole["decoding"] for whole in found if "refused" not in whole):
        raise UserError("the task is scored by likelihood and writes nothing, so rules and caches mean nothing to it.")
    rows = table(cells, found, out)
    notes = [
        "scores of right or wrong in %, with 95 % intervals; to baseline: paired difference, with its interval",
        "p: exact McNemar test; p*: sign flips, where scores are numbers",
        "passes per answer; tokens up to the end of text; speed: tokens/s beside the first line's, on this machine",
        *(
            f"refused: {cell}: {whole['refused']}"
            for cell, whole in zip(cells, found, strict=True)
            if "refused" in whole
        ),
    ]
    show(rows, notes)
    with report.written_aside(out / "table.md") as aside:
        aside.write_text(markdown(rows, notes), encoding="utf-8")
    record = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    report.write_json(out / "table.json", {"cells": record, "notes": notes, "versions": report.versions()})
    report.say(f"the table and every cell's results are in {out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(told(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
