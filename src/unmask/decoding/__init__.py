"""Decoding: the one loop that fills a canvas, and what its rules and caches must be.

In:  `predict` (`unmask.predict.Predict`, never a model class) and a `Canvas`, or prompts as ids.
Out: `unmask`, a generator: after every step the canvas, and what was written where and how sure. generate, infill,
sample, chat, serve and evaluate drink from it. Its primitive is `step`: one step of rows that may differ in everything.

A rule is one file here or elsewhere (`rule="my/rule.py"`) with a dataclass `Settings`, whose fields `generate(…,
rule=…, field=value)` takes, and a class `Rule`. Each row has its own instance:

    class Rule(decoding.Rule):
        needs = frozenset({"entropy"})                  # beyond tokens and confidence: entropy, margin, logits
        def choose(self, row, seen):                    # seen: what the model says at the row's candidates
            which = seen.entropy < self.settings.bound  # (n,)
            which[seen.entropy.argmin()] = True         # at least one place a step
            return seen.choice(which)

It may override too: `enter(row)`, called when a row comes to a block; `places(row)`, which candidates to read, if it
knows before it looks (random, left to right); `view(row)`, to show the network more than the row, with positions and
attention of its own (WINO's shadows). With `revises = True` it may rewrite, `reopen` places or `stay` in a full block,
within `limit(row)` steps. Temperature, guidance, suppressed tokens and ends of text are settled before a rule looks.

A cache policy (`Cache`) makes the forward passes of a step from its views: narrows them, groups them, lends a cache.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmask.canvas import Canvas, Change, Choice, Options, Reading, Row
from unmask.config import UserError, build, cast, named, nearest
from unmask.predict import Predict
from unmask.signals import Seen, View, look

# ---------------------------------------------------------------------------------------------------------------------
# What a rule and a cache policy must be


class Rule:
    """Which places are written at a step. The base of every rule; the module's docstring explains it."""

    needs: ClassVar[frozenset[str]] = frozenset()
    revises: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def enter(self, row: Row) -> None:
        """The row comes to a new block."""

    def places(self, row: Row) -> Tensor:
        """(n,) the places to read at this step, ascending."""
        return row.candidates()

    def view(self, row: Row) -> View:
        """What the network is shown: by default the whole row, read at `places`."""
        places = self.places(row)
        return View(row, row.ids, places, places)

    def choose(self, row: Row, seen: Seen) -> Choice:
        """What to write, given what was read."""
        raise NotImplementedError

    def limit(self, row: Row) -> int:
        """Steps within which the row must be done."""
        return int(row.free.sum()) * (2 if self.revises else 1)


@dataclass
class Pass:
    """One forward pass: views that go together, and the `transformers` cache for it."""

    views: list[View]
    cache: Any = None


class Cache:
    """Forward passes of a step. This one keeps nothing: every row whole, all in one pass. Exact.

    A policy may narrow a view (fewer ids, with their positions; `places` stay) and part the views into several passes.
    A row's view and its bare twin stay in one pass, the twin after the view.
    """

    exact: ClassVar[bool] = True

    def passes(self, views: list[View]) -> list[Pass]:
        return [Pass(views)]

    def wrote(self, change: Change) -> None:
        """A row was written to; called after every step."""


# ---------------------------------------------------------------------------------------------------------------------
# The loop


@dataclass
class Step:
    """A denoising step, done: the `number` of it (from 1), the canvas as it stands now, and what changed."""

    number: int
    canvas: Canvas
    changes: list[Change]


@torch.no_grad()
def step(predict: Predict, rows: Sequence[Row], cache: Cache | None = None) -> list[Change]:
    """One denoising step of every row that is not finished, wherever each stands. Rows must be `prepare`d."""
    cache = cache or Cache()
    rows = [row for row in rows if not row.finished]
    views = []
    for row in rows:
        view = row.rule.view(row)
        views += [view, view.without_given()] if row.reading.cfg_scale else [view]
    seen: dict[Row, Seen] = {}
    for one in cache.passes(views):
        seen |= look(predict, one.views, one.cache)
    changes = [row.write(row.rule.choose(row, seen[row])) for row in rows]
    for change in changes:
        cache.wrote(change)
    return changes


def unmask(predict: Predict, canvas: Canvas, *, cache: Cache | None = None, **settings: Any) -> Iterator[Step]:
    """Fill a canvas, yielding after every step.

    Args:
        settings: fields of `Options`, and of the rule's own `Settings`; for all rows that were not `prepare`d before.
    """
    new = [row for row in canvas.rows if row.rule is None]
    if settings and canvas.rows and not new:
        raise UserError(
            f"these rows are prepared already, so {', '.join(settings)} would change nothing; leave it out."
        )
    prepare(predict, new, **settings)
    for number in itertools.count(1):
        if canvas.done:
            return
        yield Step(number, canvas, step(predict, canvas.rows, cache))


# ---------------------------------------------------------------------------------------------------------------------
# Settings → rows ready to step


def rule_file(name: str) -> tuple[type[Rule], type]:
    """The classes Rule and Settings of a rule's file."""
    file = named("decoding", name)
    rule, settings = getattr(file, "Rule", None), getattr(file, "Settings", None)
    if not (isinstance(rule, type) and issubclass(rule, Rule) and dataclasses.is_dataclass(settings)):
        raise UserError(f"{name!r} is no decoding rule: it needs a dataclass Settings and a class Rule(decoding.Rule).")
    return rule, settings  # type: ignore[return-value]


def prepare(predict: Predict, rows: Sequence[Row], **settings: Any) -> None:
    """Give rows their rule, options, blocks and steps.

    Args:
        settings: fields of `Options` (`block_length` is understood as `block_size`) and of the rule's `Settings`.

    Raises:
        UserError: an unknown setting, a value out of range, a row longer than the model.
    """
    settings["block_size"] = one_spelling("block_size", "block_length", settings)
    ours = {f.name for f in dataclasses.fields(Options)}
    options: Options = build(Options, {key: value for key, value in settings.items() if key in ours})
    options.check()
    rule, kind = rule_file(options.rule)
    theirs = {f.name for f in dataclasses.fields(kind)}
    wanted = {key: value for key, value in settings.items() if key not in ours}
    for key in wanted.keys() & options.rule_args.keys():
        raise UserError(f"{key!r} is given twice: as a setting and in rule_args.")
    for key in wanted | options.rule_args:
        if key not in theirs:
            raise UserError(
                f"unknown setting {key!r}; the rule {options.rule!r} has {', '.join(sorted(theirs)) or 'none'}."
                + nearest(key, ours | theirs)
            )
    reading = resolve(predict, options)
    for row in rows:
        check_row(predict, row, options)
        row.rule, row.reading, row.seed = rule(build(kind, wanted | options.rule_args)), reading, options.seed
        row.plan(options.steps, options.block_size)


def one_spelling(name: str, other: str, settings: dict[str, Any]) -> Any:
    """The value of a setting that has two names; `other` is taken out. UserError when both are given and disagree."""
    value, alias = settings.get(name), settings.pop(other, None)
    if None not in (value, alias) and value != alias:
        raise UserError(f"{name} is {value} and {other} is {alias}: they mean the same, give one.")
    return alias if value is None else value


def resolve(predict: Predict, options: Options) -> Reading:
    """Options whose tokens are named by what they do → ids."""
    known = getattr(predict, "eos_id", None)
    eos = options.eos_token_id or ([known] if isinstance(known, int) else list(known or []))
    eot = options.eot_token_id or []
    if not eos and (options.logits_eos_inf or options.confidence_eos_eot_inf or options.eos_stop):
        raise UserError("the model names no end of text; give --eos_token_id.")
    if options.confidence_eos_eot_inf and not eot:
        raise UserError(
            "--confidence_eos_eot_inf needs the token that ends a turn: give --eot_token_id, or, for the end of text "
            f"alone, --begin_suppress_tokens {eos[0]}."
        )
    never = [*options.suppress_tokens, *(eos if options.logits_eos_inf else [])]
    last = list(options.begin_suppress_tokens)
    if options.confidence_eos_eot_inf:
        # LLaDA's generate() bars both at temperature 0, but above it only the end of turn: it then writes the end of
        # text's -inf into the noisy copy of the logits, after that was read (ML-GSAI/LLaDA#137).
        last += eot if options.compat == "llada" and options.temperature else [*eos, *eot]
    stops = [*eos, *eot] if options.eos_stop else []
    for token in [*never, *last, *stops, *options.cfg_keep_tokens]:
        if not 0 <= token < predict.vocab_size:
            raise UserError(f"there is no token {token}; the model has {predict.vocab_size}, from 0.")
    if len({*never, predict.mask_id}) == predict.vocab_size:
        raise UserError("with --suppress_tokens no token is left to write.")
    return Reading(
        options.temperature, options.cfg_scale, tuple(never), tuple(last), tuple(stops), tuple(options.cfg_keep_tokens)
    )


def check_row(predict: Predict, row: Row, options: Options) -> None:
    """UserError for a row that the model cannot hold or the options do not fit."""
    length, new = len(row.ids), int(row.free.sum())
    most = getattr(predict, "max_length", None)
    if most is not None and length > most:
        raise UserError(
            f"row {row.number}: {length - new} given and {new} new tokens are {length}; the model holds {most}."
        )
    if length and not 0 <= int(row.ids.min()) <= int(row.ids.max()) < predict.vocab_size:
        raise UserError(f"row {row.number} has token ids outside the model's vocabulary of {predict.vocab_size}.")
    if options.eos_stop and new and not bool(row.free[length - new :].all()):
        raise UserError(
            f"row {row.number} has gaps with text after them, so --eos_stop has no meaning there; leave it out."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Whole answers


def generate(
    predict: Predict,
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    gen_length: int | None = None,
    cache: Cache | None = None,
    **settings: Any,
) -> Tensor:
    """Prompts and their answers, (rows, prompt + new); every prompt stays where it is, padding included.

    Args:
        input_ids: (rows, prompt). attention_mask: (rows, prompt), 0 at padding, wherever that is.
        max_new_tokens: places after each prompt, 128 if left out; `gen_length` is LLaDA's word for it.
        settings: steps, block_size, temperature, remasking, cfg_scale, seed, rule, …: fields of `Options` and of the
            rule's `Settings`.
    """
    if input_ids is None or input_ids.dim() != 2:
        raise UserError(
            f"input_ids must be (rows, places), not {None if input_ids is None else tuple(input_ids.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise UserError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}.")
    new = one_spelling("max_new_tokens", "gen_length", {"max_new_tokens": max_new_tokens, "gen_length": gen_length})
    new = 128 if new is None else cast(new, int, "max_new_tokens")
    if new < 1:
        raise UserError(f"max_new_tokens is {new}; it must be at least 1.")
    rows = input_ids.cpu()
    real = torch.ones_like(rows) if attention_mask is None else attention_mask.cpu()
    canvas = Canvas.after(
        [row[keep.bool()].tolist() for row, keep in zip(rows, real, strict=True)], new, predict.mask_id
    )
    fill(predict, canvas, cache=cache, **settings)
    if not canvas.rows:
        return input_ids.new_zeros(0, input_ids.shape[1] + new)
    return torch.cat([input_ids, torch.stack([row.answer for row in canvas.rows]).to(input_ids)], dim=1)


def infill(predict: Predict, texts: Sequence[Sequence[int | None]], **settings: Any) -> list[list[int]]:
    """Texts as ids in which None is an open place → the same with every gap filled and nothing else altered."""
    canvas = fill(predict, Canvas.of(texts, predict.mask_id), **settings)
    return [row.ids.tolist() for row in canvas.rows]


def fill(predict: Predict, canvas: Canvas, **settings: Any) -> Canvas:
    """The canvas with no open place left; settings as for `unmask`."""
    for _ in unmask(predict, canvas, **settings):
        pass
    return canvas
