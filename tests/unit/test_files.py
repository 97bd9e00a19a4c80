"""Folders that are either whole or as they were, and what isn't ours stays."""

import json
import runpy
import signal
import tempfile
from pathlib import Path

import pytest
from helpers.launch import ROOT
from helpers.planted import NAMES, plant
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_multiguidance.utils.files import WRITTEN, add_to_folder, replace_folder, uninterrupted


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != WRITTEN)


def test_replace_folder(tmp_path):
    target = tmp_path / "made" / "result"
    for text in ("one", "two"):
        with replace_folder(target) as folder:
            (folder / text).write_text(text)
            (folder / f"in-{text}" / "deep").mkdir(parents=True)
            (folder / f"in-{text}" / "deep" / "file").write_text(text)
    assert visible(target) == ["in-two", "two"]
    with pytest.raises(FileNotFoundError), replace_folder(target) as folder:
        (folder / "three").write_bytes((folder / "missing").read_bytes())
    assert visible(target) == ["in-two", "two"]
    assert visible(target.parent) == ["result"]


def test_add_to_folder_keeps_what_is_there(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "grid.png").write_text("old")
    with add_to_folder(tmp_path) as folder:
        (folder / "grid.png").write_text("new")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "grid.png").read_text() == "new"
    with pytest.raises(ValueError, match="is a file; expected a folder"), add_to_folder(tmp_path / "mine.txt"):
        pass


@pytest.mark.parametrize("write", [add_to_folder, replace_folder])
def test_what_is_written_has_the_usual_permissions_and_failing_leaves_nothing(write, tmp_path):
    with pytest.raises(SystemExit), write(tmp_path / "a" / "b"):
        raise SystemExit(143)
    assert visible(tmp_path) == []
    with write(tmp_path / "a" / "b") as folder:
        (folder / "file").touch()
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("write", [add_to_folder, replace_folder])
@pytest.mark.parametrize("fails", [False, True])
def test_files_of_others_beside_and_inside_stay(write, fails, tmp_path):
    """By all names that a temporary or a backup could have, and the names of folders of ours."""
    target = tmp_path / "keep"
    with replace_folder(target) as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "config.json").write_text("old")
        (folder / "stale").write_text("old")
    endings = (".old", ".tmp", ".work", ".bak", ".new", "~")
    beside = [tmp_path / f"{dot}keep{ending}" / "a" / "file" for dot in ("", ".") for ending in endings]
    inside = [
        target / name for name in ("notes.txt", "unet/notes.txt", "mine/a/b", ".tmp/file", "new/file", ".hidden")
    ]
    for path in (*beside, *inside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    try:
        with write(target) as folder:
            (folder / "unet").mkdir()
            (folder / "unet" / "config.json").write_text("new")
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    for path in (*beside, *inside):
        assert path.read_text() == str(path)
    assert (target / "unet" / "config.json").read_text() == ("old" if fails else "new")
    assert (target / "stale").exists() == (fails or write is add_to_folder)
    assert len(list(tmp_path.iterdir())) == 1 + len(beside)
    assert len(list(target.iterdir())) == (8 if (target / "stale").exists() else 7), "and nothing of ours is left over"


@pytest.mark.parametrize("write", [add_to_folder, replace_folder])
def test_all_is_written_inside_a_folder_that_is_there(write, tmp_path):
    """It may be a mount point: nothing beside it is on the same file system, and it can't be renamed."""
    target = tmp_path / "mount"
    target.mkdir()
    with write(target) as folder:
        assert folder.is_relative_to(target)
        (folder / "file").touch()
    assert visible(target) == ["file"]


@settings(max_examples=200, deadline=None)
@given(
    beside=st.sets(NAMES, max_size=8),
    inside=st.sets(NAMES, max_size=8),
    written=st.lists(st.sets(st.sampled_from(["a", "b.json", "deep/c", "deep/er/d"])), min_size=1, max_size=3),
    write=st.sampled_from([add_to_folder, replace_folder]),
    fails=st.booleans(),
)
def test_nothing_is_lost_whatever_it_is_called(beside, inside, written, write, fails):
    with tempfile.TemporaryDirectory() as home:
        target = Path(home) / "keep"
        planted = plant(target.parent, beside)
        for number, names in enumerate(written):
            try:
                with write(target) as folder:
                    for name in names:
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        (folder / name).write_text(str(number))
                    if fails and number == len(written) - 1:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                assert fails
            assert not list(Path(home).rglob(".writing-?????*/new"))
            for place in (target, target / "deep"):
                if place.is_dir():
                    planted |= plant(place, inside)
        for path, content in planted.items():
            assert path.read_bytes() == content
        if not fails:
            assert all((target / name).read_text() == str(len(written) - 1) for name in written[-1])
            ours = {path for path in target.rglob("*") if path.is_file()} - planted.keys() - {target / WRITTEN}
            if write is replace_folder:
                assert ours == {target / name for name in written[-1]}


def test_figures_of_a_benchmark_replace_nothing_else(tmp_path):
    save_results = runpy.run_path(str(ROOT / "benchmarks" / "record.py"))["save_results"]
    planted = plant(tmp_path, {"figures.tmp", "figures.json.tmp", "x.old"})
    for number in (1, 2):
        save_results(tmp_path / "figures.json", number)
        assert json.loads((tmp_path / "figures.json").read_text())["results"] == number
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "figures.json"} == planted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_moving_goes_to_its_end_before_it_is_interrupted(number, tmp_path):
    came = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(number)
            assert came == []
        assert came == [number]
    finally:
        signal.signal(number, before)
    assert signal.getsignal(number) == before
