"""One answer: greedy as transformers writes it, by chance as its seed says, and no further than its end."""

import copy

import pytest
import torch
from runs import make_model
from transformers import LlamaConfig, LlamaForCausalLM

import unmask
from unmask.answer import LEFT_TO_RIGHT, Writer
from unmask.canvas import Canvas
from unmask.config import UserError

PROMPT = [84, 104, 101, 32]


@pytest.fixture(scope="module")
def causal(tmp_path_factory, byte_tokenizer):
    """A small causal model with a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("causal")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=262, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=257, bos_token_id=256, initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return unmask.models.load(str(folder), causal=None)


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory, byte_tokenizer):
    folder = make_model(tmp_path_factory.mktemp("diffusion") / "tiny", byte_tokenizer)
    return unmask.models.load(str(folder), fresh=True, seed=3)


def written(writer, new=20, number=0, **settings):
    row = writer.begin(PROMPT, new, settings, number)
    states = [(row.step, int(row.open.sum())) for row in writer.write(row)]
    return row, states


def test_greedy_is_what_transformers_writes(causal):
    row, states = written(Writer(causal), eos_stop=False)
    ids = torch.tensor([PROMPT])
    told = causal.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert row.ids.tolist() == told[0].tolist()
    assert states == [(i, 20 - i) for i in range(1, 21)]
    assert row.finished == "length"


def test_a_network_without_a_cache_writes_the_same(causal, monkeypatch):
    with_cache, _ = written(Writer(causal), eos_stop=False)
    forward = causal.model.forward

    def forgetful(**inputs):
        assert "past_key_values" not in inputs
        out = forward(**inputs)
        out.past_key_values = None
        return out

    monkeypatch.setattr(causal.model, "forward", forgetful)
    assert written(Writer(causal), eos_stop=False)[0].ids.tolist() == with_cache.ids.tolist()


def test_chance_follows_seed_and_number(causal):
    writer = Writer(causal)

    def ids(**settings):
        return written(writer, temperature=1.0, eos_stop=False, **settings)[0].ids.tolist()

    assert ids() == ids() == ids(seed=42)
    assert len({tuple(one) for one in (ids(), ids(seed=1), ids(number=1))}) == 3


def test_an_end_stops_it_and_is_no_part_of_the_answer(causal):
    whole, _ = written(Writer(causal), eos_stop=False)
    told = whole.answer.tolist()
    end = next(i for i in told[3:] if i not in told[:3])
    at = told.index(end)
    row, states = written(Writer(causal, [end]), eos_stop=True)
    assert row.finished == "stop"
    assert len(states) == at + 1
    assert Writer(causal, [end]).answer(row) == (told[:at], True)
    assert Writer(causal, [end]).answer(whole) == (told[:at], True)  # gone on beyond it, on demand
    row, _ = written(Writer(causal), suppress_tokens=[end], eos_stop=False)
    assert end not in row.answer.tolist()


def test_ends_are_gathered_from_wherever_a_chat_model_names_them(causal):
    other = copy.copy(causal)
    other.model = copy.copy(causal.model)
    other.model.generation_config = copy.deepcopy(causal.model.generation_config)
    other.model.generation_config.eos_token_id = [257, 70]
    assert Writer(other, [261]).ends == {"eos_token_id": [257], "eot_token_id": [261, 70]}


def test_half_an_answer_ends_at_its_first_gap(causal):
    row = Canvas.after([PROMPT], 5, 0).rows[0]
    for place, token in ((0, 70), (1, 71), (3, 72)):
        row.ids[4 + place], row.open[4 + place] = token, False
    assert Writer(causal).answer(row) == ([70, 71], False)


@pytest.mark.parametrize("name", ["steps", "block_size", "cfg_scale", "remasking", "rule", "begin_suppress_tokens"])
def test_what_only_unmasking_knows_is_refused_by_a_causal_model(causal, name):
    with pytest.raises(UserError, match=f"--{name} belongs to models that unmask, and llama writes left to right"):
        Writer(causal).begin(PROMPT, 4, {name: 1})
    assert name not in LEFT_TO_RIGHT


def test_rows_that_cannot_be_are_refused(causal, diffusion):
    with pytest.raises(UserError, match="the model holds 64"):
        Writer(causal).begin(PROMPT, 61, {})
    with pytest.raises(UserError, match="--temperature is -1"):
        Writer(causal).begin(PROMPT, 4, {"temperature": -1})
    with pytest.raises(UserError, match="no token 300"):
        Writer(causal).begin(PROMPT, 4, {"suppress_tokens": [300]})
    with pytest.raises(UserError, match="nothing to go on from"):
        list(Writer(causal).write(Writer(causal).begin([], 4, {})))
    with pytest.raises(UserError, match="remasking"):
        Writer(diffusion).begin(PROMPT, 4, {"remasking": "lowest"})


def test_a_mask_predictor_answers_as_generate_does(diffusion):
    row, states = written(Writer(diffusion), steps=5, block_size=10, eos_stop=False)
    told = diffusion.model.generate(torch.tensor([PROMPT]), max_new_tokens=20, steps=5, block_size=10)
    assert row.ids.tolist() == told[0].tolist()
    assert len(states) == 5
