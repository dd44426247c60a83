"""A small server for tests: a network with random weights over bytes, an engine, and the app in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiny import tiny

from unmask.conversation import NEW_TOKENS
from unmask.models import Loaded, family_file
from unmask.serving.engine import Engine, Room
from unmask.serving.metrics import Metrics
from unmask.serving.requests import Limits, Maker

NAME = "tiny"


def loaded(tokenizer: Any, causal: bool = False) -> Loaded:
    """A model of 262 tokens. Its weights are wide, so that answers differ, and letters come in pieces."""
    places = {"vocab_size": 262, "max_position_embeddings": 256, "hidden_size": 32}
    model = tiny("llama", causal=causal, eos_token_id=257, pad_token_id=257, **places)
    if not causal:
        model.config.mask_token_id = 258
    return Loaded(model, tokenizer, family_file("llama").FAMILY, fresh=False)


def maker(some: Loaded, room: Room | None = None, limits: Limits | None = None, **given: Any) -> Maker:
    """An engine that does not run yet, and what makes its jobs."""
    engine = Engine(some, room, Metrics())
    settings = {"eos_stop": True} if some.causal else {"eos_stop": True, "block_size": 16}
    return Maker(engine, NAME, limits or Limits(), settings | given, None, NEW_TOKENS)


def run(some: Maker, *jobs: Any) -> None:
    """Step jobs to their ends, without a thread."""
    for job in jobs:
        some.engine.jobs[job.id] = job
        some.engine.waiting.extend(job.choices)
    while some.engine.running or some.engine.waiting:
        some.engine.tick()


@contextlib.contextmanager
def serving(some: Maker, *, keys: tuple[str, ...] = (), rate: int = 0, body: int = 1 << 20) -> Iterator[str]:
    """The app behind its guard on a free port, in a thread; its address."""
    import uvicorn

    from unmask.serving import api
    from unmask.serving.guard import LOOPBACK, Guard, Rules

    metrics = some.engine.metrics
    app = api.routes(some.engine, some, metrics, private=bool(keys))
    guarded = Guard(app, Rules(LOOPBACK, keys, body, seconds=5.0, rate=rate))
    with socket.create_server(("127.0.0.1", 0)) as found:
        server = uvicorn.Server(uvicorn.Config(guarded, http="h11", log_level="error", lifespan="off"))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        thread = threading.Thread(target=server.run, args=([found],), daemon=True)
        some.engine.start()
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{found.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
            some.engine.close(0)


def leak(root: Path) -> list[str]:
    """What no error may show."""
    return [str(root), "Traceback", "site-packages", ".py"]
