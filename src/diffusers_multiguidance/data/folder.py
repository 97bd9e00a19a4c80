"""A folder of images as its owner sees it: every file is a row, whatever its name.

`datasets` reads folders too, but guesses splits from words in file names and leaves out what it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage

SPLITS = {"train": "train", "training": "train", "valid": "validation", "validation": "validation"}
SPLITS |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test"}
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
TABLES = (".parquet", ".arrow")
# Photographs by their names, which Pillow needs a plugin for; and what it knows, but as no images.
UNREADABLE = (".heic", ".heif", ".dng", ".cr2", ".nef", ".arw", ".raw", ".svg")
NO_IMAGES = (".h5", ".hdf", ".mpg", ".mpeg", ".pdf")


def is_image_name(name: str | Path) -> bool:
    """Whether a file's name says that it is an image, readable here or not."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in UNREADABLE or (suffix in PILImage.registered_extensions() and suffix not in NO_IMAGES)


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name or else by its first bytes."""
    if is_image_name(path):
        return True
    try:
        with PILImage.open(path):
            return True
    except Exception:  # Pillow's readers raise about anything on what is no image
        return False


def has_images(folder: Path) -> bool:
    """Whether any file in the folder, at any depth, is an image, and they are more than the tables beside them."""
    paths = [path for path in list_files(folder) if path.name not in METADATA]
    tables = sum(path.suffix in TABLES for path in paths)
    if tables:  # a clone from the Hub, whose card may have pictures
        return sum(map(is_image_name, paths)) > tables
    return any(map(is_image_name, paths)) or any(map(is_image, paths))


def list_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files at any depth in the order of their paths, also behind links, but for hidden ones.

    Raises:
        ValueError: for a folder that can't be read.
    """
    here = os.path.realpath(folder)
    if here in above:
        return  # a link in a circle
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"`source` has {folder}, which can't be read ({error.strerror}); expected files.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from list_files(Path(entry.path), (*above, here))
        elif entry.is_file() or entry.is_symlink():
            yield Path(entry.path)


def read_folder(folder: str | Path, split: str = "train") -> Dataset:
    """Every file in a folder as a row, without decoding any.

    Folders named like splits (train, valid, test) are splits where no other folder lies beside them. Elsewhere
    all files belong to "train". Hidden files are not looked at.

    Returns:
        `image`, undecoded, in the order of the paths. With a `metadata.csv` (or .tsv, .jsonl, .parquet; its column
        `file_name` is relative to its own folder) its columns, empty where it does not list a file. Without one
        `label`, the first level of folders with two names, or else the first with more, or else the only one;
        empty for files that lie above it.

    Raises:
        ValueError: for a split that is not there, images beside splits, or metadata that can't be read or that name
            a file twice.
    """
    root, wanted = Path(folder), SPLITS.get(split, split)
    paths = [path.relative_to(root) for path in list_files(root)]
    files = [path for path in paths if path.name not in METADATA]
    tables = [_read_metadata(root, path) for path in paths if path.name in METADATA]
    tops = [_split_of(path) for path in files if len(path.parts) > 1]
    has_splits = bool(tops) and None not in tops
    if has_splits:
        for path in files:
            if len(path.parts) == 1 and is_image(root / path):
                raise ValueError(f"`source` {root} has {path} beside folders of splits; expected it in one of them.")
        files = [path for path in files if _split_of(path) in (None, wanted)]  # None: a README, to be counted
    splits = set(tops) if has_splits else {"train"}
    if wanted not in splits:
        raise ValueError(
            f"`split` is {split!r}; expected one of {sorted(map(str, splits))}, which `source` {root} has."
        )
    if not tables:
        dataset = Dataset.from_dict({"image": [str(root / path) for path in files]})
        parents = [path.parts[has_splits:-1] if is_image(root / path) else () for path in files]
        labels = _folder_labels(parents)
        names = sorted(set(labels) - {""})
        if names:
            numbers = [names.index(label) if label else None for label in labels]
            dataset = dataset.add_column("label", numbers).cast_column("label", ClassLabel(names=names))
    else:
        listed = pd.concat(tables)
        twice = listed.index[listed.index.duplicated()]
        if len(twice):
            raise ValueError(f"`source` {root} has metadata that name {twice[0]} twice; expected each file once.")
        if has_splits:
            listed = listed[[_split_of(Path(name)) in (None, wanted) for name in listed.index]]
        missing = set(map(Path, listed.index)) - set(files)  # counted when they can't be opened
        files = sorted([*files, *missing])
        table = listed.reindex(map(str, files))
        table.insert(0, "image", [str(root / path) for path in files])
        try:
            dataset = Dataset.from_pandas(table, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"`source` {root} has metadata of mixed types in a column; expected one.") from error
    return dataset.cast_column("image", Image(decode=False))


def _split_of(path: Path) -> str | None:
    return SPLITS.get(path.parts[0].lower()) if len(path.parts) > 1 else None


def _folder_labels(parents: list[tuple[str, ...]]) -> list[str]:
    depth = max(map(len, parents), default=0)
    levels = [[(*parts, *[""] * depth)[level] for parts in parents] for level in range(depth)]
    counts = [len(set(level) - {""}) for level in levels]
    ranks = [(count == 2, count > 1) for count in counts]
    return levels[ranks.index(max(ranks))] if levels else [""] * len(parents)


def _read_metadata(root: Path, path: Path) -> pd.DataFrame:
    """The table of a metadata file, by the paths of the images below `root`."""
    file = root / path
    # Whole numbers stay whole beside empty cells, and names that look like numbers stay names.
    options: dict[str, Any] = {"dtype_backend": "numpy_nullable"}
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(file, **options)
        elif path.suffix == ".jsonl":
            table = pd.read_json(file, lines=True, dtype=False, **options)
        else:
            with file.open(encoding="utf-8-sig") as lines:
                header = lines.readline()
            options |= {"sep": max(",;\t|", key=header.count), "dtype": {"file_name": "string"}}
            table = pd.read_csv(file, encoding="utf-8-sig", skipinitialspace=True, index_col=False, **options)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"`source` has a {file} that can't be read ({reason}); expected a table.") from error
    if "file_name" not in table.columns or "image" in table.columns:
        raise ValueError(
            f"`source` has a {file} with columns {list(table.columns)}; expected one named 'file_name', and none "
            "named 'image'."
        )
    table = table[table["file_name"].notna()]
    top, folder = os.path.abspath(root), os.path.abspath(file.parent)
    names = [os.path.relpath(os.path.join(folder, str(name).strip()), top) for name in table.pop("file_name")]
    return table.set_index(pd.Index(names, dtype=object))
