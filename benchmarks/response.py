"""What classifiers answer between the ends: the response to a circle's position, and its heat map (paper, figure 7b).

    python benchmarks/response.py pipelines/circles --out runs/benchmarks/response

For one pipeline or several. Circles are drawn at every place, noise is added, and the second class's probability is
averaged over the noise. Writes `response.json`, `response.png` (log-odds by position) and `heatmap.png` (by place).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from diffusers_multiguidance.cli import load_pipeline
from diffusers_multiguidance.data.circles import RADIUS, draw_circle, position
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.files import add_to_folder

NOISE_LEVELS = (0.0, 1 / 3, 2 / 3)  # share of the noise schedule
DRAWS = 8  # of the noise


@torch.no_grad()
def log_odds(loaded: Any, noise_level: float, seed: int = 0) -> torch.Tensor:
    """Mean over the noise, for the circle centred in each place; (y, x)."""
    diffusion = GaussianDiffusion.from_scheduler(loaded.scheduler)
    size = loaded.unet.config.sample_size
    places = range(RADIUS, size - RADIUS)
    circles = np.stack([draw_circle(x, y, size) for y in places for x in places])
    x0 = torch.from_numpy(circles)[:, None].float() / 127.5 - 1
    index = torch.full((len(x0),), round(noise_level * (len(diffusion) - 1)))
    generator, answers = torch.Generator().manual_seed(seed), []
    for _ in range(DRAWS if noise_level else 1):
        noise = torch.randn(x0.shape, generator=generator)
        x_t = diffusion.add_noise(x0, noise, index) if noise_level else x0
        logits = loaded.classifiers(x_t, diffusion.timesteps[index]).logits["position"]
        answers.append(logits[:, 1] - logits[:, 0])
    return torch.stack(answers).mean(0).reshape(len(places), len(places))


def main(
    pipelines: list[Path],
    out: Annotated[Path, typer.Option()],
) -> None:
    results: dict[str, Any] = {}
    curves = Figure(figsize=(3.4 * len(NOISE_LEVELS), 3), layout="constrained")
    maps = Figure(figsize=(2.4 * len(NOISE_LEVELS), 2.5 * len(pipelines)), layout="constrained")
    curve_axes = curves.subplots(1, len(NOISE_LEVELS), sharey=True)
    map_axes = maps.subplots(len(pipelines), len(NOISE_LEVELS), squeeze=False)
    for row, folder in zip(map_axes, pipelines, strict=True):
        loaded = load_pipeline(folder)
        size = loaded.unet.config.sample_size
        z = np.array([position(x, size) for x in range(RADIUS, size - RADIUS)])
        between = (z > 0.2) & (z < 0.8)
        results[str(folder)] = {}
        for level, heat, curve in zip(NOISE_LEVELS, row, curve_axes, strict=True):
            answers = log_odds(loaded, level)
            by_position = answers.mean(0).numpy()
            rises = np.diff(by_position[between])
            results[str(folder)][f"t/T = {level:.2f}"] = {
                "rank_correlation_in_gap": float(spearmanr(z[between], by_position[between]).statistic),
                "share_of_steps_that_rise_in_gap": float((rises > 0).mean()),
                "log_odds": dict(zip(map(str, z.round(3)), by_position.round(3).tolist(), strict=True)),
            }
            curve.plot(z, by_position, ".-", label=folder.name)
            curve.set(title=f"t/T = {level:.2f}", xlabel="position")
            picture = heat.imshow(answers.sigmoid(), vmin=0, vmax=1)
            heat.set(title=f"{folder.name}, t/T = {level:.2f}", xticks=[], yticks=[])
        maps.colorbar(picture, ax=row, label="probability of right", shrink=0.8)
    curve_axes[0].set(ylabel="log-odds of right")
    curve_axes[0].legend(frameon=False)
    print(json.dumps(results, indent=2))
    with add_to_folder(out) as folder:
        (folder / "response.json").write_text(json.dumps(results, indent=2) + "\n")
        curves.savefig(folder / "response.png", dpi=120)
        maps.savefig(folder / "heatmap.png", dpi=120)


if __name__ == "__main__":
    typer.run(main)
