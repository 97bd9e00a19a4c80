"""Ways to train the classifiers that guide: how their response rises between the ends, and where samples land.

    python benchmarks/classifiers.py pipelines/circles-32 --out runs/benchmarks/classifiers

Trains each way anew on circles at the two ends, all alike but for what the row says: plain sets, label smoothing,
spectral norm with a bound for each layer, a penalty on the gradient, and one network distilled from a set. The
denoiser, the scale and the guided steps are the pipeline's; nothing is calibrated. Writes `classifiers.json`,
`response.png`, `heatmap.png` and the pipeline with the distilled network, `distilled/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize

from diffusers_multiguidance.curation.extremes import select_by_factor
from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.evaluation.control import TARGETS, control_figures
from diffusers_multiguidance.evaluation.evaluators import CirclePosition
from diffusers_multiguidance.evaluation.uniformity import share_in_gap, share_malformed
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.models import NoisyClassifier, NoisyClassifierSet
from diffusers_multiguidance.utils.files import add_to_folder
from record import save_results
from response import respond, save_response_maps, save_responses

BATCH = 64
WARMUP = 50
SHOWN = ("rises", "share_in_gap", "share_malformed", "rank_correlation", "mean_absolute_error")

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # of logits, labels, x_t, t


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    return lambda logits, labels, x_t, t: F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def gradient_penalty(weight: float) -> Loss:
    """Cross-entropy plus the squared gradient of the log-odds, averaged over the images."""

    def loss(logits: torch.Tensor, labels: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        gradient = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), x_t, create_graph=True)[0]
        return F.cross_entropy(logits, labels) + weight * gradient.square().sum((1, 2, 3)).mean()

    return loss


def distillation(teacher: NoisyClassifierSet) -> Loss:
    """As `train_classifier.py --teacher` does it."""

    def loss(logits: torch.Tensor, labels: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            taught = teacher(x_t, t).logits["position"]
        return F.smooth_l1_loss(logits.log_softmax(dim=1), taught.log_softmax(dim=1))

    return loss


class Times(nn.Module):
    """Multiplies a weight of spectral norm 1 by the bound of its layer."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.bound * weight


def bound_layers(classifier: NoisyClassifier, bound: float) -> None:
    """Spectral norm by power iteration: every weight of a layer, as a matrix, gets the norm `bound`."""
    for module in list(classifier.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrizations.spectral_norm(module)
            parametrize.register_parametrization(module, "weight", Times(bound))


def train(
    data: tuple[torch.Tensor, torch.Tensor],
    diffusion: GaussianDiffusion,
    seed: int,
    name: str,
    loss: Loss,
    steps: int,
    bound: float | None = None,
) -> NoisyClassifier:
    """A classifier like those of training/recipes/circles-32.yaml."""
    torch.manual_seed(seed)
    images, labels = data
    classifier = NoisyClassifier(
        {"position": ["left", "right"]},
        images.shape[-1],
        images.shape[1],
        block_out_channels=(16, 32, 32, 32),
        attention_resolutions=(),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
    )
    if bound is not None:
        bound_layers(classifier, bound)
    classifier.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - WARMUP),
        ],
        milestones=[WARMUP],
    )
    for _ in track(range(steps), name):
        chosen = torch.randint(len(images), (BATCH,))
        index = torch.randint(len(diffusion), (BATCH,))
        x_t = diffusion.add_noise(images[chosen], torch.randn(BATCH, *images.shape[1:]), index).requires_grad_()
        timesteps = diffusion.timesteps[index]
        # The only attention whose gradient can be differentiated again.
        with sdpa_kernel(SDPBackend.MATH):
            value = loss(classifier(x_t, timesteps).logits["position"], labels[chosen], x_t, timesteps)
            optimizer.zero_grad()
            value.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    num_classifiers: Annotated[int, typer.Option(help="Of the large set; the small ones have three.")] = 10,
    steps: Annotated[int, typer.Option(help="Of training; three times as many for the distilled network.")] = 400,
    num_images: Annotated[int, typer.Option(help="At 0.5.")] = 200,
    num_by_target: Annotated[int, typer.Option(help="For each of nine targets.")] = 16,
) -> None:
    loaded = load_pipeline(pipeline)
    diffusion = GaussianDiffusion.from_scheduler(loaded.scheduler)
    size = loaded.image_size[0]
    rendered = circles(20_000, size)
    rendered = rendered.select(np.flatnonzero(select_by_factor(rendered, "position").kept))
    pixels = np.stack([np.asarray(image) for image in rendered["image"]])[:, None]
    data = torch.from_numpy(pixels).float() / 127.5 - 1, torch.tensor(rendered["position"])

    def members(name: str, loss: Loss, count: int = 3, bound: float | None = None) -> list[NoisyClassifier]:
        return [train(data, diffusion, seed, f"{name}, {seed + 1}", loss, steps, bound) for seed in range(count)]

    plain = members("plain", cross_entropy(), num_classifiers)
    teacher = NoisyClassifierSet.from_members(plain)
    distilled = train(data, diffusion, 0, "distilled", distillation(teacher), 3 * steps)
    rows = {
        "1 plain": plain[:1],
        "3 plain": plain[:3],
        f"{num_classifiers} plain": plain,
        f"1 distilled from {num_classifiers}": [distilled],
        "3, label smoothing 0.02": members("label smoothing 0.02", cross_entropy(0.02)),
        "3, label smoothing 0.1": members("label smoothing 0.1", cross_entropy(0.1)),
        "3, every layer of norm 1": members("norm 1", cross_entropy(), bound=1.0),
        "3, every layer of norm 2": members("norm 2", cross_entropy(), bound=2.0),
        "3, gradient penalty 0.01": members("gradient penalty 0.01", gradient_penalty(0.01)),
        "3, gradient penalty 0.1": members("gradient penalty 0.1", gradient_penalty(0.1)),
    }
    evaluate = CirclePosition()
    results, responses = {}, {}
    table = Table("classifiers", *(name.replace("_", " ") for name in SHOWN), title=str(pipeline))
    for name, guides in rows.items():
        loaded.classifiers = NoisyClassifierSet.from_members(guides)
        responses[name] = respond(loaded)
        started = time.monotonic()
        call: dict[str, Any] = {"calibration": None}
        middle = evaluate(generate(loaded, num_images, 0, description=name, target={"position": 0.5}, **call))
        seconds = (time.monotonic() - started) / num_images
        obtained = [
            evaluate(
                generate(
                    loaded, num_by_target, 1000 + k, description=f"{name}, {aim}", target={"position": aim}, **call
                )
            )
            for k, aim in enumerate(TARGETS.tolist())
        ]
        results[name] = {
            "rises": responses[name].rises(),
            "share_in_gap": share_in_gap(middle),
            "share_malformed": share_malformed(middle),
            **{key: value for key, value in control_figures(np.stack(obtained)).items() if key != "share_malformed"},
            "seconds_per_image": seconds,
        }
        shown = [np.round(results[name][figure], 3) for figure in SHOWN]
        table.add_row(name, *(str(value.tolist()) for value in shown))
    Console().print(table)
    loaded.classifiers = NoisyClassifierSet.from_members([distilled])
    with add_to_folder(out) as folder:
        save_results(folder / "classifiers.json", results)
        save_responses(responses, folder / "response.png")
        save_response_maps(responses, folder / "heatmap.png")
    loaded.save_pretrained(out / "distilled")


if __name__ == "__main__":
    typer.run(main)
