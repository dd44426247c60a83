"""`unmask serve` under load: answers beside those that each request gets alone, throughput, latencies, and a long soak.

In:  nothing; networks with random weights, made here.
Out: results/serve.json, a part for each of

    equal       500 requests of 16 clients, with mixed rules, lengths, caches and streams: every answer is the one that
                the same request gets when nothing else runs
    throughput  8 clients, of whom the server steps 8 rows together or one at a time, side by side, in turn
    load        arrivals at random moments (open loop), mixed lengths and rules: seconds to first text and to the end
    soak        half an hour at saturation with disconnects, bad requests, slow readers and visitors of the page:
                memory, queue, answers

    python benchmarks/serve.py throughput [--network small|124M] [--rounds 5] [--device cuda] [--dtype bfloat16]

`small` is deep and narrow, so that a step of one row is mostly the network's calls and not its arithmetic: there is
room to gain. `124M` is the tutorial's, most of whose time is arithmetic, row by row: there is less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import sides
import torch

RESULTS = Path(__file__).parent / "results"
CHAT = "/v1/chat/completions"
NETWORKS = {
    "small": ["llada-200k", "--set", "d_model=32,n_layers=16,n_heads=2,mlp_hidden_size=64"],
    "124M": ["llada-100M"],
}
WIDER = {"small": 6.0, "124M": 4.0}  # times the weights: else all answers are alike, and a wrong one is right
WORDS = {"small": 500, "124M": 126_000}
RULES = ("reference", "threshold", "margin", "klass", "left_to_right", "wino")
Body = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# The server


def make(name: str, folder: Path) -> Path:
    """A network's folder: random weights, and a tokenizer with a word for every token."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from unmask import init, models

    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(WORDS[name])}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="<|mdm_mask|>", **special)
    turns = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": turns})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    words = ["--tokenizer", str(folder / "tokenizer"), "--output_dir", str(folder / name), "--max_length", "256"]
    init.main([*NETWORKS[name], *words])
    model = models.load(str(folder / name), fresh=True, seed=0).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(WIDER[name])
    model.save_pretrained(folder / name)
    return folder / name


@contextlib.contextmanager
def server(model: Path, asked: argparse.Namespace, *words: str) -> Iterator[tuple[str, int]]:
    """A server of its own; its address and its process."""
    command = [sys.executable, "-m", "unmask", "serve", "--model", str(model), "--port", "0", "--page", "false"]
    command += ["--measure_presets", "false", "--block_size", "32", "--device", asked.device, "--dtype", asked.dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "is served at " in line:
                    break
                print(line, end="", file=sys.stderr)
            else:
                sys.exit("the server did not start.")
            yield line.split("is served at ")[1].split("/v1")[0], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)


# ---------------------------------------------------------------------------------------------------------------------
# Clients


async def events(web: httpx.AsyncClient, body: Body, pause: float = 0.0) -> AsyncIterator[Body]:
    async with web.stream("POST", CHAT, json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            await answer.aread()
            answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])
                if pause:
                    await asyncio.sleep(pause)


async def ask(web: httpx.AsyncClient, body: Body, stream: bool = False, pause: float = 0.0) -> Body:
    """One request: its text, seconds to its first text and to its end, its tokens."""
    began, first, text, tokens = time.monotonic(), None, "", 0
    if not stream:
        answer = await web.post(CHAT, json=body)
        answer.raise_for_status()
        found = answer.json()
        text, tokens = found["choices"][0]["message"]["content"], found["usage"]["completion_tokens"]
    else:
        async for chunk in events(web, body | {"stream_options": {"include_usage": True}}, pause):
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                new = choice.get("delta", {}).get("content") or ""
                if new and first is None:
                    first = time.monotonic() - began
                text += new
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    seconds = time.monotonic() - began
    return {"text": text, "seconds": seconds, "first": seconds if first is None else first, "tokens": tokens}


async def crowd(address: str, bodies: list[Body], clients: int, streams: bool = False) -> list[Body]:
    """All of them, by so many clients, each of whom asks again when it has its answer."""
    found: list[Body] = [{} for _ in bodies]
    left = iter(range(len(bodies)))
    async with httpx.AsyncClient(base_url=address, timeout=600) as web:

        async def client() -> None:
            for number in left:
                found[number] = await ask(web, bodies[number], streams and number % 2 == 0)

        await asyncio.gather(*(client() for _ in range(clients)))
    return found


def question(draw: random.Random, words: int, name: str) -> list[Body]:
    text = " ".join(f"w{draw.randrange(WORDS[name])}" for _ in range(words))
    return [{"role": "user", "content": text}]


def mixed(count: int, name: str, most: int = 96) -> list[Body]:
    """Requests of many kinds, at temperature 0."""
    bodies = []
    for number in range(count):
        draw = random.Random(number)
        rule = draw.choice(RULES)
        body: Body = {"messages": question(draw, draw.randint(1, 60), name), "rule": rule, "seed": number}
        body |= {"max_tokens": draw.randint(1, most), "block_size": draw.choice([1, 8, 16, 32, 64])}
        if rule in ("threshold", "klass"):
            body["steps"] = draw.choice([8, 16, 32])
        if rule != "wino" and draw.random() < 0.4:
            body["cache"] = draw.choice(["dual", "prefix", "vicinity", "delayed"])
        if draw.random() < 0.2:
            body["cfg_scale"] = 1.0
        if draw.random() < 0.2:
            body["stop"] = [f"w{draw.randrange(WORDS[name])}"]
        bodies.append(body)
    return bodies


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def equal(model: Path, asked: argparse.Namespace) -> Body:
    """Concurrent answers beside lone ones."""
    bodies = mixed(asked.requests, asked.network)
    with server(model, asked, "--max_rows", "16") as (address, _):
        together = asyncio.run(crowd(address, bodies, 16, streams=True))
    with server(model, asked, "--max_rows", "1") as (address, _):
        alone = asyncio.run(crowd(address, bodies, 1))
    differ = [i for i, (a, b) in enumerate(zip(together, alone, strict=True)) if a["text"] != b["text"]]
    print(f"{len(differ)} of {len(bodies)} answers differ", file=sys.stderr)
    different = len({one["text"] for one in alone})
    return {"requests": len(bodies), "clients": 16, "differ": len(differ), "distinct_answers": different}


def throughput(model: Path, asked: argparse.Namespace) -> Body:
    """Tokens a second with rows stepped together and one at a time; ratios, round by round."""
    draw = random.Random(0)
    bodies = [
        {"messages": question(draw, asked.words, asked.network), "max_tokens": asked.new_tokens, "eos_stop": False}
        for _ in range(asked.requests)
    ]

    def way(rows: int) -> Body:
        before, mine = sides.busy(), os.times()
        with server(model, asked, "--max_rows", str(rows)) as (address, _):
            asyncio.run(crowd(address, bodies[:8], 8))  # warm
            began = time.monotonic()
            found = asyncio.run(crowd(address, bodies, 8))
            seconds = time.monotonic() - began
        after, now = sides.busy(), os.times()
        assert before is not None
        assert after is not None
        others = max(0.0, after[0] - before[0] - (sum(now[:4]) - sum(mine[:4]))) / (after[1] - before[1])
        texts = json.dumps([one["text"] for one in found]).encode()
        speed = sum(one["tokens"] for one in found) / seconds
        told = {"seconds": seconds, "tokens_per_second": speed, "others": round(others, 3)}
        return told | {"answers": hashlib.sha256(texts).hexdigest()[:16]}

    def check(round_: sides.Round) -> None:
        if len({one["answers"] for one in round_.values()}) > 1:
            sys.exit("the answers differ.")

    made = sides.rounds({"together": lambda: way(8), "one": lambda: way(1)}, asked.rounds, check)
    ratios = [one["together"]["tokens_per_second"] / one["one"]["tokens_per_second"] for one in made]
    return {
        "rounds": len(made),
        "requests": len(bodies),
        "prompt_words": asked.words,
        "new_tokens": asked.new_tokens,
        "tokens_per_second": {
            name: round(statistics.median(one[name]["tokens_per_second"] for one in made), 1) for name in made[0]
        },
        "times": [round(f(ratios), 2) for f in (statistics.median, min, max)],
        "answers": "equal",
    }


def quantiles(values: list[float]) -> list[float]:
    """p50, p95, p99."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return [round(cuts[i], 3) for i in (49, 94, 98)]


def load(model: Path, asked: argparse.Namespace) -> Body:
    """Arrivals at random moments, however many wait; the same ones for both ways."""
    draw = random.Random(1)
    bodies = mixed(asked.requests, asked.network)
    gaps = [draw.expovariate(asked.rate) for _ in bodies]

    async def arrive(address: str) -> tuple[list[Body], float]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=3600, limits=limits) as web:
            began, tasks = time.monotonic(), []
            for body, gap in zip(bodies, gaps, strict=True):
                await asyncio.sleep(gap)
                tasks.append(asyncio.create_task(ask(web, body, stream=True)))
            found = await asyncio.gather(*tasks)
            return found, time.monotonic() - began

    told: Body = {"requests": len(bodies), "arrivals_per_second": asked.rate}
    texts = {}
    for name, rows in (("together", 16), ("one", 1)):
        with server(model, asked, "--max_rows", str(rows), "--queue", "100000") as (address, _):
            asyncio.run(crowd(address, bodies[:4], 4))
            found, seconds = asyncio.run(arrive(address))
        texts[name] = [one["text"] for one in found]
        told[name] = {
            "tokens_per_second": round(sum(one["tokens"] for one in found) / seconds, 1),
            "first_text_seconds": quantiles([one["first"] for one in found]),
            "request_seconds": quantiles([one["seconds"] for one in found]),
        }
    told["answers"] = "equal" if texts["together"] == texts["one"] else "differ"
    return told


# ---------------------------------------------------------------------------------------------------------------------
# The soak

BAD: list[tuple[Any, int]] = [
    (b"{", 400),
    (b"\xff\xfe", 400),
    ({"messages": []}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "rule": "../x.py"}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "max_tokens": 10**6}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "model": "other"}, 404),
    ({"messages": [{"role": "user", "content": "x" * (2 << 20)}]}, 413),
]


def resident(process: int) -> float:
    """MiB that a process holds."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def soak(model: Path, asked: argparse.Namespace) -> Body:
    """Clients of every kind until the time is up. Answers are compared with those that were given before it began."""
    bodies = mixed(40, asked.network, 48)
    kinds = ("answers", "wrong", "hung_up", "full", "bad", "bad_not_4xx", "visits", "failed")
    counts = dict.fromkeys(kinds, 0)
    memory: list[tuple[float, float]] = []
    waiting: list[float] = []
    queue = 6

    async def one(web: httpx.AsyncClient, draw: random.Random, known: list[str]) -> None:
        number, kind = draw.randrange(len(bodies)), draw.random()
        try:
            if kind < 0.15:
                content, status = draw.choice(BAD)
                sent: Any = {"content": content} if isinstance(content, bytes) else {"json": content}
                answer = await web.post(CHAT, **sent, headers={"content-type": "application/json"})
                counts["bad"] += 1
                counts["bad_not_4xx"] += answer.status_code != status and answer.status_code != 429
            elif kind < 0.35:
                some = ask(web, bodies[number], stream=draw.random() < 0.7)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(some, draw.uniform(0.0, 0.5))
                counts["hung_up"] += 1
            else:
                slow = draw.uniform(0.01, 0.1) if draw.random() < 0.2 else 0.0
                found = await ask(web, bodies[number], stream=draw.random() < 0.6, pause=slow)
                counts["answers"] += 1
                counts["wrong"] += found["text"] != known[number]
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 429:
                counts["full"] += 1
                await asyncio.sleep(draw.uniform(0.05, 0.5))
            else:
                counts["failed"] += 1
        except (httpx.HTTPError, RuntimeError) as error:
            print(repr(error), file=sys.stderr)
            counts["failed"] += 1

    async def all_of(address: str, process: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300, limits=httpx.Limits(max_connections=None)) as web:
            known = [(await ask(web, body))["text"] for body in bodies]
            end = time.monotonic() + asked.minutes * 60

            async def client(number: int) -> None:
                draw = random.Random(number)
                while time.monotonic() < end:
                    await one(web, draw, known)

            async def visit() -> None:
                while time.monotonic() < end:
                    counts["visits"] += 1
                    counts["failed"] += (await web.get("/")).status_code != 200
                    await asyncio.sleep(2)

            async def look() -> None:
                began = time.monotonic()
                while time.monotonic() < end:
                    memory.append((time.monotonic() - began, resident(process)))
                    text = (await web.get("/metrics")).text
                    waiting.append(float(text.split("\nunmask_rows_waiting ")[1].split()[0]))
                    await asyncio.sleep(5)

            await asyncio.gather(look(), visit(), *(client(number) for number in range(24)))
            state = (await web.get("/health")).json()
            counts["left"] = state["running"] + state["waiting"]

    with server(model, asked, "--max_rows", "8", "--queue", str(queue), "--page", "true") as (address, process):
        asyncio.run(all_of(address, process))
    values = [mib for _, mib in memory]
    part = max(1, len(values) // 4)
    told: Body = {"minutes": asked.minutes, "clients": 24, "queue": queue, "most_waiting": max(waiting)}
    told |= counts
    told["memory_mib"] = {
        name: round(statistics.median(some), 1)
        for name, some in (("second_quarter", values[part : 2 * part]), ("last_quarter", values[-part:]))
    }
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["equal", "throughput", "load", "soak"])
    parser.add_argument("--network", choices=list(NETWORKS), default="small")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--words", type=int, default=4, help="of a prompt, for throughput")
    parser.add_argument("--new_tokens", type=int, default=32, help="of an answer, for throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=3.0, help="arrivals a second")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", default=str(RESULTS / "serve.json"))
    asked = parser.parse_args()
    asked.requests = asked.requests or {"equal": 500, "throughput": 48, "load": 120}.get(asked.part, 0)
    with tempfile.TemporaryDirectory() as folder:
        made = make(asked.network, Path(folder))
        found = {"equal": equal, "throughput": throughput, "load": load, "soak": soak}[asked.part](made, asked)
    path = Path(asked.output)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    command = " ".join(["python benchmarks/serve.py", *sys.argv[1:]])
    machine = sides.machine("torch", "transformers", "fastapi", "uvicorn")
    size = {"throughput": f" {asked.new_tokens}", "load": f" {asked.rate:g}"}.get(asked.part, "")
    key = f"{asked.part} {asked.network}{size}" + (f" {asked.device}" if asked.device != "cpu" else "")
    known[key] = {"command": command, **found, "dtype": asked.dtype, "threads": asked.threads, "machine": machine}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(known[key]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
