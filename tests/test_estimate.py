"""A step gone through without numbers takes what a step with numbers takes."""

import functools
import gc

import pytest
import torch
from tiny import MASK, tiny
from torch.utils.flop_counter import FlopCounterMode

from unmask import attention, cross_entropy, estimate, last_layer, models
from unmask.config import UserError
from unmask.estimate import Live, Shape, step

VOCABULARY = 3001
ADAM = functools.partial(torch.optim.AdamW, fused=True)


def make(**more):
    from transformers.initialization import no_init_weights

    with no_init_weights():
        return network(**more)


def network(**more):
    from unmask.models.llada import LLaDAConfig

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LLaDAConfig(**{**small, "intermediate_size": 48, "vocab_size": VOCABULARY, "mask_token_id": MASK, **more})
    import transformers

    made = transformers.AutoModelForCausalLM.from_config(config)
    made.get_input_embeddings().padding_idx = None
    return made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": 16 * 4 * VOCABULARY, "other": 16 * 4 * VOCABULARY})


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_and_operations_are_those_of_a_real_step(bfloat16, tied, checkpointing):
    shape = Shape(4, 32, 64, bfloat16=bfloat16, checkpointing=checkpointing)
    found = step(functools.partial(make, tie_word_embeddings=tied), shape, ADAM)

    with estimate._without_numbers(), Live() as live:
        model = make(tie_word_embeddings=tied).train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.01)
        if checkpointing:
            model.gradient_checkpointing_enable()
        attention.for_training(model)
        weights, optimiser = live.now, ADAM(model.parameters())
        with FlopCounterMode(display=False, custom_mapping=estimate._mapping()) as counter:
            estimate._loss(models.predictor(model), shape, shape.rows, shape.asked).backward()
        optimiser.zero_grad()  # counting keeps what checkpointing makes again, so the peak is taken without it
        gc.collect()
        live.peak = live.now
        for _ in range(2):
            estimate._loss(models.predictor(model), shape, shape.rows, shape.asked).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        peak = live.peak
    assert found.weights == weights
    assert found.operations == counter.get_total_flops()
    assert found.peak == pytest.approx(peak, rel=0.02)


def test_checkpointing_keeps_one_layers_activations():
    """The more layers, the larger its share of what it saves; counting operations used to hide that."""
    deep = functools.partial(make, num_hidden_layers=12)
    kept, made_again = (step(deep, Shape(8, 64, 8, checkpointing=on), ADAM).passing for on in (False, True))
    assert made_again < kept / 4


def test_what_stays_is_counted_by_hand():
    found = step(make, Shape(2, 16, 16), ADAM)
    numbers = network().num_parameters()
    assert found.parameters == found.trained == numbers
    assert found.gradients == 4 * numbers
    assert found.optimiser == pytest.approx(8 * numbers, rel=1e-3)  # two moments, and a count of steps for each matrix
    plain = step(make, Shape(2, 16, 16), functools.partial(torch.optim.SGD, lr=0.1))
    assert plain.optimiser == 0
    assert plain.peak < found.peak


def test_operations_are_those_of_the_books(monkeypatch):
    """Six for each number of a matrix and each place; attention twelve times places² times width; see Kaplan et al."""
    rows, places, asked, width, layers = 2, 32, 24, 32, 2
    found = step(make, Shape(rows, places, asked), ADAM)
    body = layers * (2 * width * width + 2 * width * width // 2 + 3 * width * 48)
    attention = 12 * places**2 * width * rows * layers
    head = 6 * asked * width * VOCABULARY
    at_places = width * width + 3 * width * 48  # what the last layer's places need that are not asked for
    spared = (rows * places - asked) * (6 * at_places + 12 * places * width)
    assert found.operations == 6 * body * rows * places + attention + head - spared
    monkeypatch.setattr(last_layer, "MOST", 0.0)
    whole = step(make, Shape(rows, places, asked), ADAM)
    assert whole.operations == 6 * body * rows * places + attention + head


def test_less_is_kept_where_less_has_to_be():
    usual = step(make, Shape(4, 64, 128), ADAM)
    deep = functools.partial(make, num_hidden_layers=6)
    kept = step(deep, Shape(4, 64, 128), ADAM).passing
    assert step(deep, Shape(4, 64, 128, checkpointing=True), ADAM).passing < kept
    assert step(make, Shape(8, 64, 256), ADAM).passing > usual.passing
    assert step(make, Shape(4, 64, 128, micro=2), ADAM).peak > usual.peak
    assert step(make, Shape(4, 64, 128, eval_rows=512), ADAM).peak > usual.peak


def test_an_adapter_alone_has_gradients():
    from unmask.adapters import LoraArguments, attach

    found = step(lambda: attach(make(), LoraArguments(r=4)), Shape(2, 16, 16), ADAM)
    assert found.trained < found.parameters / 5
    assert found.gradients == 4 * found.trained
    assert found.linear > 0
    assert found.linear_bytes == 4 * found.linear


def test_what_cannot_be_gone_through_is_named():
    def optimiser(groups):
        raise NotImplementedError("bitsandbytes has no shapes")

    with pytest.raises(UserError, match="cannot be estimated: bitsandbytes has no shapes"):
        step(make, Shape(2, 16, 16), optimiser)


def test_nothing_of_it_stays():
    before = cross_entropy._rare, cross_entropy.PLAIN, torch.nn.Module._apply
    step(make, Shape(2, 16, 16), ADAM)
    assert (cross_entropy._rare, cross_entropy.PLAIN, torch.nn.Module._apply) == before
    model = tiny("llada").to(torch.bfloat16)
    assert models.predictor(model)(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.bfloat16
