"""The end-of-text tail: how long it is, for which rows, and that it is learnt."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import END, MASK, batch_of, conversation

from unmask import objectives
from unmask.batches import FILLER, Collate, Ticket
from unmask.config import UserError
from unmask.tail import Tail

TEXTS = ["step", "none", "block:1", "block:32", "1", "7"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_read_is_what_was_written(text):
    assert str(Tail.parse(text)) == text


@pytest.mark.parametrize("text", ["stepp", "block", "block:", "block:x", "-1", "1.5", "", "blocks:4"])
def test_what_is_no_tail_is_refused_with_the_choices(text):
    with pytest.raises(UserError, match=r"step \(up to the longest row .* or none"):
        Tail.parse(text)


@pytest.mark.parametrize("text", ["0", "block:0"])
def test_a_tail_of_nothing_is_called_none(text):
    with pytest.raises(UserError, match="`none` is for no tail"):
        Tail.parse(text)


def test_left_out_it_is_llada_s_way_for_a_mask_predictor_and_none_for_a_causal_model():
    assert str(Tail.chosen(None, causal=False)) == "step"
    assert str(Tail.chosen(None, causal=True)) == str(Tail.chosen("none", causal=True)) == "none"
    with pytest.raises(UserError, match="--eos_tail block:8: a model that predicts the next token stops"):
        Tail.chosen("block:8", causal=True)


@given(st.integers(1, 50), st.integers(0, 49), st.integers(1, 16), st.integers(0, 60))
def test_lengths(answer, prompt, size, more):
    row = prompt + answer
    longest = row + more
    far = 10_000
    assert row + Tail.parse("step").length(row, answer, longest, far) == longest
    assert Tail.parse(str(size)).length(row, answer, longest, far) == size
    assert Tail.parse("none").length(row, answer, longest, far) == 0
    block = Tail.parse(f"block:{size}").length(row, answer, longest, far)
    assert 1 <= block <= size
    assert (answer + block) % size == 0


@given(st.sampled_from(TEXTS), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_no_tail_goes_beyond_the_longest_length_allowed(text, row, longest, most):
    assert 0 <= Tail.parse(text).length(row, row, longest, most) <= max(0, most - row)


@pytest.fixture
def objective():
    return objectives.load("masked", {}, MASK)


def ends(batch):
    """Tokens behind each row's own, by the attention; all of them must be learnt end of text."""
    return batch.get("attention", torch.ones_like(batch["supervised"])).sum(1).tolist()


def test_the_tail_is_end_of_text_seen_learnt_and_counted_in_the_rows_length(objective):
    rows = [conversation(6, prompt=3), conversation(9, prompt=2)]
    batch = batch_of(objective, rows, tail=Tail.parse("4"))
    assert ends(batch) == [10, 13]
    assert batch["input_ids"][0, 6:10].tolist() == [END] * 4
    assert batch["supervised"].sum(1).tolist() == [3 + 4, 7 + 4]
    assert batch["supervised"][0].nonzero().flatten().tolist() == list(range(3, 10))


def test_the_tail_is_masked_as_often_as_the_answer(objective):
    collate = Collate(objective, seed=0, pad_id=END, tail=Tail.parse("20"), end_id=END)
    row = conversation(20)
    masked = torch.stack([collate([(row, Ticket(0, place, 0))])["masked"][0] for place in range(600)]).float()
    assert masked[:, 20:].mean().item() == pytest.approx(masked[:, :20].mean().item(), abs=0.02)


def test_hanging_on_a_tail_leaves_the_answers_own_noise_alone(objective):
    row = conversation(12, prompt=4)
    bare, long = (batch_of(objective, [row], tail=Tail.parse(text)) for text in ("none", "9"))
    for key in ("masked", "weight"):
        assert torch.equal(bare[key], long[key][:, :12])


def test_up_to_the_longest_of_the_step_is_more_than_of_the_batch(objective):
    collate = Collate(objective, seed=0, pad_id=END, tail=Tail.parse("step"), end_id=END, max_length=40)
    batch = collate([(conversation(6), Ticket(0, 0, 0, longest=25)), (conversation(8), Ticket(1, 1, 0, longest=25))])
    assert ends(batch) == [25, 25]
    assert "attention" not in batch


def test_blocks_are_counted_from_where_the_last_answer_begins(objective):
    two = conversation(11, prompt=2)
    two["labels"][5:8] = [-100] * 3  # answers at 2 … 4 and 8 … 10
    assert ends(batch_of(objective, [two], tail=Tail.parse("block:4"))) == [8 + 4]
    assert ends(batch_of(objective, [conversation(11, prompt=3)], tail=Tail.parse("block:4"))) == [11 + 4]
    assert ends(batch_of(objective, [conversation(12, prompt=3)], tail=Tail.parse("block:4"))) == [12 + 3]


@pytest.mark.parametrize("text", TEXTS)
def test_a_row_as_long_as_is_allowed_gets_none(objective, text):
    """Its answer may have been cut off."""
    rows = [conversation(8, prompt=2), conversation(5, prompt=2)]
    assert ends(batch_of(objective, rows, tail=Tail.parse(text), max_length=8))[0] == 8
    assert max(ends(batch_of(objective, rows, tail=Tail.parse(text), max_length=8))) == 8


@pytest.mark.parametrize("text", TEXTS)
def test_rows_to_pretrain_on_and_rows_that_end_in_no_answer_get_none(objective, text):
    plain = {"input_ids": list(range(7))}
    asks = conversation(7, prompt=2)
    asks["labels"][-2:] = [-100, -100]
    batch = batch_of(objective, [plain, asks, conversation(12)], tail=Tail.parse(text))
    assert ends(batch)[:2] == [7, 7]


def test_a_row_cut_to_a_random_length_gets_none(objective):
    how = {"seed": 0, "pad_id": END, "tail": Tail.parse("5"), "end_id": END, "random_length_ratio": 1.0}
    collate = Collate(objective, **how)
    row = conversation(30)
    found = [collate([(row, Ticket(0, place, 0))])["input_ids"].shape[1] for place in range(60)]
    assert all(n < 30 or n == 35 for n in found)
    assert min(found) < 15


def test_fillers_get_none(objective):
    collate = Collate(objective, seed=0, pad_id=END, tail=Tail.parse("5"), end_id=END)
    assert not collate([(conversation(4), Ticket(FILLER, 0, 0))])["supervised"].any()


def test_a_tail_needs_an_end_of_text(objective):
    with pytest.raises(UserError, match="--eos_tail block:8: the tokenizer has no end-of-text"):
        Collate(objective, seed=0, pad_id=0, tail=Tail.parse("block:8"))
