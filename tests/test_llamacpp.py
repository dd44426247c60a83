"""What we write of a LLaDA is what llama.cpp's converter reads: names, shapes, settings, vocabulary.

`CONVERTER` and `MUST` are taken from llama.cpp of October 2026 (build 11434: conversion/llada.py, conversion/base.py,
gguf-py/gguf/tensor_mapping.py, src/models/llada.cpp). There the converter was run on such folders, and llama.cpp's
logits were ours within 1e-5 of their size; where its package `gguf` is installed, the names are asked of that.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import test_readme as readme
import torch
import transformers
from runs import make_model, pretrain
from safetensors.torch import load_file
from tokenizers import Tokenizer

from unmask import tokenizer as own
from unmask.__main__ import main
from unmask.config import UserError
from unmask.models.llada import LLaDAConfig

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48}

# The converter's name of each tensor, and its shape by keys of config.json (torch's order: outputs, inputs).
CONVERTER = {
    "model.transformer.wte": ("token_embd", ("embedding_size", "d_model")),
    "model.transformer.ln_f": ("output_norm", ("d_model",)),
    "model.transformer.ff_out": ("output", ("embedding_size", "d_model")),
    "model.transformer.blocks.N.attn_norm": ("blk.N.attn_norm", ("d_model",)),
    "model.transformer.blocks.N.q_proj": ("blk.N.attn_q", ("d_model", "d_model")),
    "model.transformer.blocks.N.k_proj": ("blk.N.attn_k", ("kv", "d_model")),
    "model.transformer.blocks.N.v_proj": ("blk.N.attn_v", ("kv", "d_model")),
    "model.transformer.blocks.N.attn_out": ("blk.N.attn_output", ("d_model", "d_model")),
    "model.transformer.blocks.N.ff_norm": ("blk.N.ffn_norm", ("d_model",)),
    "model.transformer.blocks.N.ff_proj": ("blk.N.ffn_gate", ("mlp_hidden_size", "d_model")),
    "model.transformer.blocks.N.up_proj": ("blk.N.ffn_up", ("mlp_hidden_size", "d_model")),
    "model.transformer.blocks.N.ff_out": ("blk.N.ffn_down", ("d_model", "mlp_hidden_size")),
}
# Keys of config.json that it takes, by the name it looks for; without them it stops, or takes those of LLaDA-8B.
MUST = ("architectures", "n_layers", "n_heads", "n_kv_heads", "d_model", "mlp_hidden_size", "max_sequence_length")
MUST += ("vocab_size", "rms_norm_eps", "rope_theta")


@pytest.fixture(scope="module")
def words() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer as `unmask tokenizer` makes it, on text with Chinese and with combining marks."""
    text = "The cat sat on the mat. It's 2026; x_1 = 12345. 中文和English混排的text文字。 हिन्दी भाषा में "
    return own.train([text * 40], 400)


@pytest.fixture(scope="module", params=["plain", "tied", "trained", "merged", "sharded"])
def folder(request: pytest.FixtureRequest, words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as our code writes it."""
    here = tmp_path_factory.mktemp(request.param)
    base = make_model(here / "base", words, **SMALL, weight_tying=request.param == "tied")
    if request.param == "trained":
        (here / "t.jsonl").write_text('{"text": "The cat sat on the mat."}\n' * 40, encoding="utf-8")
        pretrain(base, f"{here / 't.jsonl'}", here / "run", max_steps=1)
        return here / "run" / "checkpoint-final"
    if request.param == "merged":
        whole(base)
        chat = {"messages": [{"role": "user", "content": "The cat?"}, {"role": "assistant", "content": "sat"}]}
        (here / "c.jsonl").write_text((json.dumps(chat) + "\n") * 8, encoding="utf-8")
        asked = ["--model_name_or_path", str(base), "--dataset_args", str(here / "c.jsonl"), "--lora", "true"]
        small = "--max_steps 1 --max_length 64 --gradient_accumulation_steps 1 --num_proc 1 --report_to none"
        assert main(["sft", *asked, "--output_dir", str(here / "run"), *small.split()]) == 0
        made = here / "merged"
        assert main(["merge", "--lora_path", str(here / "run" / "checkpoint-final"), "--merge_path", str(made)]) == 0
        return made
    whole(base, **({"max_shard_size": "40KB"} if request.param == "sharded" else {}))
    return base


def whole(folder: Path, **how: Any) -> None:
    """Give a folder weights."""
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder, **how)


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def tensors(folder: Path) -> dict[str, torch.Size]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.shape for name, tensor in load_file(file).items()}
    return found


def test_every_tensor_has_a_name_and_a_shape_that_the_converter_knows_and_none_is_missing(folder: Path) -> None:
    config = settings(folder)
    config["kv"] = config["d_model"] // config["n_heads"] * config["n_kv_heads"]
    wanted = {}
    for name, (_, shape) in CONVERTER.items():
        if name == "model.transformer.ff_out" and config["weight_tying"]:
            continue  # llama.cpp then takes the embedding (src/models/llada.cpp)
        for number in range(config["n_layers"]) if "N" in name else [0]:
            wanted[name.replace("N", str(number)) + ".weight"] = torch.Size(config[key] for key in shape)
    assert tensors(folder) == wanted


def test_the_converters_own_table_maps_them_so() -> None:
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLADA, 3)
    for name, (theirs, _) in CONVERTER.items():
        for number in "02":
            there = table.get_name(name.replace("N", number) + ".weight", try_suffixes=(".weight", ".bias"))
            assert there == theirs.replace("N", number) + ".weight"


def test_the_settings_are_there_under_the_names_that_are_looked_for(folder: Path) -> None:
    config = settings(folder)
    assert config["architectures"] == ["LLaDAModelLM"]
    assert all(config.get(key) is not None for key in MUST)
    assert "head_dim" not in config  # it is d_model / n_heads
    assert config["activation_type"] == "silu"
    # It lists vocab_size entries, and llama.cpp wants a row of weights for each.
    assert config["vocab_size"] == config["embedding_size"]
    assert not config.get("is_causal")
    assert not config.get("rope_scaling")


def test_the_mask_is_told_and_is_an_entry_of_the_vocabulary(folder: Path, words: Any) -> None:
    config = settings(folder)
    assert config["mask_token_id"] == words.mask_token_id
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert told["mask_token"] == words.mask_token


def test_the_converters_own_reader_finds_the_special_tokens_and_all_merges(folder: Path, words: Any) -> None:
    gguf = pytest.importorskip("gguf")
    special = gguf.SpecialVocab(folder, load_merges=True)
    ids = {"mask": words.mask_token_id, "bos": words.bos_token_id, "eos": words.eos_token_id}
    assert ids.items() <= special.special_token_ids.items()
    assert len(special.merges) == len(json.loads((folder / "tokenizer.json").read_bytes())["model"]["merges"])


def test_the_vocabulary_is_read_without_remote_code_and_fits(folder: Path) -> None:
    read = transformers.AutoTokenizer.from_pretrained(folder)
    assert max(read.get_vocab().values()) < settings(folder)["vocab_size"]
    kept = json.loads((folder / "tokenizer.json").read_bytes())
    assert kept["model"]["type"] == "BPE"
    assert kept["normalizer"] is None
    assert [part["type"] for part in kept["pre_tokenizer"]["pretokenizers"]] == ["Split", "ByteLevel"]


def test_the_official_names_of_a_config_that_came_with_more_rows_than_entries_stay_apart() -> None:
    """Such a model llama.cpp refuses; `scripts/to_gguf.py` says so before."""
    config = LLaDAConfig(**SMALL, vocab_size=300, embedding_size=320).to_dict()
    assert (config["vocab_size"], config["embedding_size"]) == (300, 320)


def test_weights_are_stored_as_the_converter_reads_them(folder: Path) -> None:
    kinds = {tensor.dtype for file in folder.glob("*.safetensors") for tensor in load_file(file).values()}
    assert kinds <= {torch.float32, torch.float16, torch.bfloat16}


# ---------------------------------------------------------------------------------------------------------------------
# scripts/to_gguf.py


@pytest.fixture(scope="module")
def script() -> Any:
    place = importlib.util.spec_from_file_location("unmask_to_gguf", ROOT / "scripts" / "to_gguf.py")
    assert place
    assert place.loader
    made = importlib.util.module_from_spec(place)
    sys.modules[place.name] = made  # where its dataclass looks its types up
    try:
        place.loader.exec_module(made)
        yield made
    finally:
        del sys.modules[place.name]


def test_chinese_and_english_are_cut_alike_and_only_entries_with_combining_marks_are_lost(
    words: Any, script: Any
) -> None:
    """An entry of English or Chinese is one piece for llama.cpp, too; their texts get the same ids."""
    lost = script.lost(words)
    assert lost
    assert all(any(unicodedata.category(letter).startswith("M") for letter in text) for text in lost)
    swapped = json.loads(words.backend_tokenizer.to_str())
    swapped["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = script.LLAMA_3
    swapped["model"]["ignore_merges"] = True  # as llama.cpp takes it for this kind
    theirs = Tokenizer.from_str(json.dumps(swapped))
    for text in (
        "It's the cat's MAT, we'LL sat 12345!\r\n\n  x_1\t= 中文和English混排的text文字。",
        "“中文”(字) 2026年—text文",
    ):
        assert theirs.encode(text, add_special_tokens=False).ids == words(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 390}, "rows of weights"),
        ({"is_causal": True}, "left to right"),
        ({"model_type": "qwen2"}, "a qwen2"),
    ],
)
def test_what_cannot_be_converted_is_told_in_one_line(
    change: dict[str, Any], said: str, words: Any, script: Any, tmp_path: Path
) -> None:
    sources = tmp_path / "llama.cpp"
    (sources / "conversion").mkdir(parents=True)
    (sources / "convert_hf_to_gguf.py").touch()
    (sources / "conversion" / "llada.py").touch()
    made = make_model(tmp_path / "model", words, **SMALL)
    flags = ["--llama_cpp", str(sources), "--model", str(made), "--outfile", str(tmp_path / "x.gguf")]
    script.check(readme.script_settings([str(ROOT / "scripts" / "to_gguf.py"), *flags]).groups[0])
    (made / "config.json").write_text(json.dumps(settings(made) | change), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        script.main(flags)
    (sources / "conversion" / "llada.py").unlink()
    with pytest.raises(UserError, match=re.escape("no checkout of llama.cpp")):
        script.main(flags)
    assert not (tmp_path / "x.gguf").exists()


def test_code_in_a_tokenizers_folder_is_not_run(words: Any, script: Any, tmp_path: Path) -> None:
    """The converter opens tokenizers with trust_remote_code."""
    sources = tmp_path / "llama.cpp"
    (sources / "conversion").mkdir(parents=True)
    (sources / "convert_hf_to_gguf.py").touch()
    (sources / "conversion" / "llada.py").touch()
    made = make_model(tmp_path / "model", words, **SMALL)
    told = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    told["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (made / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(UserError, match="auto_map"):
        script.main(["--llama_cpp", str(sources), "--model", str(made), "--outfile", str(tmp_path / "x.gguf")])
