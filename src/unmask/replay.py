"""Replays of decoding: what was written where, when and how sure, as JSON, as a web page and as a moving picture.

In:  a row (`unmask.canvas.Row`) after each step.
Out: a record that any program can play without a tokenizer (`Recorder.record`), and files made of it: FILE.json, the
     record; FILE.html, a page that plays it without network; FILE.gif.

A record is a dict that JSON can hold:

    format      1.
    rule, cache names. settings: what the caller says of the run, and the rule's own settings.
    special     ids whose text is a name (end of text, turn headers). tokens: id → its text by itself.
    start       the place where the answer begins. finished: "length", "stop", or null if it was interrupted.
    places      what stood before the first step, one [id, text, given] a place; id and text null where open.
    span        [first, last] place of the block that is filled first, or null if nobody knows.
    steps       one for each time that something was noted:
        step      steps done in all. block: the block that was worked on, from 0. passes: forward passes so far.
        grown     [[place, how many]]: open places put in before this place, one after another.
        reopened  [place]: written before, open now.
        written   [[place, id, text, confidence]]; confidence null: filled with the end after a stop, by no rule.
        respelt   [[place, text]]: places nothing was written to, which read otherwise beside their new neighbours.
        span      [first, last] place of the block at hand after this step; null when it was the last.

Changes come in this order, in the places' numbers at that moment. A letter cut in several tokens is the text of the
last of them and "" for the others; null for all as long as some are open.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import replay_page, report
from unmask.config import UserError
from unmask.replay_text import Spelling

if TYPE_CHECKING:
    from torch import Tensor

    from unmask.canvas import Row

FORMAT = 1

# ---------------------------------------------------------------------------------------------------------------------
# Watching a row


@dataclass(eq=False)
class Standing:
    """A row as it was when it was last looked at; tensors (length,) as in `Row`."""

    ids: Tensor
    free: Tensor
    open: Tensor
    written_at: Tensor
    step: int
    block: int

    @classmethod
    def of(cls, row: Row) -> Standing:
        return cls(
            row.ids.clone(), row.free.clone(), row.open.clone(), row.written_at.clone(), int(row.step), int(row.block)
        )

    def with_open(self, grown: list[list[int]], mask_id: int) -> Standing:
        """The same with open places put in."""
        import torch

        values = {name: getattr(self, name) for name in ("ids", "free", "open", "written_at")}
        new = {"ids": mask_id, "free": True, "open": True, "written_at": 0}
        for place, more in grown:
            for name, old in values.items():
                values[name] = torch.cat([old[:place], torch.full((more,), new[name], dtype=old.dtype), old[place:]])
        return dataclasses.replace(self, **values)


def insertions(old: Standing, row: Row) -> list[list[int]]:
    """Where a row that has grown got its new places: [[place, how many]] in the row's new numbers, ascending.

    The alignment of what stood with what stands that explains it with the fewest revisions. Among equal open places
    nothing tells which are new; then the last ones are.

    Raises:
        ValueError: what was given or written before is not there any more; rows never shrink.
    """
    count, more = len(old.ids), len(row.ids) - len(old.ids)
    was = list(zip(*(t.tolist() for t in (old.free, old.open, old.ids, old.written_at)), strict=True))
    now = list(zip(*(t.tolist() for t in (row.free, row.open, row.ids, row.written_at)), strict=True))

    # What stood at the beginning stands there still: the search below takes old times new places.
    same = next((i for i, (old_one, new_one) in enumerate(zip(was, now, strict=False)) if old_one != new_one), count)
    was, now, count = was[same:], now[same:], count - same

    def is_new(place: int) -> bool:
        free, is_open, _, at = now[place]
        return free and (is_open or at > old.step or at == 0)

    def revisions(before: int, place: int) -> float:
        (free, was_open, token, at), (_, _, new_token, new_at) = was[before], now[place]
        if free != now[place][0]:
            return math.inf
        if (token, at, was_open) == (new_token, new_at, now[place][1]):
            return 0
        return (0 if was_open else 1) if is_new(place) else math.inf

    best = [[math.inf] * (count + 1) for _ in range(max(more, -1) + 1)]  # [new places so far][old places so far]
    for new, before in itertools.product(range(len(best)), range(count + 1)):
        place = new + before - 1
        ways = [0.0] if place < 0 else []
        if new and is_new(place):
            ways.append(best[new - 1][before])
        if before:
            ways.append(best[new][before - 1] + revisions(before - 1, place))
        best[new][before] = min(ways, default=math.inf)
    if not best or best[-1][-1] == math.inf:
        raise ValueError(f"a row of {count} places became one of {len(row.ids)} that does not go on from it.")
    places, new, before = [], more, count
    while new:
        if is_new(new + before - 1) and best[new][before] == best[new - 1][before]:
            new -= 1
            places.append(same + new + before)
        else:
            before -= 1
    runs = itertools.groupby(enumerate(reversed(places)), key=lambda pair: pair[1] - pair[0])
    return [[run[0][1], len(run)] for run in (list(group) for _, group in runs)]


class Recorder:
    """Notes what happens to one row, to be replayed.

    Args:
        row: before its first step. settings: what a replay should say of the run, such as {"temperature": 0.0}.
    """

    def __init__(self, tokenizer: Any, row: Row, settings: dict[str, Any] | None = None) -> None:
        self.tokenizer, self.row, self.settings = tokenizer, row, dict(settings or {})
        self.seen = Standing.of(row)
        self.first, self.first_span = self.seen, span(row)
        self.noted: list[dict[str, Any]] = []

    def note(self, row: Row) -> None:
        """Note what changed since the last time; to be called after every step. Costs a few comparisons."""
        old, grown = self.seen, []
        if len(row.ids) != len(old.ids):
            grown = insertions(old, row)
            old = old.with_open(grown, row.mask_id)
        changed = (row.ids != old.ids) | (row.open != old.open) | (row.written_at > old.step)
        if not grown and row.step == old.step and not bool(changed.any()):
            return
        written = (changed & ~row.open).nonzero().flatten()
        sure = (None if math.isnan(p) else round(p, 6) for p in row.confidence[written].tolist())
        self.noted.append(
            {
                "step": int(row.step),
                "block": old.block,
                "passes": int(row.passes),
                "grown": grown,
                "reopened": (changed & row.open).nonzero().flatten().tolist(),
                "written": [list(w) for w in zip(written.tolist(), row.ids[written].tolist(), sure, strict=True)],
                "span": span(row),
            }
        )
        self.row, self.seen = row, Standing.of(row)

    def record(self) -> dict[str, Any]:
        """The record, in the format that the module's docstring explains."""
        spelling, first = Spelling(self.tokenizer), self.first
        ids: list[int | None] = [
            None if is_open else i for i, is_open in zip(first.ids.tolist(), first.open.tolist(), strict=True)
        ]
        texts: list[str | None] = [None] * len(ids)
        spelling.spell(ids, texts, range(len(ids)))
        places = [list(p) for p in zip(ids, texts, (~first.free).tolist(), strict=True)]
        steps = [spelling.step(entry, ids, texts) for entry in self.noted]
        rule, cache = self.row.rule, getattr(self.row, "cache", None)
        settings = self.settings | (dataclasses.asdict(rule.settings) if rule else {})
        return {
            "format": FORMAT,
            "rule": str(self.settings.get("rule") or name_of(rule)),
            "cache": str(self.settings.get("cache") or name_of(cache)),
            "settings": json.loads(json.dumps(settings, default=str), parse_constant=str),
            "special": sorted(spelling.special & set(spelling.own)),
            "tokens": {str(i): spelling.named(i) for i in sorted(spelling.own)},
            "start": int(self.row.start or 0),
            "finished": self.row.finished,
            "places": places,
            "span": self.first_span,
            "steps": steps,
        }


def span(row: Row) -> list[int] | None:
    """The first and the last place of the block at hand, if there is one."""
    if row.finished or row.block >= len(row.blocks) or not len(row.blocks[row.block]):
        return None
    places = row.blocks[row.block]
    return [int(places[0]), int(places[-1])]


def name_of(plug_in: Any) -> str:
    """The file name of a rule or a cache; none if there is none."""
    return type(plug_in).__module__.rpartition(".")[2] if plug_in is not None else "none"


# ---------------------------------------------------------------------------------------------------------------------
# Playing


@dataclass
class Cell:
    """One place at one moment. id: None where open. text: None where open, or where its letter is not whole.

    step: when it was written; frame: as which entry of `steps`, from 1. before: the (step, id, confidence) that stood
    here earlier.
    """

    id: int | None = None
    text: str | None = None
    given: bool = False
    step: int = 0
    frame: int = 0
    confidence: float | None = None
    before: list[tuple[int, int, float | None]] = field(default_factory=list)

    def put(self, token: int | None, text: str | None, step: int, frame: int, sure: float | None) -> None:
        if self.id is not None:
            self.before.append((self.step, self.id, self.confidence))
        self.id, self.text, self.step, self.frame, self.confidence = token, text, step, frame, sure


def states(record: dict[str, Any]) -> Iterator[list[Cell]]:
    """The canvas before the first step and after each. The list is one and the same, so look before the next comes.

    Raises:
        ValueError: a record that writes outside the canvas or on top of what is given.
    """
    cells = [Cell(token, text, bool(given)) for token, text, given in record["places"]]
    yield cells

    def at(place: int) -> Cell:
        if not 0 <= place < len(cells) or cells[place].given:
            raise ValueError(f"place {place} is not to be written.")
        return cells[place]

    for frame, entry in enumerate(record["steps"], 1):
        for place, more in entry["grown"]:
            cells[place:place] = [Cell() for _ in range(more)]
        for place in entry["reopened"]:
            at(place).put(None, None, 0, frame, None)
        for place, token, text, sure in entry["written"]:
            at(place).put(token, text, entry["step"], frame, sure)
        for place, text in entry["respelt"]:
            cells[place].text = text
        yield cells


# ---------------------------------------------------------------------------------------------------------------------
# Files


def target(path: str | Path) -> Path:
    """A path that a replay can be written to.

    Raises:
        UserError: an ending that says nothing, or no folder for it; worth asking before a long run.
    """
    path = Path(path)
    if path.suffix.lower() not in (".json", ".html", ".gif"):
        raise UserError(f"cannot tell what {str(path)!r} should be; name it FILE.html, FILE.gif or FILE.json.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'there is no such folder'}.")
    if path.suffix.lower() == ".gif":
        try:
            import PIL.Image  # noqa: F401
        except ImportError:
            raise UserError(f"{path.name} needs Pillow: pip install pillow; or name it FILE.html.") from None
    return path


def write(record: dict[str, Any], path: str | Path) -> Path:
    """A record as FILE.json, FILE.html or FILE.gif; UserError as for `target`, and where the disk refuses."""
    path = target(path)
    kind = path.suffix.lower()
    try:
        with report.written_aside(path) as aside:
            if kind == ".gif":
                from unmask import replay_gif

                replay_gif.draw(record, states(record), aside)
            else:
                text = replay_page.page(record) if kind == ".html" else plain(record)
                aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from None
    return path


def plain(record: dict[str, Any]) -> str:
    """JSON, one line a step, so that two replays can be compared with `diff`."""

    def dumps(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    head = [f"{dumps(key)}: {dumps(value)}" for key, value in record.items() if key != "steps"]
    steps = ",\n".join(dumps(step) for step in record["steps"])
    return "{\n" + ",\n".join([*head, f'"steps": [\n{steps}\n]']) + "\n}\n"


def read(path: str | Path) -> dict[str, Any]:
    """The record in FILE.json; UserError if it holds anything else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {str(path)!r}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # neither UTF-8 nor JSON
        raise UserError(f"{path} is not JSON; a replay is read from the FILE.json that --replay wrote.") from None
    number = found.get("format") if isinstance(found, dict) else None
    if number != FORMAT:
        what = f"a replay of format {number}" if number else "no replay"
        raise UserError(f"{path} holds {what}; expected format {FORMAT}, as --replay FILE.json writes it.")
    try:
        for _ in states(found):
            pass
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{path} is a broken replay ({type(error).__name__}: {error}).") from None
    return dict(found)
