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

from unmask.config import UserError
from unmask.objectives import Loss, Noised, weighted_cross_entropy
from unmask.predict import Predict


@dataclass
class Settings:
    normalise: Literal["token", "sequence"] = "token"
    """token: by all predicted tokens of the global batch, as `transformers` does. sequence: each row by its own
    length, then the mean over the rows of the global batch."""
    input_mask: float = 0.0
    """Of each training row a share, drawn evenly from 0 to this, is shown as the mask; every token is predicted still.
    An augmentation against learning repeated texts by heart (arXiv:2511.03276). Validation hides nothing."""


class Objective:
    """L = Σ_i -log p(token i | tokens before i) / tokens."""

    causal: ClassVar[bool] = True
    bound = "exact"

    def __init__(self, settings: Settings, mask_id: int | None) -> None:
        if not 0 <= settings.input_mask <= 1:
            raise UserError(f"input_mask is {settings.input_mask}; it must be from 0 to 1.")
        if settings.input_mask and mask_id is None:
            raise UserError("input_mask needs a mask token, and the model has none; leave it out, or take a LLaDA.")
        self.settings, self.mask_id = settings, mask_id

    def noise(self, supervised: NDArray[np.bool_], t: float, random: np.random.Generator, exact: bool) -> Noised:
        """`masked` says what is predicted: all that is supervised but a row's first place. `hidden`: is shown as the
        mask."""
        predicted = supervised.copy()
        predicted[:1] = False
        weight = predicted.astype(np.float32)
        if not self.settings.input_mask:
            return Noised(predicted, weight)
        share = 0.0 if exact else t * self.settings.input_mask
        return Noised(predicted, weight, {"hidden": random.random(len(supervised)) < share})

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        predicted = batch["masked"]
        return predicted.any(1).sum() if self.settings.normalise == "sequence" else predicted.sum()

    def __call__(self, predict: Predict, batch: dict[str, Tensor]) -> Loss:
        ids, predicted = batch["input_ids"], batch["masked"]
        shown = ids
        if self.mask_id is not None and "hidden" in batch:
            shown = torch.where(batch["hidden"], self.mask_id, ids)
        own_length = predicted.sum(1).clamp(min=1)
        divisor = own_length if self.settings.normalise == "sequence" else torch.ones_like(own_length)
        return weighted_cross_entropy(predict, shown, ids, predicted, batch["weight"], divisor, batch.get("attention"))
