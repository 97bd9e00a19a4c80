"""Random streams: which image comes when, and what noise it gets."""

import torch

from diffusers_multiguidance.training.trainer import RunSampler
from diffusers_multiguidance.utils.seeds import stream_seed


def test_every_use_has_a_stream_of_its_own():
    """torch's CPU generator takes 32 bits of a seed; the rest would be lost without a word."""
    keys = [(number,) for number in (0, 1, 1000)]
    keys += [(use, number) for use in ("order", "weights") for number in (0, 1, 1000)]
    keys += [("noise", process, step) for process in (0, 1) for step in (0, 1, 1000)]
    seeds = [stream_seed(seed, *key) for seed in (0, 1, 2, 2**31, 2**32 - 1) for key in keys]
    assert all(0 <= seed < 2**32 for seed in seeds)
    drawn = {tuple(torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in seeds}
    assert len(drawn) == len(seeds)


def test_no_two_steps_have_the_same_noise():
    seeds = {stream_seed(3, "noise", 0, step) for step in range(20_000)}
    assert len(seeds) == 20_000


def test_a_stream_stays_what_it_was():
    assert stream_seed(0, 0) == 2968811710
    assert stream_seed(7, "noise", 1, 5) == stream_seed(7, "noise", 1, 4) + 1


def test_sampler_goes_on_where_it_stopped_and_visits_every_image_once_an_epoch():
    whole = list(RunSampler(10, seed=1, start=0, stop=30))
    assert [sorted(whole[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10] != whole[10:20]
    assert list(RunSampler(10, seed=1, start=17, stop=30)) == whole[17:]
