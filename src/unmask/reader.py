"""What the commands that read a model share: which model, how long, by which rule, and how it is loaded.

In:  flags and config files.  Out: settings, decoding options, a model on its device.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Literal

from unmask import report
from unmask.config import ModelArguments, UserError, option, parse, read_yaml
from unmask.ids import several
from unmask.options import Options

if TYPE_CHECKING:
    from unmask.models import Loaded

PLUG_INS = ("rule", "cache", "canvas")
"""Options whose value brings settings of its own."""

LEGACY = {"block_length": "block_size", "gen_length": "max_new_tokens", "model_name_or_path": "model"}


@dataclasses.dataclass
class ReaderArguments:
    """Model"""

    model: str | None = option(None, "Folder of a model or an adapter, or hub name (also --model_name_or_path).")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "What the weights are kept in. If left out: as they are stored; float32 on a CPU."
    )
    device: str | None = option(None, "cuda, mps or cpu; the best there is if left out.")
    attn_implementation: str | None = option(
        None, "Attention back end: sdpa, eager, flash_attention_2, flex_attention."
    )
    base_model_path: str | None = option(
        None, "Base of an adapter, where it is not where the adapter says.", aliases=["--base_model_name_or_path"]
    )
    load_in_4bit: bool = option(False, "Read the weights in 4 bits (bitsandbytes, nf4).")
    mask_token: str | None = option(None, "The mask's name, for a model whose config and tokenizer do not tell.")
    family: str | None = option(
        None, "A name from `unmask/models` or path/to/file.py; told from the config if left out."
    )
    right_shift_logits: bool | None = option(None, "Whether place i speaks of place i + 1; the family knows.")


@dataclasses.dataclass
class LengthArguments:
    """Length"""

    max_new_tokens: int | None = option(
        None, "Tokens to write after each prompt; 128, or what the model holds, if left out."
    )
    max_length: int | None = option(None, "Tokens of prompt and answer together, instead of --max_new_tokens.")


@dataclasses.dataclass
class RuleArguments:
    """Rule: reference (others bring their own settings, under the same kind of flags)"""

    remasking: str | None = option(None, "low_confidence (the default): the surest places first; or random.")
    stochastic_transfer: bool | None = option(None, "Draw how many places a step writes, instead of equal shares.")


def new_tokens(arguments: LengthArguments, prompt: int, most: int | None) -> int:
    """How many tokens follow a prompt of so many. most: tokens that the model holds."""
    asked, whole = arguments.max_new_tokens, arguments.max_length
    if whole is None:
        return max(1, min(128, most - prompt if most else 128)) if asked is None else asked
    new = whole - prompt
    if asked not in (None, new):
        raise UserError(
            f"--max_length {whole} leaves {new} tokens after a prompt of {prompt}, and --max_new_tokens is {asked}; "
            "give one of them."
        )
    if new < 1:
        raise UserError(f"--max_length {whole} leaves nothing after a prompt of {prompt} tokens.")
    return new


def load(arguments: ReaderArguments, *, causal: bool | None = False) -> Loaded:
    """The model, or the adapter on its base, on its device; `causal` as in `models.load`."""
    from unmask import adapters, models

    if not arguments.model:
        raise UserError("no model given; type --model FOLDER.")
    device = models.device(arguments.device)
    report.quiet()
    wanted = {name: getattr(arguments, name) for name in ("dtype", "attn_implementation", "mask_token", "family")}
    loaded = models.load(
        ModelArguments(model_name_or_path=arguments.model, **wanted),
        device=device,
        causal=causal,
        base=arguments.base_model_path,
        quantization=adapters.quantised(device) if arguments.load_in_4bit else None,
    )
    if arguments.right_shift_logits is not None:
        loaded.model.config.shift = int(arguments.right_shift_logits)
    return loaded


def ends_of(loaded: Loaded) -> tuple[list[int], list[int]]:
    """Ids that end a text, and ids that end a turn: the model's own, and those that its family names."""
    eos = several(loaded.model.config.eos_token_id) or several(loaded.tokenizer.eos_token_id)
    vocabulary = loaded.tokenizer.get_vocab()
    named = [vocabulary[token] for token in loaded.family.ends if token in vocabulary]
    return eos, [i for i in named if i not in eos]


def flags(argv: list[str]) -> dict[str, str]:
    """Flags as they were typed, by their own spelling; UserError when two spellings of one say different things."""
    said: dict[str, str] = {}
    for word, after in itertools.pairwise([*argv, ""]):
        name, sign, value = word.partition("=")
        if name.startswith("--"):
            said[name[2:].replace("-", "_")] = value if sign else after
    for other, name in LEGACY.items():
        if said.get(other) is not None and said.get(name, said[other]) != said[other]:
            raise UserError(f"--{name} {said[name]} and --{other} {said[other]} mean the same setting; give one.")
    return said


def read(
    prog: str,
    about: str,
    argv: list[str],
    groups: list[type],
    *,
    options: type[Options] = Options,
    refused: dict[str, str] | None = None,
) -> tuple[list[Any], Options, dict[str, Any]]:
    """(the groups, the options, all decoding settings that were given); UserError for flags that are `refused`.

    Args:
        options: a command's own defaults. refused: flag → the reason.
    """
    said = flags(argv)
    for name, why in (refused or {}).items():
        if name in said or f"no_{name}" in said:
            raise UserError(f"--{name} {why}")

    def of_the_plug_ins() -> dict[str, Any]:
        from unmask import decoding

        file = next((said[key] for key in ("config", "configs", "config_file") if key in said), None)
        written = read_yaml(file) if file else {}
        return decoding.plug_in_settings(
            **{name: str(said.get(name) or written.get(name) or getattr(options(), name)) for name in PLUG_INS}
        )

    parsed = parse(prog, about, [*groups, options, RuleArguments], argv, extra=of_the_plug_ins, legacy=LEGACY)
    *mine, chosen, rule = parsed.groups
    settings = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen) if f.name in parsed.given}
    settings |= {k: v for k, v in dataclasses.asdict(rule).items() if v is not None} | parsed.more
    chosen.check()
    return mine, chosen, settings


def encode(loaded: Loaded, text: str) -> list[int]:
    """Text to ids, with the names of special tokens in it as the letters they are."""
    return list(loaded.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
