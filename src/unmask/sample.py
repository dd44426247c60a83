"""The commands `unmask sample` and `unmask infill`: prompts continued, gaps filled.

In:  a model folder and texts (`-p`, a file, standard input).
Out: the texts with what was written, on standard output or as jsonl.

A text never becomes control tokens: `<|mdm_mask|>` typed in a prompt is those letters.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import replay as replays
from unmask import report
from unmask.canvas import Canvas, Row
from unmask.config import UserError, option
from unmask.gaps import parse_constraints, parse_gaps, with_constraints
from unmask.options import Options
from unmask.reader import LengthArguments, ReaderArguments, encode, ends_of, load, new_tokens, read
from unmask.replay import Recorder
from unmask.screen import Screen, before_any, pieces_of, shown

if TYPE_CHECKING:
    from unmask.models import Loaded


@dataclasses.dataclass
class TextArguments:
    """Text"""

    prompt: list[str] = option([], "A text; may be given several times. Standard input if left out.", aliases=["-p"])
    file: str | None = option(None, "A file of texts: each line one, or jsonl rows with `prompt` or `text`.")
    output: str | None = option(None, "Write jsonl here instead of printing: text, tokens, finish_reason, settings.")
    batch_size: int = option(8, "Texts at once. It changes the speed, not the answers.")
    replay: str | None = option(
        None, "Write how the first text was filled to FILE.html (plays in a browser), FILE.gif or FILE.json."
    )
    visualize: bool = option(False, "Show the first text of each batch as it fills, on a terminal.")


@dataclasses.dataclass
class ConstraintArguments:
    """Constraints"""

    constraints: str | None = option(
        None, "Words that stand at places of the answer, counted in tokens from 0: '0:Once,5:upon a'."
    )


@dataclasses.dataclass
class Answer:
    """One text done. pieces: alternately given and written text, the first given."""

    row: Row
    prompt: str
    pieces: list[str]
    tokens: list[int]
    finish_reason: str
    passes: int


# ---------------------------------------------------------------------------------------------------------------------
# Texts in


def texts_of(arguments: TextArguments) -> list[str]:
    """The texts asked for; UserError when there are none."""
    found = list(arguments.prompt)
    if arguments.file:
        path = Path(arguments.file)
        if not path.is_file():
            raise UserError(f"no file {arguments.file!r}.")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text.") from None
        found += list(json_texts(path, lines)) if path.suffix == ".jsonl" else [line for line in lines if line]
        if not found:
            raise UserError(f"{path} holds no text.")
    if not found:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError('no text given; type -p "text", --file FILE, or send one to standard input.')
        found = [sys.stdin.read().removesuffix("\n")]  # the line's end that `echo` puts there
        if not found[0]:
            raise UserError('standard input is empty; type -p "" for an answer to nothing.')
    return found


def json_texts(path: Path, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row.get("prompt", row.get("text"))
        except (json.JSONDecodeError, AttributeError):
            raise UserError(f"{path}, line {number}: not a JSON object.") from None
        if not isinstance(text, str):
            raise UserError(f"{path}, line {number}: no `prompt` or `text` that is text.")
        yield text


# ---------------------------------------------------------------------------------------------------------------------
# The work


def answers(
    loaded: Loaded,
    texts: list[str],
    rows: list[list[int | None]],
    settings: dict[str, Any],
    arguments: TextArguments,
    starts: list[int] | None = None,
) -> Iterator[Answer]:
    """Fill every row, `batch_size` at a time, and give them in order.

    Args:
        starts: where each answer begins; at its row's first open place if left out.
    """
    batch_size, replay = arguments.batch_size, arguments.replay
    from unmask import decoding, models

    predict = models.predictor(loaded.model)
    eos, eot = ends_of(loaded)
    settings = {"eos_token_id": eos, "eot_token_id": eot} | settings
    stops = {*(settings["eos_token_id"] or []), *(settings["eot_token_id"] or [])}
    chunks = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    canvases = [
        Canvas.of(
            [rows[i] for i in chunk],
            predict.mask_id,
            first=chunk[0],
            starts=[starts[i] for i in chunk] if starts else None,
        )
        for chunk in chunks
    ]
    for canvas in canvases:  # all are checked before the first is begun
        decoding.prepare(predict, canvas.rows, tokenizer=loaded.tokenizer, **settings)
    for chunk, canvas in zip(chunks, canvases, strict=True):
        # Closed before an answer is given: while it is drawn, rich sends what is printed to the bar's own stream.
        what = "sampling" if len(chunks) == 1 else f"sampling {chunk[-1] + 1}/{len(rows)}"
        watch = Screen(loaded.tokenizer, sure=True) if arguments.visualize else report.Bar(what, canvas.planned)
        written, began = 0, time.monotonic()
        recorder = Recorder(loaded.tokenizer, canvas.rows[0], settings) if replay and not chunk[0] else None
        try:
            for step in decoding.unmask(predict, canvas):
                if recorder:
                    recorder.note(canvas.rows[0])
                written += sum(len(change.places) for change in step.changes)
                if isinstance(watch, Screen):
                    watch.draw(canvas.rows[0])
                else:
                    speed = written / max(time.monotonic() - began, 1e-9)
                    watch.to(step.number, f"{report.amount(speed)} tokens/s")
        finally:
            watch.close()
        if recorder and replay:
            report.say(f"how it was filled is in {replays.write(recorder.record(), replay)}")
        for i, row in zip(chunk, canvas.rows, strict=True):
            yield finished(loaded, row, texts[i], stops, settings.get("stop_strings") or [])


def finished(loaded: Loaded, row: Row, prompt: str, stops: set[int], strings: Sequence[str] = ()) -> Answer:
    """A filled row as text, without what follows an end of text or a stop string in an answer at the row's end."""
    ids, free = row.ids.tolist(), row.free.tolist()
    last = len(ids)
    if free and free[-1]:  # an answer, not a gap between texts
        start = last - next((i for i, f in enumerate(reversed(free)) if not f), last)
        last = next((i for i in range(start, last) if ids[i] in stops), last)
    reason = "stop" if last < len(ids) else "length"
    cuts = [0, *(i for i in range(last) if free[i] != (free[i - 1] if i else False)), last]
    pieces = pieces_of(loaded.tokenizer, ids, cuts)
    tokens = [token for token, f in zip(ids[:last], free, strict=False) if f]
    if row.cut is not None:
        pieces[-1], tokens, reason = before_any(pieces[-1], strings), tokens[: row.cut], "stop"
    return Answer(row, prompt, pieces, tokens, reason, row.passes)


# ---------------------------------------------------------------------------------------------------------------------
# Answers out


def give(found: Iterator[Answer], output: str | None, settings: dict[str, Any]) -> None:
    """Print the answers, or write them as jsonl, aside and then in place."""
    if output:
        path = Path(output)
        if path.is_dir() or not path.absolute().parent.is_dir():
            why = "it is a folder" if path.is_dir() else "no such folder"
            raise UserError(f"cannot write --output {output}: {why}.")
        with report.written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
            for answer in found:
                file.write(json.dumps(record(answer, settings), ensure_ascii=False) + "\n")
        report.say(f"the answers are in {output}")
        return
    terminal = sys.stdout.isatty()
    for number, answer in enumerate(found):
        if number:
            print("-" * 40 if terminal else "")
        if terminal:
            from rich.console import Console
            from rich.text import Text

            styled = [(shown(piece), "bold green" if i % 2 else "") for i, piece in enumerate(answer.pieces)]
            Console().print(Text.assemble(*styled), soft_wrap=True)
        else:
            print("".join(answer.pieces), flush=True)


def record(answer: Answer, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": answer.prompt,
        "completion": "".join(answer.pieces[1:]) if len(answer.pieces) <= 2 else None,
        "text": "".join(answer.pieces),
        "written": answer.pieces[1::2],
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
        "forward_passes": answer.passes,
        "seed": answer.row.seed,
        "settings": settings | {"rule_args": dataclasses.asdict(answer.row.rule.settings)},
    }


REFUSED = {
    "chat_template": "belongs to `unmask chat`; here a prompt is the text itself.",
    "return_dict": "gives an object to a Python program; here --output FILE writes what there is to know.",
}


def settings_of(
    prog: str, about: str, argv: list[str], groups: list[type]
) -> tuple[list[Any], Options, dict[str, Any]]:
    """`reader.read`, and what the two commands here ask of texts."""
    mine, options, settings = read(prog, about, argv, groups, refused=REFUSED)
    text = mine[1]
    if text.batch_size < 1:
        raise UserError(f"--batch_size is {text.batch_size}; it must be at least 1.")
    if text.replay:
        replays.target(text.replay)
    if text.visualize and not sys.stdout.isatty():
        report.say("--visualize draws on a terminal, and standard output is none.")
        text.visualize = False
    return mine, options, settings


def main(argv: list[str]) -> int:
    """`unmask sample --model FOLDER -p "text" …`"""
    about = "Continue prompts with a masked diffusion model."
    groups = [ReaderArguments, TextArguments, LengthArguments, ConstraintArguments]
    (reader, arguments, length, fixed), options, settings = settings_of("unmask sample", about, argv, groups)
    wanted = parse_constraints(fixed.constraints)
    for name, value in dataclasses.asdict(length).items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    texts = texts_of(arguments)
    loaded = load(reader)
    most = getattr(loaded.model.config, "max_position_embeddings", None)
    prompts = [encode(loaded, text) for text in texts]
    words = {place: encode(loaded, word) for place, word in wanted.items()}
    rows: list[list[int | None]] = [
        [*ids, *with_constraints(new_tokens(length, len(ids), most), words)] for ids in prompts
    ]
    starts = [len(ids) for ids in prompts]
    found = answers(loaded, texts, rows, settings, arguments, starts)
    give(found, arguments.output, dataclasses.asdict(length) | dataclasses.asdict(options))
    return 0


def main_infill(argv: list[str]) -> int:
    """`unmask infill --model FOLDER -p "text {{8}} more text" …`"""
    about = "Fill gaps: {{8}} in a text is a gap of 8 tokens; there may be several. \\{{8}} is the text itself."
    (reader, arguments), options, settings = settings_of("unmask infill", about, argv, [ReaderArguments, TextArguments])
    texts = texts_of(arguments)
    parts = [parse_gaps(text) for text in texts]
    for text, pieces in zip(texts, parts, strict=True):
        if not any(isinstance(piece, int) for piece in pieces):
            raise UserError(f"no gap in {text[:40]!r}; write {{{{8}}}} where 8 tokens are to be filled in.")
    loaded = load(reader)
    rows: list[list[int | None]] = []
    for pieces in parts:
        row: list[int | None] = []
        for piece in pieces:
            row += [None] * piece if isinstance(piece, int) else encode(loaded, piece)
        rows.append(row)
    found = answers(loaded, texts, rows, settings, arguments)
    give(found, arguments.output, dataclasses.asdict(options))
    return 0
