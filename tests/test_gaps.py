"""Gaps in a text are what they are typed as, and text between braces stays text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import UserError
from unmask.gaps import parse_gaps

TEXT = st.text(alphabet="ab{}\\0123 \n", max_size=12)


@given(st.lists(st.one_of(TEXT, st.integers(1, 999)), max_size=6))
def test_what_is_escaped_comes_back_as_it_was(pieces):
    def written(piece):
        if isinstance(piece, int):
            return f"{{{{{piece}}}}}"
        return piece

    # text whose braces are written apart can only mean itself; gaps come back as numbers, neighbours in text as one
    pieces = [p if isinstance(p, int) else p.replace("{", "(").replace("\\", "/") for p in pieces]
    joined = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece != "":
            joined.append(piece)
    assert parse_gaps("".join(map(written, pieces))) == joined


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("return {{8}}\n", ["return ", 8, "\n"]),
        ("{{3}}{{4}}", [3, 4]),
        (r"\{{8}}", ["{{8}}"]),
        (r"a\{{8}} {{2}}", ["a{{8}} ", 2]),
        (r"\\{{8}}", ["\\", 8]),
        (r"\\\{{8}}", ["\\{{8}}"]),
        (r"\n \\ {{ 8 }} {{x}} {8}", [r"\n \\ {{ 8 }} {{x}} {8}"]),
        ("{{{8}}}", ["{", 8, "}"]),
    ],
)
def test_braces_around_a_number_are_a_gap_and_all_else_is_text(text, pieces):
    assert parse_gaps(text) == pieces


@pytest.mark.parametrize("text", ["a {{0}} b", "{{00}}"])
def test_a_gap_without_a_token_is_refused(text):
    with pytest.raises(UserError, match=r"at least 1, as in \{\{8\}\}"):
        parse_gaps(text)
