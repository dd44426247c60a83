"""Sudoku: a task where the order of writing matters, made and judged without a model.

In:  a seed; how large a box is; how many cells are blank.
Out: puzzles with exactly one solution as conversation rows {instruction, output}, and whether an answer is right.

A puzzle is a text of its cells, row after row, "." where one is blank. An answer is right by the rules: every cell
filled, no digit twice in a row, column or box, and the givens kept. So it is never compared with the solution alone.

Left to right, the first blank has to be told from givens that may bear on it only through cells further on; who may
choose writes first what is certain. `by_singles` says how far certainty of the plainest kind goes.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.values import UserError

BLANK = "."
DIGITS = "123456789"
TRIES = 200  # grids tried for one puzzle with as many blanks as asked
MOST_CELLS = 36  # a grid of 81 cells has 1.2 million symmetries, one of 36 has 3,456

Row = dict[str, str]


@dataclass(frozen=True)
class Shape:
    """A grid whose boxes have `tall` × `wide` cells; it has as many rows, columns and boxes as a box has cells."""

    tall: int = 2
    wide: int = 3

    @property
    def size(self) -> int:
        """Digits, and cells in a row, a column, a box."""
        return self.tall * self.wide

    @property
    def cells(self) -> int:
        return self.size**2

    @property
    def digits(self) -> str:
        return DIGITS[: self.size]

    def units(self) -> tuple[tuple[int, ...], ...]:
        """The cells of each row, column and box."""
        return _units(self)

    def peers(self) -> tuple[tuple[int, ...], ...]:
        """For each cell the others that may not hold its digit."""
        return _peers(self)


@functools.cache
def _units(shape: Shape) -> tuple[tuple[int, ...], ...]:
    n, tall, wide = shape.size, shape.tall, shape.wide
    rows = [tuple(n * r + c for c in range(n)) for r in range(n)]
    columns = [tuple(n * r + c for r in range(n)) for c in range(n)]
    boxes = [
        tuple(n * (top + r) + left + c for r in range(tall) for c in range(wide))
        for top in range(0, n, tall)
        for left in range(0, n, wide)
    ]
    return (*rows, *columns, *boxes)


@functools.cache
def _peers(shape: Shape) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(sorted({other for unit in shape.units() if cell in unit for other in unit} - {cell}))
        for cell in range(shape.cells)
    )


# ---------------------------------------------------------------------------------------------------------------------
# The solver. Candidates of a cell are bits: bit d for the digit d + 1.


def read(puzzle: str, shape: Shape) -> list[int]:
    """The candidates of each cell as the puzzle's text has them: one bit, or all of them; UserError for other text."""
    if len(puzzle) != shape.cells or not set(puzzle) <= {*shape.digits, BLANK}:
        raise UserError(
            f"a puzzle is {shape.cells} characters out of {shape.digits} and {BLANK!r}, row after row; not {puzzle!r}."
        )
    every = (1 << shape.size) - 1
    return [every if sign == BLANK else 1 << shape.digits.index(sign) for sign in puzzle]


def _narrowed(found: list[int], shape: Shape, todo: list[int]) -> bool:
    """Strike the digits of decided cells `todo` from their peers, and so on; False at a contradiction."""
    peers = shape.peers()
    while todo:
        cell = todo.pop()
        digit = found[cell]
        for peer in peers[cell]:
            left = found[peer]
            if left & digit:
                left ^= digit
                if not left:
                    return False
                found[peer] = left
                if not left & (left - 1):
                    todo.append(peer)
    return True


def _hidden(found: list[int], shape: Shape) -> list[int] | None:
    """Decide cells that alone in a unit can hold a digit; which ones, or None where a digit has no cell left."""
    decided: list[int] = []
    every = (1 << shape.size) - 1
    for unit in shape.units():
        once = twice = 0
        for cell in unit:
            twice |= once & found[cell]
            once |= found[cell]
        if once != every:
            return None
        alone = once & ~twice
        for cell in unit:
            digit = found[cell] & alone
            if digit and found[cell] != digit:
                if digit & (digit - 1):
                    return None  # two digits want this cell alone
                found[cell] = digit
                decided.append(cell)
    return decided


def _singles(found: list[int], shape: Shape, todo: list[int]) -> bool:
    """Naked and hidden singles until nothing more follows; False at a contradiction."""
    while True:
        if not _narrowed(found, shape, todo):
            return False
        decided = _hidden(found, shape)
        if decided is None:
            return False
        if not decided:
            return True
        todo = decided


def _decided(found: list[int]) -> list[int]:
    return [cell for cell, left in enumerate(found) if not left & (left - 1)]


def _text(found: list[int], shape: Shape) -> str:
    return "".join(shape.digits[left.bit_length() - 1] if not left & (left - 1) else BLANK for left in found)


def _search(found: list[int], shape: Shape, todo: list[int], draw: random.Random | None = None) -> Iterator[list[int]]:
    """Every way to fill the grid: singles, then a guess at a cell with the fewest candidates."""
    if not _singles(found, shape, todo):
        return
    open_cells = [cell for cell, left in enumerate(found) if left & (left - 1)]
    if not open_cells:
        yield found
        return
    cell = min(open_cells, key=lambda c: found[c].bit_count())
    guesses = [1 << d for d in range(shape.size) if found[cell] >> d & 1]
    if draw:
        draw.shuffle(guesses)
    for guess in guesses:
        tried = found.copy()
        tried[cell] = guess
        yield from _search(tried, shape, [cell], draw)


def solutions(puzzle: str, shape: Shape, most: int = 2) -> list[str]:
    """The grids that complete a puzzle, `most` of them at most; two are enough to know that it is not one."""
    found = read(puzzle, shape)
    return [_text(one, shape) for one in itertools.islice(_search(found, shape, _decided(found)), most)]


def by_singles(puzzle: str, shape: Shape) -> str:
    """As much of a puzzle as follows by singles alone.

    Naked: a cell with one digit left. Hidden: a digit with one cell left in a row, column or box.
    """
    found = read(puzzle, shape)
    _singles(found, shape, _decided(found))
    return _text(found, shape)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def right(puzzle: str, answer: str, shape: Shape) -> bool:
    """Whether an answer, spaces around it aside, fills the grid by the rules and keeps the givens."""
    grid = answer.strip()
    if len(grid) != shape.cells:
        return False
    if any(given not in (BLANK, sign) for given, sign in zip(puzzle, grid, strict=True)):
        return False
    return all({grid[cell] for cell in unit} == set(shape.digits) for unit in shape.units())


def blanks_right(puzzle: str, answer: str, solution: str) -> tuple[int, int]:
    """(blank cells that hold the solution's digit, blank cells); of an answer that is too short what there is."""
    grid = answer.strip()
    blank = [cell for cell, sign in enumerate(puzzle) if sign == BLANK]
    return sum(grid[cell : cell + 1] == solution[cell] for cell in blank), len(blank)


# ---------------------------------------------------------------------------------------------------------------------
# Making


def grid(draw: random.Random, shape: Shape) -> str:
    """A filled grid."""
    found = [(1 << shape.size) - 1] * shape.cells
    first = list(range(shape.size))
    draw.shuffle(first)
    for cell, digit in enumerate(first):  # guesses are drawn from there on
        found[cell] = 1 << digit
    return _text(next(_search(found, shape, list(range(shape.size)), draw)), shape)


def puzzle(draw: random.Random, shape: Shape, blanks: int) -> tuple[str, str]:
    """(puzzle, solution) with `blanks` blank cells and one solution; UserError where none is found."""
    for _ in range(TRIES):
        solution = grid(draw, shape)
        made = _emptied(draw, solution, shape, blanks)
        if made:
            return made, solution
    raise UserError(
        f"no puzzle of {shape.cells} cells with {blanks} blanks and one solution in {TRIES} tries; ask for fewer."
    )


def _emptied(draw: random.Random, solution: str, shape: Shape, blanks: int) -> str | None:
    """The solution with cells blanked in a drawn order, none of which makes a second one possible; None if too few."""
    cells, order = list(solution), list(range(shape.cells))
    draw.shuffle(order)
    for cell in order:
        if cells.count(BLANK) == blanks:
            break
        digit, cells[cell] = cells[cell], BLANK
        if not _follows("".join(cells), cell, digit, shape):
            cells[cell] = digit
    return "".join(cells) if cells.count(BLANK) == blanks else None


def _follows(left: str, cell: int, digit: str, shape: Shape) -> bool:
    """Whether no solution of `left` has another digit in `cell`; `left` with that digit there has one solution."""
    found = read(left, shape)
    found[cell] ^= 1 << shape.digits.index(digit)
    return not any(_search(found, shape, _decided(found)))


# ---------------------------------------------------------------------------------------------------------------------
# The same puzzle in other clothes


@functools.cache
def moves(shape: Shape) -> NDArray[np.int64]:
    """(symmetries, cells) which cell comes where: bands, rows in a band, stacks and columns in a stack exchanged.

    Transposing is left out: it is no symmetry of boxes that are not square.
    """

    def lines(outer: int, inner: int) -> list[list[int]]:
        """Orders of outer · inner lines that keep each group of `inner` together."""
        return [
            [inner * group + one for group, ones in zip(groups, within, strict=True) for one in ones]
            for groups in itertools.permutations(range(outer))
            for within in itertools.product(itertools.permutations(range(inner)), repeat=outer)
        ]

    rows, columns = lines(shape.wide, shape.tall), lines(shape.tall, shape.wide)
    return np.array([[shape.size * r + c for r in down for c in across] for down in rows for across in columns])


def canonical(text: str, shape: Shape) -> str:
    """The same text for a puzzle whatever clothes it wears, another for every other puzzle."""
    if shape.cells > MOST_CELLS:
        raise UserError(f"a grid of {shape.cells} cells has too many symmetries to go through; at most {MOST_CELLS}.")
    # First the places of blanks, read as a binary number that is to be as great as can be (exact in float64), then the
    # digits, named by their first appearance: of those that are left, the smallest text.
    every = moves(shape)
    patterns = np.array([sign == BLANK for sign in text], dtype=np.float64)[every] @ 2.0 ** np.arange(shape.cells)
    best = every[patterns == patterns.max()].tolist()
    return min(_by_appearance([text[cell] for cell in move]) for move in best)


def _by_appearance(signs: list[str]) -> str:
    names = {BLANK: BLANK}
    return "".join(names.setdefault(sign, DIGITS[len(names) - 1]) for sign in signs)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def rows(seed: int, counts: Sequence[int], blanks: tuple[int, int], shape: Shape) -> list[list[Row]]:
    """So many rows of each part. No puzzle of one stands in another or comes again, in whatever clothes.

    Args:
        blanks: the fewest and the most blank cells; each number between them is as likely.
    """
    draw, seen = random.Random(seed), set[str]()
    parts: list[list[Row]] = []
    for count in counts:
        part: list[Row] = []
        for _ in range(100 * count):  # where puzzles run out, this does
            if len(part) == count:
                break
            asked, solution = puzzle(draw, shape, draw.randint(*blanks))
            same = canonical(asked, shape)
            if same not in seen:
                seen.add(same)
                part.append({"instruction": asked, "output": solution})
        if len(part) < count:
            raise UserError(
                f"there are fewer than {sum(counts)} different puzzles with {blanks[0]} to {blanks[1]} blanks."
            )
        parts.append(part)
    return parts
