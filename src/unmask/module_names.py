"""Names of a model's modules: those it has here, and those of the official code its checkpoints come from.

In:  a model and words such as `all-linear`, `q_proj`, LLaDA's `attn_out`.  Out: the modules they name; one name for the
other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from unmask.config import UserError, nearest

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def renamer(model: PreTrainedModel, back: bool = False) -> Callable[[str], str]:
    """The official name of a tensor → its name here, or `back`; the same name for families that have only one."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    known = get_checkpoint_conversion_mapping(model.config.model_type) or []
    steps = [step for step in known if isinstance(step, WeightRenaming)]
    if back:
        steps = [step.reverse_transform() for step in reversed(steps)]
    return lambda name: rename_source_key(name, steps, [])[0]


def official_names(model: PreTrainedModel) -> dict[str, str]:
    """Name of each module here → its official name."""
    back = renamer(model, back=True)
    return {name: back(f"{name}.weight").removesuffix(".weight") for name, _ in model.named_modules() if name}


def _named(word: str, names: Iterable[str]) -> set[str]:
    """The modules that a word names, as peft has it: a whole name or its end."""
    return {name for name in names if name == word or name.endswith(f".{word}")}


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def head_of(model: PreTrainedModel) -> str | None:
    """Name of the layer that makes the logits."""
    return _name_of(model, model.get_output_embeddings())


def table_of(model: PreTrainedModel) -> str | None:
    """Name of the embedding of ids."""
    return _name_of(model, model.get_input_embeddings())


def _name_of(model: PreTrainedModel, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def linear_modules(model: PreTrainedModel) -> set[str]:
    """Names of the modules that LoRA knows how to adapt."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding, Conv1D))}


def fewest_words(names: set[str], all_names: Iterable[str]) -> list[str]:
    """The fewest words that name these modules and no others: `o_proj`, or the whole names where that says too much."""
    everyone: dict[str, set[str]] = {}
    for name in all_names:
        everyone.setdefault(_leaf(name), set()).add(name)
    return sorted({_leaf(name) if everyone[_leaf(name)] <= names else name for name in names})


def _words(given: Iterable[str] | None) -> list[str]:
    """`["a, b", "c"]` → a, b, c: blanks around a comma mean nothing."""
    return [word for text in given or [] for word in text.replace(",", " ").split()]


def find_modules(model: PreTrainedModel, key: str, words: Iterable[str] | None) -> set[str]:
    """The modules that `--target_modules` or `--modules_to_save` names, by their names here.

    Raises:
        UserError: a name that is not there, with those that are; one that says two things.
    """
    official, head, linear = official_names(model), head_of(model), linear_modules(model)
    adapts = key == "target_modules"
    there = linear if adapts else set(official)
    found: set[str] = set()
    for word in _words(words):
        if adapts and word == ALL_LINEAR:
            found |= linear - {head, table_of(model)}
            continue
        mine = _named(word, there) or {name for name in there if _named(word, [official[name]])}
        if len(mine) > 1 and head in mine:  # LLaDA's `ff_out`: the head, and a layer of every block
            if not adapts:
                raise UserError(f"--{key}: {word!r} is the head and a layer of every block; type {head} or down_proj.")
            mine.discard(head)
        if not mine:
            names = {_leaf(name) for name in there} | {_leaf(official[name]) for name in there}
            names = {name for name in names if not name.isdigit()}
            also = f", {ALL_LINEAR}" if adapts else ""
            raise UserError(
                f"--{key}: the model has no module {word!r}; it has {', '.join(sorted(names))}{also}."
                f"{nearest(word, [*names, ALL_LINEAR])}"
            )
        found |= mine
    return found


def renamed(config: LoraConfig, pairs: list[tuple[str, str]], saved: list[str], names: Iterable[str]) -> LoraConfig:
    """A config that says of modules by their new names what it said by the old.

    Args:
        pairs: (old, new) name of each module with an adapter. saved: new names of modules_to_save.
        names: all new names there are.
    """
    from peft.utils.other import get_pattern_key

    if config.trainable_token_indices or config.target_parameters:
        raise UserError("trainable_token_indices and target_parameters cannot be told in other module names.")
    new: Any = copy.deepcopy(config)
    new.target_modules = set(fewest_words({name for _, name in pairs}, names))
    new.modules_to_save = saved or None
    new.layers_to_transform = new.layers_pattern = new.exclude_modules = None  # the names say it all
    for key in ("rank_pattern", "alpha_pattern"):
        told = getattr(config, key) or {}
        where = {name: get_pattern_key(list(told), old) for old, name in pairs}
        setattr(new, key, {name: told[pattern] for name, pattern in where.items() if pattern in told})
    return new
