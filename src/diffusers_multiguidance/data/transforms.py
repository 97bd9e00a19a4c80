"""Images on their way to a network: decoded, upright, grey or RGB, square, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

import fsspec
import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps


class BadImage(ValueError):
    """An image that cannot be used. The message is the reason, under which it is counted."""


def open_image(stored: dict[str, Any] | None) -> Image.Image:
    """Decode one image, upright whichever way the camera was held.

    Args:
        stored: `bytes`, or else the `path` of a file: an image as `datasets` gives it with `Image(decode=False)`.

    Raises:
        BadImage: for one that is missing, empty or unreadable, or has more than one frame.
    """
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        raise BadImage("missing image")
    content, path = stored["bytes"], stored["path"]
    try:
        if content is None:
            # `datasets` names a file inside an archive by a URL.
            with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
                content = file.read()
    except FileNotFoundError as error:
        raise BadImage("missing image") from error
    except OSError as error:
        raise BadImage("unreadable image") from error
    if not content:
        raise BadImage("empty file")
    try:
        image = Image.open(BytesIO(content))
        frames = getattr(image, "n_frames", 1)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow's decoders raise about anything on broken files
        raise BadImage("unreadable image") from error
    if 0 in image.size:
        raise BadImage("image without pixels")
    if frames > 1 and image.format != "MPO":  # a phone's photograph, whose further frames are previews
        raise BadImage("animated image")
    return image


def has_transparency(image: Image.Image) -> bool:
    """Whether the image has an alpha channel or a transparent colour."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: 16-bit greys scaled, transparent pixels laid on white.

    Raises:
        BadImage: for 32-bit greys, whose black and white nothing tells, and for modes that Pillow cannot convert.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadImage(f"no known range of values (mode {image.mode})")
    if has_transparency(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise BadImage(f"no conversion to RGB (mode {image.mode})") from error


def fit_image(image: Image.Image, resolution: int, channels: int = 3) -> Image.Image:
    """The largest centred square (178x178 of CelebA's 178x218), grey or RGB, at (resolution, resolution).

    Args:
        channels: 1 for grey, 3 for RGB.

    Raises:
        BadImage: as `to_rgb`.
    """
    image = to_rgb(image)
    if channels == 1:
        image = image.convert("L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)


def image_channels(dataset: Dataset) -> int:
    """1 for a data set of grey images, else 3."""
    return 1 if dataset[0]["image"].mode in ("1", "L") else 3


def to_pixels(images: Sequence[Image.Image], resolution: int, channels: int) -> np.ndarray:
    """`fit_image` of each as (N, resolution, resolution, C) uint8."""
    pixels = np.stack([np.asarray(fit_image(image, resolution, channels)) for image in images])
    return pixels.reshape(len(images), resolution, resolution, channels)


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) uint8 as (B, C, H, W) float32 in [-1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_tensors(images: Sequence[Image.Image], resolution: int, channels: int) -> torch.Tensor:
    """`fit_image` of each as (B, C, resolution, resolution) float32 in [-1, 1]."""
    return scale_pixels(torch.from_numpy(to_pixels(images, resolution, channels)))


def with_tensors(dataset: Dataset, resolution: int, label_columns: list[str]) -> Dataset:
    """`dataset` giving `image` tensors, see `to_tensors`, and the labels as they stand."""
    transform = partial(_rows_to_tensors, resolution=resolution, channels=image_channels(dataset))
    return dataset.select_columns(["image", *label_columns]).with_transform(transform)


def _rows_to_tensors(rows: dict[str, list[Any]], resolution: int, channels: int) -> dict[str, Any]:
    # No local function, which could not be sent to a process that loads images.
    return {**rows, "image": to_tensors(rows["image"], resolution, channels)}


def random_flip(images: torch.Tensor) -> torch.Tensor:
    """Mirror each image of (B, C, H, W) with a probability of one half."""
    flip = (torch.rand(len(images)) < 0.5).to(images.device)
    return torch.where(flip[:, None, None, None], images.flip(-1), images)
