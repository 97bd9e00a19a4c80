"""Seeds of many independent random streams out of one."""

from __future__ import annotations


def stream_seed(seed: int, number: int) -> int:
    """Seed of stream `number` of a run with `seed`, below 2**32: torch's CPU generator ignores all bits above.

    The multiplier (Knuth's, for multiplicative hashing) sets the streams of neighbouring seeds far apart.
    """
    return (seed * 2_654_435_761 + number) % 2**32
