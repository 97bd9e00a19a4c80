"""A core for each process of xdist, and the pipeline that most tests start from."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads get into each other's way
    if hasattr(os, "sched_setaffinity"):
        # So do those of the trainings that tests start: they take as many as they may use.
        cpus, number = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        os.sched_setaffinity(0, {cpus[number % len(cpus)]})

from pathlib import Path

import pytest
from helpers.tiny import tiny_pipeline

from diffusers_multiguidance import MultiGuidanceDDPMPipeline


@pytest.fixture
def pipeline() -> MultiGuidanceDDPMPipeline:
    return tiny_pipeline()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m unit`, `-m integration` and `-m browser` choose by folder."""
    for item in items:
        folder = Path(item.path).parent.name
        item.add_marker(folder)
