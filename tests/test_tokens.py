"""Rows of tokens are the documents, laid end to end and cut, whatever made them: processes, batches or a stream."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import LINES, MASK, bpe, numbered

from unmask import encode, tokens
from unmask.config import UserError

TOKENIZER = bpe()
END = TOKENIZER.eos_token_id
corpora = st.lists(
    st.sampled_from([*LINES, "", "a", MASK, "\n\n", "天"]) | st.text(max_size=20), min_size=1, max_size=30
)


def data(texts: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "n": list(range(len(texts)))})


def ids(rows: Any) -> list[list[int]]:
    return [row["input_ids"] for row in rows]


def oracle(texts: list[str], length: int, eos: bool, drop_tail: bool) -> list[list[int]]:
    """In plain Python: all ids one after the other, cut."""
    every: list[int] = []
    for text in texts:
        every += tokens.Encoder(TOKENIZER, eos=False)([text])[0].tolist() + ([END] if eos else [])
    return [every[i : i + length] for i in range(0, len(every), length) if not drop_tail or i + length <= len(every)]


@settings(max_examples=40)
@given(corpora, st.integers(1, 40), st.booleans(), st.booleans())
def test_rows_are_the_documents_end_to_end_cut_from_a_data_set_and_a_stream_alike(
    texts: list[str], length: int, eos: bool, drop_tail: bool
) -> None:
    expected = oracle(texts, length, eos, drop_tail)
    how: dict[str, Any] = {"max_length": length, "insert_eos": eos, "drop_tail": drop_tail}
    if not expected:
        for rows in (data(texts), data(texts).to_iterable_dataset()):
            with pytest.raises(UserError, match=r"fewer than one row|hold no text"):
                list(tokens.group(rows, TOKENIZER, **how))
        return
    grouped = tokens.group(data(texts), TOKENIZER, **how)
    assert ids(grouped) == expected
    assert (
        grouped.features == tokens.FEATURES == datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    )
    stream = tokens.group(data(texts).to_iterable_dataset(), TOKENIZER, **how)
    assert ids(stream) == expected
    assert stream.features == grouped.features


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with eight cores, where the least text repays a process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(tokens, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(tokens, "CALL", 200)


@pytest.mark.usefixtures("cores")
def test_rows_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{line} {i} {MASK}" for i, line in zip(range(200), itertools.cycle(LINES), strict=False)]
    started = []
    real = tokens.in_processes
    monkeypatch.setattr(tokens, "in_processes", lambda encoder, n: (started.append(n), real(encoder, n))[1])
    made = [
        ids(tokens.group(data(texts), TOKENIZER, max_length=50, num_proc=n, disable_caching=True)) for n in (1, 2, 3)
    ]
    assert made == [oracle(texts, 50, True, True)] * 3
    assert started == [1, 1, 3]


def test_few_rows_are_not_worth_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(encode, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("started processes"))
    assert len(tokens.group(data(numbered(100)), TOKENIZER, max_length=10, num_proc=8, disable_caching=True)) > 10


@pytest.mark.usefixtures("cores")
def test_what_goes_wrong_in_a_process_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[Any] = numbered(500)
    texts[437] = None
    with pytest.raises(UserError, match="row 437: 'text' is null, not text"):
        tokens.group(data(texts), TOKENIZER, max_length=10, num_proc=3, disable_caching=True)
    monkeypatch.setattr(encode, "_work_for", os.abort)  # by name in the child: it takes one argument, so it raises
    with pytest.raises(UserError, match="a process that tokenises died"):
        tokens.group(data(numbered(500)), TOKENIZER, max_length=10, num_proc=3, disable_caching=True)


def test_a_row_that_is_not_text_is_named_by_its_number() -> None:
    texts: list[Any] = numbered(500)
    texts[437] = None
    with pytest.raises(UserError, match="row 437: 'text' is null, not text"):
        tokens.group(data(texts), TOKENIZER, max_length=10, num_proc=1, disable_caching=True)
    with pytest.raises(UserError, match="row 437: 'text' is null, not text"):
        list(tokens.group(data(texts).to_iterable_dataset(), TOKENIZER, max_length=10))
    with pytest.raises(UserError, match="row 0: 'n' is 0, not text"):
        tokens.group(data(texts), TOKENIZER, text_field="n", max_length=10)
    with pytest.raises(UserError, match="no column 'content' in the data; there are text, n"):
        tokens.group(data(texts), TOKENIZER, text_field="content", max_length=10)


def test_a_dataset_of_chosen_rows_gives_only_these() -> None:
    texts = numbered(50)
    chosen = data(texts).select([7, 3, 40])
    assert ids(tokens.group(chosen, TOKENIZER, max_length=4)) == oracle([texts[i] for i in (7, 3, 40)], 4, True, True)
    assert ids(tokens.group(data(texts).select(range(9, 12)), TOKENIZER, max_length=4)) == oracle(
        texts[9:12], 4, True, True
    )


# ---------------------------------------------------------------------------------------------------------------------
# Too little


def test_too_few_tokens_say_how_many_there_are_and_what_to_set() -> None:
    with pytest.raises(
        UserError, match=r"hold 3 tokens, fewer than one row of --max_length 8; .* --max_length 3 or less"
    ):
        tokens.group(data(["a", ""]), TOKENIZER, max_length=8)
    assert ids(tokens.group(data(["a", ""]), TOKENIZER, max_length=8, drop_tail=False)) == oracle(
        ["a", ""], 8, True, False
    )


def test_a_lone_tail_is_kept_where_it_is_asked() -> None:
    for rows in (data(["a"]), data(["a"]).to_iterable_dataset()):
        assert ids(tokens.group(rows, TOKENIZER, max_length=8, keep_lone=True)) == oracle(["a"], 8, True, False)
    for rows in (data(["abc"] * 9), data(["abc"] * 9).to_iterable_dataset()):
        grouped = ids(tokens.group(rows, TOKENIZER, max_length=8, keep_lone=True))
        assert {len(row) for row in grouped} == {8}


def test_no_token_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="hold no text"):
        tokens.group(data(["", ""]), TOKENIZER, insert_eos=False, drop_tail=False)


@pytest.mark.parametrize("setting", ["max_length", "num_proc"])
def test_settings_below_one_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=setting):
        tokens.group(data(["a"]), TOKENIZER, **{setting: 0})


def test_a_tokenizer_without_end_of_text_is_refused_at_once() -> None:
    bare = bpe(eos_token=None, pad_token=None)
    for rows in (data(["a"]), data(["a"]).to_iterable_dataset()):
        with pytest.raises(UserError, match="--insert_eos false"):
            tokens.group(rows, bare, max_length=1)
    assert len(tokens.group(data(["a"]), bare, max_length=1, insert_eos=False)) == 1


# ---------------------------------------------------------------------------------------------------------------------
# The cache


class Refuses(tokens.Encoder):
    def __call__(self, texts: list[str]) -> Any:
        pytest.fail("tokenised again")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "unmask"


def test_what_was_tokenised_is_not_tokenised_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokens.group(data(LINES), TOKENIZER, max_length=16)
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "Encoder", Refuses)
        again = tokens.group(data(LINES), bpe(), max_length=16)
        shorter = tokens.group(data(LINES), TOKENIZER, max_length=8)
    assert (ids(again), again._fingerprint) == (ids(first), first._fingerprint)
    assert ids(shorter) == oracle(LINES, 8, True, True)
    files = sorted(path.name.split("-")[0] for path in empty_cache.iterdir())
    assert files == ["documents", "rows", "rows"]


def test_other_data_tokenizers_and_settings_are_told_apart(empty_cache: Path) -> None:
    ways: list[tuple[list[str], Any, dict[str, Any]]] = [
        (LINES, TOKENIZER, {}),
        (LINES[1:], TOKENIZER, {}),
        (LINES, bpe(300), {}),
        (LINES, TOKENIZER, {"insert_eos": False}),
        (LINES, TOKENIZER, {"drop_tail": False}),
        (LINES, TOKENIZER, {"max_length": 5}),
    ]
    made = [ids(tokens.group(data(texts), t, **{"max_length": 16, **how})) for texts, t, how in ways]
    assert len({str(rows) for rows in made}) == len(ways)


def test_without_caching_nothing_is_kept(empty_cache: Path) -> None:
    first = ids(tokens.group(data(LINES), TOKENIZER, max_length=16, disable_caching=True))
    assert not empty_cache.exists()
    assert first == oracle(LINES, 16, True, True)


def test_nothing_half_written_is_left_behind(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pa, "record_batch", full)
        with pytest.raises(UserError, match=r"no space left for tokens in .*HF_DATASETS_CACHE"):
            tokens.group(data(LINES), TOKENIZER, max_length=16)
    assert [path.name.split("-")[0] for path in empty_cache.iterdir()] == ["documents"]
    with pytest.raises(UserError, match="fewer than one row"):
        tokens.group(data(LINES), TOKENIZER, max_length=10_000)
    assert [path.name.split("-")[0] for path in empty_cache.iterdir()] == ["documents"]
    assert ids(tokens.group(data(LINES), TOKENIZER, max_length=16)) == oracle(LINES, 16, True, True)


def test_a_folder_with_data_is_not_written_to(tmp_path: Path) -> None:
    data(LINES).save_to_disk(str(tmp_path / "saved"))
    before = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert ids(tokens.group(datasets.load_from_disk(str(tmp_path / "saved")), TOKENIZER, max_length=16))
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == before


# ---------------------------------------------------------------------------------------------------------------------
# Streams


@settings(max_examples=15)
@given(skipped=st.integers(0, 60))
def test_a_stream_is_skipped_and_gone_on_with_by_count(skipped: int) -> None:
    rows = data(LINES * 12).to_iterable_dataset(num_shards=3)
    expected = oracle(LINES * 12, 16, True, True)
    grouped = tokens.group(rows, TOKENIZER, max_length=16)
    assert ids(grouped.skip(skipped)) == expected[skipped:]
    assert ids(grouped.take(skipped)) == expected[:skipped]
    read = iter(grouped)
    for _ in zip(range(skipped), read, strict=False):
        pass
    again = tokens.group(rows, TOKENIZER, max_length=16)
    again.load_state_dict(grouped.state_dict())
    assert ids(again) == expected[skipped:]


def test_a_stream_is_one_shard_in_the_same_order_in_every_epoch() -> None:
    grouped = tokens.group(data(LINES * 12).to_iterable_dataset(num_shards=4), TOKENIZER, max_length=16)
    assert grouped.num_shards == 1
    for epoch in (0, 1, 5):
        grouped.set_epoch(epoch)
        assert ids(grouped) == oracle(LINES * 12, 16, True, True)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens already


BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])


def already(columns: dict[str, Any], streaming: bool, **limits: int) -> list[dict[str, Any]]:
    rows = datasets.Dataset.from_dict(columns)
    limits = {"max_length": 4, "vocab_size": 10, **limits}
    return list(tokens.rows_already(rows.to_iterable_dataset() if streaming else rows, **limits))


@BOTH
def test_tokens_are_taken_as_they_are_without_other_columns(streaming: bool) -> None:
    rows = {"input_ids": [[1, 2], [9], [0, 1, 2, 3]], "labels": [[-100, 2], [9], [0, 1, 2, 3]], "prompt_len": [1, 0, 0]}
    expected = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    assert already({"text": ["a", "b", "c"], **rows, "score": [1, 2, 3]}, streaming) == expected
    assert already({"input_ids": rows["input_ids"]}, streaming) == [{"input_ids": row} for row in rows["input_ids"]]


@BOTH
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1], [1, 10]], "hold token 10, and the model knows 0 to 9"),
        ([[1], [-1]], "hold token -1"),
        ([[1], [1, 2, 3, 4, 5]], "has 5 tokens, more than --max_length 4; say --max_length 5"),
        ([[1], []], "a row of the data has no tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(rows: list[list[int]], said: str, streaming: bool) -> None:
    with pytest.raises(UserError, match=said):
        already({"input_ids": rows}, streaming)


def test_the_longest_row_of_all_is_told() -> None:
    rows = [[1] * 7, [1] * 3] * 600 + [[1] * 9]
    with pytest.raises(UserError, match="longest row of the data has 9 tokens"):
        already({"input_ids": rows}, False)


@pytest.mark.parametrize("rows", [["a", "b"], [1, 2], [["a"], ["b"]], [[0.5], [1.0]]])
def test_ids_that_are_no_lists_of_numbers_are_refused(rows: list[Any]) -> None:
    with pytest.raises(UserError, match="the column 'input_ids' holds"):
        already({"input_ids": rows}, False)


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints of data


@settings(max_examples=30)
@given(corpora)
def test_a_fingerprint_of_data_is_of_what_they_hold_not_of_how_they_are_kept(texts: list[str]) -> None:
    one = data(texts)
    found = tokens.data_fingerprint(one)
    assert tokens.data_fingerprint(data([*texts, "x"]).select(range(len(texts)))) == found
    assert tokens.data_fingerprint(data(texts[::-1]).select(range(len(texts) - 1, -1, -1)).remove_columns("n")) == (
        tokens.data_fingerprint(one.remove_columns("n"))
    )
    assert tokens.data_fingerprint(data([*texts, "x"])) != found
    assert tokens.data_fingerprint(data(["x", *texts[1:]])) != found or texts[0] == "x"


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=9))
def test_a_fingerprint_of_tokens_knows_rows_from_one_another(rows: list[list[int]]) -> None:
    def of(rows: list[list[int]], kind: str = "int32") -> str | None:
        features = datasets.Features({"input_ids": datasets.List(datasets.Value(kind))})
        return tokens.data_fingerprint(datasets.Dataset.from_dict({"input_ids": rows}, features=features))

    assert of(rows) == of(rows, "int64") == of([list(row) for row in rows])
    flat = [i for row in rows for i in row]
    assert of(rows) != of([flat]) or rows == [flat]
    assert of(rows) != of([*rows, []])


def test_a_fingerprint_does_not_depend_on_where_data_lie(tmp_path: Path) -> None:
    grouped = tokens.group(data(LINES), TOKENIZER, max_length=16)
    grouped.save_to_disk(str(tmp_path / "a"), num_shards=2)
    assert tokens.data_fingerprint(datasets.load_from_disk(str(tmp_path / "a"))) == tokens.data_fingerprint(grouped)


def test_a_fingerprint_of_a_stream_is_of_its_start() -> None:
    stream = data(numbered(300)).to_iterable_dataset()
    assert tokens.data_fingerprint(stream) == tokens.data_fingerprint(data(numbered(200)).to_iterable_dataset())
    assert tokens.data_fingerprint(stream) != tokens.data_fingerprint(data(numbered(300, "x")).to_iterable_dataset())
    assert tokens.data_fingerprint(None) is None


def test_real_chinese_text_is_all_there(shared: Path) -> None:
    rows = datasets.load_dataset(
        "json", data_files=str(shared / "data/chinese_poetry/poems.jsonl"), split="train[:300]"
    )
    grouped = tokens.group(rows, TOKENIZER, max_length=128, drop_tail=False)
    every = np.concatenate(ids(grouped))
    sizes = tokens.token_bytes(TOKENIZER)
    assert sizes[every].sum() == sum(len(text.encode()) for text in rows["text"])
    assert (every == END).sum() == 300
    assert TOKENIZER.decode(every).split(TOKENIZER.eos_token)[:-1] == list(rows["text"])
