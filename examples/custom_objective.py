"""An objective of your own: `unmask pretrain … --objective examples/custom_objective.py --objective_args focus=0.5`.

Masked diffusion that dwells on tokens the model is unsure of (a focal loss). A bound no longer, so validation, which
calls `exact=True`, keeps the plain weights and stays comparable with other runs.
"""

from dataclasses import dataclass

import torch

from unmask.objectives import Loss, cross_entropy, masked, weighted


@dataclass
class Settings(masked.Settings):
    focus: float = 1.0
    """Tokens weigh (1 - p)^focus more the less sure the model is; 0 is the plain loss."""


class Objective(masked.Objective):
    def __call__(self, predict, batch) -> Loss:
        ids, hidden = batch["input_ids"], batch["masked"]
        noisy = torch.where(hidden, self.mask_id, ids)
        nats = cross_entropy(predict, noisy, ids, hidden, batch.get("attention"))
        if nats.requires_grad:  # training, not validation
            nats = nats * (1 - torch.exp(-nats.detach())) ** self.settings.focus
        length = batch["supervised"].sum(1).clamp(min=1)
        return weighted(nats, batch["weight"], hidden, length)
