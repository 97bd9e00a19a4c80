"""The pipelines of this Space, and their sampling step by step."""

from __future__ import annotations

import json
import math
import os
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
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image

from diffusers_multiguidance.evaluation.evaluators import Evaluator, find_evaluator, load_evaluator
from diffusers_multiguidance.generate import load_pipeline
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline
from diffusers_multiguidance.schedulers import create_scheduler, scheduler_name

OPENING = Path(__file__).with_name("opening")  # what `opening.py` wrote
PREVIEWS = 8  # of the images while they emerge
SETTINGS = ("patch_size", "sampling_defaults", "calibrations", "attributes")  # of a pipeline, beside its parts


@dataclass(frozen=True)
class Sweep:
    """Images (N, H, W, C) uint8 of one seed along an attribute, by rising requested value."""

    along: str
    images: np.ndarray
    requested: list[float]
    values: list[float]  # what came out, NaN where it can't be told; empty while the images emerge


@dataclass(frozen=True)
class Model:
    """A pipeline with what belongs to it. Nobody writes to it after loading, so all users share it."""

    name: str  # of its folder; the one in addresses
    card: dict[str, Any]  # what its card says to this page: name, note, gap by attribute, picture
    picture: Path | None
    pipe: MultiGuidanceDDPMPipeline
    edit: MultiGuidanceEditPipeline | None  # without classifiers there is no editing
    attributes: dict[str, list[str]]  # those with two classes: each gets a slider
    evaluators: dict[str, Evaluator]  # of those that can be measured
    opening: Sweep | None

    def with_scheduler(self, name: str, straight: bool = False) -> MultiGuidanceDDPMPipeline:
        """A pipeline of the same weights for one call: a scheduler that is exchanged would change all users' calls.

        Args:
            straight: whether "uniform" means just that, not the targets whose outcome is spread evenly.
        """
        own, known = self.pipe.scheduler, self.pipe.config["calibrations"]
        parts = self.pipe.components | {
            "scheduler": own if name == scheduler_name(own) else create_scheduler(name, own)
        }
        if straight:
            known = {name: [{**one, "even_values": [0, 1]} for one in found] for name, found in known.items()}
        said = {name: self.pipe.config[name] for name in SETTINGS if name in self.pipe.config}
        return type(self.pipe)(**parts, **{**said, "calibrations": known})

    def calibration(self, scheduler: str) -> dict[str, Any] | None:
        """That of the first attribute with this scheduler, where every attribute has one."""
        known = self.pipe.config["calibrations"]
        fitting = [[one for one in known.get(name, ()) if one["scheduler"] == scheduler] for name in self.attributes]
        return fitting[0][0] if fitting and all(fitting) else None


def load_models() -> dict[str, Model]:
    """The pipelines that MULTIGUIDANCE_PIPELINE names, folders or Hub ids with commas between, or else the clone's."""
    named = [name.strip() for name in os.environ.get("MULTIGUIDANCE_PIPELINE", "").split(",") if name.strip()]
    if not named:
        # Backwards, so that the page opens with faces, not with circles.
        folders = sorted((Path(__file__).parents[2] / "pipelines").glob("*/model_index.json"), reverse=True)
        named = [str(path.parent) for path in folders]
    if not named:
        raise SystemExit("MULTIGUIDANCE_PIPELINE is not set; expected the folder or the Hub id of a pipeline.")
    models = [load_model(name) for name in named]
    return {model.name: model for model in models}


def load_model(folder_or_id: str) -> Model:
    folder = Path(folder_or_id)
    name = folder.name
    try:
        if not folder.is_dir():
            folder = Path(snapshot_download(folder_or_id))
        pipe = load_pipeline(folder)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SystemExit(
            f"MULTIGUIDANCE_PIPELINE has {folder_or_id!r}; expected a pipeline's folder or its id on the Hub: {reason}"
        ) from None
    edit = None
    if pipe.classifiers is not None:
        said = {key: pipe.config[key] for key in SETTINGS if key in pipe.config}
        edit = MultiGuidanceEditPipeline(**pipe.components, **said)
    # They come in the order of the alphabet, but a position runs across and a height upwards.
    ordered = sorted(pipe.attributes.items(), key=lambda item: item[0] != "position")
    attributes = {attribute: classes for attribute, classes in ordered if len(classes) == 2}
    evaluators = {}
    for attribute in attributes:
        try:
            evaluators[attribute] = load_evaluator(find_evaluator(folder, attribute))
        except ValueError:
            continue  # the classifiers have to tell
    card = {"name": name, "note": "", "gap": {}}
    if (folder / "README.md").is_file():
        card |= ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("multiguidance") or {}
    picture = folder / card["picture"] if card.get("picture") else None
    return Model(name, card, picture, pipe, edit, attributes, evaluators, load_opening(name))


def load_opening(name: str) -> Sweep | None:
    """What is shown of a pipeline before anyone has generated anything."""
    known = json.loads((OPENING / "values.json").read_text()) if (OPENING / "values.json").is_file() else {}
    if name not in known:
        return None
    entry = known[name]
    with Image.open(OPENING / f"{name}.png") as strip:
        pixels = np.asarray(strip)
    images = np.stack(np.split(np.atleast_3d(pixels), len(entry["requested"]), axis=1))
    values = [math.nan if value is None else value for value in entry["values"]]
    return Sweep(entry["along"], images, entry["requested"], values)


@dataclass
class Step:
    """After one step of sampling: where it stands, and the images so far."""

    number: int
    total: int
    images: np.ndarray  # (B, H, W, C) uint8
    values: dict[str, np.ndarray] | None = None  # (B,) by attribute, once the images are finished


MODELS = load_models()


@on_gpu
def sample(name: str, scheduler: str, seeds: list[int], straight: bool = False, **call: Any) -> Iterator[Step]:
    """Generate one image per seed; see `Model.with_scheduler`; `call` goes to the pipeline."""
    pipe = MODELS[name].with_scheduler(scheduler, straight)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    yield from _previews(MODELS[name], pipe.denoise(len(seeds), generator=generators, **call))


@on_gpu
def edit(name: str, image: Image.Image, seeds: list[int], **call: Any) -> Iterator[Step]:
    """Edit an image once per seed; `call` goes to the pipeline."""
    pipe = MODELS[name].edit
    if pipe is None:
        raise ValueError("This pipeline has no classifiers; expected one that has, to edit with.")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    yield from _previews(MODELS[name], pipe.denoise([image] * len(seeds), generator=generators, **call))


def _previews(model: Model, steps: Any) -> Iterator[Step]:
    for step in steps:
        if step.number % math.ceil(step.total / PREVIEWS) == 0:
            emerging = (model.pipe.decode(step.pred_x0) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
            yield Step(step.number, step.total, to_uint8(emerging.cpu().numpy()))
    finished, probabilities = model.pipe.finish(step.sample, "np")
    images = to_uint8(finished)
    values = {name: evaluate(images) for name, evaluate in model.evaluators.items()}
    if probabilities is not None:  # the classifiers tell the others
        values = {name: probabilities[name][:, 1] for name in model.attributes} | values
    nothing = np.full(len(images), np.nan)
    values = {name: values.get(name, nothing) for name in model.attributes}
    yield Step(step.total, step.total, images, values)


def to_uint8(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(np.uint8)
