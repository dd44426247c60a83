"""The quickstart tells the whole story, from text to an answer; its commands are real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from unmask import models, quickstart, tasks
from unmask.__main__ import main


def test_the_library_gives_words_and_docstrings_enough() -> None:
    texts = [text for _, text in quickstart.library()]
    assert len(tasks.words_of(texts)) > 3 * quickstart.HELD
    assert len(tasks.docstrings(texts)) > 500


def test_the_instructions_are_written_apart(tmp_path: Path) -> None:
    train, test = quickstart.write_instructions(tmp_path, 1)
    written = {
        path.relative_to(tmp_path).as_posix(): [json.loads(line) for line in path.read_text().splitlines()]
        for path in tmp_path.rglob("*.jsonl")
    }
    assert written["tasks/train.jsonl"] == train
    assert written["tasks/test.jsonl"] == test
    assert len(test) == quickstart.HELD * len(tasks.TASKS)
    held = {row["instruction"] for row in test}
    assert not held & {row["instruction"] for name in ("tasks", "docstrings") for row in written[f"{name}/train.jsonl"]}


@pytest.mark.parametrize("words", [["--steps", "0"], ["--tune_steps", "0"], ["--adapter_steps", "-1"]])
def test_bad_steps(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", *words]) == 2
    assert f"{words[0]} is {words[1]}; it must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_story_from_text_to_an_answer(tmp_path: Path, capsys: Any) -> None:
    """In few steps: every command runs, and what is printed as a command is one that can be typed."""
    few = ["--steps", "4", "--tune_steps", "4", "--adapter_steps", "4"]
    assert main(["quickstart", "--output_dir", str(tmp_path), *few]) == 0
    told = capsys.readouterr().out
    assert [int(n) for n in re.findall(r"(?m)^\[(\d+)/10\]", told)] == list(range(1, 11))
    assert "points above the most frequent answer" in told
    assert models.load(str(tmp_path / "merged")).adapter is None
    typed = re.findall(r"(?m)^      unmask (\w+)", told)
    assert typed[:8] == ["tokenizer", "init", "pretrain", "sample", "sft", "sft", "merge", "chat"]
