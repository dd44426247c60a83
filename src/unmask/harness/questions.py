"""`unmask eval --data qa.jsonl --metric exact|contains|choice`: a private file of questions as a task of lm-eval.

In:  jsonl, or one JSON list, of rows.
Out: the dict that `lm_eval.tasks.TaskManager().load([…])` takes.

    question  prompt, question, query; instruction (and input); messages. `system` is the system message.
    answer    answer, output, gold or target: a text, or a list of texts any of which counts
    choice    besides: choices (or options), a list of texts, or the columns A, B, C, …; the answer is the place of the
              right one counted from 0, its letter, or its text

    metric    score
    exact     the answer is the wanted text, spaces around both aside
    contains  the wanted text stands somewhere in the answer
    choice    acc: the right one has the highest log-likelihood; acc_norm: the highest per character (lm-eval 0.4.13)

A question and its choices go to the model as they are written, a space between them in `choice`.
"""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unmask.config import UserError, nearest

METRICS = ("exact", "contains", "choice")
QUESTION = ("prompt", "question", "query")
ANSWER = ("answer", "output", "gold", "target")
CHOICES = ("choices", "options")


def task(path: str, metric: str, *, name: str | None = None, max_new_tokens: int | None = None) -> dict[str, Any]:
    """The file as a task.

    Args:
        metric: one of METRICS. name: what the results call it; the file's name without its ending if left out.
        max_new_tokens: the answer's length, for exact and contains; None leaves it to the model's settings.

    Returns:
        a config of lm-eval with one split, `test`, whose rows are also the examples of a few-shot prompt; a question
        is never among its own examples.

    Raises:
        UserError: no such file or metric, a row without a question or an answer, a right choice that is none of the
            choices, rows of unequal kinds, no row.
    """
    if metric not in METRICS:
        raise UserError(f"--metric is {metric!r}; expected one of {', '.join(METRICS)}.{nearest(metric, METRICS)}")
    if metric == "choice" and max_new_tokens is not None:
        raise UserError("--max_new_tokens is the length of an answer, and --metric choice lets the model write none.")
    docs = read(path, metric)

    # Functions of their own, not partial ones: lm-eval writes their source into the results, and would write the docs.
    def dataset(**metadata: Any) -> Any:
        import datasets

        return datasets.DatasetDict({"test": datasets.Dataset.from_list(docs)})

    def verdict(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
        return {metric: float(right(metric, results[0], doc["answers"]))}

    common = {
        "task": name or Path(path).stem,
        "class": _task_class(),
        "custom_dataset": dataset,
        "test_split": "test",
        "fewshot_split": "test",  # else lm-eval (0.4.13) draws examples from it too, without leaving the question out
        "doc_to_text": "question",
        "metadata": {"version": 1},
    }
    if metric == "choice":
        names = ["acc", "acc_norm"]
        rest: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    else:
        names = [metric]
        length = {} if max_new_tokens is None else {"max_gen_toks": max_new_tokens}
        trim = [{"function": "take_first"}, {"function": "custom", "filter_fn": _trimmed}]
        rest = {
            "output_type": "generate_until",
            "doc_to_target": "answers",
            "generation_kwargs": {"until": [], "do_sample": False, **length},
            "filter_list": [{"name": "none", "filter": trim}],
            "process_results": verdict,
        }
    metrics = [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in names]
    return {**common, **rest, "metric_list": metrics}


def right(metric: str, said: str, wanted: Sequence[str]) -> bool:
    """Whether an answer counts: `unmask bench`'s --match, for one wanted text or any of several."""
    texts = [text.strip() for text in wanted]
    return said.strip() in texts if metric == "exact" else any(text in said for text in texts)


def _trimmed(answers: Any, docs: Any) -> list[str]:
    return [answer.strip() for answer in answers]


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def read(path: str, metric: str) -> list[dict[str, Any]]:
    """The rows, checked.

    Returns:
        {"row": number in the file, "messages": what is asked, "question": its text}, and "answers": [text, …] or, for
        choice, "choices": [text, …] and "gold": place from 0.

    Raises:
        UserError: as `task` says.
    """
    found: list[dict[str, Any]] = []
    for number, row in _rows(Path(path).expanduser()):
        try:
            doc = _question(row, number)
            doc |= _choice(row, number) if metric == "choice" else {"answers": _answers(row, number)}
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        found.append(doc)
    if not found:
        raise UserError(f"{path} holds no question.")
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row): the line in jsonl, the place from 1 in a list."""
    if not path.is_file():
        raise UserError(f"no file {str(path)!r}; --data takes jsonl or a JSON list of questions.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    rows: list[tuple[int, Any]] = []
    if text.lstrip().startswith("["):
        try:
            rows = list(enumerate(json.loads(text), 1))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    else:
        for number, line in enumerate(text.split("\n"), 1):
            try:
                rows += [(number, json.loads(line))] if line.strip() else []
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, row {number:,}: not JSON ({error.msg}).") from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number:,}: {_shown(row)} is no JSON object.")
        yield number, row


def _question(row: dict[str, Any], number: int) -> dict[str, Any]:
    """What is asked, read as `unmask bench` reads it, under more names."""
    from unmask import bench

    forms = ("messages", "instruction", *QUESTION)
    there = [name for name in forms if row.get(name) is not None]
    if not there:
        raise UserError(
            f"row {number:,} has the columns {', '.join(row) or '(none)'}; expected a question: {', '.join(forms)}."
        )
    if len(there) > 1:
        raise UserError(f"row {number:,} has a question in {' and in '.join(there)}; keep one.")
    asked: dict[str, Any] = {
        key: row[key] for key in ("messages", "instruction", "input", "history", "system") if key in row
    }
    if there[0] in QUESTION:
        asked = {"prompt": row[there[0]], "system": row.get("system")}
    messages = [dict(message) for message in bench.task_of(asked, number).messages]
    return {"row": number, "messages": messages, "question": messages[-1]["content"]}


def _one(row: dict[str, Any], number: int, names: Sequence[str], what: str) -> Any:
    there = [name for name in names if row.get(name) is not None]
    if len(there) != 1:
        said = f"{what} in {' and in '.join(there)}; keep one" if there else f"no {what}; expected {', '.join(names)}"
        raise UserError(f"row {number:,} has {said}.")
    return row[there[0]]


def _answers(row: dict[str, Any], number: int) -> list[str]:
    found = _one(row, number, ANSWER, "answer")
    texts = found if isinstance(found, list) else [found]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        hint = " A row with choices is for --metric choice." if any(name in row for name in CHOICES) else ""
        raise UserError(f"row {number:,}: the answer is {_shown(found)}; expected a text, or a list of texts.{hint}")
    return texts


def _choice(row: dict[str, Any], number: int) -> dict[str, Any]:
    letters = [letter for letter in string.ascii_uppercase if letter in row]
    if any(row.get(name) is not None for name in CHOICES):
        found = _one(row, number, CHOICES, "choices")
        texts = list(found.values()) if isinstance(found, dict) and _lettered(list(found)) else found
    elif letters and _lettered(letters):
        texts = [row[letter] for letter in letters]
    else:
        raise UserError(f"row {number:,} has no choices; expected a list of texts, choices, or the columns A, B, C, ….")
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"row {number:,}: the choices are {_shown(texts)}; expected texts that are not empty.")
    if len(texts) < 2:
        raise UserError(f"row {number:,}: the choices are {_shown(texts)}; expected at least two.")
    return {"choices": texts, "gold": _gold(_one(row, number, ANSWER, "answer"), texts, number)}


def _lettered(names: list[str]) -> bool:
    return len(names) > 1 and names == list(string.ascii_uppercase[: len(names)])


def _gold(said: Any, choices: list[str], number: int) -> int:
    """The place of the right choice, from its place, letter or text."""
    places: set[int] = set()
    if isinstance(said, int) and not isinstance(said, bool):
        places = {said} & set(range(len(choices)))
    elif isinstance(said, str):
        places = {i for i, text in enumerate(choices) if text.strip() == said.strip()}
        if len(said.strip()) == 1 and said.strip() in string.ascii_uppercase[: len(choices)]:
            places.add(string.ascii_uppercase.index(said.strip()))
    if len(places) > 1:
        raise UserError(
            f"row {number:,}: the answer {_shown(said)} names several of the choices; give its place from 0."
        )
    if not places:
        last = len(choices) - 1
        letters = f"A to {string.ascii_uppercase[last]}" if last < 26 else "a letter"
        raise UserError(
            f"row {number:,}: the answer is {_shown(said)}; expected a place from 0 to {last}, {letters}, or the text "
            "of a choice."
        )
    return places.pop()


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


# ---------------------------------------------------------------------------------------------------------------------
# Conversations


@functools.cache
def _task_class() -> Any:
    from lm_eval.api.task import ConfigurableTask

    class Questions(ConfigurableTask):
        """lm-eval (0.4.13) asks with one message of the user; here a question may be a whole conversation."""

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config={key: value for key, value in config.items() if key != "class"})
            self.long = {doc["row"]: len(doc["messages"]) for doc in self.dataset["test"] if len(doc["messages"]) > 1}

        def fewshot_context(self, doc: Any, num_fewshot: int = 0, *rest: Any, **how: Any) -> Any:
            for row, count in self.long.items():
                if num_fewshot:
                    raise UserError(
                        f"row {row:,} has {count} messages, and cannot be an example; leave --num_fewshot out."
                    )
                if not how.get("apply_chat_template") or not how.get("chat_template"):
                    raise UserError(
                        f"row {row:,} has {count} messages, and without a chat template only one can be continued; "
                        "give --apply_chat_template."
                    )
            if doc["row"] not in self.long:
                return super().fewshot_context(doc, num_fewshot, *rest, **how)
            messages = [dict(message) for message in doc["messages"]]
            if system := how.get("system_instruction"):
                if messages[0]["role"] == "system":
                    raise UserError(f"row {doc['row']:,} has a system message; leave --system_instruction out.")
                messages.insert(0, {"role": "system", "content": system})
            return how["chat_template"](messages)

    return Questions
