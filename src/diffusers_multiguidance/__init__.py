"""Zero-shot interpolation with diffusion models: train on extremes, sample the middle by multi-guidance."""
