"""Validation: one number for a model that does not change from one look to the next.

In:  `predict`, an objective, batches whose noise is fixed.
Out: the bound in nats per token and bits per byte, each with its standard error, and the loss by noise level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.batches import FILLER
from unmask.objectives import Objective
from unmask.predict import Predict

LEVELS = 5


@torch.no_grad()
def rows(
    predict: Predict,
    objective: Objective,
    batches: Iterable[dict[str, Tensor]],
    token_bytes: NDArray[Any] | None,
    end_id: int | None = None,
) -> list[tuple[float, ...]]:
    """What each row costs: [(place, nats, plain nats, masked, tokens, bytes, t, ends), …]; fillers are left out.

    ends: how many of the tokens are `end_id`, the end of text.
    """
    found: list[tuple[float, ...]] = []
    for batch in batches:
        learnt = batch["supervised"]
        size = torch.zeros(len(learnt))
        if token_bytes is not None:
            size = (torch.from_numpy(token_bytes)[batch["input_ids"]] * learnt).sum(1)
        moved = {key: value.to(predict.device) for key, value in batch.items()}
        loss = objective(predict, moved)
        ends = ((batch["input_ids"] == (-1 if end_id is None else end_id)) & learnt).sum(1)
        counts = (batch["masked"].sum(1), learnt.sum(1), size)
        columns = [batch["place"], loss.nats, loss.plain, *counts, batch["t"], ends]
        table = torch.stack([column.double().cpu() for column in columns], 1)
        found += [tuple(row) for row in table.tolist() if row[0] != FILLER]
    return found


def summary(found: Iterable[tuple[float, ...]], levels: bool = True, draws: int = 1) -> dict[str, float]:
    """The metrics of validation, without prefix.

    loss: nats per token, Σ bounds / Σ tokens. loss_se: its standard error over rows (a ratio estimate: the spread of
    bound_r - loss · tokens_r); it covers which rows were drawn as well as which noise. bits_per_byte likewise.
    draws: of noise for each row, at places that follow one another; their sum is one row's, since more draws of the
    same rows say nothing more of which rows were drawn.
    nats_at_0.1 … 0.9: cross-entropy of a masked token where about that share is masked; without `levels` left out.
    eos_share: of end-of-text tokens among those that count.
    """
    table = np.asarray(sorted(found), dtype=np.float64)
    _, nats, plain, masked, tokens, size, t, ends = table.T
    _, row = np.unique(table[:, 0] // draws, return_inverse=True)
    n, metrics = int(row.max()) + 1, {}

    def ratio(below: NDArray[Any]) -> tuple[float, float]:
        value = nats.sum() / below.sum()
        spread = np.bincount(row, nats - value * below)
        return value, math.sqrt(n / max(n - 1, 1) * (spread**2).sum()) / below.sum()

    metrics["loss"], metrics["loss_se"] = ratio(tokens)
    if size.sum():
        value, error = ratio(size)
        metrics["bits_per_byte"], metrics["bits_per_byte_se"] = value / math.log(2), error / math.log(2)
    level = np.minimum((t * LEVELS).astype(int), LEVELS - 1)
    for i in range(LEVELS if levels else 0):
        count = masked[level == i].sum()
        if count:
            metrics[f"nats_at_{(i + 0.5) / LEVELS:.1f}"] = plain[level == i].sum() / count
    metrics["tokens"], metrics["eos_share"] = tokens.sum(), ends.sum() / tokens.sum()
    return {key: float(value) for key, value in metrics.items()}


def unigram(counts: NDArray[Any], rows_of_ids: Iterable[NDArray[Any]]) -> float:
    """Nats per token of a model that knows only how often each token occurs: the baseline that learning must beat.

    Args:
        counts: (vocabulary,) in the training rows; one is added to each, so that unseen tokens cost something.
        rows_of_ids: the validation rows.
    """
    log_p = np.log(counts + 1) - np.log((counts + 1).sum())
    ids = np.concatenate([np.asarray(row) for row in rows_of_ids])
    return float(-log_p[ids].mean())
