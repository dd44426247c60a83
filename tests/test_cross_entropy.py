"""Cross-entropy in chunks is the plain one: values and gradients, whatever the head and the precision."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import MASK, tiny
from unmask import cross_entropy, objectives, processor
from unmask.cross_entropy import weighted
from unmask.forward import OwnHead, Predictor
from unmask.packing import Packed

ROOT = str(Path(__file__).parents[1])
WIDTH, VOCABULARY = 8, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """7 places a chunk, so that there are several, and the last is shorter."""
    monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": 7 * 4 * VOCABULARY, "other": 7 * 4 * VOCABULARY})


def asked(n=40, dtype=torch.float32, bias=False, seed=0, scale=1.0):
    """Hidden states, head, targets and weights."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype) * scale
    hidden = torch.randn(n, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (n,), generator=generator)
    return hidden, head, targets, torch.rand(n, generator=generator) * 3


def gradients(loss, hidden, head):
    """Of hidden states and of all that is trained in the head, in float64."""
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return [one.double() for one in torch.autograd.grad(loss, inputs)]


def plain(hidden, head, targets, weight):
    nats = functional.cross_entropy(head(hidden).float(), targets, reduction="none")
    return (nats * weight).sum(), nats


def assert_same(found, wanted, rtol):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.norm()))


def own(head):
    return OwnHead(head, head.forward)


@given(
    n=st.integers(0, 30),
    chunk=st.integers(1, 31),
    bias=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    factor=st.sampled_from([1.0, 0.125, -3.0]),
)
@settings(deadline=None, max_examples=60)
def test_values_and_gradients_are_those_of_the_plain_loss(n, chunk, bias, scale, factor):
    hidden, head, targets, weight = asked(n, bias=bias, scale=scale)
    cross_entropy.CHUNK["cpu"] = chunk * 4 * VOCABULARY
    total, nats = weighted(hidden, own(head), targets, weight)
    wanted, each = plain(hidden, head, targets, weight)
    torch.testing.assert_close(nats, each, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5)
    assert_same(gradients(total * factor, hidden, head), gradients(wanted * factor, hidden, head), 1e-5)


def test_gradients_in_float64_are_as_exact():
    hidden, head, targets, weight = asked(30, dtype=torch.float64, bias=True)
    total, _ = weighted(hidden, own(head), targets, weight)
    exact = functional.cross_entropy(head(hidden), targets, reduction="none") @ weight.double()
    assert_same(gradients(total, hidden, head), gradients(exact, hidden, head), 1e-12)


def test_a_token_that_the_model_holds_for_impossible_has_its_exact_price():
    hidden, head, targets, weight = asked(20, scale=60.0)
    _, nats = weighted(hidden, own(head), targets, weight)
    assert nats.max() > 200  # exp(-200) is no float32
    exact = functional.cross_entropy(head.double()(hidden.double()), targets, reduction="none")
    torch.testing.assert_close(nats.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("faster", [True, False], ids=["float32_is_faster", "bfloat16_is_faster"])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_in_bfloat16_it_is_as_near_to_float64_as_the_plain_loss_is(monkeypatch, faster, kind):
    monkeypatch.setattr(processor, "float32_is_faster", lambda dtype, device: faster and dtype == torch.bfloat16)
    hidden, head, targets, weight = asked(60, dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32, bias=True)
    exact_hidden, exact_head = hidden.detach().double().requires_grad_(), copy.deepcopy(head).double()
    exact = gradients(plain(exact_hidden, exact_head, targets, weight)[0], exact_hidden, exact_head)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        ours = gradients(weighted(hidden, own(head), targets, weight)[0], hidden, head)
        theirs = gradients(plain(hidden, head, targets, weight)[0], hidden, head)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        off, off_plain = ((found - true).norm() / true.norm() for found in (one, other))
        assert off <= 1.5 * off_plain + 1e-4
        assert off < 0.02


def test_products_are_made_in_what_autocast_says_unless_float32_is_faster(monkeypatch):
    class Kinds(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket is torch.ops.aten.mm:
                kinds.add(args[0].dtype)
            return function(*args, **(kwargs or {}))

    hidden, head, targets, weight = asked()
    for faster, wanted in ((False, torch.bfloat16), (True, torch.float32)):
        monkeypatch.setattr(processor, "float32_is_faster", lambda dtype, device, faster=faster: faster)
        kinds = set()
        with torch.autocast("cpu", torch.bfloat16), Kinds():
            weighted(hidden, own(head), targets, weight)
        assert kinds == {wanted}


def test_a_rate_is_the_machines_and_not_autocasts(monkeypatch):
    seen = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: seen.append(mm(a, b).dtype))
    processor.rate.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        processor.rate(torch.float32)
    processor.rate.cache_clear()
    assert set(seen) == {torch.float32}


def test_a_head_that_is_not_trained_gets_no_gradient_and_costs_none():
    hidden, head, targets, weight = asked()
    head.requires_grad_(False)
    total, _ = weighted(hidden, own(head), targets, weight)
    assert_same(gradients(total, hidden, head), gradients(plain(hidden, head, targets, weight)[0], hidden, head), 1e-5)
    with_hidden = weighted(hidden.detach(), own(head), targets, weight)[0]
    assert not with_hidden.requires_grad


class Outer(nn.Module):
    """A network with a head, for peft to wrap."""

    def __init__(self, head):
        super().__init__()
        self.lm_head = head

    def forward(self, hidden):
        return self.lm_head(hidden)


@pytest.mark.parametrize("autocast", [False, True])
def test_lora_on_the_head(autocast):
    hidden, head, targets, weight = asked()
    outer = peft.get_peft_model(Outer(head), peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    wrapped = outer.base_model.model.lm_head
    assert cross_entropy.linear(own(wrapped)) is None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, nats = weighted(hidden, own(wrapped), targets, weight)
        wanted, each = plain(hidden, wrapped, targets, weight)
    assert len([p for p in wrapped.parameters() if p.requires_grad]) == 2
    torch.testing.assert_close(nats, each, rtol=1e-5, atol=1e-5)
    rtol = 0.02 if autocast else 1e-5
    assert_same(gradients(total, hidden, wrapped), gradients(wanted, hidden, wrapped), rtol)


def test_a_trainable_copy_of_the_head_under_an_adapter():
    hidden, head, targets, weight = asked()
    outer = peft.get_peft_model(
        Outer(nn.Sequential(nn.Linear(WIDTH, WIDTH), head)),
        peft.LoraConfig(r=2, target_modules=["lm_head.0"], modules_to_save=["lm_head.1"]),
    )
    wrapped = outer.base_model.model.lm_head[1]
    total, _ = weighted(hidden, own(wrapped), targets, weight)
    assert_same(
        gradients(total, hidden, wrapped), gradients(plain(hidden, wrapped, targets, weight)[0], hidden, wrapped), 1e-5
    )


def test_a_forward_that_a_hook_put_on_the_head_is_heeded():
    hidden, head, targets, weight = asked()
    before = head.forward
    head.forward = lambda some: 2 * before(some)  # as accelerate's hooks replace it
    total, _ = weighted(hidden, own(head), targets, weight)
    assert_same(gradients(total, hidden, head), gradients(plain(hidden, head, targets, weight)[0], hidden, head), 1e-5)


def test_what_is_no_module_is_asked_as_it_is():
    hidden, head, targets, weight = asked()
    total, nats = weighted(hidden, lambda some: some @ head.weight.T, targets, weight)
    wanted, each = plain(hidden, head, targets, weight)
    assert torch.equal(nats, each) or torch.allclose(nats, each)
    assert_same(gradients(total, hidden, head), gradients(wanted, hidden, head), 1e-5)


def test_each_places_nats_can_be_weighed_by_what_they_are():
    hidden, head, targets, weight = asked()

    def focal(nats):
        return ((1 - torch.exp(-nats)) * nats * weight).sum()

    ours = gradients(focal(cross_entropy.cross_entropy(hidden, own(head), targets)), hidden, head)
    assert_same(ours, gradients(focal(plain(hidden, head, targets, weight)[1]), hidden, head), 1e-5)


def test_a_second_backward_pass_is_refused_and_not_wrong():
    hidden, head, targets, weight = asked()
    total, _ = weighted(hidden, own(head), targets, weight)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out already"):
        total.backward()


def test_without_gradients_none_are_made():
    hidden, head, targets, weight = asked()
    with torch.no_grad():
        total, nats = weighted(hidden, own(head), targets, weight)
    wanted, each = plain(hidden, head, targets, weight)
    assert not total.requires_grad
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(nats, each)


def test_the_gradient_of_the_head_is_handed_over_and_not_copied(monkeypatch):
    hidden, head, targets, weight = asked()
    made = []
    by_hand = cross_entropy._by_hand

    def watched(*asked):
        found = by_hand(*asked)
        made.append(found[1][1].data_ptr())
        return found

    monkeypatch.setattr(cross_entropy, "_by_hand", watched)
    weighted(hidden, own(head), targets, weight)[0].backward()
    assert head.weight.grad.data_ptr() == made[0]


# ---------------------------------------------------------------------------------------------------------------------
# The whole step


def batch_of(rows=4, places=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, MASK, (rows, places), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < 0.5
    return {
        "input_ids": ids,
        "supervised": torch.ones_like(masked),
        "masked": masked,
        "weight": masked * 2.0,
        "t": torch.full((rows,), 0.5),
    }


def part(batch, rows):
    return {name: values[rows] for name, values in batch.items()}


def expected(model, batch):
    """The loss as published: all logits, cross-entropy at masked places, 1/t, each row by its length."""
    ids, masked = batch["input_ids"], batch["masked"]
    logits = model(input_ids=torch.where(masked, MASK, ids)).logits
    nats = functional.cross_entropy(logits[masked], ids[masked], reduction="none")
    return (nats * batch["weight"][masked]).sum() / ids.shape[1]


def named_gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(found, wanted, rtol=1e-5):
    assert found.keys() == wanted.keys()
    for name, true in wanted.items():
        torch.testing.assert_close(found[name], true, rtol=rtol, atol=rtol * float(true.abs().max()), msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("how", ["plain", "checkpointing", "accumulated", "compiled"])
def test_a_step_has_the_gradients_of_the_published_loss(tied, how):
    model = tiny("llada", vocab_size=VOCABULARY, tie_word_embeddings=tied).train()
    objective = objectives.load("masked", {}, MASK)
    batch = batch_of()
    expected(model, batch).backward()
    wanted = named_gradients(model)
    model.zero_grad()
    if how == "checkpointing":
        model.gradient_checkpointing_enable()
    if how == "compiled":
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
    parts = [slice(0, 1), slice(1, 4)] if how == "accumulated" else [slice(None)]
    for rows in parts:
        objective(Predictor(model), part(batch, rows)).total.backward()
    assert_gradients(named_gradients(model), wanted, 1e-4)


class Counted(TorchDispatchMode):
    """Rows that went through products with a matrix as wide as the vocabulary, and the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.rows, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel() * one.element_size())
        if function.overloadpacket is torch.ops.aten.mm and found.shape[1] == WIDE:
            self.rows.append(found.shape[0])
        return found


WIDE = 3001  # a vocabulary that nothing else is as wide as


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_makes_no_more_than_it_needs(monkeypatch, packed):
    """What makes a step fast, counted: one forward pass, the head at masked places once, no logits beyond a chunk."""
    monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": 16 * 4 * WIDE, "other": 0})
    model = tiny("llada", vocab_size=WIDE).train()
    objective = objectives.load("masked", {}, MASK)
    batch = batch_of(rows=8, places=32)
    if packed:
        long = torch.tensor([32, 9, 12, 30, 7, 5, 20, 3])
        batch["attention"] = torch.arange(32)[None] < long[:, None]
        batch |= {name: batch[name] & batch["attention"] for name in ("masked", "supervised")}
        batch["weight"] = batch["masked"] * 2.0
    passes = []
    model.model.register_forward_hook(lambda module, given, made: passes.append(made[0].shape[:2].numel()))
    predict = Packed(Predictor(model)) if packed else Predictor(model)
    with Counted() as counted:
        objective(predict, batch).total.backward()
    asked = int(batch["masked"].sum())
    assert len(passes) == 1
    assert passes[0] == (4 * 32 if packed else 8 * 32)
    assert sum(counted.rows) == asked
    assert max(counted.rows) <= 16
    matrix = model.get_output_embeddings().weight
    assert counted.largest <= max(16 * 4 * WIDE, matrix.numel() * 4)
    assert counted.largest < asked * WIDE * 4, "the test can no longer tell a chunk from all logits"


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary():
    hidden, head, targets, weight = asked()
    head.weight.data.zero_()
    _, nats = weighted(hidden, own(head), targets, weight)
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(VOCABULARY)))


def test_softcapped_logits_are_learnt_from_as_they_come():
    model = tiny("gemma2", attention="eager", vocab_size=VOCABULARY, final_logit_softcapping=0.05).train()
    batch = batch_of()
    expected(model, batch).backward()
    wanted = named_gradients(model)
    model.zero_grad()
    objectives.load("masked", {}, MASK)(Predictor(model), batch).total.backward()
    assert_gradients(named_gradients(model), wanted, 1e-4)


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"])
@pytest.mark.slow
def test_processes_that_share_a_step_have_its_gradients(kind):
    """The head's gradient is made where its forward pass is, and each way of sharing hands it round all the same."""
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed", reason="pip install deepspeed: ZeRO's tests need it")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": ROOT}
    if os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    done = subprocess.run(
        [*command, "-m", "tests.distributed", kind],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    assert found["loss"] < 1e-6
    assert found["gradients"] < 1e-5
    assert found["by_hand"] == 1
