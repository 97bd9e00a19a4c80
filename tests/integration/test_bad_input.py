"""Bad inputs to every script and command: one sentence that names what is wrong, code 2, and nothing written."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from helpers.guided_diffusion import UNetModel
from helpers.launch import ROOT
from helpers.tiny import tiny_pipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import diffusers_multiguidance
from diffusers_multiguidance.curation.build import DatasetSettings, build_dataset
from diffusers_multiguidance.curation.pseudo_labels import GenerateSettings, generate_dataset
from diffusers_multiguidance.models.evaluator import ImageClassifier
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.evaluator import EvaluatorSettings, train_evaluator
from diffusers_multiguidance.training.recipe import run_script

SCRIPTS = {
    "train_unet": (train_denoiser, DenoiserSettings),
    "train_classifier": (train_classifiers, ClassifierSettings),
    "train_evaluator": (train_evaluator, EvaluatorSettings),
    "build_dataset": (build_dataset, DatasetSettings),
    "generate": (generate_dataset, GenerateSettings),
}
IMAGES = 24
QUICK = "--resolution 8 --max_train_steps 1 --train_batch_size 2 --use_ema False"
SMALL = "--block_out_channels 8 8 --norm_num_groups 4 --attention_head_dim 8 --attention_resolutions 4"
SMALL = f"{QUICK} {SMALL} --layers_per_block 1"
# Commands that work; a word in capitals is a place of `places`, and what is added to them wins.
GOOD = {
    "train_unet": f"train_unet --train_data_dir DATA {SMALL} --ddpm_num_steps 10 --num_inference_steps 1",
    "train_classifier": f"train_classifier --train_data_dir DATA --pipeline TINY --attributes Smiling {SMALL}",
    "train_evaluator": f"train_evaluator --train_data_dir DATA --attribute Smiling --model test_resnet {QUICK}",
    "build_dataset": f"build_dataset --dataset images --train_data_dir PHOTOS --label_column label --extremes {QUICK} "
    "--ensemble_size 2 --tau_1 0.5 --tau_2 0.5 --labeler_resolution 8 --max_train_steps 60 --lr_warmup_steps 0",
    "generate": "generate --pipeline TINY --attributes Smiling --evaluators NETWORK --extremes DATA --num_images 4 "
    "--num_inference_steps 1",
    "sample": "sample TINY --num-images 1 --num-inference-steps 1",
    "evaluate": "evaluate SAMPLES --attribute Smiling --evaluator NETWORK",
    "card": "card TINY --facts FACTS",
    "convert": "convert UNET --num-head-channels 32 --image-size 16",
}


def run(words: list[str]) -> tuple[int, str]:
    """Exit code of a script or command in this process, and what it says last; a bug's exception goes through."""
    errors = io.StringIO()
    name, *rest = words
    argv = [f"{name}.py", *rest] if name in SCRIPTS else ["multiguidance", *words]
    with patch.object(sys, "argv", argv), redirect_stderr(errors):
        try:
            if name in SCRIPTS:
                run_script(*SCRIPTS[name], name)
            else:
                diffusers_multiguidance.main()
        except SystemExit as ended:
            code = ended.code or 0
        else:
            code = 0
    return code, errors.getvalue().rstrip("\n").split("\n")[-1]


def assert_refused(words: list[str], message: str = "") -> None:
    code, sentence = run(words)
    program = f"{words[0]}.py" if words[0] in SCRIPTS else "multiguidance"
    assert code == 2, (words, code, sentence)
    assert sentence.startswith(f"{program}: "), (words, sentence)
    assert len(sentence) > len(program) + 10, (words, sentence)
    assert message in sentence


def grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint8))


def with_columns(**columns) -> Dataset:
    """Grey images from dark to bright, with columns: values, or their feature and values."""
    features = {"image": ImageFeature()}
    values = {"image": [grey(10 * number) for number in range(IMAGES)]}
    for name, (feature, column) in columns.items():
        features[name], values[name] = feature, column
    return Dataset.from_dict(values, Features(features))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """What the commands read, good and bad; nothing writes there."""
    folder = tmp_path_factory.mktemp("places")
    found = {name: folder / name.lower() for name in ("DATA", "PHOTOS", "TINY", "NETWORK", "SAMPLES", "EMPTY")}
    half, label = [number % 2 for number in range(IMAGES)], ClassLabel(names=["no", "yes"])
    share = [number / IMAGES for number in range(IMAGES)]
    with_columns(
        Smiling=(label, half),
        value_Smiling=(Value("float32"), [None, *share[1:]]),
        Frowning=(label, [-1] * 12 + half[12:]),
        Laughing=(label, half[:12] + [None] * 12),
        constant=(label, [1] * IMAGES),
        nothing=(label, [None] * IMAGES),
        unlabelled=(label, [-1] * IMAGES),
        single=(label, [0, *[1] * (IMAGES - 1)]),
        name=(Value("string"), [f"image {number}" for number in range(IMAGES)]),
        blank=(Value("string"), [""] * IMAGES),
        share=(Value("float32"), share),
        percent=(Value("float32"), [100 * value for value in share]),
        blanks=(Value("float32"), [None] * IMAGES),
        same=(Value("float64"), [0.5] * IMAGES),
        score=(Value("float32"), share),
        source_index=(Value("int64"), range(IMAGES)),
    ).save_to_disk(found["DATA"])
    with_columns(Smiling=(label, half)).select([]).save_to_disk(found["EMPTY"])
    for number in range(IMAGES):
        path = found["PHOTOS"] / ["calm", "stormy"][number // 12] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey(10 * number).save(path)
    tiny_pipeline().save_pretrained(found["TINY"])
    ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 8).save_pretrained(found["NETWORK"])
    found["SAMPLES"].mkdir()
    np.savez(found["SAMPLES"] / "images.npz", images=np.zeros((2, 8, 8, 1), np.uint8))

    def place(name: str, content: str | bytes | None = None) -> Path:
        found[name] = folder / name.lower()
        if content is not None:
            found[name].write_bytes(content.encode() if isinstance(content, str) else content)
        return found[name]

    place("FACTS", "{title: T, summary: S, limits: L}")
    place("FILE", "a file")
    found["BELOW"] = found["FILE"] / "below"
    place("NOWHERE")
    place("BINARY", bytes(range(256)))
    place("NODIR").mkdir()
    torch.save(UNetModel(num_head_channels=32).state_dict(), place("UNET"))
    for name, size, channels in (("LARGE", 16, 1), ("COLOUR", 8, 3)):
        ImageClassifier("test_resnet", "Smiling", ["no", "yes"], channels, size).save_pretrained(place(name))
    ImageClassifier("test_resnet", "Smiling", list("abc"), 1, 8).save_pretrained(place("THREE"))
    shutil.copytree(found["NETWORK"], place("CUT"))
    weights = found["CUT"] / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(found["NETWORK"], place("OTHER"))
    config = json.loads((found["OTHER"] / "config.json").read_text())
    (found["OTHER"] / "config.json").write_text(json.dumps({**config, "model": "test_vit"}))
    shutil.copytree(found["TINY"], place("HALF"))
    (found["HALF"] / "unet" / "config.json").unlink()
    for name, images in (
        ("FLOATS", np.zeros((2, 8, 8, 1))),
        ("SCALAR", np.uint8(3)),
        ("NOTHING", np.zeros((0, 8, 8, 1), np.uint8)),
        ("FLAT", np.zeros((2, 8, 8), np.uint8)),
    ):
        place(name).mkdir()
        np.savez(found[name] / "images.npz", images=images)
    for name, record in (("NOJSON", "{"), ("NOPIPELINE", "{}"), ("LIST", "[]"), ("GONE", '{"pipeline": "no/w/h/e"}')):
        shutil.copytree(found["SAMPLES"], place(name))
        (found[name] / "sample.json").write_text(record)
    for number, text in enumerate(
        (
            "{",
            "[]",
            "title: T",
            "{title: 3, summary: S, limits: L}",
            "{title: T, summary: S, limits: L, more: M}",
            "{title: T, summary: S, limits: L, figures: [3]}",
            "{title: T, summary: S, limits: L, figures: [{measured_on: M, command: C, rows: 5}]}",
            "{title: T, summary: S, limits: L, figures: [{measured_on: M, command: C, rows: {a: [1]}}]}",
            "{title: T, summary: S, limits: L, gap: {Smiling: [1, 0]}}",
            "{title: T, summary: S, limits: L, target: {Age: 0.5}}",
            "{title: T, summary: S, limits: L, pictures: {none.png: N}}",
            "{title: '{{ unknown }}', summary: S, limits: L}",
            "{title: '{{ 1 / 0 }}', summary: S, limits: L}",
            "{title: '{{ 1 + \"a\" }}', summary: S, limits: L}",
            "{title: '{{', summary: S, limits: L}",
        )
    ):
        place(f"FACTS{number}", text)
    for name, text in {
        "INDEXWORD": "one",
        "INDEXFAR": "1\n99999",
        "INDEXBLANK": "\n",
        "HOLDOUTWORD": "source_index,label\none,calm",
        "HOLDOUTFAR": "source_index,label\n99999,calm",
        "HOLDOUTCLASS": "source_index,label\n1,cheerful",
        "HOLDOUTLONG": f"source_index,label\n1,{'x' * 200_000}",
        "HOLDOUTSHORT": "source_index,label\n1",
        "HOLDOUTBARE": "number\n1",
        "RECIPENUMBER": "train_unet: {1: 2}",
        "RECIPELIST": "[1, 2]",
        "RECIPETEXT": "train_unet: fast",
        "RECIPENULL": 'train_unet: {output_dir: "a\\0b", train_data_dir: nowhere}',
        "RECIPEOTHER": "extends: 3",
        "RECIPESELF": "extends: recipeself",
    }.items():
        place(name, text)
    return found


def words_of(text: str, places: dict[str, Path], out: Path) -> list[str]:
    words = [str(places.get(word, word)) for word in text.split()]
    goes_out = words[0] not in ("card", "calibrate", "calibrate-edits", "publish")
    option = "--output_dir" if words[0] in SCRIPTS else "--out"
    return [*words, option, str(out)] if goes_out and option not in words else words


@pytest.mark.parametrize("name", GOOD)
def test_the_commands_that_bad_inputs_are_put_into_are_good(name, places, tmp_path):
    code, sentence = run(words_of(GOOD[name], places, tmp_path / "out"))
    assert code == 0, sentence


TRAININGS = ("train_unet", "train_classifier", "train_evaluator")
BAD = [
    *((name, "--train_data_dir EMPTY", "expected at least one") for name in TRAININGS),
    ("build_dataset", "--train_data_dir EMPTY --label_column Smiling", "expected"),
    ("generate", "--extremes EMPTY", "expected at least one"),
    *((name, "--train_data_dir NODIR", "") for name in (*TRAININGS, "build_dataset")),
    *((name, "--train_data_dir FILE", "") for name in (*TRAININGS, "build_dataset")),
    *((name, "--train_data_dir NOWHERE", "nowhere") for name in (*TRAININGS, "build_dataset")),
    ("generate", "--extremes NODIR", ""),
    ("generate", "--extremes FILE", "`--extremes` is"),
    *((name, "--output_dir FILE", "`--output_dir`") for name in SCRIPTS),
    *((name, "--output_dir BELOW", "`--output_dir`") for name in SCRIPTS),
    *((name, "--output_dir /proc/new", "`--output_dir`") for name in SCRIPTS),
    *((name, f"--output_dir {'x' * 300}", "`--output_dir`") for name in SCRIPTS),
    *(
        (name, f"--out {place}", "`--out`")
        for name in ("sample", "evaluate", "demo", "convert")
        for place in ("BELOW", "/proc/new")
    ),
    *(
        (name, f"--{flag} {value}", f"`--{flag}`")
        for name, flag in (
            ("train_classifier", "attributes"),
            ("train_evaluator", "attribute"),
            ("build_dataset", "attribute"),
            ("generate", "attributes"),
            ("build_dataset", "label_column"),
        )
        for value in ("a/b", "..", ".hidden", "a\\b", "image", "source_index", "x" * 101)
    ),
    *(
        (name, f"--{flag} Smiling Smiling", "twice")
        for name, flag in (
            ("train_classifier", "attributes"),
            ("build_dataset", "attribute"),
            ("generate", "attributes"),
        )
    ),
    ("train_classifier", "--attributes", "`--attributes` is empty"),
    ("generate", "--attributes", "`--attributes` is empty"),
    # Columns.
    ("train_classifier", "--attributes Age", "`--attributes` is 'Age'; expected a column of labels"),
    ("train_classifier", "--attributes share", "`--attributes` is 'share'; expected a column of labels"),
    ("train_classifier", "--attributes score", "`--attributes` is 'score'; expected a column of labels"),
    ("train_classifier", "--attributes name", "no two images have the same"),
    *(
        (name, f"--{flag} {column}", f"is {column!r}, and {counts}")
        for name, flag in (("train_classifier", "attributes"), ("train_evaluator", "attribute"))
        for column, counts in (
            ("constant", "24 of 24 images have one, 'yes'"),
            ("nothing", "0 of 24 images have one"),
            ("unlabelled", "0 of 24 images have one"),
            ("blank", "0 of 24 images have one"),
        )
    ),
    ("train_classifier", "--attributes Frowning Laughing", "is 'Laughing', and 0 of 12 images have one"),
    ("train_classifier", "--attributes Frowning --pseudo_labels", "finds no numbers in 'value_Frowning'"),
    ("train_classifier", "--attributes share --pseudo_labels", "`--attributes` is 'share'; expected two classes"),
    ("train_evaluator", "--attribute percent", "with 23 of 24 numbers outside [0, 1], such as 4.1"),
    ("train_evaluator", "--attribute blanks", "0 of 24 images have a number"),
    ("train_evaluator", "--attribute same", "24 of 24 images have a number, all the same"),
    ("train_evaluator", "--attribute single", "`--eval_share` is 0.1"),
    ("train_evaluator", "--eval_share 0.0001", "`--eval_share` is 0.0001"),
    ("build_dataset", "--train_data_dir DATA --label_column constant", "'constant'"),
    ("build_dataset", "--train_data_dir DATA --label_column nothing", "0 of 24 images have one"),
    ("build_dataset", "--train_data_dir DATA --label_column unlabelled", ""),
    ("build_dataset", "--train_data_dir DATA --label_column name", "no two images have the same"),
    ("build_dataset", "--attribute one other", "`--attribute` is ['one', 'other']; expected one name for the column"),
    # Networks.
    *(
        (name, f"--resolution {size}", f"`--resolution` is {size}x{size}")
        for name in ("train_unet",)
        for size in (15, 9)
    ),
    ("train_unet", "--resolution 100 --block_out_channels 8 8 8 8", "such as 96x96"),
    ("train_unet", "--block_out_channels 8 8 8 8 8 8", "`--resolution` is 8x8"),
    ("train_unet", "--patch_size 3", "`--resolution` is 8x8"),
    ("train_classifier", "--resolution 15", "`--resolution` is 15"),
    ("train_classifier", "--block_out_channels 8 8 8 8 8 8", "`sample_size` is 8; expected"),
    *(
        (name, f"--{flag} {value}", flag)
        for name in ("train_unet", "train_classifier")
        for flag, value in (
            ("attention_head_dim", 0),
            ("attention_head_dim", -8),
            ("attention_head_dim", 3),
            ("norm_num_groups", 0),
            ("norm_num_groups", 3),
            ("layers_per_block", 0),
            ("block_out_channels", ""),
            ("block_out_channels", "0 8"),
            ("block_out_channels", "-8 8"),
            ("block_out_channels", "8 9"),
        )
    ),
    ("train_evaluator", "--model resnet0", "`model` is 'resnet0'; expected a name"),
    ("train_evaluator", "--model inception_v3", "`model` is 'inception_v3', which can't learn from 2 images of 8x8"),
    ("train_evaluator", "--resolution 1 --model vit_tiny_patch16_224", "`model` is 'vit_tiny_patch16_224', which"),
    ("train_evaluator", "--resolution 4 --model resnet10t --train_batch_size 1", "which can't learn from 1 images"),
    ("build_dataset", "--labeler_model resnet0", "`model` is 'resnet0'; expected a name"),
    ("build_dataset", "--labeler_model inception_v3", "`model` is 'inception_v3', which can't learn"),
    ("build_dataset", "--num_extremes 500", "`--num_extremes` is 500; expected at most the 12 that are 'calm'"),
    *((name, "--mixed_precision fp16", "fp16") for name in TRAININGS),
    *(
        (name, "--resume_from_checkpoint NODIR", "`--resume_from_checkpoint`")
        for name in ("train_unet", "train_evaluator")
    ),
    # Pipelines and evaluators.
    *(
        (name, f"--pipeline {place}", place.lower())
        for name in ("train_classifier", "generate")
        for place in ("FILE", "NODIR", "HALF", "DATA")
    ),
    ("train_classifier", "--teacher DATA", "data"),
    *(
        ("generate", f"--evaluators {place}", place.lower())
        for place in ("FILE", "NODIR", "CUT", "OTHER", "TINY", "THREE")
    ),
    ("generate", "--evaluators LARGE", "`images` have shape (1, 8, 8, 1); expected"),
    ("generate", "--evaluators COLOUR", "`images` have shape (1, 8, 8, 1); expected"),
    ("generate", "--attributes Age", "'Age'"),
    ("generate", "--guidance_scale nan", "`guidance_scale`"),
    ("generate", "--num_inference_steps 0", "`num_inference_steps`"),
    ("generate", "--scheduler plms", "`scheduler`"),
    *(
        ("evaluate", f"--evaluator {place}", place.lower())
        for place in ("FILE", "NODIR", "CUT", "OTHER", "TINY", "THREE")
    ),
    ("evaluate", "--evaluator LARGE", "`images` have shape"),
    # Files.
    *(
        ("build_dataset", f"--{flag} {place}", f"`--{flag}`")
        for flag in ("index_file", "holdout_file")
        for place in ("NOWHERE", "NODIR", "BINARY")
    ),
    *(("build_dataset", f"--index_file INDEX{kind}", "`--index_file`") for kind in ("WORD", "FAR", "BLANK")),
    *(
        ("build_dataset", f"--holdout_file HOLDOUT{kind}", "`--holdout_file`")
        for kind in ("WORD", "FAR", "CLASS", "LONG", "SHORT", "BARE")
    ),
    *(
        ("train_unet", f"--recipe {place}", "`--recipe`")
        for place in (
            "NOWHERE",
            "BINARY",
            "NODIR",
            "RECIPENUMBER",
            "RECIPELIST",
            "RECIPETEXT",
            "RECIPEOTHER",
            "RECIPESELF",
        )
    ),
    ("build_dataset", "--by zero_shot --zero_shot_model NODIR --prompts a b --attribute age", "`--zero_shot_model`"),
    ("build_dataset", "--by score", "`--by score` needs scores"),
    *((name, "--push_to_hub --hub_model_id a/b/c", "") for name in ("train_unet", "train_classifier")),
]


@pytest.mark.parametrize(("name", "added", "message"), BAD, ids=lambda value: str(value)[:60])
def test_bad_flags(name, added, message, places, tmp_path):
    start = GOOD.get(name, name)
    assert_refused(words_of(f"{start} {added}", places, tmp_path / "out"), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *(
            (f"evaluate {place} --attribute a --evaluator circle-position", message)
            for place, message in (
                ("NODIR", "`samples`"),
                ("NOWHERE", "`samples`"),
                ("FILE", "expected a folder of images"),
                ("FLOATS", "images.npz`"),
                ("SCALAR", "images.npz`"),
                ("NOTHING", "images.npz`"),
                ("FLAT", "images.npz`"),
            )
        ),
        *((f"evaluate {place} --attribute a", "sample.json") for place in ("SAMPLES", "NOJSON", "NOPIPELINE", "LIST")),
        ("evaluate GONE --attribute a", "no/w/h/e"),
        *((f"card TINY --facts FACTS{number}", "`facts`") for number in range(15)),
        ("card TINY --facts NOWHERE", "`facts`"),
        ("card TINY --facts BINARY", "`facts`"),
        *((f"card {place} --facts FACTS", place.lower()) for place in ("FILE", "BELOW", "NODIR", "/proc/self")),
        ("calibrate TINY --attribute Age --evaluator NETWORK --num-inference-steps 1", "'Age'"),
        ("calibrate TINY --attribute Smiling --num-inference-steps 1", "`attribute` is 'Smiling', for which"),
        ("calibrate NODIR --attribute Smiling", "nodir"),
        ("calibrate NOWHERE --attribute Smiling", "nowhere"),
        ("calibrate TINY --attribute Smiling --evaluator NETWORK --num-target-probabilities 2", "is 2; expected"),
        ("calibrate TINY --attribute Smiling --evaluator LARGE --num-images 1", "`images` have shape"),
        *(
            (f"calibrate-edits {words} --evaluator NETWORK --attribute Smiling", message)
            for words, message in (
                ("NODIR DATA", "nodir"),
                ("TINY NOWHERE", "nowhere"),
                ("TINY EMPTY", "expected"),
                ("TINY DATA --training PHOTOS", "expected one named 'source_index'"),
                ("TINY DATA --training NOWHERE", "nowhere"),
                ("TINY DATA --num-images 0", "`num_images` is 0"),
                ("TINY DATA --num-images -1", "`num_images` is -1"),
                ("TINY DATA --seed -1", "`seed` is -1"),
                ("TINY DATA --num-target-probabilities 2", "is 2; expected"),
                ("TINY DATA --num-images 25", "images of one end; expected at least 25"),
            )
        ),
        *((f"convert {place}", "`denoiser`") for place in ("NODIR", "NOWHERE", "FILE", "BINARY", "FACTS")),
        ("convert UNET --classifier UNET --num-head-channels 32 --image-size 16", "`classifier`"),
        ("publish NODIR --repo-id a/b", "nodir"),
        ("sample NODIR", "nodir"),
        ("sample HALF", "half"),
        ("sample TINY --target Smiling", "`--target`"),
        ("sample", "Missing argument"),
        ("sample TINY extra", "extra"),
        ("sampel TINY", "sampel"),
        ("sample TINY --nope", "--nope"),
        ("sample TINY --num-images", "--num-images"),
        ("sample TINY --num-images many", "--num-images"),
        ("sample TINY --nope=1 --num-images=1", "--nope"),
    ],
)
def test_bad_arguments(command, message, places, tmp_path):
    assert_refused(words_of(command, places, tmp_path / "out"), message)
    assert not list(tmp_path.iterdir())


# One flag of a script, or option of a command, with any value. The data that they name aren't there, so that what
# happens to be good ends in a sentence, too.
NAMES_ON_THE_HUB = ("pipeline", "teacher", "zero_shot_model", "vae")
FUZZED = {
    "train_unet": "train_unet --train_data_dir NOWHERE",
    "train_classifier": "train_classifier --train_data_dir NOWHERE --pipeline TINY --attributes Smiling",
    "train_evaluator": "train_evaluator --train_data_dir NOWHERE --attribute Smiling",
    "build_dataset": "build_dataset --dataset images --train_data_dir NOWHERE --label_column label",
    "generate": "generate --pipeline TINY --attributes Smiling --extremes NOWHERE --evaluators NETWORK "
    "--num_images 2 --num_inference_steps 1",
}
WORDS = st.one_of(
    st.integers().map(str),
    st.integers(-2, 70).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20),
    st.sampled_from(
        ["", " ", "-", "--", "-1", "nan", "inf", "1e3", "None", "True", "0x10", "٣", "a/b", "..", "~", "%s"]
    ),
)


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_of_a_flag_ends_in_one_sentence(name, places, data):
    flags = [field.name for field in fields(SCRIPTS[name][1]) if field.name not in (*NAMES_ON_THE_HUB, "output_dir")]
    flag = data.draw(st.sampled_from(flags))
    values = data.draw(st.lists(WORDS, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        words = [*words_of(FUZZED[name], places, Path(folder) / "out"), f"--{flag}", *values]
        assert_refused(words)
        assert not list(Path(folder).iterdir())


OPTIONS = {
    "sample": ["num-images", "num-inference-steps", "seed", "target", "guidance-scale", "scheduler", "nothing"],
    "evaluate": ["attribute", "evaluator", "gap", "extractor", "recognizer", "target", "scheduler", "nothing"],
    "calibrate": [
        "evaluator",
        "scheduler",
        "num-inference-steps",
        "guidance-scale",
        "num-images",
        "seed",
        "attribute",
    ],
    "card": ["facts", "load-from", "nothing"],
    "convert": [
        "classifier",
        "attribute",
        "class",
        "image-size",
        "num-head-channels",
        "num-heads",
        "noise-schedule",
        "diffusion-steps",
    ],
    "publish": ["repo-id", "revision", "private"],
}
COMMANDS = {
    "sample": "sample HALF",
    "evaluate": "evaluate SAMPLES --attribute Smiling --evaluator LARGE",
    "calibrate": "calibrate HALF --attribute Smiling --evaluator NETWORK",
    "card": "card NODIR --facts FACTS",
    "convert": "convert UNET --classifier UNET",
    "publish": "publish HALF --repo-id a/b",
}


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_of_an_option_ends_in_one_sentence(name, places, data):
    option, values = data.draw(st.sampled_from(OPTIONS[name])), data.draw(st.lists(WORDS, max_size=2))
    with tempfile.TemporaryDirectory() as folder:
        words = [*words_of(COMMANDS[name], places, Path(folder) / "out"), f"--{option}", *values]
        if "--help" not in words:
            assert_refused(words)
        assert not list(Path(folder).iterdir())


NUMBERS = {
    "block_out_channels": st.lists(st.integers(-8, 24), max_size=5),
    "attention_resolutions": st.lists(st.integers(-2, 9), max_size=3),
    "layers_per_block": st.integers(-1, 2),
    "norm_num_groups": st.integers(-1, 9),
    "attention_head_dim": st.integers(-1, 9),
    "patch_size": st.integers(-1, 4),
    "resolution": st.integers(-1, 17),
    "train_batch_size": st.integers(-1, 3),
    "gradient_accumulation_steps": st.integers(-1, 2),
    "lr_warmup_steps": st.integers(-1, 3),
    "max_grad_norm": st.floats(-1, 2),
    "vlb_weight": st.floats(-1, 2),
    "ddpm_num_steps": st.integers(-1, 12),
}


DIT = {
    "num_layers": st.integers(-1, 2),
    "num_attention_heads": st.integers(-1, 3),
    "attention_head_dim": st.integers(-1, 9),
    "patch_size": st.integers(-1, 9),
    "resolution": st.integers(-1, 17),
    "label_dropout": st.floats(-1, 2),
}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=st.one_of(st.fixed_dictionaries({}, optional=NUMBERS), st.fixed_dictionaries(DIT)))
def test_any_size_of_a_network_trains_or_ends_in_one_sentence(places, changes):
    with tempfile.TemporaryDirectory() as folder:
        start = GOOD["train_unet"]
        if "num_layers" in changes:
            start = start.replace(SMALL, f"{QUICK} --architecture dit")
        words = words_of(start, places, Path(folder) / "out")
        for flag, value in changes.items():
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
        code, sentence = run(words)
        assert code == 0 or (code == 2 and sentence.startswith("train_unet.py: ")), sentence
        assert (Path(folder) / "out" / "pipeline").exists() == (code == 0)


def test_a_network_of_fixed_size_learns_any_size(places, tmp_path):
    words = words_of(f"{GOOD['train_evaluator']} --model test_vit --resolution 16", places, tmp_path / "out")
    assert run(words)[0] == 0
    network = ImageClassifier.from_pretrained(tmp_path / "out" / "evaluator")
    assert network.image_size == (16, 16)


@pytest.mark.parametrize("flag", ["extremes", "output_dir", "recipe"])
def test_an_empty_path_is_not_this_folder(flag, places, tmp_path):
    assert_refused([*words_of(GOOD["generate"], places, tmp_path / "out"), f"--{flag}", ""], "expected a path")
    assert_refused([*words_of(GOOD["sample"], places, tmp_path / "out"), "--out", ""], "empty")


@pytest.mark.parametrize("labels", ["folders", "yes and no", "blanks"])
def test_classifiers_learn_from_a_raw_folder(labels, places, tmp_path, capsys):
    """Images beside class folders, and blank cells, have no label."""
    photos, column = shutil.copytree(places["PHOTOS"], tmp_path / "photos"), "label"
    grey(99).save(photos / "unsorted.png")
    if labels != "folders":
        column = "smiling"
        rows = [
            f"{path.relative_to(photos)},{'yes' if 'calm' in str(path) else 'no'}" for path in photos.rglob("*.png")
        ]
        if labels == "blanks":
            rows = [row.replace(",yes", ",1").replace(",no", "," if "unsorted" in row else ",0") for row in rows]
        (photos / "metadata.csv").write_text("\n".join(["file_name,smiling", *rows]))
    start = f"{GOOD['train_classifier']} --attributes {column} --train_data_dir {photos}"
    assert run(words_of(start, places, tmp_path / "out"))[0] == 0
    config = json.loads((tmp_path / "out" / "member-0" / "config.json").read_text())
    names = {"folders": ["calm", "stormy"], "yes and no": ["no", "yes"], "blanks": ["0", "1"]}
    assert config["attributes"] == {column: names[labels]}
    said = capsys.readouterr().out
    assert (f"1 of 25 images have no '{column}' and are left out." in said) == (labels != "yes and no")


@pytest.mark.parametrize("size", [0, 7, 100, -100, -1])
def test_a_broken_checkpoint_is_refused(size, places, tmp_path):
    start = f"{GOOD['train_evaluator']} --checkpointing_steps 1"
    words = words_of(start, places, tmp_path / "out")
    assert run(words)[0] == 0
    for name in ("model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"):
        broken = shutil.copytree(tmp_path / "out", tmp_path / name)
        path = broken / "checkpoint-1" / name
        path.write_bytes(path.read_bytes()[:size])
        other = [*words[:-1], str(broken), "--max_train_steps", "2", "--resume_from_checkpoint", "latest"]
        assert_refused(other, "`--resume_from_checkpoint`")


def test_a_read_only_folder_is_refused(places):
    """For a card, samples and training; `root` may write everywhere, so it becomes somebody else."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        tiny = shutil.copytree(places["TINY"], folder / "tiny")
        shutil.copy(places["FACTS"], folder / "facts")
        for path in (folder, tiny):
            path.chmod(0o555)
        os.seteuid(user or 65534)
        assert_refused(["card", str(tiny), "--facts", str(folder / "facts")], "`pipeline`")
        assert_refused(["sample", str(tiny), "--out", str(tiny / "out")], "`--out`")
        words = words_of(GOOD["train_unet"], {**places, "DATA": folder}, tiny / "out")
        assert_refused(words, "`--output_dir`")
    finally:
        os.seteuid(user)
        for path in (folder, tiny):
            path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("program", ["train_unet.py", "multiguidance"])
def test_ctrl_c_while_a_program_imports(program, tmp_path):
    command = [sys.executable, str(ROOT / "training" / program), "--output_dir", str(tmp_path / "out")]
    if program == "multiguidance":
        command = [str(Path(sys.executable).with_name(program)), "sample", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any("libtorch" in part.path for part in psutil.Process(process.pid).memory_maps()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
