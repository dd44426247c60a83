"""`remdm`: written tokens may be masked again, so that more steps give a better answer (ReMDM, arXiv:2503.00307).

In:  nothing but the clock and, for one strategy, how sure the model was of a token when it was written.
Out: at each step random places to write, and random written places to reopen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask import decoding
from unmask.canvas import Choice, Row
from unmask.config import UserError, option

ETA = {"cap": 0.008, "rescale": 0.015, "conf": 1.0}
"""Those of the paper's scripts for 1,024 tokens of OpenWebText; `conf` has none there, which is 1."""


@dataclass
class Settings:
    """Rule: remdm"""

    strategy: Literal["cap", "rescale", "conf"] = option(
        "cap",
        "How likely a written place is reopened: at most eta; eta times the most there can be; or that, shared out so "
        "that places less sure when they were written are reopened more.",
    )
    eta: float | None = option(
        None, "How much is reopened, 0 (nothing) to 1. 0.008 for cap, 0.015 for rescale and 1 for conf if left out."
    )
    steps_per_block: int | None = option(
        None, "Steps of each block; may be more than it has places. As --steps plans if left out."
    )

    def check(self) -> None:
        """UserError for an eta that is no probability, or no step."""
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"--eta is {self.eta}; it must be 0 to 1.")
        if self.steps_per_block is not None and self.steps_per_block < 1:
            raise UserError(f"--steps_per_block is {self.steps_per_block}; it must be at least 1.")


@dataclass
class Draw:
    """A block takes `steps` steps. This one `writes` something, or only reopens; `reopen` (n,) are those places."""

    steps: int
    writes: bool = False
    reopen: Tensor | None = None


class Rule(decoding.Rule):
    """From time t to s, with α the share of clean tokens (0 where a block begins, then linear, 1 where it ends):

    an open place is written with probability (α_s - (1 - σ) α_t) / (1 - α_t), a written one reopened with σ, each by
    itself. σ_max = min(1, (1 - α_s) / α_t) is the most that leaves the share of open places what α says. The paper's
    section 4.1 has: cap, σ = min(η, σ_max); rescale, σ = η σ_max; conf, σ_i = η σ_max softmax(-ψ)_i over the written
    places, ψ the model's probability of a token when it was written, and σ = 0 for open ones.

    Each block takes exactly its planned steps, as the clock wants: one at which nothing is written, or nothing changes,
    costs a forward pass like the others. At the last, σ_max is 0 and every open place is written. With η = 0 it is
    `reference` with random places and `stochastic_transfer`. The paper draws tokens too: --temperature 1 --top_p 0.9.
    """

    settings: Settings
    revises = True

    def enter(self, row: Row) -> None:
        if row.reading.last:
            raise UserError(
                "remdm writes random places, so --begin_suppress_tokens and --confidence_eos_eot_inf cannot hold "
                "tokens back; leave them out, or use --suppress_tokens."
            )
        wanted = self.settings.steps_per_block
        if wanted and not row.step:
            if row.planned != [len(block) for block in row.blocks]:
                raise UserError(f"--steps_per_block is {wanted} and --steps is given too; give one of them.")
            row.planned = [wanted] * len(row.blocks)
        row.state = Draw(row.planned[row.block])

    def sigma(self, row: Row, alpha_t: float, alpha_s: float) -> Tensor:
        """(places of the block,) σ, float64."""
        block, strategy = row.blocks[row.block], self.settings.strategy
        eta = ETA[strategy] if self.settings.eta is None else self.settings.eta
        most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
        if strategy == "cap":
            return torch.full((len(block),), min(eta, most), dtype=torch.float64)
        if strategy == "rescale":
            return torch.full((len(block),), eta * most, dtype=torch.float64)
        weight = row.confidence[block].double().neg().exp().masked_fill(row.open[block], 0)
        return eta * most * weight / weight.sum().clamp(min=1e-9)  # nothing is written yet at a block's first step

    def places(self, row: Row) -> Tensor:
        """What is written does not depend on what the model says, so it is asked about nothing else."""
        block, draw = row.blocks[row.block], row.state
        opened = row.open[block]
        alpha_t, alpha_s = row.taken / draw.steps, (row.taken + 1) / draw.steps
        sigma = self.sigma(row, alpha_t, alpha_s)
        write = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        noise = torch.rand(len(block), generator=row.generator("remdm"), dtype=torch.float64)
        drawn = noise < torch.where(opened, write, sigma)
        writing, reopen = block[drawn & opened], block[drawn & ~opened]
        draw.writes, draw.reopen = len(writing) > 0, reopen if len(reopen) else None
        return writing if len(writing) else block[:1]  # a forward pass must be asked about something

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        draw = row.state
        choice = seen.choice() if draw.writes else seen.choice(slice(0))
        choice.reopen, choice.stay = draw.reopen, row.taken + 1 < draw.steps
        return choice

    def limit(self, row: Row) -> int:
        """All planned steps: the last one of a block writes whatever is open."""
        return sum(row.planned)
