"""Intervals hold the truth as often as they say, in simulation."""

import numpy as np
import pytest

from diffusers_multiguidance.evaluation.intervals import confidence_intervals, share_interval, uniformity_interval
from diffusers_multiguidance.evaluation.uniformity import kld_of, mse_of

BINS = 40  # and 400 images, so that simulating is quick: ten a bin as with 1,000 in 100
CENTRES = (np.arange(BINS) + 0.5) / BINS
POPULATIONS = {
    "uniform": np.ones(BINS),
    "all but uniform": 1 + 0.3 * np.sin(2 * np.pi * CENTRES),
    "two ends": np.abs(CENTRES - 0.5) > 0.3,
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_cover_the_truth(name, monkeypatch):
    """In 200 samples: the population's shares and mean, and what KLD and MSE are of as many images on average."""
    monkeypatch.setattr("diffusers_multiguidance.evaluation.intervals.RESAMPLES", 200)
    rng, shares = np.random.default_rng(0), POPULATIONS[name] / POPULATIONS[name].sum()
    many = rng.multinomial(400, shares, 4000) / 400
    gap, malformed = (0.3, 0.6), 0.05
    truth = {
        "share_malformed": malformed,
        "share_in_gap": (1 - malformed) * shares[12:24].sum(),
        "mean": (shares * CENTRES).sum(),
        "kld_to_uniform": kld_of(many).mean(),
        "mse_to_uniform": mse_of(many).mean(),
    }
    covered = dict.fromkeys(truth, 0)
    for repetition in range(200):
        values = np.full(round(400 / (1 - malformed)), np.nan)
        whole = rng.random(len(values)) >= malformed
        values[whole] = rng.choice(CENTRES, whole.sum(), p=shares)
        for figure, (low, high) in confidence_intervals(values, gap, BINS, seed=repetition).items():
            covered[figure] += low <= truth[figure] <= high
    if name == "two ends":
        assert covered.pop("share_in_gap") == 200, "there is nothing in the gap, and every interval reaches down to it"
    for figure, times in covered.items():
        assert 0.9 <= times / 200 <= 0.98, (figure, times / 200)


def test_a_resampled_figure_would_be_too_high():
    """What a plain percentile bootstrap of a uniform sample says lies above the truth, and so above ours."""
    values = np.random.default_rng(0).random(1000)
    counts = np.histogram(values, 100, (0, 1))[0]
    plain = kld_of(np.random.default_rng(0).multinomial(1000, counts / 1000, 300) / 1000)
    low, high = uniformity_interval(values, kld_of)
    assert low < kld_of(counts / 1000) < high < np.quantile(plain, 0.5)


def test_none_of_many_is_no_proof_that_there_are_none():
    assert share_interval(0, 500) == pytest.approx((0, 1.96**2 / (500 + 1.96**2)), abs=1e-4)


def test_few_and_wrong_values():
    assert set(confidence_intervals(np.array([np.nan, 0.5]))) == {"share_malformed", "share_in_gap"}
    same = confidence_intervals(np.full(20, 0.5))
    assert same["mean"] == (0.5, 0.5)
    assert same["kld_to_uniform"] == pytest.approx((np.log(100), np.log(100)))
    with pytest.raises(ValueError, match=r"`values` have shape \(0,\); expected"):
        confidence_intervals(np.zeros(0))
    with pytest.raises(ValueError, match=r"`values` run from .*; expected"):
        confidence_intervals(np.array([0.5, 1.5]))
