"""Control at each value, against brute force: distances within windows, diversity, smoothness, heat maps."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from diffusers_multiguidance.evaluation.control import (
    control_figures,
    diversity,
    sliding_distance,
    sweep_smoothness,
)
from diffusers_multiguidance.evaluation.fidelity import frechet_distance, kernel_distance
from diffusers_multiguidance.evaluation.heat_map import count_cells, save_heat_maps


def brute_force_fid(generated: np.ndarray, real: np.ndarray) -> float:
    covariances = np.cov(generated.T), np.cov(real.T)
    difference = generated.mean(axis=0) - real.mean(axis=0)
    return difference @ difference + np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)


@pytest.fixture
def sample() -> tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]:
    """Features and values of 400 generated and 600 real images, fewer of them at 1."""
    rng = np.random.default_rng(0)
    generated, real = rng.normal(0.5, 2, (400, 5)), rng.normal(0, 1, (600, 5))
    return torch.tensor(generated), rng.beta(1, 2, 400), torch.tensor(real), rng.beta(1, 2, 600)


def test_frechet_distance_is_that_of_the_formula(sample):
    generated, _, real, _ = sample
    expected = brute_force_fid(generated.numpy(), real.numpy())
    assert frechet_distance(generated, real) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(generated.float(), real.float()) == pytest.approx(expected, abs=1e-4)


def test_sliding_distance_is_the_mean_of_windows(sample):
    generated, values, real, real_values = sample
    values[:3] = np.nan
    centres = np.array([0.1, 0.3, 0.95])
    figures = sliding_distance(*sample, frechet_distance, centres, radius=0.15, min_images=20)
    expected = []
    for centre in centres[:2]:
        inside = [centre - 0.15 <= value <= centre + 0.15 for value in values]
        really = [centre - 0.15 <= value <= centre + 0.15 for value in real_values]
        expected.append(brute_force_fid(generated.numpy()[inside], real.numpy()[really]))
    assert list(figures["by_value"].values()) == pytest.approx(expected, abs=1e-6)
    assert figures["mean"] == pytest.approx(np.mean(expected))
    assert figures["standard_deviation"] == pytest.approx(np.std(expected))
    few = (values > 0.8).sum(), (real_values > 0.8).sum()
    assert figures["left_out"] == {
        "0.95": f"{few[0]} generated and {few[1]} real images within 0.15; expected 20 each."
    }


def test_where_fid_has_too_few_images_kid_has_enough(sample):
    few = [each[:30] for each in sample]
    few[1], few[3] = np.full(30, 0.5), np.full(30, 0.5)
    few[0], few[2] = (torch.cat([each] * 8, dim=1) for each in (few[0], few[2]))
    centre = {"centres": np.array([0.5]), "min_images": 10}
    figures = sliding_distance(*few, frechet_distance, **centre)
    assert figures["mean"] is None
    assert figures["left_out"]["0.5"].endswith("expected at least 41, or KID in its place.")
    distance = sliding_distance(*few, lambda *images: kernel_distance(*images)[0], **centre)["mean"]
    assert distance == kernel_distance(few[0], few[2])[0]


def test_diversity_is_the_entropy_of_what_occurs():
    classes = np.array([0, 1, 2, 3] * 25 + [1] * 100 + [2] * 10)
    values = np.array([0.3] * 100 + [0.7] * 100 + [0.9] * 9 + [np.nan])
    figures = diversity(np.eye(4)[classes], values, np.array([0.3, 0.7, 0.9]))
    assert figures["by_value"] == pytest.approx({"0.3": np.log(4), "0.7": 0}, abs=1e-9)
    assert figures["mean"] == pytest.approx(np.log(4) / 2)
    assert figures["share_of_maximum"] == pytest.approx(0.5)
    assert figures["left_out"] == {"0.9": "9 images within 0.1; expected 30."}


def test_smoothness_is_one_for_even_steps():
    even = np.linspace(0, 1, 5)
    jump = np.array([0.0, 0, 0, 1, 1])
    values = np.stack([even, jump, np.full(5, 0.5), [0, np.nan, 0, 0, 1]])
    images = (np.nan_to_num(values)[..., None, None, None] * 240).repeat(2, axis=2).astype(np.uint8)
    figures = sweep_smoothness(values, images)
    assert figures["values"] == pytest.approx((1 + 4) / 2)
    assert figures["rows_left_out_of_values"] == 2
    assert figures["pixels"] == pytest.approx((1 + 4 + 4) / 3)
    assert figures["rows_left_out_of_pixels"] == 1


def test_errors_by_target():
    values = np.array([[0.1, 0.3, np.nan], [np.nan] * 3, [0.9, 0.8, 0.7]])
    figures = control_figures(values, np.array([0.1, 0.5, 0.9]))
    assert figures["mean_absolute_error_by_target"] == [0.1, None, 0.1]
    assert figures["mean_error_of_means"] == pytest.approx(0.1)
    malformed = control_figures(np.full((9, 2), np.nan))
    assert (malformed["share_malformed"], malformed["share_near"], "rank_correlation" in malformed) == (1, 0, False)


def test_heat_map_counts_every_whole_image(tmp_path):
    values = np.random.default_rng(0).random((2, 300))
    values[0, 0] = np.nan
    values[:, 1] = 1
    counts = count_cells(values)
    expected = np.zeros((10, 10), int)
    for first, second in values.T[1:]:
        expected[min(int(10 * first), 9), min(int(10 * second), 9)] += 1
    np.testing.assert_array_equal(counts, expected)
    save_heat_maps({"unguided": values, "guided": np.zeros((2, 0))}, ("Smiling", "Hair"), tmp_path / "map.png")
    assert Image.open(tmp_path / "map.png").size[1] == 504


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: control_figures(np.zeros((2, 3))), r"`values` have shape \(2, 3\); expected a row for each of 9"),
        (lambda: frechet_distance(torch.zeros(9, 2), torch.zeros(9, 3)), "has 2 features and `real` 3; expected"),
        (
            lambda: sliding_distance(torch.zeros(3, 2), np.zeros(2), torch.zeros(3, 2), np.zeros(3), frechet_distance),
            "`generated` has 3 images and 2 values; expected as many",
        ),
        (lambda: diversity(np.ones((3, 1)), np.zeros(3)), r"`probabilities` have shape \(3, 1\); expected"),
        (lambda: diversity(np.ones((3, 2)), np.zeros(3)), "`probabilities` add up to 2 to 2; expected 1"),
        (
            lambda: sweep_smoothness(np.zeros((2, 2)), np.zeros((2, 2, 4, 4, 1), np.uint8)),
            r"have shapes \(2, 2\) and .*; expected \(rows, T\)",
        ),
        (lambda: count_cells(np.zeros((3, 4))), r"`values` have shape \(3, 4\); expected"),
        (lambda: count_cells(np.full((2, 4), 1.5)), r"`values` run from 1.500 to 1.500; expected"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
