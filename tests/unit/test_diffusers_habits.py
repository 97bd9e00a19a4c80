"""What diffusers users expect to work on any pipeline works on ours."""

import copy

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_pipeline
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.guidance import guidance_gradient, weights_from_classes
from diffusers_multiguidance.guiders import ClassifierGuidance
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline

TARGET = {"Smiling": 0.3}


def draw(pipeline: MultiGuidanceDDPMPipeline, **call) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipeline(2, target=TARGET, generator=generator, output_type="np", **call).images


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(pipeline, dtype):
    full = draw(pipeline, sampler="ddim")
    pipeline.to(dtype)
    assert pipeline.unet.dtype == pipeline.classifiers.dtype == dtype
    half = draw(pipeline, sampler="ddim")
    assert half.dtype == np.float32
    assert np.abs(half - full).mean() < 0.05
    assert not np.array_equal(half, full)


def test_to_moves_everything(pipeline):
    moved = pipeline.to("cpu", torch.float64)
    assert moved is pipeline
    assert {next(network.parameters()).dtype for network in (moved.unet, moved.classifiers)} == {torch.float64}
    assert np.isfinite(draw(moved)).all()


def test_compiled_networks_draw_the_same(pipeline):
    expected = draw(pipeline)
    pipeline.unet = torch.compile(pipeline.unet, backend="aot_eager")
    pipeline.classifiers = torch.compile(pipeline.classifiers, backend="aot_eager")
    np.testing.assert_allclose(draw(pipeline), expected, atol=1e-4)


def test_offload_wants_an_accelerator(pipeline):
    if torch.accelerator.is_available():
        expected = draw(pipeline)
        pipeline.enable_model_cpu_offload()
        np.testing.assert_allclose(draw(pipeline), expected, atol=1e-3)
    else:
        with pytest.raises(RuntimeError, match="accelerator"):
            pipeline.enable_model_cpu_offload()


def test_offloaded_networks_follow_their_hooks(pipeline):
    """`enable_model_cpu_offload` does this with a GPU in place of the CPU."""
    expected = draw(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert pipeline.unet._hf_hook is not None
    assert np.array_equal(draw(pipeline), expected)


def test_progress_bar_config(capsys, pipeline):
    draw(pipeline)
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False, desc="drawing")
    draw(pipeline)
    assert "drawing: 100%" in capsys.readouterr().err


def test_from_pipe_shares_the_networks(pipeline, caplog):
    edit = MultiGuidanceEditPipeline.from_pipe(pipeline)
    assert [record for record in caplog.records if "pipeline_utils" in record.name] == []
    assert edit.unet is pipeline.unet
    assert edit.classifiers is pipeline.classifiers
    assert edit.config["default_num_inference_steps"] == pipeline.config["default_num_inference_steps"]
    edit.set_progress_bar_config(disable=True)
    image = pipeline(1).images[0]
    assert len(edit(image, target=TARGET).images) == 1
    again = MultiGuidanceDDPMPipeline.from_pipe(edit)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again), draw(pipeline))


def test_callback_replaces_the_sample(pipeline):
    steps = []

    def blacken(pipe, step, timestep, tensors):
        steps.append((step, timestep))
        return {"sample": torch.full_like(tensors["sample"], -1.0)} if step == 9 else None

    assert draw(pipeline, callback_on_step_end=blacken).max() == 0
    assert [step for step, _ in steps] == list(range(10))
    assert steps[-1][1] == 0


def guided_loop(pipeline: MultiGuidanceDDPMPipeline, guider: ClassifierGuidance, x_t: torch.Tensor) -> torch.Tensor:
    """As a modular pipeline of diffusers calls a guider; steps by its DDIM scheduler."""
    timesteps = GaussianDiffusion.from_scheduler(pipeline.scheduler, 10).timesteps.flip(0)
    for step, timestep in enumerate(timesteps):
        guider.set_state(step=step, num_inference_steps=10, timestep=timestep)
        batches = guider.prepare_inputs({})
        for batch in batches:
            guider.prepare_models(pipeline.unet)
            with torch.no_grad():
                batch.noise_pred = pipeline.unet(x_t, timestep).sample
            guider.cleanup_models(pipeline.unet)
        pred = guider(batches)[0]
        diffusion = GaussianDiffusion.from_scheduler(pipeline.scheduler, 10)
        x_t = diffusion.ddim_step(pred, x_t, 9 - step, clip=False)
    return x_t


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_guider_guides_as_the_pipeline_does(prediction_type):
    pipeline = tiny_pipeline(prediction_type=prediction_type, clip_sample=False)
    guider = ClassifierGuidance(pipeline.classifiers, pipeline.scheduler, TARGET, guidance_scale=30.0, stop=0.6)
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = guided_loop(pipeline, guider, x_t)
    call = {"sampler": "ddim", "guidance_interval": (0, 0.6), "output_type": "pt"}
    expected = pipeline(2, target=TARGET, generator=torch.Generator().manual_seed(0), **call).images
    torch.testing.assert_close((drawn / 2 + 0.5).clamp(0, 1), expected, atol=1e-4, rtol=0)
    assert not pipeline.unet._forward_pre_hooks
    unguided = copy.copy(guider)
    unguided.disable()
    assert not torch.allclose(guided_loop(pipeline, unguided, x_t), drawn, atol=1e-2)


def test_guider_with_a_stock_scheduler():
    """One step of diffusers' own DDIM scheduler moves as one of ours does."""
    pipeline = tiny_pipeline(variance_type="fixed_small", clip_sample=False)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading", clip_sample=False)
    scheduler.set_timesteps(100)
    guider = ClassifierGuidance(pipeline.classifiers, scheduler, guidance_weights={"Smiling": {"yes": -5.0}})
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    timestep = scheduler.timesteps[40]
    guider.set_state(step=40, num_inference_steps=100, timestep=timestep)
    (batch,) = guider.prepare_inputs({})
    guider.prepare_models(pipeline.unet)
    with torch.no_grad():
        batch.noise_pred = pipeline.unet(sample=x_t, timestep=timestep).sample
    guider.cleanup_models(pipeline.unet)
    stepped = scheduler.step(guider([batch])[0], timestep, x_t).prev_sample

    weights = weights_from_classes(pipeline.attributes, {"Smiling": {"yes": -5.0}}, 2)
    grad = guidance_gradient(pipeline.classifiers, x_t, timestep, weights)
    diffusion = GaussianDiffusion.from_scheduler(DDPMScheduler.from_config(scheduler.config))
    expected = diffusion.ddim_step(batch.noise_pred, x_t, int(timestep), grad=grad, clip=False)
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=1e-4)


def test_guider_refuses_what_can_not_be(pipeline):
    with pytest.raises(ValueError, match="both or neither given"):
        ClassifierGuidance(pipeline.classifiers, pipeline.scheduler)
    with pytest.raises(ValueError, match="`target` names attribute 'Age'; expected one of"):
        ClassifierGuidance(pipeline.classifiers, pipeline.scheduler, {"Age": 0.5})
