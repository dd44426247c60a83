"""Connections that say nothing are closed: each takes one of those that a server can have.

In:  uvicorn's own protocol, which waits for ever for a request's head (0.54; its timeout_keep_alive begins after the
first answer).
Out: the same, with a time within which a head has to come.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 30.0
"""Seconds within which the head of a request has to be there, from the connection or from its first byte on."""


class Protocol(H11Protocol):
    """HTTP/1.1 for those who speak."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.late = self.loop.call_later(HEAD, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.get_protocol() is not self or not answered:
            self.forget()
        elif self.late is None:
            self.late = self.loop.call_later(HEAD, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self.forget()
        super().connection_lost(exc)

    def forget(self) -> None:
        """A head is there, or the connection is gone."""
        if self.late is not None:
            self.late.cancel()
            self.late = None
