"""Instructions and answers to rows of tokens: what `unmask sft` learns from.

In:  the data settings, a tokenizer.
Out: `prepared.Rows`, whose rows have input_ids, labels (-100 is not learnt, else the id itself) and prompt_len (ids
     before the first that is learnt). No row is without anything to learn.

The rows depend on the data, the tokenizer, the template and the settings; not on processes or batch sizes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from unmask import prepared
from unmask.config import UserError, option
from unmask.prepared import Rows

if TYPE_CHECKING:
    from pathlib import Path

SAVED = ("state.json", "dataset_dict.json")  # of a folder written by save_to_disk


@dataclasses.dataclass
class SFTDataArguments:
    """Data"""

    dataset_args: str | None = option(
        None,
        "What to train on: `path[train:2000,test:200]`, `hub/name[train:90%,test:10%]`, `path[split:NAME]`, `a + b`. "
        "Forms, told by their columns: Alpaca (instruction, input, output), messages, ShareGPT (conversations), "
        "prompt/completion, prompt/response; or tokens that `unmask prepare sft` wrote.",
    )
    num_proc: int = option(8, "Worker processes for tokenising; never more than there are processor cores.")
    max_length: int = option(1024, "Tokens in a row at most.")
    truncation: Literal["right", "filter"] = option(
        "right",
        "Longer rows: right cuts them, and drops those whose prompt alone fills --max_length; filter drops them all.",
    )
    load_preprocessed_data: bool | None = option(
        None, "The data are a `save_to_disk` folder. Its columns say whether they are conversations or already tokens."
    )
    mask_prompt_loss: bool = option(True, "Learn the answers alone. false: learn what was asked, too.")
    disable_caching: bool = option(False, "Tokenise anew instead of taking earlier results from the cache.")
    shuffle: bool = option(True, "A new order each epoch, drawn from --seed. false: in the order of the file.")
    chat_template: str | None = option(
        None, "How conversations are written: llada, or a jinja file. The tokenizer's own template if left out."
    )
    train_on: Literal["last", "all", "prefix"] = option(
        "last",
        "Answers that are learnt: last, the conversation's last; all of them; prefix, the last of the first k turns, "
        "with k drawn for each row from --seed, and the turns after it left out (LLaDA).",
    )
    eos_tail: str | None = option(
        None,
        "Ends of text learnt after the last answer, from which a masked model knows where to stop: step, up to the "
        "longest row of the optimiser step (LLaDA's way, taken if left out); N of them; block:N, up to whole blocks of "
        "N of the answer (block:32 if left out with --packing); none (always, with a causal objective).",
    )
    packing: bool = option(
        False,
        "Lay the rows of a batch out in fewer, none longer than the longest; they do not see one another.",
    )
    bad_rows: Literal["unanswered", "error", "drop"] = option(
        "unanswered",
        "Rows that are no conversation: unanswered leaves out those without an answer, and stops at any other; error "
        "stops at each; drop leaves them all out. How many were left out is said.",
    )


def rows(data: SFTDataArguments, tokenizer: Any, *, seed: int, vocab_size: int, need_test: bool = True) -> Rows:
    """What `data.dataset_args` names, as rows of tokens with what is learnt of them.

    Args:
        seed: draws the rows held out, where there are no test rows, and the prefixes of `train_on="prefix"`.
        vocab_size: ids the model knows.

    Raises:
        UserError: all that `corpus.load`, `chats` and `template` refuse; tokens made by another tokenizer or template,
            or with other settings than those asked for; nothing left to learn.
    """
    from unmask import chats, corpus, labels
    from unmask.template import Template

    if data.max_length < 2 or data.num_proc < 1:
        raise UserError(
            f"--max_length is {data.max_length} and --num_proc {data.num_proc}; at least 2 and 1 are needed."
        )
    loaded = corpus.load(data.dataset_args or "", text_field=None, keep=chats.COLUMNS, seed=seed, need_test=need_test)
    remarks = list(loaded.remarks)
    parts: dict[str, Any] = {"train": loaded.train, **({"test": loaded.test} if loaded.test is not None else {})}
    how: dict[str, Any] = {"mask_prompt": data.mask_prompt_loss, "disable_caching": data.disable_caching}
    if loaded.tokenised:
        if data.load_preprocessed_data is False:
            raise UserError(
                f"{data.dataset_args!r} holds tokens (a column input_ids), and --load_preprocessed_data false says it "
                "does not; leave that out, or name data with conversations."
            )
        more, how["header"] = _check_tokens(loaded.sources, data, tokenizer)
        remarks += more
    else:
        if data.load_preprocessed_data:
            plain = [str(s) for s in loaded.sources if not any((s / f).is_file() for f in SAVED)]
            remarks += [
                f"{name} is no folder of save_to_disk (load_preprocessed_data); read as it is" for name in plain
            ]
        how |= {"train_on": data.train_on, "bad_rows": data.bad_rows, "seed": seed, "num_proc": data.num_proc}
        template = Template(tokenizer, data.chat_template)
    ready: dict[str, Any] = {}
    dropped: dict[str, dict[str, int]] = {}
    for name, part in parts.items():
        with prepared.in_the(name):
            if loaded.tokenised:
                header = how["header"]
                if header and part[0]["input_ids"][-len(header) :] == header:
                    remarks.append(f"{name}: rows end with an opened answer that never comes; it is cut off")
                made = labels.from_tokens(part, vocab_size, desc=f"Checking {name} rows", **how)
            else:
                made = labels.from_chats(part, tokenizer, template, desc=f"Tokenising {name} rows", **how)
            ready[name], cut = labels.fitted(made, data.max_length, data.truncation, data.disable_caching)
            kind = "nothing to learn" if loaded.tokenised else "no answer" if data.bad_rows == "unanswered" else "bad"
            long = (
                f"{'no room for an answer' if data.truncation == 'right' else 'more'} in --max_length {data.max_length}"
            )
            dropped[name] = {kind: len(part) - len(made), long: len(made) - len(ready[name])}
            left_out = ", ".join(f"{n:,} ({why})" for why, n in dropped[name].items() if n)
            if not len(ready[name]):
                raise UserError(f"no row is left of {len(part):,}: {left_out}. Other data, or a larger --max_length?")
        if left_out:
            remarks.append(f"{name}: left out of {len(part):,} rows: {left_out}")
        if cut:
            remarks.append(f"{name}: rows cut to --max_length {data.max_length}: {cut:,}")
    documents: dict[str, int | None] = {name: len(part) for name, part in parts.items()}
    return Rows(ready["train"], ready.get("test"), remarks, loaded.tokenised, documents, dropped)


def _check_tokens(sources: list[Path], data: SFTDataArguments, tokenizer: Any) -> tuple[list[str], list[int]]:
    """Remarks about tokens that are read, and the header to cut off their ends where nothing is known of them."""
    from unmask.template import Template

    remarks: list[str] = []
    header: list[int] = []
    for source in sources:
        note, more = prepared.check(source, tokenizer, data.max_length, "sft")
        remarks += more
        settings: dict[str, Any] = note["settings"] if note else {"train_on": "last"}
        # An answer that was cut there must get no tail behind it, as if it ended.
        data.max_length = min(data.max_length, settings.get("max_length", data.max_length))
        if data.train_on not in ("last", settings.get("train_on")):
            raise UserError(
                f"--train_on {data.train_on}: {source} holds tokens, and which answers are learnt is settled in them "
                f"({settings.get('train_on')}); prepare them again with that setting, or leave it out."
            )
        if note is None:
            if data.chat_template or tokenizer.chat_template:
                header = Template(tokenizer, data.chat_template).header
            continue
        if settings.get("train_on") != data.train_on:
            remarks.append(f"{source} was made with --train_on {settings.get('train_on')}, which stays")
        if data.mask_prompt_loss and not settings.get("mask_prompt_loss", True):
            remarks.append(f"{source} was made with --mask_prompt_loss false, which stays")
        if Template(tokenizer, data.chat_template).fingerprint != note.get("template_fingerprint"):
            theirs = settings.get("chat_template")
            how = f"type --chat_template {theirs}" if theirs else "leave out --chat_template" * bool(data.chat_template)
            raise UserError(
                f"{source} was made with another chat template than this model would chat with; "
                f"{f'{how}, or ' if how else ''}prepare the data again: unmask prepare sft …"
            )
    return remarks, header
