"""The card of a pipeline: the template's words, and the facts that only its author knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

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
}
NEEDED = ("title", "summary", "limits")


def read_facts(path: str | Path) -> dict[str, Any]:
    """What a card is made from, out of a YAML file.

    `title`, `summary`, `limits` are needed. `data` names the data set of the figures, `datasets` its ids on
    the Hub; `pictures` are captions by file; `recipe_note` and the list `training` say how it was trained; `figures`
    is a list of tables, each with `measured_on`, `command`, `rows` (cells by column by row) and perhaps `remarks`;
    `target` is that of the card's example, unless it is the middle of all attributes.

    Raises:
        ValueError: for a file that can't be read, and for facts that are missing, unknown or of another type.
    """
    try:
        facts = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`facts` {str(path)!r} can't be read ({reason}); expected a YAML file.") from error
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
    return facts


def unmeasured_facts(title: str, attributes: list[str]) -> dict[str, Any]:
    """What is known of a pipeline that nobody has looked at yet; `write_card.py` says more."""
    names = " and ".join(f"`{name}`" for name in attributes)
    guided = f"Trained on the extremes of {names} only; multi-guidance draws what lies between."
    unguided = (
        "Trained on extremes only. It draws those: the classifiers that guide it between them are still missing."
    )
    return {
        "title": title,
        "summary": guided if attributes else unguided,
        "limits": "Nobody has looked yet at what comes out. Do, before you use it.",
    }


def write_pipeline_card(folder: Path, facts: dict[str, Any], load_from: str) -> None:
    """Write `README.md` into a pipeline's folder.

    Args:
        folder: what `save_pretrained` wrote.
        facts: see `read_facts`.
        load_from: folder or Hub id in the card's example.

    Raises:
        ValueError: where `folder` is no pipeline or lacks a picture or an attribute, or the metadata can't be valid.
    """
    try:
        json.loads((folder / "model_index.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"`folder` is {str(folder)!r}; expected a pipeline's folder, with a model_index.json."
        ) from error
    missing = [name for name in facts.get("pictures", {}) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"`facts` has the picture {missing[0]!r}; expected files of {str(folder)!r}.")
    attributes: dict[str, list[str]] = {}
    if (folder / "classifiers" / "config.json").is_file():
        members = json.loads((folder / "classifiers" / "config.json").read_text())["member_configs"]
        attributes = {name: classes for member in members for name, classes in member["attributes"].items()}
    unknown = [name for name in facts.get("target", {}) if name not in attributes]
    if unknown:
        raise ValueError(f"`facts` has the target {unknown[0]!r}; expected one of {list(attributes)}.")
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=facts.get("license"),
        tags=["diffusers-multiguidance", "multi-guidance", "interpolation", "ddpm"],
        datasets=facts.get("datasets"),
        model_name=facts["title"],
        eval_results=eval_results(facts) or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        **{"pictures": {}, "training": [], "figures": [], **facts},
        load_from=load_from,
        targets=json.dumps(facts.get("target", dict.fromkeys(attributes, 0.5))),
        ends=", ".join(f"{name}: 0 = {classes[0]}, 1 = {classes[-1]}" for name, classes in attributes.items()),
    )
    temporary = folder / "README.md.tmp"
    card.save(temporary)
    temporary.replace(folder / "README.md")


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
