"""The canvas plans every open place once, holds to what is given, and refuses what a rule may not do."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.canvas import Canvas, Choice, Row, places_per_step, steps_per_block
from unmask.config import UserError
from unmask.options import Options

MASK = 99
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(SIZES, st.integers(1, 300))
def test_blocks_get_all_the_steps_that_they_can_use(sizes, steps):
    plan = steps_per_block(steps, sizes)
    assert sum(plan) == min(max(steps, len(sizes)), sum(sizes))
    assert all(1 <= n <= size for n, size in zip(plan, sizes, strict=True))


@given(SIZES, st.integers(1, 300))
def test_no_step_could_be_moved_to_a_fuller_block(sizes, steps):
    plan = steps_per_block(steps, sizes)
    load = [size / n for size, n in zip(sizes, plan, strict=True)]
    for a, (size, n) in enumerate(zip(sizes, plan, strict=True)):
        if n > 1:
            assert max(load) <= size / (n - 1) + 1e-9, (a, plan)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 40))
def test_equal_blocks_get_equal_steps_where_they_divide(size, blocks, each):
    assert steps_per_block(blocks * each, [size] * blocks) == [min(each, size)] * blocks


@given(st.integers(1, 200), st.data())
def test_a_step_writes_the_official_share(places, data):
    steps = data.draw(st.integers(1, places))
    shares = places_per_step(places, steps)
    assert sum(shares) == places
    assert shares == [places // steps + (i < places % steps) for i in range(steps)]
    assert min(shares) >= 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("block_size", -3), ("temperature", -0.5), ("temperature", math.nan), ("cfg_scale", math.inf)],
)
def test_an_option_out_of_range_is_named(setting, value):
    with pytest.raises(UserError, match=f"--{setting} is {value}; it must be"):
        Options(**{setting: value}).check()


def a_row(text, block_size=None, revises=False, limit=100):
    row = Canvas.of([text], MASK).rows[0]
    row.rule = SimpleNamespace(enter=lambda row: None, revises=revises, limit=lambda row: limit)
    row.plan(None, block_size)
    return row


def choice(places, tokens, **more):
    return Choice(
        torch.tensor(places, dtype=torch.long), torch.tensor(tokens, dtype=torch.long), torch.ones(len(places)), **more
    )


@given(st.lists(st.one_of(st.none(), st.integers(0, MASK)), max_size=30), st.one_of(st.none(), st.integers(1, 9)))
def test_open_places_are_those_left_open_whatever_ids_are_given(text, block_size):
    row = a_row(text, block_size)
    wanted = [i for i, token in enumerate(text) if token is None]
    assert row.open.nonzero().flatten().tolist() == wanted
    assert [p for block in row.blocks for p in block.tolist()] == wanted
    assert all(len(b) == block_size for b in row.blocks[:-1])
    assert [t for t, f in zip(row.ids.tolist(), row.free.tolist(), strict=True) if not f] == [
        t for t in text if t is not None
    ]
    assert (row.finished == "length") == (not wanted)


def test_a_given_mask_is_no_open_place():
    assert a_row([MASK, None, MASK]).open.tolist() == [False, True, False]


def test_blocks_go_across_gaps():
    row = a_row([None, 1, None, None, 2, 3, None], block_size=2)
    assert [b.tolist() for b in row.blocks] == [[0, 2], [3, 6]]


def test_writing_keeps_step_and_confidence_and_goes_on_to_the_next_block():
    row = a_row([5, None, None, None], block_size=2)
    row.write(choice([2], [7]))
    assert (row.block, row.candidates().tolist()) == (0, [1])
    row.write(choice([1], [6]))
    assert (row.block, row.candidates().tolist()) == (1, [3])
    row.write(choice([3], [8]))
    assert row.finished == "length"
    assert row.ids.tolist() == [5, 6, 7, 8]
    assert row.written_at.tolist() == [0, 2, 1, 3]
    assert row.confidence[0].isnan()
    assert row.confidence[1:].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (choice([0], [7]), "not its to write"),
        (choice([1], [MASK]), "wrote the mask token"),
        (choice([], []), "wrote nothing"),
        (choice([1], [7], reopen=torch.tensor([2])), "only a rule with `revises = True`"),
        (choice([1, 2], [7, 7], stay=True), "only a rule with `revises = True`"),
    ],
)
def test_a_rule_that_oversteps_is_stopped(bad, says):
    row = a_row([5, None, None])
    with pytest.raises(UserError, match=says):
        row.write(bad)
    assert row.ids.tolist() == [5, MASK, MASK]


def test_only_a_rule_that_revises_may_write_twice_or_reopen():
    row = a_row([None, None, None])
    row.write(choice([0], [7]))
    for again in (choice([0], [8]), choice([1], [8], reopen=torch.tensor([0])), choice([1, 2], [8, 8], stay=True)):
        with pytest.raises(UserError, match="revises"):
            row.write(again)
    row = a_row([None, None, None], revises=True)
    row.write(choice([0], [7]))
    row.write(choice([0, 1], [8, 8]))
    row.write(choice([2], [8], reopen=torch.tensor([0])))
    assert row.ids.tolist() == [MASK, 8, 8]
    assert row.written_at.tolist() == [0, 2, 3]
    assert row.finished is None


def test_not_even_a_rule_that_revises_reopens_what_is_given():
    row = a_row([5, None], revises=True)
    with pytest.raises(UserError, match="not its to write"):
        row.write(choice([1], [7], reopen=torch.tensor([0])))


def test_a_rule_that_never_ends_is_stopped():
    row = a_row([None, None], revises=True, limit=3)
    for _ in range(2):
        row.write(choice([0], [7], reopen=torch.tensor([0])))
    with pytest.raises(UserError, match="not done after 3 steps"):
        row.write(choice([0], [7], reopen=torch.tensor([0])))


def test_a_rule_that_stays_forever_is_stopped():
    row = a_row([None, None], revises=True, limit=3)
    for _ in range(2):
        row.write(choice([0, 1], [7, 7], stay=True))
    with pytest.raises(UserError, match="not done after 3 steps"):
        row.write(choice([0, 1], [7, 7], stay=True))


def test_what_is_reopened_in_an_earlier_block_is_filled_before_the_end():
    row = a_row([None] * 4, block_size=2, revises=True)
    row.write(choice([0, 1], [7, 7]))
    row.write(choice([2, 3], [7, 7], reopen=torch.tensor([0])))
    assert row.finished is None
    assert row.candidates().tolist() == [0]
    row.write(choice([0], [8]))
    assert (row.finished, row.ids.tolist()) == ("length", [8, 7, 7, 7])


def test_a_block_that_is_full_before_its_turn_is_passed_over():
    row = a_row([None] * 6, block_size=2)
    row.write(choice([0, 2, 3], [7, 7, 7]))
    row.write(choice([1], [7]))
    assert row.candidates().tolist() == [4, 5]


def test_a_rows_random_numbers_depend_on_seed_number_and_use_alone():
    def drawn(seed, number, use):
        row = Row(torch.tensor([1]), torch.tensor([True]), MASK, number, seed=seed)
        row.generator("another use")
        return torch.rand(4, generator=row.generator(use)).tolist()

    assert drawn(1, 2, "tokens") == drawn(1, 2, "tokens")
    different = [drawn(1, 2, "tokens"), drawn(2, 1, "tokens"), drawn(1, 3, "tokens"), drawn(1, 2, "places")]
    assert len({tuple(d) for d in different}) == 4


def test_a_model_without_a_mask_token_is_refused():
    with pytest.raises(UserError, match="mask"):
        Canvas.after([[1, 2]], 3, None)
