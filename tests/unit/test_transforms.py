"""Images on their way to a network."""

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from diffusers_multiguidance.data.load import load_training_set
from diffusers_multiguidance.data.transforms import image_channels, random_flips, with_tensors


def test_random_flip_mirrors_half_of_the_images():
    images = torch.randn(200, 1, 2, 3)
    flipped = random_flips(images, horizontal=True, vertical=False)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 50 < mirrored.sum() < 150


def test_a_folder_of_images_is_a_training_set(tmp_path):
    for number, size in enumerate([(20, 30), (40, 16)]):
        Image.new("RGB", size, (255, 0, 0)).save(tmp_path / f"{number}.png")
    dataset, _ = load_training_set(None, tmp_path, (16, 24))
    image = with_tensors(dataset, (16, 24), [])[0]["image"]
    assert image.shape == (image_channels(dataset), 16, 24) == (3, 16, 24)
    assert image[0].min() == 1
    assert image[1].max() == -1


def test_images_are_loaded_by_processes_that_start_from_nothing():
    """As on macOS, on Windows and by default from Python 3.14 on."""
    dataset = Dataset.from_dict({"image": [Image.new("L", (8, 8), 40 * n) for n in range(4)], "label": [0, 1, 0, 1]})
    tensors = with_tensors(dataset.cast_column("image", ImageFeature()), (8, 8), ["label"])
    loader = DataLoader(tensors, 2, num_workers=1, multiprocessing_context="spawn")
    first, second = loader
    assert first["image"].shape == second["image"].shape == (2, 1, 8, 8)
    assert second["label"].tolist() == [0, 1]
