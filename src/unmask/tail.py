"""The end-of-text tail: how a masked diffusion model learns where to stop.

In:  `--eos_tail`, a row's length and that of its answer.  Out: how many end-of-text tokens come after the answer.

An autoregressive model stops by one token. A diffusion model fills a canvas that is longer than the answer, so it must
have learnt what stands behind an answer's end: end of text, in the loss and in the row's length (LLaDA,
arXiv:2502.09992, appendix on SFT). Too many of them, and it learns little else (LLaDA's EVAL.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from unmask.config import UserError, nearest

CHOICES = "step (up to the longest row of the optimiser step), block:N (up to whole blocks of N), N (N tokens) or none"


@dataclass(frozen=True)
class Tail:
    """How long the tail is: `step`, `block` of `size` tokens, `size` tokens (`fixed`), or `none`."""

    kind: Literal["step", "block", "fixed", "none"] = "none"
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> Tail:
        """`step`, `block:32`, `8`, `none` → a Tail; UserError for anything else."""
        if text == "step":
            return cls("step")
        if text == "none":
            return cls()
        found = re.fullmatch(r"(block:)?(\d+)", text)
        if found is None:
            raise UserError(
                f"--eos_tail {text!r} is not known; use {CHOICES}.{nearest(text, ('step', 'none', 'block:32'))}"
            )
        if int(found[2]) < 1:
            raise UserError(f"--eos_tail {text!r}: at least 1 token; `none` is for no tail.")
        return cls("block" if found[1] else "fixed", int(found[2]))

    @classmethod
    def chosen(cls, text: str | None, causal: bool, packing: bool = False) -> Tail:
        """The tail that was asked for; None takes `step` for a model that fills masks, `block:32` if its rows are to be
        packed, and `none` for a causal one.

        Raises:
            UserError: a tail for a causal model, which would learn to say end of text after end of text.
        """
        tail = cls.parse(text or ("none" if causal else "block:32" if packing else "step"))
        if causal and tail.kind != "none":
            raise UserError(
                f"--eos_tail {tail}: a model that predicts the next token stops at its first end of text and needs no "
                "tail; leave --eos_tail out, or use none."
            )
        return tail

    def __str__(self) -> str:
        return {"block": f"block:{self.size}", "fixed": str(self.size)}.get(self.kind, self.kind)

    def length(self, row: int, answer: int, longest: int, most: int) -> int:
        """Tokens to add to a row.

        Args:
            row: tokens in it. answer: those of its last answer; blocks are counted from where that begins, as they are
                when it is written. longest: tokens in the longest row of the optimiser step. most: no row is longer.
        """
        wanted = {
            "step": longest - row,
            "block": self.size - answer % self.size if self.size else 0,  # at least one: a full block says no end
            "fixed": self.size,
            "none": 0,
        }[self.kind]
        return max(0, min(wanted, most - row))
