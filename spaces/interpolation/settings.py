"""What the page is set to, and how its address says so: ?pipeline=faces&Smiling=0.5&Hair=free&seed=3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sampling import MODELS, Model

from diffusers_multiguidance.schedulers import SCHEDULERS, scheduler_name
from diffusers_multiguidance.utils.seeds import stream_seed

MAX_SCALE = 10_000  # pipelines differ by far more than a slider can show
MAX_STEPS = 100
MAX_IMAGES = 16
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """Of one way to sample."""

    model: Model
    targets: dict[str, float | None]  # by attribute, None where it is left free
    even: bool
    scale: float | None  # None where none was tuned for the scheduler
    steps: int
    scheduler: str
    images: int
    seed: int

    def call(self) -> dict[str, Any]:
        """Arguments of `sampling.sample` besides the seeds."""
        targets = {name: "uniform" if self.even else aim for name, aim in self.targets.items() if aim is not None}
        return {
            "name": self.model.name,
            "scheduler": self.scheduler,
            "target": targets or None,
            "guidance_scale": self.scale if targets else None,
            "num_inference_steps": self.steps,
            "calibration": "nearest" if self.model.calibration(self.scheduler) else None,
        }

    def seeds(self) -> list[int]:
        return [stream_seed(self.seed, number) for number in range(self.images)]

    def sweep(self, along: str, frames: int) -> tuple[dict[str, Any], list[float]]:
        """Arguments of `sampling.sample` for one seed along an attribute, and the values that it requests."""
        call = replace(self, even=False).call()
        call |= {"target": {**(call["target"] or {}), along: "uniform"}, "guidance_scale": self.scale}
        requested = [round((frame + 0.5) / frames, 4) for frame in range(frames)]  # what "uniform" means
        return {**call, "seeds": self.seeds()[:1] * frames, "straight": True}, requested


def defaults(model: Model, scheduler: str | None = None) -> Settings:
    """What the pipeline was tuned for, and by choice with a scheduler that is calibrated: targets are values then."""
    own = scheduler_name(model.pipe.scheduler)
    tuned = [name for name in [own, *model.pipe.config["sampling_defaults"]] if name != "edit"]
    scheduler = scheduler or next((name for name in tuned if model.calibration(name)), own)
    call = model.with_scheduler(scheduler).resolve_call()
    scale, steps = call["guidance_scale"], min(call["num_inference_steps"], MAX_STEPS)
    return Settings(model, dict.fromkeys(model.attributes, 0.5), False, scale, steps, scheduler, images=4, seed=0)


def from_query(query: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """What an address says, defaults where it says nothing or nonsense, and a sentence for each piece of nonsense."""
    problems = []

    def choice(key: str, known: Any, default: str) -> str:
        if query.get(key, default) not in known:
            problems.append(f"{key} is {_short(query[key])}; expected one of {', '.join(known)}.")
            return default
        return query.get(key, default)

    def read(key: str, default: Any, low: float, high: float, whole: bool = False) -> Any:
        if query.get(key, default) == default:
            return default  # also where the default is that there is none
        try:
            return number(key, query[key], low, high, whole)
        except ValueError as error:
            problems.append(str(error))
            return default

    model = MODELS[choice("pipeline", MODELS, next(iter(MODELS)))]
    settings = defaults(model, choice("scheduler", SCHEDULERS, defaults(model).scheduler))
    settings = replace(
        settings,
        targets={
            name: None if query.get(name) == "free" else read(name, aim, 0, 1)
            for name, aim in settings.targets.items()
        },
        even=bool(read("even", False, 0, 1, whole=True)),
        scale=read("scale", settings.scale, 0, MAX_SCALE),
        steps=read("steps", settings.steps, 1, MAX_STEPS, whole=True),
        images=read("images", settings.images, 1, MAX_IMAGES, whole=True),
        seed=read("seed", settings.seed, 0, MAX_SEED, whole=True),
    )
    return settings, problems


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
