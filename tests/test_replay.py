"""A replay is what happened: every canvas comes back, and no token in it can act on the page that plays it."""

import dataclasses
import html.parser
import itertools
import json
import re
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from toy import EOS, MASK, VOCABULARY, Toy, favouring

from unmask import decoding, replay, replay_gif, replay_page
from unmask.canvas import Canvas, Choice
from unmask.config import UserError

FIXTURE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclasses.dataclass
class Settings:
    """Rule: restless"""

    grows: bool = False
    seed: int = 0


class Restless(decoding.Rule):
    """Writes some places, and now and then opens or rewrites others, and may grow the row."""

    revises = True

    def limit(self, row):
        return 10**6

    def choose(self, row, seen):
        chance = row.generator("restless")

        def some(places, most):
            order = torch.randperm(len(places), generator=chance)
            return places[order[: int(torch.randint(0, most + 1, (1,), generator=chance))]]

        places = some(row.candidates(), 3)
        standing = torch.nonzero(row.free & ~row.open).flatten()
        calm = row.step > 30
        again = some(standing, 1)[: 0 if calm else 1]
        back = some(standing[~torch.isin(standing, again)], 1 if not calm else 0)
        if calm and not len(places):
            places = row.candidates()[:1]
        places = torch.cat([places, again])
        tokens = torch.randint(0, MASK, (len(places),), generator=chance)
        return Choice(places, tokens, torch.rand(len(places), generator=chance), reopen=back if len(back) else None)


def picture(row):
    """What stands where, as the row itself says it."""
    return [
        (None, 0, None) if is_open else (token, at, None if sure != sure else round(sure, 6))
        for token, is_open, at, sure in zip(
            row.ids.tolist(), row.open.tolist(), row.written_at.tolist(), row.confidence.tolist(), strict=True
        )
    ]


def played(record):
    """The same, as the record says it."""
    for cells in replay.states(record):
        yield [(cell.id, 0 if cell.confidence is None else cell.step, cell.confidence) for cell in cells]


def recorded(tokenizer, row, predict=None, grow=()):
    """Run a prepared row to its end; the record, and the row's picture before and after each step."""
    recorder, pictures = replay.Recorder(tokenizer, row, {"temperature": 0.0}), [picture(row)]
    for number in itertools.count():
        if row.finished:
            return recorder.record(), pictures
        if number < len(grow) and len(row.candidates()):
            place = int(row.candidates()[grow[number][0] % len(row.candidates())])
            row.grow(place, grow[number][1])
        decoding.step(predict or Toy(), [row])
        recorder.note(row)
        pictures.append(picture(row))


def restless(prompt, new, block_size, seed):
    row = Canvas.after([prompt], new, MASK).rows[0]
    decoding.prepare(Toy(), [row], block_size=block_size, seed=seed)
    row.rule = Restless(Settings())
    return row


PROMPT = st.lists(st.integers(0, VOCABULARY - 1), max_size=4)


@given(PROMPT, st.integers(1, 14), st.one_of(st.none(), st.integers(1, 5)), st.integers(0, 99), st.booleans())
@FIXTURE
def test_every_canvas_of_a_run_comes_back(byte_tokenizer, prompt, new, block_size, seed, calm):
    row = restless(prompt, new, block_size, seed)
    if calm:
        row = Canvas.after([prompt], new, MASK).rows[0]
        decoding.prepare(Toy(), [row], block_size=block_size, seed=seed, remasking="random", steps=1 + seed % new)
    record, pictures = recorded(byte_tokenizer, row)
    assert list(played(record)) == pictures
    assert json.loads(replay.plain(record)) == record
    assert [entry["passes"] for entry in record["steps"]][-1] == row.passes


@given(
    st.integers(2, 10), st.integers(1, 5), st.integers(0, 99),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), min_size=1, max_size=5),
)  # fmt: skip
@FIXTURE
def test_a_row_that_grows_comes_back_at_its_new_length(byte_tokenizer, new, block_size, seed, grow):
    row = Canvas.after([[1, 2, 3]], new, MASK, constraints={new - 1: 4}).rows[0]
    decoding.prepare(Toy(), [row], block_size=block_size, seed=seed)
    record, pictures = recorded(byte_tokenizer, row, grow=grow)
    assert list(played(record)) == pictures
    assert any(entry["grown"] for entry in record["steps"])


def test_what_is_not_told_in_between_is_told_at_once(byte_tokenizer):
    row = restless([1], 9, 4, 5)
    recorder, seen = replay.Recorder(byte_tokenizer, row), [picture(row)]
    while not row.finished:
        decoding.step(Toy(), [row])
        if row.step % 3 == 0 or row.finished:
            recorder.note(row)
            recorder.note(row)  # nothing new: nothing noted
            seen.append(picture(row))
    told = list(played(recorder.record()))
    assert [[(token, sure) for token, _, sure in canvas] for canvas in told] == [
        [(token, sure) for token, _, sure in canvas] for canvas in seen
    ]


def test_what_an_end_fills_has_no_confidence(byte_tokenizer):
    row = Canvas.after([[1]], 6, MASK).rows[0]
    decoding.prepare(Toy(), [row], eos_stop=True)
    toy = Toy(favouring([1, 2, EOS, 3, 3, 3, 3], [0.0, 9.0, 8.0, 1.0, 1.0, 1.0, 1.0]))
    record, pictures = recorded(byte_tokenizer, row, toy)
    assert record["finished"] == "stop"
    assert [w[0] for w in record["steps"][-1]["written"] if w[3] is None] == [3, 4, 5, 6]
    assert list(played(record))[-1] == pictures[-1]


def test_a_row_that_lost_places_is_not_explained_away(byte_tokenizer):
    row = restless([1, 2], 5, None, 0)
    recorder = replay.Recorder(byte_tokenizer, row)
    other = restless([1, 3], 9, None, 0)
    with pytest.raises(ValueError, match="does not go on from it"):
        recorder.note(other)
    with pytest.raises(ValueError, match="does not go on from it"):
        recorder.note(restless([1, 2], 3, None, 0))


# ---------------------------------------------------------------------------------------------------------------------
# Letters


def watched(tokenizer, ids, order):
    """The record of a row in which these tokens are written one by one in some order."""
    row = Canvas.after([[]], len(ids), 258).rows[0]
    recorder = replay.Recorder(tokenizer, row)
    for step, place in enumerate(order, 1):
        row.step = step
        row.ids[place], row.open[place], row.written_at[place], row.confidence[place] = ids[place], False, step, 0.5
        recorder.note(row)
    return recorder.record()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8), st.randoms())
@FIXTURE
def test_a_letter_shows_when_all_its_bytes_stand_and_the_end_is_the_text(byte_tokenizer, text, random):
    ids = byte_tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    order = list(range(len(ids)))
    random.shuffle(order)
    record = watched(byte_tokenizer, ids, order)
    last_bytes = list(itertools.accumulate(len(c.encode()) for c in text))
    for cells in replay.states(record):
        for letter, start, end in zip(text, [0, *last_bytes], last_bytes, strict=False):
            own = cells[start:end]
            if all(cell.id is not None for cell in own):
                assert "".join(cell.text for cell in own) == letter
            else:
                assert all(cell.text is None for cell in own)
    assert "".join(cell.text for cell in cells) == text


def test_blanks_that_a_tokenizer_drops_at_a_start_are_kept_between_words():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"▁cat": 0, "▁sat": 1, "[M]": 2}, unk_token="▁cat"))
    inner.decoder = decoders.Metaspace()
    record = watched(PreTrainedTokenizerFast(tokenizer_object=inner), [0, 1, 0], [2, 0, 1])
    assert [[cell.text for cell in cells] for cells in replay.states(record)][1:] == [
        [None, None, " cat"], ["cat", None, " cat"], ["cat", " sat", " cat"],
    ]  # fmt: skip


def test_special_tokens_are_told_by_name_and_controls_by_their_pictures(byte_tokenizer):
    record = watched(byte_tokenizer, [257, *byte_tokenizer.encode("\x1b", add_special_tokens=False)], [0, 1])
    assert record["special"] == [257]
    assert [w[2] for entry in record["steps"] for w in entry["written"]] == ["<|endoftext|>", "␛"]


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.fixture
def record(byte_tokenizer):
    return recorded(byte_tokenizer, restless([1, 2], 9, 4, 3))[0]


def test_json_comes_back_as_it_was(record, tmp_path):
    path = replay.write(record, tmp_path / "a.JSON")
    assert replay.read(path) == record
    assert len(path.read_text().splitlines()) == len(record) + len(record["steps"]) + 3


class Parts(html.parser.HTMLParser):
    """Tags with their attributes, and what stands in scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.inside, self.key = [], {}, None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.key = dict(attrs).get("id", tag) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.key = None

    def handle_data(self, data):
        if self.key:
            self.inside[self.key] = self.inside.get(self.key, "") + data


EVIL = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "@script@",
    "]]>",
]


@pytest.mark.parametrize("evil", EVIL)
def test_markup_in_a_record_is_inert(record, evil):
    before = Parts(replay_page.page(record))
    record["steps"][0]["written"] = [[place, i, evil, sure] for place, i, _, sure in record["steps"][0]["written"]]
    record |= {"rule": evil, "settings": {evil: evil}, "tokens": dict.fromkeys(record["tokens"], evil)}
    page = replay_page.page(record)
    after = Parts(page)
    assert after.tags == before.tags
    assert after.inside["script"] == before.inside["script"]
    told = json.loads(after.inside["trace"])
    assert told.pop("levels")
    assert told == record
    assert page.count("</script") == 2


def test_the_page_loads_nothing_and_runs_only_what_is_its_own(record):
    page = replay_page.page(record)
    parts = Parts(page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|innerHTML|insertAdjacent|document\.write|eval\(", page)
    assert not [attrs for _, attrs in parts.tags if {"src", "href", "style", "onclick", "onload"} & attrs.keys()]
    policy = next(a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == replay_page.hash_of(parts.inside["script"])
    assert rules["style-src"] == replay_page.hash_of(parts.inside["style"])
    assert "@" not in page.split("<script", 1)[0].replace("@media", "")


def test_every_name_the_script_asks_for_is_on_the_page(record):
    parts = Parts(replay_page.page(record))
    there = {attrs["id"] for _, attrs in parts.tags if "id" in attrs}
    asked = set(re.findall(r'get(?:ElementById)?\("(\w+)"\)', parts.inside["script"]))
    assert asked <= there


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("number", "level"), enumerate(replay_page.LEVELS))
def test_text_can_be_read_on_every_colour(number, level):
    """WCAG 2.2: a contrast of at least 4.5."""
    pairs = [("#1b1f24", level.light), ("#e6e9ec", level.dark), ("#ffffff", level.fresh_light)]
    for ink, paper in [*pairs, ("#0f1317", level.fresh_dark)]:
        high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert replay_page.level(level.below - 0.02) == number


def frames(path):
    with Image.open(path) as image:
        for number in range(image.n_frames):
            image.seek(number)
            yield image.info["duration"], image.convert("RGB")


def test_a_gif_has_a_frame_a_step_and_holds_the_last(record, tmp_path):
    found = list(frames(replay.write(record, tmp_path / "a.gif")))
    assert len(found) == len(record["steps"]) + 1
    assert found[0][0] == 800
    assert found[-1][0] == 2000
    assert len({picture.size for _, picture in found}) == 1
    assert found[0][1].size[1] <= 900
    assert found[0][1].getpixel((1, 1)) == (255, 255, 255)


def drawn(record):
    return list(replay_gif.frames_of(record, replay.states(record)))


def long(byte_tokenizer, new):
    ids = byte_tokenizer.encode("line\n" * (new // 5), add_special_tokens=False)
    return watched(byte_tokenizer, ids, range(len(ids)))


def test_a_long_replay_is_merged_and_scrolls_but_begins_and_ends_as_it_should(byte_tokenizer):
    record = long(byte_tokenizer, 700)
    found = drawn(record)
    assert len(found) == 300
    assert (found[0].entry, found[-1].entry) == (0, 700)
    assert found[-1].written == 700
    assert max(len(frame.lines) for frame in found) == 30
    assert found[-1].above == 141 - 30
    fresh = [sum(len(text) for line in frame.lines for text, style in line if "fresh" in style) for frame in found]
    assert sum(fresh[:40]) + 40 >= found[39].written > 80  # a new line has no width


@given(st.text("ab 天🙂\té", max_size=300), st.integers(0, 40))
def test_lines_of_a_gif_are_as_wide_as_it_is_and_lose_only_blanks(text, masks):
    from rich.cells import cell_len

    found = [replay_gif.Piece("given", text, 0), replay_gif.Piece("mask", "░" * masks, 1)]
    lines, _ = replay_gif.wrapped(found, 0)
    for line in lines:
        assert sum(2 * len(part) if style == "mask" else cell_len(part) for part, style in line) <= replay_gif.COLUMNS
    told = "".join(part for line in lines for part, _ in line)
    assert told.replace(" ", "") == (text + "░" * masks).replace(" ", "").replace("\t", "")


def test_letters_that_no_font_has_are_told_of_once(record, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(replay_gif, "best_for", lambda letters: (None, letters))
    replay.write(record, tmp_path / "a.gif")
    assert capsys.readouterr().err == ""
    record["places"][0][1] = "天"
    replay.write(record, tmp_path / "a.gif")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "1 of the letters (天)" in told


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.mp4", "cannot tell what .*name it FILE.html, FILE.gif or FILE.json"),
        ("a", "cannot tell what"),
        ("none/a.html", "there is no such folder"),
        ("folder.gif", "it is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(record, tmp_path, name, told):
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UserError, match=told):
        replay.write(record, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.gif"]


def test_without_pillow_a_gif_is_refused_before_anything_is_written(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match="pip install pillow"):
        replay.write(record, tmp_path / "a.gif")
    replay.write(record, tmp_path / "a.html")


def test_a_replay_that_fails_leaves_what_was_there(record, tmp_path):
    path = tmp_path / "a.html"
    path.write_text("before")
    record["settings"] = {"x": float("nan")}
    with pytest.raises(ValueError, match="JSON"):
        replay.write(record, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_settings_that_json_cannot_hold_are_told_as_text(byte_tokenizer, tmp_path):
    row = restless([1], 2, None, 0)
    settings = {"nan": float("nan"), "path": tmp_path, "rule": "mine"}
    recorder = replay.Recorder(byte_tokenizer, row, settings)
    record = recorder.record()
    assert record["settings"] == {"nan": "NaN", "path": str(tmp_path), "rule": "mine", "grows": False, "seed": 0}
    assert (record["rule"], record["finished"], record["steps"]) == ("mine", None, [])
    assert replay.read(replay.write(record, tmp_path / "a.json")) == record
    assert len(list(frames(replay.write(record, tmp_path / "a.gif")))) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no replay; expected format 1"),
        ('{"format": 2}', "holds a replay of format 2; expected format 1"),
        ('{"format": 1}', r"is a broken replay \(KeyError"),
        ('{"format": 1, "places": [[1, "a", true]], "steps": [{"grown": [], "reopened": [0]}]}', "not to be written"),
    ],
)
def test_what_is_no_replay_is_named(tmp_path, text, told):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        replay.read(path)
    with pytest.raises(UserError, match="no file"):
        replay.read(tmp_path / "b.json")
