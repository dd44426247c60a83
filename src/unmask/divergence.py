"""Steps that would ruin a model: gradients that are no numbers, or far larger than those before.

In:  the norm of each step's gradient.  Out: whether the step is left out, and whether it is time to give up.

One such step is left out: weights and moments stay, the run goes on with the next rows. Several in a row are no
accident: the run stops, or goes back to its last checkpoint from before and on with the rows that come (as PaLM's
authors did, arXiv:2204.02311, section 5.1).
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unmask import report
from unmask.config import UserError

WINDOW, FEW = 100, 20  # steps whose norms a step is compared with, and how many there must be
ROLLBACKS = 3  # in one run, after which going back once more would not help
FOLDER = report.DIVERGENCE  # in the run's folder, with the rows of steps that were left out


Action = Literal["stop", "rollback", "off"]


class Diverged(UserError):
    """A run that cannot go on: exit code 3, so that a script can tell it from a wrong setting."""

    code = 3


@dataclasses.dataclass
class Guard:
    """What to do about such steps, and what was seen.

    Args:
        action: stop, or rollback to the last checkpoint from before; off looks at nothing.
        most: steps left out in a row, at which the action is taken.
        factor: of the median norm of the last steps, above which a norm is blown up; 0 looks for numbers alone.
    """

    action: Action = "stop"
    most: int = 5
    factor: float = 1000.0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UserError(f"--max_skipped_steps is {self.most}; it must be at least 1.")
        if not (self.factor == 0 or self.factor > 1):
            raise UserError(f"--max_grad_norm_factor is {self.factor}; it must be above 1, or 0 for none.")
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.in_a_row = 0
        self.rollbacks = 0
        self.first: int | None = None  # step before which the streak began

    def look(self, norm: float, step: int) -> str | None:
        """Why the step after `step` is to be left out; None where it is not. Remembers its norm."""
        if not math.isfinite(norm):
            reason: str | None = f"the norm of its gradient is {norm}"
        elif self.factor and len(self.norms) >= FEW and norm > self.factor * (usual := statistics.median(self.norms)):
            reason = f"the norm of its gradient is {norm:.3g}, where {usual:.3g} is usual"
        else:
            self.norms.append(norm)
            self.in_a_row, self.first = 0, None
            return None
        if self.first is None:
            self.first = step
        self.in_a_row += 1
        return reason

    @property
    def gives_up(self) -> bool:
        return self.in_a_row >= self.most

    def state(self) -> dict[str, Any]:
        """For the checkpoint, so that a resumed run judges as the uninterrupted one."""
        return {"norms": list(self.norms), "in_a_row": self.in_a_row, "first": self.first, "rollbacks": self.rollbacks}

    def go_on(self, state: dict[str, Any]) -> None:
        self.norms = deque(state["norms"], maxlen=WINDOW)
        self.in_a_row, self.first, self.rollbacks = state["in_a_row"], state["first"], state["rollbacks"]

    def went_back(self) -> None:
        self.in_a_row, self.first, self.rollbacks = 0, None, self.rollbacks + 1


def save_rows(
    run: Path, step: int, process: int, batches: list[dict[str, Tensor]], nats: list[Tensor], tokenizer: Any
) -> Path:
    """One JSON line for each row of a step: where it stood, its noise, what it cost, its ids and text.

    Args:
        batches: this process's micro-batches. nats: (rows,) each, the rows' bounds; none where they were not reached.
    """
    path = run / FOLDER / f"step-{step}-process-{process}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    decode = getattr(tokenizer, "decode", None)
    costs = [value for one in nats for value in one.float().tolist()]
    lines: list[dict[str, Any]] = []
    for batch in batches:
        seen = batch.get("attention", torch.ones_like(batch["supervised"]))
        for row in range(len(batch["input_ids"])):
            at = seen[row].bool()
            ids = batch["input_ids"][row][at].tolist()
            cost = costs[len(lines)] if len(lines) < len(costs) else None
            found: dict[str, Any] = {"place": int(batch["place"][row]), "t": float(batch["t"][row])}
            found["nats"] = cost if cost is None or math.isfinite(cost) else str(cost)
            found["masked"] = batch["masked"][row][at].nonzero()[:, 0].tolist()
            lines.append(found | {"input_ids": ids, "text": decode(ids) if decode else None})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path
