"""Rendered faces."""

import numpy as np
import pytest

from diffusers_multiguidance.data.faces import Latents, faces, render_face


@pytest.fixture(scope="module")
def dataset():
    return faces(3000, 16, seed=1)


def test_labels_are_as_noisy_as_the_docstring_says(dataset):
    smile, label = np.array(dataset["factor_Smiling"]), np.array(dataset["Smiling"])
    for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1)):
        inside = (smile >= low) & (smile < high)
        expected = np.mean(1 / (1 + np.exp(-(smile[inside] - 0.5) / 0.1)))
        assert label[inside].mean() == pytest.approx(expected, abs=0.06)
    black, blond, hair = (np.array(dataset[name]) for name in ("Black_Hair", "Blond_Hair", "Hair"))
    assert np.array_equal(hair == 0, (black == 1) & (blond == 0))
    assert np.array_equal(hair == 1, (black == 0) & (blond == 1))
    assert np.array_equal(hair == -1, black == blond)


def test_latents_are_independent_and_uniform(dataset):
    latents = np.stack([dataset[f"factor_{name}"] for name in ("Smiling", "Hair", "Pale_Skin")])
    np.testing.assert_allclose(latents.mean(axis=1), 0.5, atol=0.02)
    np.testing.assert_allclose(np.corrcoef(latents), np.eye(3), atol=0.06)


def test_a_face_is_the_same_whatever_is_rendered_beside_it(dataset):
    again = faces(5, 16, seed=1)
    assert np.array_equal(np.array(again[4]["image"]), np.array(dataset[4]["image"]))
    assert again[4]["factor_Hair"] == dataset[4]["factor_Hair"]
    other = faces(5, 16, seed=2)
    assert not np.array_equal(np.array(other[4]["image"]), np.array(dataset[4]["image"]))


def test_rendering_with_several_processes_gives_the_same(dataset):
    again = faces(40, 16, seed=1, num_proc=2)
    assert again["source_index"][:] == list(range(40))
    assert np.array_equal(np.array(again[39]["image"]), np.array(dataset[39]["image"]))


@pytest.mark.parametrize("resolution", [32, 64])
def test_each_latent_changes_its_part_of_the_face_only(resolution):
    def render(**latents):
        chosen = {"smile": 0.5, "hair": 0.5, "skin": 0.5, **latents}
        return render_face(Latents(**chosen), np.random.default_rng(3), resolution, resolution).astype(int)

    def changed(one, other):
        return np.abs(one - other).max(axis=-1) > 20

    mouth = changed(render(smile=0.0), render(smile=1.0))
    rows = np.nonzero(mouth)[0] / resolution
    assert mouth.mean() > 0.01
    assert np.median(rows) > 0.55  # mostly the mouth, below the middle
    assert render(hair=1.0).mean() > render(hair=0.0).mean()
    assert render(skin=1.0).mean() > render(skin=0.0).mean()


@pytest.mark.parametrize(("arguments", "message"), [((0, 32), "`num_images` is 0"), ((3, 8), "`resolution` is 8")])
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        faces(*arguments)
