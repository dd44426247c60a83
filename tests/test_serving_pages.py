"""What the pages ask of a server is asked of one: every curl and every Python block, word for word but for the port."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import test_readme as readme
import transformers
from runs import make_model
from test_readme import README, ROOT, blocks, commands

from unmask import tokenizer as own

pytestmark = pytest.mark.slow  # a server of its own starts; what can be seen without one is in test_readme.py

PAGE = ROOT / "docs" / "en" / "serving.md"
ASKED = [readme.check_asked(words[1:]) for words in commands(PAGE) if words[0] == "curl"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a small model with random weights, in a process of its own; its address."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    words = own.train(["The cat sat on the mat. What is a lighthouse for? Backwards: tree " * 30], 300)
    folder = make_model(tmp_path_factory.mktemp("served") / "my-chat", words, max_sequence_length=256)
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    typed = ["--model", str(folder), "--port", "0", "--page", "false", "--measure_presets", "false", "--device", "cpu"]
    clean = {name: value for name, value in os.environ.items() if name != "UNMASK_API_KEY"}
    with subprocess.Popen(
        [sys.executable, "-m", "unmask", "serve", *typed],
        stderr=subprocess.PIPE,
        text=True,
        env=clean | {"OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            assert process.stderr
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"served at (http://[\d.:]+)/v1", line):
                    break
            else:
                pytest.fail(said)
            yield found[1]
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked[0]} {asked[1]} {json.dumps(asked[2])}"[:60])
def test_what_curl_asks_is_answered(asked: tuple[str, str, Any], server: str) -> None:
    method, path, body = asked
    answer = httpx.request(method, server + path, json=body, timeout=60)
    if method == "DELETE":  # of a request that is not there
        assert answer.status_code == 404
        return
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    assert len(choices) == body.get("n", 1)
    assert all(choice["reason"] in ("stop", "length") for choice in choices)


def run(code: list[str], names: dict[str, Any]) -> list[str]:
    """What each block prints, run one after the other."""
    printed = []
    for block in code:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, "page", "exec"), names)
        printed.append(out.getvalue())
    return printed


def test_the_guides_client_gets_answers_streams_and_the_canvas(server: str) -> None:
    pytest.importorskip("openai")
    code = [block.replace("http://127.0.0.1:8000", server) for block in blocks(PAGE, "python")]
    asked, watched = run(code, {})
    assert "forward_passes=" in asked
    whole, _, streamed = asked.partition(" CompletionUsage")
    assert whole.strip() in streamed  # the same question, the same answer
    steps = [line.split()[0] for line in watched.splitlines()]
    assert steps == [str(i + 1) for i in range(len(steps))]
    assert steps


def test_the_readmes_client_gets_an_answer(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    (block,) = [block for block in blocks(README, "python") if "OpenAI" in block]
    named = block.replace("http://127.0.0.1:8000", server).replace('model="merged"', 'model="my-chat"')
    (printed,) = run([named], {})
    assert "ChatCompletion(" in printed


def test_a_message_that_was_answered_goes_back_as_it_came(server: str) -> None:
    """As OpenAI's client and LangChain's have it, with all its empty fields."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    said: list[Any] = [{"role": "user", "content": "The cat"}]
    for _ in range(2):
        answer = client.chat.completions.create(model="my-chat", messages=said, max_tokens=8)
        said += [answer.choices[0].message, {"role": "user", "content": "and then?"}]
    said[1] = said[1].model_dump()
    assert client.chat.completions.create(model="my-chat", messages=said, max_tokens=8).choices


def test_every_counter_that_the_page_names_is_told(server: str) -> None:
    told = httpx.get(f"{server}/metrics").text
    named = set(re.findall(r"`(unmask_\w+)`", Path(PAGE).read_text(encoding="utf-8")))
    assert len(named) > 8
    assert all(f"\n# TYPE {name.removesuffix('_total')}" in told for name in named)
