"""Packed or not, the answers are the same; packing is compact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import MASK, VOCABULARY, tiny

from unmask import models
from unmask.config import UserError
from unmask.packing import Packed, first_fit, refuse_leaks

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@given(LENGTHS)
def test_every_conversation_has_a_seat_and_no_row_is_longer_than_the_longest(lengths):
    rows = first_fit(lengths)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert max(sum(lengths[n] for n in row) for row in rows) == max(lengths)


@given(LENGTHS)
def test_no_row_could_be_poured_into_another(lengths):
    rows = first_fit(lengths)
    sizes = sorted(sum(lengths[n] for n in row) for row in rows)
    assert len(sizes) == 1 or sizes[0] + sizes[1] > max(lengths)


class Echo:
    """Says of each place: its id, its place in its own conversation, and the sum of what it sees there."""

    mask_id, vocab_size, device = MASK, VOCABULARY, torch.device("cpu")

    def __init__(self):
        self.shapes = []

    def __call__(self, ids, *, attention=None, segments=None, keep=None, read=None):
        self.shapes.append(tuple(ids.shape))
        if segments is None:
            segments = torch.arange(len(ids))[:, None].expand_as(ids)
            segments = segments if attention is None else torch.where(attention, segments, -1)
        said = torch.zeros(*ids.shape, 3)
        for number in segments.unique().tolist():
            here = segments == number
            own = torch.stack([ids[here], torch.arange(int(here.sum())), ids[here].sum().expand(int(here.sum()))], 1)
            said[here] = own.float() if number >= 0 else float("nan")
        said = said if keep is None else said[keep]
        return read(said, lambda same: same) if read else said


@given(LENGTHS, st.randoms(use_true_random=False))
def test_whatever_is_asked_is_answered_as_without_packing(lengths, random):
    ids = torch.tensor([[random.randrange(VOCABULARY) for _ in range(max(lengths))] for _ in lengths])
    attention = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    keep = attention & torch.tensor([[random.random() < 0.4 for _ in row] for row in ids])
    echo = Echo()
    plain, packed = (p(ids, attention=attention, keep=keep, read=lambda h, head: h * 2) for p in (echo, Packed(echo)))
    assert torch.equal(plain, packed)
    assert echo.shapes[1] == (len(first_fit(lengths)), max(lengths))
    whole = Packed(echo)(ids, attention=attention)
    assert torch.equal(whole[attention], echo(ids, attention=attention)[attention])
    assert whole.shape == (*ids.shape, 3)


def test_rows_without_padding_are_left_as_they_are():
    echo = Echo()
    Packed(echo)(torch.zeros(3, 5, dtype=torch.long))
    assert echo.shapes == [(3, 5)]


def test_asking_for_padding_is_an_error():
    attention = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0]]).bool()
    with pytest.raises(ValueError, match="padding"):
        Packed(Echo())(torch.zeros(3, 3, dtype=torch.long), attention=attention, keep=torch.ones(3, 3).bool())


@pytest.mark.parametrize("kind", ["llada", "qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("causal", [False, True])
def test_ordinary_networks_keep_packed_conversations_apart(kind, causal):
    refuse_leaks(models.predictor(tiny(kind, causal)), kind)


def test_a_network_that_does_not_heed_its_mask_is_refused():
    model = tiny()
    inner = model.model.forward
    model.model.forward = lambda attention_mask=None, **more: inner(**more)
    with pytest.raises(UserError, match="packing does not work with llama"):
        refuse_leaks(models.predictor(model), "llama")
