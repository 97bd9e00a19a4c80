"""What a program that was stopped says of itself."""

import subprocess
import sys

import pytest

HALF_MADE = """
import os, signal
from diffusers_multiguidance.utils.exits import exit_codes

class Bar:
    def __init__(self):
        os.kill(os.getpid(), signal.{signal})
        self.position = 0

    def __del__(self):
        self.position += 1

with exit_codes("program"):
    Bar()
"""


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_object_that_a_signal_left_half_made_is_nothing_to_tell(name, code):
    ended = subprocess.run([sys.executable, "-c", HALF_MADE.format(signal=name)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, "")
