"""Packed = unpacked, loss and gradients, on each back end that runs here; what is not known is refused."""

import pytest
import torch
from tiny import MASK, batch_of, conversation, gradients, tiny

from unmask import attention, models, objectives
from unmask.config import UserError
from unmask.packing import Packed

SEGMENTS = torch.tensor([[3, 3, 3, 0, 0, 1], [2, 2, -1, -1, -1, -1], [4, 5, 5, 6, -1, -1]])
LENGTHS = [9, 3, 4, 1, 5, 2, 9, 1]


def test_places_are_counted_from_0_in_each_conversation():
    assert attention.positions(SEGMENTS).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3], [0, 0, 1, 0, 0, 1]]


def dense(mask, places):
    """What a BlockMask lets through: (rows, places, places)."""
    ask, asked = torch.meshgrid(torch.arange(places), torch.arange(places), indexing="ij")
    return torch.stack([mask.mask_mod(torch.tensor(row), torch.tensor(0), ask, asked) for row in range(len(SEGMENTS))])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("back_end", attention.MASKED)
def test_every_back_end_is_told_the_same(back_end, causal):
    model = tiny(causal=causal)
    model.config._attn_implementation = back_end
    with torch.compiler.set_stance("force_eager"):
        told = attention.packed(model.config, SEGMENTS, torch.float32)["attention_mask"]
    if back_end == "eager":
        assert set(told.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}
        may = told[:, 0] == 0
    else:
        may = told[:, 0] if back_end == "sdpa" else dense(told, SEGMENTS.shape[1])
    wanted = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
    assert torch.equal(may, wanted.tril() if causal else wanted)
    assert may.any(-1).all()  # padding too sees something, else it would be NaN


def test_flash_attention_is_told_the_lengths_of_all_that_lies_end_to_end():
    model = tiny()
    model.config._attn_implementation = "flash_attention_2"
    told = attention.packed(model.config, SEGMENTS, torch.float32)
    assert "attention_mask" not in told
    assert told["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 8, 12, 13, 15, 16, 18]
    assert told["cu_seq_lens_q"].dtype == torch.int32
    assert (told["max_length_q"], told["max_length_k"]) == (4, 4)


@pytest.mark.parametrize("kind", ["llada", "qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_conversations_taken_one_by_one_have_the_loss_and_gradients_of_the_masked_square(kind, causal, checkpointing):
    found = []
    for one_by_one in (False, True):
        model = tiny(kind, causal).train()
        if one_by_one:
            attention.for_training(model)
            assert model.config._attn_implementation == attention.ONE_BY_ONE
        if checkpointing:
            model.gradient_checkpointing_enable()
        objective = objectives.load("autoregressive" if causal else "masked", {}, MASK)
        predict = Packed(models.predictor(model))
        loss = objective(predict, batch_of(objective, [conversation(n, seed=n) for n in LENGTHS]))
        loss.total.backward()
        found.append((loss.nats, gradients(model)))
        model.zero_grad()
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    for one, other in zip(found[0][1].values(), found[1][1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_what_is_not_packed_sees_what_it_saw():
    attended = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    ids = torch.arange(10).view(2, 5)
    model = tiny()
    before = models.predictor(model)(ids, attention=attended)
    attention.for_training(model)
    torch.testing.assert_close(models.predictor(model)(ids, attention=attended)[attended], before[attended])


def test_other_back_ends_and_windows_keep_their_attention():
    for model in (
        tiny(attention="eager"),
        tiny("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ):
        before = model.config._attn_implementation
        attention.for_training(model)
        assert model.config._attn_implementation == before


def test_an_unknown_back_end_is_refused():
    model = tiny()
    model.config._attn_implementation = "paged|sdpa"
    with pytest.raises(UserError, match=r"how 'paged\|sdpa' keeps .* use --attn_implementation sdpa, eager"):
        models.predictor(model)(torch.zeros(3, 6, dtype=torch.long), segments=SEGMENTS)


def test_a_window_smaller_than_the_conversations_is_refused():
    model = tiny("gemma2", sliding_window=4, attention="eager")
    with pytest.raises(UserError, match=r"sliding_window of 4 .* conversations of 6 tokens"):
        models.predictor(model)(torch.zeros(3, 6, dtype=torch.long), segments=SEGMENTS)


def loss_of(model, name, settings, wrap, **how):
    objective = objectives.load(name, settings, MASK)
    rows = [conversation(n, prompt=min(2, n - 1) if i % 2 else 0, seed=i) for i, n in enumerate(LENGTHS)]
    batch = batch_of(objective, rows, **how)
    loss = objective(wrap(models.predictor(model)), batch)
    return loss, loss.total / objective.count(batch)


KINDS = [("llada", "masked"), ("qwen2", "masked"), ("llama", "masked"), ("gemma2", "masked")]
KINDS += [("llada", "autoregressive"), ("qwen2", "autoregressive"), ("qwen3", "autoregressive")]


ON = [(back_end, *kind) for back_end in ("sdpa", "eager") for kind in KINDS]
ON.remove(("sdpa", "gemma2", "masked"))  # Gemma 2 caps its scores, which sdpa cannot


@pytest.mark.parametrize("normalise", ["sequence", "token"])
@pytest.mark.parametrize(("back_end", "kind", "name"), ON)
def test_packed_is_unpacked_in_loss_and_gradients(back_end, kind, name, normalise):
    model = tiny(kind, name == "autoregressive", back_end)
    found = []
    for wrap in (lambda same: same, Packed):
        loss, total = loss_of(model, name, {"normalise": normalise}, wrap)
        total.backward()
        found.append((loss, total, gradients(model)))
    (plain, one, whole), (packed, two, other) = found
    assert one.item() > 0.1
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed.nats, plain.nats, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.plain, plain.plain, rtol=1e-5, atol=1e-5)
    assert whole.keys() == other.keys()
    for key in whole:
        torch.testing.assert_close(other[key], whole[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["masked", "autoregressive"])
@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def test_packed_is_unpacked_in_loss_with_flex_attention(stance, name):
    """Forward only: flex attention has no backward on a CPU (torch 2.13)."""
    model = tiny("llama", name == "autoregressive", "flex_attention")
    sdpa = tiny("llama", name == "autoregressive", "sdpa")
    with torch.no_grad(), torch.compiler.set_stance(stance):
        found = [loss_of(m, name, {}, wrap)[1].item() for m, wrap in ((sdpa, lambda same: same), (model, Packed))]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["masked", "autoregressive"])
@pytest.mark.parametrize("back_end", ["sdpa", "eager", "flex_attention", "flash_attention_2"])
def test_packed_is_unpacked_on_a_gpu(back_end, name):
    flash = back_end == "flash_attention_2"
    if flash:
        pytest.importorskip("flash_attn")
    found = []
    for attn, wrap in (("sdpa", lambda same: same), (back_end, Packed)):
        model = (
            tiny("llama", name == "autoregressive", attn, hidden_size=64)
            .cuda()
            .to(torch.bfloat16 if flash else torch.float32)
        )
        objective = objectives.load(name, {}, MASK)
        batch = {k: v.cuda() for k, v in batch_of(objective, [conversation(n) for n in LENGTHS]).items()}
        total = objective(wrap(models.predictor(model)), batch).total / objective.count(batch)
        total.backward()
        found.append((total.item(), torch.cat([g.flatten() for g in gradients(model).values()])))
    (one, whole), (two, other) = found
    assert two == pytest.approx(one, rel=3e-2 if flash else 1e-4)
    assert torch.cosine_similarity(whole.float(), other.float(), dim=0) > (0.98 if flash else 0.9999)


def test_a_shifted_mask_predictor_is_itself_when_packed():
    """Dream's way: bidirectional, and place i speaks of token i + 1; a conversation's first token has only its own."""
    model = tiny("qwen2")
    model.config.shift = 1
    found = [loss_of(model, "masked", {}, wrap)[0].nats for wrap in (lambda same: same, Packed)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_half_precision_masks_have_no_nan():
    model = tiny("llama", attention="eager").to(torch.bfloat16)
    ids = torch.zeros(3, 6, dtype=torch.long)
    assert models.predictor(model)(ids, segments=SEGMENTS).isfinite().all()
