"""The page at `/`: chat with a model and watch it write, in English and Chinese, without leaving this machine.

In:  an app with the routes of the API, an engine, a maker of jobs, keys.
Out: the same app, which also answers `/`. The page works in-process: it asks the engine as the routes do.

Built with NiceGUI, whose files are all served from its package. What a tab is told is its own: everything is made for
one client (`page_view.View`), and kept by tab (`page_answers.Session`).
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import math
import re
import time
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from nicegui import Client, core, ui
from nicegui import app as pages
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from unmask.serving.engine import Engine
from unmask.serving.page_answers import Desk, Sessions
from unmask.serving.page_canvas import Said, colours
from unmask.serving.page_view import THEMES, View
from unmask.serving.page_words import Words, language_of
from unmask.serving.requests import Maker

GUESSES = 6  # wrong keys that one address may try in a minute
VISITS = 256  # pages that were asked for and have no connection (yet), which NiceGUI keeps for a minute
AWAY = 4.0  # seconds that a tab may be without connection before what is written for it is let go of
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><g fill="#8a97a5"><rect x="10" y="6" width="5" '
    'height="20" rx="1.5"/><rect x="24" y="6" width="5" height="20" rx="1.5"/></g><rect x="3" y="6" width="5" '
    'height="20" rx="1.5" fill="#00695c"/><rect x="17" y="6" width="5" height="20" rx="1.5" fill="#c77800"/></svg>'
)
NO_SCRIPT = '<noscript><p style="padding:2rem">This page needs JavaScript. 本页面需要 JavaScript。</p></noscript>'


NO_SNIFFING = {"x-content-type-options": "nosniff"}


@dataclass(eq=False)
class Site:
    """What one server's page works with."""

    engine: Engine
    maker: Maker
    keys: tuple[str, ...]
    sessions: Sessions = field(default_factory=Sessions)
    limiter: MovingWindowRateLimiter = field(default_factory=lambda: MovingWindowRateLimiter(MemoryStorage()))

    def guess(self, key: str, address: str) -> int | float | None:
        """The number of a key (an int), None if it is none, or (a float) the seconds until one may try again."""
        most, who = RateLimitItemPerMinute(GUESSES), network_of(address)
        if not self.limiter.test(most, who):
            return float(max(1, math.ceil(self.limiter.get_window_stats(most, who).reset_time - time.time())))
        found = None
        for number, one in enumerate(self.keys):  # all are compared: how long it takes tells nothing
            if hmac.compare_digest(key.encode(), one.encode()):
                found = number
        if found is None:
            self.limiter.hit(most, who)
        return found


def network_of(address: str) -> str:
    """An address, or of IPv6 the network of one house, which has more addresses than anybody could count."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address


class OnlyThePage(Mount):
    """NiceGUI for its own paths alone, so that unknown paths of the API are answered as the API answers them; and a
    policy by which the browser, whatever NiceGUI should come to want, asks nobody but this server for anything."""

    def __init__(self, site: Site) -> None:
        super().__init__("", app=self.with_policy, name="page")
        self.site = site

    def matches(self, scope: Any) -> tuple[Match, Any]:
        path = scope.get("path", "")
        if path not in ("/", "/favicon.ico") and not path.startswith(("/_nicegui/", "/_nicegui_ws/")):
            return Match.NONE, {}
        match, child = super().matches(scope)
        return match, {**child, "unmask.site": self.site}

    async def with_policy(self, scope: Any, receive: Any, send: Any) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        sockets = f"ws://{host} wss://{host}" if re.fullmatch(r"[\w.:\[\]-]+", host, re.ASCII) else ""
        policy = (
            "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
            "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors 'none'; connect-src 'self' {sockets}"
        )
        headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", **NO_SNIFFING}

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in headers.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await core.app(scope, receive, told)


def add(app: FastAPI, engine: Engine, maker: Maker, keys: tuple[str, ...]) -> None:
    """Let an app answer `/` with the page."""
    site = Site(engine, maker, keys)
    # `run_with` wraps the app's lifespan, so the engine is still started by its own. Nothing is stored on disk: no
    # secret, so no cookies either.
    ui.run_with(
        app,
        title="Unmask",
        favicon=ICON,
        dark=None,
        tailwind=False,  # 400 kB of script that would make styles in the browser; ours are in page.css
        reconnect_timeout=AWAY,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
    app.router.lifespan_context = quietly(app.router.lifespan_context)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "app", None) is not core.app]
    app.router.routes.append(OnlyThePage(site))
    if "/" not in {getattr(route, "path", None) for route in pages.routes}:
        ui.page("/", response_timeout=20)(page)


def quietly(lifespan: Any) -> Any:
    """A lifespan without warnings at its start: NiceGUI 3.18 looks for uvicorn's server among all objects of the
    process, and torch warns of some that are looked at."""

    @contextlib.asynccontextmanager
    async def begun(app: FastAPI) -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = await stack.enter_async_context(lifespan(app))
            yield state

    return begun


async def page(request: Request) -> None:
    """One client's page."""
    site: Site = request.scope["unmask.site"]
    client = ui.context.client
    if sum(not one.has_socket_connection for one in Client.instances.values()) > VISITS:
        client.delete()
        raise HTTPException(503, "too many visits at once; try again in a minute.")
    words = Words(language_of(request.query_params.get("lang"), request.headers.get("accept-language", "")))
    theme = request.query_params.get("theme", "auto")
    theme = theme if theme in THEMES else "auto"
    ui.add_css(colours() + Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    ui.add_body_html(NO_SCRIPT)
    await client.connected()
    if not client.tab_id:
        return

    def enter(owner: int | None) -> None:
        desk = Desk(site.engine, site.maker, owner)
        guard, who = request.scope.get("unmask.guard"), client.ip if owner is None else f"key {owner}"
        if guard is not None:
            desk.too_many = lambda: guard.too_many(who)
        view = View(desk, site.sessions.of(str(client.tab_id)), words, theme)
        client.on_delete(view.leave)

    if not site.keys:
        enter(None)
        return
    kept = f"owner {id(site)}"  # of this server, until the tab is closed; in the server's memory alone
    owner = pages.storage.tab.get(kept)
    if owner is not None:
        enter(owner)
        return
    gate(site, words, theme, enter, kept)


def gate(site: Site, words: Words, theme: str, enter: Any, kept: str) -> None:
    """Ask for a key first."""
    client = ui.context.client
    dark = ui.dark_mode(THEMES[theme][0])
    box = ui.element("main").classes("um um-gate")

    def given() -> None:
        found = site.guess(str(field.value or ""), client.ip)
        if isinstance(found, int):
            pages.storage.tab[kept] = found
            for old in (box, dark):
                old.delete()
            with client.content:
                enter(found)
            return
        alarm.set_text(words("key_wrong") if found is None else words("key_slow", after=int(found)))
        alarm.set_visibility(True)

    with box:
        Said("h1", words("key_title"))
        ui.label(words("key_hint")).classes("um-hint")
        field = ui.input(words("key"), password=True).props("outlined maxlength=400 autocomplete=off autofocus")
        field.on("keydown.enter", given)
        alarm = ui.label().classes("um-trouble").props("role=alert")
        alarm.set_visibility(False)
        ui.button(words("key_go"), on_click=given, color=None).classes("um-go").props("unelevated no-caps")
