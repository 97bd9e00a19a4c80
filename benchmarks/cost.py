"""CPU time of an image, unguided and guided at the pipeline's defaults, on one core.

    python benchmarks/cost.py pipelines/digits pipelines/digits-cfg --out runs/benchmarks/cost.json

Writes seconds by pipeline; other programs on the machine don't count.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from diffusers_multiguidance.generate import generate, load_pipeline
from record import save_results


def main(
    pipelines: list[Path],
    out: Annotated[Path, typer.Option(help="JSON file.")],
    num_images: Annotated[int, typer.Option()] = 32,
) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for path in pipelines:
        loaded = load_pipeline(path)
        attribute = next(iter(loaded.attributes))
        seconds = {}
        for name, call in {"unguided": {}, "guided": {"target": {attribute: 0.5}}}.items():
            generate(loaded, 1, num_inference_steps=2)  # what only the first images cost
            started = time.process_time()
            generate(loaded, num_images, description=f"{path.name}, {name}", **call)
            seconds[name] = (time.process_time() - started) / num_images
        results[path.name] = {**loaded.resolve_call(), "seconds_per_image": seconds}
        print(path.name, results[path.name])
    save_results(out, {"num_images": num_images, "pipelines": results})


if __name__ == "__main__":
    typer.run(main)
