"""The official files of CMMLU, C-Eval and MMLU as the data sets that lm-eval's tasks read.

In:  a zip or a folder with `dev/`, `val/`, `test/` full of CSV files, as their authors give them out.
Out: an Exam, which has a `datasets.DatasetDict` for each subject, in the columns of the data set on the hub.

    exam    columns of a file                              data set on the hub
    CMMLU   (number),Question,A,B,C,D,Answer               haonan-li/cmmlu
    C-Eval  id,question,A,B,C,D[,answer[,explanation]]     ceval/ceval-exam; the test files have no answers
    MMLU    no head: question, four choices, a letter      cais/mmlu

Which one it is, the files' contents say, not their names. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from unmask.config import UserError, nearest

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]

LETTERS = "ABCD"
SPLITS = {"dev": "dev", "val": "val", "validation": "val", "test": "test"}
"""Folder → split."""

NAMES = {
    "CMMLU": ("haonan-li/cmmlu", "lmlmcat/cmmlu"),
    "C-Eval": ("ceval/ceval-exam",),
    "MMLU": ("cais/mmlu", "hails/mmlu_no_train", "lukaemon/mmlu"),
}
"""Exam → its data set on the hub, and copies of it there. The first is the one that lm-eval 0.4.13 asks for."""

COLUMNS = {
    "CMMLU": ("Question", *LETTERS, "Answer"),
    "C-Eval": ("id", "question", *LETTERS, "answer", "explanation"),
    "MMLU": ("question", "subject", "choices", "answer"),
}


@dataclasses.dataclass(frozen=True)
class Exam:
    """An exam's rows, all of them read and checked.

    kind: a key of NAMES. rows: split → subject → rows, under the hub's names of splits and columns.
    """

    kind: str
    path: Path
    rows: dict[str, dict[str, list[Row]]]
    remarks: list[str] = dataclasses.field(default_factory=list)

    @property
    def dataset_path(self) -> str:
        """The data set on the hub that this stands for."""
        return NAMES[self.kind][0]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Every subject, sorted."""
        return tuple(sorted({subject for some in self.rows.values() for subject in some}))

    def dataset(self, subject: str | None) -> datasets.DatasetDict:
        """The splits of a subject, or of all of them in the order of their names: `all`.

        Raises:
            UserError: no such subject.
        """
        import datasets

        if subject is None or subject not in (*self.subjects, "all"):
            hint = nearest(str(subject), self.subjects)
            raise UserError(
                f"{self.path} ({self.kind}) has no subject {subject!r}; it has {len(self.subjects)}, from "
                f"{self.subjects[0]} to {self.subjects[-1]}, and 'all'.{hint}"
            )
        asked = self.subjects if subject == "all" else (subject,)
        found = {}
        for split, some in self.rows.items():
            rows = [row for name in asked for row in some.get(name, ())]
            if rows:
                columns = {name: [row[name] for row in rows] for name in COLUMNS[self.kind]}
                found[split] = datasets.Dataset.from_dict(columns, features=_features(self.kind))
        return datasets.DatasetDict(found)


def _features(kind: str) -> datasets.Features:
    from datasets import Features, List, Value

    kinds = {"id": Value("int64"), "choices": List(Value("string"))}
    if kind == "MMLU":
        kinds["answer"] = Value("int64")
    return Features({name: kinds.get(name, Value("string")) for name in COLUMNS[kind]})


# ---------------------------------------------------------------------------------------------------------------------
# From the disk


def read(path: Path) -> Exam | None:
    """The exam in a zip or a folder; None where there is none of the three, or a folder holds several.

    Args:
        path: `dev/`, `val/`, `test/` stand in it or one folder deeper.

    Raises:
        UserError: a row that is broken, a subject twice, files of several exams mixed, a zip that cannot be read.
    """
    if path.is_dir():
        return _exam(path, _in_folder(path))
    if path.suffix.lower() != ".zip" or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(PurePosixPath(name), name) for name in archive.namelist() if not name.endswith("/")]
            return _exam(path, ((inner, archive.read(name)) for inner, name in members if _place(inner)))
    # RuntimeError: a zip with a password; NotImplementedError: packed in a way that Python does not know
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"cannot read {path}: {error}. Give the zip as it was downloaded, or unpacked.") from None


def _in_folder(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    roots = [path, *sorted(one for one in path.iterdir() if one.is_dir())]
    for root in roots:
        for split in SPLITS:
            for file in sorted((root / split).glob("*.csv")):
                inner = PurePosixPath(file.relative_to(path).as_posix())
                if file.is_file() and _place(inner):
                    yield inner, file.read_bytes()


def _place(file: PurePosixPath) -> tuple[str, str, str] | None:
    """(the folder above the splits, split, subject) of a file of an exam, or None: `data/dev/law_dev.csv`."""
    # macOS puts `__MACOSX/dev/._law.csv` into the zips that it makes.
    if file.suffix.lower() != ".csv" or any(part.startswith((".", "__MACOSX")) for part in file.parts):
        return None
    folders = file.parts[:-1]
    if len(folders) not in (1, 2) or folders[-1] not in SPLITS:
        return None
    subject = file.stem
    for word in SPLITS:
        subject = subject.removesuffix(f"_{word}") if word in (folders[-1], SPLITS[folders[-1]]) else subject
    return folders[0] if len(folders) == 2 else "", SPLITS[folders[-1]], subject


def _exam(path: Path, files: Iterable[tuple[PurePosixPath, bytes]]) -> Exam | None:
    tables: dict[PurePosixPath, list[tuple[int, list[str]]]] = {}
    places: dict[PurePosixPath, tuple[str, str, str]] = {}
    for inner, content in files:
        place = _place(inner)
        assert place is not None
        places[inner] = place
        tables[inner] = _table(f"{path}: {inner}", content)
    roots = sorted({root for root, _, _ in places.values()})
    if len(roots) > 1 and path.is_dir():
        return None
    kinds = {inner: kind for inner, table in tables.items() if (kind := _kind(table))}
    if not kinds:
        return None
    if len(roots) > 1:
        raise UserError(f"{path} holds several folders with an exam ({', '.join(roots)}); give each as its own zip.")
    first = next(iter(kinds))
    for inner, kind in kinds.items():
        if kind != kinds[first]:
            raise UserError(f"{path} mixes exams: {first} is of {kinds[first]} and {inner} of {kind}.")
    return _checked(path, kinds[first], tables, places)


def _checked(
    path: Path,
    kind: str,
    tables: dict[PurePosixPath, list[tuple[int, list[str]]]],
    places: dict[PurePosixPath, tuple[str, str, str]],
) -> Exam:
    rows: dict[str, dict[str, list[Row]]] = {}
    for inner, table in tables.items():
        _, split, subject = places[inner]
        split = "validation" if (kind, split) == ("MMLU", "val") else split
        there = rows.setdefault(split, {})
        if subject in there:
            raise UserError(f"{path}: {inner}: the subject {subject!r} is there twice among the files of {split}.")
        there[subject] = list(_rows(f"{path}: {inner}", kind, split, subject, table))
    exam = Exam(kind, path, rows)
    if kind == "MMLU" and "test" not in rows and "validation" in rows:
        rows["test"] = rows["validation"]
        exam.remarks.append(f"{path} has no test files of MMLU: its validation questions stand in for them.")
    return exam


# ---------------------------------------------------------------------------------------------------------------------
# One file


def _table(where: str, content: bytes) -> list[tuple[int, list[str]]]:
    """(the line that it begins in, cells) of each row of a CSV file; blank lines are none."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text.") from None
    try:
        return list(_cells(text, strict=True))
    except csv.Error as error:
        # A quote that is never closed swallows the rest of the file without a word when reading is not strict. Any
        # other fault, such as `"a"b`, is read as spreadsheets do.
        if "unexpected end" in str(error):
            raise UserError(f"{where}: a quotation mark is opened and never closed.") from None
    try:
        return list(_cells(text, strict=False))
    except csv.Error as error:
        raise UserError(f"{where}: {error}.") from None


def _cells(text: str, strict: bool) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=strict)
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1


def _kind(table: list[tuple[int, list[str]]]) -> str | None:
    """What a file belongs to, told by its first row."""
    first = table[0][1] if table else []
    if len(first) == 7 and tuple(first[1:]) == COLUMNS["CMMLU"]:
        return "CMMLU"
    if len(first) in (6, 7, 8) and tuple(first) == COLUMNS["C-Eval"][: len(first)]:
        return "C-Eval"
    return "MMLU" if len(first) == 6 and _is_letter(first[5].strip()) else None


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text in LETTERS


def _rows(where: str, kind: str, split: str, subject: str, table: list[tuple[int, list[str]]]) -> Iterator[Row]:
    if len(table) < (1 if kind == "MMLU" else 2):
        raise UserError(f"{where} holds no question.")
    head = [] if kind == "MMLU" else table[0][1]
    if kind != "MMLU" and _kind(table) != kind:
        raise UserError(f"{where}, line 1: the columns are {','.join(head)[:80]!r}; expected those of {kind}.")
    width = 6 if kind == "MMLU" else len(head)
    if kind == "C-Eval" and "answer" not in head and split != "test":
        raise UserError(f"{where}, line 1: there is no column 'answer'; only the test files of C-Eval have none.")
    for line, cells in table if kind == "MMLU" else table[1:]:
        if len(cells) != width:
            raise UserError(f"{where}, line {line}: {len(cells)} columns; expected {width}.")
        named = dict(zip(("question", *LETTERS, "answer") if kind == "MMLU" else head, cells, strict=True))
        key = "Answer" if kind == "CMMLU" else "answer"
        letter = named.get(key, "").strip()
        # C-Eval keeps the answers of its test to itself; they are empty on the hub too.
        secret = kind == "C-Eval" and split == "test" and not letter
        if not secret and not _is_letter(letter):
            raise UserError(f"{where}, line {line}: the answer is {named.get(key)!r}; expected A, B, C or D.")
        if kind == "MMLU":
            choices = [named[one] for one in LETTERS]
            answer = LETTERS.index(letter)
            yield {"question": named["question"], "subject": subject, "choices": choices, "answer": answer}
        elif kind == "CMMLU":
            yield {**{name: named[name] for name in COLUMNS[kind]}, key: letter}
        else:
            try:
                number = int(named["id"])
            except ValueError:
                raise UserError(f"{where}, line {line}: the id is {named['id']!r}; expected a number.") from None
            yield {**named, "id": number, key: letter, "explanation": named.get("explanation", "")}
