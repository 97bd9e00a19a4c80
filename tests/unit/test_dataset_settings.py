"""Flags of build_dataset.py and generate.py, parsed in process."""

import pytest

from diffusers_multiguidance.curation.build import DatasetSettings
from diffusers_multiguidance.curation.pseudo_labels import GenerateSettings
from diffusers_multiguidance.training.recipe import parse

FACES = "--dataset faces --attribute Smiling --extremes --output_dir out"
GENERATE = "--pipeline p --attributes position --evaluators circle-position --extremes e --output_dir out"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--output_dir out", "--dataset"),
        ("--dataset faces", "--output_dir"),
        ("--dataset flowers --output_dir out", "--dataset.*flowers"),
        ("--dataset faces --extremes --output_dir out", "`--attribute` is missing; expected"),
        (f"{FACES} --tau_2 1.0", "`--tau_2` is 1.0; expected"),
        (f"{FACES} --delta 0.5", "`--delta` is 0.5; expected"),
        (f"{FACES} --keep_share 0.6", "`--keep_share` is 0.6; expected"),
        (f"{FACES} --resolution 4", "`--resolution` is 4; expected"),
        (f"{FACES} --num_proc 0", "`--num_proc` is 0; expected"),
        (f"{FACES} --ensemble_size 1", "`--ensemble_size` is 1; expected at least 2 with `--cross_fit`"),
        (f"{FACES} --num_extremes 1 2 3", r"`--num_extremes` is \[1, 2, 3\]; expected"),
        (f"{FACES} --num_extremes", r"`--num_extremes` is \[\]; expected"),
        (f"{FACES} --class_names low", r"`--class_names` is \['low'\]; expected two"),
        (f"{FACES} --class_names a b", r"`--class_names` is \['a', 'b'\], but faces has names; expected none"),
        (f"{FACES} --by zero_shot", "`--by zero_shot` is incomplete; expected"),
        (f"{FACES} --by score --attribute a b", r"`--attribute` is \['a', 'b'\]; expected one"),
        ("--dataset celeba --output_dir out", r"`--dataset celeba` has \[\]; expected"),
    ],
)
def test_wrong_flags_of_build_dataset(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(DatasetSettings, "build_dataset", flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_images 0", "`--num_images` is 0; expected"),
        ("--eval_batch_size 0", "`--eval_batch_size` is 0; expected"),
        ("--evaluators circle-position circle-height", "`--evaluators` are .*; expected one for each"),
        ("--attributes", "`--attributes` is empty; expected one or two"),
    ],
)
def test_wrong_flags_of_generate(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(GenerateSettings, "generate", [*GENERATE.split(), *flags.split()])


def test_what_decides_unless_told():
    decided = {"circles": "factor", "digits": "factor", "objects": "factor", "faces": "labels"}
    for dataset, by in decided.items():
        assert DatasetSettings(dataset=dataset, output_dir="out").decided_by == by
    own = {"dataset": "images", "train_data_dir": "photos", "output_dir": "out"}
    assert DatasetSettings(**own, label_column="label").decided_by == "labels"
    assert DatasetSettings(**own, score_column="age").decided_by == "score"
    assert DatasetSettings(**own, score_column="age", by="labels").decided_by == "labels"


def test_labelers_train_shorter_than_a_denoiser_unless_told():
    settings = parse(DatasetSettings, "build_dataset", f"{FACES} --no_cross_fit".split())
    assert (settings.max_train_steps, settings.resume_from_checkpoint, settings.cross_fit) == (800, "latest", False)
    assert parse(DatasetSettings, "build_dataset", f"{FACES} --max_train_steps 7".split()).max_train_steps == 7


@pytest.mark.parametrize(
    ("flags", "num_images", "share"),
    [
        ("", 10_000, 0.12),
        ("", 9_999, 0.085),
        ("--keep_share 0.2", 9_999, 0.2),
        ("--by factor", 9_999, 0.12),
    ],
)
def test_fewer_are_kept_of_small_sets_with_noisy_labels(flags, num_images, share):
    assert parse(DatasetSettings, "build_dataset", f"{FACES} {flags}".split()).share_of(num_images) == share
