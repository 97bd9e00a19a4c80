"""What diffusers users expect to work on any pipeline works on ours."""

import copy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from helpers.tiny import SAMPLING

from diffusers_multiguidance import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline
from diffusers_multiguidance.guidance import weights_fingerprint
from diffusers_multiguidance.schedulers import create_scheduler

TARGET = {"Smiling": 0.3}


def draw(pipeline: MultiGuidanceDDPMPipeline, **call) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipeline(2, target=TARGET, generator=generator, output_type="np", **call).images


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(pipeline, dtype):
    pipeline.scheduler = create_scheduler("ddim", pipeline.scheduler)
    full = draw(pipeline)
    pipeline.to(dtype)
    assert pipeline.unet.dtype == pipeline.classifiers.dtype == dtype
    half = draw(pipeline)
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


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_offload_wants_an_accelerator(pipeline, kind):
    offload = getattr(pipeline, f"enable_{kind}_cpu_offload")
    if torch.accelerator.is_available():
        calibrate(pipeline)
        expected = draw(pipeline)
        offload()
        np.testing.assert_allclose(draw(pipeline), expected, atol=1e-3)
    else:
        with pytest.raises(RuntimeError, match="accelerator"):
            offload()


def offload_models(pipeline: MultiGuidanceDDPMPipeline) -> None:
    """`enable_model_cpu_offload` does this with a GPU in place of the CPU."""
    pipeline.enable_model_cpu_offload(device="cpu")
    assert pipeline.unet._hf_hook is not None


def offload_sequentially(pipeline: MultiGuidanceDDPMPipeline) -> None:
    """`enable_sequential_cpu_offload` does this with a GPU in place of the CPU."""
    for network in (pipeline.unet, pipeline.classifiers):
        cpu_offload(network, torch.device("cpu"))
    assert {weight.device.type for weight in pipeline.classifiers.parameters()} == {"meta"}


def calibrate(pipeline: MultiGuidanceDDPMPipeline) -> None:
    """For the call of `draw`; then the classifiers are put in anew, as copies that nobody has looked at yet."""
    fingerprint = weights_fingerprint([pipeline.unet, *pipeline.classifiers.members])
    curve = {"target_probabilities": [0.0, 1.0], "values": [0.1, 0.9], "fingerprint": fingerprint}
    pipeline.register_to_config(calibrations={"Smiling": [{"scheduler": "ddpm", **SAMPLING, **curve}]})
    pipeline.classifiers = copy.deepcopy(pipeline.classifiers)


@pytest.mark.parametrize("offload", [offload_models, offload_sequentially])
def test_offloaded_networks_follow_their_hooks(pipeline, offload, tmp_path):
    """Calibrated, also where the weights are looked for only now, in a pipeline of the same parts."""
    calibrate(pipeline)
    expected = draw(pipeline)
    offload(pipeline)
    assert np.array_equal(draw(pipeline), expected)
    assert not np.array_equal(draw(pipeline, calibration=None), expected)
    MultiGuidanceEditPipeline.from_pipe(pipeline)
    if offload is offload_sequentially:
        with pytest.raises(ValueError, match="`unet` is offloaded; expected"):
            pipeline.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    pipeline.remove_all_hooks()
    pipeline.save_pretrained(tmp_path / "saved")


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
    assert edit.config["sampling_defaults"] == pipeline.config["sampling_defaults"]
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
    assert draw(pipeline, callback_on_step_end=lambda *given: {}).max() > 0
    assert [step for step, _ in steps] == list(range(10))
    assert steps[-1][1] == 0


@pytest.mark.parametrize(
    "returned", [{"latents": torch.zeros(2, 1, 8, 8)}, torch.zeros(2, 1, 8, 8), {"sample": torch.zeros(1, 1, 8, 8)}]
)
def test_what_a_callback_can_not_return(pipeline, returned):
    with pytest.raises(ValueError, match=r"`callback_on_step_end` returned .*; expected None, or .* \(2, 1, 8, 8\)"):
        draw(pipeline, callback_on_step_end=lambda *given: returned)


def test_arguments_that_would_say_nothing_are_refused(pipeline):
    weights = {"Smiling": {"yes": 30.0}}
    for call, message in (
        ({"guidance_scale": 4.0}, "`guidance_scale` is 4.0 without `target`"),
        ({"guidance_scale": 4.0, "guidance_weights": weights}, "`guidance_scale` is 4.0 without `target`"),
        ({"guidance_interval": (0, 0.5)}, r"`guidance_interval` is \(0, 0.5\) without `target` or `guidance_weights`"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(2, **call)
    assert len(pipeline(2, guidance_weights=weights, guidance_interval=(0, 0.5)).images) == 2
    edit, image = MultiGuidanceEditPipeline.from_pipe(pipeline), pipeline(1).images[0]
    with pytest.raises(ValueError, match=r"`guidance_scale` is 4.0 without `target`"):
        edit(image, guidance_weights=weights, guidance_scale=4.0)
    pipeline.classifiers = None
    with pytest.raises(ValueError, match=r"`target` is .*; expected a pipeline with `classifiers`, as nothing guides"):
        pipeline(2, target=TARGET)
