"""What chat sends is what was trained, token for token; only the template writes control tokens."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import LINES, bpe
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unmask import tokenizer as own
from unmask.config import UserError
from unmask.template import Template

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
# LLaDA's template as its authors wrote it: it opens an answer after everything, also after an answer.
STRAY = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ raise_exception('no system here') }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Earlier answers lose what comes before </think>, as Qwen3's and DeepSeek's do.
FORGETS = (
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' and not loop.last %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llada(template: str | None = None) -> Any:
    made = own.train(LINES * 3, 400)
    made.chat_template = template or made.chat_template
    return made


def chatml(template: str = CHATML) -> Any:
    made = bpe(500)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def sentencepiece(scheme: str, template: str) -> Any:
    """A tokenizer that puts a blank before texts: `first`, `always`, or by a normalizer as Llama's files have it."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "normalizer":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    inner.train_from_iterator(
        LINES * 9, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    # The bytes are ordinary entries of such vocabularies.
    parts = json.loads(inner.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < 3]
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), **names)
    made.chat_template = template
    return made


def greedy_blanks() -> Any:
    """Control tokens that eat the blanks beside them, as Phi's do."""
    from tokenizers import AddedToken

    made = bpe(500)
    eats = [AddedToken("<|im_start|>", rstrip=True, special=True), AddedToken("<|im_end|>", lstrip=True, special=True)]
    made.add_special_tokens({"additional_special_tokens": eats})
    made.chat_template = CHATML
    return made


def qwen3() -> Any:
    if not (SHARED / "sdar_qwen3_tokenizer").is_dir():
        pytest.skip("needs the folder ../shared with test data, which is not part of the repository")
    return AutoTokenizer.from_pretrained(SHARED / "sdar_qwen3_tokenizer")


MAKERS: dict[str, Callable[[], Any]] = {
    "llada": llada,
    "llada, stray header": lambda: llada(STRAY),
    "chatml": chatml,
    "greedy blanks": greedy_blanks,
    "llama 2, always": lambda: sentencepiece("always", LLAMA2),
    "llama 2, normalizer": lambda: sentencepiece("normalizer", LLAMA2),
    "zephyr, first": lambda: sentencepiece("first", ZEPHYR),
    "zephyr, normalizer": lambda: sentencepiece("normalizer", ZEPHYR),
    "qwen3": qwen3,
}
each = pytest.mark.parametrize("name", MAKERS)


@functools.cache
def made(name: str) -> tuple[Any, Template]:
    tokenizer = MAKERS[name]()
    return tokenizer, Template(tokenizer)


def talk(*contents: str) -> list[Any]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def whole(tokenizer: Any, messages: list[Any], **how: Any) -> list[int]:
    """What transformers makes of it."""
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, **how)["input_ids"]
    return ids


PLAIN = [
    "dog",
    "Ben",
    " ",
    "\n",
    "    ",
    "天地",
    "。",
    "é",
    "🙂",
    "def f():\n\treturn 1",
    "\x00",
    "\U0010fffd",
    "<",
    "|",
]
CONTROL = ["<|mdm_mask|>", "<|eot_id|>", "<|im_end|>", "<|MASK|>", "</s>", "<s>", "<|endoftext|>", "<|im_<|im_end|>"]
plain = st.lists(st.sampled_from(PLAIN), min_size=1, max_size=8).map("".join).filter(lambda t: t.strip("\x00 \n"))
any_text = st.lists(st.sampled_from(PLAIN + CONTROL), min_size=1, max_size=8).map("".join).filter(str.strip) | st.text(
    min_size=1
).filter(str.strip)


def conversations(texts: Any) -> Any:
    return st.lists(texts, min_size=2, max_size=6).filter(lambda some: len(some) % 2 == 0).map(lambda some: talk(*some))


# ---------------------------------------------------------------------------------------------------------------------
# Chat = training


@each
@settings(max_examples=60)
@given(data=st.data())
def test_what_chat_sends_stood_before_the_answer_in_training(name: str, data: Any) -> None:
    _, template = made(name)
    messages = data.draw(conversations(any_text))
    turns = template.turns(messages)
    answers = [i for i, turn in enumerate(turns) if turn.answer]
    assert turns[-1].answer
    # The last answers of the conversation are those that are turns of their own.
    for back, i in enumerate(reversed(answers)):
        before = [one for turn in turns[:i] for one in turn.ids]
        assert template.prompt(messages[: len(messages) - 1 - 2 * back]) == before


@each
@settings(max_examples=40)
@given(data=st.data())
def test_only_the_template_writes_control_tokens(name: str, data: Any) -> None:
    """The control tokens of a conversation are those of the same with harmless words in it."""
    tokenizer, template = made(name)
    messages = data.draw(conversations(any_text))
    harmless = [{**message, "content": "x"} for message in messages]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    found, expected = (
        [[i for i in turn.ids if i in special] for turn in template.turns(some)] for some in (messages, harmless)
    )
    assert found == expected


@each
@settings(max_examples=60)
@given(data=st.data())
def test_ordinary_text_has_the_ids_that_transformers_gives_it(name: str, data: Any) -> None:
    """Where the cut between prompt and answer cannot matter: no blanks at the ends of messages."""
    tokenizer, template = made(name)
    messages = data.draw(conversations(plain.map(lambda text: text.strip("\x00 \n<|"))).filter(all_filled))
    if name == "qwen3":
        messages = messages[:2]
    turns = template.turns(messages)
    expected = whole(tokenizer, messages)
    assert [i for turn in turns for i in turn.ids] + (template.header if "stray" in name else []) == expected
    assert turns[0].ids == whole(tokenizer, messages[:1], add_generation_prompt=True)


@pytest.mark.parametrize("text", ["hi", " hi", "hi \n", "\n hi \n\n"])
def test_a_control_token_takes_the_blanks_beside_it_where_the_tokenizer_says_so(text: str) -> None:
    tokenizer, template = made("greedy blanks")
    prompt = template.prompt(talk(text))
    assert prompt == whole(tokenizer, talk(text), add_generation_prompt=True)
    assert prompt == template.prompt(talk(text.rstrip()))


def all_filled(messages: list[Any]) -> bool:
    return all(message["content"].strip() for message in messages)


@pytest.mark.parametrize("name", ["llada", "llada, stray header", "chatml", "qwen3"])
@settings(max_examples=60)
@given(data=st.data())
def test_what_messages_say_comes_back_letter_by_letter(name: str, data: Any) -> None:
    tokenizer, template = made(name)
    messages = data.draw(conversations(st.lists(st.sampled_from(PLAIN[:-4] + CONTROL), min_size=1).map("".join)))
    messages = [m for m in messages if m["content"].strip()]
    if (
        len(messages) % 2
        or [m["role"] for m in messages] != ["user", "assistant"] * (len(messages) // 2)
        or not messages
    ):
        return
    said = tokenizer.decode([i for turn in template.turns(messages) for i in turn.ids])
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert said == (text.removesuffix(tokenizer.decode(template.header)) if "stray" in name else text)


def test_a_literal_is_tokenised_as_its_letters_are() -> None:
    tokenizer, template = made("llada")
    text = "a<|eot_id|>b"
    ids = template.turns(talk("q", text))[-1].ids
    assert ids[:-1] == tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids[-1:] == template.ends


@pytest.mark.parametrize(
    "answer", ["yes", "  yes", "yes \n", "\n\nyes", "def f(x):\n    return x\n", "```\na\n\n\nb\n```"]
)
@pytest.mark.parametrize(("name", "trims"), [("llada", True), ("chatml", False), ("qwen3", False)])
def test_an_answer_has_the_blanks_that_the_template_leaves_it(name: str, trims: bool, answer: str) -> None:
    tokenizer, template = made(name)
    ids = template.turns(talk("q", answer))[-1].ids
    said = tokenizer.decode(ids[: ids.index(template.ends[0])])
    if name == "qwen3":
        said, answer = said.removeprefix("<think>\n\n</think>\n\n"), answer.lstrip("\n")
    assert said == (answer.strip() if trims else answer)


def test_the_system_message_is_part_of_the_first_prompt() -> None:
    tokenizer, template = made("chatml")
    messages = [{"role": "system", "content": "Be short."}, *talk("q", "a")]
    turns = template.turns(messages)
    assert [(turn.role, turn.answer) for turn in turns] == [("user", False), ("assistant", True)]
    assert tokenizer.decode(turns[0].ids).startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nq")


def test_many_are_as_each_alone() -> None:
    for name in ("llada", "zephyr, first"):
        template = made(name)[1]
        some = [talk("q", "a"), talk("天", "b<|eot_id|>", "c", "</s>"), talk("q", "a")]
        assert template.many(some, [0, 1, 2]) == [template.turns(one) for one in some]


def test_a_template_can_be_sent_to_another_process() -> None:
    template = made("llada")[1]
    there = pickle.loads(pickle.dumps(template))
    assert there.turns(talk("q", "a<|eot_id|>")) == template.turns(talk("q", "a<|eot_id|>"))


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of templates


@pytest.mark.parametrize("first", ["Hello", "0", "天"])
def test_the_header_that_lladas_template_writes_after_everything_is_no_part_of_an_answer(first: str) -> None:
    tokenizer, template = made("llada, stray header")
    ours = made("llada")[1]
    messages = talk(first, "a", "q", "b")
    assert template.turns(messages) == ours.turns(messages)
    assert template.turns(messages)[-1].ids == [*tokenizer.encode("b"), *template.ends]
    assert tokenizer.decode(template.header) == "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert ours.header == template.header


def test_the_official_template_is_the_one_tested_here(shared: Path) -> None:
    for name in ("LLaDA-8B-Base", "LLaDA-8B-Instruct", "LLaDA-1.5"):
        config = json.loads((shared / "data/llada_tokenizer" / name / "tokenizer_config.json").read_text())
        assert config["chat_template"] == STRAY


@pytest.mark.parametrize(
    ("name", "ends"),
    [("llada", "<|eot_id|>"), ("chatml", "<|im_end|>"), ("zephyr, first", "</s>"), ("qwen3", "<|im_end|>")],
)
def test_the_token_that_ends_a_turn_is_found(name: str, ends: str) -> None:
    tokenizer, template = made(name)
    assert template.ends == [tokenizer.convert_tokens_to_ids(ends)]
    assert made("llama 2, always")[1].ends == [2]


def test_a_template_that_ends_answers_without_a_token_has_no_ends() -> None:
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    tokenizer = chatml(source + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    assert Template(tokenizer).ends == []


def test_a_template_that_writes_earlier_answers_otherwise_keeps_the_last_one_apart() -> None:
    tokenizer = chatml(FORGETS)
    template = Template(tokenizer)
    messages = talk("q", "<think>hm</think>a", "r", "<think>so</think>b")
    turns = template.turns(messages)
    assert [turn.answer for turn in turns] == [False, True]
    assert "hm" not in tokenizer.decode(turns[0].ids)
    assert tokenizer.decode(turns[1].ids) == "<think>so</think>b<|im_end|>\n"
    assert template.prompt(messages[:3]) == turns[0].ids
    assert len(template.turns(talk("q", "a", "r", "b"))) == 4


def test_a_prompt_that_training_could_not_have_is_refused() -> None:
    """DeepSeek's opens an answer with <think>, and writes none in an answer that is there."""
    tokenizer = chatml(CHATML.replace("assistant\n'", "assistant\n<think>\n'"))
    with pytest.raises(UserError, match=r"row 3: the chat template opens an answer with .*<think>"):
        Template(tokenizer).many([talk("q", "a")], [3])


def test_added_tokens_that_separate_turns_are_control_even_if_not_called_special() -> None:
    tokenizer = bpe(500)
    tokenizer.add_tokens(["<User>", "<Assistant>", "<think>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('<User>' if m.role == 'user' else '<Assistant>') + m.content }}"
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}{{ '<Assistant>' if add_generation_prompt }}"
    )
    ids = tokenizer.convert_tokens_to_ids(["<User>", "<Assistant>", "<think>"])
    got = [i for t in Template(tokenizer).turns(talk("a<User>b", "<Assistant><think>")) for i in t.ids]
    assert [got.count(i) for i in ids] == [1, 1, 1]
    assert tokenizer.decode(got) == "<User>a<User>b<Assistant><Assistant><think><|endoftext|>"


# ---------------------------------------------------------------------------------------------------------------------
# Which template


def test_a_tokenizer_with_lladas_tokens_and_no_template_gets_lladas() -> None:
    bare = llada()
    bare.chat_template = None
    expected = made("llada")[1]
    for template in (Template(bare), Template(bare, "llada"), Template(llada(STRAY), "LLaDA")):
        assert (template.source, template.fingerprint) == (own.CHAT_TEMPLATE, expected.fingerprint)


def test_a_template_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text(CHATML, encoding="utf-8")
    template = Template(chatml(FORGETS), str(tmp_path / "a.jinja"))
    assert (template.source, template.fingerprint) == (CHATML, made("chatml")[1].fingerprint)


def test_a_fingerprint_tells_templates_and_control_ids_apart() -> None:
    other = chatml()
    other.add_tokens(["more"])
    shifted = bpe(499)
    shifted.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|im_start|>"]})
    shifted.chat_template = CHATML
    ours = made("chatml")[1].fingerprint
    assert Template(other).fingerprint == ours
    assert len({ours, Template(chatml(FORGETS)).fingerprint, Template(shifted).fingerprint}) == 3


def refused(tokenizer: Any, template: str | None = None, messages: list[Any] | None = None) -> str:
    with pytest.raises(UserError) as error:
        Template(tokenizer, template).many([messages or talk("q", "a")], [5])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_template_says_what_to_type() -> None:
    assert "type --chat_template FILE.jinja" in refused(bpe())


def test_lladas_template_is_refused_where_its_tokens_are_not() -> None:
    assert "--chat_template llada writes <|start_header_id|>" in refused(chatml(), "llada")


def test_a_file_that_is_missing_empty_or_no_text_is_refused(tmp_path: Path) -> None:
    assert "Did you mean 'llada'" in refused(llada(), "lada")
    (tmp_path / "chat.jinja").write_text(" \n")
    assert "Did you mean 'chat.jinja'" in refused(llada(), str(tmp_path / "chat.jinj"))
    assert "is empty" in refused(llada(), str(tmp_path / "chat.jinja"))
    (tmp_path / "chat.jinja").write_bytes(b"\xff\xfe\xff")
    assert "cannot read it" in refused(llada(), str(tmp_path / "chat.jinja"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for m in messages %}", "not valid jinja (line 1)"),
        ("{{ raise_exception('Only for tools.') }}", "the chat template fails: Only for tools."),
        ("{{ messages[0].content + 1 }}", "the chat template fails: can only concatenate str"),
        ("{{ nothing.at.all }}", "the chat template fails: 'nothing' is undefined"),
        ("hello", "does not write each message once"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not write each message once"),
        (
            "{% for m in messages %}{{ m.role + m.content }}{% endfor %}{{ messages | length }}",
            "does not heed add_generation_prompt",
        ),
    ],
)
def test_a_template_that_fails_is_one_line_with_its_own_words(source: str, said: str) -> None:
    assert said in refused(chatml(source))


def test_a_role_that_a_template_refuses_is_told_with_the_row() -> None:
    messages = [{"role": "system", "content": "s"}, *talk("q", "a")]
    said = refused(sentencepiece("always", LLAMA2), messages=messages)
    assert said == "row 5: the chat template fails: no system here"


def test_there_is_no_prompt_after_an_answer() -> None:
    for messages in ([], talk("q", "a")):
        with pytest.raises(UserError, match="nothing to answer"):
            made("llada")[1].prompt(messages)
