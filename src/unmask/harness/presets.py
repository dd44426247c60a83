"""Presets: the settings behind published numbers, by model and task.

In:  a preset's name (a file of `settings/`) or the path of one's own YAML, then a task's name in lm-eval.
Out: the settings of that task, and the number that was published with them, to be shown beside ours and never as ours.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from pathlib import Path
from typing import Any

from unmask.config import UserError, cast, hints, nearest, read_yaml
from unmask.options import Options
from unmask.report import say

FOLDER = Path(__file__).with_name("settings")

# What a preset sets besides the decoding options, each with its type and its least value.
BESIDES: dict[str, tuple[type, int]] = {
    "num_fewshot": (int, 0),
    "apply_chat_template": (bool, 0),
    "mc_num": (int, 1),
    "max_new_tokens": (int, 1),
}
KEYS = ("family", "instruct", "source", "benchmarks")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row of a paper's table.

    Attributes:
        tasks: lm-eval's names and patterns (`*`, `?`, `[…]`); what a pattern with a leading `!` fits is not meant.
        settings: fields of `unmask.options.Options` and of BESIDES. published: the paper's number, in percent.
    """

    name: str
    tasks: tuple[str, ...]
    settings: dict[str, Any]
    published: float | None

    def closeness(self, task: str) -> tuple[bool, int] | None:
        """How closely a task is named, None if it is not: in full before by pattern, longer patterns first."""
        if any(fnmatch.fnmatchcase(task, pattern[1:]) for pattern in self.tasks if pattern.startswith("!")):
            return None
        fits = [pattern for pattern in self.tasks if fnmatch.fnmatchcase(task, pattern)]
        return max(((pattern == task, len(re.sub(r"[*?]", "", pattern))) for pattern in fits), default=None)


@dataclasses.dataclass(frozen=True)
class Preset:
    """The settings behind one model's published numbers.

    Attributes:
        family: the model family's name in `unmask.models`. instruct: meant for a model tuned on instructions.
        source: the paper and table.
    """

    name: str
    family: str
    instruct: bool
    source: str
    benchmarks: tuple[Benchmark, ...]

    def settings(self, task: str) -> dict[str, Any]:
        """What the preset sets for a task: fields of `unmask.options.Options` and of BESIDES.

        Raises:
            UserError: the preset has no settings for the task.
        """
        return dict(self._benchmark(task).settings)

    def published(self, task: str) -> float | None:
        """The published number in percent; None where a task is only a part of what the number was measured on.

        `cmmlu` is named in full and has one; `cmmlu_anatomy` fits the pattern `cmmlu_*` alone and has none.
        """
        found = self._benchmark(task)
        return found.published if task in found.tasks else None

    def check(self, family: str, instruct: bool | None, model: str) -> None:
        """UserError for a model of another family; a remark where base meets instruct. None: nobody knows which."""
        if family != self.family:
            raise UserError(
                f"--preset {self.name} is for models of the family {self.family}; {model} is of the family {family}. "
                "Leave --preset out and give the settings themselves, or a YAML of your own: --preset path/to/my.yaml."
            )
        if instruct is not None and instruct != self.instruct:
            kinds = {True: "an instruct model", False: "a base model"}
            say(
                f"--preset {self.name} is for {kinds[self.instruct]}, and {model} looks like {kinds[instruct]}: "
                "its published numbers are no measure for this one."
            )

    def _benchmark(self, task: str) -> Benchmark:
        ranked = [(close, each) for each in self.benchmarks if (close := each.closeness(task)) is not None]
        if not ranked:
            known = [pattern for each in self.benchmarks for pattern in each.tasks if not pattern.startswith("!")]
            raise UserError(
                f"--preset {self.name} has no settings for the task {task!r}; it has {', '.join(known)}."
                f"{nearest(task, known)}"
            )
        return max(ranked, key=lambda pair: pair[0])[1]


def names() -> list[str]:
    """The presets that ship with Unmask."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Preset:
    """A preset by its name, or from the path of a YAML file.

    Raises:
        UserError: no such preset or file, a key that is no setting, a value that cannot be one.
    """
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name), name)
    if name not in names():
        raise UserError(
            f"no preset called {name!r}; there are {', '.join(names())}, or give path/to/my.yaml."
            f"{nearest(name, names())}"
        )
    return _read(FOLDER / f"{name}.yaml", name)


def _read(path: Path, name: str) -> Preset:
    found = read_yaml(path)
    for key in found:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {key!r}; there are {', '.join(KEYS)}.{nearest(key, KEYS)}")
    for key in KEYS:
        if found.get(key) is None:
            raise UserError(f"{path}: no {key!r}; a preset has {', '.join(KEYS)}.")
    if not isinstance(found["benchmarks"], dict):
        raise UserError(f"{path}: `benchmarks:` is {found['benchmarks']!r}; it must map names to settings.")
    benchmarks = tuple(_benchmark(path, str(row), keys) for row, keys in found["benchmarks"].items())
    owner: dict[str, str] = {}
    for each in benchmarks:
        for pattern in each.tasks:
            if not pattern.startswith("!") and owner.setdefault(pattern, each.name) != each.name:
                raise UserError(f"{path}: {pattern!r} stands under {owner[pattern]} and {each.name}; leave one.")
    return Preset(
        name=name,
        family=_cast(path, "family", found["family"], str),
        instruct=_cast(path, "instruct", found["instruct"], bool),
        source=_cast(path, "source", found["source"], str),
        benchmarks=benchmarks,
    )


def _benchmark(path: Path, name: str, keys: Any) -> Benchmark:
    where = f"{path}, {name}"
    if not isinstance(keys, dict):
        raise UserError(f"{where}: expected `key: value` lines, found {keys!r}.")
    rest = {str(key): value for key, value in keys.items()}
    tasks = rest.pop("tasks", None)
    if isinstance(tasks, str):
        tasks = [tasks]
    if not (isinstance(tasks, list) and tasks and all(isinstance(one, str) and one for one in tasks)):
        raise UserError(f"{where}: `tasks:` is {tasks!r}; it must list names or patterns of lm-eval's tasks.")
    published = rest.pop("published", None)
    kinds = {**hints(Options), **{key: kind for key, (kind, _) in BESIDES.items()}}
    settings: dict[str, Any] = {}
    for key, value in rest.items():
        if key not in kinds:
            known = [*kinds, "tasks", "published"]
            raise UserError(f"{where}: unknown setting {key!r}; there are {', '.join(known)}.{nearest(key, known)}")
        settings[key] = _cast(where, key, value, kinds[key])
        if key in BESIDES and settings[key] < BESIDES[key][1]:
            raise UserError(f"{where}: {key} is {value!r}; it must be at least {BESIDES[key][1]}.")
    try:
        Options(**{key: value for key, value in settings.items() if key not in BESIDES}).check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    number = None if published is None else _cast(where, "published", published, float)
    return Benchmark(name, tuple(tasks), settings, number)


def _cast(where: Path | str, key: str, value: Any, kind: Any) -> Any:
    try:
        return cast(value, kind, key)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
