"""Edits of rendered faces, inversion and reconstruction by number of steps, and interpolated latents.

    python benchmarks/editing.py --out runs/benchmarks/editing

Writes `editing.json`, `edits.png` (before, after) and `interpolation-faces.png` and `interpolation-circles.png` (by
slerp, then by lerp).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import DPMSolverMultistepInverseScheduler, DPMSolverMultistepScheduler
from PIL import Image

from diffusers_multiguidance import MultiGuidanceEditPipeline
from diffusers_multiguidance.data.circles import RADIUS, position, render_circle
from diffusers_multiguidance.data.faces import LABEL_NOISE, Latents, render_face
from diffusers_multiguidance.denoising import Denoiser, denoise
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.evaluation.uniformity import share_in_gap, share_malformed
from diffusers_multiguidance.generate import image_generators
from diffusers_multiguidance.pipelines.multiguidance_edit import slerp
from diffusers_multiguidance.schedulers import StockSteps
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results

LOW, HIGH = (0.0, 0.2), (0.8, 1.0)  # values of the ends, which training showed
COLUMNS = 16
STRIPS = 3  # by either method
FRAMES = 9  # of a strip


def main(
    out: Annotated[Path, typer.Option()],
    faces: Annotated[Path, typer.Option(help="A pipeline of rendered faces.")] = Path("pipelines/faces-rendered"),
    circles: Annotated[Path, typer.Option(help="One of circles.")] = Path("pipelines/circles-32"),
    target: Annotated[float, typer.Option(help="Of the smile.")] = 0.5,
    num_edited: Annotated[int, typer.Option()] = 200,
    num_reconstructed: Annotated[int, typer.Option(help="Of each pipeline.")] = 16,
    num_pairs: Annotated[int, typer.Option(help="Of circles from either end.")] = 100,
    num_inference_steps: Annotated[list[int] | None, typer.Option(help="Of reconstruction.")] = None,
    seed: Annotated[int, typer.Option(help="Of the rendered images; no training had it.")] = 100,
) -> None:
    edit, edit_circles = (MultiGuidanceEditPipeline.from_pretrained(folder) for folder in (faces, circles))
    for pipeline in (edit, edit_circles):
        pipeline.set_progress_bar_config(disable=True)
    low, mouths = render_faces(LOW, num_edited, edit.image_size[0], seed)
    high, _ = render_faces(HIGH, num_reconstructed, edit.image_size[0], seed)
    left, right = (random_circles(end, num_pairs, edit_circles.image_size[0], seed) for end in (LOW, HIGH))
    half = num_reconstructed // 2
    there_and_back = {
        "faces": (edit, np.concatenate([low[:half], high[:half]])),
        "circles": (edit_circles, np.concatenate([left[:half], right[:half]])),
    }

    edits, edited = edit_faces(edit, faces, low, mouths, target)
    results: dict[str, Any] = {"call": edit.resolve_call(), "edits": edits, "num_reconstructed": 2 * half}
    results["reconstruction"] = [
        {
            "num_inference_steps": steps,
            "strength": strength,
            **{name: reconstruct(*those, steps, strength) for name, those in there_and_back.items()},
        }
        for steps in num_inference_steps or [10, 20, 50, 100, 250]
        for strength in (0.5, 1.0)
    ]
    results["midpoints"] = midpoints(edit_circles, left, right)
    with add_to_folder(out) as folder:
        save_results(folder / "editing.json", results)
        rows = [images[start : start + COLUMNS] for start in (0, COLUMNS) for images in (low, edited)]
        image_grid(to_pil(np.concatenate(rows)), COLUMNS).save(folder / "edits.png")
        strips(edit, low, high).save(folder / "interpolation-faces.png")
        strips(edit_circles, left, right).save(folder / "interpolation-circles.png")
    print(results)


def render_faces(smiles: tuple[float, float], count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces that smile so much, (N, H, W, 3) uint8, and where each one's mouth may be, (N, H, W).

    That is where the lower half of the same face differs from one smile to another.
    """
    faces: list[np.ndarray] = []
    mouths: list[np.ndarray] = []
    number = 0
    while len(faces) < count:
        smile = np.random.default_rng((seed, number)).random()
        if smiles[0] <= smile <= smiles[1]:
            faces.append(render_again(seed, number, smile, size))
            others = np.stack([render_again(seed, number, other, size) for other in np.linspace(0, 1, 5)])
            mouths.append((others != faces[-1]).any(axis=(0, 3)))
            mouths[-1][: size // 2] = False  # brows and eyes, which show a smile too
        number += 1
    return np.stack(faces), np.stack(mouths)


def render_again(seed: int, number: int, smile: float, size: int) -> np.ndarray:
    """Face number `number` of a seed, see `data.faces.render_row`, with the smile that is wanted."""
    rng = np.random.default_rng((seed, number))
    _, hair, skin = rng.random(3)
    rng.random(len(LABEL_NOISE))
    return render_face(Latents(smile, hair, skin), rng, size, size)


def random_circles(positions: tuple[float, float], count: int, size: int, seed: int) -> np.ndarray:
    """Circles at one end, (N, H, W, 1) uint8; those of one seed have the same heights, whatever the end."""
    rng = np.random.default_rng(seed)
    columns = np.arange(RADIUS, size - RADIUS)
    values = position(columns, size)
    columns = columns[(values >= positions[0]) & (values <= positions[1])]
    centers = zip(rng.choice(columns, count), rng.integers(RADIUS, size - RADIUS, count), strict=True)
    return np.stack([render_circle(*center, size)[..., None] for center in centers])


def edit_faces(
    edit: MultiGuidanceEditPipeline, folder: Path, before: np.ndarray, mouths: np.ndarray, target: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of edits to a smile, and the edited images: what moved, and what was kept."""

    def edited(**call: Any) -> np.ndarray:
        generators = image_generators(0, 0, len(before))
        images = edit(to_pil(before), {"Smiling": target}, generator=generators, output_type="np", **call).images
        return (images * 255).round().astype(np.uint8)

    after = edited()
    unguided = edited(guidance_scale=0.0, calibration=None)  # only the noise of `eta` changes anything
    values = {}
    for attribute in edit.attributes:
        evaluate = load_evaluator(find_evaluator(folder, attribute))
        values[attribute] = evaluate(before), evaluate(after)
    smile_before, smile_after = values.pop("Smiling")
    change, noise = (np.abs(images.astype(int) - before).mean(axis=-1) / 255 for images in (after, unguided))
    return {
        "num_images": len(before),
        "target": target,
        "mean_before": float(smile_before.mean()),
        "mean_after": float(smile_after.mean()),
        "standard_deviation_after": float(smile_after.std()),
        "share_in_gap": share_in_gap(smile_after),
        "others_moved": {name: float(np.abs(new - old).mean()) for name, (old, new) in values.items()},
        "pixel_change_of_mouth": float(change[mouths].mean()),
        "pixel_change_elsewhere": float(change[~mouths].mean()),
        "pixel_change_elsewhere_without_guidance": float(noise[~mouths].mean()),
        "share_of_pixels_in_mouth": float(mouths.mean()),
    }, after


def reconstruct(
    edit: MultiGuidanceEditPipeline, images: np.ndarray, num_inference_steps: int, strength: float
) -> dict[str, float]:
    """Mean absolute error, as a share of the range, of images there and back without guidance."""
    settings = {"algorithm_type": "dpmsolver++", "timestep_spacing": "linspace"}
    inverse = DPMSolverMultistepInverseScheduler.from_config(edit.scheduler.config, **settings)
    # Back by the same levels of noise as there.
    forth = DPMSolverMultistepScheduler.from_config(edit.scheduler.config, final_sigmas_type="sigma_min", **settings)
    call = {"num_inference_steps": num_inference_steps, "strength": strength}
    ddim = edit(latents=edit.invert(to_pil(images), **call), eta=0.0, output_type="np", **call).images
    latents = edit.invert(to_pil(images), **call, inverse_scheduler=inverse)
    steps = StockSteps(forth, num_inference_steps - 1, latents.device)
    start = num_inference_steps - round(strength * num_inference_steps)
    steps.scheduler.set_begin_index(start)
    *_, last = denoise(Denoiser(edit.denoiser).predict, steps, latents, start=start)
    multistep, _ = edit.finish(last.sample, "np")
    back = {"ddim": ddim, "multistep": multistep}
    errors = {name: float(np.abs(found - images / 255).mean()) for name, found in back.items()}
    print(call, errors, flush=True)
    return errors


def midpoints(edit: MultiGuidanceEditPipeline, left: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Where circles land that come from the middle between the latents of a left and a right one."""
    evaluate = load_evaluator("circle-position")
    rows = []
    for strength in (0.5, 0.85, 1.0):
        ends = [edit.invert(to_pil(images), strength=strength) for images in (left, right)]
        for method, mix in (("slerp", slerp), ("lerp", torch.lerp)):
            latents = torch.stack([mix(*pair, 0.5) for pair in zip(*ends, strict=True)])
            out = edit(latents=latents, strength=strength, eta=0.0, output_type="np").images
            values = evaluate((out * 255).round().astype(np.uint8))
            shares = {"share_in_gap": share_in_gap(values), "share_malformed": share_malformed(values)}
            rows.append({"strength": strength, "method": method, "num_pairs": len(left), **shares})
            print(rows[-1], flush=True)
    return rows


def strips(edit: MultiGuidanceEditPipeline, low: np.ndarray, high: np.ndarray) -> Image.Image:
    """From images of the one end to images of the other, by slerp, then the same by lerp."""
    images = [
        image
        for method in ("slerp", "lerp")
        for pair in zip(to_pil(low[:STRIPS]), to_pil(high[:STRIPS]), strict=True)
        for image in edit.interpolate(*pair, FRAMES, method=method).images
    ]
    return image_grid(images, FRAMES)


if __name__ == "__main__":
    typer.run(main)
