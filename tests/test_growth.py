"""A canvas that grows: while the model sees no end in it, where it is at a loss, and never beyond what is asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import END, tiny
from toy import EOS, EOT, MASK, VOCABULARY, Toy, hashed

import unmask.models
from unmask import caches, decoding, growth
from unmask.canvas import Canvas
from unmask.config import UserError


def ending(share=1.0, beyond=0, sureness=6.0, word=1):
    """Expects `word` up to place `beyond` and the end from there on; at a `share` of those places, the last ones."""

    def answer(ids):
        logits = torch.zeros(len(ids), VOCABULARY)
        ends = torch.arange(len(ids)) >= max(beyond, round(len(ids) * (1 - share)))
        logits[torch.arange(len(ids)), torch.where(ends, EOS, word)] = sureness
        return logits

    return answer


def grown(predict, prompts, new, mask=MASK, **options):
    canvas = Canvas.after(prompts, new, mask)
    for _ in decoding.unmask(predict, canvas, **{"canvas": "grow", **options}):
        pass
    return canvas


def only(predict, prompt, new, **options):
    return grown(predict, [prompt], new, **options).rows[0]


def plain_length(logits_of, prompt, first, most, by, window, bar):
    """DAEDAL's first stage on plain lists: the length of the answer, and how often the model was asked."""
    length, asked = first, 0
    while length < most:
        asked += 1
        logits = logits_of([*prompt, *[MASK] * length])
        p = torch.softmax(logits, -1)
        scanned = range(len(prompt) + max(0, length - window), len(prompt) + length)
        found = [float(p[i, EOS]) for i in scanned if int(logits[i].argmax()) == EOS]
        if sum(found) / min(window, length) >= bar:
            break
        length = min(length + by, most)
    return length, asked


# ---------------------------------------------------------------------------------------------------------------------
# Before the first step


@given(
    st.lists(st.integers(0, 8), max_size=4),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(2, 6),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.2, 0.35, 0.5, 1.0]),
    st.sampled_from([None, 1, 3, 5]),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_the_first_length_is_that_of_the_definition(prompt, first, most, by, window, bar, block_size, seed):
    def answer(ids):
        logits = hashed(torch.cat([torch.tensor([seed]), ids]))[1:]
        logits[:, EOS] += 1.5
        return logits

    block_size = block_size if block_size is None or block_size < min(first, most) else None  # one block stays one
    wanted, asked = plain_length(lambda ids: answer(torch.tensor(ids)), prompt, min(first, most), most, by, window, bar)
    toy = Toy(answer)
    row = only(
        toy, prompt, most,
        initial_length=first, grow_by=by, window=window, end_expected=bar, unsure=0.0, block_size=block_size,
    )  # fmt: skip
    assert len(row.answer) == wanted
    assert row.passes == toy.passes == asked + row.step
    assert [len(block) for block in row.blocks] == [
        min(block_size or wanted, wanted - at) for at in range(0, wanted, block_size or wanted)
    ]
    assert torch.cat(row.blocks).tolist() == list(range(len(prompt), len(prompt) + wanted))


def test_an_end_expected_at_once_keeps_the_initial_length():
    toy = Toy(ending())
    row = only(toy, [1, 2], 40, initial_length=8, window=4)
    assert row.answer.tolist() == [EOS] * 8
    assert toy.passes == 1 + 8


@given(st.integers(1, 20), st.integers(1, 30), st.integers(2, 9))
@settings(max_examples=20)
def test_no_end_in_sight_grows_to_the_full_length_and_not_beyond(first, most, by):
    toy = Toy(ending(beyond=1000))
    row = only(toy, [1, 2], most, initial_length=first, grow_by=by)
    assert len(row.answer) == most
    assert not row.growth.left
    assert toy.passes == row.passes == most + max(0, -(-(most - first) // by))
    assert max(map(len, toy.shown)) == 2 + most


def test_one_end_at_the_very_end_is_no_expected_end():
    # the mean is over the window, not over those of its places that are ends
    row = only(Toy(ending(share=0.01)), [], 40, initial_length=16, window=8)
    assert len(row.answer) == 40


def test_the_length_is_found_greedily_and_without_guidance():
    """As the official code does; so neither the temperature nor the seed decides how long an answer may be."""
    lengths = set()
    for seed in range(6):
        toy = Toy(ending(beyond=15, sureness=3.2))  # 0.69: a draw at temperature 2 is an end now and then
        options = {"temperature": 2.0, "cfg_scale": 3.0, "seed": seed, "unsure": 0.0}
        canvas = Canvas.after([[1]], 60, MASK)
        decoding.prepare(toy, canvas.rows, canvas="grow", initial_length=8, window=8, grow_by=4, **options)
        decoding.step(toy, canvas.rows)
        lengths.add(len(canvas.rows[0].answer))
        assert toy.shown[0] == [1, *[MASK] * 8]
    assert lengths == {20}  # 5 of the last 8 places at 0.69 are not enough at 16, all 8 are


def test_a_minimum_length_is_grown_to():
    row = only(Toy(ending()), [3], 64, initial_length=8, window=8, grow_by=4, min_new_tokens=30)
    assert 30 < len(row.answer) < 64
    assert EOS not in row.answer[:30].tolist()


def test_steps_are_those_of_the_whole_answer_however_long_it_becomes():
    for steps, first in ((6, 8), (6, 24)):
        row = only(Toy(ending(beyond=1000)), [1], 24, initial_length=first, steps=steps, block_size=4)
        assert row.step == sum(row.planned) == 6
        assert len(row.answer) == 24


def test_fewer_places_than_the_initial_length_are_a_fixed_canvas():
    fixed = Canvas.after([[1, 2]], 9, MASK)
    decoding.fill(Toy(), fixed, block_size=4)
    row = only(Toy(), [1, 2], 9, block_size=4, initial_length=9)
    assert row.ids.equal(fixed.rows[0].ids)
    assert row.passes == fixed.rows[0].passes


# ---------------------------------------------------------------------------------------------------------------------
# While it is written


def lost_at(places, then=1000):
    """Sure of 1 everywhere but at these of its answer's places, counted from a prompt of 2, until it has `then` places.

    The length it sees is all it knows, so what was moved back is at another place.
    """

    def answer(ids):
        logits = torch.zeros(len(ids), VOCABULARY)
        logits[:, 1] = 6.0
        if len(ids) < then + 2:
            logits[torch.tensor([2 + p for p in places])] *= 0.01
        return logits

    return answer


def test_a_place_at_a_loss_becomes_several():
    canvas = Canvas.after([[7, 8]], 20, MASK)
    toy = Toy(lost_at([3], then=7))
    options = {"initial_length": 6, "grow_by": 4, "end_expected": 0.0, "rule": "threshold"}
    steps = [row_shape(s) for s in decoding.unmask(toy, canvas, canvas="grow", **options)]
    # one pass for the length; 5 sure places are written, then the sixth becomes 4, all sure
    assert steps == [("111_11", 1), ("111111111", 2)]
    row = canvas.rows[0]
    assert row.written_at.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 1, 1]
    assert row.ids[:2].tolist() == [7, 8]
    assert row.growth.left == 20 - 9
    assert row.passes == toy.passes == 3


def row_shape(step):
    row = step.canvas.rows[0]
    written = ["_" if opened else str(int(t)) for t, opened in zip(row.ids, row.open, strict=True)]
    return "".join(written[2:]), step.number


def test_only_the_least_sure_place_of_the_block_at_hand_grows():
    def answer(ids):
        logits = torch.zeros(len(ids), VOCABULARY)
        at = {2: 6.0, 3: 0.3, 4: 0.2, 5: 6.0, 7: 0.0}  # the least sure one, 7, is of the next block
        logits[:, 1] = torch.tensor([at.get(i, 1.0) for i in range(len(ids))])
        return logits

    canvas = Canvas.after([[7, 8]], 30, MASK)
    decoding.prepare(
        Toy(answer), canvas.rows, canvas="grow", rule="threshold",
        initial_length=8, grow_by=3, end_expected=0.0, unsure=0.15, block_size=4,
    )  # fmt: skip
    [row] = canvas.rows
    decoding.step(Toy(answer), canvas.rows)
    growth.before(Toy(answer), row)  # as the next step begins
    assert row.ids[2:].tolist() == [1, MASK, MASK, MASK, MASK, 1, *[MASK] * 4]
    assert [block.tolist() for block in row.blocks] == [[2, 3, 4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_model_that_is_never_sure_grows_to_the_full_length_and_not_beyond():
    for by in (2, 3, 8, 100):
        toy = Toy(lambda ids: torch.zeros(len(ids), VOCABULARY))
        row = only(toy, [5], 23, initial_length=6, grow_by=by, end_expected=0.0, block_size=4)
        assert len(row.answer) == 23
        assert not row.growth.left
        assert row.passes == toy.passes == 1 + row.step


def test_where_the_end_is_certain_nothing_grows():
    def answer(ids):
        logits = ending(share=0.5)(ids)
        logits[1] = 0.0
        return logits

    options = {"initial_length": 16, "window": 4, "rule": "threshold"}
    assert len(only(Toy(answer), [3], 40, **options).answer) == 16
    assert len(only(Toy(answer), [3], 40, end_certain=1.0, **options).answer) > 16


def test_what_stands_behind_a_written_end_does_not_grow():
    def answer(ids):
        logits = torch.zeros(len(ids), VOCABULARY)
        logits[0, EOS] = 9.0
        logits[1:, 1] = 0.1
        return logits

    assert len(only(Toy(answer), [], 40, initial_length=6, end_expected=0.0).answer) == 6


@pytest.mark.parametrize("rule", ["left_to_right", "random", "reference"])
def test_rules_that_ask_about_few_places_grow_where_the_whole_block_tells(rule):
    toy = Toy(lost_at([3], then=7))
    row = only(toy, [7, 8], 20, rule=rule, initial_length=6, grow_by=4, end_expected=0.0, window=1, seed=1)
    assert len(row.answer) == 9


# ---------------------------------------------------------------------------------------------------------------------
# Whatever the rule and the cache, and whoever else is in the batch

RULES = ["reference", "threshold", "entropy_bound", "left_to_right", "random", "margin"]
POLICIES = ["none", "prefix", "dual", "vicinity", "delayed"]


@pytest.fixture(scope="module")
def network():
    return unmask.models.predictor(tiny("llama"))


@st.composite
def requests(draw):
    """A prompt, the length of its answer, and the settings it is written with; now and then a fixed canvas."""
    prompt, new = draw(st.lists(st.integers(0, END), max_size=8)), draw(st.integers(1, 24))
    options = {
        "rule": draw(st.sampled_from(RULES)),
        "cache": draw(st.sampled_from(POLICIES)),
        "block_size": draw(st.sampled_from([None, 4, 7])),
        "steps": draw(st.sampled_from([None, 5])),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 1.0])),
        "temperature": draw(st.sampled_from([0.0, 0.0, 0.7])),
        "eos_stop": draw(st.booleans()),
    }
    if draw(st.integers(0, 4)):
        options |= {
            "canvas": "grow",
            "initial_length": draw(st.integers(1, 8)),
            "grow_by": draw(st.integers(2, 6)),
            "window": draw(st.integers(1, 8)),
            "end_expected": draw(st.sampled_from([0.0, 0.05, 0.5])),
            "unsure": draw(st.sampled_from([0.1, 0.4, 1.0])),
        }
    return prompt, new, options


@given(st.lists(requests(), min_size=2, max_size=4))
@settings(max_examples=20)
def test_a_row_alone_is_the_row_in_any_batch(network, wanted):
    rows = [Canvas.after([prompt], new, network.mask_id, first=i).rows[0] for i, (prompt, new, _) in enumerate(wanted)]
    for row, (_, _, options) in zip(rows, wanted, strict=True):
        decoding.prepare(network, [row], **options)
    decoding.fill(network, Canvas(rows))
    for row, (prompt, new, options) in zip(rows, wanted, strict=True):
        alone = Canvas.after([prompt], new, network.mask_id, first=row.number)
        [alone] = decoding.fill(network, alone, **options).rows
        assert row.ids.tolist() == alone.ids.tolist()
        assert row.written_at.tolist() == alone.written_at.tolist()
        assert (row.passes, row.computed, row.step) == (alone.passes, alone.computed, alone.step)
        assert row.ids[: len(prompt)].tolist() == prompt
        assert len(row.answer) <= new
        assert network.mask_id not in row.answer.tolist()
        assert not row.open.any()
        assert row.step <= int(row.free.sum())


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "none"])
def test_a_cache_that_keeps_nothing_stale_grows_as_none_does(network, policy):
    prompts = [[1, 2, 3], [], [5] * 11]
    options = {"initial_length": 4, "grow_by": 3, "window": 4, "unsure": 0.5, "block_size": 4}
    exact = grown(network, prompts, 20, network.mask_id, **options)
    kept = grown(network, prompts, 20, network.mask_id, cache=policy, refresh_every=1, **options)
    assert [row.ids.tolist() for row in kept.rows] == [row.ids.tolist() for row in exact.rows]
    assert {len(row.answer) for row in exact.rows} != {4}


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "none"])
def test_a_row_that_grew_is_computed_anew(policy):
    """One layer, whose keys and values tell of their own place and token alone: nothing may be given up."""
    model = unmask.models.predictor(tiny("llama", num_hidden_layers=1))
    more = {"delayed": {"refresh_every": None}, "vicinity": {"vicinity": 1, "warm_up": 0}}.get(policy, {})
    options = {"initial_length": 6, "grow_by": 3, "end_expected": 0.0, "unsure": 0.6, "block_size": 3}
    exact = grown(model, [[1, 2, 3, 4]], 16, model.mask_id, **options).rows[0]
    kept = grown(model, [[1, 2, 3, 4]], 16, model.mask_id, cache=policy, **more, **options).rows[0]
    assert kept.ids.equal(exact.ids)
    assert len(kept.answer) == 16
    assert issubclass(decoding.cache_file(policy)[0], caches.Cache)


def test_shorter_answers_are_filled_up_with_the_end():
    toy = Toy(ending(beyond=9))
    ids = torch.tensor([[1, 1, 1], [1, 1, 1]])
    out = decoding.generate(toy, ids, torch.tensor([[1, 1, 1], [0, 0, 1]]), max_new_tokens=30, canvas="grow",
                            initial_length=6, window=4, grow_by=4)  # fmt: skip
    assert out.tolist() == [[1, 1, 1, *[1] * 6, *[EOS] * (out.shape[1] - 9)], [1, 1, 1, *[1] * 8, *[EOS] * 6]]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initial_length": 0}, "--initial_length is 0; it must be at least 1"),
        ({"grow_by": 1}, "--grow_by is 1; it must be at least 2"),
        ({"window": 0}, "--window is 0; it must be at least 1"),
        ({"end_expected": 1.5}, "--end_expected is 1.5; it must be from 0 to 1"),
        ({"end_certain": -1}, "--end_certain is -1.0"),
        ({"unsure": float("nan")}, "--unsure is nan"),
        ({"canvas": "fixed", "grow_by": 3}, "unknown setting 'grow_by'"),
        ({"canvas": "grows"}, "canvas is 'grows'; it can be fixed, grow"),
        ({"logits_eos_inf": True}, "looks for the end of text, which other options hold back"),
        ({"confidence_eos_eot_inf": True, "eot_token_id": [EOT]}, "which other options hold back"),
        *[
            ({"rule": rule}, f"{rule!r} remembers places.*--canvas fixed")
            for rule in ("wino", "remdm", "klass", "credit")
        ],
    ],
)
def test_what_does_not_go_with_growing_is_refused_in_one_line(options, says):
    toy = Toy()
    with pytest.raises(UserError, match=says) as error:
        decoding.generate(toy, torch.tensor([[1]]), max_new_tokens=9, **{"canvas": "grow", **options})
    assert "\n" not in str(error.value)
    assert toy.passes == 0


@pytest.mark.parametrize("text", [[None, 3, None], [1, None, 2]])
def test_gaps_are_refused(text):
    with pytest.raises(UserError, match="without gaps or constraints; use fixed"):
        decoding.infill(Toy(), [text], canvas="grow")


def test_constraints_are_refused():
    with pytest.raises(UserError, match="without gaps or constraints; use fixed"):
        decoding.generate(Toy(), torch.tensor([[1]]), max_new_tokens=9, canvas="grow", constraints={4: 2})


def test_a_model_without_an_end_is_refused():
    toy = Toy()
    toy.eos_id = None
    with pytest.raises(UserError, match="the model names none; give --eos_token_id"):
        decoding.generate(toy, torch.tensor([[1]]), max_new_tokens=9, canvas="grow")


def test_the_full_length_must_fit_the_model():
    with pytest.raises(UserError, match="the model holds 16"):
        decoding.generate(Toy(max_length=16), torch.tensor([[1]]), max_new_tokens=20, canvas="grow", initial_length=4)


def test_a_row_with_nothing_to_write_grows_nowhere():
    canvas = Canvas.of([[1, 2]], MASK)
    decoding.fill(Toy(), canvas, canvas="grow")
    assert canvas.rows[0].ids.tolist() == [1, 2]
