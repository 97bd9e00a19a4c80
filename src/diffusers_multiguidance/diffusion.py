"""Gaussian diffusion in float64: schedule tables and the moments, steps and losses built on them.

diffusers' schedulers keep their tables in float32, which is too coarse for the variational bound, and leave
out what guidance needs. `GaussianDiffusion` reads the *configuration* of a stock scheduler, so that a saved
pipeline holds nothing but stock parts, and computes everything else itself.

Equation numbers are those of Deschenaux et al., ICML 2024 ("the paper"), unless another source is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class Moments:
    """Mean and variance of one reverse step p(x_{t-1} | x_t), and the image it aims at; all (B, C, H, W)."""

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor
    pred_x0: torch.Tensor


def noise_schedule(config: Any) -> np.ndarray:
    """The (T,) float64 betas that a diffusers scheduler config describes."""
    num_timesteps = config["num_train_timesteps"]
    name = config["beta_schedule"]
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    if name == "linear":
        return np.linspace(config["beta_start"], config["beta_end"], num_timesteps, dtype=np.float64)
    if name == "scaled_linear":
        return np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, num_timesteps) ** 2
    if name == "squaredcos_cap_v2":
        # Eq. 10 without its misprint: f(t) = cos^2((t/T + s)/(1 + s) * pi/2), f(0) cancels in the ratio.
        grid = np.arange(num_timesteps + 1) / num_timesteps
        f = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)
    raise ValueError(
        f"`beta_schedule` is {name!r} in the scheduler; expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2'."
    )


class GaussianDiffusion:
    """The forward process and its reverse steps at S of the T training timesteps.

    Args:
        betas: (T,) float64 noise schedule of the full training process.
        timesteps: (S,) ascending training timesteps to keep; the process is respaced to them.
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
        variance_type: "fixed_small", "fixed_large" or "learned_range" (eq. 8; a second half of output channels).
        clip_range: predicted images are clamped to [-clip_range, clip_range]; None clamps nothing.

    Everywhere below `index` counts the kept timesteps: an int, or a (B,) int64 tensor with values in [0, S).
    `timesteps[index]` is what the network is given.
    """

    def __init__(
        self,
        betas: np.ndarray,
        timesteps: np.ndarray,
        prediction_type: str = "epsilon",
        variance_type: str = "fixed_small",
        clip_range: float | None = 1.0,
    ) -> None:
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"`prediction_type` is {prediction_type!r}; expected 'epsilon', 'v_prediction' or 'sample'."
            )
        if variance_type not in ("fixed_small", "fixed_large", "learned_range"):
            raise ValueError(
                f"`variance_type` is {variance_type!r}; expected 'fixed_small', 'fixed_large' or 'learned_range'."
            )
        self.prediction_type = prediction_type
        self.variance_type = variance_type
        self.clip_range = clip_range

        kept = np.cumprod(1 - betas)[timesteps]
        kept_prev = np.append(1.0, kept[:-1])
        betas = 1 - kept / kept_prev
        alphas_cumprod = np.cumprod(1 - betas)
        alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
        posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)  # eq. 6
        # The variance of the very last step is 0; its logarithm is that of the step before.
        posterior_log_variance_clipped = np.log(np.append(posterior_variance[1:2], posterior_variance[1:]))
        if len(betas) == 1:
            posterior_log_variance_clipped = np.log(betas)

        self.timesteps = torch.from_numpy(np.array(timesteps, dtype=np.int64))
        self.betas = torch.from_numpy(betas)
        self.alphas_cumprod = torch.from_numpy(alphas_cumprod)
        self.alphas_cumprod_prev = torch.from_numpy(alphas_cumprod_prev)
        self.alphas_cumprod_next = torch.from_numpy(np.append(alphas_cumprod[1:], 0.0))
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt()
        self.sqrt_one_minus_alphas_cumprod = (1 - self.alphas_cumprod).sqrt()
        self.posterior_variance = torch.from_numpy(posterior_variance)
        self.posterior_log_variance_clipped = torch.from_numpy(posterior_log_variance_clipped)
        # Posterior mean, eq. 5 without its misprint: coef1 * x0 + coef2 * x_t.
        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (
            (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)
        )

    @classmethod
    def from_scheduler(
        cls, scheduler: Any, num_inference_steps: int | None = None, timestep_spacing: str = "linspace"
    ) -> GaussianDiffusion:
        """Build the process that a stock scheduler was configured for.

        Args:
            scheduler: only its `config` is read. A config without `variance_type` means "fixed_small", one without
                `clip_sample` that nothing is clipped.
            num_inference_steps: S in [1, T]; None keeps all T.
            timestep_spacing: "linspace", evenly from 0 to T - 1 as in improved DDPM; "leading", a fixed stride from 0
                (which never visits T - 1); "trailing", one down from T - 1. The config's own is not read, since
                diffusers' default is "leading".

        Raises:
            ValueError: for a step count, spacing, schedule, prediction or variance type it does not know.
        """
        config = scheduler.config
        for setting in ("rescale_betas_zero_snr", "thresholding", "use_flow_sigmas"):
            if config.get(setting):
                raise ValueError(f"`{setting}` is {config[setting]} in the scheduler; expected False.")
        betas = noise_schedule(config)
        num_timesteps = len(betas)
        if num_inference_steps is None:
            num_inference_steps = num_timesteps
        if not (isinstance(num_inference_steps, int) and 1 <= num_inference_steps <= num_timesteps):
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps!r}; expected a whole number from 1 to the "
                f"{num_timesteps} timesteps of training."
            )
        if num_inference_steps == num_timesteps:
            timesteps = np.arange(num_timesteps)
        elif timestep_spacing == "linspace":
            timesteps = np.linspace(num_timesteps - 1, 0, num_inference_steps).round()[::-1].astype(np.int64)
        elif timestep_spacing == "leading":
            timesteps = np.arange(num_inference_steps) * (num_timesteps // num_inference_steps)
            timesteps = timesteps + config.get("steps_offset", 0)
        elif timestep_spacing == "trailing":
            stride = num_timesteps / num_inference_steps
            timesteps = np.arange(num_timesteps, 0, -stride).round()[::-1].astype(np.int64) - 1
        else:
            raise ValueError(
                f"`timestep_spacing` is {timestep_spacing!r}; expected 'linspace', 'leading' or 'trailing'."
            )
        variance_type = (config.get("variance_type") or "fixed_small").removesuffix("_log")
        clip_range = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None
        return cls(betas, timesteps, config["prediction_type"], variance_type, clip_range)

    def __len__(self) -> int:
        return len(self.timesteps)

    def _at(self, table: torch.Tensor, index: int | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Look up a float64 table on the CPU (some devices have no float64), shaped to broadcast over `like`."""
        values = table[torch.as_tensor(index).cpu()]
        return values.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        """x_t given x_0 (eq. 4); (B, C, H, W)."""
        signal_scale = self._at(self.sqrt_alphas_cumprod, index, x0)
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x0)
        return signal_scale * x0 + noise_scale * noise

    def training_target(self, x0: torch.Tensor, noise: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        """What the network should have said at x_t: the noise, the image, or v (Salimans & Ho 2022)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        signal_scale = self._at(self.sqrt_alphas_cumprod, index, x0)
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x0)
        return signal_scale * noise - noise_scale * x0

    def _predict_x0(self, prediction: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "sample":
            return prediction
        if self.prediction_type == "epsilon":
            return self._x0_from_epsilon(prediction, x_t, index)
        signal_scale = self._at(self.sqrt_alphas_cumprod, index, x_t)
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x_t)
        return signal_scale * x_t - noise_scale * prediction

    def _x0_from_epsilon(self, epsilon: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        inverse_signal_scale = self._at(1 / self.sqrt_alphas_cumprod, index, x_t)
        noise_to_signal = self._at(self.sqrt_one_minus_alphas_cumprod / self.sqrt_alphas_cumprod, index, x_t)
        return inverse_signal_scale * x_t - noise_to_signal * epsilon

    def _epsilon_from_x0(self, x0: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        inverse_signal_scale = self._at(1 / self.sqrt_alphas_cumprod, index, x_t)
        noise_to_signal = self._at(self.sqrt_one_minus_alphas_cumprod / self.sqrt_alphas_cumprod, index, x_t)
        return (inverse_signal_scale * x_t - x0) / noise_to_signal

    def _clip(self, x0: torch.Tensor) -> torch.Tensor:
        return x0 if self.clip_range is None else x0.clamp(-self.clip_range, self.clip_range)

    def _posterior_mean(self, x0: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), eq. 5."""
        coef1 = self._at(self.posterior_mean_coef1, index, x_t)
        coef2 = self._at(self.posterior_mean_coef2, index, x_t)
        return coef1 * x0 + coef2 * x_t

    def _variance(
        self, model_output: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Variance of the reverse step and its logarithm, which is clipped where the variance is 0."""
        if self.variance_type == "learned_range":
            # Eq. 8, the network's output in [-1, 1] mapped to the share of log beta.
            share = (model_output[:, x_t.shape[1] :] + 1) / 2
            small = self._at(self.posterior_log_variance_clipped, index, x_t)
            large = self._at(self.betas.log(), index, x_t)
            log_variance = share * large + (1 - share) * small
            return log_variance.exp(), log_variance
        if self.variance_type == "fixed_small":
            variance, log_variance = self.posterior_variance, self.posterior_log_variance_clipped
        else:
            # The last step of fixed_large would be far noisier than the image; improved DDPM takes the posterior's.
            log_variance = torch.cat([self.posterior_log_variance_clipped[:1], self.betas[1:].log()])
            variance = log_variance.exp()
        return self._at(variance, index, x_t).expand_as(x_t), self._at(log_variance, index, x_t).expand_as(x_t)

    def p_mean_variance(
        self, model_output: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor, clip: bool = True
    ) -> Moments:
        """Moments of the reverse step (eqs. 5 to 8).

        Args:
            model_output: (B, C, H, W), or (B, 2C, H, W) for "learned_range": the prediction, then the variance half.
            x_t: (B, C, H, W).
            clip: clamp the predicted x_0, where there is a `clip_range`.
        """
        channels = x_t.shape[1]
        expected = 2 * channels if self.variance_type == "learned_range" else channels
        if model_output.shape[1] != expected:
            raise ValueError(
                f"`model_output` has {model_output.shape[1]} channels; expected {expected} for images with {channels} "
                f"channels and variance type '{self.variance_type}'."
            )
        pred_x0 = self._predict_x0(model_output[:, :channels], x_t, index)
        if clip:
            pred_x0 = self._clip(pred_x0)
        variance, log_variance = self._variance(model_output, x_t, index)
        return Moments(self._posterior_mean(pred_x0, x_t, index), variance, log_variance, pred_x0)

    def guide_mean(self, moments: Moments, grad: torch.Tensor) -> torch.Tensor:
        """Guidance of ancestral steps: mean + variance * grad (paper, section 2.2)."""
        return moments.mean + moments.variance * grad

    def guide_score(
        self, moments: Moments, x_t: torch.Tensor, grad: torch.Tensor, index: int | torch.Tensor
    ) -> Moments:
        """Guidance of the score: epsilon - sqrt(1 - alpha_bar) * grad (Dhariwal & Nichol 2021, algorithm 2)."""
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x_t)
        epsilon = self._epsilon_from_x0(moments.pred_x0, x_t, index) - noise_scale * grad
        pred_x0 = self._x0_from_epsilon(epsilon, x_t, index)
        mean = self._posterior_mean(pred_x0, x_t, index)
        return Moments(mean, moments.variance, moments.log_variance, pred_x0)

    def guide_prediction(
        self, model_output: torch.Tensor, x_t: torch.Tensor, timestep: float, grad: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A prediction shifted by the guidance gradient, for a scheduler that steps by itself.

        The score is shifted, epsilon - sqrt(1 - alpha_bar) * grad, and the predicted image clipped before and after.
        Of the process of all T steps only.

        Args:
            model_output: (B, C, H, W) or more channels, of which the first C are the prediction.
            x_t: (B, C, H, W), what the network was given.
            timestep: in [0, T - 1]; between two whole ones the noise is interpolated, as the schedulers do it.
            grad: (B, C, H, W), or None.

        Returns:
            The guided prediction, of the network's own `prediction_type`, and the image that it means.
        """
        sigmas = (self.sqrt_one_minus_alphas_cumprod / self.sqrt_alphas_cumprod).numpy()
        sigma = float(np.interp(timestep, np.arange(len(sigmas)), sigmas))
        signal_scale = (1 + sigma**2) ** -0.5
        noise_scale = sigma * signal_scale
        prediction = model_output[:, : x_t.shape[1]]
        if self.prediction_type == "epsilon":
            pred_x0 = (x_t - noise_scale * prediction) / signal_scale
        elif self.prediction_type == "v_prediction":
            pred_x0 = signal_scale * x_t - noise_scale * prediction
        else:
            pred_x0 = prediction
        if grad is None and self.clip_range is None:
            return prediction, pred_x0
        pred_x0 = self._clip(pred_x0)
        if grad is not None:
            pred_x0 = self._clip(pred_x0 + noise_scale**2 / signal_scale * grad)
        epsilon = (x_t - signal_scale * pred_x0) / noise_scale
        if self.prediction_type == "epsilon":
            return epsilon, pred_x0
        if self.prediction_type == "v_prediction":
            return signal_scale * epsilon - noise_scale * pred_x0, pred_x0
        return pred_x0, pred_x0

    def ddim_step(
        self,
        model_output: torch.Tensor,
        x_t: torch.Tensor,
        index: int | torch.Tensor,
        eta: float = 0.0,
        grad: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        clip: bool = True,
    ) -> torch.Tensor:
        """One DDIM step to the previous kept timestep (Song et al. 2021, eq. 12); guided by the score.

        Args:
            eta: 0 is deterministic, 1 as noisy as an ancestral step.
            grad: (B, C, H, W) guidance gradient, or None.
            noise: (B, C, H, W) standard normal; needed where `eta` is above 0.
        """
        moments = self.p_mean_variance(model_output, x_t, index, clip)
        if grad is not None:
            moments = self.guide_score(moments, x_t, grad, index)
        return self.ddim_from_moments(moments, x_t, index, eta, noise)

    def ddim_from_moments(
        self,
        moments: Moments,
        x_t: torch.Tensor,
        index: int | torch.Tensor,
        eta: float = 0.0,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`ddim_step` from the moments, of which only the predicted image counts."""
        epsilon = self._epsilon_from_x0(moments.pred_x0, x_t, index)
        # In the images' precision, as the reference does: a clipped x_0 makes epsilon so large near the end that
        # the rounding of these roots shows, and the golden numbers hold it.
        alpha_bar_prev = self._at(self.alphas_cumprod_prev, index, x_t)
        sigma = eta * self._at(self.posterior_variance.sqrt(), index, x_t)
        # With `eta` 1 the difference is 0 at the first step, or by rounding a little less.
        x_prev = (
            alpha_bar_prev.sqrt() * moments.pred_x0 + (1 - alpha_bar_prev - sigma**2).clamp(min=0).sqrt() * epsilon
        )
        if eta == 0:
            return x_prev
        if noise is None:
            raise ValueError(f"`noise` is None; expected a tensor like `x_t`, since `eta` is {eta}.")
        return x_prev + sigma * noise

    def ddim_inverse_step(
        self, model_output: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor, clip: bool = True
    ) -> torch.Tensor:
        """One deterministic DDIM step to the next, noisier kept timestep; from the last one to pure noise."""
        pred_x0 = self.p_mean_variance(model_output, x_t, index, clip).pred_x0
        epsilon = self._epsilon_from_x0(pred_x0, x_t, index)
        alpha_bar_next = self._at(self.alphas_cumprod_next, index, x_t)
        return alpha_bar_next.sqrt() * pred_x0 + (1 - alpha_bar_next).sqrt() * epsilon

    def hybrid_loss(
        self,
        model_output: torch.Tensor,
        x0: torch.Tensor,
        noise: torch.Tensor,
        index: torch.Tensor,
        vlb_weight: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """L_simple + weight * vb_t of improved DDPM, per sample; the mean is frozen in the second term.

        Args:
            model_output: the network's output at `add_noise(x0, noise, index)`.
            vlb_weight: weight of one sampled term vb_t. None means S / 1000: L_vlb is S * E_t[vb_t], and the hybrid
                loss takes 0.001 of it. The paper's authors used 1.

        Returns:
            "mse", "vlb" (bits per dimension) and "loss", each (B,). With a fixed variance the bound teaches
            nothing, and "loss" is "mse".
        """
        x_t = self.add_noise(x0, noise, index)
        prediction = model_output[:, : x0.shape[1]]
        mse = (prediction - self.training_target(x0, noise, index)).square().flatten(1).mean(1)
        frozen = torch.cat([prediction.detach(), model_output[:, x0.shape[1] :]], dim=1)
        vlb = self._variational_bound(frozen, x0, x_t, index)
        if self.variance_type != "learned_range":
            return {"mse": mse, "vlb": vlb, "loss": mse}
        weight = len(self) / 1000 if vlb_weight is None else vlb_weight
        return {"mse": mse, "vlb": vlb, "loss": mse + weight * vlb}

    def bound_loss(
        self, model_output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """L_vlb alone, S * vb_t per sample, which teaches the mean as well; arguments and results of `hybrid_loss`."""
        x_t = self.add_noise(x0, noise, index)
        vlb = self._variational_bound(model_output, x0, x_t, index)
        target = self.training_target(x0, noise, index)
        mse = (model_output[:, : x0.shape[1]] - target).square().flatten(1).mean(1)
        return {"mse": mse, "vlb": vlb, "loss": len(self) * vlb}

    def _variational_bound(
        self, model_output: torch.Tensor, x0: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """One term of the variational bound (eq. 9) in bits per dimension: L_0 where index is 0, else L_t; (B,)."""
        moments = self.p_mean_variance(model_output, x_t, index, clip=False)
        true_mean = self._posterior_mean(x0, x_t, index)
        true_log_variance = self._at(self.posterior_log_variance_clipped, index, x_t)
        kl = 0.5 * (
            moments.log_variance
            - true_log_variance
            - 1
            + (true_log_variance - moments.log_variance).exp()
            + (true_mean - moments.mean).square() * (-moments.log_variance).exp()
        )
        nll = -discretized_gaussian_log_likelihood(x0, moments.mean, 0.5 * moments.log_variance)
        is_last = (index == 0).to(x0.device)
        return torch.where(is_last, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)


def discretized_gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log-probability (nats) of 8-bit pixels, scaled to [-1, 1], under a Gaussian that is integrated over each bin."""

    def cdf(z: torch.Tensor) -> torch.Tensor:
        # The tanh approximation, as in Ho et al. 2020: exact enough, and finite far out in float32.
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse_std = (-log_std).exp()
    below = cdf(inverse_std * (x - mean - 1 / 255))
    up_to = cdf(inverse_std * (x - mean + 1 / 255))
    inside = torch.where(x < -0.999, up_to, torch.where(x > 0.999, 1 - below, up_to - below))
    return inside.clamp(min=1e-12).log()
