"""CelebA, cut-out objects and anyone's images, read from real files, some of them broken."""

import io
import shutil

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from helpers.celeba_folder import write_celeba_folder
from PIL import Image as PILImage

from diffusers_multiguidance.data import load as load_module
from diffusers_multiguidance.data.celeba import ATTRIBUTES, attribute_values, celeba
from diffusers_multiguidance.data.faces import faces
from diffusers_multiguidance.data.images import image_dataset
from diffusers_multiguidance.data.load import load_source, load_training_set, open_image
from diffusers_multiguidance.data.objects import coins, objects, paste, read_cutouts
from diffusers_multiguidance.data.transforms import to_tensors
from diffusers_multiguidance.utils.images import BadImage, fit_image, flatten


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def encode(image: PILImage.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(color="red", size=(20, 20), mode="RGB") -> PILImage.Image:
    return PILImage.new(mode, size, color)


def read(content: bytes) -> PILImage.Image:
    return flatten(open_image({"bytes": content, "path": None})).convert("RGB")


BROKEN = {
    "empty file": b"",
    "unreadable image": encode(PILImage.effect_noise((64, 64), 50), "JPEG")[:400],
    "animated image": encode(plain(), "GIF", save_all=True, append_images=[plain("blue")]),
    "no known range of values (mode F)": encode(PILImage.new("F", (8, 8), 0.5), "TIFF"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_images_say_why(reason):
    with pytest.raises(BadImage) as caught:
        read(BROKEN[reason])
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an image", "unreadable image"),
        (encode(plain())[:60], "unreadable image"),
        (encode(plain(), "PNG", save_all=True, append_images=[plain("blue")]), "animated image"),
        (encode(plain(), "WEBP", save_all=True, append_images=[plain("blue")]), "animated image"),
    ],
)
def test_more_broken_images(content, reason):
    with pytest.raises(BadImage, match=reason):
        read(content)


def test_files_that_are_not_there(tmp_path):
    for stored in (None, {"bytes": None, "path": None}, {"bytes": None, "path": str(tmp_path / "none.png")}):
        with pytest.raises(BadImage, match="missing image"):
            open_image(stored)
    with pytest.raises(BadImage, match="no image"):
        open_image({"bytes": None, "path": str(tmp_path)})


def test_other_modes_become_the_rgb_that_one_sees():
    grey = np.array([[0, 257, 32896, 65535]], np.uint16).repeat(4, axis=0)
    np.testing.assert_array_equal(np.array(read(encode(PILImage.fromarray(grey))))[0, :, 0], [0, 1, 128, 255])
    assert read(encode(plain("red").convert("P", palette=PILImage.Palette.ADAPTIVE))).getpixel((3, 3)) == (255, 0, 0)
    cmyk = read(encode(plain((0, 255, 255, 0), mode="CMYK"), "JPEG", quality=95)).getpixel((3, 3))
    np.testing.assert_allclose(cmyk, (255, 0, 0), atol=4)
    assert read(encode(plain((255, 0, 0, 0), mode="RGBA"))).getpixel((3, 3)) == (255, 255, 255)
    assert read(encode(plain((255, 0, 0, 51), mode="RGBA"))).getpixel((3, 3)) == (255, 204, 204)
    assert read(encode(plain((0, 0), mode="LA"))).getpixel((3, 3)) == (255, 255, 255)
    assert read(encode(plain("red"), transparency=(255, 0, 0))).getpixel((3, 3)) == (255, 255, 255)
    assert read(encode(plain(1, mode="1"))).getpixel((3, 3)) == (255, 255, 255)


def test_photographs_are_upright_and_previews_no_animation():
    exif = PILImage.Exif()
    exif[0x0112] = 6  # the camera was held upright
    assert read(encode(plain(size=(30, 20)), "JPEG", exif=exif)).size == (20, 30)
    assert read(encode(plain(), "MPO", save_all=True, append_images=[plain("blue", (8, 8))])).size == (20, 20)


@pytest.mark.parametrize(("size", "box"), [((178, 218), (0, 20, 178, 198)), ((50, 21), (14, 0, 35, 21))])
def test_crop_is_the_central_square(size, box):
    image = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    expected = image.crop(box).resize((64, 64), PILImage.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.array(fit_image(image, (64, 64))), np.array(expected))


def test_tensors_are_grey_or_rgb_and_transparency_is_white():
    images = [plain((255, 0, 0, 0), mode="RGBA"), plain(51, (30, 20), "L")]
    tensors = to_tensors(images, (8, 8), channels=1)
    assert tensors.shape == (2, 1, 8, 8)
    assert tensors[0].unique().tolist() == [1]
    assert tensors[1].unique().tolist() == pytest.approx([-0.6])
    assert to_tensors(images, (8, 8), channels=3).shape == (2, 3, 8, 8)


# CelebA


def write_authors_folder(folder, rows, partition, images):
    """The authors' text files; `rows` are (name, values), `images` is a dict of file contents."""
    (folder / "img_align_celeba").mkdir(parents=True)
    for name, content in images.items():
        (folder / "img_align_celeba" / name).write_bytes(content)
    lines = [f"{name} " + " ".join(f"{value:>2}" for value in values) for name, values in rows]
    (folder / "list_attr_celeba.txt").write_text(
        "\n".join([str(len(rows)), "Black_Hair Blond_Hair Smiling ", *lines]) + "\n"
    )
    (folder / "list_eval_partition.txt").write_text("\n".join(f"{name} {part}" for name, part in partition.items()))
    return folder


def test_every_bad_row_of_celeba_is_counted(tmp_path):
    good = encode(plain("red", (178, 218)), "JPEG")
    images = {
        "good.jpg": good,
        "bright.jpg": encode(plain(200, (178, 218), "L"), "JPEG"),
        "cmyk.jpg": encode(plain((0, 255, 255, 0), (178, 218), "CMYK"), "JPEG"),
        "two.jpg": good,
        "text.jpg": good,
        "short.jpg": good,
        "nowhere.jpg": good,
        "unlabelled.jpg": good,
        "test.jpg": good,
        "cut.jpg": good[:-200],
        **{f"broken{number}.jpg": content for number, content in enumerate(BROKEN.values())},
    }
    rows = [
        ("good.jpg", [-1, 1, 1]),
        ("bright.jpg", [1, 1, -1]),
        ("good.jpg", [-1, 1, 1]),
        ("test.jpg", [1, -1, -1]),
        ("cmyk.jpg", [1, -1, -1]),
        ("gone.jpg", [1, -1, -1]),
        ("two.jpg", [1, 2, -1]),
        ("text.jpg", [1, "no", -1]),
        ("short.jpg", [1, -1]),
        ("nowhere.jpg", [1, -1, -1]),
        ("cut.jpg", [1, -1, -1]),
        *((f"broken{number}.jpg", [-1, -1, 1]) for number in range(len(BROKEN))),
    ]
    listed = [name for name, _ in rows if name != "nowhere.jpg"] + ["unlabelled.jpg"]
    partition = {name: 0 for name in listed} | {"test.jpg": 2}
    dataset, counts = celeba(write_authors_folder(tmp_path / "celeba", rows, partition, images))

    assert counts["skipped"] == {
        "duplicate name": 1,
        "missing image": 1,
        "label outside -1/1 and 0/1": 3,
        "not in the partition file": 1,
        "not in the attribute file": 1,
        "empty file": 1,
        "unreadable image": 2,
        "animated image": 1,
        "no known range of values (mode F)": 1,
    }
    assert counts["converted"] == {"L": 1, "CMYK": 1}
    assert dataset["source_index"][:] == [0, 1, 4]
    assert dataset["Smiling"][:] == [1, 0, 0]
    assert dataset["Hair"][:] == [1, -1, 0]
    assert dataset.features["Smiling"] == ClassLabel(names=["no", "yes"])
    assert dataset.features["Hair"] == ClassLabel(names=["black", "blond"])
    assert dataset.column_names == ["image", "Black_Hair", "Blond_Hair", "Smiling", "Hair", "source_index"]
    assert [image.mode for image in dataset["image"]] == ["RGB"] * 3
    assert dataset[1]["image"].getpixel((32, 32)) == (200, 200, 200)
    assert celeba(tmp_path / "celeba", "test")[0]["source_index"][:] == [3]


def test_labels_0_and_1_and_the_archive_unpacked_twice(tmp_path):
    folder = tmp_path / "img_align_celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for name in "abcd":
        (folder / f"{name}.jpg").write_bytes(encode(plain(size=(178, 218)), "JPEG"))
    (tmp_path / "list_attr_celeba.csv").write_text("image_id,Male\na.jpg,0\nb.jpg,1\nc.jpg,-1\nd.jpg,0\n")
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\na.jpg,1\nb.jpg,1\nc.jpg,1\nd.jpg,1\n")
    dataset, counts = celeba(tmp_path, "valid", size=(16, 16))
    assert dataset["Male"][:] == [0, 1, 0]
    assert dataset[0]["image"].size == (16, 16)
    assert counts == {"skipped": {"label outside -1/1 and 0/1": 1}, "converted": {}}
    with pytest.raises(ValueError, match="`source` has no images in this `split`; expected at least one"):
        celeba(tmp_path, "train")
    with pytest.raises(ValueError, match="`split` is 'validation'; expected 'train', 'valid' or 'test'"):
        celeba(tmp_path, "validation")
    (tmp_path / "list_eval_partition.csv").unlink()
    with pytest.raises(ValueError, match=r"expected a folder with list_eval_partition.csv or list_eval_partition.txt"):
        celeba(tmp_path, "train")


def test_rendered_celeba_comes_back_as_it_was_rendered(tmp_path):
    write_celeba_folder(20, tmp_path / "rendered", seed=3)
    rendered = faces(20, resolution=64, seed=3)
    numbers = []
    for split in ("train", "valid", "test"):
        dataset, counts = celeba(tmp_path / "rendered", split)
        assert counts == {"skipped": {}, "converted": {}}
        same = rendered.select(dataset["source_index"][:])
        for column in ("Smiling", "Black_Hair", "Blond_Hair", "Pale_Skin", "Hair"):
            assert dataset[column][:] == same[column][:]
            assert dataset.features[column] == same.features[column]
        for column in ("factor_Smiling", "factor_Hair", "factor_Pale_Skin"):
            assert dataset[column][:] == same[column][:]
        numbers.append(dataset["source_index"][:])
    assert [len(split) for split in numbers] == [16, 2, 2]
    assert sorted(number for split in numbers for number in split) == list(range(20))
    # The picture itself, but for the resolution that it was rendered at.
    first, expected = (np.array(data[0]["image"], float) for data in (celeba(tmp_path / "rendered")[0], rendered))
    assert np.abs(first - expected).mean() < 8
    assert celeba(tmp_path / "rendered", num_proc=2)[0]["source_index"][:] == numbers[0]


def test_a_changed_celeba_folder_is_read_anew(tmp_path):
    write_celeba_folder(2, tmp_path / "rendered")
    before = celeba(tmp_path / "rendered")[0]
    assert celeba(tmp_path / "rendered")[0]._fingerprint == before._fingerprint
    plain("blue", (178, 218)).save(tmp_path / "rendered" / "img_align_celeba" / "000001.jpg")
    assert celeba(tmp_path / "rendered")[0][0]["image"].getpixel((3, 3))[2] > 250
    (tmp_path / "rendered" / "img_align_celeba" / "000002.jpg").unlink()
    assert celeba(tmp_path / "rendered")[1]["skipped"] == {"missing image": 1}


BOOLS = {"celeb_id": [7, 8], "Smiling": [True, False], "Blond_Hair": [False, True]}
INTS = {"Smiling": [1, -1], "Blond_Hair": [-1, 1], "prompt_string": ["a smile", "blond hair"]}
VECTORS = [[int(name == "Smiling") for name in ATTRIBUTES], [int(name == "Blond_Hair") for name in ATTRIBUTES]]
STRUCTS = [{"Smiling": 1, "Blond_Hair": 0, "id": 3}, {"Smiling": 0, "Blond_Hair": 1, "id": 4}]


@pytest.mark.parametrize(
    "columns", [BOOLS, INTS, {"attributes": VECTORS}, {"attr": STRUCTS}], ids=["bools", "ints", "list", "struct"]
)
def test_mirrors_on_the_hub_agree(columns, monkeypatch):
    images = [plain("red", (178, 218)), plain("blue", (178, 218))]
    mirror = Dataset.from_dict({"image": images, **columns})
    mirror = mirror.cast_column("image", Image())
    if "attributes" in columns:
        assert isinstance(mirror.features["attributes"], List)
    assert (attribute_values(mirror)["Smiling"] == 1).tolist() == [True, False]

    monkeypatch.setattr(load_module, "load_dataset", lambda name: DatasetDict(validation=mirror))
    dataset, counts = celeba("someone/celeba", "valid", size=(8, 8))
    assert dataset["Smiling"][:] == [1, 0]
    assert dataset["Blond_Hair"][:] == [0, 1]
    assert dataset["source_index"][:] == [0, 1]
    assert dataset[1]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert counts == {"skipped": {}, "converted": {}}
    with pytest.raises(ValueError, match=r"`split` is 'test'; expected one of \['validation'\]"):
        celeba("someone/celeba", "test")


def test_mirrors_with_gaps_and_without_attributes(monkeypatch):
    mirror = Dataset.from_dict({"image": [plain(), None, plain()], "Smiling": [True, False, None]})
    mirror = mirror.cast_column("image", Image())
    monkeypatch.setattr(load_module, "load_dataset", lambda name: DatasetDict(train=mirror))
    dataset, counts = celeba("someone/celeba")
    assert dataset["source_index"][:] == [0]
    assert counts["skipped"] == {"missing image": 1, "label outside -1/1 and 0/1": 1}
    monkeypatch.setattr(load_module, "load_dataset", lambda name: DatasetDict(train=mirror.select_columns("image")))
    with pytest.raises(ValueError, match=r"`source` has columns \['image'\]; expected some of CelebA's attributes"):
        celeba("nielsr/CelebA-faces")
    monkeypatch.setattr(load_module, "load_dataset", lambda name: DatasetDict(train=mirror.select_columns("Smiling")))
    with pytest.raises(ValueError, match=r"`source` has columns \['Smiling'\]; expected one of images"):
        celeba("someone/labels")


# Objects


def test_coins_are_whole_and_cleanly_cut():
    cutouts = coins()
    assert len(cutouts) == 24
    for cutout in cutouts:
        alpha = np.array(cutout)[..., 3]
        # Round: about as wide as high, and filled like a disc, pi / 4 of its box.
        assert 0.85 < cutout.width / cutout.height < 1.2
        assert 0.7 < (alpha / 255).mean() < 0.85
        assert alpha[0, 0] == alpha[-1, -1] == 0
        # No dark ground in the rim.
        assert np.array(cutout)[..., 0][(alpha > 60) & (alpha < 255)].mean() > 90


def test_objects_repeat_from_a_seed_whatever_their_number():
    few, more = objects(3, 32, seed=2)[0], objects(5, 32, seed=2, num_proc=2)[0]
    for one, other in zip(few, more, strict=False):
        np.testing.assert_array_equal(np.array(one.pop("image")), np.array(other.pop("image")))
        assert one == other
    assert objects(3, 32, seed=3)[0]["factor_size"][:] != few["factor_size"][:]


def test_object_sizes_cover_the_range():
    dataset, counts = objects(300, 16)
    factor = np.array(dataset["factor_size"])
    assert factor.min() < 0.05
    assert factor.max() > 0.95
    assert np.array_equal(dataset["size"], factor > 0.5)
    assert dataset.features["size"].names == ["small", "large"]
    assert dataset["source_index"][:] == list(range(300))
    assert counts == {"skipped": {}, "converted": {}}


def test_pasted_objects_have_the_size_that_they_say():
    """A ring of pure white, pasted: its longest side, measured against the ground it has no other colour like."""
    rows, columns = np.ogrid[-1:1:200j, -1:1:200j]
    alpha = np.where(rows**2 + columns**2 < 1, 255, 0).astype(np.uint8)
    disc = PILImage.fromarray(np.dstack([alpha, alpha, alpha, alpha]))
    for number in range(20):
        image, factor = paste(disc, np.random.default_rng(number), 64)
        white = (np.array(image, float) - 255).min(axis=2) > -20
        measured = white.any(axis=0).sum()
        assert measured == pytest.approx(64 * (0.2 + 0.55 * factor), abs=2)


def test_own_cutouts(tmp_path):
    shape = plain((0, 0, 0, 0), (40, 30), "RGBA")
    shape.paste((0, 255, 0, 255), (5, 5, 25, 15))
    shape.save(tmp_path / "a.png")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "grey.png").write_bytes(encode(shape.convert("LA")))
    (tmp_path / "opaque.png").write_bytes(encode(plain((0, 0, 0, 255), mode="RGBA")))
    (tmp_path / "invisible.png").write_bytes(encode(plain((0, 0, 0, 0), mode="RGBA")))
    (tmp_path / "photo.jpg").write_bytes(encode(plain(), "JPEG"))
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    cutouts, counts = read_cutouts(tmp_path)
    assert [cutout.size for cutout in cutouts] == [(20, 10), (20, 10)]
    assert [cutout.mode for cutout in cutouts] == ["RGBA", "RGBA"]
    assert counts["converted"] == {"LA": 1}
    assert counts["skipped"] == {
        "empty file": 1,
        "nothing visible": 1,
        "nothing transparent": 1,
        "no alpha channel": 1,
        "no image (.txt)": 1,
    }
    dataset, same_counts = objects(2, 32, cutouts=tmp_path)
    assert same_counts == counts
    assert dataset[0]["image"].size == (32, 32)
    before = np.array(dataset[0]["image"])
    for file in (tmp_path / "a.png", tmp_path / "more" / "grey.png"):
        file.write_bytes(encode(shape.rotate(90, expand=True)))
    assert not np.array_equal(np.array(objects(2, 32, cutouts=tmp_path)[0][0]["image"]), before)

    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="expected a folder of images with an alpha channel"):
        objects(2, 32, cutouts=tmp_path / "none")
    with pytest.raises(ValueError, match="`num_images` is 0; expected at least 1"):
        objects(0)


# Anyone's images


@pytest.fixture
def class_folder(tmp_path):
    for name, color in (("calm", "red"), ("wild", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            plain(color, (30, 20)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_class_folders(class_folder):
    for number, content in enumerate(BROKEN.values()):
        (class_folder / "calm" / f"broken{number}.png").write_bytes(content)
    dataset, counts = image_dataset(class_folder, label_column="label", size=(8, 8))
    assert dataset.column_names == ["image", "label", "source_index"]
    assert dataset.features["label"] == ClassLabel(names=["calm", "wild"])
    assert dataset["label"][:] == [0, 0, 1, 1]
    assert dataset[3]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert dataset[3]["image"].size == (8, 8)
    assert counts["skipped"] == dict.fromkeys(BROKEN, 1)

    # A changed file is read anew.
    (class_folder / "wild" / "1.png").write_bytes(encode(plain("lime")))
    assert image_dataset(class_folder, label_column="label")[0][3]["image"].getpixel((0, 0)) == (0, 255, 0)

    for file in class_folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"`source` has no usable image; .* skipped {'empty file': 8}"):
        image_dataset(class_folder, label_column="label")


def write_metadata(folder, table):
    folder.mkdir(exist_ok=True)
    for number in range(4):
        plain(size=(20, 20)).save(folder / f"{number}.png")
    (folder / "metadata.csv").write_text(table)
    return folder


def test_metadata_with_scores_and_labels(tmp_path):
    folder = write_metadata(
        tmp_path / "scored",
        "file_name,age,mood,old,rank\n0.png,3.5,up,True,1\n1.png,,down,False,3\n2.png,inf,,True,1\n3.png,-1e300,up,False,3\n"
        "4.png,2,up,True,1\n",
    )
    dataset, counts = image_dataset(folder, score_column="age", size=(8, 8))
    assert dataset.column_names == ["image", "score", "source_index"]
    assert dataset.features["score"] == Value("float32")
    assert (dataset["score"][:], dataset["source_index"][:]) == ([3.5], [0])
    assert counts["skipped"] == {"missing or infinite score": 3, "missing image": 1}

    dataset, counts = image_dataset(folder, label_column="mood", size=(8, 8))
    assert dataset.features["mood"].names == ["down", "up"]
    assert (dataset["mood"][:], dataset["source_index"][:]) == ([1, 0, 1], [0, 1, 3])
    assert counts["skipped"] == {"missing label": 1, "missing image": 1}
    assert image_dataset(folder, label_column="old")[0]["old"][:] == [1, 0, 1, 0]
    assert image_dataset(folder, label_column="old")[0].features["old"].names == ["no", "yes"]
    assert image_dataset(folder, label_column="rank")[0].features["rank"].names == ["1", "3"]


def test_zipped_images(tmp_path):
    folder = write_metadata(tmp_path / "photos", "file_name,score\n" + "".join(f"{i}.png,{i}\n" for i in range(4)))
    (tmp_path / "zipped").mkdir()
    shutil.make_archive(str(tmp_path / "zipped" / "photos"), "zip", folder)
    dataset, counts = image_dataset(tmp_path / "zipped", score_column="score", size=(8, 8))
    assert dataset["score"][:] == [0, 1, 2, 3]
    assert counts == {"skipped": {}, "converted": {}}


def test_saved_data_sets(tmp_path):
    features = Features({"photo": Image(), "kind": ClassLabel(names=["a", "b", "c"])})
    images = [plain("red"), plain(128, mode="L"), plain("blue"), plain("lime")]
    saved = Dataset.from_dict({"photo": images, "kind": [2, 0, -1, 0]}, features=features)
    saved.save_to_disk(tmp_path / "one")
    dataset, counts = image_dataset(tmp_path / "one", "photo", label_column="kind", size=(8, 8))
    assert dataset.features["kind"].names == ["a", "c"]
    assert dataset["kind"][:] == [1, 0, 0]
    assert counts == {"skipped": {"missing label": 1}, "converted": {"L": 1}}
    DatasetDict(train=saved, validation=saved.select([0, 1])).save_to_disk(tmp_path / "splits")
    assert len(image_dataset(tmp_path / "splits", "photo", label_column="kind", split="valid")[0]) == 2
    with pytest.raises(ValueError, match=r"`split` is 'test'; expected one of \['train'\]"):
        load_source(tmp_path / "one", "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`label_column` is None and `score_column` is None; expected exactly one of them"),
        ({"label_column": "label", "score_column": "label"}, "expected exactly one of them"),
        ({"label_column": "mood"}, r"`label_column` is 'mood'; expected one of the columns \['image', 'label'\]"),
        ({"label_column": "label", "image_column": "photo"}, "`image_column` is 'photo'; expected one of"),
        ({"label_column": "label", "image_column": "label"}, "`image_column` is 'label'; expected a column of images"),
        ({"label_column": "image"}, "`--label_column` is 'image'; expected a column of labels"),
        ({"score_column": "label"}, "`score_column` is 'label'; expected a column of numbers"),
        ({"label_column": "label", "split": "test"}, r"`split` is 'test'; expected one of \['train'\]"),
    ],
)
def test_wrong_arguments(class_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_dataset(class_folder, **arguments)


def test_labels_that_are_not_two(tmp_path):
    folder = write_metadata(
        tmp_path / "wrong", "file_name,three,one\n" + "".join(f"{i}.png,{min(i, 2)},same\n" for i in range(4))
    )
    wrong = {"three": "with 3 different values", "one": ", and 4 of 4 images have one"}
    for column, message in wrong.items():
        with pytest.raises(ValueError, match=f"`--label_column` is '{column}' ?{message}.*; expected"):
            image_dataset(folder, label_column=column)


def test_a_training_set_is_loaded_from_anything(class_folder, tmp_path, monkeypatch):
    folder, counts = load_training_set(None, class_folder, (8, 16))
    assert folder[0]["image"].size == (16, 8)
    assert counts == {"skipped": {}, "converted": {}}
    folder.save_to_disk(tmp_path / "one")
    DatasetDict(train=folder).save_to_disk(tmp_path / "splits")
    for name in ("one", "splits"):
        again, _ = load_training_set(None, tmp_path / name, (8, 16))
        assert again["label"][:] == folder["label"][:] == [0, 0, 1, 1]
    monkeypatch.setattr(load_module, "load_dataset", lambda name: DatasetDict(train=folder.select_columns("label")))
    with pytest.raises(ValueError, match=r"has columns \['label'\]; expected one of images named 'image'"):
        load_training_set("someone/labels", None, (8, 8))
    with pytest.raises(ValueError, match="`--train_data_dir` is 'nowhere'; expected a folder that exists"):
        load_training_set(None, "nowhere", (8, 8))
    for both_or_none in ((None, None), ("someone/labels", class_folder)):
        with pytest.raises(ValueError, match="`--dataset_name` and `--train_data_dir`: expected exactly one"):
            load_training_set(*both_or_none, (8, 8))


def test_a_source_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="expected a folder of images or a Hub data set"):
        image_dataset(tmp_path / "nothing", label_column="label")
