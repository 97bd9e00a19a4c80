"""Editing: what the call promises, with tiny networks."""

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DPMSolverMultistepInverseScheduler, UniPCMultistepScheduler
from helpers.tiny import SAMPLING_DEFAULTS, generators, tiny_pipeline
from PIL import Image

from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.guidance import ClassifierScore
from diffusers_multiguidance.pipelines import MultiGuidanceEditPipeline
from diffusers_multiguidance.pipelines.multiguidance_edit import slerp


def edit_pipeline(**config) -> MultiGuidanceEditPipeline:
    pipeline = tiny_pipeline(**config)
    defaults = {**SAMPLING_DEFAULTS, "edit": {"num_inference_steps": 20, "guidance_scale": 60.0, "strength": 0.5}}
    edit = MultiGuidanceEditPipeline(**pipeline.components, sampling_defaults=defaults)
    edit.set_progress_bar_config(disable=True)
    return edit


@pytest.fixture
def edit() -> MultiGuidanceEditPipeline:
    return edit_pipeline()


def pictures(count: int, size: tuple[int, int] = (8, 8)) -> list[Image.Image]:
    """Smooth ones: nothing of them is lost when they are resized."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return [Image.fromarray((255 * (x * n + y * (count - n)) / count).astype(np.uint8)) for n in range(count)]


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.8])
def test_there_and_back_without_guidance_and_noise(strength):
    """DDIM inversion is exact for infinitely many steps."""
    edit = edit_pipeline(clip_sample=False)  # the network is random: what it predicts leaves [-1, 1]
    errors = []
    for steps in (20, 100):
        call = {"num_inference_steps": steps, "strength": strength, "output_type": "np"}
        same = edit(pictures(3), target={"Smiling": 0.5}, guidance_scale=0.0, eta=0.0, **call).images
        errors.append(np.abs(same[..., 0] - np.stack([np.asarray(one) for one in pictures(3)]) / 255).mean())
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_edits_like_the_bare_loop(edit):
    """The call against a loop written from the steps that the golden numbers pin."""
    out = edit(pictures(2), target={"Smiling": 0.3}, guidance_scale=30.0, output_type="pt", generator=generators(2))

    diffusion = GaussianDiffusion.from_scheduler(edit.scheduler, 20)
    streams = generators(2)
    x = torch.stack([torch.from_numpy(np.array(one)).float()[None] / 127.5 - 1 for one in pictures(2)])
    with torch.no_grad():
        for index in range(9):
            x = diffusion.ddim_inverse_step(edit.unet(x, diffusion.timesteps[index]).sample, x, index)
        for index in reversed(range(10)):
            timestep = diffusion.timesteps[index]
            grad = ClassifierScore(edit.classifiers, {"Smiling": torch.tensor([[21.0, 9.0]] * 2)})(x, timestep)
            noise = torch.zeros_like(x)
            if index > 0:
                noise = torch.cat([torch.randn(1, 1, 8, 8, generator=stream) for stream in streams])
            x = diffusion.ddim_step(edit.unet(x, timestep).sample, x, index, (index + 1) / 10, grad, noise)
    torch.testing.assert_close(out.images, x.clamp(-1, 1) / 2 + 0.5, rtol=0, atol=1e-5)


def test_guidance_moves_the_probability_towards_the_target(edit):
    def probability(target: float, scale: float) -> float:
        call = {"target": {"Smiling": target}, "guidance_scale": scale, "strength": 0.8}
        return edit(pictures(6), generator=generators(6), **call).probabilities["Smiling"][:, 1].mean()

    assert probability(0.0, 2000.0) < probability(0.5, 0.0) < probability(1.0, 2000.0)


def test_weights_are_targets_times_scale(edit):
    call = {"output_type": "np", "strength": 0.5}
    by_target = edit(pictures(1), target={"Smiling": 0.25}, guidance_scale=40.0, generator=generators(1), **call)
    weights = {"Smiling": {"no": 30, "yes": 10}}
    by_weights = edit(pictures(1), guidance_weights=weights, generator=generators(1), **call)
    np.testing.assert_allclose(by_target.images, by_weights.images, rtol=0, atol=1e-6)


def test_an_image_does_not_depend_on_its_batch(edit):
    call = {"target": {"Smiling": 0.5}, "output_type": "np"}
    four = edit(pictures(4), generator=generators(4), **call).images
    last = edit(pictures(4)[2:], generator=generators(2, start=2), **call).images
    np.testing.assert_allclose(four[2:], last, rtol=0, atol=1e-5)


def test_images_of_any_size_and_mode_fit_the_model(edit):
    grey = edit._to_sample(pictures(2)[1])
    tall = edit._to_sample(pictures(2, (8, 20))[1].convert("RGBA"))
    assert grey.shape == tall.shape == (1, 1, 8, 8)
    assert -1 <= tall.min() <= tall.max() <= 1
    large = edit._to_sample(pictures(2)[1].resize((80, 80), Image.Resampling.NEAREST).convert("RGB"))
    assert (large - grey).abs().max() < 0.1
    sideways = pictures(2)[1]
    sideways.getexif()[0x0112] = 6  # a camera held upright
    assert torch.equal(edit._to_sample(sideways), grey.rot90(-1, (2, 3)))


def test_strength_says_how_many_steps(edit):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, timestep))

    for strength in (0.01, 0.5, 1.0):
        edit(pictures(1), target={"Smiling": 0.5}, strength=strength, callback_on_step_end=callback)
    assert [step for step, _ in seen] == [0, *range(10), *range(20)]
    assert [timestep for step, timestep in seen if step == 0] == [0, 47, 99]


def test_defaults_are_those_of_editing(edit):
    """Whatever scheduler the pipeline samples with."""
    call = {"image": pictures(1), "target": {"Smiling": 0.5}, "output_type": "np"}
    explicit = {"num_inference_steps": 20, "guidance_scale": 60.0, "strength": 0.5}
    expected = edit(**call, **explicit, generator=generators(1)).images
    np.testing.assert_array_equal(edit(**call, generator=generators(1)).images, expected)
    edit.scheduler = UniPCMultistepScheduler.from_config(edit.scheduler.config)
    np.testing.assert_allclose(edit(**call, generator=generators(1)).images, expected, atol=1e-5)
    edit.register_to_config(sampling_defaults={})
    with pytest.raises(ValueError, match="`guidance_scale` is missing, and none was tuned for 'edit'; expected"):
        edit(**call)


def test_loads_the_folders_that_sampling_loads(edit, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    loaded = MultiGuidanceEditPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config["sampling_defaults"]["edit"]["num_inference_steps"] == 10
    shared = MultiGuidanceEditPipeline.from_pipe(pipeline, classifiers=pipeline.classifiers)
    shared.set_progress_bar_config(disable=True)
    assert shared.config["sampling_defaults"] == loaded.config["sampling_defaults"]
    call = {"target": {"Smiling": 0.5}, "num_inference_steps": 20, "guidance_scale": 60.0, "output_type": "np"}
    images = [one(pictures(1), generator=generators(1), **call).images for one in (edit, loaded, shared)]
    np.testing.assert_allclose(images[0], images[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(images[0], images[2], rtol=0, atol=1e-5)


def multistep_inverse(edit: MultiGuidanceEditPipeline, **config) -> DPMSolverMultistepInverseScheduler:
    settings = {"algorithm_type": "dpmsolver++", "timestep_spacing": "linspace", **config}
    return DPMSolverMultistepInverseScheduler.from_config(edit.scheduler.config, **settings)


def test_latents_stand_for_the_image(edit):
    call = {"target": {"Smiling": 0.3}, "calibration": None, "output_type": "np"}
    latents = edit.invert(pictures(2))
    assert latents.shape == (2, 1, 8, 8)
    assert latents.dtype == torch.float32
    by_latents = edit(latents=latents, generator=generators(2), **call).images
    np.testing.assert_array_equal(edit(pictures(2), generator=generators(2), **call).images, by_latents)
    unguided = edit(pictures(2), target={"Smiling": 0.3}, guidance_scale=0.0, eta=0.0, output_type="np").images
    np.testing.assert_allclose(edit(latents=latents, eta=0.0, output_type="np").images, unguided, atol=1e-6)


def test_with_hardly_any_steps_the_latents_are_the_image(edit):
    for scheduler in (None, multistep_inverse(edit)):
        latents = edit.invert(pictures(2), strength=0.01, inverse_scheduler=scheduler)
        assert torch.equal(latents, edit._to_sample(pictures(2)))
        edit.invert(pictures(2), num_inference_steps=1, inverse_scheduler=scheduler)


def test_multistep_inversion_leads_where_ddim_leads():
    """By the same timesteps and nearly along the same curve, but not by the same formula."""
    edit = edit_pipeline(clip_sample=False)
    call = {"image": pictures(3), "strength": 0.5, "num_inference_steps": 100}
    ddim = edit.invert(**call)
    multistep = edit.invert(**call, inverse_scheduler=multistep_inverse(edit))
    assert 0 < (multistep - ddim).abs().max() < 0.1 * (ddim - edit._to_sample(pictures(3))).abs().max()


@pytest.mark.parametrize("method", ["slerp", "lerp"])
def test_interpolation_goes_from_image_to_image(edit, method):
    first, last = pictures(3)[::2]
    out = edit.interpolate(first, last, 5, method=method, output_type="np")
    ends = edit(latents=edit.invert([first, last]), eta=0.0, output_type="np")
    assert out.images.shape == (5, 8, 8, 1)
    assert out.probabilities["Smiling"].shape == (5, 2)
    np.testing.assert_allclose(out.images[[0, -1]], ends.images, atol=1e-5)
    images, _ = edit.interpolate(first, last, 3, method=method, return_dict=False)
    assert [image.size for image in images] == [(8, 8)] * 3
    np.testing.assert_allclose(np.asarray(images[1])[..., None] / 255, out.images[2], atol=0.003)


def test_interpolation_needs_no_classifiers(edit):
    out = edit.interpolate(*pictures(2), 3, output_type="pt")
    edit.classifiers = None
    unguided = edit.interpolate(*pictures(2), 3, output_type="pt")
    assert torch.equal(unguided.images, out.images)
    assert unguided.probabilities is None


def test_latents_do_not_depend_on_their_batch(edit):
    torch.testing.assert_close(edit.invert(pictures(3))[1:2], edit.invert(pictures(3)[1]), rtol=0, atol=1e-5)


def test_slerp_keeps_the_norm_and_lerp_does_not():
    first, last = torch.randn(2, 3, 16, 16, generator=generators(1)[0])
    for share in (0.0, 0.2, 0.5, 1.0):
        mixed = slerp(first, last, share)
        assert float(mixed.norm()) == pytest.approx(float(torch.lerp(first.norm(), last.norm(), share)), rel=0.02)
    assert torch.lerp(first, last, 0.5).norm() < 0.8 * first.norm()
    assert torch.equal(slerp(first, last, 0.0), first)
    torch.testing.assert_close(slerp(first, first, 0.3), first)  # where there is no arc
    assert torch.isfinite(slerp(0 * first, last, 0.5)).all()


TARGET = {"target": {"Smiling": 0.5}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": [], **TARGET}, "`image` is an empty list; expected"),
        ({"image": "face.png", **TARGET}, "`image` is or has a str; expected"),
        ({"image": np.zeros((8, 8)), **TARGET}, "`image` is or has a ndarray; expected"),
        (
            {"image": Image.new("F", (8, 8)), **TARGET},
            r"`image` can't be used \(no known range of values \(mode F\)\); expected",
        ),
        ({"image": None, **TARGET}, "`image` and `latents`: neither given; expected exactly one"),
        ({"latents": torch.zeros(1, 1, 8, 8), **TARGET}, "`image` and `latents`: both given; expected exactly one"),
        ({"image": None, "latents": [0.0]}, "`latents` is a list; expected a tensor"),
        ({"image": None, "latents": torch.zeros(1, 1, 8, 9)}, r"of shape \(1, 1, 8, 9\); expected .* \(B, 1, 8, 8\)"),
        ({"image": None, "latents": torch.zeros(1, 1, 8, 8).long()}, "`latents` is torch.int64 of shape"),
        ({"image": None, "latents": torch.full((1, 1, 8, 8), torch.nan)}, "`latents` has infinite numbers or NaN;"),
        (
            {"image": None, "latents": torch.zeros(1, 1, 8, 8), **TARGET},
            "`calibration` is 'same' with `latents`; expected None",
        ),
        ({}, "`target` and `guidance_weights`: neither given; expected exactly one"),
        (
            {**TARGET, "guidance_weights": {"Smiling": {"no": 3}}},
            "`target` and `guidance_weights`: both given; expected exactly one",
        ),
        ({"target": {"Age": 0.5}}, "`target` names attribute 'Age'; expected"),
        ({"target": {"Smiling": float("nan")}}, "`target` for 'Smiling' is nan; expected"),
        ({"guidance_weights": {"Smiling": {"maybe": 3}}}, "`guidance_weights` names class 'maybe'"),
        ({"strength": 0.0, **TARGET}, "`strength` is 0.0; expected"),
        ({"strength": 1.1, **TARGET}, "`strength` is 1.1; expected"),
        ({"strength": float("nan"), **TARGET}, "`strength` is nan; expected"),
        ({"eta": 1.5, **TARGET}, "`eta` is 1.5; expected"),
        ({"guidance_scale": -1, **TARGET}, "`guidance_scale` is -1; expected"),
        ({"num_inference_steps": 101, **TARGET}, "`num_inference_steps` is 101; expected"),
        ({"generator": [torch.Generator()] * 3, **TARGET}, "`generator` has 3 generators; expected"),
        ({"output_type": "latent", **TARGET}, "`output_type` is 'latent'; expected"),
        ({"callback_on_step_end": 3, **TARGET}, "`callback_on_step_end` is 3; expected"),
    ],
)
def test_wrong_arguments(edit, arguments, message):
    with pytest.raises(ValueError, match=message):
        edit(**{"image": pictures(1), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_b": "b.png"}, "`image_b` is a str; expected a PIL image"),
        ({"image_a": pictures(2)}, "`image_a` is a list; expected a PIL image"),
        ({"num_images": 1}, "`num_images` is 1; expected a whole number of at least 2"),
        ({"num_images": 2.0}, "`num_images` is 2.0; expected a whole number of at least 2"),
        ({"num_images": True}, "`num_images` is True; expected a whole number of at least 2"),
        ({"method": "cubic"}, "`method` is 'cubic'; expected 'slerp' or 'lerp'"),
        ({"strength": 0}, "`strength` is 0; expected"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; expected"),
        ({"output_type": "latent"}, "`output_type` is 'latent'; expected"),
    ],
)
def test_wrong_arguments_of_interpolate(edit, arguments, message):
    first, last = pictures(2)
    with pytest.raises(ValueError, match=message):
        edit.interpolate(**{"image_a": first, "image_b": last, "num_images": 3, **arguments})


def test_wrong_inverse_schedulers(edit):
    with pytest.raises(ValueError, match="`inverse_scheduler` is a DDIMInverseScheduler; expected a DPMSolver"):
        edit.invert(pictures(1), inverse_scheduler=DDIMInverseScheduler())
    for setting in (
        {"algorithm_type": "sde-dpmsolver++"},
        {"timestep_spacing": "leading"},
        {"beta_schedule": "linear"},
        {"prediction_type": "v_prediction"},
        {"num_train_timesteps": 200},
    ):
        with pytest.raises(ValueError, match="`inverse_scheduler` has other settings than the pipeline; expected"):
            edit.invert(pictures(1), inverse_scheduler=multistep_inverse(edit, **setting))
