"""Every stock scheduler samples as a plain loop of diffusers with our guider does."""

import inspect

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from helpers.tiny import tiny_pipeline

from diffusers_multiguidance import ClassifierGuidance, MultiGuidanceDDPMPipeline
from diffusers_multiguidance.schedulers import SCHEDULERS, create_scheduler, scheduler_name

TARGET = {"Smiling": 0.3}
STEPS = 6


def plain_loop(pipeline: MultiGuidanceDDPMPipeline, guider: ClassifierGuidance, scheduler) -> torch.Tensor:
    """As a modular pipeline of diffusers calls a guider."""
    stream = torch.Generator().manual_seed(0)
    extra = {"generator": stream} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scheduler.set_timesteps(STEPS)
    sample = torch.randn(2, 1, 8, 8, generator=stream) * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        x_t = scheduler.scale_model_input(sample, timestep)
        guider.set_state(step=step, num_inference_steps=len(scheduler.timesteps), timestep=timestep)
        batches = guider.prepare_inputs({})
        for batch in batches:
            guider.prepare_models(pipeline.unet)
            with torch.no_grad():
                batch.noise_pred = pipeline.unet(x_t, timestep).sample
            guider.cleanup_models(pipeline.unet)
        prediction = guider(batches)[0][:, :1]  # without the variance, which these schedulers leave aside
        sample = scheduler.step(prediction, timestep, sample, **extra).prev_sample
    return sample


def compare(pipeline: MultiGuidanceDDPMPipeline, scheduler) -> None:
    pipeline.scheduler = scheduler
    call = {"guidance_scale": 3.0, "guidance_interval": (0, 0.6), "num_inference_steps": STEPS}
    *_, last = pipeline.denoise(2, TARGET, generator=torch.Generator().manual_seed(0), **call)
    guider = ClassifierGuidance(pipeline.classifiers, scheduler, TARGET, guidance_scale=3.0, stop=0.6)
    own = type(scheduler).from_config(scheduler.config, variance_type=None)
    expected = plain_loop(pipeline, guider, own)
    torch.testing.assert_close(last.sample, expected, atol=1e-5, rtol=1e-5)
    assert last.sample.isfinite().all()
    assert not pipeline.unet._forward_pre_hooks
    guider.disable()
    assert not torch.allclose(plain_loop(pipeline, guider, own), expected, atol=1e-3)


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("ddpm", "ddim")])
def test_samples_as_a_plain_loop_with_our_guider(name, prediction_type, clip_sample):
    pipeline = tiny_pipeline(prediction_type=prediction_type, clip_sample=clip_sample)
    compare(pipeline, create_scheduler(name, pipeline.scheduler))


@pytest.mark.parametrize(
    "settings",
    [
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"use_lu_lambdas": True},
        {"use_karras_sigmas": True},
        {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
        {"prediction_type": "sample"},
        {"euler_at_final": True},
    ],
)
def test_every_way_to_set_dpm_solver(settings):
    prediction = {"prediction_type": settings.get("prediction_type", "epsilon")}
    pipeline = tiny_pipeline(**prediction, clip_sample=False)
    compare(pipeline, DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **settings))


def test_ddim_of_diffusers_agrees():
    """Ours by float64 tables, where epsilon is computed anew from the clipped image."""
    pipeline = tiny_pipeline(variance_type="fixed_small", timestep_spacing="leading")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    *_, ours = pipeline.denoise(2, generator=torch.Generator().manual_seed(0), num_inference_steps=20)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(20)
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            prediction = pipeline.unet(sample, timestep).sample
        sample = scheduler.step(prediction, timestep, sample, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours.sample, sample, atol=1e-4, rtol=1e-4)


def test_a_sampling_leaves_the_scheduler_as_it_was(pipeline):
    """Calls that run at the same time share the pipeline."""
    pipeline.scheduler = scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    before = dict(vars(scheduler))
    first, second = (pipeline.denoise(1, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.sample, other.sample)
    assert pipeline.scheduler is scheduler
    assert vars(scheduler).keys() == before.keys()
    assert scheduler.step_index is None


def test_names_and_schedulers_belong_together(pipeline):
    for name in SCHEDULERS:
        assert scheduler_name(create_scheduler(name, pipeline.scheduler)) == name
    back = create_scheduler("ddpm", create_scheduler("dpmsolver", pipeline.scheduler))
    kept = ("beta_schedule", "clip_sample", "variance_type", "prediction_type", "timestep_spacing")
    assert [back.config[name] for name in kept] == [pipeline.scheduler.config[name] for name in kept]
    assert scheduler_name(EulerDiscreteScheduler(use_karras_sigmas=True)) == "euler"
    with pytest.raises(ValueError, match=r"`scheduler` is 'plms'; expected one of \['ddpm'"):
        create_scheduler("plms", pipeline.scheduler)
    with pytest.raises(ValueError, match="`scheduler` is a FlowMatchEulerDiscreteScheduler that can't be guided"):
        scheduler_name(FlowMatchEulerDiscreteScheduler())


def test_what_a_scheduler_refuses_is_one_sentence(pipeline):
    pipeline.scheduler = create_scheduler("pndm", pipeline.scheduler)
    for steps in (0, -3, 101, 2.5):
        with pytest.raises(ValueError, match=f"`num_inference_steps` is {steps}"):
            pipeline(1, num_inference_steps=steps)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_flow_sigmas=True)
    with pytest.raises(ValueError, match="`use_flow_sigmas` is True in the scheduler; expected False"):
        pipeline(1)


def test_guider_refuses_what_can_not_be(pipeline):
    with pytest.raises(ValueError, match="both or neither given"):
        ClassifierGuidance(pipeline.classifiers, pipeline.scheduler)
    with pytest.raises(ValueError, match="`target` names attribute 'Age'; expected one of"):
        ClassifierGuidance(pipeline.classifiers, pipeline.scheduler, {"Age": 0.5})
    with pytest.raises(ValueError, match=r"`guidance_scale` is 3.0 without `target`; expected it with that only"):
        ClassifierGuidance(pipeline.classifiers, pipeline.scheduler, None, 3.0, {"Smiling": {"yes": 1.0}})
    guider = ClassifierGuidance(pipeline.classifiers, pipeline.scheduler, TARGET, stop=0.6)
    guider.cleanup_models(pipeline.unet)  # which it was never put into
    by_weights = guider.new(guidance_weights={"Smiling": {"yes": 1.0}})
    assert (by_weights.target, by_weights._stop) == (None, 0.6)
    guider.guidance_scale = 7.0
    assert guider.new().guidance_scale == 7.0
    changed = guider.new(guidance_scale=5.0)
    assert (changed.guidance_scale, changed._stop, changed.target) == (5.0, 0.6, TARGET)
    with pytest.raises(ValueError, match="`ClassifierGuidance` has classifiers; expected to save those"):
        guider.save_pretrained("guider")
