"""Generated images of the whole range, with pseudo-labels: values by an evaluator, or by their neighbours alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import dijkstra
from sklearn.neighbors import kneighbors_graph

from ..data.load import load_training_set
from ..data.transforms import to_pixels
from ..evaluation.evaluators import check_evaluator, find_evaluator, load_evaluator
from ..evaluation.summary import save_histogram
from ..generate import generate, load_pipeline
from ..training.settings import Settings, check_numbers, flag
from ..utils.files import replace_folder
from ..utils.grids import image_grid, to_pil
from ..utils.writable import check_attributes, check_writable
from .balance import evenly_spread
from .settings import check_replaceable

NEIGHBOURS = 20
BLUR = 0.1  # of the image's size


def values_by_neighbours(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Values of images that fill the way between two ends, without knowing what the attribute is.

    Neighbouring images are joined to a graph, as in Isomap (Tenenbaum et al. 2000), and an image's value is how much
    longer its way to the nearest image of the first end is than that to the second. A way's length is the sum of its
    squared hops, so that it keeps to where images are (Hwang, Damelin and Hero 2016). So there have to be enough
    images for neighbours to differ little, and what differs between the ends has to show in pixels (blurred ones, so
    that what has moved a little is near).

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) 0 and 1 for images of the two ends, -1 for those in between.

    Returns:
        (N,) from 0 to 1, 0.5 where both ends are equally far; NaN where an end can't be reached. Rising with the
        attribute, not equal to it: calibrate what was learnt from them.

    Raises:
        ValueError: if an end has no image, or there are too few images.
    """
    if not (np.isin(labels, (-1, 0, 1)).all() and (labels == 0).any() and (labels == 1).any()):
        raise ValueError(
            f"`labels` has the values {np.unique(labels).tolist()}; expected images of both ends, 0 and 1."
        )
    if len(images) <= NEIGHBOURS:
        raise ValueError(f"`images` has {len(images)} images; expected more than {NEIGHBOURS}.")
    sigma = BLUR * images.shape[1]
    blurred = gaussian_filter(images.astype(np.float32) / 255, (0, sigma, sigma, 0)).reshape(len(images), -1)
    graph = kneighbors_graph(blurred, NEIGHBOURS, mode="distance")
    graph.data = graph.data**2 + 1e-9  # a stored 0, of two equal images, would count as no edge
    graph = graph.maximum(graph.T)
    low, high = (
        dijkstra(graph, directed=False, indices=np.flatnonzero(labels == end), min_only=True) for end in (0, 1)
    )
    known = np.isfinite(low) & np.isfinite(high)
    longer = np.where(known, low, np.nan) - np.where(known, high, np.nan)
    # A few images far from all others would stretch the scale.
    return np.clip(0.5 + longer / (2 * np.nanquantile(np.abs(longer), 0.99)), 0, 1)


@dataclasses.dataclass(kw_only=True)
class GenerateSettings(Settings):
    """Settings of generate.py.

    Raises:
        ValueError: for a number out of range, or evaluators that are not one for each attribute.
    """

    pipeline: str = flag(help="A pipeline folder, or its id on the Hub.")
    attributes: list[str] = flag(help="One or two, spread evenly over their range.")
    evaluators: list[str] | None = flag(
        None,
        "One for each attribute: circle-position, circle-height, stroke-thickness, object-size, the folder of one, or "
        "neighbours, which uses none. Unless given those of the pipeline.",
    )
    extremes: Path = flag(help="Folder that build_dataset.py wrote, or this script, for a second round.")
    keep_all: bool = flag(
        False, "Every generated image and every extreme goes into the set; unless given, it fills the range evenly."
    )
    output_dir: Path = flag(help="The data set goes here.")
    num_images: int = flag(1000, "How many to generate.")
    eval_batch_size: int = flag(64, "Images generated at once.")
    scheduler: str | None = flag(None, "ddpm, ddim, dpmsolver++, ...; the pipeline's unless given.")
    num_inference_steps: int | None = flag(None, "The pipeline's default unless given.")
    guidance_scale: float | None = flag(None, "The pipeline's default unless given.")
    seed: int = flag(0, "Of the images, and of the choice among them.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "num_images", "eval_batch_size", at_least=1)
        check_numbers(self, "seed", at_least=0)
        if not self.attributes:
            raise ValueError("`--attributes` is empty; expected one or two.")
        check_attributes(self.attributes, "attributes")
        if self.evaluators is not None and len(self.evaluators) != len(self.attributes):
            raise ValueError(f"`--evaluators` are {self.evaluators}; expected one for each of {self.attributes}.")


def generate_dataset(settings: GenerateSettings) -> Path:
    """Generate images over the whole range of a pipeline's attributes, and give them values.

    Images that get no value are left out and counted. The set fills the range evenly, with extremes at the ends, or
    holds all: then it can teach what the classifiers take for the middle and the evaluator does not.

    Returns:
        `output_dir`, in the format of `save_to_disk`: `image`, for every attribute its label (`value_<attribute>`
        above one half) and `value_<attribute>`, and `source_index`; with pictures and `provenance.json`.

    Raises:
        ValueError: for an unknown evaluator, scheduler or attribute, a folder that is no whole pipeline or data set.
    """
    check_writable(settings.output_dir, "--output_dir")
    check_replaceable(settings.output_dir)
    if not settings.extremes.is_dir():
        raise ValueError(f"`--extremes` is {str(settings.extremes)!r}; expected a folder that build_dataset.py wrote.")
    names = settings.evaluators or [find_evaluator(settings.pipeline, name) for name in settings.attributes]
    evaluators = {
        name: None if evaluator == "neighbours" else load_evaluator(evaluator)
        for name, evaluator in zip(settings.attributes, names, strict=True)
    }
    pipeline = load_pipeline(settings.pipeline, settings.scheduler)
    for evaluator in evaluators.values():
        if evaluator is not None:
            check_evaluator(evaluator, pipeline.image_size, pipeline.channels)
    extremes, _ = load_training_set(None, settings.extremes, pipeline.image_size, pipeline.channels)
    for name, evaluator in evaluators.items():
        if evaluator is None and not isinstance(extremes.features.get(name), ClassLabel):
            raise ValueError(f"`--extremes` has no labels of '{name}'; expected them, from which neighbours start.")
    if not settings.keep_all:
        extremes = extremes.shuffle(seed=settings.seed).select(range(min(len(extremes), settings.num_images)))
    generated = generate(
        pipeline,
        settings.num_images,
        settings.seed,
        settings.eval_batch_size,
        target=dict.fromkeys(settings.attributes, "uniform"),
        guidance_scale=settings.guidance_scale,
        num_inference_steps=settings.num_inference_steps,
        calibration=None if None in evaluators.values() else "same",
    )
    real = to_pixels(extremes["image"], pipeline.image_size, pipeline.channels)
    pixels = np.concatenate([generated, real])
    values = {}
    for name, evaluator in evaluators.items():
        if evaluator is None:
            labels = np.concatenate([np.full(len(generated), -1), extremes[name]])
            values[name] = values_by_neighbours(pixels, labels)
        else:
            values[name] = evaluator(pixels)
    known = np.flatnonzero(~np.isnan(np.stack(list(values.values()))).any(axis=0))
    num_generated = int((known < len(generated)).sum())
    num_extremes = len(known) - num_generated
    print(
        f"{num_generated} of {len(generated)} generated images and {num_extremes} of {len(real)} extremes have values"
    )
    spread = np.stack([values[name][known] for name in values])
    rows = known if settings.keep_all else known[evenly_spread(spread, settings.num_images, settings.seed)]
    dataset = Dataset.from_dict(
        {
            "image": to_pil(pixels[rows]),
            **{name: (values[name][rows] > 0.5).astype(int) for name in values},
            **{f"value_{name}": values[name][rows] for name in values},
            "source_index": rows,
        },
        features=Features(
            {
                "image": Image(),
                **{name: ClassLabel(names=pipeline.attributes[name]) for name in values},
                **{f"value_{name}": Value("float32") for name in values},
                "source_index": Value("int64"),
            }
        ),
    )
    with replace_folder(settings.output_dir) as folder:
        dataset.save_to_disk(folder)
        for name in values:
            parts = {"generated": values[name][: len(generated)], "extremes": values[name][len(generated) :]}
            save_histogram(parts, name, folder / f"histogram_{name}.png")
        image_grid(to_pil(generated[:256])).save(folder / "grid.png")
        provenance = {
            "num_images": len(dataset),
            "generated": num_generated,
            "extremes": num_extremes,
            "flags": dataclasses.asdict(settings),
        }
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=2, default=str) + "\n")
    print(f"{len(dataset)} images in {settings.output_dir}")
    return settings.output_dir
