"""What a run tells: progress in the terminal, metrics.jsonl, samples.jsonl, the loss curve, the manifest.

In:  the Trainer's events.  Out: lines and files in the run's folder; nothing on a screen that is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

METRICS, SAMPLES, CURVE, MANIFEST = "metrics.jsonl", "samples.jsonl", "loss.png", "run.json"
TENSORBOARD, TRACKERS = "tensorboard", "trackers.json"  # what trackers leave in a run's folder
DIVERGENCE = "divergence"  # rows of steps that were left out
PACKAGES = ("unmask", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "numpy")


def say(*lines: str) -> None:
    """Remarks for the user, on standard error, by the first process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def quiet() -> None:
    """No progress bars of libraries where nobody watches, and no chatter of theirs anywhere."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty() or int(os.environ.get("LOCAL_RANK", "0")) != 0:
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


# ---------------------------------------------------------------------------------------------------------------------
# Files


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to that takes the real one's place when all went well, and is gone when not."""
    aside = path.with_name(f".{path.name}.part")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def add_metrics(folder: Path, *lines: dict[str, Any]) -> None:
    """More lines of metrics.jsonl: all of them, or none."""
    path = folder / METRICS
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)  # a full disk took a part of them
        raise


def add_samples(folder: Path, lines: list[dict[str, Any]]) -> None:
    """More lines of samples.jsonl."""
    with (folder / SAMPLES).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_metrics(folder: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or of a file like it; a last line cut short by a crash is left out."""
    found = []
    path = folder / name
    # Not splitlines: a sample may hold U+2028, which JSON leaves as it is.
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def forget_after(folder: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl and samples.jsonl later than a step that a run goes back to."""
    for name in (METRICS, SAMPLES):
        kept = [line for line in read_metrics(folder, name) if line.get("step", 0) <= step]
        if name == METRICS or (folder / name).exists():
            with written_aside(folder / name) as aside:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
                aside.write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def digest(value: Any) -> str:
    """A short stable fingerprint of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def draw_curve(folder: Path, title: str) -> Path | None:
    """The loss curve as PNG: training loss (thin: each line; thick: smoothed) and validation with its error bars."""
    lines = read_metrics(folder)
    train = [(m["step"], m["loss"]) for m in lines if "loss" in m]
    held = [(m["step"], m["eval_loss"], m.get("eval_loss_se", 0.0)) for m in lines if "eval_loss" in m]
    if len(train) + len(held) < 2:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        steps, values = zip(*train, strict=True)
        axes.plot(steps, values, color="#9ecae1", linewidth=1, label="training loss")
        axes.plot(steps, smoothed(values), color="#2171b5", linewidth=1.8, label="training loss, smoothed")
    if held:
        steps, values, errors = zip(*held, strict=True)
        bars = [1.96 * e for e in errors]
        axes.errorbar(
            steps, values, bars, color="#d94801", marker="o", markersize=4, capsize=2, label="validation (95 %)"
        )
    shown = sorted(v for _, v in train) + [v for _, v, _ in held]
    low, high = min(shown), max(shown)
    axes.set_ylim(low - 0.06 * (high - low) - 1e-6, high + 0.06 * (high - low) + 1e-6)
    axes.set(xlabel="optimiser step", ylabel="nats per token", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with written_aside(folder / CURVE) as aside:
        figure.savefig(aside, format="png")
    return folder / CURVE


def smoothed(values: Any, keep: float = 0.8) -> list[float]:
    """Exponential mean with its start corrected, so that it begins at the first value."""
    found, mean = [], 0.0
    for i, value in enumerate(values, 1):
        mean = keep * mean + (1 - keep) * value
        found.append(mean / (1 - keep**i))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The terminal


def duration(seconds: float) -> str:
    """75 → 1:15, 3700 → 1:01:40."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def amount(value: float) -> str:
    """1234567 → 1.23M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


class Bar:
    """How far, how fast, how long still: a rich progress bar on a terminal, silence elsewhere.

    A bar begun while another is shown (validation in training) speaks in that one's place for remarks.
    """

    active: Bar | None = None

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.shown = sys.stderr.isatty() and int(os.environ.get("RANK", "0")) == 0
        self.what, self.total, self.started_at, self.began = what, total, done, time.monotonic()
        self.outer = Bar.active if self.shown else None
        if not self.shown or self.outer:
            return
        Bar.active = self
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            expand=True,
            transient=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.task = self.progress.add_task(what, total=total, completed=done, note="")
        self.progress.start()

    def left(self, done: int) -> str:
        gone = done - self.started_at
        if gone <= 0 or done >= self.total:
            return ""
        return f"{duration((time.monotonic() - self.began) / gone * (self.total - done))} left"

    def to(self, done: int, note: str = "") -> None:
        if self.outer:
            self.outer.note(f"{self.what} {done}/{self.total}")
        elif self.shown:
            parts = [part for part in (note, self.left(done)) if part]
            self.progress.update(self.task, completed=done, note=" · ".join(parts))

    def note(self, text: str) -> None:
        if self.shown:
            self.progress.update(self.task, note=text)

    def line(self, text: str) -> None:
        """A line that stays, above the bar or alone."""
        if self.shown and not self.outer:
            self.progress.console.print(text, highlight=False, markup=False)
        else:
            say(text)

    def close(self) -> None:
        if self.shown and not self.outer:
            self.progress.stop()
            Bar.active = None
        self.shown = False


def remark(text: str) -> None:
    """A line that stays: above the bar that is shown, or alone."""
    Bar.active.line(text) if Bar.active else say(text)


def validation_line(metrics: dict[str, float], bound: str) -> str:
    """One line for people: `validation ≤ 4.21 ± 0.02 nats/token, 1.93 bits/byte`."""
    sign = "≤" if bound == "bound" else "="
    text = f"{sign} {metrics['eval_loss']:.4f} ± {metrics['eval_loss_se']:.4f} nats/token"
    if "eval_bits_per_byte" in metrics:
        text += f", {metrics['eval_bits_per_byte']:.4f} ± {metrics['eval_bits_per_byte_se']:.4f} bits/byte"
    levels = [f"{value:.2f}" for key, value in metrics.items() if "_nats_at_" in key]
    if levels and not math.isnan(metrics["eval_loss"]):
        text += f" (by noise level, low to high: {' '.join(levels)})"
    return text
