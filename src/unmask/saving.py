"""The Trainer's checkpoints: whole or not there, in a form that every engine reads.

In:  a run of training.  Out: checkpoint-N with a manifest, checkpoint-final; what a checkpoint held, back in the run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor, nn

from unmask import adapters, checkpoint, ids, models, report, sealed
from unmask.config import UserError


class NotSaved(Exception):
    """A checkpoint could not be written, and the disk is to blame."""


class Saving(transformers.Trainer):
    """`transformers.Trainer` whose checkpoints are those of `unmask.checkpoint`."""

    _aside: Path | None = None  # where the checkpoint is that is being written

    def notes(self) -> dict[str, dict[str, Any]]:
        """What else a checkpoint has to say: name of a JSON file → what it holds."""
        return {}

    def keeps_all(self) -> bool:
        """Whether no old checkpoint is to be deleted now."""
        return False

    @property
    def stops(self) -> bool:
        """Whether training ends after this checkpoint because somebody asked for it."""
        return False

    @property
    def engine(self) -> str:
        """How processes share the work: plain, ddp, fsdp1, fsdp2, zero0 to zero3."""
        if self.is_deepspeed_enabled:
            return f"zero{self.accelerator.state.deepspeed_plugin.zero_stage}"
        if self.is_fsdp_enabled:
            return f"fsdp{self.accelerator.state.fsdp_plugin.fsdp_version}"
        return "ddp" if self.args.world_size > 1 else "plain"

    @property
    def _shares_weights(self) -> bool:
        """Whether each process holds a part of the weights, or of what belongs to them."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def _wears_adapter(self) -> bool:
        """Whether the model is one that `unmask.adapters` made, which saves and reads it."""
        return "record" in vars(self.model)

    # -- writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint, whole or not at all; where it cannot be written, training goes on if it can."""
        run, step = Path(self.args.output_dir), self.state.global_step
        # Engines that share weights talk to one another while they save, and so does the Trainer when it has seen a
        # best step: where one of them fails there, the others wait for it.
        alone = self.args.world_size == 1 or not (self._shares_weights or self.state.best_global_step)
        try:
            self._agree(self._tried(alone, self._write_aside, model, trial))
            self._agree(self._tried(alone, self._finish) if self.args.should_save else None)
        except NotSaved as error:
            if self._aside is not None and self.args.should_save:
                sealed.remove(self._aside.parent)
            whole = checkpoint.newest_whole(checkpoint.numbered(run))
            last = f"{whole.name} is the last whole one" if whole else "there is no other one"
            line = f"{error}: checkpoint-{step} was not written, its part was removed; {last}."
            if not alone or self.stops:
                raise UserError(f"{line} Mend that, then go on with --resume_from_checkpoint auto.") from None
            report.say(f"warning: {line} Training goes on, and tries again at the next.")
            return
        finally:
            self._aside = None
        if self.args.save_total_limit and self.args.should_save and not self.keeps_all():
            checkpoint.keep(run, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _write_aside(self, model: nn.Module, trial: Any) -> None:
        step, limit = self.state.global_step, self.args.save_total_limit
        self._aside = checkpoint.aside(Path(self.args.output_dir), step)
        if self.args.world_size == 1:  # of several, one may be writing there already; `checkpoint.tidy` was here before
            sealed.remove(self._aside.parent)
        # The Trainer (transformers 5.23) deletes by age, checkpoint-final too; here the largest numbers stay.
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if not self.args.should_save:
            return
        if self.state.best_global_step == step:  # which the Trainer saw aside
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / self._aside.name)
            self.state.save_to_json(str(self._aside / checkpoint.STATE))
        for name, value in self.notes().items():
            report.write_json(self._aside / name, value)

    def _finish(self) -> None:
        training = {"engine": self.engine, "processes": self.args.world_size}
        about = {"step": self.state.global_step, "training": training, "versions": report.versions()}
        assert self._aside is not None
        checkpoint.finish(self._aside, about)

    def _tried(self, goes_on: bool, write: Callable[..., None], *given: Any) -> str | None:
        """Why something could not be written, if the disk is to blame."""
        try:
            write(*given)
        except Exception as error:
            line = checkpoint.why_not(error, Path(self.args.output_dir))
            if line is None:
                raise
            if not goes_on:
                raise NotSaved(line) from None
            return line
        return None

    def _agree(self, problem: str | None) -> None:
        """Wait for all processes; NotSaved in each where one of them had a problem."""
        problems = gather_object([problem]) if self.args.world_size > 1 else [problem]
        if found := [one for one in problems if one]:
            raise NotSaved(found[0])

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside.parent) if self._aside is not None else super()._get_output_dir(trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Whole weights under their official names, whatever the engine, so that every engine can read them.

        The Trainer (transformers 5.23) writes none under FSDP with sharded checkpoints.
        """
        if self.is_fsdp_enabled:
            whole = self.accelerator.get_state_dict(self.model_wrapped)
            # on a CPU they may be on their way still (torch 2.13: AsyncCollectiveTensor), and have no memory to write
            self._save(output_dir, {name: v.wait() if hasattr(v, "wait") else v for name, v in whole.items()})
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self._wears_adapter:
            if self.args.should_save:
                adapters.write(self.model, self.processing_class, folder, weights=state_dict)
                torch.save(self.args, folder / "training_args.bin")
            return
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            ids.portable(folder)

    # -- reading

    def _read(self, folder: str) -> bool:
        """Take the weights of a checkpoint; False where the Trainer has to.

        The Trainer of transformers 5.23 reads tensors without the renamings by which they were saved, and passes
        over names it does not know: a LLaDA would go on from its fresh weights without a word.
        """
        if self.is_fsdp_enabled or not (self._wears_adapter or isinstance(self.model, transformers.PreTrainedModel)):
            return False
        (adapters if self._wears_adapter else models).put_weights(self.model, folder)
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None or not self._read(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if not best or not self._read(best):
            super()._load_best_model()

    def take(self, folder: Path) -> None:
        """Become what a checkpoint holds, without training on."""
        self._load_from_checkpoint(str(folder))
        self.model.to(self.args.device)
        self.state = transformers.TrainerState.load_from_json(str(folder / checkpoint.STATE))

    def save_final(self, folder: Path) -> None:
        """The trained model as a folder of its own, without the optimiser."""
        if self._shares_weights:  # which are gathered from all processes
            elsewhere = folder.with_name(f".{folder.name}.part")  # of processes that write nothing there
            with checkpoint.replaced(folder) if self.args.should_save else nullcontext(elsewhere) as part:
                self.save_model(str(part))
                if self.args.should_save:
                    (part / "training_args.bin").unlink(missing_ok=True)
        elif self.is_world_process_zero():
            save = adapters.save if self._wears_adapter else checkpoint.save
            save(self.accelerator.unwrap_model(self.model), self.processing_class, folder)
        self.accelerator.wait_for_everyone()
