"""The command `unmask estimate`: what a run of `unmask pretrain` or `unmask sft` takes, before it is started.

In:  the run's own settings (`--config FILE --key value …`); how many devices, and what they share.
Out: bytes on each device, operations and, where the device is at hand, seconds of a step; nothing is loaded or written.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any, Literal

from unmask import training_settings
from unmask.adapters import LoraArguments
from unmask.config import DataArguments, ModelArguments, Parsed, TrainingArguments, UserError, option, parse
from unmask.instruct import SFTDataArguments
from unmask.pretrain import REFUSED as REFUSED_IN_PRETRAIN
from unmask.sft import REFUSED as REFUSED_IN_SFT
from unmask.sft import SFTTrainingArguments

if TYPE_CHECKING:
    from unmask.estimate import Found, Shape

GIB = 2**30
# Of the rate of large products, what a step of training reaches: our benchmarks' on a CPU (benchmarks/README.md); for
# others a guess.
REACHED = {"cpu": 0.6, "other": 0.4}
# Bytes that are no tensor's: a program with its libraries, on a CPU fitted as below; on a GPU CUDA's context, a guess.
BESIDE = {"cpu": 0.94 * GIB, "other": 0.6 * GIB}
# Of the tensors' bytes, what lies unused between them; on a CPU fitted to benchmarks/results/estimate.json.
UNUSED = {"cpu": 0.12, "other": 0.05}
Sharding = Literal["ddp", "zero1", "zero2", "zero3", "fsdp", "zero2-offload", "zero3-offload", "fsdp-offload"]
SHARED: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "zero1": ("optimiser",),
    "zero2": ("optimiser", "gradients"),
    "zero3": ("optimiser", "gradients", "weights"),
    "fsdp": ("optimiser", "gradients", "weights"),
}
"""What the processes share out among them, by the names of files in `configs/`."""
OFFLOADED = {name: SHARED[name] for name in ("zero2", "zero3", "fsdp")}
"""What `-offload` behind the name puts into the machine's memory."""
OFF = {f"{name}-offload" for name in OFFLOADED}
# Numbers in DeepSpeed's buffer for gradients on their way, whatever the model, and the most of gathered weights that
# stage 3 keeps: its defaults for reduce_bucket_size and stage3_max_live_parameters.
BUCKET, LIVE = 500_000_000, 1_000_000_000


@dataclasses.dataclass
class EstimateArguments:
    """Estimate"""

    device: str | None = option(None, "What it is to run on: cpu, cuda. The one that is here if left out.")
    num_processes: int = option(1, "Devices, one process each.")
    sharding: Sharding = option(
        "ddp", "What several devices share: ddp nothing, zero1 … zero3 and fsdp more and more; or what lies off them."
    )
    row_length: int | None = option(
        None, "Tokens of a row, for conversations shorter than --max_length. As long as that if left out."
    )
    as_json: bool = option(False, "Print one line of JSON instead.", aliases=["--json"])


def parse_run(kind: str, argv: list[str]) -> Parsed:
    """The settings of `unmask pretrain` or `unmask sft`, and ours."""
    sft = kind == "sft"
    data, training = (SFTDataArguments, SFTTrainingArguments) if sft else (DataArguments, TrainingArguments)
    return parse(
        f"unmask estimate {kind}",
        f"What `unmask {kind}` with the same settings takes in memory and time, without running it. "
        "--model_name_or_path may be a preset of `unmask init`.",
        [ModelArguments, *([LoraArguments] if sft else []), data, training, EstimateArguments],
        argv,
        extra=training_settings.trainer_fields,
        legacy=training_settings.LEGACY,
        refused={**training_settings.GONE, **(REFUSED_IN_SFT if sft else REFUSED_IN_PRETRAIN)},
    )


@dataclasses.dataclass
class Plan:
    """A run as settings describe it.

    Attributes:
        make: the model, for `estimate.step`. optimiser: likewise. four_bits: of the frozen weights, saved by 4 bits.
        narrow: computed in bfloat16 throughout, and not by autocast. steps: of the run; None where only the data say.
    """

    make: Any
    shape: Shape
    optimiser: Any
    four_bits: bool
    narrow: bool
    steps: int | None
    name: str
    optim: str


def plan(kind: str, parsed: Parsed) -> Plan:
    """UserError for what cannot be."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from unmask import adapters, init, objectives
    from unmask.config import named
    from unmask.estimate import Shape

    model, *lora, data, training, asked = parsed.groups
    if asked.num_processes < 1:
        raise UserError(f"--num_processes is {asked.num_processes}; it must be at least 1.")
    values, _ = init.read_source(model.model_name_or_path)
    config = init.make_config(values)
    objective = named("objectives", training.objective)
    config.is_causal = objectives.is_causal(getattr(objective, "Objective", None))
    wears = bool(lora and lora[0].lora)
    args = training_settings.to_transformers(
        dataclasses.replace(training, report_to=["none"]), parsed.more, parsed.given
    )
    device = asked.device or args.device.type
    stored = getattr(config, "dtype", None) or torch.bfloat16
    usual = stored if wears and device != "cpu" else torch.float32
    dtype = getattr(torch, model.dtype) if model.dtype else usual
    # DeepSpeed and FSDP2, as accelerate 1.15 sets them up, have the network itself in bfloat16 where DDP has autocast
    narrow = bool(args.bf16) and asked.sharding != "ddp"
    how = {"attn_implementation": "sdpa"}  # flash kernels and this one keep the same

    def make() -> Any:
        with no_init_weights():
            made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, **how)
        made.get_input_embeddings().padding_idx = None
        made = adapters.attach(made, lora[0]) if wears else made
        return made.to(torch.bfloat16) if narrow else made

    def optimiser(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(args)
        made: torch.optim.Optimizer = kind(groups, **settings)
        return made

    length = data.max_length if asked.row_length is None else min(asked.row_length, data.max_length)
    rows, places = args.per_device_train_batch_size, length
    if length < 1:
        raise UserError(f"--row_length is {length}; it must be at least 1.")
    if getattr(data, "packing", False):
        rows, places = 1, rows * length
    causal = bool(config.is_causal)
    shape = Shape(
        rows=rows,
        places=places,
        asked=rows * places if causal else max(1, rows * places // 2),  # half of them, on average
        micro=min(2, args.gradient_accumulation_steps),
        eval_rows=max(1, args.per_device_eval_batch_size * length // places),
        bfloat16=bool(args.bf16) and not narrow,
        checkpointing=bool(args.gradient_checkpointing),
        device=device,
    )
    steps = args.max_steps if args.max_steps > 0 else None
    optim = str(getattr(args.optim, "value", args.optim))
    name = str(model.model_name_or_path)
    return Plan(make, shape, optimiser, wears and lora[0].load_in_4bit, narrow, steps, name, optim)


def shares(found: Found, asked: EstimateArguments, what: Plan) -> tuple[dict[str, float], float]:
    """Bytes on each device by what they are for, whose sum is the peak; and those in the machine's memory for each."""
    device = "cpu" if asked.device == "cpu" else "other"
    parts = {name: float(getattr(found, name)) for name in ("weights", "gradients", "optimiser", "passing")}
    if what.four_bits:  # nf4: half a byte a number and a scale for each 64 of them; the embedding and the head stay
        parts["weights"] += found.linear * (0.5 + 4 / 64) - found.linear_bytes
    way, count = asked.sharding.removesuffix("-offload"), asked.num_processes
    width = 2 if what.narrow else 4
    if what.narrow:
        parts["optimiser"] *= 2  # it works in float32, here as everywhere
        if way == "fsdp":  # so do the parts that are kept of weights and gradients
            parts["weights"] += 2.0 * found.trained
            parts["gradients"] *= 2
    if way.startswith("zero"):
        parts["optimiser"] += 4.0 * found.trained  # with a copy, in float32, of what it trains
        parts["buckets"] = float(width * BUCKET)
        if asked.sharding in OFF:  # gradients lie there as that optimiser wants them
            parts["gradients"] = 4.0 * found.trained
        else:  # and here are made so for its step, when activations are gone
            parts["passing"] = max(parts["passing"], 4.0 * found.trained / count)
    if "weights" in SHARED[way] and (count > 1 or asked.sharding in OFF):
        live = width * min(LIVE, found.parameters)  # of FSDP: one piece in use, the next on its way, a gradient
        parts["gathered"] = float(live if way == "zero3" else 3 * found.largest)
    if way == "ddp" and count > 1:
        parts["buckets"] = float(found.gradients)  # torch's DDP sends copies
    for name in SHARED[way]:
        parts[name] /= count
    away = sum(parts.pop(name) for name in OFFLOADED[way]) if asked.sharding in OFF else 0.0
    parts["unused"] = UNUSED[device] * sum(parts.values())
    parts["libraries"] = BESIDE[device]
    return parts, away


WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "passing": "in passing: activations, chunks of logits",
    "gathered": "weights gathered from all devices",
    "buckets": "gradients on their way to other devices",
    "unused": "left unused between them",
    "libraries": "the program and its libraries",
}


def main(argv: list[str]) -> int:
    """`unmask estimate pretrain|sft --config FILE --key value …`"""
    kind, rest = (argv[0], argv[1:]) if argv else ("", [])
    if kind in ("-h", "--help"):
        kind, rest = "pretrain", argv
    if kind not in ("pretrain", "sft"):
        raise UserError(f"estimate what? Not {kind!r}: `unmask estimate pretrain …` or `unmask estimate sft …`.")
    parsed = parse_run(kind, rest)
    asked: EstimateArguments = parsed.groups[-1]

    from unmask import estimate, processor, report

    report.quiet()
    what = plan(kind, parsed)
    asked.device = what.shape.device
    found = estimate.step(what.make, what.shape, what.optimiser)
    parts, away = shares(found, asked, what)
    training: TrainingArguments = parsed.groups[-2]
    micro = training.gradient_accumulation_steps
    rows = training.per_device_train_batch_size * micro * asked.num_processes
    tokens = what.shape.rows * what.shape.places * micro * asked.num_processes
    operations = found.operations * micro
    narrow = what.narrow or what.shape.bfloat16
    rate = processor.here(what.shape.device, narrow)
    seconds = operations / rate / REACHED.get(what.shape.device, REACHED["other"]) if rate else None
    summary = {
        "parameters": found.parameters,
        "trained": found.trained,
        "bytes": {name: round(value) for name, value in parts.items()},
        "peak_bytes": round(sum(parts.values())),
        "offloaded_bytes": round(away),
        "operations_per_step_and_device": operations,
        "rows_per_step": rows,
        "tokens_per_step": tokens,
        "seconds_per_step": seconds,
    }
    if asked.as_json:
        print(json.dumps(summary))
        return 0
    size = report.amount(found.parameters)
    size += (
        " parameters" if found.trained == found.parameters else f" parameters, {report.amount(found.trained)} trained"
    )
    arithmetic = "bfloat16" if narrow else "float32"
    print(f"{what.name}: {size}; {arithmetic} arithmetic, {what.optim}, on {what.shape.device}")
    several = asked.num_processes > 1 or asked.sharding != "ddp"
    shared = f", {asked.sharding} over {asked.num_processes} devices" if several else ""
    print(f"memory of each device, computed{shared}: {sum(parts.values()) / GIB:.1f} GiB at most")
    for name, value in parts.items():
        print(f"  {WORDS[name]:<42}{value / GIB:8.2f} GiB")
    if away:
        print(f"  and in the machine's memory, for each device: {away / GIB:.1f} GiB")
    print(f"a step: {rows:,} rows, {tokens:,} tokens, {operations / 1e12:,.1f} trillion operations on each device")
    if rate is None or seconds is None:
        print(f"  how long that takes is known where there is a {what.shape.device}: type this there.")
    else:
        reached = REACHED.get(what.shape.device, REACHED["other"])
        print(
            f"  about {seconds:.2g} s, {report.amount(tokens / seconds)} tokens/s, if {reached:.0%} of the "
            f"{rate / 1e9:,.0f} billion operations a second measured here are reached"
        )
        if what.steps:
            print(f"  {what.steps:,} steps: about {report.duration(seconds * what.steps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
