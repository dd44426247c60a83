"""A run of training, whatever is learnt: checked whole, then started. `pretrain.py` and `sft.py` are its two commands.

In:  a `Job`: settings, and how its model and rows come about.
Out: a run's folder: checkpoint-N, checkpoint-final, metrics.jsonl, samples.jsonl, loss.png, run.json.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import folders, report
from unmask.config import Parsed, Refused, TrainingArguments, UserError, named

if TYPE_CHECKING:
    import transformers

    from unmask.models import Loaded
    from unmask.prepare import Rows
    from unmask.trainer import Trainer

# Keys of ours that `transformers.TrainingArguments` does not know.
OURS = {"objective", "objective_args", "overwrite_output_dir", "warmup_ratio", "group_by_length", "eval_draws"}
OURS |= {"sample_every", "sample_prompts", "sample_max_new_tokens", "sample_args"}
OURS |= {"on_divergence", "max_skipped_steps", "max_grad_norm_factor"}
# Keys of transformers 4 that 5 removed or renamed, as the tutorial's users may still write them.
LEGACY = {"evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu"}
LEGACY |= {f"per_gpu_{part}_batch_size": f"per_device_{part}_batch_size" for part in ("train", "eval")}
_SENT = (None, "is gone: nothing is sent anywhere; upload checkpoint-final with the hub's own client.")
_APEX = "is gone, with apex; --bf16 true is taken, or type --fp16 true."
_TPU = "is gone: TPUs are not supported."
_FSDP = "is gone: accelerate's own file sets up FSDP, `accelerate launch --config_file FILE …`."
# Those that are neither: a value of theirs that asks for nothing is let through, so that an old file can be kept.
GONE: Refused = {
    "logging_dir": (..., "is gone: a run's files are in --output_dir; TENSORBOARD_LOGGING_DIR moves TensorBoard's."),
    "save_safetensors": (True, "is gone: weights are always written as safetensors."),
    "use_mps_device": (False, "is gone: the GPU of a Mac is taken if there is one; --use_cpu true takes the CPU."),
    "adafactor": (False, "is gone: type --optim adafactor."),
    "torchdynamo": (None, "is gone: type --torch_compile_backend."),
    "jit_mode_eval": (False, "is gone: validation runs what training runs."),
    "use_legacy_prediction_loop": (False, "is gone: there is one way to validate."),
    "include_inputs_for_metrics": (False, "is gone: validation reports the objective's bound."),
    "include_tokens_per_second": (..., "is gone: metrics.jsonl has tokens_per_second always."),
    "past_index": (-1, "is gone: no state goes from one batch to the next."),
    "ray_scope": ("last", "is gone: there is no search over settings here."),
    "mp_parameters": ("", "is gone: SageMaker's launcher is not supported."),
    "fp16_opt_level": ("O1", _APEX),
    "half_precision_backend": ("auto", _APEX),
    "fp16_backend": ("auto", _APEX),
    "tpu_num_cores": (None, _TPU),
    "tpu_metrics_debug": (False, _TPU),
    "fsdp_min_num_params": (0, _FSDP),
    "fsdp_transformer_layer_cls_to_wrap": (None, _FSDP),
    **dict.fromkeys(("push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"), _SENT),
}
# Fields of `transformers.TrainingArguments` that would be accepted and do nothing, or break what is promised.
REFUSED = {
    "auto_find_batch_size": "it would change the rows of a step; set --per_device_train_batch_size",
    "data_seed": "order and noise follow --seed",
    "dataloader_drop_last": "no row is dropped at an epoch's end",
    "include_num_input_tokens_seen": "metrics.jsonl counts the tokens already",
    "label_smoothing_factor": "the objective makes the loss; write one that smooths",
    "do_train": "the command says what is done",
    "push_to_hub": "nothing is sent anywhere; upload checkpoint-final with the hub's own client",
    "remove_unused_columns": "what is not learnt from is left out where rows are made",
    "train_sampling_strategy": "rows have an order of their own; see --group_by_length and --shuffle",
    "use_liger_kernel": "it would replace the head that the loss reads",
}
LEAST = dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1)
LEAST |= dict.fromkeys(("num_train_epochs", "warmup_steps", "learning_rate", "weight_decay"), 0)
LEAST |= dict.fromkeys(("seed", "dataloader_num_workers"), 0)


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

    from unmask import advice, compiling

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
    for key in compiling.KEYS:
        values.pop(key, None)  # the Trainer of transformers would compile the whole model; see compiling.py
    for key, why in REFUSED.items():
        if more.get(key) not in (None, False, "no", 0, 0.0, "random"):
            raise UserError(f"--{key} has no effect here: {why}.")
    if more.get("do_eval") is False:
        raise UserError("--do_eval false has no effect here; type --eval_strategy no (there is always one at the end).")
    if more.get("disable_tqdm") is False:
        raise UserError("--disable_tqdm false has no effect here: a bar is drawn where there is a terminal.")
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
    for key in advice.STEP_KEYS:
        if values[key] <= 0:
            raise UserError(f"--{key} is {values[key]}; it must be above 0 (below 1: a share of the run).")
        values[key] = int(values[key]) if values[key] >= 1 else values[key]
    try:
        made = transformers.TrainingArguments(**values)
    except (ValueError, TypeError, ImportError, RuntimeError, FileNotFoundError) as error:
        raise UserError(f"training settings: {str(error).strip().splitlines()[0]}") from None
    launched = made.accelerator_config
    for key in ("split_batches", "dispatch_batches", "even_batches"):
        if getattr(launched, key) != getattr(type(launched)(), key):
            raise UserError(f"accelerator_config {key} has no effect here: every process makes its own batches.")
    if made.fp16 and made.device.type == "cpu":
        raise UserError("--fp16 has no effect on a CPU; leave it out, or type --bf16 true.")
    if made.n_gpu > 1:
        # nn.DataParallel would split batches behind our back; one process a device is what the launchers are for.
        made._n_gpu = 1
        report.say("several GPUs are here and one is used; `accelerate launch -m unmask pretrain …` takes them all.")
    return made


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
    resume = None
    if training.resume_from_checkpoint:
        checkpoint.tidy(folder)  # a folder that was being replaced comes back before it is looked for
        resume, remarks = checkpoint.to_resume(folder, training.resume_from_checkpoint)
        report.say(*remarks)
        folders.check_branch(folder, resume)
    training.report_to = trackers.set_up(training.report_to)
    args = to_transformers(training, parsed.more, parsed.given)
    args.output_dir = str(folder)
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
    if resume is not None:
        checkpoint.check_engine(resume, trainer.engine, args.world_size)
    return Run(trainer, folder, manifest, resume, command)


def _size(manifest: dict[str, Any]) -> str:
    every, some = (report.amount(manifest[key]) for key in ("parameters", "trainable"))
    return f"{every} parameters" if every == some else f"{some} of {every} parameters"


def go(run: Run) -> int:
    """Train, validate, save. Returns the exit code: 0, or 130 / 143 when stopped by Ctrl-C / SIGTERM."""
    from unmask import trackers

    code = _go(run)
    trackers.finish(run.trainer)
    return code


def _go(run: Run) -> int:
    from unmask import advice, checkpoint
    from unmask.guarded import Lost, lost_process

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
    except RuntimeError as error:
        if trainer.args.world_size > 1 and lost_process(error):
            raise Lost(
                f"another process of this run is gone, so it ends at step {trainer.state.global_step} "
                f"({str(error).strip().splitlines()[0][:120]}). Go on with --resume_from_checkpoint auto."
            ) from None
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
