"""The command `unmask merge`: a LoRA adapter and its base in, an ordinary model folder out.

In:  the adapter's folder, the base it was trained on, the folder to make.
Out: weights W + s·B·A under the official names, the tokenizer and template the adapter was trained with.

The base is loaded once and changed in place, one layer after the other, and written shard by shard: what is needed is
the model in the wider of its two dtypes, and beside it a little more than its largest matrix.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import ModelArguments, UserError, nearest, option, parse

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": "float32", "fp32": "float32", "float16": "float16", "fp16": "float16"}
DTYPES |= {"bfloat16": "bfloat16", "bf16": "bfloat16"}
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors writes them
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Root mean square of the difference of the logits, by that of the logits: what rounding explains, and what it does not.
NORMAL = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
TOO_LARGE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 1.5e-1}
# The other spellings are those of dllm's tool.
LEGACY = {
    "adapter_model_name_or_path": "lora_path",
    "base_model_name_or_path": "base_model_path",
    "output_model_name_or_path": "merge_path",
}


@dataclasses.dataclass
class MergeArguments:
    """Merge"""

    lora_path: str | None = option(
        None, "The adapter: checkpoint-final of `unmask sft --lora true`.", aliases=["adapter_model_name_or_path"]
    )
    base_model_path: str | None = option(
        None, "The model it was trained on. Told by the adapter if left out.", aliases=["base_model_name_or_path"]
    )
    merge_path: str | None = option(None, "The model folder to make.", aliases=["output_model_name_or_path"])
    dtype: str | None = option(
        None, "What to write: float32, bfloat16, float16 (fp32, bf16, fp16). The base's own if left out."
    )
    max_shard_size: str = option("5GB", "Largest file of weights.")
    device: str = option("cpu", "Where to merge: cpu, cuda, mps. The whole model must fit there.")
    overwrite: bool = option(False, "Replace the model in --merge_path.")
    mask_token: str | None = option(
        None, "The base's token for 'not yet known', where neither it nor the adapter names it."
    )
    push_to_hub: bool = option(False, "Only false: nothing is sent anywhere.")


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the merged model's logits are from the adapter's, on a probe batch.

    Attributes:
        largest: |merged - adapter|, at most. share: its root mean square by that of the logits.
        moved, moved_share: the same of adapter and base: what the adapter does.
    """

    largest: float
    share: float
    moved: float
    moved_share: float


# ---------------------------------------------------------------------------------------------------------------------
# What can be merged, and where to


def check_adapter(path: str | None) -> str:
    """The adapter's folder as it was given; UserError for what is none."""
    from unmask import adapters

    if not path:
        raise UserError("no adapter given; type --lora_path FOLDER.")
    folder = Path(path)
    if adapters.is_adapter(folder):
        return path
    if (folder / "config.json").is_file():
        raise UserError(f"{path} is a whole model, not an adapter: it needs no merging; use it as it is.")
    if folder.is_dir():
        inside = sorted(p.name for p in folder.iterdir() if adapters.is_adapter(p))
        hint = f"; it holds {', '.join(inside)}: type --lora_path {folder / inside[-1]}" if inside else ""
        raise UserError(f"{path} is no adapter: it has no adapter_config.json{hint}.")
    around = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
    raise UserError(f"no adapter {path!r}.{nearest(folder.name, around)}")


def check_base(base: str) -> None:
    """UserError for a base that is not there, is an adapter itself, or is kept in fewer bits."""
    from unmask import adapters, models

    models.find(base)
    if adapters.is_adapter(base):
        raise UserError(f"the base {base} is an adapter itself; merge that into its own base first.")
    if getattr(models.load_config(base), "quantization_config", None):
        raise UserError(f"the base {base} is quantised: its weights cannot take up an adapter; name the full one.")


def check_target(path: str | None, overwrite: bool, sources: list[str]) -> Path:
    """The folder to make; UserError when something is there that may not be replaced."""
    if not path:
        raise UserError("no folder to make; type --merge_path FOLDER.")
    folder = Path(path)
    for source in sources:
        if folder.resolve() == Path(source).resolve():
            raise UserError(f"--merge_path {path} is where {source} is read from; name another.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--merge_path {path} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if any(p.is_dir() for p in folder.iterdir()) or not (folder / "config.json").is_file():
            raise UserError(f"--merge_path {path} holds other things than a model; name another.")
        if not overwrite:
            raise UserError(f"--merge_path {path} already holds a model; type --overwrite to replace it.")
    above = next(p for p in folder.absolute().parents if p.exists())
    if not os.access(above, os.W_OK):
        raise UserError(f"cannot write to {above}; name another --merge_path.")
    return folder


def check_size(text: str) -> str:
    """A size such as 5GB; UserError for anything else."""
    if re.fullmatch(r"\d*[1-9]\d*(\.\d+)?[KMGT]B", text):
        return text
    raise UserError(f"--max_shard_size is {text!r}; it must be a size such as 5GB or 500MB.")


def stored(base: str) -> tuple[str, int]:
    """What most of a base's weights are kept in on the disk, and how many bytes they are (0: not known)."""
    from safetensors import safe_open

    from unmask import models
    from unmask.adapter_folder import weight_files

    sizes: dict[str, int] = {}
    for path in weight_files(base):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                part = file.get_slice(name)
                number = 1
                for size in part.get_shape():
                    number *= size
                kind = part.get_dtype()
                sizes[kind] = sizes.get(kind, 0) + number * BYTES.get(STORED.get(kind, ""), 1)
    kind = max(sizes, key=lambda kind: sizes[kind], default="")
    told = str(models.load_config(base).dtype or "float32").removeprefix("torch.")
    found = STORED.get(kind, told)
    if found not in BYTES or (kind and kind not in STORED):
        raise UserError(f"the base {base} is kept in {kind or found}: its weights cannot take up an adapter.")
    return found, sum(sizes.values())


# ---------------------------------------------------------------------------------------------------------------------
# Merging


PROBE = "Question: name the capital of France, and say why people like it. Answer: Paris, because "


def probe_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(2, up to 32) ids of a text; of a mask predictor, every other place of the second row is masked.

    A text and not random ids: on those SmolLM2's hidden states reached 13,000, and float32 rounding alone moved its
    logits by 2e-3 (6e-5 on a text).
    """
    import torch

    config = model.config
    found = tokenizer.encode(PROBE, add_special_tokens=False, split_special_tokens=True)
    length = min(32, len(found), getattr(config, "max_position_embeddings", None) or 32)
    ids = torch.tensor([found[:length]] * 2)
    if not getattr(config, "is_causal", True):
        ids[1, ::2] = config.mask_token_id
    return ids.to(model.device)


def compare(merged: Tensor, adapter: Tensor, base: Tensor) -> Difference:
    """Three logits (rows, places, vocabulary) on the same batch."""

    def size(values: Tensor) -> float:
        return float(values.double().square().mean().sqrt())

    off, moved, unit = merged - adapter, adapter - base, size(adapter) or 1.0
    return Difference(float(off.abs().max()), size(off) / unit, float(moved.abs().max()), size(moved) / unit)


def judge(found: Difference, dtype: str) -> str:
    """One line on a difference; UserError for one that rounding does not explain."""
    line = (
        f"merged and adapter logits differ by at most {found.largest:.1e} ({100 * found.share:.2g} % of their size; "
        f"up to {100 * NORMAL[dtype]:.2g} % is normal in {dtype}); the adapter itself moves them by {found.moved:.1e}"
    )
    if not found.share <= TOO_LARGE[dtype]:  # NaN is not, either
        raise UserError(f"{line}. That is too much: nothing was written.")
    if found.share > found.moved_share / 2 > 0:
        line += f". Rounding to {dtype} loses much of so small a change; --dtype float32 keeps it"
    return line


def merge(arguments: MergeArguments) -> str:
    """Merge an adapter into its base and write the model; returns what to say of it.

    Raises:
        UserError: what is not there, does not belong together, may not be replaced or has no room.
    """
    if arguments.push_to_hub:
        raise UserError("--push_to_hub: nothing is sent anywhere; upload the folder with the hub's own client.")
    if arguments.dtype is not None and arguments.dtype not in DTYPES:
        raise UserError(
            f"--dtype is {arguments.dtype!r}; it can be {', '.join(DTYPES)}.{nearest(arguments.dtype, DTYPES)}"
        )
    from unmask import adapters

    lora = check_adapter(arguments.lora_path)
    if not arguments.merge_path:
        check_target(None, False, [])

    import torch

    from unmask import checkpoint, ids, models, report

    report.quiet()
    base = models.find(arguments.base_model_path or adapters.base_of(lora))
    check_base(base)
    folder = check_target(arguments.merge_path, arguments.overwrite, [lora, base])
    size = check_size(arguments.max_shard_size)
    device = models.device(arguments.device)
    remark = adapters.check_base(lora, base)
    report.say(*([remark] if remark else []))
    kept, number = stored(base)
    dtype = DTYPES[arguments.dtype] if arguments.dtype else kept
    wider = kept if BYTES[kept] >= BYTES[dtype] else dtype  # narrowed only when all is added up
    need = number * BYTES[dtype] // BYTES[kept]
    above = next(p for p in folder.absolute().parents if p.exists())
    free = shutil.disk_usage(above).free
    if free < need:
        raise UserError(f"{above} has {report.amount(free)}B free, and the model takes {report.amount(need)}B.")

    record = adapters.read_record(lora)
    report.say(f"loading {base} ({report.amount(number)}B in {kept}) and the adapter {lora} …")
    how = ModelArguments(
        model_name_or_path=base,
        dtype=wider,  # type: ignore[arg-type]
        mask_token=arguments.mask_token or record.mask_token,
        family=record.family,
    )
    loaded = models.load(how, device=device, causal=record.is_causal)
    tokenizer = models.tokenizer_of(lora, loaded.tokenizer)
    causal = bool(getattr(loaded.model.config, "is_causal", True))
    ids.check(tokenizer, loaded.model.config, mask=not causal)
    worn: Any = adapters.put_on(loaded.model, lora)
    worn.to(device)
    probe = probe_ids(loaded.model, tokenizer)
    adapted = logits(worn, probe)
    with worn.disable_adapter():
        before = logits(worn, probe)
    report.say("merging …")
    merged = worn.merge_and_unload(progressbar=sys.stderr.isatty(), safe_merge=True)
    for weight in merged.parameters():  # not `merged.to`, which would round the rotary frequencies, too
        weight.data = weight.data.to(getattr(torch, dtype))
    merged.config.dtype = getattr(torch, dtype)
    found = compare(logits(merged, probe), adapted, before)
    line = judge(found, dtype)
    if causal:
        plain = models.load_config(base)
        for key in ("is_causal", "shift"):  # set by us, and nothing that others' tools know
            if not hasattr(plain, key) and hasattr(merged.config, key):
                delattr(merged.config, key)
    report.say(f"saving {report.amount(need)}B …")
    try:
        checkpoint.save(merged, tokenizer, folder, max_shard_size=size)
    except UserError as error:
        if checkpoint.disk_full(error):
            raise UserError(f"no space left on the disk of {above}: nothing was written to {folder}.") from None
        raise
    # where it comes from, for people; nothing here reads it
    told = {"adapter": lora, "base": base, "base_fingerprint": record.base_fingerprint, "objective": record.objective}
    report.write_json(folder / adapters.RECORD, {"merged": {**told, "difference": dataclasses.asdict(found)}})
    return f"{folder}: {lora} merged into {base}, in {dtype}; {line}."


def logits(model: Any, ids: Tensor) -> Tensor:
    """(rows, places, vocabulary) in float32, on the CPU."""
    import torch

    with torch.inference_mode():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found.float().cpu()


def main(argv: list[str]) -> int:
    """`unmask merge --lora_path A --base_model_path B --merge_path C`"""
    about = "Merge a LoRA adapter into its base: an ordinary model folder, which any program reads."
    arguments = parse("unmask merge", about, [MergeArguments], argv, legacy=LEGACY).groups[0]
    print(merge(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
