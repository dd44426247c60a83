"""Likelihood: against the official code's numbers, against enumeration, and the estimators against each other."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MASK as TINY_MASK
from tiny import tiny
from toy import MASK, VOCABULARY, Toy, hashed

from unmask import estimators, likelihood, models
from unmask.config import UserError
from unmask.estimators import Request, Settings
from unmask.forward import Predictor
from unmask.likelihood import Scorer

TOKENS = st.integers(0, 8)


def score(predict, request, causal=False, batch_size=None, **how):
    [(_, found)] = Scorer(predict, Settings(**how), causal=causal, batch_size=batch_size).scores([request])
    return found


def all_of(scorer, requests):
    return [found for _, found in sorted(scorer.scores(requests), key=lambda pair: pair[0])]


def log_p(answer, given_, target, masked):
    """log p of the target's tokens at its masked places, by a model `answer` (ids → logits): {place: log p}."""
    ids = torch.tensor([*given_, *(MASK if i in masked else token for i, token in enumerate(target))])
    nats = torch.log_softmax(answer(ids), -1)[len(given_) :]
    return {i: float(nats[i, target[i]]) for i in masked}


def by_orders(answer, given_, target):
    """The mean over all orders of the chain rule: the independent oracle of the bound."""
    totals = []
    for order in itertools.permutations(range(len(target))):
        left, total = set(order), 0.0
        for place in order:
            total += log_p(answer, given_, target, left)[place]
            left.remove(place)
        totals.append(total)
    return sum(totals) / len(totals)


# ---------------------------------------------------------------------------------------------------------------------
# Oracles


@pytest.fixture(scope="module")
def official(shared):
    folder = shared / "fixtures" / "llada-tiny"
    expected = json.loads((folder / "expected.json").read_text())["loglikelihood"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return models.predictor(model), expected


def test_exact_values_are_those_of_the_official_estimator_enumerated(official):
    predict, expected = official
    for one in expected:
        found = score(predict, Request(tuple(one["prompt"]), tuple(one["answer"])), likelihood="exact")
        assert found.nats == pytest.approx(one["exact"], abs=2e-5 * len(one["answer"]))
        assert found.se == 0


def test_monte_carlo_is_within_four_standard_errors_of_the_official_values(official):
    predict, expected = official
    for one in expected[2:]:
        request = Request(tuple(one["prompt"]), tuple(one["answer"]))
        for kind, draws in (("exact_count", 2), ("exact_count", 48), ("bernoulli", 512)):
            if kind == "exact_count" and 2 ** len(one["answer"]) - 1 <= draws:
                continue
            found = score(predict, request, likelihood=kind, mc_num=draws)
            assert found.se > 0
            assert abs(found.nats - one["exact"]) < 4 * found.se + 1e-3 * abs(one["exact"]), (kind, draws)


@settings(max_examples=12)
@given(st.lists(TOKENS, max_size=3), st.lists(TOKENS, min_size=1, max_size=4))
def test_the_exact_value_is_the_mean_over_all_orders_of_the_chain_rule(given_, target):
    found = score(Toy(), Request(tuple(given_), tuple(target)), likelihood="exact")
    assert found.nats == pytest.approx(by_orders(hashed, given_, target), abs=1e-4)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.lists(TOKENS, min_size=2, max_size=4), st.integers(0, 10**30))
def test_all_estimators_agree_in_expectation_on_random_models(salt, target, place):
    def answer(ids):
        return hashed(torch.cat([torch.tensor([salt % 97, salt % 89]), ids]))[2:]

    request = Request((salt % 9,), tuple(target), place)
    exact = score(Toy(answer), request, likelihood="exact")
    for kind, draws in (("exact_count", 400), ("bernoulli", 1600), ("any_order", 400)):
        # the rule that few looks are exact is left out here: the draws themselves are to be tested
        plans = {
            "exact_count": lambda how: estimators.drawn(request, how, estimators.counted),
            "bernoulli": lambda how: estimators.drawn(request, how, estimators.tossed),
            "any_order": lambda how: estimators.chained(len(target), estimators.orders(request, how)),
        }
        found = run(plans[kind](Settings(mc_num=draws)), answer, request)
        assert abs(found.nats - exact.nats) < 5 * found.se + 2e-3 * abs(exact.nats), kind


def run(plan, answer, request):
    """A plan carried out by hand, one look at a time."""
    looks = next(plan)
    while True:
        found = []
        for look in looks:
            nats = log_p(answer, request.given, request.target, set(np.flatnonzero(look.masked).tolist()))
            found.append(estimators.Found(np.array([nats[i] for i in look.read.tolist()]), np.zeros(len(look.read))))
        try:
            looks = plan.send(found)
        except StopIteration as stop:
            return stop.value


@settings(max_examples=10)
@given(st.lists(TOKENS, max_size=3), st.lists(TOKENS, min_size=1, max_size=6))
def test_left_to_right_is_the_chain_rule_written_out(given_, target):
    found = score(Toy(), Request(tuple(given_), tuple(target)), likelihood="left_to_right")
    by_hand = sum(log_p(hashed, given_, target, set(range(i, len(target))))[i] for i in range(len(target)))
    assert found.nats == pytest.approx(by_hand, abs=1e-4)
    assert (found.se, found.looks) == (0, len(target))


@settings(max_examples=10)
@given(st.lists(TOKENS, max_size=3), st.lists(TOKENS, min_size=1, max_size=5))
def test_confidence_takes_the_surest_token_first(given_, target):
    left, total = set(range(len(target))), 0.0
    while left:
        nats = log_p(hashed, given_, target, left)
        surest = max(sorted(nats), key=nats.get)
        total += nats[surest]
        left.remove(surest)
    found = score(Toy(), Request(tuple(given_), tuple(target)), likelihood="confidence")
    assert found.nats == pytest.approx(total, abs=1e-4)


def test_a_model_that_knows_nothing_scores_log_vocabulary_by_every_estimator():
    flat = Toy(lambda ids: torch.zeros(len(ids), VOCABULARY))
    for kind in ("exact_count", "exact", "left_to_right", "any_order", "confidence"):
        found = score(flat, Request((1,), (2, 3, 4), 5), likelihood=kind, mc_num=4)
        assert found.nats == pytest.approx(-3 * math.log(VOCABULARY), rel=1e-6)
        assert found.se == pytest.approx(0, abs=1e-9)


def test_a_causal_model_scores_as_transformers_does():
    model = tiny("llama", causal=True)
    given_, target = (1, 5, 9), (4, 4, 7, 30)
    ids = torch.tensor([[*given_, *target]])
    nats = torch.log_softmax(model(input_ids=ids).logits[0], -1)
    wanted = sum(float(nats[len(given_) - 1 + i, token].detach()) for i, token in enumerate(target))
    found = score(Predictor(model, shift=0), Request(given_, target), causal=True)
    assert found.nats == pytest.approx(wanted, abs=1e-5)
    assert found.greedy == all(int(nats[len(given_) - 1 + i].argmax()) == token for i, token in enumerate(target))


def test_draws_that_mask_nothing_cost_nothing_and_count_as_zero():
    """Bernoulli's at small t; at one draw of a target of two tokens about one in three."""
    found = [score(Toy(), Request((1,), (0, 0), i), likelihood="bernoulli", mc_num=1) for i in range(40)]
    assert {one.looks for one in found} == {0, 1}
    assert all((one.nats == 0) == (one.looks == 0) for one in found)


def test_guidance_is_bare_plus_scaled_difference():
    model = tiny("llada")
    predict, w = models.predictor(model), 1.5
    given_, target = (1, 5, 9), (7,)
    with torch.no_grad():
        seen, bare = (
            model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in ([*given_, TINY_MASK], [TINY_MASK] * 4)
        )
    wanted = torch.log_softmax(bare + (w + 1) * (seen - bare), -1)[7]
    assert score(predict, Request(given_, target), cfg_scale=w).nats == pytest.approx(float(wanted), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Batches, sharing


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.lists(TOKENS, max_size=6), st.lists(TOKENS, min_size=1, max_size=7)), min_size=1, max_size=6),
    st.integers(1, 9),
    st.sampled_from(["exact_count", "bernoulli", "left_to_right", "any_order", "confidence"]),
    st.sampled_from([0.0, 0.5]),
)
def test_a_request_alone_equals_the_request_in_any_batch(pairs, batch_size, kind, scale):
    how = Settings(likelihood=kind, mc_num=3, cfg_scale=scale)
    requests = [Request(tuple(g), tuple(t), 11 * i) for i, (g, t) in enumerate(pairs)]
    together = all_of(Scorer(Toy(), how, batch_size=batch_size), requests)
    alone = [all_of(Scorer(Toy(), how), [request])[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-5)
        assert (one.looks, one.greedy) == (other.looks, other.greedy)


def test_a_network_scores_a_request_alone_as_in_a_batch():
    predict = models.predictor(tiny("llada"))
    random = np.random.default_rng(0)
    requests = [
        Request(tuple(random.integers(0, 38, int(n)).tolist()), tuple(random.integers(0, 38, int(m)).tolist()), i)
        for i, (n, m) in enumerate(zip(random.integers(0, 30, 12), random.integers(1, 9, 12), strict=True))
    ]
    how = Settings(mc_num=5)
    together = all_of(Scorer(predict, how, batch_size=7), requests)
    for request, found in zip(requests, together, strict=True):
        assert all_of(Scorer(predict, how), [request])[0].nats == pytest.approx(found.nats, abs=1e-5)


def test_the_four_letters_of_a_question_cost_one_pass_of_one_row_at_one_place():
    toy = Toy()
    scorer = Scorer(toy, Settings())
    found = all_of(scorer, [Request((1, 2, 3), (letter,)) for letter in (4, 5, 6, 7)])
    assert (toy.passes, toy.kept, scorer.rows, scorer.looks) == (1, 1, 1, 4)
    assert [one.se for one in found] == [0] * 4
    assert sum(one.greedy for one in found) <= 1


def test_choices_of_one_length_share_their_masks_and_so_their_full_looks():
    toy = Toy()
    scorer = Scorer(toy, Settings(mc_num=8, likelihood="exact_count"))
    all_of(scorer, [Request((1, 2), (3, 4, 5, 6), 9), Request((1, 2), (7, 8, 0, 1), 9)])
    assert scorer.looks == 16
    assert scorer.rows < 16


def test_few_tokens_are_enumerated_when_that_is_cheaper_than_the_draws():
    assert score(Toy(), Request((1,), (2, 3)), mc_num=128).looks == 3
    assert score(Toy(), Request((1,), (2, 3)), mc_num=2).looks == 2
    assert score(Toy(), Request((1,), (2,)), mc_num=1).se == 0
    assert score(Toy(), Request((1,), (2, 3)), mc_num=1).se is None


def test_the_draws_are_those_of_validation():
    """A row of validation, all of it learnt, costs what the request at its place scores."""
    from unmask import validate
    from unmask.batches import VALIDATION, Collate, Ticket
    from unmask.objectives.masked import Objective
    from unmask.objectives.masked import Settings as MaskedSettings

    predict = models.predictor(tiny("llada"))
    rows = [{"input_ids": np.random.default_rng(i).integers(0, 38, 24).tolist()} for i in range(5)]
    batch = Collate(Objective(MaskedSettings(), TINY_MASK), seed=7, pad_id=0, exact=True)(
        [(row, Ticket(i, i, VALIDATION)) for i, row in enumerate(rows)]
    )
    held = sorted(validate.rows(predict, Objective(MaskedSettings(), TINY_MASK), [batch], None))
    requests = [Request((), tuple(row["input_ids"]), i) for i, row in enumerate(rows)]
    found = all_of(Scorer(predict, Settings(mc_num=1, seed=7)), requests)
    assert [-one.nats for one in found] == pytest.approx([row[1] for row in held], abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Windows, standard errors, bad input


@given(st.lists(TOKENS, max_size=40), st.integers(2, 9), st.booleans())
def test_windows_score_every_token_once_and_fit_the_model(ids, most, causal):
    found = likelihood.windows(ids, most, 99 if causal else None)
    assert [token for _, target in found for token in target] == ids
    for given_, target in found:
        assert len(given_) + len(target) <= most + causal
        assert given_ or not causal
    for (given_, target), at in zip(found, range(0, len(ids), most), strict=True):
        if at:
            assert list(given_) == ids[at - len(given_) : at]
            assert len(given_) + len(target) == most + causal


@given(st.lists(TOKENS, min_size=1, max_size=40), st.integers(2, 9))
def test_windows_of_causal_models_are_lm_evals(ids, most):
    utils = pytest.importorskip("lm_eval.utils")
    theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 99, most, 1))
    assert likelihood.windows(ids, most, 99) == [(tuple(a), tuple(b)) for a, b in theirs]


def test_the_standard_error_does_not_take_a_trend_for_noise():
    assert estimators.systematic_error(np.arange(100.0)) < 0.1 * np.arange(100.0).std() / 10
    noise = np.random.default_rng(0).normal(size=4000)
    assert estimators.systematic_error(noise) == pytest.approx(1 / math.sqrt(4000), rel=0.1)
    assert estimators.systematic_error(np.ones(1)) is None


@pytest.mark.parametrize(
    ("request_", "how", "says"),
    [
        (Request((1,), ()), {}, "the target is empty"),
        (Request((1,) * 5, (2,) * 6), {}, "5 given and 6 target tokens are 11; the model holds 10"),
        (Request((1,), (12,)), {}, "outside the model's vocabulary of 12"),
        (Request((), (2,) * 9), {"likelihood": "exact", "max_length": 20}, None),
        (Request((), (2,) * 13), {"likelihood": "exact", "max_length": 20}, "takes up to 12 tokens"),
        (Request((1,), (2,)), {"mc_num": 0}, "mc_num is 0"),
        (Request((1,), (2,)), {"cfg_scale": -1.0}, "cfg_scale is -1.0"),
        (Request((), (2, 3)), {"causal": True}, "needs a token before the target"),
        (Request((1,), (2, 3)), {"causal": True, "cfg_scale": 1.0}, "a causal model has no mask"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(request_, how, says):
    how = dict(how)
    toy, causal = Toy(max_length=how.pop("max_length", 10)), how.pop("causal", False)
    if says is None:
        assert score(toy, request_, **how).looks == 2**9 - 1
        return
    with pytest.raises(UserError, match=says) as error:
        score(toy, request_, causal=causal, **how)
    assert "\n" not in str(error.value)


def test_a_model_that_answers_nan_is_named():
    with pytest.raises(UserError, match="not numbers"):
        score(Toy(lambda ids: torch.full((len(ids), VOCABULARY), math.nan)), Request((1,), (2,)))
