"""Pipelines that sample and edit with multi-guidance."""

from .multiguidance_cfg import MultiGuidanceCFGPipeline
from .multiguidance_ddpm import MultiGuidanceDDPMPipeline, MultiGuidanceOutput
from .multiguidance_edit import MultiGuidanceEditPipeline

__all__ = ["MultiGuidanceCFGPipeline", "MultiGuidanceDDPMPipeline", "MultiGuidanceEditPipeline", "MultiGuidanceOutput"]
