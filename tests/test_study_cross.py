"""Crossings are where curves cross, none where they do not, and their law is the planted one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import study_made
from hypothesis import assume, given
from hypothesis import strategies as st

from unmask.studies.cross import BEST, EQUAL, TUNED, Crossing, crossing, fit_critical, lasting, paper, slope_of
from unmask.studies.results import Envelope, Estimate, Results, read

COST = 6 * study_made.PARAMETERS


def made(tmp_path: Path, *arms: study_made.Arm, uniques: tuple[int, ...] = (100_000,), noise: float = 0.004) -> Results:
    return read(study_made.write(tmp_path / "results.csv", arms or study_made.STUDY, uniques, noise))


def falling(slope: float, start: float) -> Envelope:
    """A straight line in log compute from 1 to e^10."""
    flops = np.exp(np.linspace(0, 10, 40))
    return Envelope(flops, start - slope * np.log(flops))


@given(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(1, 9))
def test_two_straight_lines_cross_where_algebra_says(slope: float, other: float, at: float) -> None:
    assume(slope - other > 0.02)
    masked, ar = falling(slope, 5 + slope * at), falling(other, 5 + other * at)
    found = lasting(masked, ar, math.exp(10))
    assert found is not None
    assert math.log(found) == pytest.approx(at, abs=1e-6)
    assert lasting(ar, masked, math.exp(10)) is None  # the other is above at the end
    if at > 1.5:
        assert lasting(masked, ar, math.exp(at - 1)) is None  # and was not yet below there


def test_a_dip_at_the_start_is_no_crossing() -> None:
    ar = falling(0.3, 6.0)
    masked = Envelope(ar.flops, np.concatenate([ar.loss[:3] - 0.01, ar.loss[3:] + 0.5]))
    assert lasting(masked, ar, float(ar.flops[-1])) is None


def test_below_from_the_start_on_is_a_crossing_at_the_start() -> None:
    ar = falling(0.3, 6.0)
    assert lasting(Envelope(ar.flops, ar.loss - 1), ar, float(ar.flops[-1])) == 1.0


def test_a_planted_crossing_lies_in_its_interval(tmp_path: Path) -> None:
    """AR stands at its best from some compute on; the masked arm, made longer, goes through that loss at 60 epochs."""
    ar = study_made.Arm("ar", (4, 10, 20), (1, 2, 3))
    masked = study_made.Arm("masked", (20, 40, 60, 80, 120, 160, 240), (1, 2, 3), "masked", 150.0, 2.6, overfit=0.0)
    target = min(ar.loss(100_000, epochs) for epochs in ar.epochs)
    masked = study_made.Arm(
        **{**vars(masked), "delay": (target - masked.floor) / (masked.loss(100_000, 60) - masked.floor)}
    )
    found = crossing(made(tmp_path, ar, masked), 100_000, "masked", ["ar"], BEST)
    assert found is not None
    assert found.epochs == pytest.approx(60, rel=0.15)
    assert found.epochs_interval is not None
    assert found.epochs_interval[0] < 60 < found.epochs_interval[1]
    assert found.flops == pytest.approx(found.epochs * 100_000 * COST, rel=0.01)
    assert found.gap.high < 0
    assert found.extrapolated is None


def test_a_lower_bar_is_passed_no_earlier(tmp_path: Path) -> None:
    results = made(tmp_path)
    ar = ["ar", "ar-dropout"]
    equal, best = (crossing(results, 100_000, "masked", ["ar"], against) for against in (EQUAL, BEST))
    tuned = crossing(results, 100_000, "masked", ar, TUNED)
    assert equal is not None
    assert best is not None
    assert tuned is not None
    assert 0 < (equal.flops or 0) <= (best.flops or 0) <= (tuned.flops or 0)


def test_no_crossing_gives_the_gap_its_slope_and_a_guess(tmp_path: Path) -> None:
    masked = study_made.Arm("masked", (25, 50, 100), (1, 2), "masked", 150.0, 3.2, overfit=0.0, delay=2.0)
    found = crossing(made(tmp_path, study_made.AR, masked), 100_000, "masked", ["ar"], EQUAL)
    assert found is not None
    assert found.flops is None
    assert found.interval is None
    assert found.epochs is None
    assert np.isinf(found.drawn).all()
    assert found.gap.low > 0
    assert found.slope is not None
    assert found.slope.high < 0
    assert found.searched_epochs == pytest.approx(100, rel=0.01)
    assert found.extrapolated_epochs == pytest.approx(
        found.searched_epochs * math.exp(found.gap.value / -found.slope.value)
    )
    assert found.extrapolated_epochs > 100


def test_where_the_masked_loss_rises_nothing_is_extrapolated(tmp_path: Path) -> None:
    masked = study_made.Arm("masked", (25, 50, 100), (1,), "masked", 5.0, 3.5, overfit=0.0, delay=3.0)
    results = made(tmp_path, study_made.AR, masked, noise=0.0)
    cells = results.cells("masked", 100_000)
    flat = slope_of(cells)
    assert flat is not None
    assert abs(flat.value) < 0.01
    assert slope_of(cells[:1]) is None


def test_an_arm_that_was_not_run_has_no_crossing(tmp_path: Path) -> None:
    results = made(tmp_path, study_made.AR)
    assert crossing(results, 100_000, "masked", ["ar"], EQUAL) is None


def test_the_same_results_give_the_same_intervals(tmp_path: Path) -> None:
    results = made(tmp_path)
    one, other = (crossing(results, 100_000, "masked", ["ar"], EQUAL, draws=50) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.interval == other.interval


def at(unique: int, flops: float | None, spread: float = 0.1, seed: int = 0) -> Crossing:
    generator = np.random.default_rng([seed, unique])
    drawn = np.exp(math.log(flops) + spread * generator.standard_normal(400)) if flops else np.full(400, math.inf)
    nothing = Estimate(0.0, 0.1, math.inf, 1)
    return Crossing(
        unique, EQUAL, flops, (flops, flops) if flops else None, 1e16, 500, 1e12, drawn, nothing, None, None
    )


@given(st.floats(0.5, 3), st.floats(1e13, 1e16))
def test_a_planted_power_law_is_found_again(exponent: float, factor: float) -> None:
    some = [at(unique, factor * (unique / 1e6) ** exponent) for unique in (100_000, 300_000, 1_000_000)]
    found = fit_critical(some)
    assert not found.why
    assert found.exponent == pytest.approx(exponent)
    assert found.factor == pytest.approx(factor, rel=1e-6)
    assert found.low < exponent < found.high


def test_a_planted_exponent_lies_in_its_interval_when_crossings_scatter() -> None:
    held = 0
    for seed in range(20):
        generator, some = np.random.default_rng(seed), []
        for unique in (100_000, 200_000, 500_000, 1_000_000):
            seen = paper(unique) * math.exp(0.2 * generator.standard_normal())
            some.append(at(unique, seen, 0.2, seed))
        found = fit_critical(some)
        held += found.low < 2.174 < found.high
        assert found.exponent == pytest.approx(2.174, abs=0.6)
    assert held >= 16  # of 20; 95 % intervals hold fewer than that once in 400 times


def test_one_crossing_makes_no_law() -> None:
    found = fit_critical([at(100_000, 1e13), at(300_000, None)])
    assert math.isnan(found.exponent)
    assert "1 of 2" in found.why
    assert fit_critical([]).why


def test_a_crossing_that_many_draws_do_not_have_leaves_the_exponent_open() -> None:
    unsure = at(300_000, 1e14)
    unsure.drawn[::10] = math.inf
    found = fit_critical([at(100_000, 1e13), unsure])
    assert found.exponent == pytest.approx(math.log(10) / math.log(3))
    assert math.isinf(found.high)
    assert math.isfinite(found.low)
    assert "bounded" in found.why


def test_the_papers_line_is_the_papers() -> None:
    """2.12 · 10^1.956 · U^2.174 in raw tokens; 4.7e19 FLOPs at 100M."""
    assert paper(1e8) == pytest.approx(2.12 * 10**1.956 * 1e8**2.174, rel=0.01)
    assert paper(1e8) == pytest.approx(4.7e19, rel=0.02)
