"""The filter of build_dataset.py: images labelled in a second, and memory against the number of images.

    python benchmarks/filter.py --out runs/benchmarks/filter

Writes `filter.json`. Memory is the most that the script and its children held of their own while they rendered,
trained, labelled and wrote; pages of memory-mapped files, which the system takes back when it has to, do not count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import torch
import typer
from accelerate import Accelerator

from diffusers_multiguidance.curation.labelers import decode, log_odds
from diffusers_multiguidance.data.faces import faces
from diffusers_multiguidance.data.transforms import scale_pixels
from diffusers_multiguidance.models.evaluator import ImageClassifier
from record import save_results

BATCH_SIZE = 64  # build_dataset.py's default
BUILD = Path(__file__).parents[1] / "training" / "build_dataset.py"


def throughput(num_images: int, resolution: int, num_networks: int, rounds: int = 5) -> dict[str, float]:
    """Images a second, by `log_odds` and by a bare loop of the same networks over batches that wait in memory.

    Medians of several rounds in turns, after one that does not count: a process gets faster while it runs.
    """
    networks = [ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 3, resolution) for _ in range(num_networks)]
    accelerator, source, seconds = Accelerator(), faces(num_images, resolution), []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        pixels = decode(accelerator, source, resolution, BATCH_SIZE, Path(folder) / "pixels.npy")
        decoding = time.perf_counter() - started
        waiting = [scale_pixels(batch) for batch in pixels.split(BATCH_SIZE)]
        for _ in range(1 + rounds):
            started = time.perf_counter()
            log_odds(accelerator, networks, pixels, BATCH_SIZE, "filter")
            labelled = time.perf_counter()
            with torch.inference_mode():
                for images in waiting:
                    for network in networks:
                        network(images)
            seconds.append((labelled - started, time.perf_counter() - labelled))
    by_filter, bare = np.array(seconds[1:]).T
    return {
        "filter": float(num_images / np.median(by_filter)),
        "bare loop": float(num_images / np.median(bare)),
        "ratio": float(np.median(bare / by_filter)),
        "decoding, once": num_images / decoding,
    }


def peak_memory(num_images: int, resolution: int, out: Path) -> dict[str, float]:
    """MiB that a build holds at most, and the minutes it takes."""
    flags = ["--dataset", "faces", "--num_images", num_images, "--resolution", resolution, "--attribute", "Smiling"]
    # Networks that hardly learn: how much is read and written does not depend on what they know.
    flags += ["--extremes", "--max_train_steps", 50, "--tau_1", 0.5, "--tau_2", 0.5, "--ensemble_size", 2]
    flags += ["--output_dir", out / f"faces-{num_images}"]
    started, peak = time.monotonic(), 0
    process = psutil.Popen([sys.executable, str(BUILD), *map(str, flags)], stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            held = [p.memory_info() for p in [process, *process.children(recursive=True)]]
            peak = max(peak, sum(memory.rss - memory.shared for memory in held))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"build_dataset.py ended with {process.returncode}")
    return {"peak MiB": peak / 2**20, "minutes": (time.monotonic() - started) / 60}


def main(
    out: Annotated[Path, typer.Option()],
    resolution: Annotated[int, typer.Option()] = 64,
    num_networks: Annotated[int, typer.Option(help="Members of the ensemble.")] = 5,
    num_labelled: Annotated[int, typer.Option(help="Images for the throughput.")] = 5_000,
    num_images: Annotated[list[int], typer.Option(help="For the memory.")] = [20_000, 200_000],  # noqa: B006
) -> None:
    results = {
        "images a second, ensemble": throughput(num_labelled, resolution, num_networks),
        "images a second, labeler": throughput(num_labelled, resolution, 1),
        "memory": {str(count): peak_memory(count, resolution, out) for count in num_images},
    }
    save_results(out / "filter.json", results)


if __name__ == "__main__":
    typer.run(main)
