"""The pipelines of this Space, and their sampling step by step."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    # Before torch: where a GPU is lent per call, torch is to see it as if it were there all the time.
    from spaces import GPU as on_gpu
except ImportError:

    def on_gpu(function: Any) -> Any:
        return function


import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image

from diffusers_multiguidance.evaluation.evaluators import Measure, load_measure
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline

DEFAULT_STEPS = 20  # of sampling, unless a calibration was measured with fewer or more

# What is known of the pipelines of the repository: a sentence, which strengths no training image had, and how far
# back an edit has to go before this attribute can still move.
KNOWN = {
    "circles": ("One white circle. Training showed it in the left and in the right fifth only.", (0.2, 0.8), 0.85),
    "circles-ends": (
        "One white circle. Training showed it in the left and in the right fifth only, also to the classifiers.",
        (0.2, 0.8),
        0.85,
    ),
    "circles-drawn": (
        "One white circle, seen left and right only, but guided by what was measured of drawn circles: nearer to its "
        "target.",
        (0.2, 0.8),
        0.85,
    ),
    "circles-64": (
        "One white circle at the paper's size, 64x64. Training showed it in the left and in the right fifth only.",
        (0.2, 0.8),
        0.85,
    ),
    "circles-xy": (
        "One white circle. Training showed it in the four corners; what was measured of drawn circles guides it.",
        (0.2, 0.8),
        0.85,
    ),
    "digits": ("Handwritten digits. Training showed the thinnest and the thickest fifth only.", (0.2, 0.8), 0.5),
    "digits-drawn": (
        "Handwritten digits, seen thin and thick only, but guided by what was measured of drawn digits: nearer to "
        "their target.",
        (0.2, 0.8),
        0.5,
    ),
    "faces": (
        "Drawn faces. Training showed clear smiles and none, light hair and dark, nothing mild. "
        "Guide the hair at a scale of about 20 only: with more, faces fall apart.",
        None,
        0.5,
    ),
}


@dataclass
class Model:
    """A pipeline with what belongs to it. Nobody writes to it after loading, so all users share it."""

    name: str
    note: str
    gap: tuple[float, float] | None
    edit_strength: float
    pipe: MultiGuidanceDDPMPipeline
    edit: MultiGuidanceEditPipeline
    attributes: dict[str, list[str]]  # those with two classes, two at most: each gets a slider
    measures: dict[str, Measure]  # of those that can be measured

    def calibration(self, sampler: str) -> dict[str, Any] | None:
        """That with about `DEFAULT_STEPS` steps of this sampler, where every attribute has one."""
        known = self.pipe.config["calibrations"]
        fitting = [[one for one in known.get(name, ()) if one["sampler"] == sampler] for name in self.attributes]
        if not all(fitting):
            return None
        return min(fitting[0], key=lambda one: abs(one["num_inference_steps"] - DEFAULT_STEPS))


def load_models() -> dict[str, Model]:
    """The pipelines that MULTIGUIDANCE_PIPELINE names, folders or Hub ids with commas between, or else the clone's."""
    named = [name.strip() for name in os.environ.get("MULTIGUIDANCE_PIPELINE", "").split(",") if name.strip()]
    if not named:
        folders = sorted((Path(__file__).parents[2] / "pipelines").glob("*/model_index.json"))
        named = [str(path.parent) for path in folders]
    if not named:
        raise SystemExit("MULTIGUIDANCE_PIPELINE is not set; expected the folder or the Hub id of a pipeline.")
    models = [load_model(name) for name in named]
    return {model.name: model for model in models}


def load_model(folder_or_id: str) -> Model:
    folder = Path(folder_or_id)
    try:
        if not folder.is_dir():
            folder = Path(snapshot_download(folder_or_id))
        pipe = MultiGuidanceDDPMPipeline.from_pretrained(folder)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SystemExit(
            f"MULTIGUIDANCE_PIPELINE has {folder_or_id!r}; expected a pipeline's folder or its id on the Hub: {reason}"
        ) from None
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    edit = MultiGuidanceEditPipeline(**pipe.components)
    for one in (pipe, edit):
        one.set_progress_bar_config(disable=True)
    attributes = {name: classes for name, classes in list(pipe.attributes.items())[:2] if len(classes) == 2}
    # They come in the order of the alphabet, but a position runs across and a height upwards.
    attributes = dict(sorted(attributes.items(), key=lambda item: item[0] != "position"))
    measures = {}
    for attribute in attributes:
        evaluator = folder / "evaluators" / attribute
        if evaluator.is_dir() or attribute in ("position", "height", "thickness"):
            measures[attribute] = load_measure(str(evaluator) if evaluator.is_dir() else attribute)
    name = Path(folder_or_id).name
    note, gap, edit_strength = KNOWN.get(name, ("", None, 0.5))
    return Model(name, note, gap, edit_strength, pipe, edit, attributes, measures)


@dataclass
class Step:
    """After one step of sampling: where it stands, and the images so far."""

    number: int
    total: int
    images: np.ndarray  # (B, H, W, C) uint8
    strengths: dict[str, np.ndarray] | None = None  # (B,) by attribute, once the images are finished


MODELS = load_models()


@on_gpu
def sample(name: str, seeds: list[int], **call: Any) -> Iterator[Step]:
    """Draw one image per seed; `call` goes to the pipeline."""
    yield from _steps(MODELS[name], MODELS[name].pipe, seeds, batch_size=len(seeds), **call)


@on_gpu
def edit(name: str, image: Image.Image, seeds: list[int], **call: Any) -> Iterator[Step]:
    """Edit an image once per seed; `call` goes to the pipeline."""
    yield from _steps(MODELS[name], MODELS[name].edit, seeds, image=[image] * len(seeds), **call)


def _steps(model: Model, pipe: Any, seeds: list[int], **call: Any) -> Iterator[Step]:
    """Run a pipeline in a thread of its own, to show its images while they emerge."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    abandoned = threading.Event()

    def on_step(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        if abandoned.is_set():
            raise InterruptedError
        total = max(1, round(call.get("strength", 1) * call["num_inference_steps"]))
        images = (tensors["sample"].clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy()
        events.put(Step(step + 1, total, to_uint8(images)))

    def run() -> None:
        try:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            events.put(pipe(**call, generator=generators, output_type="np", callback_on_step_end=on_step))
        except Exception as error:
            events.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while isinstance(event := events.get(), Step):
            step = event
            yield step
        if isinstance(event, Exception):
            raise event
    finally:
        abandoned.set()  # all is done, or whoever waited for it has left
        thread.join()
    images = to_uint8(event.images)
    yield Step(step.total, step.total, images, strengths(model, images, event.probabilities))


def strengths(model: Model, images: np.ndarray, probabilities: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By attribute the measured strength (B,), NaN where it can't be told; or else what the classifiers say."""
    return {
        name: model.measures[name](images) if name in model.measures else probabilities[name][:, 1]
        for name in model.attributes
    }


def to_uint8(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(np.uint8)
