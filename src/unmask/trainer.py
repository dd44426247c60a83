"""The training loop: `transformers.Trainer`, whose loss is the objective's and whose batches are ours.

In:  a model, rows of ids, an objective.  Out: a trained model, checkpoints, metrics.

What is taken from the Trainer: the optimiser, schedules, precision, devices, checkpoints, trackers, callbacks. What is
not: its order of rows and its sharding (`batches.py` says why), its loss, its validation.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from unmask import checkpoint, ids, models, report, validate
from unmask.batches import VALIDATION, Collate, Loader, Places, Seated, Split, Stream, Ticket, shares
from unmask.config import UserError
from unmask.objectives import Objective


class Trainer(transformers.Trainer):
    """Trains a model on rows of ids by an objective.

    Args:
        model, args, tokenizer: as in `transformers.Trainer`.
        objective: from `unmask.objectives.load`.
        train_rows, test_rows: data sets with the columns input_ids and perhaps labels; train_rows may be a stream.
        shuffle: a new order each epoch. random_length_ratio: share of training rows cut to a random length.
        token_bytes: (vocabulary,) bytes of text each token stands for, for bits per byte; None leaves that out.
        eval_draws: independent noise per validation row.
        by_length: put rows of like length into the same step.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        args: transformers.TrainingArguments,
        objective: Objective,
        tokenizer: transformers.PreTrainedTokenizerBase,
        train_rows: Any,
        test_rows: Any,
        *,
        shuffle: bool = True,
        random_length_ratio: float = 0.0,
        token_bytes: NDArray[Any] | None = None,
        eval_draws: int = 1,
        by_length: bool = False,
        callbacks: list[transformers.TrainerCallback] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            callbacks=callbacks,
            data_collator=lambda rows: rows,
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.objective, self.token_bytes, self.eval_draws = objective, token_bytes, eval_draws
        self.shuffle, self.by_length = shuffle, by_length
        pad = tokenizer.pad_token_id
        self.pad_id = tokenizer.eos_token_id if pad is None else pad
        self.collate = Collate(objective, seed=args.seed, pad_id=self.pad_id, random_length_ratio=random_length_ratio)
        self.collate_test = Collate(objective, seed=args.seed, pad_id=self.pad_id, exact=True)
        # compute_loss divides by the whole step's count, so the Trainer must not divide by the accumulation again.
        self.loss_is_scaled_for_ga = True

    @property
    def interrupt(self) -> Interrupt | None:
        """What catches Ctrl-C, if it is among the callbacks."""
        return next((c for c in self.callback_handler.callbacks if isinstance(c, Interrupt)), None)

    @property
    def _reads_its_own_weights(self) -> bool:
        """Whether checkpoints are read by `models.put_weights`.

        The Trainer of transformers 5.23 reads tensors without the renamings by which they were saved, and passes
        over names it does not know: a LLaDA would go on from its fresh weights without a word.
        """
        return isinstance(self.model, transformers.PreTrainedModel) and not self.is_fsdp_enabled

    # -- batches

    def get_train_dataloader(self) -> Loader:
        args = self.args
        split = Split(self._train_batch_size, args.gradient_accumulation_steps, args.world_size, args.process_index)
        how: dict[str, Any] = {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
            "persistent_workers": args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
        rows = self.train_dataset
        if not hasattr(rows, "__len__"):
            return Loader(Stream(rows, split, self.collate), batch_size=None, **how)
        lengths = [len(ids) for ids in rows["input_ids"]] if self.by_length else None
        places = Places(len(rows), split, seed=args.seed, shuffle=self.shuffle, lengths=lengths)
        return Loader(Seated(rows), batch_sampler=places, collate_fn=self.collate, **how)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The divisor of the whole optimiser step: the objective's count over all micro-batches and processes."""
        counts = [[float(self.objective.count(b)), float(b["supervised"].sum())] for b in batch_samples]
        total = torch.tensor([*counts, [0.0, 0.0]], dtype=torch.float64).sum(0)
        stop = self.interrupt
        total = torch.cat([total, torch.tensor([float(stop is not None and stop.caught is not None)]).double()])
        if self.args.world_size > 1:
            mps = device.type == "mps"  # which has no float64
            total = self.accelerator.gather(total.to(device, torch.float32 if mps else torch.float64)[None]).sum(0)
        self.state.num_input_tokens_seen += int(total[1])
        if stop is not None and total[2] > 0:  # all processes stop after this step, whichever was told
            stop.agreed = True
        return total[0].clamp(min=1).to(device, torch.float32)

    # -- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss = self.objective(models.predictor(self.accelerator.unwrap_model(model), model), inputs)
        # DDP, FSDP and DeepSpeed average the gradients of the processes; the loss is a sum over them.
        total = loss.total * (self.args.world_size / num_items_in_batch)
        return (total, {"nats": loss.nats}) if return_outputs else total

    # -- validation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The metrics of `unmask.validate.summary`. The same weights give the same numbers, on any number of processes.

        Each process takes its share of the rows; nothing is repeated, the training's random state is left as it was.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        began, was_training = time.monotonic(), self.model.training
        self.model.eval()
        with untouched_randomness(), self.compute_loss_context_manager(), self.accelerator.autocast():
            predict = models.predictor(self.accelerator.unwrap_model(self.model_wrapped), self.model_wrapped)
            found = validate.rows(predict, self.objective, self._test_batches(rows), self.token_bytes)
        self.model.train(was_training)
        if self.args.world_size > 1:
            found = gather_object(found)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in validate.summary(found).items()}
        metrics[f"{metric_key_prefix}_seconds"] = round(time.monotonic() - began, 2)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _test_batches(self, rows: Any) -> Iterator[dict[str, Tensor]]:
        split = Split(self.args.eval_batch_size, 1, self.args.world_size, self.args.process_index)
        draws, seats = self.eval_draws, Seated(rows)
        total = len(rows) * draws
        bar = report.Bar("validating", total) if total > 20 * split.step else None
        for start in range(0, total, split.step):
            step = [Ticket(p // draws, p, VALIDATION) for p in range(start, min(start + split.step, total))]
            for mine in shares(step, split):
                yield self.collate_test(seats.__getitems__(mine))
            if bar:
                bar.to(min(start + split.step, total))
        if bar:
            bar.close()

    # -- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, limit = Path(self.args.output_dir), self.args.save_total_limit
        folder = run / f"checkpoint-{self.state.global_step}"
        # The Trainer (transformers 5.23) deletes by age, checkpoint-final too; here the largest numbers stay.
        self.args.save_total_limit = None
        try:
            with checkpoint.all_or_nothing(folder) if self.args.should_save else nullcontext():
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if limit and self.args.should_save:
            checkpoint.keep(run, limit, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            ids.portable(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is None and self._reads_its_own_weights:
            models.put_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best and self._reads_its_own_weights:
            models.put_weights(self.model, best)
        else:
            super()._load_best_model()

    def take(self, folder: Path) -> None:
        """Become what a checkpoint holds, without training on."""
        models.put_weights(self.model, folder)
        self.model.to(self.args.device)
        self.state = transformers.TrainerState.load_from_json(str(folder / checkpoint.STATE))

    def save_final(self, folder: Path) -> None:
        """The trained model as a folder of its own, without the optimiser."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # whose weights the Trainer gathers from all processes
            self.save_model(str(folder))
        elif self.is_world_process_zero():
            checkpoint.save(self.accelerator.unwrap_model(self.model), self.processing_class, folder)
        self.accelerator.wait_for_everyone()


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Inside may draw random numbers; outside goes on as if it had not."""
    with torch.random.fork_rng(enabled=True):
        kept = np.random.get_state()
        try:
            yield
        finally:
            np.random.set_state(kept)


class Journal(transformers.TrainerCallback):
    """Writes metrics.jsonl, shows the progress bar and the lines of validation."""

    def __init__(self, folder: Path, bound: str, title: str) -> None:
        self.folder, self.bound, self.title = folder, bound, title
        self.bar: report.Bar | None = None
        self.loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a resumed state brings its old intervals
        self.seen, self.began = state.num_input_tokens_seen, time.monotonic()
        if state.is_world_process_zero:
            self.bar = report.Bar("training", state.max_steps, state.global_step)

    def _speed(self, state: Any) -> float:
        return (state.num_input_tokens_seen - self.seen) / max(time.monotonic() - self.began, 1e-9)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            speed = f"{report.amount(self._speed(state))} tokens/s"
            self.bar.to(state.global_step, " · ".join(filter(None, (self.loss, speed))))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "train_loss" in logs:
            return
        if not math.isfinite(logs.get("loss", 0.0)):
            saved = checkpoint.numbered(self.folder)
            raise UserError(
                f"the loss is {logs['loss']} at step {state.global_step}: the run has diverged. Lower --learning_rate "
                f"or --max_grad_norm; the last checkpoint is {saved[0].name if saved else 'none'}."
            )
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"
        line = {
            "step": state.global_step,
            "epoch": round(state.epoch or 0, 6),
            **logs,
            "tokens": state.num_input_tokens_seen,
        }
        if "loss" in logs:
            line["tokens_per_second"] = round(self._speed(state), 1)
        report.add_metrics(self.folder, line)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        text = f"step {state.global_step}: validation {report.validation_line(metrics, self.bound)}"
        self.bar.line(text) if self.bar else report.say(text)
        report.draw_curve(self.folder, self.title)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            self.bar.close()
        if state.is_world_process_zero:
            report.draw_curve(self.folder, self.title)


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
