"""The last layer where somebody asks: losses and gradients are those of the whole layer, with less work."""

import pytest
import torch
from tiny import MASK, batch_of, conversation, gradients, tiny

from unmask import adapters, attention, last_layer, models, objectives
from unmask.packing import Packed

KINDS = ("llada", "llama", "qwen2", "qwen3", "mistral")


def step(model, rows, packed=False, name="masked", autocast=False):
    """A batch's loss, with its gradients on the model."""
    objective = objectives.load(name, {}, MASK)
    predict = models.predictor(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective(Packed(predict) if packed else predict, batch_of(objective, rows))
    model.zero_grad()
    loss.total.backward()
    return loss.total.detach()


def rows_of(*lengths, prompt=0):
    return [conversation(n, prompt=prompt, seed=n) for n in lengths]


def both(model, monkeypatch, *given, **how):
    """(loss, gradients) of the whole layer and of the layer where it is asked for; how many places its MLP saw."""
    seen, found = [], []
    layer = [m for m in model.modules() if type(m).__name__ in last_layer.LAYERS][-1]
    hook = layer.mlp.down_proj.register_forward_hook(lambda _, __, made: seen.append(made.shape[:-1].numel()))
    for most in (-1.0, 1.0):
        monkeypatch.setattr(last_layer, "MOST", most)
        loss = step(model, *given, **how)
        found.append((loss, gradients(model)))
    hook.remove()
    return (*found, seen)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("rows", ["whole", "padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_whole_layer(kind, rows, shift, monkeypatch):
    model = tiny(kind).train()
    model.config.shift = shift
    attention.for_training(model)
    some = rows_of(*{"whole": (12, 12), "padded": (12, 7), "packed": (5, 4, 3)}[rows], prompt=2)
    (loss, grads), (other, others), seen = both(model, monkeypatch, some, rows == "packed")
    torch.testing.assert_close(loss, other, rtol=1e-6, atol=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-5, atol=1e-6, msg=name)
    assert seen[1] < seen[0]


def test_as_much_in_bfloat16_where_attention_is_made_of_products(monkeypatch):
    monkeypatch.setattr("unmask.bfloat16_attention.LEAST", 4)
    for kept in (0, 1 << 30):
        monkeypatch.setattr("unmask.bfloat16_attention.KEPT", kept)
        model = tiny("llada").train()
        attention.for_training(model)
        (loss, grads), (other, others), _ = both(model, monkeypatch, rows_of(12, 12), autocast=True)
        torch.testing.assert_close(loss, other, rtol=1e-2, atol=1e-2)
        whole = float(torch.cat([grad.flatten() for grad in grads.values()]).norm())
        for name, grad in grads.items():
            assert float((others[name] - grad).norm()) <= 0.02 * float(grad.norm()) + 0.002 * whole, name


@pytest.mark.parametrize("autocast", [False, True])
def test_a_row_of_which_nothing_is_asked_adds_nothing(autocast, monkeypatch):
    monkeypatch.setattr("unmask.bfloat16_attention.LEAST", 4)
    model = tiny("llada").train()
    attention.for_training(model)
    objective = objectives.load("masked", {}, MASK)
    found = []
    for empty in (False, True):
        batch = batch_of(objective, rows_of(9, 9))
        batch["masked"][1] = False
        if not empty:
            batch = {name: values[:1] for name, values in batch.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = objective(models.predictor(model), batch)
        loss.total.backward()
        found.append((loss.total.detach(), gradients(model)))
    torch.testing.assert_close(*(loss for loss, _ in found), rtol=1e-5, atol=1e-5)
    assert found[1][1].keys() == {name for name, _ in model.named_parameters()}  # or DDP would wait for ever
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, rtol=1e-2 if autocast else 1e-5, atol=1e-3, msg=name)


def test_an_adapter_on_it_learns_the_same(monkeypatch):
    model = adapters.attach(tiny("llama"), adapters.LoraArguments(lora_dropout=0.0)).train()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(0))
    (loss, grads), (other, others), seen = both(model, monkeypatch, rows_of(9, 5, prompt=3))
    torch.testing.assert_close(loss, other, rtol=1e-6, atol=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-5, atol=1e-6, msg=name)
    assert seen[1] < seen[0]


@pytest.mark.parametrize("how", ["checkpointed", "compiled", "not in training", "without gradients", "another kind"])
def test_where_it_is_not_known_to_hold_the_layer_is_run_whole(how):
    other = how == "another kind"
    model = tiny("gemma2" if other else "llama", attention="eager" if other else "sdpa").train()
    keep = torch.tensor([[True, False, False]])
    assert last_layer.only(tiny("llama").train(), keep)[1]
    if how == "checkpointed":
        model.gradient_checkpointing_enable()
    if how == "compiled":
        model.model.layers[-1].compile(backend="eager")
    if how == "not in training":
        model.eval()
    with torch.set_grad_enabled(how != "without gradients"):
        assert last_layer.only(model, keep) == ({}, {})


def test_where_all_is_asked_for_nothing_is_picked():
    assert last_layer.only(tiny("llama").train(), torch.ones(2, 5, dtype=torch.bool)) == ({}, {})


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_asked_for_every_weight_has_a_gradient_of_nought(kind):
    """A process whose rows only fill up an epoch's last step."""
    model = tiny(kind).train()
    attention.for_training(model)
    objective = objectives.load("masked", {}, MASK)
    batch = batch_of(objective, rows_of(9, 9))
    batch["masked"][:] = False
    objective(models.predictor(model), batch).total.backward()
    found = gradients(model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert not any(grad.any() for grad in found.values())


def test_a_row_that_asks_for_nothing_learns_nothing_and_its_neighbours_all():
    model = tiny("llada").train()
    attention.for_training(model)
    predict, asks = models.predictor(model), torch.zeros(2, 6, dtype=torch.bool)
    asks[1, :3] = True
    ids = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    predict(ids, keep=asks).square().sum().backward()
    found = gradients(model)
    predict(ids[1:], keep=asks[1:]).square().sum().backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)
    (predict(ids, keep=torch.zeros_like(asks)).sum() * 0).backward()
    assert gradients(model).keys() == found.keys()  # DDP waits for each of them
