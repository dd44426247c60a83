"""Answers to prompts, several at once, each as soon as it is done; and whether greedy decoding would write a target.

In:  a model that answers (`unmask.answer.Writer`), drafts.
Out: (draft, what was written and what it cost), in the order in which they are done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from unmask import decoding
from unmask.answer import Writer
from unmask.canvas import Canvas, Row
from unmask.harness.prompts import Pair
from unmask.measure import answer_of
from unmask.memory import Memory
from unmask.screen import before_any, text_of


class Draft(NamedTuple):
    """An answer to be written: after which prompt, of how many tokens, ended by which texts, by which settings.

    number: with the seed it makes the row's random numbers.
    """

    number: int
    prompt: tuple[int, ...]
    new: int
    until: list[str]
    settings: dict[str, Any]
    key: str


def unmasked(writer: Writer, drafts: Sequence[Draft], at_once: int) -> Iterator[tuple[Draft, dict[str, Any]]]:
    """By the one loop. Rows at any stage share a pass; when one is done the next takes its place."""
    predict, memory, tokenizer = writer.predict, Memory(), writer.loaded.tokenizer
    waiting, rows, spent = list(reversed(drafts)), dict[Row, Draft](), dict[Row, float]()
    while waiting or rows:
        while waiting and len(rows) < at_once:
            draft = waiting.pop()
            [row] = Canvas.after([draft.prompt], draft.new, predict.mask_id, first=draft.number).rows
            settings = writer.ends | {"stop_strings": draft.until} | draft.settings
            decoding.prepare(predict, [row], tokenizer=tokenizer, **settings)
            rows[row], spent[row] = draft, 0.0
        began = time.monotonic()
        decoding.step(predict, list(rows), memory)
        share = (time.monotonic() - began) / len(rows)
        for row in rows:
            spent[row] += share
        for row in [row for row in rows if row.finished]:
            draft, (answer, ids) = rows.pop(row), answer_of(row)
            ended = "stop" if row.cut is not None or len(ids) < len(row.answer) else "length"
            yield draft, record(writer, draft, row, ids, answer.tokens, spent.pop(row), ended)


def left_to_right(writer: Writer, drafts: Sequence[Draft]) -> Iterator[tuple[Draft, dict[str, Any]]]:
    """By a causal model, one after the other, each until an end or a stop string stands."""
    tokenizer = writer.loaded.tokenizer
    for draft in drafts:
        began, ids, ended = time.monotonic(), list[int](), "length"
        row = writer.begin(draft.prompt, draft.new, {"eos_stop": True} | draft.settings, draft.number)
        for _ in writer.write(row):
            ids, stops = writer.answer(row)
            text = text_of(tokenizer, ids)
            if stops or before_any(text, draft.until) != text:
                ended = "stop"
                break
        yield draft, record(writer, draft, row, ids, row.step, time.monotonic() - began, ended)


def record(
    writer: Writer, draft: Draft, row: Row, ids: list[int], tokens: int, seconds: float, ended: str
) -> dict[str, Any]:
    """An answer for the store: its text before the first stop string, its ids before its end, and what it cost."""
    return {
        "text": before_any(text_of(writer.loaded.tokenizer, ids), draft.until),
        "ids": ids,
        "tokens": tokens,
        "forward_passes": row.passes,
        "seconds": seconds,
        "finish": ended,
    }


def greedy(writer: Writer, pairs: Sequence[Pair], cfg_scale: float, at_once: int) -> Iterator[tuple[Pair, bool]]:
    """Whether greedy decoding, the surest place first and one a step, writes each target; up to the first wrong one."""
    predict, waiting, rows = writer.predict, list(reversed(pairs)), dict[Row, Pair]()
    while waiting or rows:
        while waiting and len(rows) < at_once:
            pair = waiting.pop()
            [row] = Canvas.after([pair.given], len(pair.target), predict.mask_id).rows
            decoding.prepare(predict, [row], cfg_scale=cfg_scale)
            rows[row] = pair
        for change in decoding.step(predict, list(rows)):
            row, pair = change.row, rows[change.row]
            right = change.tokens.tolist() == [pair.target[i] for i in (change.places - row.start).tolist()]
            if row.finished or not right:
                yield rows.pop(row), right
