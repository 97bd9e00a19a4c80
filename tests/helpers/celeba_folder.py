"""Rendered faces in a folder of CelebA's format, which cannot be had here."""

import csv
from pathlib import Path
from typing import Any

from diffusers_multiguidance.data.faces import LABEL_NOISE, render_row

FACTORS = ("Smiling", "Hair", "Pale_Skin")  # the latents of rendered faces


def write_celeba_folder(num_images: int, folder: Path, seed: int = 0) -> None:
    """Kaggle's format, 178x218, and `factors.csv`, the true latents, which CelebA does not have.

    Of ten images in a row eight are for training, one is for validation and one for the test.
    """
    tables: dict[str, list[list[Any]]] = {
        "list_attr_celeba": [["image_id", *LABEL_NOISE]],
        "list_eval_partition": [["image_id", "partition"]],
        "factors": [["image_id", *FACTORS]],
    }
    (folder / "img_align_celeba").mkdir(parents=True)
    for number in range(num_images):
        face, name = render_row(seed, number, 178, 218), f"{number + 1:06d}.jpg"
        face["image"].save(folder / "img_align_celeba" / name, quality=95)
        tables["list_attr_celeba"].append([name, *(2 * face[attribute] - 1 for attribute in LABEL_NOISE)])
        tables["list_eval_partition"].append([name, max(0, number % 10 - 7)])
        tables["factors"].append([name, *(face[f"factor_{factor}"] for factor in FACTORS)])
    for table, rows in tables.items():
        with (folder / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
