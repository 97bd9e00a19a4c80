"""Columns of labels and numbers, whatever is in them."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_multiguidance.data.labels import read_labels, with_labels, with_numbers
from diffusers_multiguidance.utils.writable import check_attributes

LABEL = ClassLabel(names=["no", "yes"])


def column(feature, values) -> Dataset:
    return Dataset.from_dict({"row": range(len(values)), "x": values}, Features({"row": Value("int64"), "x": feature}))


@pytest.mark.parametrize(
    ("feature", "values", "names", "numbers"),
    [
        (LABEL, [0, 1, -1, None, 1], ["no", "yes"], [0, 1, -1, -1, 1]),
        (ClassLabel(names=["a", "b", "c"]), [2, 0, 2, None, 0], ["a", "b", "c"], [2, 0, 2, -1, 0]),
        (Value("bool"), [True, False, None, True], ["no", "yes"], [1, 0, -1, 1]),
        (Value("int64"), [0, 1, None, 1, -1], ["0", "1"], [0, 1, -1, 1, -1]),
        (Value("int8"), [-1, 1, 1, None], ["-1", "1"], [0, 1, 1, -1]),
        (
            Value("string"),
            ["big", "small", " ", None, "big", "", " small"],
            *(["big", "small"], [0, 1, -1, -1, 0, -1, 1]),
        ),
        (Value("large_string"), ["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        (Value("float64"), [1.0, None, 0.0, float("nan")], ["0", "1"], [1, -1, 0, -1]),
    ],
)
def test_labels_of_any_kind(feature, values, names, numbers):
    found, classes = read_labels(column(feature, values), "x", "attribute")
    assert (classes, found.tolist()) == (names, numbers)
    said: list[str] = []
    dataset = with_labels(column(feature, values), "x", "attribute", said.append)
    kept = [row for row, number in enumerate(numbers) if number >= 0]
    assert dataset.features["x"].names == names
    assert (dataset["row"][:], dataset["x"][:]) == (kept, [numbers[row] for row in kept])
    without = len(values) - len(kept)
    assert said == ([f"{without} of {len(values)} images have no 'x' and are left out."] if without else [])


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (Value("float32"), [0.0, 0.5, 1.0], r"`--attribute` is 'x'; expected a column of labels, of \['row', 'x'\]"),
        (LABEL, [1, 1, -1], "is 'x', and 2 of 3 images have one, 'yes'; expected labels of at least two classes"),
        (LABEL, [None, None], "is 'x', and 0 of 2 images have one; expected"),
        (Value("string"), ["a", "b", "c"], "is 'x', of which no two images have the same"),
        (Value("int64"), [-1, -1, None], "2 of 3 images have one, '-1'"),
    ],
)
def test_columns_without_labels(feature, values, message):
    with pytest.raises(ValueError, match=message):
        read_labels(column(feature, values), "x", "attribute")


def test_numbers():
    said: list[str] = []
    dataset = with_numbers(column(Value("float64"), [0, None, 1, float("nan"), 0.5]), "x", "attribute", said.append)
    assert dataset["x"][:] == [0, 1, 0.5]
    assert said == ["2 of 5 images have no 'x' and are left out."]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 20, -3], r"with 2 of 3 numbers outside \[0, 1\], such as 20; expected"),
        ([0.5, float("inf")], "1 of 2 numbers outside"),
        ([None, None], "0 of 2 images have a number"),
        ([0.5, 0.5, None], "2 of 3 images have a number, all the same"),
    ],
)
def test_columns_without_numbers(values, message):
    with pytest.raises(ValueError, match=message):
        with_numbers(column(Value("float32"), values), "x", "attribute", print)


KINDS = {
    "int64": st.integers(-2, 4),
    "bool": st.booleans(),
    "string": st.sampled_from(["", " ", "a", "b", "c", "nan"]),
    "float64": st.floats(),
}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from([*KINDS, "class"]))
def test_whatever_is_in_a_column(data, kind):
    """It comes out whole, with at least two classes or two numbers from 0 to 1, or is refused."""
    strategy = st.integers(-2, 4) if kind == "class" else KINDS[kind]
    values = data.draw(st.lists(st.none() | strategy, min_size=1, max_size=12))
    if kind == "class":
        values = [None if value is None or value > 1 else max(value, -1) for value in values]
    dataset = column(LABEL if kind == "class" else Value(kind), values)
    read = with_numbers if kind == "float64" else with_labels
    try:
        result = read(dataset, "x", "attribute", lambda line: None)
    except ValueError as error:
        result, refused = None, str(error)
    if result is None:
        assert refused.startswith("`--attribute` is 'x'")
        return
    found = np.array(result["x"][:])
    assert len(np.unique(found)) >= 2
    assert (found >= 0).all()
    assert (found <= (1 if kind == "float64" else result.features["x"].num_classes - 1)).all()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "image", "source_index", "x" * 101, "a\n", "\0"])
def test_names_that_no_attribute_can_have(name):
    with pytest.raises(ValueError, match="`--attributes` is"):
        check_attributes(["Smiling", name], "attributes")
    check_attributes(["5_o_Clock_Shadow", "Größe", "big smile", "score"], "attributes")
