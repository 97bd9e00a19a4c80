"""Pipelines that sample with multi-guidance."""

from .multiguidance_ddpm import MultiGuidanceDDPMPipeline, MultiGuidanceOutput

__all__ = ["MultiGuidanceDDPMPipeline", "MultiGuidanceOutput"]
