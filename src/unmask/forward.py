"""A model as objectives and decoding see it: one way through a `transformers` network, whatever wraps it.

In:  a model of `transformers`, perhaps inside DDP, FSDP or an adapter.  Out: a function, `unmask.predict.Predict`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask import attention as attention_masks
from unmask import last_layer, table
from unmask.predict import Head, Predict, Read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Predictor:
    """`predict(ids, keep=…, read=…)`: see `unmask.predict.Predict` for shapes.

    Args:
        model: the bare model. wrapped: the same inside DDP, FSDP or an autocast wrapper; it is what gets called.
        shift: place i is spoken of at place i - shift; the config says if left out.
    """

    def __init__(self, model: PreTrainedModel, wrapped: nn.Module | None = None, shift: int | None = None) -> None:
        config = model.config
        self.model, self.wrapped = model, model if wrapped is None else wrapped
        self.mask_id: Any = getattr(config, "mask_token_id", None)  # a causal model need not have one
        self.eos_id: int | list[int] | None = config.eos_token_id
        self.vocab_size: int = config.vocab_size
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self.shift: int = getattr(config, "shift", 0) if shift is None else shift
        self.head: nn.Module = model.get_output_embeddings()
        self.linear_head = isinstance(self.head, nn.Linear)
        self.head_is_last = not any(getattr(config, key, None) not in (None, 1, 1.0) for key in AFTER_THE_HEAD)

        self.linear_head &= self.head_is_last
        # flash kernels know no mask: they are told lengths, and take what is asked for the end of what is seen
        self.end_to_end = config._attn_implementation in attention_masks.END_TO_END
        self.pads_windows = config._attn_implementation not in attention_masks.FLASH

    @property
    def no_cache(self) -> str | None:
        """Why keys and values cannot be kept, if they cannot."""
        kinds = set(getattr(self.model.config, "layer_types", None) or []) - {"full_attention"}
        if kinds:
            return f"{self.model.config.model_type} has layers of {', '.join(sorted(kinds))}"
        return None

    @torch.no_grad()
    def where_nan(self, ids: Tensor) -> str:
        """Which module first makes something that is no number, and of what, for an error message."""
        found: list[str] = []

        def watch(name: str) -> Any:
            def hook(_: nn.Module, given: Any, made: Any) -> None:
                whole = [t for t in (given[:1] if isinstance(given, tuple) else ()) if isinstance(t, Tensor)]
                made = made[0] if isinstance(made, tuple) else made
                if not found and isinstance(made, Tensor) and bool(made.isnan().any()):
                    size = max((float(t.abs().max()) for t in whole), default=math.nan)
                    found.append(f" The first is in {name}, whose input goes up to {size:.3g}.")

            return hook

        hooks = [
            module.register_forward_hook(watch(name))
            for name, module in self.model.named_modules()
            if not any(module.children())
        ]
        try:
            self.model(input_ids=ids[None].to(self.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return "".join(found)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(
        self,
        ids: Tensor,
        *,
        attention: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Any = None,
        keep: Tensor | None = None,
        read: Read | None = None,
    ) -> Tensor:
        at = None if keep is None and not self.shift else self._spoken_at(ids, segments, keep)

        def at_the_head(hidden: Tensor, head: Head) -> Tensor:
            hidden = hidden if at is None else hidden[at]
            return read(hidden, head) if read else head(hidden)

        more: dict[str, Any] = {"position_ids": positions} if positions is not None else {}
        if cache is not None:
            more["past_key_values"] = cache
        if attention is not None:
            width = self.model.get_input_embeddings().weight.dtype
            more["attention_mask"] = (
                attention.long()
                if attention.dim() == 2
                else attention_masks.understood(self.model.config, attention, width)
            )
        if segments is not None:
            more |= attention_masks.packed(self.model.config, segments, self.model.get_input_embeddings().weight.dtype)
        with contextlib.ExitStack() as stack:
            if self.head_is_last:
                own = OwnHead(self.head, self.head.forward)
                stack.enter_context(in_place_of(self.head, lambda hidden: at_the_head(hidden, own)))
            embedding = self.model.get_input_embeddings()
            if (lookup := table.forward(embedding)) is not None:
                stack.enter_context(in_place_of(embedding, lookup))
            if keep is not None and at is not None and cache is None and self.head_is_last:
                wanted = torch.zeros_like(keep)
                wanted[at] = True
                asked, forwards = last_layer.only(self.model, wanted)
                for module, rows in asked.items():
                    stack.enter_context(attention_masks.only_at(module, rows))
                for module, forward in forwards.items():
                    stack.enter_context(in_place_of(module, forward))
            logits = self.wrapped(input_ids=ids, use_cache=cache is not None, **more).logits
        return logits if self.head_is_last else at_the_head(logits, lambda same: same)

    def _spoken_at(self, ids: Tensor, segments: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Row and place where the wanted places are spoken of: i - shift, of a conversation's first its first."""
        rows, places = (torch.arange(n, device=ids.device) for n in ids.shape)
        row, place = torch.meshgrid(rows, places, indexing="ij")
        if self.shift:
            own = place if segments is None else attention_masks.positions(segments)
            place = place - own.clamp(max=self.shift)
        return (row, place) if keep is None else (row[keep], place[keep])


# Config keys by which a model changes its logits after the head (Gemma, Granite, Cohere, MiniCPM): with one of them the
# whole logits are made first and the wanted places picked from them.
AFTER_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale", "dim_model_base", "lm_head_multiplier")


@dataclasses.dataclass
class OwnHead:
    """The head as readers get it: its forward, and the module that this belongs to."""

    module: nn.Module
    forward: Head

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.forward(hidden)


@contextlib.contextmanager
def in_place_of(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While inside, this is the module's forward: hooks on the module still fire."""
    set_here = vars(module).get("forward")  # accelerate's hooks set one on the module itself
    module.forward = forward
    try:
        yield
    finally:
        if set_here is None:
            del module.forward  # the class's method shows through again
        else:
            module.forward = set_here


def predictor(model: Any, wrapped: nn.Module | None = None) -> Predict:
    """The model as a function of ids, for objectives and decoding."""
    return Predictor(model, wrapped)
