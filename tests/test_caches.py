"""Caches: what they promise to recompute they recompute, and no row knows who else is in the batch."""

import json

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny
from toy import MASK, Toy

import unmask.models
from unmask import caches, decoding
from unmask.canvas import Canvas
from unmask.config import UserError
from unmask.memory import Memory

POLICIES = ("prefix", "dual", "vicinity", "delayed")
GSAI_MASK = 511
SLOW_ENOUGH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def predict(shared):
    folder = shared / "fixtures" / "fastdllm-tiny"
    return unmask.models.predictor(transformers.AutoModelForCausalLM.from_pretrained(folder).eval())


def told(shared):
    return json.loads((shared / "fixtures" / "fastdllm-tiny" / "expected.json").read_text())["generate"]


@pytest.mark.parametrize("number", range(18))
def test_fast_dllms_answers_token_for_token_in_no_more_passes(predict, shared, number):
    case = told(shared)[number]
    asked = case["args"]
    rule = {"rule": "threshold", "threshold": asked["threshold"]} if asked["threshold"] else {"steps": asked["steps"]}
    [prompt] = case["prompt"]
    canvas = Canvas.after([prompt], asked["gen_length"], GSAI_MASK)
    decoding.fill(predict, canvas, block_size=asked["block_length"], cache=case["cache"], **rule)
    assert canvas.rows[0].ids.tolist() == case["output"][0]
    assert canvas.rows[0].passes <= case["forward_passes"]


def test_all_of_them_together_are_as_alone(predict, shared):
    cases = told(shared)
    rows = []
    for case in cases:
        asked = case["args"]
        rule = (
            {"rule": "threshold", "threshold": asked["threshold"]} if asked["threshold"] else {"steps": asked["steps"]}
        )
        rows += Canvas.after(case["prompt"], asked["gen_length"], GSAI_MASK).rows
        decoding.prepare(predict, rows[-1:], block_size=asked["block_length"], cache=case["cache"], **rule)
    decoding.fill(predict, Canvas(rows))
    assert [row.ids.tolist() for row in rows] == [case["output"][0] for case in cases]


@st.composite
def requests(draw):
    """A text with open places, and the settings it is filled with."""
    prompt = draw(st.lists(st.integers(0, 510), max_size=24))
    text = [*prompt, *[None] * draw(st.integers(1, 30))]
    if draw(st.booleans()):
        text = [*text, *draw(st.lists(st.one_of(st.none(), st.integers(0, 508)), max_size=8))]
    options = {
        "cache": draw(st.sampled_from(("none", *POLICIES))),
        "rule": draw(st.sampled_from(["reference", "threshold", "left_to_right", "entropy_bound", "remdm"])),
        "steps": draw(st.one_of(st.none(), st.integers(1, 12))),
        "block_size": draw(st.one_of(st.none(), st.integers(1, 12))),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 0.7])),
    }
    if options["cache"] != "none":
        options["refresh_every"] = draw(st.one_of(st.none(), st.integers(1, 5)))
    return text, options


@given(st.lists(requests(), min_size=2, max_size=4))
@settings(max_examples=25, suppress_health_check=SLOW_ENOUGH)
def test_a_row_alone_is_the_row_in_any_batch(predict, wanted):
    together = Canvas.of([text for text, _ in wanted], GSAI_MASK)
    for row, (_, options) in zip(together.rows, wanted, strict=True):
        decoding.prepare(predict, [row], **options)
    decoding.fill(predict, together)
    for number, (text, options) in enumerate(wanted):
        alone = decoding.fill(predict, Canvas.of([text], GSAI_MASK, first=number), **options).rows[0]
        row = together.rows[number]
        assert row.ids.tolist() == alone.ids.tolist()
        assert row.written_at.tolist() == alone.written_at.tolist()
        assert (row.passes, row.computed) == (alone.passes, alone.computed)
        assert all(old in (None, new) for old, new in zip(text, row.ids.tolist(), strict=True))
        assert not row.open.any()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_refresh_at_every_step_is_exact(predict, policy, guidance):
    texts = [[3, 4, 5, *[None] * 20], [None] * 9, [7, None, None, 8, None, 9]]
    options = {"block_size": 5, "cfg_scale": guidance}
    exact = decoding.infill(predict, texts, **options)
    assert decoding.infill(predict, texts, cache=policy, refresh_every=1, **options) == exact


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["llada", "qwen2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_blocks_of_one_place_need_no_second_step_so_every_policy_but_delayed_is_exact(policy, kind, attention):
    model = unmask.models.predictor(tiny(kind, attention=attention))
    texts = [[1, 2, None, None, None, 4, None], [5, *[None] * 17]]
    options = {"block_size": 1}
    exact = decoding.infill(model, texts, **options)
    kept = {"refresh_every": 1} if policy == "delayed" else {}
    assert decoding.infill(model, texts, cache=policy, **kept, **options) == exact


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_answered_from_memory_is_what_the_network_says_of_these_keys(policy):
    """One layer: keys and values depend on a place's own token alone: with stale ones renewed nothing is given up."""
    model = unmask.models.predictor(tiny("llama", num_hidden_layers=1))
    texts = [[1, 2, 3, *[None] * 21], [None] * 10, [4, None, 5, None, None, 6]]
    for options in ({"block_size": 6}, {"block_size": 6, "cfg_scale": 0.5}, {"rule": "threshold", "threshold": 0.2}):
        more = {"delayed": {"refresh_every": None}, "vicinity": {"vicinity": 1, "warm_up": 0}}.get(policy, {})
        exact, kept = Canvas.of(texts, 39), Canvas.of(texts, 39)
        decoding.fill(model, exact, **options)
        decoding.fill(model, kept, cache=policy, **more, **options)
        assert [row.ids.tolist() for row in kept.rows] == [row.ids.tolist() for row in exact.rows]
        assert sum(row.computed for row in kept.rows) < sum(row.computed for row in exact.rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_network_that_speaks_of_the_next_place_is_read_at_the_one_before(policy):
    network = tiny("qwen2", num_hidden_layers=1)
    network.config.shift = 1
    model = unmask.models.predictor(network)
    texts = [[1, 2, 3, *[None] * 15], [None] * 10]
    assert decoding.infill(model, texts, cache=policy, block_size=5) == decoding.infill(model, texts, block_size=5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_bare_half_of_guidance_has_keys_of_its_own(policy):
    model = unmask.models.predictor(tiny("llama", num_hidden_layers=1))
    prompt = [[9, 8, 7, 6, *[None] * 12]]
    options = {"cfg_scale": 2.0, "block_size": 4}
    guided = decoding.infill(model, prompt, **options)
    assert decoding.infill(model, prompt, cache=policy, **options) == guided


def computed(policy, **more):
    """Places that each step computes, of 4 given and 12 to be written in blocks of 4, one a step."""
    model = unmask.models.predictor(tiny("llama"))
    [row] = Canvas.after([[1, 2, 3, 4]], 12, 39).rows
    decoding.prepare(model, [row], cache=policy, block_size=4, **more)
    memory, found = Memory(), []
    while not row.finished:
        before = row.computed
        decoding.step(model, [row], memory)
        found.append(row.computed - before)
    assert memory.slots == {}
    return found


def test_each_policy_computes_what_it_says():
    assert computed("none") == [16] * 12
    assert computed("prefix") == [16, 12, 12, 12, 16, 8, 8, 8, 16, 4, 4, 4]
    assert computed("dual") == [16, 4, 4, 4] * 3
    assert computed("dual", refresh_every=2) == [16, 4, 16, 4] * 3
    assert computed("vicinity", vicinity=2, warm_up=2) == [16, 16, 8, 8, 16, 8, 8, 8, 16, 6, 6, 6]
    # the open places and the one just written
    assert computed("delayed", refresh_every=None) == [16, *(12 - i + 1 for i in range(1, 12))]
    assert computed("delayed", refresh_every=4) == [16, 12, 11, 10, 16, 8, 7, 6, 16, 4, 3, 2]


FORGETFUL = '''
"""Computes nothing but the block, whatever was reopened elsewhere."""
from dataclasses import dataclass
from unmask import caches

@dataclass
class Settings(caches.Settings):
    """Cache: forgetful"""

class Cache(caches.Blockwise):
    def around(self, row, start, end):
        return caches.span(start, start + 1)
'''


def test_what_changed_is_computed_whatever_the_policy_says(tmp_path):
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    model = unmask.models.predictor(tiny("llama", num_hidden_layers=1))
    texts = [[1, 2, *[None] * 14]]
    options = {"rule": "remdm", "block_size": 7, "seed": 3}
    kept = decoding.infill(model, texts, cache=str(tmp_path / "forgetful.py"), **options)
    assert kept == decoding.infill(model, texts, **options)


REACH = '''
"""Exact for networks that see no later block: what is settled is never computed again."""
from dataclasses import dataclass
import torch
from unmask import caches

@dataclass
class Settings:
    """Cache: settled"""

class Cache(caches.Cache):
    exact = True
    def reach(self, row):
        return int(row.blocks[row.block][-1]) + 1
    def window(self, row):
        first = max(row.block - 1, 0) if row.taken == 0 else row.block  # the block before, now that it is settled
        return torch.cat(row.blocks[first : row.block + 1])
'''


class BlockCausal(unmask.models.Predictor):
    """A network that sees its own block of four places and all before it."""

    def __call__(self, ids, *, attention=None, positions=None, cache=None, keep=None, read=None):
        places = torch.arange(ids.shape[1]).expand_as(ids) if positions is None else positions
        kept = places.shape[1] if positions is None else cache.plan.kept
        sees = torch.arange(kept) // 4 <= places[..., None] // 4
        if attention is not None:
            sees &= attention[:, None, :kept].bool()
        sees[..., 0] |= ~sees.any(-1)
        return super().__call__(ids, attention=sees[:, None], positions=positions, cache=cache, keep=keep, read=read)


def test_blocks_that_see_no_later_one_are_exact_from_memory(tmp_path):
    (tmp_path / "settled.py").write_text(REACH)
    model = BlockCausal(tiny("llama"))
    prompts = [[5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]]
    exact, kept = (Canvas.after(prompts, 12, 39) for _ in range(2))
    decoding.fill(model, exact, block_size=4)
    decoding.fill(model, kept, block_size=4, cache=str(tmp_path / "settled.py"))
    assert [row.ids.tolist() for row in kept.rows] == [row.ids.tolist() for row in exact.rows]
    assert kept.rows[0].passes == exact.rows[0].passes
    # the first step computes prompt and block; each later one its block, and the settled one before at its first step
    assert kept.rows[0].computed == 8 + 3 * 4 + (8 + 3 * 4) + (8 + 3 * 4)


def test_rows_that_join_and_leave_keep_what_is_theirs():
    model = unmask.models.predictor(tiny("llama"))
    prompts, new = [[1, 2, 3], [4] * 20, [], [9, 9]], [9, 14, 25, 3]
    rows = Canvas.after(prompts, new, 39).rows
    decoding.prepare(model, rows, cache="dual", block_size=4)
    memory = Memory()
    for row in rows:
        decoding.step(model, rows[: row.number + 1], memory)
    while not all(row.finished for row in rows):
        decoding.step(model, rows[::-1], memory)
    assert memory.slots == {}
    for row, prompt in zip(rows, prompts, strict=True):
        alone = Canvas.after([prompt], len(row.answer), 39, first=row.number)
        decoding.fill(model, alone, cache="dual", block_size=4)
        assert alone.rows[0].ids.tolist() == row.ids.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_rules_that_show_more_than_the_row_take_no_cache():
    for policy in POLICIES:
        with pytest.raises(UserError, match=f"'wino' shows the model more.*--cache none instead of '{policy}'"):
            decoding.generate(Toy(), torch.tensor([[1]]), max_new_tokens=4, rule="wino", cache=policy)


def test_networks_with_other_layers_than_full_attention_keep_nothing():
    model = unmask.models.predictor(tiny("gemma2", attention="eager"))
    with pytest.raises(UserError, match="gemma2 has layers of sliding_attention; use --cache none"):
        decoding.generate(model, torch.tensor([[1]]), max_new_tokens=4, cache="dual")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "duel"}, r"no cache called 'duel'; there are .*dual.*Did you mean 'dual'"),
        ({"cache": "dual", "refresh_every": 0}, "--refresh_every is 0; it must be at least 1"),
        ({"cache": "none", "refresh_every": 3}, "unknown setting 'refresh_every'.*the cache 'none' none"),
        ({"cache": "vicinity", "vicinity": -1}, "--vicinity is -1; it must be 0 or more"),
        ({"cache": "dual", "refresh_every": 2, "cache_args": {"refresh_every": 3}}, "given twice.*cache_args"),
    ],
)
def test_bad_settings_are_one_line(options, said):
    with pytest.raises(UserError, match=said) as error:
        decoding.generate(Toy(), torch.tensor([[1]]), max_new_tokens=4, **options)
    assert "\n" not in str(error.value)


def test_a_step_of_rows_with_a_cache_needs_a_memory():
    rows = Canvas.after([[1]], 4, MASK).rows
    decoding.prepare(Toy(), rows, cache="dual")
    with pytest.raises(UserError, match="need a Memory"):
        decoding.step(Toy(), rows)


def test_a_file_without_a_policy_is_named(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="is no cache policy"):
        decoding.cache_file(str(tmp_path / "empty.py"))
    assert not caches.Cache.exact
