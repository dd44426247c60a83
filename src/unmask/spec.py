"""What a dataset spec says: `path[train:2000,test:200]`, `hub/name[name:en,train:90%]`, `ms:name`, `a.jsonl + folder`.

In:  the text of a spec.  Out: its parts, each a name and what is wanted of it. Nothing is opened here.

    spec    part, or parts joined by `+` or `|`; their rows follow one another
    part    source, or source[option,option,…]
    source  json, jsonl, csv, tsv, parquet, arrow or txt (a file, a folder, a pattern with * or ?; .gz, .bz2, .xz, .zst
            too), a folder written by `save_to_disk`, a name on the Hugging Face hub, `ms:name` (ModelScope), `hf:name`
    option  train:AMOUNT, test:AMOUNT   an amount is 2000, 1_000_000, 0.9 or 10%
            split:NAME                  take the rows from this split and no other
            name:CONFIG                 which configuration of a data set
            lang:VALUE                  only the rows whose column `lang` says so
            by:file|paragraph|line      what one document is in txt files [file]; blank lines and paragraphs are none

Whatever exists on disk under the name as written comes before this grammar: `a+b`, `data[v2]` and `x=1` may be files. A
relative name is looked for in the working folder, then in the folder that the variable BASE_DATASETS_DIR names.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from unmask.config import UserError, nearest
from unmask.values import number

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "validation", "valid", "val", "dev", "eval")
OPTIONS = ("split", "name", "lang", "by")
DOCUMENTS = ("file", "paragraph", "line")


@dataclass(frozen=True)
class Part:
    """One source of a spec. `splits`: "train" and one of TEST_NAMES → rows (int) or share of the rows (float ≤ 1)."""

    name: str
    splits: dict[str, int | float] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        said = {**{k: v if isinstance(v, int) else f"{100 * v:.6g}%" for k, v in self.splits.items()}, **self.options}
        return self.name + (f"[{','.join(f'{k}:{v}' for k, v in said.items())}]" if said else "")


def parse(spec: str) -> list[Part]:
    """The parts of a spec, in order. UserError when it cannot be read, with the spelling that was meant."""
    rest: str | None = (spec or "").strip()
    if not rest:
        raise UserError("no data; type --dataset_args SPEC, such as --dataset_args 'data.jsonl[train:2000,test:200]'.")
    parts = []
    while rest is not None:
        text, rest = _first(rest)
        parts.append(_part(text))
    return parts


def find(name: str) -> Path | None:
    """The file or folder that a name means: as written, else under BASE_DATASETS_DIR; None when there is neither."""
    base = os.environ.get("BASE_DATASETS_DIR")
    for path in (Path(name).expanduser(), *([Path(base).expanduser() / name] if base else [])):
        with contextlib.suppress(OSError, RuntimeError):  # too long for a file's name; `~` of a user who is not there
            if name and path.exists():
                return path
    return None


def near(name: str) -> tuple[str, bool]:
    """` Did you mean '…'?` for a path that is not there, and whether it is so near that the user mistyped it."""
    base = os.environ.get("BASE_DATASETS_DIR")
    folders = [Path(name).parent, *([Path(base).expanduser() / Path(name).parent] if base else [])]
    there = [entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    hint = difflib.get_close_matches(Path(name).name, there, n=1, cutoff=0.6)
    if not hint:
        return "", False
    mistyped = difflib.SequenceMatcher(None, Path(name).name, hint[0]).ratio() > 0.85
    return f" Did you mean {str(Path(name).parent / hint[0])!r}?", mistyped


def _first(text: str) -> tuple[str, str | None]:
    """Split off the first part: the longest piece that exists on disk, else up to a `+` or `|` outside brackets."""
    ends = [m.start() for m in re.finditer(r"[+|]", text)]
    end = next((e for e in [len(text), *reversed(ends)] if find(_brackets(text[:e].strip())[0])), None)
    if end is None:
        outside = [e for e in ends if text[:e].count("[") <= text[:e].count("]")]
        end = outside[0] if outside else len(text)
    part, rest = text[:end].strip(), text[end + 1 :].strip() if end < len(text) else None
    if not part or rest == "":
        raise UserError(f"dataset spec {text!r}: no name on one side of {text[end]!r}.")
    return part, rest


def _brackets(text: str) -> tuple[str, str]:
    """`source[options]` → source, options. What exists on disk as it stands has no options."""
    found = re.fullmatch(r"(.*?)\s*\[([^\[\]]*)\]", text, re.DOTALL)
    return (found[1], found[2]) if found and not find(text) else (text, "")


def _part(text: str) -> Part:
    name, options = _brackets(text)
    if not find(name) and (not name or "[" in name or "]" in name):
        raise UserError(f"dataset spec {text!r}: write one name and one pair of brackets: path[train:2000,test:200].")
    if not find(name) and re.fullmatch(r"\w+=[^,/]+(,\s*\w+=[^,]*)*", name):
        raise UserError(
            f"dataset spec {text!r}: nothing is called so here; if key=value is meant, write path[train:2000,test:200]."
        )
    part = Part(name)
    for word in options.split(",") if options.strip() else []:
        key, _, value = (w.strip() for w in word.partition(":"))
        if not (key and value):
            word = word.strip()
            meant = f"split:{word}" if word.isidentifier() else word.replace("=", ":", 1) if "=" in word else "train:9"
            raise UserError(f"dataset spec {text!r}: {word!r} is not key:value. Did you mean {meant!r}?")
        if key in part.splits or key in part.options:
            raise UserError(f"dataset spec {text!r}: {key!r} stands there twice.")
        if key in OPTIONS:
            part.options[key] = value
        elif key in ("train", *TEST_NAMES):
            part.splits[key] = _amount(value, key, text)
        else:
            known = ["train", "test", "validation", *OPTIONS]
            raise UserError(
                f"dataset spec {text!r}: no option {key!r}; there are {', '.join(known)}.{nearest(key, known)}"
            )
    if len(set(part.splits) - {"train"}) > 1:
        raise UserError(f"dataset spec {text!r}: test rows are asked for twice; keep one of {', '.join(part.splits)}.")
    by = part.options.get("by", "file")
    if by not in DOCUMENTS:
        raise UserError(f"dataset spec {text!r}: by:{by} is none of {', '.join(DOCUMENTS)}.{nearest(by, DOCUMENTS)}")
    return part


def _amount(word: str, key: str, spec: str) -> int | float:
    """`2000`, `1000_000` → rows; `0.9`, `90%` → a share."""
    with contextlib.suppress(ValueError, OverflowError):
        got = number(word[:-1]) / 100 if word.endswith("%") else number(word)
        if word.endswith("%") or (isinstance(got, float) and got <= 1):
            if 0 < got <= 1:
                return float(got)
        elif got >= 1 and got == int(got):
            return int(got)
    raise UserError(
        f"dataset spec {spec!r}: {key}:{word} is no amount of rows; write {key}:2000, {key}:0.1 or {key}:10%."
    )
