"""The classes of many rows are numbered as NumPy would, without a second copy of the rows' labels."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import HeadError
from pipeline.streaming import targets
from pipeline.streaming.targets import encode_labels, sample_weights, unique_classes


@given(st.lists(st.text(max_size=3) | st.sampled_from(["cat", "dog"]), max_size=20), st.integers(1, 7))
def test_classes_and_their_numbers_are_those_of_numpy_however_rows_are_cut(names: list[str], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "BLOCK", block)
        given = np.array(names, dtype=str)
        classes, codes = np.unique(given, return_inverse=True)
        np.testing.assert_array_equal(unique_classes(given), classes)
        np.testing.assert_array_equal(encode_labels(given, classes), codes)


@pytest.mark.parametrize(("count", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (70_000, "uint32")])
def test_a_number_of_a_class_is_as_small_as_it_can_be(count: int, dtype: str) -> None:
    classes = np.arange(count)
    codes = encode_labels(classes, classes)
    assert codes.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(codes, classes)


def test_numbering_holds_little_but_the_numbers() -> None:
    rows = np.arange(4_000_000) % 10
    tracemalloc.start()
    try:
        codes = encode_labels(rows, unique_classes(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert codes.nbytes == len(rows)
    assert peak < codes.nbytes + 4_000_000  # a copy of the labels would be 32 MB


def test_labels_of_other_classes_are_named() -> None:
    with pytest.raises(HeadError, match=r"expected the classes of the task, got bee, cow as well\. List every class\."):
        encode_labels(np.array(["ape", "cow", "bee"]), np.array(["ape", "cat"]))


def test_weights_are_scikit_learns_and_none_where_all_are_the_same() -> None:
    given = np.array(["cat", "cat", "cat", "dog"])
    assert sample_weights(None, given) is None
    balanced, told = sample_weights("balanced", given), sample_weights({"dog": 5.0}, given)
    assert balanced is not None
    assert told is not None
    assert balanced.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert told.tolist() == [1, 1, 1, 5]
