"""The text of each place of a canvas, as it reads among its neighbours, for replays.

In:  a tokenizer, ids with None where places are open, and which of them changed.  Out: text by place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unmask.screen import BROKEN, PATIENCE, text_of, whole

REACH = 2 * PATIENCE
"""Places to each side of one that changed within which letters are spelt anew."""


class Spelling:
    """The text of each place, as it reads among its neighbours. Where ids are None, places are open."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special |= set(tokenizer.all_special_ids)
        self.own: dict[int, str] = {}  # the text of a token between whole words

    def text(self, token: int) -> str:
        if token not in self.own:
            # Behind itself, for some tokenizers drop the blank of a word that begins a text.
            once, twice = text_of(self.tokenizer, [token]), text_of(self.tokenizer, [token, token])
            self.own[token] = twice[len(once) :] if twice.startswith(once) else once
        return self.own[token]

    def named(self, token: int) -> str:
        """A token's text by itself, or its name in the vocabulary if it has no readable one."""
        if token in self.special or not self.text(token) or BROKEN in self.text(token):
            return str(self.tokenizer.convert_ids_to_tokens(token))
        return self.text(token)

    def is_part(self, token: int | None) -> bool:
        """Whether a token holds pieces of letters."""
        return token is not None and token not in self.special and BROKEN in self.text(token)

    def spell(self, ids: list[int | None], texts: list[str | None], changed: Iterable[int]) -> set[int]:
        """Bring `texts` up to date where ids changed; returns the places that were spelt anew."""
        touched, done = set(changed), set()
        for place in touched:
            token = ids[place]
            if token is None:
                texts[place] = None
            elif token in self.special:
                self.text(token)
                texts[place] = self.named(token)
            else:
                own = self.text(token)
                texts[place] = whole(own if place else text_of(self.tokenizer, [token]))
        # A letter is of few tokens, so only what is near in a run is spelt anew: in Chinese it may be all of a text.
        for place in sorted({p + near for p in touched for near in (-1, 0, 1)}):
            if 0 <= place < len(ids) and place not in done and self.is_part(ids[place]):
                first = last = place
                while first and place - first < REACH and self.is_part(ids[first - 1]):
                    first -= 1
                while last + 1 < len(ids) and last - place < REACH and self.is_part(ids[last + 1]):
                    last += 1
                done |= set(range(first, last + 1))
                self._letters(ids, texts, first, last)
        return touched | done

    def _letters(self, ids: list[int | None], texts: list[str | None], first: int, last: int) -> None:
        """Spell tokens of a run that hold pieces of letters; what stands before them in the run is spelt."""
        begin = first
        while begin and first - begin < PATIENCE and self.is_part(ids[begin - 1]):
            begin -= 1
        texts[first : last + 1] = [None] * (last + 1 - first)
        for place in range(first, last + 1):
            for start in range(place, max(begin, place - PATIENCE) - 1, -1):
                # No letter's bytes begin like the middle of one, so the fewest tokens that read well are the letter.
                ready = text_of(self.tokenizer, [int(i or 0) for i in ids[start : place + 1]]).rstrip(BROKEN)
                told = sum(len(text or "") for text in texts[start:place])
                if BROKEN not in ready and len(ready) > told:
                    texts[place] = whole(ready[told:])
                    texts[start:place] = [text or "" for text in texts[start:place]]
                    break
            else:
                own = self.text(int(ids[place] or 0))
                texts[place] = whole(own) if own.strip(BROKEN) else None  # a whole letter beside a piece of another

    def step(self, entry: dict[str, Any], ids: list[int | None], texts: list[str | None]) -> dict[str, Any]:
        """An entry with its texts; `ids` and `texts` are brought to where they stand after it."""
        changed: set[int] = set()
        for place, more in entry["grown"]:
            ids[place:place], texts[place:place] = [None] * more, [None] * more
            changed = {p + more if p >= place else p for p in changed} | set(range(place, place + more))
        for place in entry["reopened"]:
            ids[place] = None
        for place, token, _ in entry["written"]:
            ids[place] = token
        known = {place for place, *_ in entry["written"]} | set(entry["reopened"]) | changed
        before = list(texts)
        touched = self.spell(ids, texts, known)
        return entry | {
            "written": [[place, token, texts[place], sure] for place, token, sure in entry["written"]],
            "respelt": [[p, texts[p]] for p in sorted(touched - known) if texts[p] != before[p]],
        }
