"""The command `unmask pretrain`: text in, a trained mask predictor out.

In:  a model folder (`unmask init`), a dataset spec, settings from a YAML file and flags.
Out: a run's folder: checkpoint-N, checkpoint-final, metrics.jsonl, loss.png, run.json.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import signal
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import DataArguments, ModelArguments, Parsed, TrainingArguments, UserError, named, parse

if TYPE_CHECKING:
    import transformers

    from unmask.trainer import Trainer

# Keys of ours that `transformers.TrainingArguments` does not know.
OURS = {"objective", "objective_args", "overwrite_output_dir", "warmup_ratio", "group_by_length", "eval_draws"}
# Keys of transformers 4 that 5 removed or renamed, as the tutorial's users may still write them.
LEGACY = {"evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu", "use_mps_device": "use_mps_device"}
STEP_KEYS = {"eval_steps": "validation", "save_steps": "checkpoint", "logging_steps": "line of metrics"}


@dataclasses.dataclass
class Run:
    """A run that is ready to start: everything checked, nothing written yet."""

    trainer: Trainer
    folder: Path
    manifest: dict[str, Any]
    resume: Path | None
    command: str


def trainer_fields() -> dict[str, Any]:
    """Name → type of every field of `transformers.TrainingArguments`."""
    import transformers

    kinds = typing.get_type_hints(transformers.TrainingArguments)
    simple = (int, float, bool, str)
    found = {}
    for field in dataclasses.fields(transformers.TrainingArguments):
        parts = [a for a in typing.get_args(kinds[field.name]) if a in simple] or [kinds[field.name]]
        optional = type(None) in typing.get_args(kinds[field.name])
        kind = parts[0] if len(parts) == 1 and parts[0] in simple else Any
        found[field.name] = kind | None if optional and kind is not Any else kind
    return found


def to_transformers(
    training: TrainingArguments, more: dict[str, Any], given: set[str]
) -> transformers.TrainingArguments:
    """Our settings as `transformers.TrainingArguments`; UserError for values it refuses.

    The warm-up is `warmup_steps`, or `warmup_ratio` as transformers 4 had it. bfloat16 gives way to an explicit fp16.
    """
    import torch
    import transformers

    values = {f.name: getattr(training, f.name) for f in dataclasses.fields(training) if f.name not in OURS} | more
    if training.warmup_ratio is not None:
        if "warmup_steps" in given:
            raise UserError("both --warmup_steps and --warmup_ratio are given; keep one.")
        if not 0 <= training.warmup_ratio < 1:
            raise UserError(f"--warmup_ratio is {training.warmup_ratio}; it must be at least 0 and below 1.")
        values["warmup_steps"] = training.warmup_ratio
    # transformers 5.23 refuses bf16 on a machine without an accelerator unless it is told to use the CPU.
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    if more.get("fp16") and "bf16" not in given:
        values["bf16"] = False
    values |= {"remove_unused_columns": False, "disable_tqdm": True}
    values.setdefault("ddp_find_unused_parameters", False)  # every parameter has its share in every loss
    for key, least in (
        ("per_device_train_batch_size", 1),
        ("per_device_eval_batch_size", 1),
        ("gradient_accumulation_steps", 1),
        ("num_train_epochs", 0),
        ("warmup_steps", 0),
    ):
        if values[key] < least:
            raise UserError(f"--{key} is {values[key]}; it must be at least {least}.")
    if training.max_steps == 0 or training.max_steps < -1:
        raise UserError(
            f"--max_steps is {training.max_steps}; it must be at least 1, or -1 to go by --num_train_epochs."
        )
    for key in STEP_KEYS:
        if values[key] <= 0:
            raise UserError(f"--{key} is {values[key]}; it must be above 0 (below 1: a share of the run).")
        values[key] = int(values[key]) if values[key] >= 1 else values[key]
    try:
        made = transformers.TrainingArguments(**values)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"training settings: {str(error).strip().splitlines()[0]}") from None
    if made.n_gpu > 1:
        # nn.DataParallel would split batches behind our back; one process a device is what the launchers are for.
        made._n_gpu = 1
        from unmask import report

        report.say("several GPUs are here and one is used; `accelerate launch -m unmask pretrain …` takes them all.")
    return made


def warnings_before(args: Any, steps: int) -> list[str]:
    """What a user would want to know before the first step of `steps`."""
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


# ---------------------------------------------------------------------------------------------------------------------
# The run's folder


def check_folder(folder: Path, resume: str | None, overwrite: bool, command: str) -> None:
    """UserError when the folder holds a run and the user did not say what to do with it."""
    from unmask import checkpoint, report

    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; name a folder.")
    if resume and overwrite:
        raise UserError("--resume_from_checkpoint and --overwrite_output_dir contradict each other; keep one.")
    holds = (folder / report.MANIFEST).exists() or checkpoint.numbered(folder) or (folder / checkpoint.FINAL).exists()
    if holds and not resume and not overwrite:
        raise UserError(
            f"{folder} already holds a run; type --resume_from_checkpoint auto to go on with it, or "
            "--overwrite_output_dir to delete it and start anew."
        )
    parent = folder if folder.exists() else next(p for p in folder.absolute().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"cannot write to {parent}; name another --output_dir.")


def clear(folder: Path) -> None:
    """Delete what a run left in its folder, and nothing else."""
    from unmask import checkpoint, report

    for path in [*checkpoint.numbered(folder), folder / checkpoint.FINAL]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (report.METRICS, report.CURVE, report.MANIFEST):
        (folder / name).unlink(missing_ok=True)


def check_same_run(folder: Path, manifest: dict[str, Any]) -> None:
    """UserError when the folder's run differs from this one in what makes its curve."""
    import json

    from unmask import report

    path = folder / report.MANIFEST
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8")).get("identity", {})
    now = manifest["identity"]
    other = [f"{key} {before.get(key)!r} there, {now[key]!r} here" for key in now if before.get(key) != now[key]]
    if other:
        raise UserError(
            f"{folder} belongs to another run: {'; '.join(other)}. Give the same settings to go on with it, or another "
            "--output_dir."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining


def prepare_pretrain(parsed: Parsed, argv: list[str]) -> Run:
    """Read and check everything a run needs; nothing is written to its folder."""
    model_args, data, training = parsed.groups
    if not training.output_dir:
        raise UserError("no run folder given; type --output_dir FOLDER.")
    if not data.dataset_args:
        raise UserError("no data given; type --dataset_args SPEC, such as data/text[train:2000,test:200].")
    if data.streaming and training.max_steps < 1:
        raise UserError("--streaming needs --max_steps, since a stream has no length.")
    if not 0 <= data.random_length_ratio <= 1:
        raise UserError(f"--random_length_ratio is {data.random_length_ratio}; it must be from 0 to 1.")
    if data.max_length < 1:
        raise UserError(f"--max_length is {data.max_length}; it must be at least 1.")
    if training.eval_draws < 1:
        raise UserError(f"--eval_draws is {training.eval_draws}; it must be at least 1.")
    folder = Path(training.output_dir)
    command = shlex.join(["unmask", "pretrain", *argv])
    check_folder(folder, training.resume_from_checkpoint, training.overwrite_output_dir, command)

    import datasets
    from accelerate import PartialState

    from unmask import checkpoint, models, objectives, prepare, report, tokens, trackers
    from unmask.trainer import Interrupt, Journal, Trainer

    report.quiet()
    resume = None
    if training.resume_from_checkpoint:
        resume, remarks = checkpoint.to_resume(folder, training.resume_from_checkpoint)
        report.say(*remarks)
    training.report_to = trackers.set_up(training.report_to)
    args = to_transformers(training, parsed.more, parsed.given)
    args.output_dir = str(folder)
    named("objectives", training.objective)
    model_args.dtype = model_args.dtype or "float32"
    loaded = models.load(model_args, fresh=None, seed=training.seed)
    model, tokenizer = loaded.model, loaded.tokenizer
    most = getattr(model.config, "max_position_embeddings", None)
    if most and data.max_length > most:
        raise UserError(
            f"--max_length {data.max_length} is beyond the model's {most}; lower it, or raise it in config.json."
        )
    with PartialState().main_process_first():
        rows = prepare.rows(data, tokenizer, seed=training.seed, vocab_size=model.config.vocab_size)
    report.say(*rows.remarks)
    train_rows: Any = rows.train
    test_rows: Any = rows.test
    if data.streaming:
        if data.shuffle:
            train_rows = train_rows.shuffle(seed=training.seed, buffer_size=data.shuffle_buffer)
        test_rows = datasets.Dataset.from_list(list(test_rows))  # few, and asked for again and again
    objective = objectives.load(training.objective, training.objective_args, model.config.mask_token_id)
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
            "random_length_ratio": data.random_length_ratio,
            "shuffle": data.shuffle,
            "group_by_length": training.group_by_length,
        },
        "parameters": model.num_parameters(),
        "fresh_weights": loaded.fresh,
        "validation_data": tokens.data_fingerprint(test_rows),
        "settings": {
            "model": dataclasses.asdict(model_args),
            "data": dataclasses.asdict(data),
            "training": {**dataclasses.asdict(training), **parsed.more},
            "objective": dataclasses.asdict(objective.settings) if hasattr(objective, "settings") else {},
        },
        "versions": report.versions(),
    }
    if resume is not None:
        check_same_run(resume.parent, manifest)
        checkpoint.fits(resume, model)
    # Last, since the Trainer makes the folder.
    trainer = Trainer(
        model,
        args,
        objective,
        tokenizer,
        train_rows,
        test_rows,
        shuffle=data.shuffle,
        random_length_ratio=data.random_length_ratio,
        token_bytes=tokens.token_bytes(tokenizer),
        eval_draws=training.eval_draws,
        by_length=training.group_by_length,
        callbacks=[Journal(folder, objective.bound, training.run_name or folder.name), Interrupt()],
    )
    return Run(trainer, folder, manifest, resume, command)


def go(run: Run) -> int:
    """Train, validate, save. Returns the exit code: 0, or 130 / 143 when stopped by Ctrl-C / SIGTERM."""
    from unmask import checkpoint, report, trackers
    from unmask.trainer import Interrupt

    trainer, folder = run.trainer, run.folder
    first = trainer.is_world_process_zero()
    steps = planned_steps(trainer)
    if first:
        if run.resume is None:
            clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        report.write_json(folder / report.MANIFEST, run.manifest)
        if run.resume is not None:
            report.forget_after(folder, checkpoint.step_of(run.resume))
            report.say(f"going on from {run.resume.name}.")
        report.say(*warnings_before(trainer.args, steps))
        rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else "a stream of"
        report.say(
            f"training {report.amount(run.manifest['parameters'])} parameters on {rows} rows, {steps} steps of "
            f"{run.manifest['identity']['rows_per_step']} rows, on {trainer.args.device.type}."
        )
    trainer.accelerator.wait_for_everyone()
    trackers.start(trainer.args.report_to, trainer.args.run_name, run.resume is not None)
    try:
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
    stop = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Interrupt))
    if stop.caught is not None:
        if first:
            report.say(f"stopped at step {trainer.state.global_step}. To go on:\n  {resume_command(run.command)}")
        return 128 + stop.caught if stop.caught in (signal.SIGINT, signal.SIGTERM) else 1
    if not any("eval_loss" in line and line["step"] == trainer.state.global_step for line in trainer.state.log_history):
        trainer.evaluate()
    final = folder / checkpoint.FINAL
    trainer.save_final(final)
    if first:
        left = [("model", final), ("curve", folder / report.CURVE), ("metrics", folder / report.METRICS)]
        report.say(*(f"{what}: {path}" for what, path in left if path.exists()))
    return 0


def planned_steps(trainer: Trainer) -> int:
    """Optimiser steps of the whole run."""
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    each = -(-len(trainer.get_train_dataloader()) // trainer.args.gradient_accumulation_steps)
    return int(-(-trainer.args.num_train_epochs * each // 1))


def resume_command(command: str) -> str:
    """The command that goes on with a run, from the one that began it."""
    words = shlex.split(re.sub(r"--overwrite[_-]output[_-]dir(=\S+| true)?( |$)", "", command))
    if "--resume_from_checkpoint" not in words:
        words += ["--resume_from_checkpoint", "auto"]
    return shlex.join(words)


def main(argv: list[str]) -> int:
    """`unmask pretrain --config FILE --key value …`"""
    return go(prepare_pretrain(parse_pretrain(argv), argv))


def parse_pretrain(argv: list[str]) -> Parsed:
    return parse(
        "unmask pretrain",
        "Pretrain a masked diffusion model on text. `accelerate launch -m unmask pretrain …` uses many devices.",
        [ModelArguments, DataArguments, TrainingArguments],
        argv,
        extra=trainer_fields,
        legacy=LEGACY,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
