"""The quickstart's tasks: answers that are right, inputs that training has not seen, an honest baseline."""

from __future__ import annotations

import collections
import itertools

import pytest

from unmask import tasks
from unmask.values import UserError

WORDS = ["".join(letters) for letters in itertools.islice(itertools.product("abcdefg", repeat=4), 0, None, 3)]


def test_answers_are_right() -> None:
    asked = {task: answer for task, (_, answer) in tasks.TASKS.items()}
    assert asked["capitals"]("tree") == "TREE"
    assert asked["backwards"]("tree") == "eert"
    assert asked["last letter"]("tree") == "e"
    assert asked["with dashes"]("tree") == "t-r-e-e"
    assert asked["next number"]("1999") == "2000"
    train, test = tasks.make(0, WORDS, 300, 200)
    for row in train + test:
        given = row["instruction"].rsplit(" ", 1)[1]
        assert row["output"] == asked[row["task"]](given)


def test_no_input_of_a_test_row_stands_in_training_and_every_task_has_as_many() -> None:
    train, test = tasks.make(1, WORDS, 1000, 200)
    for task in tasks.TASKS:
        seen, held = ({row["instruction"] for row in rows if row["task"] == task} for rows in (train, test))
        assert len(held) == 200
        assert not seen & held
    given = [{row["instruction"].rsplit(" ", 1)[1] for row in rows} for rows in (train, test)]
    assert not given[0] & given[1]  # nor in another task
    assert collections.Counter(row["task"] for row in train) == dict.fromkeys(tasks.TASKS, 1000)


def test_the_same_seed_gives_the_same_rows() -> None:
    assert tasks.make(3, WORDS, 50, 20) == tasks.make(3, WORDS, 50, 20) != tasks.make(4, WORDS, 50, 20)


def test_too_few_words() -> None:
    with pytest.raises(UserError, match="too few"):
        tasks.make(0, WORDS[:10], 5, 10)


def test_the_baseline_is_what_the_most_frequent_answer_scores() -> None:
    train = [{"task": "t", "instruction": "", "output": o} for o in "aab"]
    test = [{"task": "t", "instruction": "", "output": o} for o in "abcaz"]
    assert tasks.most_frequent(train, test) == {"t": 0.4}
    assert tasks.right(test, ["a", " b\n", "c", "x", "z"]) == {"t": 0.8}


def test_words_are_counted_whole() -> None:
    found = tasks.words_of(["tree Tree trees a_tree, tree(house) 1tree leaf leaf", "leaf tree4"])
    assert found == ["leaf", "tree"]


def test_docstrings_of_public_functions() -> None:
    source = (
        'def f():\n    """Return the first of two."""\ndef _g():\n    """Return the second one."""\ndef h(): pass\n'
    )
    assert tasks.docstrings([source, "no python : at all"]) == [
        {"instruction": "What does f do?", "input": "", "output": "Return the first of two.", "task": "docstrings"}
    ]
