"""The filter's decisions, on numbers."""

import numpy as np
import pytest

from diffusers_multiguidance.curation.balance import evenly_spread, oversample
from diffusers_multiguidance.curation.extremes import (
    confident,
    leak,
    least_confident,
    most_extreme,
    precise_threshold,
    select_by_factor,
    select_by_score,
    signed_log_odds,
    wrong_images_bound,
)
from diffusers_multiguidance.data.circles import circles


def test_bound_of_the_paper():
    """Appendix D.3 prints 0.089, 5e-4 (cut off, not rounded) and 7.2e-7 for 10, 15 and 20 wrong images."""
    bounds = [wrong_images_bound(k, 60_000, 0.15**5) for k in (10, 15, 20)]
    np.testing.assert_allclose(bounds, [0.0892, 5.93e-4, 7.2e-7], rtol=5e-3)
    assert wrong_images_bound(3, 60_000, 0.15**5) == 1  # fewer than expected


def test_confidence_is_in_the_label():
    log_odds = np.log([0.05 / 0.95, 0.5 / 0.5, 0.95 / 0.05])
    signed = signed_log_odds(log_odds, np.array([0, 0, 1]))
    assert confident(signed, 0.9).tolist() == [True, False, True]
    assert confident(signed_log_odds(log_odds, np.array([1, 1, 0])), 0.9).tolist() == [False, False, False]


def test_cross_fitting_asks_only_those_who_have_not_seen():
    signed = np.array([[5.0, -1.0, 2.0], [3.0, 4.0, 1.0]])
    assert least_confident(signed, np.zeros_like(signed, bool)).tolist() == [3, -1, 1]
    seen = np.array([[False, True, True], [True, False, True]])
    assert least_confident(signed, seen).tolist() == [5, 4, -np.inf]


def test_most_extreme_of_each_side():
    scores = np.array([1.0, 5.0, 3.0, 2.0, 9.0, 4.0])
    labels = np.array([0, 0, 0, 1, 1, 1])
    kept = np.array([True, True, True, True, False, True])
    assert np.flatnonzero(most_extreme(scores, labels, kept, (2, 1))).tolist() == [1, 2, 5]
    with pytest.raises(ValueError, match=r"`--num_extremes` is 3 for a side with 2 images left; expected"):
        most_extreme(scores, labels, kept, (1, 3))


def test_threshold_is_the_lowest_that_keeps_no_wrong_image():
    signed, wrong = np.array([4.0, 3.0, 2.0, 1.0, -1.0]), np.array([False, False, True, False, True])
    threshold = precise_threshold(signed, wrong)
    assert confident(signed, threshold).tolist() == [True, True, False, False, False]
    assert precise_threshold(signed, np.zeros(5, bool)) == 0.5


def test_extremes_leave_the_middle_empty_and_say_so():
    dataset = circles(2000, 32)
    selection = select_by_factor(dataset, "position", delta=0.2)
    z = np.array(dataset["factor_position"])
    assert ((z[selection.kept] <= 0.2) | (z[selection.kept] >= 0.8)).all()
    assert ((z[~selection.kept] > 0.2) & (z[~selection.kept] < 0.8)).all()
    assert np.array_equal(selection.labels, (z > 0.5).astype(int))
    counts = selection.record["num_images"]
    assert counts["low"] + counts["high"] == selection.kept.sum()
    assert selection.record["widest_gap"] == pytest.approx([5 / 27, 22 / 27])


def test_a_factor_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="`--attribute` is 'size'; expected"):
        select_by_factor(circles(10, 32), "size")


def test_scores_keep_both_ends_and_leave_out_what_has_none():
    scores = np.array([0.3, np.nan, 7.0, -2.0, 5.0, np.inf, 1.0])
    selection = select_by_score(scores, (2, 1))
    assert np.flatnonzero(selection.kept).tolist() == [0, 2, 3]
    assert selection.labels.tolist() == [0, -1, 1, 0, -1, -1, -1]
    assert selection.record["num_images"]["without score"] == 2
    with pytest.raises(ValueError, match=r"`--num_extremes` is 3 and 3; expected .* at most the 5"):
        select_by_score(scores, (3, 3))


def test_oversampling_repeats_the_rarer_end():
    labels = np.array([0] * 7 + [1] * 15)
    assert np.bincount(labels[oversample(np.arange(22), labels)]).tolist() == [14, 15]


def test_evenly_spread_fills_every_cell_alike():
    values = np.concatenate([np.full(90, 0.01), np.linspace(0.06, 0.99, 30)])[None]
    rows = evenly_spread(values, 200, seed=0)
    counts = np.histogram(values[0, rows], bins=20, range=(0, 1))[0]
    assert (counts == 10).all()
    assert len(set(rows[:10])) == 10, "images are not repeated where there are enough"
    square = np.random.default_rng(0).random((2, 5000))
    rows = evenly_spread(square, 640, seed=0)
    assert (np.histogram2d(*square[:, rows], bins=8, range=[(0, 1)] * 2)[0] == 10).all()


def test_leak_counts_the_mild_and_the_outside():
    assert leak(np.array([0.1, 0.25, 0.5, 0.9]), 0.2) == {"num_images": 4, "num_mild": 1, "share_outside": 0.5}
