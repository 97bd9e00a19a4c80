"""Time and memory of evaluating images, against the bare forward passes of the evaluator.

    python benchmarks/evaluation.py pipelines/faces-rendered/evaluators/Smiling --out runs/benchmarks/evaluation.json

Evaluated are random images of the evaluator's size: values, intervals, FID, KID, precision and recall against as many
others, by its features. The bare passes are over all of both. Time is the process's, on as many cores as torch takes;
memory is the most that a process of its own held, with all libraries.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from diffusers_multiguidance.data.transforms import scale_pixels
from diffusers_multiguidance.evaluation.evaluation import Evaluation
from diffusers_multiguidance.evaluation.evaluators import TrainedEvaluator
from diffusers_multiguidance.evaluation.extractors import BATCH_SIZE, evaluator_extractor
from record import save_results


def random_images(network: torch.nn.Module, count: int, seed: int) -> np.ndarray:
    """Blobs rather than noise, (count, H, W, C) uint8, so that they have different values."""
    height, width = network.image_size
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, network.config["in_channels"]), np.uint8)
    return small.repeat(height // 4, axis=1).repeat(width // 4, axis=2)


def main(
    evaluator: Path,
    out: Annotated[Path, typer.Option()],
    num_images: Annotated[int, typer.Option(help="For the time.")] = 10_000,
    many_images: Annotated[int, typer.Option(help="For the memory.")] = 50_000,
) -> None:
    evaluate = TrainedEvaluator(evaluator)
    generated, real = (random_images(evaluate.network, num_images, seed) for seed in (0, 1))
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
    command = [sys.executable, __file__, "--memory", str(evaluator), str(many_images)]
    held = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    results = {
        "network": evaluator_extractor(evaluate.network).name,
        "num_images": num_images,
        "seconds_bare": round(bare, 2),
        "seconds": round(seconds, 2),
        "ratio": round(seconds / bare, 3),
        "many_images": many_images,
        "gibibytes": round(held, 2),
    }
    print(results)
    save_results(out, results)


def print_memory(evaluator: Path, num_images: int) -> None:
    """The most gibibytes that this process held after evaluating that many images against as many."""
    evaluate = TrainedEvaluator(evaluator)
    generated, real = (random_images(evaluate.network, num_images, seed) for seed in (0, 1))
    Evaluation(evaluate, extract=evaluator_extractor(evaluate.network), reference=real)(generated)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_memory(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        typer.run(main)
