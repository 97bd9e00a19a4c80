"""Columns of labels and numbers, looked at before anything is computed from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import ClassLabel, Dataset

from ..utils.writable import RESERVED


def read_labels(dataset: Dataset, column: str, name: str) -> tuple[np.ndarray, list[str]]:
    """The class of every image (N,), -1 where it has none, and the classes' names.

    Of booleans, whole numbers, strings, and numbers with two values, the different values are the classes, sorted. -1
    means no label, except where otherwise only one value would be left, as in CelebA's -1 and 1.

    Args:
        name: of the flag that names the column, for the error.

    Raises:
        ValueError: for a column that is not there or holds no labels, or images of one class only.
    """
    feature = dataset.features.get(column)
    dtype = str(getattr(feature, "dtype", None))
    values = dataset[column][:] if dtype.startswith(("bool", "int", "uint", "float", "string", "large_string")) else []
    is_measure = dtype.startswith("float") and len({value for value in values if value == value} - {None}) > 2
    if column in RESERVED or not values or is_measure:
        columns = [other for other in dataset.column_names if other not in RESERVED]
        raise ValueError(f"`--{name}` is {column!r}; expected a column of labels, of {columns}.")
    if isinstance(feature, ClassLabel):
        names = feature.names
        numbers = np.array([value if value is not None and 0 <= value < len(names) else -1 for value in values], int)
    else:
        words = [value.strip() if isinstance(value, str) else value for value in values]
        words = [None if word != word else word for word in words]  # NaN
        classes = sorted(set(words) - {None, ""})
        if -1 in classes and len(classes) > 2:
            classes.remove(-1)
        if len(classes) == len(set(words)) == len(words) > 2:
            raise ValueError(f"`--{name}` is {column!r}, of which no two images have the same; expected labels.")
        spelled = "{:g}" if dtype.startswith("float") else "{}"
        names = ["no", "yes"] if classes == [False, True] and dtype == "bool" else [*map(spelled.format, classes)]
        numbers = np.array([classes.index(word) if word in classes else -1 for word in words], int)
    found = np.unique(numbers[numbers >= 0])
    if len(found) < 2:
        only = f"{(numbers >= 0).sum()} of {len(numbers)} images have one" + "".join(f", {names[k]!r}" for k in found)
        raise ValueError(f"`--{name}` is {column!r}, and {only}; expected labels of at least two classes.")
    return numbers, names


def with_labels(dataset: Dataset, column: str, name: str, say: Callable[[str], None]) -> Dataset:
    """The images that have a label, and `column` as a `ClassLabel`; arguments and errors as of `read_labels`.

    Args:
        say: called with a sentence where images are left out.
    """
    numbers, names = read_labels(dataset, column, name)
    known = _known(numbers >= 0, column, say)
    if len(known) == len(dataset) and isinstance(dataset.features[column], ClassLabel):
        return dataset
    others = dataset.remove_columns(column).select(known)
    return others.add_column(column, numbers[known], feature=ClassLabel(names=names))


def with_numbers(dataset: Dataset, column: str, name: str, say: Callable[[str], None]) -> Dataset:
    """The images that have a number in `column`; arguments as of `with_labels`.

    Raises:
        ValueError: for a column that is not there or holds no numbers, numbers outside [0, 1], or all the same.
    """
    feature = dataset.features.get(column)
    if not str(getattr(feature, "dtype", None)).startswith("float"):
        raise ValueError(
            f"`--{name}` finds no numbers in {column!r}; expected that column, of {dataset.column_names}."
        )
    values = np.array(dataset[column][:], dtype=np.float64)  # None becomes NaN
    outside = (values < 0) | (values > 1)
    if outside.any():
        raise ValueError(
            f"`--{name}` is {column!r}, with {outside.sum()} of {len(values)} numbers outside [0, 1], such as "
            f"{values[outside][0]:g}; expected numbers from 0 to 1, and blanks where they aren't known."
        )
    known = ~np.isnan(values)
    if len(np.unique(values[known])) < 2:
        raise ValueError(
            f"`--{name}` is {column!r}, and {known.sum()} of {len(values)} images have a number, all the same; "
            "expected different ones."
        )
    return dataset.select(_known(known, column, say))


def _known(mask: np.ndarray, column: str, say: Callable[[str], None]) -> np.ndarray:
    if not mask.all():
        say(f"{(~mask).sum()} of {len(mask)} images have no '{column}' and are left out.")
    return np.flatnonzero(mask)
