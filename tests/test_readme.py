"""What the pages for users say is so: their commands parse, name real things and run; English and Chinese agree."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import itertools
import json
import pkgutil
import re
import shlex
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from runs import make_text
from test_sft import make_chats

from unmask import caches, decoding, evaluation, growth, reader, spec
from unmask.__main__ import COMMANDS, main
from unmask.adapters import LoraArguments
from unmask.config import DataArguments, ModelArguments, TrainingArguments, UserError
from unmask.estimators import Kind
from unmask.harness import arguments, presets
from unmask.harness.arguments import ScoringArguments
from unmask.harness.asking import Evaluation
from unmask.harness.flags import TaskArguments
from unmask.instruct import SFTDataArguments
from unmask.objectives import autoregressive, masked, permuted

ROOT = Path(__file__).resolve().parent.parent
README, GUIDE, DEVICES = ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "devices.md"
CHINESE = {page: page.with_name(f"{page.stem}.zh-CN.md") for page in (README, GUIDE, DEVICES)}
PAGES = [*CHINESE, *CHINESE.values()]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------------------------------------------------------------
# Reading the pages


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced code blocks of a page in a language."""
    return re.findall(rf"(?ms)^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"))


def commands_of(block: str) -> list[tuple[str, ...]]:
    """Each command of a shell block as its words, without comments; a backslash at a line's end joins lines."""
    lines = block.replace("\\\n", " ").splitlines()
    return [tuple(words) for line in lines if (words := shlex.split(line, comments=True))]


def commands(page: Path) -> list[tuple[str, ...]]:
    return [words for block in blocks(page, "bash") for words in commands_of(block)]


def code(page: Path) -> list[list[str]]:
    """The Python blocks of a page, each as its tokens without comments, which are in the page's language."""
    found = []
    for block in blocks(page, "python"):
        tokens = tokenize.generate_tokens(io.StringIO(block).readline)
        found.append([t.string for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)])
    return found


def specs(page: Path) -> list[str]:
    """The dataset specs of the guide's list, without what is said of each."""
    (block,) = blocks(page, "text")
    return [re.split(r"\s{2,}", line)[0] for line in block.splitlines()]


def tables(page: Path, columns: int) -> list[list[list[str]]]:
    """The tables of a page with so many columns, as rows of cells without the heading."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    found = []
    for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
        if len(rows[1]) == columns:
            found.append(rows[2:])
    return found


def slug(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def plug_ins(package: Any) -> dict[str, Any]:
    """Each rule, or each cache policy, by its name → its Settings, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"{package.__name__}.{name}").Settings for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# Checking a command without running it


class Stop(Exception):
    """A command has read its settings; it need not do anything."""


def settings_of(words: tuple[str, ...] | list[str]) -> Any:
    """What `unmask COMMAND …` makes of its options: every one exists, has a value that fits, and the file is there."""
    file, function, _ = COMMANDS[words[0]]
    return settings_in(importlib.import_module(f"unmask.{file}"), function, words[1:])


def settings_in(file: Any, function: str, words: tuple[str, ...] | list[str]) -> Any:
    """The same of a file that has been imported."""
    module = file if hasattr(file, "parse") else reader  # where `sample` and its kin read their options
    parse = module.parse

    def spy(*args: Any, **more: Any) -> Any:
        raise Stop(parse(*args, **more))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "parse", spy)
        with pytest.raises(Stop) as stopped:
            getattr(file, function)(list(words))
    return stopped.value.args[0]


def script_settings(words: Sequence[str]) -> Any:
    """The same of `python SCRIPT …`."""
    place = importlib.util.spec_from_file_location(Path(words[0]).stem, ROOT / words[0])
    assert place
    assert place.loader
    file = importlib.util.module_from_spec(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, file.__name__, file)  # where its dataclasses look their types up
        patch.syspath_prepend(str(ROOT / "scripts"))  # as Python does it, for files beside the script
        place.loader.exec_module(file)
        return settings_in(file, "main", list(words[1:]))


def check_unmask(words: tuple[str, ...] | list[str]) -> None:
    if list(words) in (["--version"], []):
        return
    assert words[0] in COMMANDS, f"no command {words[0]!r}"
    groups = settings_of(words).groups
    for group in groups:
        for name in ("dataset_args", "corpus"):
            wanted = getattr(group, name, None) or []
            for one in [wanted] if isinstance(wanted, str) else wanted:
                assert spec.parse(one)
    if words[0] == "eval" and not groups[3].repeat:
        check_evaluation(Evaluation(*groups[:4], decoding={}, argv=list(words[1:])))


def check_evaluation(wanted: Evaluation) -> None:
    """What belongs together stands together, `--model_args` have names that mean something, a preset is there."""
    evaluation.check(wanted)
    if wanted.kind in arguments.OURS:
        wanted.asked()
    if wanted.tasks.preset:
        presets.load(wanted.tasks.preset)


def check_asked(words: Sequence[str]) -> tuple[str, str, Any]:
    """(method, path, body) of a question that curl asks of a server: there is such a route, and the body fits it."""
    from unmask.serving import wire

    kinds = {"chat/completions": wire.ChatRequest, "completions": wire.CompletionRequest, "infill": wire.InfillRequest}
    (url,) = (word for word in words if "://" in word)
    path = re.fullmatch(r"http://127\.0\.0\.1:8000(/.*)", url)
    assert path
    if "-d" not in words:
        assert words[words.index("-X") + 1] == "DELETE"
        assert path[1].startswith("/v1/requests/")
        return "DELETE", path[1], None
    assert words[words.index("-H") + 1] == "Content-Type: application/json"
    body = json.loads(words[words.index("-d") + 1])
    kinds[path[1].removeprefix("/v1/")].model_validate(body)
    return "POST", path[1], body


TRACKERS = {"tensorboard": "--logdir", "swanlab": "watch", "trackio": "show"}  # how each shows what it has
BEHIND = {"pt": "pretrain", "sft": "sft", "eval": "eval"}  # a file's name → the command it hands its flags on to


def check_launched(module: bool, script: str, arguments: list[str]) -> None:
    """What a launcher starts: `-m unmask pretrain …`, or a file of the repository that hands its flags on to that."""
    if module:
        assert script == "unmask"
        check_unmask(arguments)
    else:
        assert (ROOT / script).is_file()
        check_unmask([BEHIND[Path(script).stem], *arguments])


def check(words: tuple[str, ...]) -> None:
    """Fails unless a command of the pages could be typed."""
    rest = list(words)
    while re.fullmatch(r"[A-Z_]+=\S*", rest[0]):
        rest.pop(0)
    for word in rest:
        if re.match(r"(configs|scripts|docs|examples|tests|src)/", word):
            assert (ROOT / word).exists(), f"no {word}"
    program, *rest = rest
    if program == "unmask":
        check_unmask(rest)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in rest if "=" not in word]
        assert set(targets) <= set(re.findall(r"(?m)^([a-z][\w-]*):", makefile))
        assert all(word.split("=")[0] in makefile for word in rest if "=" in word)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert rest.pop(0) == "launch"
        read = launch_command_parser().parse_args(rest)
        assert read.config_file is None or (ROOT / read.config_file).is_file()
        check_launched(read.module, read.training_script, read.training_script_args)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        read = get_args_parser().parse_args(rest)
        check_launched(read.module, read.training_script, read.training_script_args)
    elif program == "sbatch":
        while rest[0].startswith("--"):
            option = rest.pop(0)
            assert re.fullmatch(r"--(nodes|gres|time)=\S+", option), option
        assert rest.pop(0) == "scripts/train.slurm.sh"
        taken = {"--accelerate_config": "ddp", "--script_path": "examples/llada/sft.py"}
        for name in taken:
            if name in rest:
                taken[name] = rest.pop(rest.index(name) + 1)
                rest.remove(name)
        assert (ROOT / "configs" / f"{taken['--accelerate_config']}.yaml").is_file()
        check_launched(False, taken["--script_path"], rest)
    elif program == "bash":
        script = (ROOT / rest[0]).read_text(encoding="utf-8")
        starts = re.search(r"(?:examples|dllm)/[\w/]+/(pt|sft|eval)\.py", script)
        assert starts
        assert (ROOT / starts[0]).is_file()
        recipe = re.search(r"configs/[\w.-]+\.yaml", script)
        if starts[1] == "eval":  # its flags stand in the script; what it asks for is in test_tutorial.py
            settings_of(["eval", *rest[1:]])
        else:
            assert recipe
            check_unmask([BEHIND[starts[1]], "--configs", recipe[0], *rest[1:]])
    elif program == "python":
        script_settings(rest)
    elif program == "curl":
        check_asked(rest)
    elif program in TRACKERS:  # their own commands, which need not be installed
        assert rest[0] == TRACKERS[program]
    else:
        pytest.fail(f"the pages have the command {program!r}; this test does not know how to check it")


EVERY = dict.fromkeys(words for page in PAGES for words in commands(page))


@pytest.mark.parametrize("words", EVERY, ids=lambda words: " ".join(words)[:70])
def test_a_command_of_the_pages_could_be_typed(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(words)


def test_a_wrong_command_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above are not empty."""
    monkeypatch.chdir(ROOT)
    for wrong in (
        "unmask pretain --max_steps 3",
        "unmask pretrain --max_step 3",
        "unmask pretrain --max_steps three",
        "unmask pretrain --config configs/none.yaml",
        "unmask pretrain --dataset_args data[trian:3]",
        "unmask init llada-2M --tokeniser x",
        "accelerate launch --config_file configs/none.yaml -m unmask pretrain",
        "accelerate launch -m unmask pretrain --max_step 3",
        "torchrun --nproc_per_node 2 -m unmask pretrain --max_step 3",
        "unmask eval --model m --tasks cmmlu --limits 3",
        "unmask eval --model m --data qa.jsonl",
        "unmask eval --model m --tasks gsm8k --preset llada-bass",
        "unmask eval --model llada --tasks cmmlu --model_args pretrained=m,mc_nums=1",
        "accelerate launch --num_processes 1 dllm/pipelines/llada/eval.py --task cmmlu",
        "unmask compare --example 3",
        "bash scripts/eval-llada.sh --limits 3",
        "python scripts/eval-rules.py --rulers threshold",
        "NUM_PROCESSES=2 bash scripts/train-pt.sh --max_step 3",
        "bash scripts/none.sh",
        "sbatch --node=2 scripts/train.slurm.sh",
        "sbatch scripts/train.slurm.sh --accelerate_config fsdb",
        "sbatch scripts/train.slurm.sh --max_step 3",
        "make nothing",
        "unmask serve --prot 80",
        "python scripts/to_gguf.py --modle m",
        "curl http://127.0.0.1:8000/v1/chat -H 'Content-Type: application/json' -d '{}'",
        "curl http://127.0.0.1:8000/v1/infill -H 'Content-Type: application/json' -d '{\"txt\": \"a {{4}}\"}'",
    ):
        with pytest.raises((UserError, AssertionError, FileNotFoundError, KeyError, ValueError)):
            check(tuple(shlex.split(wrong)))


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_an_option_that_is_named_in_the_text_exists(page: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    from unmask.training_settings import trainer_fields

    launcher = vars(launch_command_parser().parse_args(["script"])) if "devices" in page.stem else ()
    known = {*launcher, *(("signal",) if launcher else ())}  # and sbatch's
    known |= {"help", "help_all", "config", "configs", "config_file", "version", *trainer_fields()}
    scripts = [words[1:] for words in commands(page) if words[0] == "python" and words[1].startswith("scripts/")]
    for group in itertools.chain.from_iterable(script_settings(words).groups for words in scripts):
        known |= {field.name for field in dataclasses.fields(group)}
    kinds = {"prepare": ["pretrain", "sft"], "estimate": ["pretrain", "sft"], "bench": ["decode"]}
    for command in COMMANDS:
        for words in [[command, kind] for kind in kinds[command]] if command in kinds else [[command]]:
            for group in settings_of(words).groups:
                for field in dataclasses.fields(group):
                    known |= {field.name, f"no_{field.name}", *field.metadata.get("aliases", ())}
    for settings in [*plug_ins(decoding).values(), *plug_ins(caches).values(), growth.Settings]:
        known |= {field.name for field in dataclasses.fields(settings)}
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    named = {
        option.replace("-", "_")
        for inline in re.findall(r"`([^`\n]+)`", text)
        for option in re.findall(r"(?<![\w-])--([a-z][\w-]*)", inline)
    }
    assert named <= known


# ---------------------------------------------------------------------------------------------------------------------
# Pages, settings and links


@pytest.mark.parametrize("page", CHINESE, ids=short)
def test_both_languages_have_the_same_commands_code_and_links(page: Path) -> None:
    other = CHINESE[page]
    assert commands(other) == commands(page)
    assert code(other) == code(page)
    assert blocks(other, "json") == blocks(page, "json")
    if page == GUIDE:
        assert specs(other) == specs(page)
    targets = [
        [link for link in re.findall(r"\]\(([^)\s]+)\)", p.read_text(encoding="utf-8")) if "://" in link]
        for p in (page, other)
    ]
    assert sorted(targets[0]) == sorted(targets[1])


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{short(page)} links to {link}"
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
            assert anchor in {slug(heading) for heading in headings}, f"{short(page)} links to {link}"


def as_shown(value: Any) -> str:
    """A default as the tables write it."""
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("page", [GUIDE, CHINESE[GUIDE]], ids=short)
def test_the_guide_has_every_setting_with_its_default(page: Path) -> None:
    groups = [ModelArguments, DataArguments, TrainingArguments, masked.Settings, autoregressive.Settings]
    groups += [permuted.Settings, LoraArguments, SFTDataArguments, ScoringArguments]
    for group, table in zip(groups, tables(page, 3), strict=True):
        defaults = [(field.name, getattr(group(), field.name)) for field in dataclasses.fields(group)]
        told = [(row[0].strip("`"), row[1].strip("`")) for row in table]
        assert told == [(name, as_shown(value)) for name, value in defaults]
        assert all(row[2] for row in table)


@pytest.mark.parametrize("page", [GUIDE, CHINESE[GUIDE]], ids=short)
def test_the_guide_has_every_rule_and_every_cache_with_its_settings(page: Path) -> None:
    rules, policies = tables(page, 5)
    for package, table, column in ((decoding, rules, 2), (caches, policies, 3)):
        told = {row[0].strip("`"): re.findall(r"`([^`]+)`", row[column]) for row in table}
        there = {
            name: [
                field.name if value is None else f"{field.name}={as_shown(value)}"
                for field in dataclasses.fields(settings)
                for value in [getattr(settings(), field.name)]
            ]
            for name, settings in plug_ins(package).items()
        }
        assert told == there
    kinds = {name: importlib.import_module(f"unmask.decoding.{name}").Rule for name in plug_ins(decoding)}
    assert {row[0].strip("`") for row in rules if row[3] in ("yes", "是")} == {n for n in kinds if kinds[n].revises}
    exact = {row[0].strip("`") for row in policies if row[2] in ("yes", "是")}
    assert exact == {n for n in plug_ins(caches) if importlib.import_module(f"unmask.caches.{n}").Cache.exact}


@pytest.mark.parametrize("page", [GUIDE, CHINESE[GUIDE]], ids=short)
def test_the_guide_tells_every_estimator_and_every_metric_preset_and_code_task(page: Path) -> None:
    (estimators,) = tables(page, 4)
    assert [row[0].strip("`") for row in estimators] == list(get_args(Kind))
    metrics = next(rows for rows in tables(page, 2) if rows[0][0] == "`exact`")
    (known,) = (kind for kind in get_args(get_type_hints(TaskArguments)["metric"]) if kind is not type(None))
    assert [row[0].strip("`") for row in metrics] == list(get_args(known))
    named = set(re.findall(r"`([\w.-]+)`", page.read_text(encoding="utf-8")))
    assert {*presets.names(), *(path.stem for path in presets.FOLDER.with_name("tasks").glob("*.yaml"))} <= named


@pytest.mark.parametrize("page", [GUIDE, CHINESE[GUIDE]], ids=short)
def test_every_other_projects_word_of_the_guide_means_what_it_says(page: Path) -> None:
    rows = next(rows for rows in tables(page, 2) if "`pretrained`" in rows[0][0])
    told: dict[str, str] = {}
    for words, means in rows:
        if "=" not in words:
            flags = re.findall(r"`--(\w+)`", means)
            named = re.findall(r"`(\w+)`", words)
            told |= dict(itertools.zip_longest(named, flags, fillvalue=flags[-1]))
    assert told == arguments.SPELLINGS
    (words, means) = next(row for row in rows if "alg=" in row[0])
    rules = zip(re.findall(r"`(?:alg=)?(\w+)`", words), re.findall(r"`(?:--rule )?(\w+)`", means), strict=True)
    assert dict(rules) == {name: settings["rule"] for name, settings in arguments.ALGORITHMS.items()}
    others = {name for words, _ in rows for name in re.findall(r"`(\w+)=", words)}
    assert {*arguments.SWITCHES, *arguments.RULES} <= others
    assert others <= {*arguments.SWITCHES, *arguments.RULES, *arguments.REFUSED, "alg", "peft", "suppress_tokens"}


@pytest.mark.parametrize("page", [GUIDE, CHINESE[GUIDE]], ids=short)
def test_every_dataset_spec_of_the_guide_is_one(page: Path) -> None:
    assert len(specs(page)) > 10
    for one in specs(page):
        assert spec.parse(one)


# ---------------------------------------------------------------------------------------------------------------------
# Running them


# What cuts a command down to a second; flags given last count.
SMALLER = {
    "tokenizer": "--vocab_size 300",
    "init": "--set d_model=32,n_layers=2,n_heads=2,n_kv_heads=2,mlp_hidden_size=64",
    "count": "",
    "study": "--show",
    "prepare pretrain": "--max_length 32 --num_proc 1",
    "prepare sft": "--num_proc 1",
    "pretrain": "--max_steps 3 --max_length 32 --gradient_accumulation_steps 1 --logging_steps 1 --num_proc 1",
    "inspect": "--rows 1 --num_proc 1",
    "sft": "--max_steps 2 --gradient_accumulation_steps 1 --logging_steps 1 --num_proc 1",
    "merge": "",
    "chat": "-p Hello --max_new_tokens 8 --steps 4",
    "sample": "--max_new_tokens 16 --steps 4",
    "infill": "--steps 4",
    "bench": "--max_new_tokens 8 --steps 4 --block_size 4 --repeats 1",
    "eval": "--limit 2 --max_new_tokens 8 --mc_num 2 --max_length 256",
}


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Inside a folder with the user's text in it, and the questions that the guide shows."""
    (folder / "data").mkdir()
    make_text(folder / "data" / "my.jsonl", documents=400)
    make_chats(folder / "data" / "my-chats.json")
    for name, rows in zip(("questions", "choices"), blocks(GUIDE, "json"), strict=True):
        (folder / "data" / f"my-{name}.jsonl").write_text(rows, encoding="utf-8")
    (folder / "data" / "my-book.txt").write_text("The cat sat on the mat. " * 20, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def typed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of the pages on little; returns what it printed."""
    assert words[0] == "unmask"
    capsys.readouterr()
    smaller = SMALLER[" ".join(words[1:3] if words[1] == "prepare" else words[1:2])]
    assert main([*words[1:], *shlex.split(smaller)]) == 0, " ".join(words)
    return capsys.readouterr().out


def test_what_the_pages_do_with_your_own_text_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """README's commands and Python as they stand there, then those of the guide that have not been run by then."""
    own = commands_of(blocks_after(README, "## Train on your own text")[0])
    own += commands_of(blocks_after(README, "## Tune it on instructions, and chat")[0])
    assert [words[1] for words in own] == [
        *("tokenizer", "init", "pretrain", "sample", "infill", "inspect", "sft", "merge", "chat"),
    ]
    with at_work(tmp_path):
        printed = {words: typed(words, capsys) for words in own}
        sampled, filled = (next(out for words, out in printed.items() if words[1] == n) for n in ("sample", "infill"))
        assert "Once upon a time" in sampled
        assert "The cat" in filled
        assert "on the mat." in filled
        run_python(README)
        assert "Once upon a time" in capsys.readouterr().out

        mine = re.compile(r"\b(data/my|models/my|output/my)")
        for words in commands(GUIDE):
            if words[0] == "unmask" and mine.search(" ".join(words)) and words not in printed:
                printed[words] = typed(words, capsys)
        check_what_a_run_leaves(tmp_path / "output" / "my-llada")
        run_python(GUIDE)
        assert (tmp_path / "output" / "in-python" / "final" / "model.safetensors").is_file()


def blocks_after(page: Path, heading: str) -> list[str]:
    """The shell blocks between a heading and the next."""
    section = page.read_text(encoding="utf-8").split(f"\n{heading}\n")[1].split("\n## ")[0]
    return re.findall(r"(?ms)^```bash\n(.*?)^```", section)


def run_python(page: Path) -> None:
    """The Python blocks of a page, one after the other; one that begins with `# file.py` is written there instead."""
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if file := re.match(r"# (\w+\.py)\n", block):
            Path(file[1]).write_text(block, encoding="utf-8")
        else:
            exec(compile(block, short(page), "exec"), names)


def check_what_a_run_leaves(folder: Path) -> None:
    """The guide's two tables of the run's folder name every file and every number that is there, and no other."""
    files, numbers = (
        [cell for row in table for cell in re.findall(r"`([^`]+)`", row[0])] for table in tables(GUIDE, 2)[:2]
    )
    there = {re.sub(r"checkpoint-\d+", "checkpoint-N", path.name) for path in folder.iterdir()}
    assert there == set(files)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    levels = re.compile(r"eval_nats_at_0\.\d")
    found = {levels.sub("level", key) for line in lines for key in line}
    assert found == {levels.sub("level", name) for name in numbers}
