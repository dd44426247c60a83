"""Masked diffusion (LLaDA, arXiv:2502.09992; MDLM, arXiv:2406.07524).

In:  a batch of clean ids, of which a random share t is masked.  Out: cross-entropy at the masked places, weighed 1/t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask import noise
from unmask.config import UserError
from unmask.objectives import Loss, Noised, weighted_cross_entropy
from unmask.predict import Predict


@dataclass
class Settings:
    schedule: str = "linear"
    """How many tokens are masked at time t: linear (LLaDA) or cosine."""
    eps: float = 1e-3
    """t is drawn from [eps, 1]: near 0 the weight 1/t explodes. LLaDA's value."""
    weight: Literal["elbo", "none"] = "elbo"
    """elbo: 1/t, which makes the loss a bound on the likelihood. none: every masked token counts the same; no bound."""
    normalise: Literal["sequence", "token", "masked"] = "sequence"
    """sequence: each row by its own length, then the mean over the rows of the global batch (LLaDA's guidelines).
    token: by all supervised tokens of the global batch. masked: by its masked tokens."""
    first_given: bool = False
    """A row's first token is never masked nor counted, as an autoregressive model has it, before whose first token
    stands nothing: both are then scored on the same tokens, each given the first."""


class Objective:
    """L = E_t E_mask [ w(t) Σ_masked -log p(token | the rest) ] / tokens  (LLaDA, eq. 3)."""

    bound = "bound"

    def __init__(self, settings: Settings, mask_id: int) -> None:
        if not 0 <= settings.eps < 1:
            raise UserError(f"eps is {settings.eps}; it must be at least 0 and below 1.")
        self.settings, self.mask_id, self.first_given = settings, mask_id, settings.first_given
        self.schedule = noise.schedule(settings.schedule)

    def noise(self, supervised: NDArray[np.bool_], t: float, random: np.random.Generator, exact: bool) -> Noised:
        """Masked places of a row and their weight; see `Objective.noise` in the contract."""
        candidates = int(supervised.sum())
        if exact:
            # l of L places, l uniform in 1 … L, each weighing L/l: the same bound with far less variance
            # (LLaDA, eq. 6). It needs no schedule: in continuous time the bound is the same for all of them.
            count = noise.count_at(t, candidates) if candidates else 0
            masked = noise.mask_exactly(count, supervised, random)
            weight = candidates / max(count, 1)
        else:
            share, weight = noise.rate(t, self.settings.eps, self.schedule)
            masked = noise.mask(share, supervised, random)
            if self.settings.weight == "none":
                weight = 1.0
        return Noised(masked, np.where(masked, weight, 0).astype(np.float32))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        if self.settings.normalise == "sequence":
            return batch["supervised"].any(1).sum()
        return batch["masked" if self.settings.normalise == "masked" else "supervised"].sum()

    def __call__(self, predict: Predict, batch: dict[str, Tensor]) -> Loss:
        ids, masked = batch["input_ids"], batch["masked"]
        noisy = torch.where(masked, self.mask_id, ids)
        own_length = batch["supervised"].sum(1).clamp(min=1)
        divisor = own_length if self.settings.normalise == "sequence" else torch.ones_like(own_length)
        return weighted_cross_entropy(predict, noisy, ids, masked, batch["weight"], divisor, batch.get("attention"))
