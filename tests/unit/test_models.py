"""The noisy classifier, sets of it, and the denoiser's initialisation."""

import pytest
import torch
from helpers.tiny import tiny_classifier

from diffusers_multiguidance.models import NoisyClassifier, NoisyClassifierSet, create_unet


def test_one_head_per_attribute():
    classifier = tiny_classifier(attributes={"Smiling": ["no", "yes"], "Hair": ["black", "brown", "blond"]})
    logits = classifier(torch.randn(5, 1, 8, 8), 3).logits
    assert {name: tuple(values.shape) for name, values in logits.items()} == {"Smiling": (5, 2), "Hair": (5, 3)}


def test_timestep_matters_and_may_differ_by_image():
    classifier, x = tiny_classifier(), torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    logits = classifier(x, torch.tensor([3, 90])).logits["Smiling"]
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    torch.testing.assert_close(classifier(x, 3).logits["Smiling"][0], logits[0])


def test_attention_pooling_knows_where_things_are():
    """Same content at another place: a pooling without positions could not tell, but for the borders."""
    torch.manual_seed(0)
    pool = tiny_classifier().pool
    features = torch.randn(1, 16, 4, 4)
    moved = features.roll(2, dims=3)
    assert (pool(features) - pool(moved)).abs().max() > 1e-3


def test_save_and_load(tmp_path):
    classifiers = NoisyClassifierSet.from_members([tiny_classifier(1), tiny_classifier(2)])
    x = torch.randn(2, 1, 8, 8)
    for name, network in {"one": tiny_classifier(3), "set": classifiers}.items():
        network.save_pretrained(tmp_path / name)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "config.json",
            "diffusion_pytorch_model.safetensors",
        ]
        loaded = type(network).from_pretrained(tmp_path / name)
        assert loaded.attributes == network.attributes
        torch.testing.assert_close(loaded(x, 5).logits, network(x, 5).logits)


def test_heads_keep_their_attributes_when_saved(tmp_path):
    """A configuration comes back with its attributes sorted."""
    classifier = tiny_classifier(attributes={"Smiling": ["no", "yes"], "Age": ["old", "middle", "young"]})
    x = torch.randn(2, 1, 8, 8)
    for network in (classifier, NoisyClassifierSet.from_members([classifier])):
        network.save_pretrained(tmp_path)
        logits, loaded = network(x, 5).logits, type(network).from_pretrained(tmp_path)(x, 5).logits
        assert loaded["Age"].shape == (2, 3)
        for name in ("Smiling", "Age"):
            torch.testing.assert_close(loaded[name], logits[name])


def test_set_averages_log_probabilities_of_members_that_share_an_attribute():
    smiling, hair = {"Smiling": ["no", "yes"]}, {"Hair": ["black", "blond"]}
    members = [tiny_classifier(1, smiling), tiny_classifier(2, smiling), tiny_classifier(3, hair)]
    classifiers = NoisyClassifierSet.from_members(members)
    assert classifiers.attributes == {**smiling, **hair}
    x = torch.randn(2, 1, 8, 8)
    logits = classifiers(x, 5).logits
    mean = (members[0](x, 5).logits["Smiling"].log_softmax(1) + members[1](x, 5).logits["Smiling"].log_softmax(1)) / 2
    torch.testing.assert_close(logits["Smiling"], mean)
    torch.testing.assert_close(logits["Hair"], members[2](x, 5).logits["Hair"].log_softmax(1))


def test_set_refuses_members_that_disagree():
    members = [tiny_classifier(1, {"Smiling": ["no", "yes"]}), tiny_classifier(2, {"Smiling": ["yes", "no"]})]
    with pytest.raises(ValueError, match=r"`member_configs` disagree about 'Smiling'.*expected"):
        NoisyClassifierSet.from_members(members)


def test_classifier_can_learn():
    torch.manual_seed(0)
    classifier = tiny_classifier().train()
    labels = torch.arange(32) % 2
    x = torch.randn(32, 1, 8, 8)
    x[labels == 1, :, :, 4:] += 2
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(classifier(x, 5).logits["Smiling"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (classifier(x, 5).logits["Smiling"].argmax(1) == labels).float().mean() > 0.95


def test_unet_starts_at_zero_and_normalises_before_the_middle_attention():
    unet = create_unet(8, 3, (8, 16), (4,), 1, 4, 8)
    assert unet(torch.randn(2, 3, 8, 8), 5).sample.abs().max() == 0
    assert unet.config.out_channels == 6
    assert unet.mid_block.attentions[0].group_norm is not None
    branch = unet.down_blocks[0].resnets[0]
    x, emb = torch.randn(1, 8, 8, 8), torch.randn(1, 32)
    torch.testing.assert_close(branch(x, emb), x)


def test_reference_classifier_has_attention_where_asked():
    config = NoisyClassifier({"Smiling": ["no", "yes"]}, block_out_channels=(64, 64, 64, 64)).down_blocks
    assert [hasattr(block, "attentions") for block in config] == [False, True, True, True]
