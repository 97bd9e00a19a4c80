"""Sampling: what the call promises, with tiny networks."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from helpers.tiny import generators, tiny_pipeline, with_parts

from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.guidance import ClassifierScore
from diffusers_multiguidance.models import create_unet
from diffusers_multiguidance.schedulers import create_scheduler


def by(scheduler: str, pipeline):
    """The pipeline with another scheduler."""
    pipeline.scheduler = create_scheduler(scheduler, pipeline.scheduler)
    return pipeline


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small"])
@pytest.mark.parametrize("guided", [False, True])
def test_samples_like_the_bare_loop(scheduler, variance_type, guided):
    """The call against a loop written from the steps that the golden numbers pin."""
    pipeline = by(scheduler, tiny_pipeline(variance_type=variance_type))
    target = {"Smiling": 0.3} if guided else None
    out = pipeline(3, target=target, output_type="pt", generator=generators(3))

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
            grad = ClassifierScore(pipeline.classifiers, weights)(x, timestep) if guided else torch.zeros_like(x)
            if scheduler == "ddpm":
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
        images = by("ddim", pipeline)(1, eta=eta, output_type="np", generator=stream).images
        return images, torch.randn(4, generator=stream)

    after_the_start = torch.Generator().manual_seed(0)
    torch.randn(1, 1, 8, 8, generator=after_the_start)
    plain, following = draw(0.0)
    assert torch.equal(following, torch.randn(4, generator=after_the_start))
    noisy, following_noise = draw(1.0)
    assert not torch.equal(following_noise, following)
    assert np.abs(noisy - plain).max() > 1e-3


@pytest.mark.parametrize("target", [None, {"Smiling": 0.3}])
def test_first_order_solver_is_ddim(target):
    """Of two steps the solver has no history for the first and takes the image for the last: DDIM, in theory."""
    # The solver also clips what guidance adds; and spaced so that both take the same two steps.
    pipeline = by("ddim", tiny_pipeline(clip_sample=False, timestep_spacing="trailing"))
    guided = {} if target is None else {"target": target, "guidance_scale": 1.0}
    call = {"num_inference_steps": 2, "output_type": "np", **guided}
    ddim, noisy = (pipeline(3, eta=eta, generator=generators(3), **call).images for eta in (0.0, 1.0))
    solver = by("dpmsolver++", pipeline)(3, generator=generators(3), **call).images
    np.testing.assert_allclose(solver, ddim, rtol=0, atol=2e-5)
    solver = by("sde-dpmsolver++", pipeline)(3, generator=generators(3), **call).images
    np.testing.assert_allclose(solver, noisy, rtol=0, atol=2e-5)


def test_second_order_solver_needs_fewer_steps():
    def sample(scheduler: str, steps: int) -> torch.Tensor:
        smooth = tiny_pipeline(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
        torch.nn.init.normal_(smooth.unet.conv_out.weight, std=0.02)
        call = {"target": {"Smiling": 0.3}, "guidance_scale": 3.0, "generator": generators(4)}
        *_, last = by(scheduler, smooth).denoise(4, num_inference_steps=steps, **call)
        return last.sample

    exact = sample("ddim", 100)
    assert (sample("unipc", 10) - exact).abs().mean() < 0.7 * (sample("ddim", 10) - exact).abs().mean()


def test_the_scheduler_decides(pipeline):
    """The habit of every diffusers user."""
    ancestral = pipeline(2, target={"Smiling": 0.3}, generator=generators(2), output_type="np").images
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    call = {"target": {"Smiling": 0.3}, "output_type": "np"}
    with pytest.raises(ValueError, match="`guidance_scale` is missing, and none was tuned for 'unipc'; expected"):
        pipeline(2, **call)
    other = pipeline(2, guidance_scale=30.0, generator=generators(2), **call).images
    assert np.abs(other - ancestral).max() > 1e-2
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    deterministic = pipeline(2, generator=generators(2), **call).images
    assert np.abs(deterministic - ancestral).max() > 1e-2


def test_a_folder_keeps_what_each_scheduler_was_tuned_for(pipeline):
    tuned = {"ddpm": {"num_inference_steps": 7}, "ddim": {"num_inference_steps": 4, "guidance_scale": 5.0}}
    pipeline.register_to_config(sampling_defaults=tuned)
    assert pipeline.resolve_call() == {
        "scheduler": "ddpm",
        "num_inference_steps": 7,
        "guidance_scale": None,
        "guidance_interval": (0.0, 1.0),
    }
    assert by("ddim", pipeline).resolve_call(guidance_scale=9.0)["guidance_scale"] == 9.0
    assert pipeline.resolve_call()["guidance_scale"] == 5.0
    assert len(list(pipeline.denoise(1, target={"Smiling": 0.5}))) == 4
    assert by("unipc", pipeline).resolve_call()["num_inference_steps"] == 50


def test_steps_can_be_taken_one_by_one_and_changed_on_the_way(pipeline):
    steps = pipeline.denoise(2, target={"Smiling": 0.3}, generator=generators(2))
    first = next(steps)
    assert (first.number, first.total, int(first.timestep)) == (1, 10, 99)
    assert first.sample.shape == first.pred_x0.shape == (2, 1, 8, 8)
    for step in steps:
        if step.number == 10:
            step.sample = torch.zeros_like(step.sample)
    images, probabilities = pipeline.finish(step.sample, "np")
    assert (images == 0.5).all()
    assert probabilities["Smiling"].shape == (2, 2)


def test_the_last_step_aims_at_the_image(pipeline):
    *_, last = by("ddim", pipeline).denoise(2, generator=generators(2))
    torch.testing.assert_close(last.sample, last.pred_x0, rtol=0, atol=1e-6)


def test_large_batches_are_split_and_come_out_the_same(pipeline):
    call = {"target": {"Smiling": 0.5}, "num_inference_steps": 2, "output_type": "np"}
    seen = []
    pipeline.unet.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    images = pipeline(70, generator=generators(70), **call).images
    assert seen == [32, 32, 6] * 2
    np.testing.assert_allclose(images[-3:], pipeline(3, generator=generators(3, 67), **call).images, rtol=0, atol=1e-5)


def test_one_denoiser_and_a_scheduler_that_can_be_guided(pipeline):
    parts = {"unet": pipeline.unet, "scheduler": pipeline.scheduler}
    with pytest.raises(ValueError, match="`unet` and `transformer`: neither given; expected exactly one denoiser"):
        with_parts(scheduler=pipeline.scheduler)
    with pytest.raises(ValueError, match="`unet` and `transformer`: both given"):
        with_parts(**parts, transformer=pipeline.unet)
    with pytest.raises(ValueError, match="`scheduler` is a FlowMatchEulerDiscreteScheduler that can't be guided"):
        with_parts(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler()})
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="`scheduler` is a FlowMatchEulerDiscreteScheduler that can't be guided"):
        pipeline(1)


@pytest.mark.parametrize("eta", [1.5, float("nan"), None])
def test_eta_of_ddim_is_a_share(pipeline, eta):
    with pytest.raises(ValueError, match=f"`eta` is {eta}; expected"):
        by("ddim", pipeline)(1, eta=eta)


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
    with pytest.raises(ValueError, match=r"`classifiers` are for 8 pixels .* expected those of the denoiser, 16"):
        with_parts(unet=other, classifiers=pipeline.classifiers, scheduler=pipeline.scheduler)


def test_without_classifiers_it_samples_unguided(pipeline):
    unguided = with_parts(unet=pipeline.unet, scheduler=pipeline.scheduler)
    out = unguided(2, output_type="np", generator=generators(2))
    np.testing.assert_array_equal(out.images, pipeline(2, output_type="np", generator=generators(2)).images)
    assert out.probabilities is None
    with pytest.raises(ValueError, match=r"`target` is .*; expected a pipeline with `classifiers`"):
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
        ({"eta": 0.5}, "`eta` is 0.5; expected"),
        ({"calibration": "some"}, "`calibration` is 'some'; expected"),
        ({"class_labels": [0, 1]}, "`class_labels` is .* the denoiser knows no classes"),
        ({"generator": 3}, "`generator` is 3; expected"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` is 3; expected"),
        ({"guidance_interval": 0.5}, "`guidance_interval` is 0.5; expected"),
        ({"target": {}}, "`target` is empty; expected"),
        ({"guidance_scale": -3, "target": {"Smiling": 0.5}}, "`guidance_scale` is -3; expected"),
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
