"""Calibration: which target probability leads to which value, measured for one way to sample, or to edit.

It holds for one attribute and one scheduler, number of steps, guidance scale and interval; of editing, for one number
of steps, scale and strength. The pipeline's configuration carries it, and with it a `target` means a measured value
instead of the classifiers' probability (`guidance.find_calibrations`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize
from scipy.stats import beta, entropy, spearmanr
from sklearn.isotonic import IsotonicRegression
from tqdm.auto import tqdm

from .data.load import held_out_images
from .evaluation.evaluators import Evaluator, check_evaluator, find_evaluator, load_evaluator
from .generate import generate, image_generators, load_pipeline
from .guidance import weights_fingerprint
from .pipelines import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline
from .utils.files import add_to_folder
from .utils.grids import to_pil
from .utils.writable import check_attributes, check_writable

CALL = ("scheduler", "num_inference_steps", "guidance_scale", "guidance_interval")
END = 0.1  # images below it, and above 1 - END, show the ends
BINS = 20
IMAGES = 500  # that the even spread is worked out for


def calibrate(
    pipeline: str | Path,
    attribute: str,
    evaluator: str | Path | None = None,
    scheduler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    num_target_probabilities: int = 21,
    num_images: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Sample over a grid of target probabilities, evaluate what comes out, and add the fitted map to the folder.

    Args:
        pipeline: its folder; `model_index.json` gets the calibration, and a plot is put beside it.
        evaluator: see `load_evaluator`; the one that the pipeline carries unless given.
        scheduler: short name; the pipeline's unless given. So with the three below: None takes what a call would.
        num_target_probabilities: spread evenly over [0, 1].
        num_images: for each target probability.

    Returns:
        The calibration, as the configuration has it.

    Raises:
        ValueError: before anything is sampled for less than 3 target probabilities, a folder that is none or can't be
            written, an evaluator that does not fit, and what the pipeline's call refuses; then for values that do not
            follow, see `fit_calibration`.
    """
    folder, name, evaluate = _prepare(pipeline, attribute, evaluator, num_target_probabilities)
    loaded = load_pipeline(folder, scheduler)
    check_evaluator(evaluate, loaded.image_size, loaded.channels)
    call = loaded.resolve_call(num_inference_steps, guidance_scale, guidance_interval)
    probabilities = np.linspace(0, 1, num_target_probabilities)
    sampling = {key: call[key] for key in CALL[1:]}
    values = [
        evaluate(
            generate(
                loaded,
                num_images,
                seed + number,
                description=f"target probability {probability:.2f}",
                target={attribute: float(probability)},
                calibration=None,
                **sampling,
            )
        )
        for number, probability in enumerate(probabilities)
    ]
    fit = fit_calibration(probabilities, np.stack(values))
    calibration = {**call, **fit, **_origin(folder, loaded, name), "num_images": num_images, "seed": seed}
    with add_to_folder(folder) as new:
        save_calibration_plot({"fit": fit}, attribute, new / f"calibration_{attribute}.png")
    add_calibration(folder, attribute, calibration)
    return calibration


def calibrate_edits(
    pipeline: str | Path,
    attribute: str,
    images: str | Path,
    evaluator: str | Path | None = None,
    training: str | Path | None = None,
    num_target_probabilities: int = 11,
    num_images: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Edit images of both ends over a grid of target probabilities, evaluate them, and add the maps to the folder.

    What an edit comes to depends on where it starts. So there is a map for images that the evaluator puts below
    0.1, one for those above 0.9, and the pipeline goes between them by its classifiers' opinion of the image.

    Args:
        pipeline: its folder, edited with its defaults for editing; the rest as of `calibrate`.
        images: a folder of images, or a data set's.
        training: the set that the pipeline learnt from; images with a `source_index` of its are left out.
        num_images: of each end, for each target probability.

    Returns:
        The calibration, as the configuration has it, with the maps `from_low` and `from_high`.

    Raises:
        ValueError: as of `calibrate`; for images that are none, or too few of them at an end.
    """
    for argument, value, least in (("num_images", num_images, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"`{argument}` is {value}; expected at least {least}.")
    folder, name, evaluate = _prepare(pipeline, attribute, evaluator, num_target_probabilities)
    edit = MultiGuidanceEditPipeline.from_pretrained(folder)
    edit.set_progress_bar_config(disable=True)
    check_evaluator(evaluate, edit.image_size, edit.channels)
    call = edit.resolve_call()
    pixels = held_out_images(images, training, edit.image_size, edit.channels)
    values = evaluate(pixels)
    rng = np.random.default_rng(seed)
    probabilities = np.linspace(0, 1, num_target_probabilities)
    fits = {}
    for end, there in {"from_low": values < END, "from_high": values > 1 - END}.items():
        if there.sum() < num_images:
            raise ValueError(f"`images` has {there.sum()} images of one end; expected at least {num_images}.")
        starts = to_pil(pixels[rng.permutation(np.flatnonzero(there))[:num_images]])
        measured = []
        for probability in tqdm(probabilities, desc=f"editing {end.replace('_', ' ')}"):
            generator = image_generators(seed, 0, num_images)
            call_here = {"calibration": None, "generator": generator, "output_type": "np"}
            edited = edit(starts, {attribute: float(probability)}, **call_here).images
            measured.append(evaluate((edited * 255).round().astype(np.uint8)))
        fits[end] = fit_calibration(probabilities, np.stack(measured))
        del fits[end]["even_values"]  # of a batch from noise
    calibration = {**call, **fits, **_origin(folder, edit, name), "num_images": num_images, "seed": seed}
    with add_to_folder(folder) as new:
        save_calibration_plot(fits, attribute, new / f"calibration_edit_{attribute}.png")
    add_calibration(folder, attribute, calibration)
    return calibration


def _prepare(
    pipeline: str | Path, attribute: str, evaluator: str | Path | None, num_target_probabilities: int
) -> tuple[Path, str, Evaluator]:
    """The folder, the evaluator's name and the evaluator, all there, before anything is sampled."""
    if num_target_probabilities < 3:
        raise ValueError(f"`num_target_probabilities` is {num_target_probabilities}; expected at least 3.")
    folder = Path(pipeline)
    if not folder.is_dir():
        raise ValueError(f"`pipeline` is {str(pipeline)!r}; expected a folder.")
    check_attributes([attribute], "attribute")  # the plot is named after it
    check_writable(folder, "pipeline")
    name = str(find_evaluator(folder, attribute) if evaluator is None else evaluator)
    return folder, name, load_evaluator(name)


def _origin(folder: Path, pipeline: MultiGuidanceDDPMPipeline, evaluator: str) -> dict[str, Any]:
    """What was measured, with what, when."""
    inside = Path(evaluator).resolve().is_relative_to(folder.resolve())
    return {
        "fingerprint": weights_fingerprint(pipeline.networks),
        "evaluator": Path(evaluator).resolve().relative_to(folder.resolve()).as_posix() if inside else evaluator,
        "date": date.today().isoformat(),
    }


def fit_calibration(probabilities: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """The monotone map from target probability to mean value (isotonic regression).

    Args:
        probabilities: (P,) ascending, in [0, 1].
        values: (P, n) measured, NaN where an image can't be.

    Returns:
        The map, `target_probabilities` to `values`, both ascending, where the middle of a flat stretch stands for it;
        `even_values`, see that function; and what was `measured` at every target probability: mean, standard
        deviation and share malformed.

    Raises:
        ValueError: if most images can't be measured, or the value does not rise with the target probability.
    """
    if np.isnan(values).mean() > 0.5:
        raise ValueError(
            f"`evaluator` fails on {100 * np.isnan(values).mean():.0f} % of the images; expected it to know most."
        )
    counts = (~np.isnan(values)).sum(axis=1)
    known = counts > 0
    mean, spread = np.nanmean(values[known], axis=1), np.nanstd(values[known], axis=1)
    correlation = float(spearmanr(probabilities[known], mean).statistic)
    if not correlation >= 0.8:
        raise ValueError(
            f"`attribute` does not follow its target probability (rank correlation {correlation:.2f}); expected at "
            "least 0.8: more images, better classifiers or another guidance scale."
        )
    isotonic = IsotonicRegression(y_min=0, y_max=1).fit(probabilities[known], mean, sample_weight=counts[known])
    fitted = isotonic.predict(probabilities[known])
    levels = np.unique(fitted)
    middles = [float(probabilities[known][fitted == level].mean()) for level in levels]
    return {
        "target_probabilities": [round(value, 5) for value in middles],
        "values": [round(float(level), 5) for level in levels],
        "even_values": even_values(probabilities[known], values[known], middles, levels),
        "measured": {
            "target_probabilities": [round(float(value), 5) for value in probabilities[known]],
            "mean": [round(float(value), 5) for value in mean],
            "standard_deviation": [round(float(value), 5) for value in spread],
            "malformed": [round(float(value), 5) for value in np.isnan(values[known]).mean(axis=1)],
        },
    }


def even_values(probabilities: np.ndarray, values: np.ndarray, mapped: list[float], levels: np.ndarray) -> list[float]:
    """Where a batch has to aim so that what comes out is spread evenly.

    Images stray from their target, and mostly towards the ends, so evenly spread targets leave the middle sparse.
    Targets that follow a beta distribution can make up for it; its two parameters are those whose mixture of measured
    values is nearest to uniform.

    Args:
        probabilities: (P,) ascending.
        values: (P, n) measured there, NaN where an image can't be.
        mapped: target probabilities of the monotone map to `levels`, both ascending.
        levels: values of the map.

    Returns:
        Targets at the shares 0, 0.05, ... 1 of the batch, ascending.
    """
    known = [row[~np.isnan(row)] for row in values]
    shares = np.stack([np.histogram(row, BINS, (0, 1))[0] / len(row) for row in known])
    batch = (np.arange(IMAGES) + 0.5) / IMAGES

    def unevenness(parameters: np.ndarray) -> float:
        aims = np.interp(beta.ppf(batch, *np.exp(parameters)), levels, mapped)
        place = np.interp(aims, probabilities, np.arange(len(probabilities)))
        below = np.minimum(place.astype(int), len(probabilities) - 2)
        upper = (place - below)[:, None]
        mixture = ((1 - upper) * shares[below] + upper * shares[below + 1]).mean(axis=0)
        return float(entropy(mixture, np.full(BINS, 1 / BINS)))

    best = minimize(unevenness, np.zeros(2), method="Nelder-Mead", bounds=[(-2.3, 2.3)] * 2)
    return [round(float(value), 5) for value in beta.ppf(np.linspace(0, 1, 21), *np.exp(best.x))]


def add_calibration(folder: Path, attribute: str, calibration: Mapping[str, Any]) -> None:
    """Add a calibration to a pipeline folder's configuration, in place of one that was measured with the same call."""
    index = json.loads((folder / "model_index.json").read_text())
    # A dictionary, since diffusers takes every list in a model_index.json for a component.
    known = index.setdefault("calibrations", {})
    call = (*CALL, "strength")  # of editing, which has no interval
    others = [old for old in known.get(attribute, []) if any(old.get(n) != calibration.get(n) for n in call)]
    known[attribute] = [*others, calibration]
    with add_to_folder(folder) as new:
        (new / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_calibration_plot(fits: Mapping[str, Mapping[str, Any]], attribute: str, path: Path) -> None:
    """Target probability against measured value, with the spread of the images, and the fits by name."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="0.85")
    for number, (name, fit) in enumerate(fits.items()):
        measured = fit["measured"]
        points = (measured["target_probabilities"], measured["mean"], measured["standard_deviation"])
        axes.errorbar(*points, fmt=".", capsize=2, color=f"C{number}")
        axes.plot(fit["target_probabilities"], fit["values"], color=f"C{number}", label=name.replace("_", " "))
    axes.set(xlabel="target probability", ylabel=f"{attribute}, mean and standard deviation", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
