"""`scripts/eval-rules.py`: rules × caches over one task, in one table."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from runs import make_model

import unmask
from unmask.__main__ import main
from unmask.config import UserError

pytest.importorskip("lm_eval")

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "eval-rules.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("eval_rules", SCRIPT)
    module = sys.modules["eval_rules"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer, max_sequence_length=128)
    unmask.load(str(folder), fresh=True, seed=3).model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def words(folder, tmp_path):
    rows = [{"prompt": f"Number {i}:", "answer": "x"} for i in range(4)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--model", folder, "--data", tmp_path / "qa.jsonl", "--metric", "contains", "--max_new_tokens", 8]
    return [*map(str, words), "--block_size", "4", "--output_dir", str(tmp_path / "out")]


def test_every_rule_runs_with_every_cache_and_what_cannot_be_is_a_row_that_says_so(script, words, tmp_path, capsys):
    assert script.main([*words, "--rules", "threshold:threshold=0.1", "wino", "--caches", "none", "dual"]) == 0
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    cells = [(one["rule"], one["cache"], one["metric"]) for one in told["cells"]]
    threshold = "threshold:threshold=0.1"
    assert cells == [
        ("reference", "none", "contains"),
        *((threshold, "none", "contains"), (threshold, "dual", "contains")),
        *(("wino", "none", "contains"), ("wino", "dual", "refused")),
    ]
    assert told["cells"][0]["passes"] == "8.0"
    assert "refused: wino + dual: the rule 'wino' shows the model more" in said
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8").count("|") > 20
    assert not (tmp_path / "out" / "wino+dual").exists()


def test_a_grid_goes_on_where_it_stood_and_its_cells_can_be_compared(script, words, tmp_path, capsys, monkeypatch):
    assert script.main([*words, "--rules", "reference"]) == 0
    before = (tmp_path / "out" / "reference+none" / "results.json").read_bytes()
    assert script.main([*words, "--rules", "margin"]) == 0
    assert "reference + none: done before" in capsys.readouterr().err
    assert (tmp_path / "out" / "reference+none" / "results.json").read_bytes() == before
    assert main(["compare", *(str(tmp_path / "out" / name) for name in ("reference+none", "margin+none"))]) == 0


@pytest.mark.parametrize("other", ["length", "weights"])
def test_a_table_never_mixes_settings_or_models(script, words, folder, tmp_path, other):
    mine = [*words, "--rules", "reference"]
    assert script.main(mine) == 0
    there = tmp_path / "out" / "reference+none" / "results.json"
    before = there.read_bytes()
    if other == "weights":
        mine[mine.index(folder)] = str(tmp_path / "other")
        loaded = unmask.load(folder, fresh=True, seed=4)
        loaded.model.save_pretrained(tmp_path / "other")
        loaded.tokenizer.save_pretrained(tmp_path / "other")
    else:
        mine += ["--max_new_tokens", "4"]
    with pytest.raises(UserError, match="weights" if other == "weights" else "holds results of other settings"):
        script.main([*mine, "margin"] if other == "weights" else mine)
    assert there.read_bytes() == before
    assert not (tmp_path / "out" / "margin+none").exists()
    assert script.main([*mine, "--overwrite"]) == 0
    assert there.read_bytes() != before


def test_a_cell_is_repeated_alone_by_unmask_eval(script, words, tmp_path, capsys):
    assert script.main([*words, "--rules", "threshold:threshold=0.1", "--caches", "dual"]) == 0
    cell, again = tmp_path / "out" / "threshold_threshold=0.1+dual", tmp_path / "again"
    assert main(["eval", "--from", str(cell), "--output_path", str(again)]) == 0
    assert "the scores are those in" in capsys.readouterr().err
    one, other = ((path / "samples_qa.jsonl").read_text(encoding="utf-8").splitlines() for path in (cell, again))
    facts = [
        [(row["resps"], row["details"][0]["forward_passes"]) for row in map(json.loads, some)] for some in (one, other)
    ]
    assert facts[0] == facts[1]


def test_a_second_process_writes_no_table(script, words, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "evaluate", lambda *_: None)
    monkeypatch.setattr(script.workers, "processes", lambda: (1, 2))
    assert script.main([*words, "--rules", "margin"]) == 0
    assert not (tmp_path / "out" / "table.json").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rule", "threshold"], "--rule takes one"),
        (["--rules", "treshold"], "treshold"),
        (["--metric", "choice"], "gold"),
        (["--output_path", "x"], "--output_dir"),
    ],
)
def test_what_cannot_be_a_grid_is_refused(script, words, more, says):
    given = list(words)
    if more[0] in given:
        at = given.index(more[0])
        given[at : at + 2] = []
    with pytest.raises(UserError) as error:
        script.main([*given, *more])
    assert says in str(error.value) or "choices" in str(error.value)
