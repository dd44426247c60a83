"""Elements of the page that NiceGUI does not have: an answer's canvas while it fills and replayed, and plain tags.

In:  an answer (`page_answers.Answer`), words.  Out: an element; the browser's side of it is `page_canvas.js`.
"""

from __future__ import annotations

import json
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from unmask.replay_page import LEVELS
from unmask.serving.page_answers import Answer
from unmask.serving.page_words import Words


class Said(TextElement):
    """A tag with a text, which is never read as HTML."""

    def __init__(self, tag: str, text: str) -> None:
        super().__init__(tag=tag, text=text)


class Canvas(ui.element, component="page_canvas.js"):
    """Shows an answer from now on; the last one made for an answer is the one that is told of it."""

    def __init__(self, answer: Answer, words: Words) -> None:
        super().__init__()
        self.answer = answer
        self.actions: Any = None  # the buttons below it
        self.props["given"] = answer.state()
        self.props["words"] = words.of_canvas()
        self.props["levels"] = [one.below for one in LEVELS]
        self.ready, self.waits = False, list[dict[str, Any]]()
        self.on("ready", self.is_ready, args=[])
        answer.show = self.more

    def more(self, news: dict[str, Any]) -> None:
        """What is new, and only that; the element itself is not sent again."""
        if self.ready:
            self.call("more", news)
        else:
            self.waits.append(news)

    def is_ready(self) -> None:
        """The browser has made the element; what is told earlier finds nobody."""
        self.ready = True
        for news in self.waits:
            self.call("more", news)
        self.waits = []

    def call(self, method: str, *args: Any) -> None:
        """As `run_method`, but without its `return`: code with one is parsed twice by the browser, at every look."""
        if self._is_safe_to_interact():
            told = json.dumps(args, ensure_ascii=True, allow_nan=False)
            self.client.run_javascript(f"runMethod({self.id}, {json.dumps(method)}, {told})")


def colours() -> str:
    """The levels of confidence as CSS, for light and for dark."""

    def names(theme: str) -> str:
        return "".join(
            f"--c{i}:{getattr(one, theme)};--f{i}:{getattr(one, 'fresh_' + theme)};" for i, one in enumerate(LEVELS)
        )

    each = "".join(
        f".c{i}{{background:var(--c{i})}}.c{i}.fresh{{background:var(--f{i});color:var(--on)}}"
        for i in range(len(LEVELS))
    )
    return f"body{{{names('light')}}}body.body--dark{{{names('dark')}}}{each}"
