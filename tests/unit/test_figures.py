"""Figures in README.md, docs/ and the cards are those of benchmarks/results/, and nobody typed them."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_what_stands_there_is_what_was_measured():
    for path, text in script.render().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run `python docs/render.py`"


@pytest.fixture
def copy(tmp_path) -> Path:
    """What figures are rendered from and into, of the repository."""
    for name in ("benchmarks/results", "docs", "model_cards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    return tmp_path


def test_another_figure_shows_in_readme_docs_and_card(copy):
    path = copy / "benchmarks" / "results" / "interpolation-circles-32.json"
    content = json.loads(path.read_text())
    content["results"]["guided"]["share_in_gap"] = 0.1234
    path.write_text(json.dumps(content))
    changed = {name.relative_to(copy).as_posix() for name, text in script.render(copy).items() if "12.3" in text}
    assert {"README.md", "docs/results.md", "pipelines/circles-32/README.md"} <= changed


def test_missing_results_do_not_vanish(copy):
    (copy / "benchmarks" / "results" / "overhead.json").unlink()
    with pytest.raises(
        ValueError, match=r"table 'overhead' of docs/tables\.yaml has no figures: 'overhead' is undefined"
    ):
        script.render(copy)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("<!-- table: square -->", "<!-- table: speed -->", r"shows the tables \['speed'\]"),
        ("<!-- table: square -->\n", "", "table 'square' stands nowhere"),
        ("<!-- table: square -->", "<!-- table: square-->", "expected whole marks"),
    ],
)
def test_wrong_marks_are_refused(copy, old, new, message):
    path = copy / "docs" / "results.md"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        script.render(copy)


def test_wrong_figures_end_in_one_sentence(monkeypatch, capsys):
    rendered = {ROOT / "README.md": "other words"}
    monkeypatch.setattr(script, "render", lambda: rendered)
    monkeypatch.setattr("sys.argv", ["render.py", "--check"])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    assert re.fullmatch(r"render.py: README.md differs from its figures; expected .*\.\n", capsys.readouterr().err)
