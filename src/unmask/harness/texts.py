"""`unmask eval --data FILE --metric perplexity`: texts of any length as a task of lm-eval.

In:  a .txt file, which is one text, or jsonl with a column `text`.
Out: the dict that `lm_eval.tasks.TaskManager().load([…])` takes; scored by `loglikelihood_rolling`, in windows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.config import UserError

METRICS = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity"}
METRICS["bits_per_byte"] = "bits_per_byte"


def task(path: str, *, name: str | None = None) -> dict[str, Any]:
    """The file as a task; its name without the ending is the task's if no other is given.

    Raises:
        UserError: no such file, no text in it, a row without `text`.
    """
    docs = [{"text": text} for text in read(path)]

    def dataset(**metadata: Any) -> Any:  # a function of its own: lm-eval writes its source into the results
        import datasets

        return datasets.DatasetDict({"test": datasets.Dataset.from_list(docs)})

    metrics = [{"metric": m, "aggregation": a, "higher_is_better": False} for m, a in METRICS.items()]
    return {
        "task": name or Path(path).stem,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": metrics,
        "metadata": {"version": 1},
    }


def read(path: str) -> list[str]:
    """The texts of a file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file {path!r}; --data takes a .txt file, or jsonl with `text`.")
    try:
        whole = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    found = [whole]
    if file.suffix in (".jsonl", ".json"):
        found = []
        for number, line in enumerate(whole.splitlines(), 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
                assert isinstance(text, str)
            except (ValueError, KeyError, TypeError, AssertionError):
                raise UserError(f"{path}, line {number}: expected a JSON object with `text`.") from None
            found.append(text)
    found = [text for text in found if text.strip()]
    if not found:
        raise UserError(f"{path} holds no text.")
    return found
