"""Multi-guidance: what to aim at, the score that leads there, and when to follow it.

The paper guides with sum_m lambda_m * log p(y_m | x_t) over all classes m of an attribute (eq. 2). For one softmax
classifier and lambda >= 0 that is -L * cross_entropy(lambda / L, p) with L = sum_m lambda_m: guidance vanishes
exactly where the classifier's probabilities are lambda / L, the target probabilities. Hence a target (lambda / L) and
a guidance scale (L).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

Target = float | str | Mapping[str, float]

_DIGESTS: WeakKeyDictionary[torch.nn.Module, list[bytes]] = WeakKeyDictionary()


def weights_from_target(
    attributes: Mapping[str, list[str]],
    target: Mapping[str, Target] | str,
    guidance_scale: float,
    batch_size: int,
    calibrations: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """Weights lambda = guidance_scale * target probability: the target, or what a calibration makes of it.

    Args:
        attributes: class names by attribute, as the classifiers have them.
        target: by attribute: a number in [0, 1], 0 the first class and 1 the second; or a share per class, which add
            up to 1; or "uniform", spread evenly over the batch. "uniform" alone means every attribute.
        guidance_scale: L, the total weight per attribute.
        batch_size: number of images B.
        calibrations: by attribute, measured `values` and the `target_probabilities` that lead there, both ascending;
            and perhaps `even_values`, where "uniform" has to aim, at evenly spaced shares of the batch, for what
            comes out to be spread evenly.

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
                aims = calibrations.get(attribute, {}).get("even_values", (0.0, 1.0))
                position = torch.from_numpy(np.interp(position.numpy(), np.linspace(0, 1, len(aims)), aims))
            elif is_number(value, 0, 1):
                position = torch.full((batch_size,), float(value))
            else:
                raise ValueError(f"`target` for '{attribute}' is {value!r}; expected a number in [0, 1] or 'uniform'.")
            if attribute in calibrations:
                curve = calibrations[attribute]
                position = torch.from_numpy(
                    np.interp(position.numpy(), curve["values"], curve["target_probabilities"])
                )
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
    if not attributes:
        raise ValueError(f"`{argument}` is {given!r}; expected a pipeline with `classifiers`, as nothing guides else.")
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


class ClassifierScore:
    """g(x_t, t) = sum over attributes and classes of lambda * grad log p(y | x_t, t), in one forward and backward.

    Evaluated at x_t, as in the paper's experiments, where its text has mu.

    Args:
        classifiers: a `NoisyClassifierSet` or `NoisyClassifier`.
        weights: (B, number of classes) per attribute.
    """

    def __init__(self, classifiers: Any, weights: Mapping[str, torch.Tensor]) -> None:
        self.classifiers, self.weights = classifiers, weights
        self.dtype = classifiers.dtype  # looked up once: it walks through all modules

    @torch.enable_grad()
    def __call__(self, x_t: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """The score at x_t (B, C, H, W) and a training timestep, one for all or (B,); as float32 (B, C, H, W)."""
        x_t = x_t.detach().to(self.dtype).requires_grad_()
        logits = self.classifiers(x_t, timestep).logits
        objective = sum(
            (row.to(x_t.device) * logits[name].log_softmax(dim=1)).sum() for name, row in self.weights.items()
        )
        return torch.autograd.grad(objective, x_t)[0].float()


class ConditionalPrediction:
    """eps(none) + sum over attributes and classes of lambda * (eps(y) - eps(none)), in one forward pass.

    Classifier-free multi-guidance: with lambda = (1 + w) * share it is eq. 12, whose weights must add up to 1 (it is
    misprinted). A second half of the output, the variance, is that without a class. The same holds for the other
    types of prediction, which are linear in epsilon.

    Args:
        predict: the denoiser's, at x_t, a timestep and labels (B,).
        labels: of the classes, by attribute.
        null_label: of no class.
        weights: (B, number of classes) per attribute.
    """

    def __init__(
        self,
        predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        labels: Mapping[str, Sequence[int]],
        null_label: int,
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        self.predict = predict
        self.labels = torch.tensor([null_label, *(label for name in weights for label in labels[name])])
        self.weights = torch.cat([*weights.values()], dim=1)

    def __call__(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The prediction at x_t (B, C, H, W) and a training timestep; (B, C, H, W) or (B, 2C, H, W)."""
        labels = self.labels.to(x_t.device).repeat_interleave(len(x_t))
        outputs = self.predict(x_t.repeat(len(self.labels), 1, 1, 1), timestep, labels)
        without, *with_class = outputs.chunk(len(self.labels))
        channels = x_t.shape[1]
        shift = sum(
            row.to(x_t.device)[:, None, None, None] * (output - without)[:, :channels]
            for row, output in zip(self.weights.T, with_class, strict=True)
        )
        return torch.cat([without[:, :channels] + shift, without[:, channels:]], dim=1)


def weights_fingerprint(networks: Iterable[torch.nn.Module]) -> list[str]:
    """A SHA-256 of all weights rounded to float16, and one of them rounded to bfloat16; the order is no matter.

    The networks are the same where either is. So they may be loaded and saved in float32, float16 or bfloat16, where
    files differ; and names of weights, which diffusers may change, do not count.

    A network is looked at once and then remembered: later it may have been offloaded, its weights gone to the meta
    device. So what is trained on in place keeps its fingerprint until it is saved and loaded.
    """
    digests = []
    for network in networks:
        network = getattr(network, "_orig_mod", network)  # of a compiled one
        if network not in _DIGESTS:
            _DIGESTS[network] = [_digest(network, dtype) for dtype in (torch.float16, torch.bfloat16)]
        digests.append(_DIGESTS[network])
    return [hashlib.sha256(b"".join(sorted(column))).hexdigest() for column in zip(*digests, strict=True)]


@torch.no_grad()
def _digest(network: torch.nn.Module, dtype: torch.dtype) -> bytes:
    """SHA-256 of the weights, as they are in this precision."""
    whole = hashlib.sha256()
    for weight in network.parameters():
        whole.update(weight.to("cpu", dtype).contiguous().view(torch.int16).numpy().tobytes())
    return whole.digest()


def find_calibrations(
    calibrations: Mapping[str, Sequence[Mapping[str, Any]]],
    attributes: Iterable[str],
    call: Mapping[str, Any],
    choice: str | None,
    networks: Iterable[torch.nn.Module],
) -> dict[str, Mapping[str, Any]]:
    """By attribute, what was measured with this call; see `weights_from_target`.

    Args:
        calibrations: of a pipeline, by attribute; see `calibration.calibrate`.
        attributes: those to aim for.
        call: scheduler, or "edit", with num_inference_steps, guidance_scale and guidance_interval, or strength.
        choice: "same", only what was measured with exactly this call; "nearest", else that of the same scheduler with
            the nearest number of steps; None, no calibration at all.
        networks: the denoiser and each classifier of the set.

    Raises:
        ValueError: for a calibration that was measured with other weights.
    """
    found = {}
    for attribute in attributes if choice else ():
        fitting = [c for c in calibrations.get(attribute, ()) if c["scheduler"] == call["scheduler"]]
        same = [c for c in fitting if all(np.array_equal(c[name], call[name]) for name in call)]
        steps = call["num_inference_steps"]
        nearest = sorted(fitting, key=lambda c: abs(c["num_inference_steps"] - steps)) if choice == "nearest" else []
        if not same + nearest:
            said = ", ".join(f"{name} {call[name]}" for name in call)
            warnings.warn(
                f"'{attribute}' has no calibration for {said}: its target means a target probability, not a "
                "measured value.",
                stacklevel=3,
            )
            continue
        chosen = (same + nearest)[0]
        if not set(weights_fingerprint(networks)) & set(chosen["fingerprint"]):
            raise ValueError(
                f"`calibration` of '{attribute}' was measured with other weights; expected one of these: run "
                "`multiguidance calibrate` again, or call with calibration=None."
            )
        found[attribute] = chosen
    return found


def check_guidance_interval(guidance_interval: Sequence[float]) -> None:
    """Raise `ValueError` unless the interval is two shares of the steps, in order."""
    is_pair = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
    start, end = guidance_interval if is_pair else (math.nan, math.nan)
    if not (is_number(end, 0, 1) and is_number(start, 0, end)):
        raise ValueError(
            f"`guidance_interval` is {guidance_interval}; expected (start, end) with 0 <= start <= end <= 1."
        )


def is_guided(step: int, num_steps: int, guidance_interval: Sequence[float]) -> bool:
    """Whether step number `step` (0 the noisiest) begins within `guidance_interval`, (0, 1) being all steps."""
    return guidance_interval[0] <= step / num_steps < guidance_interval[1]
