"""Evaluate images or a pipeline, as the paper does, and as the field does now: one call, one report."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..data.load import load_pixels
from ..generate import load_pipeline
from ..guidance import Target
from ..utils.files import WRITTEN
from ..utils.writable import check_writable
from .artefacts import variance_figures
from .batch import Evaluated, Evaluation, without_training
from .control import control_figures, diversity, sweep_smoothness
from .evaluators import check_evaluator
from .extractors import look
from .fidelity import class_probabilities, share_recognized
from .instruments import Instruments, load_instruments
from .report import write_report
from .samples import batch_targets, check_samples, is_pipeline, read_samples, sample_pipeline
from .uniformity import GAP


def evaluate(
    samples: str | Path,
    out: str | Path,
    attribute: str,
    evaluator: str | Path | None = None,
    gap: tuple[float, float] = GAP,
    reference: str | Path | None = None,
    training: str | Path | None = None,
    extractor: str | Path | None = None,
    recognizer: str | Path | None = None,
    num_images: int | None = None,
    target: dict[str, Target] | None = None,
    scheduler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int | None = None,
    second_attribute: str | None = None,
    second_evaluator: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate an attribute of samples, and write `report.json`, `report.html` and its pictures.

    Args:
        samples: a folder of images, an `.npz`, the folder that `multiguidance sample` wrote; or a pipeline, its folder
            or id on the Hub, from which is sampled: unguided, at the target, "uniform", and sweeps over the range.
        out: folder for the report, apart from those that are read.
        attribute: whose values are told.
        evaluator: see `load_evaluator`; the pipeline's own unless given.
        gap: the values that training did not show.
        reference: real images, a folder or data set; without them quality is left out. Its *middle* are those that
            the evaluator puts into the gap.
        training: what the pipeline learnt from; without it memorisation is left out.
        extractor: see `load_extractor`, of quality and memorisation; unless given, the evaluator's features for
            quality, where it is a network, and pixels for memorisation.
        recognizer: the folder of a classifier of what should vary; tells how diverse the images are.
        num_images: to sample of each kind; 200 unless given.
        target: where to guide, by attribute; the middle unless given.
        scheduler, num_inference_steps, guidance_scale, seed: as of `multiguidance sample`.
        second_attribute: another one, to tell how much of the square of both is covered (paper, figure 9); of a
            pipeline is also sampled with both "uniform".
        second_evaluator: its; the pipeline's own unless given.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: before anything is sampled, for what can't be read, written or compared.
    """
    _check_places(samples, out, reference, training)
    if not 0 <= gap[0] < gap[1] <= 1:
        raise ValueError(f"`gap` is {gap[0]:g} to {gap[1]:g}; expected two values in order, from 0 to 1.")
    if second_evaluator is not None and second_attribute is None:
        raise ValueError(f"`second_evaluator` is {str(second_evaluator)!r}; expected a `second_attribute` for it.")
    if second_attribute == attribute:
        raise ValueError(f"`second_attribute` is {attribute!r}, as is `attribute`; expected another one.")
    call: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    pipeline: Any = None
    taken: Any = None
    remarks: list[str] = []
    targets = batch_targets(attribute, second_attribute, target or {attribute: 0.5})
    if is_pipeline(samples):
        pipeline = load_pipeline(samples, scheduler)
        _check_attributes(pipeline, attribute, second_attribute)
        remarks += _remarks_of(pipeline, [*filter(None, targets.values()), {attribute: 0.5}], call)
    else:
        useless = {"target": target, "scheduler": scheduler, **call, "num_images": num_images, "seed": seed}
        for argument, value in useless.items():
            if value is not None:
                raise ValueError(f"`{argument}` is {value!r}, but `samples` are images; expected it with a pipeline.")
    instruments = load_instruments(samples, attribute, evaluator, second_attribute, second_evaluator, extractor)
    if pipeline is not None:
        size, channels = pipeline.image_size, pipeline.channels
    else:
        taken = read_samples(samples, instruments.channels)
        height, width, channels = taken.batches["samples"].shape[1:]
        size = height, width
        remarks += taken.remarks
    evaluation, said = _prepare(instruments, gap, size, channels, reference, training)
    remarks += said
    if recognizer is not None:
        _recognize(recognizer, np.zeros((1, *size, channels), np.uint8), np.zeros(1))  # refuses what is no classifier
    held_out = _held_out_figures(instruments.evaluator)
    if taken is None:
        count = 200 if num_images is None else num_images
        taken = sample_pipeline(pipeline, attribute, count, targets, seed or 0, **call)
    found = {batch: evaluation(images, batch) for batch, images in taken.batches.items()}
    for batch_name, batch in found.items():
        if recognizer is not None:
            batch.figures["recognized"] = _recognize(recognizer, batch.images, batch.values)
        if batch_name in taken.variances:
            batch.variances = taken.variances[batch_name]
            batch.figures["signs"] = variance_figures(batch.variances, batch.values)
    if taken.sweep is not None:
        found["sweep"] = _evaluate_sweep(taken.sweep, evaluation)
    report = {
        "samples": str(samples),
        "attribute": attribute,
        "second_attribute": second_attribute,
        "asked": {
            **taken.asked,
            "gap": list(gap),
            "evaluator": instruments.evaluator,
            "second_evaluator": instruments.second_evaluator,
            "extractor": evaluation.extract.name if evaluation.extract else None,
            "embedding": evaluation.embed.name,
            "reference": None if reference is None else str(reference),
            "training": None if training is None else str(training),
            "recognizer": None if recognizer is None else str(recognizer),
        },
        "num_reference": None if evaluation.reference is None else len(evaluation.reference),
        "num_middle": None if evaluation.middle is None else int(evaluation.middle.sum()),
        "num_training": None if evaluation.training is None else len(evaluation.training.images),
        "remarks": remarks,
        "evaluator": held_out,
        "batches": {name: batch.figures for name, batch in found.items()},
        "values": {name: for_json(batch.values) for name, batch in found.items()},
        "second_values": {
            name: for_json(batch.second_values) for name, batch in found.items() if batch.second_values is not None
        },
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("diffusers-multiguidance", "torch", "torch-fidelity")},
    }
    write_report(report, found, evaluation, Path(out))
    return report


def _check_places(
    samples: str | Path, out: str | Path, reference: str | Path | None, training: str | Path | None
) -> None:
    """Raise `ValueError` for places that are not there, can't be written or hold what a report would overwrite."""
    check_writable(out, "--out")
    check_samples(samples)
    for argument, place in (("samples", samples), ("reference", reference), ("training", training)):
        _check_apart(Path(out), argument, place)
    if (Path(out) / WRITTEN).is_file() and not (Path(out) / "report.json").is_file():
        raise ValueError(
            f"`out` is {str(out)!r}, which another command wrote; expected a folder for the report alone."
        )


def _check_apart(out: Path, argument: str, place: str | Path | None) -> None:
    """Raise `ValueError` where the report's pictures would take the place of files that are read, or count as some."""
    if place is None or not Path(place).is_dir():
        return
    place = Path(place).resolve()
    is_read_whole = not is_pipeline(place) and not (place / "images.npz").is_file()
    if out.resolve() == place or (is_read_whole and place in out.resolve().parents):
        raise ValueError(f"`out` is {str(out)!r}, which is or lies in `{argument}`; expected a folder apart from it.")


def for_json(values: np.ndarray) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


def _check_attributes(pipeline: Any, attribute: str, second_attribute: str | None) -> None:
    """Raise `ValueError` for attributes that the pipeline can't lead from one end to the other."""
    for argument, name in (("attribute", attribute), ("second_attribute", second_attribute)):
        if name not in (*pipeline.attributes, None):
            raise ValueError(f"`{argument}` is {name!r}; expected one of {[*pipeline.attributes]}.")
        if name is not None and len(pipeline.attributes[name]) != 2:
            raise ValueError(
                f"`{argument}` {name!r} has the classes {pipeline.attributes[name]}; expected one of two."
            )


def _remarks_of(pipeline: Any, targets: Sequence[Any], call: dict[str, Any]) -> list[str]:
    """What the pipeline warns of at these targets, say of a missing calibration; no step is taken.

    Raises:
        ValueError: for what can't be asked of it.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for target in targets:
            pipeline.denoise(1, target, **call)
    return [*dict.fromkeys(str(warning.message) for warning in warned if warning.category is UserWarning)]  # ours


def _prepare(
    instruments: Instruments,
    gap: tuple[float, float],
    size: tuple[int, int],
    channels: int,
    reference: str | Path | None,
    training: str | Path | None,
) -> tuple[Evaluation, list[str]]:
    """What the images are evaluated by, and sentences on what was left out of it."""
    remarks: list[str] = []
    extract = instruments.extract
    for evaluate in filter(None, (instruments.evaluate, instruments.evaluate_second)):
        check_evaluator(evaluate, size, channels)
    if extract is not None:
        extract(np.zeros((2, *size, channels), np.uint8))
    known = real = None
    if training is not None:
        known, said = load_pixels(training, "training", size, channels)
        remarks += said
    if reference is not None:
        real, said = load_pixels(reference, "reference", size, channels)
        remarks += said
    if real is not None and known is not None:
        new = without_training(real, known)
        if len(new) < len(real):
            remarks.append(f"{len(real) - len(new)} of {len(real)} reference images are training images: left out.")
        real = new
    if real is not None and extract is None:
        remarks.append("Quality is left out: this evaluator has no features. Name some with --extractor.")
    embed = extract if instruments.is_extractor_named else None
    return Evaluation(instruments.evaluate, gap, extract, real, known, embed, instruments.evaluate_second), remarks


def _evaluate_sweep(sweep: np.ndarray, evaluation: Evaluation) -> Evaluated:
    """Control: values by target, and the steps from target to target; images (T, N, H, W, C)."""
    images = sweep.reshape(-1, *sweep.shape[2:])
    found = Evaluated(images, look(images, evaluation.evaluate, None, "sweep").values, {})
    values = found.values.reshape(sweep.shape[:2])
    smoothness = sweep_smoothness(values.T, sweep.swapaxes(0, 1))
    found.figures["control"] = {**control_figures(values), "smoothness": smoothness}
    return found


def _recognize(recognizer: str | Path, images: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    probabilities = class_probabilities(recognizer, images)
    return {"share": share_recognized(probabilities), "diversity": diversity(probabilities, values)}


def _held_out_figures(evaluator: str | Path) -> dict[str, Any]:
    """What train_evaluator.py found of its network on images that it did not learn from."""
    path = Path(evaluator) / "training.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    return {name: value for name, value in record.items() if name.startswith("held_out")}
