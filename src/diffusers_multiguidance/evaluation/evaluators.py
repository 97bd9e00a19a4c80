"""How strongly an image shows an attribute: one number in [0, 1] per image, NaN where it can't be told.

Images are (N, H, W, C) uint8 with C of 1 or 3.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from ..data.circles import RADIUS, position
from ..data.digits import stroke_thickness, thickness_factor
from .fidelity import evaluator_logits, load_evaluator

Measure = Callable[[np.ndarray], np.ndarray]


def to_grey(images: np.ndarray) -> np.ndarray:
    """(N, H, W) uint8."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(f"`images` is {images.dtype} of shape {images.shape}; expected (N, H, W, 1 or 3) uint8.")
    return images.mean(axis=-1).round().astype(np.uint8)


class CirclePosition:
    """Horizontal position z of the one circle in the image (paper, section 5.5), by contour detection with OpenCV.

    With `vertical` its height, from the bottom to the top. NaN (malformed) unless there is exactly one contour and it
    fits a circle of radius 2: enclosing radius 1.5 to 2.75 (the drawn circle has 2.0) and 9 to 17 bright pixels (the
    drawn circle has 13).
    """

    def __init__(self, vertical: bool = False) -> None:
        self.vertical = vertical

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.array([self._measure(image) for image in to_grey(images)])

    def _measure(self, image: np.ndarray) -> float:
        bright = image > 127
        contours, _ = cv2.findContours(bright.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if len(contours) != 1 or not 9 <= bright.sum() <= 17:
            return float("nan")
        (x, y), radius = cv2.minEnclosingCircle(contours[0])
        if not RADIUS - 0.5 <= radius <= RADIUS + 0.75:
            return float("nan")
        z = 1 - position(y, image.shape[0]) if self.vertical else position(x, image.shape[1])
        return float(np.clip(z, 0, 1))


class StrokeThickness:
    """Share of the 5,000 real digits with thinner strokes; NaN for an image without ink."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.array([thickness_factor(stroke_thickness(image)) for image in to_grey(images)])


class Regression:
    """What an evaluator says that train_evaluator.py trained on a factor's true values (paper, appendix K)."""

    def __init__(self, folder: str | Path) -> None:
        self.evaluator = load_evaluator(folder)
        if self.evaluator.config["classes"] is not None:
            raise ValueError(f"`{folder}` tells classes apart; expected an evaluator of a number.")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return evaluator_logits(self.evaluator, images)[:, 0].sigmoid().double().numpy()


def load_measure(name: str) -> Measure:
    """ "position" and "height" of circles, "thickness" of digits, or else the evaluator in the folder `name`."""
    if name in ("position", "height"):
        return CirclePosition(vertical=name == "height")
    if name == "thickness":
        return StrokeThickness()
    if not Path(name).is_dir():
        raise ValueError(
            f"`measure` is {name!r}; expected 'position', 'height', 'thickness' or the folder of an evaluator."
        )
    return Regression(name)
