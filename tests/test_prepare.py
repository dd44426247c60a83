"""`unmask prepare` writes once what training would make each time, and says with which tokenizer and template."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from texts import LINES, bpe, jsonl, numbered

from unmask import instruct, models, prepare, report, tokenizer, tokens
from unmask.config import DataArguments, UserError
from unmask.instruct import SFTDataArguments
from unmask.prepare import NOTE, main
from unmask.template import Template

TOKENIZER = bpe()
VOCABULARY = len(TOKENIZER)


def rows(spec: str | Path, tokenizer: Any = TOKENIZER, **settings: Any) -> prepare.Rows:
    settings = {"max_length": 16, **settings}
    data = DataArguments(dataset_args=str(spec), **settings)
    return prepare.rows(data, tokenizer, seed=42, vocab_size=VOCABULARY)


def ids(some: Any) -> list[list[int]]:
    return [row["input_ids"] for row in some]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "text.jsonl", LINES * 10)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder, of which only the tokenizer matters here."""
    folder = tmp_path / "model"
    bpe().save_pretrained(folder)
    monkeypatch.setattr(report, "quiet", lambda: None)  # it would silence the process for the tests that follow
    return folder


def command(model: Path, spec: str | Path, out: Path, *more: str) -> list[str]:
    words = ["--model_name_or_path", str(model), "--dataset_args", str(spec), "--output_dir", str(out)]
    return ["pretrain", *words, "--max_length", "16", *more]


# ---------------------------------------------------------------------------------------------------------------------
# Rows for training


@pytest.mark.parametrize("streaming", [False, True])
def test_text_becomes_rows_of_tokens(streaming: bool, text: Path) -> None:
    got = rows(f"{text}[train:30,test:10]", streaming=streaming)
    texts = datasets.Dataset.from_dict({"text": LINES * 10})
    for name, chosen in (("train", range(30)), ("test", range(30, 40))):
        expected = tokens.group(texts.select(chosen), TOKENIZER, max_length=16)
        assert ids(getattr(got, name)) == ids(expected)
    assert not got.tokenised_before
    assert got.remarks == []
    assert got.documents == ({"train": None, "test": None} if streaming else {"train": 30, "test": 10})


def test_remarks_of_the_corpus_reach_the_user(text: Path) -> None:
    assert "held out 1 of 40 rows (seed 42)" in rows(text).remarks[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_few_validation_tokens_are_one_short_row_and_that_is_said(streaming: bool, tmp_path: Path) -> None:
    text = jsonl(tmp_path / "a.jsonl", [*LINES, "ab"])
    got = rows(f"{text}[train:4,test:1]", streaming=streaming)
    assert [len(row) for row in ids(got.test)] == [3]
    assert {len(row) for row in ids(got.train)} == {16}
    assert streaming or "3 tokens, less than one row" in got.remarks[0]


def test_too_few_tokens_to_train_on_are_an_error(tmp_path: Path) -> None:
    text = jsonl(tmp_path / "a.jsonl", ["ab", "ab"])
    with pytest.raises(UserError, match=r"^the data hold 3 tokens, fewer than one row of --max_length 16"):
        rows(f"{text}[train:1,test:1]")


def test_an_error_in_the_validation_rows_says_where(tmp_path: Path) -> None:
    text = jsonl(tmp_path / "a.jsonl", [*LINES, None])
    with pytest.raises(UserError, match="in the validation rows: row 0: 'text' is null"):
        rows(f"{text}[train:4,test:1]")


def test_no_data_is_an_error() -> None:
    with pytest.raises(UserError, match="--dataset_args"):
        prepare.rows(DataArguments(), TOKENIZER, seed=1, vocab_size=9)


@pytest.mark.parametrize("preprocessed", [None, True])
def test_a_folder_of_save_to_disk_is_tokenised_or_taken_as_its_columns_say(
    preprocessed: bool | None, tmp_path: Path
) -> None:
    """The tutorial's YAML says `load_preprocessed_data: true` of text."""
    datasets.Dataset.from_dict({"text": LINES * 10}).save_to_disk(str(tmp_path / "text"))
    datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 9, "x": [1] * 9}).save_to_disk(str(tmp_path / "tokens"))
    got = rows(f"{tmp_path}/text[train:30,test:10]", load_preprocessed_data=preprocessed)
    assert (got.tokenised_before, got.remarks, {len(row) for row in ids(got.train)}) == (False, [], {16})
    got = rows(f"{tmp_path}/tokens[train:6,test:3]", load_preprocessed_data=preprocessed)
    assert (got.tokenised_before, list(got.train), len(got.test)) == (True, [{"input_ids": [1, 2]}] * 6, 3)
    assert "nothing tells which tokenizer made them" in got.remarks[0]


def test_load_preprocessed_data_true_of_a_plain_file_is_said(text: Path) -> None:
    remarks = rows(f"{text}[train:30,test:10]", load_preprocessed_data=True).remarks
    assert remarks == [f"{text} is no folder of save_to_disk (load_preprocessed_data); read as it is"]


def test_load_preprocessed_data_false_of_tokens_is_an_error(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 9}).save_to_disk(str(tmp_path / "tokens"))
    with pytest.raises(UserError, match=r"holds tokens .* --load_preprocessed_data false"):
        rows(f"{tmp_path}/tokens[train:6,test:3]", load_preprocessed_data=False)


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"input_ids": [[1, VOCABULARY]] * 9}).save_to_disk(str(tmp_path / "tokens"))
    with pytest.raises(UserError, match="with another tokenizer"):
        rows(f"{tmp_path}/tokens[train:6,test:3]")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_prepared_rows_are_those_that_training_would_make(
    text: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, spec = tmp_path / "made" / "tokens", f"{text}[train:30,test:10]"
    assert main(command(model, spec, out)) == 0
    printed = capsys.readouterr().out
    direct, prepared = rows(spec), rows(out)
    assert prepared.tokenised_before
    assert prepared.remarks == [f"{out}: test rows are of its own split 'test'"]
    for name in ("train", "test"):
        assert ids(getattr(prepared, name)) == ids(getattr(direct, name))
        counts = [getattr(direct, name).num_rows * 16, getattr(direct, name).num_rows]
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert [int(n.replace(",", "")) for n in re.findall(r"[\d,]+", line)] == [direct.documents[name], *counts]
    note = json.loads((out / NOTE).read_text())
    assert note["settings"]["dataset_args"] == spec
    assert note["tokenizer"] == str(model)
    assert note["splits"]["train"]["documents"] == 30
    assert note["splits"]["train"]["fingerprint"] == tokens.data_fingerprint(prepared.train)
    assert sorted(path.name for path in out.parent.iterdir()) == ["tokens"]


def test_data_prepared_with_another_tokenizer_are_refused_naming_both(text: Path, model: Path, tmp_path: Path) -> None:
    main(command(model, f"{text}[train:30,test:10]", tmp_path / "tokens"))
    other = tmp_path / "other"
    bpe(300).save_pretrained(other)
    for spec in (tmp_path / "tokens", f"{tmp_path / 'tokens' / 'train'}[train:3,test:1]"):
        with pytest.raises(UserError) as error:
            rows(spec, models.load_tokenizer(str(other)))
        for folder in (tmp_path / "tokens", model, other):
            assert str(folder) in str(error.value)
    rows(tmp_path / "tokens", models.load_tokenizer(str(model)))


def test_a_mask_token_added_for_training_leaves_prepared_data_valid(text: Path, tmp_path: Path, model: Path) -> None:
    bare = bpe(mask_token=None)
    bare.save_pretrained(model)
    main(command(model, f"{text}[train:30,test:10]", tmp_path / "tokens"))
    bare.add_special_tokens({"mask_token": "<|mdm_mask|>"})
    assert rows(tmp_path / "tokens", bare).tokenised_before


def test_the_length_of_prepared_rows_is_checked(text: Path, model: Path, tmp_path: Path) -> None:
    main(command(model, f"{text}[train:30,test:10]", tmp_path / "tokens"))
    with pytest.raises(UserError, match="more than --max_length 8; say --max_length 16"):
        rows(tmp_path / "tokens", max_length=8)
    assert any(
        "made with --max_length 16, which stays" in line for line in rows(tmp_path / "tokens", max_length=32).remarks
    )


def test_a_note_that_cannot_be_read_is_told(text: Path, model: Path, tmp_path: Path) -> None:
    main(command(model, f"{text}[train:30,test:10]", tmp_path / "tokens"))
    (tmp_path / "tokens" / NOTE).write_text("{")
    with pytest.raises(UserError, match=f"cannot read .*{NOTE}"):
        rows(tmp_path / "tokens")


def test_an_existing_folder_is_replaced_only_when_told_and_only_if_it_is_ours(
    text: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    out.mkdir()
    main(command(model, f"{text}[train:30,test:10]", out))
    with pytest.raises(UserError, match="type --overwrite"):
        main(command(model, f"{text}[train:20,test:10]", out))
    main(command(model, f"{text}[train:20,test:10]", out, "--overwrite"))
    assert json.loads((out / NOTE).read_text())["splits"]["train"]["documents"] == 20
    assert not list(tmp_path.glob(".tokens*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="was not written by `unmask prepare`"):
        main(command(model, text, tmp_path / "mine", "--overwrite"))
    with pytest.raises(UserError, match="was not written by `unmask prepare`"):
        main(command(model, text, tmp_path / "mine" / "thesis.txt", "--overwrite"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_is_interrupted_leaves_nothing_new_and_the_old_as_it_was(
    error: BaseException, text: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tokens"
    main(command(model, f"{text}[train:30,test:10]", out))
    before = (out / NOTE).read_text()

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(report, "write_json", broken)
    with pytest.raises(type(error)):
        main(command(model, f"{text}[train:20,test:10]", out, "--overwrite"))
    assert (out / NOTE).read_text() == before
    with pytest.raises(type(error)):
        main(command(model, f"{text}[train:20,test:10]", tmp_path / "new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.jsonl", "tokens"]


def test_data_that_are_tokens_already_need_no_preparing(model: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 9}).save_to_disk(str(tmp_path / "made"))
    with pytest.raises(UserError, match="holds tokens already"):
        main(command(model, f"{tmp_path}/made[train:6,test:3]", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_settings_of_the_data_are_those_of_training(text: Path, model: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", numbered(60), column="content")
    more = ["--text_field", "content", "--insert_eos", "false", "--drop_tail", "false", "--max_length", "7"]
    main(command(model, f"{tmp_path}/b.jsonl[train:50,test:10]", tmp_path / "out", *more, "--num_proc", "1"))
    direct = rows(
        f"{tmp_path}/b.jsonl[train:50,test:10]", text_field="content", insert_eos=False, drop_tail=False, max_length=7
    )
    assert ids(rows(tmp_path / "out", max_length=7).train) == ids(direct.train)
    assert len(direct.train[-1]["input_ids"]) < 7


@pytest.mark.parametrize("missing", ["model_name_or_path", "output_dir"])
def test_what_is_missing_is_named(missing: str, text: Path, tmp_path: Path) -> None:
    words = command(tmp_path / "model", text, tmp_path / "out")
    at = words.index(f"--{missing}")
    with pytest.raises(UserError, match=f"--{missing} is missing"):
        main(words[:at] + words[at + 2 :])


def test_settings_that_do_not_matter_here_are_refused_not_ignored(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown option --streaming"):
        main(command(tmp_path / "model", text, tmp_path / "out", "--streaming", "true"))


def test_alone_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "pretrain" in printed
    assert "sft" in printed
    with pytest.raises(
        UserError, match="cannot prepare 'chat'; there is `unmask prepare pretrain`, `unmask prepare sft`"
    ):
        main(["chat"])
    with pytest.raises(UserError, match="Did you mean 'pretrain'"):
        main(["pretrian"])


# ---------------------------------------------------------------------------------------------------------------------
# The command for conversations


@pytest.fixture
def chatty(tmp_path: Path, model: Path) -> Path:
    """A model folder whose tokenizer has LLaDA's turns."""
    tokenizer.train(LINES * 3, 400).save_pretrained(model)
    return model


def sft(model: Path, spec: str | Path, out: Path, *more: str) -> int:
    return main(["sft", *command(model, spec, out)[1:], "--max_length", "64", *more])


def talks(path: Path, n: int) -> Path:
    answers = [f"{i}!" if i else "" for i in range(n)]
    texts = [{"instruction": f"Say {i}.", "input": "", "output": answer} for i, answer in enumerate(answers)]
    path.write_text(json.dumps(texts))
    return path


def test_conversations_are_written_shuffled_with_their_note(
    chatty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    assert sft(chatty, talks(tmp_path / "a.json", 31), out) == 0
    printed, said = capsys.readouterr()
    made = datasets.load_from_disk(str(out))
    assert {name: part.column_names for name, part in made.items()} == {"train": ["input_ids", "labels", "prompt_len"]}
    rows = made["train"]
    learnt = sum(label != -100 for row in rows for label in row["labels"])
    total = sum(len(row["input_ids"]) for row in rows)
    assert [int(n.replace(",", "")) for n in re.findall(r"[\d,]+", printed.splitlines()[0])] == [30, total, learnt, 1]
    assert "left out of 31 rows: 1 (no answer)" in said
    assert f"unmask sft --dataset_args '{out}[test:10%]'" in printed
    note = json.loads((out / NOTE).read_text())
    assert note["task"] == "sft"
    assert note["template_fingerprint"] == Template(models.load_tokenizer(str(chatty))).fingerprint
    split = note["splits"]["train"]
    assert (split["documents"], split["rows"], split["tokens"], split["learnt"]) == (31, 30, total, learnt)
    assert sum(split["dropped"].values()) == 1

    plain = in_order(chatty, tmp_path)
    assert list(rows) == [plain[i] for i in datasets.Dataset.from_dict({"i": range(30)}).shuffle(seed=42)["i"]]


def in_order(model: Path, tmp_path: Path) -> list[Any]:
    sft(model, tmp_path / "a.json", tmp_path / "plain", "--shuffle_rows", "false")
    return list(datasets.load_from_disk(str(tmp_path / "plain"))["train"])


def test_the_same_command_writes_the_same_rows_and_another_seed_another_order(chatty: Path, tmp_path: Path) -> None:
    file = talks(tmp_path / "a.json", 31)
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        sft(chatty, file, tmp_path / name, "--seed", seed)
    a, b, c = (list(datasets.load_from_disk(str(tmp_path / name))["train"]) for name in "abc")
    assert a == b != c
    assert sorted(map(str, a)) == sorted(map(str, c))


def test_test_rows_are_written_where_they_are_asked_for(chatty: Path, tmp_path: Path) -> None:
    sft(chatty, f"{talks(tmp_path / 'a.json', 31)}[train:20,test:10]", tmp_path / "made")
    made = datasets.load_from_disk(str(tmp_path / "made"))
    assert {name: len(part) for name, part in made.items()} == {"train": 19, "test": 10}


def test_the_tutorials_spec_takes_disjoint_rows_of_the_one_split_that_is_written(chatty: Path, tmp_path: Path) -> None:
    sft(chatty, talks(tmp_path / "a.json", 31), tmp_path / "made")
    data = SFTDataArguments(dataset_args=f"{tmp_path}/made[train:20,test:10]", load_preprocessed_data=True)
    got = instruct.rows(data, models.load_tokenizer(str(chatty)), seed=42, vocab_size=400)
    train, test = ({tuple(row["input_ids"]) for row in part} for part in (got.train, got.test))
    assert (len(train), len(test), len(train & test)) == (20, 10, 0)
    with pytest.raises(UserError, match="asks for 31 rows; there are 30"):
        data.dataset_args = f"{tmp_path}/made[train:20,test:11]"
        instruct.rows(data, models.load_tokenizer(str(chatty)), seed=42, vocab_size=400)


def test_data_prepared_for_sft_are_refused_by_pretraining(chatty: Path, tmp_path: Path) -> None:
    sft(chatty, talks(tmp_path / "a.json", 31), tmp_path / "made")
    with pytest.raises(UserError, match="was prepared for `unmask sft`"):
        rows(tmp_path / "made", models.load_tokenizer(str(chatty)), max_length=64)


@pytest.mark.parametrize("word", ["--eos_tail", "--packing", "--text_field", "--shuffle"])
def test_settings_that_do_not_matter_to_prepared_conversations_are_refused(
    word: str, chatty: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"unknown option {word}"):
        sft(chatty, talks(tmp_path / "a.json", 5), tmp_path / "made", word, "true")


def test_a_tokenizer_without_a_template_writes_nothing(text: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tokenizer has no chat template; type --chat_template"):
        sft(model, talks(tmp_path / "a.json", 5), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_the_tutorials_own_kind_of_file_needs_no_cleaning(chatty: Path, shared: Path, tmp_path: Path) -> None:
    file = shared / "data/alpaca/alpaca_zh_train.json"
    sft(chatty, f"{file}[train:2000]", tmp_path / "made", "--max_length", "1024")
    empty = sum(not row["output"].strip() for row in json.loads(file.read_text(encoding="utf-8"))[:2000])
    note = json.loads((tmp_path / "made" / NOTE).read_text())
    assert note["splits"]["train"]["dropped"]["no answer"] == empty > 0
