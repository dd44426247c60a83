"""What a study's CSV says is what `Results` holds; intervals are those of textbooks; envelopes are lowest."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import study_made
from hypothesis import given
from hypothesis import strategies as st

from unmask.studies.results import COLUMNS, STUDENT, Estimate, difference, envelope, over_seeds, read, student
from unmask.values import UserError


def changed(tmp_path: Path, change: Any) -> Path:
    """A small results.csv whose lines went through `change`."""
    path = study_made.write(tmp_path / "results.csv", [study_made.Arm("ar", (4, 10), (1, 2))], [100_000])
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    lines = change(lines) or lines
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_the_runs_are_those_of_the_file(tmp_path: Path) -> None:
    results = read(study_made.write(tmp_path / "results.csv"))
    expected = sum(2 * len(arm.epochs) * len(arm.seeds) for arm in study_made.STUDY)
    assert len(results.runs) == expected
    assert results.arms == ["ar", "ar-dropout", "masked"]
    assert results.uniques == [100_000, 300_000]
    assert [cell.epochs for cell in results.cells("masked", 300_000)] == [25, 50, 100, 200, 400]
    assert [len(cell.runs) for cell in results.cells("masked", 300_000)] == [2] * 5
    assert results.kind("masked") == "bound"


def test_the_order_of_the_lines_does_not_matter(tmp_path: Path) -> None:
    one = read(changed(tmp_path, lambda lines: None))
    other = read(changed(tmp_path, lambda lines: lines[::-1]))
    assert one.by_cell == other.by_cell


def test_the_final_look_takes_the_place_of_the_last_steps(tmp_path: Path) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["final"] == "True" or line["final"] == "1":
                line.update(loss="1.25", final="1")
            else:
                line["final"] = "0"

    results = read(changed(tmp_path, change))
    for run in results.runs:
        assert run.finished
        assert run.last.loss == run.best.loss == 1.25
        steps = [look.step for look in run.looks]
        assert steps == sorted(set(steps))


def test_the_best_checkpoint_is_the_lowest_look_and_the_best_budget_the_lowest_mean(tmp_path: Path) -> None:
    results = read(study_made.write(tmp_path / "results.csv"))
    for arm in results.arms:
        for unique in results.uniques:
            cells = results.cells(arm, unique)
            for cell in cells:
                lows = [min(look.loss for look in run.looks) for run in cell.runs]
                assert cell.best.value == pytest.approx(np.mean(lows))
            best = results.best(arm, unique)
            assert best is not None
            assert best.best.value == min(cell.best.value for cell in cells)


def test_unfinished_and_diverged_runs_are_left_out_and_named(tmp_path: Path) -> None:
    def change(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for line in lines:
            if line["run"] == "ar-u100000-e4-s2" and line["step"] != "0":
                line["loss"] = "nan"
        return [line for line in lines if not (line["run"] == "ar-u100000-e10-s1" and line["final"] == "1")]

    results = read(changed(tmp_path, change))
    assert results.unfinished == ("ar-u100000-e10-s1",)
    assert results.diverged == ("ar-u100000-e4-s2",)
    assert sorted(run.name for run in results.runs) == ["ar-u100000-e10-s2", "ar-u100000-e4-s1"]


def test_a_look_without_a_number_is_no_best_checkpoint(tmp_path: Path) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        lines[3]["loss"] = "nan"
        lines[4]["loss"] = "-inf"

    results = read(changed(tmp_path, change))
    assert all(math.isfinite(run.best.loss) for run in results.runs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[0].update(kind="guess"), "exact or bound"),
        (lambda lines: lines[0].update(loss="low"), "expected a number"),
        (lambda lines: lines[0].update(loss=""), "expected a number"),
        (lambda lines: lines[0].update(loss_se=""), "expected its standard error"),
        (lambda lines: lines[0].update(seed="1.5"), "whole number"),
        (lambda lines: lines[0].update(unique_tokens="0"), "expected > 0"),
        (lambda lines: lines[0].update(arm=""), "expected a word"),
        (lambda lines: lines[0].update(arm="masked"), "differ in arm"),
        (lambda lines: [*lines, lines[0]], "the same step twice"),
        (lambda lines: lines[-2].update(step="7", final="1"), "2 final looks"),
        (lambda lines: [line.update(kind="bound") for line in lines if line["seed"] == "2"] and None, "one kind"),
        (lambda lines: [{} for _ in ()] or lines.clear(), "no look"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_results_gets_one_line(tmp_path: Path, change: Any, words: str) -> None:
    path = changed(tmp_path, change)
    with pytest.raises(UserError, match=words) as raised:
        read(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_missing_file_and_a_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unmask study"):
        read(tmp_path / "none.csv")
    (tmp_path / "short.csv").write_text("run,arm\nx,y\n")
    with pytest.raises(UserError, match="no column objective"):
        read(tmp_path / "short.csv")


def test_students_t_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for df, value in STUDENT:
        assert student(df) == pytest.approx(value)
        assert value == pytest.approx(stats.t.ppf(0.975, df), rel=1e-4)
    for df in (2.5, 3.7, 13, 17, 45, 500):
        assert student(df) == pytest.approx(stats.t.ppf(0.975, df), rel=0.04)
        assert student(df) >= stats.t.ppf(0.975, df) * 0.999  # never too narrow


def test_the_interval_of_a_difference_is_welchs() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = [3.1, 3.3, 3.15, 3.22], [2.9, 2.95, 3.02]
    found = difference(over_seeds(first, [0] * 4), over_seeds(second, [0] * 3))
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found.value / found.se == pytest.approx(expected.statistic)
    assert found.df == pytest.approx(expected.df)


def test_one_seed_has_its_looks_own_interval() -> None:
    one = over_seeds([3.0], [0.1])
    assert (one.low, one.high) == pytest.approx((3 - 0.196, 3 + 0.196))
    assert "look" in one.source
    assert "2 seeds" in over_seeds([3.0, 3.1], [0.1, 0.1]).source


def test_equal_seeds_differ_by_nothing_and_are_sure_of_it() -> None:
    same = over_seeds([3.0, 3.0], [0.1, 0.1])
    assert difference(same, same) == Estimate(0.0, 0.0, math.inf, 2)


points = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.1, 10)), min_size=1, max_size=40)


@given(points)
def test_an_envelope_is_below_every_point_that_costs_as_much_or_more(some: list[tuple[float, float]]) -> None:
    flops, loss = (np.array(column) for column in zip(*some, strict=True))
    found = envelope(flops, loss)
    assert (np.diff(found.flops) > 0).all()
    assert (np.diff(found.loss) < 0).all()
    assert set(zip(found.flops, found.loss, strict=True)) <= set(some)
    for cost, value in some:
        if cost > 0:
            assert found.loss[found.flops <= cost].min() <= value


def test_between_the_points_of_an_envelope_the_loss_is_linear_in_log_compute() -> None:
    found = envelope(np.array([1.0, 100.0, 1000.0]), np.array([5.0, 3.0, 4.0]))
    assert found.at(10.0) == pytest.approx(4.0)
    assert found.at(1e9) == 3.0
    assert math.isinf(found.at(0.5))
