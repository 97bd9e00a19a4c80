"""Files that are either whole or not there, in folders where nothing of anyone else's is touched."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITTEN = ".written.json"  # in a folder: the names of what we wrote there; everything else is somebody's


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM until the block has ended; it had better be short."""
    if threading.current_thread() is not threading.main_thread():  # which is the one that they interrupt
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def add_to_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder, whose files move into `folder` when the block ends well and vanish otherwise.

    Other files in `folder` stay. All is written on the file system of `folder`, which may be a mount point.

    Raises:
        ValueError: where `folder` is a file.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{folder}` is a file; expected a folder, or a name that is free.")
    home = folder if folder.exists() else folder.parent
    missing = [path for path in (home, *home.parents) if not path.exists()]
    temporary = None
    try:
        with uninterrupted():
            home.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=home))
        new = temporary / "new"  # with the usual permissions, unlike `mkdtemp`'s
        new.mkdir()
        yield new
        move_files(new, folder)
    finally:
        with uninterrupted():
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):  # not empty
                for path in missing:
                    path.rmdir()


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """As `add_to_folder`, but what an earlier block wrote into `folder` gives way to the new files."""
    with add_to_folder(folder) as new:
        yield new
        old = find_written(Path(folder))
        note_written(new)
    remove_files(old - find_written(Path(folder)), Path(folder))


def move_files(source: Path, folder: Path) -> None:
    """Move all files of `source` to the same place in `folder`: at once where that is free, else one by one."""
    with uninterrupted():
        if not folder.exists():
            source.rename(folder)
            return
        # The largest first, so that no configuration speaks of weights that aren't there.
        for path in sorted(source.rglob("*"), key=lambda path: path.stat().st_size, reverse=True):
            if not path.is_dir():
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)


def note_written(folder: Path) -> None:
    """Note in `folder` that we wrote all that is in it now."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]
    (folder / WRITTEN).write_text(json.dumps([WRITTEN, *names]))


def remove_written(folder: Path) -> None:
    """Remove what we wrote into `folder`, and the folder if it is empty then."""
    remove_files(find_written(folder), folder)


def find_written(folder: Path) -> set[Path]:
    """The files in `folder` that are noted there as ours."""
    note = folder / WRITTEN
    names = set(json.loads(note.read_text())) if note.exists() else set()
    return {path for path in folder.rglob("*") if path.relative_to(folder).as_posix() in names}


def remove_files(paths: Iterable[Path], folder: Path) -> None:
    """Remove files in `folder`, and the folders up to it that are empty then."""
    with uninterrupted():
        for path in sorted(paths, reverse=True):  # the note last
            path.unlink()
            with suppress(OSError):  # not empty
                while path != folder:
                    path = path.parent
                    path.rmdir()
