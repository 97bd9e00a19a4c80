"""Multi-guidance: what to aim at, the gradient that leads there, and when to follow it.

The paper guides with sum_m lambda_m * log p(y_m | x_t) over all classes m of an attribute (eq. 2). For one softmax
classifier and lambda >= 0 that is -L * cross_entropy(lambda / L, p) with L = sum_m lambda_m: guidance vanishes
exactly where the classifier's probabilities are lambda / L, its set point. Hence a target (lambda / L) and a guidance
scale (L).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

Target = float | str | Mapping[str, float]


def weights_from_target(
    attributes: Mapping[str, list[str]],
    target: Mapping[str, Target] | str,
    guidance_scale: float,
    batch_size: int,
    calibrations: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """Weights lambda = guidance_scale * set point, which is the target or what a calibration makes of it.

    Args:
        attributes: class names by attribute, as the classifiers have them.
        target: by attribute: a number in [0, 1], 0 the first class and 1 the second; or a share per class, which add
            up to 1; or "uniform", spread evenly over the batch. "uniform" alone means every attribute.
        guidance_scale: L, the total weight per attribute.
        batch_size: number of images B.
        calibrations: by attribute, measured `strengths` and the `set_points` that lead there, both ascending; and
            perhaps `even_strengths`, where "uniform" has to aim, at evenly spaced shares of the batch, for what comes
            out to be spread evenly.

    Returns:
        (B, number of classes) float32 per attribute in `target`.
    """
    if not is_number(guidance_scale, 0, math.inf):
        raise ValueError(f"`guidance_scale` is {guidance_scale!r}; expected a finite number of at least 0.")
    if target == "uniform":
        target = dict.fromkeys(attributes, "uniform")
    if not isinstance(target, Mapping):
        raise ValueError(f"`target` is {target!r}; expected a dict by attribute or 'uniform'.")
    _check_attributes("target", attributes, target)
    spread = [attribute for attribute, value in target.items() if value == "uniform"]
    if len(spread) > 2:
        raise ValueError(f"`target` is 'uniform' for {len(spread)} attributes; expected at most 2.")
    weights = {}
    for attribute, value in target.items():
        classes = attributes[attribute]
        if isinstance(value, Mapping):
            _check_classes("target", attribute, classes, value)
            shares = torch.tensor([float(value.get(name, 0.0)) for name in classes]).repeat(batch_size, 1)
            if not (bool((shares >= 0).all()) and math.isclose(float(shares[0].sum()), 1, abs_tol=1e-5)):
                raise ValueError(
                    f"`target` for '{attribute}' is {dict(value)}; expected shares of at least 0 that sum to 1."
                )
        else:
            if len(classes) != 2:
                raise ValueError(
                    f"`target` for '{attribute}' is {value!r}; expected a dict of shares for its classes {classes}."
                )
            if value == "uniform":
                # Stratified along the first attribute; the second follows a golden-ratio lattice: a filled square.
                image = torch.arange(batch_size, dtype=torch.float64)
                first = spread.index(attribute) == 0
                position = (image + 0.5) / batch_size if first else (image * (5**0.5 - 1) / 2 + 0.5) % 1
                aims = calibrations.get(attribute, {}).get("even_strengths", (0.0, 1.0))
                position = torch.from_numpy(np.interp(position.numpy(), np.linspace(0, 1, len(aims)), aims))
            elif is_number(value, 0, 1):
                position = torch.full((batch_size,), float(value))
            else:
                raise ValueError(f"`target` for '{attribute}' is {value!r}; expected a number in [0, 1] or 'uniform'.")
            if attribute in calibrations:
                curve = calibrations[attribute]
                position = torch.from_numpy(np.interp(position.numpy(), curve["strengths"], curve["set_points"]))
            shares = torch.stack([1 - position, position], dim=1).float()
        weights[attribute] = guidance_scale * shares
    return weights


def weights_from_classes(
    attributes: Mapping[str, list[str]], guidance_weights: Mapping[str, Mapping[str, float]], batch_size: int
) -> dict[str, torch.Tensor]:
    """Raw weights lambda by attribute and class, classes not named being 0; negative ones extrapolate.

    Returns:
        (B, number of classes) float32 per attribute in `guidance_weights`.
    """
    if not isinstance(guidance_weights, Mapping):
        raise ValueError(f"`guidance_weights` is {guidance_weights!r}; expected a dict by attribute, then class.")
    _check_attributes("guidance_weights", attributes, guidance_weights)
    weights = {}
    for attribute, by_class in guidance_weights.items():
        if not isinstance(by_class, Mapping):
            raise ValueError(f"`guidance_weights` for '{attribute}' is {by_class!r}; expected a dict by class.")
        _check_classes("guidance_weights", attribute, attributes[attribute], by_class)
        row = torch.tensor([float(by_class.get(name, 0.0)) for name in attributes[attribute]])
        weights[attribute] = row.repeat(batch_size, 1)
    return weights


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether `value` is a finite real number from `low` to `high`."""
    return isinstance(value, Real) and math.isfinite(value) and low <= float(value) <= high


def _check_attributes(argument: str, attributes: Mapping[str, list[str]], given: Mapping[str, Any]) -> None:
    if not given:
        raise ValueError(f"`{argument}` is empty; expected at least one of {list(attributes)}.")
    for attribute in given:
        if attribute not in attributes:
            raise ValueError(f"`{argument}` names attribute {attribute!r}; expected one of {list(attributes)}.")


def _check_classes(argument: str, attribute: str, classes: list[str], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in classes:
            raise ValueError(f"`{argument}` names class {name!r} of '{attribute}'; expected one of {classes}.")
        if not is_number(value, -math.inf, math.inf):
            raise ValueError(
                f"`{argument}` for class '{name}' of '{attribute}' is {value!r}; expected a finite number."
            )


@torch.enable_grad()
def guidance_gradient(
    classifiers: Any, x_t: torch.Tensor, timestep: torch.Tensor | int, weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """g(x_t, t) = sum over attributes and classes of lambda * grad log p(y | x_t, t), in one forward and backward.

    Evaluated at x_t, as in the paper's experiments, where its text has mu.

    Args:
        classifiers: a `NoisyClassifierSet` or `NoisyClassifier`.
        x_t: (B, C, H, W).
        timestep: the training timestep, one for all or (B,).
        weights: (B, number of classes) per attribute.

    Returns:
        (B, C, H, W).
    """
    x_t = x_t.detach().requires_grad_()
    logits = classifiers(x_t, timestep).logits
    objective = sum((weights[name] * logits[name].log_softmax(dim=1)).sum() for name in weights)
    return torch.autograd.grad(objective, x_t)[0]


def check_guidance_interval(guidance_interval: tuple[float, float]) -> None:
    """Raise `ValueError` unless the interval is two shares of the steps, in order."""
    is_pair = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
    start, end = guidance_interval if is_pair else (math.nan, math.nan)
    if not (is_number(end, 0, 1) and is_number(start, 0, end)):
        raise ValueError(
            f"`guidance_interval` is {guidance_interval}; expected (start, end) with 0 <= start <= end <= 1."
        )


def is_guided(step: int, num_steps: int, guidance_interval: tuple[float, float]) -> bool:
    """Whether step number `step` (0 the noisiest) begins within `guidance_interval`, (0, 1) being all steps."""
    return guidance_interval[0] <= step / num_steps < guidance_interval[1]
