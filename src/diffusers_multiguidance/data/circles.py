"""Circles, the paper's controlled distribution (section 5.5): one white circle on black, somewhere."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

RADIUS = 2
CORNERS = ["bottom left", "bottom right", "top left", "top right"]


def position(x: np.ndarray | float, size: int) -> np.ndarray:
    """Normalised horizontal position z = (x - r) / (size - 1 - 2 r) in [0, 1] of a circle centred at pixel x."""
    return (np.asarray(x) - RADIUS) / (size - 1 - 2 * RADIUS)


def render_circle(x: int, y: int, size: int) -> np.ndarray:
    """A filled circle of radius 2 (13 pixels) centred at column x and row y; (size, size) uint8, 0 or 255."""
    rows, columns = np.ogrid[:size, :size]
    return np.where((columns - x) ** 2 + (rows - y) ** 2 <= RADIUS**2, 255, 0).astype(np.uint8)


def circles(num_images: int, resolution: int = 64, seed: int = 0) -> Dataset:
    """Render circles with integer centres, uniform over all places where the whole circle is inside the image.

    Returns:
        `image` (L mode), `position` ("left" or "right": whether z > 0.5), `factor_position` (z) and `source_index`;
        for two attributes also `height` ("bottom" or "top"), `factor_height`, and both labels as one: `corner`.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.integers(RADIUS, resolution - RADIUS, size=(2, num_images))
    z = position(x, resolution).astype(np.float32)
    height = (1 - position(y, resolution)).astype(np.float32)
    return Dataset.from_dict(
        {
            "image": [PILImage.fromarray(render_circle(*center, resolution)) for center in zip(x, y, strict=True)],
            "position": (z > 0.5).astype(int),
            "factor_position": z,
            "height": (height > 0.5).astype(int),
            "factor_height": height,
            "corner": 2 * (height > 0.5) + (z > 0.5),
            "source_index": np.arange(num_images),
        },
        features=Features(
            {
                "image": Image(),
                "position": ClassLabel(names=["left", "right"]),
                "factor_position": Value("float32"),
                "height": ClassLabel(names=["bottom", "top"]),
                "factor_height": Value("float32"),
                "corner": ClassLabel(names=CORNERS),
                "source_index": Value("int64"),
            }
        ),
    )
