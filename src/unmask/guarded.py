"""The Trainer that does not let a step ruin the model, nor unreadable rows lose what was learnt.

In:  each step's rows, loss and gradient.  Out: the step, or a line why it is left out; see `unmask.divergence`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow
import torch
from accelerate.utils import broadcast_object_list
from datasets.exceptions import DatasetGenerationError
from torch import Tensor, nn
from transformers.trainer_pt_utils import nested_gather

from unmask import checkpoint, divergence, report
from unmask.config import UserError
from unmask.divergence import Diverged, Guard
from unmask.saving import Saving

UNREADABLE = (OSError, UserError, pyarrow.ArrowException, DatasetGenerationError)  # where data are gone or damaged


class Lost(UserError):
    """A process of the run is gone: exit code 4, so that a script can start the run again."""

    code = 4


def lost_process(error: RuntimeError) -> bool:
    """Whether an error is that of talking to a process that is gone, by gloo or NCCL."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Socket")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in words)


class Guarded(Saving):
    """The same, whose steps are looked at by a `Guard` before the optimiser makes them."""

    guard: Guard | None = None
    _step: list[dict[str, Tensor]] = []  # the micro-batches of the step that is being made
    _nats: list[Tensor] = []  # and their rows' bounds
    _loss = _good_loss = torch.zeros(())  # of this step; of steps since the last line, but those left out
    _good = _left_out = 0

    def notes(self) -> dict[str, dict[str, Any]]:
        return super().notes() | ({checkpoint.GUARD: self.guard.state()} if self.guard is not None else {})

    def keeps_all(self) -> bool:
        return super().keeps_all() or (self.guard is not None and self.guard.in_a_row > 0)

    def train(self, resume_from_checkpoint: Any = None, **more: Any) -> Any:
        state = checkpoint.noted(resume_from_checkpoint or None, checkpoint.GUARD)
        if self.guard is not None and state is not None:
            self.guard.go_on(state)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **more)
        except RuntimeError as error:
            # torch tells of a killed worker in a signal's handler, so in the middle of whatever is done just then
            if "DataLoader worker" not in str(error):
                raise
            saved = checkpoint.numbered(Path(self.args.output_dir))
            raise UserError(
                f"a process that reads rows is gone: {str(error).strip().splitlines()[0]} The last checkpoint is "
                f"{saved[0].name if saved else 'none'}; go on with --resume_from_checkpoint auto."
            ) from None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        try:
            found = super().get_batch_samples(epoch_iterator, num_batches, device)
        except UNREADABLE as error:
            raise UserError(self._unreadable(error)) from error
        self._step, self._nats, self._loss = found[0], [], torch.zeros((), device=self.args.device)
        return found

    def training_step(self, *given: Any, **more: Any) -> Tensor:
        loss: Tensor = super().training_step(*given, **more)
        if self.guard is None:
            return loss
        self._loss = self._loss + loss
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))  # or the Trainer's mean stays NaN for ever

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As the Trainer does, which asks for it between the backward pass and the optimiser's step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.guard is None or self.accelerator.scaler is not None:  # float16's scaler leaves steps out by itself
            return norm
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        step = self.state.global_step
        reason = None if whole is None else self.guard.look(float(whole), step)
        made = self.is_deepspeed_enabled  # DeepSpeed has made its step already: only what is no number ends the run
        if reason is None or (made and math.isfinite(float(whole))):
            self._good_loss, self._good = self._good_loss.to(self._loss.device) + self._loss, self._good + 1
            return norm
        self._left_out += 1
        for parameter in model.parameters():  # an optimiser passes over what has no gradient: no moment, no decay
            parameter.grad = None
        self._say_left_out(step + 1, reason)
        last = step + 1 >= self.state.max_steps and self.guard.in_a_row > 1
        if self.guard.gives_up or last or made:
            self._give_up(step, reason)
        return norm

    def _say_left_out(self, step: int, reason: str) -> None:
        run, process = Path(self.args.output_dir), self.args.process_index
        try:
            saved = divergence.save_rows(run, step, process, self._step, self._nats, self.processing_class)
            where = f"its rows are in {saved}"
        except OSError as error:
            where = f"its rows could not be saved ({error.strerror})"
        report.say(f"warning: step {step} is left out: {reason}; {where}.")

    def _give_up(self, step: int, reason: str) -> None:
        """Go back to a checkpoint from before, where that is wished and there is one; else Diverged."""
        guard = self.guard
        assert guard is not None
        before = guard.first if guard.first is not None else step
        saved = checkpoint.numbered(Path(self.args.output_dir))
        found = [p for p in saved if checkpoint.step_of(p) <= before and checkpoint.fault(p) is None]
        older = [p for p in found if checkpoint.step_of(p) < before]  # with other weights than those that failed
        target = older[min(guard.rollbacks, len(older) - 1)] if older else None  # each time one further back
        if self.args.world_size > 1:
            target = broadcast_object_list([target])[0]
        last = step + 1 >= self.state.max_steps
        rolls = guard.action == "rollback" and not self.is_deepspeed_enabled and not last
        if rolls and target is not None and guard.rollbacks < divergence.ROLLBACKS:
            self._roll_back(target)
            guard.went_back()
            report.say(f"went back to the weights of {target.name}; training goes on with the rows that come.")
            return
        why = f"the run has diverged: {guard.in_a_row} steps in a row were left out, since {reason}"
        if self.is_deepspeed_enabled:
            why = f"the run has diverged: {reason}, and DeepSpeed leaves no step out"
        if rolls and guard.rollbacks:
            why += f", after {guard.rollbacks} times of going back"
        place = f"the last checkpoint from before is {found[0].name}" if found else "there is no checkpoint from before"
        raise Diverged(
            f"{why}. Look at the rows in {Path(self.args.output_dir) / divergence.FOLDER}; lower --learning_rate or "
            f"--max_grad_norm; {place}."
        )

    def _roll_back(self, folder: Path) -> None:
        """Weights and moments of a checkpoint; the schedule and the rows go on from here."""
        schedule = self.lr_scheduler.state_dict()
        self._load_from_checkpoint(str(folder), self.model_wrapped if self.is_fsdp_enabled else None)
        self._load_optimizer_and_scheduler(str(folder))
        self.lr_scheduler.load_state_dict(schedule)

    def _unreadable(self, error: BaseException) -> str:
        """What to say of rows that cannot be read any more. What was learnt until then is saved."""
        line = ([*filter(None, (part.strip() for part in str(error).splitlines()))] or [type(error).__name__])[-1]
        step, run = self.state.global_step, Path(self.args.output_dir)
        there = (run / f"checkpoint-{step}").exists() or self.args.save_only_model
        if self.args.world_size == 1 and step and not there:
            self._save_checkpoint(self.model, None)
        saved = checkpoint.numbered(run)
        kept = f"{saved[0].name} is saved" if saved else "nothing was saved yet"
        return (
            f"the rows of step {step + 1} cannot be read: {line} {kept}; mend the data, then go on with "
            "--resume_from_checkpoint auto."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer does, without the steps that were left out, which it counts among those its mean is over."""
        if "loss" in logs and self.guard is not None:
            if self._left_out:
                logs["skipped_steps"] = self._left_out
                loss = nested_gather(self._good_loss, self.args.parallel_mode).mean().item() / max(self._good, 1)
                logs |= {"loss": loss} if self._good else {}
                if not self._good:
                    del logs["loss"]
                if not math.isfinite(logs.get("grad_norm", 0.0)):
                    del logs["grad_norm"]
            self._good_loss, self._good, self._left_out = torch.zeros_like(self._good_loss), 0, 0
        super().log(logs, start_time)
