"""Sudoku: every puzzle has one solution, answers are judged by the rules, and no puzzle comes in two parts."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import puzzles
from unmask.puzzles import BLANK, Shape
from unmask.values import UserError

SEEDS = st.integers(0, 2**32 - 1)
SIX, FOUR = Shape(2, 3), Shape(2, 2)


def brute_force(text: str, tall: int, wide: int, most: int) -> list[str]:
    """The completions of a puzzle: each digit tried in each cell in order; rows, columns and boxes by a formula."""
    n, cells, found = tall * wide, list(text), []

    def fits(cell: int, digit: str) -> bool:
        r, c = divmod(cell, n)
        for other, sign in enumerate(cells):
            row, column = divmod(other, n)
            near = row == r or column == c or (row // tall == r // tall and column // wide == c // wide)
            if near and sign == digit and other != cell:
                return False
        return True

    def go(cell: int) -> None:
        if len(found) == most:
            return
        if cell == n * n:
            found.append("".join(cells))
        elif cells[cell] != BLANK:
            go(cell + 1)
        else:
            for digit in "123456789"[:n]:
                if fits(cell, digit):
                    cells[cell] = digit
                    go(cell + 1)
                    cells[cell] = BLANK

    go(0)
    return found


@settings(max_examples=40)
@given(SEEDS, st.one_of(st.tuples(st.just(SIX), st.integers(0, 24)), st.tuples(st.just(FOUR), st.integers(0, 10))))
def test_a_puzzle_has_one_solution_and_as_many_blanks_as_asked(seed, asked):
    shape, blanks = asked
    puzzle, solution = puzzles.puzzle(random.Random(seed), shape, blanks)
    assert puzzle.count(BLANK) == blanks
    assert brute_force(puzzle, shape.tall, shape.wide, 2) == [solution]


@settings(max_examples=20)
@given(SEEDS, st.integers(0, 24), st.integers(4, 10))
def test_the_solver_finds_what_brute_force_finds(seed, blanks, more):
    draw = random.Random(seed)
    puzzle, _ = puzzles.puzzle(draw, SIX, blanks)
    given_away = [cell for cell, sign in enumerate(puzzle) if sign != BLANK]
    fewer = list(puzzle)
    for cell in draw.sample(given_away, min(len(given_away), more // 4)):
        fewer[cell] = BLANK
    for text in (puzzle, "".join(fewer)):
        assert sorted(puzzles.solutions(text, SIX, 10**6)) == sorted(brute_force(text, 2, 3, 10**6))


def test_there_are_as_many_grids_of_sixteen_cells_as_is_known():
    """288: OEIS A107739, n = 2."""
    found = puzzles.solutions(BLANK * 16, FOUR, 1000)
    assert len(set(found)) == len(found) == 288


@settings(max_examples=15)
@given(SEEDS, st.integers(1, 24))
def test_the_solution_is_right_and_every_change_of_one_cell_is_wrong(seed, blanks):
    puzzle, solution = puzzles.puzzle(random.Random(seed), SIX, blanks)
    assert puzzles.right(puzzle, solution, SIX)
    assert puzzles.right(puzzle, f" {solution}\n", SIX)
    for cell, sign in itertools.product(range(SIX.cells), SIX.digits + BLANK + "7x"):
        changed = solution[:cell] + sign + solution[cell + 1 :]
        assert puzzles.right(puzzle, changed, SIX) == (changed == solution)
    for other in ("", solution[:-1], solution + "1", puzzle):
        assert not puzzles.right(puzzle, other, SIX)


def test_any_completion_that_keeps_the_givens_is_right():
    first, second = puzzles.solutions("1" + BLANK * 35, SIX)
    assert first != second
    assert puzzles.right("1" + BLANK * 35, first, SIX)
    assert puzzles.right("1" + BLANK * 35, second, SIX)
    assert not puzzles.right("2" + BLANK * 35, first, SIX)


def test_blank_cells_are_counted_and_givens_are_not():
    assert puzzles.blanks_right("1..4", "1234", "1234") == (2, 2)
    assert puzzles.blanks_right("1..4", "9239", "1234") == (2, 2)
    assert puzzles.blanks_right("1..4", " 129", "1234") == (1, 2)
    assert puzzles.blanks_right("1..4", "", "1234") == (0, 2)


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 25))
def test_singles_tell_nothing_that_is_wrong(seed, blanks):
    puzzle, solution = puzzles.puzzle(random.Random(seed), SIX, blanks)
    told = puzzles.by_singles(puzzle, SIX)
    assert all(sign in (BLANK, right) for sign, right in zip(told, solution, strict=True))
    assert all(sign == given for sign, given in zip(told, puzzle, strict=True) if given != BLANK)


def test_singles_are_the_plainest_certainty_and_not_all_there_is():
    assert puzzles.by_singles("123." + BLANK * 12, FOUR)[:4] == "1234"
    assert puzzles.by_singles(BLANK * 36, SIX) == BLANK * 36
    made = [puzzles.puzzle(random.Random(seed), SIX, 25)[0] for seed in range(100)]
    stuck = [puzzle for puzzle in made if BLANK in puzzles.by_singles(puzzle, SIX)]
    assert 0 < len(stuck) < len(made) / 2


# ---------------------------------------------------------------------------------------------------------------------
# One puzzle in many clothes


def test_a_grid_has_3456_symmetries_and_each_of_them_keeps_the_rules():
    moves = puzzles.moves(SIX)
    assert len({tuple(move) for move in moves.tolist()}) == len(moves) == 48 * 72
    grid = puzzles.grid(random.Random(0), SIX)
    for move in moves[::7].tolist():
        assert puzzles.right(BLANK * 36, "".join(grid[cell] for cell in move), SIX)


def dressed(draw: random.Random, text: str, shape: Shape) -> str:
    move = draw.choice(puzzles.moves(shape).tolist())
    names = draw.sample(shape.digits, shape.size)
    return "".join(text[cell] for cell in move).translate(str.maketrans(shape.digits, "".join(names)))


@settings(max_examples=30)
@given(SEEDS, st.integers(0, 24))
def test_clothes_do_not_change_the_canonical_text(seed, blanks):
    draw = random.Random(seed)
    puzzle, _ = puzzles.puzzle(draw, SIX, blanks)
    assert puzzles.canonical(dressed(draw, puzzle, SIX), SIX) == puzzles.canonical(puzzle, SIX)


@settings(max_examples=20)
@given(SEEDS)
def test_the_canonical_text_is_equal_only_where_some_clothes_make_puzzles_equal(seed):
    draw = random.Random(seed)
    first, second = (puzzles.puzzle(draw, FOUR, 10)[0] for _ in range(2))
    renamings = [str.maketrans(FOUR.digits, "".join(names)) for names in itertools.permutations(FOUR.digits)]
    moved = ["".join(first[cell] for cell in move) for move in puzzles.moves(FOUR).tolist()]
    same = any(text.translate(names) == second for text in moved for names in renamings)
    assert (puzzles.canonical(first, FOUR) == puzzles.canonical(second, FOUR)) == same


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@settings(max_examples=10)
@given(SEEDS)
def test_no_puzzle_of_one_part_stands_in_another_or_comes_again(seed):
    parts = puzzles.rows(seed, [30, 20], (8, 24), SIX)
    assert [len(part) for part in parts] == [30, 20]
    asked = [row["instruction"] for part in parts for row in part]
    assert len({*asked}) == len({puzzles.canonical(puzzle, SIX) for puzzle in asked}) == 50
    for row in (row for part in parts for row in part):
        assert 8 <= row["instruction"].count(BLANK) <= 24
        assert puzzles.right(row["instruction"], row["output"], SIX)


def test_the_same_seed_gives_the_same_rows():
    assert puzzles.rows(3, [20], (8, 20), SIX) == puzzles.rows(3, [20], (8, 20), SIX)
    assert puzzles.rows(3, [20], (8, 20), SIX) != puzzles.rows(4, [20], (8, 20), SIX)


def test_what_cannot_be_is_said_in_a_line():
    draw = random.Random(0)
    with pytest.raises(UserError, match="no puzzle of 16 cells with 13 blanks"):
        puzzles.puzzle(draw, FOUR, 13)  # four givens are the fewest there are
    with pytest.raises(UserError, match="fewer than 5 different puzzles"):
        puzzles.rows(
            0, [5], (0, 0), FOUR
        )  # of 288 filled grids there are only so many that are not one another's clothes
    with pytest.raises(UserError, match="a puzzle is 16 characters out of 1234"):
        puzzles.solutions("12345", FOUR)
    with pytest.raises(UserError, match="too many symmetries"):
        puzzles.canonical(BLANK * 81, Shape(3, 3))
