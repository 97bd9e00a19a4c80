"""Folders of images as their owners have them: every file is used, or counted with a reason."""

import io
import os
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from diffusers_multiguidance.data.folder import read_folder
from diffusers_multiguidance.data.images import image_dataset
from diffusers_multiguidance.data.load import describe_counts, load_source, load_training_set, read_images, undecoded


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


def encode(format: str = "PNG", color: str = "red", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, format, **options)
    return buffer.getvalue()


PNG, JPEG = encode(), encode("JPEG")
ANIMATED = encode("GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")])
CUT = PNG[:-30]


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def rows(folder: Path, split: str = "train") -> list[str]:
    """The files that are read, in their order."""
    return [os.path.relpath(one["path"], folder) for one in load_source(folder, split)["image"]]


def labels(folder: Path, split: str = "train") -> dict[str, str | None]:
    dataset = load_source(folder, split)
    feature = dataset.features["label"]
    assert isinstance(feature, ClassLabel)
    names = [None if number is None else feature.names[number] for number in dataset["label"]]
    return dict(zip(rows(folder, split), names, strict=True))


def counted(folder: Path) -> tuple[int, dict[str, int]]:
    """How many images a training gets, and what is left out."""
    dataset, counts = load_training_set(None, folder, (4, 4))
    return len(dataset), counts["skipped"]


def test_words_of_splits_in_names_mean_nothing(tmp_path):
    names = ["my train.png", "test.png", "eval-2.png", "train-00000-of-00001.png", "valid.jpg", "a.png"]
    write(tmp_path, {name: PNG for name in names} | {"holiday test/dev.png": PNG})
    assert rows(tmp_path) == sorted([*names, "holiday test/dev.png"])
    assert counted(tmp_path) == (7, {})
    with pytest.raises(ValueError, match=r"`split` is 'test'; expected one of \['train'\]"):
        load_source(tmp_path, "test")


def test_classes_named_train_and_plane(tmp_path):
    write(tmp_path, {f"{name}/{number}.png": PNG for name in ("train", "plane") for number in range(2)})
    assert labels(tmp_path) == {
        "plane/0.png": "plane", "plane/1.png": "plane", "train/0.png": "train", "train/1.png": "train",
    }  # fmt: skip
    assert image_dataset(tmp_path, label_column="label", size=(4, 4))[0]["label"][:] == [0, 0, 1, 1]


def test_folders_of_splits(tmp_path):
    write(tmp_path, {f"{split}/{name}/1.png": PNG for split in ("Train", "training", "test") for name in ("a", "b")})
    write(tmp_path, {"README.md": "my photographs", "test/c.txt": "a note"})
    assert labels(tmp_path) == {"README.md": None} | {
        f"{split}/{name}/1.png": name for split in ("Train", "training") for name in ("a", "b")
    }
    assert counted(tmp_path) == (4, {"no image (.md)": 1})
    assert rows(tmp_path, "test") == ["README.md", "test/a/1.png", "test/b/1.png", "test/c.txt"]
    with pytest.raises(ValueError, match=r"`split` is 'valid'; expected one of \['test', 'train'\]"):
        load_source(tmp_path, "valid")
    write(tmp_path, {"cover": PNG})
    with pytest.raises(ValueError, match="has cover beside folders of splits; expected it in one of them"):
        load_source(tmp_path)


def test_metadata_above_splits(tmp_path):
    table = "file_name,score\ntrain/1.png,1\ntrain/2.png,2\ntest/1.png,3\n"
    write(tmp_path, {f"{split}/{n}.png": PNG for split in ("train", "test") for n in (1, 2)} | {"metadata.csv": table})
    assert load_source(tmp_path)["score"][:] == [1, 2]
    assert load_source(tmp_path, "test")["score"][:] == [3, None]


def test_names_that_say_nothing(tmp_path):
    write(
        tmp_path,
        {"photo": JPEG, "photo.dat": PNG, "IMG.PNG": PNG, "notes.txt": "a note", "data": b"\0\1", "e.xyz": ""},
    )
    assert counted(tmp_path) == (
        3, {"no image (.txt)": 1, "no image (a name without extension)": 1, "no image (.xyz)": 1},
    )  # fmt: skip
    write(tmp_path / "none", {"photo": JPEG, "other": PNG})
    assert counted(tmp_path / "none") == (2, {})


def test_formats_of_phones(tmp_path):
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    write(tmp_path, {"1.heic": heic, "2.HEIC": heic, "3.dng": "II*\0", "4.png": PNG, "5.jpg": CUT, "6.gif": ANIMATED})
    expected = {
        "unreadable image (.heic)": 2,
        "unreadable image (.dng)": 1,
        "unreadable image": 1,
        "animated image": 1,
    }
    if features.check("avif"):
        write(tmp_path, {"7.avif": encode("AVIF")})
    assert counted(tmp_path) == (1 + features.check("avif"), expected)
    write(tmp_path / "only", {"1.heic": heic})
    with pytest.raises(
        ValueError, match=r"no usable image; expected at least one, but skipped {'unreadable image \(.he"
    ):
        counted(tmp_path / "only")


def test_files_that_metadata_does_not_list(tmp_path):
    table = "file_name,kind,score\n1.png,cat,1\nb/2.png,dog,\n 4.png ,cat,2.5\n9.png,dog,3\n"
    write(tmp_path, {name: PNG for name in ("1.png", "b/2.png", "b/3.png", "4.png")} | {"metadata.csv": table})
    assert counted(tmp_path) == (4, {"missing image": 1})
    dataset, counts = image_dataset(tmp_path, label_column="kind", size=(4, 4))
    assert [dataset.features["kind"].names[number] for number in dataset["kind"]] == ["cat", "cat", "dog"]
    assert counts["skipped"] == {"missing label": 1, "missing image": 1}
    assert image_dataset(tmp_path, score_column="score", size=(4, 4))[1]["skipped"] == {
        "missing or infinite score": 2, "missing image": 1,
    }  # fmt: skip


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_tables_of_other_programs(tmp_path, separator):
    lines = ["\ufefffile_name,old,rank,name", "001,True,1,x,", "002,False,,y,", "003,,2,x,"]
    table = "\r\n".join(lines).replace(",", separator)
    write(tmp_path, {"001": PNG, "002": PNG, "003": PNG, "metadata.csv": table})
    dataset = load_source(tmp_path)
    assert rows(tmp_path) == ["001", "002", "003"]
    assert dataset["rank"][:] == [1, None, 2]
    assert dataset["old"][:] == [True, False, None]
    dataset, counts = image_dataset(tmp_path, label_column="rank", size=(4, 4))
    assert dataset.features["rank"].names == ["1", "2"]
    assert counts["skipped"] == {"missing label": 1}


def test_metadata_in_other_formats_and_folders(tmp_path):
    write(tmp_path, {"1.png": PNG, "a/1.png": PNG, "a/b/2.png": PNG, "c/007": PNG})
    write(tmp_path, {"metadata.jsonl": '{"file_name": "1.png", "score": 1}\n{"file_name": "a/b/2.png", "score": 2}\n'})
    write(tmp_path, {"a/metadata.tsv": f"file_name\tscore\n{tmp_path}/a/1.png\t3\n"})
    write(
        tmp_path,
        {"c/metadata.jsonl": '{"file_name": "007", "score": 4, "taken_at": "2020-01-01", "tags": ["a", "b"]}\n'},
    )
    assert rows(tmp_path) == ["1.png", "a/1.png", "a/b/2.png", "c/007"]
    assert load_source(tmp_path)["score"][:] == [1, 3, 2, 4]
    Dataset.from_dict({"file_name": ["1.png"], "score": [5.5]}).to_parquet(tmp_path / "b" / "metadata.parquet")
    write(tmp_path, {"b/1.png": PNG})
    assert load_source(tmp_path)["score"][:] == [1, 3, 2, 5.5, 4]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("metadata.csv", "file_name,a\n1.png,1\n./1.png,2\n", "has metadata that name 1.png twice; expected"),
        ("metadata.csv", "", r"metadata.csv that can't be read \(No columns"),
        ("metadata.csv", "name,a\n1.png,1\n", r"columns \['name', 'a'\]; expected one named 'file_name'"),
        ("metadata.csv", "file_name,image\n1.png,1\n", r"and none named 'image'"),
        ("metadata.csv", b"file_name,a\n\xff.png,1\n", "can't be read .*utf-8"),
        ("metadata.jsonl", "no json", "metadata.jsonl that can't be read"),
        ("metadata.jsonl", '{"file_name": "1.png", "a": [1, "b"]}\n', "mixed types"),
        ("metadata.parquet", "no table", "metadata.parquet that can't be read"),
    ],
)
def test_metadata_that_say_nothing(tmp_path, name, table, message):
    write(tmp_path, {"1.png": PNG, name: table})
    with pytest.raises(ValueError, match=message) as caught:
        load_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_labels_two_folders_deep(tmp_path):
    write(tmp_path, {f"photos/{kind}/{n}/{n}.png": PNG for kind in ("calm", "wild") for n in range(3)})
    write(tmp_path, {"docs/notes.txt": "a note", "photos/cover.png": PNG})
    found = labels(tmp_path)
    assert {name: label for name, label in found.items() if label is None} == {
        "docs/notes.txt": None, "photos/cover.png": None,
    }  # fmt: skip
    assert all(name.split("/")[1] == label for name, label in found.items() if label)
    write(tmp_path / "many", {f"{kind}/1/1.png": PNG for kind in "abc"})
    assert list(labels(tmp_path / "many").values()) == ["a", "b", "c"]


def test_hidden_files_and_links(tmp_path):
    write(tmp_path / "photos", {".a.png": PNG, ".git/b.png": PNG, "c.png": PNG, "d/e.png": PNG})
    (tmp_path / "photos" / "d" / "up").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos" / "d" / "same").symlink_to(tmp_path / "photos" / "d", target_is_directory=True)
    write(tmp_path / "elsewhere", {"f.png": PNG})
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos" / "g").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos" / "gone.png").symlink_to(tmp_path / "nothing.png")
    assert rows(tmp_path / "photos") == ["c.png", "d/e.png", "g/f.png", "gone.png"]
    assert counted(tmp_path / "photos") == (3, {"missing image": 1})


def test_tables_and_archives_are_for_datasets(tmp_path):
    Dataset.from_dict({"score": [1.0, 2.0]}).to_parquet(tmp_path / "clone" / "data.parquet")
    write(tmp_path / "clone", {"README.md": "A card.", "picture.png": PNG})
    assert load_source(tmp_path / "clone").column_names == ["score"]
    # The archive that photographs came from is one file more.
    write(tmp_path / "photos", {"photos.zip": "PK", "1.png": PNG})
    assert counted(tmp_path / "photos") == (1, {"no image (.zip)": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected"):
        load_source(tmp_path / "empty")


def test_changed_and_added_files_are_read_anew(tmp_path):
    write(tmp_path, {"1.png": PNG, "2.png": PNG})
    first, _ = load_training_set(None, tmp_path, (4, 4))
    assert load_training_set(None, tmp_path, (4, 4))[0]._fingerprint == first._fingerprint
    write(tmp_path, {"2.png": encode(color="blue")})
    assert load_training_set(None, tmp_path, (4, 4))[0][1]["image"].getpixel((0, 0)) == (0, 0, 255)
    write(tmp_path, {"3.png": encode(color="white")})
    third, _ = load_training_set(None, tmp_path, (4, 4))
    assert third[2]["image"].getpixel((0, 0)) == (255, 255, 255)  # made RGB beside the others


@pytest.mark.parametrize("num_proc", [None, 2])
def test_grey_stays_grey_and_order_is_kept(tmp_path, num_proc):
    greys = [f"#{level:02x}{level:02x}{level:02x}" for level in range(0, 250, 50)]
    write(tmp_path, {f"{place}.png": encode(color=color) for place, color in enumerate(greys)} | {"bad.png": ""})
    read = read_folder(tmp_path)
    beside = Dataset.from_dict({"place": range(len(read))})
    call = {"fingerprint": num_proc, "num_proc": num_proc}
    dataset, counts = read_images(undecoded(read, "image"), beside, [None] * 6, (4, 4), **call)
    assert [image.mode for image in dataset["image"]] == ["L"] * 5
    assert [image.getpixel((0, 0)) for image in dataset["image"]] == [50 * place for place in dataset["place"]]
    assert counts == {"skipped": {"empty file": 1}, "converted": {"RGB, but grey": 5}}
    colours, counts = read_images(undecoded(read, "image"), beside, [None] * 6, (4, 4), 3, **call)
    assert [image.mode for image in colours["image"]] == ["RGB"] * 5
    assert counts["converted"] == {}


def test_more_than_a_twentieth_left_out_is_a_warning():
    few = describe_counts({"skipped": {"empty file": 5}, "converted": {"L": 3}}, 95)
    assert few == ["skipped: 5 (empty file)", "converted: 3 (L)"]
    many = describe_counts({"skipped": {"empty file": 4, "no image (.txt)": 2}, "converted": {}}, 94)
    assert many[-1] == "WARNING: 6 of 100 files (6 %) are left out, as said above."


FOLDERS = st.sampled_from(["train", "test", "Valid", "plane", "calm", "wild", "my train", "a.png", ".hidden", "été"])
NAMES = st.sampled_from(["1", "my train", "test-2", "a b", "photo", "x.y", "007", "-", "é"])
ENDINGS = st.sampled_from(
    ["", ".png", ".JPG", ".jpeg", ".dat", ".txt", ".heic", ".gif", ".csv", ".mp4", ".zip", ".tiff"]
)
GOOD = (PNG, JPEG, encode("TIFF"))
CONTENTS = st.sampled_from([*GOOD, ANIMATED, CUT, b"", b"a note", b"\0\1\2"])
PATHS = st.builds(
    lambda folders, name, ending: "/".join([*folders, name + ending]), st.lists(FOLDERS, max_size=3), NAMES, ENDINGS
)
FILES = st.dictionaries(PATHS, CONTENTS, min_size=1, max_size=8)


def attempt(call):
    """What it returns, or the message of its `ValueError`."""
    try:
        return call()
    except ValueError as error:
        return str(error)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(files=FILES, listed=st.lists(st.integers(0, 9), unique=True, max_size=4), has_metadata=st.booleans())
def test_every_file_is_accounted_for(files, listed, has_metadata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for name in list(files):
        try:
            write(folder, {name: files[name]})
        except (FileExistsError, NotADirectoryError, IsADirectoryError):  # a folder has that name
            del files[name]
    visible = {name for name in files if not any(part.startswith(".") for part in name.split("/"))}
    named: set[str] = set()
    if has_metadata:
        named = {(sorted(files) + [f"gone-{n}.png" for n in range(10)])[number] for number in listed}
        write(folder, {"metadata.csv": "\n".join(["file_name,score", *(f'"{name}",1' for name in sorted(named))])})
    seen: set[str] = set()
    for split in ("train", "valid", "test"):
        read = attempt(lambda split=split: read_folder(folder, split))
        if isinstance(read, str):
            if "beside folders of splits" in read:
                return
            assert "`split` is" in read
            continue
        names = [os.path.relpath(one["path"], folder) for one in read["image"]]
        assert len(names) == len(set(names))
        seen |= set(names)
        beside, skipped = read.remove_columns("image"), [None] * len(names)
        result = attempt(lambda: read_images(undecoded(read, "image"), beside, skipped, (4, 4)))  # noqa: B023
        good = sum(files.get(name) in GOOD for name in names)
        if isinstance(result, str):
            assert good == 0
            assert not names or "no usable image" in result
        else:
            assert len(result[0]) == good == len(names) - sum(result[1]["skipped"].values())
    assert seen == visible | named, "a file that is neither used nor counted"
