"""A study is its file: the same runs, rows and numbers, however often it was stopped on the way."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import pytest
import yaml

from unmask import study
from unmask.__main__ import main
from unmask.config import UserError
from unmask.studies import plan as study_plan
from unmask.studies import text as study_text

ROOT = Path(__file__).resolve().parent.parent
SPOKEN = "to be or not that is the question whether tis nobler in the mind to suffer slings and arrows"
WORDS = SPOKEN.split()
TINY = {
    "name": "tiny",
    "text": {"piece": 200, "held_out": 5},
    "tokenizer": {"vocab_size": 280},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 32, "max_sequence_length": 16},
    "training": {"max_length": 16, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 2},
    "looks": 4,
    "draws": 1,
    "final_draws": 3,
    "arms": {
        "ar": {"objective": "autoregressive"},
        "ar-dropout": {"objective": "autoregressive", "model": {"residual_dropout": 0.2}},
        "masked": {"objective": "masked", "objective_args": {"first_given": True}},
    },
    "grid": [{"arms": ["ar", "masked"], "unique_tokens": 480, "epochs": [2, 6]}],
    "claims": {"baseline": "ar", "tuned": ["ar-dropout"], "masked": "masked"},
}


def play(folder: Path) -> Path:
    """A text of speeches."""
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9 + i % 7)) for i in range(1, 160)]
    path = folder / "play.txt"
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture
def write(tmp_path):
    """A study's file, with some keys otherwise."""

    def made(**other) -> str:
        text = {"file": [str(tmp_path / "nowhere.txt"), str(play(tmp_path))], **TINY["text"], **other.pop("text", {})}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**TINY, "text": text, **other}))
        return str(path)

    return made


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def test_runs_are_arms_times_budgets_times_seeds_and_each_once(write):
    grid = [
        {"arms": ["ar"], "unique_tokens": [160, 480], "epochs": [2, 4], "seeds": [1, 2]},
        {"arms": ["ar", "masked"], "unique_tokens": 160, "epochs": 4},
    ]
    runs = study_plan.read(write(grid=grid)).runs()
    assert len(runs) == 2 * 2 * 2 + 1
    assert len({run.digest for run in runs}) == len(runs)
    assert runs[-1].name == "masked-u160-e4-s1"
    assert {run.rows for run in runs if run.unique_tokens == 480} == {30}


def test_a_runs_digest_is_of_what_makes_its_numbers(write):
    def digest(**other):
        return study_plan.read(write(**other)).runs()[0].digest

    same = digest()
    assert digest(name="other", title="other", notes=["other"], threads=2) == same
    assert digest(grid=[{"arms": ["ar"], "unique_tokens": 480, "epochs": 2}]) == same
    for other in (
        {"training": {**TINY["training"], "learning_rate": 1e-3}},
        {"model": {**TINY["model"], "d_model": 32}},
        {"text": {"held_out": 4}},
        {"looks": 5},
        {"arms": {**TINY["arms"], "ar": {"objective": "autoregressive", "training": {"weight_decay": 1.0}}}},
    ):
        assert digest(**other) != same


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"grdi": []}, "unknown key 'grdi'.*Did you mean 'grid'"),
        ({"arms": {}}, "no arms"),
        ({"name": "a/b"}, "name 'a/b'"),
        ({"grid": [{"arms": ["arr"], "unique_tokens": 480, "epochs": 2}]}, "no arm 'arr'.*Did you mean 'ar'"),
        ({"grid": [{"arms": ["ar"], "epochs": 2}]}, "grid 1 has no unique_tokens"),
        ({"grid": [{"arms": ["ar"], "unique_tokens": 3, "epochs": 2}]}, "unique_tokens 3; it must be at least 16"),
        ({"grid": [{"arms": ["ar"], "unique_tokens": 480, "epochs": 0}]}, "epochs 0"),
        ({"training": {"max_steps": 3}}, "sets max_steps, which the study sets"),
        ({"arms": {"ar": {"objectiv": "x"}}}, "arm ar: unknown setting 'objectiv'"),
        ({"looks": 0}, "looks is 0"),
        ({"text": {"held_out": 1}}, "held_out is 1"),
        ({"text": {"dataset_args": "x.jsonl"}}, "one of them"),
        ({"claims": {"masked": "maskd"}}, "claims masked: no arm 'maskd'"),
        ({"claims": {"basline": "ar"}}, "claims: no key 'basline'.*Did you mean 'baseline'"),
        ({"arms": {"a/b": {}}}, "arm 'a/b'"),
        ({"grid": [{"arms": ["ar"], "unique_tokens": [], "epochs": 2}]}, "a grid has no unique_tokens"),
        ({"training": {"max_length": "abc"}}, "max_length is 'abc'"),
        ({"arms": {"ar": {"training": {"per_device_train_batch_size": 0}}}}, "per_device_train_batch_size is 0"),
        ({"text": {"piece": -1}}, "piece is -1"),
    ],
)
def test_a_wrong_file_gets_one_line(write, other, line):
    with pytest.raises(UserError, match=line):
        study_plan.read(write(**other))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_come_along_can_be_read_and_their_runs_parse(path):
    from unmask.pretrain import parse_pretrain
    from unmask.training_settings import to_transformers

    found = study_plan.read(str(path))
    assert found.name == path.stem
    for arm in found.arms:
        run = next((run for run in found.runs() if run.arm == arm), None)
        assert run is not None, f"{arm} is in no grid"
        settings = found.training_of(run, Path("output"), Path("model"), Path("rows"))
        words = [w for k, v in settings.items() for w in (f"--{k}", json.dumps(v) if isinstance(v, dict) else str(v))]
        parsed = parse_pretrain(words)
        args = to_transformers(parsed.groups[2], parsed.more, parsed.given)
        assert args.num_train_epochs == run.epochs


# ---------------------------------------------------------------------------------------------------------------------
# The text


def test_less_text_is_a_part_of_more_and_validation_is_the_same_and_of_other_pieces(write, tmp_path):
    plan = study_plan.read(write(grid=[{"arms": ["ar"], "unique_tokens": [160, 480], "epochs": 2}]))
    known = study_text.prepare(plan, tmp_path / "home")
    small, large = (datasets.load_from_disk(str(tmp_path / "home" / "rows" / n)) for n in ("160", "480"))
    assert [len(small["train"]), len(large["train"])] == [10, 30]
    assert large["train"]["input_ids"][:10] == small["train"]["input_ids"][:]
    assert small["test"]["input_ids"][:] == large["test"]["input_ids"][:]
    train, held = study_text.pieces(plan.text)
    whole = (tmp_path / "play.txt").read_text()
    assert sum(len(piece) for piece in train + held) == len(whole) + 2  # the line ends behind the last speech
    assert not {*train} & {*held}
    assert known == study_text.prepare(plan, tmp_path / "home")


def test_another_text_is_refused_and_none_says_where_it_belongs(write, tmp_path):
    with pytest.raises(UserError, match="is not the text that this study is about"):
        study_text.locate(study_plan.read(write(text={"sha256": "0" * 64})).text)
    nowhere = {"file": [str(tmp_path / "none.txt")]}
    with pytest.raises(UserError, match=r"no text at .*none\.txt"):
        study_text.locate(study_plan.read(write(text=nowhere)).text)
    url = (tmp_path / "gone.txt").as_uri()
    with pytest.raises(UserError, match="cannot fetch"):
        study_text.locate(study_plan.read(write(text={**nowhere, "url": url})).text)
    assert not (tmp_path / "none.txt").exists()


def test_a_text_with_an_address_is_fetched_where_it_is_nowhere(write, tmp_path):
    there = {"file": [str(tmp_path / "data" / "fetched.txt")], "url": (tmp_path / "play.txt").as_uri()}
    found = study_text.locate(study_plan.read(write(text=there)).text)
    assert found.read_text() == (tmp_path / "play.txt").read_text()


def test_a_text_in_another_encoding_is_told_in_one_line(write, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Señor\n\n".encode("latin-1") * 100)
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 \(byte 2\)"):
        study_text.pieces(study_plan.read(write(text={"file": [str(tmp_path / "latin.txt")]})).text)


def test_a_server_that_hangs_up_is_told_in_one_line(write, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        hang_up = threading.Thread(target=lambda: server.accept()[0].close())
        hang_up.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/play.txt"
        there = {"file": [str(tmp_path / "none.txt")], "url": url}
        with pytest.raises(UserError, match=r"cannot fetch .*; put the file at"):
            study_text.locate(study_plan.read(write(text=there)).text)
        hang_up.join()
    assert not (tmp_path / "none.txt").exists()


def test_too_much_is_refused(write, tmp_path):
    plan = study_plan.read(write(grid=[{"arms": ["ar"], "unique_tokens": 10_000_000, "epochs": 2}]))
    with pytest.raises(UserError, match="unique_tokens 10,000,000: the text has"):
        study_text.prepare(plan, tmp_path / "home")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def start(path: str, folder: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "unmask", "study", path, "--output_dir", str(folder), "--jobs", "2", *more]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def finished(path: str, folder: Path, *more: str, code: int = 0) -> str:
    process = start(path, folder, *more)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == code, said
    return said


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_study_runs_to_its_report_and_does_nothing_twice(write, tmp_path, capsys):
    path, home = write(), tmp_path / "home"
    finished(path, home)
    lines = table(home)
    assert {line["run"] for line in lines} == {f"{a}-u480-e{e}-s1" for a in ("ar", "masked") for e in (2, 6)}
    for run in {line["run"] for line in lines}:
        mine = [line for line in lines if line["run"] == run]
        assert [line["final"] for line in mine] == ["0"] * (len(mine) - 1) + ["1"]
        assert mine[0]["step"] == "0"
        assert int(mine[-1]["tokens"]) == int(mine[-1]["epochs"]) * 30 * 15  # the first token of a row is given
        assert float(mine[-1]["loss"]) < float(mine[0]["loss"])
        exact = run.startswith("ar")
        assert {line["kind"] for line in mine} == {"exact" if exact else "bound"}
        assert mine[-1]["draws"] == ("1" if exact else "3")
        assert (mine[-1]["loss"] == mine[-2]["loss"]) == exact
    assert len({line["parameters"] for line in lines}) == 1
    for name in ("report.md", "report.html", "costs.csv", "data.json"):
        assert (home / "results" / name).is_file()
    assert str(tmp_path) not in "".join(p.read_text() for p in (home / "results" / "runs").iterdir())
    kept = (home / "results" / "results.csv").read_bytes()
    said = finished(path, home)
    assert "tokens, 2 at a time" not in said
    assert (home / "results" / "results.csv").read_bytes() == kept
    assert main(["study", path, "--output_dir", str(home), "--show"]) == 0
    assert "4 of 4 runs are done" in capsys.readouterr().out
    other = write(training={**TINY["training"], "learning_rate": 1e-3})
    with pytest.raises(UserError, match="made by other settings"):
        study.main([other, "--output_dir", str(home)])


def test_another_text_does_not_go_with_results_that_are_there(write, tmp_path):
    plan = study_plan.read(write())
    known = study_text.prepare(plan, tmp_path / "home")
    study_text.check_same(known, tmp_path)
    study_text.check_same(known, tmp_path)
    with pytest.raises(UserError, match="results of another text or tokenizer"):
        study_text.check_same(known | {"tokenizer": "x" * 20}, tmp_path)


def test_a_run_that_fails_leaves_the_others_done_and_says_where_to_look(write, tmp_path):
    arms = {**TINY["arms"], "ar": {"objective": "autoregressive", "objective_args": {"input_mask": 7}}}
    said = finished(write(arms=arms, grid=[{**TINY["grid"][0], "epochs": 2}]), tmp_path / "home", code=2)
    assert "1 runs failed: ar-u480-e2-s1" in said
    assert "input_mask is 7" in (tmp_path / "home" / "runs" / "ar-u480-e2-s1.log").read_text()
    assert (tmp_path / "home" / "results" / "runs" / "masked-u480-e2-s1.csv").is_file()


def test_what_was_half_made_by_other_settings_is_made_anew(write, tmp_path):
    """A run that was killed is gone on with by the settings that began it, and by no others."""
    grid = [{"arms": ["ar"], "unique_tokens": 480, "epochs": 2}]
    path, home = write(grid=grid), tmp_path / "home"
    finished(path, home)
    (run,) = study_plan.read(path).runs()
    for end in ("csv", "json"):
        (home / "results" / "runs" / f"{run.name}.{end}").unlink()
    folder = home / "runs" / run.name
    assert (folder / "digest").read_text() == run.digest
    slower = write(grid=grid, training={**TINY["training"], "warmup_steps": 9})
    finished(slower, home)
    assert "going on from" not in Path(f"{folder}.log").read_text()
    assert (folder / "digest").read_text() == study_plan.read(slower).runs()[0].digest


def test_names_that_are_not_there_are_refused(write):
    with pytest.raises(UserError, match="no such arm or run"):
        study.main([write(), "--only", "none"])
    with pytest.raises(UserError, match="no study given"):
        study.main([])
    with pytest.raises(UserError, match="no run of tiny is done"):
        study.main([write(), "--report_only", "--output_dir", "nowhere"])


@pytest.mark.slow
def test_a_study_that_was_killed_twice_and_stopped_once_gives_the_same_numbers(write, tmp_path):
    """SIGKILL takes the study alone: its runs notice, save and stop by themselves."""
    grid = [{"arms": ["ar", "ar-dropout", "masked"], "unique_tokens": 480, "epochs": 60}]
    path = write(grid=grid)
    finished(path, tmp_path / "whole")
    home = tmp_path / "parts"
    for signal_, lines in ((signal.SIGKILL, 40), (signal.SIGTERM, 120), (signal.SIGKILL, 200)):
        process = start(path, home)
        metrics = home / "runs" / "ar-u480-e60-s1" / "metrics.jsonl"
        dropped = home / "runs" / "ar-dropout-u480-e60-s1" / "metrics.jsonl"
        for _ in range(1200):
            if any(m.exists() and m.read_text().count("\n") > lines for m in (metrics, dropped)):
                break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal_)
        process.wait(timeout=60)
        if signal_ == signal.SIGTERM:
            assert process.returncode == 128 + signal.SIGTERM
    finished(path, home)
    logs = "".join(log.read_text() for log in (home / "runs").glob("*.log"))
    assert logs.count("going on from checkpoint") >= 2
    one, two = ((tmp_path / name / "results" / "results.csv").read_text() for name in ("whole", "parts"))
    assert one == two
