"""Programs interrupted at any moment, without waiting for their imports: one process does those, and forks for each.

    python tests/helpers/interrupt.py

For every line `{"argv": [...], "log": FILE, "signal": NUMBER or null, "after": SECONDS}` on its standard input, it
runs the program, sends it the signal and answers `{"code": ..., "seconds": ...}`.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

MODULES = (
    "curation.build",
    "curation.pseudo_labels",
    "training.classifier",
    "training.denoiser",
    "training.evaluator",
)


def run(argv: list[str], log: Path) -> int:
    """The exit code of a Python program, as the interpreter would have it."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the program says what it does then, and from its end on
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 0


def answer(argv: list[str], log: Path, number: int | None, after: float) -> dict[str, float]:
    """Run a program in a process of its own; one that isn't interrupted also tells what else there is to import."""
    modules, started = log.with_suffix(".modules"), time.monotonic()
    gc.freeze()  # a child need not look through what was there before it
    child = os.fork()
    if child == 0:
        code = run(argv, log)
        modules.write_text("\n".join(sys.modules))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if number is not None:
        time.sleep(after)
        os.kill(child, number)  # nobody has waited for it yet, so the number is still its own
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - started
    for module in modules.read_text().split() if number is None else []:
        if module not in sys.modules:
            with suppress(Exception):
                importlib.import_module(module)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": seconds}


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(f"diffusers_multiguidance.{name}")
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(answer(job["argv"], Path(job["log"]), job["signal"], job["after"])), flush=True)
