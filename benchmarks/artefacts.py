"""Signs of artefacts that need no evaluator: how well does each tell malformed images from whole ones?

    python benchmarks/artefacts.py pipelines/circles-32 --attribute position --out runs/benchmarks/artefacts
    python benchmarks/artefacts.py pipelines/faces-rendered --attribute Smiling --evaluator rendered-mouths \
        --scheduler sde-dpmsolver++ --num-images 150 --out runs/benchmarks/artefacts-faces

The truth is an evaluator that says NaN of a malformed image, or for rendered faces whether the mouth is unlike every
one that the renderer makes: further from the nearest of 8,000 than 95 % of other rendered ones are. Three samples:
unguided, guided, and guided in fewer steps, which leaves more images malformed. Writes `artefacts.json` and for each
sample `<name>.png`, its 64 images of the highest trajectory variance, the highest first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from diffusers_multiguidance.cli import EvaluatorName, SchedulerName
from diffusers_multiguidance.data.faces import Latents, render_face
from diffusers_multiguidance.data.transforms import scale_pixels
from diffusers_multiguidance.denoising import Denoiser, DenoisingStep
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.evaluation.artefacts import TrajectoryVariance
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results

STARTS = (0.0, 0.5, 0.7, 0.8)  # of the windows of the trajectory variance


def render_faces(count: int, seed: int) -> np.ndarray:
    """(count, 32, 32, 3) uint8, each latent spread evenly."""
    rngs = [np.random.default_rng((seed, number)) for number in range(count)]
    return np.stack([render_face(Latents(*rng.random(3)), rng, 32, 32) for rng in rngs])


class RenderedMouths:
    """NaN for a generated face of 32x32 pixels whose mouth is unlike every rendered one, else 0.

    Args:
        num_known: rendered faces that the mouths are compared with, and their mirror images.
    """

    def __init__(self, num_known: int = 8000) -> None:
        known = render_faces(num_known, seed=1)
        self.known = np.concatenate([self._mouths(known), self._mouths(known[:, :, ::-1])])
        self.whole = render_faces(300, seed=2)
        self.usual = np.quantile(self.distances(self.whole), 0.95)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.where(self.distances(images) <= self.usual, 0.0, np.nan)  # that of a flat mouth is NaN

    def distances(self, images: np.ndarray) -> np.ndarray:
        """One minus the correlation of the grey values around the mouth with the nearest rendered one's; (N,)."""
        return 1 - (self._mouths(images) @ self.known.T).max(axis=1)

    def area_for_crooked(self, pixels: int) -> float:
        """Area under the ROC curve for rendered mouths whose one half is that much too low: is this truth true?"""
        crooked = self.whole.copy()
        crooked[:, 17:28, 7:16] = np.roll(crooked[:, 17:28, 7:16], pixels, axis=1)
        distances = np.concatenate([self.distances(self.whole), self.distances(crooked)])
        return float(roc_auc_score(np.repeat([0, 1], len(crooked)), distances))

    @staticmethod
    def _mouths(images: np.ndarray) -> np.ndarray:
        grey = images[:, 17:28, 7:25].mean(axis=-1).reshape(len(images), -1)
        grey -= grey.mean(axis=1, keepdims=True)
        return (grey / np.linalg.norm(grey, axis=1, keepdims=True)).astype(np.float32)


def distance_to_blurred(images: np.ndarray) -> np.ndarray:
    """Root mean square between an image and itself after a Gaussian blur by one pixel; (N,), share of the range."""
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 1).reshape(image.shape) for image in images])
    return np.sqrt(np.square(images / 255 - blurred / 255).mean(axis=(1, 2, 3)))


@torch.no_grad()
def disagreement(classifiers: Any, attribute: str, samples: torch.Tensor) -> np.ndarray:
    """Standard deviation of what the classifiers of a set say of finished samples (N, C, H, W); (N,)."""
    members = [member for member in classifiers.members if attribute in member.attributes]
    answers = [member(samples, 0).logits[attribute].softmax(dim=1)[:, 1] for member in members]
    return torch.stack(answers).std(dim=0, correction=0).numpy()


@torch.no_grad()
def denoised_again(pipeline: Any, samples: torch.Tensor, share: float = 0.2, seed: int = 0) -> np.ndarray:
    """How far the denoiser leads finished samples away that got noise up to that share of the timesteps; (N,)."""
    diffusion = GaussianDiffusion.from_scheduler(pipeline.scheduler, 50)
    index = int(share * 50)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    signal = diffusion.alphas_cumprod[index]
    x_t = float(signal) ** 0.5 * samples + float(1 - signal) ** 0.5 * noise
    output = Denoiser(pipeline.denoiser).predict(x_t, diffusion.timesteps[index])
    again = diffusion.p_mean_variance(output, x_t, index).pred_x0
    return (again - samples).square().flatten(1).mean(dim=1).sqrt().numpy()


def signs(
    pipeline: Any, attribute: str, num_images: int, name: str, call: dict[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images (N, H, W, C) uint8, and by its name what each sign says of every one, the more the worse."""
    variances = {f"trajectory variance from {100 * start:.0f} % of the steps": start for start in STARTS}
    watching = {sign: TrajectoryVariance(start) for sign, start in variances.items()}

    def watch(step: DenoisingStep) -> None:
        for variance in watching.values():
            variance(step)

    images = generate(pipeline, num_images, description=name, watch=watch, **call)
    samples = pipeline.encode(scale_pixels(torch.from_numpy(images)))
    return images, {
        **{sign: variance.scores() for sign, variance in watching.items()},
        "denoised again after noise": denoised_again(pipeline, samples),
        "disagreement of the classifiers": disagreement(pipeline.classifiers, attribute, samples),
        "distance to itself when blurred": distance_to_blurred(images),
    }


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    evaluator: EvaluatorName = None,
    scheduler: SchedulerName = None,
    num_images: Annotated[int, typer.Option(help="Of each sample.")] = 500,
    few_steps: Annotated[int, typer.Option(help="In which to guide the third sample.")] = 10,
) -> None:
    loaded = load_pipeline(pipeline, scheduler)
    mouths = RenderedMouths() if evaluator == "rendered-mouths" else None
    evaluate = mouths or load_evaluator(evaluator or find_evaluator(pipeline, attribute))
    guided = {"target": {attribute: 0.5}}
    few = {**guided, "num_inference_steps": few_steps, "calibration": None}
    results: dict[str, Any] = {}
    if mouths is not None:
        results["area_under_roc_of_the_truth"] = {
            f"{pixels} pixels too low": mouths.area_for_crooked(pixels) for pixels in (1, 2)
        }
    with add_to_folder(out) as folder:
        for name, call in (("unguided", {}), ("guided", guided), ("few steps", few)):
            images, said = signs(loaded, attribute, num_images, name, call)
            malformed = np.isnan(evaluate(images))
            results[name] = {"num_images": num_images, "num_malformed": int(malformed.sum())}
            if 0 < malformed.sum() < num_images:
                results[name]["signs"] = {
                    sign: {
                        "area_under_roc": float(roc_auc_score(malformed, scores)),
                        "rank_correlation": float(spearmanr(malformed, scores).statistic),
                    }
                    for sign, scores in said.items()
                }
            print(name, results[name])
            worst = np.argsort(-said["trajectory variance from 70 % of the steps"])[:64]
            image_grid(to_pil(images[worst])).save(folder / f"{name.replace(' ', '-')}.png")
        save_results(folder / "artefacts.json", {"call": loaded.resolve_call(), "few_steps": few_steps, **results})


if __name__ == "__main__":
    typer.run(main)
