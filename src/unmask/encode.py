"""A tokenizer as a function from documents to ids, and what there is to know of it.

In:  a tokenizer of `transformers`, texts.
Out: `Encoder`: the ids of texts in which nothing is a special token, by the fast encoder or the ordinary one;
     `in_processes`: work shared out among processes; `token_bytes`: the size of each token's text;
     `tokenizer_fingerprint`: whether two tokenizers are the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from unmask.config import UserError
from unmask.fast_encode import SWITCH, Differs, Fast, Samples, why_not
from unmask.report import say

Ids = NDArray[np.int32]
Ends = NDArray[np.int64]
Flat = tuple[Ids, Ends]  # the ids of several texts end to end, and where each text's end
Encode = Callable[[list[str]], Flat]
T = TypeVar("T")
R = TypeVar("R")

PIECE = 1 << 20  # characters: a longer document is tokenised in pieces, which bounds memory and lets all cores work
CALL = 1 << 21  # characters given to the tokenizer at once
SEAM = 256  # characters looked at on each side to see whether a document may be taken apart at a place
SAID: set[str] = set()  # what has been said about the encoder in this run
FINGERPRINTS: dict[tuple[str, str, bool], str] = {}  # of tokenizers met in this run: a large one's takes a second


def end_to_end(ids: list[Ids]) -> Flat:
    """(tokens,) of each of several texts, as one."""
    return np.concatenate([np.zeros(0, dtype=np.int32), *ids]), np.cumsum([len(one) for one in ids], dtype=np.int64)


def joined(parts: list[Flat]) -> Flat:
    """Several groups of texts as one group."""
    if len(parts) == 1:
        return parts[0]
    lengths = [np.diff(ends, prepend=0) for _, ends in parts]
    ids = np.concatenate([np.zeros(0, dtype=np.int32), *(ids for ids, _ in parts)])
    return ids, np.cumsum(np.concatenate([np.zeros(0, dtype=np.int64), *lengths]))


class Encoder:
    """texts → ids of each, without special tokens; picklable, and leaves the tokenizer it was made from as it is.

    Args:
        eos: the end of text after each text.
        fast_after: use the fast encoder (fast_encode.py) from so many characters on, or say why not; None: never.
            0 waits for it to be built; else the ordinary one works meanwhile.
    """

    def __init__(self, tokenizer: Any, eos: bool, *, fast_after: int | None = None) -> None:
        inner = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        self.tokenizer = tokenizer if inner is None else None
        self.kind: Any = type(inner)
        self.written = "" if inner is None else inner.to_str()
        self.end = np.array(end_of_text(tokenizer) if eos else [], dtype=np.int32)
        self.mask = tokenizer.mask_token_id
        self.name = _where(tokenizer)
        self.read, self.fast_after = 0, fast_after
        self.fast: Fast | None = None
        self.against: str | None = "it is written in Python"
        if fast_after is not None and inner is not None:
            self.against = why_not(inner)
            self.added = [token.content for token in inner.get_added_tokens_decoder().values()]
            self.composes = inner.normalizer is not None
        if fast_after == 0:
            self._start_fast()

    def _start_fast(self) -> None:
        """Start building the fast encoder, or say why not; once."""
        self.wait, self.fast_after = self.fast_after == 0, None
        if self.against is None:
            self.fast, self.samples = Fast(self.written), Samples(self.added)
        else:
            self._ordinary_because(self.against)

    @property
    def name_here(self) -> str:
        """A name for what makes the ids, quickly made: others that give the same may have another. "" : has none."""
        digest = xxhash.xxh3_128(self.written.encode())
        digest.update(self.end.tobytes())
        return digest.hexdigest() if self.written else ""

    def _ordinary_because(self, reason: str) -> None:
        self.fast = None
        line = f"texts go through the ordinary tokenizer, the slower way, because {reason}"
        if line not in SAID and SWITCH not in reason:
            SAID.add(line)
            say(line)

    def __getstate__(self) -> dict[str, Any]:
        """Without what another process makes again for itself."""
        state = {k: v for k, v in vars(self).items() if k not in ("backend", "samples", "fast")}
        return state | {"fast": None, "fast_after": self.fast_after if self.fast is None else 1}

    @functools.cached_property
    def backend(self) -> Any:
        """The tokenizer of `tokenizers` itself, a copy; None where there is none.

        Not by transformers 5.23, which would compute offsets and masks; that takes a tenth longer.
        """
        if self.tokenizer is not None:
            return None
        backend = self.kind.from_str(self.written)
        backend.no_truncation()
        backend.no_padding()
        return backend

    def __call__(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, the end of text after them where it is wanted."""
        ids, ends = self.flat(texts)
        return np.split(ids, ends[:-1]) if texts else []

    def flat(self, texts: list[str]) -> Flat:
        """The same end to end, and where each text's end: (tokens,), (texts,).

        Raises:
            Differs: the fast encoder does not give the ids of the ordinary one.
        """
        pieces = [list(self._pieces(text)) for text in texts]
        flat = [piece for some in pieces for piece in some]
        made: list[Flat] = []
        start = size = 0
        for i, piece in enumerate(flat):
            size += len(piece)
            if size >= CALL or i == len(flat) - 1:
                made.append(self._encode(flat[start : i + 1]))
                start, size = i + 1, 0
        ids, ends = joined(made)
        return self._ended(ids, ends[np.cumsum([len(some) for some in pieces], dtype=np.int64) - 1])

    def _ended(self, ids: Ids, ends: Ends) -> Flat:
        """With the end of text after each text."""
        if not len(self.end):
            return ids, ends
        ends = ends + np.arange(1, len(ends) + 1)
        whole = np.empty(len(ids) + len(ends), dtype=np.int32)
        between = np.ones(len(whole), dtype=bool)
        between[ends - 1] = False
        whole[between], whole[ends - 1] = ids, self.end[0]
        return whole, ends

    def _encode(self, texts: list[str]) -> Flat:
        self.read += sum(map(len, texts))
        if self.fast_after is not None and self.read >= self.fast_after:
            self._start_fast()
        made = self._by_fast(self.fast, texts) if self.fast is not None else None
        ids, ends = self._ordinary(texts) if made is None else made
        if self.mask is not None and (ids == self.mask).any():
            # Only a mask that is not declared a special token gets here.
            raise UserError(
                f"a document holds the text of the mask, and {self.name} takes it for the mask (id {self.mask}). Make "
                "the mask a special token: tokenizer.add_special_tokens({'mask_token': …}), then save_pretrained."
            )
        return ids, ends

    def _ordinary(self, texts: list[str]) -> Flat:
        if self.backend is not None:
            # Set on each call: pickling to another process loses it (tokenizers 0.23).
            self.backend.encode_special_tokens = True
            found = [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        else:
            found = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # type: ignore[misc]
        return end_to_end([np.array(one, dtype=np.int32) for one in found])

    def _by_fast(self, fast: Fast, texts: list[str]) -> Flat | None:
        """The ids as the fast encoder gives them, compared; None where it is not ready, or never will be."""
        if self.wait or fast.ready(False):
            asked = self.samples(texts)
            # Before the fast encoder is waited for: one thread builds it, and the other cores are idle.
            right = self._ordinary(asked)
            if fast.ready(True):
                self._compare(asked, self._composed(fast, asked), right)
                return self._composed(fast, texts)
        if fast.failed:
            self._ordinary_because(fast.failed)
        return None

    def _composed(self, fast: Fast, texts: list[str]) -> Flat:
        # How letters and marks are put together depends on the edition of Unicode, and each library has its own.
        apart = [i for i, text in enumerate(texts) if self.composes and not unicodedata.is_normalized("NFC", text)]
        if not apart:
            return fast(texts)
        ids, ends = fast(["" if i in set(apart) else text for i, text in enumerate(texts)])
        every = np.split(ids, ends[:-1])
        ids, ends = self._ordinary([texts[i] for i in apart])
        for i, one in zip(apart, np.split(ids, ends[:-1]), strict=True):
            every[i] = one
        return end_to_end(every)

    def _compare(self, texts: list[str], found: Flat, right: Flat) -> None:
        if np.array_equal(found[0], right[0]) and np.array_equal(found[1], right[1]):
            return
        both = (np.split(ids, ends[:-1]) for ids, ends in (found, right))
        text = next(t for t, one, other in zip(texts, *both, strict=True) if not np.array_equal(one, other))
        raise Differs(
            f"fastokens gives other ids than {self.name} for {text[:60]!r}{'…' if len(text) > 60 else ''}; set "
            f"{SWITCH}=ordinary in the environment."
        )

    def _pieces(self, text: str) -> Iterator[str]:
        """A long document in pieces whose tokens, put together, are its own."""
        start = 0
        while len(text) - start > PIECE:
            cut = self._seam(text, start, start + PIECE)
            if not cut:
                break
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _seam(self, text: str, start: int, stop: int) -> int:
        """The last place after a line where no token spans the cut; 0 where the tokenizer sees a text as a whole."""
        for _ in range(16):
            cut = text.rfind("\n", start + 1, stop) + 1
            if not cut:
                return 0
            left, right = text[max(start, cut - SEAM) : cut], text[cut : cut + SEAM]
            ids, (both, *_) = self._ordinary([left + right, left, right])
            if np.array_equal(ids[:both], ids[both:]):
                return cut
            stop = cut - 1
        return 0


@contextlib.contextmanager
def in_processes(work: Callable[[list[T]], list[R]], workers: int) -> Iterator[Callable[[list[T]], list[R]]]:
    """The function itself (an encoder), or for several workers one that shares the texts out among processes.

    They are started afresh, not forked as `datasets` 5.2 does for `num_proc`: a child forked beside torch's threads
    waited for ever, twice in some twenty runs of the tests.
    """
    if workers < 2:
        yield work
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_work_for, initargs=(work,))

    def shared(texts: list[T]) -> list[R]:
        share = -(-len(texts) // workers)
        shares = [texts[i : i + share] for i in range(0, len(texts), share)]
        try:
            return [one for some in pool.map(_work_here, shares) for one in some]
        except BrokenProcessPool:
            raise UserError(
                "a process that tokenises died: no memory left, or a script that runs all of its lines when it is "
                'imported. Put them under `if __name__ == "__main__":`, or set --num_proc 1.'
            ) from None

    try:
        yield shared
    finally:
        pool.shutdown(cancel_futures=True)


_here: Callable[[list[Any]], list[Any]]  # in a process of `in_processes`: what it was started with


def _work_for(work: Callable[[list[Any]], list[Any]]) -> None:
    global _here
    _here = work


def _work_here(texts: list[Any]) -> list[Any]:
    return _here(texts)


def end_of_text(tokenizer: Any) -> list[int]:
    """The id of the end of text, in a list; UserError when the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"{_where(tokenizer)} has no end-of-text token; give it one, or say --insert_eos false.")
    return [tokenizer.eos_token_id]


def _where(tokenizer: Any) -> str:
    return f"the tokenizer of {getattr(tokenizer, 'name_or_path', '') or 'this model'}"


def token_bytes(tokenizer: Any) -> NDArray[np.int64]:
    """UTF-8 bytes of text that each id stands for: (largest id + 1,); 0 for special tokens and ids without a token.

    Exact for byte-level vocabularies. Of others, `<0x0A>` is one byte, `▁` one space, `##` of WordPiece nothing. An
    added token that is not special counts its text, since a text that has it becomes it.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
    byte_level = '"ByteLevel"' in json.dumps([parts.get("decoder"), parts.get("pre_tokenizer")])
    word_piece = (parts.get("model") or {}).get("type") == "WordPiece"
    added = dict(tokenizer.added_tokens_decoder)
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    sizes = np.zeros(max(len(tokenizer), 1 + max(vocabulary.values(), default=0)), dtype=np.int64)
    for token, i in vocabulary.items():
        if i in special:
            continue
        if i in added:
            sizes[i] = len(token.encode())
        elif byte_level:
            sizes[i] = len(token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            sizes[i] = 1
        else:
            bare = token.removeprefix("##") if word_piece else token.replace("▁", " ")
            sizes[i] = len(bare.encode())
    return sizes


def tokenizer_fingerprint(tokenizer: Any, *, special: bool = True) -> str:
    """The same for two tokenizers that make the same ids of the same text and name the same special tokens.

    Saving and loading keep it; so do padding, truncation and the chat template, which change no id of a document.

    Args:
        special: count the special tokens. False leaves them out, all but the end of text: documents hold no others, so
            that a mask token added to a tokenizer does not make tokens of before those of another.
    """
    names = ("eos_token", *(("bos_token", "unk_token", "pad_token", "mask_token") if special else ()))
    named = {name: tokenizer.convert_tokens_to_ids(t) for name in names if (t := getattr(tokenizer, name, None))}
    if getattr(tokenizer, "is_fast", False):
        written = tokenizer.backend_tokenizer.to_str()
        known = (xxhash.xxh3_128_hexdigest(written.encode()), repr(named), special)
        if known in FINGERPRINTS:
            return FINGERPRINTS[known]
        what = json.loads(written)
        what = {part: what.get(part) for part in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        what["added_tokens"] = [token for token in what["added_tokens"] if special or not token["special"]]
    else:
        what = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
        known = None
    found = xxhash.xxh3_128_hexdigest(json.dumps([what, named], sort_keys=True).encode())
    if known is not None:
        FINGERPRINTS[known] = found
    return found
