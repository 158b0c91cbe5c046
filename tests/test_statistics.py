"""Intervals that hold the truth as often as they say, p-values that are what they claim, and verdicts that follow from both."""
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, wilcoxon

from zenbot.core import BadInput
from zenbot.statistics import compare, detectable, grouped_interval, holm, interval, length_controlled, permutation_p, power_note, rate, spread, verdict

holds = lambda i, truth=0.0: i["low"] <= truth <= i["high"]


def clustered(rng, groups=40, between=1.0):
    """Rows in groups of one to six, with a common part: (values, names); the true mean is 0."""
    sizes = rng.integers(1, 7, groups)
    return np.repeat(rng.normal(0, between, groups), sizes) + rng.normal(0, 0.5, sizes.sum()), np.repeat(np.arange(groups), sizes)


def test_few_groups_give_students_interval():
    from scipy.stats import ttest_1samp
    values, groups = np.array([1, 1, 0, 1, 0, 0, 1, 1.0]), np.repeat(list("abcd"), 2)
    ours, theirs = grouped_interval(values, np.ones(8), groups), ttest_1samp(values.reshape(4, 2).mean(1), 0).confidence_interval()
    assert np.allclose([ours["low"], ours["high"]], [theirs.low, theirs.high]) and ours["groups"] == 4




def test_an_interval_draws_whole_groups():
    values, groups = np.repeat(np.arange(10.0), 20), np.repeat(np.arange(10), 20)
    rows, whole = interval(values), interval(values, groups=groups)
    assert rows["value"] == whole["value"] and whole["high"] - whole["low"] > 3 * (rows["high"] - rows["low"]), "twenty copies of a row are one row"


def test_the_interval_holds_the_truth_of_clustered_ratios():
    rng = np.random.default_rng(3)
    samples = [(v, rng.integers(5, 50, len(v)), g) for v, g in (clustered(rng) for _ in range(200))]
    share = np.mean([holds(interval(v * w, w, g)) for v, w, g in samples])
    naive = np.mean([holds(interval(v * w, w)) for v, w, _ in samples])
    assert 0.90 <= share <= 0.99 and naive < 0.90, (share, naive)


def test_a_few_groups_are_held_by_student_and_not_by_the_bootstrap():
    rng = np.random.default_rng(4)
    samples = [clustered(rng, 5) for _ in range(200)]
    wide, narrow = (np.mean([holds(f(v, np.ones(len(v)), g)) for v, g in samples]) for f in (grouped_interval, interval))
    assert 0.90 <= wide <= 0.99 and narrow < 0.90, (wide, narrow)


def test_the_interval_is_plain_where_it_can_be():
    assert interval([])["value"] is None and interval([1.0, np.nan])["value"] is None and interval([2.0])["low"] is None
    i = interval([2.0, 2.0, 2.0], [4, 4, 4])
    assert i == dict(value=0.5, low=0.5, high=0.5, n=3)
    assert interval([1, 2, 3.0], seed=1) == interval([1, 2, 3.0], seed=1)
    with pytest.raises(BadInput, match="one length"):
        interval([1.0, 2.0], groups=["a"])


def test_a_rate_of_none_is_not_never():
    assert rate(np.zeros(24), range(24))["high"] > 0.1 and rate(np.ones(24), range(24))["low"] < 0.9
    assert rate([], [])["value"] is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=2, max_size=10), st.integers(1, 3))
def test_few_groups_equal_the_enumeration(values, rows):
    sums = np.array(values) * rows
    every = np.array([np.dot(signs, sums) for signs in product((1, -1), repeat=len(sums))])
    expected = min(1.0, 2 * min((every >= sums.sum() - 1e-9).mean(), (every <= sums.sum() + 1e-9).mean()))
    assert permutation_p(np.repeat(values, rows), np.repeat(np.arange(len(values)), rows)) == pytest.approx(expected)


def test_signs_of_ranks_give_wilcoxon():
    d = np.array([1, -2, 3, 4, 5, -6, 7, 8, 9, 10, 11.0])   # their own ranks
    assert permutation_p(d) == pytest.approx(wilcoxon(d, method="exact").pvalue)


def test_p_values_are_uniform_where_nothing_differs_and_only_by_group():
    rng = np.random.default_rng(5)
    samples = [clustered(rng, 24) for _ in range(200)]
    whole, rows = np.array([permutation_p(v, g) for v, g in samples]), np.array([permutation_p(v) for v, _ in samples[:100]])
    assert kstest(whole, "uniform").pvalue > 0.05 and 0.02 <= (whole < 0.05).mean() <= 0.09, (whole < 0.05).mean()
    assert kstest(rows, "uniform").pvalue < 1e-4 and (rows < 0.05).mean() > 0.15, "rows of a group are not independent"


def test_p_values_where_there_is_nothing_to_test():
    assert permutation_p([]) is None and permutation_p([1.0, np.nan]) is None and permutation_p([3.0]) == 1.0 and permutation_p(np.zeros(9)) == 1.0
    assert permutation_p([1.0] * 5) == pytest.approx(2 / 32), "five groups never reach 0.05"


def test_holm_by_hand():
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.5, None]) == [None, 0.5, None] and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_verdict_needs_both():
    i = dict(value=0.2, low=0.1, high=0.3)
    assert verdict(i, 0.01) == "better" and verdict(i, 0.01, higher_is_better=False) == "worse" and verdict(i, 0.06) == "tie" and verdict(i, None) == "tie"
    assert verdict(i | dict(low=-0.1), 0.01) == "tie" and verdict(i | dict(low=None), 0.01) == "tie"


def test_identical_models_tie_and_one_claim_in_many_is_corrected():
    rng, n = np.random.default_rng(6), 40
    found = compare({"twin": np.zeros(n)} | {f"noise {k}": rng.normal(0, 1, n) for k in range(20)} | {"better": rng.normal(1, 0.5, n), "worse": rng.normal(-1, 0.5, n)}, groups=np.arange(n))
    assert found["twin"]["p"] == found["twin"]["p_holm"] == 1.0 and found["twin"]["verdict"] == "tie"
    assert found["better"]["verdict"] == "better" and found["worse"]["verdict"] == "worse"
    assert min(f["p"] for f in found.values() if f["p"] > 0.001) < 0.1 and all(f["verdict"] == "tie" for name, f in found.items() if "noise" in name)
    assert compare({}) == {} and compare({"missing": [np.nan, 1.0]})["missing"]["verdict"] == "tie"
    lower = compare({"better": np.full(9, -2.0)}, weights=np.full(9, 4.0), higher_is_better=False)["better"]
    assert lower["verdict"] == "better" and lower["value"] == -0.5


def test_what_can_be_shown_is_found_as_often_as_promised():
    assert detectable(1.0, 40) == pytest.approx(0.4543, abs=1e-3) and detectable(1.0, 2) is None and detectable(None, 40) is None and detectable(0.0, 40) == 0
    assert detectable(1.0, 40, level=0.05 / 5) > detectable(1.0, 40) > detectable(1.0, 80)
    assert power_note(0.066, 40) == "n = 40 can show a difference of 0.03." and "too few" in power_note(1.0, 2)
    rng, n = np.random.default_rng(7), 30
    found = np.mean([permutation_p(rng.normal(detectable(2.0, n), 2.0, n), seed=k) < 0.05 for k in range(200)])
    assert 0.72 < found < 0.88, found


def test_the_spread_is_the_root_of_n_times_the_standard_error():
    rng = np.random.default_rng(8)
    v, g = clustered(rng, 200)
    w = rng.integers(5, 50, len(v))
    sd, n = spread(v * w, w, g)
    i = interval(v * w, w, g)
    assert n == 200 and sd / np.sqrt(n) == pytest.approx((i["high"] - i["low"]) / 3.92, rel=0.1)
    assert spread([1.0, 2, 3]) == (pytest.approx(1.0), 3) and spread([1.0]) == (None, 1)


def test_length_control_removes_what_length_planted_and_leaves_the_rest():
    rng, n = np.random.default_rng(9), 120
    words, base, group = rng.integers(30, 200, n), rng.integers(20, 100, n), np.repeat(np.arange(40), 3)
    x = np.log2((words + 1) / (base + 1))
    noise = np.repeat(rng.normal(0, 0.03, 40), 3) + rng.normal(0, 0.03, n)
    length, gain = (length_controlled(0.1 * x + g + noise, words, base, group) for g in (0.0, 0.08))
    assert interval(0.1 * x + noise, groups=group)["low"] > 0 and holds(length) and length["slope"] == pytest.approx(0.1, abs=0.02)
    assert holds(gain, 0.08) and gain["low"] > 0
    from sklearn.linear_model import LinearRegression
    line = LinearRegression().fit(x[:, None], 0.1 * x + noise)
    assert length["value"] == pytest.approx(line.intercept_) and length["slope"] == pytest.approx(line.coef_[0])


def test_length_control_holds_the_truth():
    rng = np.random.default_rng(10)
    def one():
        words, base, group = rng.integers(30, 200, 90), rng.integers(20, 100, 90), np.repeat(np.arange(30), 3)
        y = 0.1 * np.log2((words + 1) / (base + 1)) + 0.05 + np.repeat(rng.normal(0, 0.05, 30), 3)
        return holds(length_controlled(y, words, base, group), 0.05)
    assert 0.88 <= np.mean([one() for _ in range(200)]) <= 0.99


def test_length_control_without_lengths_that_vary():
    y = np.array([0.1, 0.2, 0.3])
    same, double = length_controlled(y, [9, 9, 9], [9, 9, 9]), length_controlled(y, [19, 19, 19], [9, 9, 9])
    assert same["value"] == pytest.approx(0.2) and same["slope"] == 0 and double["value"] is None
    assert length_controlled([np.nan, 1.0], [1, 2], [2, 2])["value"] is None and length_controlled([], [], [])["value"] is None
    assert length_controlled(y, [0, 5, 9], [3, 0, 0])["low"] is not None, "an empty answer has a length"
