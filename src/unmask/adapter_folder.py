"""An adapter's folder: what stands in it, which base it belongs to, and whether a base is that one.

In:  a folder written by `peft`, perhaps with our `unmask.json`.  Out: its settings, tensors and record; no model.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "unmask.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What `unmask.json` keeps beside an adapter, since peft records none of it.

    Attributes:
        is_causal: None where it was not recorded (the adapters of others). mask_token: the text of mask_token_id.
        base: the folder of the base, in full; None for one from a hub. base_fingerprint: None where it has none.
    """

    is_causal: bool | None = None
    mask_token_id: int | None = None
    mask_token: str | None = None
    shift: int | None = None
    family: str | None = None
    objective: str | None = None
    base: str | None = None
    base_fingerprint: str | None = None


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """UserError when the file is missing or is not a mapping."""
    if not path.is_file():
        raise UserError(f"{path.parent} is no adapter: it has no {path.name}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not settings.")
    return found


def read_record(folder: str | Path) -> Record:
    """What was recorded beside an adapter; all None for the adapters of others."""
    path = Path(folder) / RECORD
    found = read_json(path) if path.is_file() else {}
    return Record(**{f.name: found[f.name] for f in dataclasses.fields(Record) if f.name in found})


def causal(folder: str | Path) -> bool | None:
    """Whether an adapter was trained on a causal model; None where nobody recorded it."""
    return read_record(folder).is_causal


def read_config(folder: str | Path) -> LoraConfig:
    """An adapter's settings; UserError for another kind of adapter than LoRA, or settings peft cannot read."""
    from peft import LoraConfig

    path = Path(folder) / CONFIG
    found = read_json(path)
    kind = str(found.get("peft_type"))
    if kind != "LORA":
        raise UserError(f"{folder} is an adapter of the kind {kind}; only LORA is read.")
    try:
        return LoraConfig.from_pretrained(str(folder))  # which tells of settings it does not know
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be used: {str(error).splitlines()[0]}") from None


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """An adapter's tensors by the names in its file; UserError when it is missing, cut short, or a pickle."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        pickled = (Path(folder) / "adapter_model.bin").is_file()
        why = "adapter_model.bin could run code when it is read; convert it" if pickled else "it has no weights"
        raise UserError(f"{folder} has no {WEIGHTS}: {why}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}).") from None


# ---------------------------------------------------------------------------------------------------------------------
# The base


def base_of(folder: str | Path) -> str:
    """Folder or hub name of the model that an adapter was trained on.

    Raises:
        UserError: none is recorded, or it is no longer there.
    """
    told, record = read_json(Path(folder) / CONFIG).get("base_model_name_or_path"), read_record(folder)
    above = os.environ.get("BASE_MODELS_DIR")
    for path in (told, above and told and Path(above) / told, record.base):
        if path and Path(path).is_dir():
            return str(path)
    if not told:
        raise UserError(f"{folder} does not say which model it was trained on; type --base_model_path FOLDER.")
    if record.base or told.startswith((".", "/", "~")) or "\\" in told or told.count("/") > 1:
        raise UserError(
            f"{folder} was trained on {record.base or told}, which is not here; say where it is: --base_model_path "
            "FOLDER."
        )
    return str(told)  # the name of a hub's


def check_base(folder: str | Path, base: str | Path) -> str | None:
    """UserError when a base is another than an adapter was trained on; a remark when nothing can tell, else None."""
    record = read_record(folder)
    if record.base_fingerprint is None:
        return f"nothing recorded in {folder} tells whether {base} is the base it was trained on."
    here = fingerprint(base)
    if here is None:
        return f"{base} has no safetensors files here, so nothing tells whether {folder} was trained on it."
    if here != record.base_fingerprint:
        theirs = record.base or read_json(Path(folder) / CONFIG).get("base_model_name_or_path")
        raise UserError(
            f"{folder} was trained on another base than {base}: the weights differ (fingerprint "
            f"{record.base_fingerprint} there, {here} here). It was {theirs}; name that: --base_model_path FOLDER."
        )
    return None


PIECES, LENGTH = 8, 256  # of each tensor: 2,048 values, or all where it has fewer


def fingerprint(base: str | Path) -> str | None:
    """16 letters that tell bases apart; None for one without safetensors files on this machine.

    Made of each tensor's name and shape and 8 stretches of 256 of its values, read from the files: the same whatever
    dtype the model is loaded in, and for a copy that holds the same values in a wider one. 16 GB take seconds.
    """
    import hashlib

    from safetensors import SafetensorError, safe_open

    files = weight_files(str(base))
    if not files:
        return None
    told: dict[str, bytes] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a dict
                    told[name] = _sample(file.get_slice(name))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is cut short or damaged ({error}).") from None
    found = hashlib.sha256()
    for name in sorted(told):
        found.update(name.encode() + b"\0" + told[name])
    return found.hexdigest()[:16]


def _sample(tensor: Any) -> bytes:
    """Shape and some values of a tensor in a file: spread evenly over its rows and along them."""
    import torch

    shape = [int(size) for size in tensor.get_shape()]
    if not shape or 0 in shape:
        return repr(shape).encode()
    rows = 1
    for size in shape[:-1]:
        rows *= size
    width = shape[-1]
    values = []
    for i in range(PIECES):
        row = i * (rows - 1) // (PIECES - 1)
        place: list[int] = []
        for size in reversed(shape[:-1]):
            row, here = divmod(row, size)
            place.insert(0, here)
        start = i * max(width - LENGTH, 0) // (PIECES - 1)
        values.append(tensor[(*place, slice(start, start + LENGTH))].flatten())
    some = torch.cat(values)
    # float32 holds every value of bfloat16 and float16: a wider copy of a base is the same base
    some = some.float() if some.is_floating_point() else some
    return repr(shape).encode() + some.numpy().tobytes()


def weight_files(base: str) -> list[Path]:
    """The safetensors files of a model folder, or of a hub's model that was fetched before; [] where there are none."""
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(base, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            return []
    index = folder / "model.safetensors.index.json"
    if index.is_file():  # beside its shards a folder may hold the same weights once more, in one file
        return sorted({folder / name for name in read_json(index)["weight_map"].values()})
    return sorted(path for path in folder.glob("*.safetensors") if path.name != WEIGHTS)
