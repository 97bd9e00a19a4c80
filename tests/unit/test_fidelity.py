"""Ensembles of evaluators, and whether generated images are like real ones."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from diffusers_multiguidance.evaluation.extractors import evaluator_extractor
from diffusers_multiguidance.evaluation.fidelity import (
    evenly_spaced,
    frechet_distance,
    kernel_distance,
    precision_and_recall,
    quality,
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


def points(count: int, seed: int, centre: float = 0, num_features: int = 8) -> torch.Tensor:
    return torch.randn(count, num_features, generator=torch.Generator().manual_seed(seed)) + centre


def test_fid_and_kid_are_those_of_the_library():
    generated, real = points(60, 1), points(50, 2, 0.5)
    statistics = [fid_features_to_statistics(features) for features in (generated, real)]
    direct = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet_distance(generated, real) == pytest.approx(direct, abs=1e-6)
    mean, deviation = kernel_distance(generated, real)
    direct = kid_features_to_metric(generated, real, kid_subsets=50, kid_subset_size=25, verbose=False)
    assert mean == pytest.approx(direct["kernel_inception_distance_mean"], abs=1e-6)
    assert deviation == pytest.approx(direct["kernel_inception_distance_std"], abs=1e-6)


def test_fid_of_two_gaussians_is_the_formula():
    """Means 3 apart in one of two dimensions, covariances 1 and 4 times the identity: 9 + 2 (1 + 4 - 2 * 2)."""
    generated, real = points(200_000, 1, 0, 2), 2 * points(200_000, 2, 0, 2) + torch.tensor([3.0, 0.0])
    assert frechet_distance(generated, real) == pytest.approx(11, rel=0.02)


def test_precision_and_recall_by_brute_force():
    rng = np.random.default_rng(0)
    generated, real = rng.normal(size=(70, 4)), rng.normal(1, 0.8, (90, 4))

    def share_within(points: np.ndarray, others: np.ndarray) -> float:
        among = np.sort(np.linalg.norm(others[:, None] - others, axis=2), axis=1)[:, 3]  # itself is the nearest
        return float((np.linalg.norm(points[:, None] - others, axis=2) <= among).any(axis=1).mean())

    precision, recall = precision_and_recall(torch.tensor(generated), torch.tensor(real))
    assert precision == pytest.approx(share_within(generated, real), abs=1e-6)
    assert recall == pytest.approx(share_within(real, generated), abs=1e-6)
    assert 0 < precision < recall < 1


def test_of_many_images_some_of_each_part_count():
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    assert evenly_spaced(9, 3).tolist() == [0, 4, 8]


def test_few_images_have_kid_but_no_fid():
    generated, real = points(8, 1), points(50, 2)
    with pytest.raises(ValueError, match=r"FID of 8 features has 8 generated images; expected at least 9, or KID"):
        frechet_distance(generated, real)
    figures = quality(generated, real)
    assert figures["fid"] is None
    assert "expected at least 9" in figures["why_no_fid"]
    assert figures["kid"] is not None
    assert quality(points(9, 1), real)["fid"] > 0
    assert quality(points(3, 1), real)["kid"] is None
    for figure in (kernel_distance, precision_and_recall):
        with pytest.raises(ValueError, match=r"of 3 images; expected at least 4"):
            figure(points(3, 1), real)


def test_kid_is_unbiased_with_few_images_and_knows_its_error():
    alike = [kernel_distance(points(40, seed), points(40, 100 + seed))[0] for seed in range(20)]
    assert abs(np.mean(alike)) < 3 * np.std(alike, ddof=1) / 20**0.5
    apart = [kernel_distance(points(100, seed), points(100, 100 + seed, 0.5)) for seed in range(20)]
    distances, errors = np.array(apart).T
    assert errors.mean() == pytest.approx(distances.std(ddof=1), rel=0.4)


def test_kernel_distance_is_small_for_images_of_one_kind():
    torch.manual_seed(0)
    network = ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 16, num_members=2)
    extract = evaluator_extractor(network)
    assert extract.name == "2 test_resnet that learnt 'Smiling'"
    dark, darker, light = noise(60, 1, 0, 200), noise(60, 2, 0, 200), noise(60, 3, 55)
    seen = [extract(images) for images in (dark, darker, light)]
    assert seen[0].shape == (60, 2 * network.members[0].num_features)
    alike, deviation = kernel_distance(seen[0], seen[1])
    other, _ = kernel_distance(seen[0], seen[2])
    assert other > alike + 5 * deviation
    assert kernel_distance(seen[0], seen[2])[0] == other, "the subsets depend on nothing else"


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
