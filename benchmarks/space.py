"""The Space under load: seconds from click to image, many users at once, memory over many generations.

    python benchmarks/space.py --out runs/benchmarks/space.json

Writes that JSON file once all generations are done.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from gradio_client import Client

from record import save_results

SPACE = Path(__file__).parents[1] / "spaces" / "interpolation"
STEPS, IMAGES = 20, 4


@contextmanager
def space(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a freshly started Space, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    environment = {
        **os.environ,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=SPACE, env=environment, stdout=log, stderr=log)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def generate(client: Client, pipeline: str, seed: int) -> tuple[float, float, Any]:
    """Seconds from the click to the first image that shows anything, and to the finished ones; and these."""
    started = time.perf_counter()
    settings = {"pipeline": pipeline, "scheduler": "ddpm", "scale": 60, "steps": STEPS, "images": IMAGES, "seed": seed}
    job = client.submit(settings, api_name="/generate")
    first = 0.0
    for output in job:
        first = first or time.perf_counter() - started
        images = output[0]
    return first, time.perf_counter() - started, images


def main(
    out: Annotated[Path, typer.Option()],
    pipeline: Annotated[str, typer.Option()] = "circles-32",
    users: Annotated[int, typer.Option()] = 20,
    generations: Annotated[int, typer.Option()] = 200,
) -> None:
    result: dict[str, Any] = {"pipeline": pipeline, "steps": STEPS, "images": IMAGES, "users": users}
    with tempfile.TemporaryDirectory() as folder, space(Path(folder)) as (address, process):
        clients = [Client(address, verbose=False, download_files=folder) for _ in range(users)]
        generate(clients[0], pipeline, seed=0)  # the first one warms up
        firsts, seconds, _ = zip(*(generate(clients[0], pipeline, seed) for seed in range(1, 4)), strict=True)
        result["alone"] = {"first_image": statistics.median(firsts), "finished": statistics.median(seconds)}
        print(f"alone: first image {result['alone']['first_image']:.2f} s, {result['alone']['finished']:.2f} s in all")

        with ThreadPoolExecutor(users) as pool:
            futures = [pool.submit(generate, client, pipeline, seed) for seed, client in enumerate(clients)]
            served = [future.result() for future in futures]
        totals = sorted(total for _, total, _ in served)
        pictures = {Path(image["image"]).read_bytes() for _, _, images in served for image in images}
        if len(pictures) != users * IMAGES:
            raise SystemExit(f"{users} users got {len(pictures)} different images; expected {users * IMAGES}.")
        result["at_once"] = {"fastest": totals[0], "median": statistics.median(totals), "slowest": totals[-1]}
        print(f"{users} at once: {totals[0]:.1f} to {totals[-1]:.1f} s, each with images of their own")

        memory = []
        for number in range(generations):
            generate(clients[number % users], pipeline, seed=1000 + number)
            memory.append(process.memory_info().rss / 2**20)
            if (number + 1) % max(1, generations // 10) == 0:
                print(f"after {number + 1} generations: {memory[-1]:.0f} MiB")
        result["memory_mib"] = memory
        # The first fifth fills caches; what counts is what comes after.
        settled = memory[len(memory) // 5 :]
        result["growth_mib"] = statistics.mean(settled[-10:]) - statistics.mean(settled[:10])
        print(f"growth after the first fifth: {result['growth_mib']:+.1f} MiB")
    save_results(out, result)


if __name__ == "__main__":
    typer.run(main)
