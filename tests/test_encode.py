"""What a document says is text, whatever it says; and a token's size is the size of its text."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import END, LINES, MASK, bpe
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unmask import encode
from unmask.config import UserError
from unmask.encode import Encoder, token_bytes, tokenizer_fingerprint

TOKENIZER = bpe()
# Letters of every width in UTF-8, and the literals of special tokens.
documents = (
    st.lists(st.sampled_from(["a", " ", "\n", "é", "天", "🙂", "\0", "dog", MASK, END, "<|", "|>"])).map("".join)
    | st.text()
)


def plain(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, each of its special literals taken apart by hand: an oracle that knows no switch."""
    inner = tokenizer.backend_tokenizer
    splits = inner.pre_tokenizer.pre_tokenize_str(text)
    return [token.id for split, _ in splits for token in inner.model.tokenize(split)]


@given(st.lists(documents, max_size=4), st.booleans())
def test_documents_become_the_tokens_of_their_letters(texts: list[str], eos: bool) -> None:
    end = [TOKENIZER.eos_token_id] if eos else []
    assert [ids.tolist() for ids in Encoder(TOKENIZER, eos)(texts)] == [plain(TOKENIZER, text) + end for text in texts]


@given(documents)
def test_no_document_holds_a_special_token(text: str) -> None:
    (ids,) = Encoder(TOKENIZER, eos=False)([text])
    assert not set(ids.tolist()) & set(TOKENIZER.all_special_ids)
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_added_later_are_text_too_and_after_pickling(byte_tokenizer: Any) -> None:
    tokenizer = bpe()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    text = f"a{MASK}b<|eot_id|>{END}"
    assert {tokenizer.convert_tokens_to_ids(t) for t in (MASK, END, "<|eot_id|>")} <= set(tokenizer(text)["input_ids"])
    for one in (Encoder(tokenizer, eos=False), pickle.loads(pickle.dumps(Encoder(tokenizer, eos=False)))):
        (ids,) = one([text])
        assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
    (ids,) = Encoder(byte_tokenizer, eos=False)([text])
    assert len(ids) == len(text.encode())


def test_a_tokenizer_is_left_as_it_was() -> None:
    tokenizer = bpe()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=5)
    before = tokenizer.backend_tokenizer.to_str()
    (ids,) = Encoder(tokenizer, eos=False)(["x" * 50])
    assert len(ids) == 50
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.mask_token_id in tokenizer(MASK)["input_ids"]


def test_a_mask_that_is_no_special_token_is_refused_where_a_document_holds_it() -> None:
    tokenizer = bpe(mask_token=None)
    tokenizer.add_tokens([MASK])
    tokenizer._special_tokens_map["mask_token"] = MASK
    assert tokenizer.mask_token_id is not None
    encoder = Encoder(tokenizer, eos=False)
    encoder(["fine"])
    with pytest.raises(UserError, match="holds the text of the mask"):
        encoder(["fine", f"not {MASK} fine"])


def test_a_tokenizer_without_end_of_text_is_refused_only_where_it_is_wanted() -> None:
    tokenizer = bpe(eos_token=None, pad_token=None)
    with pytest.raises(UserError, match=r"no end-of-text token; .* --insert_eos false"):
        Encoder(tokenizer, eos=True)
    assert len(Encoder(tokenizer, eos=False)(["ab", ""])) == 2


@settings(max_examples=30)
@given(st.lists(st.sampled_from([*LINES, "\n", "  \n", "\t", "a" * 30, "。"]), min_size=20, max_size=60).map("".join))
def test_a_long_document_in_pieces_gives_the_tokens_of_the_whole(text: str) -> None:
    encoder = Encoder(TOKENIZER, eos=True)
    whole = encoder([text])[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PIECE", 64)
        patch.setattr(encode, "CALL", 100)
        assert "".join(encoder._pieces(text)) == text
        assert all(len(piece) <= 64 for piece in list(encoder._pieces("\n".join(LINES * 3)))[:-1])
        assert np.array_equal(encoder([text])[0], whole)
        assert [ids.tolist() for ids in encoder(["", text, "a"])] == [
            [TOKENIZER.eos_token_id], whole.tolist(), encoder(["a"])[0].tolist()
        ]  # fmt: skip


def metaspace() -> PreTrainedTokenizerFast:
    """As sentencepiece does it: `▁` for a space, one put before a text, bytes for what is unknown."""
    pieces = [
        ("<unk>", 0.0),
        *((f"<0x{i:02X}>", -9.0) for i in range(256)),
        *((c, -2.0) for c in "▁abcdefg\n"),
        ("▁dog", -1.0),
    ]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", mask_token="<mask>")


def test_a_tokenizer_that_looks_at_a_text_as_a_whole_gets_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(metaspace(), eos=False)
    monkeypatch.setattr(encode, "PIECE", 8)
    text = "abc\n" * 20
    assert list(encoder._pieces(text)) == [text]


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


@given(documents)
def test_the_bytes_of_a_texts_tokens_are_the_bytes_of_the_text(text: str) -> None:
    (ids,) = Encoder(TOKENIZER, eos=True)([text])
    assert token_bytes(TOKENIZER)[ids].sum() == len(text.encode())


def test_every_token_is_as_long_as_its_bytes(byte_tokenizer: Any) -> None:
    sizes = token_bytes(byte_tokenizer)
    assert sizes.shape == (len(byte_tokenizer),)
    assert sizes[:256].tolist() == [1] * 256
    assert not sizes[256:].any()


def test_ids_with_gaps_between_them_have_no_bytes() -> None:
    tokenizer = bpe()
    inner = tokenizer.backend_tokenizer
    assert token_bytes(tokenizer).shape == (len(tokenizer),)
    vocabulary = inner.get_vocab(with_added_tokens=False) | {"far": 5000}
    inner.model = models.BPE(vocab=vocabulary, merges=[])
    sizes = token_bytes(tokenizer)
    assert sizes.shape == (5001,)
    assert sizes[5000] == 3
    assert not sizes[len(tokenizer) : 5000].any()


def test_an_added_token_that_is_not_special_has_the_size_of_its_text() -> None:
    tokenizer = bpe()
    tokenizer.add_tokens(["<tool_call>", "天地"])
    text = "a<tool_call>天地"
    (ids,) = Encoder(tokenizer, eos=False)([text])
    assert len(ids) == 3
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_pieces_of_sentencepiece_and_wordpiece_have_the_size_of_their_text() -> None:
    tokenizer = metaspace()
    sizes = token_bytes(tokenizer)
    (ids,) = Encoder(tokenizer, eos=False)(["dog 天 cab"])
    assert sizes[ids].sum() == len(" dog 天 cab".encode())
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "天": 1, "##s": 2, "dog": 3}, unk_token="[UNK]")),
        unk_token="[UNK]",
    )
    assert token_bytes(words).tolist() == [0, 3, 1, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints


def test_a_fingerprint_outlives_saving_use_and_settings_that_change_no_id(tmp_path: Path) -> None:
    tokenizer = bpe()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bc"], padding=True, truncation=True, max_length=1)
    tokenizer("a", split_special_tokens=True)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(bpe())
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_a_fingerprint_tells_tokenizers_apart() -> None:
    changed = {"vocabulary": bpe(300), "mask": bpe(mask_token="<mask>"), "end": bpe(eos_token="</s>")}
    changed["normaliser"] = bpe()
    changed["normaliser"].backend_tokenizer.normalizer = normalizers.Lowercase()
    found = {name: tokenizer_fingerprint(tokenizer) for name, tokenizer in changed.items()}
    assert len({tokenizer_fingerprint(TOKENIZER), *found.values()}) == 5


def test_a_mask_added_to_a_tokenizer_changes_no_document() -> None:
    before, after = bpe(mask_token=None), bpe(mask_token=None)
    after.add_special_tokens({"mask_token": MASK})
    assert tokenizer_fingerprint(before, special=False) == tokenizer_fingerprint(after, special=False)
    assert tokenizer_fingerprint(before) != tokenizer_fingerprint(after)
    other = copy.deepcopy(before)
    other.add_tokens(["<tool_call>"])
    assert tokenizer_fingerprint(before, special=False) != tokenizer_fingerprint(other, special=False)
    after.eos_token = MASK
    assert tokenizer_fingerprint(before, special=False) != tokenizer_fingerprint(after, special=False)


@pytest.mark.slow
def test_a_real_tokenizer_reads_control_tokens_as_text(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "sdar_qwen3_tokenizer")
    texts = ["天地 <|im_start|> <|MASK|> dog\n", "<|endoftext|>", "é 🙂\0"]
    for text, ids in zip(texts, Encoder(tokenizer, eos=True)(texts), strict=True):
        assert not set(ids[:-1].tolist()) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids[:-1]) == text
        assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
