"""Words to values: what a user typed or wrote in YAML, as the type its setting wants.

In:  text or a YAML value, and a type.  Out: the value, or a UserError that says what was expected.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union

NONE_WORDS = {"none", "null", ""}
YES = {"true", "yes", "y", "on", "1"}
NO = {"false", "no", "n", "off", "0"}

Refused: TypeAlias = Mapping[str, tuple[Any, str]]
"""Settings known from elsewhere that cannot be: name → (the value that changes nothing, `...` if each would; why)."""


class UserError(ValueError):
    """Something the user typed or handed in cannot work. Its text says what came, what was expected, what to type.

    The command line prints the text as one line and exits with `code`.
    """

    code = 2


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no name is near."""
    hint = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {hint[0]!r}?" if hint else ""


def refuse(key: str, value: Any, refused: Refused) -> bool:
    """Whether a setting is one of `refused` with the value that changes nothing; UserError for another value of it."""
    name = key if key in refused else key.removeprefix("no_")
    if name not in refused:
        return False
    nothing, why = refused[name]
    value = False if name != key else plain(value) if isinstance(value, str) else value
    if nothing is ... or value != nothing:
        raise UserError(f"--{name} {why}")
    return True


def number(text: str) -> int | float:
    """`1_000`, `2e-5`, `0.1` → a number. Raises ValueError."""
    word = text.strip().replace("_", "")
    return int(word) if re.fullmatch(r"[+-]?\d+", word) else float(word)


def pairs(text: str) -> dict[str, Any]:
    """`a=1,b=x` or JSON → {"a": 1, "b": "x"}."""
    if text.lstrip().startswith("{"):
        value = json.loads(text)
        return dict(value)
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        if "=" not in part:
            raise ValueError(f"{part!r} is not key=value")
        key, value = (w.strip() for w in part.split("=", 1))
        found[key] = plain(value)
    return found


def plain(word: str) -> Any:
    """A value whose type nobody named: number, true/false, none, or the word itself."""
    low = word.lower()
    if low in ("true", "false"):
        return low == "true"
    if low in ("none", "null"):
        return None
    try:
        return number(word)
    except ValueError:
        return word


def cast(value: Any, kind: Any, key: str) -> Any:
    """A value from YAML or the command line as the type of its field; UserError when it cannot be one.

    YAML reads `2e-5` as text and `1_000` as a number; both are numbers here.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or (isinstance(value, str) and value.strip().lower() in NONE_WORDS)):
            return None
        kinds = [a for a in args if a is not type(None)]
        for one in kinds[:-1]:
            try:
                return cast(value, one, key)
            except UserError:
                continue
        return cast(value, kinds[-1], key)
    try:
        if kind is Any:
            return plain(value) if isinstance(value, str) else value
        if origin is Literal:
            # `weight=none` was read before anybody knew that its setting has a word of that name
            word = "none" if value is None and "none" in args else str(value).strip()
            if word not in args:
                raise UserError(f"--{key} is {word!r}; it can be {', '.join(map(str, args))}.{nearest(word, args)}")
            return word
        if kind is bool:
            word = str(value).strip().lower()
            if word not in YES | NO:
                raise ValueError
            return word in YES
        if kind is int:
            if isinstance(value, bool):
                raise ValueError
            got = number(value) if isinstance(value, str) else value
            if int(got) != got:
                raise ValueError
            return int(got)
        if kind is float:
            if isinstance(value, bool):
                raise ValueError
            return float(number(value) if isinstance(value, str) else value)
        if kind is str:
            if isinstance(value, (list, dict)):
                raise ValueError
            return str(value)
        if origin is list:
            inner = args[0] if args else Any
            items = (
                value if isinstance(value, (list, tuple)) else [w for w in re.split(r"[,;]", str(value)) if w.strip()]
            )
            if inner in (int, float):  # [126081;126348] and 1,2 3: numbers have no commas in them
                items = [w for item in items for w in re.split(r"[,;]", str(item).strip("[] ")) if w.strip()]
            return [cast(w.strip() if isinstance(w, str) else w, inner, key) for w in items]
        if origin is dict or kind is dict:
            return dict(value) if isinstance(value, dict) else pairs(str(value))
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        what = names.get(kind, "key=value,key=value" if (origin is dict or kind is dict) else str(kind))
        raise UserError(f"--{key} is {value!r}; it must be {what}.") from None
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A config file's keys and values; UserError when it is missing or not a mapping."""
    import yaml

    path = Path(path)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise UserError(f"no config file {str(path)!r}.{near}")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or error}).") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(found).__name__}.")
    return {str(k).replace("-", "_"): v for k, v in found.items()}
