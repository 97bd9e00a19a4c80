"""Files that are either whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which takes its place when the block ends well and vanishes otherwise."""
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{folder}` is a file; expected a folder, or a name that is free.")
    old = folder.with_name(folder.name + ".old")
    with _temporary_folder(folder) as temporary:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def add_to_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder, whose files move into `folder` when the block ends well; other files there stay."""
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{folder}` is a file; expected a folder, or a name that is free.")
    with _temporary_folder(folder) as temporary:
        yield temporary
        folder.mkdir(exist_ok=True)
        for path in temporary.iterdir():
            path.replace(folder / path.name)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
