"""Imports run one way, and importing the package costs next to nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffusers_multiguidance

PACKAGE = Path(diffusers_multiguidance.__file__).parent
# From the bottom up: a module imports from its own room and from those before it.
ROOMS = (
    *("utils", "diffusion", "models", "data", "guidance", "hub", "schedulers", "denoising", "pipelines", "guiders"),
    *("generate", "evaluation", "calibration", "training", "curation", "cli"),
)


def imported(path: Path) -> set[str]:
    """Modules of the package that a module imports, also in its functions, relative to the package."""
    tree = ast.parse(path.read_text())
    here = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*here[: len(here) - node.level], *(node.module or "").split("."))
            names = [".".join(part for part in (*base, name.name) if part) for name in node.names]
            found.update(name if exists(name) else ".".join(filter(None, base)) for name in names)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            absolute = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not any(name.startswith("diffusers_multiguidance") for name in absolute), (
                f"{path}: say it relatively"
            )
    return found


def exists(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_runs_upward(name):
    room = ROOMS.index(name.split(".")[0])
    upward = [other for other in imported(MODULES[name]) if ROOMS.index(other.split(".")[0]) > room]
    assert not upward


def test_no_import_goes_round():
    graph = {name: imported(path) & set(MODULES) for name, path in MODULES.items()}
    while leaves := [name for name, needed in graph.items() if not needed & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph, "these import each other"


def test_the_top_level_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def test_the_package_is_imported_quickly():
    code = "import sys, diffusers_multiguidance; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", diffusers_multiguidance.__all__)
def test_public_names(name):
    assert getattr(diffusers_multiguidance, name).__module__.startswith("diffusers_multiguidance.")
    assert name in dir(diffusers_multiguidance)
