"""GaussianDiffusion against numbers of a reference implementation (tests/golden), and against itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file

from diffusers_multiguidance.diffusion import GaussianDiffusion, Moments

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "diffusion_math.safetensors")


def cosine4000(**config) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=4000, beta_schedule="squaredcos_cap_v2", **config)


def linear(num_train_timesteps: int, beta_start: float, beta_end: float, **config) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="linear",
        beta_start=beta_start,
        beta_end=beta_end,
        **config,
    )


SCHEDULES = {
    "cosine4000": GaussianDiffusion.from_scheduler(cosine4000()),
    "cosine4000_250": GaussianDiffusion.from_scheduler(cosine4000(), 250),
    "cosine4000_64": GaussianDiffusion.from_scheduler(cosine4000(), 64),
    "linear1000_100": GaussianDiffusion.from_scheduler(linear(1000, 1e-4, 0.02), 100),
    "cosine4000_ddim50": GaussianDiffusion.from_scheduler(cosine4000(), 50, timestep_spacing="leading"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables(name):
    diffusion = SCHEDULES[name]
    assert torch.equal(diffusion.timesteps, GOLDEN[f"schedule/{name}/timesteps"])
    for table in (
        "betas",
        "alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ):
        computed = getattr(diffusion, table)
        assert computed.dtype == torch.float64
        np.testing.assert_allclose(computed, GOLDEN[f"schedule/{name}/{table}"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("variance_type", ["learned_range", "fixed_small", "fixed_large"])
@pytest.mark.parametrize("index", [0, 1, 60, 125, 248, 249])
def test_steps(variance_type, index):
    diffusion = GaussianDiffusion.from_scheduler(cosine4000(variance_type=variance_type), 250)
    step = {
        key.rpartition("/")[2]: value
        for key, value in GOLDEN.items()
        if key.startswith(f"step/{variance_type}/{index}/")
    }
    x_t, output, grad = step["x_t"], step["model_output"], step["grad"]
    assert diffusion.timesteps[index] == step["timestep"]

    def close(computed, key):
        torch.testing.assert_close(computed, step[key], rtol=0, atol=1e-5)

    moments = diffusion.p_mean_variance(output, x_t, index)
    close(moments.pred_x0, "pred_xstart")
    close(moments.mean, "mean")
    close(moments.variance, "variance")
    close(diffusion.guide_mean(moments, grad), "mean_guided")
    guided = diffusion.guide_score(moments, x_t, grad, index)
    close(guided.mean, "score_guided_mean")
    close(guided.pred_x0, "score_guided_pred_xstart")
    close(diffusion.ddim_step(output, x_t, index), "ddim_eta0")
    close(diffusion.ddim_step(output, x_t, index, grad=grad), "ddim_eta0_guided")
    close(diffusion.ddim_inverse_step(output, x_t, index), "ddim_reverse")


@pytest.mark.parametrize(
    "name, scheduler",
    [
        ("cosine", cosine4000(variance_type="learned_range")),
        ("linear", linear(4000, 2.5e-5, 0.005, variance_type="learned_range")),
    ],
)
def test_losses(name, scheduler):
    golden = {key.rpartition("/")[2]: value for key, value in GOLDEN.items() if key.startswith(f"loss/{name}/")}
    diffusion = GaussianDiffusion.from_scheduler(scheduler)
    x0, noise, index = golden["x_start"], golden["noise"], golden["t"]
    torch.testing.assert_close(diffusion.add_noise(x0, noise, index), golden["x_t"], rtol=0, atol=1e-6)
    losses = diffusion.hybrid_loss(golden["model_output"], x0, noise, index, vlb_weight=1)
    torch.testing.assert_close(losses["mse"], golden["mse"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["vlb"], golden["vb"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["loss"], golden["loss"], rtol=1e-5, atol=0)
    default = diffusion.hybrid_loss(golden["model_output"], x0, noise, index)["loss"]
    torch.testing.assert_close(default, golden["mse"] + 4 * golden["vb"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("index", [0, 30, 63])
def test_prediction_types_agree(index):
    """The same belief about x_0, said as epsilon, v or the image, gives the same step and the same moments."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(2, 3, 4, 4, generator=generator)
    results = []
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        diffusion = GaussianDiffusion.from_scheduler(cosine4000(prediction_type=prediction_type), 64)
        output = diffusion.training_target(x0, noise, index)
        x_t = diffusion.add_noise(x0, noise, index)
        results.append(diffusion.ddim_step(output, x_t, index))
        # In the noisiest step an error of 1e-7 in epsilon is one of 1e-2 in x_0.
        tolerance = 2e-5 if index < 63 else 2e-2
        torch.testing.assert_close(diffusion.p_mean_variance(output, x_t, index).pred_x0, x0, rtol=0, atol=tolerance)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=tolerance)
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=1e-5)


def test_frozen_mean_and_gradient_of_hybrid_loss():
    diffusion = GaussianDiffusion.from_scheduler(cosine4000(variance_type="learned_range"))
    output = torch.randn(2, 2, 4, 4, requires_grad=True)
    index = torch.tensor([7, 2000])
    losses = diffusion.hybrid_loss(output, torch.zeros(2, 1, 4, 4), torch.randn(2, 1, 4, 4), index)
    (grad,) = torch.autograd.grad(losses["vlb"].sum(), output)
    assert grad[:, 0].abs().max() == 0
    assert grad[:, 1].abs().min() > 0


def test_fixed_variance_trains_on_mse_alone():
    diffusion = GaussianDiffusion.from_scheduler(cosine4000(variance_type="fixed_small"))
    x0, noise = torch.zeros(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    losses = diffusion.hybrid_loss(torch.randn(2, 1, 4, 4), x0, noise, torch.tensor([0, 9]))
    assert torch.equal(losses["loss"], losses["mse"])
    assert torch.isfinite(losses["vlb"]).all()


def test_inversion_then_ddim_returns():
    """With a network that is sure of x_0, going up one step and down again is the identity."""
    diffusion = GaussianDiffusion.from_scheduler(cosine4000(prediction_type="sample"), 50)
    x0, x_t = torch.rand(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    up = diffusion.ddim_inverse_step(x0, x_t, 20)
    torch.testing.assert_close(diffusion.ddim_step(x0, up, 21), x_t, rtol=0, atol=1e-5)


def test_ddim_eta_one_has_the_posterior_moments():
    diffusion = GaussianDiffusion.from_scheduler(cosine4000(prediction_type="sample"), 50)
    x0, x_t = torch.rand(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    noise = torch.randn(1, 1, 4, 4)
    moments = diffusion.p_mean_variance(x0, x_t, 20)
    expected = moments.mean + moments.variance.sqrt() * noise
    torch.testing.assert_close(diffusion.ddim_step(x0, x_t, 20, eta=1.0, noise=noise), expected, rtol=0, atol=1e-5)


def test_ddim_config_and_per_sample_index():
    scheduler = DDIMScheduler(num_train_timesteps=4000, beta_schedule="squaredcos_cap_v2")
    diffusion = GaussianDiffusion.from_scheduler(scheduler, 64)
    assert diffusion.variance_type == "fixed_small"
    x_t, output = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    both = diffusion.p_mean_variance(output, x_t, torch.tensor([5, 40]))
    second = diffusion.p_mean_variance(output[1:], x_t[1:], 40)
    assert isinstance(both, Moments)
    torch.testing.assert_close(both.mean[1:], second.mean)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: GaussianDiffusion.from_scheduler(cosine4000(), 0), "num_inference_steps"),
        (lambda: GaussianDiffusion.from_scheduler(cosine4000(), 4001), "num_inference_steps"),
        (lambda: GaussianDiffusion.from_scheduler(cosine4000(), 9, timestep_spacing="x"), "timestep_spacing"),
        (lambda: GaussianDiffusion.from_scheduler(cosine4000(variance_type="learned")), "variance_type"),
        (lambda: GaussianDiffusion.from_scheduler(DDPMScheduler(beta_schedule="sigmoid")), "beta_schedule"),
        (lambda: GaussianDiffusion.from_scheduler(cosine4000(thresholding=True)), "thresholding"),
        (lambda: GaussianDiffusion.from_scheduler(cosine4000(rescale_betas_zero_snr=True)), "rescale_betas_zero_snr"),
        (
            lambda: GaussianDiffusion.from_scheduler(cosine4000()).p_mean_variance(
                torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), 0
            ),
            "model_output",
        ),
        (
            lambda: GaussianDiffusion.from_scheduler(cosine4000()).ddim_step(
                torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 5, eta=0.5
            ),
            "noise",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=f"`{message}` (is|has) .*expected"):
        call()
