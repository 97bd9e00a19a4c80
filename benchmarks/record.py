"""What every benchmark writes: its figures, and how they came about."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffusers_multiguidance.utils.files import add_to_folder


def save_results(path: Path, results: Any) -> None:
    """Write `results` as JSON, with the command, the machine and the date."""
    content = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("diffusers-multiguidance", "diffusers", "torch")},
        "results": results,
    }
    with add_to_folder(path.parent) as folder:
        (folder / path.name).write_text(json.dumps(content, indent=2) + "\n")
