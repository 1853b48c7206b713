"""The bootstrap: worked numbers, promises for any input, and honest coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.evaluation import mean_interval, paired_difference, shared_prompts

prompt_values = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=4),
    min_size=1,
    max_size=12,
)


def test_worked_example_of_two_prompts():
    """Prompt means are 0 and 1. A draw of two is (0,0), (0,1), (1,0) or (1,1): means 0, 1/2, 1/2, 1, each 1/4.

    2.5 % and 97.5 % fall into the outer quarters, so the interval is the whole range.
    """
    found = mean_interval({"x": [0.0, 0.0], "y": [1.0, 1.0]}, seed=3)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_a_prompt_weighs_the_same_however_many_samples_it_has():
    assert mean_interval({"x": [0.0] * 9, "y": [1.0]}, seed=0).mean == 0.5


def test_samples_of_a_prompt_stay_together():
    """Each prompt has one 0 and one 1: every draw of prompts has the mean 1/2, so nothing is uncertain."""
    found = mean_interval({str(i): [0.0, 1.0] for i in range(30)}, seed=0)
    assert (found.low, found.high) == (0.5, 0.5)


def test_pairing_removes_the_spread_between_prompts():
    rng = np.random.default_rng(0)
    easy = {str(i): [float(v)] for i, v in enumerate(rng.normal(size=50))}
    better = {p: [v[0] + 0.25] for p, v in easy.items()}
    found = paired_difference(better, easy, seed=1)
    assert found.low == pytest.approx(0.25) and found.high == pytest.approx(0.25)
    assert mean_interval(easy, seed=1).high - mean_interval(easy, seed=1).low > 0.3


@settings(deadline=None, max_examples=50)
@given(prompt_values, st.integers(0, 2**32))
def test_interval_lies_within_the_prompt_means_and_is_seeded(values, seed):
    found = mean_interval(values, seed=seed, num_resamples=100)
    means = [np.mean(v) for v in values.values()]
    assert min(means) - 1e-9 <= found.low <= found.high <= max(means) + 1e-9
    assert found.mean == pytest.approx(np.mean(means), abs=1e-9)
    shuffled = dict(reversed(values.items()))
    again = mean_interval(shuffled, seed=seed, num_resamples=100)
    assert (again.low, again.high) == pytest.approx((found.low, found.high))


@settings(deadline=None, max_examples=50)
@given(prompt_values, st.floats(-5, 5), st.integers(0, 1000))
def test_difference_is_antisymmetric_and_shifts(values, shift, seed):
    other = {p: [v * 0.5 for v in samples] for p, samples in values.items()}
    ab = paired_difference(values, other, seed=seed, num_resamples=100)
    ba = paired_difference(other, values, seed=seed, num_resamples=100)
    assert (ba.mean, ba.low, ba.high) == pytest.approx((-ab.mean, -ab.high, -ab.low))
    moved = {p: [v + shift for v in samples] for p, samples in values.items()}
    shifted = paired_difference(moved, other, seed=seed, num_resamples=100)
    assert shifted.low == pytest.approx(ab.low + shift, abs=1e-6)


def test_coverage_is_near_the_nominal_level():
    """Of 400 samples of 60 prompts with a known mean, about 95 % of the intervals hold it (3 sigma: 92 to 98 %)."""
    rng, held = np.random.default_rng(7), 0
    for trial in range(400):
        values = {str(i): [v] for i, v in enumerate(rng.normal(1.0, 2.0, size=60))}
        found = mean_interval(values, seed=trial, num_resamples=400)
        held += found.low <= 1.0 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_many_prompts_are_drawn_in_blocks_with_the_same_result(monkeypatch):
    values = {str(i): [float(i % 7)] for i in range(300)}
    whole = mean_interval(values, seed=5, num_resamples=500)
    monkeypatch.setattr("fusion.evaluation.bootstrap.BLOCK", 900)
    assert mean_interval(values, seed=5, num_resamples=500) == whole


def test_bad_values_name_the_prompt():
    with pytest.raises(ValueError, match="no prompt"):
        mean_interval({}, seed=0)
    with pytest.raises(ValueError, match="'p7' has no value"):
        mean_interval({"p7": []}, seed=0)
    with pytest.raises(ValueError, match="'p8' has a value that is not finite"):
        mean_interval({"p8": [float("nan")]}, seed=0)
    with pytest.raises(ValueError, match="first 'only_a'"):
        paired_difference({"x": [1.0], "only_a": [1.0]}, {"x": [1.0]}, seed=0)


def test_shared_prompts():
    assert shared_prompts([{"a": [1.0], "b": [1.0]}, {"b": [0.0], "c": [0.0]}]) == {"b"}
    assert shared_prompts([]) == set()
