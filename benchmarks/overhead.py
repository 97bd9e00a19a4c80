"""CPU time of the pipeline's call against a bare loop: denoiser forward, classifiers forward and backward.

    python benchmarks/overhead.py pipelines/circles-32 --out runs/benchmarks/overhead.json

The bare loop takes the networks as diffusers loads them: contiguous, and with weights that want gradients.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from diffusers_multiguidance.generate import load_pipeline
from record import save_results


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    batch_size: Annotated[list[int], typer.Option(help="Repeatable.")] = [16, 1],  # noqa: B006
    num_inference_steps: Annotated[int, typer.Option()] = 10,
    repetitions: Annotated[int, typer.Option()] = 15,
) -> None:
    loaded, bare = load_pipeline(pipeline), load_pipeline(pipeline)
    attribute = next(iter(loaded.attributes))
    denoiser = bare.denoiser
    classifiers = bare.classifiers.requires_grad_(True).to(memory_format=torch.contiguous_format)

    def bare_loop(count: int) -> None:
        x = torch.randn(count, bare.channels, *bare.image_size)
        weights = torch.full((count, 2), 30.0)
        with torch.no_grad():
            for timestep in range(num_inference_steps):
                denoiser(x, timestep)
                with torch.enable_grad():
                    x_t = x.detach().requires_grad_()
                    log_probs = classifiers(x_t, timestep).logits[attribute].log_softmax(dim=1)
                    torch.autograd.grad((weights * log_probs).sum(), x_t)

    def call(count: int) -> None:
        loaded(
            count,
            target={attribute: 0.5},
            calibration=None,
            guidance_interval=(0, 1),  # the bare loop guides all along, too
            num_inference_steps=num_inference_steps,
            output_type="np",
        )

    results = {}
    for count in batch_size:
        ratios = []
        for repetition in range(1 + repetitions):  # in turn, so that both meet the same machine
            seconds = []
            for run in (bare_loop, call):
                started = time.process_time()
                for _ in range(max(1, 16 // count)):
                    run(count)
                seconds.append(time.process_time() - started)
            if repetition:  # the first one warms up
                ratios.append(seconds[1] / seconds[0])
        results[str(count)] = {"median_ratio": statistics.median(ratios), "ratios": ratios}
        print(f"batch {count}: pipeline / bare loop {statistics.median(ratios):.3f}")
    save_results(out, results)


if __name__ == "__main__":
    typer.run(main)
