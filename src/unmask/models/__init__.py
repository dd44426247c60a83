"""Models: a folder in, a mask predictor out. One file here is one family.

In:  a model folder or hub name (config, tokenizer, perhaps weights).
Out: `Loaded` (model, tokenizer, family), and `predictor(model)`, the only view of a model that objectives and decoding
get: a function (ids) → what the head says at the places asked for.

A family's file is named after `model_type` in config.json and defines `FAMILY`; it may register classes with
`transformers` and define `adapt(config, tokenizer, mask_token) -> None`. Any other causal model of `transformers` is
taken by `bidirectional.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask import adapters, ids, report
from unmask.config import ModelArguments, UserError, named, nearest
from unmask.forward import Predictor as Predictor
from unmask.forward import predictor as predictor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf", "adapter_model.bin")


@dataclass(frozen=True)
class Family:
    """What a family of models takes for granted.

    Attributes:
        name: the file's name. mask: text of the mask token. ends: tokens that end an answer.
        shift: logits at place i speak of token i + shift (LLaDA 0; Dream, causal models 1).
    """

    name: str
    mask: str = "<|mdm_mask|>"
    ends: tuple[str, ...] = ()
    shift: int = 0


@dataclass
class Loaded:
    """A model with what belongs to it.

    Attributes:
        fresh: its weights are new, made from the config. adapter: the folder of the LoRA adapter it wears, if any.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    fresh: bool
    adapter: str | None = None

    @property
    def causal(self) -> bool:
        """Whether it writes left to right; else it predicts masks."""
        return bool(getattr(self.model.config, "is_causal", True))


class Diffusion:
    """Mixed into every model here: `model.generate` unmasks instead of writing left to right."""

    def generate(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Prompts and their answers: (rows, prompt + max_new_tokens), prompts with their padding as they came.

        Options: max_new_tokens, steps, block_size, temperature, remasking, cfg_scale, seed, rule, cache, …, and those
        of `transformers`: generation_config, streamer, return_dict_in_generate, … (`unmask.generation.generate`
        documents them). A causal model answers as `transformers` has it.
        """
        if getattr(self.config, "is_causal", False):  # type: ignore[attr-defined]
            return super().generate(input_ids, attention_mask=attention_mask, **options)  # type: ignore[misc]
        from unmask import generation

        return generation.generate(self, predictor(self), input_ids, attention_mask, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def family_file(model_type: str, family: str | None = None) -> ModuleType:
    """The family's file: the one named, else the one called like `model_type`, else `bidirectional`."""
    if family:
        return named("models", family)
    names = {m.name for m in pkgutil.iter_modules(__path__)}
    return named("models", model_type if model_type in names else "bidirectional")


def weight_files(folder: str | Path) -> list[str]:
    """Names of the files in a folder that hold weights; an index without its shards is none."""
    return sorted(p.name for pattern in WEIGHTS for p in Path(folder).glob(pattern))


def device(wanted: str | None = None) -> str:
    """The device asked for, else the best there is: cuda, mps, cpu. UserError for one that is not there."""
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if wanted is None:
        return best.type if best else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise UserError(f"no device {wanted!r}; use cuda, mps or cpu.") from None
    if kind != "cpu" and (best is None or kind != best.type):
        raise UserError(f"--device {wanted}: there is none here; use {best.type if best else 'cpu'}.")
    return wanted


def find(name: str | None) -> str:
    """A model folder or hub name as it was given; UserError when it looks like a path and nothing is there."""
    if not name:
        raise UserError("no model given; type --model_name_or_path FOLDER (`unmask init` makes one).")
    base = os.environ.get("BASE_MODELS_DIR")
    if base and not Path(name).is_absolute() and (Path(base) / name).exists():
        return str(Path(base) / name)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            if adapters.is_adapter(path):
                return name
            raise UserError(f"{name} has no config.json, so it is not a model folder; `unmask init` makes one.")
    elif path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1 or _is_ours(path.parent):
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no model folder {name!r}.{nearest(path.name, around)} `unmask init` makes one.")
    return name


def _is_ours(folder: Path) -> bool:
    """Whether models of this machine lie in a folder: `models/x` is then no name on a hub, which is long asked for."""
    return folder.name in ("models", "output") or folder.is_dir()


def load_config(name: str) -> PretrainedConfig:
    """The config of a model folder or hub name, by the family's own class; UserError in one line when it cannot be."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(find(name))
    except UserError:
        raise
    except json.JSONDecodeError as error:
        raise UserError(f"{name}/config.json is not valid JSON: {error}.") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the config of {name!r}: {first_line(error)}") from None


def has_tokenizer(folder: str) -> bool:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    return any((Path(folder) / file).is_file() for file in files)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name; UserError when there is none."""
    from transformers import AutoTokenizer

    if Path(name).is_dir() and not has_tokenizer(name):
        raise UserError(
            f"{name} has no tokenizer (tokenizer.json); copy one into it, or train one: `unmask tokenizer --help`."
        )
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the tokenizer of {name!r}: {first_line(error)}") from None


def tokenizer_of(adapter: str, otherwise: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer an adapter was trained with, template included; its base's where none was saved, which is said."""
    if has_tokenizer(adapter):
        return load_tokenizer(adapter)
    report.say(f"{adapter} has no tokenizer of its own; the base's goes with it.")
    return otherwise


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def ready(
    name: str, arguments: ModelArguments, causal: bool | None
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, ModuleType]:
    """The config and tokenizer of a folder or hub name, made ready for a mask predictor or a causal model; its family.

    Where a mask token had to be added, the config says so (`added_mask_token`) until the embedding has grown.
    """
    config, tokenizer = load_config(name), load_tokenizer(name)
    file = family_file(config.model_type, arguments.family)
    if causal is None:
        causal = bool(getattr(config, "is_causal", True))
    if causal:
        config.is_causal, config.shift = True, 1
        ids.check(tokenizer, config, mask=False)
        return config, tokenizer, file
    adapt = getattr(file, "adapt", None)
    if adapt:
        adapt(config, tokenizer, arguments.mask_token)
    if file.FAMILY.shift and not hasattr(config, "shift"):
        config.shift = file.FAMILY.shift
    config.mask_token_id = ids.mask_id(tokenizer, config, arguments.mask_token)
    if not getattr(config, "added_mask_token", False):  # then the model is checked when its embedding has grown
        ids.check(tokenizer, config)
    return config, tokenizer, file


def load(
    arguments: ModelArguments | str,
    *,
    fresh: bool | None = False,
    seed: int = 42,
    device: str | None = None,
    causal: bool | None = False,
    base: str | None = None,
    quantization: Any = None,
    trainable: bool = False,
) -> Loaded:
    """A model, its tokenizer and family.

    Args:
        arguments: `ModelArguments`, or just a folder or hub name; of a model, or of an adapter, which comes with the
            tokenizer and template it was trained with, on its base.
        fresh: True makes new weights from the config (seeded, on the CPU, so that they are the same everywhere);
            False reads them; None decides by `from_scratch`: a folder with weights stops until told.
        device: where to put the model; None leaves it on the CPU.
        causal: False makes a mask predictor of any causal model; True keeps it as it is; None goes by its config, where
            LLaDA and every model that was trained here say what they are.
        base: the base of an adapter, where it does not lie where the adapter says.
        quantization: a config of `transformers`, such as `adapters.quantised` gives.
        trainable: whether an adapter's weights are to be trained on.

    Weights that are read, without a dtype asked for, are float32 on a CPU and as they are stored elsewhere.

    Raises:
        UserError: what is missing, does not fit or cannot be a mask predictor.
    """
    from transformers import AutoModelForCausalLM, set_seed

    if isinstance(arguments, str):
        arguments = ModelArguments(model_name_or_path=arguments)
    name = own = find(arguments.model_name_or_path)
    adapter = own if adapters.is_adapter(own) else None
    if adapter:
        name = find(base or adapters.base_of(adapter))
        causal = adapters.causal(adapter) if causal is None else causal
        record = adapters.read_record(adapter)
        arguments = dataclasses.replace(
            arguments,
            mask_token=arguments.mask_token or record.mask_token,
            family=arguments.family or record.family,
        )
        remark = adapters.check_base(adapter, name)
        if remark:
            report.say(remark)
    files = weight_files(name)
    if fresh is None:
        fresh = arguments.from_scratch
        if fresh is None:
            if files or not Path(name).is_dir():
                raise UserError(
                    f"{name} has weights ({', '.join(files[:3]) or 'on the hub'}); type --from_scratch true for fresh "
                    "ones, or --from_scratch false to go on from these."
                )
            fresh = True
    if not fresh and Path(name).is_dir() and not files:
        raise UserError(f"{name} has no weights (*.safetensors), only a config: train it with `unmask pretrain`.")
    # of an adapter's base, as it was made ready for training
    config, tokenizer, file = ready(name, arguments, causal)
    how: dict[str, Any] = (
        {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    )
    on_cpu = torch.device(device or "cpu").type == "cpu"
    stored = None if fresh or on_cpu else config.dtype
    dtype = getattr(torch, arguments.dtype or str(stored or "float32").removeprefix("torch."))
    try:
        if fresh:
            set_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, **how)
        else:
            more = {"quantization_config": quantization} if quantization is not None else {}
            model = read_weights(name, config, dtype, how | more)
    except (ImportError, ValueError) as error:
        if not how or isinstance(error, UserError):
            raise
        raise UserError(f"--attn_implementation {arguments.attn_implementation}: {first_line(error)}") from None
    grows = getattr(config, "added_mask_token", False)
    finish = getattr(file, "finish", None)
    if finish:
        finish(model, tokenizer, fresh)
    if grows:
        ids.check(tokenizer, model.config)
    model.get_input_embeddings().padding_idx = None  # else the end of text, where it pads too, is never learnt
    if not isinstance(model, Diffusion):
        kind = type(model)  # the same name, so that checkpoints name the architecture as before
        model.__class__ = type(kind.__name__, (Diffusion, kind), {"__module__": kind.__module__})
    refuse_causal(model)
    if adapter:
        model, tokenizer = adapters.put_on(model, adapter, trainable), tokenizer_of(adapter, tokenizer)
        ids.check(tokenizer, model.config, mask=not getattr(model.config, "is_causal", True))
    if device and quantization is None:
        model.to(device)
    return Loaded(model.eval(), tokenizer, file.FAMILY, bool(fresh), adapter)


def read_weights(name: str, config: PretrainedConfig, dtype: torch.dtype, how: dict[str, Any]) -> PreTrainedModel:
    """Weights from a folder; UserError for a truncated file, other shapes, or tensors that are missing."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, use_safetensors=True, **how
        )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot read the weights of {name}: {first_line(error)}") from None
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    missing = sorted(set(report["missing_keys"]) - tied)
    if missing:
        raise UserError(f"the weights of {name} lack {len(missing)} tensors of its config, such as {missing[0]}.")
    if report.get("unexpected_keys"):
        extra = sorted(report["unexpected_keys"])
        raise UserError(f"the weights of {name} have {len(extra)} tensors its config does not, such as {extra[0]}.")
    return model


def put_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Replace a model's weights by those of a checkpoint of the same shapes; UserError when they do not fit."""
    read = read_weights(str(folder), model.config, model.dtype, {})
    model.load_state_dict(read.state_dict())


def official_shapes(model: PreTrainedModel) -> dict[str, list[int]]:
    """Tensor name in a checkpoint → its shape, as `save_pretrained` would write them. Reads no weight."""
    from transformers.core_model_loading import revert_weight_conversion

    empty = {name: torch.empty(value.shape, device="meta") for name, value in model.state_dict().items()}
    return {name: list(value.shape) for name, value in revert_weight_conversion(model, empty).items()}


@torch.no_grad()
def refuse_causal(model: PreTrainedModel) -> None:
    """UserError for a mask predictor unless the first place's logits move when the last token changes.

    Not every model obeys `is_causal = False`: mamba, stablelm, gpt_neo and lfm2 stayed causal without a word
    (transformers 5.23).
    """
    if getattr(model.config, "is_causal", False):
        return
    kernel = model.config._attn_implementation
    if "flash" in kernel and model.device.type == "cpu":  # whose kernels need a GPU; the model is moved there later
        model.set_attn_implementation("sdpa")
    ids = torch.arange(8, device=model.device).expand(2, 8) % model.config.vocab_size
    ids = ids.clone()
    ids[1, -1] = (ids[1, -1] + 1) % model.config.vocab_size
    was = model.training
    model.eval()
    first = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    model.train(was)
    if model.config._attn_implementation != kernel:
        model.set_attn_implementation(kernel)
    if torch.equal(first[0], first[1]):
        raise UserError(
            f"{model.config.model_type} stays causal in this version of transformers: its first place does not see the "
            "last one, so it cannot be a mask predictor. Take another architecture (llama, qwen2, qwen3, …)."
        )


# Each family's file registers its classes with `transformers`; a new file needs no entry here.
for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")
