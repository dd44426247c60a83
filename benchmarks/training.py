"""A step of training, plain and ours: `python benchmarks/training.py pretrain --precision bfloat16`.

In:  nothing for `pretrain`: the tutorial's 124M architecture with random weights, 2 rows of 1,024 random tokens a step;
     for `sft` conversations with real lengths: rows that `unmask prepare sft` wrote (--rows FOLDER);
     nothing for `lora`: an 8B-shaped model with random weights in bfloat16 and an adapter, for a GPU.
Out: seconds of a step, tokens a second, peak memory, the share of this machine's measured rate of products; of runs in
     processes of their own, in turn, medians: results/training.json.

A step is forward and backward passes, clipping and AdamW (fused in all ways). Weights, rows, masks and the settings of
the allocator are the same in all ways, and their losses are compared.

    plain       from LLaDA's published guidelines: the logits of all places, cross-entropy at the masked ones, each
                weighed 1/t, rows padded to the longest. For `sft` padding is neither learnt nor looked at, as in ours.
    tail        `sft` only: the same with the end-of-text tail that the guidelines describe, learnt and looked at
    transposed  `pretrain` only: cross-entropy of the whole logits, transposed, as dllm computes it
    ours        `unmask.trainer.Trainer`, with what it does between steps; `sft`: packed
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sides

RESULTS = Path(__file__).parent / "results"
PRESETS = {"pretrain": "llada-100M", "sft": "llada-100M", "lora": "llada-8B"}
WAYS = {"pretrain": ("plain", "transposed", "ours"), "sft": ("plain", "tail", "ours"), "lora": ("plain", "ours")}
EQUAL = {"float32": 1e-4, "bfloat16": 2e-2}  # of a loss, relatively
SIDE = 2048  # of the matrices whose product is the machine's peak


# ---------------------------------------------------------------------------------------------------------------------
# One run, in a process of its own


def network(preset: str, device: str, lora: bool = False) -> Any:
    import torch
    import transformers

    from unmask import adapters, init

    torch.manual_seed(0)
    config = init.make_config(init.read_source(preset)[0])
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if lora else torch.float32)
    made.get_input_embeddings().padding_idx = None
    return (adapters.attach(made, adapters.LoraArguments()) if lora else made).train()


def rows_of(arguments: Any, config: Any) -> Any:
    import datasets
    import numpy as np

    count = (arguments.steps + arguments.warm) * arguments.batch * arguments.accumulation
    if arguments.shape == "sft":
        rows = datasets.load_from_disk(arguments.rows)
        rows = rows["train"] if isinstance(rows, datasets.DatasetDict) else rows
        some = rows.shuffle(seed=0).select(range(count))[:]
        # lengths are what counts, and another tokenizer than LLaDA's may have made the ids
        ids = [[i % (config.vocab_size - 500) for i in one] for one in some["input_ids"]]
        labels = [
            [i if label != -100 else -100 for i, label in zip(one, other, strict=True)]
            for one, other in zip(ids, some["labels"], strict=True)
        ]
        return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
    random = np.random.default_rng(0)
    ids = random.integers(0, config.vocab_size - 500, (count, arguments.length), dtype=np.int32)
    return datasets.Dataset.from_dict({"input_ids": list(ids)})


class Stub:
    """What the Trainer asks of a tokenizer here: the ids that pad and that end a text."""

    def __init__(self, config: Any) -> None:
        self.pad_token_id, self.eos_token_id = config.pad_token_id, config.eos_token_id


def trainer_of(model: Any, arguments: Any, folder: str, tail: str, packing: bool) -> Any:
    import torch
    import transformers

    from unmask import measure, objectives
    from unmask.trainer import Trainer

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            measure.wait(torch.device(arguments.device))
            self.ends.append(time.perf_counter())

    settings = transformers.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=arguments.batch,
        gradient_accumulation_steps=arguments.accumulation,
        max_steps=arguments.warm + arguments.steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        bf16=arguments.precision == "bfloat16",
        use_cpu=arguments.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=0,
    )
    rows = rows_of(arguments, model.config)
    objective = objectives.load("masked", {}, model.config.mask_token_id)
    made = Trainer(model, settings, objective, Stub(model.config), rows, rows, eos_tail=tail, packing=packing)
    clock = Clock()
    made.add_callback(clock)
    return made, clock


def ours(model: Any, arguments: Any, folder: str) -> tuple[list[float], list[float], dict[str, int]]:
    """(when each step ended, its loss, what is learnt)"""
    trainer, clock = trainer_of(model, arguments, folder, "none", arguments.shape == "sft")
    counted = count(trainer, arguments)
    trainer.train()
    return clock.ends, [line["loss"] for line in trainer.state.log_history if "loss" in line], counted


def count(trainer: Any, arguments: Any) -> dict[str, int]:
    """Places of the timed steps: in rows, learnt, masked, and padded to the longest of each micro-batch."""
    found = {"tokens": 0, "learnt": 0, "masked": 0, "padded": 0}
    for number, batch in enumerate(trainer.get_train_dataloader()):
        if number >= arguments.warm * arguments.accumulation:
            seen = batch.get("attention", batch["input_ids"] >= 0)
            for name, some in (("tokens", seen), ("learnt", batch["supervised"]), ("masked", batch["masked"])):
                found[name] += int(some.sum())
            found["padded"] += batch["input_ids"].numel()
    return found


def plain(model: Any, arguments: Any, folder: str) -> tuple[list[float], list[float], dict[str, int]]:
    """The same of a loop written out."""
    import torch
    from torch.nn.functional import cross_entropy

    from unmask import measure

    way = arguments.child
    if arguments.plain_batch:
        arguments.accumulation *= arguments.batch // arguments.plain_batch
        arguments.batch = arguments.plain_batch
    trainer, _ = trainer_of(model, arguments, folder, "step" if way == "tail" else "none", False)
    counted, batches = count(trainer, arguments), list(trainer.get_train_dataloader())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    narrow = torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bfloat16")
    ends, losses = [], []
    for step in range(arguments.warm + arguments.steps):
        some = batches[step * arguments.accumulation : (step + 1) * arguments.accumulation]
        rows, total = sum(len(batch["input_ids"]) for batch in some), 0.0
        for batch in some:
            batch = {name: one.to(arguments.device) for name, one in batch.items()}
            ids, masked = batch["input_ids"], batch["masked"]
            weight = batch["weight"] / batch["supervised"].sum(1, keepdim=True)
            with narrow:
                noisy = torch.where(masked, model.config.mask_token_id, ids)
                logits = model(input_ids=noisy, attention_mask=batch.get("attention"), use_cache=False).logits
                if way == "transposed":
                    loss = (cross_entropy(logits.transpose(1, 2), ids, reduction="none") * weight * masked).sum() / rows
                else:
                    nats = cross_entropy(logits[masked], ids[masked], reduction="none")
                    loss = (nats * weight[masked]).sum() / rows
            del logits
            loss.backward()
            total += float(loss.detach())
            del loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        measure.wait(torch.device(arguments.device))
        ends.append(time.perf_counter())
        losses.append(total)
    return ends, losses, counted


def peak_rate(precision: str, device: str) -> float:
    """Operations a second of large products, the best of some: what a step could reach."""
    import torch

    from unmask import measure

    a, b = (torch.ones(SIDE, SIDE, dtype=getattr(torch, precision), device=device) for _ in range(2))
    seconds = []
    for _ in range(8):
        measure.wait(torch.device(device))
        began = time.perf_counter()
        torch.mm(a, b)
        measure.wait(torch.device(device))
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / statistics.median(sorted(seconds)[:4])


def child(arguments: Any) -> None:
    """One run; one line of JSON."""
    import torch
    import transformers

    from unmask import advice, measure

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    advice.keep_memory()
    rate = peak_rate(arguments.precision, arguments.device)
    model = network(arguments.preset, arguments.device, arguments.shape == "lora")
    with tempfile.TemporaryDirectory() as folder:
        way = ours if arguments.child == "ours" else plain
        ends, losses, counted = way(model, arguments, folder)
    steps = [b - a for a, b in zip(ends[arguments.warm - 1 :], ends[arguments.warm :], strict=False)]
    seconds = statistics.fmean(steps)  # not the median: how much is masked differs from step to step
    found: dict[str, Any] = {"seconds": seconds, "steps": [round(one, 3) for one in steps], "losses": losses}
    found |= {name: value / arguments.steps for name, value in counted.items()}
    found["tokens_per_second"] = found["tokens"] / seconds
    found["learnt_per_second"] = found["learnt"] / seconds
    found["peak_bytes"] = measure.resident("VmHWM")
    if arguments.device != "cpu":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    found["rate"] = round(rate)
    print(json.dumps(found))


# ---------------------------------------------------------------------------------------------------------------------
# Runs side by side


def largest(own: list[str], way: str, batch: int) -> int:
    """The largest batch that fits, from this one on by doubling; an end of memory is an end of the child alone."""
    while True:
        more = ["--batch", str(2 * batch), "--steps", "1", "--warm", "1", "--child", way]
        if subprocess.run([*own, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
            return batch
        batch *= 2


def counted(arguments: Any, batch: int, masked: int) -> float:
    """Operations that a step of pretraining needs."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from unmask import adapters, estimate, init

    config = init.make_config(init.read_source(arguments.preset)[0])

    lora = arguments.shape == "lora"

    def make() -> Any:
        with no_init_weights():
            made = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16 if lora else torch.float32
            )
        return adapters.attach(made, adapters.LoraArguments()) if lora else made

    shape = estimate.Shape(batch, arguments.length, masked, bfloat16=arguments.precision == "bfloat16")
    return estimate.step(make, shape, lambda groups: torch.optim.SGD(groups, lr=0.1)).operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(WAYS))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="timed in each run; 4")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--batch", type=int, help="rows of a micro-batch; 2, for sft 24: some 2,048 tokens, packed")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row of pretraining")
    parser.add_argument("--plain_batch", type=int, help="rows of a micro-batch of the plain way: fewer are padded less")
    parser.add_argument("--rows", help="sft: a folder that `unmask prepare sft` wrote")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", help="another architecture of `unmask init`, for a trial")
    parser.add_argument("--largest", action="store_true", help="for each way the largest batch that fits, by doubling")
    parser.add_argument("--ways", nargs="+", help="only these")
    parser.add_argument("--output", type=Path, help="JSON to put the results into; a trial's are printed alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sft = arguments.shape == "sft"
    usual = {"steps": 4, "batch": 24} if sft else {"steps": 4, "batch": 2}
    usual["preset"] = PRESETS[arguments.shape]
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if sft and not arguments.rows:
        parser.error("sft needs --rows: a folder that `unmask prepare sft` wrote.")
    if arguments.child:
        return child(arguments)
    own = [sys.executable, __file__, *sys.argv[1:]]
    names = arguments.ways or WAYS[arguments.shape]
    batches = {name: largest(own, name, arguments.batch) if arguments.largest else arguments.batch for name in names}
    ways = {name: lambda name=name: sides.run([*own, "--batch", str(batches[name]), "--child", name]) for name in names}

    def check(found: sides.Round) -> None:
        if len(set(batches.values())) > 1:  # other rows in a step
            return
        same = [found[name]["losses"] for name in names if name != "tail"]
        for losses in same[1:]:
            for one, other in zip(same[0], losses, strict=True):
                if not abs(one / other - 1) <= EQUAL[arguments.precision]:
                    sys.exit(f"the losses differ: {same}")

    made = sides.rounds(ways, arguments.rounds, check)
    if not sft:  # what a step needs, whoever makes it: half of the head's work is at places that nobody asks for
        for one in made:
            for name, run in one.items():
                operations = counted(arguments, batches[name], round(run["masked"]))
                run["share"] = round(operations / run["seconds"] / run["rate"], 4)
    what = ["seconds", "tokens_per_second", "learnt_per_second", "peak_bytes"]
    what += ["share", "rate", "masked"] if not sft else ["padded", "tokens", "learnt"]
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/training.py", *sys.argv[1:]]),
        "machine": sides.machine("torch", "transformers", "accelerate", "unmask"),
        "batch": batches,
        "medians": sides.medians(made, what, "ours"),
        "rounds": made,
    }
    print(json.dumps(result["medians"], indent=1))
    if arguments.output:
        before = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
        before[f"{arguments.shape}, {arguments.precision}"] = result
        arguments.output.write_text(json.dumps(before, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
