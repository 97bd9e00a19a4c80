"""Several reports side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.files import replace_folder
from .figures import Cell, Figure, batches_of, table
from .report import data_uri, render

Rows = list[tuple[Figure, dict[str, Cell]]]


def compare(reports: Sequence[str | Path], out: str | Path | None = None) -> tuple[dict[str, dict[str, Any]], Rows]:
    """The figures of reports side by side: a column for each batch of each.

    Args:
        reports: folders that `evaluate` wrote, at least two.
        out: a folder for `compare.html`; None writes nothing.

    Returns:
        By the name of each column what it stands for: `report`, `batch`, `extractor`, `embedding` and `evaluator`; and
        the rows of `figures.table`.

    Raises:
        ValueError: for fewer than two, and for one that can't be read.
    """
    if len(reports) < 2:
        raise ValueError(f"`reports` are {len(reports)}; expected at least two to compare.")
    columns: dict[str, dict[str, Any]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for folder, name in zip(reports, _names(reports), strict=True):
        report = read_report(folder)
        for batch, found in batches_of(report).items():
            column = f"{name}, {batch}"
            asked = {key: report["asked"].get(key) for key in ("evaluator", "extractor", "embedding")}
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
        with replace_folder(out) as new:
            (new / "compare.html").write_text(page)
    return columns, rows


def differing(columns: dict[str, dict[str, Any]]) -> list[str]:
    """Sentences on what keeps figures from being compared."""
    sentences = []
    for key, affected in (
        ("attribute", "all figures"),
        ("evaluator", "figures on values"),
        ("extractor", "FID, KID, precision and recall"),
        ("embedding", "distances to training"),
    ):
        found = {str(column[key]) for column in columns.values() if column[key] is not None}
        if len(found) > 1:
            sentences.append(f"Not by the same {key} ({', '.join(sorted(found))}): {affected} can't be compared.")
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


def _names(reports: Sequence[str | Path]) -> list[str]:
    """As short as they can be while they differ: the last part of each path, or the whole."""
    last = [Path(folder).resolve().name for folder in reports]
    return last if len(set(last)) == len(last) else [str(folder) for folder in reports]
