"""The one way to read an image, whoever gives it: data sets, editing, the Space.

What is decided here, and documented in docs/what-happens-when.md: the first frame of a phone's photograph but no
animation; upright as its metadata say, and as it lies where they are broken; 16 bits scaled to 8; transparent pixels
on white; a palette's colours; the largest centred part that has the wanted shape.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class BadImage(ValueError):
    """An image that cannot be used. The message is the reason, under which it is counted."""


def decode_image(content: bytes) -> Image.Image:
    """The image in a file's content, see `load_upright`.

    Raises:
        BadImage: for one that is empty or unreadable, or has more than one frame.
    """
    if not content:
        raise BadImage("empty file")
    try:
        image = Image.open(BytesIO(content))
    except Exception as error:  # Pillow's readers raise about anything on broken files
        raise BadImage("unreadable image") from error
    return load_upright(image)


def load_upright(image: Image.Image) -> Image.Image:
    """The pixels of an opened image, upright whichever way the camera was held; `image` itself stays as it is.

    Raises:
        BadImage: for one that is unreadable, or has no pixels or more than one frame.
    """
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:  # as above
        raise BadImage("unreadable image") from error
    if 0 in image.size:
        raise BadImage("image without pixels")
    if frames > 1 and image.format != "MPO":  # a phone's photograph, whose further frames are previews
        raise BadImage("animated image")
    with suppress(Exception):  # where metadata are broken the pixels are good nevertheless
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # by which `flatten` tells 16 bits
        return upright
    return image


def has_transparency(image: Image.Image) -> bool:
    """Whether the image has an alpha channel or a transparent colour."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def flatten(image: Image.Image) -> Image.Image:
    """8 bits a channel, on white where it is transparent: grey where the mode is a grey one, else RGB.

    Raises:
        BadImage: for 32-bit greys, whose black and white nothing tells, and for modes that Pillow cannot convert.
    """
    mode = "L" if image.mode in GREY_MODES else "RGB"
    transparent = has_transparency(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        key = image.info.get("transparency")
        values = np.asarray(image)
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
        if transparent:
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    if image.mode in ("I", "F"):
        raise BadImage(f"no known range of values (mode {image.mode})")
    try:
        if transparent:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)
    except (ValueError, TypeError) as error:
        raise BadImage(f"no conversion to RGB (mode {image.mode})") from error


def fit_image(image: Image.Image, size: tuple[int, int], channels: int | None = None) -> Image.Image:
    """The largest centred part with the shape of `size` (178x178 of CelebA's 178x218), resized to it.

    Args:
        size: height and width in pixels.
        channels: 1 for grey, 3 for RGB; None for grey where that part is grey in every pixel.

    Raises:
        BadImage: as `flatten`.
    """
    image = flatten(image)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    height, width = size
    scale = min(image.height / height, image.width / width)
    part_height, part_width = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = (image.width - part_width) // 2, (image.height - part_height) // 2
    part = image.crop((left, top, left + part_width, top + part_height))
    fitted = part.resize((width, height), Image.Resampling.LANCZOS)
    if channels is None and fitted.mode == "RGB":
        bands = np.asarray(fitted)
        if (bands == bands[..., :1]).all():
            return fitted.getchannel("R")
    return fitted
