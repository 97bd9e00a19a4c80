"""Write metadata.csv beside the photographs of coffee leaves in github.com/esgario/lara2018, for leaves.yaml.

    git clone --depth 1 https://github.com/esgario/lara2018
    python training/recipes/leaves_metadata.py lara2018

Columns: `file_name`, `severity` (0 to 4, as its authors have it) and `disease`, the diseased share of the surface over
0.15 and at most 1, where it is known: by a mask, or because the leaf is healthy.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FULL = 0.15  # of the surface, from which on a leaf counts as wholly diseased


def lesion_share(mask: Path) -> float:
    """Diseased part of a leaf's surface."""
    red, green, _ = np.moveaxis(np.asarray(Image.open(mask).convert("RGB")) > 127, -1, 0)
    return float(red.sum() / max(1, (red | green).sum()))


def write_metadata(repository: Path) -> Path:
    """Returns: `classification/dataset/leaf/metadata.csv` in it."""
    folder = repository / "classification" / "dataset"
    masks = {
        path.name.split("_")[0]: path for path in repository.glob("segmentation/dataset/annotations/*/*_mask.png")
    }
    written = folder / "leaf" / "metadata.csv"
    with open(folder / "dataset.csv", newline="") as source, open(written, "w", newline="") as target:
        rows = csv.writer(target)
        rows.writerow(["file_name", "severity", "disease"])
        for row in csv.DictReader(source):
            mask, healthy = masks.get(row["id"]), row["severity"] == "0"
            share = "0" if healthy else "" if mask is None else f"{min(1, lesion_share(mask) / FULL):.4f}"
            rows.writerow([f"{row['id']}.jpg", row["severity"], share])
    return written


if __name__ == "__main__":
    print(write_metadata(Path(sys.argv[1])))
