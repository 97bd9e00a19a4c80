"""Anyone's images with a binary label or a numeric score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value

from .load import Counts, load_source, read_images, undecoded


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

        The counts of what was skipped and converted, see `load.Counts`.

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
