"""What a terminal shows of an answer in the making: the canvas as it unmasks, or tokens as they are streamed.

In:  a row (`unmask.canvas.Row`) after each step.  Out: what stands on the screen; nothing is left of the canvas when it
is closed, so that the finished text can be printed in its place.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.text import Text

    from unmask.canvas import Row

BROKEN = "\N{REPLACEMENT CHARACTER}"
PATIENCE = 8  # broken letters in a row that may yet become whole: some tokenizers show one for each byte
OPEN, END = "░", "·"
FRAME = 1 / 30  # seconds: a small model takes steps faster than eyes and terminals can follow
SHARE = 70  # percent of the terminal's height: what was asked stays in sight
TAB = 8


def shown(text: str) -> str:
    """Text that a terminal can be trusted with: control characters as their pictures, `␛` for escape."""

    def one(c: str) -> str:
        if c < " " and c not in "\n\t":
            return chr(0x2400 + ord(c))
        return "␡" if c == "\x7f" else BROKEN if "\x80" <= c < "\xa0" else c  # ESC [ is also the one byte 9B

    return "".join(map(one, text))


class Speller:
    """Ids to text piece by piece. A letter cut in two waits for its other tokens; no blank between words is lost."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = self.read = 0  # ids[:read] are spelt; ids[start:read] are what the next ones are read after
        self.given = ""  # of the text of ids[start:], what was handed out

    def add(self, ids: Sequence[int]) -> str:
        """What can be spelt now, of these ids and those that waited."""
        self.ids += ids
        return self._next(PATIENCE)

    def rest(self) -> str:
        """What waits, whole or not."""
        return self._next(0)

    def _next(self, patience: int) -> str:
        new = text_of(self.tokenizer, self.ids[self.start :])[len(self.given) :]
        ready = new.rstrip(BROKEN)
        if len(new) - len(ready) > patience:
            ready = new
        self.given += ready
        if ready == new:
            self.start, self.read = self.read, len(self.ids)
            self.given = text_of(self.tokenizer, self.ids[self.start :])
        return ready


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Ids as text, without special tokens; blanks, lines and code as they were written."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pieces_of(tokenizer: Any, ids: Sequence[int], cuts: Sequence[int]) -> list[str]:
    """Ids as text in pieces, cut at these places.

    A piece is as it reads after what stands before it: some tokenizers drop the space of a text that begins with one. A
    letter cut in two reads otherwise on its own, so then the piece does.
    """
    texts = [text_of(tokenizer, ids[:cut]) for cut in cuts]
    return [
        text[len(before) :] if text.startswith(before) else text_of(tokenizer, ids[start:stop])
        for (start, stop), (before, text) in zip(itertools.pairwise(cuts), itertools.pairwise(texts), strict=True)
    ]


def before_any(text: str, strings: Sequence[str]) -> str:
    """The text before the first of some strings in it; all of it where there is none."""
    return text[: min((at for at in map(text.find, strings) if at >= 0), default=len(text))]


# ---------------------------------------------------------------------------------------------------------------------
# The canvas


class Piece(NamedTuple):
    style: str
    text: str
    at: int
    """The first place that it shows."""


class Screen:
    """The canvas on the terminal, drawn anew at each step: open places dim, fresh tokens bright.

    Args:
        start: the first place of the row that is shown. sure: colour tokens by how sure the model was of them.
    """

    COLOURS = ((0.3, "red"), (0.7, "yellow"), (2.0, "green"))

    def __init__(self, tokenizer: Any, start: int = 0, *, sure: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self.tokenizer, self.start, self.sure = tokenizer, start, sure
        self.special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special |= set(tokenizer.all_special_ids)
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.drawn = 0.0
        self.live.start()

    def draw(self, row: Row) -> None:
        """Show the row as it stands; left out when the last picture is younger than a frame."""
        now = time.monotonic()
        if now - self.drawn >= FRAME:
            self.drawn = now
            self.live.update(
                self.picture(row, self.console.width, max(4, self.console.height * SHARE // 100)), refresh=True
            )

    def close(self) -> None:
        """Take the canvas off the screen."""
        self.live.stop()

    def picture(self, row: Row, width: int, height: int) -> Text:
        """The row in at most `height` lines of `width` cells: if it has more, those around the block at work."""
        from rich.text import Text

        lines, at_work = folded(self.pieces(row), width, place_at_work(row))
        top = max(0, min(at_work - height // 3, len(lines) - height))
        above, below = top, len(lines) - top - height
        seen = lines[top : top + height]
        for index, hidden, where in ((0, above, "above"), (-1, below, "below")):
            if hidden > 0 and len(seen) > 2:
                seen[index] = [(f"… {hidden + 1} more lines {where}"[:width], "dim")]
        return Text("\n", no_wrap=True, overflow="crop").join(Text.assemble(*line) for line in seen)

    def pieces(self, row: Row) -> Iterator[Piece]:
        """What stands in the row, cut where the style changes."""
        ids, opens, free = row.ids.tolist(), row.open.tolist(), row.free.tolist()
        fresh, sure = (row.written_at == row.step).tolist(), row.confidence.tolist()

        def style(i: int) -> str:
            if opens[i] or ids[i] in self.special:
                return "dim"
            if not free[i]:
                return "bold"
            colour = next(name for limit, name in self.COLOURS if not sure[i] >= limit) if self.sure else ""
            return f"bold bright_{colour or 'green'}" if fresh[i] else colour

        def kind(i: int) -> str:
            return OPEN if opens[i] else END if ids[i] in self.special else ""

        for sign, run in itertools.groupby(range(self.start, len(ids)), key=kind):
            places = list(run)
            if sign:
                yield from (Piece("dim", sign, i) for i in places)
                continue
            speller, last = Speller(self.tokenizer), Piece("", "", 0)
            for look, part in itertools.groupby(places, key=style):
                some = list(part)
                last = Piece(look, "", some[0])
                yield last._replace(text=whole(speller.add([ids[i] for i in some])))
            yield last._replace(text=whole(speller.rest()))


def whole(text: str) -> str:
    """A letter of which only some bytes stand is not known yet, so it looks like an open place."""
    return shown(text).replace(BROKEN, OPEN)


def place_at_work(row: Row) -> int:
    """The first open place of the block that is being filled; the row's end when it is done."""
    if row.finished or row.block >= len(row.blocks):
        return len(row.ids)
    candidates = row.candidates()
    return int(candidates[0]) if len(candidates) else len(row.ids)


def folded(pieces: Iterator[Piece], width: int, place: int) -> tuple[list[list[tuple[str, str]]], int]:
    """Pieces in lines of at most `width` cells, cut as a terminal cuts them, and the number of the line of a place.

    Lines are lists of (text, style). A place that begins no piece stands in the last line.
    """
    from rich.cells import cell_len

    lines: list[list[tuple[str, str]]] = [[]]
    column, found = 0, None

    def put(text: str, style: str) -> None:
        line = lines[-1]
        if line and line[-1][1] == style:
            text = line.pop()[0] + text
        line.append((text, style))

    for piece in pieces:
        if piece.at == place:
            found = len(lines) - 1
        begun = ""
        for c in piece.text:
            size = min(TAB - column % TAB if c == "\t" else cell_len(c), width)
            if c == "\n" or column + size > width:
                put(begun, piece.style)
                lines.append([])
                begun, column = "", 0
            if c != "\n":
                begun += " " * size if c == "\t" else c
                column += size
        put(begun, piece.style)
    return lines, found if found is not None else len(lines) - 1


# ---------------------------------------------------------------------------------------------------------------------
# A stream


class Stream:
    """Tokens that are written left to right, printed as they come."""

    def __init__(self, tokenizer: Any) -> None:
        self.speller, self.given = Speller(tokenizer), 0

    def put(self, ids: Sequence[int]) -> None:
        """Print what is new in an answer, all of whose ids so far are given."""
        self._print(self.speller.add(ids[self.given :]))
        self.given = len(ids)

    def close(self) -> None:
        self._print(self.speller.rest())

    def _print(self, text: str) -> None:
        sys.stdout.write(shown(text))
        sys.stdout.flush()
