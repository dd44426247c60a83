"""The fast encoder gives the ordinary one's ids; where it would not, that is noticed, said, and put right."""

import functools
import os
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import END, LINES, MASK, bpe
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from unmask import encode, fast_encode, tokens
from unmask.config import UserError
from unmask.encode import Encoder
from unmask.fast_encode import Differs, Samples, why_not

installed = pytest.mark.skipif(not fast_encode.installed(), reason="needs the package fastokens")

NASTY = [
    *"aZ09 \n\t\r\0\x0b\x1c\x85\u00a0\u2028\u2029\u3000\u200b\u200d\ufeff\ufffd_-'.,<|>",
    *("  ", "\r\n", "\n\n ", "'s", "'S", "'ll", "'ſ", "234567", "٣", "²", "Ⅷ", "\U0001d7d8"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "\u1100\u1161",
        "한",
        "ß",
        "İ",
        "ſ",
        "Ǆ",
        "ʰ",
        "天",
        "ｱ",
        "नि",
        "क्ष",
        "ไทย",
        "🙂",
        "👨‍👩‍👧",
    ),
    *("dog", "don't", END, MASK, "<|im_start|>", "<tool_call>", "<think>", "<|fim_pad|>"),
]
nasty = st.lists(st.sampled_from(NASTY) | st.characters(exclude_categories=["Cs"]), max_size=30).map("".join)


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch):
    monkeypatch.setattr(encode, "SAID", set())
    monkeypatch.delenv(fast_encode.SWITCH, raising=False)


@functools.cache
def gpt4():
    """It splits by a regular expression, takes numbers apart and composes letters, as Qwen's and Llama's do."""
    inner = bpe().backend_tokenizer
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    steps = [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.Digits(individual_digits=True)]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, mask_token=MASK)
    tokenizer.add_tokens(["<tool_call>", "天地"])
    return tokenizer


@functools.cache
def encoders(kind):
    tokenizer = {"gpt2": bpe, "gpt4": gpt4}[kind]()
    return Encoder(tokenizer, eos=True, fast_after=0), Encoder(tokenizer, eos=True)


def same(fast, ordinary, texts):
    for ours, theirs in zip(fast.flat(texts), ordinary.flat(texts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert fast.fast is not None


@installed
@pytest.mark.parametrize("kind", ["gpt2", "gpt4"])
@settings(max_examples=150)
@given(texts=st.lists(nasty, min_size=1, max_size=6))
def test_ids_are_those_of_the_ordinary_encoder_whatever_a_text_holds(kind, texts):
    same(*encoders(kind), texts)


@installed
@pytest.mark.parametrize("kind", ["gpt2", "gpt4"])
def test_every_character_gives_the_ordinary_encoders_ids(kind):
    """Between letters, digits and blanks, so that its class decides how the text is split."""
    some = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x1000 or c % 89 == 0)]
    same(*encoders(kind), [f"a{c}b {c} 1{c}2{c}\n{c}" for c in some])


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2_tokenizer", "sdar_qwen3_tokenizer"])
def test_real_tokenizers_give_the_same_ids(shared, name):
    kind = GPT2TokenizerFast if name.startswith("gpt2") else AutoTokenizer
    tokenizer = kind.from_pretrained(shared / "data" / name)
    fast, ordinary = Encoder(tokenizer, eos=True, fast_after=0), Encoder(tokenizer, eos=True)

    @settings(max_examples=100)
    @given(st.lists(nasty, min_size=1, max_size=6))
    def check(texts):
        same(fast, ordinary, texts)

    check()
    texts = [path.read_text(encoding="utf-8")[:200_000] for path in sorted((shared / "data").rglob("*.json*"))[:20]]
    same(fast, ordinary, texts)


def odd():
    """A vocabulary with words that no merge makes: "dog" is there, and only "do" can come of it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "do", "dog", "og", "ca", "at", "cat"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("d", "o"), ("a", "t"), ("c", "a")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, mask_token=MASK)


@installed
def test_a_merge_list_that_lacks_a_word_of_the_vocabulary_is_followed():
    tokenizer = odd()
    fast, ordinary = Encoder(tokenizer, eos=False, fast_after=0), Encoder(tokenizer, eos=False)
    assert len(ordinary(["dog"])[0]) == 2
    same(fast, ordinary, ["dog", "cat", "og dog", "catcat"])


class Wrong(fast_encode.Fast):
    """A fast encoder that gets texts wrong that hold a certain word."""

    word = "boy"

    def __call__(self, texts):
        ids, ends = super().__call__(texts)
        return ids + np.int32(any(self.word in text for text in texts)), ends

    def ready(self, wait):
        return super().ready(True)


def said(capsys):
    """Remarks about the encoder on standard error, which also has progress bars."""
    return [line for line in capsys.readouterr().err.splitlines() if "ordinary" in line]


def rows(texts):
    return datasets.Dataset.from_dict({"text": texts})


@pytest.fixture
def wrong(monkeypatch):
    monkeypatch.setattr(encode, "Fast", Wrong)
    monkeypatch.setattr(tokens, "WORTH_FAST", 1)
    monkeypatch.setattr(tokens, "CALL", 200)


@installed
@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize("at", [0, 1, 200], ids=["at the start", "soon", "a new letter later"])
def test_a_difference_in_the_corpus_is_noticed_said_and_put_right(at, capsys, monkeypatch):
    monkeypatch.setattr(Wrong, "word", "ö")
    texts = LINES * 60
    texts[at] = "a bög"
    made = tokens.group(rows(texts), bpe(), max_length=50, disable_caching=True)
    (line,) = said(capsys)
    assert "fastokens gives other ids than" in line
    assert "begins the text again with the ordinary tokenizer" in line
    monkeypatch.setenv(fast_encode.SWITCH, "ordinary")
    assert made[:] == tokens.group(rows(texts), bpe(), max_length=50, disable_caching=True)[:]


@installed
@pytest.mark.usefixtures("wrong")
def test_a_stream_whose_rows_are_given_out_stops_at_a_difference():
    with pytest.raises(Differs, match="UNMASK_ENCODER=ordinary"):
        list(tokens.group(rows(LINES * 60).to_iterable_dataset(), bpe(), max_length=50))


@pytest.mark.parametrize("fresh", [True, False])
def test_what_is_compared_holds_each_character_and_some_of_each_part_of_a_corpus(fresh):
    samples = Samples([MASK] if fresh else [])
    first = samples([LINES[2]] * 1000)
    assert (first[0] == f"a{MASK}b {MASK} {MASK}{MASK}\n{MASK}") == fresh
    assert first.count(LINES[2]) >= fast_encode.FIRST
    seen = set("".join(first))
    assert set(LINES[2]) <= seen
    later = [samples([LINES[2]] * 1000) for _ in range(10)]
    assert all(5 <= len(some) <= 40 for some in later)
    assert "ß" in "".join(samples(["a" * 5000 + "ß" + "b" * 70_000 + "é"]))
    assert not any(len(text) > fast_encode.UNIT for text in samples(["x" * 500_000] * 9))


# ---------------------------------------------------------------------------------------------------------------------
# What it is not for


def changed(**model):
    tokenizer = bpe()
    for name, value in model.items():
        setattr(tokenizer.backend_tokenizer.model, name, value)
    return tokenizer.backend_tokenizer


def with_part(**parts):
    backend = bpe().backend_tokenizer
    for name, value in parts.items():
        setattr(backend, name, value)
    return backend


def unigram():
    return Tokenizer(models.Unigram([("a", 0.0)]))


def lacking():
    inner = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return inner


def padded():
    tokenizer = bpe()
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, special=False)])
    return tokenizer.backend_tokenizer


@installed
@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (unigram, "no byte-level BPE but Unigram"),
        (lambda: changed(dropout=0.1), "BPE has dropout"),
        (lambda: with_part(normalizer=normalizers.Lowercase()), "changes texts first .Lowercase"),
        (lambda: with_part(pre_tokenizer=None), "not split as byte-level BPEs"),
        (lambda: with_part(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "not split as"),
        (lambda: with_part(pre_tokenizer=pre_tokenizers.Metaspace()), "not split as"),
        (
            lambda: with_part(
                pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False)])
            ),
            "split by Punctuation",
        ),
        (lacking, "lacks some of the 256 bytes"),
        (padded, "added token '<x>' takes its surroundings"),
    ],
)
def test_what_the_fast_encoder_is_not_known_to_do_is_left_to_the_ordinary_one(backend, said):
    import re

    assert re.search(said, why_not(backend()))


@installed
@pytest.mark.parametrize("tokenizer", [bpe, gpt4, odd])
def test_byte_level_bpes_are_for_it(tokenizer):
    assert why_not(tokenizer().backend_tokenizer) is None


def test_an_ordinary_tokenizer_is_used_and_that_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(fast_encode, "installed", lambda: False)
    monkeypatch.setattr(tokens, "WORTH_FAST", 1)
    for length in (20, 30):
        tokens.group(rows(LINES * 3), bpe(), max_length=length, disable_caching=True)
    (line,) = said(capsys)
    assert line.endswith("the slower way, because the package fastokens is not installed")


@installed
def test_a_tokenizer_that_the_package_cannot_read_goes_the_ordinary_way(monkeypatch, capsys):
    encoder = Encoder(bpe(), eos=True, fast_after=1)
    encoder.written, right = "{}", Encoder(bpe(), eos=True)(LINES)
    encoder.backend = bpe().backend_tokenizer
    monkeypatch.setattr(encode, "Fast", Wrong)
    assert [ids.tolist() for ids in encoder(LINES)] == [ids.tolist() for ids in right]
    assert "because fastokens cannot read it" in capsys.readouterr().err


def test_the_switch_says_which_encoder(monkeypatch, capsys):
    monkeypatch.setenv(fast_encode.SWITCH, "ordinary")
    encoder = Encoder(bpe(), eos=True, fast_after=0)
    assert encoder.fast is None
    assert not capsys.readouterr().err
    monkeypatch.setenv(fast_encode.SWITCH, "slow")
    with pytest.raises(UserError, match="UNMASK_ENCODER is 'slow'; expected fast or ordinary"):
        Encoder(bpe(), eos=True, fast_after=0)


# ---------------------------------------------------------------------------------------------------------------------
# Where it works


@installed
def test_a_fast_encoder_works_after_pickling_and_in_a_forked_process():
    encoder = Encoder(bpe(), eos=True, fast_after=0)
    right = [ids.tolist() for ids in encoder(LINES)]
    assert encoder.fast is not None
    again = pickle.loads(pickle.dumps(encoder))
    assert [ids.tolist() for ids in again(LINES)] == right
    child = os.fork()
    if not child:
        os._exit(0 if [ids.tolist() for ids in encoder(LINES)] == right else 1)
    assert os.waitpid(child, 0)[1] == 0


@installed
def test_the_package_is_loaded_only_where_it_is_used():
    code = "import sys, unmask.tokens; assert 'fastokens' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@installed
def test_long_documents_and_small_calls_give_the_same_ids(monkeypatch):
    fast, ordinary = encoders("gpt4")
    texts = ["\n".join(LINES * 9), "", "e\u0301 " * 50, LINES[2] * 30]
    right = [ids.tolist() for ids in ordinary(texts)]
    monkeypatch.setattr(encode, "PIECE", 64)
    monkeypatch.setattr(encode, "CALL", 100)
    assert [ids.tolist() for ids in fast(texts)] == right
