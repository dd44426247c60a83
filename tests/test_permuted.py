"""Reading in another order hides what comes later in that order, and nothing else changes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from tiny import MASK, VOCABULARY, batch_of, conversation, tiny

from unmask import models, objectives
from unmask.config import UserError
from unmask.objectives import permuted

ROWS = [conversation(n, prompt=0, seed=n) for n in (11, 6, 1, 9)]


@given(some.integers(0, 40), some.integers(0, 30), some.integers(0, 3))
def test_an_order_names_each_place_once_the_first_first(length, number, seed):
    found = permuted.order(number, length, seed)
    assert sorted(found) == list(range(length))
    assert not length or found[0] == 0
    if number == 0:
        assert found.tolist() == list(range(length))


def test_orders_differ_and_a_longer_row_keeps_the_draws_of_a_shorter():
    assert len({tuple(permuted.order(n, 20, 0)) for n in range(8)}) == 8
    assert permuted.order(3, 20, 0).tolist() != permuted.order(3, 20, 1).tolist()
    near, far = (np.abs(permuted.order(n, 64, 0) - np.arange(64)).mean() for n in (1, 16))
    assert near < far / 3


def test_with_one_order_it_is_next_token_prediction():
    model = tiny("llada", causal=True)
    one, two = objectives.load("permuted", {"orders": 1}, None), objectives.load("autoregressive", {}, None)
    nats = [o(models.predictor(model), batch_of(o, ROWS)).nats for o in (one, two)]
    torch.testing.assert_close(*nats, rtol=1e-6, atol=1e-6)


def test_validation_reads_left_to_right():
    objective = objectives.load("permuted", {"orders": 16}, None)
    batch = batch_of(objective, ROWS, exact=True)
    for row, order in zip(ROWS, batch["order"], strict=True):
        length = len(row["input_ids"])
        assert order[:length].tolist() == list(range(length))


@pytest.mark.parametrize("rows", [ROWS, [conversation(8, seed=1), conversation(8, seed=2)]], ids=["padded", "even"])
def test_the_loss_is_that_of_a_mask_which_hides_what_the_order_has_later(rows):
    """Left in its places, with a mask of four dimensions that lets σ(i) see σ(1) … σ(i), the same network says at
    σ(i-1) what comes at σ(i)."""
    model = tiny("llada", causal=True, attention="eager")
    objective = objectives.load("permuted", {"orders": 8}, MASK)
    batch = batch_of(objective, rows)
    ours = objective(models.predictor(model), batch).nats
    assert any((order[: len(r["input_ids"])].diff() < 0).any() for order, r in zip(batch["order"], rows, strict=True))
    for row, order, nats in zip(rows, batch["order"], ours, strict=True):
        ids, length = torch.tensor(row["input_ids"]), len(row["input_ids"])
        order = order[:length]
        when = order.argsort()
        hidden = when[None, :] > when[:, None]
        mask = torch.zeros(length, length).masked_fill(hidden, torch.finfo(torch.float32).min)
        logits = model(input_ids=ids[None], attention_mask=mask[None, None]).logits[0]
        told = torch.log_softmax(logits[order[:-1]], -1).gather(1, ids[order[1:], None]).sum()
        assert nats.item() == pytest.approx(-told.item(), rel=1e-5, abs=1e-5)


def test_what_comes_later_in_the_order_does_not_change_what_is_said_before():
    model, objective = tiny("llada", causal=True), objectives.load("permuted", {"orders": 8}, None)
    batch = batch_of(objective, [conversation(12, seed=3)])
    order, seen = batch["order"][0], []
    for last in (0, 1):
        ids = batch["input_ids"].clone()
        ids[0, order[-1]] = (ids[0, order[-1]] + last) % VOCABULARY
        said = {}

        def predict(ids, *, said=said, **how):
            read = how.pop("read")
            return models.predictor(model)(ids, read=lambda h, head: read(said.setdefault("hidden", h), head), **how)

        objective(predict, {**batch, "input_ids": ids})
        seen.append(said["hidden"])
    torch.testing.assert_close(seen[0], seen[1])


def test_no_orders_are_refused():
    with pytest.raises(UserError, match="orders is 0"):
        objectives.load("permuted", {"orders": 0}, None)
