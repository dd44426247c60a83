"""What watches a training run: the journal that writes and shows it, the interrupt that stops it in good order.

In:  the Trainer's events.  Out: metrics.jsonl, the loss curve, lines in the terminal; a checkpoint on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from pathlib import Path
from typing import Any

import transformers

from unmask import checkpoint, report
from unmask.divergence import Diverged

MUCH_EOS = 0.9


class Journal(transformers.TrainerCallback):
    """Writes metrics.jsonl, shows the progress bar and the lines of validation."""

    def __init__(self, folder: Path, bound: str, title: str) -> None:
        self.folder, self.bound, self.title = folder, bound, title
        self.bar: report.Bar | None = None
        self.loss = ""
        self.warned = False
        self.unwritten: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a resumed state brings its old intervals
        self.seen, self.began = state.num_input_tokens_seen, time.monotonic()
        if state.is_world_process_zero:
            self.bar = report.Bar("training", state.max_steps, state.global_step)

    def _speed(self, state: Any) -> float:
        return (state.num_input_tokens_seen - self.seen) / max(time.monotonic() - self.began, 1e-9)

    def counts(self, logs: dict[str, Any], state: Any) -> dict[str, float]:
        """What a line has beside what the Trainer logs: tokens learnt so far, in a line of training also a second."""
        speed = {"tokens_per_second": round(self._speed(state), 1)} if "loss" in logs else {}
        return {"tokens": state.num_input_tokens_seen, **speed}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            speed = f"{report.amount(self._speed(state))} tokens/s"
            self.bar.to(state.global_step, " · ".join(filter(None, (self.loss, speed))))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "train_loss" in logs:
            return
        for name, what in (("loss", "loss"), ("eval_loss", "validation")):
            if not math.isfinite(logs.get(name, 0.0)):
                saved = checkpoint.numbered(self.folder)
                raise Diverged(
                    f"the {what} is {logs[name]} at step {state.global_step}: the run has diverged. Lower "
                    f"--learning_rate or --max_grad_norm; the last checkpoint is {saved[0].name if saved else 'none'}."
                )
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"
        line = {"step": state.global_step, "epoch": round(state.epoch or 0, 6), **logs, **self.counts(logs, state)}
        self._write(line)
        if logs.get("eos_share", 0) > MUCH_EOS and not self.warned:
            self.warned = True
            self._say(
                f"warning: {logs['eos_share']:.0%} of the tokens learnt are end of text, which soon teach nothing and "
                "thin out the rest; a shorter tail (--eos_tail block:32) or --group_by_length true makes them fewer."
            )

    def _write(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; where that fails, it is kept and comes with the next."""
        self.unwritten.append(line)
        try:
            report.add_metrics(self.folder, *self.unwritten)
        except OSError as error:
            if len(self.unwritten) == 1:
                self._say(
                    f"warning: cannot write to {self.folder} ({error.strerror}); training goes on, and metrics are "
                    "kept in memory until they can be written."
                )
            return
        self.unwritten = []

    def _draw(self) -> None:
        with contextlib.suppress(OSError):  # which writing metrics has told
            report.draw_curve(self.folder, self.title)

    def _say(self, text: str) -> None:
        self.bar.line(text) if self.bar else report.say(text)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._say(f"step {state.global_step}: validation {report.validation_line(metrics, self.bound)}")
        self._draw()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            self.bar.close()
        if state.is_world_process_zero:
            self._draw()


class Interrupt(transformers.TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self.agreed = False
        self.at = 0.0
        self.before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, self._catch)
            except ValueError:  # not the main thread: whoever started us handles signals
                return

    def _catch(self, number: int, frame: Any) -> None:
        if self.caught is not None:
            # launchers send a second signal by themselves, of another kind or at once: only a later Ctrl-C is meant
            if number == signal.SIGINT and time.monotonic() - self.at > 2:
                self.restore()
                raise KeyboardInterrupt
            return
        self.caught, self.at = number, time.monotonic()
        report.say("\nstopping after this step; a checkpoint will be saved (once more to stop at once).")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.agreed or (self.caught is not None and args.world_size == 1):
            args.save_only_model = False  # else there would be nothing to go on from
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
