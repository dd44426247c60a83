"""A tokenizer of one's own: `unmask tokenizer`.

In:  texts.
Out: a byte-level BPE with LLaDA's special tokens and chat template, in a folder that `AutoTokenizer` reads.

    ids      entries
    compact  text, then the six special tokens that pretraining and chats use: bos, eos (also padding), mask, the two
             ends of a turn's header, the end of a turn
    llada    text, unused entries up to 126079, then LLaDA's 269 special tokens at LLaDA's own ids, so that a config
             with its ids and its vocabulary of 126464 fits as it is

Nothing is normalised, so every text comes back as it went in. Digits go in groups of at most three from the left, as in
GPT-4 and Llama 3: numbers of a thousand forms share a thousand entries instead of filling the vocabulary. Chinese
characters are kept apart from other letters.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unmask.config import UserError, option, parse
from unmask.ids import portable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Ids = Literal["compact", "llada"]

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
COMPACT = (BOS, EOS, MASK, HEADER, HEADER_END, TURN_END)

FIRST_LLADA_ID = 126080
LLADA = (
    *(BOS, EOS, "[CLS]", "[gMASK]"),
    *(f"<|reserved_token_{i}|>" for i in range(252)),
    MASK,  # 126336, in the place of reserved token 252
    *(f"<|reserved_token_{i}|>" for i in range(253, 256)),
    *("<role>", "</role>", "<|arithmetic_start|>", "<|arithmetic_end|>", "<|number_start|>", "<|number_end|>"),
    *(HEADER, HEADER_END, TURN_END),
)
"""LLaDA-8B-Instruct's special tokens in the order of their ids, 126080 to 126348 (its tokenizer_config.json)."""

UNUSED = "<|unused_{}|>"
"""An entry below LLaDA's ids that no text can produce: the pieces below cut it, and no merge joins pieces."""

BYTES = 256
MIN_FREQUENCY = 2  # a pair that occurs once says nothing about the language
PIECES = "|".join(
    (
        r"'(?i:s|t|d|m|re|ve|ll)",  # it's, we'll
        r"\p{Han}+",
        r"[^\r\n\p{L}\p{M}\p{N}]?[[\p{L}\p{M}]&&[^\p{Han}]]+",  # a word with the sign before it: " x", "_x", ".x"
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",  # signs with the line's end: "):\n"
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # indentation without its last space, which belongs to the word
        r"\s+",
    )
)
"""Where text is cut before merging (a regular expression of Oniguruma, where && is 'and')."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
    {{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt and (not messages or messages[-1]['role'] != 'assistant') -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
"""LLaDA's turns. Its own template opens an assistant's turn after every last one; this one does when asked to."""

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model"),
)
"""What a tokenizer's folder may hold; files of an earlier one would be read together with ours."""


@dataclasses.dataclass
class Settings:
    """Tokenizer"""

    corpus: str | list[str] | None = option(
        None, "What to learn from: files or dataset specs, `a.txt`, `folder[train:2000]`.", aliases=("dataset_args",)
    )
    vocab_size: int = option(
        4096, "Entries, special tokens included; with --ids llada: entries for text, at most 126080."
    )
    output_dir: str | None = option(None, "The tokenizer's folder.")
    text_field: str = option("text", "Column that holds the text.")
    ids: Ids = option(
        "compact", "Where special tokens stand: right after the text's entries, or at LLaDA's ids (126080 to 126348)."
    )
    max_length: int | None = option(None, "Longest text of the model it is for, in tokens; only written down.")
    overwrite: bool = option(False, "Replace the tokenizer that is in --output_dir.")


def main(argv: list[str]) -> int:
    """The command `unmask tokenizer`."""
    settings: Settings = parse(
        "unmask tokenizer", "Train a byte-level BPE with LLaDA's special tokens on a corpus.", [Settings], argv
    ).groups[0]
    example = "`unmask tokenizer --corpus data.txt --output_dir tokenizers/NAME`"
    if not settings.corpus:
        raise UserError(f"no --corpus; type {example}.")
    if not settings.output_dir:
        raise UserError(f"no --output_dir; type {example}.")
    folder = Path(settings.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; name a folder.")
    if any((folder / file).exists() for file in FILES) and not settings.overwrite:
        raise UserError(f"{folder} already holds a tokenizer; type --overwrite to replace it, or name another folder.")
    _check_size(settings.vocab_size, settings.ids)
    if settings.max_length is not None and settings.max_length < 1:
        raise UserError(f"--max_length {settings.max_length} is too small: a text has at least one token.")

    from unmask import corpus

    specs = [settings.corpus] if isinstance(settings.corpus, str) else settings.corpus
    found = corpus.load(" + ".join(specs), streaming=True, text_field=settings.text_field, need_test=False)
    if found.tokenised:
        raise UserError(f"{specs[0]} holds tokens already; a tokenizer is learnt from text.")
    trained = train(
        (row[settings.text_field] for row in found.train),
        settings.vocab_size,
        ids=settings.ids,
        max_length=settings.max_length,
    )
    save(trained, folder)
    for remark in found.remarks:
        sys.stderr.write(f"{remark}\n")
    learnt = text_entries(trained)
    asked = settings.vocab_size - (len(COMPACT) if settings.ids == "compact" else 0)
    if learnt < asked:
        short = f"{learnt:,} entries for text instead of {asked:,}"
        sys.stderr.write(f"the corpus is too small for --vocab_size {settings.vocab_size}: {short}\n")
    sys.stderr.write(f"{len(trained):,} entries; a model for them: `unmask init PRESET --tokenizer {folder}`\n")
    print(folder)
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(
    texts: Iterable[str | None], vocab_size: int, *, ids: Ids = "compact", max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer learnt from texts; the same texts give the same tokenizer.

    Args:
        texts: documents; None is an empty one.
        vocab_size: compact: entries in all. llada: entries for text. A small corpus gives fewer (`text_entries`).
        max_length: `model_max_length`, in tokens; None: not limited, as LLaDA's.

    Raises:
        UserError: a size that cannot be, no text at all, a text that is not text.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    _check_size(vocab_size, ids)
    special = COMPACT if ids == "compact" else LLADA
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) if ids == "compact" else vocab_size,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(_texts(texts), trainer)
    if ids == "llada":
        model = json.loads(backend.to_str())["model"]
        vocab = dict(model["vocab"])
        # An id is an entry's number, so that LLaDA's stand where they should only if there is one for each id below.
        vocab.update({UNUSED.format(i): i for i in range(len(vocab), FIRST_LLADA_ID)})
        backend.model = models.BPE(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        mask_token=MASK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        **({"cls_token": "[CLS]"} if ids == "llada" else {}),
        **({"model_max_length": max_length} if max_length is not None else {}),
    )


def _check_size(vocab_size: int, ids: Ids) -> None:
    least = BYTES + len(COMPACT) if ids == "compact" else BYTES
    if vocab_size < least:
        parts = f"{BYTES} bytes" + (f" and {len(COMPACT)} special tokens" if ids == "compact" else "")
        raise UserError(f"--vocab_size {vocab_size} is too small: {parts} need {least}.")
    if ids == "llada" and vocab_size > FIRST_LLADA_ID:
        raise UserError(f"--vocab_size {vocab_size} is too large: LLaDA's special tokens begin at {FIRST_LLADA_ID}.")


def _texts(texts: Iterable[str | None]) -> Iterator[str]:
    """The texts; UserError at one that is none, or at the end if all were empty."""
    empty = True
    for number, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise UserError(f"row {number} of the corpus holds {type(text).__name__}, not text; see --text_field.")
        if text:
            empty = False
            yield text
    if empty:
        raise UserError("the corpus is empty: there is no text to learn a tokenizer from.")


def text_entries(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many entries text can produce: neither special nor unused."""
    before = UNUSED.split("{}")[0]
    added = set(tokenizer.get_added_vocab())
    return sum(entry not in added and not entry.startswith(before) for entry in tokenizer.get_vocab())


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's files into a folder, all or none; an earlier tokenizer's are removed."""
    whole = folder.resolve()  # `.` has no name to put anything beside
    aside = whole.with_name(f".{whole.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        # One file less, and also read by programs that do not know chat_template.jinja.
        tokenizer.save_pretrained(aside, save_jinja_files=False)
        portable(aside)
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        for path in aside.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
