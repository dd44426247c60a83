"""A report reads the same as Markdown and as a page; nothing in it acts, nothing is fetched."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.studies.page import (
    Bullets,
    Code,
    Heading,
    Picture,
    Table,
    Text,
    as_html,
    as_markdown,
    inline,
    markdown,
    page,
)

VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """Which tags a page has, that all are closed in order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text())
def test_text_from_settings_makes_no_tags(text: str) -> None:
    allowed = {"code", "strong", "a"}
    assert {tag for tag, _ in Tags(inline(text)).seen} <= allowed
    assert "<" not in re.sub(r"`[^`]+`", "", as_markdown(Text(text)))


def test_the_marks_become_tags() -> None:
    assert inline("**a** and `b**` at [c](https://d/e)") == (
        '<strong>a</strong> and <code>b**</code> at <a href="https://d/e">c</a>'
    )
    assert "<a" not in inline("[x](javascript:alert(1))")


def test_a_lone_star_is_no_emphasis_in_markdown() -> None:
    assert as_markdown(Text("R_D* of **both** is `R*`")) == "R_D\\* of **both** is `R*`"


def test_a_table_has_as_many_cells_in_each_line() -> None:
    table = Table(["a", "b|c"], [["x | y", "1"], ["", "2"]])
    lines = as_markdown(table).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert lines[1] == "| --- | ---: |"
    tags = Tags(as_html(table, Path()))
    assert [tag for tag, _ in tags.seen].count("td") == 4
    assert [known.get("class") for tag, known in tags.seen if tag == "td"] == [None, "n"] * 2


def test_a_grade_is_told_in_words_not_in_colour_alone() -> None:
    shown = as_html(Table(["grade"], [["**yes**"], ["**undecided**"], ["maybe"]]), Path())
    assert '<span class="grade yes">yes</span>' in shown
    assert '<span class="grade undecided">undecided</span>' in shown
    assert "<td>maybe</td>" in shown


def test_a_page_is_one_file_without_scripts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    blocks = [
        Heading("One", 1),
        Text("two <script>alert(1)</script>"),
        Bullets(["three", "four"]),
        Code("unmask study <x>"),
        Picture("a.png", 'a "quoted" picture', "five"),
    ]
    text = page(blocks, "A <title>", tmp_path)
    tags = Tags(text)
    names = [tag for tag, _ in tags.seen]
    assert "script" not in names
    assert names.count("li") == 2
    assert "<title>A &lt;title&gt;</title>" in text
    (image,) = (known for tag, known in tags.seen if tag == "img")
    assert image["alt"] == 'a "quoted" picture'
    for _, known in tags.seen:
        assert str(known.get("src", "data:")).startswith("data:")
    assert "default-src 'none'" in text
    assert html.escape("unmask study <x>") in text
    written = markdown(blocks)
    for word in ("One", "two", "three", "four", "five"):
        assert word in tags.text
        assert word in written
    assert "](a.png)" in written


def test_a_picture_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        page([Picture("none.png", "", "")], "", tmp_path)
