"""Prompts as ids: what lm-eval hands over as text, and conversations through the one chat template.

In:  texts and conversations.  Out: ids, in which nothing that a user wrote is a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from unmask import reader
from unmask.config import UserError

CHUNK = 1000


class Pair(NamedTuple):
    """A request of loglikelihood in ids."""

    given: tuple[int, ...]
    target: tuple[int, ...]


class Rendered(str):
    """A prompt as text that went through the chat template, with the ids it is."""

    ids: tuple[int, ...]

    def __new__(cls, text: str, ids: Sequence[int]) -> Rendered:
        made = super().__new__(cls, text)
        made.ids = tuple(ids)
        return made

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.ids)


class Prompts:
    """A tokenizer and its chat template.

    Args:
        loaded: a `models.Loaded`, of which the tokenizer is used.
    """

    def __init__(self, loaded: Any) -> None:
        self.loaded, self.tokenizer = loaded, loaded.tokenizer
        self.template: Any = None
        self.known: dict[str, tuple[int, ...]] = {}
        self.folded = 0  # conversations whose system turn became a part of the first question

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without special tokens; the names of such in it are the letters they are."""
        if isinstance(text, Rendered):
            return text.ids
        if text not in self.known:
            self.known[text] = tuple(reader.encode(self.loaded, text))
        return self.known[text]

    def remember(self, texts: Iterable[str]) -> None:
        """Encode many texts at once, which is faster; until `forget`."""
        missing = [text for text in dict.fromkeys(texts) if not isinstance(text, Rendered) and text not in self.known]
        for start in range(0, len(missing), CHUNK):
            some = missing[start : start + CHUNK]
            ids = self.tokenizer(some, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self.known |= {text: tuple(row) for text, row in zip(some, ids, strict=True)}

    def forget(self) -> None:
        self.known.clear()

    def render(self, history: Sequence[dict[str, str]], opened: bool) -> Rendered:
        """A conversation as `unmask chat` renders it.

        Args:
            opened: the assistant's turn is opened behind the last message; else the last message is the beginning of
                an answer.
        """
        from unmask.template import Template

        self.template = self.template or Template(self.tokenizer)
        messages: list[Any] = list(history)
        begun = "" if opened else messages.pop()["content"]
        try:
            ids = self.template.prompt(messages)
        except UserError:
            if not any(message["role"] == "system" for message in messages):
                raise
            self.folded += 1
            ids = self.template.prompt(without_system(messages))
        ids = [*ids, *self.encode(begun)]
        return Rendered(self.tokenizer.decode(ids, skip_special_tokens=False), ids)

    def pair(self, context: str, continuation: str, prefix: int | None) -> Pair:
        """A request of loglikelihood in ids.

        A context in plain text and its continuation are cut as lm-eval 0.4.13 cuts them (`TemplateLM._encode_pair`):
        spaces at the context's end belong to the continuation. A rendered one ends where the answer begins: its last
        line ends, moved into the target, would make two tokens of a letter.

        Args:
            prefix: what stands before a continuation of which nothing stands before; None: nothing has to.
        """
        if isinstance(context, Rendered):
            return Pair(context.ids, self.encode(continuation))
        bare = context.rstrip()
        if not bare and not context:
            target = self.encode(continuation)
            if prefix is None:
                return Pair((), target)
            return Pair((prefix,), target) if target[:1] != (prefix,) else Pair(target[:1], target[1:])
        given = self.encode(bare)
        return Pair(given, self.encode(context + continuation)[len(given) :])


def without_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The same with the system's text before the first user's."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [dict(message) for message in messages if message["role"] != "system"]
    rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest
