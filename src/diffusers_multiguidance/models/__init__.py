"""Networks: the noisy classifier that guides, and sized constructors for the denoiser."""

from .dit import create_dit
from .noisy_classifier import NoisyClassifier, NoisyClassifierOutput, NoisyClassifierSet
from .unet import create_unet

__all__ = ["NoisyClassifier", "NoisyClassifierOutput", "NoisyClassifierSet", "create_dit", "create_unet"]
