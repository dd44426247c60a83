"""Every row of an epoch gets one place; how many processes and micro-batches share a step changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import batches as batches_file
from unmask import objectives
from unmask.batches import FILLER, Collate, Loader, Places, Seated, Split, Stream, Ticket, grouped, order, shares
from unmask.tail import Tail

MASK = 9
SPLITS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


class Rows:
    """A data set of rows with one column, as `datasets` answers."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, wanted):
        return {"input_ids": [self.rows[i] for i in wanted]}


class Endless:
    """A stream of rows, as `datasets` gives them."""

    def __init__(self, rows):
        self.rows, self.epochs = rows, []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter([{"input_ids": row} for row in self.rows])


def steps(rows, split, epoch=0, shuffle=True, lengths=None, by_length=False):
    """The tickets of each optimiser step, over all processes, without fillers."""
    per_process = []
    for process in range(split.processes):
        places = Places(
            rows, split._replace(process=process), seed=1, shuffle=shuffle, lengths=lengths, by_length=by_length
        )
        places.set_epoch(epoch)
        batches = list(places)
        assert len(batches) == len(places)
        per_process.append(batches)
    assert len({len(b) for b in per_process}) == 1
    assert len({tuple(len(b) for b in batches) for batches in per_process}) == 1  # equal work for every process
    found = []
    for start in range(0, len(per_process[0]), split.micro):
        chunk = [t for b in per_process for micro in b[start : start + split.micro] for t in micro]
        found.append({t for t in chunk if t.row != FILLER})
    return found


@given(st.integers(1, 60), SPLITS)
def test_every_row_is_seen_once_an_epoch(rows, shape):
    split = Split(*shape)
    seen = [t.row for step in steps(rows, split) for t in step]
    assert sorted(seen) == list(range(rows))


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_a_step_has_the_same_rows_at_the_same_places_however_it_is_shared(rows, a, b, c, epoch):
    whole = steps(rows, Split(a * b * c), epoch)
    for shared in (Split(1, a * b * c), Split(a, b * c), Split(a, b, c), Split(1, a * b, c), Split(a * b, 1, c)):
        assert steps(rows, shared, epoch) == whole


@given(st.integers(1, 60), SPLITS, st.booleans(), st.integers(0, 2))
def test_a_ticket_knows_the_longest_row_of_its_whole_step(rows, shape, by_length, epoch):
    lengths = np.random.default_rng(rows).integers(1, 100, rows)
    for step in steps(rows, Split(*shape), epoch, lengths=lengths, by_length=by_length):
        assert {t.longest for t in step} == {max(lengths[t.row] for t in step)}


@pytest.mark.parametrize("list_type", ["list", "large_list"])
def test_lengths_are_read_without_the_ids_and_in_the_order_of_the_rows(list_type):
    import datasets

    rows = [[1] * n for n in (3, 1, 4, 1, 5, 9, 2, 6)]
    kind = {"list": datasets.List, "large_list": datasets.LargeList}[list_type](datasets.Value("int32"))
    features = datasets.Features({"input_ids": kind, "prompt_len": datasets.Value("int64")})
    whole = datasets.Dataset.from_dict({"input_ids": rows, "prompt_len": [0] * 8}, features=features)
    assert batches_file.lengths(whole).tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    assert batches_file.lengths(whole.select([5, 0, 0])).tolist() == [9, 3, 3]
    assert batches_file.lengths(whole.with_format("numpy").shuffle(seed=1).sort("prompt_len")).sum() == 31
    assert batches_file.lengths(whole.select([])).tolist() == []


def test_epochs_differ_in_order_and_runs_do_not():
    assert (order(50, 1, 0, True) == order(50, 1, 0, True)).all()
    assert (order(50, 1, 0, True) != order(50, 1, 1, True)).any()
    assert (order(50, 1, 3, False) == np.arange(50)).all()


@given(st.integers(1, 400), st.integers(1, 8))
def test_grouping_by_length_keeps_every_row(rows, step):
    lengths = np.random.default_rng(rows).integers(1, 100, rows)
    found = grouped(order(rows, 0, 0, True), lengths, step, 0, 0)
    assert sorted(found) == list(range(rows))


def test_grouping_by_length_puts_like_rows_into_a_step():
    lengths = np.random.default_rng(0).integers(1, 1000, 2000)
    plain = order(2000, 0, 0, True)
    spread = [np.ptp(lengths[f].reshape(-1, 8), axis=1).mean() for f in (plain, grouped(plain, lengths, 8, 0, 0))]
    assert spread[1] < spread[0] / 10


@pytest.fixture
def objective():
    return objectives.load("masked", {}, MASK)


@given(data=st.data(), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6))
@settings(max_examples=40)
def test_a_rows_noise_does_not_depend_on_its_batch(data, lengths):
    objective = objectives.load("masked", {}, MASK)
    collate = Collate(objective, seed=3, pad_id=0, random_length_ratio=0.5)
    rows = [({"input_ids": list(range(n))}, Ticket(i, 100 + i, 2)) for i, n in enumerate(lengths)]
    together = collate(rows)
    i = data.draw(st.integers(0, len(rows) - 1))
    alone = collate([rows[i]])
    n = alone["input_ids"].shape[1]
    for key in ("input_ids", "masked", "weight", "supervised"):
        assert torch.equal(together[key][i, :n], alone[key][0])
    assert not together["supervised"][i, n:].any()


def test_the_share_of_rows_cut_to_a_random_length_is_the_ratio(objective):
    collate = Collate(objective, seed=0, pad_id=0, random_length_ratio=0.1)
    lengths = [collate([({"input_ids": [1] * 50}, Ticket(0, p, 0))])["input_ids"].shape[1] for p in range(2000)]
    cut = [n for n in lengths if n < 50]
    assert 0.07 < len(cut) / 2000 < 0.13
    assert 15 < np.mean(cut) < 35


def test_full_rows_need_no_attention_mask(objective):
    collate = Collate(objective, seed=0, pad_id=0)
    assert "attention" not in collate(
        [({"input_ids": [1, 2]}, Ticket(0, 0, 0)), ({"input_ids": [3, 4]}, Ticket(1, 1, 0))]
    )


def test_filler_rows_bear_no_loss(objective):
    batch = Collate(objective, seed=0, pad_id=0)([({"input_ids": [1, 2, 3]}, Ticket(FILLER, 0, 0))])
    assert not batch["supervised"].any()
    assert objective.count(batch) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_the_batches(objective, workers):
    rows = Rows([[i, i + 1, i + 2] for i in range(11)])
    collate = Collate(objective, seed=0, pad_id=0)

    def batches(n):
        places = Places(len(rows), Split(2, 2), seed=5)
        return list(Loader(Seated(rows), batch_sampler=places, collate_fn=collate, num_workers=n))

    for a, b in zip(batches(0), batches(workers), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def first(stream, n, workers=0):
    loader = iter(Loader(stream, batch_size=None, num_workers=workers))
    return [next(loader) for _ in range(n)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_change_a_streams_batches(objective, workers):
    collate = Collate(objective, seed=0, pad_id=0)
    made = [first(Stream(Endless([[i] * 4 for i in range(7)]), Split(2, 2), collate), 9, w) for w in (0, workers)]
    for a, b in zip(*made, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_stream_gives_the_same_batches_as_a_data_set_in_file_order(objective):
    rows = [[i, i, i] for i in range(10)]
    collate = Collate(objective, seed=0, pad_id=0)
    places = Places(10, Split(2, 2), seed=0, shuffle=False)
    of_data_set = []
    for epoch in range(2):
        places.set_epoch(epoch)
        batches = [collate(Seated(Rows(rows)).__getitems__(t)) for t in places]
        # a stream has as many micro-batches in each step; the last step's missing ones are empty
        of_data_set += batches + [None] * (-len(batches) % 2)
    for ours, theirs in zip(first(Stream(Endless(rows), Split(2, 2), collate), 12), of_data_set, strict=True):
        if theirs is None:
            assert not ours["supervised"].any()
        else:
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2)])
def test_a_stream_and_a_data_set_pad_an_answer_to_the_longest_of_the_step_however_it_is_shared(objective, shape):
    from tiny import END, conversation

    rows = [conversation(n) for n in (3, 9, 4, 2, 6, 1, 5, 3)]
    for process in range(shape[2]):
        split = Split(*shape, process)
        collate = Collate(objective, seed=0, pad_id=END, tail=Tail.parse("step"), end_id=END)
        of_stream = first(Stream(rows, split, collate), split.micro)
        places = Places(8, split, seed=0, shuffle=False, lengths=[len(row["input_ids"]) for row in rows])
        of_data_set = [collate([(rows[t.row], t) for t in tickets]) for tickets in places]
        for batches in (of_stream, of_data_set):
            assert {batch["input_ids"].shape[1] for batch in batches} == {9}
            assert not any("attention" in batch for batch in batches)


@pytest.mark.parametrize("rows", [7, 8, 9])
def test_a_streams_processes_share_each_step(objective, rows):
    collate = Collate(objective, seed=0, pad_id=0)
    data = [[i, i] for i in range(rows)]
    places = []
    for process in range(2):
        batches = first(Stream(Endless(data), Split(2, 2, 2, process), collate), 4)
        places.append([b["place"].tolist() for b in batches])
    seen = sorted(p for process in places for batch in process for p in batch if p != FILLER)
    assert seen[:rows] == sorted(seen)[:rows]
    assert set(range(rows)) <= set(seen)


def test_shares_are_even():
    tickets = [Ticket(i, i, 0) for i in range(5)]
    made = [list(shares(tickets, Split(2, 2, 2, process))) for process in range(2)]
    assert [len(micro) for micro in made[0]] == [len(micro) for micro in made[1]] == [2, 1]
    assert [t.row for t in made[1][1]] == [FILLER]
