"""Evaluators that say how unsure they are, and those that nobody trained."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from diffusers_multiguidance.evaluation.evaluators import TrainedEvaluator, ZeroShotEvaluator, load_evaluator
from diffusers_multiguidance.evaluation.extractors import look
from diffusers_multiguidance.models.evaluator import ImageClassifier
from diffusers_multiguidance.training.evaluator import disagreement_figures, reliability

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1)).astype(np.uint8)


@pytest.mark.parametrize("classes", [None, ["no", "yes"]])
def test_uncertainty_is_how_far_members_are_apart(classes, tmp_path):
    torch.manual_seed(0)
    network = ImageClassifier("test_resnet", "Smiling", classes, 1, 16, num_members=3, temperature=2.0).eval()
    network.save_pretrained(tmp_path)
    evaluator = load_evaluator(tmp_path)
    assert isinstance(evaluator, TrainedEvaluator)
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        alone = torch.stack([member(pixels) / 2 for member in network.members])
    expected = (alone.sigmoid()[..., 0] if classes is None else alone.softmax(dim=2)[..., 1]).numpy()
    uncertainty = look(IMAGES, evaluator, None, "images").uncertainty
    np.testing.assert_allclose(uncertainty, expected.std(axis=0), atol=1e-6)
    assert uncertainty.min() > 0


def test_one_network_does_not_know_how_sure_it_is(tmp_path):
    ImageClassifier("test_resnet", "Smiling", None, 1, 16).save_pretrained(tmp_path)
    assert look(IMAGES, TrainedEvaluator(tmp_path), None, "images").uncertainty is None


def test_disagreement_where_the_ensemble_is_wrong():
    """Of two members, images 2 and 3 divide them more and more; only there the ensemble is wrong."""
    second = torch.tensor([[0.1, 0.9, 0.5, 0.9], [0.1, 0.9, 0.1, 0.1]])
    members = torch.stack([1 - second, second], dim=2).log()
    pooled = members.exp().mean(dim=0).log()
    figures = disagreement_figures(members, pooled, torch.tensor([0, 1, 1, 0]))
    assert figures["held_out_disagreement"] == pytest.approx((0 + 0 + 0.2 + 0.4) / 4)
    assert figures["held_out_mean_error"] == pytest.approx((0.1 + 0.1 + 0.7 + 0.5) / 4)
    assert figures["held_out_disagreement_error_rank_correlation"] == pytest.approx(7 / 9, abs=1e-4), (
        "of 1, 1, 3, 4 and 1, 1, 4, 3"
    )
    values = torch.logit(second.double())[..., None]
    number = disagreement_figures(values, values.mean(dim=0), torch.tensor([0.1, 0.9, 0.3, 0.5]))
    assert number["held_out_disagreement"] == pytest.approx((0 + 0 + 0.2 + 0.4) / 4)


def test_reliability_by_bins():
    logits = torch.tensor([[0.2, 0.8]] * 5 + [[0.7, 0.3]] * 5).log()
    sure, right = reliability(logits, torch.tensor([1, 1, 1, 1, 0, 1, 1, 0, 0, 0]))
    assert sure == pytest.approx([0.3, 0.8])
    assert right == pytest.approx([0.4, 0.8])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a tiny CLIP with random weights, which reads letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(number) for number in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = {"eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2, "pad_token_id": len(words) - 1}
    text = {**size, **end, "vocab_size": len(words), "max_position_embeddings": 24}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**sizes), tokenizer).save_pretrained(folder)
    return folder


def test_zero_shot_is_the_share_of_the_second_sentence(clip):
    evaluator = load_evaluator(f"{clip}:a frowning face:a smiling face")
    assert isinstance(evaluator, ZeroShotEvaluator)
    values = evaluator(IMAGES)
    assert values.shape == (5,)
    assert len(set(values.round(6))) == 5
    other_way = ZeroShotEvaluator(clip, ("a smiling face", "a frowning face"))
    np.testing.assert_allclose(other_way(IMAGES), 1 - values, atol=1e-6)
    processor, model = CLIPProcessor.from_pretrained(clip), CLIPModel.from_pretrained(clip)
    inputs = processor(
        text=["a frowning face", "a smiling face"],
        images=[image.repeat(3, axis=2) for image in IMAGES],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(dim=1)[:, 1]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_allclose(evaluator(IMAGES, batch_size=2), values, atol=1e-6)
    assert evaluator(IMAGES[:0]).shape == (0,)


def test_zero_shot_that_can_not_be(clip, tmp_path):
    with pytest.raises(ValueError, match=r"can't be read .*; expected a model such as CLIP"):
        load_evaluator(f"{tmp_path}:a frowning face:a smiling face")
    with pytest.raises(ValueError, match=r"`sentences` are \('', 'a smile'\); expected two"):
        load_evaluator(f"{clip}::a smile")
    with pytest.raises(ValueError, match=r"`images` is float64 .*; expected"):
        ZeroShotEvaluator(clip, ("a", "b"))(np.zeros((1, 16, 16, 1)))
    with pytest.raises(ValueError, match=r"`evaluator` is 'smiles'; expected one of .*'MODEL:LOW SENTENCE:HIGH"):
        load_evaluator("smiles")
