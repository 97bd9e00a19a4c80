"""From a source of images to a data set of them, or of their extremes, with a data card."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import ClassLabel, Dataset

from ..data.celeba import celeba
from ..data.circles import circles
from ..data.digits import digits
from ..data.faces import faces
from ..data.images import image_dataset
from ..data.labels import read_labels
from ..data.load import Counts, describe_counts
from ..data.objects import objects
from ..data.transforms import image_channels
from ..hub.publish import check_publishable
from ..models.evaluator import check_timm_model
from ..training.settings import read_size
from ..training.trainer import create_accelerator
from ..utils.files import replace_folder
from .balance import oversample
from .data_card import push_data_set, write_card
from .extremes import Selection, select_by_factor, select_by_score
from .label_filter import select_by_labels
from .labelers import check_zero_shot_model, zero_shot_log_odds
from .settings import DatasetSettings, check_replaceable

NO_MATTER = ("num_proc", "dataloader_num_workers", "push_to_hub", "hub_dataset_id", "output_dir", "compare")


def build_dataset(settings: DatasetSettings) -> Path:
    """Build a data set, keep its extremes if that is asked for, and save or push it with a data card.

    With several attributes an image must be extreme in each. A build that was killed goes on where it was when it is
    called with the same settings again.

    Returns:
        `output_dir`, in the format of `save_to_disk`: `image`, the labels, `factor_<attribute>` where the latents are
        known, `score_<attribute>` where scores or prompts decided, and `source_index`; with `provenance.json`.

    Raises:
        ValueError: for a source that can't be read, an attribute that it has not, or where an end is left empty.
    """
    if settings.push_to_hub:
        check_publishable(settings.repo_id)  # hours later would be late
    accelerator = create_accelerator(settings)
    check_replaceable(settings.output_dir)
    if settings.extremes and settings.decided_by == "zero_shot":
        check_zero_shot_model(str(settings.zero_shot_model))
    with accelerator.main_process_first():
        dataset, counts = load_images(settings)
    for line in describe_counts(counts, len(dataset)):
        accelerator.print(line)
    source = {"fingerprint": dataset._fingerprint, "num_images": len(dataset), **counts}
    if not settings.extremes:
        if accelerator.is_main_process:
            with replace_folder(settings.output_dir) as output:
                dataset.save_to_disk(output)
                (output / "provenance.json").write_text(json.dumps({"source": source}) + "\n")
            finish(f"{len(dataset)} images", settings)
    else:
        attributes = settings.attribute or [str(settings.label_column or settings.score_column)]
        for attribute in attributes:
            check_source(dataset, attribute, settings, accelerator.print)
        with accelerator.main_process_first():
            folder = work_folder(dataset, settings)
        selections = {name: select(accelerator, dataset, name, settings, folder / name) for name in attributes}
        if accelerator.is_main_process:
            write_extreme_set(dataset, selections, source, settings)
            shutil.rmtree(folder)
    accelerator.wait_for_everyone()
    return settings.output_dir


def load_images(settings: DatasetSettings) -> tuple[Dataset, Counts]:
    """The source, and the counts of images skipped and converted."""
    nothing: Counts = {"skipped": {}, "converted": {}}
    num_images, resolution, num_proc = settings.num_images, settings.size[0], settings.num_proc
    source = settings.train_data_dir or str(settings.dataset_name)
    match settings.dataset:
        case "circles":
            return circles(num_images, resolution, settings.seed), nothing
        case "digits":
            return digits(), nothing
        case "faces":
            return faces(num_images, resolution, settings.seed, num_proc), nothing
        case "objects":
            return objects(num_images, resolution, settings.seed, settings.train_data_dir, num_proc)
        case "celeba":
            return celeba(source, settings.split, settings.size, num_proc)
        case _:
            columns = (settings.image_column, settings.label_column, settings.score_column)
            dataset, counts = image_dataset(
                source, *columns, settings.size, settings.channels, settings.split, num_proc
            )
            return name_labels(dataset, settings), counts


def name_labels(dataset: Dataset, settings: DatasetSettings) -> Dataset:
    """The label column under the name that `--attribute` gives it, its classes under those of `--class_names`."""
    name = settings.label_column
    if name is None or settings.decided_by != "labels":
        return dataset
    if settings.attribute and settings.attribute != [name]:
        if len(settings.attribute) > 1:
            raise ValueError(f"`--attribute` is {settings.attribute}; expected one name for the column {name!r}.")
        dataset = dataset.rename_column(name, settings.attribute[0])
        (name,) = settings.attribute
    if settings.class_names:
        dataset = dataset.cast_column(name, ClassLabel(names=settings.class_names))
    return dataset


def work_folder(dataset: Dataset, settings: DatasetSettings) -> Path:
    """Hidden beside the output: what a killed build left, if it had the same source and settings; else empty."""
    output = settings.output_dir.resolve()
    folder = output.with_name(f".{output.name}.work")
    note = folder / "build.json"
    if folder.exists() and any(folder.iterdir()) and not note.exists():
        raise ValueError(f"`--output_dir` {output} needs {folder}, which no build wrote; expected that to be free.")
    same = {name: value for name, value in asdict(settings).items() if name not in NO_MATTER}
    content = json.dumps({**same, "source": dataset._fingerprint}, indent=2, default=str)
    if not note.exists() or note.read_text() != content:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(content)
    return folder


def select(
    accelerator: Accelerator, dataset: Dataset, attribute: str, settings: DatasetSettings, folder: Path
) -> Selection:
    """What to keep for one attribute, decided as `settings` say."""
    by = settings.decided_by
    counts = settings.num_extremes or [max(1, round(settings.share_of(len(dataset)) * len(dataset)))]
    if settings.index_file is not None:
        kept, labels = read_index(settings.index_file, dataset), label_column(dataset, attribute)
        record = {"by": "index", "num_images": {"source": len(dataset), "listed": int(kept.sum())}}
        return Selection(kept, labels, labels.astype(float), np.zeros_like(kept), record)
    if by == "factor":
        return select_by_factor(dataset, attribute, settings.delta)
    if by == "score":
        return select_by_score(np.asarray(dataset["score"], dtype=np.float64), (counts[0], counts[-1]))
    if by == "zero_shot":
        model, prompts = str(settings.zero_shot_model), settings.prompts or []
        scores = zero_shot_log_odds(accelerator, dataset, model, prompts, settings.eval_batch_size)
        selection = select_by_score(scores.astype(np.float64), (counts[0], counts[-1]))
        selection.record.update(zero_shot_model=model, prompts=prompts)
        return selection
    holdout = None if settings.holdout_file is None else read_holdout(settings.holdout_file, dataset, attribute)
    return select_by_labels(accelerator, dataset, attribute, holdout, settings, folder)


def check_source(dataset: Dataset, attribute: str, settings: DatasetSettings, say: Callable[[str], None]) -> None:
    """Raise `ValueError` for what `select` will need and the source has not, before any network learns."""
    by = "index" if settings.index_file is not None else settings.decided_by
    if by == "score" and "score" not in dataset.column_names:
        raise ValueError("`--by score` needs scores; expected `--score_column` with `--dataset images`.")
    if by == "zero_shot" and attribute in dataset.column_names:
        raise ValueError(f"`--attribute` is {attribute!r}, a column of the source; expected a new name.")
    if by in ("index", "labels"):
        labels = label_column(dataset, attribute)
        without = int((labels < 0).sum())
        if without:
            say(f"{without} of {len(labels)} images have no '{attribute}': `--unlabelled {settings.unlabelled}`.")
        if settings.index_file is not None:
            read_index(settings.index_file, dataset)
        else:
            if settings.holdout_file is not None:
                read_holdout(settings.holdout_file, dataset, attribute)
            wanted = settings.num_extremes or [1]
            ends = dataset.features[attribute].names, (wanted[0], wanted[-1]), np.bincount(labels[labels >= 0])
            for name, count, there in zip(*ends, strict=True):
                if count > there:
                    raise ValueError(f"`--num_extremes` is {count}; expected at most the {there} that are {name!r}.")
            size = read_size(settings.labeler_resolution, "labeler_resolution")
            check_timm_model(settings.labeler_model, image_channels(dataset), size, settings.train_batch_size)


def label_column(dataset: Dataset, attribute: str) -> np.ndarray:
    """(N,) 0 and 1, and -1 without a label."""
    labels, classes = read_labels(dataset, attribute, "attribute")
    if len(classes) != 2:
        raise ValueError(f"`--attribute` is {attribute!r} with {len(classes)} classes; expected two.")
    return labels


def read_holdout(path: Path, dataset: Dataset, attribute: str) -> dict[int, int]:
    """Image number to 0 or 1, or -1 for mild."""
    values = {**{name: label for label, name in enumerate(dataset.features[attribute].names)}, "mild": -1}
    try:
        with path.open(newline="", errors="replace") as file:
            rows = list(csv.DictReader(file))
        holdout = {int(row["source_index"]): values[row["label"].strip()] for row in rows}
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"`--holdout_file` {path} has {error} somewhere; expected columns source_index (a number) and label "
            f"(one of {list(values)})."
        ) from error
    missing = set(holdout) - set(dataset["source_index"])
    if missing:
        raise ValueError(f"`--holdout_file` names image {min(missing)}; expected numbers of the source's images.")
    return holdout


def read_index(path: Path, dataset: Dataset) -> np.ndarray:
    """Mask of the images whose numbers a text file lists."""
    words = path.read_text(errors="replace").replace(",", " ").split()
    if not words or not all(word.isdecimal() and len(word) < 19 for word in words):
        raise ValueError(f"`--index_file` {path} holds something else; expected image numbers, one a line.")
    numbers, wanted = np.asarray(dataset["source_index"]), np.array(words, dtype=np.int64)
    missing = np.setdiff1d(wanted, numbers)
    if len(missing):
        raise ValueError(f"`--index_file` {path} names image {missing[0]}; expected numbers of the source's images.")
    return np.isin(numbers, wanted)


def write_extreme_set(
    dataset: Dataset, selections: dict[str, Selection], source: dict[str, Any], settings: DatasetSettings
) -> None:
    """Save what all attributes keep, with its card."""
    kept = np.logical_and.reduce([selection.kept for selection in selections.values()])
    for attribute, selection in selections.items():
        present = np.unique(selection.labels[kept])
        if len(present) < 2:
            raise ValueError(
                f"`--attribute` '{attribute}' has {len(present)} of its two ends among the {kept.sum()} images kept; "
                "expected both: keep more or start from more images."
            )
        if selection.record["by"] == "score":
            if "score" in dataset.column_names:
                dataset = dataset.rename_column("score", f"score_{attribute}")
            names = ClassLabel(names=settings.class_names or ["low", "high"])
            dataset = dataset.add_column(attribute, selection.labels, feature=names)
    indices = np.flatnonzero(kept)
    if settings.oversample:
        first = next(iter(selections.values()))
        indices = oversample(indices, first.labels[indices])
    with replace_folder(settings.output_dir) as output:
        dataset.select(indices).save_to_disk(output)
        write_card(output, dataset, selections, kept, len(indices), source, settings)
    finish(f"{len(indices)} of {len(dataset)} images", settings)


def finish(what: str, settings: DatasetSettings) -> None:
    print(f"{what} in {settings.output_dir}")
    if settings.push_to_hub:
        push_data_set(settings.output_dir, settings.repo_id)
