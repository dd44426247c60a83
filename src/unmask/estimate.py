"""What a step of training takes, worked out before it is made.

In:  a model without numbers in it, the shape of a step.  Out: bytes that are in use at once, and operations.

The step is gone through with tensors that have shapes and no numbers (torch's FakeTensorMode): the model, the loss, the
optimiser are those of a run, so that what they keep and for how long is theirs and not a formula of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from unmask import attention, bfloat16_attention, cross_entropy, kept, last_layer, processor
from unmask.config import UserError
from unmask.forward import Predictor
from unmask.predict import Head

aten = torch.ops.aten


@dataclasses.dataclass
class Shape:
    """The shape of a step on one device.

    Attributes:
        rows, places: of a micro-batch. asked: places of it at which something is predicted.
        micro: micro-batches of a step. eval_rows: rows of a batch of validation. bfloat16: arithmetic by autocast.
        checkpointing: activations are made again in the backward pass. device: "cpu" or another.
    """

    rows: int
    places: int
    asked: int
    micro: int = 1
    eval_rows: int = 0
    bfloat16: bool = False
    checkpointing: bool = False
    device: str = "cpu"


@dataclasses.dataclass
class Found:
    """Bytes and operations of a step.

    Attributes:
        weights, gradients, optimiser: bytes that stay. peak: the most bytes in use at once, these included.
        largest: of the weights of one piece (a layer, the embedding, the head), which sharded training gathers.
        operations: multiplications and additions of matrix products and attention, of one micro-batch.
        trained, parameters: numbers of them. linear, linear_bytes: of the frozen matrices that 4 bits would take.
    """

    weights: int
    gradients: int
    optimiser: int
    peak: int
    largest: int
    operations: float
    trained: int
    parameters: int
    linear: int
    linear_bytes: int

    @property
    def passing(self) -> int:
        """Bytes beyond what stays: activations, chunks of logits, what products need meanwhile."""
        return self.peak - self.weights - self.gradients - self.optimiser


class Live(TorchDispatchMode):
    """Bytes of tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self._see(one.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        number, size = id(storage), storage.nbytes()
        if number in self._known:
            return

        def gone(_: Any) -> None:
            self._known.pop(number, None)
            self.now -= size

        self._known[number] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _times(shape: Any, *others: Any, out_shape: Any = None, **more: Any) -> int:
    """addmm_(self, a, b), of which torch 2.13 counts nothing."""
    (n, k), m = others[0], others[1][1]
    return int(2 * n * k * m)


def _flash(query: Any, key: Any, value: Any, *more: Any, **most: Any) -> int:
    rows, heads, places, width = query
    return int(2 * rows * heads * places * key[2] * (width + value[3]))


def _flash_backward(grad: Any, query: Any, key: Any, value: Any, *more: Any, **most: Any) -> int:
    return 2 * _flash(query, key, value)  # four products for two; that scores are made again is not counted


COUNTED = {
    aten.addmm_: _times,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` by new parameters: torch 2.13 would swap tensors, and cannot where they have no numbers."""
    for child in module.children():
        _apply(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None and (made := change(parameter.detach())).dtype != parameter.dtype:
            module._parameters[name] = nn.Parameter(made, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


@contextlib.contextmanager
def _without_numbers() -> Iterator[None]:
    """What asks tensors for their numbers does without."""
    with contextlib.ExitStack() as stack:
        nothing = torch.zeros(0, dtype=torch.long)
        for where, name, value in (
            (cross_entropy, "_rare", lambda p: nothing),
            (cross_entropy, "_is_one", lambda number: True),
            (cross_entropy, "PLAIN", (*cross_entropy.PLAIN, FakeTensor)),
            (kept, "USES", None),
            # the rates are this machine's, and no time is spent here; oneDNN's own call knows no shapes
            (processor, "onednn_is_faster", lambda: False),
            (bfloat16_attention, "serves", lambda *asked: False),
            (nn.Module, "_apply", _apply),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        yield


def step(
    make: Callable[[], nn.Module], shape: Shape, optimiser: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
) -> Found:
    """A step gone through.

    Args:
        make: the model, ready to train; called where tensors have no numbers. optimiser: parameters → optimiser.

    Raises:
        UserError: a model or optimiser that cannot be gone through so.
    """
    narrow = processor.float32_is_faster(torch.bfloat16, torch.device("cpu")) if shape.device == "cpu" else False
    live = Live()
    with _without_numbers(), mock.patch.object(processor, "float32_is_faster", return_value=narrow):
        try:
            with FakeTensorMode(), live:
                return _gone_through(make, shape, optimiser, live)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            line = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"this run cannot be estimated: {line}") from error


def _gone_through(make: Any, shape: Shape, optimiser: Any, live: Live) -> Found:
    model = make().train()
    if shape.checkpointing:
        model.gradient_checkpointing_enable()
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = live.now
    sizes = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in _pieces(model)]
    frozen = [
        m.weight
        for m in model.modules()
        if isinstance(m, nn.Linear) and m is not model.get_output_embeddings() and not m.weight.requires_grad
    ]
    stepper = optimiser([{"params": trained}])
    bare = getattr(model, "get_base_model", lambda: model)()
    if shape.device == "cpu":
        attention.for_training(bare)
    predict = Predictor(bare, model)
    with FlopCounterMode(display=False, custom_mapping=_mapping()) as counter:
        _loss(predict, shape, shape.rows, shape.asked).backward()
    # While it counts, what checkpointing makes again stays until the end of the backward pass (torch 2.13).
    model.zero_grad()
    gc.collect()
    live.peak = live.now
    state = 0
    for micro in (1, shape.micro):  # the second step has the optimiser's state beside it
        for _ in range(micro):
            _loss(predict, shape, shape.rows, shape.asked).backward()
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in trained if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        stepper.step()
        state = sum(
            one.numel() * one.element_size()
            for some in stepper.state.values()
            for one in some.values()
            if isinstance(one, Tensor)
        )
        stepper.zero_grad()
    if shape.eval_rows:
        model.eval()
        with torch.no_grad():
            _loss(predict, shape, shape.eval_rows, shape.asked * shape.eval_rows // shape.rows)
    peak = live.peak
    if shape.device != "cpu":  # there the softmax of a chunk has a second copy of it
        peak += min(cross_entropy.CHUNK["other"], 4 * shape.asked * model.config.vocab_size)
    return Found(
        weights=weights,
        gradients=gradients,
        optimiser=state,
        peak=peak,
        largest=max(sizes, default=0),
        operations=float(counter.get_total_flops()),
        trained=sum(p.numel() for p in trained),
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(p.numel() for p in frozen),
        linear_bytes=sum(p.numel() * p.element_size() for p in frozen),
    )


def _mapping() -> dict[Any, Any]:
    return {op: count for op, count in COUNTED.items() if op not in flop_registry}


def _pieces(model: nn.Module) -> list[nn.Module]:
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    network: Any = model
    tables = (network.get_input_embeddings(), network.get_output_embeddings())
    return [*layers, *(table for table in tables if table is not None)]


def _loss(predict: Predictor, shape: Shape, rows: int, asked: int) -> Tensor:
    """The loss of a micro-batch, at `asked` places, as many in each row; where they lie is a matter of numbers."""
    ids = torch.zeros(rows, shape.places, dtype=torch.long)
    places = torch.zeros(asked, dtype=torch.long)
    shares = [torch.arange(max(1, asked * (row + 1) // rows - asked * row // rows)) for row in range(rows)]
    few = asked <= last_layer.MOST * ids.numel()

    def read(hidden: Tensor, head: Head) -> Tensor:
        total, _ = cross_entropy.weighted(hidden, head, places, torch.zeros(asked))
        return total[None]

    other = shape.device if shape.device in cross_entropy.CHUNK else "other"
    chunk = {"cpu": cross_entropy.CHUNK[other]}
    with (
        mock.patch.dict(cross_entropy.CHUNK, chunk),
        mock.patch.object(last_layer, "asked", return_value=shares if few else None),
        mock.patch.object(predict, "_spoken_at", return_value=(places, places)),
        torch.autocast("cpu", torch.bfloat16, enabled=shape.bfloat16),
    ):
        return predict(ids, keep=ids == ids, read=read).sum()
