"""Zero-shot interpolation with diffusion models: train on extremes, sample the middle by multi-guidance."""

import importlib
from typing import Any

# Imported on first use, so that `import diffusers_multiguidance` stays quick.
_MODULES = {
    "ClassifierGuidance": "guiders",
    "GaussianDiffusion": "diffusion",
    "MultiGuidanceCFGPipeline": "pipelines",
    "MultiGuidanceDDPMPipeline": "pipelines",
    "MultiGuidanceEditPipeline": "pipelines",
    "NoisyClassifier": "models",
    "NoisyClassifierSet": "models",
    "calibrate": "calibration",
    "compare": "evaluation.compare",
    "create_dit": "models",
    "create_unet": "models",
    "evaluate": "evaluation.evaluate",
    "load_evaluator": "evaluation.evaluators",
    "load_pipeline": "generate",
}

__all__ = sorted(_MODULES)


def main() -> None:
    """The `multiguidance` command, which ends as `exit_codes` says, also while it imports."""
    from .utils.exits import exit_codes

    with exit_codes("multiguidance"):
        importlib.import_module(".cli", __name__).run()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
