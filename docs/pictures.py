"""The guide's picture of the noise. In: `unmask.noise`. Out: docs/pictures/noise.png, made again by
`python docs/pictures.py`.

Beside it: loss.png is output/quickstart/run/loss.png of `make quickstart`; unmasking.gif is what `/replay` made in
`unmask chat --model output/quickstart/tuned/checkpoint-final --max_new_tokens 16`, asked "With dashes: wave".
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from unmask import noise

matplotlib.use("agg")
from matplotlib import pyplot

PLACES, ROWS, DRAWS, SEED = 48, 10, 4000, 7
LINEAR = noise.SCHEDULES["linear"]
ALL = np.ones(PLACES, dtype=bool)


def masked(place: int, share: float) -> noise.Mask:
    return noise.mask(share, ALL, noise.generator(SEED, 0, place, noise.MASK))


def grid(axes: pyplot.Axes) -> None:
    """A row of places at ten of the t that training draws, in their order."""
    drawn = sorted((noise.time(SEED, 0, place), place) for place in range(ROWS))
    rates = [(*noise.rate(t, 0.001, LINEAR), place) for t, place in drawn]
    picture = np.array([masked(place, share) for share, _, place in rates])
    axes.imshow(picture, cmap=matplotlib.colors.ListedColormap(["#d6e4f5", "#2b3a55"]), aspect="auto")
    axes.set_yticks(range(ROWS), [f"t = {share:.2f}   1/t = {weight:.1f}" for share, weight, _ in rates], fontsize=8)
    axes.set_xticks([])
    axes.set_title("hidden (dark) and seen places", fontsize=10)


def level(axes: pyplot.Axes) -> None:
    """Share of masked places times weight, over many rows."""
    times = (np.arange(20) + 0.5) / 20
    means = []
    for number, t in enumerate(times):
        share, weight = noise.rate(t, 0.001, LINEAR)
        means.append(np.mean([masked(1000 * number + i, share).mean() * weight for i in range(100)]))
    axes.axhline(1, color="#9aa5b1", linewidth=1)
    axes.plot(times, means, "o", color="#2b6cb0", markersize=4)
    axes.set_ylim(0, 1.5)
    axes.set_xlabel("t")
    axes.set_title("masked share × 1/t", fontsize=10)


def spread(axes: pyplot.Axes) -> None:
    """Single estimates of one number by both ways; a token costs 1 nat when all is seen and 5 when nothing is."""
    by_t, by_count = [], []
    for draw in range(DRAWS):
        t = noise.generator(SEED, 0, draw, noise.TIME).random()
        share, weight = noise.rate(t, 0.001, LINEAR)
        hidden = masked(draw, share).mean()
        by_t.append(weight * hidden * (1 + 4 * hidden))
        count = noise.count_at(t, PLACES)
        exact = noise.mask_exactly(count, ALL, noise.generator(SEED, 1, draw, noise.MASK)).mean()
        by_count.append(exact * (1 + 4 * exact) * PLACES / count)
    bins = np.arange(0, 7, 1 / 3) - 1 / 24  # four of the counts' 48 values each
    names = ("each place with probability t", by_t, "#d97706"), ("an exact count", by_count, "#2b6cb0")
    for name, values, colour in names:
        label = f"{name}\n{np.mean(values):.2f} ± {np.std(values):.2f}"
        axes.hist(np.clip(values, 0, 6.5), bins, histtype="step", color=colour, label=label, linewidth=1.5)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.45)
    axes.legend(fontsize=8, frameon=False, loc="upper center", ncols=2)
    axes.set_xlabel("one draw, nats per token")
    axes.set_yticks([])
    axes.set_title("two estimators of one number", fontsize=10)


def main(path: Path) -> None:
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), width_ratios=[1.6, 1, 1.3], layout="constrained")
    for draw, where in zip((grid, level, spread), axes, strict=True):
        draw(where)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main(Path(__file__).with_name("pictures") / "noise.png")
