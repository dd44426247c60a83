"""How rows are decoded: what a user may ask for, and what that means in ids.

In:  flags, YAML keys or keyword arguments.
Out: `Options`, as they were given; `Reading`, what of them is heeded when logits are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from unmask.config import UserError, option


@dataclass
class Options:
    """Decoding"""

    steps: int | None = option(
        None,
        "Denoising steps of the whole answer: at least one a block, at most one a token. One a token if left out.",
    )
    block_size: int | None = option(
        None,
        "Places filled before the next ones are begun: 1 writes left to right, the whole answer (if left out) is pure "
        "diffusion.",
    )
    temperature: float = option(0.0, "0 takes the likeliest token; 1 draws from the model's own distribution.")
    top_k: int | None = option(None, "Draw among so many of the likeliest tokens. Needs a temperature.")
    top_p: float | None = option(
        None, "Draw among the likeliest tokens that together have this probability. Needs a temperature."
    )
    cfg_scale: float = option(0.0, "Guidance: logits = bare + (cfg_scale + 1) · (prompted - bare). 0: none.")
    cfg_keep_tokens: list[int] = option([], "Ids of prompt tokens that the bare half of guidance may still see.")
    suppress_tokens: list[int] = option([], "Ids of tokens that are never written.")
    begin_suppress_tokens: list[int] = option(
        [], "Ids of tokens that are written last: their confidence counts as none."
    )
    logits_eos_inf: bool = option(False, "Never write the end of text (as --suppress_tokens with its id).")
    confidence_eos_eot_inf: bool = option(
        False, "Write end of text and end of turn last (as --begin_suppress_tokens with their ids)."
    )
    min_new_tokens: int = option(0, "No end of text or turn is written among so many first tokens of an answer.")
    stop_strings: list[str] = option([], "Texts that end an answer, which is cut before them.", aliases=["--stop"])
    eos_stop: bool = option(False, "Stop once an end of text stands and everything before it does; the rest is filled.")
    eos_token_id: list[int] | None = option(None, "Ids that end a text. Known from the model if left out.")
    eot_token_id: list[int] | None = option(None, "Ids that end a turn. Known from the tokenizer if left out.")
    compat: Literal["llada"] | None = option(
        None, "llada: as the official code, its slip in --confidence_eos_eot_inf at temperature > 0 included."
    )
    rule: str = option(
        "reference", "Which places are written at each step: a name in `unmask/decoding`, or path/to/file.py."
    )
    rule_args: dict[str, Any] = option({}, "Settings of the rule, as `key=value,key=value`.")
    cache: str = option(
        "none",
        "Which places are computed anew at a step: a name in `unmask/caches`, or path/to/file.py. none is exact; the "
        "others answer from older keys and values.",
    )
    cache_args: dict[str, Any] = option({}, "Settings of the cache, as `key=value,key=value`.")
    canvas: Literal["fixed", "grow"] = option(
        "fixed", "grow: begin short and grow where the model finds no end (DAEDAL), up to --max_new_tokens."
    )
    seed: int = option(42, "Seed; each row draws from its own generator, made from it and the row's number.")

    def check(self) -> None:
        """UserError for a value that cannot work."""
        for name in ("steps", "block_size", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"--{name} is {value}; it must be 0 or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top_p is {self.top_p}; it must be above 0 and at most 1.")
        if not self.temperature:
            for name in ("top_k", "top_p"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name} limits what is drawn, and at temperature 0 nothing is; give a temperature."
                    )
        if self.min_new_tokens < 0:
            raise UserError(f"--min_new_tokens is {self.min_new_tokens}; it must be 0 or more.")
        if not all(self.stop_strings):
            raise UserError("--stop_strings has an empty text, which stands everywhere; leave it out.")


@dataclass(frozen=True)
class Reading:
    """`Options` resolved to ids, as the logits are read. Rows with equal ones are read together.

    Attributes:
        never: ids that are not written. last: ids that are written last. stops: ids at which a row may stop. keep: ids
        of given tokens that the bare half of guidance sees. ends: ids not written in the first `least` places.
        alternatives: how many of the likeliest tokens are kept for each place that is written (`Row.alternatives`).
    """

    temperature: float = 0.0
    cfg_scale: float = 0.0
    never: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()
    top_k: int | None = None
    top_p: float | None = None
    least: int = 0
    ends: tuple[int, ...] = ()
    alternatives: int = 0
