"""Nearest training images, and whether copies among generated ones are told."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_multiguidance.evaluation.extractors import evaluator_extractor, load_extractor
from diffusers_multiguidance.evaluation.memorization import TrainingImages, memorization, save_neighbours
from diffusers_multiguidance.models.evaluator import ImageClassifier

PIXELS = load_extractor("pixels")


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 1)).astype(np.uint8)


def noisy_copies(images: np.ndarray, seed: int = 0) -> np.ndarray:
    changed = images + np.random.default_rng(seed).normal(0, 8, images.shape)
    return changed.clip(0, 255).astype(np.uint8)


def test_nearest_training_image_or_its_mirror_image():
    training = noise(20, 1)
    distances, numbers = TrainingImages(training, PIXELS).nearest(training[[3, 7], :, ::-1].copy())
    assert numbers.tolist() == [3, 7]
    np.testing.assert_allclose(distances, 0, atol=1e-6)
    white, black = np.full((1, 16, 16, 1), 255, np.uint8), np.zeros((1, 16, 16, 1), np.uint8)
    assert TrainingImages(black, PIXELS).nearest(white)[0][0] == pytest.approx(1)


def test_distances_are_those_of_brute_force():
    images, training = noise(300, 1), noise(30, 2)
    both = np.concatenate([training, training[:, :, ::-1]])
    every = np.sqrt(np.square(images[:, None] / 255 - both / 255).mean(axis=(2, 3, 4)))
    distances, numbers = TrainingImages(training, PIXELS).nearest(images)
    np.testing.assert_allclose(distances, every.min(axis=1), atol=1e-5)
    np.testing.assert_array_equal(numbers, every.argmin(axis=1) % 30)


@pytest.mark.parametrize("num_held_out", [20, 100, 1000])
def test_of_new_images_the_floor_is_nearer_than_held_out_ones(num_held_out):
    rng = np.random.default_rng(0)
    found = [memorization(rng.random(200), rng.random(num_held_out)) for _ in range(400)]
    assert np.mean([figures["share_nearer_than_held_out"] for figures in found]) == pytest.approx(
        found[0]["floor"], rel=0.15
    )


@pytest.mark.parametrize("features", ["pixels", "of a network"])
def test_copies_with_noise_are_told_and_new_images_are_not(features):
    """Of 40 generated images 10 are copies with noise."""
    torch.manual_seed(0)
    network = ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 16)
    extract = PIXELS if features == "pixels" else evaluator_extractor(network)
    training, held_out, new = noise(50, 1), noise(200, 2), noise(200, 4)
    known = TrainingImages(training, extract)
    as_near = known.nearest(held_out)[0]
    copied = np.concatenate([noisy_copies(training[:10]), noise(30, 3)])
    figures = memorization(known.nearest(copied, extract(copied))[0], as_near)
    assert figures["share_nearer_than_held_out"] >= 0.25
    assert figures["smallest_ratio"] < 0.5
    assert max(figures["ratios"][:10]) < min(figures["ratios"][10:])
    innocent = memorization(known.nearest(new)[0], as_near)
    assert innocent["share_nearer_than_held_out"] < 0.06
    assert innocent["median_ratio"] == pytest.approx(1, abs=0.1)


def test_pairs_lie_side_by_side(tmp_path):
    save_neighbours(noise(3, 1), noise(3, 2), tmp_path / "pairs.png")
    width, height = Image.open(tmp_path / "pairs.png").size
    assert (width, height) == (6 * 33 + 1, 33 + 1)
