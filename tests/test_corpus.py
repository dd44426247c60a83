"""A spec gives the rows it names: disjoint, in order, the same from a stream, and never fewer than asked."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import jsonl, numbered
from torch.utils.data import DataLoader

from unmask import corpus
from unmask.config import UserError

BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])


def texts(rows: Any) -> list[Any]:
    return [row["text"] for row in rows]


def load(spec: str | Path, **how: Any) -> tuple[list[str], list[str]]:
    got = corpus.load(str(spec), **how)
    for rows in (got.train, got.test):
        assert isinstance(rows, datasets.IterableDataset if how.get("streaming") else datasets.Dataset)
    return texts(got.train), texts(got.test)


def refused(spec: str | Path, *said: str, **how: Any) -> None:
    """One line that says all of `said`, when the data are opened or, for a stream, when they are read."""
    with pytest.raises(UserError) as error:
        load(spec, **how)
    for some in said:
        assert some in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 rows in three files."""
    folder = tmp_path_factory.mktemp("rows") / "hundred"
    for i, (start, stop) in enumerate([(0, 40), (40, 41), (41, 100)]):
        jsonl(folder / f"{i}.jsonl", numbered(100)[start:stop])
    return folder


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A DatasetDict on disk: 10 rows of train, 5 of validation, 3 of zh."""
    folder = tmp_path / "splits"
    named = {"train": 10, "validation": 5, "zh": 3}
    made = {name: datasets.Dataset.from_dict({"text": numbered(n, name)}) for name, n in named.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Which rows


@BOTH
@pytest.mark.parametrize(
    ("options", "train", "test"),
    [
        ("train:20,test:5", (0, 20), (20, 25)),
        ("train : 1_0, test : 9_0", (0, 10), (10, 100)),
        ("test:7", (7, 100), (0, 7)),
        ("train:95,validation:5", (0, 95), (95, 100)),
        ("split:train,train:3,test:1", (0, 3), (3, 4)),
    ],
)
def test_one_split_gives_disjoint_rows(
    options: str, train: tuple[int, int], test: tuple[int, int], streaming: bool, hundred: Path
) -> None:
    every = numbered(100)
    assert load(f"{hundred}[{options}]", streaming=streaming) == (every[slice(*train)], every[slice(*test)])


@pytest.mark.parametrize(
    ("options", "train", "test"),
    [
        ("train:90%,test:10%", (0, 90), (90, 100)),
        ("train:0.29,test:0.57", (0, 29), (29, 86)),
        ("test:10%", (10, 100), (0, 10)),
        ("train:50,test:0.1%", (0, 50), (50, 51)),
    ],
)
def test_shares_are_of_all_rows_rounded_down_to_at_least_one(
    options: str, train: tuple[int, int], test: tuple[int, int], hundred: Path
) -> None:
    assert load(f"{hundred}[{options}]") == (numbered(100)[slice(*train)], numbered(100)[slice(*test)])


@settings(max_examples=30)
@given(st.integers(1, 120), st.integers(1, 120))
def test_rows_are_as_many_as_asked_or_an_error_says_how_many_there_are(hundred: Path, train: int, test: int) -> None:
    spec = f"{hundred}[train:{train},test:{test}]"
    if train + test <= 100:
        first, second = load(spec)
        assert (len(first), len(second)) == (train, test)
        assert not set(first) & set(second)
    else:
        refused(spec, f"asks for {train + test:,} rows; there are 100.")


@pytest.mark.parametrize("options", ["train:101", "train:96,test:5", "train:60%,test:60%"])
def test_more_rows_than_there_are_is_an_error(options: str, hundred: Path) -> None:
    refused(f"{hundred}[{options}]", "there are 100.")


@pytest.mark.parametrize("options", ["train:200", "train:96,test:5", "train:100,test:1"])
def test_a_stream_that_runs_out_says_how_many_rows_there_were(options: str, hundred: Path) -> None:
    refused(f"{hundred}[{options}]", "rows; there are 100.", streaming=True)


def test_a_share_of_a_stream_is_refused(hundred: Path) -> None:
    refused(f"{hundred}[train:90%]", "no known length", "train:2000", streaming=True)


def test_no_rows_left_to_train_on_is_an_error(hundred: Path) -> None:
    refused(f"{hundred}[test:100%]", "leaves no rows to train on")


@BOTH
def test_parts_follow_one_another_in_each_split(streaming: bool, hundred: Path, splits: Path) -> None:
    train, test = load(f"{hundred}[train:3,test:2] + {splits} | {hundred}[train:1]", streaming=streaming)
    assert train == [*numbered(3), *numbered(10, "train"), "row 0"]
    assert test == ["row 3", "row 4", *numbered(5, "validation")]


@BOTH
def test_parts_with_other_columns_and_types_are_joined_by_their_text(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": 5}\n')
    large = datasets.Features({"id": datasets.Value("int8"), "text": datasets.Value("large_string")})
    datasets.Dataset.from_dict({"id": [1, 2], "text": ["b", "c"]}, features=large).save_to_disk(str(tmp_path / "b"))
    both = f"{tmp_path}/a.jsonl + {tmp_path}/b[train:1,test:1]"
    assert load(both, streaming=streaming) == (["a", "b"], ["c"])


@BOTH
def test_a_data_sets_own_validation_split_is_used_for_it(streaming: bool, splits: Path) -> None:
    train, test = numbered(10, "train"), numbered(5, "validation")
    assert load(splits, streaming=streaming) == (train, test)
    assert load(f"{splits}[train:4,test:2]", streaming=streaming) == (train[:4], test[:2])
    assert load(f"{splits}[train:10,test:5]", streaming=streaming) == (train, test)
    assert load(f"{splits}[validation:40%]", streaming=streaming) == (train, test[:2])
    refused(f"{splits}[train:4,test:6]", "asks for 6 rows; there are 5.", streaming=streaming)
    assert any("own split 'validation'" in line for line in corpus.load(str(splits)).remarks)


@BOTH
def test_a_named_split_gives_both(streaming: bool, splits: Path) -> None:
    rows = numbered(5, "validation")
    assert load(f"{splits}[split:validation,train:3,test:2]", streaming=streaming) == (rows[:3], rows[3:])
    assert load(f"{splits}[split:zh,test:1]", streaming=streaming) == (["zh 1", "zh 2"], ["zh 0"])
    refused(f"{splits}[split:valid]", "there are train, validation, zh.", "Did you mean 'validation'?")


def test_without_a_train_split_the_only_one_is_used_and_several_are_listed(tmp_path: Path) -> None:
    for name in ("en", "zh"):
        datasets.Dataset.from_dict({"text": numbered(4)}).save_to_disk(str(tmp_path / name))
    only = datasets.DatasetDict({"en": datasets.load_from_disk(str(tmp_path / "en"))})
    only.save_to_disk(str(tmp_path / "only"))
    got = corpus.load(f"{tmp_path}/only[train:3,test:1]")
    assert (texts(got.train), texts(got.test)) == (numbered(3), ["row 3"])
    assert "its only split, 'en'" in got.remarks[0]
    datasets.DatasetDict({**only, "zh": only["en"]}).save_to_disk(str(tmp_path / "two"))
    refused(tmp_path / "two", "no split 'train'; there are en, zh", "[split:NAME]")


@BOTH
def test_rows_of_one_language(streaming: bool, tmp_path: Path) -> None:
    rows = {"text": ["a", "b", "c", "d"], "lang": ["python", "c", "python", "python"]}
    datasets.Dataset.from_dict(rows).to_json(tmp_path / "a.jsonl")
    assert load(f"{tmp_path}/a.jsonl[lang:python,test:1]", streaming=streaming) == (["c", "d"], ["a"])
    refused(f"{tmp_path}/a.jsonl[lang:rust]", "is an empty data set", streaming=streaming)
    jsonl(tmp_path / "b.jsonl", ["a"])
    refused(f"{tmp_path}/b.jsonl[lang:python]", "no column 'lang'; there are text.", streaming=streaming)


def test_a_relative_name_is_found_under_the_base_folder(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE_DATASETS_DIR", str(hundred.parent))
    got = corpus.load("hundred[train:2,test:1]")
    assert texts(got.train) == numbered(2)
    assert got.sources == [hundred]


# ---------------------------------------------------------------------------------------------------------------------
# Rows held out


def test_a_seeded_share_is_held_out_and_said(hundred: Path) -> None:
    train, test = load(hundred, hold_out=0.1)
    assert len(test) == 10
    assert sorted(train + test) == sorted(numbered(100))
    assert train == [row for row in numbered(100) if row not in test]
    assert load(hundred, hold_out=0.1) == (train, test)
    assert load(hundred, hold_out=0.1, seed=43)[1] != test
    assert "held out 10 of 100 rows (seed 42)" in corpus.load(str(hundred), hold_out=0.1).remarks[0]


@pytest.mark.parametrize(
    ("options", "most", "held", "of"), [("", 1000, 1, 100), ("[train:50]", 1000, 1, 50), ("", 3, 1, 100)]
)
def test_one_per_cent_is_held_out_but_at_least_one_row(
    options: str, most: int, held: int, of: int, hundred: Path
) -> None:
    train, test = load(f"{hundred}{options}", hold_out_most=most)
    assert (len(train), len(test)) == (of - held, held)
    assert set(train) | set(test) == set(numbered(of))


def test_no_more_than_the_most_is_held_out(hundred: Path) -> None:
    assert len(load(hundred, hold_out=0.5, hold_out_most=7)[1]) == 7


def test_nothing_is_held_out_when_no_test_is_needed_or_one_is_there(hundred: Path, splits: Path) -> None:
    got = corpus.load(str(hundred), need_test=False)
    assert (len(got.train), got.test, got.remarks) == (100, None, [])
    assert len(corpus.load(f"{splits}[train:2] + {hundred}").train) == 102


def test_a_stream_holds_out_its_first_rows_and_says_so(hundred: Path) -> None:
    got = corpus.load(str(hundred), streaming=True)
    assert (texts(got.train), texts(got.test)) == (numbered(100)[10:], numbered(100)[:10])
    assert "held out the first 10 rows" in got.remarks[0]
    assert len(texts(corpus.load(str(hundred), streaming=True, hold_out_most=50).test)) == 5
    assert len(texts(corpus.load(f"{hundred}[train:7]", streaming=True).test)) == 1


@BOTH
def test_of_a_lone_document_the_end_is_held_out_after_a_line(streaming: bool, tmp_path: Path) -> None:
    book = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "book.txt").write_text(book)
    (train,), (test,) = load(tmp_path / "book.txt", streaming=streaming)
    assert train + test == book
    assert train.endswith("\n")
    assert 0.01 <= len(test) / len(book) < 0.012
    said = corpus.load(str(tmp_path / "book.txt")).remarks[0]
    assert "1 % of the only document" in said
    assert "[by:line]" in said


@BOTH
def test_shares_of_a_lone_document_are_pieces_of_its_text(streaming: bool, tmp_path: Path) -> None:
    book = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "book.txt").write_text(book)
    (first,), (second,) = load(f"{tmp_path}/book.txt[train:50%,test:0.1]", streaming=streaming)
    assert book.startswith(first + second)
    assert first.endswith("\n")
    assert len(first) == pytest.approx(0.5 * len(book), abs=10)
    assert len(second) == pytest.approx(0.1 * len(book), abs=20)
    (rest,), (start,) = load(f"{tmp_path}/book.txt[test:10%]", streaming=streaming)
    assert rest + start == book


@given(st.text("ab\n"), st.lists(st.floats(0, 1)))
def test_a_document_cut_anywhere_has_all_its_letters(book: str, places: list[float]) -> None:
    shares = [0.0, *sorted(places), 1.0]
    pieces = [corpus._cut({"text": book}, "text", *pair)["text"] for pair in itertools.pairwise(shares)]
    assert "".join(pieces) == book


def test_a_lone_document_has_no_second_row(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a\nb\nc\n")
    refused(f"{tmp_path}/book.txt[train:2]", "asks for 2 rows; there are 1.", "[by:line,…]")
    refused(f"{tmp_path}/book.txt[train:1,test:10%]", "is one document", "[by:line,…]")
    refused(f"{tmp_path}/book.txt[train:90%,test:20%]", "100 % at most")
    refused(f"{tmp_path}/book.txt[test:100%]", "100 % at most")
    assert load(f"{tmp_path}/book.txt[by:line,train:2,test:1]") == (["a", "b"], ["c"])


# ---------------------------------------------------------------------------------------------------------------------
# Columns


def test_only_the_text_is_kept_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "content": "x"}\n{"text": "b", "content": "y"}\n')
    got = corpus.load(f"{tmp_path}/a.jsonl", text_field="content")
    assert got.train.column_names == ["content"]
    assert not got.tokenised
    every = corpus.load(f"{tmp_path}/a.jsonl", text_field=None)
    assert every.train.column_names == ["text", "content"]


@BOTH
def test_the_columns_tell_whether_data_are_tokens(streaming: bool, tmp_path: Path) -> None:
    rows = {"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]], "text": ["x", "y"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "tokens"))
    got = corpus.load(f"{tmp_path}/tokens", streaming=streaming)
    assert got.tokenised
    assert [row["input_ids"] for row in [*got.train, *got.test]] in ([[1, 2], [3]], [[3], [1, 2]])
    jsonl(tmp_path / "a.jsonl", numbered(3))
    refused(
        f"{tmp_path}/tokens + {tmp_path}/a.jsonl", "holds tokens", "text; they cannot be joined", streaming=streaming
    )


@BOTH
def test_a_missing_text_column_lists_those_there_are(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"contents": "a", "score": 5}\n')
    refused(f"{tmp_path}/a.jsonl", "no column 'text'; there are contents, score.", "--text_field", streaming=streaming)
    refused(f"{tmp_path}/a.jsonl", "Did you mean 'contents'?", text_field="content", streaming=streaming)


@BOTH
@pytest.mark.parametrize("value", ["5", "[1, 2]", '{"a": "b"}', "null", "true"])
def test_a_text_column_that_holds_no_text_is_refused(value: str, streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": {value}}}\n' * 3)
    refused(f"{tmp_path}/a.jsonl", "the column 'text' holds", "not text", streaming=streaming)


@BOTH
def test_an_empty_data_set_is_refused(streaming: bool, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": []}).save_to_disk(str(tmp_path / "none"))
    refused(tmp_path / "none", "is an empty data set", streaming=streaming)
    (tmp_path / "a.txt").write_text("\n\n")
    refused(f"{tmp_path}/a.txt[by:line]", "is an empty data set", streaming=streaming)


# ---------------------------------------------------------------------------------------------------------------------
# Streams


def test_a_stream_is_read_whole_by_a_loaders_worker(hundred: Path) -> None:
    """`datasets` would give each of two workers some of the files; ours is one shard, which one worker reads."""
    rows = corpus.load(f"{hundred}[train:99,test:1]", streaming=True).train
    assert [row["text"] for row in DataLoader(rows, num_workers=2, batch_size=None)] == numbered(99)


def test_a_stream_goes_on_from_where_it_stopped(hundred: Path) -> None:
    spec = f"{hundred}[train:90,test:10]"
    assert texts(corpus.load(spec, streaming=True).train.skip(37)) == numbered(90)[37:]
    first = corpus.load(spec, streaming=True).train
    read = iter(first)
    for _ in range(41):
        next(read)
    second = corpus.load(spec, streaming=True).train
    second.load_state_dict(first.state_dict())
    assert texts(second) == numbered(90)[41:]


def test_a_stream_has_the_same_order_in_every_epoch(hundred: Path) -> None:
    rows = corpus.load(f"{hundred}[train:90,test:10]", streaming=True).train
    rows.set_epoch(3)
    assert texts(rows) == numbered(90)


def test_a_file_that_breaks_off_in_the_middle_of_a_stream_is_told_by_name_and_line(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", numbered(300))
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"text": "cut o')
    refused(tmp_path, f"cannot read {tmp_path}/b.jsonl, line 2", streaming=True)
    refused(tmp_path, f"cannot read {tmp_path}/b.jsonl, line 2")


def test_files_of_different_columns_are_told_in_a_stream_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "score": 5}\n')
    refused(tmp_path, "have different columns", streaming=True)


# ---------------------------------------------------------------------------------------------------------------------
# Real data


@pytest.mark.parametrize(
    ("spec", "field", "rows", "starts"),
    [
        ("chinese_poetry/poems.jsonl", "text", 20_000, "武德军节度判官"),
        ("llama_factory_demo/c4_demo.jsonl", "text", 300, "Don’t think you need"),
        ("llama_factory_demo/wiki_demo.txt[by:line]", "text", 30, "Anarchism is"),
        ("alpaca/alpaca_zh_train.json", "output", 47_000, "1.均衡饮食"),
    ],
)
def test_real_data_are_read(spec: str, field: str, rows: int, starts: str, shared: Path) -> None:
    got = corpus.load(str(shared / "data" / spec), text_field=field, need_test=False)
    assert len(got.train) == rows
    assert got.train[0][field].startswith(starts)


def test_the_tutorials_way_to_keep_text_is_read(tmp_path: Path) -> None:
    """`load_dataset(folder, split="train").save_to_disk(out)`, then `out[train:…,test:…]`."""
    jsonl(tmp_path / "c4" / "c4-train.00000.json", numbered(30))
    jsonl(tmp_path / "c4" / "c4-validation.00000.json", numbered(5, "held"))
    datasets.load_dataset(str(tmp_path / "c4"), split="train").save_to_disk(str(tmp_path / "c4-en-train"))
    assert load(f"{tmp_path}/c4-en-train[train:2_0,test:10]") == (numbered(30)[:20], numbered(30)[20:])
    assert load(tmp_path / "c4") == (numbered(30), numbered(5, "held"))
    assert not re.search("cache-", " ".join(p.name for p in (tmp_path / "c4-en-train").iterdir()))
