"""Time of the pipeline's call against a bare loop: UNet forward, classifiers forward and backward.

python benchmarks/overhead.py pipelines/circles-ends --out runs/benchmarks/overhead.json
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from diffusers_multiguidance.cli import load_pipeline


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    batch_size: Annotated[int, typer.Option()] = 64,
    num_inference_steps: Annotated[int, typer.Option()] = 10,
    repetitions: Annotated[int, typer.Option()] = 7,
) -> None:
    loaded = load_pipeline(pipeline)
    loaded.set_progress_bar_config(disable=True)
    attribute = next(iter(loaded.attributes))
    unet, classifiers = loaded.unet, loaded.classifiers
    shape = (batch_size, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)

    def bare_loop() -> None:
        x = torch.randn(shape)
        weights = torch.full((batch_size, 2), 30.0)
        with torch.no_grad():
            for timestep in range(num_inference_steps):
                unet(x, timestep)
                with torch.enable_grad():
                    x_t = x.detach().requires_grad_()
                    log_probs = classifiers(x_t, timestep).logits[attribute].log_softmax(dim=1)
                    torch.autograd.grad((weights * log_probs).sum(), x_t)

    def call() -> None:
        loaded(
            batch_size,
            target={attribute: 0.5},
            guidance_interval=(0, 1),  # the bare loop guides all along, too
            num_inference_steps=num_inference_steps,
            output_type="np",
        )

    ratios = []
    for _ in range(repetitions):  # in turn, so that both meet the same machine
        seconds = []
        for run in (bare_loop, call):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
        print(f"bare loop {seconds[0]:.2f} s, pipeline {seconds[1]:.2f} s")
    result = {"median_ratio": statistics.median(ratios), "ratios": ratios, "threads": torch.get_num_threads()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"pipeline / bare loop: {result['median_ratio']:.3f}")


if __name__ == "__main__":
    typer.run(main)
