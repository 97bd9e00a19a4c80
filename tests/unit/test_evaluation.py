"""Evaluators, on images whose attribute is known, and figures whose value is."""

import numpy as np
import pytest

from diffusers_multiguidance.data.circles import position, render_circle
from diffusers_multiguidance.data.objects import objects
from diffusers_multiguidance.evaluation.control import TARGETS, control_figures
from diffusers_multiguidance.evaluation.evaluators import CirclePosition, ObjectSize, StrokeThickness
from diffusers_multiguidance.evaluation.summary import summarize
from diffusers_multiguidance.evaluation.uniformity import (
    histogram,
    kld_floor,
    kld_to_uniform,
    mse_floor,
    mse_to_uniform,
    share_in_gap,
    share_malformed,
)


@pytest.mark.parametrize("size", [32, 64])
def test_circle_position_is_that_of_the_rendered_centre(size):
    centres = range(2, size - 2)
    images = np.stack([render_circle(x, 9, size) for x in centres])[..., None]
    noisy = np.clip(images.astype(int) + np.random.default_rng(0).integers(-40, 40, images.shape), 0, 255)
    for batch in (images, noisy.astype(np.uint8), np.repeat(images, 3, axis=-1)):
        np.testing.assert_allclose(CirclePosition()(batch), [position(x, size) for x in centres], atol=1e-6)


def test_height_of_a_circle_is_measured_from_the_bottom():
    images = np.stack([render_circle(9, y, 32) for y in (29, 20, 2)])[..., None]
    np.testing.assert_allclose(CirclePosition(vertical=True)(images), [0, 9 / 27, 1], atol=1e-6)


def test_anything_but_one_circle_is_malformed():
    two = np.maximum(render_circle(5, 5, 32), render_circle(20, 20, 32))
    line = np.zeros((32, 32), np.uint8)
    line[5:20, 10] = 255
    dot = np.zeros((32, 32), np.uint8)
    dot[5, 5] = 255
    short_line = np.zeros((32, 32), np.uint8)
    short_line[5:10, 10] = 255
    overlapping = np.maximum(render_circle(10, 10, 32), render_circle(11, 12, 32))
    ring = render_circle(10, 10, 32) - 255 * (render_circle(10, 10, 32) > 0) * (np.indices((32, 32)) == 10).all(axis=0)
    ring[9:12, 10] = ring[10, 9:12] = 0
    half = render_circle(10, 10, 32)
    half[:, 10:] = 0
    empty = np.zeros((32, 32), np.uint8)
    images = np.stack([two, line, dot, short_line, overlapping, ring, half, empty]).astype(np.uint8)[..., None]
    assert np.isnan(CirclePosition()(images)).all()


def test_stroke_thickness_is_a_share_of_real_digits():
    images = np.zeros((3, 32, 32, 1), np.uint8)
    for number, width in enumerate((2, 4)):
        images[number, 4:28, 10 : 10 + width] = 255
    thin, thick, empty = StrokeThickness()(images)
    assert 0 < thin < 0.5 < 0.9 < thick <= 1
    assert np.isnan(empty)


def test_evaluators_refuse_other_arrays():
    with pytest.raises(ValueError, match=r"`images` is float64 .*; expected"):
        CirclePosition()(np.zeros((1, 32, 32, 1)))


def test_figures_of_known_histograms():
    even = (np.arange(100) + 0.5) / 100
    assert mse_to_uniform(even) == pytest.approx(0, abs=1e-12)
    assert kld_to_uniform(even) == pytest.approx(0, abs=1e-12)
    point = np.full(50, 0.305)
    assert mse_to_uniform(point) == pytest.approx(np.sqrt((1 - 0.01) ** 2 + 99 * 0.01**2))
    assert kld_to_uniform(point) == pytest.approx(np.log(100))
    assert histogram(np.array([0.0, 1.0, np.nan])).sum() == pytest.approx(1)


@pytest.mark.parametrize("count", [16, 200, 2000])
def test_floors_are_what_uniform_samples_score(count):
    samples = np.random.default_rng(0).random((200, count))
    assert np.mean([mse_to_uniform(row) for row in samples]) == pytest.approx(mse_floor(count), rel=0.02)
    assert np.mean([kld_to_uniform(row) for row in samples]) == pytest.approx(kld_floor(count), rel=0.03)


def test_shares_count_all_samples():
    values = np.array([0.1, 0.2, 0.5, 0.8, 0.79, np.nan])
    assert share_in_gap(values) == pytest.approx(2 / 6)
    assert share_malformed(values) == pytest.approx(1 / 6)
    assert summarize(np.array([np.nan, np.nan]))["share_malformed"] == 1


def test_wrong_values():
    with pytest.raises(ValueError, match="`values` has no number"):
        mse_to_uniform(np.array([np.nan]))
    with pytest.raises(ValueError, match=r"`values` run from .* expected"):
        kld_to_uniform(np.array([0.5, 1.5]))


def test_values_that_are_all_one_have_no_rank_correlation():
    assert control_figures(np.full((9, 2), 0.5))["rank_correlation"] is None


def test_malformed_images_are_not_near_their_target():
    values = np.repeat(TARGETS[:, None], 4, axis=1)
    values[0] += [0.04, 0.06, 0, 0]
    values[1, :2] = np.nan
    figures = control_figures(values)
    assert figures["share_near_by_target"]["0.1"] == 0.75
    assert figures["share_near_at_worst_target"] == 0.5
    assert figures["share_malformed"] == pytest.approx(2 / 36, abs=1e-4)
    assert figures["mean_absolute_error"] == pytest.approx(0.1 / 34, abs=1e-4)


def test_size_of_the_one_object():
    dataset, _ = objects(60, 32, seed=3)
    images, sizes = np.stack([np.asarray(image) for image in dataset["image"]]), np.array(dataset["factor_size"])
    values = ObjectSize()(images)
    assert np.abs(values - sizes).mean() < 0.04
    assert np.corrcoef(values, sizes)[0, 1] > 0.98
    np.testing.assert_allclose(ObjectSize()(images[:, :, ::-1]), values, atol=0.05)
    ground = np.broadcast_to(np.linspace(60, 120, 32).astype(np.uint8)[:, None, None], (32, 32, 1)).copy()
    assert np.isnan(ObjectSize()(ground[None]))
    ground[4:12, 4:12] = 250
    assert ObjectSize()(ground[None]) == pytest.approx((8 / 32 - 0.2) / 0.55)
    ground[20:26, 20:26] = 250
    assert np.isnan(ObjectSize()(ground[None])), "of two"
