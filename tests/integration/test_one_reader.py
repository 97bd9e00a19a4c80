"""Odd files: the same image, or the same refusal, for whoever reads it."""

import importlib.util
import io
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.launch import ROOT
from PIL import Image, features

from diffusers_multiguidance import MultiGuidanceEditPipeline, create_unet
from diffusers_multiguidance.data.images import image_dataset
from diffusers_multiguidance.data.load import load_training_set, open_image
from diffusers_multiguidance.data.transforms import with_tensors
from diffusers_multiguidance.utils.images import BadImage, fit_image

SIZE = (8, 16)


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Colours from left to right, darker downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(1, 0, size[1]))
    colours = np.dstack([across * down, (255 - across) * down, 200 * down, 255 * (across > 80)]).astype(np.uint8)
    return Image.fromarray(colours).convert(mode) if mode != "RGBA" else Image.fromarray(colours)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(pixels: np.ndarray, colour_type: int, *extra: bytes) -> bytes:
    """A PNG of 16 bits, which Pillow does not write but for grey."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    body = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def with_chunk(content: bytes, extra: bytes) -> bytes:
    return content[:33] + extra + content[33:]  # behind the signature and the IHDR


def odd_files() -> dict[str, bytes]:
    deep = np.asarray(picture("L")).astype(np.uint16) * 257
    deep_rgb = np.asarray(picture()).astype(np.uint16) * 257
    files = {f"{mode}.png": encode(picture(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    adaptive = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    files |= {
        "grey-rgb.png": encode(picture("L").convert("RGB")),
        "palette-alpha.png": encode(adaptive, transparency=bytes([0, 128, 255])),
        "palette-colour.png": encode(adaptive, transparency=2),
        "palette-colour.gif": encode(adaptive, "GIF", transparency=2),
        "colour.png": encode(picture(), transparency=picture().getpixel((3, 3))),
        "grey-colour.png": encode(picture("L"), transparency=picture("L").getpixel((3, 3))),
        "bit-colour.png": encode(picture("1"), transparency=1),
        "16-bit.png": encode(Image.fromarray(deep)),
        "16-bit-colour.png": png(deep, 0, chunk(b"tRNS", struct.pack(">H", int(deep[3, 3])))),
        "16-bit-rgb.png": png(deep_rgb, 2),
        "16-bit.tiff": encode(Image.fromarray(deep), "TIFF"),
        "16-bit.ppm": b"P5 24 20 65535\n" + deep.astype(">u2").tobytes(),
        "32-bit.tiff": encode(picture("I"), "TIFF"),
        "float.tiff": encode(picture("F"), "TIFF"),
        "lab.tiff": encode(Image.new("LAB", (24, 20), (128, 40, 40)), "TIFF"),
        "cmyk.jpg": encode(picture("CMYK"), "JPEG"),
        "cmyk.tiff": encode(picture("CMYK"), "TIFF"),
        "ycbcr.jpg": encode(picture("YCbCr"), "JPEG"),
        "grey.jpg": encode(picture("L"), "JPEG"),
        "rgb.bmp": encode(picture(), "BMP"),
        "alpha.webp": encode(picture("RGBA"), "WEBP", lossless=True),
        "icon.ico": encode(picture("RGBA", (32, 32)), "ICO", sizes=[(32, 32)]),
        "phone.jpg": encode(picture(), "MPO", save_all=True, append_images=[picture(size=(8, 8))]),
        "animated.gif": encode(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (24, 20))]),
        "animated.webp": encode(picture(), "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 20))]),
        "animated.png": encode(picture(), "PNG", save_all=True, append_images=[Image.new("RGB", (24, 20))]),
        "pages.tiff": encode(picture(), "TIFF", save_all=True, append_images=[Image.new("RGB", (24, 20))]),
        "tiny.png": encode(Image.new("RGB", (1, 1), "teal")),
        "wide.png": encode(picture(size=(400, 2))),
        "tall.png": encode(picture(size=(1, 300))),
        "truncated.png": encode(picture())[:-40],
        "truncated.jpg": encode(picture(size=(60, 60)), "JPEG")[:400],
        "empty.png": b"",
        "note.png": b"no image",
        "exif-broken.jpg": encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09junk"),
        "exif-junk.jpg": encode(picture(), "JPEG", exif=b"Exif\0\0junk"),
        "exif-broken.png": with_chunk(encode(picture()), chunk(b"eXIf", b"junk")),
        "exif-crc.png": with_chunk(encode(picture()), chunk(b"eXIf", b"junk", crc=1)),
        "exif-long.png": with_chunk(encode(picture()), struct.pack(">I", 10**6) + b"eXIfjunk"),
        "header.png": with_chunk(encode(picture()), chunk(b"IHDR", b"junk")),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format in ("JPEG", "PNG", "TIFF"):
            if format == "JPEG" or orientation == 6:
                files[f"exif-{orientation}.{format.lower()}"] = encode(picture(), format, exif=exif)
    if features.check("avif"):
        files["colours.avif"] = encode(picture("RGBA"), "AVIF")
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for name, content in odd_files().items():
        (folder / name).write_bytes(content)
    rows = [f"{path.name},{place}" for place, path in enumerate(sorted(folder.iterdir()))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,place", *rows]))
    return folder


@pytest.fixture(scope="module")
def pictures():
    """The module of the Space that opens what visitors send."""
    limit = Image.MAX_IMAGE_PIXELS
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "spaces" / "interpolation" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    Image.MAX_IMAGE_PIXELS = limit


def edit_pipeline(channels: int) -> MultiGuidanceEditPipeline:
    unet = create_unet(SIZE, channels, (8,), (), 1, 4, 8)
    none = dict.fromkeys(("transformer", "vae", "classifiers"))
    return MultiGuidanceEditPipeline(unet=unet, **none, scheduler=DDPMScheduler(100))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("channels", [1, 3])
def test_all_read_the_same(folder, pictures, channels, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    names = sorted(odd_files())
    assert len(names) >= 40

    built, counts = image_dataset(folder, score_column="place", size=SIZE, channels=channels)
    images = {names[int(row["score"])]: np.asarray(row["image"]).reshape(*SIZE, channels) for row in built}
    assert sum(counts["skipped"].values()) == len(names) - len(images) >= 9
    trained, same_counts = load_training_set(None, folder, SIZE, channels)
    assert same_counts == counts
    rows = list(with_tensors(trained, SIZE, ["place"]))
    assert [names[int(row["place"])] for row in rows] == list(images)
    for row, expected in zip(rows, images.values(), strict=True):
        np.testing.assert_array_equal(to_levels(row["image"]), expected)

    pipeline = edit_pipeline(channels)
    for name in names:
        if name not in images:
            try:
                opened = Image.open(folder / name)
            except (ValueError, OSError, SyntaxError):
                pass  # Pillow's own, before the pipeline has it
            else:
                with pytest.raises(ValueError, match=r"^`image` can't be used \(.*\); expected .*\.$"):
                    pipeline._to_sample(opened)
            with pytest.raises(ValueError, match=r"^The .* can't be (read|used).*; expected .*\.$"):
                pictures.fit(pictures.open_upload(folder / name), SIZE, channels)
            continue
        opened = Image.open(folder / name)
        np.testing.assert_allclose(to_levels(pipeline._to_sample(opened)[0]), images[name], atol=1, err_msg=name)
        if Image.open(folder / name).format in (*pictures.FORMATS, "MPO"):
            seen = pictures.fit(pictures.open_upload(folder / name), SIZE, channels)[0]
            np.testing.assert_allclose(seen.astype(int), images[name], atol=1, err_msg=name)
        else:
            with pytest.raises(ValueError, match="The file can't be read as a picture; expected PNG"):
                pictures.open_upload(folder / name)


def to_levels(tensor: torch.Tensor) -> np.ndarray:
    return ((tensor + 1) * 127.5).round().int().permute(1, 2, 0).numpy()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_what_is_refused_and_what_becomes_of_the_rest():
    """As docs/what-happens-when.md says."""
    refused, images = {}, {}
    for name, content in odd_files().items():
        try:
            image = open_image({"bytes": content, "path": name})
            images[name] = np.asarray(fit_image(image, image.size[::-1], 3)).astype(int)
        except BadImage as error:
            refused[name] = str(error)
    assert refused == {
        **dict.fromkeys(["animated.gif", "animated.webp", "animated.png", "pages.tiff"], "animated image"),
        **dict.fromkeys(["truncated.png", "truncated.jpg", "note.png", "header.png"], "unreadable image"),
        **dict.fromkeys(["exif-crc.png", "exif-long.png"], "unreadable image"),  # no PNG any more
        "empty.png": "empty file",
        "32-bit.tiff": "no known range of values (mode I)",
        "float.tiff": "no known range of values (mode F)",
    }
    exact, grey, white = (np.asarray(picture(mode).convert("RGB")).astype(int) for mode in ("RGB", "L", "RGB"))
    white[np.asarray(picture("RGBA"))[..., 3] == 0] = 255
    for name in ("RGB.png", "16-bit-rgb.png", "rgb.bmp", "exif-broken.png", "exif-6.png", "exif-6.tiff"):
        np.testing.assert_allclose(images[name], exact.transpose(1, 0, 2)[:, ::-1] if "-6" in name else exact, atol=1)
    for name in ("L.png", "grey-rgb.png", "16-bit.png", "16-bit.tiff", "16-bit.ppm"):
        np.testing.assert_allclose(images[name], grey, atol=1)
    for name in ("RGBA.png", "alpha.webp"):
        np.testing.assert_allclose(images[name], white, atol=1)
    for name in ("grey-colour.png", "16-bit-colour.png"):
        key = grey == grey[3, 3]
        np.testing.assert_allclose(images[name], np.where(key, 255, grey), atol=1)
    assert (images["colour.png"][3, 3] == 255).all()
    for orientation in range(1, 9):
        assert images[f"exif-{orientation}.jpeg"].shape == ((20, 24, 3) if orientation < 5 else (24, 20, 3))
    for name in ("exif-broken.jpg", "exif-junk.jpg", "cmyk.jpg", "phone.jpg"):
        assert np.abs(images[name] - exact).mean() < 8
