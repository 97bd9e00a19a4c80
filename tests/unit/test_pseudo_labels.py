"""Values told by neighbours."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from diffusers_multiguidance.curation.pseudo_labels import values_by_neighbours
from diffusers_multiguidance.data.circles import position, render_circle


def test_neighbours_tell_where_a_circle_lies():
    centres = [(x, y) for x in range(2, 30) for y in range(2, 30)]
    images = np.stack([render_circle(x, y, 32) for x, y in centres])[..., None]
    z = position(np.array(centres)[:, 0], 32)
    labels = np.where(z <= 0.2, 0, np.where(z >= 0.8, 1, -1))
    values = values_by_neighbours(images, labels)
    assert values.min() == 0
    assert values.max() == 1
    assert spearmanr(values, z).statistic > 0.99
    assert values[np.abs(z - 0.5) < 0.02] == pytest.approx(0.5, abs=0.05)


def test_images_far_from_both_ends_are_unknown_and_an_end_without_images_is_refused():
    squares = np.zeros((25, 16, 16, 1), np.uint8)
    squares[:, 4:12, 4:12] = np.arange(25)[:, None, None, None] * 10
    far = np.full((22, 16, 16, 1), 255, np.uint8)
    far[:, 0, 0, 0] = np.arange(22)
    labels = np.r_[0, [-1] * 23, 1, [-1] * 22]
    values = values_by_neighbours(np.concatenate([squares, far]), labels)
    assert (np.diff(values[:25]) > 0).all()
    assert np.isnan(values[25:]).all()
    with pytest.raises(ValueError, match="`labels` has the values"):
        values_by_neighbours(squares, np.zeros(25, int))
    with pytest.raises(ValueError, match="`images` has 20 images"):
        values_by_neighbours(squares[:20], np.r_[0, [-1] * 18, 1])
