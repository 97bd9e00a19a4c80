"""The demo's picture: unguided samples, the same noises from one end to the other, and the histogram of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..utils.grids import image_grid, to_pil
from .control import control_figures
from .evaluators import Evaluator
from .summary import draw_histogram, summarize


def write_demo(
    unguided: np.ndarray, sweep: np.ndarray, targets: np.ndarray, evaluate: Evaluator, attribute: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write `demo.png`, `demo.json` and, without anything around it, `sweep.png` into `folder`.

    Args:
        unguided: (N, H, W, C) uint8.
        sweep: (rows, T, H, W, C) uint8; every row from one noise.
        targets: (T,), of the columns.

    Returns:
        Those of `summarize` for "unguided" and of `control_figures` for "multi-guidance".
    """
    rows, columns, height, width, channels = sweep.shape
    guided = sweep.reshape(-1, height, width, channels)
    values = {"unguided": evaluate(unguided), "multi-guidance": evaluate(guided)}
    summaries = {
        "unguided": summarize(values["unguided"]),
        "multi-guidance": control_figures(values["multi-guidance"].reshape(rows, columns).T, targets),
    }
    (folder / "demo.json").write_text(json.dumps(summaries, indent=2) + "\n")
    image_grid(to_pil(guided), columns).save(folder / "sweep.png")

    beside = -(-len(unguided) // rows)
    figure = Figure(figsize=(12, 6 * height / width + 2.6), layout="constrained")
    axes: Any = figure.subplot_mosaic(
        [list(values), ["histogram"] * 2],
        width_ratios=[beside, columns],
        height_ratios=[6 * height / width, 2],
    )
    in_gap = f"{100 * summaries['unguided']['share_in_gap']:.0f} % in the middle, which training did not show"
    for name, images, across, title in (
        ("unguided", unguided, beside, f"unguided: {in_gap}"),
        ("multi-guidance", guided, columns, "multi-guidance: each row starts from the same noise"),
    ):
        axes[name].imshow(image_grid(to_pil(images), across, zoom=1), cmap="gray", vmin=0, vmax=255)
        axes[name].set(title=title, xticks=[], yticks=[])
    centres = (np.arange(columns) + 0.5) * (width + 1)
    axes["multi-guidance"].set_xticks(centres, [f"{target:.3g}" for target in targets])
    axes["multi-guidance"].set_xlabel(f"target of {attribute}")
    draw_histogram(axes["histogram"], values, attribute)
    figure.savefig(folder / "demo.png", dpi=150)
    return summaries
