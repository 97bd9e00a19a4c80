"""The card of an extreme set: what it was made from, how, and what slipped in; with pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from huggingface_hub import DatasetCard, DatasetCardData
from matplotlib.figure import Figure

from ..hub.publish import publish_folder
from ..training.recipe import command_line
from ..utils.grids import image_grid
from .extremes import Selection
from .label_filter import ASSUMED_ERROR
from .settings import DatasetSettings

TEMPLATE = Path(__file__).with_name("extreme_set.md")
PICTURED = 64
SHARD_BYTES = 500_000_000


def save_histograms(before: dict[str, np.ndarray], kept: np.ndarray, path: Path) -> None:
    """One panel for each quantity: all images behind, the kept ones before them."""
    figure = Figure(figsize=(5 * len(before), 3), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(before), squeeze=False)[0], before.items(), strict=True):
        known = np.isfinite(values)
        span = (float(values[known].min()), float(values[known].max()))
        axes.hist(values[known], bins=60, range=span, color="0.85", label="before")
        axes.hist(values[known & kept], bins=60, range=span, color="C0", label="kept")
        axes.set(xlabel=name, ylabel="images")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def save_grid(dataset: Dataset, rows: np.ndarray, path: Path) -> None:
    images = [image.convert("RGB") for image in dataset.select(rows)["image"]]
    image_grid(images, zoom=2 if images[0].width < 96 else 1).save(path)


def write_card(
    folder: Path,
    dataset: Dataset,
    selections: dict[str, Selection],
    kept: np.ndarray,
    num_images: int,
    source: dict[str, Any],
    settings: DatasetSettings,
) -> None:
    """Write `README.md`, `provenance.json` and pictures into the folder of an extreme set.

    Args:
        dataset: the N images before filtering.
        selections: by attribute.
        kept: (N,) mask of what was kept in the end.
        num_images: after oversampling.
        source: its record.
    """
    packages = ("torch", "datasets", "timm", "transformers", "accelerate", "diffusers-multiguidance")
    provenance = {
        "date": date.today().isoformat(),
        "source": source,
        "num_images": num_images,
        "attributes": {attribute: selection.record for attribute, selection in selections.items()},
        "flags": dataclasses.asdict(settings),
        "versions": {name: version(name) for name in packages},
    }
    rng = np.random.default_rng(settings.seed)
    for attribute, selection in selections.items():
        record = selection.record
        quantity = {"factor": attribute, "index": attribute, "score": f"score of {attribute}"}.get(
            record["by"], f"log-odds of {attribute}"
        )
        before = {quantity: selection.scores}
        if f"factor_{attribute}" in dataset.column_names and record["by"] != "factor":
            before[f"true {attribute}"] = np.asarray(dataset[f"factor_{attribute}"])
        save_histograms(before, kept, folder / f"histogram_{attribute}.png")
        ends = [np.flatnonzero(kept & (selection.labels == label)) for label in (0, 1)]
        shown = [rng.permutation(end)[: PICTURED // 2] for end in ends]
        shown = [end[: min(map(len, shown))] for end in shown]
        save_grid(dataset, np.concatenate(shown), folder / f"kept_{attribute}.png")
        contradicting = np.flatnonzero(selection.contradicting)
        if len(contradicting):
            save_grid(dataset, rng.permutation(contradicting)[:PICTURED], folder / f"contradicting_{attribute}.png")
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2, default=str) + "\n")
    card_data = DatasetCardData(
        tags=["diffusers-multiguidance", "extremes"],
        task_categories=["unconditional-image-generation"],
        pretty_name=f"{settings.dataset}, extremes of {' and '.join(selections)}",
    )
    card = DatasetCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=card_data.pretty_name,
        ends=" and ".join(f"`{attribute}`" for attribute in selections),
        command=command_line(settings, "build_dataset"),
        source=f"{source['num_images']} images",
        date=provenance["date"],
        num_images=num_images,
        attributes=provenance["attributes"],
        assumed_error=ASSUMED_ERROR,
        delta=settings.delta,
        skipped=source["skipped"],
    )
    card.save(folder / "README.md")


def push_data_set(folder: Path, repo_id: str) -> None:
    """Push a saved data set in one commit: the images as Parquet, card, provenance and pictures.

    Raises:
        ValueError: as `hub.publish.publish`.
    """
    dataset: Any = load_from_disk(folder)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / folder.resolve().name
        (staged / "data").mkdir(parents=True)
        num_shards = 1 + dataset.data.nbytes // SHARD_BYTES
        for number in range(num_shards):
            shard = dataset.shard(num_shards, number, contiguous=True)
            shard.to_parquet(staged / "data" / f"train-{number:05d}-of-{num_shards:05d}.parquet")
        for path in [folder / "provenance.json", *folder.glob("*.png")]:
            shutil.copy(path, staged)
        if (folder / "README.md").exists():
            card = DatasetCard.load(folder / "README.md")
        else:
            metadata = DatasetCardData(tags=["diffusers-multiguidance"], pretty_name=staged.name).to_yaml()
            card = DatasetCard(f"---\n{metadata}\n---\n\n# {staged.name}\n\n{len(dataset)} images.\n")
        # The pictures of the card are no part of the data.
        card.data["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]},
        ]
        card.save(staged / "README.md")
        publish_folder(staged, repo_id, "dataset", "provenance.json", '"source"')
