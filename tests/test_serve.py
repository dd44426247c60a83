"""`unmask serve` as a process: what it says, who it listens to, and how it ends."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
import torch
import transformers
from serving_made import loaded, maker, run

from unmask import adapters
from unmask.__main__ import main
from unmask.serve import hosts_of
from unmask.serving import replies, wire

HI = [{"role": "user", "content": "hi"}]


def save(folder, tokenizer, causal):
    some = loaded(tokenizer, causal)
    some.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    return save(tmp_path_factory.mktemp("served") / "tiny", byte_tokenizer, False)


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory, byte_tokenizer):
    return save(tmp_path_factory.mktemp("served") / "left", byte_tokenizer, True)


@contextlib.contextmanager
def served(folder, *words, **environment):
    """A server's process, what it said until it was ready, and a client."""
    command = [
        sys.executable,
        "-m",
        "unmask",
        "serve",
        "--model",
        str(folder),
        "--port",
        "0",
        "--page",
        "false",
        *words,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if "is served at " in line:
                    break
            else:
                pytest.fail("".join(said))
            address = line.split("is served at ")[1].split("/v1")[0]
            with httpx.Client(base_url=address, timeout=60) as web:
                yield process, said, web
        finally:
            process.kill()
            process.communicate()


def test_a_server_says_what_it_offers_answers_and_ends_in_order(folder):
    with served(folder, "--max_new_tokens", "12") as (process, said, web):
        presets = [line for line in said if line.startswith("--preset")]
        assert [line.split()[1] for line in presets] == ["exact", "balanced", "fast"]
        assert "100% of 128 tokens as exact" in presets[0]
        assert web.get("/ready").json()["status"] == "ready"
        answer = web.post("/v1/chat/completions", json={"messages": HI, "eos_stop": False}).json()
        assert answer["model"] == "tiny"
        assert answer["usage"]["forward_passes"] == 12
        assert {"/v1/chat/completions", "/v1/infill", "/metrics"} <= web.get("/openapi.json").json()["paths"].keys()
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "stopping" in rest
        assert "Traceback" not in rest


def test_openais_client_and_a_process(folder):
    """Whole, streamed, several, stopped, cancelled: by the client that most programs have."""
    import openai

    with served(folder, "--measure_presets", "false") as (_, _, web):
        client = openai.OpenAI(base_url=f"{web.base_url}/v1", api_key="any", max_retries=0)
        how = {"model": "tiny", "messages": HI, "max_tokens": 30, "seed": 7, "temperature": 1.0}
        whole = client.chat.completions.create(n=2, **how)
        text = whole.choices[0].message.content
        assert text != whole.choices[1].message.content
        stream = client.chat.completions.create(stream=True, **how)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
        stop = next(text[i : i + 2] for i in range(3, len(text) - 1) if text[i : i + 2].isprintable())
        stopped = client.chat.completions.create(stop=stop, **how)
        assert stopped.choices[0].message.content == text[: text.index(stop)]
        assert stopped.choices[0].finish_reason == "stop"
        with client.chat.completions.create(stream=True, **how | {"max_tokens": 220}) as left:
            next(iter(left))
        assert client.completions.create(model="tiny", prompt="a", suffix="b", max_tokens=3).choices[0].text is not None
        client.close()


@pytest.mark.slow
def test_schemathesis_finds_nothing_that_breaks_it(folder, tmp_path):
    """Its check of whether all that fits the schema is taken is left out: two fields may contradict each other."""
    pytest.importorskip("schemathesis")
    with served(folder, "--measure_presets", "false", "--max_answer_tokens", "16") as (_, _, web):
        words = ["run", f"{web.base_url}/openapi.json", "--max-examples", "20", "--seed", "1", "--no-color"]
        words += ["--exclude-checks", "positive_data_acceptance"]
        command = [
            sys.executable,
            "-c",
            "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())",
        ]
        done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-2000:]
    assert "Tested: 9" in done.stdout


def test_sigterm_lets_what_has_begun_end(folder):
    with served(folder, "--measure_presets", "false") as (process, _, web):
        body = {"messages": HI, "max_tokens": 200, "cfg_scale": 1.0, "eos_stop": False, "stream": True}
        with web.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert told[-1]["choices"][0]["reason"] == "length"
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_a_second_sigterm_ends_it_at_once(folder):
    """A stream of several hundred passes is not waited for."""
    with served(folder, "--measure_presets", "false") as (process, _, web):
        body = {"messages": HI, "max_tokens": 230, "n": 16, "cfg_scale": 1.0, "eos_stop": False, "stream": True}
        with contextlib.suppress(httpx.HTTPError), web.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line and process.poll() is None:
                    process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert "Traceback" not in rest
        assert process.returncode == 0


def test_a_model_that_writes_left_to_right_is_served_by_the_same_command(causal_folder):
    with served(causal_folder, "--api_key", "k", UNMASK_API_KEY="a, b") as (_, said, web):
        assert not any(line.startswith("--preset") for line in said)
        for key, status in (("k", 200), ("a", 200), ("b", 200), ("c", 401)):
            head = {"authorization": f"Bearer {key}"}
            body = {"prompt": "a", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9}
            assert web.post("/v1/completions", json=body, headers=head).status_code == status
        models = web.get("/v1/models", headers={"authorization": "Bearer k"}).json()
        assert models["data"][0]["kind"] == "autoregressive"
        body = {"text": "a{{3}}b"}
        refused = web.post("/v1/infill", json=body, headers={"authorization": "Bearer k"}).json()["error"]
        assert "left to right" in refused["message"]


def test_an_adapter_answers_on_its_base(folder, tmp_path, byte_tokenizer):
    """As the same model does in this process, which wore the adapter when it was saved; not as its base."""
    some = loaded(byte_tokenizer)
    some.model.load_state_dict(transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict())
    asked = wire.ChatRequest(messages=HI, max_tokens=24)

    def answer(model):
        one = maker(dataclasses.replace(some, model=model.eval()))
        job = one.chat(asked)
        run(one, job)
        return replies.text_of_choice(one, job.choices[0])

    base = answer(some.model)
    worn = adapters.attach(some.model, adapters.LoraArguments(r=4), base=str(folder))
    torch.manual_seed(0)
    for parameter in worn.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    worn.save_pretrained(tmp_path / "adapter")
    with served(tmp_path / "adapter", "--measure_presets", "false", "--block_size", "16") as (_, _, web):
        body = {"messages": HI, "max_tokens": 24, "model": "adapter"}
        found = web.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert found == answer(worn) != base


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid"], "cannot listen on"),
        (["--max_rows", "0"], "--max_rows is 0; it must be at least 1"),
        (["--api_key", "with blank"], "a header cannot hold it"),
        (["--rule", "nope"], "nope"),
        (["--threshold", "7", "--preset", "fast"], "above 0 and at most 1"),
        (["--preset", "faster"], "faster"),
        (["--chat_template", "none.jinja"], "none.jinja"),
    ],
)
def test_flags_that_cannot_be_get_one_line(folder, words, line, capsys):
    assert main(["serve", "--model", str(folder), "--port", "0", "--page", "false", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert line in said[-1]
    assert said[-1].startswith("unmask: ")


def test_a_port_that_is_taken_is_told(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "--model", str(folder), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_settings_of_models_that_unmask_are_refused_for_others(causal_folder, capsys):
    assert main(["serve", "--model", str(causal_folder), "--port", "0", "--steps", "8"]) == 2
    assert "--steps belongs to models that unmask" in capsys.readouterr().err


def test_only_a_local_server_is_particular_about_its_name():
    assert "localhost" in hosts_of("127.0.0.1", [])
    assert "box.example" in hosts_of("127.0.0.1", ["Box.example"])
    assert hosts_of("0.0.0.0", []) == hosts_of("127.0.0.1", ["*"]) == ()
    assert set(hosts_of("0.0.0.0", ["box.example"])) > {"box.example", "localhost"}
