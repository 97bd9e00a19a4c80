"""How a program of ours ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from safetensors import SafetensorError


@contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """End in one sentence and code 2 after a wrong value, in 130 after Ctrl-C, in 143 after SIGTERM.

    In all of them what is being written is cleared away; a bug keeps its traceback.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (ValueError, OSError, SafetensorError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice, and the clearing up must not end half-way
    sys.exit(128 + number)
