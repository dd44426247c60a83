"""The moving picture of a replay.

In:  a record and its states (`unmask.replay`).  Out: a GIF, one frame a step, with the page's colours.

Pillow, matplotlib (for its font) and rich are imported inside functions.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unmask import report
from unmask.replay_page import LEVELS, level
from unmask.screen import END, OPEN, TAB, Piece, shown

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

COLUMNS, LINES, FRAMES = 64, 30, 300
SIZE, WIDTH, HEIGHT, MARGIN = 18, 11, 26, 24  # of the letters, of a column, of a line, around everything; pixels
HEAD, FOOT = 66, 52
FIRST, HOLD, WHOLE = 800, 2000, 15_000  # milliseconds: of the first frame, of the last one, of all, if possible

PAPER, INK, SOFT, LINE = "#ffffff", "#1b1f24", "#636c76", "#d8dee4"
STYLES = {"given": (INK, PAPER), "filled": (INK, PAPER), "special": (SOFT, PAPER), "more": (SOFT, PAPER)}
for number, one in enumerate(LEVELS):
    STYLES |= {f"{number}": (INK, one.light), f"{number} fresh": (PAPER, one.fresh_light)}
BLOCKS = {"mask": "#e7eaee", "work": "#bcc5d0", "back": "#f0a884"}


class Frame(NamedTuple):
    """What is drawn: lines of (text, style), how many there are beyond them, and what stands above them."""

    lines: list[list[tuple[str, str]]]
    above: int
    below: int
    entry: int
    written: int
    free: int


def draw(record: dict[str, Any], states: Iterable[Sequence[Any]], path: Path) -> None:
    """Write the GIF; says so once when a letter has no glyph in any font of this computer."""
    frames = list(frames_of(record, states))
    high = max(len(frame.lines) for frame in frames)
    fonts = Fonts({c for frame in frames for line in frame.lines for text, _ in line for c in text})
    few = FewColours()
    pictures = (few.of(picture(record, frame, high, fonts)) for frame in frames)
    each = max(50, min(300, WHOLE // len(frames)))
    times = [max(FIRST, each), *[each] * (len(frames) - 2), HOLD] if len(frames) > 1 else [HOLD]
    next(pictures).save(
        path, format="GIF", save_all=True, append_images=pictures, duration=times, loop=0, optimize=False
    )


def frames_of(record: dict[str, Any], states: Iterable[Sequence[Any]]) -> Iterator[Frame]:
    """A frame a step; of a longer replay, `FRAMES` of them, evenly spread, the first and the last among them."""
    last = len(record["steps"])
    kept = sorted({round(i * last / (FRAMES - 1)) for i in range(FRAMES)}) if last >= FRAMES else range(last + 1)
    before = 0
    for number, cells in enumerate(states):
        if number not in kept:
            continue
        span = record["steps"][number - 1]["span"] if number else record["span"]
        at_work = len(cells)
        if span:
            at_work = next((i for i in range(span[0], span[1] + 1) if cells[i].id is None), span[0])
        special = set(record["special"])
        lines, line = wrapped(pieces(cells, special, span, before if number else -1), at_work)
        top = max(0, min(line - LINES // 3, len(lines) - LINES))
        free = [cell for cell in cells if not cell.given]
        written = sum(cell.confidence is not None for cell in free)
        yield Frame(lines[top : top + LINES], top, max(0, len(lines) - top - LINES), number, written, len(free))
        before = number


def pieces(cells: Sequence[Any], special: set[int], span: list[int] | None, before: int) -> Iterator[Piece]:
    """Each place with its style. What was written after frame `before` is fresh."""
    for i, cell in enumerate(cells):
        if cell.text is None:
            taken_back = cell.id is None and 0 <= before < cell.frame
            yield Piece("back" if taken_back else "work" if span and span[0] <= i <= span[1] else "mask", OPEN, i)
            continue
        sure = level(cell.confidence)
        fresh = " fresh" if 0 <= before < cell.frame else ""
        style = "given" if cell.given else "filled" if sure is None else f"{sure}{fresh}"
        if cell.id in special:
            style = style if fresh and sure is not None else "special"
        yield Piece(style, END if cell.id in special else shown(cell.text), i)


def wrapped(found: Iterable[Piece], place: int) -> tuple[list[list[tuple[str, str]]], int]:
    """Pieces in lines of `COLUMNS`, broken at blanks where there are some, and the number of a place's line."""
    lines: list[list[tuple[str, str]]] = [[]]  # of single letters
    at_work, column = None, 0
    for piece in found:
        if piece.at >= place and at_work is None:
            at_work = len(lines) - 1
        for c in piece.text:
            line, size = lines[-1], columns(c, piece.style)
            if c == "\n":
                lines.append([])
                column = 0
                continue
            if c == "\t":
                c, size = " ", min(TAB - column % TAB, COLUMNS - column)
                line += [(" ", piece.style)] * size
            elif column + size <= COLUMNS:
                line.append((c, piece.style))
            elif c == " ":
                continue
            else:
                blanks = [i for i, (letter, _) in enumerate(line) if letter == " " and i > COLUMNS // 2]
                cut = blanks[-1] + 1 if blanks and OPEN not in (c, line[-1][0]) else len(line)
                lines[-1:] = [line[:cut], [*line[cut:], (c, piece.style)]]
                column = sum(columns(*one) for one in line[cut:])
            column += size
    runs = [itertools.groupby(line, key=lambda one: one[1]) for line in lines]
    told = [[("".join(c for c, _ in run), style) for style, run in line] for line in runs]
    return told, len(lines) - 1 if at_work is None else at_work


def columns(letter: str, style: str) -> int:
    """A letter's width: those of Chinese and its neighbours take two columns, and so does an open place."""
    from rich.cells import cell_len

    return 2 if style in BLOCKS else cell_len(letter)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def picture(record: dict[str, Any], frame: Frame, high: int, fonts: Fonts) -> Image:
    """One frame in full colour."""
    from PIL import Image, ImageDraw

    size = (2 * MARGIN + COLUMNS * WIDTH, HEAD + high * HEIGHT + FOOT)
    image = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(image)
    entry = record["steps"][frame.entry - 1] if frame.entry else {"step": 0, "passes": 0}
    steps = record["steps"][-1]["step"] if record["steps"] else 0
    name = record["rule"] + (f" + {record['cache']} cache" if record["cache"] != "none" else "")
    told = f"step {entry['step']}/{steps}  {entry['passes']} passes  {frame.written}/{frame.free} tokens"
    fonts.put(pen, MARGIN, 14, name[: COLUMNS - len(told) - 2], INK)
    fonts.put(pen, size[0] - MARGIN - len(told) * WIDTH, 14, told, SOFT)
    wide = size[0] - 2 * MARGIN
    pen.rectangle((MARGIN, 44, MARGIN + wide, 48), LINE)
    if frame.entry:
        pen.rectangle((MARGIN, 44, MARGIN + wide * frame.entry // len(record["steps"]), 48), LEVELS[-1].fresh_light)
    for number, line in enumerate(frame.lines):
        x, y = MARGIN, HEAD + number * HEIGHT
        for text, style in line:
            x = run(pen, fonts, x, y, text, style)
    legend(pen, fonts, HEAD + high * HEIGHT + 14, frame)
    return image


def run(pen: ImageDraw, fonts: Fonts, x: int, y: int, text: str, style: str) -> int:
    """Text of one style; returns where the next begins."""
    if style in BLOCKS:
        for _ in text:
            pen.rounded_rectangle((x + 1, y + 4, x + 2 * WIDTH - 2, y + HEIGHT - 5), 3, BLOCKS[style])
            x += 2 * WIDTH
        return x
    ink, paper = STYLES[style]
    width = sum(columns(c, style) for c in text) * WIDTH
    if paper != PAPER and text:
        pen.rectangle((x, y + 1, x + width - 1, y + HEIGHT - 2), paper)
    fonts.put(pen, x, y + 2, text, ink)
    return x + width


def legend(pen: ImageDraw, fonts: Fonts, y: int, frame: Frame) -> None:
    """What the colours mean, and how much is out of sight."""
    fonts.put(pen, MARGIN, y + 2, "confidence", SOFT)
    x, low = MARGIN + 11 * WIDTH, 0.0
    for number, one in enumerate(LEVELS):
        x = run(pen, fonts, x, y, f" {low:.1f}- ", str(number))
        low = one.below
    run(pen, fonts, x + WIDTH, y, " new ", f"{len(LEVELS) - 1} fresh")
    if frame.above or frame.below:
        told = f"+{frame.above + frame.below} lines"
        fonts.put(pen, MARGIN + (COLUMNS - len(told)) * WIDTH, y + 2, told, SOFT)


class FewColours:
    """Pictures in the 256 colours of a GIF: each ink on its paper, in nine steps of smoothing, the same in all frames.

    Pillow's own `quantize` takes a neighbour of the nearest colour, so that white was grey (seen with 13.0).
    """

    def __init__(self) -> None:
        import numpy
        from PIL import ImageColor

        pairs = [*STYLES.values(), *((colour, PAPER) for colour in (LINE, *BLOCKS.values(), LEVELS[-1].fresh_light))]
        found: dict[tuple[int, ...], None] = {}
        for ink, paper in pairs:
            a, b = ImageColor.getrgb(ink), ImageColor.getrgb(paper)
            for part in range(9):
                found[tuple(round(u + (v - u) * part / 8) for u, v in zip(a, b, strict=True))] = None
        self.colours = numpy.array(list(found)[:256], dtype=numpy.int32)
        self.index = numpy.full(1 << 24, -1, dtype=numpy.int16)  # of the nearest one, by red, green, blue; -1: not yet

    def of(self, picture: Image) -> Image:
        """The picture with a palette."""
        import numpy
        from PIL import Image

        parts = numpy.asarray(picture).astype(numpy.int32)
        packed = (parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2]
        for colour in numpy.unique(packed[self.index[packed] < 0]):
            distance = self.colours - [colour >> 16, colour >> 8 & 255, colour & 255]
            self.index[colour] = (distance**2).sum(1).argmin()
        image = Image.fromarray(self.index[packed].astype(numpy.uint8))
        image.putpalette(self.colours.astype(numpy.uint8).tobytes())
        return image


# ---------------------------------------------------------------------------------------------------------------------
# Fonts


class Fonts:
    """DejaVu Sans Mono, which matplotlib brings, and for letters that it lacks another font of this computer."""

    def __init__(self, letters: set[str]) -> None:
        import matplotlib

        main = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
        self.has = glyphs(str(main))
        missing = {c for c in letters if ord(c) not in self.has and c.isprintable()}
        self.main, self.other = font(str(main)), None
        self.others: set[int] = set()
        if missing:
            path, left = best_for(missing)
            if path:
                self.other, self.others = font(path), {ord(c) for c in missing - left}
            if left:
                some = "".join(sorted(left)[:8])
                report.say(
                    f"no font of this computer has {len(left)} of the letters ({some}), so the GIF shows boxes; "
                    "install one that has (Noto Sans Mono CJK for Chinese), or make an .html."
                )

    def put(self, pen: ImageDraw, x: int, y: int, text: str, ink: str) -> None:
        """Write on the grid of columns."""
        for strange, letters in itertools.groupby(text, key=lambda c: not c.isascii()):
            part = "".join(letters)
            for piece in part if strange else [part]:
                other = self.other if ord(piece[0]) in self.others else None
                pen.text((x, y), piece, ink, font=other or self.main)
                x += sum(columns(c, "") for c in piece) * WIDTH


@functools.cache
def font(path: str) -> FreeTypeFont:
    from PIL import ImageFont

    # Basic layout keeps to whole pixels, so that columns meet.
    return ImageFont.truetype(path, SIZE, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def glyphs(path: str) -> frozenset[int]:
    """Code points that a font has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a broken font among the computer's is nobody's fault here
        return frozenset()


def best_for(letters: set[str]) -> tuple[str | None, set[str]]:
    """The font that has most of the letters, those made for code and for Chinese asked first, and what it lacks."""
    from matplotlib import font_manager

    def order(entry: Any) -> tuple[bool, bool, str]:
        return "CJK" not in entry.name, "Mono" not in entry.name, entry.fname

    wanted, best, path = {ord(c) for c in letters}, -math.inf, None
    for entry in sorted(font_manager.fontManager.ttflist, key=order):
        # "Last Resort", which matplotlib brings, has a box with a sign in it for every letter there is.
        fits = entry.style == "normal" and "Last Resort" not in entry.name
        has = len(wanted & glyphs(entry.fname)) if fits else 0
        if has > max(best, 0):
            best, path = has, entry.fname
        if best == len(wanted):
            break
    return path, {c for c in letters if not path or ord(c) not in glyphs(path)}
