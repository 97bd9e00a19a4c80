"""The `multiguidance` command: a demo, samples from any pipeline, their evaluation, calibration, and the Hub."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from .utils.files import add_to_folder
from .utils.writable import check_writable

if TYPE_CHECKING:
    from .guidance import Target

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
console = Console()

EvaluatorName = Annotated[
    str | None,
    typer.Option(
        "--evaluator",
        help="circle-position, circle-height, stroke-thickness, object-size or the folder of one; the pipeline's own "
        "unless given.",
    ),
]
SchedulerName = Annotated[
    str | None,
    typer.Option("--scheduler", help="ddpm, ddim, sde-dpmsolver++, unipc, ...; the pipeline's unless given."),
]
NumSteps = Annotated[int | None, typer.Option(help="What the scheduler was tuned for unless given.")]
GuidanceScale = Annotated[float | None, typer.Option(help="What the scheduler was tuned for unless given.")]
Targets = Annotated[
    list[str] | None, typer.Option("--target", metavar="ATTRIBUTE=VALUE", help="0 to 1, or 'uniform'; repeatable.")
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.")]


def run() -> None:
    """Run the command that the arguments name.

    Raises:
        ValueError: for what the user can have caused, wrong arguments among it.
    """
    if "" in sys.argv[1:]:
        raise ValueError("An argument is empty; expected a word.")  # a path would be this folder
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except ModuleNotFoundError as error:
        raise ValueError(f'{error}; expected `pip install "diffusers-multiguidance[eval]"`.') from error
    except Exception as error:
        if hasattr(error, "format_message"):  # of typer or, in older versions, of click
            raise ValueError(error.format_message()) from error
        raise
    if code:  # 130 after Ctrl-C
        sys.exit(code)


@app.command()
def demo(
    pipeline: Annotated[
        str, typer.Option(help="One of the clone's pipelines, a folder, or an id on the Hub.")
    ] = "smiles",
    out: OutFolder = Path("demo"),
) -> None:
    """Generate images from eight noises, from one end of an attribute to the other, beside unguided images."""
    from .evaluation.demo import write_demo
    from .evaluation.evaluators import check_evaluator, find_evaluator, load_evaluator
    from .generate import generate, load_pipeline

    check_writable(out, "--out")
    committed = Path(__file__).parents[2] / "pipelines" / pipeline
    source = committed if committed.is_dir() else pipeline
    loaded = load_pipeline(source)
    attribute = next(iter(loaded.attributes), None)
    if attribute is None:
        raise ValueError(f"`--pipeline` is {pipeline!r}, which has no classifiers; expected one that has.")
    evaluator = load_evaluator(find_evaluator(source, attribute))
    check_evaluator(evaluator, loaded.image_size, loaded.channels)
    targets = np.linspace(0, 1, 9)
    with add_to_folder(out) as temporary:
        unguided = generate(loaded, 64, description="unguided")
        columns = [
            generate(loaded, 8, description=f"{attribute} {target:.3g}", target={attribute: float(target)})
            for target in targets
        ]
        summaries = write_demo(unguided, np.stack(columns, axis=1), targets, evaluator, attribute, temporary)
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
    target: Targets = None,
    guidance_scale: GuidanceScale = None,
    scheduler: SchedulerName = None,
) -> None:
    """Generate images; without --target the plain, unguided ones."""
    from .generate import generate, load_pipeline
    from .utils.grids import image_grid, to_pil

    check_writable(out, "--out")
    aims = parse_targets(target)
    loaded = load_pipeline(pipeline, scheduler)
    call = loaded.resolve_call(num_inference_steps, guidance_scale)
    with add_to_folder(out) as folder:
        started = time.monotonic()
        sampling: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
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
def calibrate_edits(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder; the calibration is added to it.")],
    images: Annotated[Path, typer.Argument(help="A folder of images of both ends.")],
    attribute: Annotated[str, typer.Option()],
    evaluator: EvaluatorName = None,
    training: Annotated[Path | None, typer.Option(help="What build_dataset.py kept of them; is left out.")] = None,
    num_target_probabilities: Annotated[int, typer.Option(help="Spread evenly over [0, 1].")] = 11,
    num_images: Annotated[int, typer.Option(help="Of each end, for each target probability.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Measure which value each target probability leads to in editing, at the folder's defaults for it."""
    from .calibration import calibrate_edits as calibrate_folder

    calibrate_folder(pipeline, attribute, images, evaluator, training, num_target_probabilities, num_images, seed)


@app.command()
def evaluate(
    samples: Annotated[
        str, typer.Argument(help="A folder of images, an .npz, what `sample` wrote, or a pipeline to sample from.")
    ],
    attribute: Annotated[str, typer.Option()],
    out: OutFolder,
    evaluator: EvaluatorName = None,
    second_attribute: Annotated[
        str | None, typer.Option(help="Another, for the square of both: heat maps, and how much is covered.")
    ] = None,
    second_evaluator: Annotated[str | None, typer.Option(help="Of that; the pipeline's own unless given.")] = None,
    gap: Annotated[tuple[float, float], typer.Option(help="The values that training did not show.")] = (0.2, 0.8),
    reference: Annotated[str | None, typer.Option(help="Real images, a folder or data set, for quality.")] = None,
    training: Annotated[str | None, typer.Option(help="The training images, for memorisation.")] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="inception-v3-compat, dinov2-vit-b-14, timm:NAME, transformers:NAME, pixels or an evaluator; "
            "the evaluator's own features unless given."
        ),
    ] = None,
    recognizer: Annotated[Path | None, typer.Option(help="Classifier of what should vary, for diversity.")] = None,
    num_images: Annotated[
        int | None, typer.Option(help="To sample of each kind, from a pipeline; 200 unless given.")
    ] = None,
    target: Targets = None,
    scheduler: SchedulerName = None,
    num_inference_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling; 0 unless given.")] = None,
) -> None:
    """Evaluate images or a pipeline: control, quality, memorisation. Writes report.html and report.json."""
    from .evaluation.evaluate import evaluate as evaluate_samples
    from .evaluation.figures import batches_of, table

    report = evaluate_samples(
        samples,
        out,
        attribute,
        evaluator,
        gap,
        reference,
        training,
        extractor,
        recognizer,
        num_images,
        parse_targets(target),
        scheduler,
        num_inference_steps,
        guidance_scale,
        seed,
        second_attribute,
        second_evaluator,
    )
    batches = batches_of(report)
    print_table(samples, batches, table(batches))
    for remark in report["remarks"]:
        console.print(remark, highlight=False)
    console.print(f"Look at {out / 'report.html'}")


@app.command()
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Folders that `multiguidance evaluate` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for compare.html.")] = None,
) -> None:
    """Put reports side by side."""
    from .evaluation.compare import compare as compare_reports
    from .evaluation.compare import differing

    if out is not None:
        check_writable(out, "--out")
    columns, rows = compare_reports(reports, out)
    print_table("reports side by side", columns, rows)
    for sentence in differing(columns):
        console.print(sentence, highlight=False)


@app.command()
def card(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline folder.")],
    facts: Annotated[Path, typer.Option(help="YAML, see `hub.card.read_facts`.")],
    load_from: Annotated[str | None, typer.Option(help="Hub id in the example; the folder unless given.")] = None,
) -> None:
    """Write the card of a pipeline, README.md, from what its author knows."""
    from .hub.card import read_facts, write_pipeline_card

    check_writable(pipeline, "pipeline")
    write_pipeline_card(pipeline, read_facts(facts), load_from or pipeline.as_posix())


@app.command()
def convert(
    denoiser: Annotated[Path, typer.Argument(help="A UNetModel of guided-diffusion, .pt or .safetensors.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pipeline.")],
    classifier: Annotated[Path | None, typer.Option(help="An EncoderUNetModel.")] = None,
    attribute: Annotated[str, typer.Option(help="What the classifier tells apart.")] = "label",
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=OUTPUT", help="One to keep, by its number; repeatable. Else all."),
    ] = None,
    image_size: Annotated[int, typer.Option(help="In pixels.")] = 64,
    num_head_channels: Annotated[int, typer.Option(help="Of the denoiser's attention.")] = 64,
    num_heads: Annotated[int | None, typer.Option(help="In its place, the same number at every width.")] = None,
    new_attention_order: Annotated[bool, typer.Option("--new-attention-order", help="The denoiser's.")] = False,
    classifier_num_head_channels: Annotated[int, typer.Option()] = 64,
    classifier_new_attention_order: Annotated[bool, typer.Option("--classifier-new-attention-order")] = False,
    noise_schedule: Annotated[str, typer.Option(help="linear or cosine.")] = "linear",
    diffusion_steps: Annotated[int, typer.Option(help="Of training.")] = 1000,
    rescale_timesteps: Annotated[
        bool, typer.Option("--rescale-timesteps", help="The networks know the steps as if there were 1000.")
    ] = False,
) -> None:
    """Make a pipeline out of checkpoints of guided-diffusion; what they don't tell is said as by its own flags."""
    from .hub.convert_guided_diffusion import convert as convert_checkpoints

    check_writable(out, "--out")
    convert_checkpoints(
        denoiser,
        out,
        classifier,
        attribute,
        parse_classes(classes) if classes else None,
        image_size,
        num_head_channels,
        num_heads,
        new_attention_order,
        classifier_num_head_channels,
        classifier_new_attention_order,
        noise_schedule,
        diffusion_steps,
        rescale_timesteps,
    )


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


def parse_targets(words: list[str] | None) -> dict[str, Target] | None:
    """["Smiling=0.5"] as targets by attribute; None for none."""
    if not words:
        return None
    targets: dict[str, Target] = {}
    for word in words:
        attribute, target = parse_target(word)
        if attribute in targets:
            raise ValueError(f"`--target` names {attribute!r} twice; expected each attribute once.")
        targets[attribute] = target
    return targets


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


def parse_classes(words: list[str]) -> dict[str, int]:
    """["hen=8", "jay=17"] as numbers by name."""
    classes: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not name or name in classes or not (number.isascii() and number.isdecimal()):
            raise ValueError(f"`--class` is {word!r}; expected NAME=OUTPUT, each name once, such as hen=8.")
        classes[name] = int(number)
    return classes


def print_summary(name: str, summary: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table(title=name, show_header=False)
    for key, value in summary.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)


def print_table(title: str, columns: Iterable[str], rows: list[Any]) -> None:
    """The rows of `evaluation.figures.table`."""
    shown = Table(title=title)
    shown.add_column(min_width=14)
    for column in columns:
        shown.add_column(column)
    for figure, cells in rows:
        shown.add_row(figure.label, *(str(cells[column]) for column in columns))
    console.print(shown)
