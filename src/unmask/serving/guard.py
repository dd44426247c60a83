"""What stands between the network and the routes: hosts, origins, keys, rates, and how much is read.

In:  ASGI requests.  Out: the same, with the number of the key that asked in `scope["unmask.key"]`; or a refusal.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

OPEN = frozenset({"/health", "/ready"})
"""Paths that need no key: who watches a server need not be its user."""

LINGER = 8
"""So many times the longest body are read and thrown away: who still sends when the connection is closed sees a reset,
and not the answer that says why."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Rules:
    """Who may ask, and how much.

    Attributes:
        hosts: names by which the server may be called; empty: all. A page in a browser may otherwise reach a server on
            its user's machine by a name of its own (DNS rebinding). keys: any of them is needed, if there are some.
            body: bytes of a request. seconds: within which a body has to come. rate: requests of a key in a minute; 0:
            any.
        private: beginnings of paths that need a key.
    """

    hosts: tuple[str, ...] = LOOPBACK
    keys: tuple[str, ...] = ()
    body: int = 1 << 20
    seconds: float = 30.0
    rate: int = 0
    private: tuple[str, ...] = ("/v1/", "/metrics")


class Guard:
    """The rules, around an app."""

    def __init__(self, app: Any, rules: Rules, refused: Callable[[int], None] = lambda status: None) -> None:
        self.app, self.rules, self.refused = app, rules, refused
        self.limiter = MovingWindowRateLimiter(MemoryStorage())
        self.item = RateLimitItemPerMinute(rules.rate) if rules.rate else None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        found = self.check(scope, headers)
        if found is None:
            scope["unmask.guard"] = self  # for the page, which asks the engine without another request
            if scope["type"] == "http":
                await self.with_limits(scope, receive, send, headers)
            else:
                await self.app(scope, receive, send)
            return
        status, message, code, more = found
        await self.refuse(scope, send, status, message, code, more)

    # -----------------------------------------------------------------------------------------------------------------

    def check(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str, str, dict[str, str]] | None:
        """What is wrong with a request, before anything of its body is read: (status, message, code, headers)."""
        host = headers.get("host", "")
        if self.rules.hosts and name_of(host) not in self.rules.hosts:
            return 421, "this server is not called that; name the host with --allowed_hosts.", "wrong_host", {}
        origin = headers.get("origin")
        if origin is not None and not same_origin(origin, host):
            return 403, "requests from pages of other origins are not answered.", "wrong_origin", {}
        path = scope["path"]
        private = path.startswith(self.rules.private) and path not in OPEN
        scope["unmask.key"] = None
        if self.rules.keys and private:
            number = key_of(headers.get("authorization", ""), self.rules.keys)
            if number is None:
                return (
                    401,
                    "a key is needed: send Authorization: Bearer KEY.",
                    "invalid_api_key",
                    {"www-authenticate": "Bearer"},
                )
            scope["unmask.key"] = number
        asks = (private and scope.get("method") == "POST") or (scope.get("method"), path) == ("GET", "/")
        if self.item and asks:
            client = scope.get("client") or ("", 0)
            who = str(client[0]) if scope["unmask.key"] is None else f"key {scope['unmask.key']}"
            if path == "/":
                who = f"visits of {who}"  # each makes a page; they take nothing of what may be asked
            after = self.too_many(who)
            if after:
                words = f"more than {self.rules.rate} requests in a minute; try again in {after} s."
                return 429, words, "rate_limit_exceeded", {"retry-after": str(after)}
        return None

    def too_many(self, who: str) -> int | None:
        """Count a request of a key or an address; the seconds until it may ask again, if it asks too often."""
        if self.item is None or self.limiter.hit(self.item, who):
            return None
        window = self.limiter.get_window_stats(self.item, who)
        return max(1, math.ceil(window.reset_time - time.time()))

    async def with_limits(self, scope: dict[str, Any], receive: Any, send: Any, headers: dict[str, str]) -> None:
        """Hand a request on when its body is there, which may be neither longer nor slower than is allowed."""
        length, most = headers.get("content-length", ""), self.rules.body
        too_long = f"the body is larger than {most:,} bytes."
        body, size = bytearray(), int(length) if length.isdigit() else 0
        try:
            async with asyncio.timeout(self.rules.seconds):
                more, read = size <= LINGER * most, 0
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    part, more = message.get("body", b""), message.get("more_body", False)
                    read += len(part)
                    size = max(size, read)
                    if size <= most:
                        body += part
                    more &= size <= LINGER * most
            if size > most:
                await self.refuse(scope, send, 413, too_long, "too_large", {"connection": "close"})
                return
        except TimeoutError:
            words = f"the body did not come within {self.rules.seconds:g} s."
            await self.refuse(scope, send, 408, words, "too_slow", {"connection": "close"})
            return
        given = False

        async def whole() -> Any:
            nonlocal given
            if given:
                return await receive()  # all that can come is that the client has gone
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, whole, send)

    async def refuse(
        self, scope: dict[str, Any], send: Any, status: int, message: str, code: str, headers: dict[str, str]
    ) -> None:
        self.refused(status)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        error = {"message": message, "type": kind.get(status, "invalid_request_error"), "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        named = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        lines = [(name.encode(), value.encode()) for name, value in named.items()]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": body})


def key_of(header: str, keys: Sequence[str]) -> int | None:
    """Which key a header holds. Every key is compared, each in constant time: nothing is told by how long it takes."""
    kind, _, given = header.partition(" ")
    told = given.strip().encode("latin-1", "replace")
    found = None
    for number, key in enumerate(keys):
        if hmac.compare_digest(told, key.encode()):
            found = number
    return found if kind.lower() == "bearer" else None


def name_of(host: str) -> str:
    """A Host header without its port, in small letters."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the host that was called."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False
