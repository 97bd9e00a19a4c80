"""What the page shows besides plain samples: sweeps, GIFs, histograms, the square of two attributes; and uploads."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusers_multiguidance.utils.grids import to_pil
from diffusers_multiguidance.utils.images import BadImage, fit_image, load_upright

if TYPE_CHECKING:
    from sampling import Sweep

MAX_UPLOAD_BYTES = 5_000_000
MAX_PIXELS = 16_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
BINS = 20
SQUARE = 420  # pixels a side, of which the outer `MARGIN` are for its labels
MARGIN = 40
GREY = "#808080"  # both legible on a light page and on a dark one
ACCENT = "#d97706"

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # also for what Gradio's own components open; Pillow raises at twice as many


def magnify(pictures: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Pictures whose longer side has that many pixels, each pixel staying a square."""
    return [one.resize(magnified(one.size, side), Image.Resampling.NEAREST) for one in pictures]


def magnified(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A size of the same shape, whose longer side is `side`."""
    first, second = (max(1, round(side * one / max(size))) for one in size)
    return first, second


def data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_gif(images: np.ndarray, path: Path, side: int = 256, milliseconds: int = 120) -> None:
    """The images there and back, for ever."""
    frames = magnify(to_pil(images), side)
    frames += frames[-2:0:-1]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def open_upload(path: str | Path) -> Image.Image:
    """The picture in a file that someone sent.

    Raises:
        ValueError: where it is too large or no picture, in one sentence.
    """
    size = os.path.getsize(path)
    if size > MAX_UPLOAD_BYTES:
        raise ValueError(f"The file has {size / 1e6:.1f} MB; expected at most {MAX_UPLOAD_BYTES / 1e6:.0f} MB.")
    try:
        picture = Image.open(path, formats=FORMATS)  # reads the header
        too_large = picture.width * picture.height > MAX_PIXELS
    except Image.DecompressionBombError:
        too_large = True
    except Exception:  # Pillow's readers raise about anything on broken files
        raise ValueError(f"The file can't be read as a picture; expected {', '.join(FORMATS)}.") from None
    if too_large:
        raise ValueError(f"The picture is too large; expected at most {MAX_PIXELS / 1e6:.0f} megapixels.")
    try:
        return load_upright(picture)
    except BadImage as error:
        said = f"The file can't be read as a picture ({error}); expected {', '.join(FORMATS)}, of a single frame."
        raise ValueError(said) from None


def fit(picture: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """(1, H, W, C) uint8: a picture as a pipeline for images of that height and width sees it.

    Raises:
        ValueError: where nothing tells what is black and what is white.
    """
    try:
        return np.array(fit_image(picture, size, channels)).reshape(1, *size, channels)
    except BadImage as error:
        raise ValueError(f"The picture can't be used ({error}); expected 8 or 16 bits a channel.") from None


def sweep_figure(sweep: Sweep, ends: Sequence[str], gap: Sequence[float] | None) -> str:
    """HTML of a large image and a slider under which all of them lie; `SCRUB` lets it move.

    Args:
        ends: what 0 and 1 mean.
        gap: values that no training image had.
    """
    stage, cells, unseen = "", "", []
    for place, (picture, requested) in enumerate(zip(to_pil(sweep.images), sweep.requested, strict=True)):
        measured = said_value(sweep.values[place]) if sweep.values else ""
        words = f"requested {requested:.2f}" + (f", came out as {measured}" if measured else "")
        on = "on" if place == len(sweep.requested) // 2 else ""
        image = f'<img src="{data_url(picture)}" alt="">'
        stage += f'<div class="frame {on}" data-at="{place}">{image}<p>{words}</p></div>'
        cells += f'<li class="{on}" data-at="{place}">{image}{requested:.2f}<b>{measured or "…"}</b></li>'
        if gap and gap[0] < requested < gap[1]:
            unseen.append(place)
    if unseen:
        cells += f'<li class="unseen" style="grid-column:{unseen[0] + 1} / {unseen[-1] + 2}">not in training</li>'
    along, low, high = (html.escape(text) for text in (sweep.along, *ends))
    last = len(sweep.requested) - 1
    return f"""<figure class="sweep" style="--n:{last + 1}"><div class="stage">{stage}</div>
<label><span>{low}</span><span>{high}</span>
<input type="range" min="0" max="{last}" value="{(last + 1) // 2}" aria-label="{along}, from {low} to {high}"></label>
<ol>{cells}</ol></figure>"""


# Moves a sweep's slider in the browser: `element` is the gr.HTML around it.
SCRUB = """
const show = (range) => {
    for (const one of element.querySelectorAll("[data-at]"))
        one.classList.toggle("on", one.dataset.at === range.value);
    range.setAttribute("aria-valuetext", element.querySelector(".frame.on p").innerText);
};
element.addEventListener("input", (event) => show(event.target));
element.addEventListener("click", (event) => {
    const cell = event.target.closest("li[data-at]"), range = element.querySelector("input");
    if (!cell) return;
    range.value = cell.dataset.at;
    range.focus();
    show(range);
});"""


def said_value(value: float) -> str:
    return "unclear" if np.isnan(value) else f"{value:.2f}"


def histogram(
    title: str,
    ends: Sequence[str],
    values: Sequence[float],
    earlier: Sequence[float],
    requested: float | str | None,
    gap: Sequence[float] | None,
) -> str:
    """HTML of a histogram over [0, 1], which takes its colours and its width from the page.

    Args:
        title: whose values these are.
        ends: what 0 and 1 mean.
        values: of the current settings, NaN where not to be told.
        earlier: of former settings, shown paler.
        requested: a number, "uniform", or None where nothing is.
        gap: values that no training image had.
    """
    good = [value for value in values if not np.isnan(value)]
    counts = np.histogram(good, bins=BINS, range=(0, 1))[0]
    pale = np.histogram([value for value in earlier if not np.isnan(value)], bins=BINS, range=(0, 1))[0]
    top = max(4, *(counts + pale))
    bars = ""
    for new, old in zip(100 * counts / top, 100 * pale / top, strict=True):
        bars += f'<span><i class="pale" style="height:{old:.1f}%"></i><i style="height:{new:.1f}%"></i></span>'
    marks = ""
    if gap is not None:
        marks = f'<div class="gap" style="left:{100 * gap[0]:g}%;right:{100 - 100 * gap[1]:g}%">not in training</div>'
    if requested == "uniform":
        aim = "spread evenly"
        marks += f'<div class="even" style="bottom:{100 * len(good) / BINS / top:.1f}%"></div>'
    elif requested is None:
        aim = "left free"
    else:
        aim = f"requested {requested:.2f}"
        marks += f'<div class="aim" style="left:{100 * float(requested):g}%"></div>'
    found = f"{len(values)} image{'' if len(values) == 1 else 's'}"
    if good:
        found += f", mean {np.mean(good):.2f}"
    if len(good) < len(values):
        found += f", {len(values) - len(good)} unclear"
    title, low, high = (html.escape(text) for text in (title, *ends))
    return f"""<figure class="histogram" role="img" aria-label="{title}: {aim}; {found}">
<figcaption><b>{title}</b><span>{aim}; {found}</span></figcaption>
<div class="plot">{marks}<div class="bars">{bars}</div></div>
<div class="axis"><span>0 {low}</span><span>0.5</span><span>{high} 1</span></div>
</figure>"""


def square(
    attributes: dict[str, list[str]], requested: tuple[float, float], found: tuple[float, float] | None = None
) -> Image.Image:
    """The square of two attributes, the first from left to right, the second upwards.

    Args:
        requested: where the cross is drawn.
        found: where the ring is drawn, if anywhere.
    """
    picture = Image.new("RGBA", (2 * SQUARE, 2 * SQUARE))  # drawn at twice the size: ImageDraw has no smooth lines
    draw = ImageDraw.Draw(picture)
    start, end = 2 * MARGIN, 2 * (SQUARE - MARGIN)
    for number in range(5):
        at = start + (end - start) * number / 4
        width = 3 if number in (0, 4) else 1
        draw.line([(at, start), (at, end)], GREY, width)
        draw.line([(start, at), (end, at)], GREY, width)
    font = ImageFont.load_default(size=28)
    (across, (left, right)), (upwards, (low, high)) = attributes.items()
    draw.text((start, end + 14), f"{left} 0", GREY, font, "la")
    draw.text((SQUARE, end + 14), across, GREY, font, "ma")
    draw.text((end, end + 14), f"1 {right}", GREY, font, "ra")
    sideways = Image.new("RGBA", picture.size)
    writer = ImageDraw.Draw(sideways)
    writer.text((start, start - 14), f"{low} 0", GREY, font, "ld")
    writer.text((SQUARE, start - 14), upwards, GREY, font, "md")
    writer.text((end, start - 14), f"1 {high}", GREY, font, "rd")
    picture.alpha_composite(sideways.rotate(90))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return start + (end - start) * point[0], end - (end - start) * point[1]

    x, y = place(requested)
    for line in ([(x - 18, y), (x + 18, y)], [(x, y - 18), (x, y + 18)]):
        draw.line(line, ACCENT, 6)
    if found is not None and not np.isnan(found).any():
        x, y = place(found)
        draw.ellipse([x - 14, y - 14, x + 14, y + 14], outline=ACCENT, width=5)
    return picture.resize((SQUARE, SQUARE), Image.Resampling.LANCZOS)


def point_in_square(x: float, y: float) -> tuple[float, float]:
    """The two values at a pixel of the square; beside it, those at its nearest edge."""
    across, upwards = (x - MARGIN) / (SQUARE - 2 * MARGIN), (SQUARE - MARGIN - y) / (SQUARE - 2 * MARGIN)
    return round(min(max(across, 0.0), 1.0), 2), round(min(max(upwards, 0.0), 1.0), 2)
