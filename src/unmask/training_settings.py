"""Our settings as `transformers.TrainingArguments`, with what that class takes and we cannot.

In:  what was typed.  Out: that class's settings, or one line why they cannot be.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import TYPE_CHECKING, Any

from unmask import report
from unmask.config import Refused, TrainingArguments, UserError

if TYPE_CHECKING:
    import transformers

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


def trainer_fields() -> dict[str, Any]:
    """Name → type of every field of `transformers.TrainingArguments`."""
    import transformers

    kinds = typing.get_type_hints(transformers.TrainingArguments)
    simple = (int, float, bool, str)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(transformers.TrainingArguments):
        args = typing.get_args(kinds[field.name])
        if any(a is dict or typing.get_origin(a) is dict for a in args):
            # keys and values; of some of them a file's path as well
            found[field.name] = dict[str, Any] | None if field.name.endswith("_kwargs") else Any
            continue
        parts = [a for a in args if a in simple] or [kinds[field.name]]
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
