"""Pictures of many images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """(N, H, W, C) uint8 as PIL images, grey for C = 1."""
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]


def image_grid(images: Sequence[Image.Image], columns: int = 16, zoom: int = 2, gap: int = 1) -> Image.Image:
    """Lay out images of one size in rows, magnified without smoothing and set apart by grey lines."""
    width, height = (zoom * side for side in images[0].size)
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    grid = Image.new(images[0].mode, (columns * (width + gap) + gap, rows * (height + gap) + gap), "grey")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        enlarged = image.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (gap + column * (width + gap), gap + row * (height + gap)))
    return grid
