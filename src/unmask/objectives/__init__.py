"""What is learnt. One file here is one objective; its file name is its name on the command line.

In:  `predict` (a model, see below) and a batch whose noise was drawn where the batch was made.
Out: a `Loss`. Training, validation and likelihood call the same code.

An objective's file defines

    Settings    a dataclass; its fields are the keys of `--objective_args`
    Objective   a class with the methods of `Objective` below, made as Objective(settings, mask_id)

and imports neither a model nor another objective. `examples/custom_objective.py` is one, in 40 lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask import cross_entropy as at_places
from unmask.config import UserError, build, named
from unmask.predict import Head, Predict


@dataclass
class Noised:
    """One row's noise: which places are masked, and what each place weighs in the loss (both (places,)).

    more: what else an objective draws for each place (places,), which it finds in the batch under the same names; 0
    stands there where a row has ended.
    """

    masked: NDArray[np.bool_]
    weight: NDArray[np.float32]
    more: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass
class Loss:
    """What a batch costs.

    Attributes:
        total: scalar with gradient; divided by `Objective.count` of the whole optimiser step it is the training loss.
        nats: (rows,) the bound on -log p of each row's supervised tokens, in nats. No gradient.
        plain: (rows,) unweighted cross-entropy summed over the masked places, in nats. No gradient.
    """

    total: Tensor
    nats: Tensor
    plain: Tensor


class Objective(Protocol):
    """The contract. A batch is a dict of tensors:

    input_ids (rows, places) clean tokens · supervised (rows, places) what may be learnt · attention (rows, places) or
    absent when there is no padding · masked (rows, places), weight (rows, places) from `noise` · t (rows,).
    A row is one conversation or one chunk of text, also where `predict` packs several into a row of its own. Filler
    rows, which even out the processes at an epoch's end, have nothing supervised.
    """

    causal: ClassVar[bool] = False
    """Whether it wants a model that sees only what stands before; then a row's first token is never supervised, for
    nothing stands before it. A class without this attribute learns from both sides."""
    first_given: bool = False
    """Whether a row's first token is given, never learnt and never counted, as a causal objective always has it; left
    out by objectives that count it."""
    mask_id: int | None
    """The mask's token id; None where the model is causal and has none."""
    bound: str
    """What validation reports: "bound" (an upper bound on the negative log-likelihood) or "exact"."""

    def noise(self, supervised: NDArray[np.bool_], t: float, random: np.random.Generator, exact: bool) -> Noised:
        """The noise of one row at t in [0, 1). `exact`: by the exact-count estimator, as validation does."""
        ...

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """What a batch adds to the divisor of its optimiser step's loss: a scalar."""
        ...

    def __call__(self, predict: Predict, batch: dict[str, Tensor]) -> Loss: ...


def is_causal(objective: Any) -> bool:
    """What an objective, or its class, says in `causal`; False where it says nothing."""
    return bool(getattr(objective, "causal", False))


def gives_first(objective: Any) -> bool:
    """Whether a row's first token is given: it bears no loss and is no token that counts."""
    return is_causal(objective) or bool(getattr(objective, "first_given", False))


def load(name: str, settings: dict[str, Any] | None, mask_id: int | None) -> Objective:
    """The objective called `name`, or in the file `name`, with its settings; UserError for unknown ones.

    Args:
        mask_id: the mask's token id; only a causal objective does without.
    """
    file = named("objectives", name)
    for wanted in ("Settings", "Objective"):
        if not hasattr(file, wanted):
            raise UserError(f"{name}: an objective's file defines `Settings` and `Objective`; {wanted} is missing.")
    if mask_id is None and not is_causal(file.Objective):
        raise UserError(f"--objective {name} needs a mask token, and the model has none; name it with --mask_token.")
    return file.Objective(build(file.Settings, settings or {}), mask_id)


def cross_entropy(
    predict: Predict, ids: Tensor, targets: Tensor, keep: Tensor, attention: Tensor | None = None
) -> Tensor:
    """-log p of `targets` at the places where `keep` is true, in nats: (kept,), in float32, each with its gradient.

    For a loss that is no weighted sum; `weighted_cross_entropy` is faster.

    Args:
        ids, targets: (rows, places), what the model sees and what it should say. keep, attention: (rows, places).
    """
    wanted = targets[keep]

    def nats(hidden: Tensor, head: Head) -> Tensor:
        return at_places.cross_entropy(hidden, head, wanted)

    return predict(ids, attention=attention, keep=keep, read=nats)


def weighted_cross_entropy(
    predict: Predict,
    ids: Tensor,
    targets: Tensor,
    keep: Tensor,
    weight: Tensor,
    divisor: Tensor,
    attention: Tensor | None = None,
    positions: Tensor | None = None,
) -> Loss:
    """The loss whose weights are known before: as `weighted(cross_entropy(…), weight, keep, divisor)`, but faster.

    Args:
        ids, targets, keep, attention: as `cross_entropy` has them. weight, divisor: as `weighted` has them.
        positions: (rows, places) where each token stands in its text; counted from 0 if left out.
    """
    wanted, heavy = targets[keep], (weight / divisor[:, None])[keep]

    def total_and_nats(hidden: Tensor, head: Head) -> Tensor:
        total, nats = at_places.weighted(hidden, head, wanted, heavy)
        return torch.cat([total[None], nats])

    where = {} if positions is None else {"positions": positions}
    found = predict(ids, attention=attention, keep=keep, read=total_and_nats, **where)
    loss = weighted(found[1:].detach(), weight, keep, divisor)
    return Loss(total=found[0], nats=loss.nats, plain=loss.plain)


def weighted(nats: Tensor, weight: Tensor, keep: Tensor, divisor: Tensor) -> Loss:
    """The loss from each kept place's nats: rows are weighed, summed, and divided by `divisor` (rows,).

    Args:
        nats: (kept,). weight, keep: (rows, places). divisor: (rows,), 1 where rows are not normalised by themselves.
    """
    rows = keep.shape[0]
    row = torch.arange(rows, device=keep.device)[:, None].expand_as(keep)[keep]

    def per_row(values: Tensor) -> Tensor:
        return torch.zeros(rows, device=values.device, dtype=values.dtype).index_add(0, row, values)

    bound = per_row(nats * weight[keep])
    return Loss(total=(bound / divisor).sum(), nats=bound.detach(), plain=per_row(nats.detach()))
