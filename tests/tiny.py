"""Tiny networks with random weights, and batches of conversations for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from unmask.batches import Collate, Ticket
from unmask.models.llada import LLaDAConfig

VOCABULARY, MASK, END = 40, 39, 38
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that attention is not flat and a leak is seen
}
CONFIGS = {
    "llada": LLaDAConfig,
    "qwen2": transformers.Qwen2Config,
    "llama": transformers.LlamaConfig,
    "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config,
    "mistral": transformers.MistralConfig,
}


def tiny(kind: str = "llama", causal: bool = False, attention: str = "sdpa", **config: Any) -> Any:
    """A network with grouped heads, in evaluation, the same weights for the same arguments but `attention`."""
    if kind in ("qwen3", "gemma2"):
        config.setdefault("head_dim", 8)
    if kind == "llada":
        config.setdefault("init_fn", "normal")
    ends = {"eos_token_id": END, "pad_token_id": END, "bos_token_id": None}
    made = CONFIGS[kind](**{**SMALL, **ends, **config})
    made.is_causal, made.shift = causal, int(causal)
    if not causal:
        made.mask_token_id = MASK
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation=attention)
    model.get_input_embeddings().padding_idx = None
    return model.eval()


def conversation(length: int, prompt: int = 0, seed: int = 0) -> dict[str, list[int]]:
    """A row with labels, whose first `prompt` tokens are not learnt."""
    ids = torch.randint(0, END, (length,), generator=torch.Generator().manual_seed(1000 * seed + length)).tolist()
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def batch_of(objective: Any, rows: list[dict[str, Any]], **how: Any) -> dict[str, torch.Tensor]:
    seats = [(row, Ticket(i, i, 0, max(len(r["input_ids"]) for r in rows))) for i, row in enumerate(rows)]
    return Collate(objective, seed=7, pad_id=END, end_id=END, **how)(seats)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
