"""Anyone's images with a binary label or a numeric score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value

from .labels import read_labels
from .load import Counts, load_source, read_images, undecoded


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
    size: tuple[int, int] = (64, 64),
    channels: int | None = None,
    split: str = "train",
    num_proc: int | None = None,
) -> tuple[Dataset, Counts]:
    """Read images with either a binary label or a numeric score.

    Args:
        source: a folder of images, see `read_folder` (sub-folders for classes, then `label_column="label"`, or a
            `metadata.csv`), a folder written by `save_to_disk`, or a Hub data set's name.
        label_column: a column with two values: classes, booleans, numbers or strings. Numbers and strings are sorted.
        score_column: a column of numbers, of any range.
        size: height and width in pixels.
        channels: 1 or 3; None for grey where all images are grey.
        num_proc: processes to read with.

    Returns:
        `image`, see `read_images`; either the label column as a ClassLabel under its own name or `score` (float32, as
        it stands in the source); and `source_index`, the row number in the split.

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
        labels, classes = read_labels(dataset, label_column, "label_column")
        found = np.unique(labels[labels >= 0])
        if len(found) != 2:
            raise ValueError(f"`--label_column` is {label_column!r} with {len(found)} different values; expected two.")
        feature = ClassLabel(names=[classes[number] for number in found])
        values = np.searchsorted(found, labels)
        usable = (labels >= 0).tolist()
    else:
        name, why, feature = "score", "missing or infinite score", Value("float32")
        values = _scores(dataset, str(score_column))
        usable = np.isfinite(values).tolist()
    beside = Dataset.from_dict(
        {name: values, "source_index": np.arange(len(dataset))},
        Features({name: feature, "source_index": Value("int64")}),
    )
    skipped = [None if good else why for good in usable]
    return read_images(undecoded(dataset, image_column), beside, skipped, size, channels, num_proc=num_proc)
