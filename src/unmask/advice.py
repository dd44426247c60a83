"""What limits a run, said before its first step, with the key that changes it.

In:  the Trainer, its settings and batches.  Out: lines for the user; none where nothing is to be gained.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
import transformers

from unmask import processor, report
from unmask.batches import Places

if TYPE_CHECKING:
    from unmask.trainer import Trainer

STEP_KEYS = {"eval_steps": "validation", "save_steps": "checkpoint", "logging_steps": "line of metrics"}
LOOKED_AT = 64  # micro-batches, for the share of padding
MUCH_PADDING, MUCH_WAITING = 0.15, 0.1
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_memory() -> None:
    """Let the allocator of a Linux program keep what a step gave back, for the next step.

    By default glibc asks the system anew for each piece above 32 MB, and the system clears it page by page: a step of
    the tutorial's model took 1.3 times as long in forward passes (docs/log.md, 2026-11-30). Whoever chose settings of
    malloc, or another allocator, keeps them.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def give_back() -> None:
    """Let the system have what is free now: what making or loading a model left, in pieces that fit nothing later."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    """The C library, where its allocator is glibc's and nobody chose settings of it."""
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if chosen or "LD_PRELOAD" in os.environ or sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None  # musl has neither


def before(trainer: Trainer, steps: int) -> list[str]:
    """What a user would want to know before the first step of `steps`."""
    return [*_settings(trainer.args, steps), *_precision(trainer.args), *_threads(trainer.args), *_padding(trainer)]


def _settings(args: Any, steps: int) -> list[str]:
    found = []
    warmup = args.get_warmup_steps(steps)
    if warmup >= steps:
        found.append(
            f"warning: the warm-up ({warmup} steps) outlasts the run ({steps} steps), so the learning rate never gets "
            "to its peak; lower --warmup_steps."
        )
    for key, what in STEP_KEYS.items():
        every = getattr(args, key)
        strategy = {"eval_steps": args.eval_strategy, "save_steps": args.save_strategy}.get(key, "steps")
        if str(getattr(strategy, "value", strategy)) == "steps" and every >= 1 and every > steps:
            found.append(
                f"warning: no {what} falls inside the run of {steps} steps but the one at its end (--{key} {every})."
            )
    return found


def _precision(args: Any) -> list[str]:
    device = args.device.type
    if device == "cuda" and not (args.bf16 or args.fp16):
        kind = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return [f"advice: products are made in float32, which a GPU is many times slower with; --{kind} true."]
    if device != "cpu":
        return []
    wide, narrow = (processor.rate(kind) for kind in (torch.float32, torch.bfloat16))
    speeds = f"{wide / 1e9:,.0f} billion operations a second in float32, {narrow / 1e9:,.0f} in bfloat16"
    if args.bf16 and wide > processor.CLEARLY * narrow:
        return [f"advice: this processor makes {speeds}; --bf16 false is faster."]
    if not args.bf16 and narrow > processor.CLEARLY * wide:
        return [f"advice: this processor makes {speeds}; --bf16 true is faster."]
    return []


def _threads(args: Any) -> list[str]:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads() * args.world_size
    if args.device.type == "cpu" and used < there:
        return [f"advice: {used} of {there} processor cores are used; set OMP_NUM_THREADS={there // args.world_size}."]
    return []


def _padding(trainer: Trainer) -> list[str]:
    """The share of places that are there to make rows as long as the longest of their micro-batch."""
    places = getattr(trainer.get_train_dataloader(), "batch_sampler", None)
    if trainer.packing or not isinstance(places, Places) or places.lengths is None:
        return []
    sizes, computed = 0, 0
    for number, tickets in enumerate(places):
        long = [int(places.lengths[ticket.row]) for ticket in tickets if ticket.row >= 0]
        sizes, computed = sizes + sum(long), computed + len(long) * max(long, default=0)
        if number + 1 == LOOKED_AT:
            break
    share = 1 - sizes / max(1, computed)
    if share < MUCH_PADDING:
        return []
    keys = "--packing true" if trainer.by_length else "--packing true or --group_by_length true"
    return [f"advice: {share:.0%} of the places computed only fill up shorter rows; {keys} makes them fewer."]


class Waiting(transformers.TrainerCallback):
    """Says once, after some steps, when much of the time goes into waiting for batches.

    Attributes:
        seconds: waited since the first step, which whoever fetches batches adds to.
    """

    AFTER = 10  # steps: the first ones start workers and fill caches

    def __init__(self, after: int = AFTER) -> None:
        self.seconds, self.after, self.steps, self.began = 0.0, after, 0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == 1:
            self.seconds, self.began = 0.0, time.monotonic()
        if self.steps != 1 + self.after or not state.is_world_process_zero:
            return
        share = self.seconds / max(time.monotonic() - self.began, 1e-9)
        if share > MUCH_WAITING:
            more = args.dataloader_num_workers + 2
            report.say(f"advice: {share:.0%} of the time goes into waiting for data; --dataloader_num_workers {more}.")
