"""How a program of ours ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from safetensors import SafetensorError


@contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """End in one sentence and code 2 after a wrong value, in 130 after Ctrl-C, in 143 after SIGTERM.

    In all of them what is being written is cleared away; a bug keeps its traceback. Both signals are raised as
    `KeyboardInterrupt`, and noted, as a library may make another error of it.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        if number == signal.SIGTERM:  # `timeout` sends it twice, and the clearing up must not end half-way
            signal.signal(number, signal.SIG_IGN)
        came.append(number)
        raise KeyboardInterrupt

    def interrupt_again(unraisable: Any) -> None:
        """Python drops an error in the callback of a weak reference, and this must not be dropped."""
        if not came:
            sys.__unraisablehook__(unraisable)
        elif unraisable.exc_type is KeyboardInterrupt:
            signal.signal(came[0], interrupt)
            threading.Timer(0.05, os.kill, (os.getpid(), came[0])).start()
        # Any other is of an object that the signal left half-made, such as a progress bar: nothing to tell.

    # Where Ctrl-C is ignored, as after `nohup`, it stays so.
    numbers = [signal.SIGTERM, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else [])]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    hook, sys.unraisablehook = sys.unraisablehook, interrupt_again
    try:
        yield
    except BaseException as error:
        if came:
            sys.exit(128 + came[0])
        if isinstance(error, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        if isinstance(error, ValueError | OSError | SafetensorError):
            sentence = " ".join(str(error).split())  # libraries' errors may have many lines
            print(f"{program}: {sentence}", file=sys.stderr)
            sys.exit(2)
        raise
    finally:
        if not came:  # half-made objects go later than this
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
