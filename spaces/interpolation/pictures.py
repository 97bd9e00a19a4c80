"""What the page shows besides plain samples: strips, GIFs, histograms, the square of two attributes; and uploads."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

MAX_UPLOAD_BYTES = 5_000_000
MAX_PIXELS = 16_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
BINS = 20
SQUARE = 420  # pixels a side, of which the outer `MARGIN` are for its labels
MARGIN = 40
GREY = "#808080"  # both legible on a light page and on a dark one
ACCENT = "#d97706"

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # also for what Gradio's own components open; Pillow raises at twice as many


def to_pil(images: np.ndarray, side: int | None = None) -> list[Image.Image]:
    """(B, H, W, C) uint8 as PIL images; where `side` is given magnified to it, each pixel staying a square."""
    pictures = [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]
    return pictures if side is None else [one.resize((side, side), Image.Resampling.NEAREST) for one in pictures]


def strip(images: np.ndarray, side: int = 128, gap: int = 4) -> Image.Image:
    """Images in a row, transparent in between."""
    row = Image.new("RGBA", (len(images) * (side + gap) - gap, side))
    for number, picture in enumerate(to_pil(images, side)):
        row.paste(picture, (number * (side + gap), 0))
    return row


def save_gif(images: np.ndarray, path: Path, side: int = 256, milliseconds: int = 120) -> None:
    """The images there and back, for ever."""
    frames = to_pil(images, side)
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
        if not too_large:
            picture.load()
    except Image.DecompressionBombError:
        too_large = True
    except (OSError, SyntaxError, ValueError, EOFError):
        raise ValueError(f"The file can't be read as a picture; expected {', '.join(FORMATS)}.") from None
    if too_large:
        raise ValueError(f"The picture is too large; expected at most {MAX_PIXELS / 1e6:.0f} megapixels.")
    picture = ImageOps.exif_transpose(picture).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB")


def fit(picture: Image.Image, size: int, grey: bool) -> np.ndarray:
    """(1, size, size, C) uint8: a picture as the pipeline sees it."""
    small = ImageOps.fit(picture.convert("L" if grey else "RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(small).reshape(1, size, size, -1)


def histogram(
    title: str,
    ends: Sequence[str],
    values: Sequence[float],
    earlier: Sequence[float],
    requested: float | str | None,
    gap: tuple[float, float] | None,
) -> str:
    """HTML of a histogram over [0, 1], which takes its colours and its width from the page.

    Args:
        title: whose values these are.
        ends: what 0 and 1 mean.
        values: of the current settings, NaN where not to be told.
        earlier: of former settings, drawn paler.
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
    """The two strengths at a pixel of the square; beside it, those at its nearest edge."""
    across, upwards = (x - MARGIN) / (SQUARE - 2 * MARGIN), (SQUARE - MARGIN - y) / (SQUARE - 2 * MARGIN)
    return round(min(max(across, 0.0), 1.0), 2), round(min(max(upwards, 0.0), 1.0), 2)
