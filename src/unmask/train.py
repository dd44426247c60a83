"""The command `unmask pretrain`: text in, a trained mask predictor out.

In:  a model folder (`unmask init`), a dataset spec, settings from a YAML file and flags.
Out: a run's folder: checkpoint-N, checkpoint-final, metrics.jsonl, loss.png, run.json.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import folders
from unmask.config import DataArguments, ModelArguments, Parsed, TrainingArguments, UserError, named, parse

if TYPE_CHECKING:
    import transformers

    from unmask.trainer import Trainer

# Keys of ours that `transformers.TrainingArguments` does not know.
OURS = {"objective", "objective_args", "overwrite_output_dir", "warmup_ratio", "group_by_length", "eval_draws"}
# Keys of transformers 4 that 5 removed or renamed, as the tutorial's users may still write them.
LEGACY = {"evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu"}
# Fields of `transformers.TrainingArguments` that would be accepted and do nothing, or break what is promised.
REFUSED = {
    "auto_find_batch_size": "it would change the rows of a step; set --per_device_train_batch_size",
    "data_seed": "order and noise follow --seed",
    "dataloader_drop_last": "no row is dropped at an epoch's end",
    "include_num_input_tokens_seen": "metrics.jsonl counts the tokens already",
    "label_smoothing_factor": "the objective makes the loss; write one that smooths",
    "push_to_hub": "nothing is sent anywhere; upload checkpoint-final with the hub's own client",
    "torch_compile": "the head is read inside the forward pass, which would compile anew at each step",
    "train_sampling_strategy": "rows have an order of their own; see --group_by_length and --shuffle",
    "use_liger_kernel": "it would replace the head that the loss reads",
}
LEAST = dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1)
LEAST |= dict.fromkeys(("num_train_epochs", "warmup_steps", "learning_rate", "weight_decay"), 0)
LEAST |= dict.fromkeys(("seed", "dataloader_num_workers"), 0)
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
    for key, why in REFUSED.items():
        if more.get(key) not in (None, False, "no", 0, 0.0, "random"):
            raise UserError(f"--{key} has no effect here: {why}.")
    for key in ("eval_strategy", "save_strategy"):
        values[key] = "no" if str(values[key]).lower() == "false" else values[key]  # YAML reads a bare `no` as false
    values |= {"remove_unused_columns": False, "disable_tqdm": True}
    values.setdefault("logging_nan_inf_filter", False)  # it would show a diverged run's loss as 0
    values.setdefault("ddp_find_unused_parameters", False)  # every parameter has its share in every loss
    for key, least in LEAST.items():
        if not least <= values.get(key, least) < math.inf:  # NaN is not, either
            raise UserError(f"--{key} is {values[key]}; it must be at least {least}.")
    for key in ("adam_beta1", "adam_beta2"):
        if not 0 <= values.get(key, 0.9) < 1:
            raise UserError(f"--{key} is {values[key]}; it must be at least 0 and below 1.")
    if training.max_steps == -1 and values["num_train_epochs"] <= 0:
        raise UserError(f"--num_train_epochs is {values['num_train_epochs']}; it must be above 0.")
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
    if str(training.resume_from_checkpoint).lower() in ("false", "no"):
        training.resume_from_checkpoint = None
    folder = Path(training.output_dir)
    command = shlex.join(["unmask", "pretrain", *argv])
    folders.check_folder(folder, training.resume_from_checkpoint, training.overwrite_output_dir)

    import datasets
    from accelerate import PartialState

    from unmask import checkpoint, models, objectives, prepare, report, tokens, trackers
    from unmask.trainer import Interrupt, Journal, Trainer

    report.quiet()
    resume = None
    if training.resume_from_checkpoint:
        resume, remarks = checkpoint.to_resume(folder, training.resume_from_checkpoint)
        report.say(*remarks)
        folders.check_branch(folder, resume)
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
            **{key: getattr(args, key) for key in ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2")},
            "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
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
        folders.check_same_run(resume.parent, manifest)
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

    trainer, folder = run.trainer, run.folder
    first = trainer.is_world_process_zero()
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if first:
        if run.resume is None:
            folders.clear(folder)
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
        report.say(*(f"{what}: {path}" for what, path in left if path.exists()))
    return 0


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
