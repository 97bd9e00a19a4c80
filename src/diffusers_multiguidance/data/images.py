"""Anyone's images with a binary label or a numeric score, and the reading of images that may be broken."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset, load_from_disk
from datasets.fingerprint import Hasher
from PIL import Image as PILImage
from PIL import ImageOps

Counts = dict[str, dict[str, int]]


class BadImage(ValueError):
    """An image that cannot be used. The message is the reason, under which it is counted."""


def open_image(stored: dict[str, Any] | None) -> PILImage.Image:
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
        image = PILImage.open(BytesIO(content))
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


def has_transparency(image: PILImage.Image) -> bool:
    """Whether the image has an alpha channel or a transparent colour."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """Convert to 8-bit RGB: 16-bit greys scaled, transparent pixels laid on white.

    Raises:
        BadImage: for 32-bit greys, whose black and white nothing tells, and for modes that Pillow cannot convert.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = PILImage.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadImage(f"no known range of values (mode {image.mode})")
    if has_transparency(image):
        image = image.convert("RGBA")
        image = PILImage.alpha_composite(PILImage.new("RGBA", image.size, "white"), image)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise BadImage(f"no conversion to RGB (mode {image.mode})") from error


def crop_and_resize(image: PILImage.Image, resolution: int) -> PILImage.Image:
    """The largest centred square (178x178 of CelebA's 178x218), resized to (resolution, resolution)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), PILImage.Resampling.LANCZOS)


def _read_rows(images: list[Dataset], columns: list[Dataset], resolution: int) -> Iterator[dict[str, Any]]:
    for image_shard, column_shard in zip(images, columns, strict=True):
        for stored, row in zip(image_shard, column_shard, strict=True):
            image = converted = None
            if row["skipped"] is None:
                try:
                    opened = open_image(stored["image"])
                    image = crop_and_resize(to_rgb(opened), resolution)
                    if opened.mode != "RGB":
                        converted = opened.mode
                    elif has_transparency(opened):
                        converted = "RGB with a transparent colour"
                except BadImage as error:
                    row["skipped"] = str(error)
            yield {**row, "image": image, "converted": converted}


def read_images(
    images: Dataset,
    columns: dict[str, Any],
    features: Features,
    resolution: int,
    *,
    fingerprint: Any = None,
    num_proc: int | None = None,
) -> tuple[Dataset, Counts]:
    """Read images one by one into a cached data set, leaving out those that cannot be used.

    Args:
        images: one column, `image`, with `Image(decode=False)`.
        columns: a list or array for each column beside the images, and one, `skipped`, that says why a row is left
            out whatever its file holds, or None.
        features: of the columns to keep, all but `skipped`.
        fingerprint: whatever else the result depends on, such as the files' times.
        num_proc: processes to read with.

    Returns:
        `image` (RGB, resolution x resolution) and `columns` without `skipped`; and the counts, see `image_dataset`.

    Raises:
        ValueError: where there is no image, or none is left.
    """
    if not len(images):
        raise ValueError("`source` has no images in this `split`; expected at least one.")
    beside = Dataset.from_dict(columns)
    num_shards = min(num_proc or 1, len(images))
    read = Dataset.from_generator(
        _read_rows,
        features=Features({"image": Image(), **features, "skipped": Value("string"), "converted": Value("string")}),
        gen_kwargs={
            "images": [images.shard(num_shards, index) for index in range(num_shards)],
            "columns": [beside.shard(num_shards, index) for index in range(num_shards)],
            "resolution": resolution,
        },
        num_proc=num_shards if num_shards > 1 else None,
        # The reading code is part of what the cached result depends on.
        fingerprint=Hasher.hash(
            (
                inspect.getsource(sys.modules[__name__]),
                images._fingerprint,
                beside._fingerprint,
                features,
                resolution,
                fingerprint,
            )
        ),
    )
    skipped = read["skipped"][:]
    counts = {name: dict(Counter(reason for reason in read[name] if reason)) for name in ("skipped", "converted")}
    kept = [number for number, reason in enumerate(skipped) if reason is None]
    if not kept:
        raise ValueError(f"`source` has no usable image; expected at least one, but skipped {counts['skipped']}.")
    return read.remove_columns(["skipped", "converted"]).select(kept), counts


def load_source(source: str | Path, split: str) -> Dataset:
    """One split of a `save_to_disk` folder, an image folder or other local files, or a data set of the Hub.

    "valid" and "validation" mean the same.

    Raises:
        ValueError: for a source that is neither, or that has no such split.
    """
    saved = any((Path(source) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        loaded = load_from_disk(source) if saved else load_dataset(str(source))
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"`source` is {str(source)!r}; expected a folder of images or a Hub data set.") from error
    splits = {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else loaded
    other = {"valid": "validation", "validation": "valid"}.get(split, split)
    for name in (split, other):
        if name in splits:
            return splits[name]
    raise ValueError(f"`split` is {split!r}; expected one of {list(splits)}, which `source` {str(source)!r} has.")


def undecoded(dataset: Dataset, image_column: str) -> Dataset:
    """The column of images alone, as `image` and undecoded, so that a broken file stops nothing."""
    images = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return images if image_column == "image" else images.rename_column(image_column, "image")


def _binary_labels(dataset: Dataset, column: str) -> tuple[list[int | None], ClassLabel]:
    """Each row's class, 0 or 1 or None where it has no label, and the names of the two classes."""
    feature, values = dataset.features[column], dataset[column][:]
    if not isinstance(feature, Value | ClassLabel):
        raise ValueError(f"`label_column` is {column!r}; expected classes, booleans, numbers or strings.")
    if isinstance(feature, ClassLabel):
        values = [None if value is None or value < 0 else feature.names[value] for value in values]
    labels = [None if value == "" or value != value else value for value in values]  # NaN differs from itself
    if isinstance(feature, ClassLabel) and feature.num_classes == 2:
        classes = feature.names
    else:
        classes = [False, True] if feature.dtype == "bool" else sorted(set(labels) - {None})
    if len(classes) != 2:
        raise ValueError(f"`label_column` is {column!r} with {len(classes)} different values; expected two.")
    names = ["no", "yes"] if feature.dtype == "bool" else [str(name) for name in classes]
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers.get(label) for label in labels], ClassLabel(names=names)


def _scores(dataset: Dataset, column: str) -> np.ndarray:
    feature = dataset.features[column]
    if not (isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float"))):
        raise ValueError(f"`score_column` is {column!r}; expected a column of numbers.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is skipped as such
        return np.array(dataset[column][:], dtype=np.float64).astype(np.float32)


def image_dataset(
    source: str | Path,
    image_column: str = "image",
    label_column: str | None = None,
    score_column: str | None = None,
    resolution: int = 64,
    split: str = "train",
    num_proc: int | None = None,
) -> tuple[Dataset, Counts]:
    """Read images with either a binary label or a numeric score.

    Args:
        source: a folder of images as `datasets` reads it (one sub-folder per class, then `label_column="label"`, or
            a `metadata.csv` with a `file_name` column; files not named as images are not looked at), a folder written
            by `save_to_disk`, or a Hub data set's name.
        label_column: a column with two values: classes, booleans, numbers or strings. Numbers and strings are sorted.
        score_column: a column of numbers, of any range.
        num_proc: processes to read with.

    Returns:
        `image` (RGB, the largest centred square resized to resolution x resolution); either the label column as a
        ClassLabel under its own name or `score` (float32, as it stands in the source); and `source_index`, the row
        number in the split.

        The counts: `skipped` has for every reason the number of rows left out, `converted` for every mode other than
        RGB the number of images that were converted and kept. What was skipped and what was kept add up to all rows.

    Raises:
        ValueError: for both or none of `label_column` and `score_column`, a source, split or column that does not
            exist or has the wrong type, labels other than two, or where no usable image is left.
    """
    if (label_column is None) == (score_column is None):
        raise ValueError(
            f"`label_column` is {label_column!r} and `score_column` is {score_column!r}; expected exactly one of them."
        )
    dataset = load_source(source, split)
    given = {"image_column": image_column, "label_column": label_column, "score_column": score_column}
    for argument, column in given.items():
        if column is not None and column not in dataset.column_names:
            raise ValueError(f"`{argument}` is {column!r}; expected one of the columns {dataset.column_names}.")
    if not isinstance(dataset.features[image_column], Image):
        raise ValueError(f"`image_column` is {image_column!r}; expected a column of images.")

    values: Any
    if label_column is not None:
        name, why = label_column, "missing label"
        values, feature = _binary_labels(dataset, label_column)
        usable = [label is not None for label in values]
    else:
        name, why, feature = "score", "missing or infinite score", Value("float32")
        values = _scores(dataset, str(score_column))
        usable = np.isfinite(values).tolist()
    return read_images(
        undecoded(dataset, image_column),
        {
            name: values,
            "source_index": np.arange(len(dataset)),
            "skipped": [None if good else why for good in usable],
        },
        Features({name: feature, "source_index": Value("int64")}),
        resolution,
        num_proc=num_proc,
    )
