"""The command `unmask bench decode`: rules and caches on one model, side by side.

In:  a model folder; rules and caches; prompts, or tasks with answers.
Out: a table on standard output; with --output_dir also results.json, table.md and speed-quality.png.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unmask import report
from unmask.config import UserError, option
from unmask.reader import LengthArguments, ReaderArguments, encode, load, new_tokens, read

if TYPE_CHECKING:
    from unmask.chats import Message
    from unmask.measure import Result
    from unmask.models import Loaded

RESULTS, TABLE, PLOT = "results.json", "table.md", "speed-quality.png"
LEGEND = (
    "tokens up to the end of text; passes and full passes (places computed / the row's length) per answer; speed: "
    "tokens/s beside the first line's; seconds for all; memory above the loaded model's"
)


@dataclasses.dataclass
class BenchArguments:
    """Comparison"""

    rules: list[str] = option(
        ["reference", "threshold"],
        "Rules, as NAME or NAME:key=value,key=value. `reference` with the cache `none`, the baseline, always runs.",
    )
    caches: list[str] = option(["none"], "Caches, spelled the same way. Every rule runs with every one of them.")
    tasks: str | None = option(
        None,
        "A jsonl file of questions: `prompt` (or `instruction` and `input`, or `messages`) and `answer` (or `output`); "
        "without answers no accuracy is measured.",
    )
    match: Literal["exact", "contains"] = option(
        "exact", "An answer is right if it is the wanted text, spaces around it aside; or if it has that in it."
    )
    prompt: list[str] = option([], "A text to continue, instead of --tasks; several may be given.", aliases=["-p"])
    file: str | None = option(None, "A file of texts to continue: each line one, or jsonl with `prompt` or `text`.")
    chat: bool | None = option(
        None,
        "Ask through the chat template. If left out: for --tasks, if the tokenizer has one; not for --prompt, --file.",
    )
    limit: int | None = option(None, "Take so many of the texts or tasks, from the first on.")
    batch_size: int = option(1, "Texts at once.")
    repeats: int = option(3, "How often everything is measured; speed is the median.")
    output_dir: str | None = option(None, f"Folder for {RESULTS}, {TABLE} and {PLOT}.")

    def check(self) -> None:
        """UserError for settings that cannot be."""
        if self.tasks and (self.prompt or self.file):
            raise UserError("--tasks and --prompt or --file are two sources; give one.")
        for name in ("rules", "caches"):
            if not getattr(self, name):
                raise UserError(f"--{name} is empty; name at least one.")
        if self.output_dir:
            folder = Path(self.output_dir)
            there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
            if not there.is_dir() or not os.access(there, os.W_OK):
                raise UserError(f"cannot write to --output_dir {folder}: {there} is no folder that can be written to.")
            if (folder / RESULTS).exists():
                raise UserError(f"{folder} holds a {RESULTS} already; name another --output_dir, or delete it.")


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


class Task(NamedTuple):
    """A question, as messages, and the answer that is wanted, if one is."""

    messages: list[Message]
    answer: str | None


def read_tasks(name: str) -> list[Task]:
    """The rows of a jsonl file.

    Raises:
        UserError: no such file, a row in another form, answers in some rows only.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no file {name!r}; --tasks takes a jsonl file.")
    found: list[Task] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object.")
        try:
            found.append(task_of(row, number))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if (found[-1].answer is None) != (found[0].answer is None):
            raise UserError(f"{path}, line {number}: some rows have an answer and some have none; give all or none.")
    if not found:
        raise UserError(f"{path} holds no task.")
    return found


def task_of(row: dict[str, Any], number: int) -> Task:
    """A row under any of its spellings; it is checked as a conversation for training is."""
    from unmask import chats

    answer = row.get("answer", row.get("output"))
    if answer is not None and not (isinstance(answer, str) and answer.strip()):
        raise UserError(f"row {number:,}: the answer is {json.dumps(answer)[:60]}; expected a text that is not empty.")
    last = "-" if answer is None else answer  # stands where a conversation has an answer, and is taken out again
    forms = {
        "messages": ("messages", lambda: {"messages": [*row["messages"], {"role": "assistant", "content": last}]}),
        "instruction": ("alpaca", lambda: {**row, "output": last}),
        "prompt": ("response", lambda: {"prompt": row["prompt"], "response": last, "system": row.get("system")}),
    }
    form, made = next((forms[name] for name in forms if row.get(name) is not None), (None, None))
    if form is None or made is None:
        raise UserError(f"row {number:,} has the columns {', '.join(row)}; expected prompt, instruction or messages.")
    if form == "messages" and not isinstance(row["messages"], list):
        raise UserError(f"row {number:,}: 'messages' is no list of messages.")
    return Task(chats.messages(made(), form, number)[:-1], answer)


def questions(arguments: BenchArguments) -> list[Task]:
    """What is asked, up to --limit."""
    from unmask.sample import TextArguments, texts_of

    if arguments.tasks:
        found = read_tasks(arguments.tasks)
    else:
        texts = texts_of(TextArguments(prompt=arguments.prompt, file=arguments.file))
        found = [Task([{"role": "user", "content": text}], None) for text in texts]
    return found[: arguments.limit]


def prompts_of(loaded: Loaded, tasks: Sequence[Task], chat: bool | None, asked: bool) -> tuple[list[list[int]], Any]:
    """(the prompts' ids, the chat template they went through or None).

    Args:
        asked: they are questions, so that a chat template is used if there is one and nobody says otherwise.
    """
    from unmask.template import Template

    if chat or (chat is None and asked and loaded.tokenizer.chat_template):
        template = Template(loaded.tokenizer)
        return [template.prompt(task.messages) for task in tasks], template
    for number, task in enumerate(tasks, 1):
        if len(task.messages) > 1:
            raise UserError(
                f"question {number:,} has {len(task.messages)} messages, and without a chat template only one can be "
                "continued; give --chat true."
            )
    return [encode(loaded, task.messages[0]["content"]) for task in tasks], None


# ---------------------------------------------------------------------------------------------------------------------
# The table


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float, interval: Sequence[float] | None) -> str:
    """A difference in points, with what its interval reaches to both sides."""
    half = "" if interval is None else f" ± {50 * (interval[1] - interval[0]):.1f}"
    return f"{100 * value:+.1f}{half}"


def table(results: Sequence[Result], figures: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows of words, the head first. What is known of no cell has no column."""
    head = ["rule", "cache", "passes", "tokens/pass", "full passes", "tokens/s", "speed", "seconds", "memory"]
    head += ["same answers", "same tokens", "accuracy", "95 %", "to baseline"]
    rows = [head]
    for result, known in zip(results, figures, strict=True):
        words = [result.cell.rule, result.cell.cache]
        if "refused" in known:
            rows.append([*words, "refused", *[""] * (len(head) - 3)])
            continue
        per, peak = known["tokens_per_forward"], known["peak_bytes"]
        words += [f"{known['forward_passes']:.1f}", "–" if per is None else f"{per:.2f}"]
        words += [f"{known['full_forwards']:.1f}", report.amount(known["tokens_per_second"])]
        words += [
            f"{known['speedup']:.2f}×",
            f"{known['seconds']:.2f}",
            "" if peak is None else f"{peak / 1e6:,.1f} MB",
        ]
        words += [percent(known["same_answers"]), percent(known["same_tokens"])]
        if "accuracy" in known:
            low, high = known["accuracy_interval"]
            words += [percent(known["accuracy"]), f"{100 * low:.1f}–{100 * high:.1f}"]
            words += ["" if result is results[0] else points(known["difference"], known["difference_interval"])]
        rows.append([*words, *[""] * (len(head) - len(words))])
    used = [i for i in range(len(head)) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in used] for row in rows]


def refusals(results: Sequence[Result]) -> list[str]:
    return [f"refused: {result.cell}: {result.refused}" for result in results if result.refused]


def show(rows: list[list[str]], notes: list[str]) -> None:
    """The table and what is to be said about it, on standard output."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for i, name in enumerate(rows[0]):
            drawn.add_column(name, justify="left" if i < 2 else "right", overflow="fold")
        for row in rows[1:]:
            drawn.add_row(*row)
        Console(highlight=False, markup=False).print(drawn, *notes, sep="\n")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [word.ljust(w) if i < 2 else word.rjust(w) for i, (word, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
    print(*notes, sep="\n", flush=True)


def markdown(rows: list[list[str]], notes: list[str]) -> str:
    """The same in Markdown."""
    lines = [[word.replace("|", "\\|") for word in row] for row in rows]
    lines[1:1] = [[":--"] * 2 + ["--:"] * (len(rows[0]) - 2)]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + [""] + [f"- {note}" for note in notes]) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The command

BEHIND = "belongs to one rule; write it behind the name: --rules NAME:key=value,key=value."
REFUSED = {
    "rule": "takes one rule; here --rules takes several.",
    "cache": "takes one cache; here --caches takes several.",
    "rule_args": BEHIND,
    "cache_args": "belongs to one cache; write it behind the name: --caches NAME:key=value.",
    "remasking": BEHIND,
    "stochastic_transfer": BEHIND,
}


def main(argv: list[str]) -> int:
    """`unmask bench decode --model FOLDER --rules … --caches … --tasks FILE`"""
    kind, rest = (argv[0], argv[1:]) if argv else ("", [])
    if kind in ("-h", "--help"):
        kind, rest = "decode", argv
    if kind != "decode":
        raise UserError(f"no bench {kind!r}; there is one: unmask bench decode.")
    about = "Measure decoding: every rule with every cache, on the same prompts, beside the exact baseline."
    groups = [ReaderArguments, BenchArguments, LengthArguments]
    (reader, arguments, length), options, settings = read("unmask bench decode", about, rest, groups, refused=REFUSED)
    for name in REFUSED.keys() & settings.keys():  # from a config file
        raise UserError(f"--{name} {REFUSED[name]}")
    for name, value in (dataclasses.asdict(arguments) | dataclasses.asdict(length)).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    arguments.check()

    from unmask import bench_plot, measure

    cells = measure.cells(arguments.rules, arguments.caches)
    tasks = questions(arguments)
    loaded = load(reader)
    from unmask.answer import Writer
    from unmask.screen import text_of

    prompts, template = prompts_of(loaded, tasks, arguments.chat, bool(arguments.tasks))
    writer = Writer(loaded, template.ends if template else ())
    new = [new_tokens(length, len(ids), writer.max_length) for ids in prompts]

    def judge(number: int, ids: list[int]) -> bool:
        said, wanted = text_of(loaded.tokenizer, ids).strip(), str(tasks[number].answer).strip()
        return said == wanted if arguments.match == "exact" else wanted in said

    results = measure.run(
        writer.predict,
        prompts,
        new,
        cells,
        writer.ends | settings,
        repeats=arguments.repeats,
        batch_size=arguments.batch_size,
        judge=judge if tasks[0].answer is not None else None,
    )
    figures = [measure.figures(result, results[0]) for result in results]
    machine = measure.machine(loaded.model)
    answers = "1 answer" if len(tasks) == 1 else f"{len(tasks):,} answers"
    what = f"{answers}, {'as chat' if template else 'as plain text'}, {arguments.batch_size} at once"
    where = f"{machine['dtype']} on {machine['device_name']}, {machine['torch_threads']} CPU threads"
    notes = [LEGEND, f"{what}; {where}", *refusals(results)]
    rows = table(results, figures)
    show(rows, notes)
    if arguments.output_dir:
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        given = [dataclasses.asdict(one) for one in (reader, arguments, length, options)]
        record = {
            "settings": {key: value for one in given for key, value in one.items() if key not in REFUSED},
            "ends": writer.ends,
            "chat_template": bool(template),
            "versions": report.versions(),
            "machine": machine,
            "cells": [measure.record(r, known, results[0]) for r, known in zip(results, figures, strict=True)],
        }
        bench_plot.draw(folder / PLOT, results, figures, f"{Path(str(reader.model)).name}: {what}")
        with report.written_aside(folder / TABLE) as aside:
            aside.write_text(markdown(rows, notes), encoding="utf-8")
        report.write_json(folder / RESULTS, record)
        report.say(f"{RESULTS}, {TABLE} and {PLOT} are in {folder}")
    return 0
