"""A command of unmask in one of several processes: `torchrun … -m tests.topology KIND REPORT pretrain …`.

In:  KIND plain, ddp, fsdp2, zero1, zero2 or zero3; a file for what was seen; the command.
Out: the command's exit code; in REPORT, by the first process, what wrapped the model and how much of it each one held.

accelerate 1.15 turns FSDP into DDP where the device is a CPU, without a word (`accelerate/state.py`, AcceleratorState:
only MULTI_GPU and its like become FSDP). So that FSDP2 itself can be tested here, processes on a CPU are called
MULTI_GPU when that question is asked. DeepSpeed needs no such thing.
"""

import json
import os
import sys
from pathlib import Path

ZERO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def set_up(kind):
    if kind == "fsdp2":
        os.environ.update(FSDP)
        from accelerate import state
        from accelerate.utils import DistributedType

        begin = state.AcceleratorState.__init__

        def as_if_on_gpus(self, *given, **more):
            shared = state.PartialState._shared_state
            if not shared:
                state.PartialState(cpu=True)
            first = "fsdp_plugin" not in state.AcceleratorState._shared_state
            if first:
                shared["distributed_type"] = DistributedType.MULTI_GPU
            begin(self, *given, **more)
            if first:
                shared["distributed_type"] = self.distributed_type  # each later one takes it from there

        state.AcceleratorState.__init__ = as_if_on_gpus
    if kind.startswith("zero"):
        os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}


def watch(report):
    from unmask.trainer import Trainer

    step = Trainer.training_step

    def training_step(self, model, *given, **more):
        if not Path(report).exists() and self.args.process_index == 0:
            numbers = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
            held = sum(local(p) for p in self.model.parameters())
            state = sum(local(t) for s in self.optimizer.state.values() for t in s.values() if hasattr(t, "numel"))
            found = {"wrapper": type(model).__name__, "held": held, "numbers": numbers, "engine": self.engine}
            units = [name for name, m in self.model.named_modules() if type(m).__name__.startswith("FSDP")]
            # ZeRO-1 and 2 share out the float32 weights that the optimiser moves, and with them its moments
            parts = getattr(getattr(model, "optimizer", None), "single_partition_of_fp32_groups", None)
            moved = sum(part.numel() for part in parts) if parts else held
            Path(report).write_text(json.dumps(found | {"state": state, "units": units, "moved": moved}))
        return step(self, model, *given, **more)

    Trainer.training_step = training_step


def local(tensor):
    """Numbers that this process holds of a tensor."""
    if hasattr(tensor, "to_local"):
        return tensor.to_local().numel()
    whole = getattr(tensor, "ds_tensor", None)  # what ZeRO-3 leaves of a parameter here
    return tensor.numel() if whole is None else whole.numel()


def main(kind, report, *words):
    set_up(kind)
    words = list(words)
    if kind.startswith("zero"):
        stage = int(kind[-1])
        optimisation = {"stage": stage}
        if stage == 3:
            optimisation |= {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
        words += ["--deepspeed", json.dumps(ZERO | {"zero_optimization": optimisation})]
    from unmask.__main__ import main as command

    watch(report)
    code = command(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads waited for ever at the end, once in two runs (torch 2.13)


if __name__ == "__main__":
    main(*sys.argv[1:])
