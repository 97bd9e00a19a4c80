"""Ensembles of evaluators, and whether generated images are like real ones, and new."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_multiguidance.evaluation.fidelity import (
    features,
    kernel_distance,
    nearest_training_images,
    share_nearer_than_held_out,
)
from diffusers_multiguidance.models.evaluator import ImageClassifier
from diffusers_multiguidance.training.evaluator import calibration_error, classification_figures, save_held_out

ROOT = Path(__file__).parents[2]


def noise(count: int, seed: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (count, 16, 16, 1)).astype(np.uint8)


def test_an_ensemble_averages_probabilities():
    torch.manual_seed(0)
    model = ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 16, num_members=3, temperature=2.0).eval()
    images = torch.randn(4, 1, 16, 16)
    alone = torch.stack([member(images) for member in model.members])
    torch.testing.assert_close(model(images, pooled=False), alone)
    torch.testing.assert_close((model(images) * 2).softmax(dim=1), alone.softmax(dim=2).mean(dim=0))
    assert not torch.equal(alone[0], alone[1])


def test_an_ensemble_averages_the_logits_of_a_number():
    torch.manual_seed(0)
    model = ImageClassifier("test_resnet", "disease", None, 1, 16, num_members=2, temperature=0.5).eval()
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(model(images), model(images, pooled=False).mean(dim=0) / 0.5)


def test_figures_of_an_evaluator():
    """Ten images at 80 %, of which eight are right: calibrated; the same at nearly 100 %: off by 20 points."""
    labels = torch.tensor([1] * 8 + [0] * 2)
    sure = torch.tensor([[0.2, 0.8]]).log().expand(10, 2)
    assert calibration_error(sure, labels) == pytest.approx(0, abs=1e-6)
    assert calibration_error(100 * sure, labels) == pytest.approx(0.2, abs=1e-6)
    assert classification_figures(sure, labels)["held_out_accuracy"] == pytest.approx(0.8)


@pytest.mark.parametrize("classes", [None, ["no", "yes"], ["a", "b", "c"]])
def test_what_it_says_of_held_out_images_is_drawn(classes, tmp_path):
    logits = torch.randn(50, len(classes or "v"))
    values = torch.rand(50) if classes is None else torch.randint(len(classes), (50,))
    save_held_out(3 * logits, logits, values, classes, tmp_path / "held_out.png")
    assert Image.open(tmp_path / "held_out.png").size == (480, 480)


def test_kernel_distance_is_small_for_images_of_one_kind():
    torch.manual_seed(0)
    network = ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 16, num_members=2)
    dark, darker, light = noise(60, 1, 0, 200), noise(60, 2, 0, 200), noise(60, 3, 55)
    seen = [features(network, images) for images in (dark, darker, light)]
    assert seen[0].shape == (60, 2 * network.members[0].num_features)
    alike, deviation = kernel_distance(seen[0], seen[1])
    other, _ = kernel_distance(seen[0], seen[2])
    assert other > alike + 5 * deviation
    assert kernel_distance(seen[0], seen[2])[0] == other, "the subsets depend on nothing else"


def test_nearest_training_image_or_its_mirror_image():
    training = noise(20, 1)
    distances, numbers = nearest_training_images(training[[3, 7], :, ::-1].copy(), training)
    assert numbers.tolist() == [3, 7]
    np.testing.assert_allclose(distances, 0, atol=1e-3)
    distance, _ = nearest_training_images(np.full((1, 16, 16, 1), 255, np.uint8), np.zeros((1, 16, 16, 1), np.uint8))
    assert distance[0] == pytest.approx(1)


def test_memorised_images_are_counted():
    training, held_out = noise(50, 1), noise(200, 2)
    copies = training[:10] // 2 + training[:10] // 2  # all but copies
    assert share_nearer_than_held_out(np.concatenate([copies, noise(30, 3)]), held_out, training) >= 0.25
    assert share_nearer_than_held_out(noise(200, 4), held_out, training) < 0.06


def test_metadata_of_the_leaves(tmp_path):
    spec = importlib.util.spec_from_file_location("leaves", ROOT / "training" / "recipes" / "leaves_metadata.py")
    leaves = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(leaves)
    leaf = tmp_path / "classification" / "dataset" / "leaf"
    masks = tmp_path / "segmentation" / "dataset" / "annotations" / "train"
    for folder in (leaf, masks):
        folder.mkdir(parents=True)
    (leaf.parent / "dataset.csv").write_text("id,rust,severity\n1,0,0\n2,1,3\n3,1,1\n4,1,4\n")
    for number, diseased in ((2, 3), (4, 40)):
        mask = np.zeros((10, 20, 3), np.uint8)
        surface = np.full((100, 3), (0, 176, 0), np.uint8)
        surface[:diseased] = 255, 0, 0
        mask[:, :10] = surface.reshape(10, 10, 3)
        Image.fromarray(mask).save(masks / f"{number}_mask.png")
    rows = leaves.write_metadata(tmp_path).read_text().split()
    assert rows == ["file_name,severity,disease", "1.jpg,0,0", "2.jpg,3,0.2000", "3.jpg,1,", "4.jpg,4,1.0000"]
