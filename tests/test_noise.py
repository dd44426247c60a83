"""The noise is a function of (seed, epoch, place), evenly spread, and weighs what it should."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import noise
from unmask.config import UserError

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(0, 50), st.integers(0, 10**12))
def test_the_same_place_always_gets_the_same_noise(seed, epoch, place):
    assert noise.time(seed, epoch, place) == noise.time(seed, epoch, place)
    one, two = (noise.generator(seed, epoch, place, noise.MASK).random(4) for _ in range(2))
    assert (one == two).all()


def test_another_seed_epoch_place_or_use_gets_other_noise():
    places = [(1, 0, 5, 1), (2, 0, 5, 1), (1, 1, 5, 1), (1, 0, 6, 1), (1, 0, 5, 2), (1, -1, 5, 1)]
    drawn = [tuple(noise.generator(*p).random(3)) for p in places]
    assert len(set(drawn)) == len(places)
    assert noise.time(1, 0, 5) != noise.time(2, 0, 5) != noise.time(1, 1, 5)


@settings(max_examples=30)
@given(SEEDS, st.integers(0, 10**9), st.sampled_from([8, 16, 64, 256]))
def test_any_run_of_places_covers_the_times_evenly(seed, start, rows):
    """Star discrepancy of t over a batch is a few times 1/rows, where independent draws have about 1/√rows."""
    t = np.sort([noise.time(seed, 0, p) for p in range(start, start + rows)])
    expected = (np.arange(rows) + 0.5) / rows
    assert np.abs(t - expected).max() < 3 / rows


def test_low_discrepancy_cuts_the_variance_of_a_batch_mean():
    even = [np.mean([noise.time(7, 0, b * 16 + i) for i in range(16)]) for b in range(200)]
    chance = np.random.default_rng(0).random((200, 16)).mean(1)
    assert np.var(even) < np.var(chance) / 5


@pytest.mark.parametrize("name", noise.SCHEDULES)
@given(t=st.floats(0.01, 0.99))
def test_the_weight_is_minus_alpha_prime_over_one_minus_alpha(name, t):
    by, h = noise.SCHEDULES[name], 1e-6
    slope = (by.alpha(t + h) - by.alpha(t - h)) / (2 * h)
    assert by.weight(t) == pytest.approx(-slope / (1 - by.alpha(t)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", noise.SCHEDULES)
def test_a_schedule_goes_from_all_seen_to_all_masked(name):
    by = noise.SCHEDULES[name]
    assert by.alpha(0.0) == pytest.approx(1)
    assert by.alpha(1.0) == pytest.approx(0)


@pytest.mark.parametrize("name", noise.SCHEDULES)
def test_the_expected_weight_of_a_place_is_one(name):
    """∫ (1 - α(t)) w(t) dt = 1: each token counts once, whatever the schedule. So a constant loss is its own bound."""
    t = (np.arange(200_000) + 0.5) / 200_000
    total = np.mean([share * weight for share, weight in (noise.rate(x, 0.0, noise.SCHEDULES[name]) for x in t)])
    assert total == pytest.approx(1, rel=1e-3)


def test_linear_noise_is_lladas():
    """p = (1 - eps) t + eps, weight 1/p (LLaDA's guidelines)."""
    share, weight = noise.rate(0.25, 1e-3, noise.SCHEDULES["linear"])
    assert share == pytest.approx(0.999 * 0.25 + 0.001)
    assert weight == pytest.approx(1 / share)


@given(st.integers(1, 60), st.floats(0, 1), SEEDS)
def test_only_candidates_are_masked(places, share, seed):
    random = np.random.default_rng(seed)
    candidates = random.random(places) < 0.5
    assert not (noise.mask(share, candidates, random) & ~candidates).any()
    count = int(candidates.sum())
    exact = noise.mask_exactly(count // 2, candidates, random)
    assert exact.sum() == count // 2
    assert not (exact & ~candidates).any()


def test_hiding_the_prompt_does_not_shift_the_answers_noise():
    everything, answer = np.ones(20, bool), np.arange(20) >= 5
    whole = noise.mask(0.5, everything, noise.generator(1, 0, 3, noise.MASK))
    part = noise.mask(0.5, answer, noise.generator(1, 0, 3, noise.MASK))
    assert (whole[5:] == part[5:]).all()


@given(st.integers(1, 500))
def test_each_number_of_masked_places_is_equally_likely(length):
    counts = [noise.count_at((i + 0.5) / (3 * length), length) for i in range(3 * length)]
    assert sorted(counts) == sorted(list(range(1, length + 1)) * 3)


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        noise.schedule("cosin")


def test_the_cosine_weight_is_finite_and_zero_at_the_end():
    assert noise.SCHEDULES["cosine"].weight(1.0) == pytest.approx(0)
    assert math.isfinite(noise.rate(0.0, 1e-3, noise.SCHEDULES["cosine"])[1])
