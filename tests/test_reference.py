"""`reference` is LLaDA's sampler token for token, and its draws follow the model's distribution."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import EOS, EOT, MASK, VOCABULARY, Toy, favouring, hashed

import unmask.models  # noqa: F401  registers LLaDA
from unmask import decoding
from unmask.canvas import Canvas
from unmask.config import UserError


@pytest.fixture(scope="module")
def tiny(shared):
    folder = shared / "fixtures" / "llada-tiny"
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("number", range(9))
def test_generated_tokens_are_the_official_ones(tiny, shared, number):
    told = json.loads((shared / "fixtures" / "llada-tiny" / "expected.json").read_text())
    case = told["generate"][number]
    options = dict(case["args"])
    if options.get("confidence_eos_eot_inf"):
        options["eot_token_id"] = [told["eot_id"]]
    mask = case["attention_mask"]
    out = tiny.generate(torch.tensor(case["prompt"]), torch.tensor(mask) if mask else None, **options)
    assert out.tolist() == case["output"]


def official(toy, prompt, new, steps, block_size, cfg_scale=0.0):
    """The official greedy loop for one row, written down once more with whole logits; all must divide."""
    x = torch.tensor([*prompt, *[MASK] * new])
    given_places = torch.arange(len(x)) < len(prompt)
    blocks = new // block_size
    for block in range(blocks):
        end = len(prompt) + (block + 1) * block_size
        count, each = block_size, steps // blocks
        for i in range(each):
            masked = x == MASK
            logits = toy.answer(x)
            if cfg_scale:
                bare = toy.answer(x.masked_fill(given_places, MASK))
                logits = bare + (cfg_scale + 1) * (logits - bare)
            p = torch.softmax(logits, -1)
            logits[:, MASK] = -torch.inf
            best = logits.argmax(-1)
            sure = p.gather(-1, best[:, None])[:, 0].masked_fill(~masked, -torch.inf)
            sure[end:] = -torch.inf
            chosen = sure.topk(count // each + (i < count % each)).indices
            x[chosen] = best[chosen]
    return x.tolist()


@given(
    st.lists(st.integers(0, MASK - 1), max_size=6), st.integers(1, 4), st.integers(1, 6), st.data(),
    st.sampled_from([0.0, 0.7]),
)  # fmt: skip
@settings(max_examples=50)
def test_any_length_is_written_as_the_official_loop_writes_it(prompt, blocks, block_size, data, cfg_scale):
    steps = blocks * data.draw(st.integers(1, block_size))
    toy, new = Toy(), blocks * block_size
    found = decoding.infill(toy, [[*prompt, *[None] * new]], steps=steps, block_size=block_size, cfg_scale=cfg_scale)
    assert found == [official(toy, prompt, new, steps, block_size, cfg_scale)]
    assert toy.passes == steps


SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 30)))


@given(SHAPES, st.sampled_from(["low_confidence", "random"]), st.booleans(), st.integers(0, 9))
@settings(max_examples=60)
def test_passes_are_the_steps_within_one_a_block_and_one_a_token(shape, remasking, stochastic, seed):
    new, steps, block_size = shape
    toy = Toy()
    canvas = Canvas.after([[1, 2, MASK]], new, MASK)
    decoding.fill(
        toy, canvas, steps=steps, block_size=block_size, remasking=remasking, seed=seed,
        stochastic_transfer=stochastic,
    )  # fmt: skip
    row = canvas.rows[0]
    blocks = -(-new // (block_size or new))
    wanted = min(max(steps, blocks), new)
    assert toy.passes <= wanted if stochastic else toy.passes == wanted
    assert not row.open.any()
    assert MASK not in row.answer.tolist()
    assert row.ids[:3].tolist() == [1, 2, MASK]
    assert row.finished == "length"


def test_the_surest_places_are_written_first():
    sure = torch.tensor([1.0, 5.0, 3.0, 4.0, 2.0])
    toy = Toy(favouring([1, 2, 3, 4, 5], sure))
    canvas = decoding.fill(toy, Canvas.after([[]], 5, MASK))
    assert canvas.rows[0].written_at.tolist() == [5, 1, 3, 2, 4]
    p = torch.softmax(toy.answer(torch.zeros(5)), -1).max(-1).values
    torch.testing.assert_close(canvas.rows[0].confidence, p)


def test_only_places_that_may_be_written_go_through_the_head():
    toy = Toy()
    decoding.generate(toy, torch.tensor([[1, 2, 3]]), max_new_tokens=8, block_size=4)
    assert toy.kept == 2 * (4 + 3 + 2 + 1)
    toy = Toy()
    decoding.generate(toy, torch.tensor([[1, 2, 3]]), max_new_tokens=8, block_size=4, remasking="random")
    assert toy.kept == 8


def test_random_places_are_any_places():
    toy = Toy(favouring([1, 2, 3], [9.0, 5.0, 1.0]))
    orders = set()
    for seed in range(60):
        canvas = decoding.fill(toy, Canvas.after([[]], 3, MASK), remasking="random", seed=seed)
        orders.add(tuple(canvas.rows[0].written_at.tolist()))
    assert len(orders) == 6


def test_stochastic_shares_are_binomial():
    # one of two steps: each of n places falls into the first with probability 1/2
    n, firsts = 40, []
    for seed in range(100):
        canvas = decoding.fill(
            Toy(favouring([1] * n)), Canvas.after([[]], n, MASK), steps=2, stochastic_transfer=True, seed=seed
        )
        firsts.append(int((canvas.rows[0].written_at == 1).sum()))
    mean = sum(firsts) / 100
    variance = sum((f - mean) ** 2 for f in firsts) / 99
    assert abs(mean - n / 2) < 4 * (n / 4 / 100) ** 0.5
    assert n / 4 / 2 < variance < n / 4 * 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits, n = hashed(torch.tensor([3])), 6000
    toy = Toy(lambda ids: logits.repeat(len(ids), 1))
    canvas = decoding.fill(toy, Canvas.after([[]], n, MASK), steps=1, temperature=temperature)
    possible = [t for t in range(VOCABULARY) if t != MASK]
    wanted = n * torch.softmax(logits[0, possible].double() / temperature, -1)
    found = torch.bincount(canvas.rows[0].ids, minlength=VOCABULARY)[possible]
    assert ((found - wanted) ** 2 / wanted).sum() < 29.6  # the 99.9 % quantile of chi-square with 10 degrees


def test_noise_is_drawn_in_float64(monkeypatch):
    drawn, rand = [], torch.rand

    def spy(*shape, **more):
        drawn.append(rand(*shape, **more))
        return drawn[-1]

    monkeypatch.setattr(torch, "rand", spy)
    decoding.generate(Toy(), torch.tensor([[1]]), max_new_tokens=3, temperature=1.0)
    assert {noise.dtype for noise in drawn} == {torch.float64}
    assert {noise.shape[1] for noise in drawn} == {VOCABULARY}


def test_a_draw_is_judged_by_the_models_own_probability():
    toy = Toy()
    canvas = decoding.fill(toy, Canvas.after([[]], 9, MASK), steps=1, temperature=1.0)
    row = canvas.rows[0]
    p = torch.softmax(hashed(torch.full((9,), MASK)), -1)
    torch.testing.assert_close(row.confidence, p.gather(1, row.ids[:, None])[:, 0])


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_seeds_repeat_and_different_seeds_and_rows_differ(remasking):
    def drawn(seed):
        prompt = torch.tensor([[1, 2], [1, 2]])
        return decoding.generate(
            Toy(), prompt, max_new_tokens=12, temperature=1.0, seed=seed, remasking=remasking
        ).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1)[0] != drawn(2)[0]
    assert drawn(1)[0] != drawn(1)[1]


def test_greedy_and_surest_need_no_seed():
    answers = {
        tuple(decoding.generate(Toy(), torch.tensor([[1]]), max_new_tokens=9, seed=seed)[0].tolist())
        for seed in range(4)
    }
    assert len(answers) == 1


def order(tokens, sureness, **options):
    """When each place was written, its token and the place's block; places answer independently."""
    canvas = Canvas.after([[]], len(tokens), MASK)
    decoding.fill(Toy(favouring(tokens, torch.tensor(sureness))), canvas, **options)
    return canvas.rows[0].written_at.tolist(), canvas.rows[0].ids.tolist()


TOKENS, SURE = [EOS, 1, EOT, 2, 3, EOS, 4, 5], [9.0, 2.0, 8.0, 1.0, 1.0, 9.0, 2.0, 3.0]


@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_ends_held_back_are_written_last_within_their_block(temperature):
    options = {"block_size": 4, "eot_token_id": [EOT], "temperature": temperature}
    when, ids = order(TOKENS, SURE, **options)
    assert ids == TOKENS
    assert (when[0], when[2], when[5]) == (1, 2, 5)
    when, ids = order(TOKENS, SURE, confidence_eos_eot_inf=True, **options)
    assert ids == TOKENS
    assert {when[0], when[2]} == {3, 4}
    assert when[5] == 8


def test_compat_llada_holds_back_only_the_end_of_turn_above_temperature_0():
    options = {"eot_token_id": [EOT], "confidence_eos_eot_inf": True, "compat": "llada"}
    when, _ = order(TOKENS, SURE, temperature=1e-4, **options)
    assert when[2] == 8
    assert {when[0], when[5]} == {1, 2}
    when, _ = order(TOKENS, SURE, **options)
    assert {when[0], when[2], when[5]} == {6, 7, 8}


def test_begin_suppressed_tokens_are_written_last_and_suppressed_ones_never():
    when, ids = order(TOKENS, SURE, begin_suppress_tokens=[EOS])
    assert ids == TOKENS
    assert {when[0], when[5]} == {7, 8}
    for options in ({"suppress_tokens": [EOS, 1]}, {"logits_eos_inf": True, "suppress_tokens": [1]}):
        _, ids = order(TOKENS, SURE, **options)
        assert EOS not in ids
        assert 1 not in ids
        assert EOT in ids
        _, ids = order(TOKENS, SURE, temperature=3.0, **options)
        assert not {EOS, 1} & set(ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_is_never_written_however_likely(temperature):
    canvas = Canvas.after([[MASK, 3]], 6, MASK)
    decoding.fill(Toy(favouring([MASK] * 8, 50.0)), canvas, temperature=temperature)
    assert MASK not in canvas.rows[0].answer.tolist()
    assert not canvas.rows[0].open.any()


def test_random_places_cannot_hold_tokens_back():
    with pytest.raises(UserError, match="use remasking low_confidence, or --suppress_tokens"):
        decoding.generate(Toy(), torch.tensor([[1]]), remasking="random", begin_suppress_tokens=[EOS])
