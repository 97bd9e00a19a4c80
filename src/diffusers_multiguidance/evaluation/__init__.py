"""Evaluation: figures that see arrays and know no pipeline, and `evaluate`, which samples from one."""
