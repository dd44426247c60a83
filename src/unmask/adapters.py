"""LoRA adapters: the station between `peft` and the models.

In:  a model and settings, or the folder of an adapter, ours or another's.
Out: the model wearing an adapter; a folder that `peft` reads, with `unmask.json` beside it: what peft does not record.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask import ids, sealed
from unmask.adapter_folder import RECORD, WEIGHTS, Record, fingerprint, read_config, read_record, read_tensors
from unmask.adapter_folder import base_of as base_of
from unmask.adapter_folder import causal as causal
from unmask.adapter_folder import check_base as check_base
from unmask.adapter_folder import is_adapter as is_adapter
from unmask.config import UserError, nearest, option
from unmask.module_names import (
    ALL_LINEAR,
    fewest_words,
    find_modules,
    head_of,
    linear_modules,
    official_names,
    renamed,
    renamer,
    table_of,
)

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

WEARER = "base_model.model."  # what peft puts before the names of the model's own tensors


@dataclasses.dataclass
class LoraArguments:
    """LoRA"""

    lora: bool = option(False, "Train a small adapter (LoRA) on the frozen model instead of the whole model.")
    target_modules: list[str] = option(
        [ALL_LINEAR],
        "Layers that get an adapter: names of the official LLaDA code (q_proj,attn_out,ff_proj,…) or of transformers "
        "(q_proj,o_proj,gate_proj,…); all-linear: every linear layer but the head.",
    )
    r: int = option(32, "Rank of the adapter.")
    lora_alpha: float = option(64, "Its scale: the update is multiplied by lora_alpha / r.")
    lora_dropout: float = option(0.05, "Dropout before the adapter.")
    bias: Literal["none", "all", "lora_only"] = option("none", "Biases that are trained, too.")
    modules_to_save: list[str] | None = option(
        None, "Modules that are trained whole and saved with the adapter, such as lm_head,embed_tokens."
    )
    lora_args: dict[str, Any] = option(
        {}, "Any other field of peft.LoraConfig, as key=value,key=value: use_dora=true,use_rslora=true, …"
    )
    official_names: bool = option(
        False, "Save the adapter under the module names of LLaDA's official code, for programs built on that."
    )
    load_in_4bit: bool = option(False, "Keep the frozen model in 4 bits (nf4, bitsandbytes): a quarter of the memory.")


# Fields of peft.LoraConfig that are settings of their own here, or that peft fills in itself.
NOT_OPEN = {f.name for f in dataclasses.fields(LoraArguments)} | {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "megatron_config", "megatron_core"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Putting an adapter on


def attach(
    model: PreTrainedModel,
    arguments: LoraArguments,
    *,
    base: str | None = None,
    seed: int = 42,
    family: str | None = None,
    objective: str | None = None,
) -> PeftModel:
    """A model wearing a new adapter, which alone is trained. It answers as before: the update begins at zero.

    The adapter and the copies of `modules_to_save` are float32, whatever the frozen model is kept in.

    Args:
        base: folder or hub name of the model, for those who load the adapter; told from the model if left out.
        seed: of the adapter's first weights. family, objective: for the record beside the adapter.

    Raises:
        UserError: a setting or a name of a module that cannot be.
    """
    import torch
    from peft import LoraConfig

    open_to = {f.name for f in dataclasses.fields(LoraConfig)} - NOT_OPEN
    for key in arguments.lora_args:
        if key not in open_to:
            own = f" It is a setting of its own: --{key}." if key in NOT_OPEN else nearest(key, open_to)
            raise UserError(f"--lora_args: peft.LoraConfig takes no {key!r} here.{own}")
    if arguments.r < 1:
        raise UserError(f"--r is {arguments.r}; it must be at least 1.")
    if not arguments.lora_alpha > 0:
        raise UserError(f"--lora_alpha is {arguments.lora_alpha}; it must be above 0.")
    if not 0 <= arguments.lora_dropout < 1:
        raise UserError(f"--lora_dropout is {arguments.lora_dropout}; it must be at least 0 and below 1.")
    targets = find_modules(model, "target_modules", arguments.target_modules)
    saved = find_modules(model, "modules_to_save", arguments.modules_to_save)
    more = dict(arguments.lora_args)
    if not targets and not more.get("target_parameters"):
        raise UserError(f"--target_modules names nothing; type {ALL_LINEAR} or names of modules.")
    twice = {target for target in targets for whole in saved if f"{target}.".startswith(f"{whole}.")}
    if twice:
        raise UserError(f"{min(twice)} is in --target_modules and in --modules_to_save; keep it in one.")
    if str(more.get("init_lora_weights")).startswith("pissa_niter"):
        # peft computes it anew whenever the adapter is loaded, and this one is drawn at random
        raise UserError("init_lora_weights=pissa_niter_… differs at each loading; use init_lora_weights=pissa.")
    ends = {name for name in (head_of(model), table_of(model)) if name}
    if getattr(model.config, "tie_word_embeddings", False):
        if ends & targets:
            raise UserError("head and embedding are one matrix here; train it with --modules_to_save embed_tokens.")
        if ends & saved:
            saved = (saved - ends) | {name for name in [table_of(model)] if name}
            more["ensure_weight_tying"] = True
    everyone = [name for name, _ in model.named_modules()]
    alpha: Any = arguments.lora_alpha
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=arguments.r,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
            lora_dropout=arguments.lora_dropout,
            bias=arguments.bias,
            target_modules=fewest_words(targets, everyone),
            modules_to_save=fewest_words(saved, everyone) or None,
            base_model_name_or_path=base or model.name_or_path or None,
            **more,
        )
        with torch.random.fork_rng(enabled=True):
            torch.manual_seed(seed)
            worn = _wear(model, config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"LoRA: {_first(error)}") from None
    where = config.base_model_name_or_path
    record = dataclasses.replace(_told_by(model, where), family=family, objective=objective)
    worn.__dict__.update(record=record, official_names=arguments.official_names, with_embeddings=False)
    return worn


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _wear(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    from peft import PeftModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.23 by an old name
        worn = PeftModelForCausalLM(model, config)
    for _, copies in _whole(worn):
        if config.inference_mode:  # so that it can be called without autocast, and answers as it will when merged
            copies.modules_to_save.to(copies.original_module.weight.dtype)
        else:  # peft 0.21 makes float32 of adapters only, not of these
            copies.modules_to_save.float()
    return worn


def _whole(worn: PeftModel) -> list[tuple[str, Any]]:
    """The modules that are trained whole, by name."""
    from peft.utils.other import ModulesToSaveWrapper

    return [(n, m) for n, m in worn.get_base_model().named_modules() if isinstance(m, ModulesToSaveWrapper)]


def _told_by(model: PreTrainedModel, base: str | None) -> Record:
    config = model.config
    causal = bool(getattr(config, "is_causal", True))
    return Record(
        is_causal=causal,
        mask_token_id=None if causal else getattr(config, "mask_token_id", None),
        shift=getattr(config, "shift", 1 if causal else 0),
        base=str(Path(base).absolute()) if base and Path(base).is_dir() else None,
        base_fingerprint=fingerprint(base) if base else None,
    )


def put_on(model: PreTrainedModel, folder: str | Path, trainable: bool = False) -> PeftModel:
    """A model wearing a saved adapter, ours or another's, under official names or Llama's.

    Args:
        trainable: to train it further; else it is frozen and the model only read.

    Raises:
        UserError: another model's, rank or kind; tensors that are missing, too many or cut short.
    """
    folder = Path(folder)
    config, tensors = read_config(folder), read_tensors(folder)
    record = read_record(folder)
    kinds = {True: "a causal model", False: "a mask predictor"}
    now = bool(getattr(model.config, "is_causal", True))
    if record.is_causal not in (None, now):
        raise UserError(
            f"{folder} was trained on {kinds[not now]}, and its base is loaded as {kinds[now]}; merge it first to go "
            "on from it in another way."
        )
    mask = getattr(model.config, "mask_token_id", None)
    if record.is_causal is False and None not in (record.mask_token_id, mask) and mask != record.mask_token_id:
        raise UserError(
            f"{folder} was trained with the mask token {record.mask_token!r} (id {record.mask_token_id}); its base has "
            f"id {mask} here. Type --mask_token {record.mask_token!r}."
        )
    ours = renamer(model)
    official = {name: theirs for name, theirs in official_names(model).items() if ours(theirs) == name}
    named_officially = any(ours(key) != key for key in tensors)
    if named_officially:
        config = _from_official(model, config, official)
    tensors = {ours(key): value for key, value in tensors.items()}
    table = tensors.get(f"{WEARER}{table_of(model)}.weight")
    if table is not None and table.shape[0] != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(table.shape[0], mean_resizing=False)  # as whoever trained it did
    config.task_type, config.inference_mode = "CAUSAL_LM", not trainable
    config.base_model_name_or_path = model.name_or_path or config.base_model_name_or_path
    try:
        worn = _wear(model, config)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit this model: {_first(error)}") from None
    _fill(worn, tensors, folder)
    here = _told_by(model, config.base_model_name_or_path)
    if record.is_causal is not None:
        here = dataclasses.replace(
            record, base=here.base, base_fingerprint=record.base_fingerprint or here.base_fingerprint
        )
    worn.__dict__.update(record=here, official_names=named_officially)
    return worn if trainable else worn.eval()


def _from_official(model: PreTrainedModel, config: LoraConfig, official: dict[str, str]) -> LoraConfig:
    """A config in official module names, in ours: the modules that peft would have found in the official code."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules == ALL_LINEAR:
        mine = find_modules(model, "target_modules", [ALL_LINEAR])
    else:
        adapted = linear_modules(model) & official.keys()
        mine = {name for name in adapted if check_target_module_exists(config, official[name])}
    words = config.modules_to_save or []
    whole = sorted(name for name, theirs in official.items() if any(theirs.endswith(word) for word in words))
    return renamed(config, [(official[name], name) for name in sorted(mine)], whole, official)


def put_weights(worn: PeftModel, folder: str | Path) -> None:
    """Replace an adapter's weights by those of a checkpoint, bit for bit; UserError when they do not fit."""
    ours = renamer(worn.get_base_model())
    _fill(worn, {ours(key): value for key, value in read_tensors(Path(folder)).items()}, Path(folder))


def _fill(worn: PeftModel, tensors: dict[str, Tensor], folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = get_peft_model_state_dict(worn, save_embedding_layers=False)
    base = worn.state_dict()
    model = worn.get_base_model()
    ends = {f"{WEARER}{name}.weight" for name in (head_of(model), table_of(model))}
    beside = {key for key in tensors.keys() - wanted.keys() if key in ends and key in base}
    where = read_record(folder).base or read_config(folder).base_model_name_or_path
    fits = f"{folder} does not fit this model; it was trained on {where}:"
    shapes = {key: tuple(value.shape) for key, value in {**{k: base[k] for k in beside}, **wanted}.items()}
    for key, value in tensors.items():
        if key in shapes and tuple(value.shape) != shapes[key]:
            raise UserError(f"{fits} {_plain(key)} has shape {tuple(value.shape)} there, {shapes[key]} here.")
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing:
        raise UserError(f"{fits} {len(missing)} tensors are missing in it, such as {_plain(missing[0])}.")
    if extra:
        raise UserError(f"{fits} {len(extra)} of its tensors have no place here, such as {_plain(extra[0])}.")
    set_peft_model_state_dict(worn, {key: tensors[key] for key in wanted})
    for key in beside:  # embeddings that others save with the adapter because they have grown
        base[key].data.copy_(tensors[key])
    worn.__dict__["with_embeddings"] = bool(beside)


def _plain(key: str) -> str:
    return key.removeprefix(WEARER)


# ---------------------------------------------------------------------------------------------------------------------
# Saving


def write(
    worn: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    official: bool | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write an adapter's files into a folder: `peft`'s two, the tokenizer with its template, `unmask.json`.

    Args:
        official: under LLaDA's official module names; None as the settings said, or as it was loaded.
        weights: name → tensor of the whole model, where the model itself holds a share of each.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    model: Any = worn.get_base_model()
    tuner: Any = worn.base_model
    config: Any = copy.copy(worn.peft_config["default"])
    notes = vars(worn)
    # peft 0.21 would save embeddings that have grown by a mask token; that token's row is made anew on every base
    state = get_peft_model_state_dict(worn, weights, save_embedding_layers=notes["with_embeddings"])
    if notes["official_names"] if official is None else official:
        theirs, back = official_names(model), renamer(model, back=True)
        if all(theirs[name] == name for name in theirs):
            raise UserError(f"a model of type {model.config.model_type} has no other module names than its own.")
        words = config.modules_to_save or []
        whole = sorted(new for old, new in theirs.items() if any(old.endswith(word) for word in words))
        pairs = [(name, theirs[name]) for name in tuner.targeted_module_names]
        config = renamed(config, pairs, whole, theirs.values())
        state = {back(key): value for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    # cloned, since safetensors writes no two names for the same memory
    save_file({key: value.detach().cpu().clone() for key, value in state.items()}, folder / WEIGHTS, {"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(folder))
    record: Record = notes["record"]
    if record.mask_token_id is not None and record.mask_token_id < len(tokenizer):
        record = dataclasses.replace(record, mask_token=tokenizer.convert_ids_to_tokens(record.mask_token_id))
    (folder / RECORD).write_text(json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False) + "\n", "utf-8")
    tokenizer.save_pretrained(folder)
    ids.portable(folder)


def save(
    worn: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *, official: bool | None = None
) -> None:
    """An adapter's folder, as `write` fills it: written aside, then renamed. An earlier adapter there is replaced."""
    folder = Path(folder)
    if folder.exists() and not is_adapter(folder) and any(folder.iterdir()):
        raise UserError(f"{folder} is there and holds no adapter; name another folder.")
    with sealed.replaced(folder) as part:
        write(worn, tokenizer, part, official=official)


# ---------------------------------------------------------------------------------------------------------------------
# 4 bits


def quantised(device: str | None = None) -> BitsAndBytesConfig:
    """How to load a frozen model in 4 bits: nf4, quantised twice, computed in bfloat16 (QLoRA, arXiv:2305.14314).

    Raises:
        UserError: bitsandbytes is not there, or does not work on the device: never full precision without a word.
    """
    import torch
    from transformers import BitsAndBytesConfig

    where = device or "cpu"
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        some = torch.linspace(-1, 1, 4096, device=where, dtype=torch.bfloat16).reshape(64, 64)
        back = dequantize_4bit(*quantize_4bit(some, quant_type="nf4", compress_statistics=True))
        if not torch.allclose(back.float(), some.float(), atol=0.2):
            raise RuntimeError("what it reads back is not what was written")
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    except ImportError as error:
        raise UserError(
            f"--load_in_4bit needs bitsandbytes, which cannot be imported ({_first(error)}); type `python -m pip "
            "install bitsandbytes`, or leave --load_in_4bit out."
        ) from None
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        raise UserError(
            f"--load_in_4bit: bitsandbytes does not work on {where} here ({_first(error)}); use another --device, or "
            "leave --load_in_4bit out."
        ) from None
