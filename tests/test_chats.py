"""Rows in any of the known forms become the same conversation; what is none is refused in one line with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.chats import NoAnswer, format_of, messages
from unmask.config import UserError


def read(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in messages(row, format_of(row), 7)]


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *said]


ONE = [("user", "q"), ("assistant", "a")]
FORMS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "alpaca without input": {"instruction": "q", "output": "a", "score": 5},
    "alpaca with null": {"instruction": "q", "input": None, "output": "a", "system": None, "history": None},
    "messages": {"messages": talk("q", "a"), "id": 3, "prompt": "ignored"},
    "parts": {
        "messages": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in talk("q", "a")]
    },
    "dict of lists": {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "sharegpt, own names": {"conversations": talk("q", "a")},
    "completion": {"prompt": "q", "completion": "a"},
    "response": {"prompt": "q", "response": "a", "system": ""},
    "conversational": {"prompt": talk("q"), "completion": [{"role": "assistant", "content": "a"}]},
    "half conversational": {"prompt": talk("q"), "completion": "a"},
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_every_form_says_the_same(row: dict[str, Any]) -> None:
    assert read(row) == ONE


@pytest.mark.parametrize("name", ["alpaca", "messages", "sharegpt", "completion", "conversational"])
def test_a_system_column_is_the_system_message(name: str) -> None:
    assert read({**FORMS[name], "system": "Be short."}) == [("system", "Be short."), *ONE]


def test_alpaca_joins_instruction_and_input_by_a_blank_line() -> None:
    assert read({"instruction": " Add. ", "input": "1\n2 ", "output": " 3\n"}) == [
        ("user", "Add. \n\n1\n2"),
        ("assistant", " 3\n"),
    ]


def test_alpacas_history_comes_first() -> None:
    row = {"instruction": "q2", "output": "a2", "history": [["q0", "a0"], ["q1", "a1"]], "system": "s"}
    assert [text for _, text in read(row)] == ["s", "q0", "a0", "q1", "a1", "q2", "a2"]


texts = st.text(min_size=1).filter(str.strip)


@given(st.lists(texts, min_size=2, max_size=8).filter(lambda some: len(some) % 2 == 0), st.none() | texts)
def test_messages_come_through_as_they_are(contents: list[str], system: str | None) -> None:
    said = talk(*contents, system=system)
    other = {"user": "human", "assistant": "gpt", "system": "system"}
    renamed = [{"from": other[m["role"]], "value": m["content"]} for m in said]
    assert messages({"messages": said}, "messages", 0) == said
    assert messages({"conversations": renamed}, "sharegpt", 0) == said


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=6))
def test_only_user_and_assistant_in_turns_are_a_conversation(roles: list[str]) -> None:
    body = roles[1:] if roles[:1] == ["system"] else roles
    good = bool(body) and body == ["user", "assistant"] * (len(body) // 2)
    row = {"messages": [{"role": role, "content": "x"} for role in roles]}
    if good:
        assert [role for role, _ in read(row)] == roles
    else:
        with pytest.raises(UserError, match=r"^row 7: [^\n]+\.$"):
            read(row)


NO_ANSWER: dict[str, dict[str, Any]] = {
    "empty": {"instruction": "q", "output": ""},
    "blank": {"instruction": "q", "output": " \n"},
    "null": {"instruction": "q", "output": None},
    "nobody answers": {"messages": talk("q", "a", "q2")},
    "the answer is null": {"messages": [*talk("q"), {"role": "assistant", "content": None}]},
    "no messages": {"messages": []},
    "null messages": {"messages": None},
}


@pytest.mark.parametrize("row", NO_ANSWER.values(), ids=NO_ANSWER)
def test_a_row_without_an_answer_is_told_from_other_bad_rows(row: dict[str, Any]) -> None:
    with pytest.raises(NoAnswer, match=r"^row 7[:,] "):
        read(row)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "number": ({"instruction": "q", "output": 3}, "output: 3 is not text"),
    "prompt null": ({"prompt": None, "response": "a"}, "prompt: null is not text"),
    "empty prompt": ({"prompt": " ", "response": "a"}, "message 1, of the user, is empty"),
    "empty middle": ({"messages": talk("q", "", "q", "a")}, "message 2, of the assistant, is empty"),
    "role": ({"messages": [{"role": "asistant", "content": "a"}]}, "Did you mean 'assistant'"),
    "tool": ({"messages": [*talk("q"), {"role": "tool", "content": "a"}]}, "the role 'tool' is none of"),
    "assistant first": ({"messages": talk("q", "a")[1:]}, "of the assistant, at the beginning; expected the user"),
    "twice": ({"messages": [*talk("q"), *talk("q")]}, "message 2 is of the user, after that of the user"),
    "late system": ({"messages": [*talk("q"), *talk(system="s")]}, "a system message can only be the first"),
    "two systems": ({"messages": talk("q", "a", system="s"), "system": "t"}, "keep one"),
    "empty system": (
        {"messages": [{"role": "system", "content": " "}, *talk("q", "a")]},
        "the system message is empty",
    ),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}, "'image'; only text"),
    "keys": ({"messages": [{"speaker": "user", "text": "x"}]}, "the keys speaker, text"),
    "no dict": ({"messages": ["hello"]}, "a message is 'hello'"),
    "no list": ({"conversations": "hello"}, "'conversations' is 'hello'; expected a list"),
    "history": ({"instruction": "q", "output": "a", "history": [["q"]]}, "expected a list of"),
    "history text": ({"instruction": "q", "output": "a", "history": "x"}, "expected a list of"),
}


@pytest.mark.parametrize(("row", "said"), BAD.values(), ids=BAD)
def test_a_bad_row_is_one_line_with_its_number(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        read(row)
    line = str(error.value)
    assert line.startswith("row 7")
    assert said in line
    assert "\n" not in line


def test_unknown_columns_are_named_with_the_sets_that_are_known() -> None:
    with pytest.raises(UserError) as error:
        format_of(["question", "anwser"])
    assert "question, anwser" in str(error.value)
    assert "prompt, completion" in str(error.value)
    with pytest.raises(UserError, match=r"Rename 'mesages'. Did you mean 'messages'\?"):
        format_of(["mesages"])


def test_real_files_are_read(shared: Path) -> None:
    with (shared / "data/llm_foundry_eval/dolly_hhrlhf_train_small.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows += json.loads((shared / "data/llama_factory_demo/alpaca_zh_demo.json").read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        found = messages(row, format_of(row), number)
        assert [m["role"] for m in found] == ["user", "assistant"]
