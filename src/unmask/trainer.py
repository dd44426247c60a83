"""The training loop: `transformers.Trainer`, whose loss is the objective's and whose batches are ours.

In:  a model, rows of ids, an objective.  Out: a trained model, checkpoints, metrics.

What is taken from the Trainer: the optimiser, schedules, precision, devices, checkpoints, trackers, callbacks. What is
not: its order of rows and its sharding (`batches.py` says why), its loss, its validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from unmask import (
    attention,
    checkpoint,
    compiling,
    cross_entropy,
    models,
    objectives,
    packing,
    report,
    validate,
)
from unmask.advice import Waiting
from unmask.batches import (
    VALIDATION,
    Collate,
    Loader,
    Places,
    Seated,
    Split,
    Stream,
    Ticket,
    lengths,
    longest_of_likes,
    shares,
)
from unmask.callbacks import Interrupt as Interrupt
from unmask.callbacks import Journal as Journal
from unmask.config import UserError
from unmask.divergence import Guard
from unmask.guarded import Guarded
from unmask.objectives import Objective
from unmask.predict import Predict
from unmask.tail import Tail


class Trainer(Guarded):
    """Trains a model on rows of ids by an objective.

    Args:
        model, args, tokenizer: as in `transformers.Trainer`.
        objective: from `unmask.objectives.load`.
        train_rows, test_rows: data sets with the columns input_ids and perhaps labels; train_rows may be a stream.
        shuffle: a new order each epoch. random_length_ratio: share of training rows cut to a random length.
        token_bytes: (vocabulary,) bytes of text each token stands for, for bits per byte; None leaves that out.
        eval_draws: independent noise per validation row.
        by_length: put rows of like length into the same step.
        eos_tail: the end-of-text tail behind the answers of rows with labels: what `unmask.tail` reads; None leaves the
            choice to the objective.
        max_length: no tail makes a row longer; the model's own limit if left out.
        guard: against steps that would ruin the model; none of them is left out without it.
        packing: several rows share one of the forward pass; neither loss nor gradients change.
        compiled: arguments of `torch.compile`, by which each layer of the network is compiled; None for none.

    Raises:
        UserError: a model that an objective or packing cannot work with; a tail that cannot be had.
    """

    def __init__(
        self,
        model: Any,
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
        eos_tail: str | None = "none",
        max_length: int | None = None,
        packing: bool = False,
        guard: Guard | None = None,
        compiled: dict[str, Any] | None = None,
        callbacks: list[transformers.TrainerCallback] | None = None,
    ) -> None:
        tail = Tail.chosen(eos_tail, objectives.is_causal(objective))
        check_fits(model, objective, tail, packing)
        attention.for_training(model)
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
        self.stream: Stream | None = None
        self.resumed_from: str | None = None
        self.objective, self.token_bytes = objective, token_bytes
        self.eval_draws = 1 if objective.bound == "exact" else eval_draws  # without noise all draws are the same
        self.shuffle, self.by_length, self.tail, self.packing = shuffle, by_length, tail, packing
        pad = tokenizer.pad_token_id
        self.pad_id = tokenizer.eos_token_id if pad is None else pad
        self.end_id: int | None = tokenizer.eos_token_id
        how: dict[str, Any] = {"seed": args.seed, "pad_id": self.pad_id, "tail": tail, "end_id": self.end_id}
        how["max_length"] = max_length or getattr(model.config, "max_position_embeddings", None)
        self.collate = Collate(objective, random_length_ratio=random_length_ratio, **how)
        self.collate_test = Collate(objective, exact=True, **how)
        self.guard = guard if guard is not None and guard.action != "off" else None
        self.learnt = self.ends = 0.0  # tokens since the last line of metrics, and how many of them end a text
        # compute_loss divides by the whole step's count, so the Trainer must not divide by the accumulation again.
        self.loss_is_scaled_for_ga = True
        if packing:
            self._check_packing()
        if compiled is not None:
            compiling.layers(model, compiled)

    def _check_packing(self) -> None:
        """UserError for a model that lets packed conversations see one another."""
        flash = "flash" in self.model.config._attn_implementation
        if flash and self.model.device.type == "cpu":  # FSDP moves the model later, and these kernels need a GPU
            return
        was_training = self.model.training
        self.model.eval()
        with untouched_randomness(), self.accelerator.autocast():
            packing.refuse_leaks(models.predictor(self.model), self.model.config.model_type)
        self.model.train(was_training)

    def _predict(self, wrapped: nn.Module) -> Predict:
        """The model, wrapped for training as it is, as objectives see it."""
        predict = models.predictor(self.accelerator.unwrap_model(wrapped), wrapped)
        return packing.Packed(predict) if self.packing else predict

    @property
    def interrupt(self) -> Interrupt | None:
        """What catches Ctrl-C, if it is among the callbacks."""
        return next((c for c in self.callback_handler.callbacks if isinstance(c, Interrupt)), None)

    @property
    def stops(self) -> bool:
        return self.interrupt is not None and self.interrupt.caught is not None

    def notes(self) -> dict[str, dict[str, Any]]:
        state = self.stream.state(self.state.global_step) if self.stream else None
        return super().notes() | ({checkpoint.STREAM: state} if state is not None else {})

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
            self.stream = Stream(rows, split, self.collate)
            if (state := checkpoint.noted(self.resumed_from, checkpoint.STREAM)) is not None:
                self.stream.go_on(state, passed=True)
            return Loader(self.stream, batch_size=None, **how)
        known = lengths(rows) if self.by_length or self.tail.kind == "step" else None
        places = Places(len(rows), split, seed=args.seed, shuffle=self.shuffle, lengths=known, by_length=self.by_length)
        return Loader(Seated(rows), batch_sampler=places, collate_fn=self.collate, **how)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The divisor of the whole optimiser step: the objective's count over all micro-batches and processes."""
        stop = self.interrupt
        stops = [float(stop is not None and stop.caught is not None)]
        counts = [
            [float(n) for n in (self.objective.count(b), b["supervised"].sum(), self._ends(b).sum())]
            for b in batch_samples
        ]
        total = torch.tensor([*counts, [0.0, 0.0, 0.0]], dtype=torch.float64).sum(0)
        total = torch.cat([total, torch.tensor(stops).double()])
        if self.args.world_size > 1:
            mps = device.type == "mps"  # which has no float64
            total = self.accelerator.gather(total.to(device, torch.float32 if mps else torch.float64)[None]).sum(0)
        self.state.num_input_tokens_seen += int(total[1])
        self.learnt, self.ends = self.learnt + float(total[1]), self.ends + float(total[2])
        if stop is not None and total[3] > 0:  # all processes stop after this step, whichever was told
            stop.agreed = True
        return total[0].clamp(min=1).to(device, torch.float32)

    def _ends(self, batch: dict[str, Tensor]) -> Tensor:
        """Which places are learnt and say that the text is over: (rows, places)."""
        return batch["supervised"] & (batch["input_ids"] == (-1 if self.end_id is None else self.end_id))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer does, and `eos_share`: of end-of-text tokens among those learnt since the last line."""
        if "loss" in logs and self.learnt:
            logs["eos_share"] = round(self.ends / self.learnt, 6)
            self.learnt = self.ends = 0.0
        super().log(logs, start_time)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As the Trainer does; the time goes into `Waiting`."""
        began = time.monotonic()
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Waiting):
                callback.seconds += time.monotonic() - began
        return found

    def train(self, resume_from_checkpoint: Any = None, **more: Any) -> Any:
        self.resumed_from = resume_from_checkpoint or None
        if self.resumed_from:
            # transformers 5.23 would validate wherever it goes on, which no uninterrupted run does; but one that was
            # told to stop at a step of validation has left that out
            self.args.eval_on_start = checkpoint.owes_validation(Path(self.resumed_from))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **more)

    # -- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        # DDP, FSDP and DeepSpeed average the gradients of the processes; the loss is a sum over them.
        scale = self.args.world_size / num_items_in_batch
        with cross_entropy.scaled(scale):
            loss = self.objective(self._predict(model), inputs)
        total = loss.total * scale
        if self.guard is not None and self.model.training:
            self._nats.append(loss.nats)
        return (total, {"nats": loss.nats}) if return_outputs else total

    # -- validation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The metrics of `unmask.validate.summary`. The same weights give the same numbers, on any number of processes.

        Each process takes its share of the rows; nothing is repeated, the training's random state is left as it was.
        """
        began = time.monotonic()
        summary = self.measured(self.eval_dataset if eval_dataset is None else eval_dataset)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in summary.items()}
        metrics[f"{metric_key_prefix}_seconds"] = round(time.monotonic() - began, 2)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measured(self, rows: Any) -> dict[str, float]:
        """What the model's weights cost on rows, by `unmask.validate.summary`; nothing is logged or changed."""
        was_training = self.model.training
        self.model.eval()
        with untouched_randomness(), self.compute_loss_context_manager(), self.accelerator.autocast():
            batches = self._test_batches(rows)
            predict = self._predict(self.model_wrapped)
            found = validate.rows(predict, self.objective, batches, self.token_bytes, self.end_id)
        self.model.train(was_training)
        if self.args.world_size > 1:
            found = gather_object(found)
        return validate.summary(found, not objectives.is_causal(self.objective), self.eval_draws)

    def _test_batches(self, rows: Any) -> Iterator[dict[str, Tensor]]:
        split = Split(self.args.eval_batch_size, 1, self.args.world_size, self.args.process_index)
        draws, seats = self.eval_draws, Seated(rows)
        total = len(rows) * draws
        longest = np.zeros(len(rows), dtype=np.int64)
        if self.tail.kind == "step":
            longest = longest_of_likes(lengths(rows), self.by_length)
        bar = report.Bar("validating", total) if total > 20 * split.step else None
        for start in range(0, total, split.step):
            seat = ((place // draws, place) for place in range(start, min(start + split.step, total)))
            step = [Ticket(row, place, VALIDATION, int(longest[row])) for row, place in seat]
            for mine in shares(step, split):
                yield self.collate_test(seats.__getitems__(mine))
            if bar:
                bar.to(min(start + split.step, total))
        if bar:
            bar.close()


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Inside may draw random numbers; outside goes on as if it had not."""
    with torch.random.fork_rng(enabled=True):
        kept = np.random.get_state()
        try:
            yield
        finally:
            np.random.set_state(kept)


def check_fits(model: Any, objective: Objective, tail: Tail, packing: bool) -> None:
    """UserError where model, objective, tail and packing do not go together."""
    config = model.config
    if objectives.is_causal(objective) and not (
        getattr(config, "is_causal", True) and getattr(config, "shift", 0) == 1
    ):
        raise UserError(
            "this objective predicts the next token, and the model sees it: load it as a causal one "
            "(is_causal true, shift 1), or use --objective masked."
        )
    if packing and tail.kind == "step":
        raise UserError(
            "--packing with --eos_tail step: every row would be as long as the longest, so that none could share; "
            "use --eos_tail block:32, a number or none, or --packing false."
        )
