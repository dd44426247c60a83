"""What one can do on the page with one answer at a time: chat, and fill gaps.

In:  a view (`page_view.View`), whose session they show and change.  Out: NiceGUI elements.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from nicegui import ui

from unmask import replay, replay_page
from unmask.serving.page_answers import Answer, Turn
from unmask.serving.page_canvas import Canvas, Said

if TYPE_CHECKING:
    from unmask.serving.page_view import View

LONGEST = 60_000  # letters of a text field: with its JSON below the largest message that the socket takes
# Enter sends, Shift+Enter makes a line, and Enter that ends a word of an input method (Chinese, Japanese) does neither.
ENTER = """(event) => {
  if (event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  emit();
}"""


class Panel:
    """What all three have."""

    name = ""

    def __init__(self, view: View) -> None:
        self.view, self.session, self.words = view, view.session, view.words
        label = self.words(self.name)
        self.box = ui.element("section").classes("um-panel").props(f'role=tabpanel aria-label="{label}"')
        with self.box:
            self.build()

    def build(self) -> None:
        raise NotImplementedError

    def say(self, text: str) -> None:
        """What went wrong, or nothing."""
        self.alarm.set_text(text)
        self.alarm.set_visibility(bool(text))

    def alarms(self) -> None:
        self.alarm = ui.label().classes("um-trouble").props("role=alert")
        self.say("")

    def draft(self, name: str, default: str = "") -> str:
        return self.session.drafts.setdefault(name, default)

    def keep(self, name: str) -> Any:
        def changed(event: Any) -> None:
            # half an emoji, where the browser cut a text at its longest, can be sent nowhere
            text = (event.value or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            self.session.drafts[name] = text
            if text != (event.value or ""):
                event.sender.set_value(text)

        return changed

    def field(self, name: str, label: str, default: str = "") -> ui.textarea:
        value = self.draft(name, default)
        made = ui.textarea(placeholder=label, value=value, on_change=self.keep(name))
        return made.props(f'maxlength={LONGEST} aria-label="{label}"')

    def go(self, text: str) -> None:
        """A button that asks, or stops what is being written: one, so that the focus stays on it."""
        self.go_text = text
        self.button = ui.button(on_click=self.press, color=None).classes("um-go").props("unelevated no-caps")
        self.busy()

    async def press(self) -> None:
        if self.busy():
            self.stop()
        else:
            await self.ask()

    def answers(self) -> list[Answer]:
        raise NotImplementedError

    async def ask(self) -> None:
        raise NotImplementedError

    def busy(self) -> bool:
        """Whether something is being written; the button says so."""
        found = any(answer.running for answer in self.answers())
        self.button.set_text(self.words("stop") if found else self.go_text)
        self.button.classes("um-stop") if found else self.button.classes(remove="um-stop")
        return found

    def stop(self) -> None:
        self.view.desk.stop(self.answers())

    def canvas(self, answer: Answer, name: str) -> Canvas:
        """An answer, and what can be done with it."""
        made = Canvas(answer, self.words)
        row = ui.element("div").classes("um-actions")
        with row:
            self.small("content_copy", "copy", lambda: self.copy(answer))
            if not self.view.maker.causal:
                self.small("download", "save_json", lambda: save(answer, name, "json"))
                self.small("movie", "save_page", lambda: save(answer, name, "html"))
        row.set_visibility(not answer.running)
        made.actions = row
        return made

    def small(self, icon: str, name: str, do: Any) -> None:
        ui.button(self.words(name), icon=icon, on_click=do, color=None).classes("um-small").props("flat no-caps")

    def copy(self, answer: Answer) -> None:
        ui.clipboard.write(answer.text)
        ui.notify(self.words("copied"), position="bottom", timeout=1200)


def save(answer: Answer, name: str, kind: str) -> None:
    """Hand a trace to the browser as a file: JSON, or a page that plays it."""
    record = answer.record()
    if record is not None:
        text = replay.plain(record) if kind == "json" else replay_page.page(record)
        media = "application/json" if kind == "json" else "text/html"
        ui.download.content(text.encode(), f"unmask-{name}.{kind}", media)


class Chat(Panel):
    """A conversation; without a chat template, texts that are gone on with."""

    name = "chat"

    def answers(self) -> list[Answer]:
        return [turn.answer for turn in self.session.turns]

    def build(self) -> None:
        words, chats = self.words, self.view.maker.template is not None
        self.turns = ui.element("div").classes("um-turns")
        self.shown: list[Canvas] = []
        with ui.element("div").classes("um-dock"):
            self.alarms()
            with ui.element("div").classes("um-composer"):
                self.text = self.field("chat", words("ask" if chats else "ask_text")).props(
                    "borderless dense autogrow rows=1"
                )
                self.text.props("for=um-field").on("keydown.enter", self.ask, js_handler=ENTER)
                self.new = ui.button(icon="add_comment", on_click=self.restart, color=None).classes("um-tool")
                self.new.props(f'flat aria-label="{words("new_chat")}"').tooltip(words("new_chat"))
                self.go(words("send"))
        self.fill()

    def fill(self) -> None:
        """The turns, or, before the first, what this is."""
        self.turns.clear()
        self.shown = []
        with self.turns:
            if not self.session.turns:
                self.hello()
            for turn in self.session.turns:
                self.add(turn)
        self.new.set_visibility(bool(self.session.turns))

    def hello(self) -> None:
        words, maker = self.words, self.view.maker
        with ui.element("div").classes("um-hello"):
            Said("h1", words("hello"))
            Said("p", words("hello_plain" if maker.causal else "hello_more"))
            if maker.template is None:
                Said("p", words("no_chat"))
            with ui.element("div").classes("um-examples"):
                for name in ("example_1", "example_2", "example_3"):
                    button = ui.button(words(name), on_click=functools.partial(self.begin, words(name)), color=None)
                    button.classes("um-soft").props("flat no-caps")

    def add(self, turn: Turn) -> None:
        ui.label(turn.question).classes("um-question").props(f'aria-label="{self.words("you")}"')
        with ui.element("article").classes("um-answer").props(f'aria-label="{self.words("answer")}"'):
            trouble = self.view.trouble(turn.answer)
            if trouble:
                ui.label(trouble).classes("um-trouble").props("role=alert")
            if not trouble or turn.answer.places or turn.answer.text:
                self.shown.append(self.canvas(turn.answer, f"chat-{len(self.shown) + 1}"))

    async def ask(self) -> None:
        await self.begin(self.text.value or "")

    async def begin(self, text: str) -> None:
        if not text.strip() or self.busy():
            return
        self.say("")
        settings = self.view.settings_or_trouble(self.say)
        if settings is None:
            return
        chats = self.view.maker.template is not None
        asked: dict[str, Any] = {"messages": self.session.messages(text)} if chats else {"prompt": text}
        answer = Answer("chat" if chats else "completion", self.view.maker.causal)
        self.session.turns.append(Turn(text, answer))
        self.text.set_value("")
        if len(self.session.turns) == 1:
            self.fill()
        else:
            with self.turns:
                self.add(self.session.turns[-1])
        self.busy()
        self.view.client.run_javascript(
            "setTimeout(() => window.scrollTo({top: document.body.scrollHeight, behavior: 'smooth'}), 60)"
        )
        self.view.ask(answer, asked | settings, "chat")

    def done(self, answer: Answer) -> None:
        """An answer has ended; called on the panel that is shown now."""
        self.busy()
        if answer.trouble:
            turn = self.session.turns[-1] if self.session.turns else None
            if turn and turn.answer is answer and not answer.places and not answer.text:
                self.session.turns.pop()  # nothing came of it: the question goes back to where it was typed
                self.text.set_value(turn.question)
                self.say(self.view.trouble(answer))
            self.fill()
        for canvas in self.shown:
            canvas.actions.set_visibility(not canvas.answer.running)

    def restart(self) -> None:
        self.stop()
        self.session.turns.clear()
        self.say("")
        self.busy()
        self.fill()


class Infill(Panel):
    """A text with gaps."""

    name = "infill"

    def answers(self) -> list[Answer]:
        return [self.session.filled] if self.session.filled else []

    def build(self) -> None:
        words = self.words
        with ui.element("div").classes("um-work"):
            Said("h1", words("infill_title"))
            ui.label(words("infill_more")).classes("um-lead")
            self.text = self.field("infill", words("infill_text"), words("infill_example"))
            self.text.props("outlined dense rows=4").classes("um-text")
            with ui.element("div").classes("um-row"):
                self.size = ui.number(value=8, min=1, max=999, step=1).props("outlined dense")
                self.size.props(f'aria-label="{words("gap")}"')
                ui.button(words("gap_put"), icon="space_bar", on_click=self.put, color=None).classes("um-soft").props(
                    "flat no-caps"
                )
                ui.element("div").classes("um-space")
                self.go(words("fill"))
            self.alarms()
            self.result = ui.element("div")
        self.fill()

    async def put(self) -> None:
        """A gap where the cursor stands."""
        gap = f"{{{{{int(self.size.value or 8)}}}}}"
        at = await self.view.client.run_javascript(
            f"(() => {{ const t = document.getElementById('c{self.text.id}').querySelector('textarea') "
            f"|| document.getElementById('c{self.text.id}'); return [t.selectionStart, t.selectionEnd]; }})()"
        )
        text = self.text.value or ""
        first, last = (len(text) * 2, len(text) * 2) if not at else (int(at[0]), int(at[1]))
        # JavaScript counts an emoji twice
        units = text.encode("utf-16-le", "surrogatepass")
        before, after = (part.decode("utf-16-le", "replace") for part in (units[: 2 * first], units[2 * last :]))
        self.text.set_value(before + gap + after)

    def fill(self) -> None:
        self.result.clear()
        self.shown = None
        answer = self.session.filled
        if answer and (answer.places or answer.running):
            with self.result, ui.element("div").classes("um-card"):
                self.shown = self.canvas(answer, "infill")

    async def ask(self) -> None:
        if self.busy():
            return
        self.say("")
        settings = self.view.settings_or_trouble(self.say, max_tokens=None)
        if settings is None:
            return
        answer = self.session.filled = Answer("infill")
        self.fill()
        self.busy()
        asked = {"text": self.text.value or ""} | settings
        self.view.ask(answer, asked, "infill")

    def done(self, answer: Answer) -> None:
        self.busy()
        if answer.trouble:
            self.say(self.view.trouble(answer))
            self.fill()
        elif self.shown:
            self.shown.actions.set_visibility(True)
