"""CelebA, the paper's faces (section 5.1), from a folder or the Hub."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from datasets.fingerprint import Hasher

from .faces import HAIR_CLASSES, hair_label
from .load import Counts, load_source, read_images, undecoded

SPLITS = ("train", "valid", "test")  # partition 0, 1, 2

# In the authors' order, which is that of the mirrors that give a list without names.
ATTRIBUTES = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips"),
    *("Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin"),
    *("Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open"),
    *("Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline"),
    *("Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat"),
    *("Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young"),
)


def _read_table(folder: Path, name: str) -> pd.DataFrame:
    """`name`.csv (Kaggle) or `name`.txt (the authors), as strings, indexed by image name; None in malformed rows."""
    for path in (folder / f"{name}.csv", folder / f"{name}.txt"):
        if path.is_file():
            break
    else:
        raise ValueError(f"`source` is {str(folder)!r}; expected a folder with {name}.csv or {name}.txt.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file) if path.suffix == ".csv" else (line.split() for line in file)
            rows = [[sys.intern(cell) for cell in line] for line in lines if line]  # millions of cells, few values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`source` has a {path} that can't be read ({error}); expected a table.") from error
    if not rows or (len(rows) == 1 and len(rows[0]) == 1):
        raise ValueError(f"`source` has a {path} with {len(rows)} lines; expected a header and images.")
    if path.suffix == ".csv":
        header, rows = rows[0][1:], rows[1:]
    elif len(rows[0]) == 1:  # the number of images, then the attributes' names
        header, rows = rows[1], rows[2:]
    else:
        header = ["partition"]
    return pd.DataFrame(
        [row[1:] if len(row) == 1 + len(header) else [None] * len(header) for row in rows],
        columns=header,
        index=[row[0] for row in rows],
        dtype=object,
    )


def _read_folder(folder: Path, split: str) -> tuple[Dataset, pd.DataFrame, dict[str, Any], str]:
    """A split's images, attribute values as they stand, columns beside them, and the fingerprint of the files."""
    files = folder / "img_align_celeba"
    if (files / "img_align_celeba").is_dir():  # as Kaggle's archive unpacks
        files /= "img_align_celeba"
    attributes = _read_table(folder, "list_attr_celeba")
    splits = _read_table(folder, "list_eval_partition")
    if "partition" not in splits:
        raise ValueError(f"`source` {folder} has a partition file with {list(splits)}; expected a column 'partition'.")
    partition = pd.to_numeric(splits["partition"], errors="coerce")
    partition = partition[~partition.index.duplicated()]
    unlabelled = partition.index.difference(attributes.index)
    table = pd.concat([attributes, pd.DataFrame(index=unlabelled)])
    number = table.index.map(partition)
    chosen = (number == SPLITS.index(split)) | ~number.isin(range(len(SPLITS)))
    skipped = np.select(
        [~number.isin(range(len(SPLITS))), table.index.isin(unlabelled), table.index.duplicated()],
        ["not in the partition file", "not in the attribute file", "duplicate name"],
        "",
    )[chosen]
    table = table[chosen]
    columns: dict[str, Any] = {"source_index": np.flatnonzero(chosen), "skipped": [why or None for why in skipped]}
    if (folder / "factors.csv").is_file():
        factors = _read_table(folder, "factors").apply(pd.to_numeric, errors="coerce").astype(np.float32)
        factors = factors[~factors.index.duplicated()].reindex(table.index)
        columns = {**{f"factor_{name}": factors[name].to_numpy() for name in factors}, **columns}
    images = Dataset.from_dict(
        {"image": [str(files / name) for name in table.index]}, features=Features({"image": Image(decode=False)})
    )
    states = {entry.name: entry.stat() for entry in os.scandir(files)}
    known = [states[name] for name in table.index if name in states]
    return images, table, columns, Hasher.hash([(state.st_size, state.st_mtime_ns) for state in known])


def attribute_values(dataset: Dataset) -> pd.DataFrame:
    """CelebA's attributes from a mirror on the Hub, as they stand there: booleans, 0 and 1, or -1 and 1.

    Args:
        dataset: with attributes as columns of their own (as flwrlabs/celeba and tpremoli/CelebA-attrs have them), as
            fields of a struct, or as a list `attributes` of 40 in the authors' order (as eurecom-ds/celeba has them).

    Raises:
        ValueError: for a data set without any (as nielsr/CelebA-faces).
    """
    if isinstance(dataset.features.get("attributes"), List):
        values = [row if row and len(row) == len(ATTRIBUTES) else None for row in dataset["attributes"]]
        nothing = [None] * len(ATTRIBUTES)
        return pd.DataFrame([row or nothing for row in values], columns=list(ATTRIBUTES), dtype=object)
    structs = [name for name, feature in dataset.features.items() if isinstance(feature, dict)]
    flat = dataset.select_columns([name for name in dataset.column_names if name in (*ATTRIBUTES, *structs)]).flatten()
    names = {name: name.split(".")[-1] for name in flat.column_names if name.split(".")[-1] in ATTRIBUTES}
    if not names:
        raise ValueError(f"`source` has columns {dataset.column_names}; expected some of CelebA's attributes.")
    return flat.select_columns(list(names)).to_pandas().rename(columns=names)


def _binary(values: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Labels (rows, attributes), 0 or 1, and which rows (rows,) have only valid ones."""
    numbers = values.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    # A set says no by -1 or by 0; where both occur, the rarer one is a mistake.
    no = -1 if (numbers == -1).sum() >= (numbers == 0).sum() else 0
    return (numbers == 1).astype(np.int8), ((numbers == no) | (numbers == 1)).all(axis=1)


def celeba(
    source: str | Path, split: str = "train", size: tuple[int, int] = (64, 64), num_proc: int | None = None
) -> tuple[Dataset, Counts]:
    """CelebA's aligned faces (paper, section 5.1): the central 178x178 pixels, resized.

    Args:
        source: a folder with `img_align_celeba/`, `list_attr_celeba.csv` (Kaggle) or `.txt` (the authors) and
            `list_eval_partition.csv` or `.txt`; or a Hub data set's name, see `attribute_values`.
        split: "train", "valid" or "test".
        num_proc: processes to read with.

    Returns:
        `image` (RGB), one column of "no" or "yes" for every attribute found, `Hair` ("black", "blond", or no label,
        -1, for neither or both) where both hair colours are among them, `factor_<name>` for every column of a
        `factors.csv` (NaN where it has no such image), and `source_index`, the row number in the attribute file or
        the Hub data set's split.

        The counts of what was skipped and converted, see `load.Counts`. Rows that no split is
        named for are counted with every split.

    Raises:
        ValueError: for another split, a source without images or attributes, or where no usable image is left.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; expected 'train', 'valid' or 'test'.")
    if (Path(source) / "img_align_celeba").is_dir():
        images, values, columns, fingerprint = _read_folder(Path(source).resolve(), split)
    else:
        dataset = load_source(source, split)
        image_columns = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
        if not image_columns:
            raise ValueError(f"`source` has columns {dataset.column_names}; expected one of images.")
        images, values, fingerprint = undecoded(dataset, image_columns[0]), attribute_values(dataset), ""
        columns = {"source_index": np.arange(len(dataset)), "skipped": [None] * len(dataset)}

    labels, valid = _binary(values)
    columns["skipped"] = [
        why or (None if good else "label outside -1/1 and 0/1")
        for why, good in zip(columns["skipped"], valid, strict=True)
    ]
    attributes = dict(zip(values.columns, labels.T, strict=True))
    features = Features({name: ClassLabel(names=["no", "yes"]) for name in attributes})
    if {"Black_Hair", "Blond_Hair"} <= set(attributes):
        pairs = zip(attributes["Black_Hair"].tolist(), attributes["Blond_Hair"].tolist(), strict=True)
        attributes["Hair"] = np.array([hair_label(black, blond) for black, blond in pairs])
        features["Hair"] = ClassLabel(names=HAIR_CLASSES)
    for name in columns:
        if name.startswith("factor_"):
            features[name] = Value("float32")
    features["source_index"] = Value("int64")
    skipped = columns.pop("skipped")
    beside = Dataset.from_dict({**attributes, **columns}, features)
    return read_images(images, beside, skipped, size, 3, fingerprint=fingerprint, num_proc=num_proc)
