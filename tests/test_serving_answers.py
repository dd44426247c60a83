"""What answers promise in small print: gaps one by one, fields that are heeded or refused, streams that live."""

import asyncio
import contextlib
import json
import shutil
import socket

import httpx
import pytest
import uvicorn
from serving_made import loaded, maker, run, serving

from unmask.decoding import wino
from unmask.serving import connections, replies, wire
from unmask.serving.requests import LOGPROBS, Limits, Refused

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def masked(byte_tokenizer):
    return loaded(byte_tokenizer)


def filled(some, **body):
    job = some.infill(wire.InfillRequest(**body))
    run(some, job)
    return replies.whole(some, job, "infill"), job


def test_every_gap_that_was_asked_for_is_told(masked):
    """Also two side by side, and one whose answer is nothing."""
    some = maker(masked)
    found, job = filled(some, parts=["a", {"gap": 2}, {"gap": 3}, "b", {"gap": 2}])
    [choice] = found.choices
    ids = job.choices[0].row.ids.tolist()
    assert len(choice.gaps) == 3
    assert choice.gaps[0] == replies.text_of(some.decoder, ids[1:3])
    assert choice.text.startswith(f"a{choice.gaps[0]}{choice.gaps[1]}b")
    ended = 0
    for seed in range(150):
        found, job = filled(some, parts=["a", {"gap": 2}], temperature=5.0, seed=seed)
        [choice] = found.choices
        first, second = job.choices[0].row.ids.tolist()[-2:]
        written = 0 if first == 257 else 1 if second == 257 else 2
        assert found.usage.completion_tokens == written
        assert len(choice.gaps) == 1
        assert bool(choice.gaps[0]) or not written
        ended += first == 257
    assert ended


@pytest.mark.parametrize(
    "more",
    [{"eos_stop": True}, {"min_new_tokens": 3}, {"stream": True, "stream_options": {"include_obfuscation": True}}],
)
def test_gaps_refuse_what_is_for_answers(masked, more):
    some = maker(masked)
    with serving(some) as address, httpx.Client(base_url=address) as web:
        answer = web.post("/v1/infill", json={"text": "a{{2}}b", **more})
        assert answer.status_code == 400
        assert any(name in answer.json()["error"]["message"] for name in ("eos_stop", "min_new", "obfuscation"))
        named = [{**HI[0], "name": "Alice"}]
        answer = web.post("/v1/chat/completions", json={"messages": named})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages.0.name")
        answer = web.post("/v1/chat/completions", json={"messages": [{**HI[0], "name": None}], "max_tokens": 1})
        assert answer.status_code == 200


def test_who_names_no_steps_gets_no_more_than_may_be_named(masked):
    some = maker(masked, limits=Limits(steps=8))
    job = some.chat(wire.ChatRequest(messages=HI, max_tokens=60, eos_stop=False))
    run(some, job)
    assert job.choices[0].row.step <= 8
    with pytest.raises(Refused, match="at most 8"):
        some.chat(wire.ChatRequest(messages=HI, max_tokens=60, steps=9))


def test_alternatives_are_told_if_they_are_asked_for_and_not_without_measure(masked):
    some = maker(masked)
    for asked, told in ((None, 0), (0, 0), (3, 3)):
        body = wire.ChatRequest(messages=HI, max_tokens=4, eos_stop=False, logprobs=True, top_logprobs=asked)
        job = some.chat(body)
        run(some, job)
        content = replies.whole(some, job, "chat").choices[0].logprobs["content"]
        assert content
        assert {len(one["top_logprobs"]) for one in content} == {told}
    with pytest.raises(Refused, match=f"{LOGPROBS:,} log-probabilities"):
        some.chat(wire.ChatRequest(messages=HI, max_tokens=230, n=16, logprobs=True, top_logprobs=20))


def test_a_rule_of_the_servers_own_is_told_by_its_name(masked, tmp_path):
    path = tmp_path / "secret" / "my_rule.py"
    path.parent.mkdir()
    shutil.copy(wino.__file__, path)
    some = maker(masked, rule=str(path))
    with pytest.raises(Refused) as refused:
        some.chat(wire.ChatRequest(messages=HI, max_tokens=3, cache="dual"))
    assert "secret" not in refused.value.message
    assert "my_rule" in refused.value.message
    job = some.chat(wire.ChatRequest(messages=HI, max_tokens=3, stream=True, diffusing=True))
    run(some, job)
    assert "secret" not in json.dumps(job.choices[0].recorder.record())


def test_a_stream_that_has_nothing_to_tell_says_that_it_is_there(masked, monkeypatch):
    """Though the engine works, and wakes it at every step."""
    monkeypatch.setattr(replies, "PING", 0.0)
    with (
        serving(maker(masked)) as address,
        httpx.stream("POST", f"{address}/v1/infill", json={"text": "a{{60}}b", "stream": True}, timeout=60) as answer,
    ):
        raw = b"".join(answer.iter_raw())
    parts = raw.split(b"\n\n")
    assert parts.count(b": still here") > 1
    assert parts[-2] == b"data: [DONE]"


@pytest.mark.parametrize("letter", ["\x85", "\u2028", "\u2029"])
def test_no_letter_ends_a_line(letter):
    body = {"text": f"a{letter}b"}
    lines = list(httpx.Response(200, content=replies.event(body)).iter_lines())
    assert [line for line in lines if line] == [lines[0]]
    assert json.loads(lines[0].removeprefix("data: ")) == body


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\nHost: local"])
def test_who_says_nothing_is_not_waited_for(masked, monkeypatch, begun):
    """Each such connection takes one of those that a server can have."""
    monkeypatch.setattr(connections, "HEAD", 0.3)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def visits():
        with socket.create_server(("127.0.0.1", 0)) as found:
            config = uvicorn.Config(app, http=connections.Protocol, lifespan="off", log_level="error")
            server = uvicorn.Server(config)
            server.capture_signals = contextlib.nullcontext
            task = asyncio.create_task(server.serve([found]))
            address = found.getsockname()
            while not server.started:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection(*address)
            writer.write(begun)
            closed = await asyncio.wait_for(reader.read(), 30)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}") as web:
                first = await web.get("/")
                await asyncio.sleep(0.5)  # longer than a head may take: the connection stays for the next request
                second = await web.get("/")
                kept = list(web._transport._pool.connections)
            server.should_exit = True
            await task
            return closed, first.text + second.text, len(kept)

    closed, texts, kept = asyncio.run(visits())
    assert (closed, texts, kept) == (b"", "okok", 1)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": [0] * 300_000}, "messages"),
        ({"messages": [{"role": "user", "content": [0] * 300_000}]}, "content"),
        ({"messages": HI, "rule_args": {str(i): [] for i in range(60_000)}}, "rule_args"),
        ({str(i): 0 for i in range(60_000)}, "fields"),
    ],
)
def test_a_body_with_very_many_errors_costs_one(masked, body, named):
    """An error was made for each, which took seconds and half a gigabyte while all others waited."""
    from unmask.serving import api

    made = []
    with serving(maker(masked)) as address, pytest.MonkeyPatch.context() as patch:
        original = api.unreadable
        patch.setattr(api, "unreadable", lambda error: made.append(len(error.errors())) or original(error))
        answer = httpx.post(
            f"{address}/v1/chat/completions",
            content=json.dumps(body, separators=(",", ":")),
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert "at most 1,024" in answer.json()["error"]["message"]
    assert len(made) == 1
    assert made[0] <= 3
