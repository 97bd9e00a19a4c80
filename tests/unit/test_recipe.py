"""Settings, flags and recipes, parsed in process."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from diffusers_multiguidance.curation.build import DatasetSettings
from diffusers_multiguidance.curation.pseudo_labels import GenerateSettings
from diffusers_multiguidance.training.classifier import ClassifierSettings
from diffusers_multiguidance.training.denoiser import DenoiserSettings
from diffusers_multiguidance.training.evaluator import EvaluatorSettings
from diffusers_multiguidance.training.recipe import command_line, parse, run_script
from diffusers_multiguidance.training.settings import Settings, TrainingSettings, check_numbers, flag

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SCRIPTS = {
    "build_dataset": DatasetSettings,
    "train_unet": DenoiserSettings,
    "train_classifier": ClassifierSettings,
    "train_evaluator": EvaluatorSettings,
    "generate": GenerateSettings,
}


@dataclass(kw_only=True)
class SomeSettings(Settings):
    learning_rate: float = flag(1.0, "How fast.")
    widths: list[int] = flag([1])
    mode: Literal["one", "other"] | None = flag(None)
    average: bool = flag(True)
    folder: Path | None = flag(None)


@dataclass(kw_only=True)
class OtherDefaults(SomeSettings):
    learning_rate: float = 0.5
    name: str = flag(help="Needed.")


def parse_recipe(text: str, tmp_path: Path, *argv: str) -> SomeSettings:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return parse(SomeSettings, "train", ["--recipe", str(path), *argv])


def test_recipe_sets_flags_and_flags_override(tmp_path):
    settings = parse_recipe("train: {learning_rate: 1e-4, widths: [8, 16], average: false}", tmp_path)
    assert settings == SomeSettings(learning_rate=1e-4, widths=[8, 16], average=False)
    assert parse_recipe("train: {widths: [8, 16]}", tmp_path, "--widths", "4").widths == [4]
    assert parse_recipe("train: {learning_rate: 1e-4}", tmp_path, "--learning_rate", "0.5").learning_rate == 0.5
    assert parse_recipe("train: {average: true}", tmp_path, "--no_average").average is False


@pytest.mark.parametrize("argv", [["--widths"], ["--widths", "--average"]])
def test_a_list_may_be_empty(argv, tmp_path):
    assert parse(SomeSettings, "train", argv).widths == []
    assert parse_recipe("train: {widths: []}", tmp_path).widths == []


def test_a_recipe_lies_over_the_one_that_it_extends(tmp_path):
    (tmp_path / "lowest.yaml").write_text("train: {mode: one, widths: [1, 2]}\nother: {}")
    (tmp_path / "base.yaml").write_text("extends: lowest.yaml\ntrain: {learning_rate: 2, mode: other}")
    settings = parse_recipe("extends: base.yaml\ntrain: {learning_rate: 3, widths: null}", tmp_path)
    assert settings == SomeSettings(learning_rate=3, mode="other"), "null takes back what a lower recipe says"
    assert parse_recipe("extends: base.yaml", tmp_path).widths == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other: {}", "has no section 'train'; expected"),
        ("{", "expected valid YAML"),
        ("train: fast", "expected a mapping of settings"),
        ("extends: nowhere.yaml", "nowhere.yaml'; expected a readable file"),
        ("extends: recipe.yaml", "extends itself; expected"),
        (
            "train: {learning_rat: 3}",
            "sets 'learning_rat' of train; expected one of its settings, like 'learning_rate'",
        ),
        ("train: {qqq: 3}", "sets 'qqq' of train; expected one of its settings, which --help lists"),
        ("train: {learning_rate: fast}", "`--learning_rate`: invalid float value: 'fast'"),
        ("train: {learning_rate: {a: 1}}", "`--learning_rate`: invalid float value"),
        ("train: {learning_rate: [1, 2]}", "'2' is a value too many; expected"),
        ("train: {mode: odd}", "`--mode`: invalid choice: 'odd'"),
    ],
)
def test_wrong_recipes(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_recipe(text, tmp_path)


def test_wrong_flags_name_the_nearest():
    with pytest.raises(ValueError, match=r"'--width=3' is no flag of train.py; expected .* like 'widths'"):
        parse(SomeSettings, "train", ["--width=3"])
    with pytest.raises(ValueError, match="required: `--name`"):
        parse(OtherDefaults, "train", [])
    with pytest.raises(ValueError, match=r"`--recipe` is 'nowhere.yaml'; expected a readable file"):
        parse(SomeSettings, "train", ["--recipe", "nowhere.yaml"])


@pytest.mark.parametrize("error", [ValueError("`--speed` is 3."), OSError("disk full")])
def test_a_script_ends_in_one_sentence(error, monkeypatch, capsys):
    def fail(settings: SomeSettings) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit, match="2"):
        run_script(fail, SomeSettings, "train")
    assert capsys.readouterr().err == f"train.py: {error}\n"


def test_settings_are_checked_from_python_too():
    assert SomeSettings(folder="runs").folder == Path("runs")
    with pytest.raises(ValueError, match=r"`--mode` is 'odd'; expected one of \['one', 'other'\]"):
        SomeSettings(mode="odd")
    for range_, message in (({"above": 2}, "above 2"), ({"at_least": 2}, "of at least 2"), ({"below": 1}, "below 1")):
        with pytest.raises(ValueError, match=f"`--learning_rate` is 1.0; expected a number {message}"):
            check_numbers(SomeSettings(), "learning_rate", **range_)
    with pytest.raises(ValueError, match="is nan; expected a number that is finite"):
        check_numbers(SomeSettings(learning_rate=math.nan), "learning_rate")


def test_a_subclass_with_another_default_keeps_the_help_and_its_own_lists(capsys):
    with pytest.raises(SystemExit):
        parse(OtherDefaults, "train", ["--help"])
    assert "How fast. (default: 0.5)" in capsys.readouterr().out
    first, second = OtherDefaults(name="a"), OtherDefaults(name="b")
    first.widths.append(2)
    assert second.widths == [1]


def test_the_command_of_a_card_gives_the_same_settings():
    settings = ClassifierSettings(
        output_dir="my out",
        pipeline="p",
        attributes=["a b", "c"],
        attention_resolutions=[],
        pseudo_labels=True,
        seed=3,
    )
    words = shlex.split(command_line(settings, "train_classifier"))
    assert words[:3] == ["accelerate", "launch", "training/train_classifier.py"]
    assert parse(ClassifierSettings, "train_classifier", words[3:]) == settings


def test_committed_recipes_set_only_known_flags():
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES.glob("*.yaml")}
    assert set(recipes) >= {
        "circles-32",
        "circles-32-exact",
        "circles-64",
        "digits",
        "faces-rendered",
        "paper_circles",
    }
    for name, sections in recipes.items():
        for section in sections.keys() & SCRIPTS.keys() if "extends" in sections else ():
            parse(SCRIPTS[section], section, ["--recipe", str(RECIPES / f"{name}.yaml")])
        assert sections.keys() <= {"extends", *SCRIPTS}


DENOISER = ["--output_dir", "out"]
CLASSIFIER = [*DENOISER, "--pipeline", "p", "--attributes", "a"]


@pytest.mark.parametrize(
    ("section", "flags", "message"),
    [
        ("train_unet", "--learning_rate -1", "`--learning_rate` is -1.0; expected"),
        ("train_unet", "--train_batch_size 0", "`--train_batch_size` is 0; expected"),
        ("train_unet", "--seed 4294967296", "`--seed` is 4294967296; expected"),
        ("train_unet", "--ema_max_decay 1", "`--ema_max_decay` is 1.0; expected"),
        ("train_unet", "--ddpm_num_steps 50 --num_inference_steps 51", "`--num_inference_steps` is 51; expected"),
        ("train_unet", "--vlb_weight nan", "`--vlb_weight` is nan; expected"),
        ("train_unet", "--logit_std 0", "`--logit_std` is 0.0; expected"),
        ("train_unet", "--logit_mean inf", "`--logit_mean` is inf; expected"),
        ("train_unet", "--lr_scheduler fast", "`--lr_scheduler`: invalid choice: 'fast'"),
        ("train_unet", "--block_out_channels", "`--block_out_channels` is empty; expected"),
        ("train_classifier", "--attributes", "`--attributes` is empty; expected"),
        ("train_classifier", "--num_classifiers 0", "`--num_classifiers` is 0; expected"),
        ("train_classifier", "--label_smoothing 1", "`--label_smoothing` is 1.0; expected"),
        ("train_classifier", "--layers_per_block 0", "`--layers_per_block` is 0; expected"),
        ("train_classifier", "--guidance_scale inf", "`--guidance_scale` is inf; expected"),
        ("train_classifier", "--guidance_interval 1 0", "`guidance_interval` is"),
        ("train_classifier", "--guidance_interval 1", "`guidance_interval` is"),
        ("train_classifier", "--scheduler euclid", "`--scheduler` is 'euclid'; expected"),
        ("train_classifier", "--teacher t --pseudo_labels", "expected one way to teach"),
        ("train_classifier", "--resume_from_checkpoint 7", "`--resume_from_checkpoint` is '7'; expected 'latest'"),
        ("train_evaluator", "--eval_share 1", "`--eval_share` is 1.0; expected"),
    ],
)
def test_wrong_flags_end_in_one_sentence(section, flags, message):
    start = {"train_unet": DENOISER, "train_evaluator": [*DENOISER, "--attribute", "a"]}.get(section, CLASSIFIER)
    with pytest.raises(ValueError, match=message):
        parse(SCRIPTS[section], section, [*start, *flags.split()])


def test_training_takes_no_unknown_choice_from_python():
    with pytest.raises(ValueError, match="`--optimizer` is 'adam'; expected one of"):
        TrainingSettings(output_dir="out", optimizer="adam")
