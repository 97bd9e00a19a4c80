"""Several reports side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.files import add_to_folder
from .figures import Cell, Figure, batches_of, table
from .report import data_uri, render

Rows = list[tuple[Figure, dict[str, Cell]]]

DEPENDENT = {
    "attribute": "figures on values",
    "evaluator": "figures on values",
    "second_evaluator": "cells of the square",
    "gap": "shares in the gap and figures on the middle",
    "reference": "quality and ratios of distances",
    "extractor": "FID, KID, precision and recall",
    "training": "distances to training",
    "embedding": "distances to training",
    "recognizer": "recognised shares and diversity",
}
"""What can't be compared between reports that were not asked for the same."""


def compare(reports: Sequence[str | Path], out: str | Path | None = None) -> tuple[dict[str, dict[str, Any]], Rows]:
    """The figures of reports side by side: a column for each batch of each.

    Args:
        reports: folders that `evaluate` wrote, at least two, each once.
        out: a folder for `compare.html`; None writes nothing.

    Returns:
        By the name of each column what it stands for: `report`, `batch`, `attribute`, and what was asked for that
        figures depend on, see `DEPENDENT`; and the rows of `figures.table`.

    Raises:
        ValueError: for fewer than two, for one that can't be read, and for one twice.
    """
    if len(reports) < 2:
        raise ValueError(f"`reports` are {len(reports)}; expected at least two to compare.")
    places = [Path(folder).resolve() for folder in reports]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ValueError(f"`reports` name {str(reports[number])!r} twice; expected each once.")
    columns: dict[str, dict[str, Any]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for folder, name in zip(reports, _names(reports), strict=True):
        report = read_report(folder)
        for batch, found in batches_of(report).items():
            column = f"{name}, {batch}"
            asked = {key: _place(report["asked"].get(key)) for key in DEPENDENT}
            columns[column] = {"report": str(folder), "batch": batch, **asked, "attribute": report["attribute"]}
            figures[column] = found
    rows = table(figures)
    if out is not None:
        pictures = [
            {"name": name, "source": data_uri(Path(folder) / "histogram.png")}
            for folder, name in zip(reports, _names(reports), strict=True)
            if (Path(folder) / "histogram.png").is_file()
        ]
        page = render("compare.html", columns=columns, rows=rows, pictures=pictures, differing=differing(columns))
        with add_to_folder(out) as new:  # which may be that of a report
            (new / "compare.html").write_text(page)
    return columns, rows


def differing(columns: dict[str, dict[str, Any]]) -> list[str]:
    """Sentences on what keeps figures from being compared."""
    sentences = []
    for key, affected in DEPENDENT.items():
        found = {str(column[key]) for column in columns.values() if column[key] is not None}
        if len(found) > 1:
            sentences.append(f"Not with the same {key} ({', '.join(sorted(found))}): {affected} can't be compared.")
    return sentences


def read_report(folder: str | Path) -> dict[str, Any]:
    """What `report.json` in a folder holds.

    Raises:
        ValueError: where there is none, or a broken one.
    """
    path = Path(folder) / "report.json"
    try:
        report = json.loads(path.read_text())
        if not all(isinstance(report[key], dict) for key in ("asked", "batches")) or "attribute" not in report:
            raise ValueError("no report")
        return report
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"`{path}` can't be read ({error}); expected what `multiguidance evaluate` writes."
        ) from error


def _place(asked: Any) -> Any:
    """Where it is a folder or a file, the same however it was named."""
    return str(Path(asked).resolve()) if isinstance(asked, str) and Path(asked).exists() else asked


def _names(reports: Sequence[str | Path]) -> list[str]:
    """As short as they can be while they differ: the last part of each path, or the whole."""
    last = [Path(folder).resolve().name for folder in reports]
    return last if len(set(last)) == len(last) else [str(folder) for folder in reports]
