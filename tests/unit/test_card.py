"""The card of a pipeline: every figure in the table and in the metadata, all of it valid."""

import json
from pathlib import Path

import pytest
import yaml
from helpers.hub_server import metadata_errors
from huggingface_hub import ModelCard

from diffusers_multiguidance.hub.card import read_facts, write_pipeline_card

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(path.parent.name for path in (ROOT / "pipelines").glob("*/model_index.json"))
FACTS = {"title": "Tiny", "summary": "Generates noise.", "limits": "It is tiny."}


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_card_is_valid_and_says_every_figure_twice(name):
    card = ModelCard.load(ROOT / "pipelines" / name / "README.md")  # what it has to say is tested in test_figures.py
    assert metadata_errors(card.content) == []
    assert (card.data.library_name, card.data.license) == (
        "diffusers",
        {"smiles": "other", "leaves": "mit"}.get(name, "apache-2.0"),
    )
    assert set(card.data.multiguidance) == {"name", "note", "gap", "picture"}
    assert card.data.eval_results
    for result in card.data.eval_results:
        column, row = result.metric_name.split(", ", 1)
        while f"| {row} |" not in card.text:  # there are commas in names of columns, too
            more, row = row.split(", ", 1)
            column = f"{column}, {more}"
        assert f" {result.metric_value} |" in card.text.split(f"| {row} |", 1)[1].splitlines()[0]
        assert result.metric_args["command"] in card.text


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a card is made from of a pipeline's folder."""
    (tmp_path / "tiny" / "classifiers").mkdir(parents=True)
    (tmp_path / "tiny" / "model_index.json").write_text("{}")
    attributes = {"Hair": ["black", "blond"], "Smiling": ["no", "yes"]}
    config = {"member_configs": [{"attributes": attributes}]}
    (tmp_path / "tiny" / "classifiers" / "config.json").write_text(json.dumps(config))
    return tmp_path / "tiny"


def write_card(folder: Path, facts: object, **results: object) -> ModelCard:
    path = folder.parent / "facts.yaml"
    path.write_text(facts if isinstance(facts, str) else yaml.safe_dump(facts, sort_keys=False))
    write_pipeline_card(folder, read_facts(path, results), "me/tiny")
    return ModelCard.load(folder / "README.md")


def test_card_of_a_pipeline_without_figures(folder):
    card = write_card(folder, FACTS)
    assert metadata_errors(card.content) == []
    assert 'MultiGuidanceDDPMPipeline.from_pretrained("me/tiny")' in card.text
    assert 'DiffusionPipeline.from_pretrained("me/tiny", trust_remote_code=True)' in card.text
    assert 'target={"Hair": 0.5, "Smiling": 0.5}' in card.text
    assert "Hair: 0 = black, 1 = blond, Smiling: 0 = no, 1 = yes" in card.text
    assert "Nothing was measured yet." in card.text
    assert card.data.eval_results is None
    assert "multiguidance" not in card.data.to_dict()
    assert 'target={"Smiling": 0.5}' in write_card(folder, {**FACTS, "target": {"Smiling": 0.5}}).text


def test_metadata_for_the_space(folder):
    (folder / "grid.png").touch()
    said = {"name": "Tiny faces", "note": "They are noise.", "gap": {"Smiling": [0.2, 0.8]}}
    card = write_card(folder, {**FACTS, **said, "pictures": {"grid.png": "Noise"}})
    assert card.data.multiguidance == {**said, "picture": "grid.png"}


def test_figures_come_from_results(folder):
    rows = {"unguided": {"in the gap": "{{ trial.share | percent }}", "images": "{{ trial.count }}", "malformed": 0.5}}
    table = {"measured_on": "{{ trial.count }} images.", "command": "{{ trial.command }}", "rows": rows}
    trial = {"share": 0.98765, "count": 8, "command": "python run.py --fast"}
    card = write_card(folder, {**FACTS, "figures": [table]}, trial=trial)
    assert "| unguided | 98.8 | 8 | 0.5 |" in card.text
    assert "8 images." in card.text
    assert [result.metric_value for result in card.data.eval_results] == [98.8, 8, 0.5]
    assert {result.metric_args["command"] for result in card.data.eval_results} == {"python run.py --fast"}


@pytest.mark.parametrize(
    "facts, message",
    [
        ("title: [", "can't be read"),
        ("just words", "has just words; expected"),
        ({"title": "Tiny"}, "has ['title']; expected ['title', 'summary', 'limits']"),
        ({**FACTS, "colour": "red"}, "and perhaps others of"),
        ({**FACTS, "title": 3}, "`facts` has title 3; expected a str."),
        ({**FACTS, "limits": "{{ trial.share }}"}, "'trial' is undefined"),
        ({**FACTS, "figures": [{"rows": {}}]}, "figures without measured_on, command or rows"),
        ({**FACTS, "target": {"Age": 0.5}}, "has the target 'Age'; expected one of ['Hair', 'Smiling']."),
        ({**FACTS, "gap": {"Age": [0.2, 0.8]}}, "has the gap 'Age'; expected one of ['Hair', 'Smiling']."),
        ({**FACTS, "gap": {"Hair": [0.8, 0.2]}}, "has the gap [0.8, 0.2] of 'Hair'; expected two numbers"),
        ({**FACTS, "gap": {"Hair": 0.5}}, "has the gap 0.5 of 'Hair'; expected two numbers"),
        ({**FACTS, "pictures": {"none.png": "None"}}, "has the picture 'none.png'; expected files of"),
    ],
)
def test_wrong_facts_are_refused(folder, facts, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        write_card(folder, facts)
    assert message in str(caught.value)
    assert not (folder / "README.md").exists()


def test_no_pipeline(tmp_path):
    with pytest.raises(ValueError, match=r"expected a pipeline's folder, with a model_index\.json"):
        write_pipeline_card(tmp_path, FACTS, "me/tiny")
