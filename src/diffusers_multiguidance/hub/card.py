"""The card of a pipeline: the template's words, and the facts that only its author knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2.nativetypes import NativeEnvironment

from ..guidance import is_number
from ..utils.files import add_to_folder

TEMPLATE = Path(__file__).with_name("pipeline.md")
FACTS = {
    "title": str,
    "summary": str,
    "license": str,
    "datasets": list,
    "data": str,
    "pictures": dict,
    "recipe_note": str,
    "training": list,
    "figures": list,
    "limits": str,
    "target": dict,
    "name": str,
    "note": str,
    "gap": dict,
}
NEEDED = ("title", "summary", "limits")


def read_facts(path: str | Path, results: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What a card is made from, out of a YAML file.

    `title`, `summary`, `limits` are needed. `data` names the data set of the figures, `datasets` its ids on
    the Hub; `pictures` are captions by file, the first one standing for the pipeline; `recipe_note` and the list
    `training` say how it was trained; `figures` is a list of tables, each with `measured_on`, `command`, `rows` (cells
    by column by row) and perhaps `remarks`; `target` is that of the card's example, unless it is the middle of all
    attributes. For the Space: `name`, a few plain words; `note`, a sentence; `gap`, by attribute the two values
    between which training showed nothing.

    Args:
        results: figures by name. Wherever the file has a text, it may refer to them by jinja2 expressions.

    Raises:
        ValueError: for a file that can't be read, expressions that mean nothing, and for facts that are missing,
            unknown or of another type.
    """
    try:
        facts = fill_in(yaml.safe_load(Path(path).read_text()), results)
    except (OSError, ValueError, TypeError, ArithmeticError, yaml.YAMLError, jinja2.TemplateError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`facts` {str(path)!r} can't be read ({reason}); expected a YAML file, and in it figures that are known."
        ) from error
    if not isinstance(facts, dict) or set(facts) - set(FACTS) or set(NEEDED) - set(facts):
        found = list(facts) if isinstance(facts, dict) else facts
        raise ValueError(
            f"`facts` {str(path)!r} has {found}; expected {list(NEEDED)} and perhaps others of {[*FACTS]}."
        )
    for name, value in facts.items():
        if not isinstance(value, FACTS[name]):
            raise ValueError(f"`facts` has {name} {value!r}; expected a {FACTS[name].__name__}.")
    for table in facts.get("figures", []):
        if not isinstance(table, dict) or not {"measured_on", "command", "rows"} <= set(table):
            raise ValueError("`facts` has figures without measured_on, command or rows; expected all three.")
        rows = table["rows"]
        if not isinstance(rows, dict) or not all(isinstance(cells, dict) for cells in rows.values()):
            raise ValueError(f"`facts` has figures with rows {rows!r}; expected cells by column by row.")
    for attribute, ends in facts.get("gap", {}).items():
        if not (
            isinstance(ends, list) and len(ends) == 2 and is_number(ends[1], 0, 1) and is_number(ends[0], 0, ends[1])
        ):
            raise ValueError(
                f"`facts` has the gap {ends!r} of '{attribute}'; expected two numbers from 0 to 1, in order."
            )
    return facts


def fill_in(content: Any, results: Mapping[str, Any]) -> Any:
    """`content` with the jinja2 expressions in its texts replaced by what they mean, numbers as numbers.

    `percent` is a filter for shares.

    Raises:
        jinja2.TemplateError: for one that means nothing.
    """
    if isinstance(content, dict):
        return {name: fill_in(value, results) for name, value in content.items()}
    if isinstance(content, list):
        return [fill_in(value, results) for value in content]
    if not isinstance(content, str) or "{{" not in content:
        return content
    environment = NativeEnvironment(undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = lambda share: round(100 * share, 1)
    return environment.from_string(content).render(results)


def unmeasured_facts(title: str, attributes: list[str]) -> dict[str, Any]:
    """What is known of a pipeline that nobody has looked at yet; `multiguidance card` says more."""
    names = " and ".join(f"`{name}`" for name in attributes)
    guided = f"Trained on the extremes of {names} only; multi-guidance generates what lies between."
    unguided = (
        "Trained on extremes only. It generates those: the classifiers that guide it between them are still missing."
    )
    return {
        "title": title,
        "summary": guided if attributes else unguided,
        "limits": "Nobody has looked yet at what comes out. Do, before you use it.",
    }


def write_pipeline_card(folder: Path, facts: dict[str, Any], load_from: str) -> None:
    """Write `README.md` into a pipeline's folder; arguments and errors are those of `pipeline_card`."""
    card = pipeline_card(folder, facts, load_from)
    with add_to_folder(folder) as new:
        (new / "README.md").write_text(card)


def pipeline_card(folder: Path, facts: dict[str, Any], load_from: str) -> str:
    """The text of a pipeline's card.

    Args:
        folder: what `save_pretrained` wrote.
        facts: see `read_facts`.
        load_from: folder or Hub id in the card's example.

    Raises:
        ValueError: where `folder` is no pipeline or lacks a picture or an attribute, or the metadata can't be valid.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
        attributes = _read_attributes(index, folder / "classifiers" / "config.json")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`folder` {str(folder)!r} can't be read ({error}); expected a pipeline's folder, with a model_index.json."
        ) from error
    missing = [name for name in facts.get("pictures", {}) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"`facts` has the picture {missing[0]!r}; expected files of {str(folder)!r}.")
    for fact in ("target", "gap"):
        unknown = [name for name in facts.get(fact, {}) if name not in attributes]
        if unknown:
            raise ValueError(f"`facts` has the {fact} {unknown[0]!r}; expected one of {list(attributes)}.")
    shown: dict[str, Any] = {name: facts[name] for name in ("name", "note", "gap") if name in facts}
    if facts.get("pictures"):
        shown["picture"] = next(iter(facts["pictures"]))
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=facts.get("license"),
        tags=["diffusers-multiguidance", "multi-guidance", "interpolation", "ddpm"],
        datasets=facts.get("datasets"),
        model_name=facts["title"],
        eval_results=eval_results(facts) or None,
        multiguidance=shown or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        **{"pictures": {}, "training": [], "figures": [], **facts},
        load_from=load_from,
        pipeline_class="MultiGuidanceCFGPipeline" if "attributes" in index else "MultiGuidanceDDPMPipeline",
        targets=json.dumps(facts.get("target", dict.fromkeys(attributes, 0.5))),
        ends=", ".join(
            f"{name}: 0 = {classes[0]}, 1 = {classes[-1]}" if len(classes) == 2 else f"{name}: shares of its classes"
            for name, classes in attributes.items()
        ),
        labels=", class_labels=[0] * 16" if _knows_classes(folder / "unet" / "config.json") else "",
    )
    return str(card)


def _read_attributes(index: dict[str, Any], path: Path) -> dict[str, list[str]]:
    """Class names by attribute: those of a class-conditional denoiser, or of a set of classifiers if it is there."""
    if "attributes" in index:
        return {name: [key for key, _ in classes] for name, classes in index["attributes"].items()}
    members = json.loads(path.read_text())["member_configs"] if path.is_file() else []
    return {name: list(classes) for member in members for name, classes in member["attributes"].items()}


def _knows_classes(path: Path) -> bool:
    """Whether a `UNet2DModel` wants `class_labels`."""
    return path.is_file() and json.loads(path.read_text()).get("num_class_embeds") is not None


def eval_results(facts: dict[str, Any]) -> list[EvalResult]:
    """The tables' cells, one by one, each with the command that measures it; the Hub shows them beside the card."""
    data = facts.get("data", facts["title"])
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=data.lower().replace(" ", "-"),
            dataset_name=data,
            metric_type=column,
            metric_name=f"{column}, {row}",
            metric_value=value,
            metric_args={"command": table["command"]},
        )
        for table in facts.get("figures", [])
        for row, cells in table["rows"].items()
        for column, value in cells.items()
    ]
