"""Which tokens of a conversation are learnt, for every option; what is left out is counted, what is bad refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from texts import LINES, bpe

from unmask import labels, prepare, tokenizer
from unmask.config import UserError
from unmask.instruct import SFTDataArguments, rows
from unmask.template import Template
from unmask.tokenizer import CHAT_TEMPLATE

TOKENIZER = tokenizer.train(LINES * 3, 400)
TOKENIZER.name_or_path = "ours"
STRAY = CHAT_TEMPLATE.split("{%- if add")[0] + "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def jsonl(path: Path, some: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), encoding="utf-8")
    return path


def numbered(n: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {i}.", "input": "", "output": f"{i}!", "score": i} for i in range(n)]


def get(spec: str | Path, tokenizer: Any = TOKENIZER, need_test: bool = False, **settings: Any) -> prepare.Rows:
    data = SFTDataArguments(dataset_args=str(spec), **settings)
    return rows(data, tokenizer, seed=42, vocab_size=len(TOKENIZER), need_test=need_test)


def saved(path: Path, **columns: Any) -> Path:
    datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    return path


def learnt(row: dict[str, Any]) -> str:
    """A row with what is learnt in capitals' place: between brackets."""
    text = ""
    inside = False
    for i, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (i, -100)
        if (label != -100) != inside:
            text += "]" if inside else "["
            inside = not inside
        text += TOKENIZER.decode([i])
    return text + "]" * inside


def short(text: str) -> str:
    for long, mark in (
        ("<|startoftext|>", "^"),
        ("<|eot_id|>", "$"),
        ("<|endoftext|>", "#"),
        ("\n\n", ""),
        ("<|mdm_mask|>", "?"),
    ):
        text = text.replace(long, mark)
    return text.replace("<|start_header_id|>", "<").replace("<|end_header_id|>", ">")


# ---------------------------------------------------------------------------------------------------------------------
# What is learnt

ONE = "^<user>Ask.$<assistant>[Yes.$]"
FORMS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Ask.", "input": "", "output": "Yes."},
    "messages": {"messages": talk("Ask.", "Yes.")},
    "sharegpt": {"conversations": [{"from": "human", "value": "Ask."}, {"from": "gpt", "value": "Yes."}]},
    "completion": {"prompt": "Ask.", "completion": "Yes."},
    "response": {"prompt": "Ask.", "response": "Yes."},
    "conversational": {"prompt": talk("Ask."), "completion": talk("", "Yes.")[1:]},
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_the_answer_and_the_end_of_its_turn_are_learnt_in_every_form(row: dict[str, Any], tmp_path: Path) -> None:
    got = get(jsonl(tmp_path / "a.jsonl", [row])).train
    assert got.column_names == ["input_ids", "labels", "prompt_len"]
    assert [short(learnt(one)) for one in got] == [ONE]
    assert got[0]["prompt_len"] == len(Template(TOKENIZER).prompt(talk("Ask.")))


THREE = talk("a", "b", "c", "d", "e", "f")
TURNS = {
    "last": {"^<user>a$<assistant>b$<user>c$<assistant>d$<user>e$<assistant>[f$]"},
    "all": {"^<user>a$<assistant>[b$]<user>c$<assistant>[d$]<user>e$<assistant>[f$]"},
    "prefix": {
        "^<user>a$<assistant>[b$]",
        "^<user>a$<assistant>b$<user>c$<assistant>[d$]",
        "^<user>a$<assistant>b$<user>c$<assistant>d$<user>e$<assistant>[f$]",
    },
}


@pytest.mark.parametrize("train_on", TURNS)
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, STRAY])
def test_the_answers_that_are_asked_for_are_learnt(train_on: str, template: str, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(template)
    file = jsonl(tmp_path / "a.jsonl", [{"messages": THREE}] * 30)
    got = list(get(file, train_on=train_on, chat_template=str(tmp_path / "chat.jinja")).train)
    assert {short(learnt(row)) for row in got} == TURNS[train_on]
    for row in got:
        assert all(label == -100 for label in row["labels"][: row["prompt_len"]])
        assert row["labels"][row["prompt_len"]] != -100


def test_prefixes_are_drawn_from_the_seed_and_the_rows_number_alone(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"messages": THREE}] * 40)

    def lengths(spec: Any, seed: int) -> list[int]:
        data = SFTDataArguments(dataset_args=str(spec), train_on="prefix", disable_caching=True)
        got = rows(data, TOKENIZER, seed=seed, vocab_size=999, need_test=False).train
        return [len(row["input_ids"]) for row in got]

    all_of_them = lengths(file, 1)
    assert lengths(file, 1) == all_of_them
    assert lengths(f"{file}[train:10]", 1) == all_of_them[:10]
    assert lengths(file, 2) != all_of_them


def test_without_masking_the_prompt_is_learnt_too(tmp_path: Path) -> None:
    (row,) = get(jsonl(tmp_path / "a.jsonl", [FORMS["alpaca"]]), mask_prompt_loss=False).train
    assert row["labels"] == row["input_ids"]
    assert row["prompt_len"] == 0


def test_control_tokens_in_the_data_are_letters(tmp_path: Path) -> None:
    row = {"prompt": "<|mdm_mask|>?", "response": "<|eot_id|><|endoftext|>"}
    (got,) = get(jsonl(tmp_path / "a.jsonl", [row])).train
    ids = {token: TOKENIZER.convert_tokens_to_ids(token) for token in ("<|mdm_mask|>", "<|eot_id|>", "<|endoftext|>")}
    assert [got["input_ids"].count(i) for i in ids.values()] == [0, 2, 0]
    assert short(learnt(got)) == "^<user>??$<assistant>[$#$]"


def test_train_and_test_rows_are_never_the_same(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", numbered(40))
    saved(tmp_path / "made", **{key: [row[key] for row in numbered(40)] for key in ("instruction", "output")})
    for spec, sizes in (
        (f"{file}[train:20,test:10]", (20, 10)),
        (f"{tmp_path}/made[train:20,test:10]", (20, 10)),
        (f"{file}[test:10]", (30, 10)),
        (file, (39, 1)),
    ):
        got = get(spec, need_test=True)
        train, test = ({tuple(row["input_ids"]) for row in part} for part in (got.train, got.test))
        assert (len(train), len(test)) == sizes
        assert not train & test


def test_extra_columns_do_not_keep_data_sets_apart(tmp_path: Path) -> None:
    a = jsonl(tmp_path / "a.jsonl", numbered(4))
    b = jsonl(tmp_path / "b.jsonl", [{"instruction": "Say.", "input": "", "output": "x"}] * 3)
    assert len(get(f"{a} + {b}").train) == 7


# ---------------------------------------------------------------------------------------------------------------------
# Length

PROMPT = len(Template(TOKENIZER).prompt(talk("Ask.")))


def long_rows(tmp_path: Path) -> Path:
    """Rows of PROMPT + 2, PROMPT + 11 tokens, and one whose prompt is longer than both."""
    answers = [{"prompt": "Ask.", "response": text} for text in ("!", "! ? ! ? ! ")]
    return jsonl(tmp_path / "long.jsonl", [*answers, {"prompt": "? ! " * 20, "response": "!"}])


def test_right_cuts_long_rows_and_drops_those_whose_prompt_fills_the_row(tmp_path: Path) -> None:
    file = long_rows(tmp_path)
    whole = list(get(file).train)
    got = get(file, max_length=PROMPT + 3)
    assert [row["input_ids"] for row in got.train] == [row["input_ids"][: PROMPT + 3] for row in whole[:2]]
    assert [len(row["labels"]) for row in got.train] == [PROMPT + 2, PROMPT + 3]
    assert got.dropped == {"train": {"no answer": 0, f"no room for an answer in --max_length {PROMPT + 3}": 1}}
    assert any("left out of 3 rows: 1 (no room for an answer" in line for line in got.remarks)
    assert any(line == f"train: rows cut to --max_length {PROMPT + 3}: 1" for line in got.remarks)
    # a prompt of exactly max_length tokens leaves nothing to learn, one less leaves one token
    assert [row["labels"][-1] != -100 for row in get(file, max_length=PROMPT + 1).train] == [True, True]
    with pytest.raises(UserError, match=r"no row is left of 3: 3 \(no room for an answer"):
        get(file, max_length=PROMPT)


def test_filter_drops_what_is_longer(tmp_path: Path) -> None:
    got = get(long_rows(tmp_path), max_length=PROMPT + 3, truncation="filter")
    assert [len(row["input_ids"]) for row in got.train] == [PROMPT + 2]
    assert list(got.dropped["train"].values()) == [0, 2]


def test_every_row_has_something_to_learn_at_every_length(tmp_path: Path) -> None:
    file = long_rows(tmp_path)
    for length in range(PROMPT + 1, PROMPT + 20):
        for row in get(file, max_length=length).train:
            assert any(label != -100 for label in row["labels"])
            assert len(row["input_ids"]) == len(row["labels"]) <= length


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    got = get(long_rows(tmp_path)).train
    expected = [len(got), sum(len(r["input_ids"]) for r in got), sum(i != -100 for r in got for i in r["labels"])]
    assert list(labels.count(got).values()) == expected
    assert labels.count(got.select([2, 0]))["rows"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# Rows that are no conversation


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    some = [*numbered(5), {"instruction": "Draw.", "input": "", "output": "", "score": 1}]
    got = get(jsonl(tmp_path / "a.jsonl", some))
    assert len(got.train) == 5
    assert got.documents == {"train": 6}
    assert got.remarks == ["train: left out of 6 rows: 1 (no answer)"]
    with pytest.raises(UserError, match=r"row 5: .* is empty. `--bad_rows unanswered` or `drop` leaves such rows out"):
        get(tmp_path / "a.jsonl", bad_rows="error")


def test_other_bad_rows_stop_it_unless_they_are_to_be_dropped(tmp_path: Path) -> None:
    some = [{"messages": talk("a", "b")}, {"messages": talk("a", "b")[1:]}, {"messages": talk("a")}]
    file = jsonl(tmp_path / "a.jsonl", some)
    with pytest.raises(UserError, match=r"^row 1: .* `--bad_rows drop` leaves such rows out"):
        get(file)
    assert get(file, bad_rows="drop").remarks == ["train: left out of 3 rows: 2 (bad)"]


def test_no_row_left_is_an_error(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "response": ""}] * 3)
    with pytest.raises(UserError, match=r"no row is left of 3: 3 \(no answer\)"):
        get(file)


def test_errors_in_validation_rows_say_so(tmp_path: Path) -> None:
    some = [{"prompt": "a", "response": "b"}] * 3 + [{"prompt": "", "response": "b"}]
    with pytest.raises(UserError, match=r"^in the validation rows: row 0: "):
        get(jsonl(tmp_path / "a.jsonl", some).as_posix() + "[test:1,train:3]")


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data have the columns question, reply; expected"):
        get(jsonl(tmp_path / "a.jsonl", [{"question": "a", "reply": "b"}] * 3))


def test_a_template_that_cannot_learn_all_answers_says_which_row(tmp_path: Path) -> None:
    forgets = CHAT_TEMPLATE.replace("message['content'] |", "(message['content'] if loop.last else 'x') |")
    other = tokenizer.train(LINES * 3, 400)
    other.chat_template = forgets.replace("else 'x'", "else message['content'].split('/think')[-1]")
    file = jsonl(tmp_path / "a.jsonl", [{"messages": talk("a", "b")}, {"messages": talk("a", "x/think b", "c", "d")}])
    with pytest.raises(UserError, match=r"row 1: the chat template writes earlier answers otherwise .*--train_on last"):
        get(file, other, train_on="all")
    assert len(get(file, other).train) == 2


@pytest.mark.parametrize("wrong", [{"max_length": 1}, {"num_proc": 0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2 and 1 are needed"):
        get(jsonl(tmp_path / "a.jsonl", numbered(3)), **wrong)


def test_load_preprocessed_data_of_conversations_is_said(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", numbered(3))
    assert get(file, load_preprocessed_data=True).remarks == [
        f"{file} is no folder of save_to_disk (load_preprocessed_data); read as it is"
    ]
    saved(tmp_path / "made", prompt=["a"] * 3, response=["b"] * 3)
    assert get(tmp_path / "made", load_preprocessed_data=True).remarks == []


# ---------------------------------------------------------------------------------------------------------------------
# The cache


def test_a_second_time_nothing_is_tokenised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = jsonl(tmp_path / "a.jsonl", [*numbered(3), {"instruction": "a", "input": "", "output": "", "score": 1}])
    first = get(file, max_length=30)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Template, "many", never)
    again = get(file, max_length=30)
    assert list(again.train) == list(first.train)
    assert (again.remarks, again.dropped) == (first.remarks, first.dropped)
    get(file, max_length=29)  # another length needs no other tokens
    for other in ({"disable_caching": True}, {"mask_prompt_loss": False}, {"train_on": "all"}, {"bad_rows": "drop"}):
        with pytest.raises(AssertionError):
            get(file, **other)


@pytest.mark.slow
def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask import tokens

    file = jsonl(tmp_path / "a.jsonl", [{"messages": THREE}] * 30 + [{"messages": talk("a", "")}] + numbered_talks(30))
    alone = get(file, train_on="prefix", disable_caching=True, num_proc=1)
    monkeypatch.setattr(labels, "WORTH_A_PROCESS", 20)
    monkeypatch.setattr(tokens, "cores", lambda: 3)
    shared = get(file, train_on="prefix", disable_caching=True, num_proc=3)
    assert list(shared.train) == list(alone.train)
    assert shared.remarks == alone.remarks
    bad = jsonl(tmp_path / "b.jsonl", [*numbered_talks(60), {"messages": talk("a", "b")[1:]}])
    with pytest.raises(UserError, match=r"^row 60: "):
        get(bad, disable_caching=True)


def numbered_talks(n: int) -> list[dict[str, Any]]:
    return [{"messages": talk(f"q{i}", f"a{i}", "r", "b")} for i in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def test_tokens_as_the_tutorial_makes_them_are_taken(tmp_path: Path) -> None:
    ids, marks = [[1, 2, 3, 4], [5, 6, 7]], [[-100, -100, 3, 4], [-100, 6, 7]]
    for columns in (
        {"labels": marks, "prompt_len": [2, 1], "instruction": ["a", "b"]},
        {"labels": marks},
        {"prompt_len": [2, 1]},
    ):
        folder = saved(tmp_path / "-".join(columns), input_ids=ids, **columns)
        got = get(folder, load_preprocessed_data=True)
        assert got.tokenised_before
        expected = [{"input_ids": i, "labels": m, "prompt_len": n} for i, m, n in zip(ids, marks, [2, 1], strict=True)]
        assert list(got.train) == expected
        assert "nothing tells which tokenizer made them" in got.remarks[0]


def test_tokens_are_cut_counted_and_unmasked_too(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "t", input_ids=[[1, 2, 3], [4, 5, 6], [7, 8]], labels=[[-100, 2, 3], [-100, -100, 6], [-100, -100]]
    )
    got = get(folder, max_length=2)
    assert [row["input_ids"] for row in got.train] == [[1, 2]]
    assert got.dropped == {"train": {"nothing to learn": 1, "no room for an answer in --max_length 2": 1}}
    assert [row["labels"] for row in get(folder, mask_prompt_loss=False).train] == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_an_opened_answer_that_never_comes_is_never_learnt(tmp_path: Path) -> None:
    """The tutorial's notebook leaves LLaDA's template as it is, and every row ends with the header of an answer."""
    official = tokenizer.train(LINES * 3, 400)
    official.chat_template = STRAY
    ids = official.apply_chat_template(THREE[:2], tokenize=True)["input_ids"]
    before = len(official.apply_chat_template(THREE[:1], tokenize=True)["input_ids"])
    made = [-100] * before + ids[before:]
    folder = saved(tmp_path / "t", input_ids=[ids] * 3, labels=[made] * 3, prompt_len=[before] * 3)
    for one in (official, TOKENIZER):
        got = get(folder, one)
        assert {short(learnt(row)) for row in got.train} == {"^<user>a$<assistant>[b$]"}
        assert "rows end with an opened answer that never comes" in " ".join(got.remarks)


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({}, {}, "tokens without labels or prompt_len"),
        ({"labels": [[-100, 3, 3]]}, {}, "row 0: the labels are not those of its tokens"),
        ({"labels": [[-100, 2]]}, {}, "row 0: the labels are not those of its tokens"),
        ({"prompt_len": [None]}, {}, "row 0: prompt_len is None"),
        ({"prompt_len": [1]}, {"load_preprocessed_data": False}, "--load_preprocessed_data false"),
        ({"prompt_len": [1]}, {"train_on": "all"}, "--train_on all: .* holds tokens"),
        ({"prompt_len": [3]}, {}, "no row is left of 1: 1 .nothing to learn."),
    ],
)
def test_tokens_that_cannot_be_learnt_from_are_refused(
    columns: dict[str, Any], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        get(saved(tmp_path / "t", input_ids=[[1, 2, 3]], **columns), **settings)


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="with another tokenizer"):
        get(saved(tmp_path / "t", input_ids=[[1, len(TOKENIZER)]], prompt_len=[1]))


# ---------------------------------------------------------------------------------------------------------------------
# Tokens that `unmask prepare sft` wrote


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder; its model lies beside it."""
    from unmask import report

    monkeypatch.setattr(report, "quiet", lambda: None)
    TOKENIZER.save_pretrained(tmp_path / "model")
    file = jsonl(tmp_path / "a.jsonl", numbered(60))
    words = ["--model_name_or_path", tmp_path / "model", "--dataset_args", file, "--output_dir", tmp_path / "made"]
    assert prepare.main(["sft", *map(str, words), "--shuffle_rows", "false"]) == 0
    return tmp_path / "made"


def test_prepared_rows_are_those_that_training_would_make(made: Path, tmp_path: Path) -> None:
    direct, there = get(f"{tmp_path}/a.jsonl[train:40,test:20]"), get(f"{made}[train:40,test:20]")
    for name in ("train", "test"):
        assert list(getattr(there, name)) == list(getattr(direct, name))
    assert there.tokenised_before
    assert there.remarks == []


def test_prepared_with_another_tokenizer_is_refused(made: Path) -> None:
    other = bpe(300)
    other.name_or_path = "theirs"
    other.chat_template = CHAT_TEMPLATE
    for spec in (made, made / "train"):
        with pytest.raises(UserError, match=r"was made with the tokenizer of .*model, .* unmask prepare sft"):
            get(spec, other)


def test_prepared_with_another_template_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(CHAT_TEMPLATE + " ")
    with pytest.raises(UserError, match=r"made with another chat template .*; leave out --chat_template, or prepare"):
        get(made, chat_template=str(tmp_path / "chat.jinja"))
    note = json.loads((made / "prepared.json").read_text())
    note["settings"]["chat_template"], note["template_fingerprint"] = "my.jinja", "0"
    (made / "prepared.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"type --chat_template my\.jinja, or prepare the data again"):
        get(made)


def test_settings_that_are_settled_in_prepared_data_are_said_or_refused(made: Path) -> None:
    with pytest.raises(UserError, match=r"--train_on prefix: .* settled in them \(last\)"):
        get(made, train_on="prefix")
    note = json.loads((made / "prepared.json").read_text())
    note["settings"] |= {"train_on": "all", "mask_prompt_loss": False, "max_length": 512}
    (made / "prepared.json").write_text(json.dumps(note))
    assert get(made, train_on="all").tokenised_before
    assert [line.removeprefix(f"{made} was made with ") for line in get(made).remarks] == [
        "--max_length 512, which stays",
        "--train_on all, which stays",
        "--mask_prompt_loss false, which stays",
    ]


def test_data_prepared_for_another_task_are_refused(made: Path) -> None:
    note = json.loads((made / "prepared.json").read_text())
    (made / "prepared.json").write_text(json.dumps({**note, "task": "pretrain"}))
    with pytest.raises(UserError, match="was prepared for `unmask pretrain`; for this: unmask prepare sft"):
        get(made)
