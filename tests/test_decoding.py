"""The loop: a row alone is the row in any batch, what is given stays, every gap is filled, bad settings are named."""

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import EOS, EOT, MASK, VOCABULARY, Toy, favouring, hashed

import unmask.models
from unmask import decoding, signals
from unmask.canvas import Canvas
from unmask.config import UserError

GSAI_MASK = 511


@pytest.fixture(scope="module")
def tiny(shared):
    folder = shared / "fixtures" / "llada-tiny"
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@st.composite
def requests(draw):
    """A text with open places, and the settings it is filled with."""
    prompt = draw(st.lists(st.integers(0, GSAI_MASK), max_size=30))
    text = [*prompt, *[None] * draw(st.one_of(st.integers(1, 14), st.just(37)))]
    if draw(st.booleans()):
        text = [*text, *draw(st.lists(st.one_of(st.none(), st.integers(0, 508)), max_size=10))]
    options = {
        "steps": draw(st.one_of(st.none(), st.integers(1, 8))),
        "block_size": draw(st.one_of(st.none(), st.integers(1, 9))),
        "temperature": draw(st.sampled_from([0.0, 0.0, 0.8])),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 1.5])),
        "remasking": draw(st.sampled_from(["low_confidence", "low_confidence", "random"])),
        "suppress_tokens": draw(st.sampled_from([[], [13, 44]])),
        "seed": draw(st.integers(0, 3)),
    }
    return text, options


@given(st.lists(requests(), min_size=2, max_size=4))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_row_alone_is_the_row_in_any_batch(tiny, wanted):
    predict = unmask.models.predictor(tiny)
    together = Canvas.of([text for text, _ in wanted], GSAI_MASK)
    for row, (_, options) in zip(together.rows, wanted, strict=True):
        decoding.prepare(predict, [row], **options)
    decoding.fill(predict, together)
    for number, (text, options) in enumerate(wanted):
        alone = decoding.fill(predict, Canvas.of([text], GSAI_MASK, first=number), **options).rows[0]
        row = together.rows[number]
        assert row.ids.tolist() == alone.ids.tolist()
        assert row.written_at.tolist() == alone.written_at.tolist()
        assert all(old in (None, new) for old, new in zip(text, row.ids.tolist(), strict=True))
        assert not row.open.any()
        assert GSAI_MASK not in row.answer.tolist()


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_rows_that_join_later_are_as_if_alone(tiny, guidance):
    predict = unmask.models.predictor(tiny)
    prompts = [[5, 6, 7], list(range(40)), []]
    rows = Canvas.after(prompts, [9, 5, 17], GSAI_MASK).rows
    decoding.prepare(predict, rows, cfg_scale=guidance, block_size=4)
    for row in rows:  # one more row each step
        decoding.step(predict, rows[: row.number + 1])
    while not all(row.finished for row in rows):
        decoding.step(predict, rows)
    for row, prompt in zip(rows, prompts, strict=True):
        alone = Canvas.after([prompt], len(row.answer), GSAI_MASK, first=row.number)
        decoding.fill(predict, alone, cfg_scale=guidance, block_size=4)
        assert alone.rows[0].ids.tolist() == row.ids.tolist()


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_left_padding_changes_nothing_and_stays_in_place(tiny, cfg_scale):
    long, short = list(range(20, 32)), [7, 8, 9]
    ids = torch.tensor([long, [510] * 9 + short])
    real = torch.tensor([[1] * 12, [0] * 9 + [1] * 3])
    options = {"max_new_tokens": 10, "block_size": 5, "steps": 6, "cfg_scale": cfg_scale}
    out = tiny.generate(ids, real, **options)
    assert out[:, :12].equal(ids)
    assert out.dtype == ids.dtype
    assert out[0].tolist() == tiny.generate(torch.tensor([long]), **options)[0].tolist()
    assert out[1, 12:].tolist() == tiny.generate(torch.tensor([short]), **options)[0, 3:].tolist()
    right = tiny.generate(torch.tensor([long, short + [510] * 9]), real.flip(1), **options)
    assert right[:, 12:].equal(out[:, 12:])


def test_an_empty_prompt_is_answered(tiny):
    out = tiny.generate(torch.zeros(2, 0, dtype=torch.long), max_new_tokens=8)
    assert out.shape == (2, 8)
    assert out[0].equal(out[1])
    padded = tiny.generate(torch.full((1, 5), 510), torch.zeros(1, 5, dtype=torch.long), max_new_tokens=8)
    assert padded[0, 5:].equal(out[0])


def test_no_rows_are_answered_with_no_rows(tiny):
    assert tiny.generate(torch.zeros(0, 3, dtype=torch.long), max_new_tokens=4).shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_width_answers(shared, dtype):
    folder = shared / "fixtures" / "llada-tiny"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    options = {"max_new_tokens": 8, "temperature": 0.5, "cfg_scale": 1.0, "steps": 4}
    out = model.generate(torch.tensor([[1, 2, 3], [4, 5, 6]]), **options)
    assert out.shape == (2, 11)
    assert GSAI_MASK not in out.tolist()[0]


def test_both_names_of_a_setting_mean_the_same(tiny):
    prompt = torch.tensor([[4, 5, 6]])
    ours = tiny.generate(prompt, max_new_tokens=12, block_size=4, steps=6)
    assert ours.equal(tiny.generate(prompt, gen_length=12, block_length=4, steps=6))
    assert ours.equal(tiny.generate(prompt, gen_length=12, max_new_tokens=12, block_length=4, block_size=4, steps=6))
    with pytest.raises(UserError, match="max_new_tokens is 12 and gen_length is 13"):
        tiny.generate(prompt, max_new_tokens=12, gen_length=13)
    with pytest.raises(UserError, match="block_size is 4 and block_length is 5"):
        tiny.generate(prompt, max_new_tokens=12, block_size=4, block_length=5)


def test_guidance_of_0_is_none():
    plain, none = Toy(), Toy()
    prompt = torch.tensor([[1, 2, 3]])
    out = decoding.generate(plain, prompt, max_new_tokens=6)
    assert out.equal(decoding.generate(none, prompt, max_new_tokens=6, cfg_scale=0.0))
    assert len(none.shown) == 6


def test_the_bare_half_of_guidance_sees_no_given_token_but_those_kept():
    toy = Toy()
    decoding.generate(toy, torch.tensor([[1, 2, 3]]), max_new_tokens=1, cfg_scale=1.0, cfg_keep_tokens=[2])
    assert sorted(toy.shown) == sorted([[1, 2, 3, MASK], [MASK, 2, MASK, MASK]])
    assert toy.passes == 1


@given(st.lists(st.integers(0, 8), max_size=4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60)
def test_stopping_at_an_end_alters_nothing_before_it_and_saves_passes(prompt, block_size, blocks, seed):
    # half the time an end is the likeliest token of a place
    def answer(ids):
        logits = hashed(ids)
        logits[:, EOS] += 1.0
        return logits

    new = block_size * blocks
    options = {"block_size": block_size, "temperature": 0.3, "seed": seed, "eot_token_id": [EOT]}
    whole, brief = Toy(answer), Toy(answer)
    text = [*prompt, *[None] * new]
    full = decoding.fill(whole, Canvas.of([text], MASK), **options).rows[0].answer.tolist()
    canvas = decoding.fill(brief, Canvas.of([text], MASK), eos_stop=True, **options)
    found = canvas.rows[0].answer.tolist()
    ends = [i for i, token in enumerate(full) if token in (EOS, EOT)]
    assert MASK not in found
    assert not canvas.rows[0].open.any()
    if ends:
        assert found[: ends[0] + 1] == full[: ends[0] + 1]
        assert canvas.rows[0].finished == "stop"
        assert brief.passes <= block_size * (ends[0] // block_size + 1)
    else:
        assert found == full
        assert canvas.rows[0].finished == "length"
        assert brief.passes == whole.passes


def test_after_a_stop_the_rest_is_the_end():
    toy = Toy(favouring([1, 2, EOS, 3, 4, 5, 6, 7]))
    out = decoding.generate(toy, torch.zeros(1, 0, dtype=torch.long), max_new_tokens=8, block_size=1, eos_stop=True)
    assert out[0].tolist() == [1, 2, EOS, EOS, EOS, EOS, EOS, EOS]
    assert toy.passes == 3


TEXTS = st.lists(st.lists(st.one_of(st.none(), st.integers(0, MASK)), max_size=16), max_size=4)


@given(TEXTS, st.one_of(st.none(), st.integers(1, 5)), st.one_of(st.none(), st.integers(1, 20)))
@settings(max_examples=60)
def test_infilling_leaves_given_tokens_alone_and_fills_every_gap(texts, block_size, steps):
    toy = Toy()
    found = decoding.infill(toy, texts, block_size=block_size, steps=steps)
    for text, filled in zip(texts, found, strict=True):
        for old, new in zip(text, filled, strict=True):
            assert new == old if old is not None else new != MASK
    gaps = [text.count(None) for text in texts]
    wanted = [min(max(steps or n, -(-n // (block_size or n))), n) for n in gaps if n]
    assert toy.passes == max(wanted, default=0)  # given masks cost no pass


def test_every_step_is_told():
    toy, canvas = Toy(), Canvas.after([[1], [2, 3]], [4, 2], MASK)
    written = {0: [], 1: []}
    for at, step in enumerate(decoding.unmask(toy, canvas, block_size=2), start=1):
        assert step.number == at == toy.passes
        assert step.canvas is canvas
        for change in step.changes:
            written[change.row.number] += change.places.tolist()
            assert change.row.ids[change.places].equal(change.tokens)
    assert sorted(written[0]) == [1, 2, 3, 4]
    assert sorted(written[1]) == [2, 3]
    assert canvas.planned == 4
    assert canvas.done


def test_finished_rows_are_shown_no_more():
    toy = Toy()
    decoding.fill(toy, Canvas.after([[1], [2]], [1, 5], MASK))
    assert len(toy.shown) == 2 + 4


RULE = '''
"""Writes from right to left, `width` places at a step."""
from dataclasses import dataclass

from unmask import decoding, signals
from unmask.config import option


@dataclass
class Settings:
    """Rule: from the right"""

    width: int = option(1, "Places a step.")


class Rule(decoding.Rule):
    needs = frozenset({"entropy", "margin", "logits"})

    def choose(self, row, seen):
        assert seen.logits.shape == (len(seen.places), 12)
        assert seen.entropy.shape == seen.margin.shape == seen.places.shape
        return seen.choice(slice(-self.settings.width, None))
'''


@pytest.fixture
def rule(tmp_path):
    (tmp_path / "right.py").write_text(RULE)
    return str(tmp_path / "right.py")


def test_a_rule_may_be_a_file_outside_the_package_with_settings_of_its_own(rule):
    canvas = decoding.fill(Toy(), Canvas.after([[1]], 5, MASK), rule=rule, width=2)
    assert canvas.rows[0].written_at.tolist() == [0, 3, 2, 2, 1, 1]
    canvas = decoding.fill(Toy(), Canvas.after([[1]], 3, MASK), rule=rule, rule_args={"width": "3"})
    assert canvas.rows[0].written_at.tolist() == [0, 1, 1, 1]


def test_rows_of_two_rules_fill_together(rule):
    toy, canvas = Toy(), Canvas.after([[1], [2, 3, 4]], 5, MASK)
    decoding.prepare(toy, canvas.rows[:1], rule=rule)
    decoding.prepare(toy, canvas.rows[1:], steps=2)
    decoding.fill(toy, canvas)
    assert canvas.rows[0].written_at.tolist() == [0, 5, 4, 3, 2, 1]
    assert canvas.rows[1].written_at.max() == 2
    alone = decoding.fill(toy, Canvas.after([[2, 3, 4]], 5, MASK), steps=2)
    assert alone.rows[0].ids.equal(canvas.rows[1].ids)


def test_entropy_and_margin_are_those_of_the_softmax(tmp_path):
    file = tmp_path / "spy.py"
    file.write_text(RULE.replace("return seen", "row.state = (seen.entropy, seen.margin, seen.logits); return seen"))
    toy = Toy()
    canvas = Canvas.after([[1, 2]], 40, MASK)  # more than one piece of noise
    logits = toy.answer(torch.tensor([1, 2, *[MASK] * 40]))[2:]
    decoding.fill(toy, canvas, rule=str(file), width=40)
    entropy, margin, seen = canvas.rows[0].state
    p = torch.softmax(logits, -1)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1))
    top = p.sort(descending=True).values
    torch.testing.assert_close(margin, top[:, 0] - top[:, 1])
    assert seen[:, MASK].isneginf().all()
    torch.testing.assert_close(seen[:, :MASK], logits[:, :MASK])


VIEW = RULE.replace(
    "    def choose",
    """    def view(self, row):
        n, places = len(row.ids), row.candidates()
        whole = torch.ones(n, n, dtype=torch.bool)
        return decoding.View(row, row.ids, places, places, positions=torch.arange(n) + SHIFT, attention=whole)

    def choose""",
).replace("from dataclasses", "import torch\nfrom dataclasses")


@pytest.mark.parametrize("shift", [0, 5])
def test_a_view_that_spells_out_positions_and_attention_is_the_plain_one(tiny, tmp_path, shift):
    # rotary embeddings know distances alone, so a row that starts elsewhere reads the same
    spelt, plain = tmp_path / "spelt.py", tmp_path / "plain.py"
    for file, text in ((spelt, VIEW.replace("SHIFT", str(shift))), (plain, RULE)):
        file.write_text("\n".join(line for line in text.split("\n") if "assert" not in line))
    predict, texts = unmask.models.predictor(tiny), [[1, 2, None, None, None], [*range(20), None, 9, None]]
    wanted = decoding.infill(predict, texts, rule=str(plain), cfg_scale=0.5)
    assert decoding.infill(predict, texts, rule=str(spelt), cfg_scale=0.5) == wanted
    mixed = Canvas.of(texts, GSAI_MASK)
    decoding.prepare(predict, mixed.rows[:1], rule=str(spelt), cfg_scale=0.5)
    decoding.prepare(predict, mixed.rows[1:], rule=str(plain), cfg_scale=0.5)
    assert [row.ids.tolist() for row in decoding.fill(predict, mixed).rows] == wanted


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_the_head_is_given_at_once_changes_nothing(tiny, monkeypatch, temperature):
    predict, texts = unmask.models.predictor(tiny), [[1, *[None] * 70], [None] * 33]
    options = {"steps": 5, "temperature": temperature, "cfg_scale": 0.5}
    whole = decoding.infill(predict, texts, **options)
    given_at_once = []

    class Counting(unmask.models.Predictor):
        def __call__(self, ids, *, read, **more):
            def counted(hidden, head):
                return read(hidden, lambda part: given_at_once.append(len(part)) or head(part))

            return super().__call__(ids, read=counted, **more)

    monkeypatch.setattr(signals, "CHUNK", 1)
    assert decoding.infill(Counting(tiny), texts, **options) == whole
    assert max(given_at_once) == signals.PIECE


def test_a_rule_file_without_a_rule_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="no decoding rule: it needs"):
        decoding.generate(Toy(), torch.tensor([[1]]), rule=str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stepz": 4}, "unknown setting 'stepz'.*Did you mean 'steps'"),
        ({"remasing": "random"}, "unknown setting 'remasing'.*Did you mean 'remasking'"),
        ({"remasking": "lowconf"}, "remasking is 'lowconf'; it can be low_confidence, random"),
        ({"rule": "referense"}, "'referense'; there are .*Did you mean 'reference'"),
        ({"rule": "nowhere.py"}, "no file 'nowhere.py'"),
        ({"remasking": "random", "rule_args": {"remasking": "random"}}, "'remasking' is given twice"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"steps": -4}, "steps is -4"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_length": 0}, "block_size is 0"),
        ({"temperature": -1}, "temperature is -1.0; it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"cfg_scale": -0.1}, "cfg_scale is -0.1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"gen_length": -1}, "is -1; it must be at least 1"),
        ({"max_new_tokens": 7.5}, "max_new_tokens is 7.5; it must be a whole number"),
        ({"max_new_tokens": 15}, "2 given and 15 new tokens are 17; the model holds 16"),
        ({"suppress_tokens": [12]}, "no token 12; the model has 12"),
        ({"begin_suppress_tokens": [-1]}, "no token -1"),
        ({"suppress_tokens": list(range(VOCABULARY))}, "no token is left"),
        ({"suppress_tokens": [t for t in range(VOCABULARY) if t != MASK]}, "no token is left"),
        ({"confidence_eos_eot_inf": True}, "--eot_token_id"),
        ({"compat": "lada"}, "compat is 'lada'"),
    ],
)
def test_bad_settings_are_named_in_one_line(options, says):
    toy = Toy(max_length=16)
    with pytest.raises(UserError, match=says) as caught:
        decoding.generate(
            toy, torch.tensor([[1, 2]]), **{"max_new_tokens": None if "gen_length" in options else 4} | options
        )
    assert "\n" not in str(caught.value)
    assert toy.passes == 0


def test_bad_ids_are_named():
    for ids, says in [
        (None, "input_ids must be"),
        (torch.tensor([1, 2]), "input_ids must be"),
        (torch.tensor([[1, VOCABULARY]]), "outside the model's vocabulary of 12"),
        (torch.tensor([[1, -1]]), "outside the model's vocabulary"),
    ]:
        with pytest.raises(UserError, match=says):
            decoding.generate(Toy(), ids)
    with pytest.raises(UserError, match="attention_mask is"):
        decoding.generate(Toy(), torch.tensor([[1, 2]]), torch.tensor([[1]]))


def test_ends_must_be_known_to_stop_or_be_held_back():
    toy = Toy()
    toy.eos_id = None
    for option in ("eos_stop", "logits_eos_inf", "confidence_eos_eot_inf"):
        with pytest.raises(UserError, match="give --eos_token_id"):
            decoding.generate(toy, torch.tensor([[1]]), **{option: True})
    assert decoding.generate(toy, torch.tensor([[1]]), max_new_tokens=4, eos_stop=True, eos_token_id=3).shape == (1, 5)


def test_stopping_means_nothing_where_text_follows_a_gap():
    with pytest.raises(UserError, match="--eos_stop and --stop_strings have no meaning"):
        decoding.infill(Toy(), [[1, None, 2]], eos_stop=True)


def test_settings_for_prepared_rows_are_refused():
    toy, canvas = Toy(), Canvas.after([[1]], 3, MASK)
    decoding.prepare(toy, canvas.rows)
    with pytest.raises(UserError, match="prepared already, so steps would change nothing"):
        decoding.fill(toy, canvas, steps=2)


def test_a_broken_model_is_named():
    toy = Toy(lambda ids: torch.full((len(ids), VOCABULARY), torch.nan))
    with pytest.raises(UserError, match="not numbers"):
        decoding.generate(toy, torch.tensor([[1]]), max_new_tokens=2)
