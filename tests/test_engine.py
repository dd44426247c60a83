"""Every rule with every cache and option: what the loop promises of each. A new file of either is tested unasked."""

import pkgutil
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import END, tiny
from tiny import MASK as NETWORKS_MASK
from tiny import VOCABULARY as NETWORKS_VOCABULARY
from toy import EOS, EOT, MASK, VOCABULARY, Toy, favouring, hashed

import unmask.models
from unmask import caches, decoding
from unmask.canvas import Canvas
from unmask.memory import Memory

RULES = sorted(module.name for module in pkgutil.iter_modules(decoding.__path__))
POLICIES = sorted(module.name for module in pkgutil.iter_modules(caches.__path__))
KIND = {name: decoding.rule_file(name)[0] for name in RULES}
REVISING = [name for name in RULES if KIND[name].revises]
STEADY = [name for name in RULES if name not in REVISING]
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]

# Where the defaults would write one place a step of these models: settings under which the rule does what it is for.
LIVELY = {
    "credit": {"threshold": 0.3},
    "entropy_bound": {"gamma": 1.0},
    "hierarchical": {"low": 0.1, "high": 0.3},
    "klass": {"confidence": 0.2, "kl": 0.5, "history": 1},
    "local_leap": {"anchor": 0.3, "relaxed": 0.2},
    "reference": {"stochastic_transfer": True},
    "remdm": {"eta": 0.5},
    "threshold": {"threshold": 0.3},
    "wino": {"draft": 0.1, "verify": 0.3},
}


def mask_likeliest(ids):
    logits = hashed(ids)
    logits[:, MASK] += 20
    return logits


def uniform(ids):
    return torch.zeros(len(ids), VOCABULARY)


def sharp(ids):
    return favouring((torch.arange(len(ids)) % MASK).tolist(), 40.0)(ids)


def fond_of_ends(ids):
    logits = hashed(ids)
    logits[:, EOS] += 1.5
    return logits


ANSWERS = {f.__name__: f for f in (hashed, mask_likeliest, uniform, sharp, fond_of_ends)}


class Model(Toy):
    """Also takes attention as WINO has it, (rows, 1, places, places): a place that nobody sees is padding."""

    def __call__(self, ids, *, attention=None, **more):
        if attention is not None and attention.dim() == 4:
            attention = attention[:, 0].any(1)
        return super().__call__(ids, attention=attention, **more)


class Wanted(NamedTuple):
    """A text with open places, where its answer starts, and the settings it is filled with."""

    text: list
    start: int
    options: dict


def shows_more(rule):
    return KIND[rule].view is not decoding.Rule.view


@st.composite
def requests(draw, rules=RULES, policies=POLICIES, vocabulary=VOCABULARY, mask=MASK, ends=(EOS, EOT), greedy=False):
    """Anything that may be asked for, in any combination that is not refused."""
    prompt = draw(st.lists(st.integers(0, vocabulary - 1), max_size=8))
    kind = draw(st.sampled_from(["answer", "answer", "constraints", "gaps"]))
    body = [None] * draw(st.integers(1, 14))
    token = st.integers(0, vocabulary - 1)
    if kind == "constraints":
        for place, given_token in draw(st.dictionaries(st.integers(0, len(body) - 1), token, max_size=3)).items():
            body[place] = given_token
    if kind == "gaps":
        body = draw(st.lists(st.one_of(st.none(), token), min_size=1, max_size=14))
    rule = draw(st.sampled_from(rules))
    options = {
        "rule": rule,
        "cache": "none" if shows_more(rule) else draw(st.sampled_from(policies)),
        "steps": draw(st.one_of(st.none(), st.integers(1, 16))),
        "block_size": draw(st.one_of(st.none(), st.integers(1, 8))),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 0.0, 0.7])),
        "suppress_tokens": draw(
            st.sampled_from([[], [], [2, 5], [t for t in range(vocabulary) if t not in (1, mask)]])
        ),
        "min_new_tokens": draw(st.sampled_from([0, 0, 3])),
        "eot_token_id": [ends[1]],
        "seed": draw(st.integers(0, 3)),
    }
    if not greedy and draw(st.booleans()):
        options["temperature"] = draw(st.sampled_from([0.3, 1.5]))
        options["top_k"] = draw(st.sampled_from([None, 1, 3]))
        options["top_p"] = draw(st.sampled_from([None, 0.4]))
    if draw(st.booleans()):
        options |= LIVELY.get(rule, {})
    if not body or body[-1] is None:
        options["eos_stop"] = draw(st.booleans())
    if options["cache"] != "none" and draw(st.booleans()):
        options["refresh_every"] = draw(st.integers(1, 4))
    return Wanted([*prompt, *body], len(prompt), options)


def canvas_of(wanted, mask, first=0):
    return Canvas.of([w.text for w in wanted], mask, first=first, starts=[w.start for w in wanted])


def one_rule(rule, **more):
    return requests(rules=[rule], **more)


NETWORKS = {"vocabulary": NETWORKS_VOCABULARY, "mask": NETWORKS_MASK, "ends": (END, END - 1)}


@pytest.fixture(scope="module")
def network():
    return unmask.models.predictor(tiny("llama"))


def test_all_rules_and_policies_are_found():
    assert {"reference", "threshold", "wino", "remdm", "klass"} <= {*RULES}
    assert {"none", "prefix", "dual", "vicinity", "delayed"} <= {*POLICIES}
    assert len(RULES) >= 14


# ---------------------------------------------------------------------------------------------------------------------
# A row and its steps


def followed(predict, wanted, mask):
    """A row filled step by step, each of which keeps what is promised."""
    [row] = canvas_of([wanted], mask).rows
    decoding.prepare(predict, [row], **wanted.options)
    text, rule, memory = wanted.text, KIND[wanted.options["rule"]], Memory()
    passes_a_step = 2 if wanted.options["cfg_scale"] else 1
    while not row.finished:
        step, passes, left = row.step, row.passes, int(row.open.sum())
        [change] = decoding.step(predict, [row], memory)
        assert row.step == step + 1 <= row.rule.limit(row)
        assert row.passes == passes + passes_a_step
        assert mask not in change.tokens.tolist()
        assert row.ids[change.places].tolist() == change.tokens.tolist() or change.reopened is not None
        if not rule.revises:
            assert len(change.places)
            assert int(row.open.sum()) < left
            assert change.reopened is None
        assert all(new == old for old, new in zip(text, row.ids.tolist(), strict=True) if old is not None)
        opened = {i for i, token in enumerate(text) if token is None and int(row.ids[i]) == mask}
        assert opened == {*torch.nonzero(row.open).flatten().tolist()}
    assert not row.open.any()
    assert row.step <= row.rule.limit(row)
    if not rule.revises:
        assert row.step <= sum(row.planned)
        if row.finished == "length" and text.count(None):
            steps = [int(row.written_at[block].max()) for block in row.blocks]
            assert sorted(steps) == steps  # a block is full before the next is begun
    written = row.ids[row.written_at > 0].tolist()
    assert mask not in written
    assert not {*written} & {*wanted.options["suppress_tokens"]}
    if row.finished == "length":
        assert len(written) == text.count(None)
        assert row.confidence[row.free].isfinite().all()
    early = [i for i, token in enumerate(text) if token is None and i < wanted.start + wanted.options["min_new_tokens"]]
    assert not {*row.ids[[i for i in early if row.written_at[i] > 0]].tolist()} & {*row.reading.ends}
    assert memory.slots == {}
    return row


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data(), answer=st.sampled_from(sorted(ANSWERS)))
@settings(max_examples=30, suppress_health_check=QUIET)
def test_a_rigged_model_is_read_as_promised(rule, data, answer):
    wanted = data.draw(one_rule(rule, policies=["none"]))
    toy = Model(ANSWERS[answer])
    row = followed(toy, wanted, MASK)
    assert len(toy.shown) == row.passes
    assert toy.passes == row.step


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=QUIET)
def test_a_network_is_read_as_promised_with_any_cache(network, rule, data):
    row = followed(network, data.draw(one_rule(rule, **NETWORKS)), NETWORKS_MASK)
    assert row.computed <= row.passes * len(row.ids) or shows_more(rule)


@pytest.mark.parametrize("rule", STEADY)
@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from(sorted(ANSWERS)))
@settings(max_examples=15)
def test_steps_bound_the_passes_of_every_rule(rule, new, steps, answer):
    toy = Model(ANSWERS[answer])
    row = decoding.fill(toy, Canvas.after([[1]], new, MASK), rule=rule, steps=min(steps, new)).rows[0]
    assert row.passes == row.step <= min(steps, new)


# ---------------------------------------------------------------------------------------------------------------------
# A row and its batch


def same(row, other):
    assert row.ids.tolist() == other.ids.tolist()
    assert row.written_at.tolist() == other.written_at.tolist()
    assert (row.step, row.passes, row.computed) == (other.step, other.passes, other.computed)
    assert (row.finished, row.cut) == (other.finished, other.cut)


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=QUIET)
def test_a_row_alone_is_the_row_among_any_others(network, rule, data):
    mine = data.draw(one_rule(rule, greedy=True, **NETWORKS))
    others = data.draw(st.lists(requests(**NETWORKS), min_size=1, max_size=3))
    at = data.draw(st.integers(0, len(others)))
    rows = canvas_of([*others[:at], mine, *others[at:]], NETWORKS_MASK).rows
    for row, wanted in zip(rows, [*others[:at], mine, *others[at:]], strict=True):
        decoding.prepare(network, [row], **wanted.options)
    decoding.fill(network, Canvas(rows))
    alone = decoding.fill(network, canvas_of([mine], NETWORKS_MASK, first=at), **mine.options).rows[0]
    same(rows[at], alone)


@given(st.lists(requests(policies=["none"]), min_size=2, max_size=5), st.sampled_from(sorted(ANSWERS)))
@settings(max_examples=40, suppress_health_check=QUIET)
def test_all_rules_share_a_batch(wanted, answer):
    """Temperatures too: a rigged model answers to the last bit alike, and each row draws for itself."""
    toy, together = Model(ANSWERS[answer]), canvas_of(wanted, MASK)
    for row, one in zip(together.rows, wanted, strict=True):
        decoding.prepare(toy, [row], **one.options)
    decoding.fill(toy, together)
    for row, one in zip(together.rows, wanted, strict=True):
        same(row, decoding.fill(toy, canvas_of([one], MASK, first=row.number), **one.options).rows[0])


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
@pytest.mark.parametrize("rule", [name for name in RULES if not shows_more(name)])
def test_with_one_layer_no_cache_gives_anything_up(rule, policy):
    """Keys and values there depend on their own place alone: with those of changed places renewed, all are exact."""
    model = unmask.models.predictor(tiny("llama", num_hidden_layers=1))
    texts = [[1, 2, 3, *[None] * 13], [5, None, None, 9, 4, None, 6]]
    options = {"rule": rule, "block_size": 5, **LIVELY.get(rule, {})}
    exact, kept = Canvas.of(texts, NETWORKS_MASK), Canvas.of(texts, NETWORKS_MASK)
    decoding.fill(model, exact, **options)
    decoding.fill(model, kept, cache=policy, **options)
    for row, other in zip(exact.rows, kept.rows, strict=True):
        assert row.ids.tolist() == other.ids.tolist()
        assert row.written_at.tolist() == other.written_at.tolist()
        assert row.passes == other.passes
        assert other.computed <= row.computed


# ---------------------------------------------------------------------------------------------------------------------
# Seeds, ends


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
@settings(max_examples=8, suppress_health_check=QUIET)
def test_the_same_seed_is_the_same_answer(network, rule, data):
    wanted = data.draw(one_rule(rule, **NETWORKS))
    first, second = (
        decoding.fill(network, canvas_of([wanted], NETWORKS_MASK), **wanted.options).rows[0] for _ in range(2)
    )
    same(first, second)
    assert first.confidence.equal(second.confidence) or first.confidence.nan_to_num(-1).equal(
        second.confidence.nan_to_num(-1)
    )


@pytest.mark.parametrize("rule", RULES)
def test_another_seed_is_another_answer_where_tokens_are_drawn(rule):
    answers = {
        tuple(
            decoding.fill(Model(uniform), Canvas.after([[1]], 16, MASK), rule=rule, temperature=1.0, seed=seed)
            .rows[0]
            .ids.tolist()
        )
        for seed in range(4)
    }
    assert len(answers) == 4


@pytest.mark.parametrize("rule", STEADY)
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=QUIET)
def test_stopping_at_an_end_alters_nothing_up_to_it(rule, data):
    wanted = data.draw(one_rule(rule, policies=["none"]).filter(lambda w: "eos_stop" in w.options))
    options = {key: value for key, value in wanted.options.items() if key != "eos_stop"}
    full = decoding.fill(Model(fond_of_ends), canvas_of([wanted], MASK), **options).rows[0]
    brief = decoding.fill(Model(fond_of_ends), canvas_of([wanted], MASK), eos_stop=True, **options).rows[0]
    assert brief.step <= full.step
    # what was written up to the last step is the same to the bit
    then = (full.written_at <= brief.step) & (full.written_at > 0)
    assert then.equal(brief.written_at > 0)
    assert brief.ids[then].equal(full.ids[then])
    assert brief.written_at[then].equal(full.written_at[then])
    end = brief.end((EOS, EOT))
    if brief.finished == "stop":
        assert brief.ids[: end + 1].equal(full.ids[: end + 1])
        assert not {*brief.ids[end:][~then[end:] & brief.free[end:]].tolist()} - {EOS, EOT}
    else:
        assert full.end((EOS, EOT)) is None or brief.step == full.step
        same(brief, full)
