"""What a calibration says: at which set point the classifiers lead to which measured strength.

A calibration holds for one attribute and one way to sample. `multiguidance calibrate` measures it, the pipeline's
configuration carries it, and with it `target` means measured strength instead of the classifiers' probability.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

CALL = ("sampler", "num_inference_steps", "guidance_scale", "guidance_interval")


def weights_fingerprint(networks: Iterable[torch.nn.Module]) -> list[float]:
    """The first weights of each network, which no other checkpoint shares."""
    return [
        round(float(weight), 6) for network in networks for weight in next(network.parameters()).detach().flatten()[:8]
    ]


def find_calibrations(
    calibrations: Mapping[str, Sequence[Mapping[str, Any]]],
    attributes: Iterable[str],
    call: Mapping[str, Any],
    choice: str | None,
    networks: Iterable[torch.nn.Module],
) -> dict[str, Mapping[str, Any]]:
    """By attribute, what was measured with this call; see `weights_from_target`.

    Args:
        calibrations: of a pipeline, by attribute.
        attributes: those to aim for.
        call: sampler, num_inference_steps, guidance_scale and guidance_interval.
        choice: "same", only what was measured with exactly this call; "nearest", else that of the same sampler with
            the nearest number of steps; None, no calibration at all.
        networks: the denoiser and each classifier of the set.

    Raises:
        ValueError: for a calibration that was measured with other weights.
    """
    found = {}
    for attribute in attributes if choice else ():
        fitting = [c for c in calibrations.get(attribute, ()) if c["sampler"] == call["sampler"]]
        same = [c for c in fitting if all(np.array_equal(c[name], call[name]) for name in call)]
        steps = call["num_inference_steps"]
        nearest = sorted(fitting, key=lambda c: abs(c["num_inference_steps"] - steps)) if choice == "nearest" else []
        if not same + nearest:
            warnings.warn(
                f"'{attribute}' has no calibration for this sampler, number of steps, guidance scale and interval: "
                "its target means the classifiers' probability, not a measured strength.",
                stacklevel=3,
            )
            continue
        chosen = (same + nearest)[0]
        found_weights, measured_weights = weights_fingerprint(networks), chosen["fingerprint"]
        same_number = len(found_weights) == len(measured_weights)
        # With room for half precision.
        if not (same_number and np.allclose(found_weights, measured_weights, rtol=0.02, atol=1e-3)):
            raise ValueError(
                f"`calibration` of '{attribute}' was measured with other weights; expected one of these: run "
                "`multiguidance calibrate` again, or call with calibration=None."
            )
        found[attribute] = chosen
    return found


def add_calibration(folder: Path, attribute: str, calibration: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Add a calibration to a pipeline folder: to its configuration, and with `record` to `calibration.json`.

    One that was measured with the same call before is replaced.
    """
    index = json.loads((folder / "model_index.json").read_text())
    path = folder / "calibration.json"
    records = json.loads(path.read_text()) if path.exists() else {}
    # A dictionary, since diffusers takes every list in a model_index.json for a component.
    known = index.setdefault("calibrations", {})
    for entries, entry in ((known, calibration), (records, {**calibration, **record})):
        others = [old for old in entries.get(attribute, []) if any(old[name] != calibration[name] for name in CALL)]
        entries[attribute] = [*others, entry]
    for name, content in (("calibration.json", records), ("model_index.json", index)):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(folder / name)
