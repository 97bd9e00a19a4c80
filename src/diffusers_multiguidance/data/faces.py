"""Rendered faces with CelebA's column names, whose true smile, hair lightness and skin tone are known.

A stand-in for CelebA where it cannot be had, and a test of the filter: what it lets slip is counted, not guessed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.fingerprint import Hasher
from PIL import Image as PILImage

# P(label = yes | latent z) = sigmoid((z - middle) / softness): people agree on clear faces and not on mild ones.
LABEL_NOISE = {
    "Smiling": ("Smiling", 0.5, 0.1),
    "Black_Hair": ("Hair", 0.3, -0.06),
    "Blond_Hair": ("Hair", 0.7, 0.06),
    "Pale_Skin": ("Pale_Skin", 0.75, 0.08),
}
HAIR_CLASSES = ["black", "blond"]

# Colours at latent 0, 0.5 and 1.
HAIR_COLORS = ((20, 17, 18), (120, 76, 46), (244, 212, 134))
SKIN_COLORS = ((92, 56, 40), (205, 150, 112), (252, 226, 206))
RED_LIPS = (170, 45, 58)


@dataclass(frozen=True)
class Latents:
    """What a face is rendered from; each in [0, 1]."""

    smile: float  # from a frown to an open grin
    hair: float  # from black to blond
    skin: float  # from dark to pale


class _Canvas:
    """Filled shapes in face coordinates: the head's centre is (0, 0), its half height about 1, y points down."""

    def __init__(self, width: int, height: int, color: np.ndarray, pose: np.ndarray) -> None:
        self.pixels = np.full((height, width, 3), color, np.uint8)
        self.pose = pose  # (2, 3) affine map to pixels
        self.scale = float(np.hypot(*pose[:, 0]))

    def _points(self, points: np.ndarray) -> np.ndarray:
        return np.rint(16 * (points @ self.pose[:, :2].T + self.pose[:, 2])).astype(np.int32)  # 4 bits below a pixel

    def fill(self, points: np.ndarray, color: np.ndarray | tuple[int, ...]) -> None:
        cv2.fillPoly(self.pixels, [self._points(points)], [float(c) for c in color], cv2.LINE_8, 4)

    def line(self, points: np.ndarray, width: float, color: np.ndarray | tuple[int, ...]) -> None:
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.pixels, [self._points(points)], False, [float(c) for c in color], thickness, cv2.LINE_8, 4)


_ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_SPAN = np.linspace(-1, 1, 17)


def _ellipse(x: float, y: float, width: float, height: float) -> np.ndarray:
    return _CIRCLE * (width, height) + (x, y)


def _curve(x: float, y: float, half_width: float, drop: float) -> np.ndarray:
    """A parabola through (x, y), whose ends lie `drop` lower."""
    return np.stack([x + half_width * _SPAN, y + drop * _SPAN**2], axis=1)


def _blend(colors: tuple[tuple[int, ...], ...], share: float) -> np.ndarray:
    return np.array([np.interp(share, (0, 0.5, 1), channel) for channel in zip(*colors, strict=True)])


def render_face(
    latents: Latents,
    rng: np.random.Generator,
    width: int,
    height: int,
    lip_color: tuple[int, int, int] = RED_LIPS,
) -> np.ndarray:
    """Render one face.

    Everything that `latents` does not say is drawn from `rng` and independent of them: shape and pose of the head,
    eyes, brows, hair style, glasses, clothes, background, light.

    Returns:
        (height, width, 3) uint8 RGB, antialiased. The face fills the central square.
    """
    sampling = max(2, -(-192 // min(width, height)))  # render larger, then average
    side = min(width, height) * sampling
    angle, size = np.radians(rng.uniform(-9, 9)), rng.uniform(0.38, 0.42) * side
    shift = np.array([rng.uniform(-0.03, 0.03), rng.uniform(0.0, 0.05)])
    center = np.array([width, height]) * sampling / 2 + side * shift
    rotation = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pose = np.concatenate([rotation, center[:, None]], axis=1)
    background = 0.6 * rng.integers(40, 240, 3) + 0.4 * rng.integers(90, 220)
    canvas = _Canvas(width * sampling, height * sampling, background, pose)

    skin, hair = _blend(SKIN_COLORS, latents.skin), _blend(HAIR_COLORS, latents.hair)
    shadow = 0.8 * skin
    head_width, jaw, turn = rng.uniform(0.70, 0.80), rng.uniform(0.82, 1.0), rng.uniform(-0.07, 0.07)
    style = rng.choice(["short", "part", "fringe", "long", "bob", "curls"])

    # Behind the head: long hair, shoulders, neck, ears.
    if style in ("long", "bob"):
        canvas.fill(_ellipse(0, -0.15, head_width + 0.22, 1.0), hair)
        fall = 1.5 if style == "long" else 0.75
        edge = head_width + 0.2
        canvas.fill(np.array([(-edge, -0.2), (edge, -0.2), (edge + 0.03, fall), (-edge - 0.03, fall)]), hair)
    elif style == "curls":
        for curl in np.linspace(-np.pi, 0, 11) + rng.uniform(-0.1, 0.1, 11):
            at = (head_width + 0.06) * np.cos(curl), 0.98 * np.sin(curl) + 0.05
            canvas.fill(_ellipse(*at, 0.27, 0.27), hair)
    canvas.fill(_ellipse(0, 1.95, 1.25, 0.72), rng.integers(30, 220, 3))
    canvas.fill(np.array([(-0.3, 0.6), (0.3, 0.6), (0.34, 1.4), (-0.34, 1.4)]), shadow)
    for sign in (-1, 1):
        canvas.fill(_ellipse(sign * head_width, 0.05, 0.12, 0.2), shadow)

    # The head: an ellipse whose lower half is drawn in towards the chin.
    outline = _CIRCLE * (head_width, 1.0)
    outline[:, 0] *= np.where(outline[:, 1] > 0, 1 - (1 - jaw) * outline[:, 1].clip(0) ** 2, 1)
    canvas.fill(outline, skin)

    # Eyes and brows, which show a smile too: it narrows the eyes and lifts the brows.
    apart, eye_y = rng.uniform(0.29, 0.36), rng.uniform(-0.12, -0.04)
    eye_width, eye_height = rng.uniform(0.13, 0.17), rng.uniform(0.085, 0.12) * (1 - 0.2 * latents.smile)
    iris = np.array([(70, 45, 30), (60, 90, 140), (70, 110, 70), (40, 30, 25)][rng.integers(4)])
    brow_y, brow_width = eye_y - rng.uniform(0.21, 0.27), rng.uniform(0.05, 0.09)
    brow_tilt = 0.22 * (latents.smile - 0.5) + rng.uniform(-0.02, 0.02)  # a frown draws their inner ends down
    gaze = rng.uniform(-0.3, 0.3) * eye_width
    for sign in (-1, 1):
        eye_x = turn + sign * apart
        canvas.fill(_ellipse(eye_x, eye_y, eye_width, eye_height), (248, 248, 248))
        canvas.fill(_ellipse(eye_x + gaze, eye_y, 0.75 * eye_height, 0.9 * eye_height), iris)
        canvas.fill(_ellipse(eye_x + gaze, eye_y, 0.4 * eye_height, 0.45 * eye_height), (15, 15, 15))
        canvas.line(_curve(eye_x, eye_y - eye_height, eye_width, 0.6 * eye_height), 0.035, 0.35 * skin)
        brow = _curve(eye_x, brow_y, 1.2 * eye_width, 0.05)
        brow[:, 1] += sign * brow_tilt * _SPAN
        canvas.line(brow, brow_width, 0.55 * hair + 0.1 * skin)

    # Nose.
    nose_y, nose_width = rng.uniform(0.22, 0.3), rng.uniform(0.07, 0.12)
    canvas.line(_curve(1.3 * turn, nose_y + 0.03, nose_width, -0.05), 0.045, 0.72 * skin)

    # Mouth: corners down and closed at 0, corners up and wide open with teeth at 1.
    mouth_x, mouth_y = 1.1 * turn, rng.uniform(0.52, 0.58)
    half_width = rng.uniform(0.95, 1.05) * (0.30 + 0.16 * latents.smile)
    corners = 0.28 - 0.54 * latents.smile  # how much lower than the middle
    opening = 0.3 * max(0.0, latents.smile - 0.3) ** 1.2
    lips = 0.35 * skin + 0.65 * np.array(lip_color)
    upper = _curve(mouth_x, mouth_y - 0.4 * corners, half_width, corners)
    if opening > 0:
        lower = upper + np.stack([0 * _SPAN, opening * 1.35 * (1 - _SPAN**2)], axis=1)
        teeth = upper + np.stack([0 * _SPAN, opening * 0.75 * (1 - _SPAN**2)], axis=1)
        canvas.fill(np.concatenate([upper, lower[::-1]]), (95, 25, 35))
        canvas.fill(np.concatenate([upper, teeth[::-1]]), (250, 248, 244))
        canvas.line(lower, 0.08, lips)
    canvas.line(upper, 0.08, lips)

    # Hair on the forehead: all of the head above a line, straight or slanted by a parting.
    slant = 0.5 * rng.choice([-1, 1]) if style in ("part", "long") else 0.0
    line = rng.uniform(-0.6, -0.5) if style in ("short", "part", "curls") else rng.uniform(-0.45, -0.38)
    cap = outline[outline[:, 1] < line + slant * outline[:, 0]] * (1.06, 1.09)
    canvas.fill(cap, hair)

    if rng.random() < 0.25:
        frame = rng.integers(10, 90, 3)
        for sign in (-1, 1):
            lens = _ellipse(turn + sign * apart, eye_y, 0.25, 0.2)
            canvas.line(np.concatenate([lens, lens[:1]]), 0.04, frame)
        canvas.line(np.array([(turn - apart + 0.25, eye_y), (turn + apart - 0.25, eye_y)]), 0.04, frame)

    # Light from somewhere, and a little noise of the sensor.
    pixels = cv2.resize(canvas.pixels, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    slope_x, slope_y = rng.uniform(-0.12, 0.12, 2)
    light = rng.uniform(0.92, 1.05) * (1 + slope_x * columns + slope_y * rows)
    pixels = pixels * light[..., None] + rng.normal(0, 2, pixels.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def render_row(seed: int, number: int, width: int, height: int) -> dict[str, Any]:
    """Face number `number` of a seed, whichever other faces are rendered."""
    rng = np.random.default_rng((seed, number))
    smile, hair, skin = rng.random(3).astype(np.float32)
    factors = {"Smiling": smile, "Hair": hair, "Pale_Skin": skin}
    draws = rng.random(len(LABEL_NOISE))
    labels = {
        name: int(draw < 1 / (1 + np.exp(-(factors[factor] - middle) / softness)))
        for draw, (name, (factor, middle, softness)) in zip(draws, LABEL_NOISE.items(), strict=True)
    }
    return {
        "image": PILImage.fromarray(render_face(Latents(smile, hair, skin), rng, width, height)),
        **labels,
        "Hair": hair_label(labels["Black_Hair"], labels["Blond_Hair"]),
        **{f"factor_{name}": value for name, value in factors.items()},
        "source_index": number,
    }


def hair_label(black: int, blond: int) -> int:
    """0 for black, 1 for blond, -1 (no label) for neither or both."""
    return -1 if black == blond else blond


def _rows(numbers: list[int], seed: int, width: int, height: int) -> Iterator[dict[str, Any]]:
    for number in numbers:
        yield render_row(seed, number, width, height)


def faces(num_images: int, resolution: int = 64, seed: int = 0, num_proc: int | None = None) -> Dataset:
    """Render faces, each latent uniform in [0, 1] and independent of the others.

    The labels are binary and as noisy as people's: with z the latent,

        P(Smiling = yes) = sigmoid((z - 0.5) / 0.1), so 0.7 % at z = 0, 5 % at 0.2, 12 % at 0.3, half at 0.5
        P(Black_Hair = yes) = sigmoid((0.3 - z) / 0.06); P(Blond_Hair = yes) = sigmoid((z - 0.7) / 0.06)
        P(Pale_Skin = yes) = sigmoid((z - 0.75) / 0.08)

    Args:
        num_proc: processes to render with.

    Returns:
        `image` (RGB), `Smiling`, `Black_Hair`, `Blond_Hair`, `Pale_Skin` ("no" or "yes"), `Hair` ("black", "blond",
        or no label, -1, for neither or both), `factor_Smiling`, `factor_Hair`, `factor_Pale_Skin` (the true latents)
        and `source_index`.

    Raises:
        ValueError: for less than one image, or a resolution below 16.
    """
    if num_images < 1:
        raise ValueError(f"`num_images` is {num_images}; expected at least 1.")
    if resolution < 16:
        raise ValueError(f"`resolution` is {resolution}; expected at least 16.")
    arguments = {"seed": seed, "width": resolution, "height": resolution}
    return Dataset.from_generator(
        _rows,
        features=Features(
            {
                "image": Image(),
                **{name: ClassLabel(names=["no", "yes"]) for name in LABEL_NOISE},
                "Hair": ClassLabel(names=HAIR_CLASSES),
                **{f"factor_{name}": Value("float32") for name in ("Smiling", "Hair", "Pale_Skin")},
                "source_index": Value("int64"),
            }
        ),
        gen_kwargs={"numbers": list(range(num_images)), **arguments},
        num_proc=num_proc,
        # The rendering code is part of what the cached result depends on.
        fingerprint=Hasher.hash((inspect.getsource(sys.modules[__name__]), num_images, arguments)),
    )
