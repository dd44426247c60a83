"""Next-token prediction: the ordinary causal language model, on the same rows and by the same contract.

In:  a batch of clean ids.  Out: cross-entropy of each token given those before it. Exact: no noise, no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.objectives import Loss, Noised, weighted_cross_entropy
from unmask.predict import Predict


@dataclass
class Settings:
    normalise: Literal["token", "sequence"] = "token"
    """token: by all predicted tokens of the global batch, as `transformers` does. sequence: each row by its own
    length, then the mean over the rows of the global batch."""


class Objective:
    """L = Σ_i -log p(token i | tokens before i) / tokens."""

    causal: ClassVar[bool] = True
    bound = "exact"

    def __init__(self, settings: Settings, mask_id: int | None) -> None:
        self.settings, self.mask_id = settings, mask_id

    def noise(self, supervised: NDArray[np.bool_], t: float, random: np.random.Generator, exact: bool) -> Noised:
        """Nothing is hidden; `masked` says what is predicted: all that is supervised but a row's first place."""
        predicted = supervised.copy()
        predicted[:1] = False
        return Noised(predicted, predicted.astype(np.float32))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        predicted = batch["masked"]
        return predicted.any(1).sum() if self.settings.normalise == "sequence" else predicted.sum()

    def __call__(self, predict: Predict, batch: dict[str, Tensor]) -> Loss:
        ids, predicted = batch["input_ids"], batch["masked"]
        own_length = predicted.sum(1).clamp(min=1)
        divisor = own_length if self.settings.normalise == "sequence" else torch.ones_like(own_length)
        return weighted_cross_entropy(predict, ids, ids, predicted, batch["weight"], divisor, batch.get("attention"))
