"""Two rules on the same question, side by side, with what each took.

In:  a view (`page_view.View`).  Out: NiceGUI elements.
"""

from __future__ import annotations

from typing import Any

from nicegui import ui

from unmask import replay
from unmask.serving.page_answers import Answer
from unmask.serving.page_canvas import Canvas, Said
from unmask.serving.page_panels import ENTER, Panel
from unmask.serving.requests import RULES


class Compare(Panel):
    """Two rules, one question. They answer one after the other: at once, each would be timed with the other's work."""

    name = "compare"

    def answers(self) -> list[Answer]:
        return self.session.compared

    def build(self) -> None:
        words = self.words
        self.box.classes("um-broad")
        with ui.element("div").classes("um-work"):
            Said("h1", words("compare_title"))
            ui.label(words("compare_more")).classes("um-lead")
            self.text = self.field("compare", words("ask"), words("example_1")).props("outlined dense autogrow rows=1")
            self.text.on("keydown.enter", self.ask, js_handler=ENTER)
            with ui.element("div").classes("um-row"):
                for which, name in enumerate(("first", "second")):
                    self.rule(which, words(name))
                ui.element("div").classes("um-space")
                self.go(words("run"))
            self.alarms()
            self.result = ui.element("div")
        self.fill()

    def rule(self, which: int, label: str) -> None:
        if self.session.rules[which] is None:
            self.session.rules[which] = ("reference", "threshold")[which]

        def changed(event: Any) -> None:
            self.session.rules[which] = event.value

        made = ui.select(list(RULES), label=label, value=self.session.rules[which], on_change=changed)
        made.props("outlined dense options-dense").classes("um-grow")

    def fill(self) -> None:
        self.result.clear()
        # one that was never begun: the tab was away when it was its turn
        self.session.compared = [one for one in self.session.compared if one.running or one.job]
        self.session.labels = self.session.labels[: len(self.session.compared)]
        self.shown: list[Canvas] = []
        if not self.session.compared:
            return
        with self.result:
            self.table = ui.element("div")
            with ui.element("div").classes("um-pair"):
                for number, answer in enumerate(self.session.compared):
                    with ui.element("div").classes("um-card"):
                        Said("h3", self.session.labels[number])
                        self.shown.append(self.canvas(answer, f"compare-{number + 1}"))
        self.count()

    def count(self) -> None:
        """The table, as far as there is something to tell."""
        self.table.clear()
        ended = [answer for answer in self.session.compared if answer.end]
        if not ended:
            return
        words = self.words
        columns = [(words("passes"), 0), (words("tokens"), 0), (words("per_pass"), 2), (words("seconds"), 2)]
        rows = [numbers(answer) for answer in self.session.compared]
        known = [row for row in rows if row]
        best = [min(c) if i in (0, 3) else max(c) for i, c in enumerate(zip(*known, strict=True))]
        with self.table:
            with ui.element("table").classes("um-table"):
                with ui.element("tr"):
                    for text in (words("rule"), *(name for name, _ in columns)):
                        Said("th", text).props("scope=col")
                for label, row in zip(self.session.labels, rows, strict=True):
                    with ui.element("tr"):
                        Said("td", label)
                        for i, (_, digits) in enumerate(columns):
                            cell = Said("td", f"{row[i]:.{digits}f}" if row else "…")
                            if row and len(known) == 2 and i != 1 and row[i] == best[i] and known[0][i] != known[1][i]:
                                cell.classes("um-best")
            if len(ended) == 2:
                with ui.element("div").classes("um-row"):
                    button = ui.button(words("play_both"), icon="play_arrow", on_click=self.play_both, color=None)
                    button.classes("um-soft").props("flat no-caps")
                    ui.label(words("same", share=f"{100 * alike(*ended):.0f} %")).classes("um-hint")

    def play_both(self) -> None:
        for canvas in self.shown:
            canvas.call("restart")

    async def ask(self) -> None:
        text = self.text.value or ""
        if not text.strip() or self.busy():
            return
        self.say("")
        chats = self.view.maker.template is not None
        settings = self.view.settings_or_trouble(self.say, rule_args=None)
        if settings is None:
            return
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if chats else {"prompt": text}
        asked |= {"seed": 0} | settings
        kind: Any = "chat" if chats else "completion"
        self.session.compared = [Answer(kind), Answer(kind)]
        self.session.labels = [str(rule) for rule in self.session.rules]
        self.session.comparing = asked
        self.fill()
        self.one(0)
        self.busy()

    def one(self, number: int) -> None:
        """Let one rule answer."""
        rule = self.session.labels[number]
        self.view.ask(self.session.compared[number], self.session.comparing | {"rule": rule}, "compare")

    def done(self, answer: Answer) -> None:
        """A rule has answered; the second one begins when the first is through, unless that was stopped."""
        compared = self.session.compared
        if answer not in compared:
            return
        stopped = bool(answer.trouble) or bool(answer.end and answer.end["reason"] == "cancelled")
        if answer.trouble:
            self.say(self.view.trouble(answer))
        if stopped:
            self.session.compared = [one for one in compared if one.end and one.job]
            self.fill()
        elif answer is compared[0] and len(compared) == 2:
            self.one(1)
        self.busy()
        if self.session.compared:
            self.count()
        for canvas in self.shown:
            canvas.actions.set_visibility(not canvas.answer.running)


def numbers(answer: Answer) -> tuple[float, ...] | None:
    """Passes, tokens, tokens per pass, seconds, as they are shown: what reads alike is not called better."""
    end = answer.end
    if end is None:
        return None
    passes, tokens = end["passes"], end["tokens"]
    return passes, tokens, round(tokens / passes, 2) if passes else 0.0, round(end["seconds"], 2)


def alike(one: Answer, other: Answer) -> float:
    """The share of places at which two answers to the same question ended with the same token."""
    finals = []
    for answer in (one, other):
        *_, cells = replay.states({"places": answer.places, "steps": answer.steps})
        finals.append([cell.id for cell in cells[answer.start :]])
    pairs = list(zip(*finals, strict=False))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0
