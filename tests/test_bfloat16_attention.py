"""Attention by products of matrices is attention, as near to the exact one as torch's own in bfloat16."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MASK, batch_of, conversation, tiny
from torch.nn.functional import scaled_dot_product_attention

from unmask import attention, models, objectives
from unmask import bfloat16_attention as own


def asked(rows=2, heads=4, shared=1, places=20, width=8, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(rows, heads, places, width), *[(rows, heads // shared, places, width)] * 2]
    return [torch.randn(size, generator=generator) * s for size, s in zip(sizes, (scale, scale, 1), strict=True)]


def answers(attend, inputs, dtype):
    inputs = [one.to(dtype).requires_grad_() for one in inputs]
    made = attend(*inputs)
    grad = torch.randn(made.shape, generator=torch.Generator().manual_seed(9)).to(made.dtype)
    return [made.double().detach(), *(one.double() for one in torch.autograd.grad(made, inputs, grad))]


def by_torch(query, key, value):
    return scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])


def ours(query, key, value):
    return own.attend(query, key, value, query.shape[-1] ** -0.5)


@given(
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    places=st.integers(1, 40),
    width=st.sampled_from([4, 8]),
    scale=st.sampled_from([0.3, 1.0, 4.0]),
    keeps=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_answers_and_gradients_are_near_the_exact_ones(rows, groups, shared, places, width, scale, keeps):
    own.KEPT = 1 << 30 if keeps else 0
    inputs = [one.bfloat16() for one in asked(rows, groups * shared, shared, places, width, scale)]
    exact = answers(by_torch, inputs, torch.float64)
    found, theirs = answers(ours, inputs, torch.bfloat16), answers(by_torch, inputs, torch.bfloat16)
    for one, other, true in zip(found, theirs, exact, strict=True):
        size = float(true.norm()) + 1e-3 * true.numel() ** 0.5
        assert float((one - true).norm()) <= 1.5 * float((other - true).norm()) + 0.01 * size


@pytest.fixture(autouse=True)
def settings_again():
    before = own.KEPT, own.LEAST
    yield
    own.KEPT, own.LEAST = before


@pytest.mark.parametrize(
    ("change", "serves"),
    [
        ({}, True),
        ({"mask": torch.ones(1, 1, 20, 20, dtype=torch.bool)}, False),
        ({"causal": True}, False),
        ({"dropout": 0.1}, False),
        ({"places": 7}, False),
        ({"dtype": torch.float32}, False),
        ({"grad": False}, False),
    ],
)
def test_it_is_for_whole_rows_in_bfloat16_that_are_learnt_from(change, serves, monkeypatch):
    monkeypatch.setattr(own, "LEAST", 16)
    query, key, _ = (
        one.to(change.get("dtype", torch.bfloat16)).requires_grad_(change.get("grad", True))
        for one in asked(places=change.get("places", 20))
    )
    said = own.serves(query, key, change.get("mask"), change.get("causal", False), change.get("dropout", 0.0))
    assert said == serves


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["llada", "qwen2"])
def test_a_model_in_training_uses_it_and_learns_the_same(kind, packed, monkeypatch):
    from unmask.packing import Packed

    monkeypatch.setattr(own, "LEAST", 4)
    calls, attend = [], own.attend
    monkeypatch.setattr(own, "attend", lambda *given: (calls.append(1), attend(*given))[1])
    found = []
    for ready in (False, True):
        model = tiny(kind).train()
        if ready or packed:
            attention.for_training(model)
        monkeypatch.setattr(own, "LEAST", 4 if ready else 1 << 20)
        objective = objectives.load("masked", {}, MASK)
        rows = [conversation(n, seed=n) for n in ([9, 4, 5] if packed else [12, 12])]
        predict = models.predictor(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(Packed(predict) if packed else predict, batch_of(objective, rows))
        loss.total.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert calls
    whole = float(torch.cat([grad.flatten() for grad in found[0].values()]).norm())
    for name, grad in found[0].items():
        assert float((found[1][name] - grad).norm()) <= 0.03 * float(grad.norm()) + 0.003 * whole, name


def test_where_nothing_is_learnt_answers_are_those_of_before():
    model = tiny("llada").eval()
    ids = torch.arange(12)[None] % MASK
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = models.predictor(model)(ids)
        attention.for_training(model)
        assert torch.equal(models.predictor(model)(ids), before)
