"""The commands `unmask init` and `unmask count`: model folders without weights, and how large a model is.

In:  a preset, a config file or a model folder; a tokenizer.
Out: a folder with config.json and the tokenizer's files, which `unmask pretrain` starts from scratch; or a table.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import UserError, nearest, option, parse

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LLADA = {"model_type": "llada", "architectures": ["LLaDAModelLM"]}
IDS = {"mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081, "bos_token_id": 126080}


def llada(width: int, layers: int, heads: int, ffn: int, length: int, theta: float, **more: Any) -> dict[str, Any]:
    """An official LLaDA config by its six numbers."""
    return {
        **LLADA,
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": heads,
        "mlp_hidden_size": ffn,
        "max_sequence_length": length,
        "rope_theta": theta,
        "embedding_size": 126464,
        "vocab_size": 126464,
        **IDS,
        **more,
    }


QWEN_100M = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1408,
    "max_position_embeddings": 1024,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
}


# name → (config, what it is)
PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "llada-8B": (llada(4096, 32, 32, 12288, 4096, 500_000.0), "GSAI-ML/LLaDA-8B (arXiv:2502.09992)"),
    "llada-100M": (
        llada(448, 6, 7, 768, 1024, 10_000.0, mlp_ratio=2),
        "the tutorial's: 113M of its 124M are vocabulary",
    ),
    "llada-25M": (llada(512, 8, 8, 1408, 1024, 10_000.0), "25M without vocabulary: an evening on a laptop"),
    "llada-6M": (
        llada(256, 6, 4, 1024, 512, 10_000.0),
        "6M without vocabulary (as SMDM's smallest, gated): CPU, an hour",
    ),
    "llada-2M": (llada(192, 4, 3, 512, 256, 10_000.0), "2M without vocabulary: CPU, minutes"),
    "llada-1M": (llada(128, 5, 2, 384, 256, 10_000.0), "1M without vocabulary: CPU, minutes"),
    "qwen2.5-100M": (QWEN_100M, "Qwen2.5's shape, 78M of 100M vocabulary: the tutorial's pretraining of Qwen"),
    "llada-200k": (llada(64, 4, 4, 192, 256, 10_000.0), "0.2M without vocabulary: CPU, minutes; the quickstart's"),
}


@dataclasses.dataclass
class InitArguments:
    """Model folder"""

    source: str | None = option(None, "A preset, a config.json, or a model folder.")
    output_dir: str | None = option(None, "The folder to make.")
    tokenizer: str | None = option(None, "Folder of the tokenizer; a model folder brings its own.")
    max_length: int | None = option(None, "Longest text the model can see, in tokens.")
    vocab_size: int | None = option(None, "Rows of the embedding; at least the tokenizer's. Told from the tokenizer.")
    set: dict[str, Any] = option({}, "Other config keys, as key=value,key=value: d_model=256,n_layers=4.")
    overwrite: bool = option(False, "Replace an existing folder's config and tokenizer.")


@dataclasses.dataclass
class CountArguments:
    """Count"""

    source: str | None = option(None, "A preset, a config.json, or a model folder.")
    per_device_train_batch_size: int = option(2, "Rows a device takes at once, for the memory of training.")
    max_length: int | None = option(
        None, "Tokens in a row, for the memory of training. The model's longest if left out."
    )


def read_source(source: str | None) -> tuple[dict[str, Any], str | None]:
    """(config as a dict, folder whose tokenizer belongs to it) from a preset's name, a file or a folder."""
    if not source:
        raise UserError(
            f"nothing to start from; name a preset ({', '.join(PRESETS)}), a config.json or a model folder."
        )
    if source in PRESETS:
        return dict(PRESETS[source][0]), None
    path = Path(source)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        what = f"{source} has no config.json" if path.is_dir() else f"no preset or config file {source!r}"
        raise UserError(f"{what}; presets: {', '.join(PRESETS)}.{nearest(source, PRESETS)}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{file} is not a model config: it has no model_type.")
    return config, str(path) if path.is_dir() else None


def make_config(values: dict[str, Any]) -> PretrainedConfig:
    """The config object of a dict that has `model_type`; UserError for an unknown or impossible one."""
    from transformers import CONFIG_MAPPING

    import unmask.models  # noqa: F401  registers our families

    kind = values["model_type"]
    if kind not in CONFIG_MAPPING:
        raise UserError(f"this version of transformers knows no model_type {kind!r}.{nearest(kind, CONFIG_MAPPING)}")
    try:
        return CONFIG_MAPPING[kind].from_dict({k: v for k, v in values.items() if k != "model_type"})
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"the config cannot be used: {lines[-1].strip() if lines else error}") from None


def fit_to_tokenizer(values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> None:
    """Change a config's vocabulary and special ids to the tokenizer's, unless they agree already."""
    ids = {
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    rows = values.get("embedding_size") or values.get("vocab_size") or 0
    agree = len(tokenizer) <= rows and all(
        values.get(key) == i for key, i in ids.items() if key != "bos_token_id" and i is not None
    )
    if not agree:
        values.update({key: i for key, i in ids.items() if i is not None})
        rows = len(tokenizer)
    if vocab_size is not None:
        if vocab_size < len(tokenizer):
            raise UserError(f"--vocab_size {vocab_size} is below the tokenizer's {len(tokenizer)}.")
        rows = vocab_size
    values["vocab_size"] = rows
    if values["model_type"] == "llada":
        values["embedding_size"] = rows


def make_folder(arguments: InitArguments) -> Path:
    """Write config and tokenizer into a new folder; returns it."""
    from unmask import ids, models

    values, own = read_source(arguments.source)
    if not arguments.output_dir:
        raise UserError("no folder to make; type --output_dir models/NAME.")
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; name a folder.")
    if (folder / "config.json").exists() and not arguments.overwrite:
        raise UserError(f"{folder} already holds a model; type --overwrite to replace its config and tokenizer.")
    if models.weight_files(folder):
        raise UserError(f"{folder} holds weights ({models.weight_files(folder)[0]}); name another --output_dir.")
    where = arguments.tokenizer or own
    if where is None:
        raise UserError("no tokenizer given; type --tokenizer FOLDER (`unmask tokenizer` trains one).")
    tokenizer = models.load_tokenizer(where)
    if values["model_type"] == "llada":
        if arguments.max_length:
            values["max_sequence_length"] = arguments.max_length
    elif arguments.max_length:
        values["max_position_embeddings"] = arguments.max_length
    known = {*make_config(values).to_dict(), *values}
    for key in arguments.set:
        if key not in known:
            raise UserError(f"--set: no config key {key!r}.{nearest(key, known)}")
    if "n_heads" in arguments.set and values.get("n_kv_heads") == values.get("n_heads"):
        values["n_kv_heads"] = arguments.set["n_heads"]  # each head has keys of its own still
    values.update(arguments.set)
    fit_to_tokenizer(values, tokenizer, arguments.vocab_size)
    config = make_config(values)
    file = models.family_file(config.model_type)
    if hasattr(file, "adapt"):
        file.adapt(config, tokenizer, None)
    config.mask_token_id = ids.mask_id(tokenizer, config)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    if hasattr(config, "added_mask_token"):
        del config.added_mask_token
    ids.check(tokenizer, config)
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        ids.portable(aside)
        folder.mkdir(parents=True, exist_ok=True)
        for path in aside.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def count(config: PretrainedConfig) -> dict[str, int]:
    """Numbers of parameters, without allocating any: total, embedding, head (0 if tied), body."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    total = model.num_parameters()
    head_size = 0 if getattr(config, "tie_word_embeddings", False) else head.numel()
    return {
        "total": total,
        "embedding": embedding.numel(),
        "head": head_size,
        "body": total - embedding.numel() - head_size,
    }


def memory(config: PretrainedConfig, sizes: dict[str, int], rows: int, length: int) -> dict[str, float]:
    """What training takes on one device, in GiB, computed and not measured.

    State: 16 bytes a parameter (float32 weight, gradient, two moments of AdamW). Activations: 34 · rows · length ·
    width bytes a layer (Korthikanti et al., arXiv:2205.05198, eq. 2 without attention scores, which SDPA drops).
    Logits: the expected half of the places is masked and projected on the vocabulary; 3 copies of 4 bytes.
    """
    places = rows * length
    parts = {
        "weights, gradients, AdamW": 16.0 * sizes["total"],
        "activations": 34.0 * places * config.hidden_size * config.num_hidden_layers,
        "logits at masked places": 12.0 * places / 2 * config.vocab_size,
    }
    return {key: value / 2**30 for key, value in parts.items()}


def main(argv: list[str]) -> int:
    """`unmask init PRESET|config.json|FOLDER --tokenizer T --output_dir D`"""
    about = "Make a model folder (config, tokenizer, no weights) for `unmask pretrain`. Presets: " + "; ".join(
        f"{name} ({text})" for name, (_, text) in PRESETS.items()
    )
    arguments = parse(
        "unmask init", about, [InitArguments], argv, positional=("source", "preset, config.json or folder")
    ).groups[0]
    folder = make_folder(arguments)
    from unmask import models

    config = models.load_config(str(folder))
    sizes = count(config)
    start = getattr(config, "init_fn", f"normal, std {getattr(config, 'initializer_range', 0.02)}")
    print(
        f"{folder}: {sizes['total']:,} parameters, vocabulary {config.vocab_size:,}; "
        f"fresh weights will follow `{start}`."
    )
    return 0


def main_count(argv: list[str]) -> int:
    """`unmask count PRESET|config.json|FOLDER`"""
    arguments = parse(
        "unmask count",
        "Count a model's parameters, and compute what training it takes in memory, without allocating it.",
        [CountArguments],
        argv,
        positional=("source", "preset, config.json or folder"),
    ).groups[0]
    values, _ = read_source(arguments.source)
    config = make_config(values)
    sizes = count(config)
    length = arguments.max_length or config.max_position_embeddings
    rows = arguments.per_device_train_batch_size
    if rows < 1 or length < 1:
        raise UserError("--per_device_train_batch_size and --max_length must be at least 1.")
    print(f"{sizes['total']:,}")
    tied = "" if sizes["head"] else " (tied to the embedding)"
    print(f"  embedding {sizes['embedding']:,}\n  head      {sizes['head']:,}{tied}")
    print(f"  body      {sizes['body']:,}")
    need = memory(config, sizes, rows, length)
    print(f"training, {rows} × {length} tokens on a device, computed: {math.fsum(need.values()):.1f} GiB")
    for key, value in need.items():
        print(f"  {key:<26}{value:8.2f} GiB")
    return 0
