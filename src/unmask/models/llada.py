"""LLaDA (arXiv:2502.09992): a Llama without its causal mask.

In:  a folder in the official checkpoint format (GSAI-ML/LLaDA-8B-Base and its kin), or its config alone.
Out: `transformers` classes that read and write that format, names of weights and config keys included.

Importing this file registers `model_type: llada` with `AutoConfig`, `AutoModel` and `AutoModelForCausalLM`. Nothing is
computed otherwise than by `transformers`' Llama: with `is_causal = False` its attention sees both sides, and with
`is_causal = True` the same class is LLaDA's exact autoregressive twin.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from unmask.config import UserError
from unmask.models import Diffusion, Family

# The official config's key for each key of LlamaConfig that has another name there.
OFFICIAL = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
    "tie_word_embeddings": "weight_tying",
    "hidden_act": "activation_type",
    "initializer_range": "init_std",
    "vocab_size": "embedding_size",
}

# What the official config can ask for and a Llama cannot do, each with the only value that is accepted.
LLAMA_ONLY = {
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "clip_qkv": None,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
}
DROPOUTS = ("attention_dropout", "residual_dropout", "embedding_dropout")
ACTIVATIONS = ("silu", "gelu", "relu")
INITIALISATIONS = ("mitchell", "normal")

# Keys of the official config that this file writes when a config did not come with them.
DEFAULTS: dict[str, Any] = {
    **{key: value for key, value in LLAMA_ONLY.items() if key != "clip_qkv"},
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "cpu",
    "init_fn": "mitchell",
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
}


@strict
class LLaDAConfig(LlamaConfig):
    """LLaDA's config: reads and writes the official keys, answers to Llama's names too.

    Raises:
        UserError: for a key that asks for what a Llama cannot do (ALiBi, layer norm types, biases, dropouts, …).
    """

    model_type = "llada"
    attribute_map: ClassVar[dict[str, str]] = {official: ours for ours, official in OFFICIAL.items()}

    is_causal: bool = False
    rms_norm_eps: float = 1e-5
    use_cache: bool | None = False
    mask_token_id: int | None = None
    shift: int = 0
    init_fn: str = "mitchell"
    init_cutoff_factor: float | int | None = None
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    text_vocab_size: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_what_a_llama_cannot_do(kwargs)
        official_vocabulary: int = kwargs.pop("vocab_size", vars(self)["vocab_size"])
        if "embedding_size" in kwargs:  # the matrix may have more rows than the tokenizer has words
            rows = kwargs.pop("embedding_size")
            self.text_vocab_size = official_vocabulary if rows not in (None, official_vocabulary) else None
            self.vocab_size = rows or official_vocabulary
        if kwargs.pop("multi_query_attention", None):
            if kwargs.get("n_kv_heads") not in (None, 1):
                raise UserError("LLaDA config: multi_query_attention is true but n_kv_heads is not 1; remove one.")
            kwargs["n_kv_heads"] = 1
        elif "n_heads" in kwargs:
            kwargs["n_kv_heads"] = kwargs.get("n_kv_heads") or kwargs["n_heads"]
        if "d_model" in kwargs and kwargs.get("mlp_hidden_size") is None and "mlp_ratio" in kwargs:
            kwargs["mlp_hidden_size"] = kwargs["mlp_ratio"] * kwargs["d_model"]
        kwargs.pop("auto_map", None)  # names Python files that we do not need and do not write
        for ours, official in OFFICIAL.items():
            if official in kwargs:
                setattr(self, ours, kwargs.pop(official))
        if "head_dim" not in kwargs:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(f"d_model {self.hidden_size} is not a multiple of n_heads {self.num_attention_heads}.")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            raise UserError(
                f"n_heads {self.num_attention_heads} is not a multiple of n_kv_heads {self.num_key_value_heads}."
            )
        if self.init_fn not in INITIALISATIONS:
            raise UserError(f"LLaDA config: init_fn {self.init_fn!r} is not known; use {' or '.join(INITIALISATIONS)}.")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"LLaDA config: activation_type {self.hidden_act!r} is not known; use {', '.join(ACTIVATIONS)}."
            )
        for key in DROPOUTS:
            if not 0 <= (share := getattr(self, key)) < 1:
                raise UserError(f"LLaDA config: {key} is {share!r}; it must be at least 0 and below 1.")
        for key, value in DEFAULTS.items():
            kwargs.setdefault(key, value)
        for key in ("init_fn", "init_cutoff_factor", "multi_query_attention"):
            kwargs.pop(key, None)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The official keys, as GSAI-ML/LLaDA-8B's config.json has them."""
        found = super().to_dict()
        for ours, official in OFFICIAL.items():
            if ours in found:
                found[official] = found.pop(ours)
        found["vocab_size"] = found.pop("text_vocab_size", None) or found["embedding_size"]
        rope = found.pop("rope_parameters", None) or {}
        found["rope_theta"] = rope.get("rope_theta", 10000.0)
        if rope.get("rope_type", "default") != "default":
            found["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        for key in ("head_dim", "attention_bias", "mlp_bias", "pretraining_tp"):  # Llama's, and fixed here
            found.pop(key, None)
        for key, usual in (("is_causal", False), ("shift", 0)):
            if found.get(key) == usual:
                found.pop(key)
        found["multi_query_attention"] = None
        if found.get("bos_token_id") is None:
            found.pop("bos_token_id", None)
        return found


def refuse_what_a_llama_cannot_do(keys: dict[str, Any]) -> None:
    """UserError that names the first key whose value a Llama cannot honour."""
    for key, only in LLAMA_ONLY.items():
        value = keys.get(key, only)
        if value != only and not (only in (False, None) and not value):
            raise UserError(
                f"LLaDA config: {key}={value!r} is not supported: a Llama cannot do it; the only value is {only!r}."
            )


class _Initialised:
    """Fresh weights as `init_fn` asks: `mitchell` (OLMo, arXiv:2402.00838) or `normal` with std `init_std`.

    mitchell: std = 1/√fan_in, where the outputs of layer i (from 0) also divide by √(2(i+1)); cut at ±3 std
    (`init_cutoff_factor`). Embedding and head: std = 1/√d_model, cut alike.
    """

    config: LLaDAConfig

    def _init_weights(self, module: nn.Module) -> None:
        if self.config.init_fn == "mitchell" and isinstance(module, (nn.Embedding, nn.Linear)):
            width = module.in_features if isinstance(module, nn.Linear) else self.config.hidden_size
            layer: int | None = vars(module).get("layer")
            std = 1 / math.sqrt(width if layer is None else width * 2 * (layer + 1))
            cut = (self.config.init_cutoff_factor or 3.0) * std
            init.trunc_normal_(module.weight, mean=0.0, std=std, a=-cut, b=cut)
        else:
            super()._init_weights(module)  # type: ignore[misc]


class LLaDAModel(_Initialised, LlamaModel):
    """LLaDA without its head: ids (rows, places) → hidden states (rows, places, d_model)."""

    config_class = LLaDAConfig

    def post_init(self) -> None:
        # LlamaModel (transformers 5.23) gives the padding token's embedding no gradient; LLaDA's padding is its end of
        # text, which it must learn.
        self.embed_tokens.padding_idx = None
        for i, block in enumerate(self.layers):
            block.self_attn.o_proj.layer = block.mlp.down_proj.layer = i
            for part in (block.self_attn, block.mlp):
                _drop(part, self.config.residual_dropout)
        _drop(self.embed_tokens, self.config.embedding_dropout)
        super().post_init()


def _drop(part: nn.Module, share: float) -> None:
    """Let dropout follow a part of the network in training, as the official code has it before each addition to the
    residual stream and after the embedding. A hook, so that Llama's own layers need not be written again."""
    if share:
        part.register_forward_hook(functools.partial(_dropped, share))


def _dropped(share: float, part: nn.Module, _: Any, made: Any) -> Any:
    if isinstance(made, tuple):  # attention's answer and its weights
        return nn.functional.dropout(made[0], share, part.training), *made[1:]
    return nn.functional.dropout(made, share, part.training)


class LLaDAModelLM(_Initialised, Diffusion, LlamaForCausalLM):
    """LLaDA with its head: ids (rows, places) → logits (rows, places, embedding_size); place i speaks of token i."""

    config_class = LLaDAConfig

    def __init__(self, config: LLaDAConfig) -> None:
        LlamaPreTrainedModel.__init__(
            self, config
        )  # LlamaForCausalLM's would make a LlamaModel, which starts otherwise
        self.model = LLaDAModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


FAMILY = Family(name="llada", mask="<|mdm_mask|>", ends=("<|eot_id|>", "<|endoftext|>"))

_BLOCK = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
RENAMINGS = [
    WeightRenaming("model.transformer.wte", "model.embed_tokens"),
    WeightRenaming("model.transformer.ln_f", "model.norm"),
    WeightRenaming("model.transformer.ff_out", "lm_head"),
    *(
        WeightRenaming(rf"model.transformer.blocks.(\d+).{official}", rf"model.layers.\1.{ours}")
        for official, ours in _BLOCK.items()
    ),
]

register_checkpoint_conversion_mapping("llada", RENAMINGS, overwrite=True)
AutoConfig.register("llada", LLaDAConfig, exist_ok=True)
AutoModel.register(LLaDAConfig, LLaDAModel, exist_ok=True)
AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
