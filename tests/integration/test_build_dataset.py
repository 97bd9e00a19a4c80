"""Builds of data sets: the filter on rendered faces, and anyone's own images."""

import contextlib
import json
import runpy
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from helpers.celeba_folder import write_celeba_folder
from helpers.launch import CPU, ROOT, kill_all, launch, launch_command
from huggingface_hub import DatasetCard
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from diffusers_multiguidance.curation import labelers
from diffusers_multiguidance.curation.build import DatasetSettings, build_dataset
from diffusers_multiguidance.data.faces import faces

FACES = {"dataset": "faces", "num_images": 240, "resolution": 16, "seed": 7}
QUICK = {"labeler_resolution": 32, "max_train_steps": 25, "train_batch_size": 16, "ensemble_size": 2}
LENIENT = {**QUICK, "extremes": True, "tau_1": 0.5, "tau_2": 0.5, "lr_warmup_steps": 1}
SMILES = {**FACES, **LENIENT, "attribute": ["Smiling"]}


def build(folder, **settings):
    """The built data set and its provenance."""
    build_dataset(DatasetSettings(output_dir=folder / "set", **settings))
    return load_from_disk(folder / "set"), json.loads((folder / "set" / "provenance.json").read_text())


def flags(folder, **settings):
    settings["output_dir"] = folder / "set"
    lists = {name: value if isinstance(value, list) else [value] for name, value in settings.items()}
    return [word for name, words in lists.items() for word in (f"--{name}", *words)]


@pytest.fixture(scope="module")
def smiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smiles")
    build(folder, **SMILES, compare=True)
    return folder / "set"


def test_extreme_set_says_what_it_was_made_from(smiles):
    dataset = load_from_disk(smiles)
    provenance = json.loads((smiles / "provenance.json").read_text())
    record = provenance["attributes"]["Smiling"]
    sizes = record["num_images"]
    assert sizes["source"] == provenance["source"]["num_images"] == 240
    assert sizes["source"] >= sizes["labeler agrees"] >= sizes["ensemble agrees"] >= sizes["most extreme"] > 0
    assert sizes["most extreme"] == len(dataset) == sum(record["num_per_label"])
    assert record["num_per_label"] == np.bincount(dataset["Smiling"], minlength=2).tolist()
    # The leak is counted on the very images that were kept.
    factor = np.array(dataset["factor_Smiling"])
    counted = record["leak"]["ensemble on all, cross-fitted, surest"]
    assert counted["share_outside"] == pytest.approx(((factor > 0.2) & (factor < 0.8)).mean())
    assert counted["num_mild"] == ((factor > 0.3) & (factor < 0.7)).sum()
    assert set(record["leak"]) >= {"labels alone", "labeler, surest", "ensemble on agreed, surest"}
    assert record["wrong_images_bound"]["10"] < 1
    assert provenance["flags"]["attribute"] == ["Smiling"]
    assert not smiles.with_name(".set.work").exists()


def test_card_has_its_pictures_and_valid_metadata(smiles):
    card = DatasetCard.load(smiles / "README.md")
    card.data.to_yaml()
    assert "--attribute Smiling" in card.text
    assert "ensemble on agreed, cross-fitted, surest" in card.text
    pictures = [word.split("](")[1].rstrip(")") for word in card.text.split() if "](" in word and ".png" in word]
    assert {"histogram_Smiling.png", "kept_Smiling.png"} <= set(pictures)
    for name in pictures:
        with Image.open(smiles / name) as picture:
            assert min(picture.size) > 30


def test_killed_build_goes_on_and_ends_the_same(smiles, tmp_path, monkeypatch):
    """The command is killed; called from Python with the same settings, it goes on."""
    command = launch_command("build_dataset.py", *flags(tmp_path, **SMILES, compare=True))
    process = subprocess.Popen(command, cwd=ROOT, env=CPU, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finished = tmp_path / ".set.work" / "Smiling" / "on-all-0" / "labeler" / "config.json"
    deadline = time.monotonic() + 240
    try:
        while not finished.exists():
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        kill_all(process)
    assert not (tmp_path / "set").exists()

    trained, train = [], labelers.train

    def counted(*arguments):
        trained.append(arguments[-1])  # what the progress bar says
        return train(*arguments)

    monkeypatch.setattr(labelers, "train", counted)
    dataset, _ = build(tmp_path, **SMILES, compare=True)
    assert not {"labeler-0", "on-all-0"} & set(trained), "a finished network was trained again"
    assert "on-agreed-1" in trained
    assert dataset["source_index"] == load_from_disk(smiles)["source_index"]


def test_two_processes_share_the_work(tmp_path):
    result = launch("build_dataset.py", *flags(tmp_path, **SMILES), processes=2)
    assert result.returncode == 0, result.stderr
    dataset = load_from_disk(tmp_path / "set")
    record = json.loads((tmp_path / "set" / "provenance.json").read_text())["attributes"]["Smiling"]
    assert len(dataset) == record["num_images"]["most extreme"] > 0
    assert len(set(dataset["source_index"])) == len(dataset)
    # Each process labels one half, and the scores come back in the images' order.
    factor, label = np.array(dataset["factor_Smiling"]), np.array(dataset["Smiling"])
    assert factor[label == 1].mean() > factor[label == 0].mean() + 0.2


def test_two_attributes_keep_the_intersection(tmp_path):
    settings = {**SMILES, "attribute": ["Smiling", "Hair"], "max_train_steps": 60}
    dataset, provenance = build(tmp_path, **settings, keep_share=0.4, unlabelled="between")
    assert set(np.unique(dataset["Hair"])) == {0, 1}, "networks learn from images without the label; none is kept"
    assert 0 < len(dataset) <= min(r["num_images"]["most extreme"] for r in provenance["attributes"].values())
    assert provenance["attributes"]["Hair"]["num_images"]["without label"] > 0


def test_holdout_chooses_thresholds_and_is_not_kept(tmp_path):
    labels = faces(240, 16, seed=7)["Smiling"]
    rows = [f"{number},{['no', 'yes'][labels[number]]}" for number in range(0, 60, 2)]
    (tmp_path / "holdout.csv").write_text("\n".join(["source_index,label", *rows]))
    dataset, provenance = build(tmp_path, **{**SMILES, "tau_1": 0.999999}, holdout_file=tmp_path / "holdout.csv")
    record = provenance["attributes"]["Smiling"]
    assert record["thresholds_from_holdout"]
    assert record["tau_1"] == 0.5, "every label of the hold-out is right, so the lowest threshold will do"
    assert record["num_images"]["held out"] == 30
    assert not set(dataset["source_index"]) & set(range(0, 60, 2))


def test_index_file_replaces_the_filter(tmp_path):
    (tmp_path / "index.txt").write_text("\n".join(map(str, range(0, 240, 5))))
    dataset, _ = build(tmp_path, **SMILES, index_file=tmp_path / "index.txt")
    assert dataset["source_index"][:] == list(range(0, 240, 5))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images with scores, some of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng, rows = np.random.default_rng(0), ["file_name,brightness"]
    for number in range(40):
        Image.fromarray(
            np.full((20, 20, 3), 6 * number, np.uint8) + rng.integers(0, 9, (20, 20, 3), dtype=np.uint8)
        ).save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{'nan' if number == 3 else number}")
    (folder / "20.png").write_bytes(b"")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


def test_own_images_by_score(photos, tmp_path, capsys):
    source = {"dataset": "images", "train_data_dir": photos, "score_column": "brightness", "resolution": 16}
    dataset, _ = build(tmp_path, **source, extremes=True, num_extremes=[8, 3], oversample=True)
    assert np.bincount(dataset["brightness"]).tolist() == [8, 9]  # three, three times
    assert set(dataset["source_index"]) == {0, 1, 2, 4, 5, 6, 7, 8, 37, 38, 39}
    assert dataset.features["brightness"].names == ["low", "high"]
    assert "skipped: 1 (empty file)" in capsys.readouterr().out
    assert "| empty file | 1 |" in (tmp_path / "set" / "README.md").read_text()


def run_script(name, monkeypatch, folder, **settings):
    monkeypatch.setattr("sys.argv", [name, *map(str, flags(folder, **settings))])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / "training" / name), run_name="__main__")


def test_much_that_is_left_out_is_said(photos, tmp_path, monkeypatch, capsys):
    """On the screen of the scripts, and in the data card."""
    shutil.copytree(photos, tmp_path / "photos")
    for number in range(8):
        (tmp_path / "photos" / f"phone-{number}.heic").write_bytes(b"heic")
    (tmp_path / "photos" / "my train.png").write_bytes((photos / "01.png").read_bytes())
    source = {"train_data_dir": tmp_path / "photos", "resolution": 16}
    run_script(
        "build_dataset.py", monkeypatch, tmp_path, dataset="images", score_column="brightness", extremes=True,
        num_extremes=[5], **source,
    )  # fmt: skip
    said = capsys.readouterr().out
    # The files that the metadata do not list have no score.
    assert "skipped: 10 (missing or infinite score)" in said
    assert "WARNING: 11 of 49 files (22 %) are left out, as said above." in said
    assert "| missing or infinite score | 10 |" in (tmp_path / "set" / "README.md").read_text()
    tiny = {"max_train_steps": 1, "train_batch_size": 4, "block_out_channels": [8, 16], "layers_per_block": 1}
    tiny |= {"attention_resolutions": [8], "norm_num_groups": 4, "attention_head_dim": 4, "ddpm_num_steps": 10}
    run_script("train_unet.py", monkeypatch, tmp_path / "run", **source, **tiny, num_inference_steps=2)
    said = capsys.readouterr().out
    assert "skipped: 8 (unreadable image (.heic))" in said
    assert "WARNING: 9 of 49 files (18 %) are left out, as said above." in said
    assert (tmp_path / "run" / "set" / "pipeline" / "model_index.json").is_file()


def test_a_score_may_be_called_score(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    metadata = tmp_path / "photos" / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("brightness", "score"))
    source = {"dataset": "images", "train_data_dir": tmp_path / "photos", "score_column": "score", "resolution": 16}
    dataset, _ = build(tmp_path, **source, extremes=True, num_extremes=[5])
    assert np.bincount(dataset["score"]).tolist() == [5, 5]
    assert sorted(dataset["score_score"])[-1] == 39


def test_folders_of_images_by_the_label_that_the_folder_is(tmp_path):
    for row in faces(60, 16, seed=3):
        folder = tmp_path / "photos" / ["calm", "stormy"][row["Smiling"]]
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{row['source_index']}.png")
    source = {"dataset": "images", "train_data_dir": tmp_path / "photos", "label_column": "label", "resolution": 16}
    dataset, _ = build(tmp_path, **source, **LENIENT)
    assert dataset.features["label"].names == ["calm", "stormy"]
    assert set(np.unique(dataset["label"])) == {0, 1}

    named = {"attribute": ["Weather"], "class_names": ["fair", "foul"]}
    again, _ = build(tmp_path / "named", **source, **LENIENT, **named)
    assert again.features["Weather"].names == ["fair", "foul"]
    assert again["Weather"][:] == dataset["label"][:]
    with pytest.raises(ValueError, match=r"`--attribute` is \['a', 'b'\]; expected one name for the column 'label'"):
        build(tmp_path / "wrong", **source, **LENIENT, attribute=["a", "b"])


def test_celeba_from_a_folder_of_rendered_faces(tmp_path):
    write_celeba_folder(150, tmp_path / "celeba", seed=5)
    source = {"dataset": "celeba", "train_data_dir": tmp_path / "celeba", "resolution": 16}
    record = build(tmp_path, **source, **LENIENT, attribute=["Smiling"])[1]["attributes"]["Smiling"]
    assert record["num_images"]["source"] == 120, "eight of ten are in the training split"
    assert record["leak"]["labels alone"]["num_images"] == 120


def test_objects_by_known_size(tmp_path):
    source = {"dataset": "objects", "num_images": 60, "resolution": 16}
    size = np.array(build(tmp_path, **source, attribute=["size"], extremes=True)[0]["factor_size"])
    assert ((size <= 0.2) | (size >= 0.8)).all()


def test_a_whole_data_set_replaces_an_earlier_one_and_nothing_else(tmp_path):
    for num_images in (20, 30):
        dataset, provenance = build(tmp_path, dataset="circles", num_images=num_images, resolution=16)
        assert len(dataset) == provenance["source"]["num_images"] == num_images
    (tmp_path / "set" / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match=r"`--output_dir` .* exists; expected a data set to replace"):
        build(tmp_path, dataset="circles")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP with random weights, as `from_pretrained` wants it."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokens), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_zero_shot_keeps_what_fits_the_prompts_most(clip, tmp_path):
    words = {"by": "zero_shot", "zero_shot_model": str(clip), "prompts": ["young", "old"], "num_extremes": [20, 30]}
    settings = {**FACES, **words, "attribute": ["Age"], "extremes": True, "class_names": ["young", "old"]}
    dataset, provenance = build(tmp_path, **settings)
    assert dataset.features["Age"].names == ["young", "old"]
    assert np.bincount(dataset["Age"]).tolist() == [20, 30]
    record = provenance["attributes"]["Age"]
    assert record["prompts"] == ["young", "old"]
    assert record["widest_gap"][0] < record["widest_gap"][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SMILES, "attribute": ["Frowning"]}, "`--attribute` is 'Frowning'; expected"),
        ({**SMILES, "num_extremes": [5000]}, "`--num_extremes` is 5000"),
        ({**SMILES, "labeler_model": "resnet0"}, "`model` is 'resnet0'; expected"),
        ({**SMILES, "by": "score"}, "`--by score` needs scores; expected"),
        ({"dataset": "images", "train_data_dir": "nowhere", "label_column": "x"}, "nowhere"),
    ],
)
def test_what_a_source_does_not_have(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **settings)
    assert not (tmp_path / "set").exists()


def test_the_script_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    words = flags(tmp_path, **{**SMILES, "attribute": ["Frowning"]})
    monkeypatch.setattr("sys.argv", ["build_dataset.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "training" / "build_dataset.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "`--attribute` is 'Frowning'; expected" in capsys.readouterr().err
