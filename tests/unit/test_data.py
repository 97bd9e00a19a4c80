"""Circles and digits."""

import numpy as np
import pytest

from diffusers_multiguidance.data.circles import circles, position, render_circle
from diffusers_multiguidance.data.digits import THICKNESS_QUANTILES, digits, stroke_thickness, thickness_factor


def test_circle_has_thirteen_pixels_around_its_centre():
    image = render_circle(7, 20, 64)
    assert image.shape == (64, 64)
    assert set(np.unique(image)) == {0, 255}
    rows, columns = np.nonzero(image)
    assert len(rows) == 13
    assert (columns.mean(), rows.mean()) == (7, 20)


@pytest.mark.parametrize("resolution", [32, 64])
def test_circles_cover_the_range_and_repeat_from_a_seed(resolution):
    dataset = circles(2000, resolution, seed=3)
    z = np.array(dataset["factor_position"])
    assert z.min() == 0
    assert z.max() == 1
    assert np.array_equal(np.array(dataset["position"]), (z > 0.5).astype(int))
    assert dataset.features["position"].names == ["left", "right"]
    assert dataset[5]["image"].size == (resolution, resolution)
    columns = np.nonzero(np.array(dataset[5]["image"]))[1]
    assert position(columns.mean(), resolution) == pytest.approx(z[5])
    assert circles(2000, resolution, seed=3)["factor_position"] == dataset["factor_position"]


def test_circles_have_a_second_factor_and_corners():
    dataset = circles(500, 32, seed=3)
    height = np.array(dataset["factor_height"])
    image = np.array(dataset[5]["image"])
    assert 1 - position(np.nonzero(image)[0].mean(), 32) == pytest.approx(height[5])
    corners = [dataset.features["corner"].int2str(corner) for corner in dataset["corner"]]
    parts = [(dataset.features[name].int2str(list(dataset[name]))) for name in ("height", "position")]
    assert corners == [f"{vertical} {horizontal}" for vertical, horizontal in zip(*parts, strict=True)]


def test_stroke_thickness_of_known_bars():
    """A long bar of width w: its skeleton runs down the middle, w / 2 from either side, and blurred by upsampling."""
    for width in (2, 4, 6):
        image = np.zeros((32, 32), np.uint8)
        image[4:28, 10 : 10 + width] = 255
        assert stroke_thickness(image) == pytest.approx(width, abs=0.5)
    assert np.isnan(stroke_thickness(np.zeros((32, 32), np.uint8)))


def test_digits_are_the_real_ones():
    dataset = digits()
    assert len(dataset) == 5000
    assert np.bincount(dataset["digit"]).tolist() == [500] * 10
    assert dataset[0]["image"].size == (32, 32)
    factor = np.array(dataset["factor_thickness"])
    # The factor is a share of these very digits, so it is uniform on them.
    np.testing.assert_allclose(np.quantile(factor, np.linspace(0, 1, 21)), np.linspace(0, 1, 21), atol=2e-3)
    assert thickness_factor(THICKNESS_QUANTILES[10]) == pytest.approx(0.5)
