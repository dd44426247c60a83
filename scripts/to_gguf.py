#!/usr/bin/env python3
"""A LLaDA of ours for llama.cpp, by llama.cpp's own converter.

    python scripts/to_gguf.py --llama_cpp ../llama.cpp --model output/my-llada/checkpoint-final --outfile my-llada.gguf

In:  a checkout of llama.cpp, and a model folder (an adapter is merged first).
Out: a .gguf file.

Weights and settings need nothing: our folders have the names that the converter knows. But it knows tokenizers only by
a list of hashes, in which a tokenizer of one's own cannot be. This says for it that text is cut into pieces as Llama 3
cuts it, after looking at every entry of the vocabulary: `unmask tokenizer` cuts finer at Chinese characters, which no
entry crosses, and coarser at combining marks, of which the entries that are lost are counted.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any, Literal

from unmask.config import UserError, option, parse

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where llama.cpp cuts text for tokenizers of the kind `llama-bpe` (src/llama-vocab.cpp)."""


@dataclasses.dataclass
class Arguments:
    """Conversion"""

    llama_cpp: str | None = option(None, "Folder with llama.cpp's sources.")
    model: str | None = option(None, "Folder of a LLaDA.")
    outfile: str | None = option(None, "The .gguf file to write.")
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = option("auto", "What weights are kept in.")


def lost(tokenizer: Any) -> list[str]:
    """Entries that text gives here and not in llama.cpp, which cuts it elsewhere or takes whole pieces at once."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    added = set(tokenizer.get_added_vocab().values())
    found = []
    for number in range(len(tokenizer)):
        text = tokenizer.decode([number])
        if number in added or "�" in text:  # a special token, or part of a letter
            continue
        if len(cut.pre_tokenize_str(text)) > 1 or tokenizer(text, add_special_tokens=False).input_ids != [number]:
            found.append(text)
    return found


def check(arguments: Arguments) -> tuple[Path, Path]:
    """The sources and the model; UserError for what is not there or cannot be converted."""
    for name in ("llama_cpp", "model", "outfile"):
        if not getattr(arguments, name):
            raise UserError(f"no --{name}; type python scripts/to_gguf.py --help.")
    sources, model = Path(str(arguments.llama_cpp)), Path(str(arguments.model))
    if not (sources / "convert_hf_to_gguf.py").is_file() or not (sources / "conversion" / "llada.py").is_file():
        raise UserError(f"--llama_cpp {sources} is no checkout of llama.cpp with a folder conversion.")
    if (model / "adapter_config.json").is_file():
        raise UserError(f"{model} is an adapter; merge it first: unmask merge --lora_path {model} --merge_path FOLDER.")
    if not (model / "config.json").is_file():
        raise UserError(f"--model {model} is no model folder.")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "llada":
        raise UserError(f"{model} is a {config.get('model_type')}; this converts LLaDAs.")
    if config.get("is_causal"):
        raise UserError(f"{model} writes left to right, and llama.cpp's LLaDA does not.")
    if config["vocab_size"] != config["embedding_size"]:
        raise UserError(
            f"{model} has {config['embedding_size']} rows of weights for {config['vocab_size']} entries; llama.cpp "
            "reads only models that have as many: set vocab_size to embedding_size in its config.json."
        )
    settings = model / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in json.loads(settings.read_text(encoding="utf-8")):
        raise UserError(f"{settings} names Python files (auto_map), which the converter would run; remove the key.")
    return sources.resolve(), model.resolve()


def main(argv: list[str]) -> int:
    arguments: Arguments = parse(
        "to_gguf.py", "A LLaDA for llama.cpp, by its own converter.", [Arguments], argv
    ).groups[0]
    sources, model = check(arguments)
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            missed = lost(tokenizer)
            sys.stderr.write(
                "llama.cpp does not know this tokenizer; it will cut text as Llama 3 does (llama-bpe): "
                f"{len(missed)} of {len(tokenizer):,} entries are lost{': ' if missed else '.'}"
                f"{', '.join(map(repr, missed[:8]))}\n"
            )
            return "llama-bpe"

    TextModel.get_vocab_base_pre = named
    script = str(sources / "convert_hf_to_gguf.py")
    sys.argv = [script, str(model), "--outfile", str(arguments.outfile), "--outtype", arguments.outtype]
    runpy.run_path(script, run_name="__main__")
    print(arguments.outfile)
    return 0


if __name__ == "__main__":
    from unmask.__main__ import told

    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(told(str(error), error.code))
    except KeyboardInterrupt:
        sys.exit(130)
