"""`scripts/planning.py`: both kinds on the same puzzles, from rows to table, and on again where it stopped."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from unmask import puzzles
from unmask.__main__ import main
from unmask.config import UserError
from unmask.measure import wilson

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield SimpleNamespace(
            planning=importlib.import_module("planning"), table=importlib.import_module("planning_table")
        )


@pytest.fixture(scope="module")
def done(modules, tmp_path_factory):
    """A study that was run, and the commands that it ran: in this process, which is quicker than new ones."""
    folder, runs = tmp_path_factory.mktemp("planning"), list[list[str]]()

    def command(words: list[str]) -> int:
        runs.append(words)
        return main(words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules.planning, "command", command)
        assert modules.planning.main(words(folder)) == 0
        yield folder, runs


def words(folder: Path, *more: str) -> list[str]:
    sizes = "--train_rows 40 --test_rows 6 --steps 2 --rates 1e-3 3e-3 --width 16 --layers 1 --batch_size 4"
    where = ["--output_dir", str(folder / "work"), "--results_dir", str(folder / "results")]
    return [*sizes.split(), *where, *more]


def test_both_kinds_learn_the_same_rows_from_the_same_start_for_as_many_steps(done):
    folder, runs = done
    flags = [dict(zip(run[1::2], run[2::2], strict=False)) for run in runs]
    assert [(f["--objective"], f["--learning_rate"]) for f in flags] == [
        *(("masked", "0.001"), ("masked", "0.003")),
        *(("autoregressive", "0.001"), ("autoregressive", "0.003")),
    ]
    for one, other in zip(flags[:2], flags[2:], strict=True):
        differ = {key for key in {*one, *other} if one.get(key) != other.get(key)}
        assert differ == {"--objective", "--objective_args", "--eos_tail", "--output_dir"}
    told = [
        json.loads((folder / "results" / "parts" / f"run-{kind}-0.001-s1.json").read_text(encoding="utf-8"))
        for kind in ("masked", "autoregressive")
    ]
    for same in ("parameters", "tokens"):
        assert told[0][same] == told[1][same]
    assert told[0]["tokens"] == 2 * 4 * 75


def test_the_table_has_a_line_for_each_way_of_asking(modules, done):
    results = done[0] / "results"
    with (results / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(modules.planning.cells(puzzles.Shape()))
    for line in lines:
        low, high = wilson(int(line["solved"]), 6)
        assert (float(line["low"]), float(line["high"])) == (round(low, 4), round(high, 4))
        assert float(line["forward_passes"]) <= 36
        if line["steps"]:
            assert float(line["forward_passes"]) == int(line["steps"])
    assert (results / "planning.png").read_bytes().startswith(b"\x89PNG")
    whole = (results / "README.md").read_text(encoding="utf-8")
    assert whole.count("| masked | reference | 36 | 1 |") == 2
    assert str(done[0]) not in whole + "".join(path.read_text() for path in results.glob("parts/*.json"))


def test_a_study_that_is_done_is_told_again_without_its_models(modules, done, tmp_path):
    """On another machine, which has the parts alone; what was written around the tables stays."""
    folder, runs = done
    results, before = tmp_path / "results", len(runs)
    shutil.copytree(folder / "results", results)
    whole, note = (results / "README.md").read_text(encoding="utf-8"), "\nWords of mine.\n"
    (results / "README.md").write_text(whole + note, encoding="utf-8")
    assert modules.planning.main(words(tmp_path)) == 0
    assert len(runs) == before
    assert not (tmp_path / "work").exists()
    assert (results / "results.csv").read_bytes() == (folder / "results" / "results.csv").read_bytes()
    assert (results / "README.md").read_text(encoding="utf-8") == whole + note
    with pytest.raises(UserError, match=r"made by other settings \(width\)"):
        modules.planning.main([*words(tmp_path), "--width", "32"])


def test_a_part_that_is_missing_is_done_again_alike(modules, done, tmp_path):
    folder, runs = done
    before = len(runs)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    part = tmp_path / "results" / "parts" / "ask-masked-random-36-s1.json"
    first = json.loads(part.read_text(encoding="utf-8"))
    part.unlink()
    modules.planning.main(words(tmp_path))
    assert len(runs) == before  # the model is there
    again = json.loads(part.read_text(encoding="utf-8"))
    assert {**again, "cpu_seconds": 0} == {**first, "cpu_seconds": 0}


def test_other_settings_in_one_folder_are_other_runs(modules, done):
    """Neither goes on with the other's checkpoints, starts from its weights or is asked by its model."""
    planning, home = modules.planning, str(done[0] / "work")
    folders, starts = set(), set()
    for more in ({}, {"width": 32}, {"layers": 2}, {"steps": 3}, {"batch_size": 8}, {"most": 20}):
        study = planning.Study(planning.PlanningArguments(output_dir=home, **more), puzzles.Shape())
        folders.add(planning.run_folder(study, "masked", 1, 1e-3))
        if "width" in more or "layers" in more:
            starts.add(planning.start(study, 1))
    assert len(folders) == 6
    assert len(starts) == 2


def test_both_kinds_read_a_puzzle_as_the_same_single_characters(done):
    """One token a cell, digits too."""
    from unmask import models
    from unmask.template import Template

    row = json.loads((done[0] / "work" / "asked.jsonl").read_text(encoding="utf-8").splitlines()[0])
    said = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
    ids = []
    for kind in ("masked", "autoregressive"):
        [run] = (done[0] / "work").glob(f"run-{kind}-0.001-s1-*")
        tokenizer = models.load_tokenizer(str(run / "checkpoint-final"))
        template = Template(tokenizer)
        [asked, answer] = template.turns(said)
        assert template.prompt(said[:1]) == asked.ids
        assert [tokenizer.decode([i]) for i in asked.ids[1:-1]] == list(row["instruction"])
        assert [tokenizer.decode([i]) for i in answer.ids[:-1]] == list(row["output"])
        assert answer.ids[-1:] == template.ends
        ids.append([*asked.ids, *answer.ids])
    assert ids[0] == ids[1]
    assert len(ids[0]) == 75


def test_what_is_asked_was_neither_learnt_nor_chosen_by(done):
    files = [done[0] / "work" / name for name in ("asked.jsonl", "puzzles/test.jsonl", "puzzles/train.jsonl")]
    rows = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files]
    assert [len(part) for part in rows] == [6, 6, 40]
    assert len({puzzles.canonical(row["instruction"], puzzles.Shape()) for part in rows for row in part}) == 52


def test_groups_by_blanks_hold_every_puzzle_once(modules):
    part = {"blanks": [8, 8, 8, 9, 12, 15, 15, 20, 24], "solved": [1] * 9}
    groups = modules.table.bands(part)
    assert groups[0][0] == 8
    assert groups[-1][1] == 24
    assert sum(modules.table.in_band([part], group)[1] for group in groups) == 9


def test_a_share_is_told_with_its_interval(modules):
    assert modules.table.percent(50, 100) == "50.0 (40.4–59.6)"  # Wilson, as in Newcombe 1998


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--steps", "0"], "--steps is 0"), (["--fewest", "9", "--most", "8"], "--most must not be below")],
)
def test_bad_settings_are_one_line(modules, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        modules.planning.main([*words(tmp_path), *more])
