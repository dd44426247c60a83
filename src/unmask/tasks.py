"""The quickstart's instructions: five small tasks that can be checked, and questions on docstrings, which cannot.

In:  texts, for the words in them; a seed.
Out: Alpaca rows {instruction, input, output, task}; how many answers are right, beside the best one answer could do.

Words have four letters and numbers four digits, and they stand at the question's end. So each letter of the answer lies
as far from the letter it comes of in every row, which a network of 200,000 parameters learns well within minutes
(docs/log.md).
"""

from __future__ import annotations

import ast
import collections
import random
import re
from collections.abc import Callable, Iterable, Sequence

from unmask.values import UserError

Row = dict[str, str]

LETTERS = 4
TASKS: dict[str, tuple[str, Callable[[str], str]]] = {
    "capitals": ("In capitals: {}", str.upper),
    "backwards": ("Backwards: {}", lambda word: word[::-1]),
    "last letter": ("Last letter: {}", lambda word: word[-1]),
    "with dashes": ("With dashes: {}", "-".join),
    "next number": ("Next number: {}", lambda number: str(int(number) + 1)),
}
"""Task → how it is asked, and the answer."""
ON_NUMBERS = {"next number"}


def words_of(texts: Iterable[str], most: int = 2000) -> list[str]:
    """The words of four small letters in some texts, the most frequent first."""
    found: collections.Counter[str] = collections.Counter()
    for text in texts:
        found.update(re.findall(rf"(?<![A-Za-z0-9])[a-z]{{{LETTERS}}}(?![A-Za-z0-9])", text))
    return sorted(found, key=lambda word: (-found[word], word))[:most]


def make(seed: int, words: Sequence[str], train: int, test: int) -> tuple[list[Row], list[Row]]:
    """(`train` rows of each task, shuffled; `test` rows of each). No word or number of one stands in the other.

    Where there are fewer words than rows to train on, words come again.
    """
    draw = random.Random(seed)
    inputs = {False: list(words), True: [str(i) for i in range(10 ** (LETTERS - 1), 10**LETTERS - 1)]}
    for some in inputs.values():
        draw.shuffle(some)
    if min(map(len, inputs.values())) <= test:
        raise UserError(f"there are {len(words)} words of {LETTERS} letters, too few to hold {test} out.")
    rows: tuple[list[Row], list[Row]] = ([], [])
    for task, (asked, answer) in TASKS.items():
        some = inputs[task in ON_NUMBERS]
        held, rest = some[:test], some[test:]
        for into, given in ((rows[0], (rest * (train // len(rest) + 1))[:train]), (rows[1], held)):
            into += [
                {"instruction": asked.format(one), "input": "", "output": answer(one), "task": task} for one in given
            ]
    draw.shuffle(rows[0])
    return rows


def docstrings(texts: Iterable[str], longest: int = 60) -> list[Row]:
    """Questions on functions, answered by the first line of their docstrings."""
    found: dict[str, Row] = {}
    for text in texts:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue  # a text of help, not a source
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and len(node.name) <= 24:
                line = (ast.get_docstring(node) or "").split("\n")[0].strip()
                if 10 <= len(line) <= longest and line.isascii():
                    asked = f"What does {node.name} do?"
                    found[asked] = {"instruction": asked, "input": "", "output": line, "task": "docstrings"}
    return [found[asked] for asked in sorted(found)]


def right(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    """Task → the share of its answers that are right, spaces around them aside."""
    marks: dict[str, list[bool]] = {}
    for row, answer in zip(rows, answers, strict=True):
        marks.setdefault(row["task"], []).append(answer.strip() == row["output"])
    return {task: sum(some) / len(some) for task, some in marks.items()}


def most_frequent(train: Sequence[Row], test: Sequence[Row]) -> dict[str, float]:
    """What `right` gives who answers every question of a task with the task's most frequent answer in training."""
    seen: dict[str, collections.Counter[str]] = {}
    for row in train:
        seen.setdefault(row["task"], collections.Counter())[row["output"]] += 1
    best = {task: max(sorted(some), key=some.__getitem__) for task, some in seen.items()}
    return right(test, [best[row["task"]] for row in test])
