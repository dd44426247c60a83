"""`--local_data`: what lm-eval's tasks ask the hub for is answered from files on the disk.

In:  zips, folders, files, or words DATASET=FILE.
Out: inside `with active(data):`, `datasets.load_dataset(path, name)` reads them; without local data it asks the hub as
     ever, and says in one line what is wrong when there is no answer.

Where a data set OWNER/NAME with the configuration CONFIG is looked for, in this order:

    exam      the official zip or folder of CMMLU, C-Eval or MMLU (exams.py), also one or two folders deeper
    word      OWNER/NAME=FILE or OWNER/NAME=FOLDER
    folder    DIR/OWNER/NAME, DIR/OWNER__NAME, DIR/NAME or DIR itself, and CONFIG/ in it; there: a folder written by
              `save_to_disk`, a clone of the hub's repository, or files named by split: test.jsonl, dev.csv,
              train-00000-of-00002.parquet (.jsonl, .json, .csv, .parquet; also in data/)
    official  mbpp.jsonl, GSM8K's train.jsonl and test.jsonl, HumanEval.jsonl, told by their contents

lm-eval (0.4.13, api/task.py) has no door for this: a task calls `datasets.load_dataset` on the module. So that name is
bound to another function for as long as the context lasts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.config import UserError
from unmask.harness import data_files, exams

STAND_INS = {"validation": ("dev",), "val": ("validation", "dev"), "valid": ("validation", "dev")}
"""Split that is asked for → what it may be called here. A `dev` set of examples is never taken from `validation`."""

WANTED = (
    "looked for the zip or folder of an exam (CMMLU, C-Eval, MMLU), DIR/OWNER/NAME/CONFIG/test.jsonl (.csv, .parquet), "
    "folders of save_to_disk, clones of hub repositories, mbpp.jsonl, GSM8K's and HumanEval's jsonl"
)


class LocalData:
    """What the words of --local_data hold.

    remarks: what the user should know (a split that stands in for another). used: data set → the file it was read
    from, with its SHA-256 digest; both grow as data sets are asked for.

    Raises:
        UserError: nothing there, nothing recognised in it, an exam or a file that cannot be read, one data set twice.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.remarks: list[str] = []
        self.used: dict[str, str] = {}
        self._exams: dict[str, exams.Exam] = {}
        self._named: dict[str, Path] = {}
        self._folders: list[Path] = []
        self._official: dict[str, dict[str, Path]] = {}
        self._config_of: dict[Path, str | None] = {}
        if not paths:
            raise UserError("--local_data is empty; give a folder, a zip, or DATASET=FILE.")
        for word in paths:
            self._add(word)

    def _add(self, word: str) -> None:
        path = Path(word).expanduser()
        name, sign, file = word.partition("=")
        if not path.exists() and sign:
            path = Path(file).expanduser()
            if name in self._named:
                raise UserError(f"--local_data gives {name!r} twice: {self._named[name]} and {path}.")
            self._named[name] = path
        if not path.exists():
            raise UserError(f"--local_data: no file or folder {str(path)!r}.")
        if name in self._named:
            return
        found = [self._add_exam(one) for one in ([path] if path.is_file() else _zips_and_folders(path))]
        found += [self._add_official(one) for one in ([path] if path.is_file() else _jsonl(path))]
        if path.is_dir() and any(data_files.layout(Path(folder)) for folder in _folders(path)):
            self._folders.append(path)
            found.append(True)
        if not any(found):
            what = f"is no data of a kind that is known; {WANTED}. Name its data set: --local_data OWNER/NAME={path}"
            raise UserError(
                f"--local_data {path} {what if path.is_file() else f'holds no data that is known; {WANTED}'}."
            )

    def _add_exam(self, path: Path) -> bool:
        if any(exam.path == path or exam.path in path.parents for exam in self._exams.values()):
            return False  # a folder inside the exam that has just been read
        exam = exams.read(path)
        if exam is None:
            return False
        for name in exams.NAMES[exam.kind]:
            if name in self._exams:
                raise UserError(f"--local_data has {exam.kind} twice: {self._exams[name].path} and {path}; give one.")
            self._exams[name] = exam
        self.remarks += exam.remarks
        return True

    def _add_official(self, path: Path) -> bool:
        name, split = data_files.recognised(path)
        if not name:
            return False
        there = self._official.setdefault(name, {})
        if there.setdefault(split, path).resolve() != path.resolve():
            raise UserError(f"--local_data has {name}, {split or 'all'}, twice: {there[split]} and {path}; give one.")
        return True

    # -----------------------------------------------------------------------------------------------------------------

    def load(self, path: str, name: str | None = None, **asked: Any) -> Any:
        """What `datasets.load_dataset(path, name, …)` gives: a DatasetDict, or the split that is asked for.

        Of the further arguments `split`, `streaming`, `data_dir` and `data_files` count; the others say how to fetch.

        Raises:
            UserError: the data set, its configuration or the split is not there.
        """
        split, streaming = asked.get("split"), asked.get("streaming", False)
        inside = {key: asked[key] for key in ("data_dir", "data_files") if asked.get(key)}
        found = self._find(path, name, inside)
        if found is None:
            files = inside.get("data_files") or ""
            own = path in {*data_files.KINDS.values(), "text", "arrow"} and "://" not in str(files)
            if own or os.path.exists(path):
                return _on_hub(path, name, **asked)  # a task that reads files of its own
            raise UserError(f"the data set {_spelled(path, name)} is not in the local data. {_how(path, name)}")
        splits = _splits(found, path, name)
        if split is not None:
            some = splits[str(split)]
            if not len(some):
                some[0]  # it says what is not there
            return some.to_iterable_dataset() if streaming else some
        if streaming:
            import datasets

            return datasets.IterableDatasetDict({key: rows.to_iterable_dataset() for key, rows in splits.items()})
        return splits

    def _find(self, path: str, name: str | None, inside: dict[str, Any]) -> Mapping[str, Any] | None:
        if path in self._exams:
            exam = self._exams[path]
            self._use(path, None, exam.path)
            return exam.dataset(name)
        for key in (f"{path}/{name}", path):
            if key in self._named:
                file = self._named[key]
                self._use(path, name, file)
                if file.is_dir():
                    return self._in_folder(file, path, name, inside)
                return self._file(file)
        for folder in self._folders:
            short = path.rpartition("/")[2]
            bases = [folder / path, folder / path.replace("/", "__"), folder / short]
            bases += [folder] if folder.absolute().name in (short, path.replace("/", "__")) else []
            for base in dict.fromkeys(bases):
                if base.is_dir() and (found := self._in_folder(base, path, name, inside)) is not None:
                    return found
        for known, (config, _) in data_files.OFFICIAL.items():
            if known in self._official and path in (known, known.rpartition("/")[2]) and name in (config, None):
                files = self._official[known]
                self._use(path, name, *files.values())
                return data_files.read_official(known, files)
        return None

    def _in_folder(self, base: Path, path: str, name: str | None, inside: dict[str, Any]) -> Mapping[str, Any] | None:
        """A data set's folder; None where nothing in it is laid out in a way that is known."""
        if name and data_files.layout(base / name):
            self._use(path, name, base / name)
            return data_files.open_folder(base / name, None, inside)
        layout = data_files.layout(base)
        if layout is None:
            return None
        if name and layout != "hub":
            folders = [one for one in sorted(base.iterdir()) if one.is_dir() and one.name != "data"]
            others = [one.name for one in folders if data_files.layout(one)]
            before = self._config_of.setdefault(base, name)
            if others or before != name:
                raise UserError(
                    f"{base} has no folder for the configuration {name!r} (it has {', '.join(others) or before}). "
                    + _how(path, name)
                )
            self._say(f"{base} has no folder {name}: its files are taken for that configuration of {path}.")
        self._use(path, name, base)
        return data_files.open_folder(base, name, inside)

    def _file(self, file: Path) -> Mapping[str, Any]:
        """One file under a name. Where its own name tells no split, it is what a task is scored on."""
        known, _ = data_files.recognised(file)
        if known == "google-research-datasets/mbpp":
            return data_files.read_official(known, {"": file})
        match = data_files.SPLIT_FILE.fullmatch(file.name)
        if match:
            return data_files.read_files({data_files.canonical(match): [file]})
        rows = data_files.read_files({"test": [file]})["test"]
        self._say(f"{file} names no split: its rows are the test and the validation split.")
        return {"test": rows, "validation": rows}

    def _say(self, remark: str) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)

    def _use(self, path: str, name: str | None, *sources: Path) -> None:
        key = f"{path}/{name}" if name else path
        if key not in self.used:
            self.used[key] = f"{', '.join(map(str, sources))} sha256:{data_files.digest(sources)}"


# ---------------------------------------------------------------------------------------------------------------------
# Where data may lie in a folder


def _zips_and_folders(path: Path) -> Iterator[Path]:
    for pattern in ("", "*", "*/*"):
        some = sorted(path.glob(pattern)) if pattern else [path]
        yield from (one for one in some if one.is_dir() or one.suffix.lower() == ".zip")


def _jsonl(path: Path) -> Iterator[Path]:
    for pattern in ("*.jsonl", "*.jsonl.gz", "*/*.jsonl", "*/*.jsonl.gz"):
        yield from sorted(path.glob(pattern))


def _folders(path: Path) -> Iterator[Path]:
    for pattern in ("", "*/", "*/*/", "*/*/*/"):
        yield from sorted(path.glob(pattern)) if pattern else [path]


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def _splits(found: Mapping[str, Any], path: str, name: str | None) -> Any:
    """A DatasetDict that speaks of a split that is not there.

    lm-eval asks for the split of examples even for a task without examples. So a missing split has no rows and the
    columns of its neighbours, and fails when a row is asked for.
    """
    dict_class, empty_class = _classes()
    splits = dict_class(found)
    features = next(iter(found.values())).features
    what = f"the local data of {_spelled(path, name)} have the splits {', '.join(found)} and not"

    def missing(split: str) -> Any:
        others = [other for other in STAND_INS.get(split, ()) if other in found]
        if others:
            return found[others[0]]
        rows = empty_class.from_dict({column: [] for column in features}, features=features)
        rows.lacks = f"{what} {split!r}, which the task reads. Add a file {split}.jsonl."
        return rows

    splits.missing = missing
    return splits


@functools.cache
def _classes() -> tuple[Any, Any]:
    import datasets

    class Splits(datasets.DatasetDict):
        missing: Any

        def __missing__(self, split: str) -> Any:
            return self.missing(split)

    class NoRows(datasets.Dataset):
        lacks = ""

        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, str):
                return super().__getitem__(key)
            raise UserError(self.lacks)

    return Splits, NoRows


# ---------------------------------------------------------------------------------------------------------------------
# The place of `datasets.load_dataset`

_active: list[LocalData | None] = []


@contextlib.contextmanager
def active(data: LocalData | None) -> Iterator[None]:
    """Inside, `datasets.load_dataset` answers from `data`; from the hub where it is None.

    Raises (inside, from the call):
        UserError: not in the local data, and then the network is left alone; or no answer from the hub.
    """
    import datasets

    before = datasets.load_dataset
    _active.append(data)
    datasets.load_dataset = _load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = before
        _active.pop()


def _load_dataset(path: str, name: str | None = None, **asked: Any) -> Any:
    # A task that said `from datasets import load_dataset` inside the context keeps this function for ever.
    if not _active:
        return _real()(path, name, **asked)
    data = _active[-1]
    return _on_hub(path, name, **asked) if data is None else data.load(path, name, **asked)


def _real() -> Any:
    from datasets.load import load_dataset

    return load_dataset


def _on_hub(path: str, name: str | None, **asked: Any) -> Any:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    from unmask.sources import one_line

    try:
        return _real()(path, name, **asked)
    except (ConnectionError, DatasetsError, HfHubHTTPError) as error:  # all that datasets 5.2 says of an absent hub
        raise UserError(
            f"cannot load the data set {_spelled(path, name)}: {one_line(error)}. {_how(path, name)}"
        ) from None
    except (RuntimeError, ValueError) as error:
        # datasets 5.2: a repository that is a script; a configuration that is not there, or not in the cache
        if not re.search(r"scripts are no longer supported|^BuilderConfig |^Couldn't find cache", str(error)):
            raise
        raise UserError(
            f"cannot load the data set {_spelled(path, name)}: {one_line(error)}. {_how(path, name)}"
        ) from None


def _spelled(path: str, name: str | None) -> str:
    return f"{path!r} (configuration {name!r})" if name else repr(path)


def _how(path: str, name: str | None) -> str:
    """How to lay a data set out, in one sentence."""
    kind = next((kind for kind, names in exams.NAMES.items() if path in names), None)
    zipped = f"the official zip of {kind}, or with " if kind else ""
    return f"Without the hub: --local_data DIR with {zipped}DIR/{path}/{f'{name}/' if name else ''}test.jsonl."


def enough_examples(tasks: Mapping[str, Any], num_fewshot: int | None) -> None:
    """UserError for a task that has fewer examples than it is to show: lm-eval (0.4.13) fails with a bare assertion.

    Args:
        tasks: name → lm-eval's task, as `TaskManager.load` gives them. num_fewshot: --num_fewshot, where given.
    """
    for name, task in tasks.items():
        own = task.config.num_fewshot
        wanted = (own or 0) if num_fewshot is None or own == 0 else num_fewshot  # 0 in a task's file stays 0
        same = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.config.test_split
        there = len(task.sampler.df) - same if hasattr(task, "sampler") else wanted
        if there < wanted:
            split = task.fewshot_cfg.split or task.config.training_split or task.config.validation_split or "test"
            raise UserError(
                f"{name} is to show {wanted} examples, from the split {split!r}, which has {max(there, 0)}. "
                f"Lower --num_fewshot to {max(there, 0)}, or add the file {split}.jsonl to the local data."
            )
