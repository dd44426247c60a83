"""The guide's pages (docs/en, docs/zh) say what is so: commands run, links lead somewhere, the site builds."""

from __future__ import annotations

import html.parser
import importlib.util
import re
import shlex
import types
import urllib.parse
from pathlib import Path

import pytest
import test_readme as readme
from test_readme import CHINESE, GUIDE, README, ROOT, blocks, commands, short

from unmask import quickstart
from unmask.__main__ import main

DOCS = ROOT / "docs"
CONTENTS = (DOCS / "en" / "index.md").read_text(encoding="utf-8")
ENGLISH = sorted((DOCS / "en").glob("*.md"), key=lambda page: CONTENTS.find(f"({page.name})"))  # a reader's order
TRANSLATED = sorted((DOCS / "zh").glob("*.md"))
PAGES = [*ENGLISH, *TRANSLATED, *sorted(DOCS.glob("studies/**/*.md")), DOCS / "index.md"]
EVERY = dict.fromkeys(words for page in PAGES for words in commands(page))
TYPED = [words for words in EVERY if words not in readme.EVERY]  # the others are tried in test_readme.py

# ---------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.parametrize("words", TYPED, ids=lambda words: " ".join(words)[:70])
def test_a_command_of_the_guide_could_be_typed(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    readme.check(words)


OTHERS_WORDS = "coming-from.md"  # names other projects' options, too; what is to be typed instead is tried below


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != OTHERS_WORDS], ids=short)
def test_an_option_that_is_named_in_the_guide_exists(page: Path) -> None:
    readme.test_an_option_that_is_named_in_the_text_exists(page)


MINE = re.compile(r"\b(data/my|models/my|output/my)")
# Why a command is not run here: what it asks for is not on every machine, or another test runs it.
NOT_RUN = {
    "a model of 7 to 8 billion parameters": r"llada-8b|llada-100M|qwen|llada-8B",
    "a hub": r"unmask download",
    "a launcher or a script, which test_launch.py starts": r"^(accelerate|torchrun|bash|[A-Z_]+=)",
    "a recipe of those": r"--configs? configs/",
    "the whole quickstart, which test_quickstart.py runs": r"output/quickstart|output/eval/|^make",
    "a tracker's page": r"^(tensorboard|swanlab)",
    "a study, hours of training; test_study.py runs a small one": r"^(unmask study|python scripts/planning.py)",
    "what test_main.py types": r"^unmask( --version)?$",
    "a server, which test_serving_pages.py starts and asks": r"^(unmask serve|curl)",
    "llama.cpp's sources; test_llamacpp.py has what of it can be": r"^python scripts/to_gguf.py",
}
MAKERS = ("tokenizer", "init", "pretrain", "sft")  # others need what they make


def test_the_guides_commands_on_your_own_text_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that neither README nor reference has, behind what they need; the rest cannot be run here, and why."""
    tried = {words for page in (README, GUIDE) for words in commands(page)}
    left = []
    with readme.at_work(tmp_path):
        for words in EVERY:
            if (
                words[0] != "unmask"
                or words[1:2] == ("serve",)
                or not MINE.search(" ".join(words))
                or "qwen" in " ".join(words)
            ):
                left.append(" ".join(words))
            elif words not in tried or words[1] in MAKERS:
                readme.typed(words, capsys)
    unexplained = [line for line in left if not any(re.search(reason, line) for reason in NOT_RUN.values())]
    assert not unexplained
    assert len(EVERY) - len(left) > 20


# ---------------------------------------------------------------------------------------------------------------------
# "Coming from": every row is tried


def rows_of(page: Path) -> list[tuple[str, str, str]]:
    """(heading above, there, here) of every row of two columns."""
    found, heading = [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if len(cells) == 2 and not re.fullmatch(r"there|-+", cells[0]):
            found.append((heading, *cells))
    return found


COMING = rows_of(DOCS / "en" / "coming-from.md")
SPANS = [(heading, span) for heading, _, here in COMING for span in re.findall(r"`([^`]+)`", here)]


@pytest.mark.parametrize(("heading", "span"), SPANS, ids=[span[:60] for _, span in SPANS])
def test_what_is_to_be_typed_instead_can_be(heading: str, span: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(span)
    if words[0] in ("unmask", "make"):
        readme.check(tuple(words))
    elif heading == "Keys":
        readme.settings_of(["sft", "--model_name_or_path", "M", *words])
    else:
        readme.settings_of(["eval", "--model", "M", "--tasks", "cmmlu", *words])


def test_what_stays_the_same_is_there() -> None:
    """A row that says "the same" names a script, a config or a key of ours."""
    assert len(COMING) > 30
    for heading, there, here in COMING:
        if here.startswith("the same") and heading == "Commands":
            files = re.findall(r"[\w/.-]+\.(?:py|sh|yaml|txt)", there)
            assert files
            assert all((ROOT / file).is_file() for file in files), there
        elif here.startswith("the same"):
            readme.settings_of(["sft", *(f"--{part}" for part in re.sub(": ", "=", there.strip("`")).split())])


# ---------------------------------------------------------------------------------------------------------------------
# Pages and links


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_relative_link_of_the_guide_leads_somewhere(page: Path) -> None:
    readme.test_every_relative_link_leads_somewhere(page)


@pytest.mark.parametrize("page", ENGLISH, ids=short)
def test_a_page_is_read_in_ten_minutes(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    assert len(text.split()) < 2200


def targets(page: Path) -> list[str]:
    """Where a page's links lead, whatever its language: without anchors, which are spelt as headings are."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    where = [link if "://" in link else link.partition("#")[0].replace(".zh-CN", "") for link in found]
    return sorted(re.sub(r"^\.\./(en|zh)/", "../OTHER/", link) for link in where)


TWINS = [page for page in TRANSLATED if page.name != "index.md"]


@pytest.mark.parametrize("page", TWINS, ids=short)
def test_a_translated_page_has_the_commands_the_code_and_the_links_of_the_english_one(page: Path) -> None:
    english = DOCS / "en" / page.name
    assert commands(page) == commands(english)
    assert readme.code(page) == readme.code(english)
    assert blocks(page, "json") == blocks(english, "json")
    assert targets(page) == targets(english)
    assert shape(page) == shape(english)
    assert f"[中文](../zh/{page.name})" in english.read_text(encoding="utf-8"), f"{short(english)} does not link to it"
    assert f"[English](../en/{page.name})" in page.read_text(encoding="utf-8")


def shape(page: Path) -> list[int]:
    """How many cells each row of a page's tables has."""
    return [line.count("|") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_the_contents_name_every_page_in_the_same_order() -> None:
    named = []
    for language in ("en", "zh"):
        text = (DOCS / language / "index.md").read_text(encoding="utf-8")
        trees = re.findall(r"(?ms)^```\{toctree\}\n(.*?)^```", text)
        named.append([line for tree in trees for line in tree.splitlines() if re.fullmatch(r"[\w-]+", line)])
    assert named[0] == named[1]
    assert sorted(named[0]) == sorted(page.stem for page in ENGLISH if page.stem != "index")


def test_pictures_are_small_and_each_is_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (DOCS / "pictures").iterdir():
        assert picture.stat().st_size < 300_000
        assert f"../pictures/{picture.name}" in text


def file_of(path: Path) -> types.ModuleType:
    """A Python file outside the package, imported."""
    where = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert where
    assert where.loader
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    return module


def test_the_picture_of_the_noise_can_be_drawn_again(tmp_path: Path) -> None:
    drawn = tmp_path / "noise.png"
    file_of(DOCS / "pictures.py").main(drawn)
    assert drawn.stat().st_size > 10_000


def test_both_estimators_of_the_idea_give_one_number(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(DOCS / "en" / "idea.md", "python")
    exec(compile(block, "idea.md", "exec"), {})
    numbers = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(numbers) == 3
    assert len(set(numbers)) == 1


# ---------------------------------------------------------------------------------------------------------------------
# The notebook


def test_the_notebook_is_its_page() -> None:
    made = file_of(ROOT / "scripts" / "notebook.py")
    for page in made.PAGES:
        if page.exists():
            file = page.with_suffix(".ipynb")
            kept = made.kept(file)
            assert len(kept) == len(made.cells(page))
            assert file.read_text(encoding="utf-8") == made.text_of(page, kept), "type python scripts/notebook.py"


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, on fewer documents, questions and steps."""
    made = file_of(ROOT / "scripts" / "notebook.py")
    documents = [(name, text[:2000]) for (name, text), _ in zip(quickstart.library(), range(150), strict=False)]
    more = [(name, text[:2000]) for name, text in quickstart.library() if '"""' in text][:20]
    monkeypatch.setattr(quickstart, "library", lambda: iter(documents + more))
    monkeypatch.setattr(quickstart, "ROWS", 40)
    monkeypatch.setattr(quickstart, "HELD", 4)
    cells = made.cells(made.PAGES[0])
    quick = [cell.replace("STEPS, TUNE_STEPS = 600, 1500", "STEPS, TUNE_STEPS = 2, 2") for cell in cells]
    assert quick != cells
    printed = made.printed(quick)
    assert any("'input_ids', 'labels', 'prompt_len'" in text for text in printed)
    assert sum("≤" in text for text in printed) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_the_memory_page_says_how_each_figure_was_had() -> None:
    text = (DOCS / "en" / "memory.md").read_text(encoding="utf-8")
    assert "computed" in text
    assert len(re.findall(r"(?m)^\| `--", text)) >= 8


@pytest.mark.slow
def test_a_row_of_the_memory_page_is_what_estimate_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page = DOCS / "en" / "memory.md"
    base = next(words for words in commands(page) if words[1] == "estimate")[1:]
    flags, figure = re.findall(r"(?m)^\| `(--[^`]*)` \| ([\d.]+) \|", page.read_text(encoding="utf-8"))[0]
    assert main([*base, *shlex.split(flags)]) == 0
    assert f"{figure} GiB at most" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# The site


class Links(html.parser.HTMLParser):
    """The ids of a page, and where it leads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := named.get(key))}
        self.targets += [value for key in ("href", "src") if (value := named.get(key))]


def test_the_site_builds_without_a_warning_and_every_link_in_it_leads_somewhere(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    from sphinx.cmd.build import main as sphinx

    site = tmp_path / "site"
    assert sphinx(["-W", "--keep-going", "-q", "-E", "-b", "html", str(DOCS), str(site)]) == 0
    pages = {path: Links(path) for path in site.rglob("*.html")}
    for page in PAGES:
        assert site / page.relative_to(DOCS).with_suffix(".html") in pages
    assert len(pages) >= len(PAGES) + len(CHINESE)
    lost = []
    for path, found in pages.items():
        for target in found.targets:
            link = urllib.parse.urlparse(target)
            if link.scheme or link.netloc:
                continue
            to = (path.parent / urllib.parse.unquote(link.path)).resolve() if link.path else path
            there = to.is_file() and (not link.fragment or to not in pages or unquoted(link) in pages[to].ids)
            if not there and not (link.fragment == "" and target == "#"):
                lost.append(f"{path.relative_to(site)} → {target}")
    assert not lost
    idea = (site / "en" / "idea.html").read_text(encoding="utf-8")
    assert '<svg class="math"' in idea
    assert "cdn" not in idea  # it is read without network


def unquoted(link: urllib.parse.ParseResult) -> str:
    return urllib.parse.unquote(link.fragment)
