"""Images on their way to a network: of one size, tensors, mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..utils.images import fit_image


def image_channels(dataset: Dataset) -> int:
    """1 for a data set of grey images, else 3."""
    return 1 if dataset[0]["image"].mode in ("1", "L") else 3


def to_pixels(images: Sequence[Image.Image], size: tuple[int, int], channels: int) -> np.ndarray:
    """`fit_image` of each as (N, H, W, C) uint8."""
    pixels = np.stack([np.asarray(fit_image(image, size, channels)) for image in images])
    return pixels.reshape(len(images), *size, channels)


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) uint8 as (B, C, H, W) float32 in [-1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_tensors(images: Sequence[Image.Image], size: tuple[int, int], channels: int) -> torch.Tensor:
    """`fit_image` of each as (B, C, H, W) float32 in [-1, 1]."""
    return scale_pixels(torch.from_numpy(to_pixels(images, size, channels)))


def with_tensors(dataset: Dataset, size: tuple[int, int], label_columns: list[str]) -> Dataset:
    """`dataset` giving `image` tensors, see `to_tensors`, and the labels as they stand."""
    transform = partial(_rows_to_tensors, size=size, channels=image_channels(dataset))
    return dataset.select_columns(["image", *label_columns]).with_transform(transform)


def _rows_to_tensors(rows: dict[str, list[Any]], size: tuple[int, int], channels: int) -> dict[str, Any]:
    # No local function, which could not be sent to a process that loads images.
    return {**rows, "image": to_tensors(rows["image"], size, channels)}


def random_flips(images: torch.Tensor, horizontal: bool, vertical: bool) -> torch.Tensor:
    """Each image of (B, C, H, W) mirrored, and turned upside down, with a probability of one half where wanted."""
    for wanted, side in ((horizontal, -1), (vertical, -2)):
        if wanted:
            flip = (torch.rand(len(images)) < 0.5).to(images.device)
            images = torch.where(flip[:, None, None, None], images.flip(side), images)
    return images
