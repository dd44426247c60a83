"""The command `unmask inspect`: the first rows of a training set as the model will meet them.

In:  a model folder, for its tokenizer, and data; or the YAML file of a run.
Out: on the terminal, each row in the order of training: who speaks, what is learnt, what is masked at its t, the
     end-of-text tail; and what training rows and validation rows have in common.

What goes wrong in silence shows here: a header that is learnt, an answer that is not, another tokenizer's ids, a tail
that outweighs the answers, validation rows that are training rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unmask.config import DataArguments, ModelArguments, TrainingArguments, UserError, option, parse
from unmask.instruct import SFTDataArguments
from unmask.prepare import settings_class

if TYPE_CHECKING:
    from unmask.prepared import Rows

ROLES = ("system", "user", "assistant", "tool")
STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow", "": "white", "tail": "dim green"}


@dataclasses.dataclass
class InspectArguments:
    """Inspect"""

    rows: int = option(3, "Rows shown.")
    split: Literal["train", "test"] = option("train", "Training rows in the first epoch's order, or validation rows.")
    task: Literal["pretrain", "sft"] | None = option(
        None, "Read the data as `unmask pretrain` or `unmask sft` does; told from the columns if left out."
    )
    t: float | None = option(None, "Noise level of every row, above 0 and up to 1; each row's own if left out.")
    ids: bool = option(False, "A line for each token, with its id.")


def part_of(group: type, values: Any) -> Any:
    return group(**{f.name: getattr(values, f.name) for f in dataclasses.fields(group)})


# ---------------------------------------------------------------------------------------------------------------------
# Rows as they are trained on


class Token(NamedTuple):
    """One place of a row. role: whose turn it stands in, `tail` behind the last one, "" where nobody speaks."""

    id: int
    text: str
    role: str
    learnt: bool
    masked: bool
    weight: float


@dataclasses.dataclass
class Shown:
    """One row. number: in the data. place: in the order of the epoch."""

    number: int
    place: int
    t: float
    tokens: list[Token]
    ends: int

    def title(self, split: str) -> str:
        learnt = sum(token.learnt for token in self.tokens)
        share = f", {self.ends / learnt:.0%} of them end of text" if learnt else ""
        masked = sum(token.masked for token in self.tokens)
        return (
            f"{split} row {self.number:,} · place {self.place} · {len(self.tokens):,} tokens · "
            f"{learnt:,} learnt{share} · t = {self.t:.2f}: {masked:,} masked"
        )


def roles(ids: list[int], tokenizer: Any) -> list[str]:
    """Whose turn each id stands in, read off the control tokens: a role's name right behind one opens a turn."""
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    found, role = [], ""
    for i, token in enumerate(ids):
        if token in special:
            ahead = tokenizer.decode([j for j in ids[i + 1 : i + 16] if j not in special][:12]).lstrip()
            opened = next((name for name in ROLES if ahead.startswith(name)), None)
            if opened is not None and i + 1 < len(ids) and ids[i + 1] not in special:
                role = opened
        found.append(role)
    return found


def shown(
    rows: Any, arguments: InspectArguments, training: TrainingArguments, data: Any, tokenizer: Any, mask_id: int | None
) -> Iterator[Shown]:
    """The first rows, with the noise and the tail that training gives them."""
    from unmask import batches, objectives
    from unmask.tail import Tail

    objective = objectives.load(training.objective, training.objective_args, mask_id)
    test = arguments.split == "test"
    tail = Tail.chosen(data.eos_tail, objectives.is_causal(objective), data.packing)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    collate = batches.Collate(
        objective,
        seed=training.seed,
        pad_id=pad or 0,
        random_length_ratio=0.0 if test else getattr(data, "random_length_ratio", 0.0),
        exact=test,
        tail=tail,
        end_id=tokenizer.eos_token_id,
        max_length=data.max_length,
        t=arguments.t,
    )
    sizes = batches.lengths(rows)
    tickets: Iterator[batches.Ticket]
    if test:
        longest = batches.longest_of_likes(sizes, training.group_by_length)
        tickets = iter(
            batches.Ticket(row, row * training.eval_draws, batches.VALIDATION, int(longest[row]))
            for row in range(min(arguments.rows, len(rows)))
        )
    else:
        split = batches.Split(training.per_device_train_batch_size, training.gradient_accumulation_steps)
        how = {"seed": training.seed, "shuffle": data.shuffle, "by_length": training.group_by_length}
        places = batches.Places(len(rows), split, lengths=sizes, **how)
        tickets = itertools.islice(itertools.chain.from_iterable(places), arguments.rows)
    seats = batches.Seated(rows)
    for ticket in tickets:
        pair = seats.__getitems__([ticket])
        batch = collate(pair)
        ids = batch["input_ids"][0].tolist()
        own = len(pair[0][0]["input_ids"])
        whose = roles(ids[:own], tokenizer) + ["tail"] * (len(ids) - own)
        learnt, masked, weight = (batch[key][0].tolist() for key in ("supervised", "masked", "weight"))
        texts = spelt(ids, tokenizer)
        made = [Token(*one) for one in zip(ids, texts, whose, learnt, masked, weight, strict=True)]
        ends = sum(token.learnt and token.id == tokenizer.eos_token_id for token in made)
        yield Shown(ticket.row, ticket.place, float(batch["t"][0]), made, ends)


def spelt(ids: list[int], tokenizer: Any) -> list[str]:
    """Each id's share of the text: what it adds to what stands before it. A letter of several ids goes to the last."""
    texts, held = [], 0
    for i in range(len(ids)):
        text = tokenizer.decode(ids[held : i + 1], skip_special_tokens=False)
        if text.endswith("�") and i - held < 8 and i + 1 < len(ids):
            texts.append("")
            continue
        texts.append(text)
        held = i + 1
    return texts


# ---------------------------------------------------------------------------------------------------------------------
# What is printed


def runs(tokens: list[Token]) -> Iterator[tuple[str, bool, list[Token]]]:
    """Neighbours with the same role that are learnt alike."""
    for (role, learnt), some in itertools.groupby(tokens, key=lambda token: (token.role, token.learnt)):
        yield role, learnt, list(some)


def letters(tokens: list[Token]) -> Iterator[tuple[str, bool]]:
    """Text and whether it is masked; a letter of several ids is masked if one of them is."""
    masked = False
    for token in tokens:
        masked |= token.masked
        if token.text:
            yield token.text, masked
            masked = False


def draw(row: Shown, split: str, ids: bool) -> None:
    """One row: coloured on a terminal, else with `[…]` around what is masked."""
    from rich.console import Console
    from rich.text import Text

    from unmask.screen import shown as safe

    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(row.title(split), style="bold"))
    if ids:
        for place, token in enumerate(row.tokens):
            what = "masked" if token.masked else "learnt" if token.learnt else "given"
            line = f"{place:>6} {token.id:>7}  {token.role or '-':<9} {what:<6} {token.weight:>8.2f}  {token.text!r}"
            console.print(Text(line, style=_style(token)))
        return
    for role, learnt, some in runs(row.tokens):
        label = f"  {role or 'text':<9} {'learnt' if learnt else 'given':<6} "
        text = Text(label, style="dim")
        if role == "tail":
            masked = sum(token.masked for token in some)
            text.append(f"{some[0].text} × {len(some)} ({masked} masked)", style=_style(some[0]))
            console.print(text)
            continue
        for masked, piece in itertools.groupby(letters(some), key=lambda letter: letter[1]):
            words = safe("".join(letter for letter, _ in piece)).replace("\n", "\n" + " " * len(label))
            text.append(
                words if console.is_terminal or not masked else f"[{words}]", style=_style_of(role, learnt, masked)
            )
        console.print(text)


def _style(token: Token) -> str:
    return _style_of(token.role, token.learnt, token.masked)


def _style_of(role: str, learnt: bool, masked: bool) -> str:
    return STYLES.get(role, "white") + (" bold" if learnt else " dim") + (" reverse" if masked else "")


def summary(ready: Rows) -> list[str]:
    """How long the rows are, how much of them is learnt, and what training and validation rows have in common."""
    import numpy as np

    from unmask import batches

    lines, seen = [], {}
    for name, rows in (("train", ready.train), ("test", ready.test)):
        if rows is None:
            continue
        sizes = batches.lengths(rows)
        line = f"{name}: {len(rows):,} rows, {int(sizes.sum()):,} tokens"
        line += f" (median {int(np.median(sizes))}, most {sizes.max()})"
        if "labels" in rows.column_names:
            learnt = sum(
                int((table["labels"].combine_chunks().flatten().to_numpy() != -100).sum())
                for table in rows.select_columns("labels").with_format("arrow").iter(10_000)
            )
            line += f", {learnt / max(1, sizes.sum()):.0%} of them learnt"
        lines.append(line)
        seen[name] = {
            hash(tuple(row)) for batch in rows.select_columns("input_ids").iter(1000) for row in batch["input_ids"]
        }
    if "test" in seen:
        same = len(seen["train"] & seen["test"])
        lines.append(f"{same:,} of {len(seen['test']):,} different test rows stand among the training rows, too")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The command


def read_rows(task: str | None, data: Any, tokenizer: Any, seed: int, vocab_size: int) -> tuple[str, Rows]:
    """(the task, its rows)."""
    if task is None:
        from unmask import chats, corpus

        first = corpus.load(data.dataset_args, text_field=None, seed=seed, need_test=False).train
        names = set(first.column_names)
        task = "sft" if "labels" in names or ("input_ids" not in names and data.text_field not in names) else "pretrain"
        if task == "sft" and "input_ids" not in names:
            chats.format_of(names)
    if task == "sft":
        from unmask import instruct

        mine = part_of(SFTDataArguments, data)
        found = instruct.rows(mine, tokenizer, seed=seed, vocab_size=vocab_size)
        data.max_length = mine.max_length  # shorter where the rows were prepared so
        return task, found
    from unmask import prepare

    return task, prepare.rows(part_of(DataArguments, data), tokenizer, seed=seed, vocab_size=vocab_size)


def main(argv: list[str]) -> int:
    """`unmask inspect --model_name_or_path M --dataset_args D`, or `unmask inspect --config RUN.yaml`."""
    from unmask import training_settings
    from unmask.adapters import LoraArguments

    groups = [
        InspectArguments,
        ModelArguments,
        settings_class([DataArguments, SFTDataArguments]),
        TrainingArguments,
        LoraArguments,
    ]
    about = "Show the first rows of a training set as the model will meet them. The YAML file of a run will do."
    parsed = parse(
        "unmask inspect",
        about,
        groups,
        argv,
        extra=training_settings.trainer_fields,
        legacy=training_settings.LEGACY,
        refused=training_settings.GONE,
    )
    arguments, model, data, training, _ = parsed.groups
    if arguments.rows < 1:
        raise UserError(f"--rows is {arguments.rows}; it must be at least 1.")
    if arguments.t is not None and not 0 < arguments.t <= 1:
        raise UserError(f"--t is {arguments.t}; it must be above 0 and at most 1.")
    if not data.dataset_args:
        raise UserError("no data given; type --dataset_args SPEC, such as data/alpaca.json[train:2000,test:200].")
    if data.streaming:
        raise UserError("--streaming: the first rows of a stream are not those of training; leave it out to look.")

    from unmask import adapters, ids, models, objectives, report
    from unmask.config import named
    from unmask.sft import SFTTrainingArguments

    report.quiet()
    own = name = models.find(model.model_name_or_path)
    if adapters.is_adapter(own):
        name = models.find(adapters.base_of(own))
    causal = objectives.is_causal(named("objectives", training.objective).Objective)
    config, tokenizer, _ = models.ready(name, model, causal)
    if own != name:
        tokenizer = models.tokenizer_of(own, tokenizer)
    mask = None if causal else ids.mask_id(tokenizer, config, model.mask_token)
    size = max(config.vocab_size, len(tokenizer))
    task, ready = read_rows(arguments.task, data, tokenizer, training.seed, size)
    report.say(*ready.remarks)
    if task == "pretrain":
        data.eos_tail = "none"
    elif "group_by_length" not in parsed.given:
        training.group_by_length = SFTTrainingArguments().group_by_length
    rows = ready.train if arguments.split == "train" else ready.test
    print("\n".join(summary(ready)))
    for row in shown(rows, arguments, training, data, tokenizer, mask):
        print()
        draw(row, arguments.split, arguments.ids)
    if sys.stdout.isatty():
        print("\nBright is learnt, dim is given; what is masked at this row's t stands on a bright ground.")
    return 0
