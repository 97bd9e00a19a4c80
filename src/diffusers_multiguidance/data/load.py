"""One way to load images: a folder of them, a `save_to_disk` folder, or a data set of the Hub."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value, load_dataset, load_from_disk
from datasets.fingerprint import Hasher

from . import transforms
from .transforms import BadImage, fit_image, has_transparency, open_image

Counts = dict[str, dict[str, int]]
"""`skipped`: for every reason the number of rows left out. `converted`: for every mode other than RGB the number of
images converted and kept. What was skipped and what was kept add up to all rows."""


def load_source(source: str | Path, split: str = "train") -> Dataset:
    """One split of a `save_to_disk` folder, an image folder or other local files, or a data set of the Hub.

    Args:
        source: a `Path` has to be there; a string may be either.
        split: "valid" and "validation" mean the same.

    Raises:
        ValueError: for a source that is neither, or that has no such split.
    """
    saved = any((Path(source) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        if isinstance(source, Path) and not source.exists():
            raise FileNotFoundError(source)  # the Hub would be asked
        loaded = load_from_disk(source) if saved else load_dataset(str(source))
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"`source` is {str(source)!r}; expected a folder of images or a Hub data set.") from error
    splits = {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else loaded
    other = {"valid": "validation", "validation": "valid"}.get(split, split)
    for name in (split, other):
        if name in splits:
            return splits[name]
    raise ValueError(f"`split` is {split!r}; expected one of {list(splits)}, which `source` {str(source)!r} has.")


def load_training_set(dataset_name: str | None = None, train_data_dir: str | Path | None = None) -> Dataset:
    """What the training scripts learn from: the training split, with a column `image`.

    Args:
        dataset_name: a data set of the Hub; or
        train_data_dir: a folder that build_dataset.py wrote, or of images.

    Raises:
        ValueError: for both or none, a folder that does not exist, or a data set without images.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise ValueError("`--dataset_name` and `--train_data_dir`: expected exactly one of them.")
    if train_data_dir is not None and not Path(train_data_dir).is_dir():
        raise ValueError(f"`--train_data_dir` is {str(train_data_dir)!r}; expected a folder that exists.")
    dataset = load_source(train_data_dir or str(dataset_name))
    if "image" not in dataset.column_names:
        raise ValueError(f"the data set has columns {dataset.column_names}; expected one named 'image'.")
    return dataset


def undecoded(dataset: Dataset, image_column: str) -> Dataset:
    """The column of images alone, as `image` and undecoded, so that a broken file stops nothing."""
    images = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return images if image_column == "image" else images.rename_column(image_column, "image")


def _read_rows(images: list[Dataset], columns: list[Dataset], resolution: int) -> Iterator[dict[str, Any]]:
    for image_shard, column_shard in zip(images, columns, strict=True):
        for stored, row in zip(image_shard, column_shard, strict=True):
            image = converted = None
            if row["skipped"] is None:
                try:
                    opened = open_image(stored["image"])
                    image = fit_image(opened, resolution)
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
        `image` (RGB, resolution x resolution) and `columns` without `skipped`; and the counts.

    Raises:
        ValueError: where there is no image, or none is left.
    """
    if not len(images):
        raise ValueError("`source` has no images in this `split`; expected at least one.")
    beside = Dataset.from_dict(columns)
    num_shards = min(num_proc or 1, len(images))
    # The reading code is part of what the cached result depends on.
    code = [inspect.getsource(module) for module in (sys.modules[__name__], transforms)]
    read = Dataset.from_generator(
        _read_rows,
        features=Features({"image": Image(), **features, "skipped": Value("string"), "converted": Value("string")}),
        gen_kwargs={
            "images": [images.shard(num_shards, index) for index in range(num_shards)],
            "columns": [beside.shard(num_shards, index) for index in range(num_shards)],
            "resolution": resolution,
        },
        num_proc=num_shards if num_shards > 1 else None,
        fingerprint=Hasher.hash(
            (code, images._fingerprint, beside._fingerprint, features, resolution, fingerprint),
        ),
    )
    skipped = read["skipped"][:]
    counts = {name: dict(Counter(reason for reason in read[name] if reason)) for name in ("skipped", "converted")}
    kept = [number for number, reason in enumerate(skipped) if reason is None]
    if not kept:
        raise ValueError(f"`source` has no usable image; expected at least one, but skipped {counts['skipped']}.")
    return read.remove_columns(["skipped", "converted"]).select(kept), counts
