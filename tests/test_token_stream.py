"""A stream of rows goes on where it was left, to the row, and tokenises nothing that was read before."""

import json

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import LINES, bpe, jsonl, numbered

from unmask import objectives, tokens
from unmask.batches import Collate, Loader, Split, Stream
from unmask.encode import Encoder
from unmask.token_stream import Cut, remembers

TOKENIZER = bpe()
TEXTS = [f"{line} {i}" for i, line in enumerate(LINES * 60)]


def text_of(kind, folder):
    """The same texts as a stream, by ways in which `datasets` reads."""
    if kind == "files":
        files = [str(jsonl(folder / f"{i}.jsonl", TEXTS[i * 80 : i * 80 + 80])) for i in range(3)]
        return datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    rows = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=3)
    if kind == "map":
        return rows.map(lambda row: {"text": row["text"].upper()}).filter(lambda row: "7" not in row["text"])
    if kind == "joined":
        return datasets.concatenate_datasets([rows, rows.take(100)])
    return rows.shuffle(seed=1, buffer_size=50) if kind == "shuffled" else rows


class Counts(Encoder):
    """An encoder that counts the texts it is given."""

    count = 0

    def flat(self, texts):
        Counts.count += len(texts)
        return super().flat(texts)


@pytest.mark.parametrize("kind", ["plain", "files", "map", "joined", "shuffled"])
def test_a_stream_goes_on_to_the_row_from_a_state_that_went_through_json(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "Encoder", Counts)

    def stream():
        return tokens.group(text_of(kind, tmp_path), TOKENIZER, max_length=16, drop_tail=False)

    whole = [row["input_ids"] for row in stream()]
    one = stream()
    states = [json.dumps(one.state_dict())] + [json.dumps(one.state_dict()) for _ in one]
    assert len(states) == len(whole) + 1
    for at in {0, 1, 5, len(whole) // 2, len(whole) // 2 + 1, len(whole) - 1, len(whole)}:
        again = stream()
        again.load_state_dict(json.loads(states[at]))
        Counts.count = 0
        assert [row["input_ids"] for row in again] == whole[at:]
        read = Counts.count
        Counts.count = 0
        assert [row["input_ids"] for row in stream()] == whole
        if kind != "shuffled":
            assert read <= max(64, Counts.count * (len(whole) - at) / len(whole) + 64 + 10)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=12),
    st.integers(1, 7),
    st.integers(0, 12),
    st.booleans(),
)
def test_what_is_cut_is_all_of_it_in_order_also_when_cut_in_two_goes(pieces, length, stop, drop):
    every = [i for piece in pieces for i in piece]
    first = Cut(length, drop, True)
    made = [first.add(np.array(piece, dtype=np.int32)) for piece in pieces[:stop]]
    second = Cut(length, drop, True, first.rest.tolist(), first.count)
    made += [second.add(np.array(piece, dtype=np.int32)) for piece in pieces[stop:]]
    if every:
        made.append(second.tail())
        keeps = not drop or len(every) < length
        whole = len(every) if keeps else len(every) // length * length
        assert [i for rows in made for row in rows.tolist() for i in row] == every[:whole]
    assert all(row.shape == (length,) for rows in made[: len(pieces)] for row in rows)


def test_a_shuffle_buffer_is_seen_wherever_it_stands(tmp_path):
    rows = text_of("plain", tmp_path)
    shuffled = rows.shuffle(seed=0, buffer_size=9)
    assert remembers(rows)
    assert remembers(rows.map(dict).take(3))
    for one in (shuffled, shuffled.map(dict), datasets.concatenate_datasets([rows, shuffled]), shuffled.skip(2)):
        assert not remembers(one)
        assert not remembers(datasets.interleave_datasets([one, rows]))


# ---------------------------------------------------------------------------------------------------------------------
# In training


def batches_of(stream, first=0, count=None):
    made = []
    for batch in Loader(stream, batch_size=None):
        made.append(batch)
        if count is not None and len(made) == count:
            break
    return made[first:]


def made_of(split, kind="plain", folder=None):
    objective = objectives.load("masked", {}, TOKENIZER.mask_token_id)
    collate = Collate(objective, seed=3, pad_id=TOKENIZER.pad_token_id)
    rows = tokens.group(text_of(kind, folder), TOKENIZER, max_length=16)
    return Stream(rows, split, collate)


@pytest.mark.parametrize("step", [0, 1, 37, 200, 235])
def test_training_goes_on_with_the_batch_that_comes_next_also_in_a_later_epoch(step):
    split = Split(3, 2)
    whole = made_of(split)
    total = 480
    batches, states = [], {}
    for batch in Loader(whole, batch_size=None):
        batches.append(batch)
        if len(batches) % split.micro == 0:
            states[len(batches) // split.micro] = whole.state(len(batches) // split.micro)
        if len(batches) == total:
            break
    assert max(int(b["place"].max()) for b in batches) < total * split.rows / 2  # there was a second epoch
    again = made_of(split)
    if step:
        assert states[step]["step"] == step
        again.go_on(json.loads(json.dumps(states[step])))
    Counts.count = 0
    for ours, right in zip(batches_of(again, count=8), batches[step * split.micro :], strict=False):
        assert set(ours) == set(right)
        assert all(torch.equal(ours[key], right[key]) for key in right)


def test_rows_shuffled_by_a_buffer_and_rows_without_a_state_have_none():
    split = Split(1)
    shuffled = made_of(split)
    shuffled = Stream(shuffled.rows.shuffle(seed=0, buffer_size=10), split, shuffled.collate)
    plain = Stream([{"input_ids": [1, 2]}] * 4, split, shuffled.collate)
    for stream in (shuffled, plain):
        batches_of(stream, count=3)
        assert stream.state(1) is None


def test_only_the_last_few_states_are_kept():
    stream = made_of(Split(1))
    batches_of(stream, count=60)
    assert stream.state(60) is not None
    assert stream.state(10) is None


def test_a_row_that_is_not_text_is_numbered_from_the_start_also_after_going_on():
    from unmask.config import UserError

    texts = [*numbered(300), None]
    stream = tokens.group(datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset(), TOKENIZER, max_length=16)
    rows = iter(stream)
    for _ in range(60):
        next(rows)
    stream.load_state_dict(stream.state_dict())
    with pytest.raises(UserError, match="row 300: 'text' is null"):
        list(stream)
