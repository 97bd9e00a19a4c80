"""The `multiguidance` command: a demo, samples from any pipeline, their evaluation, calibration, and the Hub."""

from __future__ import annotations

import json
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from .utils.files import add_to_folder
from .guidance import Target

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

MeasureName = Annotated[
    str | None,
    typer.Option(
        "--measure",
        help="position or height (circles), thickness (digits), or an evaluator's folder; the attribute unless given.",
    ),
]
SamplerName = Annotated[
    str | None,
    typer.Option(help="ddpm, ddim, dpmsolver++ or sde-dpmsolver++; the pipeline's default unless given."),
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.")]


def main() -> None:
    """Run the command; a wrong value ends in one sentence and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"multiguidance: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        print(f'multiguidance: {error}; expected `pip install "diffusers-multiguidance[eval]"`.', file=sys.stderr)
        sys.exit(2)


@app.command()
def demo(out: OutFolder = Path("demo")) -> None:
    """Draw circles from a model that saw only the left and the right: without and with multi-guidance."""
    from .evaluation.attributes import CirclePosition
    from .evaluation.demo import write_demo
    from .generate import generate

    folder = Path(__file__).parents[2] / "pipelines" / "circles"
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
    num_inference_steps: Annotated[int | None, typer.Option(help="The pipeline's default unless given.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    target: Annotated[
        list[str] | None, typer.Option(metavar="ATTRIBUTE=VALUE", help="0 to 1, or 'uniform'; repeatable.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="The pipeline's default unless given.")] = None,
    sampler: SamplerName = None,
) -> None:
    """Draw images; without --target the plain, unguided ones."""
    from .generate import generate
    from .utils.images import image_grid, to_pil

    call: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "target": dict(parse_target(word) for word in target) if target else None,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
    }
    loaded = load_pipeline(pipeline)
    with add_to_folder(out) as folder:
        started = time.monotonic()
        images = generate(loaded, num_images, seed, **call)
        seconds = time.monotonic() - started
        record = {
            "pipeline": pipeline,
            "num_images": num_images,
            "seed": seed,
            **call,
            "num_inference_steps": num_inference_steps or loaded.config["default_num_inference_steps"],
            "guidance_scale": loaded.config["default_guidance_scale"] if guidance_scale is None else guidance_scale,
            "guidance_interval": loaded.config["default_guidance_interval"],
            "sampler": sampler or loaded.config["default_sampler"],
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
    measure: MeasureName = None,
    sampler: SamplerName = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="The pipeline's default unless given.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="The pipeline's default unless given.")] = None,
    num_set_points: Annotated[int, typer.Option(help="Spread evenly over [0, 1].")] = 21,
    num_images: Annotated[int, typer.Option(help="For each set point.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Measure which strength each set point leads to, so that a target means a measured strength."""
    from .calibration import add_calibration, weights_fingerprint
    from .evaluation.attributes import load_measure
    from .evaluation.calibration import fit_calibration, save_calibration_plot
    from .generate import generate

    if num_set_points < 3:
        raise ValueError(f"`--num-set-points` is {num_set_points}; expected at least 3.")
    if not pipeline.is_dir():
        raise ValueError(f"`PIPELINE` is {str(pipeline)!r}; expected a folder.")
    measured = load_measure(measure or attribute)
    loaded = load_pipeline(pipeline)
    call: dict[str, Any] = {
        "sampler": sampler or loaded.config["default_sampler"],
        "num_inference_steps": num_inference_steps or loaded.config["default_num_inference_steps"],
        "guidance_scale": loaded.config["default_guidance_scale"] if guidance_scale is None else guidance_scale,
        "guidance_interval": list(loaded.config["default_guidance_interval"]),
    }
    set_points = np.linspace(0, 1, num_set_points)
    strengths = [
        measured(
            generate(
                loaded,
                num_images,
                seed + number,
                description=f"set point {set_point:.2f}",
                target={attribute: float(set_point)},
                calibration=None,
                **call,
            )
        )
        for number, set_point in enumerate(set_points)
    ]
    fit = fit_calibration(set_points, np.stack(strengths))
    fingerprint = weights_fingerprint([loaded.unet, *loaded.classifiers.members])
    points = {name: fit[name] for name in ("set_points", "strengths", "even_strengths")}
    record = {
        "measure": measure or attribute,
        "measured": fit["measured"],
        "num_images": num_images,
        "seed": seed,
        "date": date.today().isoformat(),
    }
    add_calibration(pipeline, attribute, {**call, **points, "fingerprint": fingerprint}, record)
    save_calibration_plot(fit, attribute, pipeline / f"calibration_{attribute}.png")


@app.command()
def evaluate(
    samples: Annotated[Path, typer.Argument(help="Folder that `multiguidance sample` wrote.")],
    attribute: Annotated[str, typer.Option(help="Its name in the report.")],
    out: OutFolder,
    measure: MeasureName = None,
) -> None:
    """Measure an attribute on samples: report.json, histogram.png and grid.png."""
    from .evaluation.attributes import load_measure
    from .evaluation.report import write_report

    measured = load_measure(measure or attribute)
    images = read_images(samples / "images.npz")
    values = measured(images)
    with add_to_folder(out) as folder:
        summary = write_report(images, values, attribute, folder)
    print_summary(str(samples), summary)


@app.command()
def publish(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder, with its card.")],
    repo_id: Annotated[str, typer.Option(help="NAMESPACE/NAME on the Hub; without a namespace, yours.")],
    private: Annotated[bool, typer.Option("--private", help="Hide it from others, where it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write; main unless given.")] = None,
) -> None:
    """Upload a pipeline and its card to the Hub, in one commit, with the token of HF_TOKEN or `hf auth login`."""
    from .hub.publish import publish as upload

    url = upload(pipeline, repo_id, private=private, revision=revision)
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


def load_pipeline(pipeline: str | Path) -> Any:
    """A pipeline ready to sample, from a folder or the Hub, on a GPU where there is one."""
    import torch

    from .pipelines import MultiGuidanceDDPMPipeline

    loaded = MultiGuidanceDDPMPipeline.from_pretrained(pipeline)
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


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
