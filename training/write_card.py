"""Write the card of a pipeline: what its author says, in the words and the metadata that the Hub expects.

    python training/write_card.py pipelines/circles --facts model_cards/circles.yaml

Its figures stand in the card's table and, for the Hub's search, in the metadata's model-index.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diffusers_multiguidance.hub.card import read_facts, write_pipeline_card


def main(
    pipeline: Path,
    facts: Annotated[Path, typer.Option(help="YAML; model_cards/circles.yaml is an example.")],
    load_from: Annotated[str | None, typer.Option(help="Hub id in the example; the folder unless given.")] = None,
) -> None:
    """Write README.md into the folder PIPELINE."""
    try:
        write_pipeline_card(pipeline, read_facts(facts), load_from or pipeline.as_posix())
    except ValueError as error:
        print(f"write_card.py: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
