"""Conversations, or tokens with labels, to rows that say what is learnt of them.

In:  a `datasets.Dataset` of conversations (`chats.py`) and a template, or one of tokens.
Out: a Dataset of input_ids, labels (-100 is not learnt, else the id itself) and prompt_len (ids before the first that
     is learnt); no row without anything to learn; as long as they are, or `fitted` into a length.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import NDArray

from unmask import chats, encode, tokens
from unmask.config import UserError

if TYPE_CHECKING:
    from unmask.chats import Message
    from unmask.template import Template, Turn

NOT_LEARNT = -100
IDS = datasets.List(datasets.Value("int32"))
FEATURES = datasets.Features({"input_ids": IDS, "labels": IDS, "prompt_len": datasets.Value("int32")})
COLUMNS = tuple(FEATURES)
FORMAT = 1  # raise it when the same data and settings give other rows: earlier results in the cache are then left alone
BATCH = 1000  # conversations tokenised together
WORTH_A_PROCESS = 50_000  # conversations that repay starting one more process: some twenty seconds of one core


# ---------------------------------------------------------------------------------------------------------------------
# From conversations


class Reader:
    """Numbered rows of conversations → (ids, labels) of each, or None for one that is left out. Can be pickled."""

    def __init__(
        self, template: Template, form: str, *, train_on: str, mask_prompt: bool, bad_rows: str, seed: int
    ) -> None:
        self.template, self.form, self.seed = template, form, seed
        self.train_on, self.mask_prompt, self.bad_rows = train_on, mask_prompt, bad_rows

    def __call__(self, numbered: list[tuple[int, dict[str, Any]]]) -> list[tuple[list[int], list[int]] | None]:
        """The ids and labels of each row."""
        talks = {number: talk for number, row in numbered if (talk := self._talk(number, row)) is not None}
        turns = dict(zip(talks, self.template.many(list(talks.values()), list(talks)), strict=True))
        return [self._labelled(turns[n], talks[n], n) if n in turns else None for n, _ in numbered]

    def _talk(self, number: int, row: dict[str, Any]) -> list[Message] | None:
        try:
            talk = chats.messages(row, self.form, number)
        except UserError as error:
            if self.bad_rows == "drop" or (self.bad_rows == "unanswered" and isinstance(error, chats.NoAnswer)):
                return None
            also = "unanswered` or `drop" if isinstance(error, chats.NoAnswer) else "drop"
            raise UserError(f"{error} `--bad_rows {also}` leaves such rows out.") from None
        answers = [i for i, message in enumerate(talk) if message["role"] == "assistant"]
        if self.train_on == "prefix" and len(answers) > 1:
            talk = talk[: int(np.random.default_rng([self.seed, number]).choice(answers)) + 1]
        return talk

    def _labelled(self, turns: list[Turn], talk: list[Message], number: int) -> tuple[list[int], list[int]]:
        """Ids and labels of a conversation's turns."""
        if self.train_on == "all" and len(turns) < 2 * sum(message["role"] == "assistant" for message in talk):
            raise UserError(
                f"row {number:,}: the chat template writes earlier answers otherwise than the last, so they cannot all "
                "be learnt in one row; say --train_on last or prefix, or give another --chat_template."
            )
        ids = [i for turn in turns for i in turn.ids]
        if not self.mask_prompt:
            return ids, ids
        learnt = [turn.answer and (self.train_on == "all" or turn is turns[-1]) for turn in turns]
        return ids, [i if yes else NOT_LEARNT for turn, yes in zip(turns, learnt, strict=True) for i in turn.ids]


def from_chats(
    part: datasets.Dataset,
    tokenizer: Any,
    template: Template,
    *,
    train_on: str = "last",
    mask_prompt: bool = True,
    bad_rows: str = "unanswered",
    seed: int = 42,
    num_proc: int = 8,
    disable_caching: bool = False,
    desc: str = "Tokenising",
) -> datasets.Dataset:
    """Rows of tokens, without the rows that are left out; kept in the cache of `datasets`.

    Args: as `instruct.SFTDataArguments` says. seed: draws the prefixes of `train_on="prefix"`, with a row's number.

    Raises:
        UserError: all that `chats` and `template` refuse.
    """
    how: dict[str, Any] = {"train_on": train_on, "mask_prompt": mask_prompt, "bad_rows": bad_rows}
    reader = Reader(template, chats.format_of(part.column_names), **how, seed=seed)
    made_by = encode.tokenizer_fingerprint(tokenizer, special=False)
    drawn = seed if train_on == "prefix" else None
    result = tokens.result_name("chats", FORMAT, part._fingerprint, made_by, template.fingerprint, how, drawn)
    workers = min(num_proc, tokens.cores(), len(part) // WORTH_A_PROCESS)
    with tokens.results(disable_caching) as folder, encode.in_processes(reader, workers) as read:
        return part.map(
            _read,
            batched=True,
            batch_size=BATCH * max(1, workers),
            with_indices=True,
            remove_columns=part.column_names,
            features=FEATURES,
            fn_kwargs={"read": read},
            new_fingerprint=result,
            cache_file_name=str(folder / f"chats-{result}.arrow"),
            load_from_cache_file=not disable_caching,
            desc=desc,
        )


def _read(batch: dict[str, list[Any]], numbers: list[int], read: Any) -> dict[str, list[Any]]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    done = [one for one in read(list(zip(numbers, rows, strict=True))) if one is not None]
    before = [next(i for i, label in enumerate(labels) if label != NOT_LEARNT) for _, labels in done]
    return {"input_ids": [ids for ids, _ in done], "labels": [labels for _, labels in done], "prompt_len": before}


# ---------------------------------------------------------------------------------------------------------------------
# From tokens


def from_tokens(
    part: datasets.Dataset,
    vocab_size: int,
    *,
    mask_prompt: bool = True,
    header: list[int] | None = None,
    disable_caching: bool = False,
    desc: str = "Checking",
) -> datasets.Dataset:
    """Rows that came as tokens, checked; without those of which nothing would be learnt.

    Args:
        mask_prompt: keep the labels; False makes every token one that is learnt.
        header: ids that are cut off the end of a row: LLaDA's template opens an answer there that never comes.

    Raises:
        UserError: neither labels nor prompt_len; labels that are not the row's tokens; ids the model does not know.
    """
    if not {"labels", "prompt_len"} & set(part.column_names):
        raise UserError(
            "the data hold tokens without labels or prompt_len, so that nothing tells the answers from the prompts; "
            "name the conversations themselves, or prepare them with `unmask prepare sft`."
        )
    part = tokens.rows_already(part, sys.maxsize, vocab_size)
    how = {"mask_prompt": mask_prompt, "header": header or []}
    result = tokens.result_name("tokens", FORMAT, part._fingerprint, how)
    with tokens.results(disable_caching) as folder:
        return part.map(
            _labels,
            batched=True,
            with_indices=True,
            remove_columns=part.column_names,
            features=FEATURES,
            fn_kwargs=how,
            new_fingerprint=result,
            cache_file_name=str(folder / f"labels-{result}.arrow"),
            load_from_cache_file=not disable_caching,
            desc=desc,
        )


def _labels(
    batch: dict[str, list[Any]], numbers: list[int], mask_prompt: bool, header: list[int]
) -> dict[str, list[Any]]:
    """Ids with labels; no label where the header of an answer that never comes stands at the end (LLaDA's template)."""
    found: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    nothing = [None] * len(numbers)
    each = zip(numbers, batch["input_ids"], batch.get("labels", nothing), batch.get("prompt_len", nothing), strict=True)
    for number, ids, labels, before in each:
        if labels is None:
            if not isinstance(before, int) or before < 0:
                raise UserError(
                    f"row {number:,}: prompt_len is {before!r}; expected the number of tokens of the prompt."
                )
            labels = [NOT_LEARNT] * min(before, len(ids)) + ids[before:]
        if len(labels) != len(ids) or any(label not in (i, NOT_LEARNT) for i, label in zip(ids, labels, strict=True)):
            raise UserError(
                f"row {number:,}: the labels are not those of its tokens; each must be -100 or the token itself, "
                "unshifted."
            )
        while header and ids[-len(header) :] == header:
            ids, labels = ids[: -len(header)], labels[: -len(header)]
        if not mask_prompt:
            labels = ids
        first = next((i for i, label in enumerate(labels) if label != NOT_LEARNT), None)
        if first is not None:
            for name, value in zip(COLUMNS, (ids, labels, first), strict=True):
                found[name].append(value)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What fits


def fitted(
    part: datasets.Dataset, max_length: int, truncation: str = "right", disable_caching: bool = False
) -> tuple[datasets.Dataset, int]:
    """The rows that fit into `max_length`, and how many of them were cut for it.

    truncation: right leaves out rows without a learnt token among the first `max_length`; filter all longer ones.
    """
    sizes = _sizes(part)
    kept = sizes["prompt_len"] < max_length if truncation == "right" else sizes["tokens"] <= max_length
    if not kept.all():
        part = part.select(np.flatnonzero(kept))
    long = int((sizes["tokens"][kept] > max_length).sum())
    if not long:
        return part, 0
    result = tokens.result_name("cut", FORMAT, part._fingerprint, max_length)
    with tokens.results(disable_caching) as folder:
        cut = part.map(
            _cut,
            batched=True,
            fn_kwargs={"length": max_length},
            new_fingerprint=result,
            cache_file_name=str(folder / f"cut-{result}.arrow"),
            load_from_cache_file=not disable_caching,
            desc="Cutting rows",
        )
    return cut, long


def _cut(batch: dict[str, list[Any]], length: int) -> dict[str, list[Any]]:
    return {name: [row[:length] for row in batch[name]] for name in ("input_ids", "labels")}


def _sizes(part: datasets.Dataset) -> dict[str, NDArray[np.int64]]:
    """For each row: its tokens, those that are learnt, those before the first of them."""
    found: dict[str, list[Any]] = {"tokens": [], "learnt": [], "prompt_len": []}
    for table in part.with_format("arrow").iter(batch_size=BATCH):
        columns = {name: table[name].combine_chunks() for name in COLUMNS}
        lengths = columns["input_ids"].value_lengths().to_numpy(zero_copy_only=False)
        learnt = columns["labels"].flatten().to_numpy(zero_copy_only=False) != NOT_LEARNT
        found["tokens"].append(lengths)
        found["learnt"].append(np.add.reduceat(learnt.astype(np.int64), np.cumsum(lengths) - lengths))
        found["prompt_len"].append(columns["prompt_len"].to_numpy(zero_copy_only=False))
    return {name: np.concatenate([np.zeros(0, np.int64), *some]) for name, some in found.items()}


def count(part: datasets.Dataset) -> dict[str, int]:
    """Rows, tokens, and tokens that are learnt."""
    sizes = _sizes(part)
    return {"rows": len(part), "tokens": int(sizes["tokens"].sum()), "learnt": int(sizes["learnt"].sum())}
