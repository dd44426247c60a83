"""`model.generate` by the conventions of `transformers`: settings, streamers, output, and what is refused."""

import threading

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import EOS, MASK, VOCABULARY, Toy, favouring, hashed
from transformers import GenerationConfig, TextDiffusionStreamer, TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

from unmask import decoding, generation, models
from unmask.config import UserError

PROMPT = torch.tensor([[5, 6, 7]])
NO_SPECIALS = list(range(256, 511))  # the bytes of `byte_tokenizer` are the first 256 ids


@pytest.fixture(scope="module")
def tiny(shared):
    return transformers.AutoModelForCausalLM.from_pretrained(shared / "fixtures" / "llada-tiny").eval()


class Named:
    """A model of which only `generation_config` is looked at."""

    def __init__(self, **fields):
        self.generation_config = GenerationConfig(**fields)


def toy_generate(answer=hashed, ids=((1, 2),), model=None, predict=None, **options):
    return generation.generate(model or Named(), predict or Toy(answer), torch.tensor(ids), **options)


class Heard(BaseStreamer):
    """Everything that a streamer is told."""

    def __init__(self):
        self.told = []

    def put(self, value):
        self.told.append(("put", value.flatten().tolist()))

    def end(self):
        self.told.append(("end", None))

    def of(self, what):
        return [value for name, value in self.told if name == what]

    @property
    def answer(self):
        return [token for value in self.of("put")[1:] for token in value]


class HeardDrafts(Heard):
    def put_draft(self, value):
        assert value.shape[0] == 1
        self.told.append(("draft", value.flatten().tolist()))


# ---------------------------------------------------------------------------------------------------------------------
# Settings

# What `transformers` calls it, and what decoding does. The prompt has 3 tokens.
SAME = [
    ({"max_new_tokens": 6}, {"max_new_tokens": 6}),
    ({"max_length": 9}, {"max_new_tokens": 6}),
    ({"max_length": 9, "max_new_tokens": 6}, {"max_new_tokens": 6}),
    ({"do_sample": True}, {"temperature": 1.0}),
    ({"do_sample": True, "temperature": 0.5, "top_k": 7}, {"temperature": 0.5, "top_k": 7}),
    ({"do_sample": True, "top_p": 0.7, "top_k": 0}, {"temperature": 1.0, "top_p": 0.7}),
    ({"do_sample": False}, {}),
    ({"guidance_scale": 2.5}, {"cfg_scale": 1.5}),
    ({"guidance_scale": 1.0}, {}),
    ({"suppress_tokens": [13, 44]}, {"suppress_tokens": [13, 44]}),
    ({"eos_token_id": 44, "eos_stop": True, "pad_token_id": 44}, {"eos_token_id": [44], "eos_stop": True}),
    ({"min_new_tokens": 5, "eos_token_id": [44, 13]}, {"min_new_tokens": 5, "eos_token_id": [44, 13]}),
    ({"num_beams": 1, "repetition_penalty": 1.0, "output_scores": False, "use_cache": True, "bos_token_id": 4}, {}),
    (
        {"rule": "threshold", "threshold": 0.02, "block_size": 4},
        {"rule": "threshold", "threshold": 0.02, "block_size": 4},
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), SAME)
def test_a_setting_of_transformers_is_ours_in_a_config_and_as_a_keyword(tiny, theirs, ours):
    predict = models.predictor(tiny)
    length = {} if theirs.keys() & {"max_new_tokens", "max_length"} else {"max_new_tokens": 8}
    expected = decoding.generate(predict, PROMPT, **({"max_new_tokens": 8} | ours))
    config = GenerationConfig(**(theirs | length))
    assert tiny.generate(PROMPT, **(theirs | length)).equal(expected)
    assert tiny.generate(PROMPT, generation_config=config).equal(expected)
    assert tiny.generate(inputs=PROMPT, generation_config=config).equal(expected)


@pytest.mark.parametrize(
    ("config", "keywords", "ours"),
    [
        ({"max_new_tokens": 5}, {"max_new_tokens": 6}, {"max_new_tokens": 6}),
        ({"max_length": 5}, {"gen_length": 6}, {"max_new_tokens": 6}),
        ({"max_new_tokens": 5}, {"max_length": 9}, {"max_new_tokens": 6}),
        ({"do_sample": True, "temperature": 0.5}, {"temperature": 0.9}, {"temperature": 0.9}),
        ({"do_sample": True, "temperature": 0.5, "top_k": 3}, {"do_sample": False}, {}),
        ({"do_sample": True, "temperature": 0.5, "top_k": 3}, {"temperature": 0.0}, {}),
        ({"do_sample": False}, {"temperature": 0.9}, {"temperature": 0.9}),
        ({"temperature": 0.5}, {"do_sample": True}, {"temperature": 0.5}),
        ({"do_sample": True, "top_k": 3}, {"top_k": 0}, {"temperature": 1.0}),
        ({"guidance_scale": 3.0}, {"cfg_scale": 0.5}, {"cfg_scale": 0.5}),
        ({"suppress_tokens": [3]}, {"suppress_tokens": []}, {}),
        ({"temperature": 0.5, "top_p": 0.9}, {}, {}),  # without do_sample they count for nothing there
        ({"do_sample": True}, {"do_sample": False, "temperature": None, "top_p": None}, {}),
    ],
)
def test_keywords_override_a_config(tiny, config, keywords, ours):
    base = {"max_new_tokens": 8}
    length = {} if (config | keywords).keys() & {"max_new_tokens", "max_length", "gen_length"} else base
    told = tiny.generate(PROMPT, generation_config=GenerationConfig(**config), **(keywords | length))
    assert told.equal(decoding.generate(models.predictor(tiny), PROMPT, **(base | ours)))


@given(st.booleans() | st.none(), st.booleans() | st.none(), *[st.sampled_from([None, 0.0, 0.5])] * 2)
def test_what_is_drawn_is_what_was_said_last(by_config, said, config_temperature, temperature):
    base = {"do_sample": by_config, "temperature": config_temperature}
    keywords = {"do_sample": said, "temperature": temperature}
    base, keywords = ({k: v for k, v in some.items() if v is not None} for some in (base, keywords))
    # a keyword of temperature without do_sample is an answer in itself; else do_sample decides, the keyword's first
    draws = temperature > 0 if said is None and temperature is not None else (by_config if said is None else said)
    hot = next((t for t in (temperature, config_temperature, 1.0) if t is not None), None)
    if (draws and not hot) or (said is False and temperature):
        with pytest.raises(UserError, match="contradict each other"):
            generation.sampling(base, keywords)
    else:
        found = generation.sampling(base, keywords)
        assert found.get("temperature", 0.0) == (hot if draws else 0.0)
        assert "do_sample" not in found


def test_a_saved_generation_config_changes_no_answer(tiny, tmp_path):
    options = {"max_new_tokens": 12, "block_size": 4, "eos_stop": True, "temperature": 0.7}
    expected = decoding.generate(models.predictor(tiny), PROMPT, **options)
    tiny.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").is_file()
    for fields in ({}, {"do_sample": True, "temperature": 3.0, "max_length": 5, "top_k": 1, "repetition_penalty": 9.0}):
        GenerationConfig(eos_token_id=510, pad_token_id=510, **fields).save_pretrained(tmp_path)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert again.generate(PROMPT, **options).equal(expected)
        assert tiny.generate(PROMPT, generation_config=tiny.generation_config, **options).equal(expected)


def test_a_model_may_name_its_ends_and_padding_in_its_generation_config():
    answer = favouring([1, 2, 3, 7, 3, 3, 3, 3])
    out = toy_generate(
        answer, model=Named(eos_token_id=[7], pad_token_id=5), max_new_tokens=6, block_size=1, eos_stop=True
    )
    assert out.tolist() == [[1, 2, 3, 7, 5, 5, 5, 5]]
    asked = toy_generate(
        answer,
        model=Named(eos_token_id=[7], pad_token_id=5),
        max_new_tokens=6,
        block_size=1,
        eos_stop=True,
        pad_token_id=6,
    )
    assert asked.tolist() == [[1, 2, 3, 7, 6, 6, 6, 6]]
    masked = toy_generate(
        answer, model=Named(eos_token_id=7, pad_token_id=MASK), max_new_tokens=6, block_size=1, eos_stop=True
    )
    assert masked.tolist() == [[1, 2, 3, 7, 7, 7, 7, 7]]


def test_padding_alters_nothing_that_was_written():
    answer = favouring([1, 2, 3, EOS, 4, 5])
    assert toy_generate(answer, max_new_tokens=4, pad_token_id=8).tolist() == [[1, 2, 3, EOS, 4, 5]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_beams": 4}, "num_beams=4 of transformers cannot be honoured"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2 .*repeat the prompt"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6"),
        ({"min_length": 4}, "min_length=4 .*give min_new_tokens"),
        ({"bad_words_ids": [[3]]}, "bad_words_ids=<list> .*suppress_tokens"),
        ({"output_scores": True}, "output_scores=True .*confidence"),
        ({"max_time": 1.0}, "max_time=1.0"),
        ({"cache_implementation": "static"}, "cache_implementation='static' .*cache='dual'"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=True and temperature=0 contradict"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5; it must be 1"),
        ({"max_length": 3}, "max_length 3 leaves nothing after 3 tokens"),
        ({"max_length": 9, "max_new_tokens": 5}, "leaves 6 tokens after 3 of prompt, and max_new_tokens is 5"),
        ({"pad_token_id": 511}, "pad_token_id is 511; .*not its mask"),
        ({"pad_token_id": 512}, "pad_token_id is 512"),
        ({"use_cache": False, "cache": "dual"}, "use_cache=False and cache='dual' contradict"),
        ({"stpes": 3}, "unknown setting 'stpes'.*'steps'"),
        ({"stop_strings": "x"}, "give the tokenizer too"),
    ],
)
def test_what_cannot_be_is_refused_by_name_in_a_config_and_as_a_keyword(tiny, options, says):
    heard = Heard()
    for how in (options, {"generation_config": GenerationConfig(**options)}):
        with pytest.raises(UserError, match=says) as error:
            tiny.generate(PROMPT, streamer=heard, **how)
        assert "\n" not in str(error.value)
    assert heard.told == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"do_sample": False, "temperature": 0.5}, "do_sample=False and temperature=0.5 contradict"),
        ({"logits_processor": [print]}, "logits_processor=<list> .*suppress_tokens"),
        ({"stopping_criteria": [print]}, "stopping_criteria=<list> .*stop_strings"),
        ({"assistant_model": Named()}, "assistant_model=<Named>"),
        ({"past_key_values": transformers.DynamicCache()}, "past_key_values=<DynamicCache> .*cache='dual'"),
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, "inputs_embeds=<Tensor> .*give input_ids"),
        ({"token_type_ids": torch.zeros(1, 3)}, "token_type_ids=<Tensor> .*return_token_type_ids=False"),
        ({"inputs": PROMPT}, "input_ids and inputs are two names"),
        ({"cfg_scale": 1.0, "guidance_scale": 3.0}, "guidance_scale 3 is cfg_scale 2, and cfg_scale is 1.0"),
        ({"generation_config": {"max_new_tokens": 3}}, "generation_config is a dict"),
        ({"generation_config": GenerationConfig(begin_suppress_tokens=[3])}, "begin_suppress_tokens=<list> .*keyword"),
        ({"generation_config": GenerationConfig(constraints=[3])}, "constraints=<list> .*place: token"),
        ({"streamer": print}, "streamer is a builtin_function_or_method; it needs put and end"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tiny, options, says):
    with pytest.raises(UserError, match=says):
        tiny.generate(PROMPT, **options)


@pytest.mark.parametrize("name", sorted(generation.ARGUMENTS))
def test_none_says_nothing(name):
    assert toy_generate(max_new_tokens=3, **{name: None}).equal(toy_generate(max_new_tokens=3))


def test_a_rule_may_bring_a_setting_that_transformers_has_too(tmp_path):
    (tmp_path / "penal.py").write_text(
        "import dataclasses\nfrom unmask import decoding\nfrom unmask.config import option\n"
        "@dataclasses.dataclass\nclass Settings:\n    repetition_penalty: float = option(1.0, '')\n"
        "class Rule(decoding.Rule):\n    adjusts = True\n"
        "    def adjust(self, row, places, logits):\n        return logits * self.settings.repetition_penalty\n"
        "    def choose(self, row, seen):\n        return seen.choice()\n"
    )
    options = {"rule": str(tmp_path / "penal.py"), "max_new_tokens": 3}
    assert toy_generate(repetition_penalty=1.5, **options).equal(toy_generate(**options))
    assert not toy_generate(repetition_penalty=-1.0, **options).equal(toy_generate(**options))


def test_constraints_are_ours_as_a_keyword(tiny):
    assert tiny.generate(PROMPT, max_new_tokens=6, constraints={2: [8, 9]})[0, 5:7].tolist() == [8, 9]


# ---------------------------------------------------------------------------------------------------------------------
# Output


def test_the_output_tells_how_it_came_to_be():
    # place 0 to 5 of the answer, surest first: 3, 0, then two at once past the threshold
    answer = favouring([0, 0, 1, 2, 3, EOS, 5, 6], [0.0, 0.0, 20.0, 19.0, 18.0, 3.0, 2.0, 1.0])
    found = toy_generate(
        answer, max_new_tokens=6, rule="threshold", threshold=0.9, return_dict_in_generate=True, seed=3
    )
    assert isinstance(found, transformers.utils.ModelOutput)
    assert found.sequences.tolist() == [[1, 2, 1, 2, 3, EOS, 5, 6]]
    assert found.written_at.tolist() == [[1, 1, 1, 2, 3, 4]]
    assert found.forward_passes.tolist() == [4]
    assert found.tokens_per_forward.tolist() == [4 / 4]  # up to and including the end
    assert found.finish_reasons == ["length"]
    by_hand = torch.stack([torch.softmax(answer([0] * 8)[place], -1).max() for place in range(2, 8)])
    torch.testing.assert_close(found.confidence[0], by_hand)
    stopped = toy_generate(
        answer, max_new_tokens=6, rule="threshold", threshold=0.9, return_dict_in_generate=True, eos_stop=True
    )
    assert stopped.finish_reasons == ["stop"]
    assert stopped.written_at.tolist() == [[1, 1, 1, 2, 0, 0]]
    assert stopped.tokens_per_forward.tolist() == [4 / 2]
    assert stopped.confidence.isnan().tolist() == [[False] * 4 + [True] * 2]


@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 2), min_size=3, max_size=3), min_size=0, max_size=3),
    st.integers(1, 9),
    st.sampled_from([{}, {"eos_stop": True}, {"cfg_scale": 1.0}, {"rule": "threshold", "threshold": 0.3}]),
    st.sampled_from([{}, {"pad_token_id": 4}]),
    st.sampled_from([None, 2]),
)
@settings(max_examples=40)
def test_every_row_of_the_output_agrees_with_the_engine(prompts, new, options, pad, block):
    ids = torch.tensor(prompts, dtype=torch.long).reshape(-1, 3)
    found = generation.generate(
        Named(), Toy(), ids, max_new_tokens=new, block_size=block, return_dict_in_generate=True, **options, **pad
    )
    canvas, rest = decoding.answers(Toy(), ids, max_new_tokens=new, block_size=block, **options)
    decoding.fill(Toy(), canvas, **rest)
    assert found.sequences.shape == (len(prompts), 3 + new)
    for i, row in enumerate(canvas.rows):
        assert found.written_at[i].equal(row.written_at[3:])
        assert torch.nan_to_num(found.confidence[i], -1).equal(torch.nan_to_num(row.confidence[3:], -1))
        assert found.forward_passes[i] == row.passes == row.step * (2 if "cfg_scale" in options else 1)
        assert found.tokens_per_forward[i] == pytest.approx(row.tokens / row.passes)
        assert found.finish_reasons[i] == row.finished
        filled = pad.get("pad_token_id")
        assert found.sequences[i].tolist() == [
            filled if filled is not None and at >= 3 and not step else token
            for at, (token, step) in enumerate(zip(row.ids.tolist(), row.written_at.tolist(), strict=True))
        ]


def test_an_answer_that_is_given_whole_takes_no_pass():
    heard = Heard()
    found = toy_generate(max_new_tokens=2, constraints={0: [3, 4]}, return_dict_in_generate=True, streamer=heard)
    assert heard.of("put") == [[1, 2], [3, 4]]
    assert found.sequences.tolist() == [[1, 2, 3, 4]]
    assert found.tokens_per_forward.tolist() == [0.0]
    assert found.forward_passes.tolist() == [0]


def test_a_config_may_ask_for_the_output_and_a_keyword_has_the_last_word():
    config = GenerationConfig(return_dict_in_generate=True, max_new_tokens=3)
    assert isinstance(toy_generate(generation_config=config), generation.MaskedDiffusionOutput)
    assert isinstance(toy_generate(generation_config=config, return_dict_in_generate=False), torch.Tensor)


def test_an_answer_that_grew_less_than_another_is_filled_up():
    def ends_after_a_1(ids):
        return favouring([EOS if ids[0] == 1 else 4] * len(ids), 9.0)(ids)

    found = toy_generate(
        ends_after_a_1,
        ids=((1, 2), (3, 2)),
        max_new_tokens=30,
        canvas="grow",
        initial_length=4,
        pad_token_id=5,
        return_dict_in_generate=True,
    )
    assert found.sequences.tolist() == [[1, 2, *[EOS] * 4, *[5] * 26], [3, 2, *[4] * 30]]
    assert found.written_at.count_nonzero(-1).tolist() == [4, 30]
    assert found.confidence.isfinite().sum(-1).tolist() == [4, 30]


# ---------------------------------------------------------------------------------------------------------------------
# Streams


RULES = [
    {"steps": 5},
    {"block_size": 4, "temperature": 0.8},
    {"rule": "threshold", "threshold": 0.02},
    {"rule": "random", "block_size": 5},
    {"rule": "remdm", "block_size": 4},
    {"rule": "wino", "block_size": 6},
    {"rule": "left_to_right", "cache": "prefix"},
]


@pytest.mark.parametrize("options", RULES)
def test_streamed_text_is_the_text_of_the_answer(tiny, byte_tokenizer, capsys, options):
    options = {"max_new_tokens": 24, "suppress_tokens": NO_SPECIALS} | options
    ids = byte_tokenizer("Hello you", return_tensors="pt", return_token_type_ids=False).input_ids
    text = byte_tokenizer.decode(tiny.generate(ids, **options)[0])
    capsys.readouterr()
    tiny.generate(ids, streamer=TextStreamer(byte_tokenizer), **options)
    assert capsys.readouterr().out == text + "\n"
    streamer = TextIteratorStreamer(byte_tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=tiny.generate, args=(ids,), kwargs=options | {"streamer": streamer})
    thread.start()
    told = "".join(streamer)
    thread.join()
    assert "Hello you" + told == text


@pytest.mark.parametrize("options", RULES)
def test_drafts_come_one_a_step_and_end_in_the_answer(tiny, options):
    heard = HeardDrafts()
    found = tiny.generate(PROMPT, streamer=heard, max_new_tokens=14, return_dict_in_generate=True, **options)
    answer, drafts = found.sequences[0, 3:].tolist(), heard.of("draft")
    assert [name for name, _ in heard.told] == ["put", *["draft"] * len(drafts), "put", "end"]
    assert heard.told[0][1] == [5, 6, 7]
    assert drafts[-1] == answer
    assert found.forward_passes.item() <= len(drafts)  # one that remasks may take a step without a pass
    cut = answer.index(510) + 1 if 510 in answer else None
    assert heard.answer == answer[:cut]
    if options.get("rule") != "remdm" and options.get("rule") != "wino":
        for number, draft in enumerate(drafts, 1):
            assert draft == [
                token if step <= number else 511
                for token, step in zip(answer, found.written_at[0].tolist(), strict=True)
            ]


@given(
    st.integers(0, 50),
    st.integers(1, 12),
    st.sampled_from([*RULES[1:6], {"eos_stop": True}, {"constraints": {1: 3, 4: [EOS]}, "max_new_tokens": 8}]),
)
@settings(max_examples=60)
def test_pieces_are_what_stands_and_are_never_taken_back(first, new, options):
    options = {"max_new_tokens": new} | options | {"ids": ((first % 11, 2),)}
    plain, drafts = Heard(), HeardDrafts()
    out = toy_generate(streamer=plain, **options)
    assert out.equal(toy_generate(streamer=drafts, **options))
    assert out.equal(toy_generate(**options))
    assert plain.told[0] == ("put", out[0, :2].tolist())
    assert plain.told[-1] == ("end", None)
    assert all(value for value in plain.of("put"))
    answer, given = out[0, 2:].tolist(), 5 if "constraints" in options else 0
    ends = [place for place, token in enumerate(answer) if token == EOS and place >= given]
    assert plain.answer == drafts.answer == answer[: ends[0] + 1 if ends else None]


def test_a_piece_comes_as_soon_as_all_before_it_stands():
    heard = Heard()
    answer = favouring(
        [0, 0, 1, 2, 3, 4, 5], [0.0, 0.0, 1.0, 5.0, 4.0, 3.0, 2.0]
    )  # sure of the second place, last of the first
    toy_generate(answer, max_new_tokens=5, streamer=heard)
    assert heard.of("put") == [[1, 2], [1, 2, 3, 4, 5]]
    heard = Heard()
    toy_generate(answer, max_new_tokens=5, block_size=2, streamer=heard)
    assert heard.of("put") == [[1, 2], [1, 2], [3], [4], [5]]


def test_a_rule_that_rewrites_what_was_streamed_is_told(tmp_path):
    (tmp_path / "back.py").write_text(
        "import dataclasses, torch\nfrom unmask import decoding\n"
        "@dataclasses.dataclass\nclass Settings:\n    pass\n"
        "class Rule(decoding.Rule):\n    revises = True\n"
        "    def choose(self, row, seen):\n"
        "        choice = seen.choice()\n"
        "        if row.step == 1:\n            choice.reopen = row.blocks[0]\n"
        "        return choice\n"
    )
    options = {"rule": str(tmp_path / "back.py"), "max_new_tokens": 4, "block_size": 2}
    with pytest.raises(UserError, match="rewrote a block that was done and streamed; take a streamer with put_draft"):
        toy_generate(streamer=Heard(), **options)
    heard = HeardDrafts()
    out = toy_generate(streamer=heard, **options)[0, 2:].tolist()
    assert heard.answer == out[: out.index(EOS) + 1 if EOS in out else None]


def test_the_diffusion_streamer_of_transformers_works_unchanged(tiny, byte_tokenizer, capsys):
    options = {"max_new_tokens": 12, "steps": 4, "suppress_tokens": NO_SPECIALS}
    ids = torch.tensor([byte_tokenizer("Hi ").input_ids])
    text = byte_tokenizer.decode(tiny.generate(ids, **options)[0], skip_special_tokens=True)
    capsys.readouterr()
    tiny.generate(ids, streamer=TextDiffusionStreamer(byte_tokenizer, skip_special_tokens=True), **options)
    told = capsys.readouterr().out
    drafts = [part.split("\033[0m")[0] for part in told.split("\033[33m")[1:]]
    assert len(drafts) == 4
    assert "Hi " + drafts[-1] == text
    assert "mdm_mask" not in told
    assert "".join(["Hi ", told.split("\0338\033[J")[-1]]) == text + "\n"


@pytest.mark.parametrize(("streamer", "rows", "says"), [(Heard, 2, "there are 2"), (Heard, 0, "there are 0")])
def test_a_stream_has_one_row(tiny, streamer, rows, says):
    heard = streamer()
    with pytest.raises(UserError, match=f"a streamer takes one row, and {says}"):
        tiny.generate(PROMPT.expand(rows, 3), streamer=heard, max_new_tokens=3)
    assert heard.told == []


def test_a_streamer_that_wants_logits_is_refused(tiny, byte_tokenizer, capsys):
    streamer = TextDiffusionStreamer(byte_tokenizer)
    streamer._takes_logits = True
    with pytest.raises(UserError, match="wants the logits of every draft"):
        tiny.generate(PROMPT, streamer=streamer, max_new_tokens=3)
    assert capsys.readouterr().out == ""


def test_after_an_error_no_stream_looks_finished():
    heard = Heard()
    with pytest.raises(UserError, match="NaN"):
        toy_generate(lambda ids: torch.full((len(ids), VOCABULARY), torch.nan), max_new_tokens=3, streamer=heard)
    assert heard.told == [("put", [1, 2])]


# ---------------------------------------------------------------------------------------------------------------------
# Stop strings


class Letters:
    """A tokenizer in which token i is the letter i of the alphabet, and the end is nothing."""

    def decode(self, ids, **_):
        return "".join("abcdefghij"[int(i)] if int(i) < EOS else "" for i in ids)


def test_an_answer_is_cut_before_its_stop_string_and_so_is_its_stream():
    answer = favouring([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])  # bcdefghi
    options = {"max_new_tokens": 8, "stop_strings": "de", "tokenizer": Letters(), "rule": "left_to_right"}
    for more, filler in (({}, EOS), ({"pad_token_id": 9}, 9), ({"block_size": 2}, EOS), ({"steps": 1}, EOS)):
        plain, drafts = Heard(), HeardDrafts()
        out = toy_generate(answer, streamer=plain, **options, **more)
        assert out.tolist() == [[1, 2, 1, 2, *[filler] * 6]]
        assert out.equal(toy_generate(answer, streamer=drafts, **options, **more))
        assert plain.answer == drafts.answer == [1, 2]
    found = toy_generate(answer, return_dict_in_generate=True, **options)
    assert found.finish_reasons == ["stop"]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.text("abcd", min_size=1, max_size=3), max_size=2)
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
def test_no_part_of_a_stop_string_is_streamed(tokens, strings):
    heard, letters = Heard(), Letters()
    answer = favouring([0, 0, *tokens])
    options = {"max_new_tokens": len(tokens), "rule": "left_to_right", "stop_strings": strings, "tokenizer": letters}
    out = toy_generate(answer, streamer=heard, **options)
    whole = letters.decode(tokens)
    cut = min((at for at in map(whole.find, strings) if at >= 0), default=len(whole))
    assert letters.decode(heard.answer) == letters.decode(out[0, 2:]) == whole[:cut]


def test_half_a_letter_waits_for_the_other_half(byte_tokenizer):
    ids = byte_tokenizer("aé").input_ids
    assert len(ids) == 3
    assert generation.harmless(byte_tokenizer, ids[:1], ["é"]) == 1
    assert generation.harmless(byte_tokenizer, ids[:2], ["é"]) == 1
    assert generation.harmless(byte_tokenizer, ids, ["x"]) == 3
