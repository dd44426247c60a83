"""The live canvas: nothing broken, nothing dangerous, never higher or wider than the terminal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from toy import EOS, Toy, favouring

from unmask import decoding
from unmask.canvas import Canvas
from unmask.screen import BROKEN, OPEN, Piece, Screen, Speller, folded, place_at_work, shown, text_of

MASK = 258
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BROKEN), max_size=30)


def canvas_of(tokenizer, prompt, new):
    return Canvas.after([tokenizer.encode(prompt, add_special_tokens=False)], new, MASK).rows[0]


def write(row, place, ids, sure=0.9):
    """Put tokens down at one step, `place` counted from the answer's start."""
    at = int((~row.free).sum()) + place
    row.step += 1
    row.ids[at : at + len(ids)] = torch.tensor(ids)
    row.open[at : at + len(ids)] = False
    row.written_at[at : at + len(ids)] = row.step
    row.confidence[at : at + len(ids)] = sure


@pytest.fixture
def screen(byte_tokenizer, capsys):
    """The canvas without its prompt of one letter; nothing is drawn."""
    made = Screen(byte_tokenizer, 1)
    yield made
    made.close()


def plain(screen, row, width=80, height=24):
    return screen.picture(row, width, height).plain


# ---------------------------------------------------------------------------------------------------------------------
# Letters


@given(text=TEXTS, cuts=st.lists(st.integers(1, 5), max_size=60))
def test_spelling_piece_by_piece_gives_the_whole_text_and_no_broken_letter(byte_tokenizer, text, cuts):
    ids = byte_tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    speller, found, at = Speller(byte_tokenizer), [], 0
    for cut in [*cuts, len(ids)]:
        found.append(speller.add(ids[at : at + cut]))
        at += cut
    found.append(speller.rest())
    assert "".join(found) == text
    assert not any(BROKEN in piece for piece in found)


def test_bytes_that_are_no_letter_do_not_wait_for_ever(byte_tokenizer):
    lone = byte_tokenizer.encode("\xe9", add_special_tokens=False)[1]  # a byte that begins nothing
    speller = Speller(byte_tokenizer)
    assert "".join(speller.add([lone]) for _ in range(20)) + speller.rest() == BROKEN * 20
    assert any(speller.add([lone]) for _ in range(20))


def test_a_blank_between_words_is_kept_where_a_tokenizer_drops_the_first():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"▁cat": 0, "▁sat": 1, "▁on": 2}, unk_token="▁cat"))
    inner.decoder = decoders.Metaspace()
    speller = Speller(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert [speller.add([i]) for i in (0, 1, 2, 1)] == ["cat", " sat", " on", " sat"]


@given(st.text(st.characters(max_codepoint=0x120), max_size=20))
def test_what_is_shown_can_steer_no_terminal(text):
    safe = shown(text)
    assert not any((c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0" for c in safe)
    assert len(safe) == len(text)


def test_text_is_decoded_as_it_was_written(byte_tokenizer):
    code = "def f( a , b ) :\n\n    return 'x' .\n\t# n't"
    ids = byte_tokenizer.encode(code, add_special_tokens=False)
    assert text_of(byte_tokenizer, [*ids, 261, 257]) == code


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def test_every_open_place_is_a_mask_and_the_prompt_is_left_out(screen, byte_tokenizer):
    row = canvas_of(byte_tokenizer, "Q", 10)
    assert plain(screen, row) == OPEN * 10
    write(row, 2, byte_tokenizer.encode("ab", add_special_tokens=False))
    assert plain(screen, row) == OPEN * 2 + "ab" + OPEN * 6


def test_masks_are_dim_and_fresh_tokens_bright(screen, byte_tokenizer):
    row = canvas_of(byte_tokenizer, "Q", 4)
    write(row, 0, [65])
    write(row, 1, [66])
    styles = {piece.text: piece.style for piece in screen.pieces(row) if piece.text}
    old, new = (byte_tokenizer.decode([i]) for i in (65, 66))
    assert styles == {old: "", new: "bold bright_green", OPEN: "dim"}


def test_colours_tell_how_sure_the_model_was(byte_tokenizer):
    screen = Screen(byte_tokenizer, sure=True)
    row = canvas_of(byte_tokenizer, "Q", 4)
    for place, sure in enumerate((0.1, 0.5, 0.9)):
        write(row, place, [65 + place], sure)
    row.step += 1  # nothing is fresh any more
    assert [p.style for p in screen.pieces(row) if p.text] == ["bold", "red", "yellow", "green", "dim"]
    screen.close()


@given(order=st.permutations(range(12)))
@settings(max_examples=30)
def test_a_letter_of_which_bytes_are_missing_looks_open(byte_tokenizer, order):
    ids = byte_tokenizer.encode("天é🙂 ab", add_special_tokens=False)
    screen, row = Screen(byte_tokenizer, 1), canvas_of(byte_tokenizer, "Q", len(ids))
    for place in order:
        write(row, place, [ids[place]])
        picture = plain(screen, row)
        assert BROKEN not in picture
        assert set(picture) <= set("天é🙂 ab" + OPEN)
    assert picture == "天é🙂 ab"
    screen.close()


def test_ends_of_text_are_dots_and_never_their_names(screen, byte_tokenizer):
    row = canvas_of(byte_tokenizer, "Q", 6)
    write(row, 3, [261, 257, 257])
    assert plain(screen, row) == OPEN * 3 + "···"


@given(
    texts=st.lists(st.text(st.sampled_from("ab 天🙂\n\té\u0301"), max_size=20), max_size=6), width=st.integers(2, 30)
)
def test_lines_are_as_wide_as_the_terminal_and_lose_nothing(texts, width):
    lines, _ = folded((Piece(str(i), text, i) for i, text in enumerate(texts)), width, 0)
    whole = ["".join(text for text, _ in line) for line in lines]
    assert all(cell_len(line) <= width for line in whole)
    assert "".join(whole).replace(" ", "") == "".join(texts).translate({10: None, 9: None, 32: None})


@given(written=st.integers(0, 300), width=st.integers(8, 200), height=st.integers(3, 40))
@settings(max_examples=60)
def test_the_canvas_is_never_higher_than_it_may_be_and_shows_the_block_at_work(byte_tokenizer, written, width, height):
    row = canvas_of(byte_tokenizer, "Q", 320)
    row.blocks = list(torch.split(torch.nonzero(row.free).flatten(), 32))
    row.block = written // 32
    line = byte_tokenizer.encode("code\n", add_special_tokens=False)
    if written:
        write(row, 0, (line * 60)[:written])
    screen = Screen(byte_tokenizer, 1)
    picture = plain(screen, row, width, height).split("\n")
    lines, at_work = folded(screen.pieces(row), width, place_at_work(row))
    assert len(picture) == min(height, len(lines))
    assert all(cell_len(line) <= width for line in picture)
    assert OPEN in "".join(picture)
    first_mask = "".join(text for text, _ in lines[at_work])
    assert first_mask in picture
    screen.close()


def test_what_does_not_fit_is_counted(screen, byte_tokenizer):
    row = canvas_of(byte_tokenizer, "Q", 90)
    row.blocks = list(torch.split(torch.nonzero(row.free).flatten(), 10))
    write(row, 0, byte_tokenizer.encode("0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n", add_special_tokens=False))
    row.block = 2
    picture = plain(screen, row, 10, 6).split("\n")
    assert picture[0] == "… 9 more lines above"[:10]
    assert picture[-1] == "… 4 more lines below"[:10]
    assert picture[1:-1] == ["9", OPEN * 10, OPEN * 10, OPEN * 10]


def test_a_finished_row_shows_its_end(byte_tokenizer):
    toy = Toy(favouring([0, *[1] * 4, *[EOS] * 20]))
    canvas = Canvas.after([[0]], 24, 11)
    for _ in decoding.unmask(toy, canvas, block_size=4):
        pass
    assert place_at_work(canvas.rows[0]) == 25
