"""One way to load images: a folder of them, a `save_to_disk` folder, or a data set of the Hub."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value, concatenate_datasets, load_dataset, load_from_disk
from datasets.fingerprint import Hasher
from PIL import Image as PILImage
from rich.progress import track

from ..utils import images as reading
from ..utils.images import BadImage, decode_image, fit_image, flatten, has_transparency
from .folder import has_images, is_image_name, read_folder
from .transforms import to_pixels

Counts = dict[str, dict[str, int]]
"""`skipped`: for every reason the number of rows left out. `converted`: for every mode other than that of the result
the number of images converted and kept. What was skipped and what was kept add up to all rows."""


def load_source(source: str | Path, split: str = "train") -> Dataset:
    """One split of a `save_to_disk` folder, an image folder or other local files, or a data set of the Hub.

    Args:
        source: a `Path` has to be there; a string may be either.
        split: "valid" and "validation" mean the same.

    Raises:
        ValueError: for a source that is neither, or that has no such split.
    """
    saved = any((Path(source) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    if not saved and Path(source).is_dir() and has_images(Path(source)):
        return read_folder(source, split)
    try:
        if isinstance(source, Path) and not source.exists():
            raise FileNotFoundError(source)  # the Hub would be asked
        loaded = load_from_disk(source) if saved else load_dataset(str(source))
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"`source` is {str(source)!r}; expected a folder of images or a Hub data set.") from error
    except (LookupError, TypeError) as error:  # what `datasets` makes of a data set without rows, or half of one
        raise ValueError(f"`source` {str(source)!r} is empty or broken; expected at least one image.") from error
    splits = {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else loaded
    other = {"valid": "validation", "validation": "valid"}.get(split, split)
    for name in (split, other):
        if name in splits:
            return splits[name]
    raise ValueError(f"`split` is {split!r}; expected one of {list(splits)}, which `source` {str(source)!r} has.")


def load_training_set(
    dataset_name: str | None, train_data_dir: str | Path | None, size: tuple[int, int], channels: int | None = None
) -> tuple[Dataset, Counts]:
    """What the training scripts learn from: the training split, its column `image` read by `read_images`.

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
    if not isinstance(dataset.features.get("image"), Image):
        raise ValueError(f"the data set has columns {dataset.column_names}; expected one of images named 'image'.")
    beside = dataset.remove_columns("image")
    return read_images(undecoded(dataset, "image"), beside, [None] * len(dataset), size, channels)


def held_out_images(
    source: str | Path, training: str | Path | None, size: tuple[int, int], channels: int
) -> np.ndarray:
    """Images of a folder that are not in a training set made of it, (N, H, W, C) uint8.

    Args:
        training: a folder that build_dataset.py wrote, whose `source_index` names rows of `source`; None for none.

    Raises:
        ValueError: for a `source` without images, or a `training` without that column.
    """
    images, _ = load_training_set(None, source, size, channels)
    known: list[int] = []
    if training is not None:
        dataset = load_source(training)
        if "source_index" not in dataset.column_names:
            raise ValueError(f"`training` has columns {dataset.column_names}; expected one named 'source_index'.")
        known = dataset["source_index"][:]
    rest = images.select(np.setdiff1d(np.arange(len(images)), known))
    return to_pixels(rest["image"][:], size, channels)


def load_pixels(
    source: str | Path, name: str, size: tuple[int, int] | None = None, channels: int | None = None
) -> tuple[np.ndarray, list[str]]:
    """All images of a source at once, (N, H, W, C) uint8, and sentences on what was left out or cut to shape.

    Args:
        source: an `.npz`, a folder with an `images.npz` as `multiguidance sample` writes it, or see `load_source`.
        name: of the argument, for errors.
        size: height and width to which larger images are cut and resized, see `fit_image`; None for those of the
            images, which have to be alike. An `.npz` has to have that size.
        channels: 1 or 3, as which grey images are taken, too; None for grey where all images are grey.

    Raises:
        ValueError: for a source without usable images, for images of two sizes, or smaller than `size`.
    """
    arrays = Path(source) / "images.npz" if Path(source).is_dir() else Path(source)
    if arrays.suffix == ".npz" and arrays.is_file():
        stored = read_npz(arrays)
        height, width = size or stored.shape[1:3]
        if channels == 3 and stored.shape[3] == 1:
            stored = stored.repeat(3, axis=3)
        if stored.shape[1:] != (height, width, channels or stored.shape[3]):
            raise ValueError(
                f"`{name}` holds images of shape {stored.shape[1:]}; expected {(height, width, channels)}, as the "
                "images to compare it with have."
            )
        return stored, []
    try:
        dataset = load_source(source)
    except ValueError as error:
        raise ValueError(f"`{name}` can't be read: {error}") from error
    if "image" not in dataset.column_names:
        raise ValueError(f"`{name}` has columns {dataset.column_names}; expected one of images named 'image'.")
    skipped: Counter[str] = Counter()
    images: list[np.ndarray] = []
    num_fitted, first = 0, ""
    for row in track(undecoded(dataset, "image"), f"reading {name}", transient=True):
        try:
            image = flatten(open_image(row["image"]))
        except BadImage as error:
            skipped[str(error)] += 1
            continue
        path = Path(row["image"]["path"] or f"number {len(images)}").name
        shape = image.height, image.width
        if size is None:
            size, first = shape, path
        elif first and shape != size:
            raise ValueError(
                f"`{name}` holds {first} of {size[1]}x{size[0]} pixels and {path} of {shape[1]}x{shape[0]}; expected "
                "images of one size."
            )
        elif shape[0] < size[0] or shape[1] < size[1]:
            raise ValueError(
                f"`{name}` holds {path} of {shape[1]}x{shape[0]} pixels; expected at least {size[1]}x{size[0]}, as "
                "the images to compare it with have."
            )
        num_fitted += shape != size
        images.append(np.atleast_3d(np.asarray(fit_image(image, size, channels))))
    if not images:
        raise ValueError(f"`{name}` {str(source)!r} has no usable image; expected at least one ({_reasons(skipped)}).")
    remarks = [f"Left out of `{name}`: {_reasons(skipped)}."] if skipped else []
    if num_fitted:
        height, width = images[0].shape[:2]
        remarks.append(f"{num_fitted} images of `{name}` were cut and resized to {height}x{width} pixels.")
    deepest = max(image.shape[-1] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], deepest)) for image in images]), remarks


def read_npz(path: Path) -> np.ndarray:
    """The (N, H, W, C) uint8 images of an `.npz`: its array `images`, or the only one that it has."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images" if "images" in arrays or len(arrays) != 1 else arrays.files[0]]
    except Exception as error:  # a broken archive may raise about anything
        raise ValueError(f"`{path}` can't be read ({error}); expected what `multiguidance sample` writes.") from error
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            f"`{path}` holds {images.dtype} of shape {images.shape}; expected images, (N, H, W, 1 or 3) uint8."
        )
    return images


def _reasons(skipped: Counter[str]) -> str:
    return ", ".join(
        f"{count} files ({reason})" if count > 1 else f"1 file ({reason})" for reason, count in skipped.items()
    )


def undecoded(dataset: Dataset, image_column: str) -> Dataset:
    """The column of images alone, as `image` and undecoded, so that a broken file stops nothing."""
    images = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return images if image_column == "image" else images.rename_column(image_column, "image")


def open_image(stored: dict[str, Any] | None) -> PILImage.Image:
    """Decode one image, see `decode_image`.

    Args:
        stored: `bytes`, or else the `path` of a file: an image as `datasets` gives it with `Image(decode=False)`.

    Raises:
        BadImage: for one that is missing, or that can't be decoded.
    """
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        raise BadImage("missing image")
    content, path = stored["bytes"], stored["path"]
    try:
        if content is None:
            # `datasets` names a file inside an archive by a URL.
            with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
                content = file.read()
        return decode_image(content)
    except FileNotFoundError as error:
        raise BadImage("missing image") from error
    except (OSError, BadImage) as error:
        name = (path or "").split("::")[0]  # not the archive's
        suffix = os.path.splitext(name)[1].lower()
        if name and not is_image_name(name) and str(error) != "animated image":
            raise BadImage(f"no image ({suffix or 'a name without extension'})") from error
        if not isinstance(error, BadImage):
            raise BadImage("unreadable image") from error
        known = suffix not in ("", ".jpg", ".jpeg", ".png") and str(error) == "unreadable image"
        raise BadImage(f"unreadable image ({suffix})" if known else str(error)) from error


def _read_rows(
    images: list[Dataset], skipped: list[list[str | None]], size: tuple[int, int], channels: int | None
) -> Iterator[dict[str, Any]]:
    for shard, reasons in zip(images, skipped, strict=True):
        for stored, why in zip(shard, reasons, strict=True):
            image = mode = None
            if why is None:
                try:
                    opened = open_image(stored["image"])
                    image = fit_image(opened, size, channels)
                    mode = opened.mode
                    if mode == "RGB" and has_transparency(opened):
                        mode = "RGB with a transparent colour"
                    elif mode == "RGB" and image.mode == "L" and channels is None:
                        mode = "RGB, but grey"
                except BadImage as error:
                    why = str(error)
            yield {"image": image, "mode": mode, "is_grey": image and image.mode == "L", "skipped": why}


def _make_rgb(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    # Most are RGB already, and go through as they are.
    pairs = zip(rows["image"], rows["is_grey"], strict=True)
    encode = Image().encode_example
    return {"image": [encode(open_image(stored).convert("RGB")) if grey else stored for stored, grey in pairs]}


def read_images(
    images: Dataset,
    beside: Dataset,
    skipped: list[str | None],
    size: tuple[int, int],
    channels: int | None = None,
    *,
    fingerprint: Any = None,
    num_proc: int | None = None,
) -> tuple[Dataset, Counts]:
    """Read images one by one into a cached data set, leaving out those that cannot be used.

    Args:
        images: one column, `image`, with `Image(decode=False)`.
        beside: the other columns, as many rows.
        skipped: for each row why it is left out whatever its file holds, or None.
        size: height and width in pixels of the result, see `fit_image`.
        channels: 1 for grey, 3 for RGB; None for grey where all images are grey.
        fingerprint: whatever else the result depends on, such as the files' times.
        num_proc: processes to read with.

    Returns:
        `image`, all grey or all RGB, and the columns of `beside`; and the counts.

    Raises:
        ValueError: where there is no image, or none is left.
    """
    if not len(images):
        raise ValueError("`source` has no images in this `split`; expected at least one.")
    # The reading code is part of what the cached result depends on, and so are files' times.
    code = [inspect.getsource(module) for module in (sys.modules[__name__], reading)]
    tables = images.with_format("arrow").iter(1000)  # whose images' bytes are not looked at
    paths = [path for table in tables for path in pc.struct_field(table["image"], "path").to_pylist()]
    times = [(stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, filter(os.path.exists, filter(None, paths)))]
    num_shards = min(num_proc or 1, len(images))
    rows = [range(part[0], part[-1] + 1) for part in np.array_split(np.arange(len(images)), num_shards)]
    read = Dataset.from_generator(
        _read_rows,
        features=Features(
            {"image": Image(), "mode": Value("string"), "is_grey": Value("bool"), "skipped": Value("string")}
        ),
        gen_kwargs={
            "images": [images.select(part) for part in rows],
            "skipped": [skipped[part.start : part.stop] for part in rows],
            "size": size,
            "channels": channels,
        },
        num_proc=num_shards if num_shards > 1 else None,
        fingerprint=Hasher.hash((code, images._fingerprint, skipped, size, channels, times, fingerprint)),
    )
    reasons = read["skipped"][:]
    left_out = dict(Counter(reason for reason in reasons if reason))
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise ValueError(f"`source` has no usable image; expected at least one, but skipped {left_out}.")
    is_grey = [one for one in read["is_grey"][:] if one is not None]
    usual = "L" if all(is_grey) else "RGB"
    modes = Counter(mode for mode in read["mode"][:] if mode not in (None, usual))
    if usual == "RGB":
        del modes["RGB, but grey"]
    result = read.select_columns("image")
    if usual == "RGB" and any(is_grey):
        stored = read.select_columns(["image", "is_grey"]).cast_column("image", Image(decode=False))
        result = stored.map(_make_rgb, batched=True, remove_columns="is_grey", features=result.features)
    if beside.column_names:
        result = concatenate_datasets([result, beside], axis=1)
    return result.select(kept), {"skipped": left_out, "converted": dict(modes)}


def describe_counts(counts: Counts, num_images: int) -> list[str]:
    """Sentences for the screen: what was left out and converted of the images, and a warning where that is much.

    Args:
        num_images: how many were kept.
    """
    total = sum(counts["skipped"].values())
    lines = [f"{kind}: {count} ({reason})" for kind, why in counts.items() for reason, count in why.items()]
    if total > 0.05 * (num_images + total):
        share = 100 * total / (num_images + total)
        lines.append(f"WARNING: {total} of {num_images + total} files ({share:.0f} %) are left out, as said above.")
    return lines
