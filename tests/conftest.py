"""A core for each process of xdist, and the pipeline that most tests start from."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads get into each other's way

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
