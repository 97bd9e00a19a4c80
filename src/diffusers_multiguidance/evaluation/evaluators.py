"""Evaluators: how much an image shows an attribute, a value in [0, 1] per image, NaN where it can't be told.

Images are (N, H, W, C) uint8 with C of 1 or 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from ..data.circles import RADIUS, position
from ..data.digits import stroke_thickness, thickness_factor
from ..data.objects import object_size
from ..models.evaluator import ImageClassifier

Evaluator = Callable[[np.ndarray], np.ndarray]


def to_grey(images: np.ndarray) -> np.ndarray:
    """(N, H, W) uint8."""
    check_images(images)
    return images.mean(axis=-1).round().astype(np.uint8)


def check_images(images: np.ndarray) -> None:
    """Raise `ValueError` unless they are (N, H, W, 1 or 3) uint8."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(f"`images` is {images.dtype} of shape {images.shape}; expected (N, H, W, 1 or 3) uint8.")


class CirclePosition:
    """Horizontal position z of the one circle in the image (paper, section 5.5), by contour detection with OpenCV.

    With `vertical` its height, from the bottom to the top. NaN (malformed) unless there is exactly one contour and it
    fits a circle of radius 2: enclosing radius 1.5 to 2.75 (a rendered one has 2.0) and 9 to 17 bright pixels (a
    rendered one has 13).
    """

    def __init__(self, vertical: bool = False) -> None:
        self.vertical = vertical

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.array([self._value(image) for image in to_grey(images)])

    def _value(self, image: np.ndarray) -> float:
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


class ObjectSize:
    """Size of the one object on a shaded ground (paper, appendix K), see `object_size`; NaN for none or several."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        check_images(images)
        return np.array([object_size(image) for image in images])


class TrainedEvaluator:
    """A network of train_evaluator.py: the number that it learnt (paper, appendix K), or the high class's probability.

    The disagreement of an ensemble's members says how unsure it is: see `extractors.look`.

    Raises:
        ValueError: for a folder without one, or one that tells more than two classes apart.
    """

    def __init__(self, folder: str | Path) -> None:
        self.network = load_network(folder)
        classes = self.network.config["classes"]
        if classes is not None and len(classes) != 2:
            raise ValueError(
                f"`{folder}` tells {len(classes)} classes apart; expected an evaluator of a number, or of two."
            )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return to_values(network_logits(self.network, images)).numpy()


def to_values(logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., number of outputs) as values (...) float64: of one output the number, of two the second's share."""
    logits = logits.double()
    return logits[..., 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(dim=-1)[..., 1]


class ZeroShotEvaluator:
    """How much better the second sentence fits an image than the first, by a CLIP-like model of transformers.

    The value is the second one's share of the softmax over both. Nothing calibrates it: what it gives an image between
    the two depends on the sentences.

    Args:
        model: folder or Hub id of a model with encoders of images and texts (CLIP, SigLIP, ...).
        sentences: of the low and of the high class, say "a frowning face" and "a smiling face".

    Raises:
        ValueError: for a model that can't be read, or an empty sentence.
    """

    def __init__(self, model: str | Path, sentences: tuple[str, str]) -> None:
        from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

        if len(sentences) != 2 or not all(map(str.strip, sentences)):
            raise ValueError(f"`sentences` are {sentences!r}; expected two, of the low and of the high class.")
        self.sentences = list(sentences)
        try:
            self.processor = AutoProcessor.from_pretrained(model)
            self.network = AutoModelForZeroShotImageClassification.from_pretrained(model, use_safetensors=True).eval()
        except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"`{model}` can't be read ({reason}); expected a model such as CLIP.") from error

    def __call__(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        check_images(images)
        colour = images.repeat(3 // images.shape[-1], axis=-1)
        logits = [torch.zeros(0, 2)]
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = list(colour[start : start + batch_size])
                # Padded as far as it was trained to read, which SigLIP wants.
                inputs = self.processor(
                    text=self.sentences, images=batch, return_tensors="pt", padding="max_length", truncation=True
                )
                logits.append(self.network(**inputs).logits_per_image)
        return to_values(torch.cat(logits)).numpy()


EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "circle-position": CirclePosition,
    "circle-height": partial(CirclePosition, vertical=True),
    "stroke-thickness": StrokeThickness,
    "object-size": ObjectSize,
}


def load_evaluator(name: str | Path, argument: str = "evaluator") -> Evaluator:
    """One of `EVALUATORS`, that in a folder, or a zero-shot one.

    Args:
        name: of one of them, the folder, or "MODEL:LOW SENTENCE:HIGH SENTENCE", see `ZeroShotEvaluator`.
        argument: that gave it, for errors.

    Raises:
        ValueError: where there is none of them.
    """
    if str(name) in EVALUATORS:
        return EVALUATORS[str(name)]()
    if Path(name).is_dir():
        return TrainedEvaluator(name)
    model, *sentences = str(name).rsplit(":", 2)
    if len(sentences) == 2:
        return ZeroShotEvaluator(model, (sentences[0], sentences[1]))
    raise ValueError(
        f"`{argument}` is {str(name)!r}; expected one of {list(EVALUATORS)}, the folder of one, or "
        "'MODEL:LOW SENTENCE:HIGH SENTENCE' for a zero-shot one."
    )


def check_evaluator(evaluator: Evaluator, size: tuple[int, int], channels: int) -> None:
    """Raise `ValueError`, before anything is sampled, for an evaluator that can't look at such images."""
    evaluator(np.zeros((1, *size, channels), np.uint8))


def find_evaluator(pipeline: str | Path, attribute: str, argument: str = "evaluator") -> str:
    """Name or folder of the evaluator that belongs to an attribute of a pipeline, for `load_evaluator`.

    It is what the pipeline carries in `evaluators/<attribute>`, or else what it was calibrated by.

    Args:
        pipeline: a folder, or an id on the Hub.
        argument: that may give one, for errors.

    Raises:
        ValueError: where there is neither.
    """
    folder = Path(pipeline)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(pipeline), allow_patterns=["model_index.json", "evaluators/*"]))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"`pipeline` {str(pipeline)!r} is no folder here, and can't be downloaded ({reason}); expected a "
                f"pipeline, or `--{argument.replace('_', '-')}`."
            ) from error
    carried = folder / "evaluators" / attribute
    if carried.is_dir():
        return str(carried)
    try:
        calibrations = json.loads((folder / "model_index.json").read_text()).get("calibrations", {})
        used = [calibration["evaluator"] for calibration in calibrations.get(attribute, [])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"`pipeline` {str(pipeline)!r} can't be read ({error}); expected a pipeline.") from error
    for name in used:
        if name in EVALUATORS:
            return name
    raise ValueError(
        f"`attribute` is {attribute!r}, for which {pipeline} has no evaluator; expected "
        f"`--{argument.replace('_', '-')}` with one of {list(EVALUATORS)} or the folder of one."
    )


def load_network(folder: str | Path) -> ImageClassifier:
    """The network that train_evaluator.py wrote into a folder.

    Raises:
        ValueError: where there is none, or a broken one.
    """
    try:
        network, info = ImageClassifier.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
            raise ValueError("the weights are not those that its config.json describes")
        return network
    except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"`{folder}` can't be read ({reason}); expected what train_evaluator.py writes.") from error


def check_fits(network: ImageClassifier, images: np.ndarray) -> None:
    """Raise `ValueError` for images of another shape than a network was made for."""
    expected = (*network.image_size, network.config["in_channels"])
    if images.shape[1:] != expected:
        raise ValueError(
            f"`images` have shape {images.shape}; expected (N, {', '.join(map(str, expected))}) for this evaluator."
        )


def network_logits(network: ImageClassifier, images: np.ndarray, batch_size: int = 256) -> torch.Tensor:
    """What a network says of images (N, H, W, C) uint8: (N, number of outputs).

    Raises:
        ValueError: for images that it was not made for.
    """
    check_fits(network, images)
    network.eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        logits = [network(batch.float() / 127.5 - 1) for batch in pixels.split(batch_size)]
    return torch.cat(logits)
