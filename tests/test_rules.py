"""Each rule writes what its published definition says, transcribed here on plain lists, over whole decodings."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import EOS, MASK, VOCABULARY, Toy, favouring

import unmask.models
from unmask import decoding
from unmask.canvas import Canvas
from unmask.config import UserError


def sure(seed):
    """A model whose confidences spread from a tenth to nearly 1 and depend on the whole row."""

    def answer(ids):
        random, n = np.random.default_rng([seed, *ids.tolist()]), len(ids)
        logits, at = random.normal(size=(n, VOCABULARY)), (np.arange(n), random.integers(VOCABULARY, size=n))
        logits[at] = -np.inf
        odds = 10 ** random.uniform(0.05, 3.5, n) - 1
        logits[at] = np.log(np.exp(logits).sum(-1) * odds)
        return torch.tensor(logits, dtype=torch.float32)

    return answer


def plainly(answer, text, block_size, per_block, choose):
    """One row filled by a plain loop over whole logits. Returns its tokens and the step each place was written at.

    choose(left, c, p, share): the open places of the block, by place the confidence and the probabilities, and how many
    places are planned → the places to write. per_block: steps a block, one a token if None.
    """
    x = torch.tensor([MASK if token is None else token for token in text])
    free = [place for place, token in enumerate(text) if token is None]
    when, step = [0] * len(text), 0
    for begin in range(0, len(free), block_size):
        left = free[begin : begin + block_size]
        size, steps = len(left), per_block or len(left)
        for i in itertools.count():
            if not left:
                break
            share = min(size // steps + (i < size % steps) if i < steps else 1, len(left))
            logits, step = answer(x), step + 1
            p = torch.softmax(logits, -1)
            logits[:, MASK] = -torch.inf
            best = logits.argmax(-1)
            c = [p[place, token].item() for place, token in enumerate(best)]
            for place in choose(left, c, p.tolist(), share):
                x[place], when[place] = best[place], step
            left = [place for place in left if not when[place]]
    return x.tolist(), when


def first(places, key, count):
    """The `count` places with the highest key."""
    return sorted(places, key=key, reverse=True)[:count]


def entropy(p):
    return -sum(q * math.log(q) for q in p if q)


def margin(p):
    one, two = sorted(p)[-2:][::-1]
    return one - two


def by_threshold(left, c, p, share, threshold):
    return {i for i in left if c[i] >= threshold} | set(first(left, c.__getitem__, share))


def by_llada2(left, c, p, share, threshold):
    passing = [i for i in left if c[i] >= threshold]
    return passing if len(passing) >= share else first(left, c.__getitem__, share)


def by_factor(left, c, p, share, factor):
    order, n = first(left, c.__getitem__, len(left)), 0
    while n < len(order) and (n + 2) * (1 - c[order[n]]) < factor:
        n += 1
    return order[: max(n, share)]


def by_factor_counted(left, c, p, share, factor):
    order = first(left, c.__getitem__, len(left))
    passing = [i for n, i in enumerate(order, start=1) if (n + 1) * (1 - c[i]) < factor]
    return order[: max(len(passing), share)]


def by_entropy_bound(left, c, p, share, gamma):
    order, n = first(left, lambda i: -entropy(p[i]), len(left)), 0
    terms = [entropy(p[i]) for i in order]
    while n < len(order) and sum(terms[: n + 1]) - max(terms[: n + 1]) <= gamma + 1e-12:
        n += 1
    return order[: max(n, share)]


def by_local_leap(left, c, p, share, anchor, relaxed, radius):
    anchors = [i for i in left if c[i] >= anchor]
    near = [i for i in left if any(abs(i - j) <= radius for j in anchors)]
    return {*anchors, *(i for i in near if c[i] >= relaxed), *first(left, c.__getitem__, share)}


def by_hierarchical(left, c, p, share, low, high):
    runs = [[left[0]]]
    for i in left[1:]:
        if i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    peaks = [max(run, key=c.__getitem__) for run in runs]
    return {
        *(i for i in peaks if c[i] > low), *(i for i in left if c[i] > high), *first(left, c.__getitem__, share)
    }  # fmt: skip


PROBABILITY = st.floats(0.05, 0.9999)
PAIR = st.tuples(PROBABILITY, PROBABILITY).map(sorted)
DEFINED = {
    "threshold": (by_threshold, st.fixed_dictionaries({"threshold": PROBABILITY})),
    "threshold, LLaDA2.0": (by_llada2, st.fixed_dictionaries({"threshold": PROBABILITY})),
    "factor": (by_factor, st.fixed_dictionaries({"factor": st.floats(0.01, 4)})),
    "factor, counted": (by_factor_counted, st.fixed_dictionaries({"factor": st.floats(0.01, 4)})),
    "entropy_bound": (by_entropy_bound, st.fixed_dictionaries({"gamma": st.floats(0, 3)})),
    "margin": (lambda left, c, p, share: first(left, lambda i: margin(p[i]), share), st.just({})),
    "entropy": (lambda left, c, p, share: first(left, lambda i: -entropy(p[i]), share), st.just({})),
    "left_to_right": (lambda left, c, p, share: left[:share], st.just({})),
    "local_leap": (
        by_local_leap,
        st.builds(
            lambda pair, radius: {"relaxed": pair[0], "anchor": pair[1], "radius": radius}, PAIR, st.integers(0, 6)
        ),
    ),
    "hierarchical": (by_hierarchical, PAIR.map(lambda pair: {"low": pair[0], "high": pair[1]})),
}
RULES = sorted({name.split(",")[0] for name in DEFINED} | {"random"})
TEXTS = st.lists(st.one_of(st.none(), st.none(), st.none(), st.integers(0, MASK)), min_size=1, max_size=20)
SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("name", DEFINED)
@given(TEXTS, st.integers(1, 8), st.integers(1, 8), SEEDS, st.data())
@settings(max_examples=40)
def test_a_rule_writes_what_its_definition_says(name, text, block_size, per_block, seed, data):
    choose, values = DEFINED[name]
    own = data.draw(values)
    # steps are split as evenly as can be; where all blocks are full, that is the same number for each
    new = text.count(None)
    per_block = min(per_block, block_size) if new and new % block_size == 0 else None
    steps = new // block_size * per_block if per_block else None
    canvas, rule = Canvas.of([text], MASK), name.split(",")[0]
    decoding.fill(Toy(sure(seed)), canvas, rule=rule, steps=steps, block_size=block_size, **own)
    wanted = plainly(sure(seed), text, block_size, per_block, lambda *seen: choose(*seen, **own))
    assert (canvas.rows[0].ids.tolist(), canvas.rows[0].written_at.tolist()) == wanted


@given(TEXTS, st.integers(1, 8), st.one_of(st.none(), st.integers(1, 20)), SEEDS)
@settings(max_examples=40)
def test_random_is_the_reference_that_remasks_at_random(text, block_size, steps, seed):
    def filled(**options):
        toy, canvas = Toy(sure(3)), Canvas.of([text], MASK)
        decoding.fill(toy, canvas, steps=steps, block_size=block_size, seed=seed, **options)
        return canvas.rows[0].ids.tolist(), canvas.rows[0].written_at.tolist(), toy.passes, toy.kept

    assert filled(rule="random") == filled(rule="reference", remasking="random")


def test_random_writes_in_any_order():
    orders = set()
    for seed in range(60):
        toy = Toy(favouring([1, 2, 3], torch.tensor([9.0, 5.0, 1.0])))
        row = decoding.fill(toy, Canvas.after([[]], 3, MASK), rule="random", seed=seed).rows[0]
        orders.add(tuple(row.written_at.tolist()))
    assert len(orders) == 6


@pytest.mark.parametrize("rule", RULES)
@given(st.integers(1, 24), st.one_of(st.none(), st.integers(1, 40)), st.one_of(st.none(), st.integers(1, 30)), SEEDS)
@settings(max_examples=25)
def test_no_rule_takes_more_passes_than_are_planned(rule, new, steps, block_size, seed):
    toy, canvas = Toy(sure(seed)), Canvas.after([[1, MASK]], new, MASK)
    decoding.fill(toy, canvas, rule=rule, steps=steps, block_size=block_size)
    assert toy.passes <= min(max(steps or new, -(-new // (block_size or new))), new)
    assert not canvas.rows[0].open.any()


@pytest.mark.parametrize("rule", ["threshold", "factor", "entropy_bound", "local_leap", "hierarchical"])
def test_with_its_defaults_a_parallel_rule_saves_passes(rule):
    toy = Toy(sure(0))
    decoding.fill(toy, Canvas.after([[1, 2]], 24, MASK), rule=rule, block_size=8)
    assert toy.passes <= 18


@pytest.mark.parametrize("rule", ["random", "left_to_right"])
@pytest.mark.parametrize("steps", [None, 4, 7])
def test_rules_that_know_before_they_look_ask_about_nothing_else(rule, steps):
    toy = Toy()
    decoding.fill(toy, Canvas.after([[1, 2, 3]], 14, MASK), rule=rule, steps=steps, block_size=7)
    assert toy.kept == 14


def test_a_threshold_near_0_writes_a_block_in_one_pass():
    toy = Toy()
    canvas = decoding.fill(toy, Canvas.after([[1]], 10, MASK), rule="threshold", threshold=1e-9, block_size=4)
    assert toy.passes == 3
    assert canvas.rows[0].written_at.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_a_place_exactly_at_the_threshold_is_written():
    toy = Toy(favouring([1, 2, 3], 200.0))  # the softmax is 1 and nothing else
    decoding.fill(toy, Canvas.after([[]], 3, MASK), rule="threshold", threshold=1)
    assert toy.passes == 1


def test_threshold_writes_the_tokens_of_fast_dllm_in_as_many_passes(shared):
    folder = shared / "fixtures" / "fastdllm-tiny"
    told = json.loads((folder / "expected.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    cases = [case for case in told["generate"] if case["cache"] == "none" and case["args"]["threshold"]]
    assert cases
    for case in cases:
        args = case["args"]
        canvas = Canvas.after(case["prompt"], args["gen_length"], told["mask_id"])
        options = {"threshold": args["threshold"], "block_length": args["block_length"]}
        decoding.fill(unmask.models.predictor(model), canvas, rule="threshold", **options)
        assert [row.ids.tolist() for row in canvas.rows] == case["output"]
        assert max(row.step for row in canvas.rows) == case["forward_passes"]


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 8), st.one_of(st.none(), SEEDS))
@settings(max_examples=30)
def test_where_nothing_passes_the_threshold_is_the_reference(new, steps, block_size, seed):
    answer = favouring([1] * (new + 1), 2.0) if seed is None else sure(seed)  # all equally sure, or not
    found = [
        decoding.fill(Toy(answer), Canvas.after([[5]], new, MASK), steps=steps, block_size=block_size, **rule).rows[0]
        for rule in ({"rule": "threshold", "threshold": 1}, {"rule": "reference"})
    ]
    assert found[0].written_at.equal(found[1].written_at)
    assert found[0].ids.equal(found[1].ids)


@given(st.integers(1, 20), st.integers(1, 8), PROBABILITY, SEEDS)
@settings(max_examples=30)
def test_a_leap_of_no_reach_or_no_ease_is_the_threshold(new, block_size, bar, seed):
    orders = [
        decoding.fill(Toy(sure(seed)), Canvas.after([[5]], new, MASK), block_size=block_size, **rule).rows[0].written_at
        for rule in (
            {"rule": "threshold", "threshold": bar},
            {"rule": "local_leap", "anchor": bar, "relaxed": bar, "radius": 5},
            {"rule": "local_leap", "anchor": bar, "relaxed": 0.05, "radius": 0},
        )
    ]
    assert orders[0].equal(orders[1])
    assert orders[0].equal(orders[2])


def confident(*wanted):
    """A model that is so sure of token 1 at each place."""
    p = torch.tensor(wanted, dtype=torch.float64)
    return favouring([1] * len(wanted), (p / (1 - p) * (VOCABULARY - 1)).log().float())


def when(answer, new, **options):
    return decoding.fill(Toy(answer), Canvas.after([[]], new, MASK), **options).rows[0].written_at.tolist()


def test_factor_waits_with_the_last_place_that_fails():
    # Fast-dLLM's code adds one where the last open place is the first to fail, and writes all three, or both, at once
    assert when(confident(0.99, 0.1, 0.98), 3, rule="factor") == [1, 2, 1]
    assert when(confident(0.2, 0.1), 2, rule="factor") == [1, 2]
    # (n + 1)(1 - 0.7) is 0.6, 0.9, 1.2: two of four places at once, then the other two
    assert when(confident(0.7, 0.69, 0.68, 0.67), 4, rule="factor") == [1, 1, 2, 2]


def test_entropy_bound_leaves_out_the_last_term_and_nothing_else():
    answer = confident(0.99, 0.98, 0.5)
    small, middle, _ = torch.special.entr(torch.softmax(answer(torch.zeros(3)), -1)).sum(-1).tolist()
    for gamma, order in [
        (0.0, [1, 2, 3]),
        (small - 1e-4, [1, 2, 3]),
        (small + 1e-4, [1, 1, 2]),
        (small + middle - 1e-4, [1, 1, 2]),
        (small + middle + 1e-4, [1, 1, 1]),
    ]:
        assert when(answer, 3, rule="entropy_bound", gamma=gamma) == order


def test_local_leap_counts_places_of_the_row_and_not_open_ones():
    # both weak places are 2 from the anchor if given tokens count, 1 if they do not
    text = [None, 5, None, 5, None]
    for radius, order in [(1, [3, 0, 1, 0, 2]), (2, [1, 0, 1, 0, 1])]:
        toy = Toy(confident(0.8, 0.5, 0.95, 0.5, 0.81))
        canvas = decoding.fill(toy, Canvas.of([text], MASK), rule="local_leap", radius=radius)
        assert canvas.rows[0].written_at.tolist() == order


def test_hierarchical_writes_one_place_a_gap():
    assert when(confident(0.7, 0.71, 0.8, 0.75, 0.7), 5, rule="hierarchical") == [3, 2, 1, 2, 3]
    # two are very sure; then one run has its best above --low, and the other waits to be the surest
    assert when(confident(0.7, 0.93, 0.94, 0.6, 0.5), 5, rule="hierarchical") == [2, 1, 1, 3, 4]


@pytest.mark.parametrize(
    "rule", ["threshold", "factor", "entropy_bound", "margin", "entropy", "local_leap", "hierarchical"]
)
def test_tokens_held_back_are_written_last(rule):
    def answer(ids):
        logits = favouring([EOS, 1, 2, EOS, 3], torch.tensor([30.0, 3.0, 2.0, 30.0, 1.0]))(ids)
        logits[[0, 3], 4] = 20.0  # without the end, the model would be sure of another token there
        return logits

    free = when(answer, 5, rule=rule)
    assert max(free[0], free[3]) <= min(free[1], free[2], free[4])
    held = when(answer, 5, rule=rule, begin_suppress_tokens=[EOS])
    assert min(held[0], held[3]) > max(held[1], held[2], held[4])
    assert sorted(held) == [1, 2, 3, 4, 5]  # how sure the model is of what is held back makes no room for others


@pytest.mark.parametrize("rule", ["random", "left_to_right"])
def test_rules_that_do_not_look_cannot_hold_tokens_back(rule):
    toy = Toy()
    with pytest.raises(UserError, match=f"the rule {rule} .* use --rule reference, or --suppress_tokens"):
        decoding.generate(toy, torch.tensor([[1]]), rule=rule, begin_suppress_tokens=[EOS])
    assert toy.passes == 0


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        ("threshold", {"threshold": 1.5}, "--threshold is 1.5; it must be above 0 and at most 1."),
        ("threshold", {"threshold": 0}, "--threshold is 0.0; it must be above 0 and at most 1."),
        ("threshold", {"threshold": -0.1}, "--threshold is -0.1;"),
        ("threshold", {"threshold": math.nan}, "--threshold is nan;"),
        ("threshold", {"threshold": "high"}, "threshold is 'high'"),
        ("threshold", {"treshold": 0.9}, "'treshold'.*Did you mean 'threshold'"),
        ("factor", {"factor": 0}, "--factor is 0.0; it must be above 0."),
        ("factor", {"factor": -1}, "--factor is -1.0;"),
        ("factor", {"factor": math.inf}, "--factor is inf;"),
        ("factor", {"factor": math.nan}, "--factor is nan;"),
        ("entropy_bound", {"gamma": -0.1}, "--gamma is -0.1; it must be 0 or more."),
        ("entropy_bound", {"gamma": math.nan}, "--gamma is nan;"),
        ("entropy_bound", {"gamma": math.inf}, "--gamma is inf;"),
        ("local_leap", {"anchor": 1.1}, "--anchor is 1.1; it must be above 0 and at most 1."),
        ("local_leap", {"relaxed": 0}, "--relaxed is 0.0; it must be above 0 and at most 1."),
        ("local_leap", {"relaxed": 0.95}, "--relaxed is 0.95; it must be at most --anchor, 0.9."),
        ("local_leap", {"radius": -1}, "--radius is -1; it must be 0 or more."),
        ("local_leap", {"radius": 1.5}, "radius is 1.5; it must be a whole number"),
        ("hierarchical", {"low": -0.1}, "--low is -0.1; it must be from 0 to 1."),
        ("hierarchical", {"high": 1.2}, "--high is 1.2; it must be from 0 to 1."),
        ("hierarchical", {"low": 0.95}, "--low is 0.95; it must be at most --high, 0.92."),
        ("margin", {"threshold": 0.9}, "unknown setting 'threshold'"),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_one_line(rule, options, says):
    toy = Toy()
    with pytest.raises(UserError, match=says) as caught:
        decoding.generate(toy, torch.tensor([[1]]), max_new_tokens=4, rule=rule, **options)
    assert "\n" not in str(caught.value)
    assert toy.passes == 0
