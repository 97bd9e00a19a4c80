"""Folders that are either whole or as they were."""

import pytest

from diffusers_multiguidance.utils.files import add_to_folder, replace_folder


def test_replace_folder(tmp_path):
    target = tmp_path / "made" / "result"
    for text in ("one", "two"):
        with replace_folder(target) as folder:
            (folder / text).write_text(text)
    assert [path.name for path in target.iterdir()] == ["two"]
    with pytest.raises(FileNotFoundError), replace_folder(target) as folder:
        (folder / "three").write_bytes((folder / "missing").read_bytes())
    assert [path.name for path in target.iterdir()] == ["two"]
    assert [path.name for path in target.parent.iterdir()] == ["result"]


def test_add_to_folder_keeps_what_is_there(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "grid.png").write_text("old")
    with add_to_folder(tmp_path) as folder:
        (folder / "grid.png").write_text("new")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "grid.png").read_text() == "new"
    with pytest.raises(ValueError, match="is a file; expected a folder"), add_to_folder(tmp_path / "mine.txt"):
        pass
