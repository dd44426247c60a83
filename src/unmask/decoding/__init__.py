"""Decoding: the one loop that fills a canvas, and what its rules and caches must be.

In:  `predict` (`unmask.predict.Predict`, never a model class) and a `Canvas`, or prompts as ids.
Out: `unmask`, a generator: after every step the canvas, and what was written where and how sure. generate, infill,
sample, chat, serve and evaluate drink from it. Its primitive is `step`: one step of rows that may differ in everything.

A rule is one file here or elsewhere (`rule="my/rule.py"`) with a dataclass `Settings`, whose fields `generate(…,
rule=…, field=value)` takes, and a class `Rule`. Each row has its own instance:

    class Rule(decoding.Rule):
        needs = frozenset({"entropy"})                  # beyond tokens and confidence; `signals.EXTRA` has the others
        def choose(self, row, seen):                    # seen: what the model says at the row's candidates
            which = seen.entropy < self.settings.bound  # (n,)
            which[seen.entropy.argmin()] = True         # at least one place a step
            return seen.choice(which)

Bases for the common kinds: `Confident` (all places that pass a test) and `Planned` (as many as `steps` plans, by a
score). A rule may override too: `enter(row)`, called when a row comes to a block; `places(row)`, which candidates to
read, if it knows before it looks (random, left to right); `adjust(row, places, logits)`, to change what the model says
(credit); `view(row)`, to show the network more than the row, with positions and attention of its own (WINO's shadows).
With `revises = True` it may rewrite, `reopen` places or `stay` in a full block, within `limit(row)` steps. Temperature,
guidance, suppressed tokens and ends of text are settled before a rule looks.

A cache policy (`unmask.caches`) says which places of a row are computed at a step; `unmask.memory` keeps the rest.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmask import growth, report
from unmask.caches import Cache
from unmask.canvas import Canvas, Change, Choice, Row
from unmask.config import UserError, build, cast, hints, named
from unmask.memory import Memory
from unmask.options import Options
from unmask.predict import Predict
from unmask.resolve import check_row, one_spelling, resolve, settings_of, stop_strings
from unmask.signals import NotNumbers, Seen, View, look

# ---------------------------------------------------------------------------------------------------------------------
# What a rule must be


class Rule:
    """Which places are written at a step. The base of every rule; the module's docstring explains it."""

    needs: ClassVar[frozenset[str]] = frozenset()
    revises: ClassVar[bool] = False
    adjusts: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def enter(self, row: Row) -> None:
        """The row comes to a new block: what was remembered of the last one may go."""

    def places(self, row: Row) -> Tensor:
        """(n,) the places to read at this step, ascending."""
        return row.candidates()

    def view(self, row: Row) -> View:
        """What the network is shown: by default the whole row, read at `places`."""
        places = self.places(row)
        return View(row, row.ids, places, places)

    def adjust(self, row: Row, places: Tensor, logits: Tensor) -> Tensor:
        """Other logits for places (n,), before anything is read of them: (n, vocabulary). Called if `adjusts`.

        Guidance is done already; a place comes once a step, but not all places at once.
        """
        return logits

    def choose(self, row: Row, seen: Seen) -> Choice:
        """What to write, given what was read."""
        raise NotImplementedError

    def limit(self, row: Row) -> int:
        """Steps within which the row must be done."""
        return int(row.free.sum()) * (2 if self.revises else 1)


def highest(row: Row, places: Tensor, score: Tensor, count: int) -> Tensor:
    """(n,) which of `places` (n,) have the `count` highest scores (n,); equal ones as in LLaDA's sampler.

    That takes the top of the whole row with -inf everywhere else, and which of equal scores come first depends on it.
    """
    whole = torch.full((len(row.ids),), -torch.inf, dtype=score.dtype)
    whole[places] = score
    return torch.isin(places, whole.topk(count).indices)


class Planned(Rule):
    """The base of rules that write as many places a step as `steps` plans: those with the highest score."""

    def score(self, row: Row, seen: Seen) -> Tensor:
        """(n,) the higher, the sooner it is written."""
        raise NotImplementedError

    def choose(self, row: Row, seen: Seen) -> Choice:
        # a token that is written last has no confidence, whatever the score of its place
        score = self.score(row, seen).masked_fill(seen.confidence == 0, torch.finfo(torch.float32).min)
        return seen.choice(highest(row, seen.places, score, row.share))


def drawn_places(row: Row) -> Tensor:
    """(n,) as many open places of the block as the step is planned to write, drawn by the row, ascending."""
    candidates = row.candidates()
    order = torch.randperm(len(candidates), generator=row.generator("places"))
    return candidates[order[: row.share]].sort().values


class Confident(Rule):
    """The base of rules that write all places which pass a test, and at least as many as `steps` plans, the surest."""

    def passing(self, row: Row, seen: Seen) -> Tensor:
        """(n,) which places are written."""
        raise NotImplementedError

    def choose(self, row: Row, seen: Seen) -> Choice:
        return seen.choice(self.passing(row, seen) | highest(row, seen.places, seen.confidence, row.share))


# ---------------------------------------------------------------------------------------------------------------------
# The loop


@dataclass
class Step:
    """A denoising step, done: the `number` of it (from 1), the canvas as it stands now, and what changed."""

    number: int
    canvas: Canvas
    changes: list[Change]


@torch.no_grad()
def step(predict: Predict, rows: Sequence[Row], memory: Memory | None = None) -> list[Change]:
    """One denoising step of every row that is not finished, wherever each stands. Rows must be `prepare`d.

    Args:
        memory: what rows with a cache remember; it lives as long as they do.

    Raises:
        UserError: the model answers NaN; a rule that breaks its promises.
    """
    rows = [row for row in rows if not row.finished]
    if memory is None:
        if any(row.cache is not None and row.cache.keeps for row in rows):
            raise UserError("rows with a cache need a Memory that lives as long as they: step(predict, rows, memory).")
        memory = Memory()
    shown = rows[0].ids if rows else None
    try:
        for row in rows:
            growth.before(predict, row)
        views, wanted = [], {}
        for row in rows:
            view = row.rule.view(row)
            wanted[row], view = view.places, growth.wider(view)
            views += [view, view.without_given()] if row.reading.cfg_scale else [view]
        seen: dict[Row, Seen] = {}
        shift, padded = getattr(predict, "shift", 0), getattr(predict, "pads_windows", True)
        for one in memory.passes(views, shift=shift, padded=padded):
            shown = one.views[0].ids
            seen |= look(predict, one)
    except NotNumbers:
        where = getattr(predict, "where_nan", None)
        raise UserError(
            "the model's answers are not numbers (NaN): its weights are broken, or float16 is too narrow."
            + (where(shown) if where else "")
        ) from None
    changes = [row.write(row.rule.choose(row, seen[row].of(wanted[row]))) for row in rows]
    for change in changes:
        memory.wrote(change)
        change.row.alternatives |= seen[change.row].alternatives(change.places)
        growth.after(change.row, seen[change.row])
    return changes


def unmask(predict: Predict, canvas: Canvas, /, **settings: Any) -> Iterator[Step]:
    """Fill a canvas, yielding after every step.

    Args:
        settings: fields of `Options`, and of the rule's and the cache's own `Settings`; for all rows that were not
            `prepare`d before.
    """
    new = [row for row in canvas.rows if row.rule is None]
    if settings and canvas.rows and not new:
        raise UserError(
            f"these rows are prepared already, so {', '.join(settings)} would change nothing; leave it out."
        )
    prepare(predict, new, **settings)
    memory = Memory()
    for number in itertools.count(1):
        if canvas.done:
            return
        yield Step(number, canvas, step(predict, canvas.rows, memory))


# ---------------------------------------------------------------------------------------------------------------------
# Settings → rows ready to step


def plug_in(kind: str, name: str, what: str, base: type) -> tuple[type, type]:
    """The class that a plug-in file defines under the name of its base, and its Settings."""
    file = named(kind, name)
    found, settings = getattr(file, base.__name__, None), getattr(file, "Settings", None)
    if not (isinstance(found, type) and issubclass(found, base) and dataclasses.is_dataclass(settings)):
        raise UserError(
            f"{name!r} is no {what}: it needs a dataclass Settings and a class {base.__name__}({kind}.{base.__name__})."
        )
    return found, settings  # type: ignore[return-value]


def rule_file(name: str) -> tuple[type[Rule], type]:
    """The classes Rule and Settings of a rule's file."""
    return plug_in("decoding", name, "decoding rule", Rule)


def cache_file(name: str) -> tuple[type[Cache], type]:
    """The classes Cache and Settings of a cache policy's file."""
    return plug_in("caches", name, "cache policy", Cache)


def plug_in_settings(rule: str, cache: str, canvas: str) -> dict[str, Any]:
    """Setting → type, of a rule, a cache policy and a kind of canvas together."""
    found = hints(rule_file(rule)[1]) | hints(cache_file(cache)[1])
    return found | (hints(growth.Settings) if canvas == "grow" else {})


def prepare(predict: Predict, rows: Sequence[Row], *, tokenizer: Any = None, **settings: Any) -> None:
    """Give rows their rule, cache, options, blocks and steps.

    Args:
        tokenizer: needed for `stop_strings`.
        settings: fields of `Options` (`block_length` is understood as `block_size`) and of the `Settings` of the rule,
            the cache and the canvas that grows.

    Raises:
        UserError: an unknown setting, a value out of range, settings that contradict, a row longer than the model.
    """
    settings["block_size"] = one_spelling("block_size", "block_length", settings)
    ours = {f.name for f in dataclasses.fields(Options)}
    options: Options = build(Options, {key: value for key, value in settings.items() if key in ours})
    options.check()
    (rule, rules), (cache, caches) = rule_file(options.rule), cache_file(options.cache)
    kinds = {"rule": (rules, options.rule_args), "cache": (caches, options.cache_args)}
    if options.canvas == "grow":
        kinds["canvas"] = (growth.Settings, {})
    own = settings_of(kinds, {key: value for key, value in settings.items() if key not in ours}, options)
    contradictions(predict, rule, cache, options)
    reading = resolve(predict, options)
    stopped = stop_strings(tokenizer, options.stop_strings, reading)
    for row in rows:
        check_row(predict, row, options)
        row.rule, row.cache, row.reading, row.seed = rule(own["rule"]), cache(own["cache"]), reading, options.seed
        row.stopped, row.stop_strings = stopped, tuple(options.stop_strings)
        if "canvas" in own:
            growth.shorten(row, own["canvas"], options.steps, options.block_size)
        row.plan(options.steps, options.block_size)
    places = min((int(row.free.sum()) for row in rows), default=0)
    if options.steps and rows and options.steps > places and options.canvas == "fixed":
        report.say(f"--steps {options.steps} is more than the {places} places to write; a step writes at least one.")


def contradictions(predict: Predict, rule: type[Rule], cache: type[Cache], options: Options) -> None:
    """UserError for a rule, a cache and a canvas that do not go together."""
    if cache.keeps and rule.view is not Rule.view:
        raise UserError(
            f"the rule {options.rule!r} shows the model more than the row, so no cache can hold what it computes; use "
            f"--cache none instead of {options.cache!r}."
        )
    if rule.view is not Rule.view and getattr(predict, "shift", None):
        raise UserError(
            f"the rule {options.rule!r} needs a model whose place i speaks of token i; this one's speaks of the next."
        )
    why = getattr(predict, "no_cache", None)
    if cache.keeps and why:
        raise UserError(f"--cache {options.cache} does not work here: {why}; use --cache none.")
    remembers = rule.revises or rule.adjusts or "probs" in rule.needs or rule.view is not Rule.view
    if options.canvas == "grow" and remembers:
        raise UserError(
            f"the rule {options.rule!r} remembers places, which move when the canvas grows; use --canvas fixed, or a "
            "rule such as threshold."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Whole answers


def generate(
    predict: Predict,
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Prompts and their answers, (rows, prompt + new); every prompt stays where it is, padding included.

    Args:
        input_ids: (rows, prompt). attention_mask: (rows, prompt), 0 at padding, wherever that is.
        settings: as for `answers` and `unmask`.
    """
    canvas, settings = answers(predict, input_ids, attention_mask, **settings)
    return sequences(predict, input_ids, fill(predict, canvas, **settings))


def answers(
    predict: Predict,
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    gen_length: int | None = None,
    constraints: Mapping[int, int | Sequence[int]] | None = None,
    **settings: Any,
) -> tuple[Canvas, dict[str, Any]]:
    """A canvas of prompts (rows, prompt), each with an answer to be written, and the settings that are left.

    Args:
        max_new_tokens: places after each prompt, 128 if left out; `gen_length` is LLaDA's word for it.
        constraints: place in the answer, from 0 → the token or tokens that stand there.
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
    prompts = [row[keep.bool()].tolist() for row, keep in zip(rows, real, strict=True)]
    return Canvas.after(prompts, new, predict.mask_id, constraints=constraints), settings


def sequences(predict: Predict, input_ids: Tensor | None, canvas: Canvas) -> Tensor:
    """Prompts (rows, prompt) and the answers of their canvas, (rows, prompt + longest answer).

    Answers that a growing canvas left shorter are filled with the end of text.
    """
    assert input_ids is not None
    longest = max((len(row.answer) for row in canvas.rows), default=canvas.longest)
    end = canvas.rows[0].reading.ends[:1] if canvas.rows else ()
    out = input_ids.new_full((len(canvas.rows), longest), end[0] if end else predict.mask_id)
    for i, row in enumerate(canvas.rows):
        out[i, : len(row.answer)] = row.answer
    return torch.cat([input_ids, out], dim=1)


def infill(predict: Predict, texts: Sequence[Sequence[int | None]], **settings: Any) -> list[list[int]]:
    """Texts as ids in which None is an open place → the same with every gap filled and nothing else altered."""
    canvas = fill(predict, Canvas.of(texts, predict.mask_id), **settings)
    return [row.ids.tolist() for row in canvas.rows]


def fill(predict: Predict, canvas: Canvas, /, **settings: Any) -> Canvas:
    """The canvas with no open place left; settings as for `unmask`."""
    for _ in unmask(predict, canvas, **settings):
        pass
    return canvas
