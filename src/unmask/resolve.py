"""Decoding settings made definite: loose values to dataclasses, what tokens are called to ids, and what cannot be.

In:  settings by name, the model's view (`predict`), rows.
Out: the rule's and the cache's Settings, a `Reading`; UserError in one line for what does not fit.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from typing import Any

from unmask.canvas import Row
from unmask.config import UserError, build, nearest
from unmask.options import Options, Reading
from unmask.predict import Predict


def settings_of(
    kinds: dict[str, tuple[type, dict[str, Any]]], wanted: dict[str, Any], options: Options
) -> dict[str, Any]:
    """Loose settings → the Settings of the rule, the cache and the canvas, checked. One may be of several of them."""
    names = {kind: {f.name for f in dataclasses.fields(settings)} for kind, (settings, _) in kinds.items()}
    everything = set().union(*names.values())
    for key in wanted:
        if key not in everything:
            ours = {f.name for f in dataclasses.fields(Options)}
            raise UserError(
                f"unknown setting {key!r}; the rule {options.rule!r} has {', '.join(sorted(names['rule'])) or 'none'}, "
                f"the cache {options.cache!r} {', '.join(sorted(names['cache'])) or 'none'}."
                + nearest(key, ours | everything)
            )
    made = {}
    for kind, (settings, args) in kinds.items():
        for key in args:
            if key in wanted and key in names[kind]:
                raise UserError(f"{key!r} is given twice: as a setting and in {kind}_args.")
        made[kind] = build(settings, {k: v for k, v in wanted.items() if k in names[kind]} | args)
        check = getattr(made[kind], "check", None)
        if check:
            check()
    return made


def stop_strings(tokenizer: Any, strings: list[str], reading: Reading) -> Callable[[list[int]], int | None] | None:
    """Ids of an answer → how many of them stand before the first stop string, or None; None where there are none."""
    if not strings:
        return None
    if tokenizer is None:
        raise UserError("stop_strings are texts: give the tokenizer too, as tokenizer=….")
    if not reading.ends:
        raise UserError("with --stop_strings the rest of an answer becomes its end; give --eos_token_id.")

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def stopped(ids: list[int]) -> int | None:
        whole = text(ids)
        cut = min((at for at in map(whole.find, strings) if at >= 0), default=None)
        if cut is None:
            return None
        # the longest run of whole tokens that ends before it
        return bisect.bisect_right(range(1, len(ids) + 1), cut, key=lambda n: len(text(ids[:n])))

    return stopped


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
    asked = options.logits_eos_inf or options.confidence_eos_eot_inf or options.eos_stop or options.min_new_tokens
    if not eos and asked:
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
    for token in [*never, *last, *stops, *options.cfg_keep_tokens, *eos, *eot]:
        if not 0 <= token < predict.vocab_size:
            raise UserError(f"there is no token {token}; the model has {predict.vocab_size}, from 0.")
    if len({*never, predict.mask_id}) == predict.vocab_size:
        raise UserError("with --suppress_tokens no token is left to write.")
    return Reading(
        options.temperature,
        options.cfg_scale,
        tuple(never),
        tuple(last),
        tuple(stops),
        tuple(options.cfg_keep_tokens),
        options.top_k,
        options.top_p,
        options.min_new_tokens,
        (*eos, *eot),
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
    if (options.eos_stop or options.stop_strings) and new and not bool(row.free[-1]):
        raise UserError(
            f"row {row.number} has gaps with text after them, so --eos_stop and --stop_strings have no meaning there; "
            "leave them out."
        )
