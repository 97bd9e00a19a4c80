"""The `multiguidance` command: a demo, samples from any pipeline, their evaluation, calibration, and the Hub."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from .guidance import Target
from .utils.exits import exit_codes
from .utils.files import add_to_folder

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

EvaluatorName = Annotated[
    str | None,
    typer.Option(
        "--evaluator",
        help="circle-position, circle-height, stroke-thickness or the folder of one; the pipeline's own unless given.",
    ),
]
SchedulerName = Annotated[
    str | None,
    typer.Option("--scheduler", help="ddpm, ddim, sde-dpmsolver++, unipc, ...; the pipeline's unless given."),
]
NumSteps = Annotated[int | None, typer.Option(help="What the scheduler was tuned for unless given.")]
GuidanceScale = Annotated[float | None, typer.Option(help="What the scheduler was tuned for unless given.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.")]


def main() -> None:
    """Run the command, ending as `exit_codes` says."""
    with exit_codes("multiguidance"):
        try:
            app()
        except ModuleNotFoundError as error:
            raise ValueError(f'{error}; expected `pip install "diffusers-multiguidance[eval]"`.') from error


@app.command()
def demo(out: OutFolder = Path("demo")) -> None:
    """Generate circles by a model that saw only the left and the right: without and with multi-guidance."""
    from .evaluation.demo import write_demo
    from .evaluation.evaluators import CirclePosition
    from .generate import generate, load_pipeline

    folder = Path(__file__).parents[2] / "pipelines" / "circles-32"
    if not folder.is_dir():
        raise ValueError(f"`demo` found no {folder}; expected the package to be installed from a clone, with `-e`.")
    pipeline = load_pipeline(folder)
    with add_to_folder(out) as temporary:
        images = {
            "unguided": generate(pipeline, 64, description="unguided"),
            "multi-guidance": generate(pipeline, 64, description="multi-guidance", target={"position": 0.5}),
        }
        summaries = write_demo(images, CirclePosition(), "position", temporary)
    for name, summary in summaries.items():
        print_summary(name, summary)
    console.print(f"Look at {out / 'demo.png'}")


@app.command()
def sample(
    pipeline: Annotated[str, typer.Argument(help="A pipeline folder, or its id on the Hub.")],
    out: OutFolder = Path("samples"),
    num_images: Annotated[int, typer.Option()] = 16,
    num_inference_steps: NumSteps = None,
    seed: Annotated[int, typer.Option()] = 0,
    target: Annotated[
        list[str] | None, typer.Option(metavar="ATTRIBUTE=VALUE", help="0 to 1, or 'uniform'; repeatable.")
    ] = None,
    guidance_scale: GuidanceScale = None,
    scheduler: SchedulerName = None,
) -> None:
    """Generate images; without --target the plain, unguided ones."""
    from .generate import generate, load_pipeline
    from .utils.images import image_grid, to_pil

    aims = dict(parse_target(word) for word in target) if target else None
    loaded = load_pipeline(pipeline, scheduler)
    call = loaded.resolve_call(num_inference_steps, guidance_scale)
    with add_to_folder(out) as folder:
        started = time.monotonic()
        sampling: dict[str, Any] = {key: call[key] for key in call if key != "scheduler"}
        images = generate(loaded, num_images, seed, target=aims, **sampling)
        seconds = time.monotonic() - started
        record = {
            "pipeline": pipeline,
            "num_images": num_images,
            "seed": seed,
            "target": aims,
            **call,
            "seconds": round(seconds, 2),
            "versions": {name: version(name) for name in ("diffusers-multiguidance", "diffusers", "torch", "numpy")},
        }
        np.savez_compressed(folder / "images.npz", images=images)
        image_grid(to_pil(images[:256])).save(folder / "grid.png")
        (folder / "sample.json").write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"{num_images} images in {out}, {seconds:.1f} s")


@app.command()
def calibrate(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder; the calibration is added to it.")],
    attribute: Annotated[str, typer.Option()],
    evaluator: EvaluatorName = None,
    scheduler: SchedulerName = None,
    num_inference_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    num_target_probabilities: Annotated[int, typer.Option(help="Spread evenly over [0, 1].")] = 21,
    num_images: Annotated[int, typer.Option(help="For each target probability.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Measure which value each target probability leads to, so that a target means a measured value."""
    from .calibration import calibrate as calibrate_folder

    calibrate_folder(
        pipeline,
        attribute,
        evaluator,
        scheduler,
        num_inference_steps,
        guidance_scale,
        num_target_probabilities=num_target_probabilities,
        num_images=num_images,
        seed=seed,
    )


@app.command()
def evaluate(
    samples: Annotated[Path, typer.Argument(help="Folder that `multiguidance sample` wrote.")],
    attribute: Annotated[str, typer.Option(help="One of the pipeline's.")],
    out: OutFolder,
    evaluator: EvaluatorName = None,
) -> None:
    """Evaluate an attribute of samples: report.json, histogram.png and grid.png."""
    from .evaluation.evaluators import find_evaluator, load_evaluator
    from .evaluation.report import write_report

    images = read_images(samples / "images.npz")
    if evaluator is None:
        evaluator = find_evaluator(json.loads((samples / "sample.json").read_text())["pipeline"], attribute)
    values = load_evaluator(evaluator)(images)
    with add_to_folder(out) as folder:
        summary = write_report(images, values, attribute, folder)
    print_summary(str(samples), summary)


@app.command()
def card(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder.")],
    facts: Annotated[Path, typer.Option(help="YAML, see `hub.card.read_facts`.")],
    load_from: Annotated[str | None, typer.Option(help="Hub id in the example; the folder unless given.")] = None,
) -> None:
    """Write the card of a pipeline, README.md, from what its author knows."""
    from .hub.card import read_facts, write_pipeline_card

    write_pipeline_card(pipeline, read_facts(facts), load_from or pipeline.as_posix())


@app.command()
def publish(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder, with its card.")],
    repo_id: Annotated[str, typer.Option(help="NAMESPACE/NAME on the Hub; without a namespace, yours.")],
    private: Annotated[bool, typer.Option("--private", help="Hide it from others, where it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write; main unless given.")] = None,
) -> None:
    """Upload a pipeline and its card to the Hub, in one commit, with the token of HF_TOKEN or `hf auth login`."""
    from .generate import load_pipeline
    from .hub.publish import publish as upload

    url = upload(load_pipeline(pipeline), repo_id, pipeline, private=private, revision=revision)
    print(url)  # whole, where `console` would break the line


def parse_target(word: str) -> tuple[str, Target]:
    """ "Smiling=0.5" as a pair of attribute and target."""
    attribute, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"`--target` is {word!r}; expected ATTRIBUTE=VALUE.")
    if value == "uniform":
        return attribute, value
    try:
        return attribute, float(value)
    except ValueError:
        raise ValueError(f"`--target` is {word!r}; expected a number or 'uniform' after the '='.") from None


def read_images(path: Path) -> np.ndarray:
    """The (N, H, W, C) uint8 images of an `images.npz`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
    except (OSError, EOFError, BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`{path}` can't be read ({error}); expected what `multiguidance sample` writes.") from error
    if len(images) == 0:
        raise ValueError(f"`{path}` holds no image; expected at least one.")
    return images


def print_summary(name: str, summary: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table(title=name, show_header=False)
    for key, value in summary.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
