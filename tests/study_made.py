"""A made-up study: results.csv as `unmask study` leaves it, of arms whose laws are known."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmask.studies.results import COLUMNS

BATCH, PARAMETERS, BYTES = 4096, 1_500_000, 2.9


@dataclass(frozen=True)
class Arm:
    """An arm's law.

    overfit: nats per e-fold of epochs past `turn` passes, by which its loss rises again. delay: of its factor; later:
    the power of U by which that grows, so that a crossing moves.
    """

    name: str
    epochs: Sequence[float]
    seeds: Sequence[int] = (1, 2, 3)
    objective: str = "autoregressive"
    repeats: float = 10.0
    floor: float = 3.0
    factor: float = 60.0
    exponent: float = 0.33
    overfit: float = 0.8
    turn: float = 12.0
    delay: float = 1.0
    later: float = 0.0

    @property
    def kind(self) -> str:
        return "bound" if self.objective == "masked" else "exact"

    def loss(self, unique: int, epoch: float) -> float:
        """Of a run that ends at this epoch."""
        data = unique * (1 + self.repeats * -math.expm1(-(max(epoch, 0.02) - 1) / self.repeats))
        rise = self.overfit * max(0.0, math.log(max(epoch, 1e-9) / self.turn))
        return (
            self.floor
            + self.factor * self.delay * (unique / 1e5) ** self.later * max(data, 500.0) ** -self.exponent
            + rise
        )


AR = Arm("ar", (4, 10, 20, 50, 100))
DROPOUT = Arm("ar-dropout", (20, 50), (1,), overfit=0.15, turn=25.0, floor=2.98)
MASKED = Arm("masked", (25, 50, 100, 200, 400), (1, 2), "masked", 150.0, 2.6, overfit=0.0, delay=2.1, later=0.2)
STUDY = (AR, DROPOUT, MASKED)


def lines_of(
    arm: Arm, unique: int, epochs: float, seed: int, noise: float = 0.004, looks: int = 14
) -> list[dict[str, Any]]:
    """A run's lines: looks at even steps in log epochs, above the law until the learning rate has fallen."""
    generator = np.random.default_rng([seed, unique, int(epochs), len(arm.name)])
    shift = noise * generator.standard_normal()
    steps = max(1, round(unique * epochs / BATCH))
    places = sorted({0, steps, *(round(steps ** (i / looks)) for i in range(1, looks))})
    found = []
    for step, final in [*((step, 0) for step in places), (steps, 1)]:
        share = step / steps
        epoch = share * epochs
        loss = arm.loss(unique, epoch) + 0.12 * (1 - share) if step else math.log(2048)
        loss = min(loss, math.log(2048)) + shift + noise / 4 * generator.standard_normal()
        se = 0.012 if final or arm.kind == "exact" else 0.02
        known = {
            "run": f"{arm.name}-u{unique}-e{epochs:g}-s{seed}",
            "arm": arm.name,
            "objective": arm.objective,
            "kind": arm.kind,
            "unique_tokens": unique,
            "epochs": f"{epochs:g}",
            "seed": seed,
            "parameters": PARAMETERS,
            "step": step,
            "epoch": epoch,
            "tokens": step * BATCH,
            "flops": 6 * PARAMETERS * step * BATCH,
            "train_loss": "" if not step else loss - 0.2 * math.log1p(epoch),
            "loss": loss,
            "loss_se": se,
            "bits_per_byte": loss / math.log(2) / BYTES,
            "bits_per_byte_se": se / math.log(2) / BYTES,
            "draws": 1 if arm.kind == "exact" else 16 if final else 4,
            "final": final,
        }
        found.append(known)
    return found


def write(
    path: Path, arms: Sequence[Arm] = STUDY, uniques: Sequence[int] = (100_000, 300_000), noise: float = 0.004
) -> Path:
    """results.csv of all runs of these arms."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for arm in arms:
            for unique in uniques:
                for epochs in arm.epochs:
                    for seed in arm.seeds:
                        writer.writerows(lines_of(arm, unique, epochs, seed, noise))
    return path
