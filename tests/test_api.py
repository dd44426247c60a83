"""The routes behind their guard, over a socket: what OpenAI's client, curl and strangers send, and what comes back."""

import asyncio
import concurrent.futures
import json
import time

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_made import loaded, maker, run, serving

from unmask.serving import replies, wire
from unmask.serving.engine import Room
from unmask.serving.guard import key_of, name_of, same_origin
from unmask.serving.requests import Limits

CHAT, TEXT, GAPS = "/v1/chat/completions", "/v1/completions", "/v1/infill"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model(byte_tokenizer):
    return loaded(byte_tokenizer)


@pytest.fixture(scope="module")
def server(model):
    some = maker(model, Room(rows=8))
    with serving(some) as address:
        some.address = address
        yield some


@pytest.fixture(scope="module")
def web(server):
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def alone(model, body, kind="chat"):
    """What a request gets when nothing else is asked."""
    some = maker(model)
    made = {"chat": (wire.ChatRequest, some.chat), "completion": (wire.CompletionRequest, some.completion)}[kind]
    job = made[1](made[0](**body))
    run(some, job)
    return [replies.text_of_choice(some, choice) for choice in job.choices], replies.usage(some, job)


def events(web, path, body):
    with web.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# ---------------------------------------------------------------------------------------------------------------------
# OpenAI's client


def test_openais_client_asks_and_streams_the_same(client, model):
    body = {"messages": HI, "max_tokens": 40, "seed": 4, "temperature": 0.9}
    [text], usage = alone(model, body)
    whole = client.chat.completions.create(model="tiny", **body)
    assert whole.choices[0].message.content == text
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert whole.usage.forward_passes == usage.forward_passes
    assert whole.choices[0].finish_reason in ("stop", "length")
    chunks = list(
        client.chat.completions.create(model="tiny", stream=True, stream_options={"include_usage": True}, **body)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_several_choices_and_prompts(client, model):
    body = {"messages": HI, "max_tokens": 12, "seed": 4, "temperature": 1.0, "n": 3}
    texts, _ = alone(model, body)
    assert [c.message.content for c in client.chat.completions.create(model="tiny", **body).choices] == texts
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model="tiny", stream=True, **body):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    body = {"prompt": ["one", "two"], "max_tokens": 9, "seed": 4}
    found = client.completions.create(model="tiny", **body)
    assert [c.text for c in found.choices] == alone(model, body, "completion")[0]


@pytest.mark.parametrize("block", [4, 16])
def test_a_stop_string_cuts_wherever_blocks_end(client, model, block):
    """Of two letters, which may stand on both sides of a block's end; the whole and the streamed text agree."""
    more = {"block_size": block}
    body = {"messages": HI, "max_tokens": 48, "seed": 4, "temperature": 1.5}
    [text], _ = alone(model, body | more)
    tried = 0
    for at in range(1, len(text) - 2, 3):
        stop = text[at : at + 2]
        if "\N{REPLACEMENT CHARACTER}" in stop:
            continue
        [cut], _ = alone(model, body | more | {"stop": [stop]})
        assert stop not in cut
        whole = client.chat.completions.create(model="tiny", stop=[stop], extra_body=more, **body)
        assert whole.choices[0].message.content == cut
        assert whole.choices[0].finish_reason == "stop"
        chunks = client.chat.completions.create(model="tiny", stop=[stop], stream=True, extra_body=more, **body)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == cut
        tried += 1
    assert tried > 2


def test_errors_are_openais(client, server):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HI, tools=[{"type": "function", "function": {}}])
    assert bad.value.param == "tools"
    assert bad.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=HI)
    assert "tiny" in str(missing.value)
    with pytest.raises(openai.BadRequestError, match="the model holds 256"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 300}])
    assert client.models.retrieve("tiny").id == next(m.id for m in client.models.list()) == "tiny"


def test_values_that_ask_for_nothing_are_taken(client):
    found = client.chat.completions.create(
        **{"model": "tiny", "messages": HI, "max_tokens": 3, "temperature": 0, "top_p": 0.9, "n": 1},
        **{"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}},
        **{"tool_choice": "none", "logprobs": False, "user": "me", "store": False, "parallel_tool_calls": True},
    )
    assert found.choices[0].message.role == "assistant"


# ---------------------------------------------------------------------------------------------------------------------
# Beyond it


def test_gaps_are_filled_between_what_is_given(web):
    answer = web.post(GAPS, json={"text": r"a{{3}}b{{2}}c \{{9}}", "seed": 1}).json()
    [choice] = answer["choices"]
    first, second = choice["gaps"]
    assert choice["text"] == f"a{first}b{second}c {{{{9}}}}"
    assert answer["usage"]["completion_tokens"] == 5
    parts = ["a", {"gap": 3}, "b", {"gap": 2}, "c {{9}}"]
    assert web.post(GAPS, json={"parts": parts, "seed": 1}).json()["choices"] == answer["choices"]
    suffix = web.post(TEXT, json={"prompt": "a", "suffix": "b", "max_tokens": 4, "seed": 1}).json()
    infill = web.post(GAPS, json={"text": "a{{4}}b", "seed": 1}).json()
    assert suffix["choices"][0]["text"] == infill["choices"][0]["gaps"][0]


def test_a_stream_of_the_canvas_is_a_replay_beside_the_text(web, model):
    body = {"messages": HI, "max_tokens": 24, "seed": 2}
    plain = events(web, CHAT, body)
    shown = events(web, CHAT, body | {"diffusing": True})
    text = [
        "".join(c["choices"][0]["delta"].get("content", "") for c in some if c["choices"]) for some in (plain, shown)
    ]
    assert text[0] == text[1] == alone(model, body)[0][0]
    steps = [step for c in shown for step in c.get("diffusion", {}).get("steps", [])]
    assert sorted(place for step in steps for place, *_ in step["written"])[-1] < 256
    assert len({place for step in steps for place, *_ in step["written"]}) == 24
    assert [step["step"] for step in steps] == sorted(step["step"] for step in steps)
    gaps = events(web, GAPS, {"text": "a{{6}}b", "diffusing": True})
    assert gaps[-1]["choices"][0]["text"].startswith("a")


def test_a_request_can_be_cancelled_by_its_id(web, server):
    with web.stream("POST", CHAT, json={"messages": HI, "max_tokens": 200, "stream": True}) as answer:
        lines = answer.iter_lines()
        id = json.loads(next(lines).removeprefix("data: "))["id"]
        assert answer.headers["x-request-id"] == id
        found = httpx.delete(f"{server.address}/v1/requests/{id}")
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    if found.status_code == 200:  # else it was done before
        last = rest[-1]["choices"][0]
        assert last["finish_reason"] == "length"
        assert last["reason"] in ("cancelled", "length")
    assert httpx.delete(f"{server.address}/v1/requests/{id}").status_code == 404


def until(true, seconds=20.0):
    """A deadline, not a measurement: what has to come is waited for."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_row(web, server, stream):
    async def hang_up():
        async with httpx.AsyncClient(base_url=server.address) as some:
            body = {"messages": HI, "max_tokens": 230, "cfg_scale": 1.0, "stream": stream}
            task = asyncio.create_task(some.post(CHAT, json=body))
            while not server.engine.jobs and not task.done():
                await asyncio.sleep(0.002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    before = server.engine.metrics.registry.get_sample_value("unmask_requests_total", {"reason": "cancelled"}) or 0
    asyncio.run(hang_up())
    assert until(lambda: not server.engine.jobs)
    after = server.engine.metrics.registry.get_sample_value("unmask_requests_total", {"reason": "cancelled"}) or 0
    assert after == before + 1


def test_sixteen_clients_get_what_each_gets_alone(client, model):
    """Mixed lengths, rules, seeds and streams."""
    bodies = [
        {
            "messages": [{"role": "user", "content": "x" * (n % 5)}],
            "max_tokens": 4 + n % 23,
            "seed": n,
            "temperature": (n % 3) / 2,
        }
        for n in range(48)
    ]
    rules = ("reference", "threshold", "margin", "wino")
    more = [{"rule": rules[n % 4], "block_size": 1 + n % 17} for n in range(48)]

    def ask(n):
        if n % 2:
            found = client.chat.completions.create(model="tiny", extra_body=more[n], **bodies[n])
            return found.choices[0].message.content
        chunks = client.chat.completions.create(model="tiny", stream=True, extra_body=more[n], **bodies[n])
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(48)))
    assert found == [alone(model, bodies[n] | more[n])[0][0] for n in range(48)]


# ---------------------------------------------------------------------------------------------------------------------
# Strangers


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "JSON"),
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b'"x"', "JSON object"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', "role"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "messages"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "3"}', "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1' + b"0" * 5000 + b"}", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_body_that_cannot_be_gets_one_line(web, content, words):
    answer = web.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert words in message
    assert "\n" not in message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(wire.ChatRequest.model_fields | wire.CompletionRequest.model_fields | wire.InfillRequest.model_fields)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([CHAT, TEXT, GAPS]), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_no_body_breaks_the_server(web, path, body, whole):
    """Random values for real fields beside a question that is in order: 200 or 4xx, never 5xx, always in shape."""
    right = {CHAT: {"messages": HI}, TEXT: {"prompt": "a"}, GAPS: {"text": "a{{2}}"}}[path]
    base = right | ({"max_tokens": 2} if path != GAPS else {})
    sent = json.dumps((base | body) if whole else body)
    answer = web.post(path, content=sent.encode(), headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), (sent, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60), st.sampled_from([CHAT, TEXT, GAPS]))
def test_no_bytes_break_the_server(web, content, path):
    answer = web.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def raw(server, text):
    """The status line that comes back for bytes on the socket."""
    import socket
    from urllib.parse import urlsplit

    where = urlsplit(server.address)
    with socket.create_connection((where.hostname, where.port), timeout=20) as some:
        some.sendall(text)
        some.shutdown(socket.SHUT_WR)
        found = some.recv(200)
    return found.split(b"\r\n")[0]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=40))
def test_no_header_breaks_the_server(server, value):
    head = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + value + b"\r\n\r\n"
    status = raw(server, head)
    assert status.split(b" ")[1:2] in ([b"200"], [b"400"], []), status


def test_the_doors_are_closed(model):
    some = maker(model, limits=Limits(new=64))
    with serving(some, keys=("right", "other"), body=2000) as address, httpx.Client(base_url=address) as web:
        key = {"authorization": "Bearer right"}
        body = {"messages": HI, "max_tokens": 2}
        assert web.post(CHAT, json=body).status_code == 401
        assert web.post(CHAT, json=body, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert web.get("/metrics").status_code == 401
        assert web.get("/health").status_code == web.get("/ready").status_code == 200
        assert web.post(CHAT, json=body, headers=key).status_code == 200
        assert web.post(CHAT, json=body, headers=key | {"host": "evil.example"}).status_code == 421
        assert web.post(CHAT, json=body, headers=key | {"origin": "https://evil.example"}).status_code == 403
        assert web.post(CHAT, json=body, headers=key | {"origin": address}).status_code == 200
        assert "access-control-allow-origin" not in web.options(CHAT, headers=key | {"origin": address}).headers
        long = web.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 3000}]}, headers=key)
        assert long.status_code == 413
        chunks = (b"x" * 500 for _ in range(9))
        assert web.post(CHAT, content=chunks, headers=key).status_code == 413
        with web.stream("POST", CHAT, json=body | {"max_tokens": 60, "stream": True}, headers=key) as answer:
            id = answer.headers["x-request-id"]
            other = {"authorization": "Bearer other"}
            assert httpx.delete(f"{address}/v1/requests/{id}", headers=other).status_code == 404  # not its own
        assert web.get("/metrics", headers=key).text.count("# TYPE unmask_") > 10


def test_who_asks_too_often_waits(model):
    some = maker(model)
    with serving(some, keys=("a", "b"), rate=3) as address, httpx.Client(base_url=address) as web:

        def ask(key):
            return web.post(CHAT, json={"messages": HI, "max_tokens": 1}, headers={"authorization": f"Bearer {key}"})

        assert [ask("a").status_code for _ in range(4)] == [200, 200, 200, 429]
        late = ask("a")
        assert 1 <= int(late.headers["retry-after"]) <= 60
        assert late.json()["error"]["type"] == "rate_limit_error"
        assert ask("b").status_code == 200


def test_a_full_queue_says_when_to_come_back(model):
    some = maker(model, Room(rows=1, queue=1))
    with serving(some) as address, concurrent.futures.ThreadPoolExecutor(12) as pool:

        def ask(_):
            return httpx.post(f"{address}{CHAT}", json={"messages": HI, "max_tokens": 100}, timeout=60)

        found = list(pool.map(ask, range(12)))
    codes = [answer.status_code for answer in found]
    assert set(codes) == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in found if answer.status_code == 429)
    assert codes.count(200) >= 2


def test_the_model_breaking_tells_clients_nothing_of_it(model, monkeypatch):
    some = maker(model)
    with serving(some) as address:

        def broken(*args, **more):
            raise RuntimeError("/secret/path of weights")

        monkeypatch.setattr("unmask.decoding.step", broken)
        answer = httpx.post(f"{address}{CHAT}", json={"messages": HI})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        with httpx.stream("POST", f"{address}{CHAT}", json={"messages": HI, "stream": True}) as stream:
            text = stream.read().decode()
        assert '"error"' in text
        assert "secret" not in text
        monkeypatch.undo()
        assert httpx.post(f"{address}{CHAT}", json={"messages": HI, "max_tokens": 2}).status_code == 200


# ---------------------------------------------------------------------------------------------------------------------
# Parts


@given(st.text(), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4))
def test_only_a_key_is_a_key(header, keys):
    found = key_of(header, keys)
    if found is not None:
        assert header.split(" ", 1)[0].lower() == "bearer"
        assert header.split(" ", 1)[1].strip() == keys[found]
    for number, key in enumerate(keys):
        assert keys[key_of(f"Bearer {key}", keys)] == key, number


@pytest.mark.parametrize(
    ("host", "name"), [("localhost:80", "localhost"), ("[::1]:80", "::1"), ("A.b", "a.b"), ("", ""), ("[", "")]
)
def test_a_host_without_its_port(host, name):
    assert name_of(host) == name


def test_an_origin_is_the_host_that_was_called():
    assert same_origin("http://localhost:8000", "localhost:8000")
    assert not same_origin("http://localhost:8001", "localhost:8000")
    assert not same_origin("null", "localhost:8000")
