"""Whether a result can be written, and under such names: known before anything is computed."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

RESERVED = ("image", "source_index")  # columns that mean something else than an attribute


def check_writable(folder: str | Path, name: str) -> None:
    """Raise `ValueError` unless `folder` can be made and written into. It is tried, and nothing stays behind.

    Args:
        name: of the argument, for the error.
    """
    folder = Path(folder)
    missing: list[Path] = []
    try:
        missing += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".writing-", dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ValueError(
            f"`{name}` {str(folder)!r} can't be written ({error}); expected a folder that can."
        ) from error
    finally:
        with suppress(OSError):  # not empty: another process has begun to write
            for path in missing:
                if path.exists():
                    path.rmdir()


def check_attributes(attributes: list[str], name: str) -> None:
    """Raise `ValueError` for attributes that no column and no file of a result can be named after, or given twice."""
    for number, attribute in enumerate(attributes):
        if (
            not attribute.isprintable()
            or not 0 < len(attribute) <= 100
            or attribute[0] == "."
            or {*"/\\"} & {*attribute}
        ):
            raise ValueError(
                f"`--{name}` is {attribute!r}; expected a name that a file can have: without '/', '\\' and a leading "
                "'.', and of at most 100 characters."
            )
        if attribute in RESERVED:
            raise ValueError(
                f"`--{name}` is {attribute!r}; expected another name than {RESERVED}, which data sets have."
            )
        if attribute in attributes[:number]:
            raise ValueError(f"`--{name}` names {attribute!r} twice; expected each attribute once.")
