"""Features by name, and values and features in one pass."""

from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from diffusers_multiguidance.evaluation import extractors
from diffusers_multiguidance.evaluation.evaluators import TrainedEvaluator
from diffusers_multiguidance.evaluation.extractors import evaluator_extractor, load_extractor, look
from diffusers_multiguidance.models.evaluator import ImageClassifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of an evaluator with two members."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("extractors") / "evaluator"
    ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 16, 2, temperature=2.0).save_pretrained(path)
    return path


def noise(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, channels)).astype(np.uint8)


def test_values_features_and_disagreement_come_from_one_pass(folder, monkeypatch):
    evaluate = TrainedEvaluator(folder)
    extract = evaluator_extractor(evaluate.network)
    images, passes = noise(300), []
    for member in evaluate.network.members:
        plain = member.forward_features
        monkeypatch.setattr(member, "forward_features", lambda x, plain=plain: passes.append(len(x)) or plain(x))
    seen = look(images, evaluate, extract, "images")
    assert sum(passes) == 2 * 300, "each member looks once at each image"
    np.testing.assert_allclose(seen.values, evaluate(images), atol=1e-5)
    assert seen.uncertainty.shape == (300,)
    torch.testing.assert_close(seen.features, extract(images), atol=1e-5, rtol=1e-5)
    other = look(images, evaluate, load_extractor("pixels"), "images")
    np.testing.assert_allclose(other.values, seen.values, atol=1e-5)
    assert other.features.shape == (300, 256)


def test_an_evaluator_s_folder_is_an_extractor(folder):
    extract = load_extractor(folder)
    assert extract.name == "2 test_resnet that learnt 'Smiling'"
    assert extract(noise(3)).shape == (3, 2 * extract.network.members[0].num_features)


def test_a_model_of_transformers_from_a_folder(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **small)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    extract = load_extractor(f"transformers:{tmp_path}")
    grey = noise(3)
    assert extract(grey).shape == (3, 8)
    torch.testing.assert_close(extract(grey), extract(np.repeat(grey, 3, axis=3)))


def test_a_model_of_timm_from_a_folder(tmp_path):
    model = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(model, tmp_path, model_config={})
    extract = load_extractor(f"timm:local-dir:{tmp_path}")
    assert extract.name == f"timm:local-dir:{tmp_path}"
    assert extract(noise(2)).shape == (2, model.num_features)


def test_a_download_that_fails_ends_in_one_sentence(monkeypatch):
    def fail(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(extractors, "create_feature_extractor", fail)
    with pytest.raises(ValueError, match=r"`extractor` 'inception-v3-compat' can't be loaded or downloaded \(.*route"):
        load_extractor("inception-v3-compat")


@pytest.mark.parametrize("name", ["inception", "timm", "nowhere/at/all"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=rf"`extractor` is '{name}'; expected 'pixels', one of"):
        load_extractor(name)


def test_a_name_that_timm_does_not_have():
    with pytest.raises(ValueError, match=r"`extractor` 'timm:nothing' can't be loaded"):
        load_extractor("timm:nothing")
