"""The scripts in benchmarks/ run at tiny size: both ways come to the same loss, and tables are made of results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
TINY = ["--preset", "llada-200k", "--length", "32", "--steps", "2", "--warm", "1", "--threads", "1"]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def child(way: str, *words: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / "training.py"), *words, "--child", way]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["pretrain", "lora"])
def test_every_way_of_a_step_has_the_same_losses(shape: str) -> None:
    """So that what is timed is the same work. Also the scripts for a GPU, at tiny size."""
    ways = ("plain", "transposed", "ours") if shape == "pretrain" else ("plain", "ours")
    found = {way: child(way, shape, "--precision", "float32", *TINY) for way in ways}
    for way in ways:
        # an adapter's base is kept in bfloat16, where sums in another order differ
        assert found[way]["losses"] == pytest.approx(found["ours"]["losses"], rel=1e-4 if shape == "pretrain" else 1e-2)
        assert found[way]["masked"] == found["ours"]["masked"]
        assert found[way]["seconds"] > 0
        assert found[way]["peak_bytes"] > 0


@pytest.mark.slow
def test_padded_and_packed_conversations_have_the_same_losses(tmp_path: Path) -> None:
    import datasets

    rows = [{"input_ids": list(range(5, 5 + n)), "labels": [-100] * 3 + list(range(8, 5 + n))} for n in range(6, 30)]
    datasets.Dataset.from_list(rows * 2).save_to_disk(tmp_path / "rows")
    words = ["sft", "--precision", "float32", *TINY, "--rows", str(tmp_path / "rows"), "--batch", "8"]
    ours, plain = child("ours", *words), child("plain", *words, "--plain_batch", "2")
    assert plain["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert plain["learnt"] == ours["learnt"]
    assert plain["padded"] < ours["padded"], "fewer rows of a micro-batch are padded less"
    assert child("tail", *words)["learnt"] > ours["learnt"]


@pytest.mark.usefixtures("scripts")
def test_medians_are_of_rounds_and_ratios_are_taken_in_them() -> None:
    import sides

    made = [
        {"plain": {"seconds": p, "peak_bytes": 100}, "ours": {"seconds": o, "peak_bytes": 40}}
        for p, o in ((4, 2), (9, 3), (10, 10))
    ]
    found = sides.medians(made, ["seconds"], "ours")
    assert found["seconds"] == {"plain": 9, "ours": 3}
    assert found["plain / ours"] == {"seconds": [2.0, 1.0, 3.0], "peak_bytes": 0.4}


@pytest.mark.usefixtures("scripts")
def test_disturbed_rounds_are_run_again_and_too_many_are_an_end() -> None:
    import sides

    others = iter([0.5, 0.0, 0.01, 0.9, 0.02, 0.0])
    way = lambda: {"seconds": 1.0, "others": next(others)}  # noqa: E731
    assert [one["ours"]["others"] for one in sides.rounds({"ours": way}, 3, lambda found: None)] == [0.0, 0.01, 0.02]
    with pytest.raises(SystemExit, match="only 0 of 1 rounds were undisturbed"):
        sides.rounds({"ours": lambda: {"seconds": 1.0, "others": 1.0}}, 1, lambda found: None)


@pytest.mark.usefixtures("scripts")
def test_tables_take_the_place_between_their_marks(tmp_path: Path) -> None:
    import run

    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- estimate: begin -->\nold\n<!-- estimate: end -->\nb\n<!-- data: begin -->\n<!-- data: end -->\n"
    )
    (tmp_path / "estimate.json").write_text(json.dumps({"runs": {"one": {"estimated": 2**31, "measured": 2**30}}}))
    run.write_tables(page, tmp_path)
    text = page.read_text()
    assert "| one | 2.00 GiB | 1.00 GiB | +100% |" in text
    assert "old" not in text
    assert text.endswith("<!-- data: begin -->\n<!-- data: end -->\n"), "no result, no change"


@pytest.mark.usefixtures("scripts")
def test_the_page_shows_the_results_that_are_committed(tmp_path: Path) -> None:
    """`python benchmarks/run.py --tables` would change nothing."""
    import run

    page = tmp_path / "README.md"
    page.write_text((BENCHMARKS / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    run.write_tables(page)
    assert page.read_text(encoding="utf-8") == (BENCHMARKS / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("scripts")
def test_every_part_has_its_commands(tmp_path: Path) -> None:
    import argparse

    import run

    for device in ("cpu", "cuda"):
        arguments = argparse.Namespace(device=device, tiny=False, shared=tmp_path)
        for part in run.PARTS:
            for command in run.commands(part, arguments, tmp_path):
                assert (BENCHMARKS / command[0]).is_file()
                assert ("--device" in command) == (device == "cuda" and part != "data")


@pytest.mark.usefixtures("scripts")
def test_the_memory_tables_have_their_rows_and_columns_in_both_languages() -> None:
    import memory_table

    rows = [re.findall(r"(?m)^\| (?:\d+M|\d+B).*\|$", page.read_text(encoding="utf-8")) for page in memory_table.PAGES]
    assert rows[0] == rows[1]
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows[0]]
    assert names == [*memory_table.RUNS, *memory_table.RUNS]
    for number, row in enumerate(rows[0]):
        wanted = 2 + len(memory_table.WAYS) if number < len(memory_table.RUNS) else 1 + len(memory_table.AWAY)
        assert row.count("|") - 1 == wanted
    for page in memory_table.PAGES:
        assert re.search(r"not measured|不是测量值", page.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.usefixtures("scripts")
def test_the_memory_tables_say_what_estimate_says() -> None:
    import memory_table

    page = memory_table.PAGES[0].read_text(encoding="utf-8")
    assert f"\n{memory_table.row('100M')}\n" in page
    assert f"\n{memory_table.row_off('100M')}\n" in page
