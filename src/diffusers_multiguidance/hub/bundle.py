"""One Python file out of a module and the modules of its own package that it imports.

A published pipeline is loaded where this package is not installed, by a loader that follows relative imports no deeper
than one level and mixes up the files of different repositories. So a pipeline is published as a single file.
"""

from __future__ import annotations

import ast
from pathlib import Path


def inline_source(path: str | Path) -> str:
    """Source of the module at `path` after that of the modules it imports relatively, all other imports on top.

    A file without relative imports comes back as it is, so a published file publishes itself.
    """
    path = Path(path)
    source = path.read_text()
    if not any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.parse(source).body):
        return source
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    bodies: dict[Path, str] = {}
    _collect(path, plain, named, bodies)
    imports = [f"import {name}" for name in sorted(plain)]
    imports += [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
    header = f'"""{ast.get_docstring(ast.parse(source))}"""\n\nfrom __future__ import annotations\n\n'
    return header + "\n".join(imports) + "\n" + "".join(bodies.values())


def _collect(path: Path, plain: set[str], named: dict[str, set[str]], bodies: dict[Path, str]) -> None:
    """Add a module and those it imports relatively; absolute imports go to `plain` and `named`, the rest is text."""
    source = path.read_text()
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Import):
            plain.update(ast.unparse(alias) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level > 0:
            folder = path.parents[node.level - 1]
            module = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py").resolve()
            if module not in bodies:
                _collect(module, plain, named, bodies)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            named.setdefault(node.module or "", set()).update(ast.unparse(alias) for alias in node.names)
        elif not (isinstance(node, ast.ImportFrom) or (node.lineno == 1 and isinstance(node, ast.Expr))):
            continue
        del lines[node.lineno - 1 : node.end_lineno]
    bodies[path] = f"\n\n# --- {path.stem} ---\n\n" + "\n".join(lines).strip() + "\n"
