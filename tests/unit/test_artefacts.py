"""The variance of the predicted image along the way, against NumPy."""

import numpy as np
import pytest
from helpers.tiny import tiny_pipeline

from diffusers_multiguidance.evaluation.artefacts import TrajectoryVariance, variance_figures
from diffusers_multiguidance.generate import generate, image_generators


def test_trajectory_variance_is_that_of_the_late_predictions():
    pipeline = tiny_pipeline()
    variance = TrajectoryVariance(0.7)
    images = generate(pipeline, 3, seed=3, batch_size=2, watch=variance)
    np.testing.assert_array_equal(images, generate(pipeline, 3, seed=3, batch_size=2))
    steps = pipeline.denoise(2, generator=image_generators(3, 0, 2))
    predictions = np.stack([step.pred_x0.double().numpy() for step in steps])
    assert len(predictions) == 10
    np.testing.assert_allclose(variance.scores()[:2], predictions[7:].var(axis=0).mean(axis=(1, 2, 3)), rtol=1e-6)
    assert variance.scores().shape == (3,)
    assert variance.scores().min() > 0


def test_windows_without_steps_are_refused():
    with pytest.raises(ValueError, match=r"`start` and `end` are 0.5 and 0.5; expected"):
        TrajectoryVariance(0.5, 0.5)
    with pytest.raises(ValueError, match="between which there are 1 of 10 steps; expected at least 2"):
        generate(tiny_pipeline(), 1, watch=TrajectoryVariance(0.9))
    assert TrajectoryVariance().scores().shape == (0,)


def test_how_well_the_variance_tells_malformed_images():
    variances, values = np.arange(40.0), np.full(40, 0.5)
    values[30:] = np.nan
    figures = variance_figures(variances, values)
    assert figures == {"median_variance": 19.5, "highest_variance": 39.0, "area_under_roc": 1.0}
    assert variance_figures(-variances, values)["area_under_roc"] == 0.0
    values[30] = 0.5
    assert variance_figures(variances, values)["area_under_roc"] is None, "of nine malformed images"
