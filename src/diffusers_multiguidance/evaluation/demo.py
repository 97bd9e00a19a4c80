"""The demo's picture: unguided and guided samples side by side, above the histogram of what they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..utils.images import image_grid, to_pil
from .evaluators import Evaluator
from .report import draw_histogram, summarize


def write_demo(
    images_by_name: dict[str, np.ndarray], evaluate: Evaluator, attribute: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write `demo.png` and `demo.json` into `folder`; return the figures by name."""
    values = {name: evaluate(images) for name, images in images_by_name.items()}
    summaries = {name: summarize(measured) for name, measured in values.items()}
    (folder / "demo.json").write_text(json.dumps(summaries, indent=2) + "\n")

    figure = Figure(figsize=(9, 7.2), layout="constrained")
    axes: Any = figure.subplot_mosaic(
        [list(images_by_name), ["histogram"] * len(images_by_name)], height_ratios=[2, 1]
    )
    for name, images in images_by_name.items():
        grid = image_grid(to_pil(images), columns=8)
        axes[name].imshow(grid, cmap="gray", vmin=0, vmax=255)
        axes[name].set_title(f"{name}: {100 * summaries[name]['share_in_gap']:.0f} % in the unseen middle")
        axes[name].axis("off")
    draw_histogram(axes["histogram"], values, attribute)
    figure.savefig(folder / "demo.png", dpi=120)
    return summaries
