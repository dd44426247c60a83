"""The map in CONTRIBUTING.md is true: imports flow one way, importing is cheap, files are small, nothing stands twice.

A station is a file or a folder directly in `src/unmask`. MAY_IMPORT says what each may know of the others. A new one
gets a line there, with its reason; a new objective, rule, cache or family gets none: it falls under its folder's line.
"""

from __future__ import annotations

import ast
import collections
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from unmask.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "unmask"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400
BLOCK = 8

ANY = {"*"}
MAY_IMPORT: dict[str, set[str]] = {
    # what many may know
    "values": set(),
    "plugins": {"values"},
    "config": {"values", "plugins"},
    "report": {"config"},  # what a run says and writes; it is told everything and asks nobody
    "noise": {"config"},  # mathematics: pure functions of numbers, for training, validation and likelihood alike
    "predict": set(),  # the contract between networks and what reads them
    "processor": set(),  # how fast this machine is, measured
    "kept": set(),
    "cross_entropy": {"predict", "processor", "kept"},  # what a head's answer costs, of whatever network
    # from text to rows of ids; no network is known yet
    "hub": {"config"},
    "spec": {"config"},
    "sources": {"config", "spec", "hub"},
    "corpus": {"config", "spec", "sources", "hub"},
    "fast_encode": {"config"},
    "encode": {"config", "report", "fast_encode"},  # it says which encoder it takes, and why
    "token_stream": {"config", "encode"},
    "tokens": {"config", "report", "encode", "fast_encode", "token_stream"},
    "ids": {"config"},  # whether tokenizer and model agree: asked by both
    "tokenizer": {"config", "report", "corpus", "encode", "ids"},
    # from conversations to rows of ids
    "chats": {"values"},
    "prepared": {"values", "encode"},  # what lies in a folder of prepared rows
    "template": {"values", "encode", "tokenizer", "chats"},
    "labels": {"config", "chats", "encode", "tokens", "template"},
    "instruct": {"config", "prepared", "corpus", "chats", "labels", "template"},
    "prepare": {
        *("config", "report", "corpus", "encode", "tokens", "tokenizer", "models"),  # `models` loads the tokenizer
        *("prepared", "instruct", "labels", "template"),
    },
    # the network, what it learns, how it is read: three that never know one another, so that each can be exchanged
    "last_layer": set(),
    "forward": {
        "config",
        "predict",
        "attention",
        "table",
        "last_layer",
    },  # the one way through a network of `transformers`
    "table": {"kept"},
    "bfloat16_attention": {"processor"},
    "attention": {"config", "bfloat16_attention"},  # the mask that each back end understands
    "packing": {"config", "predict"},
    # adapters wrap a network that they are handed; loading puts them on, so it stands below them
    "module_names": {"config"},
    "adapter_folder": {"config"},
    "sealed": set(),
    "adapters": {"config", "ids", "adapter_folder", "module_names", "sealed"},
    "models": {"config", "predict", "forward", "ids"},
    "models/__init__": {
        "config",
        "report",
        "predict",
        "forward",
        "ids",
        "adapters",
        "decoding",
        "generation",
    },  # `model.generate`
    "objectives": {"config", "noise", "predict", "cross_entropy"},
    # decoding, from what a user may ask for up to the loop
    "options": {"config"},
    "gaps": {"config"},
    "canvas": {"config", "gaps", "options"},
    "signals": {"config", "predict", "options", "canvas", "memory"},  # `memory` by name only: a pass may work with one
    "memory": {"canvas", "signals"},
    "caches": {"config", "canvas"},  # a policy is told the row and nothing of the network
    "growth": {"config", "predict", "canvas", "signals"},
    "resolve": {"config", "predict", "options", "canvas"},
    "decoding": {"config", "predict", "canvas", "signals"},  # a rule
    "decoding/__init__": {
        *("config", "report", "predict", "options", "canvas", "signals", "memory", "caches", "growth", "resolve"),
    },
    "generation": {"config", "ids", "predict", "options", "canvas", "decoding"},  # the words of `transformers`
    "estimators": {"config", "noise"},  # what to look at, and what to make of it; it never sees a network
    "likelihood": {"config", "predict", "estimators", "signals"},  # `signals` has guidance and the widths of passes
    # training
    "trackers": {"config", "report"},
    "sampling": {"config", "report", "models", "answer", "screen", "template", "trainer", "trackers"},
    "folders": {"config", "report", "checkpoint"},
    "tail": {"config"},
    "batches": {
        "config",
        "noise",
        "objectives",
        "tail",
        "token_stream",  # whether a stream knows where it stands
    },  # the objective draws the noise of a row, where batches are made
    "checkpoint": {"config", "ids", "models", "sealed"},
    "divergence": {"config", "report"},
    "validate": {"config", "noise", "batches", "objectives", "predict"},
    "callbacks": {"config", "report", "checkpoint", "divergence"},
    "compiling": {"config", "attention"},
    # a step of all of these, gone through with tensors that have no numbers
    "estimate": {
        *("config", "predict", "forward", "cross_entropy", "attention", "bfloat16_attention", "last_layer", "kept"),
        "processor",
    },
    "advice": {"report", "processor", "batches", "trainer"},  # `trainer` by name only
    # the Trainer in three: what it saves, what it does not let happen, what it trains on
    "saving": {"config", "report", "ids", "models", "adapters", "checkpoint", "sealed"},
    "guarded": {"config", "report", "checkpoint", "divergence", "saving"},
    "trainer": {
        *("config", "report", "noise", "predict", "ids", "models", "adapters", "objectives", "batches", "packing"),
        *("tail", "checkpoint", "validate", "callbacks", "attention", "compiling", "advice", "cross_entropy"),
        *("divergence", "guarded"),
    },
    "training_settings": {"config", "report", "advice", "compiling"},
    "train": {
        "training_settings",
        *("config", "report", "noise", "corpus", "encode", "tokens", "models", "adapters", "objectives", "batches"),
        *("prepare", "prepared", "checkpoint", "validate", "trainer", "trackers", "folders", "advice", "compiling"),
        *("divergence", "guarded", "sampling"),
    },
    # commands
    "pretrain": {"config", "train", "training_settings", "models", "prepare"},
    "sft": {
        "config",
        "report",
        "train",
        "training_settings",
        "models",
        "adapters",
        "prepare",
        "instruct",
        "template",
        "tail",
    },
    "merge": {"config", "report", "ids", "models", "adapters", "adapter_folder", "checkpoint"},
    "inspection": {
        *("config", "report", "ids", "corpus", "chats", "models", "adapters", "objectives", "batches", "tail", "train"),
        *("prepare", "prepared", "instruct", "sft", "screen", "training_settings"),
    },
    "init": {"config", "report", "ids", "tokenizer", "models"},
    "estimation": {
        *("config", "report", "adapters", "init", "objectives", "instruct", "train", "pretrain", "sft", "estimate"),
        *("processor", "training_settings"),
    },
    # reading: what the commands share, what stands on the terminal, one answer, a conversation
    "reader": {"config", "report", "ids", "models", "adapters", "options", "decoding"},
    "screen": {"canvas"},
    "terminal": {"config"},
    # how an answer came about: a record of text and numbers, so that the page and the picture need no network
    "replay_text": {"screen"},
    "replay_page": set(),
    "replay_gif": {"report", "screen", "replay_page"},
    "replay": {"config", "report", "canvas", "screen", "replay_text", "replay_page", "replay_gif"},
    "answer": {"config", "options", "canvas", "decoding", "ids", "models", "reader", "screen", "signals"},
    "conversation": {
        *("config", "report", "options", "canvas", "reader", "screen", "replay", "answer", "chats", "template"),
        "decoding",
    },
    "chat": {
        *("config", "report", "canvas", "conversation", "reader", "screen", "terminal", "answer", "template", "models"),
        "replay",
    },
    "sample": {
        *("config", "report", "ids", "tokenizer", "models", "options", "canvas", "decoding", "checkpoint", "reader"),
        *("gaps", "screen", "replay"),
    },
    # rules and caches measured side by side
    "measure": {"config", "report", "predict", "canvas", "decoding"},
    "bench_plot": {"report", "measure"},
    "bench": {
        *("config", "report", "options", "reader", "chats", "template", "models", "answer", "screen", "sample"),
        *("measure", "bench_plot"),  # `sample` reads texts, `answer` knows a model's ends
    },
    # serving: many requests on one model
    "serving/wire": set(),
    "serving/guard": set(),
    "serving/connections": set(),
    "serving/metrics": {"serving"},
    "serving/jobs": {"canvas", "generation", "replay", "screen"},
    "serving/engine": {
        *("config", "report", "answer", "canvas", "decoding", "growth", "memory", "models", "signals", "serving"),
    },
    "serving/presets": {"report", "canvas", "decoding", "measure"},
    "serving/requests": {
        *("config", "answer", "caches", "canvas", "conversation", "decoding", "gaps", "models", "options", "reader"),
        *("memory", "replay", "template", "serving"),
    },
    "serving/replies": {"sample", "replay_text", "screen", "serving"},
    "serving/api": {"serving"},
    "serving/page_words": set(),
    "serving/page_answers": {"canvas", "serving"},
    "serving/page_canvas": {"replay_page", "serving"},
    "serving/page_panels": {"replay", "replay_page", "serving"},
    "serving/page_compare": {"replay", "serving"},
    "serving/page_view": {"replay_page", "serving"},
    "serving/page": {"serving"},
    "serving": set(),
    "serve": {"config", "report", "answer", "conversation", "reader", "serving"},
    # scores: lm-eval's socket, what stands around it, and results side by side
    "harness/exams": {"config"},
    "harness/data_files": {"config", "sources"},
    "harness/local": {"config", "sources", "harness"},
    "harness/questions": {"config", "bench"},  # its rows are read as those of `unmask bench`
    "harness/texts": {"config"},
    "harness/presets": {"config", "report", "options"},
    "harness/code": {"config"},
    "harness/arguments": {"config", "estimators", "options", "reader", "decoding"},
    "harness/prompts": {"config", "reader", "template"},
    "harness/store": set(),
    "harness/writing": {"answer", "canvas", "decoding", "measure", "memory", "screen", "harness"},
    "harness/flags": {"config"},
    "harness/results": {"config", "report", "measure", "harness"},
    "harness/identity": {"report", "adapter_folder", "harness"},
    "harness/workers": set(),
    "harness/asking": {"config", "reader", "harness"},
    "harness/telling": {"config", "report", "bench", "harness"},
    "harness": set(),
    "evaluate": {
        *("config", "report", "options", "estimators", "likelihood", "forward", "models", "reader", "answer"),
        "harness",
    },
    "benchmark": {"config", "report", "adapter_folder", "reader", "bench", "harness", "evaluate"},
    "evaluation": {"config", "report", "reader", "harness", "benchmark"},
    # a study's results read: numbers and pictures, so that a report is made again without torch
    # studies: many runs laid out in one file, and what came of them
    "studies": set(),
    "studies/results": {"values"},
    "studies/fit": {"studies"},
    "studies/cross": {"studies"},
    "studies/claims": {"report", "studies"},
    "studies/plot": {"report", "studies"},
    "studies/page": {"replay_page"},  # how a security policy names a style
    "studies/report": {"report", "studies"},
    "studies/plan": {"config", "report"},
    "studies/text": {"config", "report", "sealed", "spec", "corpus", "models", "tokenizer", "tokens", "studies"},
    "studies/run": {"config", "report", "checkpoint", "train", "pretrain", "studies"},
    "study": {"config", "report", "tokens", "init", "studies"},
    "compare_stats": {"measure"},
    "compare_runs": {"config"},
    "compare_pairs": {"config", "compare_runs", "compare_stats"},
    "compare": {"config", "report", "bench", "compare_pairs", "compare_runs", "compare_stats"},
    "tasks": {"values"},
    "puzzles": {"values"},  # made and judged without a model
    "quickstart": ANY,  # it tells the whole story
    "__main__": {"config"},  # commands by name, loaded when they are asked for
    "__init__": set(),  # public names by name, loaded when they are used
}
SHARED_BY_ALL = {"values", "plugins"}  # what `config` is made of
# folders whose files are parts of one thing, not plug-ins for one another's place
CHAPTERS = {"harness", "serving", "studies"}

HEAVY = ["torch", "transformers", "datasets", "numpy", "peft", "matplotlib", "rich", "modelscope", "huggingface_hub"]


class Import(NamedTuple):
    module: str  # without the leading `unmask.`: "noise", "objectives.masked"
    top: bool  # stands outside any function, so importing the file runs it


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def station(path: Path) -> str:
    """`noise.py` → noise, `models/llada.py` → models."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(path: Path) -> set[str]:
    """The stations that a file may import."""
    key = name_of(path).removesuffix(".py")
    key = key if key in MAY_IMPORT else station(path)
    assert key in MAY_IMPORT, (
        f"src/unmask/{name_of(path)} is a station that the map does not have. Add a line `{key!r}: {{…}}` to "
        "MAY_IMPORT in tests/test_layout.py: what it may import, and why if that is not plain."
    )
    return MAY_IMPORT[key]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_module(dotted: str) -> bool:
    folder = ROOT / "src" / dotted.replace(".", "/")
    return folder.is_dir() or folder.with_suffix(".py").is_file()


def imports(path: Path) -> list[Import]:
    """What a file imports of the package, anywhere in it, also by `importlib.import_module("unmask.…")`."""
    found: list[Import] = []

    def visit(node: ast.AST, top: bool) -> None:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}:{node.lineno}: write the import in full, not with dots"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else str(node.module) for name in inside]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names = [str(node.args[0].value)] if isinstance(node.args[0], ast.Constant) else []
        found.extend(Import(n.removeprefix("unmask.").removeprefix("unmask"), top) for n in names if is_ours(n))
        inner = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(tree(path), True)
    return found


def is_ours(module: str) -> bool:
    return module == "unmask" or module.startswith("unmask.")


def each_file() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", FILES, ids=name_of)


# ---------------------------------------------------------------------------------------------------------------------
# Who knows whom


@each_file()
def test_imports_flow_downwards(path: Path) -> None:
    may = allowed(path)
    here = station(path)
    known = {module.split(".")[0] for module, _ in imports(path)} - {"", here}
    extra = set() if may == ANY else known - may - SHARED_BY_ALL
    assert not extra, f"src/unmask/{name_of(path)} may not import {sorted(extra)}; it may import {sorted(may)}"


@each_file()
def test_a_plug_in_never_imports_its_neighbour(path: Path) -> None:
    """What two of them share moves up into their folder's `__init__.py`."""
    if path.parent == PACKAGE or path.name == "__init__.py" or path.parent.name in CHAPTERS:
        return
    folder = path.parent.name
    neighbours = [m for m, _ in imports(path) if m.startswith(f"{folder}.") and m != f"{folder}.{path.stem}"]
    assert not neighbours, (
        f"src/unmask/{name_of(path)} imports {neighbours}; move what they share to {folder}/__init__.py"
    )


def test_networks_objectives_and_rules_do_not_know_one_another() -> None:
    kinds = {"models", "objectives", "decoding"}
    for path in FILES:
        if (kind := station(path)) in kinds:
            met = {Import(m.split(".")[0], top) for m, top in imports(path)}
            others = {m for m, top in met if m in kinds - {kind} and (top or name_of(path) != "models/__init__.py")}
            assert not others, f"src/unmask/{name_of(path)} imports {others}"


def test_the_tour_goes_from_the_bottom_up() -> None:
    """In the table of CONTRIBUTING.md a file imports from its own row and the rows above: there is no way around."""
    rows = re.findall(r"(?m)^\| *(`[^|]+)\|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    row_of = {name: number for number, row in enumerate(rows) for name in re.findall(r"`([\w/]+)\.py`", row)}
    for path in FILES:
        name = name_of(path).removesuffix(".py")
        for module, top in imports(path):
            other = module.replace(".", "/")
            other = other if other in row_of else f"{other}/__init__"
            below = name in row_of and row_of.get(other, 0) > row_of[name]
            assert not below or not top, f"{name} stands above {other} in the tour and imports it"
            assert not below or name == "models/__init__", f"{name} stands above {other} in the tour and imports it"


def test_the_map_has_no_station_that_is_gone() -> None:
    there = {station(path) for path in FILES} | {name_of(path).removesuffix(".py") for path in FILES}
    assert set(MAY_IMPORT) <= there


# ---------------------------------------------------------------------------------------------------------------------
# What importing costs


def loaded(code: str, names: list[str]) -> tuple[set[str], str, int]:
    """Which of the modules a fresh Python has loaded after `code`, what it printed, and its exit code."""
    after = f"\nimport sys\nprint('LOADED', *[n for n in {names!r} if n in sys.modules], file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", code + after], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    line = next((line for line in run.stderr.splitlines() if line.startswith("LOADED")), "")
    assert line, run.stderr
    return set(line.split()[1:]), run.stdout, run.returncode


@pytest.mark.parametrize("module", ["unmask", "unmask.__main__", "unmask.config"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import {module}", HEAVY)[0] == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_is_instant(command: str) -> None:
    """Neither torch nor anything else that takes a second is loaded to print a page of text."""
    code = (
        "from unmask.__main__ import main\n"
        f"try: code = main([{command!r}, '--help'])\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not code, code"
    )
    heavy, printed, _ = loaded(code, HEAVY)
    assert heavy == set()
    assert f"unmask {command}" in printed
    assert len(printed.splitlines()) > 3


def test_every_command_is_a_function_of_a_file() -> None:
    for command, (file, function, line) in COMMANDS.items():
        path = PACKAGE / f"{file}.py"
        assert path.is_file(), f"unmask {command}: there is no src/unmask/{file}.py"
        names = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
        assert function in names, f"unmask {command}: {file}.py has no function {function}"
        assert line
        assert not line.endswith(".")


# ---------------------------------------------------------------------------------------------------------------------
# How it reads


@each_file()
def test_a_file_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"src/unmask/{name_of(path)}: say what comes in and what goes out"


@each_file()
def test_a_file_can_be_read_at_a_sitting(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, (
        f"src/unmask/{name_of(path)} has {lines} lines, more than {LONGEST}: make two stations of it"
    )


def code_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that do something.

    Not blank lines, comments, lone brackets and imports; nor the heads of functions, which a contract and those who
    keep it have in common.
    """
    skipped: set[int] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            skipped.update(range(node.lineno, node.body[0].lineno))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if number not in skipped and re.search(r"\w", text) and not text.startswith("#"):
            yield number, text


def test_nothing_is_written_twice() -> None:
    """No eight lines of code stand in two places: a second copy becomes a function before it is committed."""
    blocks = collections.defaultdict(list)
    for path in [*FILES, *(ROOT / "scripts").glob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        lines = list(code_lines(path))
        for i in range(len(lines) - BLOCK + 1):
            some = lines[i : i + BLOCK]
            blocks[tuple(text for _, text in some)].append(f"{path.relative_to(ROOT).as_posix()}:{some[0][0]}")
    twice = [where for where in blocks.values() if len(where) > 1]
    assert not twice, f"the same {BLOCK} lines stand at {' and '.join(twice[0])}"


# ---------------------------------------------------------------------------------------------------------------------
# What no file may hold


def project_files() -> list[Path]:
    """What git would commit, or, without git, everything that is not a tool's cache."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    hidden = re.compile(r"(^|/)(\.\w+_cache|\.git|\.venv|\.hypothesis|__pycache__|build|dist|output|models|data)(/|$)")
    return [p for p in ROOT.rglob("*") if p.is_file() and not hidden.search(p.relative_to(ROOT).as_posix())]


# One letter of each stands in brackets, so that this file does not hold them.
NEVER = {
    "an absolute path of one machine": r"(?<![\w.$}~-])/(?:w[o]rk|r[o]ot|data/l[x]y|tmp/v[e]nv\d*)/",
    "code from a hub being run": r"trust_remote_c[o]de\s*=\s*True",
    "the host of a package registry": r"p[y]pi\.org|pyth[o]nhosted\.org|npmj[s]\.org|deb\.d[e]bian\.org",
}


@pytest.mark.parametrize("what", NEVER)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(NEVER[what])
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found, f"{what}: {found}"


def test_what_no_file_may_hold_would_be_found() -> None:
    for what, text in zip(NEVER, ("(/w.rk/a)", "trust_remote_c.de = True", "//p.pi.org/simple"), strict=True):
        missing = re.findall(r"\[(.)\]", NEVER[what])[0]
        assert re.search(NEVER[what], text.replace(".", missing, 1)), what
    assert not re.search(NEVER["an absolute path of one machine"], "../w.rk/ $HOME/w.rk/".replace(".rk", "ork"))
