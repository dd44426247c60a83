"""Gaps and constraints as they are typed: which places of a text are open, and what stands in an answer beforehand.

In:  texts with `{{8}}`; `0:Once,5:upon`.  Out: pieces and numbers; answers in which None is an open place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from unmask.config import UserError


def with_constraints(new: int, constraints: Mapping[int, int | Sequence[int]]) -> list[int | None]:
    """An answer of `new` places in which some are given; UserError for one outside it or on top of another."""
    answer: list[int | None] = [None] * new
    for place, tokens in constraints.items():
        for at, token in enumerate([tokens] if isinstance(tokens, int) else tokens, start=place):
            if not 0 <= at < new:
                raise UserError(f"the constraint at {place} lies outside the answer's {new} tokens, 0 to {new - 1}.")
            if answer[at] is not None:
                raise UserError(f"two constraints want the answer's token {at}; move one.")
            answer[at] = token
    return answer


def parse_constraints(text: str | None) -> dict[int, str]:
    """`0:Once,5:upon a` → {0: "Once", 5: "upon a"}; UserError for anything else. A comma within a word is `\\,`."""
    found: dict[int, str] = {}
    for part in re.split(r"(?<!\\),", text or ""):
        place, sign, word = part.partition(":")
        if not part and not text:
            continue
        if not sign or not word or not place.strip().isdigit():
            raise UserError(f"expected --constraints PLACE:WORD,PLACE:WORD, such as '0:Once,5:upon', not {part!r}.")
        if int(place) in found:
            raise UserError(f"--constraints names the place {int(place)} twice.")
        found[int(place)] = word.replace("\\,", ",")
    return found


GAP = re.compile(r"(?<!\\)(\\*)\{\{(\d+)\}\}")  # looks back, or a row of n backslashes would be read n²/2 times


def parse_gaps(text: str) -> list[str | int]:
    r"""`"return {{8}}\n"` → ["return ", 8, "\n"]: text, and gaps of so many tokens.

    A backslash before the braces keeps them as text: `\{{8}}` is the text `{{8}}`, `\\{{8}}` a backslash and a gap.
    Braces around anything but a number are text as they are.
    """
    pieces: list[str | int] = []
    start = 0

    def add(piece: str) -> None:
        if pieces and isinstance(pieces[-1], str):
            piece = str(pieces.pop()) + piece
        if piece:
            pieces.append(piece)

    for found in GAP.finditer(text):
        slashes, size = found.group(1), int(found.group(2))
        add(text[start : found.start()] + "\\" * (len(slashes) // 2))
        if len(slashes) % 2:
            add(text[found.start() + len(slashes) : found.end()])
        elif size < 1:
            raise UserError(f"the gap {found.group()!r} has no token; a gap has at least 1, as in {{{{8}}}}.")
        else:
            pieces.append(size)
        start = found.end()
    add(text[start:])
    return pieces
