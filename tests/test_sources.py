"""Files, folders and hubs are opened for what they are; what cannot be read is told by file, line and reason."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from texts import jsonl, numbered

from unmask.config import UserError
from unmask.sources import open_part
from unmask.spec import parse

TEXTS = ["one", "two\nlines", "drei", "四"]


def rows(spec: str | Path, streaming: bool = False, split: str = "train") -> list[Any]:
    (part,) = parse(str(spec))
    return [row["text"] for row in open_part(part, streaming).splits[split]]


def refused(spec: str | Path, *said: str, streaming: bool = False) -> None:
    with pytest.raises(UserError) as error:
        rows(spec, streaming)
    for some in said:
        assert some in str(error.value)
    assert "\n" not in str(error.value)


def save_jsonl(path: Path, data: datasets.Dataset) -> None:
    data.to_json(path)


WRITERS: dict[str, Callable[[Path, datasets.Dataset], Any]] = {
    "a.jsonl": save_jsonl,
    "a.ndjson": save_jsonl,
    "a.json": lambda path, data: path.write_text(json.dumps(data.to_list(), indent=1)),
    "a.csv": lambda path, data: data.to_csv(path),
    "a.tsv": lambda path, data: data.to_csv(path, sep="\t"),
    "a.parquet": lambda path, data: data.to_parquet(path),
    "a.jsonl.gz": lambda path, data: path.write_bytes(gzip.compress(lines(data))),
    "a.jsonl.bz2": lambda path, data: path.write_bytes(bz2.compress(lines(data))),
    "a.jsonl.xz": lambda path, data: path.write_bytes(lzma.compress(lines(data))),
    "a.csv.gz": lambda path, data: path.write_bytes(gzip.compress(data.to_pandas().to_csv(index=False).encode())),
    "folder": lambda path, data: data.save_to_disk(str(path)),
}


def lines(data: datasets.Dataset) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in data).encode()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_its_rows(name: str, streaming: bool, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3, 4]}))
    assert rows(tmp_path / name, streaming) == TEXTS


@pytest.mark.parametrize("streaming", [False, True])
def test_arrow_files_are_read(streaming: bool, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert rows(file, streaming) == TEXTS


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("by", "documents"),
    [
        ("", ["First.\nSecond.\n\n\nThird.\n \nFourth.\n"]),
        ("[by:file]", ["First.\nSecond.\n\n\nThird.\n \nFourth.\n"]),
        ("[by:paragraph]", ["First.\nSecond.", "\nThird.\n \nFourth.\n"]),
        ("[by:line]", ["First.", "Second.", "Third.", "Fourth."]),
    ],
)
def test_a_txt_file_is_one_document_or_its_paragraphs_or_lines(
    by: str, documents: list[str], streaming: bool, tmp_path: Path
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("First.\r\nSecond.\n\n\nThird.\n \nFourth.\n", newline="")
    assert rows(f"{file}{by}", streaming) == documents


def test_a_folder_is_its_files_in_order_with_folders_inside_but_no_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a.jsonl", "b/1.jsonl", ".hidden.jsonl", ".git/x.jsonl", "__pycache__/x.jsonl"):
        jsonl(tmp_path / name, [name])
    (tmp_path / "README.md").write_text("# about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert rows(tmp_path) == ["a.jsonl", "b/1.jsonl", "b/2.jsonl"]
    assert rows(tmp_path / "b" / "*.jsonl") == ["b/1.jsonl", "b/2.jsonl"]
    assert rows(tmp_path / "*" / "?.jsonl[split:train]") == ["__pycache__/x.jsonl", "b/1.jsonl", "b/2.jsonl"]


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ("train.jsonl", "test.jsonl", "test"),
        ("c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz", "validation"),
        ("data/train-00000-of-00001.jsonl", "data/dev-00000-of-00001.jsonl", "dev"),
        ("train/a.jsonl", "valid/a.jsonl", "valid"),
        ("books/test.jsonl", "eval.jsonl", "eval"),
        ("latest.jsonl", "test_2.jsonl", "test"),
    ],
)
def test_the_first_step_of_a_path_tells_the_split(train: str, test: str, split: str, tmp_path: Path) -> None:
    for name in (train, test):
        file = jsonl(tmp_path / name, [name])
        if name.endswith(".gz"):
            file.write_bytes(gzip.compress(file.read_bytes()))
    assert rows(tmp_path) == [train]
    assert rows(tmp_path, split=split) == [test]


@pytest.mark.parametrize("streaming", [False, True])
def test_names_full_of_signs_are_only_names(streaming: bool, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "we[ir]d+d|x=1 {y}" / "a+b[1]=?*.jsonl", TEXTS)
    assert rows(file, streaming) == TEXTS
    assert rows(file.parent, streaming) == TEXTS


def test_csv_cells_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,007\n2,NA\n3,\n4,"a, ""b"""\n')
    assert rows(tmp_path / "a.csv") == ["007", "NA", "", 'a, "b"']


def test_a_card_in_the_folder_tells_configurations_apart(tmp_path: Path) -> None:
    jsonl(tmp_path / "en" / "x.jsonl", ["hello"])
    jsonl(tmp_path / "zh" / "x.jsonl", ["你好"])
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: en\n  data_files: en/x.jsonl\n- config_name: zh\n"
        "  data_files: zh/x.jsonl\n---\n# about\n"
    )
    assert rows(f"{tmp_path}[name:zh]") == ["你好"]
    refused(tmp_path, "['en', 'zh']", "[name:…]")
    refused(f"{tmp_path}[name:de]", "'de' not found", "en")


def test_a_name_of_modelscope_is_fetched_by_the_hubs_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, **how: Any) -> Path:
        asked.append((name, how))
        return jsonl(tmp_path / "got" / "a.jsonl", TEXTS).parent

    monkeypatch.setitem(sys.modules, "unmask.hub", types.SimpleNamespace(fetch=fetch))
    monkeypatch.setattr("unmask.hub", sys.modules["unmask.hub"], raising=False)
    assert rows("ms:owner/name") == TEXTS
    assert asked == [("owner/name", {"source": "modelscope", "kind": "dataset", "local_dir": None})]


def test_other_names_are_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None, **how: Any) -> datasets.DatasetDict:
        asked.append((name, config, how))
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})

    monkeypatch.setattr(datasets, "load_dataset", load)
    for spec in ("allenai/c4[name:en]", "hf:allenai/c4[name:en]"):
        assert rows(spec, streaming=True) == TEXTS
    assert asked == [("allenai/c4", "en", {"streaming": True})] * 2


def test_a_hub_that_does_not_answer_is_told_with_the_way_out() -> None:
    refused("allenai/c4", "no file or folder 'allenai/c4' here", "unmask download allenai/c4 --dataset")


def test_a_missing_path_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "c4-en-shuffled" / "a.jsonl", TEXTS)
    refused(tmp_path / "c4-en-shufled", "no file or folder", f"Did you mean '{tmp_path / 'c4-en-shuffled'}'?")
    monkeypatch.chdir(tmp_path)
    refused("c4-en-shufled", "no file or folder", "Did you mean 'c4-en-shuffled'?", "hf:c4-en-shufled")
    monkeypatch.chdir("/")
    monkeypatch.setenv("BASE_DATASETS_DIR", str(tmp_path))
    refused("c4-en-shufled", "Did you mean 'c4-en-shuffled'?")
    refused("./nowhere", "no file or folder './nowhere'.")
    refused("no/such/place", "no file or folder 'no/such/place'.")
    refused("nothing.jsonl", "no file or folder 'nothing.jsonl'.")
    refused("*.nothing", "no file or folder '*.nothing'.")


def test_a_folder_of_several_kinds_is_refused_with_their_names(tmp_path: Path) -> None:
    jsonl(tmp_path / "poems.jsonl", numbered(9))
    (tmp_path / "SOURCE.txt").write_text("where from")
    refused(tmp_path, "json: poems.jsonl; text: SOURCE.txt", f"'{tmp_path}/*.jsonl'")
    assert rows(f"{tmp_path}/*.jsonl") == numbered(9)


def test_what_is_no_data_is_refused_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    refused(tmp_path / "a.docx", "is no data file", ".jsonl", "save_to_disk")
    refused(tmp_path, "holds no data files", ".jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.parquet"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, "is empty (0 bytes)")


def test_what_zst_needs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"packed")
    monkeypatch.setattr(datasets.config, "ZSTANDARD_AVAILABLE", False)
    refused(tmp_path / "a.jsonl.zst", "pip install zstandard")


@pytest.mark.parametrize("option", ["by:line", "name:en"])
def test_an_option_that_does_not_apply_is_refused(option: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", TEXTS)
    refused(f"{file}[{option}]", "and here are json files")


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress], ids=["plain", "gz"])
def test_a_corrupt_json_line_is_told_by_file_and_line(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    name = "b.jsonl" if pack(b"{}") == b"{}" else "b.jsonl.gz"
    jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / name).write_bytes(pack(b'{"text": "a"}\n\n{"text": "b}\n{"text": "c"}\n'))
    refused(tmp_path, f"cannot read {tmp_path / name}, line 3")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'[\n{"text": "a"},\n{"text": "b"\n]\n'),
        ("a.parquet", b"PAR1 but no more"),
        ("a.arrow", b"nothing of the kind"),
        ("a.txt", b"\xff\xfe\x00not UTF-8\xff"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 10_000, mtime=0)[:60]),
        ("a.csv", b'text\n"a\nb'),
    ],
)
def test_what_cannot_be_read_is_told_by_file(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, f"cannot read {tmp_path / name}")


def test_a_broken_save_to_disk_folder_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder))
    for file in folder.glob("*.arrow"):
        file.write_bytes(b"")
    refused(folder, f"cannot read {folder}, a folder written by save_to_disk")


def test_files_of_different_columns_are_told_how_to_be_joined(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "score": 5}\n')
    refused(tmp_path, "have different columns", "'a.jsonl + b.jsonl'")


def test_nothing_is_logged_about_a_file_that_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "b}\n')
    before = datasets.utils.logging.get_verbosity()
    refused(tmp_path / "a.jsonl", "line 1")
    assert not re.search("Failed|Traceback|Error", capfd.readouterr().err)
    assert datasets.utils.logging.get_verbosity() == before
