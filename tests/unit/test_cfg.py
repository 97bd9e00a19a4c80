"""Classifier-free multi-guidance, with tiny networks: equation 12, the call, folders, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from helpers.tiny import cfg_pipeline, generators, tiny_pipeline
from test_stock_pipelines import stock_pipeline, tiny_dit

from diffusers_multiguidance import calibrate, create_dit, load_pipeline
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.guidance import ConditionalPrediction
from diffusers_multiguidance.pipelines import (
    MultiGuidanceCFGPipeline,
    MultiGuidanceDDPMPipeline,
    MultiGuidanceEditPipeline,
)


def test_the_prediction_is_equation_12():
    """-w eps(none) + (1 + w) sum_m share_m eps(m), image by image; the variance is that without a class."""
    torch.manual_seed(0)
    table = torch.randn(4, 2, 3, 3)  # a network that says the same whatever the image is, but for its brightness

    def predict(x_t, timestep, labels):
        return table[labels] * x_t.mean(dim=(1, 2, 3), keepdim=True)

    w, shares, x_t = 0.4, torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]), torch.rand(2, 1, 3, 3)
    score = ConditionalPrediction(predict, {"kind": [2, 0, 1]}, 3, {"kind": (1 + w) * shares})
    found = score(x_t, torch.tensor(5))
    for image in range(2):

        def eps(label, image=image):
            return predict(x_t[image : image + 1], None, torch.tensor([label]))[0]

        mixture = sum(share * eps(label) for share, label in zip(shares[image], (2, 0, 1), strict=True))
        torch.testing.assert_close(found[image, 0], (-w * eps(3) + (1 + w) * mixture)[0])
        torch.testing.assert_close(found[image, 1], eps(3)[1])


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_samples_like_the_bare_loop(kind):
    pipeline = cfg_pipeline(kind)
    call = {"guidance_scale": 0.5, "guidance_interval": (0.0, 0.5), "num_inference_steps": 6, "output_type": "pt"}
    found = pipeline(2, target={"Smiling": 0.3}, generator=generators(2), **call).images

    diffusion = GaussianDiffusion.from_scheduler(pipeline.scheduler, 6)
    streams = generators(2)
    x = torch.stack([torch.randn(1, 8, 8, generator=stream) for stream in streams])
    network = pipeline.denoiser
    with torch.no_grad():
        for index in reversed(range(6)):
            timestep = diffusion.timesteps[index].expand(2)
            said = [network(x, timestep, class_labels=torch.tensor([label] * 2)).sample for label in (0, 1, 2)]
            output = said[2]
            if index >= 3:
                output = torch.cat([-0.5 * said[2] + 1.5 * (0.7 * said[0] + 0.3 * said[1])]).clone()
                output[:, 1:] = said[2][:, 1:]
            moments = diffusion.p_mean_variance(output, x, index)
            noise = torch.zeros_like(x)
            if index:
                noise = torch.stack([torch.randn(1, 8, 8, generator=stream) for stream in streams])
            x = moments.mean + (0.5 * moments.log_variance).exp() * noise
    torch.testing.assert_close(found, (x / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_a_target_means_what_it_says():
    pipeline = cfg_pipeline()
    call = {"batch_size": 3, "output_type": "np", "calibration": None}

    def sample(**guidance) -> np.ndarray:
        return pipeline(generator=generators(3), **call, **guidance).images

    unguided, low, high = sample(), sample(target={"Smiling": 0}), sample(target={"Smiling": 1})
    assert not np.allclose(low, high)
    np.testing.assert_allclose(sample(target={"Smiling": {"no": 1.0}}), low)
    np.testing.assert_allclose(sample(guidance_weights={"Smiling": {"yes": 1.1}}), high, atol=1e-6)
    np.testing.assert_allclose(sample(guidance_weights={"Smiling": {}}), unguided, atol=1e-6)
    outside = sample(target={"Smiling": 1}, guidance_interval=(0.0, 0.0))
    np.testing.assert_allclose(outside, unguided, atol=1e-6)
    alone = pipeline(1, target={"Smiling": 1}, output_type="np", calibration=None, generator=generators(1))
    np.testing.assert_allclose(alone.images[0], high[0], atol=1e-6)
    assert alone.probabilities is None


def test_a_folder_loads_samples_and_is_calibrated_like_the_others(tmp_path, monkeypatch):
    pipeline = cfg_pipeline("dit")
    pipeline.save_pretrained(tmp_path / "cfg")
    call = {"batch_size": 2, "target": {"Smiling": 0.5}, "output_type": "np", "calibration": None}
    expected = pipeline(generator=generators(2), **call).images
    trusted = DiffusionPipeline.from_pretrained(tmp_path / "cfg", trust_remote_code=True)
    for loaded in (
        load_pipeline(tmp_path / "cfg"),
        MultiGuidanceCFGPipeline.from_pretrained(tmp_path / "cfg"),
        trusted,
    ):
        assert type(loaded).__name__ == "MultiGuidanceCFGPipeline"
        assert loaded.attributes == {"Smiling": ["no", "yes"]}
        loaded.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(loaded(generator=generators(2), **call).images, expected, atol=1e-6)
        same = MultiGuidanceCFGPipeline.from_pipe(loaded)
        assert same.config["sampling_defaults"] == pipeline.config["sampling_defaults"]
    with pytest.raises(
        ValueError, match="is a MultiGuidanceCFGPipeline, not a MultiGuidanceDDPMPipeline; expected to"
    ):
        MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "cfg")

    tones = iter(np.linspace(0, 1, 3).repeat(4))  # an evaluator for which the value follows
    monkeypatch.setattr(
        "diffusers_multiguidance.calibration.load_evaluator",
        lambda name: lambda images: np.array([next(tones) for _ in images]),
    )
    monkeypatch.setattr("diffusers_multiguidance.calibration.check_evaluator", lambda *given: None)
    calibrate(tmp_path / "cfg", "Smiling", "tones", num_target_probabilities=3, num_images=4)
    calibrated = load_pipeline(tmp_path / "cfg")
    assert calibrated.config["calibrations"]["Smiling"][0]["values"] == [0.0, 0.5, 1.0]
    assert len(calibrated(2, target={"Smiling": 0.5}).images) == 2


def test_a_stock_dit_is_guided_between_any_of_its_classes(tmp_path):
    """Such a folder has a label for no class, and needs no training at all."""
    stock = stock_pipeline("dit")
    assert isinstance(stock, DiTPipeline)
    stock.save_pretrained(tmp_path)
    pipeline = MultiGuidanceCFGPipeline.from_pretrained(tmp_path, attributes={"animal": {"dog": 7, "cat": 2}})
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.attributes == {"animal": ["dog", "cat"]}
    call = {"num_inference_steps": 3, "guidance_scale": 0.0, "output_type": "np"}
    images = pipeline(2, target={"animal": 0.0}, generator=torch.Generator().manual_seed(0), **call).images
    told = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path)
    told.set_progress_bar_config(disable=True)
    labelled = {"num_inference_steps": 3, "class_labels": [7, 7], "output_type": "np"}
    np.testing.assert_allclose(
        images, told(2, generator=torch.Generator().manual_seed(0), **labelled).images, atol=1e-5
    )


def test_what_is_wrong_is_said(tmp_path):
    pipeline = cfg_pipeline()
    with pytest.raises(ValueError, match="`class_labels` is \\[0\\]; expected None, as `target` says which"):
        pipeline(1, class_labels=[0])
    for scale in (-0.1, float("nan"), "much"):
        with pytest.raises(ValueError, match=r"`guidance_scale` is .*; expected a finite number of at least 0"):
            pipeline(1, target={"Smiling": 0.5}, guidance_scale=scale)
    with pytest.raises(ValueError, match="`target` names attribute 'Hair'; expected one of \\['Smiling'\\]"):
        pipeline(1, target={"Hair": 0.5})
    for wrong in (None, {}):
        with pytest.raises(ValueError, match=r"`attributes` is .*; expected labels by class, by attribute"):
            cfg_pipeline(attributes=wrong)
    with pytest.raises(ValueError, match=r"`attributes` is \['Smiling'\]; expected labels by class"):
        cfg_pipeline(attributes=["Smiling"])
    for wrong in ({"no": 0, "yes": 2}, {"no": 0}, {"no": 0, "yes": 1.0}, {"no": 0, "yes": 0}, [0, 1], ["lo", "hi"]):
        with pytest.raises(
            ValueError, match=r"for 'Smiling'; expected at least two classes with labels .* from 0 to 1"
        ):
            cfg_pipeline(attributes={"Smiling": wrong})
    with pytest.raises(ValueError, match="`unet` is told no classes; expected one that is"):
        cfg_pipeline(unet=tiny_pipeline().unet)
    with pytest.raises(ValueError, match=r"`guidance_scale` is 5.0 without `target`; expected it with that only"):
        pipeline(1, guidance_scale=5.0)
    tiny_pipeline().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is a MultiGuidanceDDPMPipeline, not a MultiGuidanceCFGPipeline; expected to"
    ):
        MultiGuidanceCFGPipeline.from_pretrained(tmp_path)


def test_from_pipe_to_and_from_classifiers():
    told, guided = cfg_pipeline(), tiny_pipeline()
    with pytest.raises(ValueError, match="`pipeline` has classifiers, which a MultiGuidanceCFGPipeline does not take"):
        MultiGuidanceCFGPipeline.from_pipe(guided, attributes={"Smiling": {"no": 0, "yes": 1}})
    plain = MultiGuidanceDDPMPipeline.from_pipe(told, classifiers=guided.classifiers)
    assert "guidance_scale" not in plain.config["sampling_defaults"]["ddpm"], "w is no weight"
    assert plain.config["sampling_defaults"]["ddpm"]["num_inference_steps"] == 10
    with pytest.raises(ValueError, match="`guidance_scale` is missing, and none was tuned for 'ddpm'"):
        plain(1, target={"Smiling": 0.5})
    plain.classifiers = None
    back = MultiGuidanceCFGPipeline.from_pipe(plain, attributes={"Smiling": {"no": 0, "yes": 1}})
    back.set_progress_bar_config(disable=True)
    assert len(back(2, target={"Smiling": 0.5}, guidance_scale=0.1).images) == 2
    edit = MultiGuidanceEditPipeline.from_pipe(told)
    with pytest.raises(ValueError, match="`unet` is told a class for each image; expected one that is not, for editi"):
        edit(plain.numpy_to_pil(np.zeros((8, 8, 1)))[0], target={"Smiling": 0.5})


def test_a_unet_that_is_told_classes_wants_them():
    unet = cfg_pipeline().unet
    pipeline = MultiGuidanceDDPMPipeline(
        unet=unet, transformer=None, vae=None, classifiers=None, scheduler=cfg_pipeline().scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="`class_labels` is None; expected a label from 0 to 2 for each image"):
        pipeline(2, num_inference_steps=2)
    assert len(pipeline(2, num_inference_steps=2, class_labels=[0, 2]).images) == 2


def test_a_dit_starts_from_nothing_and_drops_no_label_by_itself():
    torch.manual_seed(0)
    network = create_dit(8, 3, 2, 2, 2, 8, num_classes=2).train()
    x, labels = torch.randn(64, 3, 8, 8), torch.zeros(64, dtype=torch.long)
    output = network(x, torch.arange(64), class_labels=labels).sample
    assert output.shape == (64, 6, 8, 8)
    assert not output.any()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    first, second = (network(x, torch.arange(64), class_labels=labels).sample for _ in range(2))
    torch.testing.assert_close(first, second)
    assert tiny_dit(2).transformer_blocks[0].norm1.emb.class_embedder.dropout_prob > 0  # the stock one does


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_size": (8, 16)}, "`sample_size` is \\(8, 16\\); expected a square"),
        ({"sample_size": 9}, "`sample_size` is 9; expected a square whose side is a multiple of `patch_size`, 2"),
        ({"patch_size": 0}, "`patch_size` is 0; expected at least 1"),
        ({"num_classes": 0}, "`num_classes` is 0; expected at least 1"),
        ({"attention_head_dim": 3}, "`attention_head_dim` is 3; expected a multiple of 4"),
    ],
)
def test_sizes_that_no_dit_has(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_dit(**{"sample_size": 8, "channels": 1, "num_attention_heads": 1, "attention_head_dim": 8, **arguments})
