"""What the repository ships besides code: wheel, pinned versions, configs, scripts, and what the docs name."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import unmask
from unmask.__main__ import COMMANDS, main
from unmask.pretrain import parse_pretrain
from unmask.sft import parse_sft

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHELL = sorted([*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"])
PROSE = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.yaml")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *SHELL,
    ROOT / "Makefile",
    ROOT / "requirements.txt",
]
LAUNCH = "distributed_type:"  # is in accelerate's files, which test_launch.py is about
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
RECIPES = [path for path in CONFIGS if LAUNCH not in path.read_text(encoding="utf-8")]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def setup_script() -> types.ModuleType:
    """`scripts/setup.py` as a module; nothing of it runs."""
    spec = importlib.util.spec_from_file_location("unmask_setup", ROOT / "scripts" / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------------------
# The package


def test_the_wheel_holds_every_source_file(tmp_path: Path) -> None:
    """Built from a copy, since setuptools writes beside what it builds."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    run = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(tmp_path / "dist" / run.stdout.split()[-1]) as wheel:
        inside = set(wheel.namelist())
    sources = {p for p in (ROOT / "src").rglob("*") if p.is_file() and not {"__pycache__"} & set(p.parts)}
    expected = {p.relative_to(ROOT / "src").as_posix() for p in sources if ".egg-info" not in str(p)}
    assert {name for name in inside if ".dist-info" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_one_version_in_project_package_and_changelog() -> None:
    assert PROJECT["version"] == unmask.__version__
    assert f"## [{unmask.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licence_is_the_one_named() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


# ---------------------------------------------------------------------------------------------------------------------
# Versions


def pinned() -> dict[str, Version]:
    """Name → version in constraints.txt, where every line pins one version exactly."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (only,) = requirement.specifier
            assert only.operator == "==", line
            found[canonicalize_name(requirement.name)] = Version(only.version)
    return found


def test_constraints_pin_what_the_project_asks_for_within_its_ranges() -> None:
    versions = pinned()
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    optional = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for line in [*needed, *optional]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name in versions:
            assert versions[name] in requirement.specifier, f"{line} leaves out {versions[name]} of constraints.txt"
        else:
            assert line not in needed or name == "setuptools", f"constraints.txt has no version of {name}"


def test_the_oldest_python_is_the_same_everywhere(setup_script: types.ModuleType) -> None:
    oldest = ".".join(map(str, setup_script.OLDEST_PYTHON))
    assert PROJECT["requires-python"] == f">={oldest}"
    torch = next(Requirement(line) for line in PROJECT["dependencies"] if line.startswith("torch"))
    assert str(torch.specifier) == f">={'.'.join(map(str, setup_script.OLDEST_TORCH))}"


def test_requirements_install_the_project_at_the_pinned_versions() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["-c constraints.txt", "-e ."]


# ---------------------------------------------------------------------------------------------------------------------
# scripts/setup.py


def test_an_installed_torch_is_kept(setup_script: types.ModuleType) -> None:
    ours, kept = setup_script.constraints(None), setup_script.constraints("2.9.1+cu128")
    assert re.findall(r"(?m)^torch==.*", ours) == ["torch==2.13.0"]
    assert re.findall(r"(?m)^torch==.*", kept) == ["torch==2.9.1+cu128"]
    assert kept.replace("2.9.1+cu128", "2.13.0") == ours


@pytest.mark.parametrize(
    ("version", "kept"),
    [("2.7.0", True), ("2.13.0+cpu", True), ("3.0", True), ("2.6.1", False), ("1.13", False), (None, False)],
)
def test_a_torch_that_is_too_old_is_not(setup_script: types.ModuleType, version: str | None, kept: bool) -> None:
    assert setup_script.new_enough(version) is kept


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "Retrying: Failed to establish a new connection\nERROR: No matching distribution found for torch",
            "index",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no torch==2.13.0 for Python"),
        ("Collecting x\nERROR: x needs y", "x needs y"),
        ("", "said nothing"),
    ],
)
def test_what_stops_pip_is_said_in_one_line(
    setup_script: types.ModuleType, tmp_path: Path, said: str, meant: str
) -> None:
    line = setup_script.why(said.splitlines(), tmp_path)
    assert meant in line
    assert "\n" not in line


def test_setting_up_what_is_set_up_does_nothing(
    setup_script: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stamp of an earlier run, and a Python in which `unmask` can be imported, are enough."""
    python = setup_script.python_of(tmp_path)
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    stamp = f'{{"fingerprint": "{setup_script.fingerprint()}", "extras": ["dev"], "own_torch": null}}'
    (tmp_path / setup_script.STAMP).write_text(stamp)
    before = sorted(tmp_path.rglob("*"))
    assert setup_script.main(["--venv", str(tmp_path), "--extras", "dev"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_environment_is_left_alone(
    setup_script: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert setup_script.main(["--venv", str(tmp_path)]) == 1
    assert "is no virtual environment" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_extra_is_named_with_the_nearest(
    setup_script: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup_script.main(["--venv", str(tmp_path / "new"), "--extras", "dve"]) == 1
    assert "Did you mean 'dev'?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Scripts and configs


@pytest.mark.parametrize("path", SHELL, ids=short)
def test_a_script_is_executable_and_parses(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    run = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_launcher_passes_everything_on(tmp_path: Path) -> None:
    """From any folder, with the CPU's config where there is no GPU; here a stand-in for Python prints its arguments,
    after `launch` if it was to run accelerate's launcher."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$1 $2" in\n'
        '*current_accelerator*) echo "$DEVICE" 2; exit ;;\n'
        "*accelerate.commands.launch*) shift 2; echo launch ;;\n"
        'esac\nprintf "%s\\n" "$@"\n'
    )
    python.chmod(0o755)

    def launch(*words: str, **environment: str) -> list[str]:
        surroundings = {**os.environ, "PYTHON": str(python), **environment}
        script = str(ROOT / "scripts" / "train-pt.sh")
        run = subprocess.run(["bash", script, *words], cwd=tmp_path, env=surroundings, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()

    recipe = ["examples/llada/pt.py", "--configs", "configs/llada-100M-pt.yaml"]
    accelerate = ["launch", "--quiet", "--config_file"]
    threads = ["--num_cpu_threads_per_process", "2"]
    words = ["--dataset_args", "a b[train:5] + c", "--max_steps", "3"]
    one, two = ["--num_processes", "1", *threads], ["--num_processes", "2", *threads]
    assert launch(*words, DEVICE="cpu") == [*accelerate, "configs/cpu.yaml", *one, *recipe, *words]
    assert launch(DEVICE="cuda") == [*accelerate, "configs/ddp.yaml", *one, *recipe]
    assert launch(DEVICE="cpu", NUM_PROCESSES="2") == [*accelerate, "configs/ddp.yaml", *two, *recipe]
    assert launch(DEVICE="mps") == recipe
    assert launch(DEVICE="mps", CONFIG="my own.yaml") == [*recipe[:2], "my own.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_a_recipe_has_known_keys_relative_paths_and_a_reason_for_every_key(path: Path) -> None:
    words = ["--config", str(path)]
    parsed = parse_pretrain(words) if path.stem.endswith("-pt") else parse_sft(words)
    model, data, training = (parsed.groups[i] for i in (0, -2, -1))
    for name in (model.model_name_or_path, data.dataset_args, training.output_dir):
        assert not Path(name).is_absolute()
    if training.max_steps > 0:
        assert training.warmup_steps < training.max_steps
        assert training.eval_steps <= training.max_steps
    lines = path.read_text(encoding="utf-8").splitlines()
    commented = False
    for line in lines:
        assert commented or not re.match(r"\w+:", line) or "#" in line, f"{path.name}: nothing explains {line!r}"
        commented = bool(line) and (line.startswith("#") or commented)


PATHS = {"model_name_or_path", "dataset_args", "output_dir", "run_name", "max_steps"}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("llada-100M-pt", PATHS - {"run_name"} | {"load_preprocessed_data"}),
        ("llada-8b-sft", PATHS | {"report_to", "eval_steps", "save_steps"}),
        ("qwen2.5-7b-alpaca", PATHS | {"report_to", "eval_steps", "save_steps"}),
    ],
)
def test_the_tutorials_recipe_has_the_tutorials_keys(shared: Path, name: str, others: set[str]) -> None:
    theirs = yaml.safe_load((shared / "seed" / f"{name}.yaml").read_text(encoding="utf-8"))
    ours = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(theirs) <= {*ours, "report_to"}
    assert {key for key in theirs if theirs[key] != ours.get(key)} == others


# ---------------------------------------------------------------------------------------------------------------------
# What the docs name


FOLDERS = r"(?:configs|scripts|docs|examples|tests|src|benchmarks|\.ci)"


@pytest.mark.parametrize("path", PROSE, ids=short)
def test_every_path_that_is_named_exists(path: Path) -> None:
    """Paths into the repository, and links; not what a run will write (`output/…`), nor names with a gap (`<name>`)."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^.*(?:later: |以后：)issue \d.*$", "", text)  # rows of the tutorial's table
    named = set(re.findall(rf"(?<![\w./-]){FOLDERS}/[\w./-]*\w", text))
    links = {link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link}
    gone = [name for name in named if not (ROOT / name).exists() and not list(ROOT.glob(name + "*"))]
    gone += [link for link in links if not (path.parent / link).exists()]
    assert not gone, f"{short(path)} names {gone}"


@pytest.mark.parametrize("path", PROSE, ids=short)
def test_every_command_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    used = set(re.findall(r"(?m)(?:^[$ #]*|`|-m )unmask ([a-z][\w-]*)", text)) - {"is", "and"}
    assert used <= {*COMMANDS, "help", "version"}, f"{short(path)}: {used - set(COMMANDS)}"


def test_the_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z][\w-]*):", makefile))
    for path in PROSE:
        used = set(
            re.findall(r"(?:`|^\s*|stage \w+ )make ([a-z][\w-]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert used <= targets, f"{short(path)}: make {used - targets}"


def test_the_tour_names_every_source_file_and_no_other() -> None:
    """The table in CONTRIBUTING.md."""
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {cell for row in re.findall(r"(?m)^\| *(`[^|]+)\|", tour) for cell in re.findall(r"`([\w/]+\.py)`", row)}
    there = {p.relative_to(ROOT / "src" / "unmask").as_posix() for p in (ROOT / "src" / "unmask").rglob("*.py")}
    assert named == there


def test_without_a_command_the_commands_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
