"""What labelers are asked."""

import numpy as np
import torch
from accelerate import Accelerator

from diffusers_multiguidance.curation.labelers import log_odds
from diffusers_multiguidance.models.evaluator import ImageClassifier


def test_an_image_and_its_mirror_image_get_the_mean_of_both():
    torch.manual_seed(0)
    model = ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, (32, 32))
    pixels = torch.randint(0, 256, (3, 32, 32, 1), dtype=torch.uint8)
    asked = [log_odds(Accelerator(cpu=True), [model], images, 2, "") for images in (pixels, pixels.flip(2))]
    mirrored = log_odds(Accelerator(cpu=True), [model], pixels, 2, "", mirror=True)
    assert np.abs(asked[0] - asked[1]).max() > 1e-4
    np.testing.assert_allclose(mirrored, (asked[0] + asked[1]) / 2, atol=1e-5)
