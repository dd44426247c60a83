"""R_D* is what was planted, or is said not to be known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import study_made
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.studies.fit import Law, effective, fit_law, fit_points, fit_repeats, percentiles, points_of
from unmask.studies.results import read

EPOCHS = (1, 2, 4, 10, 20, 50, 100, 200, 400)
UNIQUE, GRID = (column.ravel() for column in np.meshgrid([1e5, 3e5, 1e6], np.array(EPOCHS, dtype=float)))


@given(st.floats(1e3, 1e9), st.floats(0.5, 1e4))
def test_the_first_pass_is_worth_its_tokens_and_repeats_no_more_than_that(unique: float, repeats: float) -> None:
    epochs = np.array([0.25, 1.0, 2.0, 10.0, 1e6])
    worth = effective(np.full(5, unique), epochs, repeats)
    assert worth[:2] == pytest.approx([0.25 * unique, unique])
    assert (worth <= epochs * unique * (1 + 1e-9)).all()
    assert (np.diff(worth) >= 0).all()
    assert worth[-1] == pytest.approx(unique * (1 + repeats), rel=1e-6)  # R_D* more passes are all that there is


@settings(max_examples=15, deadline=None)
@given(st.floats(2, 300), st.floats(0.15, 0.8), st.floats(0.5, 4.0))
def test_a_law_without_noise_is_found_again(repeats: float, exponent: float, floor: float) -> None:
    planted = Law(repeats, exponent, floor, 2.0 * 3e5**exponent)
    found = fit_law(UNIQUE, GRID, planted(UNIQUE, GRID))
    assert found.repeats == pytest.approx(repeats, rel=0.02)
    assert found.exponent == pytest.approx(exponent, rel=0.02)
    assert found.floor == pytest.approx(floor, abs=0.03)


@pytest.mark.parametrize("repeats", [5.0, 15.0, 60.0])
@pytest.mark.parametrize("seed", [0, 2])  # of twenty seeds one may lie outside: the slow test below counts them
def test_a_planted_half_life_lies_in_its_interval(repeats: float, seed: int) -> None:
    planted = Law(repeats, 0.3, 2.0, 40.0)
    noise = 0.008 * np.random.default_rng(seed).standard_normal(len(GRID))
    found = fit_points("ar", UNIQUE, GRID, planted(UNIQUE, GRID) + noise, draws=60)
    assert not found.why
    assert found.low < repeats < found.high
    assert found.law is not None
    assert found.law.repeats == pytest.approx(repeats, rel=0.2)
    assert found.noise == pytest.approx(0.008, rel=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("points", [27, 10])
def test_intervals_hold_what_was_planted_about_as_often_as_they_say(points: int) -> None:
    planted, held = Law(15.0, 0.3, 2.0, 40.0), 0
    some = np.ones(27, dtype=bool) if points == 27 else (UNIQUE < 1e6) & (GRID >= 4) & (GRID <= 100)
    unique, epochs = UNIQUE[some], GRID[some]
    assert len(unique) == points
    for seed in range(40):
        noise = 0.008 * np.random.default_rng(1000 + seed).standard_normal(points)
        found = fit_points("ar", unique, epochs, planted(unique, epochs) + noise, draws=80)
        held += found.low <= 15.0 <= found.high
    assert held >= 34  # of 40; 95 % intervals hold fewer than that once in 300 times


def test_one_point_far_off_does_not_carry_the_fit_away() -> None:
    planted = Law(15.0, 0.3, 2.0, 40.0)
    loss = planted(UNIQUE, GRID)
    loss[7] += 0.5
    assert fit_law(UNIQUE, GRID, loss).repeats == pytest.approx(15.0, rel=0.05)


def test_more_tokens_and_the_same_loss_do_not_change_the_half_life() -> None:
    """R_D* counts passes: in other units of tokens the same curves have the same one."""
    planted = Law(15.0, 0.3, 2.0, 40.0)
    loss = planted(UNIQUE, GRID)
    assert fit_law(1000 * UNIQUE, GRID, loss).repeats == pytest.approx(fit_law(UNIQUE, GRID, loss).repeats, rel=1e-3)


def test_repeats_that_are_as_good_as_new_have_no_upper_end() -> None:
    unique, epochs = UNIQUE[GRID <= 10], GRID[GRID <= 10]
    loss = 2.0 + 40.0 * (unique * epochs) ** -0.3 + 0.005 * np.random.default_rng(0).standard_normal(len(unique))
    found = fit_points("masked", unique, epochs, loss, draws=40)
    assert "no upper end" in found.why
    assert math.isinf(found.high)
    assert found.low > 5  # it is known that they are worth something


def test_a_loss_that_data_do_not_lower_has_no_half_life() -> None:
    assert fit_points("ar", UNIQUE, GRID, 3.0 + 0.01 * GRID, draws=10).why


def test_a_few_points_are_not_fitted() -> None:
    found = fit_points("ar", UNIQUE[:5], GRID[:5], 3.0 - 0.1 * GRID[:5])
    assert found.law is None
    assert "too few points: 5" in found.why
    same = np.full(9, 4.0)
    assert "1 budgets" in fit_points("ar", UNIQUE[:9], same, same).why


def test_the_half_life_of_an_arm_of_results(tmp_path: Path) -> None:
    epochs = (1, 2, 4, 10, 25, 100, 400)
    arm = study_made.Arm("masked", epochs, (1, 2), "masked", repeats=30.0, floor=2.5, overfit=0.0)
    results = read(study_made.write(tmp_path / "results.csv", [arm]))
    found = fit_repeats(results, "masked", draws=40)
    assert found.points == 14
    assert found.low < 30.0 < found.high
    assert fit_repeats(results, "ar").why == "no runs"


def test_what_epochs_are_worth_never_falls(tmp_path: Path) -> None:
    results = read(study_made.write(tmp_path / "results.csv"))
    for arm in results.arms:
        for unique in results.uniques:
            losses = [one.value for its, _, one in points_of(results, arm) if its == unique]
            assert losses == sorted(losses, reverse=True)


def test_an_interval_is_open_where_more_than_one_draw_in_forty_is() -> None:
    values = np.arange(200.0)
    assert percentiles(values) == (4.0, 195.0)
    values[-3:] = math.inf
    assert percentiles(values)[1] == 195.0
    values[-8:] = math.inf
    assert percentiles(values)[1] == math.inf
    values[:8] = -math.inf
    assert percentiles(values, -1.0)[0] == -1.0
