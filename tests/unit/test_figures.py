"""Figures in README.md, docs/ and the cards are those of benchmarks/results/, and nobody typed them."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
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


def test_intervals_stand_beside_figures():
    """Wilson's by his formula; Student's with the 2.776 of four degrees of freedom; the bootstrap's as it comes."""
    centre, half = (0.3 + 1.96**2 / 200) / (1 + 1.96**2 / 100), 1.96 * (0.0021 + 1.96**2 / 40000) ** 0.5
    low, high = (100 * (centre + sign * half / (1 + 1.96**2 / 100)) for sign in (-1, 1))
    assert script.share(0.3, 100) == f"30.0 % ({low:.1f} to {high:.1f})"
    assert script.share(0.0, 100) == "0.0 % (0.0 to 3.7)"

    rows = {f"classifier {number}": {"share_in_gap": share} for number, share in enumerate((0.2, 0.3, 0.4, 0.5, 0.6))}
    half = 2.776 * 0.025**0.5 / 5**0.5
    expected = f"40.0 ± 15.8 %, 5 seeds ({40 - 100 * half:.1f} to {40 + 100 * half:.1f})"
    assert script.over_seeds({"guided": {"share_in_gap": 1.0}, **rows}, "share_in_gap") == expected

    half_full = {"values": [None, *np.linspace(0, 0.4999, 1000)], "kld_to_uniform": np.log(2)}
    value, low, high = map(float, re.findall(r"[\d.]+", script.kld(half_full)))
    assert value == 0.693
    assert 0.6 < low < value < high < 0.8


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
