"""What the page is set to, and how its address says so: ?pipeline=faces&Smiling=0.5&Hair=free&seed=3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from sampling import DEFAULT_STEPS, MODELS, Model

from diffusers_multiguidance.pipelines.multiguidance_ddpm import SAMPLERS

MAX_SCALE = 10_000  # pipelines differ by far more than a slider can show
MAX_STEPS = 100
MAX_IMAGES = 16
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """Of one way to sample; the targets are by attribute, None where it is left free."""

    targets: dict[str, float | None]
    even: bool
    scale: float
    steps: int
    sampler: str
    images: int
    seed: int


def defaults(model: Model) -> Settings:
    """Those of its calibration where a pipeline has one, since then a target means a measured strength."""
    usual = model.pipe.config["default_sampler"]
    sampler = next((sampler for sampler in [usual, *SAMPLERS] if model.calibration(sampler)), usual)
    scale, steps = model.pipe.config["default_guidance_scale"], DEFAULT_STEPS
    if calibration := model.calibration(sampler):
        scale, steps = calibration["guidance_scale"], calibration["num_inference_steps"]
    targets: dict[str, float | None] = dict.fromkeys(model.attributes, 0.5)
    return Settings(targets, False, min(scale, MAX_SCALE), min(steps, MAX_STEPS), sampler, images=4, seed=0)


def to_query(model: Model, settings: Settings) -> str:
    """The part of an address that says what the page is set to."""
    said: dict[str, Any] = {name: "free" if aim is None else aim for name, aim in settings.targets.items()}
    said |= {"even": int(settings.even), "scale": settings.scale, "steps": settings.steps}
    said |= {"sampler": settings.sampler, "images": settings.images, "seed": settings.seed}
    return "?" + urlencode(
        {"pipeline": model.name} | {name: str(value).removesuffix(".0") for name, value in said.items()}
    )


def from_query(query: Mapping[str, Any]) -> tuple[Model, Settings, list[str]]:
    """What an address says, defaults where it says nothing or nonsense, and a sentence for each piece of nonsense."""
    problems = []
    names = list(MODELS)
    name = query.get("pipeline", names[0])
    if name not in MODELS:
        problems.append(f"pipeline is {_short(name)}; expected one of {', '.join(names)}.")
        name = names[0]
    model = MODELS[name]
    settings = defaults(model)

    def read(key: str, default: Any, low: float, high: float, whole: bool = False) -> Any:
        try:
            return number(key, query.get(key, default), low, high, whole)
        except ValueError as error:
            problems.append(str(error))
            return default

    sampler = query.get("sampler", settings.sampler)
    if sampler not in SAMPLERS:
        problems.append(f"sampler is {_short(sampler)}; expected one of {', '.join(SAMPLERS)}.")
        sampler = settings.sampler
    targets = {}
    for attribute, target in settings.targets.items():
        free = query.get(attribute, "free" if target is None else target) == "free"
        targets[attribute] = None if free else read(attribute, target, 0, 1)
    settings = replace(
        settings,
        targets=targets,
        even=bool(read("even", False, 0, 1, whole=True)),
        scale=read("scale", settings.scale, 0, MAX_SCALE),
        steps=read("steps", settings.steps, 1, MAX_STEPS, whole=True),
        sampler=sampler,
        images=read("images", settings.images, 1, MAX_IMAGES, whole=True),
        seed=read("seed", settings.seed, 0, MAX_SEED, whole=True),
    )
    return model, settings, problems


def number(name: str, value: Any, low: float, high: float, whole: bool = False) -> Any:
    """What was typed or sent, as a number.

    Raises:
        ValueError: where it is none from `low` to `high`, in one sentence.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not low <= found <= high or (whole and found != int(found)):  # NaN is in no range
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} is {_short(value)}; expected {kind} from {low} to {high}.")
    return int(found) if whole else found


def _short(value: Any) -> str:
    if value is None:
        return "empty"
    return repr(value if len(str(value)) <= 20 else f"{str(value)[:20]}...")
