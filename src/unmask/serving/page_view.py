"""What stands on the page: its frame, the settings, the legend. The panels are in `page_panels.py`.

In:  a session (`page_answers.Session`), a desk to ask at, a language.  Out: NiceGUI elements, in the client at hand.

Texts of users and models are only ever the text of an element, never HTML.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from nicegui import background_tasks, ui

from unmask.replay_page import LEVELS
from unmask.serving.page_answers import Answer, Desk, Session
from unmask.serving.page_canvas import Said
from unmask.serving.page_compare import Compare
from unmask.serving.page_panels import Chat, Infill
from unmask.serving.page_words import LANGUAGES, TROUBLES, Words
from unmask.serving.requests import CACHES, RULES
from unmask.values import pairs

THEMES: dict[str, tuple[bool | None, str]] = {
    "auto": (None, "brightness_auto"),
    "light": (False, "light_mode"),
    "dark": (True, "dark_mode"),
}
WHOLE_NUMBERS = ("steps", "block_size", "max_tokens", "seed")


class View:
    """A session on one client's screen."""

    def __init__(self, desk: Desk, session: Session, words: Words, theme: str) -> None:
        self.desk, self.session, self.words, self.theme = desk, session, words, theme
        self.maker = desk.maker
        self.client = ui.context.client
        self.dark = ui.dark_mode(THEMES[theme][0])
        self.frame = ui.element("div").classes("um")
        self.panels: dict[str, Any] = {}
        session.view = self
        desk.wanted = lambda: session.view is not None
        self.build()

    def build(self) -> None:
        """All of it, anew; answers that are being written go on."""
        self.frame.clear()
        with self.frame:
            ui.link(self.words("skip"), "#um-field").classes("um-skip")
            self.top()
            with ui.element("div").classes("um-body"):
                with ui.element("main").classes("um-main"):
                    self.middle()
                self.side = ui.element("aside").classes("um-side").props(f'aria-label="{self.words("settings")}"')
                with self.side:
                    self.settings()
        self.turn_to(self.session.panel)
        said = {
            "lang": {"en": "en", "zh": "zh-CN"}[self.words.language],
            "title": f"{self.maker.name} · Unmask",
            "lost": [self.words("lost"), self.words("trying")],
        }
        self.client.run_javascript(
            f"(said => {{ document.documentElement.lang = said.lang; document.title = said.title; "
            "document.querySelectorAll('#popup span').forEach((span, i) => span.textContent = said.lost[i]); "
            f"}})({json.dumps(said)})"
        )

    # -----------------------------------------------------------------------------------------------------------------
    # Around

    def top(self) -> None:
        words = self.words
        with ui.element("header").classes("um-top"):
            with ui.element("div").classes("um-brand"):
                with ui.element("span").classes("um-mark").props("aria-hidden=true"):
                    for _ in range(4):
                        ui.element("i")
                ui.label("unmask").classes("um-name")
                ui.label(self.maker.name).classes("um-model").tooltip(self.maker.name)
            self.tabs = ui.tabs(on_change=lambda event: self.turn_to(event.value))
            self.tabs.props(f'dense no-caps aria-label="{words("tabs")}" indicator-color=transparent')
            with self.tabs:
                ui.tab("chat", words("chat" if self.maker.template else "text"))
                if not self.maker.causal:
                    ui.tab("infill", words("infill"))
                    ui.tab("compare", words("compare"))
            self.tabs.set_value(self.session.panel)
            ui.element("div").classes("um-space")
            with ui.element("div").classes("um-tools"):
                self.opener = self.tool("tune", words("settings"), self.toggle_settings).classes("um-side-go")
                self.opener.props("aria-expanded=false")
                name = words(f"theme_{self.theme}")
                self.theme_tool = self.tool(THEMES[self.theme][1], name, self.next_theme)
                other = next(name for name in LANGUAGES if name != words.language)
                button = ui.button(words("other_language"), on_click=lambda: self.speak(other), color=None).classes(
                    "um-tool"
                )
                button.props(f'flat no-caps aria-label="{words("language")}"')

    def tool(self, icon: str, name: str, do: Callable[[], Any]) -> ui.button:
        button = ui.button(icon=icon, on_click=do, color=None).classes("um-tool").props(f'flat aria-label="{name}"')
        with button:
            ui.tooltip(name)
        return button

    def middle(self) -> None:
        if not self.maker.causal:
            self.legend().classes("um-strip")
        kinds: dict[str, Any] = {"chat": Chat}
        if not self.maker.causal:
            kinds |= {"infill": Infill, "compare": Compare}
        self.panels = {name: kind(self) for name, kind in kinds.items()}

    def turn_to(self, name: str) -> None:
        self.session.panel = name = name if name in self.panels else "chat"
        for key, panel in self.panels.items():
            panel.box.classes(remove="um-hide") if key == name else panel.box.classes("um-hide")
        self.client.run_javascript("window.scrollTo(0, 0)")

    def toggle_settings(self) -> None:
        self.side.classes(toggle="um-shown")
        self.opener.props(f"aria-expanded={'true' if 'um-shown' in self.side.classes else 'false'}")
        self.client.run_javascript("window.scrollTo(0, 0)")

    def address(self) -> None:
        """Keep language and colours in the address, so that a link or a reload has them."""
        query = f"?lang={self.words.language}" + (f"&theme={self.theme}" if self.theme != "auto" else "")
        self.client.run_javascript(f"history.replaceState(history.state, '', {json.dumps(query)})")

    def speak(self, language: str) -> None:
        self.words = Words(language)
        self.build()
        self.address()

    def next_theme(self) -> None:
        names = list(THEMES)
        self.theme = names[(names.index(self.theme) + 1) % len(names)]
        self.dark.value, icon = THEMES[self.theme]
        self.theme_tool.props(f'icon={icon} aria-label="{self.words(f"theme_{self.theme}")}"')
        self.address()

    # -----------------------------------------------------------------------------------------------------------------
    # Settings and legend

    def settings(self) -> None:
        words, causal = self.words, self.maker.causal
        with ui.element("div").classes("um-row").style("margin: 0; justify-content: space-between"):
            Said("h2", words("settings"))
            ui.button(words("reset"), on_click=self.reset, color=None).props("flat no-caps").classes("um-small")
        ui.label(words("settings_hint")).classes("um-hint")
        with ui.element("div").classes("um-fields"):
            if not causal:
                self.choose("rule", RULES, "reference").classes("um-wide")
                self.type_in("rule_args", words("rule_args_hint")).classes("um-wide")
                self.number("steps", 1, words("all_tokens"))
                self.number("block_size", 1, words("whole"))
            self.number("temperature", 0, "0", step=0.1)
            self.number("max_tokens", 1, str(min(self.maker.new, self.maker.limits.new)))
            self.number("seed", 0, words("drawn"))
            if not causal:
                self.choose("cache", CACHES, "none").classes("um-wide")
        if causal:
            ui.element("hr")
            ui.label(words("why_plain")).classes("um-hint")
            return
        ui.element("hr")
        Said("h2", words("legend"))
        self.legend()
        ui.label(words("legend_hint")).classes("um-hint")

    def legend(self) -> ui.element:
        words = self.words
        made = ui.element("div").classes("um-legend").props(f'role=group aria-label="{words("legend")}"')
        with made:
            for i, one in enumerate(LEVELS):
                below = LEVELS[i - 1].below if i else 0
                Said("span", f"{below:.1f}–{min(1, one.below):.1f}").classes(f"t c{i}")
            Said("span", words("fresh")).classes(f"t c{len(LEVELS) - 1} fresh")
            Said("span", words("open")).classes("t mask")
            Said("span", words("back")).classes("t mask back")
        return made

    def keep(self, name: str) -> Callable[[Any], None]:
        def changed(event: Any) -> None:
            self.session.settings[name] = event.value

        return changed

    def choose(self, name: str, values: tuple[str, ...], default: str) -> ui.select:
        given = str(self.maker.named(self.maker.given).get(name, default))
        options = {"": self.words("servers", value=given)} | {value: value for value in values}
        chosen = self.session.settings.get(name) or ""
        made = ui.select(options, label=self.words(name), value=chosen, on_change=self.keep(name))
        return made.props("outlined dense options-dense")

    def number(self, name: str, least: float, hint: str, step: float = 1) -> ui.number:
        given = self.maker.given.get(name)
        value = self.session.settings.get(name)
        made = ui.number(self.words(name), value=value, min=least, step=step, on_change=self.keep(name))
        return made.props("outlined dense stack-label").props(placeholder_of(hint if given is None else str(given)))

    def type_in(self, name: str, hint: str) -> ui.input:
        value = str(self.session.settings.get(name) or "")
        made = ui.input(self.words(name), value=value, on_change=self.keep(name))
        return made.props("outlined dense stack-label maxlength=400").props(placeholder_of(hint))

    def reset(self) -> None:
        self.session.settings.clear()
        self.side.clear()
        with self.side:
            self.settings()

    def asked(self, **more: Any) -> dict[str, Any]:
        """The settings that are not the server's. ValueError for rule settings that cannot be read."""
        found = {k: v for k, v in self.session.settings.items() if v not in (None, "")} | more
        for name in WHOLE_NUMBERS:
            if isinstance(found.get(name), float) and found[name].is_integer():
                found[name] = int(found[name])
        if isinstance(found.get("rule_args"), str):
            found["rule_args"] = pairs(found["rule_args"])
        return {name: value for name, value in found.items() if value is not None}

    # -----------------------------------------------------------------------------------------------------------------
    # Asking

    def ask(self, answer: Answer, fields: dict[str, Any], panel: str) -> None:
        """Have an answer written, and tell its panel when that is over: in this language or the next, in this client
        or, if the page was loaded anew in the meantime, in that."""

        async def run() -> None:
            try:
                await self.desk.ask(answer, fields)
            finally:
                view = self.session.view
                if view and not view.client.is_deleted:
                    with view.frame:
                        view.panels[panel].done(answer)

        background_tasks.create(run(), name="an answer")

    def settings_or_trouble(self, say: Callable[[str], None], **more: Any) -> dict[str, Any] | None:
        try:
            return self.asked(**more)
        except ValueError as error:
            say(self.words("invalid", message=str(error).replace("--", "")))
            return None

    def trouble(self, answer: Answer) -> str:
        """What went wrong, in words; empty where nothing did."""
        one = answer.trouble
        if one is None:
            return ""
        name = one.code if one.code in TROUBLES else "refused"
        return self.words(name, message=one.message, after=int(one.after or 1))

    def leave(self) -> None:
        """The tab was closed: what is written for it is let go of, unless it was opened anew in the meantime."""
        if self.session.view is self:
            self.session.view, self.session.seen = None, time.monotonic()
            self.desk.stop(self.session.answers)


def placeholder_of(text: str) -> str:
    """As a prop; NiceGUI reads those as JSON between quotation marks."""
    return f"placeholder={json.dumps(text, ensure_ascii=False)}"
