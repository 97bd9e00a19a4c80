"""What is found of one batch of images: its values, its likeness to real images, its distance from training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .control import sliding_distance
from .evaluators import Evaluator
from .extractors import Extractor, load_extractor, look
from .fidelity import kernel_distance, quality
from .heat_map import square_figures
from .intervals import confidence_intervals
from .memorization import TrainingImages, memorization
from .summary import summarize
from .uniformity import GAP


@dataclass
class Evaluated:
    """A batch and what was found.

    Attributes:
        images: (N, H, W, C) uint8.
        values: (N,), NaN where malformed.
        figures: "summary" of the values, and "intervals" of it; with a reference "quality" against "all" of it and
            the "middle", and "sliding_kid" by value; with training images, too, "memorization"; with a second
            evaluator "square".
        second_values: (N,), by the second evaluator.
        variances: (N,), see `artefacts.TrajectoryVariance`.
        distances, nearest: (N,) to the nearest training images, and their numbers; None without those.
    """

    images: np.ndarray
    values: np.ndarray
    figures: dict[str, Any]
    second_values: Any = None
    distances: Any = None
    nearest: Any = None
    variances: Any = None


class Evaluation:
    """Evaluates one batch after another by the same evaluator, features and real images.

    Args:
        evaluate: gives the values.
        gap: the values that training did not show.
        extract: gives the features in which images are compared with the reference; None leaves quality out.
        reference: real images that training did not show, (R, H, W, C) uint8.
        training: those that it did, (M, H, W, C) uint8.
        embed: gives the points between which the distance to training is told; pixels unless given.
        evaluate_second: gives the values of a second attribute.
    """

    def __init__(
        self,
        evaluate: Evaluator,
        gap: tuple[float, float] = GAP,
        extract: Extractor | None = None,
        reference: np.ndarray | None = None,
        training: np.ndarray | None = None,
        embed: Extractor | None = None,
        evaluate_second: Evaluator | None = None,
    ) -> None:
        self.evaluate, self.gap, self.extract, self.evaluate_second = evaluate, gap, extract, evaluate_second
        self.reference: Any = reference
        self.embed = embed or load_extractor("pixels")
        self.training: Any = None
        self.training_values: Any = None
        self.training_second_values: Any = None
        self.held_out = self.middle = None
        if reference is not None:
            seen = look(reference, evaluate, extract, "reference")
            self.real, self.real_values = seen.features, seen.values
            self.middle = (seen.values > gap[0]) & (seen.values < gap[1])
        if training is not None:
            self.training = TrainingImages(training, self.embed)
            self.training_values = look(training, evaluate, None, "values of training").values
            self.training_second_values = self._second_values(training)
            if reference is not None:
                self.held_out, _ = self.training.nearest(reference, self._embedded(self.real))

    def __call__(self, images: np.ndarray, name: str = "images") -> Evaluated:
        """Evaluate images (N, H, W, C) uint8, with a progress bar of that name."""
        is_compared = self.reference is not None and self.extract is not None
        compared = is_compared or self.embed is self.extract
        seen = look(images, self.evaluate, self.extract if compared else None, name)
        values, features = seen.values, seen.features
        found = Evaluated(images, values, {"summary": summarize(values, self.gap)})
        found.figures["intervals"] = confidence_intervals(values, self.gap)
        if seen.uncertainty is not None:
            found.figures["mean_disagreement"] = float(seen.uncertainty.mean())
        found.second_values = self._second_values(images)
        if found.second_values is not None:
            found.figures["square"] = square_figures(np.stack([values, found.second_values]))
        if is_compared:
            found.figures["quality"] = {
                "all": quality(features, self.real),
                "middle": quality(features, self.real[self.middle]),
                "sliding_kid": sliding_distance(features, values, self.real, self.real_values, _kid),
            }
        if self.training is not None:
            found.distances, found.nearest = self.training.nearest(images, self._embedded(features))
            if self.held_out is not None:
                found.figures["memorization"] = memorization(found.distances, self.held_out)
        return found

    def _second_values(self, images: np.ndarray) -> Any:
        """(N,), or None without a second evaluator."""
        return self.evaluate_second and look(images, self.evaluate_second, None, "second attribute").values

    def _embedded(self, features: Any) -> Any:
        """The features, where the distance to training is told by them, too."""
        return features if self.embed is self.extract else None


def _kid(generated: torch.Tensor, real: torch.Tensor) -> float:
    return kernel_distance(generated, real)[0]


def without_training(reference: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The images (R, H, W, C) of a reference that are neither training images (M, H, W, C) nor their mirror images.

    Raises:
        ValueError: where none is left.
    """
    known = {image.tobytes() for image in training} | {image[:, ::-1].tobytes() for image in training}
    new = np.array([image.tobytes() not in known for image in reference])
    if not new.any():
        raise ValueError(
            f"`reference` holds {len(reference)} images, and all of them are training images; expected some that "
            "training did not show."
        )
    return reference[new]
