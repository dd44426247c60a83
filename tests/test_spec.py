"""A dataset spec says what the tutorial's users mean by it, and a misspelt one says what it could have meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import UserError
from unmask.spec import Part, find, parse


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("path", [Part("path")]),
        ("path[]", [Part("path")]),
        ("path[train:2000,test:200]", [Part("path", {"train": 2000, "test": 200})]),
        ("path[train:1000_000,test:1_000]", [Part("path", {"train": 1000000, "test": 1000})]),
        ("  path [ train : 5 ]  ", [Part("path", {"train": 5})]),
        ("a[train:5] + b[train:7,test:3]", [Part("a", {"train": 5}), Part("b", {"train": 7, "test": 3})]),
        ("a|b|c", [Part("a"), Part("b"), Part("c")]),
        ("hub/x[name:en,lang:python]", [Part("hub/x", {}, {"name": "en", "lang": "python"})]),
        ("x[train:0.9,test:10%]", [Part("x", {"train": 0.9, "test": 0.1})]),
        ("x[train:100%]", [Part("x", {"train": 1.0})]),
        ("x[train:1]", [Part("x", {"train": 1})]),
        ("x[train:1e6]", [Part("x", {"train": 1000000})]),
        ("x[validation:50]", [Part("x", {"validation": 50})]),
        ("x[split:validation,train:5]", [Part("x", {"train": 5}, {"split": "validation"})]),
        ("ms:a/b[by:line] + hf:c/d", [Part("ms:a/b", {}, {"by": "line"}), Part("hf:c/d")]),
    ],
)
def test_a_spec_is_read(spec: str, parts: list[Part]) -> None:
    assert parse(spec) == parts


words = (
    st.text(st.characters(categories=["Ll", "Nd"], include_characters="_-./ "), min_size=1).map(str.strip).filter(bool)
)
amounts = st.integers(1, 10**9) | st.sampled_from([0.25, 0.5, 1.0])


@given(
    st.lists(
        st.builds(
            Part,
            words.filter(lambda name: not find(name)),
            st.dictionaries(st.sampled_from(["train", "test"]), amounts),
            st.dictionaries(st.sampled_from(["name", "lang", "split"]), words),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_part_written_out_is_read_back(parts: list[Part]) -> None:
    assert parse(" + ".join(map(str, parts))) == parts


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "no data"),
        ("   ", "no data"),
        ("a +", "no name on one side of '+'"),
        ("| a", "no name on one side of '|'"),
        ("[train:5]", "one name and one pair of brackets"),
        ("a[train:5", "one name and one pair of brackets"),
        ("a[train:5]x", "one name and one pair of brackets"),
        ("a[train:5][test:5]", "one name and one pair of brackets"),
        ("a[train=5]", "Did you mean 'train:5'?"),
        ("a[validation]", "Did you mean 'split:validation'?"),
        ("a[train:]", "is not key:value"),
        ("a[train:5,]", "is not key:value"),
        ("a[trian:5]", "Did you mean 'train'?"),
        ("a[train:5,train:6]", "'train' stands there twice"),
        ("a[test:5,validation:6]", "test rows are asked for twice"),
        ("a[by:word]", "by:word is none of file, paragraph, line"),
        *(
            (f"a[train:{amount}]", "no amount of rows")
            for amount in ("-1", "0", "0%", "120%", "2.5", "many", "0.0", "inf", "nan")
        ),
    ],
)
def test_a_spec_that_cannot_be_read_says_so_in_one_line(spec: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse(spec)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x=1.jsonl", "a+b", "a | b", "data[v2]", "data[train:5]", "[x", "a + b[c", "sp ace"])
def test_what_exists_on_disk_comes_before_the_grammar(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert parse(name) == [Part(name)]
    assert parse(f"{name}[train:5]") == [Part(name, {"train": 5})]
    assert parse(f" {name} [test:3] + other | {name}") == [Part(name, {"test": 3}), Part("other"), Part(name)]
    assert parse(str(tmp_path / name)) == [Part(str(tmp_path / name))]


def test_the_working_folder_comes_before_the_base_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, base = tmp_path / "here", tmp_path / "base"
    for folder, names in ((here, "a"), (base, "ab")):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    monkeypatch.chdir(here)
    assert find("b") is None
    monkeypatch.setenv("BASE_DATASETS_DIR", str(base))
    assert find("a") == Path("a")
    assert find("b") == base / "b"
    assert find("c") is None


def test_a_name_too_long_for_a_file_is_no_file() -> None:
    assert find("x" * 5000) is None
