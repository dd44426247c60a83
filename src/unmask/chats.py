"""Rows of instruction data to conversations.

In:  rows with the columns of one of the forms that such data come in.
Out: lists of messages {"role": system|user|assistant, "content": text}, checked: at most one system message, first;
     then user and assistant in turns, an answer last; no message empty.

    form      columns
    messages  messages: [{role, content}, …]; content is text, or a list of {"type": "text", "text": …}
    sharegpt  conversations: [{from, value}, …] (or role, content); human and gpt are user and assistant
    alpaca    instruction, output; input (joined to the instruction by a blank line), history ([[user, assistant], …])
    prompt    prompt, and completion or response: texts, or lists of messages

A column `system` is the system message in all of them. Other columns are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

from unmask.values import UserError, nearest


class Message(TypedDict):
    role: str
    content: str


class NoAnswer(UserError):
    """A row that ends without an answer: real data have some, and they can be left out without harm."""


FORMS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "response": ("prompt", "response"),
}
"""Form → the columns it is known by; where data have those of several, the first in this order."""

COLUMNS = sorted({"input", "history", "system", *(name for needed in FORMS.values() for name in needed)})
"""Every column that is read."""

KNOWN = "; ".join(
    (
        "instruction, output (Alpaca; input, history, system besides)",
        "messages",
        "conversations (ShareGPT)",
        "prompt, completion",
        "prompt, response",
    )
)
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def format_of(columns: Iterable[str]) -> str:
    """The name of the form that data with these columns are in; UserError when there is none."""
    there = list(columns)
    for form, needed in FORMS.items():
        if set(needed) <= set(there):
            return form
    wanted = sorted({name for needed in FORMS.values() for name in needed} - set(there))
    hint = next((f" Rename {name!r}.{near}" for name in there if (near := nearest(name, wanted))), "")
    raise UserError(
        f"the data have the columns {', '.join(there) or '(none)'}; expected those of one of: {KNOWN}.{hint}"
    )


def messages(row: dict[str, Any], format: str, number: int) -> list[Message]:
    """A row's conversation.

    Args:
        format: what `format_of` said. number: the row's number, for errors.

    Raises:
        NoAnswer: the answer is missing, null or blank. UserError: anything else that is not as the file's head says.
    """
    where = f"row {number:,}"
    found = _READERS[format](row, where)
    system = row.get("system")
    if system is not None and not (isinstance(system, str) and not system.strip()):
        if found and found[0]["role"] == "system":
            raise UserError(
                f"{where}: a system message stands in the column 'system' and in the conversation; keep one."
            )
        found.insert(0, {"role": "system", "content": _text(system, f"{where}, system")})
    return _checked(found, where)


def _checked(found: list[Message], where: str) -> list[Message]:
    if not found:
        raise NoAnswer(f"{where}: the conversation has no messages.")
    expected = "user"
    for i, message in enumerate(found):
        role, blank = message["role"], not message["content"].strip()
        if role == "system" and i:
            raise UserError(f"{where}: message {i + 1} is of the system; a system message can only be the first.")
        if role == "system" and blank:
            raise UserError(f"{where}: the system message is empty; leave it out.")
        if role == "system":
            continue
        if role != expected:
            before = f"after that of the {found[i - 1]['role']}" if i else "at the beginning"
            raise UserError(
                f"{where}: message {i + 1} is of the {role}, {before}; expected the {expected}. User and assistant "
                "take turns, and the user begins."
            )
        if blank:
            kind = NoAnswer if role == "assistant" and i == len(found) - 1 else UserError
            raise kind(f"{where}: message {i + 1}, of the {role}, is empty.")
        expected = "assistant" if role == "user" else "user"
    if found[-1]["role"] != "assistant":
        raise NoAnswer(f"{where}: the conversation ends with a message of the {found[-1]['role']}, without an answer.")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# One reader for each form


def _alpaca(row: dict[str, Any], where: str) -> list[Message]:
    found: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise UserError(f"{where}: 'history' is {_shown(history)}; expected a list of [user, assistant] pairs.")
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise UserError(f"{where}: 'history' holds {_shown(pair)}; expected a list of [user, assistant] pairs.")
        found += [
            {"role": role, "content": _text(text, f"{where}, history")}
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    instruction = _text(row["instruction"], f"{where}, instruction")
    more = "" if row.get("input") is None else _text(row["input"], f"{where}, input")
    return [*found, *_pair(f"{instruction}\n\n{more}".strip(), row["output"], f"{where}, output")]


def _prompted(answer: str) -> Any:
    def read(row: dict[str, Any], where: str) -> list[Message]:
        if isinstance(row["prompt"], list) or isinstance(row[answer], list):
            prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
            last = row[answer] if isinstance(row[answer], list) else [{"role": "assistant", "content": row[answer]}]
            return [_message(one, where) for one in [*prompt, *last]]
        return _pair(_text(row["prompt"], f"{where}, prompt"), row[answer], f"{where}, {answer}")

    return read


def _listed(column: str) -> Any:
    def read(row: dict[str, Any], where: str) -> list[Message]:
        found = row[column]
        if isinstance(found, dict):  # `datasets` stores a Sequence of dicts as a dict of lists
            found = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        if found is not None and not isinstance(found, list):
            raise UserError(f"{where}: {column!r} is {_shown(found)}; expected a list of messages.")
        return [_message(one, where) for one in found or []]

    return read


_READERS = {
    "messages": _listed("messages"),
    "sharegpt": _listed("conversations"),
    "alpaca": _alpaca,
    "completion": _prompted("completion"),
    "response": _prompted("response"),
}


def _pair(prompt: str, answer: Any, where: str) -> list[Message]:
    if answer is None:
        raise NoAnswer(f"{where}: there is no answer (null).")
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": _text(answer, where)}]


def _message(one: Any, where: str) -> Message:
    """A message under any of its spellings."""
    if not isinstance(one, dict):
        raise UserError(f"{where}: a message is {_shown(one)}; expected {{role, content}} or {{from, value}}.")
    role = one.get("role") if one.get("role") is not None else one.get("from")
    content = one.get("content") if one.get("content") is not None else one.get("value")
    if role is None:
        raise UserError(f"{where}: a message has the keys {', '.join(one)}; expected role, content or from, value.")
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise UserError(f"{where}: the role {role!r} is none of {', '.join(ROLES)}.{nearest(str(role), ROLES)}")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, dict) else part
                raise UserError(
                    f"{where}: the {known}'s message has a part of the kind {kind!r}; only text can be learnt."
                )
        content = "".join(_text(part.get("text"), f"{where}, {known}'s message") for part in content)
    return {"role": known, "content": "" if content is None else _text(content, f"{where}, {known}'s message")}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {_shown(value)} is not text.")
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)[:60]
