"""Every notebook runs from top to bottom, and is committed executed, small and without errors."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
SHORTER = {"max_train_steps=700": "max_train_steps=70"}  # it was executed at full length when it was committed
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def assert_no_errors(notebook: nbformat.NotebookNode) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "Traceback (most recent call last)" not in str(outputs)


def test_notebook_runs(path, tmp_path):
    # In a copy of the layout: relative paths hold, and what a notebook writes beside itself stays out of the checkout.
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    (tmp_path / "notebooks").mkdir()
    copy = nbformat.read(path, as_version=4)
    for cell in copy.cells:
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
    client = NotebookClient(
        copy, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    )
    client.execute()  # raises at the first cell that fails; the timeout is for each cell
    assert_no_errors(copy)


def test_committed_notebook_is_executed_and_small(path):
    assert path.stat().st_size < 1_000_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert_no_errors(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert counts == list(range(1, len(counts) + 1))
