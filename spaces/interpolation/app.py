"""Between the extremes: choose how much an attribute shows, and watch a diffusion model generate what it never saw.

`python app.py` serves the pipelines of a clone; MULTIGUIDANCE_PIPELINE names others (see README.md).
"""

from __future__ import annotations

import html
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pictures
from PIL import Image, ImageOps
from sampling import MODELS, Model, Step, Sweep, edit, sample
from settings import MAX_IMAGES, MAX_SCALE, MAX_SEED, MAX_STEPS, Settings, defaults, from_query, number

from diffusers_multiguidance.schedulers import SCHEDULERS
from diffusers_multiguidance.utils.grids import image_grid, to_pil

AT_ONCE = int(os.environ.get("MULTIGUIDANCE_AT_ONCE", "2"))  # samplings; whoever comes later waits in the queue
MAX_WAITING = 60
KEPT = 60  # clicks that a visitor's histogram remembers
HOUR = 3600
VARIANTS = 3  # of an edit

TITLE = """# Between the extremes
These models were trained on two ends only, say thin strokes and thick ones. Guided towards *both* ends at once, they
generate the middle, which nobody showed them. Choose where, and see what comes out."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a pipeline refuses, it refuses in one sentence: show that."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from None


# ---- What is said of images -----------------------------------------------------------------------------------------


def status(words: str = "", step: Step | None = None) -> str:
    if step is not None:
        bar = f'<div class="bar"><i style="width:{100 * step.number / step.total:.0f}%"></i></div>'
        words = f"{bar}step {step.number} of {step.total}"
    return f'<div class="status" role="status">{words}</div>'


def said(model: Model, attribute: str) -> str:
    """Whose numbers those below an image are."""
    return "measured" if attribute in model.evaluators else "as the classifiers see it"


def caption(values: dict[str, np.ndarray], place: int) -> str:
    return ", ".join(pictures.said_value(value[place]) for value in values.values())


def histograms(settings: Settings, clicks: list[dict[str, Any]]) -> str:
    """One per attribute, of all images that this visitor generated with this pipeline."""
    model, call, pages = settings.model, settings.call(), []
    for attribute, ends in model.attributes.items():
        current: list[float] = []
        earlier: list[float] = []
        for click in clicks:
            (current if click["call"] == call else earlier).extend(click["values"][attribute])
        requested, gap = (call["target"] or {}).get(attribute), model.card["gap"].get(attribute)
        pages.append(
            pictures.histogram(f"{attribute}, {said(model, attribute)}", ends, current, earlier, requested, gap)
        )
    return "".join(pages)


def figure(model: Model, sweep: Sweep) -> str:
    page = pictures.sweep_figure(sweep, model.attributes[sweep.along], model.card["gap"].get(sweep.along))
    return f'{page}<p class="note">Requested {sweep.along}, and in bold {said(model, sweep.along)}.</p>'


# ---- What the buttons do --------------------------------------------------------------------------------------------


def generate(settings: Settings, clicks: Sequence[dict[str, Any]] = ()) -> Iterator[tuple[Any, ...]]:
    """Generate images at the values asked for: gallery, status, histograms, what was measured so far."""
    call = settings.call()
    started = time.monotonic()
    for step in sample(seeds=settings.seeds(), **call):
        if step.values is None:
            yield to_pil(step.images), status(step=step), gr.skip(), gr.skip()
            continue
        # The same click again generates the same images, which count once.
        click = {"call": call, "seed": settings.seed, "values": step.values}
        others = [old for old in clicks if (old["call"], old["seed"]) != (call, settings.seed)]
        kept = [*(old for old in others if old["call"]["name"] == call["name"]), click][-KEPT:]
        words = f"{settings.images} image{'s' * (settings.images > 1)} in {time.monotonic() - started:.1f} s, "
        words += f"seed {settings.seed}"
        captioned = [(one, caption(step.values, place)) for place, one in enumerate(to_pil(step.images))]
        yield captioned, status(words), histograms(settings, kept), kept


def sweep(settings: Settings, along: str, frames: int) -> Iterator[tuple[Any, ...]]:
    """One seed from one end of an attribute to the other: figure, strip and GIF as files, status."""
    if not settings.model.attributes:
        raise ValueError("This pipeline has no attributes; expected one with classifiers.")
    along = along if along in settings.model.attributes else next(iter(settings.model.attributes))
    frames = number("frames", frames, 3, 15, whole=True)
    call, requested = settings.sweep(along, frames)
    started = time.monotonic()
    for step in sample(**call):
        values = [] if step.values is None else list(step.values[along])
        shown = figure(settings.model, Sweep(along, step.images, requested, values))
        if step.values is None:
            yield shown, gr.skip(), gr.skip(), status(step=step)
            continue
        words = status(f"{frames} images in {time.monotonic() - started:.1f} s, seed {settings.seed}")
        # When Gradio asks for more it has its own copies, and the folder of these goes.
        with tempfile.TemporaryDirectory() as folder:
            yield shown, *sweep_files(folder, f"{settings.model.name}-{along}-{settings.seed}", step.images), words


def sweep_files(folder: str | Path, name: str, images: np.ndarray) -> list[Any]:
    """Strip and GIF of a sweep, for their buttons."""
    strip, gif = (Path(folder) / f"{name}.{ending}" for ending in ("png", "gif"))
    image_grid(to_pil(images), columns=len(images), zoom=max(1, 128 // images.shape[1])).save(strip)
    pictures.save_gif(images, gif)
    return [gr.update(value=str(path), interactive=True) for path in (strip, gif)]


def edit_picture(
    settings: Settings, picture: dict[str, Any] | None, strength: float, scale: float | None, steps: int
) -> Iterator[tuple[Any, ...]]:
    """Move the attributes of a picture to the sliders' targets: before and after, variants, status."""
    if picture is None or picture["composite"] is None:
        raise ValueError("There is no picture yet; draw one or upload a file.")
    targets = {name: aim for name, aim in settings.targets.items() if aim is not None}
    if not targets:
        raise ValueError("No attribute is guided; tick one.")
    model, seeds = settings.model, replace(settings, images=VARIANTS).seeds()
    before = as_model_sees(model, picture["composite"])
    call = {"target": targets, "strength": strength, "guidance_scale": scale, "num_inference_steps": steps}
    for step in edit(model.name, to_pil(before)[0], seeds, **call):
        captions, words = [""] * VARIANTS, status(step=step)
        if step.values:
            captions = [caption(step.values, place) for place in range(VARIANTS)]
            words = ", ".join(f"{name} {said(model, name)}" for name in step.values)
            if len(model.evaluators) == len(step.values):
                words += f": before {caption({name: one(before) for name, one in model.evaluators.items()}, 0)}"
            words = status(f"{words}; after {captions[0]}")
        after = pictures.magnify(to_pil(step.images), CANVAS)
        pair = (pictures.magnify(to_pil(before), CANVAS)[0], after[0])
        yield pair, list(zip(after, captions, strict=True)), words


def compare(pair: tuple[Any, Any], variants: list[tuple[Any, str]], event: gr.SelectData) -> tuple[Any, Any]:
    """The variant that was clicked, beside what it was made from."""
    return pair[0], variants[event.index][0]


def as_model_sees(model: Model, picture: Image.Image) -> np.ndarray:
    return pictures.fit(picture, model.pipe.image_size, model.pipe.channels)


def upload(settings: Settings, path: str) -> Iterator[Image.Image]:
    """Put an uploaded picture on the canvas as the pipeline will see it."""
    yield pictures.magnify(to_pil(as_model_sees(settings.model, pictures.open_upload(path))), CANVAS)[0]


def use_a_sample(settings: Settings) -> Iterator[Image.Image]:
    """Put an unguided sample, so one of the ends, on the canvas."""
    call = replace(settings, targets={}, even=False).call()
    *_, last = sample(seeds=[secrets.randbelow(MAX_SEED)], **call)
    yield pictures.magnify(to_pil(last.images), CANVAS)[0]


def generate_point(settings: Settings) -> Iterator[tuple[Any, ...]]:
    """The square of the first two attributes and the image there: square, image, status."""
    ends = dict(list(settings.model.attributes.items())[:2])
    x, y = (settings.targets[name] for name in ends)
    if x is None or y is None:
        raise ValueError("One of the two attributes is left free; tick both.")
    yield pictures.square(ends, (x, y)), gr.skip(), status()
    for step in sample(seeds=settings.seeds()[:1], **replace(settings, even=False).call()):
        if step.values is None:
            yield gr.skip(), to_pil(step.images)[0], status(step=step)
            continue
        found = tuple(float(step.values[name][0]) for name in ends)
        words = f"requested {x:.2f}, {y:.2f} (cross); came out as {caption(step.values, 0)} (ring)"
        yield pictures.square(ends, (x, y), found), to_pil(step.images)[0], status(words)


def click_square(event: gr.SelectData) -> list[Any]:
    """Both targets there, and both guided."""
    return [*pictures.point_in_square(*event.index), True, True]


# ---- What is shown of a pipeline ------------------------------------------------------------------------------------


def show(settings: Settings, problems: Sequence[str] = ()) -> dict[Any, Any]:
    """Every control and output as it is when a pipeline has just been chosen."""
    model, opening = settings.model, settings.model.opening
    page: dict[Any, Any] = {}
    attributes = list(model.attributes.items())
    for place, (target, guided) in enumerate(zip(targets, guides, strict=True)):
        page |= {target: gr.update(visible=False), guided: gr.update(visible=False)}
        if place < len(attributes):
            name, (low, high) = attributes[place]
            aim = settings.targets[name]
            page[target] = gr.update(
                label=f"{name}: {low} – {high}",
                value=0.5 if aim is None else aim,
                visible=True,
                interactive=aim is not None and not settings.even,
            )
            page[guided] = gr.update(value=aim is not None, visible=True)
    words = "Press Generate."
    if problems:
        words = "<br>".join(f"In the address, {html.escape(problem)} The default is used." for problem in problems)
    elif opening:
        words = f"Generated beforehand from one seed: {opening.along} requested → {said(model, opening.along)}. "
        words += "Press Generate for your own."
    tuned = model.pipe.config["sampling_defaults"]
    editing = {"num_inference_steps": 50, "guidance_scale": None, "strength": 0.5} | tuned.get("edit", {})
    names, two = [name for name, _ in attributes], len(attributes) > 1
    point = [0.5 if aim is None else aim for aim in settings.targets.values()][:2]
    return page | {
        chooser: model.name,
        note: describe(settings),
        even: settings.even,
        scale: settings.scale,
        steps: settings.steps,
        scheduler: gr.update(
            value=settings.scheduler,
            choices=[(name if name in tuned else f"{name}, not tuned: needs a scale", name) for name in SCHEDULERS],
        ),
        images: settings.images,
        seed: settings.seed,
        gallery: opened(opening) if opening else [],
        generate_status: status(words),
        measured: histograms(settings, []),
        clicks: [],
        sweep_tab: gr.update(visible=bool(names)),
        along: gr.update(choices=names, value=opening.along if opening else next(iter(names), None), visible=two),
        swept: figure(model, opening) if opening else "",
        strip_file: gr.update(interactive=False),
        gif_file: gr.update(interactive=False),
        sweep_status: status("Generated beforehand: move the slider. Press Sweep for your own." if opening else ""),
        edit_tab: gr.update(visible=model.edit is not None),
        canvas: blank_canvas(model.pipe.image_size),
        edit_strength: editing["strength"],
        edit_scale: editing["guidance_scale"],
        edit_steps: editing["num_inference_steps"],
        comparison: None,
        edited: [],
        edit_status: status(),
        two_tab: gr.update(visible=two),
        plane: pictures.square(dict(attributes[:2]), (point[0], point[1])) if two else None,
        point_image: None,
        point_status: status(),
    }


def opened(opening: Sweep) -> list[tuple[Image.Image, str]]:
    told = zip(opening.requested, map(pictures.said_value, opening.values), strict=True)
    return list(zip(to_pil(opening.images), (f"{aim:.2f} → {value}" for aim, value in told), strict=True))


def describe(settings: Settings) -> str:
    """A pipeline, and what its sliders' numbers mean with this scheduler."""
    if calibration := settings.model.calibration(settings.scheduler):
        meaning = "Calibrated: the sliders ask for measured values. That was measured with "
        meaning += (
            f"{calibration['num_inference_steps']} steps at a guidance scale of {calibration['guidance_scale']:g}"
        )
        meaning += ", each attribute guided alone." if len(settings.model.attributes) > 1 else "."
    else:
        meaning = "Not calibrated with this scheduler: the sliders say what the classifiers are to see."
    return f"{settings.model.card['note']} {meaning}".strip()


def blank_canvas(size: tuple[int, int]) -> dict[str, Any]:
    """Black where the pipeline will look, grey beside that."""
    width, height = pictures.magnified(size[::-1], CANVAS)
    blank = Image.new("RGB", (CANVAS, CANVAS), pictures.GREY)
    blank.paste(
        "black", ((CANVAS - width) // 2, (CANVAS - height) // 2, (CANVAS + width) // 2, (CANVAS + height) // 2)
    )
    return {"background": blank, "layers": [], "composite": blank}


def card_pictures() -> str:
    """Style of the choice of pipelines: a picture on each card, low end, middle and high end where there are some."""
    rules = []
    for number_, model in enumerate(MODELS.values(), 1):
        if model.opening:
            images = model.opening.images
            ends = to_pil(images[[0, len(images) // 2, -1]])
            picture = image_grid(ends, columns=3, zoom=1, gap=0)
        elif model.picture:
            picture = ImageOps.fit(Image.open(model.picture), (288, 96), centering=(0, 0))
        else:
            continue
        rules.append(
            f"#pipelines label:nth-of-type({number_})::before {{background-image: url({pictures.data_url(picture)})}}"
        )
    return "\n".join(rules)


# ---- From the controls to settings and back -------------------------------------------------------------------------


def read_controls(values: dict[Any, Any]) -> Settings:
    """What the controls are set to, said in the words of an address, so that both are checked in the same way."""
    query = {name: values[control] for name, control in controls.items()}
    model = MODELS.get(query["pipeline"])
    for name, target, guided in zip(model.attributes if model else (), targets, guides, strict=False):
        query[name] = values[target] if values[guided] else "free"
    return checked(query)


def checked(query: dict[str, Any]) -> Settings:
    settings, problems = from_query(query)
    if problems:
        raise ValueError(problems[0])
    return settings


def keep_address() -> str:
    """JavaScript that keeps the address of the page, also of the one that a Space is embedded in, in step."""
    attributes = {name: list(model.attributes) for name, model in MODELS.items()}
    return f"""(...values) => {{
    const said = Object.fromEntries({json.dumps([*controls])}.map((key) => [key, values.shift()]));
    const query = new URLSearchParams({{pipeline: said.pipeline}});
    ({json.dumps(attributes)})[said.pipeline].forEach((name, place) =>
        query.set(name, values[{len(targets)} + place] ? values[place] : "free"));
    for (const [key, value] of Object.entries(said))
        if (value !== null) query.set(key, typeof value === "boolean" ? +value : value);
    history.replaceState(null, "", "?" + query);
    if (window.parent !== window) window.parent.postMessage({{queryString: "" + query}}, "https://huggingface.co");
}}"""


def choose(name: str) -> dict[Any, Any]:
    return show(defaults(MODELS[name]))


def choose_scheduler(name: str, scheduler: str) -> tuple[str, float | None, int]:
    settings = defaults(MODELS[name], scheduler)
    return describe(settings), settings.scale, settings.steps


def read_address(request: gr.Request) -> dict[Any, Any]:
    return show(*from_query(request.query_params))


def can_move(even: bool, *guided: bool) -> list[Any]:
    """The sliders that make a difference."""
    return [gr.update(interactive=guide and not even) for guide in guided]


def serve_generate(settings: dict[str, Any]) -> Iterator[Any]:
    """Images, status and histograms for settings that are named as in an address, such as {"seed": 3}."""
    with plain_errors():
        for *shown, _ in generate(served(settings)):
            yield shown


def serve_sweep(settings: dict[str, Any], along: str, frames: int) -> Iterator[Any]:
    """Figure, strip, GIF and status of a sweep, for settings that are named as in an address."""
    with plain_errors():
        yield from sweep(served(settings), along, frames)


def served(query: Any) -> Settings:
    """Settings that came through the API."""
    if not isinstance(query, dict):
        raise ValueError("settings is no object; expected one such as {'seed': 3}.")
    settings = checked(query)
    unknown = [name for name in query if name not in {*controls, *settings.targets}]
    if unknown:
        raise ValueError(f"settings has {unknown[0][:20]!r}; expected some of {[*controls, *settings.targets]}.")
    return settings


def handle(event: Any, handler: Callable[..., Any], others: list[Any], outputs: Any, **options: Any) -> Any:
    """Let an event of the page call `handler(settings, *others)`, and show what it yields."""

    def run(values: dict[Any, Any]) -> Iterator[Any]:
        with plain_errors():
            yield from handler(read_controls(values), *(values[one] for one in others))

    return event(run, {*everything, *others}, outputs, api_visibility="private", **options)


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
PLAIN: dict[str, Any] = {"format": "png", "show_label": False}
PIXELS = PLAIN | {"elem_classes": "pixels"}  # few of them, and each is to be seen
BUTTONS = ["download", "fullscreen"]

usual = defaults(next(iter(MODELS.values())))

with gr.Blocks(title="Between the extremes", analytics_enabled=False, delete_cache=(HOUR // 6, HOUR)) as demo:
    gr.Markdown(TITLE, elem_id="title")
    chooser = gr.Radio(
        [(model.card["name"], name) for name, model in MODELS.items()],
        value=usual.model.name,
        label="Pipeline",
        visible=len(MODELS) > 1,
        elem_id="pipelines",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            note = gr.Markdown(elem_classes="note")
            targets, guides = [], []
            for place in range(max(2, *(len(model.attributes) for model in MODELS.values()))):
                targets.append(gr.Slider(0, 1, 0.5, step=0.01, visible=False, elem_id=f"target_{place}"))
                guides.append(gr.Checkbox(True, label="guided", visible=False, elem_id=f"guided_{place}"))
            with gr.Accordion("Sampling", open=False):
                scale = gr.Number(usual.scale, label="Guidance scale: how strongly", minimum=0, maximum=MAX_SCALE)
                steps = gr.Slider(1, MAX_STEPS, usual.steps, step=1, label="Steps")
                scheduler = gr.Dropdown(list(SCHEDULERS), value=usual.scheduler, label="Scheduler")
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
                generate_status = gr.HTML(status())
                gallery = gr.Gallery(
                    columns=4, height="auto", object_fit="contain", elem_id="gallery", buttons=BUTTONS, **PIXELS
                )
                measured = gr.HTML(elem_id="histograms")
                with gr.Row():
                    clear_button = gr.Button("Empty the histogram", size="sm", scale=0, min_width=170)
                clicks = gr.State([], time_to_live=HOUR)

            with gr.Tab("Sweep") as sweep_tab:
                gr.Markdown("One seed, from one end of an attribute to the other.", elem_classes="note")
                swept = gr.HTML(js_on_load=pictures.SCRUB, elem_id="sweep")
                with gr.Row(equal_height=True):
                    known = sorted({name for model in MODELS.values() for name in model.attributes})
                    along = gr.Radio(known, value=next(iter(known), None), label="Along", visible=False)
                    frames = gr.Slider(3, 15, 9, step=1, label="Images")
                with gr.Row():
                    sweep_button = gr.Button("Sweep", variant="primary", min_width=120)
                    strip_file = gr.DownloadButton("Download strip", interactive=False, min_width=120)
                    gif_file = gr.DownloadButton("Download GIF", interactive=False, min_width=120)
                sweep_status = gr.HTML(status())

            with gr.Tab("Edit") as edit_tab:
                gr.Markdown(
                    "Draw a picture, upload one, or use a sample. It goes part of the way back to noise and returns "
                    "guided to where the sliders point. They ask for measured values where editing was calibrated "
                    "with the numbers below, and else say what the classifiers are to see.",
                    elem_classes="note",
                )
                with gr.Row(equal_height=False):
                    with gr.Column(min_width=300):
                        canvas = gr.ImageEditor(
                            type="pil",
                            image_mode="RGB",
                            sources=(),
                            transforms=(),
                            layers=False,
                            canvas_size=(CANVAS, CANVAS),
                            fixed_canvas=True,
                            height=360,
                            brush=gr.Brush(20, colors=["#ffffff", "#000000"], default_color="#ffffff"),
                            buttons=[],
                            elem_id="canvas",
                            **PLAIN,
                        )
                        with gr.Row():
                            endings = [f".{ending.lower()}" for ending in (*pictures.FORMATS, "jpg")]
                            upload_button = gr.UploadButton("Upload", file_types=endings, min_width=100)
                            sample_button = gr.Button("Use a sample", min_width=100)
                        edit_strength = gr.Slider(0.05, 1, 0.5, step=0.05, label="How far back to noise")
                        edit_scale = gr.Number(None, label="Guidance scale of editing", minimum=0, maximum=MAX_SCALE)
                        edit_steps = gr.Slider(1, MAX_STEPS, 50, step=1, label="Steps of editing")
                    with gr.Column(min_width=300):
                        edit_button = gr.Button("Edit", variant="primary")
                        edit_status = gr.HTML(status())
                        shown = {"type": "pil", "interactive": False}
                        comparison = gr.ImageSlider(elem_id="comparison", buttons=BUTTONS, **shown, **PIXELS)
                        edited = gr.Gallery(
                            columns=VARIANTS, allow_preview=False, buttons=[], elem_id="edited", **shown, **PIXELS
                        )

            with gr.Tab("Two attributes", visible=False) as two_tab:
                gr.Markdown(
                    "Click in the square, or move the sliders and press the button: one seed, wherever you point.",
                    elem_classes="note",
                )
                with gr.Row(equal_height=False):
                    words = "A square, one attribute across, the other upwards"
                    plane = gr.Image(
                        image_mode=None, interactive=False, buttons=[], elem_id="plane", alt_text=words, **PLAIN
                    )
                    with gr.Column(min_width=300):
                        point_button = gr.Button("Generate there", variant="primary")
                        point_status = gr.HTML(status())
                        point_image = gr.Image(
                            image_mode=None,
                            height=360,
                            elem_id="point",
                            alt_text="The image there",
                            buttons=BUTTONS,
                            **PIXELS,
                        )

    controls = {"pipeline": chooser, "even": even, "scale": scale, "steps": steps, "scheduler": scheduler}
    controls |= {"images": images, "seed": seed}
    everything = [*controls.values(), *targets, *guides]
    # One limit for all that samples, whichever tab it is on.
    limit = {"concurrency_id": "sampling", "concurrency_limit": AT_ONCE}
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def run(event: Any, handler: Any, others: list[Any], outputs: list[Any], shown: gr.HTML) -> None:
        """`handle` what samples; after an error no bar says that something is still going on."""
        progress = {"show_progress": "minimal", "show_progress_on": shown}
        handle(event, handler, others, outputs, **progress, **limit).failure(lambda: status(), None, shown, **quick)

    shows = list(show(usual))
    loaded = demo.load(read_address, None, shows, **quick)
    chooser.input(choose, chooser, shows, **quick)
    scheduler.input(choose_scheduler, [chooser, scheduler], [note, scale, steps], **quick)
    gr.on([one.change for one in (even, *guides)], can_move, [even, *guides], targets, **quick)
    for event in (loaded.then, *(one.change for one in everything)):
        event(None, everything, None, js=keep_address())

    generated = [gallery, generate_status, measured, clicks]
    run(generate_button.click, generate, [clicks], generated, generate_status)
    next_seed = next_button.click(lambda seed: ((seed or 0) + 1) % (MAX_SEED + 1), seed, seed, **quick)
    run(next_seed.then, generate, [clicks], generated, generate_status)
    handle(clear_button.click, lambda settings: [([], histograms(settings, []))], [], [clicks, measured], queue=False)
    run(sweep_button.click, sweep, [along, frames], [swept, strip_file, gif_file, sweep_status], sweep_status)
    handle(upload_button.upload, upload, [upload_button], canvas, show_progress_on=edit_status)
    run(sample_button.click, use_a_sample, [], [canvas], edit_status)
    editing = [canvas, edit_strength, edit_scale, edit_steps]  # what a canvas sends is no larger than the canvas
    run(edit_button.click, edit_picture, editing, [comparison, edited, edit_status], edit_status)
    edited.select(compare, [comparison, edited], comparison, **quick)
    clicked = plane.select(click_square, None, [*targets[:2], *guides[:2]], **quick)
    for event in (clicked.then, point_button.click):
        run(event, generate_point, [], [plane, point_image, point_status], point_status)

    # Without a trigger: for the API only.
    served_settings = gr.JSON(visible=False)
    gr.on([], serve_generate, served_settings, generated[:3], api_name="generate", **limit)
    swept_files = [swept, strip_file, gif_file, sweep_status]
    gr.on([], serve_sweep, [served_settings, along, frames], swept_files, api_name="sweep", **limit)

demo.queue(max_size=MAX_WAITING, default_concurrency_limit=20)

if __name__ == "__main__":
    demo.launch(
        theme=THEME,
        css=card_pictures(),
        css_paths=Path(__file__).with_name("style.css"),
        max_file_size=pictures.MAX_UPLOAD_BYTES,
        ssr_mode=False,
        footer_links=["api", "gradio", "settings"],
        state_session_capacity=1000,
    )
