"""Options: what is drawn, what is barred, where an answer ends, what is given; and one line for what cannot be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MASK as NETWORKS_MASK
from tiny import tiny
from toy import EOS, EOT, MASK, VOCABULARY, Toy, favouring, hashed
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import unmask.models
from unmask import decoding, signals
from unmask.canvas import Canvas
from unmask.config import UserError
from unmask.options import Options, Reading


def fill(predict, prompt, new, mask=MASK, constraints=None, **options):
    """One row, filled."""
    canvas = Canvas.after([prompt], new, mask, constraints=constraints)
    return decoding.fill(predict, canvas, **options).rows[0]


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


@given(
    st.integers(0, 10**6),
    st.integers(2, 40),
    st.floats(0.1, 3),
    st.one_of(st.none(), st.integers(1, 50)),
    st.one_of(st.none(), st.floats(0.05, 0.95)),
)
@settings(max_examples=100)
def test_what_may_be_drawn_is_what_transformers_leaves(seed, vocabulary, temperature, top_k, top_p):
    logits = 3 * torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(seed))
    kept = signals.likeliest(logits, Reading(temperature=temperature, top_k=top_k, top_p=top_p))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    wanted = warpers(None, logits)
    assert kept.isneginf().equal(wanted.isneginf())
    torch.testing.assert_close(kept / temperature, wanted)


def test_equal_logits_leave_as_many_as_are_asked_for():
    kept = signals.likeliest(torch.zeros(1, 10), Reading(temperature=1.0, top_k=3))
    assert int(kept.isfinite().sum()) == 3
    kept = signals.likeliest(torch.zeros(1, 10), Reading(temperature=1.0, top_p=0.35))
    assert int(kept.isfinite().sum()) == 4


@pytest.mark.parametrize("rule", ["reference", "threshold", "entropy_bound"])
@given(st.integers(0, 99), st.integers(1, 12), st.sampled_from([{"top_k": 1}, {"top_p": 1e-6}]))
@settings(max_examples=15)
def test_among_one_the_likeliest_is_drawn(rule, seed, new, among):
    row = fill(Toy(), [1, 2], new, rule=rule, temperature=1.0, seed=seed, **among)
    greedy = fill(Toy(), [1, 2], new, rule=rule)
    assert row.ids.equal(greedy.ids)
    assert row.written_at.equal(greedy.written_at)


def test_draws_are_of_the_kept_tokens_in_their_proportion():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, *[-2.0] * 8])
    toy = Toy(lambda ids: logits.expand(len(ids), -1).clone())
    row = fill(toy, [], 4000, temperature=0.8, top_k=3, block_size=4000, steps=1)
    p = torch.softmax(logits[:3] / 0.8, -1)
    found = torch.bincount(row.ids, minlength=VOCABULARY) / 4000
    assert not found[3:].any()
    # six standard deviations
    assert ((found[:3] - p).abs() < 6 * (p * (1 - p) / 4000).sqrt()).all()


def test_a_drawn_token_is_judged_by_the_models_own_probability():
    row = fill(Toy(), [3], 8, temperature=1.5, top_k=4, steps=1)
    p = torch.softmax(hashed(torch.tensor([3, *[MASK] * 8])), -1)[1:]
    torch.testing.assert_close(row.confidence[1:], p.gather(1, row.answer[:, None])[:, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Ends


def wishing(seed):
    """Depends on the row, and likes ends."""

    def answer(ids):
        logits = hashed(torch.cat([torch.tensor([seed]), ids]))[1:]
        logits[:, EOS] += 1.0
        return logits

    return answer


@given(st.integers(0, 99), st.integers(1, 14), st.integers(0, 16), st.sampled_from([0.0, 0.7]))
@settings(max_examples=40)
def test_no_end_is_written_among_the_first_tokens(seed, new, least, temperature):
    options = {"temperature": temperature, "eot_token_id": [EOT], "block_size": 5}
    row = fill(Toy(wishing(seed)), [4, 4], new, min_new_tokens=least, **options)
    assert not {EOS, EOT} & {*row.answer[:least].tolist()}
    barred = fill(Toy(wishing(seed)), [4, 4], new, suppress_tokens=[EOS, EOT], **options)
    free = fill(Toy(wishing(seed)), [4, 4], new, **options)
    wanted = barred if least >= new else free if not least else row
    assert row.ids.equal(wanted.ids)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(0, 12))
@settings(max_examples=30)
def test_where_no_end_would_come_a_minimum_changes_nothing(seed, new, least):
    def answer(ids):
        logits = hashed(torch.cat([torch.tensor([seed]), ids]))[1:]
        logits[:, [EOS, EOT]] = -torch.inf
        return logits

    options = {"eot_token_id": [EOT], "rule": "threshold", "threshold": 0.3}
    row, plain = (fill(Toy(answer), [1], new, min_new_tokens=n, **options) for n in (least, 0))
    assert row.ids.equal(plain.ids)
    assert row.written_at.equal(plain.written_at)


def test_a_minimum_counts_the_answers_own_places():
    tokens = [5, 5, 5, *[EOS] * 8]
    assert fill(Toy(favouring(tokens)), [5] * 3, 8, min_new_tokens=2).answer.tolist() == [0, 0, *[EOS] * 6]
    row = fill(Toy(favouring(tokens)), [5] * 3, 8, min_new_tokens=3, constraints={1: 7})
    assert row.answer.tolist() == [0, 7, 0, *[EOS] * 5]


class Speller(Toy):
    """Sure of the bytes of a text, the surer the farther to the left, and of the end behind them."""

    mask_id, vocab_size, eos_id = 258, 262, 257

    def __init__(self, text, tokenizer):
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, *[257] * 400]

        def answer(shown):
            logits = torch.zeros(len(shown), 262)
            logits[torch.arange(len(shown)), torch.tensor(ids[: len(shown)])] = 9 - torch.arange(len(shown)) / 50
            return logits

        super().__init__(answer)

    def __call__(self, ids, *, attention=None, positions=None, cache=None, keep=None, read=None):
        logits = torch.stack([self.answer(row) for row in ids])
        self.passes += 1
        chosen = logits[keep]
        return read(chosen, lambda same: same)


@given(
    st.text("abcé ", max_size=8).filter(lambda t: "END" not in t),
    st.sampled_from([["END"], ["nowhere", "END"], ["ND", "END"], ["END rest", "ND r"]]),
    st.integers(1, 6),
)
@settings(max_examples=30)
def test_a_stop_string_ends_the_row_when_all_before_it_stands(byte_tokenizer, before, stops, block_size):
    whole, new = before + "END rest of it", 40
    toy, untouched = (Speller(whole, byte_tokenizer) for _ in range(2))
    row = fill(toy, [], new, 258, stop_strings=stops, tokenizer=byte_tokenizer, block_size=block_size)
    plain = fill(untouched, [], new, 258, block_size=block_size)
    # one place a step from the left: the row ends at the very step at which a stop string is complete
    ready = min(whole.find(stop) + len(stop) for stop in stops if stop in whole)
    at = min(whole.find(stop) for stop in stops if stop in whole[:ready])
    assert row.finished == "stop"
    assert row.cut == len(whole[:at].encode())
    assert byte_tokenizer.decode(row.answer[: row.cut]) == whole[:at]
    passes = len(whole[:ready].encode())
    assert row.passes == toy.passes == passes < untouched.passes == new
    assert row.ids[:passes].equal(plain.ids[:passes])
    assert set(row.ids[passes:].tolist()) == {257}
    assert not row.open.any()


def test_a_stop_string_waits_for_what_stands_open_before_it(byte_tokenizer):
    class Backwards(Speller):
        def __init__(self, text, tokenizer):
            super().__init__(text, tokenizer)
            forwards = self.answer
            self.answer = lambda ids: forwards(ids) * torch.linspace(0.5, 1, len(ids))[:, None]

    toy = Backwards("one STOP", byte_tokenizer)
    row = fill(toy, [], 8, 258, stop_strings=["STOP"], tokenizer=byte_tokenizer)
    assert row.step == 8  # from the right: the text stood after four steps already
    assert row.cut == 4
    assert row.written_at[-1] < row.written_at[0]


def test_no_stop_string_no_cut(byte_tokenizer):
    row = fill(Speller("all of it", byte_tokenizer), [], 12, 258, stop_strings=["x"], tokenizer=byte_tokenizer)
    assert row.cut is None
    assert row.finished == "length"


def test_a_prompts_own_stop_string_ends_nothing(byte_tokenizer):
    prompt = byte_tokenizer("STOP ", add_special_tokens=False).input_ids
    row = fill(Speller("STOP abc", byte_tokenizer), prompt, 4, 258, stop_strings=["STOP"], tokenizer=byte_tokenizer)
    assert row.finished == "length"
    assert row.cut is None


def test_stop_strings_need_a_tokenizer_and_an_end(byte_tokenizer):
    with pytest.raises(UserError, match="give the tokenizer too, as tokenizer=…"):
        fill(Toy(), [1], 4, stop_strings=["x"])
    toy = Speller("a", byte_tokenizer)
    toy.eos_id = None
    with pytest.raises(UserError, match="give --eos_token_id"):
        fill(toy, [], 4, 258, stop_strings=["x"], tokenizer=byte_tokenizer)


# ---------------------------------------------------------------------------------------------------------------------
# Constraints


@given(st.integers(1, 12), st.data(), st.sampled_from([None, 3]), st.sampled_from(["reference", "threshold", "wino"]))
@settings(max_examples=40)
def test_what_is_constrained_stands_in_the_answer(new, data, block_size, rule):
    wanted = data.draw(st.dictionaries(st.integers(0, new - 1), st.integers(0, EOS)))
    row = fill(Toy(), [1, 2], new, constraints=wanted, rule=rule, block_size=block_size)
    text = [1, 2, *[wanted.get(i) for i in range(new)]]
    assert decoding.infill(Toy(), [text], rule=rule, block_size=block_size) == [row.ids.tolist()]
    for place, token in wanted.items():
        assert int(row.answer[place]) == token
        assert int(row.written_at[2 + place]) == 0
    assert row.tokens == new - len(wanted) or EOS in row.answer.tolist()


def test_several_tokens_may_stand_at_a_constraint():
    row = fill(Toy(), [1], 6, constraints={0: [4, 5], 3: 6})
    assert row.answer[[0, 1, 3]].tolist() == [4, 5, 6]
    out = decoding.generate(Toy(), torch.tensor([[1], [2]]), max_new_tokens=6, constraints={0: [4, 5], 3: 6})
    assert out[0].tolist() == row.ids.tolist()
    assert out[1, [1, 2, 4]].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("constraints", "says"),
    [
        ({6: 1}, "the constraint at 6 lies outside the answer's 6 tokens, 0 to 5"),
        ({-1: 1}, "the constraint at -1 lies outside"),
        ({4: [1, 2, 3]}, "the constraint at 4 lies outside"),
        ({0: [1, 2], 1: 3}, "two constraints want the answer's token 1"),
        ({2: VOCABULARY}, "outside the model's vocabulary of 12"),
    ],
)
def test_constraints_that_cannot_be_are_refused_in_one_line(constraints, says):
    with pytest.raises(UserError, match=says) as error:
        fill(Toy(), [1], 6, constraints=constraints)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Steps


@pytest.mark.parametrize("rule", ["reference", "threshold", "remdm"])
def test_more_steps_than_tokens_are_remarked_on_and_not_refused(rule, capsys):
    row = fill(Toy(), [1], 5, steps=9, rule=rule)
    assert "--steps 9 is more than the 5 places to write" in " ".join(capsys.readouterr().err.split())
    assert row.step == 5
    fill(Toy(), [1], 5, steps=5, rule=rule)
    assert not capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Networks


@pytest.fixture(scope="module")
def network():
    return unmask.models.predictor(tiny("llama"))


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_broken_weight_is_named_by_the_first_module_it_is_seen_in(layer, cache):
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[layer].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(
        UserError, match=rf"NaN.*first is in model\.layers\.{layer}\.mlp\.up_proj, whose input"
    ) as error:
        fill(unmask.models.predictor(model), [1, 2], 4, NETWORKS_MASK, cache=cache)
    assert "\n" not in str(error.value)
    assert not any(module._forward_hooks for module in model.modules())


class TwoHeads(unmask.models.Predictor):
    """Guides logits and not hidden states, as a head that is not linear must."""

    linear_head = property(lambda self: False, lambda self, value: None)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_guidance_through_the_head_once_is_guidance_of_logits(network, scale):
    twice, logits = TwoHeads(network.model), []
    assert network.linear_head
    assert not twice.linear_head
    for predict in (network, twice):
        applied = []

        class Counting(type(predict)):
            def __call__(self, ids, *, read, applied=applied, **more):
                def counted(hidden, head):
                    return read(hidden, lambda some: applied.append(some) or head(some))

                return super().__call__(ids, read=counted, **more)

        row = fill(Counting(network.model), [3, 1, 4], 10, NETWORKS_MASK, cfg_scale=scale, block_size=4)
        logits.append((row, len(applied)))
    (once, fewer), (both, more) = logits
    assert once.ids.equal(both.ids)
    torch.testing.assert_close(once.confidence, both.confidence, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert more == 2 * fewer == 2 * once.step
    assert once.passes == both.passes == 2 * once.step


def test_guidance_is_its_formula_and_unguided_at_0(network):
    ids = torch.tensor([3, 1, 4, *[NETWORKS_MASK] * 5])
    seeing, bare = network(torch.stack([ids, torch.where(ids == 4, ids, NETWORKS_MASK)]))
    for scale in (0.0, 0.7, 3.0):
        p = torch.softmax(bare + (scale + 1) * (seeing - bare), -1)[3:]
        p_of_tokens = p.clone()
        p_of_tokens[:, NETWORKS_MASK] = 0
        row = fill(network, [3, 1, 4], 5, NETWORKS_MASK, steps=1, cfg_scale=scale, cfg_keep_tokens=[4])
        assert row.answer.equal(p_of_tokens.argmax(-1))
        torch.testing.assert_close(row.confidence[3:], p_of_tokens.amax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", ["wino", "remdm", "threshold"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "llada"])
def test_the_back_end_of_attention_changes_no_answer(rule, kind):
    options = {"rule": rule, "block_size": 6} | ({"draft": 0.05, "verify": 0.2} if rule == "wino" else {})
    texts = [[1, 2, 3, *[None] * 12], [7, None, None, 9, None], [5, 30, *[None] * 15]]
    answers = []
    for attention in ("eager", "sdpa"):
        predict = unmask.models.predictor(tiny(kind, attention=attention))
        canvas = decoding.fill(predict, Canvas.of(texts, NETWORKS_MASK), **options)
        answers.append([(row.ids.tolist(), row.written_at.tolist(), row.passes) for row in canvas.rows])
    assert answers[0] == answers[1]
    assert rule != "wino" or sum(passes for *_, passes in answers[0]) > 6  # some were taken back, and written again


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *[
            ({name: value}, f"--{name} is {value}; it must be at least 1")
            for name in ("steps", "block_size")
            for value in (0, -3)
        ],
        ({"top_k": 0, "temperature": 1.0}, "--top_k is 0; it must be at least 1"),
        *[
            ({name: value}, f"--{name} is {value}; it must be 0 or more")
            for name in ("temperature", "cfg_scale")
            for value in (-0.5, math.nan, math.inf)
        ],
        *[
            ({"top_p": value, "temperature": 1.0}, f"--top_p is {value}; it must be above 0 and at most 1")
            for value in (0.0, -0.1, 1.01, math.nan)
        ],
        ({"top_k": 5}, "--top_k limits what is drawn, and at temperature 0 nothing is"),
        ({"top_p": 0.5}, "--top_p limits what is drawn, and at temperature 0 nothing is"),
        ({"min_new_tokens": -1}, "--min_new_tokens is -1; it must be 0 or more"),
        ({"stop_strings": ["a", ""]}, "--stop_strings has an empty text"),
    ],
)
def test_a_value_that_cannot_be_is_named_in_one_line(options, says):
    with pytest.raises(UserError, match=says) as error:
        Options(**options).check()
    assert "\n" not in str(error.value)
    toy = Toy()
    with pytest.raises(UserError, match=says):
        fill(toy, [1], 4, **options)
    assert not toy.passes


def test_the_defaults_can_be():
    Options().check()
    Options(temperature=0.7, top_k=1, top_p=1.0, steps=1, block_size=1, min_new_tokens=5, stop_strings=["x"]).check()
