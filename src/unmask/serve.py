"""The command `unmask serve`: a model behind OpenAI's API, many requests at once, and a page at `/`.

In:  a model or adapter folder.
Out: a server on 127.0.0.1, until SIGTERM or Ctrl-C, when it finishes what it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask import report
from unmask.config import UserError, option
from unmask.conversation import NEW_TOKENS, ChatOptions
from unmask.reader import ReaderArguments, flags, load, read

if TYPE_CHECKING:
    from unmask.serving.engine import Engine


@dataclasses.dataclass
class ServeArguments:
    """Server"""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 is every network that this machine is in.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.")
    served_model_name: str | None = option(None, "The model's name for clients; its folder's if left out.")
    chat_template: str | None = option(
        None, "true, as if left out: the tokenizer's own. llada, or a .jinja file. false: none, and no chat."
    )
    preset: Literal["exact", "balanced", "fast"] = option(
        "exact", "How answers are decoded: exact, balanced or fast; the flags under Decoding override it."
    )
    measure_presets: bool = option(True, "Measure how far each preset agrees with exact, and print it at the start.")
    page: bool = option(True, "Show a page at / where one chats and watches the model write.")
    max_new_tokens: int = option(NEW_TOKENS, "Tokens of an answer where a request does not say.")


@dataclasses.dataclass
class LimitArguments:
    """Limits"""

    api_key: list[str] = option([], "Keys, one of which clients must send; UNMASK_API_KEY, with commas, adds more.")
    allowed_hosts: list[str] = option([], "Further names by which the server may be called; * takes any.")
    trusted_proxies: list[str] = option(
        [], "Addresses of proxies whose X-Forwarded-For says who asks; from others it is not believed."
    )
    rate: int = option(0, "Requests a minute of one key, or of one address without keys; 0: no limit.")
    max_body: int = option(1 << 20, "Bytes of a request.")
    max_prompt_tokens: int | None = option(None, "Tokens of a prompt; what the model holds if left out.")
    max_answer_tokens: int = option(4096, "Tokens that a request may ask for.")
    max_steps: int = option(4096, "Denoising steps that a request may ask for.")
    max_choices: int = option(16, "Answers of one request.")
    max_seconds: float = option(600.0, "Seconds after which an answer is cut short.")
    max_rows: int = option(16, "Answers that are stepped together.")
    max_places: int = option(16_384, "Places of all canvases that are stepped together.")
    cache_mib: int = option(4096, "MiB of keys and values kept at once.")
    queue: int = option(64, "Answers that may wait; more get 429.")
    drain_seconds: float = option(60.0, "Seconds that what has begun gets to finish after SIGTERM.")

    def check(self) -> None:
        """UserError for a limit that lets nothing through."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, (int, float)) and value < (0 if name in ("rate", "drain_seconds", "queue") else 1):
                raise UserError(f"--{name} is {value}; it must be at least {0 if name in ('rate', 'queue') else 1}.")


def options_of(argv: list[str]) -> type[ChatOptions]:
    """The decoding flags: those of the chat, and of the rule and the cache that the preset names."""
    from unmask.serving.presets import PRESETS

    named = flags(argv).get("preset", ServeArguments.preset)
    settings = PRESETS[named].settings if named in PRESETS else {}
    fields = [
        (field.name, field.type, dataclasses.field(default=settings[field.name], metadata=field.metadata))
        for field in dataclasses.fields(ChatOptions)
        if field.name in ("rule", "cache") and field.name in settings
    ]
    fields.append(("steps", int | None, option(None, "Denoising steps of an answer; one a token if left out.")))
    made = dataclasses.make_dataclass("ServeOptions", fields, bases=(ChatOptions,))
    made.__doc__ = ChatOptions.__doc__
    return made


def keys_of(limits: LimitArguments) -> tuple[str, ...]:
    """All keys; UserError for one that no header can hold."""
    named = [*limits.api_key, *os.environ.get("UNMASK_API_KEY", "").split(",")]
    keys = tuple(dict.fromkeys(key.strip() for key in named if key.strip()))
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError("--api_key has a key with blanks or letters beyond ASCII; a header cannot hold it.")
    return keys


def hosts_of(host: str, more: list[str]) -> tuple[str, ...]:
    """The names by which the server may be called; empty: any. Only on this machine's own address is it few."""
    from unmask.serving.guard import LOOPBACK

    if "*" in more:
        return ()
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local:
        return (*LOOPBACK, *(name.lower() for name in more))
    return (host.lower(), *LOOPBACK, *(name.lower() for name in more)) if more else ()


def listen(host: str, port: int) -> socket.socket:
    """A socket; UserError for an address that is taken or not there."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; it must be 0 to 65535.")
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, number)
        if os.name != "nt":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port.") from None
    return found


def serve(app: Any, engine: Engine, found: socket.socket, drain: float, proxies: list[str]) -> int:
    """Answer until a signal; then finish what has begun, within `drain` seconds or until a second one."""
    import uvicorn

    from unmask.serving.connections import Protocol

    config = uvicorn.Config(
        app,
        http=Protocol,  # h11, which limits how long headers may be
        h11_max_incomplete_event_size=64 << 10,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, int(drain)),
        limit_concurrency=1024,
        ws_max_size=1 << 20,
    )
    server = uvicorn.Server(config)
    caught: list[int] = []

    def stop(number: int, frame: Any) -> None:
        caught.append(number)
        if len(caught) == 1:
            report.say("stopping: what has begun is finished (once more to stop at once).")
            engine.closing = True
            threading.Thread(target=finish, daemon=True).start()
        else:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would tell of all that it breaks off
            server.force_exit = True

    def finish() -> None:
        """Let uvicorn end when there is nothing left to write: it closes the page's sockets at once."""
        until = time.monotonic() + drain
        while engine.jobs and len(caught) == 1 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)  # what was written last has to reach them
        config.timeout_graceful_shutdown = max(1, int(until - time.monotonic()))
        server.should_exit = True

    @contextlib.contextmanager
    def ours() -> Any:  # in place of uvicorn's handlers, which stop at once only on a second SIGINT
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    server.capture_signals = ours  # type: ignore[method-assign]
    asyncio.run(server.serve([found]))
    engine.close(0)
    return 0


def main(argv: list[str]) -> int:
    """`unmask serve --model FOLDER …`"""
    groups = [ReaderArguments, ServeArguments, LimitArguments]
    (reader, asked, limits), _, settings = read(
        "unmask serve", "Serve a model: OpenAI's API, and a page at /.", argv, groups, options=options_of(argv)
    )
    limits.check()
    try:
        import fastapi  # noqa: F401
        import limits as _  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"unmask serve needs {error.name}: pip install 'unmask[serve]', or make setup EXTRAS=serve."
        ) from None
    keys = keys_of(limits)
    found = listen(asked.host, asked.port)
    try:
        return _run(reader, asked, limits, settings, keys, found)
    finally:
        found.close()


def _run(reader: Any, asked: Any, limits: Any, settings: dict[str, Any], keys: tuple[str, ...], found: Any) -> int:
    from unmask.answer import LEFT_TO_RIGHT
    from unmask.serving import api, presets
    from unmask.serving.engine import Engine, Room
    from unmask.serving.guard import Guard, Rules
    from unmask.serving.metrics import Metrics
    from unmask.serving.requests import Limits, Maker

    loaded = load(reader, causal=None)
    name = asked.served_model_name or Path(str(reader.model)).name or "model"
    given = presets.given(asked.preset, settings) if not loaded.causal else settings
    if loaded.causal:
        for key in settings:
            if key not in LEFT_TO_RIGHT:
                raise UserError(
                    f"--{key} belongs to models that unmask, and {name} writes left to right; leave it out."
                )
        given = {"eos_stop": True} | settings
    metrics = Metrics()
    room = Room(limits.max_rows, limits.max_places, limits.cache_mib << 20, limits.queue)
    engine = Engine(loaded, room, metrics)
    most = Limits(
        limits.max_answer_tokens,
        limits.max_prompt_tokens,
        limits.max_choices,
        steps=limits.max_steps,
        seconds=limits.max_seconds,
    )
    template = {"true": None, "false": False}.get(str(asked.chat_template).lower(), asked.chat_template)
    maker = Maker(engine, name, most, given, template, asked.max_new_tokens)
    engine.writer.begin([0], 4, {**given, **({"steps": 4} if given.get("steps") else {})})  # flags that cannot be
    if not loaded.causal and asked.measure_presets:
        presets.show(presets.measure(maker))

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        engine.start()
        yield

    app: Any = api.routes(engine, maker, metrics, private=bool(keys), lifespan=lifespan)
    if asked.page:
        from unmask.serving import page

        page.add(app, engine, maker, keys)
    rules = Rules(hosts_of(asked.host, limits.allowed_hosts), keys, limits.max_body, rate=limits.rate)
    guarded = Guard(app, rules, lambda status: metrics.refused.labels(str(status)).inc())
    host, port = found.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    report.say(
        f"{name} is served at {where}/v1" + (f", the page at {where}/" if asked.page else "") + "; Ctrl-C stops it."
    )
    if not keys and not ipaddress.ip_address(host).is_loopback:
        report.say("warning: anyone who reaches this address may use it; give --api_key KEY.")
    return serve(guarded, engine, found, limits.drain_seconds, limits.trusted_proxies)
