"""The figures that reports show, in their order and words: one list for the page, the terminal and the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One row of a table.

    Attributes:
        section: of the report: "out", "control", "signs", "good" or "new".
        label: what it is.
        path: of its number in a batch's figures, keys joined by dots.
        kind: "count", "share", "number", or "small" for one of any size.
        note: what it means, in a few words.
        error: path of its interval, or its standard error.
        floor: path of what as many images score that are spread evenly at random.
        windows: path of what was averaged, see `control.sliding_distance`: not all values may have enough images.
    """

    section: str
    label: str
    path: str
    kind: str = "number"
    note: str = ""
    error: str = ""
    floor: str = ""
    windows: str = ""


@dataclass(frozen=True)
class Cell:
    """A figure as it is shown, and what stands beside it in small print."""

    text: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


FIGURES = [
    Figure("out", "images", "summary.num_images", "count"),
    Figure(
        "out", "in the gap", "summary.share_in_gap", "share", "of all images, where training showed none",
        "intervals.share_in_gap",
    ),
    Figure(
        "out", "malformed", "summary.share_malformed", "share", "the evaluator finds no value",
        "intervals.share_malformed",
    ),
    Figure("out", "mean", "summary.mean", note="of the values", error="intervals.mean"),
    Figure("out", "standard deviation", "summary.standard_deviation", note="of the values"),
    Figure(
        "out", "KLD to uniform", "summary.kld_to_uniform", note="0 is an even spread over the range",
        error="intervals.kld_to_uniform", floor="summary.kld_floor",
    ),
    Figure(
        "out", "MSE to uniform", "summary.mse_to_uniform", note="as the paper has it: a root of squares",
        error="intervals.mse_to_uniform", floor="summary.mse_floor",
    ),
    Figure("out", "recognised", "recognized.share", "share", "some class above 0.9"),
    Figure(
        "out", "diversity", "recognized.diversity.share_of_maximum", "share",
        "entropy of the classes at a value, of the highest there can be", windows="recognized.diversity",
    ),
    Figure(
        "out", "cells with an image", "square.cells_with_an_image", "count",
        "of 100 in the square of both attributes", floor="square.cells_by_chance",
    ),
    Figure(
        "control", "mean absolute error", "control.mean_absolute_error", note="from target to value; of whole images",
    ),
    Figure("control", "malformed along a sweep", "control.share_malformed", "share"),
    Figure("control", "within 0.05 of the target", "control.share_near", "share"),
    Figure("control", "rank correlation", "control.rank_correlation", note="of targets and values"),
    Figure(
        "control", "largest step over mean step, values", "control.smoothness.values",
        note="along a sweep; 1 is even, 8 a single jump",
    ),
    Figure(
        "control", "largest step over mean step, pixels", "control.smoothness.pixels",
        note="along a sweep; 1 is even, 8 a single jump",
    ),
    Figure("signs", "trajectory variance, median", "signs.median_variance", "small"),
    Figure("signs", "trajectory variance, highest", "signs.highest_variance", "small"),
    Figure(
        "signs", "how well it tells malformed images", "signs.area_under_roc",
        note="area under the ROC curve, of ten malformed images or more; 0.5 is chance, 1 perfect",
    ),
    Figure("good", "KID to all", "quality.all.kid", note="lower is better", error="quality.all.kid_standard_error"),
    Figure("good", "FID to all", "quality.all.fid", note="lower is better"),
    Figure("good", "precision, all", "quality.all.precision", "share", "generated images that look real"),
    Figure("good", "recall, all", "quality.all.recall", "share", "real images that are covered"),
    Figure(
        "good", "KID to the middle", "quality.middle.kid", note="to real images of the gap",
        error="quality.middle.kid_standard_error",
    ),
    Figure(
        "good", "sliding KID", "quality.sliding_kid.mean",
        note="to real images with values within 0.1, averaged over the range", windows="quality.sliding_kid",
    ),
    Figure("good", "FID to the middle", "quality.middle.fid", note="to real images of the gap"),
    Figure("good", "precision, middle", "quality.middle.precision", "share"),
    Figure("good", "recall, middle", "quality.middle.recall", "share"),
    Figure(
        "new", "median ratio", "memorization.median_ratio",
        note="distance to training over that of held-out images; 1 is as new",
    ),
    Figure("new", "smallest ratio", "memorization.smallest_ratio", note="0 is a copy"),
    Figure(
        "new", "nearer than held-out", "memorization.share_nearer_than_held_out", "share",
        "nearer than the nearest 1 % of held-out images; new images score the floor", "memorization.interval",
        "memorization.floor",
    ),
]  # fmt: skip


def look_up(figures: Mapping[str, Any], path: str) -> Any:
    """What lies at a path of keys joined by dots, or None."""
    found: Any = figures
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def batches_of(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of a report's batches by name; those of the sweep stand beside those of the guided images."""
    batches = dict(report["batches"])
    if "sweep" in batches:
        batches["guided"] = {**batches["guided"], "control": batches.pop("sweep")["control"]}
    return batches


def table(columns: Mapping[str, Mapping[str, Any]], section: str | None = None) -> list[Any]:
    """The figures of batches: pairs of a `Figure` and cells by column, without rows that would be empty.

    Args:
        columns: figures of batches by the name of the column.
        section: the one to show; all unless given.
    """
    rows = [
        (figure, {name: cell(figure, figures) for name, figures in columns.items()})
        for figure in FIGURES
        if section in (None, figure.section)
    ]
    return [(figure, cells) for figure, cells in rows if any(each.text for each in cells.values())]


def cell(figure: Figure, figures: Mapping[str, Any]) -> Cell:
    """Empty where the figures do not have it."""
    number = look_up(figures, figure.path)
    if number is None:
        return Cell()
    details = []
    error = look_up(figures, figure.error) if figure.error else None
    if isinstance(error, list | tuple):
        details.append(
            f"{_spelled(error[0], figure.kind, unit=False)} to {_spelled(error[1], figure.kind, unit=False)}"
        )
    elif error is not None:
        details.append(f"± {_spelled(error, figure.kind, unit=False)}")
    floor = look_up(figures, figure.floor) if figure.floor else None
    if floor is not None:
        details.append(f"floor {_spelled(floor, figure.kind)}")
    averaged = look_up(figures, figure.windows) if figure.windows else None
    if averaged is not None:
        count = len(averaged["by_value"])
        details.append(f"{count} of {count + len(averaged['left_out'])} values")
    return Cell(_spelled(number, figure.kind), f"({'; '.join(details)})" if details else "")


def _spelled(number: float, kind: str, unit: bool = True) -> str:
    if kind == "count":
        return f"{number:,.0f}"
    if kind == "share":
        return f"{100 * number:.1f}{' %' if unit else ''}"
    if kind == "small":
        return f"{number:.2g}"
    digits = 3 if abs(number) < 100 else 1
    return f"{round(number, digits) + 0.0:.{digits}f}"  # without the sign of a 0
