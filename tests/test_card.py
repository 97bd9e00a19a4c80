"""The card of a pipeline: every figure in the table and in the metadata, all of it valid."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import tiny_pipeline
from hub_server import metadata_errors
from huggingface_hub import ModelCard

from diffusers_multiguidance.hub.card import read_facts, write_pipeline_card

ROOT = Path(__file__).parents[1]
COMMITTED = sorted(path.parent.name for path in (ROOT / "pipelines").glob("*/model_index.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_card_says_what_its_facts_say(name, tmp_path):
    committed = ROOT / "pipelines" / name
    copy = tmp_path / name
    copy.mkdir()
    for path in committed.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "README.md").unlink()
    facts = read_facts(ROOT / "model_cards" / f"{name}.yaml")
    write_pipeline_card(copy, facts, f"pipelines/{name}")
    assert (copy / "README.md").read_text() == (committed / "README.md").read_text()

    card = ModelCard.load(committed / "README.md")
    assert metadata_errors(card.content) == []
    assert (card.data.library_name, card.data.license) == ("diffusers", "apache-2.0")
    results = {result.metric_name: result for result in card.data.eval_results}
    for table in facts["figures"]:
        assert table["command"] in card.text
        for row, cells in table["rows"].items():
            for column, value in cells.items():
                assert results[f"{column}, {row}"].metric_value == value
                assert results[f"{column}, {row}"].metric_args["command"] == table["command"]
                assert f" {value} |" in card.text.split(f"| {row} |", 1)[1].splitlines()[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_pipeline({"Hair": ["black", "blond"], "Smiling": ["no", "yes"]}).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


FACTS = {"title": "Tiny", "summary": "Draws noise.", "limits": "It is tiny."}


def write_card(folder: Path, facts: object) -> subprocess.CompletedProcess[str]:
    (folder / "facts.yaml").write_text(facts if isinstance(facts, str) else yaml.safe_dump(facts))
    command = [sys.executable, ROOT / "training" / "write_card.py", folder, "--facts", folder / "facts.yaml"]
    return subprocess.run([*command, "--load-from", "me/tiny"], capture_output=True, text=True, check=False)


def test_card_of_a_pipeline_without_figures(folder):
    assert write_card(folder, FACTS).returncode == 0
    card = ModelCard.load(folder / "README.md")
    assert metadata_errors(card.content) == []
    assert 'from_pretrained("me/tiny", trust_remote_code=True)' in card.text
    assert 'target={"Hair": 0.5, "Smiling": 0.5}' in card.text
    assert "Hair: 0 = black, 1 = blond, Smiling: 0 = no, 1 = yes" in card.text
    assert "Nothing was measured yet." in card.text
    assert card.data.eval_results is None
    assert write_card(folder, {**FACTS, "target": {"Smiling": 0.5}}).returncode == 0
    assert 'target={"Smiling": 0.5}' in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "facts, message",
    [
        ("title: [", "can't be read"),
        ("just words", "has just words; expected"),
        ({"title": "Tiny"}, r"has ['title']; expected ['title', 'summary', 'limits']"),
        ({**FACTS, "colour": "red"}, "and perhaps others of"),
        ({**FACTS, "title": 3}, "`facts` has title 3; expected a str."),
        ({**FACTS, "figures": [{"rows": {}}]}, "figures without measured_on, command or rows"),
        ({**FACTS, "target": {"Age": 0.5}}, "has the target 'Age'; expected one of ['Hair', 'Smiling']."),
        ({**FACTS, "pictures": {"none.png": "None"}}, "has the picture 'none.png'; expected files of"),
    ],
)
def test_wrong_facts_are_refused(folder, facts, message):
    result = write_card(folder, facts)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "README.md").exists()


def test_no_pipeline(tmp_path):
    result = write_card(tmp_path, FACTS)
    assert result.returncode == 2
    assert "expected a pipeline's folder, with a model_index.json" in result.stderr
