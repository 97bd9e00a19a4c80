"""Sampling: what the call promises, with tiny networks."""

import numpy as np
import pytest
import torch
from conftest import tiny_pipeline

from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.guidance import guidance_gradient
from diffusers_multiguidance.models import create_unet
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline


def generators(count: int, start: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + number) for number in range(count)]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small"])
@pytest.mark.parametrize("guided", [False, True])
def test_samples_like_the_bare_loop(sampler, variance_type, guided):
    """The call against a loop written from the steps that the golden numbers pin."""
    pipeline = tiny_pipeline(variance_type=variance_type)
    target = {"Smiling": 0.3} if guided else None
    out = pipeline(3, target=target, sampler=sampler, output_type="pt", generator=generators(3))

    diffusion = GaussianDiffusion.from_scheduler(pipeline.scheduler, 10)
    streams = generators(3)

    def draw() -> torch.Tensor:
        return torch.cat([torch.randn(1, 1, 8, 8, generator=stream) for stream in streams])

    x = draw()
    weights = {"Smiling": torch.tensor([[21.0, 9.0]] * 3)}
    with torch.no_grad():
        for index in reversed(range(10)):
            timestep = diffusion.timesteps[index]
            output = pipeline.unet(x, timestep).sample
            grad = guidance_gradient(pipeline.classifiers, x, timestep, weights) if guided else torch.zeros_like(x)
            if sampler == "ddpm":
                moments = diffusion.p_mean_variance(output, x, index)
                x = moments.mean + moments.variance * grad
                if index > 0:
                    x = x + (0.5 * moments.log_variance).exp() * draw()
            else:
                x = diffusion.ddim_step(output, x, index, grad=grad if guided else None)
    torch.testing.assert_close(out.images, x.clamp(-1, 1) / 2 + 0.5, rtol=0, atol=1e-5)


def test_guidance_moves_the_probability_towards_the_target(pipeline):
    def probability(**call) -> float:
        return pipeline(8, generator=generators(8), **call).probabilities["Smiling"][:, 1].mean()

    low = probability(target={"Smiling": 0.0}, guidance_scale=2000.0)
    high = probability(target={"Smiling": 1.0}, guidance_scale=2000.0)
    assert low < probability() < high


def test_an_image_does_not_depend_on_its_batch(pipeline):
    four = pipeline(4, target={"Smiling": 0.5}, output_type="np", generator=generators(4)).images
    last = pipeline(2, target={"Smiling": 0.5}, output_type="np", generator=generators(2, start=2)).images
    np.testing.assert_allclose(four[2:], last, rtol=0, atol=1e-5)


def test_ddim_draws_noise_only_where_eta_asks_for_it(pipeline):
    def draw(eta: float) -> tuple[np.ndarray, torch.Tensor]:
        stream = torch.Generator().manual_seed(0)
        images = pipeline(1, sampler="ddim", eta=eta, output_type="np", generator=stream).images
        return images, torch.randn(4, generator=stream)

    after_the_start = torch.Generator().manual_seed(0)
    torch.randn(1, 1, 8, 8, generator=after_the_start)
    plain, following = draw(0.0)
    assert torch.equal(following, torch.randn(4, generator=after_the_start))
    noisy, following_noise = draw(1.0)
    assert not torch.equal(following_noise, following)
    assert np.abs(noisy - plain).max() > 1e-3


@pytest.mark.parametrize("target", [None, {"Smiling": 0.3}])
def test_first_order_solver_is_ddim(pipeline, target):
    """Of two steps the solver has no history for the first and takes the image for the last: DDIM, in theory."""
    pipeline.scheduler.register_to_config(clip_sample=False)  # the solver also clips what guidance adds
    call = {"num_inference_steps": 2, "target": target, "guidance_scale": 1.0, "output_type": "np"}
    ddim = pipeline(3, sampler="ddim", generator=generators(3), **call).images
    solver = pipeline(3, sampler="dpmsolver++", generator=generators(3), **call).images
    np.testing.assert_allclose(solver, ddim, rtol=0, atol=2e-5)
    noisy = pipeline(3, sampler="ddim", eta=1.0, generator=generators(3), **call).images
    solver = pipeline(3, sampler="sde-dpmsolver++", generator=generators(3), **call).images
    np.testing.assert_allclose(solver, noisy, rtol=0, atol=2e-5)


def test_second_order_solver_needs_fewer_steps(pipeline):
    def draw(sampler: str, steps: int) -> np.ndarray:
        call = {"target": {"Smiling": 0.3}, "output_type": "np", "generator": generators(4)}
        return pipeline(4, sampler=sampler, num_inference_steps=steps, **call).images

    exact = draw("ddim", 100)
    assert np.abs(draw("dpmsolver++", 10) - exact).mean() < np.abs(draw("ddim", 10) - exact).mean()


def test_the_default_sampler_is_the_pipelines(pipeline):
    stochastic = pipeline(2, sampler="sde-dpmsolver++", generator=generators(2), output_type="np").images
    assert np.abs(pipeline(2, generator=generators(2), output_type="np").images - stochastic).max() > 1e-3
    pipeline.register_to_config(default_sampler="sde-dpmsolver++")
    np.testing.assert_array_equal(pipeline(2, generator=generators(2), output_type="np").images, stochastic)


def test_output_types_and_defaults(pipeline):
    images = pipeline(2).images
    assert images[0].size == (8, 8)
    assert images[0].mode == "L"
    assert pipeline(2, output_type="np").images.shape == (2, 8, 8, 1)
    images, probabilities = pipeline(2, output_type="pt", return_dict=False)
    assert images.shape == (2, 1, 8, 8)
    assert 0 <= images.min() <= images.max() <= 1
    np.testing.assert_allclose(probabilities["Smiling"].sum(axis=1), 1, rtol=1e-5)


def test_classifiers_of_another_size_are_refused(pipeline):
    other = create_unet(16, 1, (8, 16), (4,), 1, 4, 8)
    with pytest.raises(ValueError, match=r"`classifiers` are for 8 pixels .* expected those of `unet`, 16"):
        MultiGuidanceDDPMPipeline(other, pipeline.classifiers, pipeline.scheduler)


def test_without_classifiers_it_samples_unguided(pipeline):
    unguided = MultiGuidanceDDPMPipeline(pipeline.unet, None, pipeline.scheduler, 10)
    unguided.set_progress_bar_config(disable=True)
    out = unguided(2, output_type="np", generator=generators(2))
    np.testing.assert_array_equal(out.images, pipeline(2, output_type="np", generator=generators(2)).images)
    assert out.probabilities is None
    with pytest.raises(ValueError, match="`target` names attribute 'Smiling'; expected one of"):
        unguided(2, target={"Smiling": 0.5})


def test_work_per_step(pipeline, monkeypatch):
    """One UNet call a step, one classifier call a guided step and member, and no graph through the UNet."""
    calls = {"unet": 0, "classifier": 0}

    def count_unet(module, args, output):
        calls["unet"] += 1
        assert not output.sample.requires_grad

    def count_classifier(module, args, output):
        calls["classifier"] += 1

    pipeline.unet.register_forward_hook(count_unet)
    pipeline.classifiers.members[0].register_forward_hook(count_classifier)
    pipeline(2, target={"Smiling": 0.5}, guidance_interval=(0.2, 0.5))
    assert calls == {"unet": 10, "classifier": 3 + 1}  # and once for the finished images' probabilities
    assert all(parameter.grad is None for parameter in pipeline.classifiers.parameters())


def test_callback_sees_every_step_and_may_replace_the_sample(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, timestep, tuple(tensors["sample"].shape)))
        return {"sample": torch.zeros_like(tensors["sample"])} if step == 9 else None

    images = pipeline(2, output_type="np", callback_on_step_end=callback).images
    assert [step for step, _, _ in seen] == list(range(10))
    assert seen[0][1] == 99
    assert seen[-1][1:] == (0, (2, 1, 8, 8))
    assert (images == 0.5).all()


def test_half_precision(pipeline):
    images = pipeline.to(torch.bfloat16)(2, target={"Smiling": 0.5}, output_type="np", generator=generators(2)).images
    assert np.isfinite(images).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0; expected"),
        ({"batch_size": 2.5}, "`batch_size` is 2.5; expected"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; expected"),
        ({"num_inference_steps": 101}, "`num_inference_steps` is 101; expected"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5; expected"),
        ({"sampler": "euler"}, "`sampler` is 'euler'; expected"),
        ({"eta": 0.5}, "`eta` is 0.5; expected"),
        ({"eta": 0.5, "sampler": "dpmsolver++"}, "`eta` is 0.5; expected"),
        ({"calibration": "some"}, "`calibration` is 'some'; expected"),
        ({"eta": 1.5, "sampler": "ddim"}, "`eta` is 1.5; expected"),
        ({"eta": float("nan"), "sampler": "ddim"}, "`eta` is nan; expected"),
        ({"eta": None, "sampler": "ddim"}, "`eta` is None; expected"),
        ({"generator": 3}, "`generator` is 3; expected"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` is 3; expected"),
        ({"guidance_interval": 0.5}, "`guidance_interval` is 0.5; expected"),
        ({"target": {}}, "`target` is empty; expected"),
        ({"guidance_scale": -3}, "`guidance_scale` is -3; expected"),
        ({"output_type": "latent"}, "`output_type` is 'latent'; expected"),
        ({"guidance_interval": (0.9, 0.1)}, "`guidance_interval` is .*; expected"),
        ({"target": {"Smiling": 1.5}}, "`target` .* 1.5; expected"),
        ({"target": {"Age": 0.5}}, "`target` names attribute 'Age'; expected"),
        ({"guidance_weights": {"Smiling": {"maybe": 3}}}, "`guidance_weights` names class 'maybe'"),
        (
            {"target": {"Smiling": 0.5}, "guidance_weights": {"Smiling": {"no": 3}}},
            "`target` and `guidance_weights` are both given; expected",
        ),
        ({"target": {"Smiling": 0.5}, "guidance_scale": float("nan")}, "`guidance_scale` is nan; expected"),
        ({"generator": [torch.Generator()] * 3}, "`generator` has 3 generators; expected"),
    ],
)
def test_wrong_arguments(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{"batch_size": 2, **arguments})
