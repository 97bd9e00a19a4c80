"""One Python file out of a module and the modules of its own package that it imports.

A published pipeline is loaded where this package is not installed, by a loader that follows relative imports no deeper
than one level and mixes up the files of different repositories. So a pipeline is published as a single file.
"""

from __future__ import annotations

import ast
from pathlib import Path


def inline_source(path: str | Path) -> str:
    """Source of the module at `path` with its relative imports replaced by what they import.

    A file without relative imports comes back as it is, so a published file publishes itself.
    """
    return _inline(Path(path), set())


def _inline(path: Path, seen: set[Path]) -> str:
    source = path.read_text()
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            if any(alias.asname for alias in node.names):
                raise ValueError(f"`path` {path} renames what it imports in line {node.lineno}; expected plain names.")
            folder = path.parents[node.level - 1]
            module = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py").resolve()
            lines[node.lineno - 1 : node.end_lineno] = _body(module, seen)
    return "\n".join(lines) + "\n"


def _body(module: Path, seen: set[Path]) -> list[str]:
    """Lines of an inlined module without its docstring and `__future__` imports, which only open a file."""
    if module in seen:
        return []
    seen.add(module)
    source = _inline(module, seen)
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if is_docstring or is_future:
            del lines[node.lineno - 1 : node.end_lineno]
    return [f"# --- {module.stem}.py ---", *lines, f"# --- end of {module.stem}.py ---"]
