"""Cut-out objects at random sizes (paper, appendix K)."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.fingerprint import Hasher
from PIL import Image as PILImage
from scipy.ndimage import binary_closing, binary_fill_holes
from skimage.data import coins as coins_photograph
from skimage.filters import gaussian, sobel
from skimage.measure import label, regionprops
from skimage.segmentation import watershed

from ..utils.images import BadImage, has_transparency
from .folder import list_files
from .load import Counts, open_image

SIZES = (0.2, 0.75)  # the smallest and the largest longest side, as shares of the image
SAMPLING = 4  # images are put together this much larger, then averaged


def coins() -> list[PILImage.Image]:
    """The 24 ancient coins of scikit-image's photograph, cut out: RGBA, about 40 to 65 pixels wide."""
    photograph = coins_photograph()
    certain = np.select([photograph < 30, photograph > 150], [1, 2], 0)  # ground, coin; flooding decides the rest
    coin = binary_fill_holes(watershed(sobel(photograph), certain) == 2)
    cutouts = []
    for region in regionprops(label(coin)):
        if region.area < 500:  # a speck; the smallest coin has 1,077 pixels
            continue
        top, left, bottom, right = region.bbox
        hull = np.pad(region.image_convex, 1)
        # The soft edge lies inside the outline, so that no dark ground shines through.
        alpha = np.clip(2 * gaussian(hull.astype(float), sigma=1) - 1, 0, 1)
        grey = photograph[top - 1 : bottom + 1, left - 1 : right + 1]
        pixels = np.dstack([grey, grey, grey, np.rint(255 * alpha).astype(np.uint8)])
        cutouts.append(_trim(PILImage.fromarray(pixels)))
    return cutouts


def _trim(cutout: PILImage.Image) -> PILImage.Image:
    return cutout.crop(cutout.getchannel("A").getbbox())


def read_cutouts(folder: str | Path) -> tuple[list[PILImage.Image], Counts]:
    """Read a folder of images with an alpha channel, in the order of their names, cropped to what is visible.

    Returns:
        RGBA images; and how many files were skipped and converted, and why, see `load.Counts`.

    Raises:
        ValueError: where none is left.
    """
    cutouts: list[PILImage.Image] = []
    skipped: Counter[str] = Counter()
    converted: Counter[str] = Counter()
    for path in list_files(Path(folder)):
        try:
            image = open_image({"bytes": None, "path": str(path)})
            cutouts.append(_cutout(image))
        except BadImage as error:
            skipped[str(error)] += 1
            continue
        if image.mode != "RGBA":
            converted[image.mode] += 1
    if not cutouts:
        raise ValueError(
            f"`cutouts` is {str(folder)!r}; expected a folder of images with an alpha channel, but skipped "
            f"{dict(skipped)}."
        )
    return cutouts, {"skipped": dict(skipped), "converted": dict(converted)}


def _cutout(image: PILImage.Image) -> PILImage.Image:
    if not has_transparency(image):
        raise BadImage("no alpha channel")
    image = image.convert("RGBA")
    lowest, highest = image.getchannel("A").getextrema()
    if highest == 0:
        raise BadImage("nothing visible")
    if lowest == 255:
        raise BadImage("nothing transparent")
    return _trim(image)


def paste(cutout: PILImage.Image, rng: np.random.Generator, resolution: int) -> tuple[PILImage.Image, float]:
    """Put a cut-out somewhere on a plain or softly shaded ground, turned by up to 15 degrees.

    Returns:
        The image (RGB, resolution x resolution), which shows the whole cut-out; and its size: 0 where its longest
        side before turning is 20 % of the image's, 1 where it is 75 %.
    """
    side = SAMPLING * resolution
    factor = rng.uniform()
    scale = side * (SIZES[0] + factor * (SIZES[1] - SIZES[0])) / max(cutout.size)
    size = max(1, round(scale * cutout.width)), max(1, round(scale * cutout.height))
    turned = cutout.resize(size, PILImage.Resampling.LANCZOS).rotate(
        rng.uniform(-15, 15), PILImage.Resampling.BICUBIC, expand=True
    )
    placed = _trim(turned)
    image = _ground(rng, side)
    image.paste(placed, tuple(rng.integers(0, side - np.array(placed.size) + 1)), placed)
    return image.reduce(SAMPLING), factor


def _ground(rng: np.random.Generator, side: int) -> PILImage.Image:
    color, drift = rng.uniform(30, 225, 3), rng.uniform(-30, 30, 3) * rng.integers(2)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    slope = np.cos(angle) * columns + np.sin(angle) * rows
    return PILImage.fromarray(np.clip(np.rint(color + drift * slope[..., None]), 0, 255).astype(np.uint8))


def object_size(image: np.ndarray) -> float:
    """Size of the one round object on a plain or softly shaded ground, as `paste` has it.

    The object is what differs from the plane that fits most of the pixels; its bounding box tells its longest side.
    One that is not round comes out larger than it was before it was turned, a square by 0.14 on average.

    Args:
        image: (H, W, 1 or 3) uint8.

    Returns:
        In [0, 1]; NaN for no object or for several, and for an image of a single row or column.
    """
    height, width = image.shape[:2]
    if min(height, width) < 2:
        return float("nan")
    pixels = image.reshape(height * width, -1).astype(np.float64)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    plane = np.stack([np.ones(height * width), rows.ravel(), columns.ravel()])
    weights = np.ones(height * width)
    for _ in range(15):  # of reweighting, which leads from the least squares to the least absolute differences
        fit = np.linalg.solve(plane * weights @ plane.T, plane * weights @ pixels)
        difference = np.abs(pixels - plane.T @ fit).max(axis=1)
        weights = 1 / np.maximum(difference, 1)
    seen = np.pad(difference.reshape(height, width) > 16, 1)  # of 255
    labels = label(binary_fill_holes(binary_closing(seen)), connectivity=2)
    regions = sorted(regionprops(labels), key=lambda region: region.area)
    if not regions or regions[-1].area < 0.01 * len(weights):
        return float("nan")
    if sum(region.area for region in regions[:-1]) > 0.15 * regions[-1].area:
        return float("nan")
    top, left, bottom, right = regions[-1].bbox
    share = max((bottom - top) / height, (right - left) / width)
    return float(np.clip((share - SIZES[0]) / (SIZES[1] - SIZES[0]), 0, 1))


def _rows(
    numbers: list[int], cutouts: tuple[PILImage.Image, ...], seed: int, resolution: int
) -> Iterator[dict[str, Any]]:
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        image, factor = paste(cutouts[rng.integers(len(cutouts))], rng, resolution)
        size = np.float32(factor)
        yield {"image": image, "size": int(size > 0.5), "factor_size": size, "source_index": number}


def objects(
    num_images: int,
    resolution: int = 64,
    seed: int = 0,
    cutouts: str | Path | None = None,
    num_proc: int | None = None,
) -> tuple[Dataset, Counts]:
    """Real objects at sizes uniform in [0, 1], see `paste`. An image is the same whatever the number of images.

    Args:
        cutouts: a folder of images with an alpha channel; by default the photographed coins that scikit-image ships.
        num_proc: processes to render with.

    Returns:
        `image` (RGB), `size` ("small" or "large": whether the factor is above 0.5), `factor_size` and `source_index`
        (the image's number); and the counts of cut-outs skipped and converted, see `read_cutouts`.

    Raises:
        ValueError: for less than one image, or a folder without a usable cut-out.
    """
    if num_images < 1:
        raise ValueError(f"`num_images` is {num_images}; expected at least 1.")
    counts: Counts = {"skipped": {}, "converted": {}}
    if cutouts is None:
        chosen = coins()
    else:
        chosen, counts = read_cutouts(cutouts)
    pixels = [(cutout.size, cutout.tobytes()) for cutout in chosen]
    dataset = Dataset.from_generator(
        _rows,
        features=Features(
            {
                "image": Image(),
                "size": ClassLabel(names=["small", "large"]),
                "factor_size": Value("float32"),
                "source_index": Value("int64"),
            }
        ),
        # Of these only the list is split among processes.
        gen_kwargs={
            "numbers": list(range(num_images)),
            "cutouts": tuple(chosen),
            "seed": seed,
            "resolution": resolution,
        },
        num_proc=num_proc,
        # The rendering code is part of what the cached result depends on.
        fingerprint=Hasher.hash((inspect.getsource(sys.modules[__name__]), num_images, seed, resolution, pixels)),
    )
    return dataset, counts
