"""Files of a user, by all names that a temporary, a backup or a result of ours could be thought to have."""

from pathlib import Path

from hypothesis import strategies as st

_WHAT = ["keep", "pipeline", "unet", "samples", "member-0", "evaluator", "checkpoint-2", "grid.png", "x", "pixels"]
_HOW = ["{}.old", "{}.tmp", "{}.tmp.npy", "{}.bak", "{}.new", "{}.work", "{}~", ".{}", ".{}.tmp", ".{}.swp", "{}-best"]
_ALONE = [
    ".work",
    ".tmp",
    "new",
    "tmp",
    ".writing",
    ".writing-mine",
    ".writing-mine/new",
    "notes.txt",
]

NAMES = st.builds(
    lambda what, how, end: how.format(what) + end,
    st.sampled_from(_WHAT),
    st.sampled_from(_HOW),
    st.sampled_from(["", "/file", "/a/b/file"]),
) | st.sampled_from(_ALONE)


def plant(folder: Path, names: set[str]) -> dict[Path, bytes]:
    """Write each name into `folder` where that is free; what stands in those files."""
    planted = {}
    for name in sorted(names):
        path = folder / name
        if not path.exists() and all(above.is_dir() or not above.exists() for above in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            planted[path] = path.read_bytes()
    return planted
