"""What the page is set to, and how its address says so: ?pipeline=circles&position=0.5&seed=3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from sampling import DEFAULT_STEPS, MODELS, SAMPLERS, Model

MAX_SCALE = 10_000  # pipelines differ by far more than a slider can show
MAX_STEPS = 100
MAX_IMAGES = 16
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """Of one way to sample; the targets are by attribute."""

    targets: dict[str, float]
    even: bool
    scale: float
    steps: int
    sampler: str
    images: int
    seed: int


def defaults(model: Model) -> Settings:
    """Those of its calibration where a pipeline has one, since then a target means a measured strength."""
    sampler = next((sampler for sampler in SAMPLERS if model.calibration(sampler)), SAMPLERS[0])
    scale, steps = model.pipe.config["default_guidance_scale"], DEFAULT_STEPS
    if calibration := model.calibration(sampler):
        scale, steps = calibration["guidance_scale"], calibration["num_inference_steps"]
    targets = dict.fromkeys(model.attributes, 0.5)
    return Settings(targets, False, min(scale, MAX_SCALE), min(steps, MAX_STEPS), sampler, images=4, seed=0)


def to_query(model: Model, settings: Settings) -> str:
    """The part of an address that says what the page is set to."""
    numbers = {**settings.targets, "even": int(settings.even), "scale": settings.scale, "steps": settings.steps}
    rest = {"sampler": settings.sampler, "images": settings.images, "seed": settings.seed}
    return "?" + urlencode({"pipeline": model.name} | {name: f"{value:g}" for name, value in numbers.items()} | rest)


def from_query(query: Mapping[str, str]) -> tuple[Model, Settings, list[str]]:
    """What an address says, defaults where it says nothing or nonsense, and a sentence for each piece of nonsense."""
    problems = []
    names = list(MODELS)
    name = query.get("pipeline", names[0])
    if name not in MODELS:
        problems.append(f"pipeline is {_short(name)}; expected one of {', '.join(names)}.")
        name = names[0]
    model = MODELS[name]
    settings = defaults(model)

    def number(key: str, default: float, low: float, high: float, whole: bool = False) -> float:
        if key not in query:
            return default
        try:
            value = float(query[key])
        except ValueError:
            value = math.nan
        if low <= value <= high and (not whole or value == int(value)):  # NaN is in no range
            return int(value) if whole else value
        kind = "a whole number" if whole else "a number"
        problems.append(f"{key} is {_short(query[key])}; expected {kind} from {low} to {high}.")
        return default

    sampler = query.get("sampler", settings.sampler)
    if sampler not in SAMPLERS:
        problems.append(f"sampler is {_short(sampler)}; expected one of {', '.join(SAMPLERS)}.")
        sampler = settings.sampler
    settings = replace(
        settings,
        targets={attribute: number(attribute, target, 0, 1) for attribute, target in settings.targets.items()},
        even=bool(number("even", 0, 0, 1, whole=True)),
        scale=number("scale", settings.scale, 0, MAX_SCALE),
        steps=int(number("steps", settings.steps, 1, MAX_STEPS, whole=True)),
        sampler=sampler,
        images=int(number("images", settings.images, 1, MAX_IMAGES, whole=True)),
        seed=int(number("seed", settings.seed, 0, MAX_SEED, whole=True)),
    )
    return model, settings, problems


def _short(text: str) -> str:
    return repr(text if len(text) <= 20 else text[:20] + "...")
