"""A step of a tiny LLaDA shared by processes: `torchrun … -m tests.distributed ddp|fsdp1|fsdp2|zero1|zero2|zero3`.

In:  the way of sharing.  Out: a line of JSON: how far loss and gradients are from those of one process, relatively, and
how often the head's gradient was made by hand.
"""

import copy
import json
import os
import sys

import torch
import torch.distributed as dist
from torch.nn import functional

from tests.tiny import MASK, tiny
from unmask import cross_entropy, objectives
from unmask.forward import Predictor

ROWS, PLACES, VOCABULARY = 4, 16, 600


def shared(kind, model):
    """(what is called, the bare model) under a way of sharing."""
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model), model
    if kind == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        policy = ModuleWrapPolicy({type(model.model.layers[0])})
        cpu = torch.device("cpu")
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=cpu, auto_wrap_policy=policy), model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh), model


def gradients(kind, wrapped, model):
    if kind == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            named = [(n.replace("_fsdp_wrapped_module.", ""), p.grad.clone()) for n, p in wrapped.named_parameters()]
        return dict(named)
    whole = (lambda grad: grad.full_tensor()) if kind == "fsdp2" else (lambda grad: grad)
    return {name: whole(p.grad) for name, p in model.named_parameters()}


def by_deepspeed(stage, model, step):
    """The gradients as a step of plain gradient descent shows them."""
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # its own default is 1
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=settings)
    loss = step(engine.module, engine)
    engine.backward(loss * dist.get_world_size())
    engine.step()
    found = {}
    for name, p in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([p], enabled=stage == 3):
            found[name] = before[name] - p.detach()
    return loss, found


def main(kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cross_entropy.CHUNK["cpu"] = 7 * 4 * VOCABULARY
    model = tiny("llada", vocab_size=VOCABULARY).train()
    alone = copy.deepcopy(model)
    objective = objectives.load("masked", {}, MASK)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, MASK, (ROWS, PLACES), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < 0.5
    logits = alone(input_ids=torch.where(masked, MASK, ids)).logits
    wanted = functional.cross_entropy(logits[masked], ids[masked], reduction="sum") * 2 / PLACES
    wanted.backward()

    by_hand, calls = cross_entropy._by_hand, []
    cross_entropy._by_hand = lambda *asked: (calls.append(1), by_hand(*asked))[1]
    each = ROWS // dist.get_world_size()
    mine = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)

    def step(bare, wrapped):
        batch = {"input_ids": ids[mine], "masked": masked[mine], "weight": masked[mine] * 2.0}
        batch["supervised"] = torch.ones_like(batch["masked"])
        return objective(Predictor(bare, wrapped), batch).total

    if kind.startswith("zero"):
        loss, found = by_deepspeed(int(kind[-1]), model, step)
    else:
        wrapped, bare = shared(kind, model)
        loss = step(bare, wrapped)
        (loss * dist.get_world_size()).backward()
        found = gradients(kind, wrapped, bare)
    total = loss.detach().clone()
    dist.all_reduce(total)
    off = {n: float((found[n] - p.grad).abs().max() / p.grad.abs().max()) for n, p in alone.named_parameters()}
    if dist.get_rank() == 0:
        off_by = {"loss": abs(float(total / wanted) - 1), "gradients": max(off.values()), "by_hand": len(calls)}
        print(json.dumps(off_by), flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads under DDP waited for ever at the end, once in two runs (torch 2.13)


if __name__ == "__main__":
    main(sys.argv[1])
