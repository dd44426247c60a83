"""What a model writes while it learns: the same prompts again and again, answered by the one decoding loop.

In:  the `sample_…` settings; the model, every so many steps.
Out: a short line each in the terminal, samples.jsonl in the run's folder, texts in the trackers. Weights, order and
noise of the training are what they would be without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers.integrations import is_deepspeed_zero3_enabled

from unmask import report
from unmask.answer import LEFT_TO_RIGHT, Writer
from unmask.config import Parsed, TrainingArguments, UserError
from unmask.screen import shown
from unmask.template import Template
from unmask.trackers import Trackers
from unmask.trainer import Journal, untouched_randomness

if TYPE_CHECKING:
    from unmask.models import Loaded

QUESTIONS = ["What is a language model?", "Write one sentence about the sea."]
ANSWERING: dict[str, Any] = {"block_size": 32, "eos_stop": True}  # as `unmask chat`
WRITING: dict[str, Any] = {"temperature": 1.0, "remasking": "random"}
"""Tokens at their own probabilities: the likeliest ones, surest first, are forty full stops for most of a young run."""
LINE = 100  # letters of a sample in the terminal


@dataclasses.dataclass
class Asked:
    """A prompt as it was given, its ids, and how many tokens may follow."""

    prompt: str
    ids: list[int]
    new: int


class Sampler(transformers.TrainerCallback):
    """Writes samples after every `sample_every` steps, and after the last.

    Several processes: the first one writes, and the others wait for it at the next step.

    Args:
        loaded: the model that is trained. folder: the run's. trackers: who shows the samples.
        chat: prompts are questions, asked through the chat template; else texts to go on from.

    Raises:
        UserError: settings that cannot be; a prompt that leaves no room in the model.
    """

    def __init__(
        self, training: TrainingArguments, loaded: Loaded, folder: Path, trackers: Trackers, *, chat: bool
    ) -> None:
        if training.sample_max_new_tokens < 1:
            raise UserError(f"--sample_max_new_tokens is {training.sample_max_new_tokens}; it must be at least 1.")
        self.every, self.folder, self.trackers = training.sample_every, folder, trackers
        self.writer = Writer(loaded)
        self.settings = dict(ANSWERING if chat else WRITING)
        if "rule" in training.sample_args:
            self.settings.pop("remasking", None)  # which belongs to the rule `reference`
        if loaded.causal:
            self.settings = {name: value for name, value in self.settings.items() if name in LEFT_TO_RIGHT}
        self.settings |= training.sample_args
        template = Template(loaded.tokenizer) if chat else None
        prompts = training.sample_prompts or (QUESTIONS if chat else [""])
        self.asked = [self._ask(prompt, template, training.sample_max_new_tokens) for prompt in prompts]
        self.steps = 0  # between two samples; 0 for none

    def _ask(self, prompt: str, template: Template | None, new: int) -> Asked:
        """A prompt that can be answered."""
        tokenizer, most = self.writer.loaded.tokenizer, self.writer.max_length
        if template:
            ids = template.prompt([{"role": "user", "content": prompt}])
        else:
            ids = list(tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True))
        if not ids and self.writer.loaded.causal:  # who writes left to right goes on from something
            start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            ids = [start]
        if most is not None and len(ids) >= most:
            raise UserError(
                f"--sample_prompts: {prompt[:40]!r} has {len(ids)} tokens, and the model holds {most}: there is no "
                "room for an answer."
            )
        asked = Asked(prompt, ids, new if most is None else min(new, most - len(ids)))
        self.writer.begin(asked.ids, asked.new, self._settings(asked))
        return asked

    def _settings(self, asked: Asked) -> dict[str, Any]:
        if self.settings.get("steps"):
            return self.settings | {"steps": min(int(self.settings["steps"]), asked.new)}
        return self.settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if AcceleratorState().distributed_type == DistributedType.FSDP or is_deepspeed_zero3_enabled():
            report.remark(
                "samples are left out: FSDP and ZeRO-3 keep a part of the weights in each process, and one alone "
                "cannot write; `unmask sample` and `unmask chat` on a checkpoint show the same."
            )
            return
        self.steps = max(1, math.ceil(state.max_steps * self.every) if self.every < 1 else int(self.every))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if not self.steps or not state.is_world_process_zero or (control.should_training_stop and not last):
            return  # whoever stops a run does not wait for samples
        if state.global_step % self.steps == 0 or last:
            try:
                narrow = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
                found = self.write(state.global_step, narrow)
            except (RuntimeError, UserError) as error:  # out of memory; weights that are no numbers
                self.steps = 0
                why = (str(error).strip().splitlines() or [""])[0]
                report.remark(f"no samples from here on; training goes on ({type(error).__name__}: {why}).")
                return
            self.show(found)

    def write(self, step: int, narrow: torch.dtype | None = None) -> list[dict[str, Any]]:
        """What the model answers now: [{"step", "prompt", "text", "tokens", "finish_reason"}, …].

        The model is left as it was, and so is what is drawn at random after it. narrow: what training computes in,
        if not in the weights' own type.
        """
        model, found = self.writer.loaded.model, []
        modes = {name: part.training for name, part in model.named_modules()}
        model.eval()
        try:
            device = model.device.type
            mixed = torch.autocast(device, dtype=narrow) if narrow else contextlib.nullcontext()
            with untouched_randomness(), torch.no_grad(), mixed:
                for number, asked in enumerate(self.asked):
                    row = self.writer.begin(asked.ids, asked.new, self._settings(asked), number)
                    for _ in self.writer.write(row):
                        pass
                    ids, ended = self.writer.answer(row)
                    line = {"step": step, "prompt": asked.prompt, "text": self.writer.text(row), "tokens": len(ids)}
                    found.append(line | {"finish_reason": "stop" if ended else "length"})
        finally:
            for name, part in model.named_modules():
                part.training = modes[name]
        return found

    def show(self, found: list[dict[str, Any]]) -> None:
        """Into the terminal, samples.jsonl and the trackers."""
        report.add_samples(self.folder, found)
        for one in found:
            prompt, text = (" ".join(shown(one[key]).split()) for key in ("prompt", "text"))
            about = f"step {one['step']}: " + (f"{cut(prompt, LINE // 2)} → " if prompt else "")
            report.remark(about + (cut(text, LINE) or "(nothing)"))
        self.trackers.samples(found[0]["step"], found)


def cut(text: str, most: int) -> str:
    """At most so many letters of a text."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def wanted(training: TrainingArguments, given: set[str]) -> bool:
    """Whether samples are asked for; UserError for an interval that is none, and for settings of no samples."""
    if not 0 <= training.sample_every < math.inf:  # NaN is not, either
        raise UserError(
            f"--sample_every is {training.sample_every}; it must be at least 0 (below 1: a share of the run; 0: none)."
        )
    for name in ("sample_prompts", "sample_max_new_tokens", "sample_args"):
        if name in given and "sample_every" not in given:
            raise UserError(f"--{name} is given and no sample would be written; say how often with --sample_every.")
    return training.sample_every > 0


def watchers(
    chat: bool,
    training: TrainingArguments,
    parsed: Parsed,
    args: transformers.TrainingArguments,
    loaded: Loaded,
    journal: Journal,
) -> list[transformers.TrainerCallback]:
    """The trackers that are asked for, as one callback, and the sampler, if any.

    `args` names no tracker after it: the Trainer would make the callbacks of transformers itself, unguarded.

    Raises:
        UserError: as in `wanted` and `Sampler`.
    """
    names, args.report_to = args.report_to, []
    told = Trackers(names, journal.folder, training.run_name, parsed.more.get("project"), journal.counts)
    if not wanted(training, parsed.given):
        return [told]
    return [told, Sampler(training, loaded, journal.folder, told, chat=chat)]
