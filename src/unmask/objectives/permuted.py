"""Next-token prediction along several fixed orders of a text, of which the first is the usual one.

In:  a batch of clean ids, and for each row the order in which it is read.
Out: cross-entropy of each token given those before it in that order; validation reads left to right, and is exact.

What arXiv:2507.15857 tests as the cause of masked diffusion's gain from repeated data: with more orders of the same
text an autoregressive model comes to resemble one (its ablation of N orderings).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.config import UserError
from unmask.objectives import Loss, Noised, weighted_cross_entropy
from unmask.predict import Predict


@dataclass
class Settings:
    orders: int = 4
    """How many orders there are. Order 0 is left to right, and order i shuffles places the farther, the larger i is."""
    order_seed: int = 0
    """Draws the orders; the same for all rows, epochs and seeds of a run."""


@functools.lru_cache(maxsize=4096)
def order(number: int, length: int, seed: int) -> NDArray[np.int64]:
    """Which place is read at each step, (length,): argsort of place + N(0, number²), the first place staying first."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
    moved = np.arange(length) + number * random.standard_normal(length)
    moved[:1] = -np.inf
    return np.argsort(moved, kind="stable")


class Objective:
    """L = Σ_i -log p(token σ(i) | tokens σ(1) … σ(i-1)) / tokens, σ drawn anew for each row and epoch."""

    causal: ClassVar[bool] = True
    bound = "exact"

    def __init__(self, settings: Settings, mask_id: int | None) -> None:
        if settings.orders < 1:
            raise UserError(f"orders is {settings.orders}; it must be at least 1.")
        self.settings, self.mask_id = settings, mask_id

    def noise(self, supervised: NDArray[np.bool_], t: float, random: np.random.Generator, exact: bool) -> Noised:
        """`masked` says what is predicted, at its place in the text. `order`: which place is read at each step."""
        number = 0 if exact else int(random.integers(self.settings.orders))
        predicted = supervised.copy()
        predicted[:1] = False
        read = order(number, len(supervised), self.settings.order_seed)
        return Noised(predicted, predicted.astype(np.float32), {"order": read})

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["masked"].sum()

    def __call__(self, predict: Predict, batch: dict[str, Tensor]) -> Loss:
        ids = batch["input_ids"]
        there = batch.get("attention", torch.ones_like(ids, dtype=torch.bool))
        read = torch.where(there, batch["order"], torch.arange(ids.shape[1], device=ids.device))
        shown, predicted, weight = (values.gather(1, read) for values in (ids, batch["masked"], batch["weight"]))
        # `there` is handed over even where there is no padding: transformers 5.23 takes positions that go back for the
        # seams of packed texts when it gets no mask (masking_utils.find_packed_sequence_indices)
        return weighted_cross_entropy(
            predict, shown, shown, predicted, weight, torch.ones_like(ids[:, 0]), there, positions=read
        )
