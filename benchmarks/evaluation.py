"""Time and memory of evaluating images, against the bare forward passes of the evaluator.

    python benchmarks/evaluation.py --out runs/benchmarks/evaluation.json

Evaluated are random images: values, intervals, FID, KID, precision and recall against as many others, by the
evaluator's features. The bare passes are over all of both. The evaluator is the network that train_evaluator.py takes
unless told otherwise, untrained, so that all images are of the middle and both comparisons are whole. Time is the
process's, on as many cores as torch takes; memory is the most that a process of its own held, with all libraries.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from diffusers_multiguidance.data.transforms import scale_pixels
from diffusers_multiguidance.evaluation.batch import Evaluation
from diffusers_multiguidance.evaluation.evaluators import TrainedEvaluator
from diffusers_multiguidance.evaluation.extractors import BATCH_SIZE, evaluator_extractor
from diffusers_multiguidance.models.evaluator import ImageClassifier
from record import save_results


def random_images(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size, 3) uint8, of 4x4 squares of colour."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return small.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def untrained(model: str, size: int) -> TrainedEvaluator:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ImageClassifier(model, "value", ["low", "high"], 3, size).save_pretrained(folder)
        return TrainedEvaluator(folder)


def main(
    out: Annotated[Path, typer.Option()],
    model: Annotated[str, typer.Option(help="Of timm.")] = "resnet10t",
    size: Annotated[int, typer.Option(help="Of the images, in pixels.")] = 32,
    num_images: Annotated[int, typer.Option(help="For the time.")] = 10_000,
    many_images: Annotated[int, typer.Option(help="For the memory.")] = 50_000,
) -> None:
    evaluate = untrained(model, size)
    generated, real = (random_images(num_images, size, seed) for seed in (0, 1))
    evaluate(generated[:BATCH_SIZE])  # warms up
    started = time.process_time()
    with torch.inference_mode():
        for images in (generated, real):
            for start in range(0, num_images, BATCH_SIZE):
                evaluate.network(scale_pixels(torch.from_numpy(images[start : start + BATCH_SIZE])))
    bare = time.process_time() - started
    started = time.process_time()
    Evaluation(evaluate, extract=evaluator_extractor(evaluate.network), reference=real)(generated)
    seconds = time.process_time() - started
    results = {
        "model": model,
        "size": size,
        "num_images": num_images,
        "seconds_bare": round(bare, 2),
        "seconds": round(seconds, 2),
        "ratio": round(seconds / bare, 3),
        "many_images": many_images,
        "gibibytes": round(measure_memory(model, size, many_images), 2),
    }
    print(results)
    save_results(out, results)


def measure_memory(model: str, size: int, num_images: int) -> float:
    """The most gibibytes that a process held, which did nothing but evaluate that many images."""
    command = [sys.executable, __file__, "--memory", model, str(size), str(num_images)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_memory(model: str, size: int, num_images: int) -> None:
    """The most gibibytes that this process held after evaluating that many images against as many."""
    evaluate = untrained(model, size)
    generated, real = (random_images(num_images, size, seed) for seed in (0, 1))
    Evaluation(evaluate, extract=evaluator_extractor(evaluate.network), reference=real)(generated)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_memory(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        typer.run(main)
