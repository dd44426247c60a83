"""`unmask tokenizer`: what it learns, what it never does, and which tokenizers fit which models."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2TokenizerFast

from unmask import ids as belong
from unmask import tokenizer as tokenizers
from unmask.config import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_llada = pytest.mark.skipif(
    not (SHARED / "llada_tokenizer").is_dir(), reason="LLaDA's tokenizer files are not in ../shared/data"
)
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "it's",
    "thinking;",
    "def f(x):\n    return",
    "x_y +",
    "12345\n",
]
TEXTS = [
    *(" ".join(random.Random(i).choices(WORDS, k=40)) for i in range(60)),
    *("床前明月光，疑是地上霜。举头望明月，低头思故乡。Python是一门语言。" for _ in range(20)),
]
SIZE = 360
BOS, EOS, MASK, _, _, TURN_END = range(SIZE - 6, SIZE)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
"""Any text; lone halves of surrogate pairs are not text."""
spiked = st.lists(st.one_of(texts, st.sampled_from([*tokenizers.LLADA, *tokenizers.COMPACT, "<|unused_500|>"])))


@pytest.fixture(scope="module")
def compact():
    return tokenizers.train(TEXTS, SIZE)


@pytest.fixture(scope="module")
def llada(tmp_path_factory):
    """LLaDA's ids, saved and loaded as others do it."""
    folder = tmp_path_factory.mktemp("llada")
    tokenizers.save(tokenizers.train(TEXTS, SIZE, ids="llada"), folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def unused(llada) -> int:
    """The first id that no text has."""
    return tokenizers.text_entries(llada)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def text_ids(tokenizer, text: str) -> list[int]:
    """As training encodes a document: a user who types a token's name gets its letters."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


# ---------------------------------------------------------------------------------------------------------------------
# Text


@given(texts)
def test_every_text_comes_back_as_it_went_in(compact, text):
    assert compact.decode(text_ids(compact, text)) == text
    assert compact.decode(compact.encode(text)) == text


@given(spiked)
def test_text_never_becomes_a_control_token_when_special_tokens_are_split(compact, pieces):
    text = "".join(pieces)
    assert compact.decode(text_ids(compact, text)) == text
    assert all(i < SIZE - len(tokenizers.COMPACT) for i in text_ids(compact, text))


@settings(max_examples=30)
@given(spiked)
def test_text_never_becomes_an_unused_or_control_token_of_llada(llada, unused, pieces):
    text = "".join(pieces)
    assert llada.decode(text_ids(llada, text)) == text
    assert all(i < unused for i in text_ids(llada, text))
    assert all(i < unused or i >= tokenizers.FIRST_LLADA_ID for i in llada.encode(text))


@given(texts)
def test_pieces_keep_digits_short_and_chinese_apart_and_lose_nothing(compact, text):
    # Python's tables of Unicode may be older than the tokenizer's: U+1CCF0 is a digit to one and nothing to the other
    assume(all(unicodedata.category(c) != "Cn" for c in text))
    pieces = compact.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    parts = [text[start:end] for _, (start, end) in pieces]
    assert "".join(parts) == text
    for part in parts:
        numbers = [c for c in part if unicodedata.category(c).startswith("N")]
        assert not numbers or (len(numbers) == len(part) <= 3)
        names = [unicodedata.name(c, "") for c in part if c.isalpha()]
        chinese = [name.startswith("CJK UNIFIED") for name in names]
        assert all(chinese) or not any(chinese)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("It's 12345.", ["It", "'s", " ", "123", "45", "."]),
        ("def f(x):\n        return x_y", ["def", " f", "(x", "):\n", "       ", " return", " x", "_y"]),
        ("a\r\n\r\n  b\t", ["a", "\r\n\r\n", " ", " b", "\t"]),
        ("用Python写，很好", ["用", "Python", "写", "，", "很好"]),
        ("हिन्दी naïve", ["हिन्दी", " naïve"]),
    ],
)
def test_pieces_of_code_english_and_chinese(compact, text, pieces):
    cut = compact.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cut] == pieces


def test_what_occurs_often_costs_few_tokens(compact):
    assert text_ids(compact, " thinking") == [compact.convert_tokens_to_ids("Ġthinking")]
    assert len(text_ids(compact, "明月")) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Entries


@pytest.mark.parametrize("size", [262, 300, SIZE])
def test_compact_has_as_many_entries_as_were_asked_for(size):
    trained = tokenizers.train(TEXTS, size)
    assert len(trained) == size
    assert sorted(trained.get_vocab().values()) == list(range(size))
    assert trained.convert_ids_to_tokens(range(size - 6, size)) == list(tokenizers.COMPACT)
    assert tokenizers.text_entries(trained) == size - 6


def test_a_small_corpus_gives_fewer_entries_without_gaps():
    trained = tokenizers.train(["abc abc"], 5000)
    assert 262 < len(trained) < 300
    assert sorted(trained.get_vocab().values()) == list(range(len(trained)))


def test_the_special_tokens_have_their_roles(compact, llada):
    for one in (compact, llada):
        assert (one.bos_token, one.eos_token, one.pad_token) == ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
        assert one.mask_token == "<|mdm_mask|>"
        assert one.padding_side == "right"
        assert one.encode("a", add_special_tokens=True) == one.encode("a", add_special_tokens=False)
        assert all(one.added_tokens_decoder[i].special for i in one.get_added_vocab().values())
        said = "".join(tokenizers.COMPACT)
        assert one.encode(said) == one.convert_tokens_to_ids(list(tokenizers.COMPACT))
        assert one.decode(one.encode(f"a{said}b"), skip_special_tokens=True) == "ab"


@needs_llada
@pytest.mark.parametrize("name", ["LLaDA-8B-Base", "LLaDA-8B-Instruct", "LLaDA-1.5"])
def test_special_tokens_stand_at_lladas_own_ids(llada, name):
    official = json.loads((SHARED / "llada_tokenizer" / name / "tokenizer_config.json").read_text())
    theirs = {int(i): token["content"] for i, token in official["added_tokens_decoder"].items()}
    ours = {i: token.content for i, token in llada.added_tokens_decoder.items()}
    # The base model's table ends before the three that only chats need.
    assert {i: ours[i] for i in theirs} == theirs
    assert set(ours) - set(theirs) <= {126346, 126347, 126348}
    for role in ("bos_token", "eos_token", "pad_token", "cls_token"):
        assert getattr(llada, role) == official[role]


@needs_llada
def test_lladas_config_fits_a_tokenizer_with_its_ids(llada):
    assert len(llada) == 126349
    config = json.loads((SHARED / "llada_tokenizer" / "LLaDA-8B-Base" / "config.json").read_text())
    belong.check(llada, SimpleNamespace(**config))
    assert belong.mask_id(llada, SimpleNamespace(**config)) == 126336


# ---------------------------------------------------------------------------------------------------------------------
# The chat template

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " hi\n"}]
TURNS = (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
)
OPEN = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_the_assistants_turn_opens_only_when_asked(compact):
    assert compact.apply_chat_template(CHAT, tokenize=False) == TURNS
    assert compact.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == TURNS + OPEN
    answered = [*CHAT, {"role": "assistant", "content": "hello"}]
    whole = TURNS + OPEN + "hello<|eot_id|>"
    assert compact.apply_chat_template(answered, tokenize=False) == whole
    assert compact.apply_chat_template(answered, tokenize=False, add_generation_prompt=True) == whole


@needs_llada
def test_turns_are_lladas_own_without_the_header_it_always_adds(llada):
    official = json.loads((SHARED / "llada_tokenizer" / "LLaDA-8B-Instruct" / "tokenizer_config.json").read_text())
    theirs = llada.apply_chat_template(CHAT, tokenize=False, chat_template=official["chat_template"])
    assert theirs == llada.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_saving_and_loading_changes_nothing(compact, tmp_path):
    tokenizers.save(compact, tmp_path / "t")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert loaded.get_vocab() == compact.get_vocab()
    assert loaded.chat_template == compact.chat_template
    assert loaded.mask_token_id == compact.mask_token_id
    assert all(text_ids(loaded, text) == text_ids(compact, text) for text in TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_the_class_written_down_is_one_that_transformers_4_knows(compact, tmp_path):
    compact.save_pretrained(tmp_path)
    belong.portable(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == compact.get_vocab()


def test_the_folder_one_stands_in_is_a_folder_too(compact, tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    monkeypatch.chdir(tmp_path / "t")
    tokenizers.save(compact, Path("."))
    assert "tokenizer.json" in files(tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_the_models_length_is_written_down(tmp_path):
    tokenizers.save(tokenizers.train(TEXTS, 300, max_length=77), tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 77


@pytest.mark.parametrize("ids", ["compact", "llada"])
def test_the_same_corpus_gives_the_same_bytes(tmp_path, ids):
    """In another process, with another seed for hashes and another number of threads, from texts in another order.

    Many pairs are equally frequent in these texts, so this also says how ties are broken: not by chance.
    """
    code = (
        "import json, sys; from pathlib import Path; from unmask import tokenizer as t\n"
        "t.save(t.train(json.load(sys.stdin), 500, ids=sys.argv[1]), Path(sys.argv[2]))"
    )
    mixed = [*TEXTS, *("abcd efgh ijkl mnop" for _ in range(2))]
    folder = tmp_path / "here"
    tokenizers.save(tokenizers.train(mixed, 500, ids=ids), folder)
    subprocess.run(
        [sys.executable, "-c", code, ids, str(tmp_path / "there")],
        input=json.dumps(mixed[::-1]),
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"},
    )
    assert files(folder) == files(tmp_path / "there")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def write(folder: Path, kind: str) -> Path:
    path = folder / f"corpus.{kind}"
    if kind == "txt":
        path.write_text("\n".join(TEXTS), encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(json.dumps({"body": text}) for text in TEXTS).encode()))
    return path


def test_the_command_learns_from_a_text_file(tmp_path, capsys):
    corpus, folder = write(tmp_path, "txt"), tmp_path / "deep" / "t"
    words = ["--corpus", str(corpus), "--vocab_size", "300", "--output_dir", str(folder)]
    assert tokenizers.main(words) == 0
    out, remarks = capsys.readouterr()
    assert out == f"{folder}\n"
    assert "300 entries" in remarks
    assert len(AutoTokenizer.from_pretrained(folder)) == 300

    before = files(folder)
    with pytest.raises(UserError, match="--overwrite"):
        tokenizers.main([*words, "--max_length", "9"])
    assert files(folder) == before
    # What an earlier tokenizer left would be read instead of ours.
    (folder / "chat_template.jinja").write_text("old")
    (folder / "config.json").write_text("{}")
    assert tokenizers.main([*words, "--overwrite"]) == 0
    assert files(folder) == {**before, "config.json": b"{}"}


def test_the_command_learns_from_several_files_and_another_column(tmp_path, capsys):
    corpus, folder = write(tmp_path, "jsonl.gz"), tmp_path / "t"
    words = ["--corpus", str(corpus), f"{corpus}[train:10]", "--text_field", "body", "--output_dir", str(folder)]
    assert tokenizers.main([*words, "--ids", "llada", "--max_length", "64"]) == 0
    remarks = capsys.readouterr().err
    assert "too small for --vocab_size 4096" in remarks
    loaded = AutoTokenizer.from_pretrained(folder)
    assert len(loaded) == 126349
    assert loaded.model_max_length == 64


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--output_dir", "{0}/t"], "--corpus"),
        (["--corpus", "{0}/corpus.txt"], "--output_dir"),
        (["--corpus", "{0}/corpus.txt", "--output_dir", "{0}/corpus.txt"], "is a file"),
        (["--corpus", "{0}/nowhere.txt", "--output_dir", "{0}/t"], "nowhere.txt"),
        (["--corpus", "{0}/empty.jsonl", "--output_dir", "{0}/t"], "the corpus is empty"),
        (["--corpus", "{0}/corpus.txt", "--output_dir", "{0}/t", "--vocab_size", "261"], "6 special tokens need 262"),
        (["--corpus", "{0}/corpus.txt", "--output_dir", "{0}/t", "--vocab_size", "255", "--ids", "llada"], "need 256"),
        (["--corpus", "{0}/corpus.txt", "--output_dir", "{0}/t", "--vocab_size", "126081", "--ids", "llada"], "126080"),
        (["--corpus", "{0}/corpus.txt", "--output_dir", "{0}/t", "--max_length", "0"], "--max_length 0"),
        (["--corpus", "{0}/corpus.txt", "--output_dir", "{0}/t", "--ids", "gpt"], "compact, llada"),
        (["--corpus", "{0}/corpus.txt", "--output_dir", "{0}/t", "--text_field", "body"], "text"),
        (["--corpus", "{0}/corpus.txt", "--output_dri", "{0}/t"], "output_dir"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(tmp_path, words, told):
    write(tmp_path, "txt")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        tokenizers.main([word.format(tmp_path) for word in words])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_that_are_not_text_are_told():
    with pytest.raises(UserError, match="row 1 of the corpus holds int"):
        tokenizers.train(["a", 5], 300)  # type: ignore[list-item]
    with pytest.raises(UserError, match="empty"):
        tokenizers.train([], 300)


# ---------------------------------------------------------------------------------------------------------------------
# Does it fit a model?


def config(**values):
    """A config that fits the compact tokenizer, but for `values`."""
    fits = {"vocab_size": SIZE, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS, "bos_token_id": BOS}
    return SimpleNamespace(**{**fits, **values})


def told(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"vocab_size": 5000},
        {"mask_token_id": None},
        {"eos_token_id": [7, EOS]},
        {"eos_token_id": None, "pad_token_id": None},
        {"pad_token_id": -1},
        {"bos_token_id": 3},
    ],
)
def test_what_agrees_is_let_through(compact, values):
    belong.check(compact, config(**values))
    assert belong.mask_id(compact, config(**values)) == MASK


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vocab_size": SIZE - 1}, ["360 entries", "vocabulary 359"]),
        ({"mask_token_id": 357}, ["mask_token_id is 357", "<|mdm_mask|>", "356"]),
        ({"eos_token_id": 7}, ["eos_token_id is 7", "<|endoftext|>", "355"]),
        ({"eos_token_id": [7, 8]}, ["7 or 8"]),
        ({"pad_token_id": 0}, ["pad_token_id is 0"]),
        ({"bos_token_id": MASK}, ["beginning of text"]),
        ({"eos_token_id": [EOS, MASK]}, ["also the token for end of text"]),
    ],
)
def test_what_disagrees_is_refused(compact, values, words):
    told(lambda: belong.check(compact, config(**values)), *words)


def without_mask(tokenizer, folder: Path):
    """As LLaDA's own tokenizers: the mask is a special token, but no one says that it is the mask."""
    tokenizers.save(tokenizer, folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["mask_token"]
    path.write_text(json.dumps(values))
    return AutoTokenizer.from_pretrained(folder)


def test_a_mask_that_only_the_config_names_is_found(compact, tmp_path):
    loaded = without_mask(compact, tmp_path)
    assert loaded.mask_token is None
    assert belong.mask_id(loaded, config()) == MASK
    belong.check(loaded, config())


def test_a_mask_that_nobody_names_must_be_named_and_a_likely_one_is_proposed(compact, tmp_path):
    loaded = without_mask(compact, tmp_path)
    nobody = config(mask_token_id=None)
    told(lambda: belong.check(loaded, nobody), "neither", "--mask_token '<|mdm_mask|>'")
    assert belong.mask_id(loaded, nobody, "<|mdm_mask|>") == MASK
    told(lambda: belong.mask_id(loaded, nobody, "<|mdm_msak|>"), "not in the tokenizer", "'<|mdm_mask|>'?")
    told(lambda: belong.mask_id(loaded, config(), "<|eot_id|>"), "mask_token_id is 356", "359")


def test_a_mask_that_text_can_produce_is_refused(compact, tmp_path):
    """DiffuLLaMA's was an ordinary word."""
    loaded = without_mask(compact, tmp_path)
    word = loaded.convert_tokens_to_ids("Ġthe")
    told(lambda: belong.mask_id(loaded, config(mask_token_id=word)), "'Ġthe'", "ordinary")
    told(lambda: belong.mask_id(loaded, config(mask_token_id=None), "Ġthe"), "ordinary")
    told(lambda: belong.check(loaded, config(mask_token_id=word)), "ordinary")
    # Marked special, and yet its letters are encoded to it.
    loaded.add_special_tokens({"mask_token": "x"})
    told(lambda: belong.mask_id(loaded, config(mask_token_id=None)), "what its letters are encoded to")
    # Added, but not as a special token: "[?]" in a text is the mask.
    loaded.add_tokens(["[?]"])
    loaded.mask_token = None
    told(lambda: belong.mask_id(loaded, config(mask_token_id=len(loaded) - 1)), "'[?]'", "not marked as special")


def test_a_mask_beyond_the_tokenizer_is_safe_if_the_model_has_it(compact, tmp_path):
    """SMDM's is the row after its tokenizer's last."""
    loaded = without_mask(compact, tmp_path)
    belong.check(loaded, config(mask_token_id=SIZE, vocab_size=SIZE + 1))
    told(lambda: belong.check(loaded, config(mask_token_id=SIZE)), "ends at 359")


@pytest.mark.skipif(not (SHARED / "sdar_qwen3_tokenizer").is_dir(), reason="SDAR's tokenizer is not in ../shared/data")
def test_a_real_tokenizer_with_a_mask_fits_its_model():
    loaded = AutoTokenizer.from_pretrained(SHARED / "sdar_qwen3_tokenizer")
    real = SimpleNamespace(vocab_size=151936, eos_token_id=loaded.eos_token_id)
    belong.check(loaded, real)
    assert loaded.convert_ids_to_tokens(belong.mask_id(loaded, real)) == loaded.mask_token


@pytest.mark.skipif(not (SHARED / "gpt2_tokenizer").is_dir(), reason="GPT-2's tokenizer is not in ../shared/data")
def test_a_real_tokenizer_without_a_mask_is_refused():
    loaded = GPT2TokenizerFast.from_pretrained(SHARED / "gpt2_tokenizer")
    told(lambda: belong.check(loaded, SimpleNamespace(vocab_size=50257)), "--mask_token NAME")
    told(lambda: belong.mask_id(loaded, SimpleNamespace(vocab_size=50257), "hello"), "hello")


@pytest.mark.skipif(not (SHARED / "wikitext2").is_dir(), reason="the corpora are not in ../shared/data")
def test_real_text_comes_back_and_gets_shorter():
    """Text of the kind that was learnt from takes less than half a token a byte, in English and in Chinese."""
    english = next((SHARED / "tinyshakespeare").glob("*input.txt")).read_text("utf-8")[:200_000]
    lines = (SHARED / "chinese_poetry" / "poems.jsonl").read_text("utf-8").splitlines()[:1500]
    chinese = "\n".join(
        next(v for v in json.loads(line).values() if isinstance(v, str) and len(v) > 9) for line in lines
    )
    trained = tokenizers.train([english[:150_000], chinese[: len(chinese) * 3 // 4]], 3000)
    for text in (english[150_000:], chinese[len(chinese) * 3 // 4 :]):
        ids = text_ids(trained, text)
        assert trained.decode(ids) == text
        assert len(ids) < len(text.encode()) / 2
