"""Running the training scripts as their users do, through `accelerate launch`."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def launch_command(script: str, *flags: object, processes: int = 1) -> list[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={processes}"]
    if processes > 1:
        command.append("--multi_gpu")  # torchrun; with ACCELERATE_USE_CPU the processes meet through gloo
    return [*command, str(ROOT / "training" / script), *map(str, flags)]


CPU = {**os.environ, "ACCELERATE_USE_CPU": "true"}


def launch(script: str, *flags: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a training script as its users do."""
    command = launch_command(script, *flags, processes=processes)
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=CPU)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher and everything it started."""
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
        victim.kill()
    process.wait()
