"""A tokenizer as a function from documents to ids, and what there is to know of it.

In:  a tokenizer of `transformers`, texts.
Out: `Encoder`: the ids of texts in which nothing is a special token; `in_processes`: the same, in several processes;
     `token_bytes`: the size of each token's text; `tokenizer_fingerprint`: whether two tokenizers are the same.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from unmask.config import UserError

Ids = NDArray[np.int32]
Encode = Callable[[list[str]], list[Ids]]
T = TypeVar("T")
R = TypeVar("R")

PIECE = 1 << 20  # characters: a longer document is tokenised in pieces, which bounds memory and lets all cores work
CALL = 1 << 21  # characters given to the tokenizer at once
SEAM = 256  # characters looked at on each side to see whether a document may be taken apart at a place


class Encoder:
    """texts → ids of each, without special tokens; picklable, and leaves the tokenizer it was made from as it is."""

    def __init__(self, tokenizer: Any, eos: bool) -> None:
        end = end_of_text(tokenizer) if eos else []
        # The backend itself: transformers 5.23 would compute offsets and masks, which takes a tenth longer.
        self.backend = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        self.tokenizer = tokenizer if self.backend is None else None
        if self.backend is not None:
            self.backend = type(self.backend).from_str(self.backend.to_str())
            self.backend.no_truncation()
            self.backend.no_padding()
        self.end = np.array(end, dtype=np.int32)
        self.mask = tokenizer.mask_token_id
        self.name = _where(tokenizer)

    def __call__(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, the end of text after them where it is wanted."""
        pieces = [list(self._pieces(text)) for text in texts]
        flat = [piece for some in pieces for piece in some]
        ids: list[Ids] = []
        start = size = 0
        for i, piece in enumerate(flat):
            size += len(piece)
            if size >= CALL or i == len(flat) - 1:
                ids += self._encode(flat[start : i + 1])
                start, size = i + 1, 0
        of = iter(ids)
        return [np.concatenate([*(next(of) for _ in some), self.end]) for some in pieces]

    def _encode(self, texts: list[str]) -> list[Ids]:
        if self.backend is not None:
            # Set on each call: pickling to another process loses it (tokenizers 0.23).
            self.backend.encode_special_tokens = True
            found = [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        else:
            found = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # type: ignore[misc]
        ids = [np.array(one, dtype=np.int32) for one in found]
        if self.mask is not None and any((one == self.mask).any() for one in ids):
            # Only a mask that is not declared a special token gets here.
            raise UserError(
                f"a document holds the text of the mask, and {self.name} takes it for the mask (id {self.mask}). Make "
                "the mask a special token: tokenizer.add_special_tokens({'mask_token': …}), then save_pretrained."
            )
        return ids

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
            both, one, other = self._encode([left + right, left, right])
            if np.array_equal(both, np.concatenate([one, other])):
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
    if getattr(tokenizer, "is_fast", False):
        what = json.loads(tokenizer.backend_tokenizer.to_str())
        what = {part: what.get(part) for part in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        what["added_tokens"] = [token for token in what["added_tokens"] if special or not token["special"]]
    else:
        what = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    names = ("eos_token", *(("bos_token", "unk_token", "pad_token", "mask_token") if special else ()))
    named = {name: tokenizer.convert_tokens_to_ids(t) for name in names if (t := getattr(tokenizer, name, None))}
    return xxhash.xxh3_128_hexdigest(json.dumps([what, named], sort_keys=True).encode())
