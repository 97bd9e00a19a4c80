"""Seeds of many independent random streams out of one."""

from __future__ import annotations

import numpy as np


def stream_seed(seed: int, *key: int | str) -> int:
    """Seed of the stream that `key` names in a run with `seed`: below 2**32, as torch's CPU generator ignores more.

    A key is words and numbers, such as ("noise", process, step); the images of `generate.py` have only their number.
    The last one, a number, is counted on from the hash of the others, so that no two streams of one use are the same:
    among 100,000 hashes of 32 bits one would expect a pair.
    """
    *use, number = key
    words = [int.from_bytes(part.encode()) if isinstance(part, str) else part for part in use]
    start = np.random.SeedSequence(seed, spawn_key=words).generate_state(1)[0]
    return (int(start) + int(number)) % 2**32
