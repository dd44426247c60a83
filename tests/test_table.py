"""The embedding's own gradient is that of torch, also when it is added up, and nothing else of it changes."""

import copy

import pytest
import torch
from tiny import MASK, batch_of, conversation, tiny
from torch import nn

from unmask import kept, models, objectives, table


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 64)
    monkeypatch.setattr(kept, "_storages", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_vectors_and_gradients_are_torchs(dtype):
    embedding = nn.Embedding(50, 8, dtype=dtype)
    other = copy.deepcopy(embedding)
    for seed in (0, 1):  # the second is added to the first
        torch.manual_seed(seed)
        ids, grad = torch.randint(0, 50, (3, 7)), torch.randn(3, 7, 8, dtype=dtype)
        found, wanted = table.forward(embedding)(ids), other(ids)
        assert torch.equal(found, wanted)
        found.backward(grad)
        wanted.backward(grad)
    rtol = 0.02 if dtype == torch.bfloat16 else 1e-6  # sums in another order
    torch.testing.assert_close(embedding.weight.grad, other.weight.grad, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "embedding",
    [
        nn.Embedding(50, 8, padding_idx=3),
        nn.Embedding(50, 8, sparse=True),
        nn.Embedding(50, 8, max_norm=1.0),
        nn.Embedding(50, 8).requires_grad_(False),
        nn.Embedding(2, 2),
    ],
)
def test_what_is_more_than_a_table_or_small_keeps_its_own_forward(embedding):
    assert table.forward(embedding) is None


def test_without_gradients_there_is_nothing_to_do():
    with torch.no_grad():
        assert table.forward(nn.Embedding(50, 8)) is None


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_has_the_gradients_it_had(tied, monkeypatch):
    """Of a whole model, several batches added up, also where head and table are one matrix."""
    found = []
    for least in (64, 1 << 40):
        monkeypatch.setattr(kept, "LEAST", least)
        model = tiny("llada", tie_word_embeddings=tied).train()
        objective = objectives.load("masked", {}, MASK)
        for seed in (1, 2, 3):
            batch = batch_of(objective, [conversation(9, seed=seed), conversation(6, seed=seed)])
            objective(models.predictor(model), batch).total.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in found[1].items():
        torch.testing.assert_close(found[0][name], grad, rtol=1e-5, atol=1e-6, msg=name)
