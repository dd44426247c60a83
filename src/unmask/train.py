"""A run of training, whatever is learnt: checked whole, then started. `pretrain.py` and `sft.py` are its two commands.

In:  a `Job`: settings, and how its model and rows come about.
Out: a run's folder: checkpoint-N, checkpoint-final, metrics.jsonl, samples.jsonl, loss.png, run.json.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import folders, report
from unmask.config import Parsed, TrainingArguments, UserError, named
from unmask.training_settings import to_transformers

if TYPE_CHECKING:
    import transformers

    from unmask.models import Loaded
    from unmask.prepare import Rows
    from unmask.trainer import Trainer


@dataclasses.dataclass
class Job:
    """What a command of training brings along.

    Attributes:
        command: its name. settings: what was read: `model`, `data`, `training`, and groups of its own.
        load: (transformers' arguments, whether the objective is causal) → the model, ready to train.
        rows: the model → its rows. identity: the model → what else makes the curve, for resuming.
        options: further arguments of `Trainer`.
    """

    command: str
    settings: dict[str, Any]
    load: Callable[[transformers.TrainingArguments, bool], Loaded]
    rows: Callable[[Loaded], Rows]
    identity: Callable[[Loaded], dict[str, Any]]
    options: dict[str, Any]

    @property
    def data(self) -> Any:
        return self.settings["data"]

    @property
    def training(self) -> TrainingArguments:
        training: TrainingArguments = self.settings["training"]
        return training

    @property
    def streaming(self) -> bool:
        return getattr(self.data, "streaming", False)


@dataclasses.dataclass
class Run:
    """A run that is ready to start: everything checked, nothing written yet."""

    trainer: Trainer
    folder: Path
    manifest: dict[str, Any]
    resume: Path | None
    command: str


# ---------------------------------------------------------------------------------------------------------------------
# A run


def check(job: Job) -> Path:
    """The run's folder; UserError for settings that cannot be, before anything heavy is loaded."""
    data, training = job.data, job.training
    if not training.output_dir:
        raise UserError("no run folder given; type --output_dir FOLDER.")
    if not data.dataset_args:
        raise UserError("no data given; type --dataset_args SPEC, such as data/text[train:2000,test:200].")
    if job.streaming and training.max_steps < 1:
        raise UserError("--streaming needs --max_steps, since a stream has no length.")
    if job.streaming and training.group_by_length:
        raise UserError("--group_by_length needs to know all lengths, and --streaming knows none; keep one.")
    if data.max_length < 1:
        raise UserError(f"--max_length is {data.max_length}; it must be at least 1.")
    if training.eval_draws < 1:
        raise UserError(f"--eval_draws is {training.eval_draws}; it must be at least 1.")
    if str(training.resume_from_checkpoint).lower() in ("false", "no"):
        training.resume_from_checkpoint = None
    folder = Path(training.output_dir)
    folders.check_folder(folder, training.resume_from_checkpoint, training.overwrite_output_dir)
    return folder


def prepare(job: Job, parsed: Parsed, argv: list[str]) -> Run:
    """Read and check everything a run needs; nothing is written to its folder."""
    folder = check(job)
    data, training = job.data, job.training
    command = shlex.join(["unmask", job.command, *argv])

    import datasets
    from accelerate import PartialState

    from unmask import adapters, checkpoint, compiling, divergence, objectives, sampling, tokens, trackers
    from unmask.advice import Waiting, keep_memory
    from unmask.trainer import Interrupt, Journal, Trainer

    report.quiet()
    keep_memory()
    training.report_to = trackers.set_up(training.report_to)
    args = to_transformers(training, parsed.more, parsed.given)
    args.output_dir = str(folder)
    resume = _found(folder, training.resume_from_checkpoint) if training.resume_from_checkpoint else None
    kind = named("objectives", training.objective)
    if args.deepspeed_plugin is not None:
        # transformers 5.23 would share out a model while it is loaded, before `models.load` has looked whether it sees
        # all of its text; the Trainer announces DeepSpeed again
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
    loaded = job.load(args, bool(getattr(getattr(kind, "Objective", None), "causal", False)))
    model, tokenizer = loaded.model, loaded.tokenizer
    most = getattr(model.config, "max_position_embeddings", None)
    if most and data.max_length > most:
        raise UserError(
            f"--max_length {data.max_length} is beyond the model's {most}; lower it, or raise it in config.json."
        )
    with PartialState().main_process_first():
        rows = job.rows(loaded)
    report.say(*rows.remarks)
    train_rows: Any = rows.train
    test_rows: Any = rows.test
    if job.streaming:
        if data.shuffle:
            train_rows = train_rows.shuffle(seed=training.seed, buffer_size=data.shuffle_buffer)
        test_rows = datasets.Dataset.from_list(list(test_rows))  # few, and asked for again and again
    objective = objectives.load(
        training.objective, training.objective_args, getattr(model.config, "mask_token_id", None)
    )
    manifest = {
        "command": command,
        "identity": {
            "model": report.digest({k: v for k, v in model.config.to_dict().items() if k != "transformers_version"}),
            "tokenizer": tokens.tokenizer_fingerprint(tokenizer),
            "train_data": tokens.data_fingerprint(rows.train),
            "objective": {"name": training.objective, **training.objective_args},
            "seed": training.seed,
            "max_length": data.max_length,
            "rows_per_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "shuffle": data.shuffle,
            "group_by_length": training.group_by_length,
            **{key: getattr(args, key) for key in ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2")},
            "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            **job.identity(loaded),
        },
        "parameters": model.num_parameters(),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "fresh_weights": loaded.fresh,
        "validation_data": tokens.data_fingerprint(test_rows),
        "settings": {
            **{name: dataclasses.asdict(group) for name, group in job.settings.items()},
            "training": {**dataclasses.asdict(training), **parsed.more},
            "objective": dataclasses.asdict(objective.settings) if hasattr(objective, "settings") else {},
        },
        "versions": report.versions(),
    }
    if resume is not None:
        folders.check_same_run(resume.parent, manifest)
        if loaded.adapter or hasattr(model, "peft_config"):
            adapters.put_weights(model, resume)  # checks names and shapes
        else:
            checkpoint.fits(resume, model)
    journal = Journal(folder, objective.bound, training.run_name or folder.name)
    told, *samplers = sampling.watchers(job.command == "sft", training, parsed, args, loaded, journal)
    options = job.options | {
        "shuffle": data.shuffle,
        "token_bytes": tokens.token_bytes(tokenizer),
        "eval_draws": training.eval_draws,
        "guard": divergence.Guard(training.on_divergence, training.max_skipped_steps, training.max_grad_norm_factor),
        "by_length": training.group_by_length,
        "callbacks": [told, journal, Interrupt(), Waiting(), *samplers],
        "compiled": compiling.asked(parsed.more, args.device.type),
    }
    try:  # last, since the Trainer makes the folder
        trainer = Trainer(model, args, objective, tokenizer, train_rows, test_rows, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"training settings: {str(error).strip().splitlines()[0]}") from None
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and args.device.type == "cpu" and trainer.accelerator.distributed_type != "FSDP":
        raise UserError(
            "FSDP was asked for, and accelerate makes DDP of it on a CPU, without a word: it needs GPUs. Take "
            "configs/ddp.yaml here, or configs/zero2.yaml with DeepSpeed."
        )
    if resume is not None:
        checkpoint.check_engine(resume, trainer.engine, args.world_size)
    return Run(trainer, folder, manifest, resume, command)


def _found(folder: Path, asked: str) -> Path:
    """The checkpoint to go on from, for all processes the one that the first has found: it reads every file of it."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from unmask import checkpoint

    found: list[Path | UserError | None] = [None]
    if PartialState().is_main_process:
        checkpoint.tidy(folder)  # a folder that was being replaced comes back before it is looked for
        try:
            path, remarks = checkpoint.to_resume(folder, asked)
            report.say(*remarks)
            folders.check_branch(folder, path)
            found = [path]
        except UserError as error:
            found = [error]
    if PartialState().num_processes > 1:
        found = broadcast_object_list(found)
    if isinstance(found[0], UserError):
        raise found[0]
    assert found[0] is not None
    return found[0]


def _size(manifest: dict[str, Any]) -> str:
    every, some = (report.amount(manifest[key]) for key in ("parameters", "trainable"))
    return f"{every} parameters" if every == some else f"{some} of {every} parameters"


def go(run: Run) -> int:
    """Train, validate, save. Returns the exit code: 0, or 130 / 143 when stopped by Ctrl-C / SIGTERM."""
    from unmask import trackers
    from unmask.guarded import Lost, lost_process

    try:
        code = _go(run)
    except RuntimeError as error:
        if run.trainer.args.world_size > 1 and lost_process(error):
            raise Lost(
                f"another process of this run is gone, so it ends at step {run.trainer.state.global_step} "
                f"({str(error).strip().splitlines()[0][:120]}). Go on with --resume_from_checkpoint auto."
            ) from None
        raise
    finally:
        # Training itself does this only where it comes to its end. One of several processes that fails keeps its
        # handlers: the launcher sends SIGTERM as soon as it misses another, which would end this one before it speaks.
        if run.trainer.interrupt is not None and run.trainer.args.world_size == 1:
            run.trainer.interrupt.restore()
    trackers.finish(run.trainer)
    return code


def _go(run: Run) -> int:
    from unmask import advice, checkpoint

    trainer, folder = run.trainer, run.folder
    first = trainer.is_world_process_zero()
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if first:
        if run.resume is None:
            folders.clear(folder)
        checkpoint.tidy(folder)
        folder.mkdir(parents=True, exist_ok=True)
        report.write_json(folder / report.MANIFEST, run.manifest)
        if run.resume is not None:
            report.forget_after(folder, checkpoint.step_of(run.resume))
            report.say(f"going on from {run.resume.name}.")
        report.say(*advice.before(trainer, steps))
        rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else "a stream of"
        report.say(
            f"training {_size(run.manifest)} on {rows} rows, {steps} steps of "
            f"{run.manifest['identity']['rows_per_step']} rows, on {trainer.args.device.type}."
        )
    trainer.accelerator.wait_for_everyone()
    advice.give_back()
    try:
        if run.resume is not None and checkpoint.step_of(run.resume) >= steps:
            report.say(f"{run.resume.name} is the end of the run already.")
            trainer.take(run.resume)
        else:
            trainer.train(resume_from_checkpoint=str(run.resume) if run.resume else None)
    except OSError as error:
        if checkpoint.disk_full(error):
            raise UserError(
                f"no space left on the disk of {folder}; free some, then go on with --resume_from_checkpoint auto."
            ) from None
        raise
    except ValueError as error:
        if "lr_scheduler" in str(error):
            raise UserError(str(error)) from None
        raise
    stop = trainer.interrupt
    if stop is not None and stop.caught is not None and trainer.state.global_step < steps:
        if first:
            overwrites = run.manifest["settings"]["training"]["overwrite_output_dir"]
            again = folders.resume_command(run.command, overwrites)
            report.say(f"stopped at step {trainer.state.global_step}. To go on:\n  {again}")
        return 128 + stop.caught if stop.caught in (signal.SIGINT, signal.SIGTERM) else 1
    if not any("eval_loss" in line and line["step"] == trainer.state.global_step for line in trainer.state.log_history):
        trainer.evaluate()
    final = folder / checkpoint.FINAL
    trainer.save_final(final)
    if first:
        left = [("model", final), ("curve", folder / report.CURVE), ("metrics", folder / report.METRICS)]
        left += [("samples", folder / report.SAMPLES)]
        report.say(*(f"{what}: {path}" for what, path in left if path.exists()))
    return 0
