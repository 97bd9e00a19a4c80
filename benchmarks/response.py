"""What classifiers answer between the ends: the response to a circle's position, and its heat map (paper, figure 7b).

    python benchmarks/response.py pipelines/circles-32 --out runs/benchmarks/response

For one pipeline or several. Circles are rendered at every place, noise is added, and the second class's probability is
averaged over the noise. Writes `response.json`, `response.png` (log-odds by position) and `heatmap.png` (by place).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from diffusers_multiguidance.data.circles import RADIUS, position, render_circle
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.generate import load_pipeline
from diffusers_multiguidance.utils.files import add_to_folder
from record import save_results

NOISE_LEVELS = (0.0, 1 / 3, 2 / 3)  # share of the noise schedule
DRAWS = 8  # of the noise


@dataclass
class Response:
    """Log-odds of "right" for the circle centred in each place, the mean over the noise; by noise level (y, x)."""

    z: np.ndarray  # position of each column
    log_odds: list[np.ndarray]

    def in_gap(self) -> list[np.ndarray]:
        """By noise level: log-odds over the positions between the ends, the mean over all heights."""
        return [level.mean(axis=0)[(self.z > 0.2) & (self.z < 0.8)] for level in self.log_odds]

    def rises(self) -> list[float]:
        """By noise level: share of the neighbouring positions in the gap from which to which the log-odds rise."""
        return [float((np.diff(curve) > 0).mean()) for curve in self.in_gap()]


@torch.no_grad()
def respond(loaded: Any, seed: int = 0) -> Response:
    """The response of a pipeline's classifiers of `position`."""
    diffusion = GaussianDiffusion.from_scheduler(loaded.scheduler)
    size = loaded.image_size[0]
    places = range(RADIUS, size - RADIUS)
    circles = np.stack([render_circle(x, y, size) for y in places for x in places])
    x0 = torch.from_numpy(circles)[:, None].float() / 127.5 - 1
    levels = []
    for noise_level in NOISE_LEVELS:
        index = torch.full((len(x0),), round(noise_level * (len(diffusion) - 1)))
        generator, answers = torch.Generator().manual_seed(seed), []
        for _ in range(DRAWS if noise_level else 1):
            noise = torch.randn(x0.shape, generator=generator)
            x_t = diffusion.add_noise(x0, noise, index) if noise_level else x0
            logits = loaded.classifiers(x_t, diffusion.timesteps[index]).logits["position"]
            answers.append(logits[:, 1] - logits[:, 0])
        levels.append(torch.stack(answers).mean(0).reshape(len(places), len(places)).numpy())
    return Response(position(np.array(places), size), levels)


def save_responses(responses: Mapping[str, Response], path: Path) -> None:
    """Log-odds by position, a panel for each noise level."""
    figure = Figure(figsize=(3.6 * len(NOISE_LEVELS) + 2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(NOISE_LEVELS), sharey=True)
    for number, (axes, noise_level) in enumerate(zip(panels, NOISE_LEVELS, strict=True)):
        for name, response in responses.items():
            axes.plot(response.z, response.log_odds[number].mean(axis=0), ".-", markersize=3, label=name)
        axes.axhline(0, color="0.8", zorder=0)
        axes.set(title=f"t/T = {noise_level:.2f}", xlabel="position")
    panels[0].set(ylabel="log-odds of right")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def save_response_maps(responses: Mapping[str, Response], path: Path) -> None:
    """The probability of "right" by place, a row for each pipeline and a column for each noise level (figure 7b)."""
    figure = Figure(figsize=(2.4 * len(NOISE_LEVELS), 2.2 * len(responses)), layout="constrained")
    grid = figure.subplots(len(responses), len(NOISE_LEVELS), squeeze=False)
    for row, (name, response) in zip(grid, responses.items(), strict=True):
        for axes, noise_level, log_odds in zip(row, NOISE_LEVELS, response.log_odds, strict=True):
            picture = axes.imshow(1 / (1 + np.exp(-log_odds)), vmin=0, vmax=1)
            axes.set(title=f"t/T = {noise_level:.2f}", xticks=[], yticks=[])
        row[0].set(ylabel=name)
        figure.colorbar(picture, ax=row, shrink=0.8)
    figure.savefig(path, dpi=120)


def main(
    pipelines: list[Path],
    out: Annotated[Path, typer.Option()],
) -> None:
    responses = {folder.name: respond(load_pipeline(folder)) for folder in pipelines}
    results: dict[str, Any] = {}
    for name, response in responses.items():
        inside = response.z[(response.z > 0.2) & (response.z < 0.8)]
        results[name] = {
            "noise_levels": NOISE_LEVELS,
            "share_of_steps_that_rise_in_gap": response.rises(),
            "rank_correlation_in_gap": [float(spearmanr(inside, curve).statistic) for curve in response.in_gap()],
            "z": response.z.round(4).tolist(),
            "log_odds": [level.mean(axis=0).round(3).tolist() for level in response.log_odds],
        }
    with add_to_folder(out) as folder:
        save_results(folder / "response.json", results)
        save_responses(responses, folder / "response.png")
        save_response_maps(responses, folder / "heatmap.png")


if __name__ == "__main__":
    typer.run(main)
