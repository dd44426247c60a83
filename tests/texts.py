"""Texts for tests: files of them, and a small byte-level BPE with LLaDA's special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MASK, END = "<|mdm_mask|>", "<|endoftext|>"
LINES = [
    "Once upon a time there was a little boy named Ben.",
    "def read(path):\n    return open(path).read()\n",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。",
    "The quick brown fox jumps over the lazy dog; the dog sleeps on.",
]


def jsonl(path: Path, texts: Iterable[Any], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def numbered(n: int, word: str = "row") -> list[str]:
    return [f"{word} {i}" for i in range(n)]


def bpe(size: int = 400, **special: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on LINES; end of text, padding and mask are special tokens, or what `special` says."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        LINES * 3, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    tokens = {"eos_token": END, "pad_token": END, "mask_token": MASK, **special}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{k: v for k, v in tokens.items() if v})
