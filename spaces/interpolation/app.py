"""Between the extremes: choose how strongly an attribute shows, and watch a diffusion model draw what it never saw.

`python app.py` serves the pipelines of a clone; MULTIGUIDANCE_PIPELINE names others (see README.md).
"""

from __future__ import annotations

import html
import math
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from pictures import (
    FORMATS,
    MAX_UPLOAD_BYTES,
    fit,
    histogram,
    open_upload,
    point_in_square,
    save_gif,
    square,
    strip,
    to_pil,
)
from sampling import DEFAULT_STEPS, MODELS, Model, Step, edit, sample
from settings import MAX_IMAGES, MAX_SCALE, MAX_SEED, MAX_STEPS, Settings, defaults, from_query, number, to_query

from diffusers_multiguidance.pipelines.multiguidance_ddpm import SAMPLERS
from diffusers_multiguidance.utils.seeds import stream_seed

# Cached examples last as long as this process, which may have other pipelines than the last one had.
examples_cache = tempfile.TemporaryDirectory()
os.environ["GRADIO_EXAMPLES_CACHE"] = examples_cache.name

AT_ONCE = int(os.environ.get("MULTIGUIDANCE_AT_ONCE", "2"))  # samplings; whoever comes later waits in the queue
MAX_WAITING = 60
PREVIEWS = 8  # of the images while they emerge
KEPT = 60  # clicks that a visitor's histogram remembers
HOUR = 3600

TITLE = """# Between the extremes
These models were trained on two ends only, say thin strokes and thick ones. Guided towards *both* ends at once, they
draw the middle, which nobody showed them. Choose where, and see what comes out."""

# Keeps the address of the page, also of the one that a Space is embedded in, in step with its settings.
SHOW_QUERY = """(query) => {
    history.replaceState(null, "", query);
    if (window.parent !== window) window.parent.postMessage({queryString: query.slice(1)}, "https://huggingface.co");
}"""


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a pipeline refuses, it refuses in one sentence: show that."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from None


# ---- What the controls mean -----------------------------------------------------------------------------------------


def settings_of(
    name: str,
    first: float,
    second: float,
    even: bool,
    scale: float,
    steps: int,
    sampler: str,
    images: int,
    seed: int | None,
    guide_first: bool = True,
    guide_second: bool = True,
) -> tuple[Model, Settings]:
    """What the controls are set to, in the words of an address, so that both are checked in the same way."""
    aims = (first if guide_first else "free", second if guide_second else "free")
    said = dict(zip(MODELS[name].attributes if name in MODELS else (), aims, strict=False))
    said |= {"pipeline": name, "even": even, "scale": scale, "steps": steps}
    model, settings, problems = from_query(said | {"sampler": sampler, "images": images, "seed": seed})
    with plain_errors():
        if problems:
            raise ValueError(problems[0])
    return model, settings


def call_of(model: Model, settings: Settings) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    targets = {name: "uniform" if settings.even else aim for name, aim in settings.targets.items() if aim is not None}
    return {
        "target": targets or None,
        "guidance_scale": settings.scale,
        "num_inference_steps": settings.steps,
        "sampler": settings.sampler,
        "calibration": "nearest" if model.calibration(settings.sampler) else None,
    }


def is_preview(step: Step) -> bool:
    return step.strengths is None and step.number % math.ceil(step.total / PREVIEWS) == 0


def status(words: str, step: Step | None = None) -> str:
    bar = ""
    if step is not None:
        bar = f'<div class="bar"><i style="width:{100 * step.number / step.total:.0f}%"></i></div>'
    return f'<div class="status" role="status">{bar}{words}</div>'


def step_status(step: Step) -> str:
    return status(f"step {step.number} of {step.total}", step)


def said(model: Model, attribute: str) -> str:
    """Whose numbers those below an image are."""
    return f"{attribute}, measured" if attribute in model.measures else f"{attribute}, as the classifiers see it"


def caption(strengths: dict[str, np.ndarray], number: int) -> str:
    values = [value[number] for value in strengths.values()]
    return ", ".join("unclear" if np.isnan(value) else f"{value:.2f}" for value in values)


def histograms(model: Model, settings: Settings, clicks: list[dict[str, Any]]) -> str:
    """One per attribute, of all images that this visitor drew with this pipeline."""
    pages = []
    for attribute, ends in model.attributes.items():
        current: list[float] = []
        earlier: list[float] = []
        for click in clicks:
            same = click["call"] == (model.name, call_of(model, settings))
            (current if same else earlier).extend(click["strengths"][attribute])
        requested = (call_of(model, settings)["target"] or {}).get(attribute)
        pages.append(histogram(said(model, attribute), ends, current, earlier, requested, model.gap))
    return "".join(pages)


# ---- What the buttons do --------------------------------------------------------------------------------------------


def generate(
    name: str,
    first: float,
    second: float,
    even: bool,
    scale: float,
    steps: int,
    sampler: str,
    images: int,
    seed: int | None,
    guide_first: bool,
    guide_second: bool,
    clicks: list[dict[str, Any]],
) -> Iterator[tuple[Any, ...]]:
    """Draw images at the strengths asked for: gallery, status, histograms, what was measured so far."""
    model, settings = settings_of(
        name, first, second, even, scale, steps, sampler, images, seed, guide_first, guide_second
    )
    call = call_of(model, settings)
    seeds = [stream_seed(settings.seed, number) for number in range(settings.images)]
    started = time.monotonic()
    with plain_errors():
        for step in sample(name, seeds, **call):
            if is_preview(step):
                yield to_pil(step.images), step_status(step), gr.skip(), gr.skip()
            if step.strengths is None:
                continue
            # The same click again draws the same images, which count once.
            click = {"call": (name, call), "seed": settings.seed, "strengths": step.strengths}
            others = [old for old in clicks if (old["call"], old["seed"]) != (click["call"], click["seed"])]
            clicks = [*(old for old in others if old["call"][0] == name), click][-KEPT:]
            words = f"{settings.images} images in {time.monotonic() - started:.1f} s, seed {settings.seed}"
            captioned = [(one, caption(step.strengths, n)) for n, one in enumerate(to_pil(step.images))]
            yield captioned, status(words), histograms(model, settings, clicks), clicks


def example(*values: Any) -> tuple[Any, str, str]:
    """What `generate` ends with, for a visitor who has drawn nothing yet."""
    *_, (pictures, words, page, _) = generate(*values, [])
    return pictures, words, page


def sweep(
    name: str,
    first: float,
    second: float,
    even: bool,
    scale: float,
    steps: int,
    sampler: str,
    images: int,
    seed: int | None,
    guide_first: bool,
    guide_second: bool,
    along: str,
    frames: int,
) -> Iterator[tuple[Any, ...]]:
    """One seed from one end of an attribute to the other: strip, GIF, both as files, captions, status."""
    model, settings = settings_of(
        name, first, second, False, scale, steps, sampler, images, seed, guide_first, guide_second
    )
    along = along if along in model.attributes else next(iter(model.attributes))
    call = call_of(model, settings)
    call["target"] = {**(call["target"] or {}), along: "uniform"}
    started = time.monotonic()
    with plain_errors(), tempfile.TemporaryDirectory() as folder:
        frames = number("frames", frames, 3, 15, whole=True)
        for step in sample(name, [stream_seed(settings.seed, 0)] * frames, **call):
            if is_preview(step):
                yield strip(step.images), None, gr.skip(), gr.skip(), "", step_status(step)
            if step.strengths is None:
                continue
            strip_path, gif_path = (Path(folder) / f"{name}-{along}-{settings.seed}.{end}" for end in ("png", "gif"))
            strip(step.images).save(strip_path)
            save_gif(step.images, gif_path)
            cells = ""
            for place, value in enumerate(step.strengths[along]):
                measured = "–" if np.isnan(value) else f"{value:.2f}"
                cells += f"<div>{(place + 0.5) / frames:.2f}<b>{measured}</b></div>"
            captions = f'<div class="frames">{cells}</div>'
            captions += f'<p class="note">Above what was asked for, below in bold {said(model, along)}.</p>'
            words = status(f"{frames} images in {time.monotonic() - started:.1f} s, seed {settings.seed}")
            files = [gr.update(value=str(path), interactive=True) for path in (strip_path, gif_path)]
            # When Gradio asks for more it has its own copies, and this folder goes.
            yield str(strip_path), str(gif_path), *files, captions, words


def edit_picture(
    name: str,
    first: float,
    second: float,
    steps: int,
    seed: int | None,
    guide_first: bool,
    guide_second: bool,
    picture: dict[str, Any] | None,
    strength: float,
    scale: float,
) -> Iterator[tuple[Any, str]]:
    """Move the attributes of a picture to the sliders' strengths: the picture and three variants, status."""
    if picture is None or picture["composite"] is None:
        raise gr.Error("There is no picture yet; draw one or upload a file.", print_exception=False)
    model, settings = settings_of(
        name, first, second, False, scale, steps, SAMPLERS[0], 3, seed, guide_first, guide_second
    )
    targets = call_of(model, settings)["target"]
    if targets is None:
        raise gr.Error("No attribute is guided; tick one.", print_exception=False)
    seeds = [stream_seed(settings.seed, number) for number in range(settings.images)]
    before = as_model_sees(model, picture["composite"])
    captions = ["before"] * 4
    with plain_errors():
        call = {"target": targets, "strength": strength, "guidance_scale": settings.scale}
        for step in edit(name, to_pil(before)[0], seeds, **call, num_inference_steps=settings.steps):
            if not (is_preview(step) or step.strengths):
                continue
            words = step_status(step)
            if step.strengths:
                measured = {n: one(before) for n, one in model.measures.items()}
                captions = [f"before: {caption(measured, 0)}" if measured else "before"]
                captions += [f"after: {caption(step.strengths, number)}" for number in range(3)]
                words = status("; ".join(said(model, attribute) for attribute in model.attributes))
            pictures = to_pil(np.concatenate([before, step.images]))
            yield list(zip(pictures, captions if step.strengths else ["before", "", "", ""], strict=True)), words


def as_model_sees(model: Model, picture: Any) -> np.ndarray:
    return fit(picture, model.pipe.unet.config.sample_size, model.pipe.unet.config.in_channels == 1)


def upload(name: str, path: str) -> Any:
    """Put an uploaded picture on the canvas as the pipeline will see it."""
    with plain_errors():
        return to_pil(as_model_sees(MODELS[name], open_upload(path)), CANVAS)[0]


def use_a_sample(name: str) -> Any:
    """Put an unguided sample, so one of the ends, on the canvas."""
    *_, last = sample(name, [secrets.randbelow(MAX_SEED)], num_inference_steps=DEFAULT_STEPS)
    return to_pil(last.images, CANVAS)[0]


def draw_point(
    name: str, first: float, second: float, scale: float, steps: int, sampler: str, seed: int | None
) -> Iterator[tuple[Any, Any, str]]:
    """The square of both attributes and the image there, where both are guided: square, image, status."""
    model, settings = settings_of(name, first, second, False, scale, steps, sampler, 1, seed)
    if len(model.attributes) < 2:
        raise gr.Error("This pipeline has one attribute; choose one with two.", print_exception=False)
    yield square(model.attributes, (first, second)), gr.skip(), status("")
    with plain_errors():
        for step in sample(name, [stream_seed(settings.seed, 0)], **call_of(model, settings)):
            if is_preview(step):
                yield gr.skip(), to_pil(step.images)[0], step_status(step)
            if step.strengths:
                found = tuple(float(value[0]) for value in step.strengths.values())
                words = f"asked for {first:.2f}, {second:.2f} (cross); came out as {caption(step.strengths, 0)} (ring)"
                yield square(model.attributes, (first, second), found), to_pil(step.images)[0], status(words)


def click_square(event: gr.SelectData) -> tuple[float, float]:
    return point_in_square(*event.index)


# ---- What is shown of a pipeline ------------------------------------------------------------------------------------


def show(model: Model, settings: Settings) -> dict[Any, Any]:
    """Every control and output as it is when a pipeline has just been chosen."""
    aims = {name: 0.5 if aim is None else aim for name, aim in settings.targets.items()}
    sliders, boxes = ([gr.update(visible=False, value=value)] * 2 for value in (0.5, True))
    for place, (attribute, (low, high)) in enumerate(model.attributes.items()):
        guided = settings.targets[attribute] is not None
        sliders[place] = gr.update(
            label=f"{attribute}: {low} – {high}",
            value=aims[attribute],
            visible=True,
            interactive=guided and not settings.even,
        )
        boxes[place] = gr.update(value=guided, visible=True)
    names = list(model.attributes)
    two = len(names) == 2
    return {
        chooser: model.name,
        note: describe(model, settings.sampler),
        first: sliders[0],
        second: sliders[1],
        guide_first: boxes[0],
        guide_second: boxes[1],
        even: settings.even,
        scale: settings.scale,
        steps: settings.steps,
        sampler: settings.sampler,
        images: settings.images,
        seed: settings.seed,
        gallery: [],
        generate_status: status("Press Generate."),
        measured: histograms(model, settings, []),
        clicks: [],
        along: gr.update(choices=names, value=names[0], visible=two),
        sweep_strip: None,
        sweep_gif: None,
        strip_file: gr.update(interactive=False),
        gif_file: gr.update(interactive=False),
        sweep_captions: "",
        sweep_status: status("Press Sweep."),
        canvas: blank_canvas(),
        edit_strength: model.edit_strength,
        edit_scale: min(30.0, model.pipe.config["default_guidance_scale"]),
        edited: [],
        edit_status: status(""),
        two_tab: gr.update(visible=two),
        plane: square(model.attributes, tuple(aims.values())) if two else None,
        point_image: None,
        point_status: status(""),
        **{dataset: gr.update(visible=name == model.name) for name, dataset in examples.items()},
    }


def describe(model: Model, sampler: str) -> str:
    """A pipeline, and what its sliders' numbers mean with this sampler."""
    if calibration := model.calibration(sampler):
        meaning = "Calibrated: the sliders ask for measured strengths. That was measured with "
        meaning += (
            f"{calibration['num_inference_steps']} steps at a guidance scale of {calibration['guidance_scale']:g}"
        )
        meaning += ", each attribute guided alone." if len(model.attributes) > 1 else "."
    else:
        meaning = "Not calibrated with this sampler: the sliders say what the classifiers are to see."
    return f"{model.note} {meaning}".strip()


def blank_canvas() -> dict[str, Any]:
    black = to_pil(np.zeros((1, CANVAS, CANVAS, 3), dtype=np.uint8))[0]
    return {"background": black, "layers": [], "composite": black}


def address(*values: Any) -> Any:
    """What the controls are set to, unless one of them is just being typed in."""
    try:
        return to_query(*settings_of(*values))
    except gr.Error:
        return gr.skip()


def can_move(even: bool, *guided: bool) -> list[Any]:
    """The sliders that make a difference."""
    return [gr.update(interactive=guide and not even) for guide in guided]


def choose(name: str) -> dict[Any, Any]:
    return show(MODELS[name], defaults(MODELS[name]))


def read_address(request: gr.Request) -> dict[Any, Any]:
    model, settings, problems = from_query(request.query_params)
    page = show(model, settings)
    if problems:
        lines = [f"In the address, {html.escape(problem)} The default is used." for problem in problems]
        page[generate_status] = status("<br>".join(lines))
    return page


# ---- The page -------------------------------------------------------------------------------------------------------

CANVAS = 256  # pixels a side
FONT = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))  # of the weight 600 Gradio has a few letters only
THEME = gr.themes.Base(
    primary_hue="amber", secondary_hue="amber", neutral_hue="stone", radius_size="sm", font=[FONT, "sans-serif"]
).set(  # text and whatever carries it in colours that are easy to read on a light page and on a dark one
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    color_accent="*primary_700",
    slider_color="*primary_700",
    slider_color_dark="*primary_500",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)
CSS = Path(__file__).with_name("style.css")
PIXELS = {"format": "png", "show_label": False, "elem_classes": "pixels"}  # few of them, and each is to be seen
BUTTONS = ["download", "fullscreen"]

start = next(iter(MODELS.values()))
usual = defaults(start)

with gr.Blocks(title="Between the extremes", analytics_enabled=False, delete_cache=(HOUR // 6, HOUR)) as demo:
    gr.Markdown(TITLE, elem_id="title")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            chooser = gr.Radio(list(MODELS), value=start.name, label="Pipeline", visible=len(MODELS) > 1)
            note = gr.Markdown(elem_classes="note")
            first = gr.Slider(0, 1, 0.5, step=0.01, elem_id="first")
            guide_first = gr.Checkbox(True, label="guided", elem_id="guide_first", elem_classes="guide")
            second = gr.Slider(0, 1, 0.5, step=0.01, elem_id="second", visible=False)
            guide_second = gr.Checkbox(
                True, label="guided", elem_id="guide_second", elem_classes="guide", visible=False
            )
            with gr.Accordion("Sampling", open=False):
                scale = gr.Number(usual.scale, label="Guidance scale: how strongly", minimum=0, maximum=MAX_SCALE)
                steps = gr.Slider(1, MAX_STEPS, usual.steps, step=1, label="Steps")
                sampler = gr.Radio(list(SAMPLERS), value=usual.sampler, label="Sampler")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
            gr.Markdown("The address of this page keeps these settings: share it.", elem_classes="note")

        with gr.Column(scale=5, min_width=320), gr.Tabs():
            with gr.Tab("Generate"):
                with gr.Row(equal_height=True):
                    even = gr.Checkbox(False, label="Spread evenly from end to end", min_width=200)
                    images = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images", min_width=160)
                with gr.Row():
                    generate_button = gr.Button("Generate", variant="primary", min_width=120)
                    next_button = gr.Button("Next seed", min_width=120)
                generate_status = gr.HTML(status(""))
                gallery = gr.Gallery(
                    columns=4, height="auto", object_fit="contain", elem_id="gallery", buttons=BUTTONS, **PIXELS
                )
                measured = gr.HTML(elem_id="histograms")
                with gr.Row():
                    clear_button = gr.Button("Empty the histogram", size="sm", scale=0, min_width=170)
                clicks = gr.State([], time_to_live=HOUR)
                query = gr.Textbox(visible=False)
                controls = [
                    chooser,
                    first,
                    second,
                    even,
                    scale,
                    steps,
                    sampler,
                    images,
                    seed,
                    guide_first,
                    guide_second,
                ]
                examples = {}
                for name, model in MODELS.items():
                    own = defaults(model)
                    rest = [own.scale, own.steps, own.sampler]
                    guided = [aim is not None for aim in [*own.targets.values(), 0.5][:2]]
                    examples[name] = gr.Examples(
                        [
                            [name, 0.5, 0.5, False, *rest, 4, 0, *guided],
                            [name, 0.3, 0.7, False, *rest, 8, 1, *guided],
                            [name, 0.5, 0.5, True, *rest, 8, 2, *guided],
                        ],
                        controls,
                        [gallery, generate_status, measured],
                        example,
                        cache_examples=True,
                        cache_mode="lazy",  # computed when someone first asks, not while the Space starts
                        example_labels=["four from the middle", "eight nearer to one end", "eight spread evenly"],
                        label="Examples",
                        api_visibility="private",
                        visible=name == start.name,
                    ).dataset

            with gr.Tab("Sweep"):
                gr.Markdown("One seed, from one end of an attribute to the other.", elem_classes="note")
                with gr.Row(equal_height=True):
                    known = sorted({name for model in MODELS.values() for name in model.attributes})
                    along = gr.Radio(known, value=known[0], label="Along", visible=False)
                    frames = gr.Slider(3, 15, 9, step=1, label="Images")
                sweep_button = gr.Button("Sweep", variant="primary")
                sweep_status = gr.HTML(status(""))
                sweep_strip = gr.Image(
                    image_mode=None, elem_id="strip", buttons=[], alt_text="The images in a row", **PIXELS
                )
                sweep_captions = gr.HTML()
                with gr.Row(equal_height=False):
                    sweep_gif = gr.Image(
                        height=280, elem_id="gif", buttons=[], alt_text="The images there and back", **PIXELS
                    )
                    with gr.Column(min_width=200):
                        strip_file = gr.DownloadButton("Download strip", interactive=False, elem_id="strip_file")
                        gif_file = gr.DownloadButton("Download GIF", interactive=False, elem_id="gif_file")

            with gr.Tab("Edit"):
                gr.Markdown(
                    "Draw a picture, upload one, or use a sample. It goes part of the way back to noise and "
                    "returns guided to where the slider points. Here the slider always says what the classifiers are "
                    "to see.",
                    elem_classes="note",
                )
                with gr.Row(equal_height=False):
                    with gr.Column(min_width=300):
                        canvas = gr.ImageEditor(
                            type="pil",
                            image_mode="RGB",
                            format="png",
                            sources=(),
                            transforms=(),
                            layers=False,
                            canvas_size=(CANVAS, CANVAS),
                            fixed_canvas=True,
                            show_label=False,
                            height=360,
                            brush=gr.Brush(default_size=20, colors=["#ffffff", "#000000"], default_color="#ffffff"),
                            buttons=[],
                            elem_id="canvas",
                        )
                        with gr.Row():
                            endings = [f".{ending.lower()}" for ending in (*FORMATS, "jpg")]
                            upload_button = gr.UploadButton("Upload", file_types=endings, min_width=100)
                            sample_button = gr.Button("Use a sample", min_width=100)
                    with gr.Column(min_width=300):
                        edit_strength = gr.Slider(0.05, 1, 0.5, step=0.05, label="How far back to noise")
                        edit_scale = gr.Number(30, label="Guidance scale of editing", minimum=0, maximum=MAX_SCALE)
                        edit_button = gr.Button("Edit", variant="primary")
                        edit_status = gr.HTML(status(""))
                        edited = gr.Gallery(
                            columns=2, height="auto", object_fit="contain", elem_id="edited", buttons=BUTTONS, **PIXELS
                        )

            with gr.Tab("Two attributes", visible=False) as two_tab:
                gr.Markdown(
                    "Click in the square, or move the sliders and press Draw: one seed, wherever you point, and both "
                    "attributes guided.",
                    elem_classes="note",
                )
                with gr.Row(equal_height=False):
                    plane = gr.Image(
                        format="png",
                        image_mode=None,
                        interactive=False,
                        show_label=False,
                        buttons=[],
                        min_width=300,
                        elem_id="plane",
                        alt_text="A square, one attribute across, the other upwards",
                    )
                    with gr.Column(min_width=300):
                        point_button = gr.Button("Draw", variant="primary")
                        point_status = gr.HTML(status(""))
                        point_image = gr.Image(
                            image_mode=None,
                            height=360,
                            elem_id="point",
                            alt_text="The image at the cross",
                            buttons=BUTTONS,
                            **PIXELS,
                        )

    # One limit for all that samples, whichever tab it is on.
    sampling = {"concurrency_id": "sampling", "concurrency_limit": AT_ONCE, "show_progress": "minimal"}
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    drawn = [gallery, generate_status, measured, clicks]
    everything = list(show(start, usual))

    def clear(shown: gr.HTML) -> dict[str, Any]:
        """After an error no bar says that something is still going on."""
        return {"fn": lambda: status(""), "outputs": shown, **quick}

    demo.load(read_address, None, everything, **quick)
    chooser.input(choose, chooser, everything, **quick)
    sampler.change(lambda name, sampler: describe(MODELS[name], sampler), [chooser, sampler], note, **quick)
    gr.on(
        [one.change for one in (even, guide_first, guide_second)],
        can_move,
        [even, guide_first, guide_second],
        [first, second],
        **quick,
    )
    gr.on([one.change for one in controls], address, controls, query, trigger_mode="always_last", **quick).success(
        None, query, None, js=SHOW_QUERY
    )

    generate_button.click(
        generate, [*controls, clicks], drawn, api_name="generate", show_progress_on=generate_status, **sampling
    ).failure(**clear(generate_status))
    next_button.click(lambda seed: ((seed or 0) + 1) % (MAX_SEED + 1), seed, seed, **quick).then(
        generate, [*controls, clicks], drawn, api_visibility="private", show_progress_on=generate_status, **sampling
    ).failure(**clear(generate_status))
    clear_button.click(
        lambda *values: ([], histograms(*settings_of(*values), [])), controls, [clicks, measured], **quick
    )

    sweep_button.click(
        sweep,
        [*controls, along, frames],
        [sweep_strip, sweep_gif, strip_file, gif_file, sweep_captions, sweep_status],
        api_name="sweep",
        show_progress_on=sweep_status,
        **sampling,
    ).failure(**clear(sweep_status))

    upload_button.upload(
        upload, [chooser, upload_button], canvas, api_visibility="private", show_progress_on=edit_status
    )
    sample_button.click(
        use_a_sample, chooser, canvas, api_visibility="private", show_progress_on=edit_status, **sampling
    )
    edit_button.click(
        edit_picture,
        [chooser, first, second, steps, seed, guide_first, guide_second, canvas, edit_strength, edit_scale],
        [edited, edit_status],
        api_visibility="private",  # what a canvas sends is no larger than the canvas
        show_progress_on=edit_status,
        **sampling,
    ).failure(**clear(edit_status))

    point = [chooser, first, second, scale, steps, sampler, seed]
    pointed = [plane, point_image, point_status]
    plane.select(click_square, None, [first, second], **quick).then(
        draw_point, point, pointed, api_visibility="private", show_progress_on=point_status, **sampling
    ).failure(**clear(point_status))
    point_button.click(
        draw_point, point, pointed, api_name="point", show_progress_on=point_status, **sampling
    ).failure(**clear(point_status))

demo.queue(max_size=MAX_WAITING, default_concurrency_limit=20)

if __name__ == "__main__":
    demo.launch(
        theme=THEME,
        css_paths=CSS,
        max_file_size=MAX_UPLOAD_BYTES,
        ssr_mode=False,
        footer_links=["api", "gradio", "settings"],
        state_session_capacity=1000,
    )
