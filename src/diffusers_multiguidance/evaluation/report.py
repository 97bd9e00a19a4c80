"""A report as files: `report.json`, pictures, and one page that needs nothing beside itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from ..utils.files import replace_folder
from ..utils.grids import image_grid, to_pil
from .batch import Evaluated, Evaluation
from .control import TARGETS, save_control_plot
from .fidelity import evenly_spaced
from .figures import batches_of, table
from .heat_map import CELLS, by_cell, save_heat_maps
from .memorization import save_neighbours
from .summary import draw_histogram

SHOWN = 64  # images of a grid
NEAREST = 24  # pairs of an image and its neighbour
SUSPECTS = 24


def write_report(
    report: Mapping[str, Any], found: Mapping[str, Evaluated], evaluation: Evaluation, out: str | Path
) -> None:
    """Write all files of a report into a folder, in the place of those of an earlier one.

    Args:
        report: see `evaluate.evaluate`.
        found: the batches, of which "sweep" has `control.TARGETS` times the same number of images.
    """
    with replace_folder(out) as folder:
        attributes = report["attribute"], report["second_attribute"]
        captions = save_pictures(*attributes, found, evaluation, folder)
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        pictures = [
            {"name": name, "caption": caption, "section": section, "source": data_uri(folder / name)}
            for name, (section, caption) in captions.items()
        ]
        page = render(
            "report.html",
            title=Path(report["samples"]).resolve().name,
            report=report,
            pictures=pictures,
            tables=tables(report),
            no_fid=sorted(_find(report["batches"], "why_no_fid")),
        )
        (folder / "report.html").write_text(page)


def tables(report: Mapping[str, Any]) -> dict[str, Any]:
    """By section of the page the columns and rows of its table."""
    batches = batches_of(report)
    columns = {
        name: {"guided": batches["guided"]} if name == "control" and "guided" in batches else batches
        for name in ("out", "control", "signs", "good", "new")
    }
    return {name: {"columns": list(columns[name]), "rows": table(columns[name], name)} for name in columns}


def _find(content: Any, key: str) -> set[str]:
    """All that mappings in mappings have under a key."""
    if not isinstance(content, Mapping):
        return set()
    here = {content[key]} if key in content else set()
    return here.union(*(_find(value, key) for value in content.values()))


def save_pictures(
    attribute: str,
    second_attribute: str | None,
    found: Mapping[str, Evaluated],
    evaluation: Evaluation,
    folder: Path,
) -> dict[str, tuple[str, str]]:
    """Write all pictures, and return the section and the caption of each by its name."""
    captions = {}
    batches = {name: batch for name, batch in found.items() if name != "sweep"}
    values = {name: batch.values for name, batch in batches.items()}
    if evaluation.training_values is not None:
        values = {"training": evaluation.training_values, **values}
    if evaluation.reference is not None:
        values["reference"] = evaluation.real_values
    save_histograms(values, attribute, evaluation.gap, folder / "histogram.png")
    captions["histogram.png"] = ("out", f"How often each value of {attribute} comes out. The gap is shaded.")
    for name, batch in batches.items():
        count = len(batch.images)
        image_grid(to_pil(batch.images[evenly_spaced(count, SHOWN)])).save(folder / f"{name}.png")
        which = f"all {count} images" if count <= SHOWN else f"{SHOWN} of {count} images, evenly spaced, none chosen"
        captions[f"{name}.png"] = ("out", f"{name}: {which}.")
    if second_attribute is not None:
        captions |= save_squares((attribute, second_attribute), batches, evaluation, folder)
    for name, batch in batches.items():
        if batch.variances is not None and name != "unguided":
            suspects = np.argsort(-batch.variances)[:SUSPECTS]
            image_grid(to_pil(batch.images[suspects]), columns=8).save(folder / f"signs_{name}.png")
            caption = f"{name}: the {len(suspects)} images of the highest trajectory variance, the highest first."
            captions[f"signs_{name}.png"] = ("signs", caption)
    if "sweep" in found:
        rows = found["sweep"].images.reshape(len(TARGETS), -1, *found["sweep"].images.shape[1:])
        shown = rows[:, :8].swapaxes(0, 1).reshape(-1, *rows.shape[2:])
        image_grid(to_pil(shown), columns=len(TARGETS)).save(folder / "sweep.png")
        save_control_plot(found["sweep"].values.reshape(len(TARGETS), -1), attribute, folder / "control.png")
        span = f"{TARGETS[0]} to {TARGETS[-1]}"
        captions["sweep.png"] = ("control", f"Targets from {span}, left to right; each row starts from one noise.")
        captions["control.png"] = ("control", "The values that come out, by target. On the line they would be exact.")
    if evaluation.middle is not None and evaluation.middle.any():
        middle = np.flatnonzero(evaluation.middle)
        shown = evaluation.reference[middle[evenly_spaced(len(middle), SHOWN)]]
        image_grid(to_pil(shown)).save(folder / "middle.png")
        captions["middle.png"] = ("good", "Real images of the middle, to compare with those above.")
    if evaluation.training is not None:
        for name, batch in batches.items():
            nearest = np.argsort(batch.distances)[:NEAREST]
            neighbours = evaluation.training.images[batch.nearest[nearest]]
            save_neighbours(batch.images[nearest], neighbours, folder / f"nearest_{name}.png")
            caption = f"{name}: the {len(nearest)} images nearest to training, each with its neighbour on its right."
            captions[f"nearest_{name}.png"] = ("new", caption)
    return captions


def save_squares(
    attributes: tuple[str, str], batches: Mapping[str, Evaluated], evaluation: Evaluation, folder: Path
) -> dict[str, tuple[str, str]]:
    """Write heat maps of two attributes, and an image of each cell, and return their captions."""
    squares = {name: np.stack([batch.values, batch.second_values]) for name, batch in batches.items()}
    name = "square" if "square" in squares else next(iter(squares))
    image_grid(to_pil(by_cell(batches[name].images, squares[name])), columns=CELLS).save(folder / "cells.png")
    if evaluation.training is not None:
        squares = {"training": np.stack([evaluation.training_values, evaluation.training_second_values]), **squares}
    save_heat_maps(squares, attributes, folder / "heat_map.png")
    first, second = attributes
    return {
        "heat_map.png": ("out", f"Where images lie in the square of {first} and {second}."),
        "cells.png": (
            "out",
            f"{name}: an image of each cell, black where there is none; {first} grows to the right, {second} upwards.",
        ),
    }


def save_histograms(values: Mapping[str, np.ndarray], attribute: str, gap: tuple[float, float], path: Path) -> None:
    """Histograms of batches one below the other, with the axes in common (paper, figure 5)."""
    figure = Figure(figsize=(7, 0.6 + 1.25 * len(values)), layout="constrained")
    panels = np.ravel(figure.subplots(len(values), 1, sharex=True))
    for axes, (name, each) in zip(panels, values.items(), strict=True):
        draw_histogram(axes, {name: each}, attribute, gap)
        axes.legend([], frameon=False)
        axes.set(title="", xlabel="", ylabel=name)
    panels[-1].set_xlabel(attribute)
    figure.savefig(path, dpi=120)


def data_uri(path: Path) -> str:
    """A PNG as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def render(template: str, **content: Any) -> str:
    """One of the pages that lie beside this module."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return environment.get_template(template).render(**content)
