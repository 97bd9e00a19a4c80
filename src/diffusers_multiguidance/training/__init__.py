"""Training of the denoiser, the classifiers and the evaluators; scripts parse settings and call these."""
