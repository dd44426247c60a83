"""The same ids faster: `fastokens`, where it knows the tokenizer, and whether it gives the same on this very corpus.

In:  a tokenizer of `tokenizers`, texts.
Out: `why_not`: what keeps the fast encoder from a tokenizer; `Fast`: texts → ids; `Samples`: what to compare.

Chosen by measurement (20 MB of mixed text, Qwen3's 151,643 words, 2 cores, ids equal in all): `tokenizers` 0.23 took
5.9 s, kitoken 0.11 3.0 s, riptoken 0.2 2.9 s, tiktoken 0.14 on two threads 1.9 s, fastokens 0.3.5 0.15 s. gigatoken
0.10 is as fast; a cache of its grew without bound (its issue 36), and it needs `awkward`. bpe-qwen knows one
vocabulary, rs-bpe two of OpenAI's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.config import UserError

SWITCH = "UNMASK_ENCODER"  # environment: "ordinary" leaves the fast encoder alone
UNIT = 1 << 16  # characters of a text that are compared at once
FIRST = 64  # units compared at the start of a corpus
EVERY = 64  # of later units, one in so many is compared
AROUND = 6  # characters on each side of one that is new


class Differs(UserError):
    """The fast encoder gave other ids than the ordinary one."""


def installed() -> bool:
    return importlib.util.find_spec("fastokens") is not None


def why_not(backend: Any) -> str | None:
    """Why a tokenizer of `tokenizers` is not for the fast encoder, in words after "because"; None where it is.

    Known are byte-level BPEs: all 256 bytes are in the vocabulary, text is split by regular expressions or by digits.

    Raises:
        UserError: the environment variable UNMASK_ENCODER says neither "fast" nor "ordinary".
    """
    switch = os.environ.get(SWITCH, "fast")
    if switch not in ("fast", "ordinary"):
        raise UserError(f"{SWITCH} is {switch!r}; expected fast or ordinary.")
    if switch == "ordinary":
        return f"{SWITCH} says so"
    if not installed():
        return "the package fastokens is not installed"
    model = backend.model
    if type(model).__name__ != "BPE":
        return f"this is no byte-level BPE but {type(model).__name__}"
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk"):
        if getattr(model, name):
            return f"its BPE has {name}"
    return _split(_parts(backend.pre_tokenizer)) or _rest(backend)


def _parts(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as tokenizer.json has it."""
    return json.loads(part.__getstate__()) if part is not None else {}


def _split(pre: dict[str, Any]) -> str | None:
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    *before, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return "its text is not split as byte-level BPEs do it"
    for step in before:
        by_regex = step["type"] == "Split" and "Regex" in step["pattern"]
        if not (step["type"] == "Digits" or (by_regex and step["behavior"] == "Isolated" and not step["invert"])):
            return f"its text is split by {step['type']} in a way that is not known here"
    return None


def _rest(backend: Any) -> str | None:
    from tokenizers.pre_tokenizers import ByteLevel

    if any(backend.model.token_to_id(letter) is None for letter in ByteLevel.alphabet()):
        return "its vocabulary lacks some of the 256 bytes"
    normalizer = _parts(backend.normalizer).get("type")
    if normalizer not in (None, "NFC"):
        return f"it changes texts first ({normalizer})"
    for token in backend.get_added_tokens_decoder().values():
        if not token.special and (token.lstrip or token.rstrip or token.single_word):
            return f"its added token {token.content!r} takes its surroundings into account"
    return None


class Fast:
    """texts → ids, end to end, and where each text's end. It is built by a thread of its own, which takes a second.

    What special tokens are called is text; other added tokens are found in it, as the ordinary encoder does it.
    """

    def __init__(self, written: str) -> None:
        """written: the tokenizer as tokenizer.json has it."""
        self._written = written
        self._made: Any = None
        self.failed: str | None = None
        self._start()

    def _start(self) -> None:
        # No daemon: one that comes back from Rust while Python ends would bring the process down.
        self._thread = threading.Thread(target=self._build)
        self._thread.start()

    def _build(self) -> None:
        try:
            import fastokens

            made = fastokens.Tokenizer.from_json_str(self._written)
            made.no_truncation()
            made.no_padding()
            self._made = made
        except BaseException as error:  # a panic of Rust is no Exception (pyo3)
            self.failed = f"fastokens cannot read it ({str(error).splitlines()[0] if str(error) else type(error)})"

    def ready(self, wait: bool) -> bool:
        """Whether it can be called. False with `failed` set: never."""
        if self._made is None and self.failed is None:
            if not self._thread.is_alive():  # in a process that was forked meanwhile
                self._start()
            if wait:
                self._thread.join()
        return self._made is not None

    def __call__(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(tokens,), (texts,)"""
        ids, ends = self._made.encode_batch_flat(texts, False, True)
        return np.frombuffer(ids, dtype="<i4"), np.frombuffer(ends, dtype="<u8")[1:].astype(np.int64)


class Samples:
    """What of a corpus both encoders are asked: texts → texts.

    Both are functions of a text that take it character by character (its class decides the splits) and then each split
    by itself. So it is the first documents, one in EVERY of the rest by its number, and each character where it is
    met in the first batch that has it, with its surroundings; and at the start the added tokens, in and out of words.
    """

    def __init__(self, added: list[str]) -> None:
        self._extra = [f"a{token}b {token} {token}{token}\n{token}" for token in added]
        self._met = np.zeros(0x110000, dtype=bool)
        self._at = np.zeros(0x110000, dtype=np.int64)
        self._count = 0

    def __call__(self, texts: list[str]) -> list[str]:
        found, self._extra = self._extra, []
        for text in texts:
            for start in range(0, len(text), UNIT):
                number, self._count = self._count, self._count + 1
                # Multiplied by the golden ratio (Knuth), numbers are spread evenly, whatever period a corpus has.
                if number < FIRST or number * 0x9E3779B1 % (1 << 32) < (1 << 32) // EVERY:
                    found.append(text[start : start + UNIT])
        whole = "".join(texts)
        codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        for start in range(0, len(codes), UNIT):  # bit by bit: what the first one meets is no news to the others
            places = start + np.flatnonzero(~self._met[codes[start : start + UNIT]])
            if len(places):
                kinds = codes[places]
                self._at[kinds], self._met[kinds] = places, True
                once = places[self._at[kinds] == places]  # of each character one place, the last that was put down
                found += [whole[max(0, i - AROUND) : i + AROUND + 1] for i in once.tolist()]
        return found
