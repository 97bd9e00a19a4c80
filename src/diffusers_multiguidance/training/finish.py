"""What a training that ends in a pipeline does last: save it whole, with a card, and publish it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..hub.card import unmeasured_facts, write_pipeline_card
from ..hub.publish import publish
from ..pipelines import MultiGuidanceDDPMPipeline
from ..utils.files import replace_folder
from .recipe import command_line
from .settings import PipelineSettings
from .trainer import write_record


def finish_pipeline(
    pipeline: MultiGuidanceDDPMPipeline,
    settings: PipelineSettings,
    section: str,
    training: list[str],
    records: Mapping[str, dict[str, Any]],
) -> None:
    """Write `<output_dir>/pipeline`, and publish it where `push_to_hub` says so.

    Args:
        section: the script whose settings these are.
        training: sentences of the card; the last one gets the command.
        records: of `train`, by the component that it trained.
    """
    target = settings.output_dir / "pipeline"
    *before, last = training
    facts = unmeasured_facts(settings.output_dir.resolve().name, list(pipeline.attributes))
    facts["training"] = [*before, f"{last} (`{command_line(settings, section)}`)."]
    with replace_folder(target) as folder:
        pipeline.save_pretrained(folder)
        for component, record in records.items():
            write_record(folder / component, record, settings)
        write_pipeline_card(folder, facts, settings.hub_model_id or target.as_posix())
    if settings.push_to_hub:
        publish(pipeline, settings.repo_id, target)
