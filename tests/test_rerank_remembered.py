"""A history that is asked about again is not read again, and comes to the same."""

import copy

import numpy as np
import pytest

from recsys.data.vocab import Histories
from recsys.protocols import Floats
from recsys.rerank.remembered import Remembering


def histories_of(*rows: list[int]) -> Histories:
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    indptr = np.cumsum([0, *map(len, rows)])
    return Histories(indptr, items, np.ones(len(items), dtype=np.float32), np.arange(len(items)))


class Reader:
    """Reads the last three items."""

    def __init__(self) -> None:
        self.asked: list[list[list[int]]] = []

    def __call__(self, histories: Histories) -> Floats:
        rows = np.split(histories.items, histories.indptr[1:-1])
        self.asked.append([row.tolist() for row in rows])
        return np.array([[row[-3:].sum(), len(row[-3:])] for row in rows], dtype=np.float32)


def test_who_asks_again_is_not_read_again_until_there_is_a_new_event() -> None:
    reader = Reader()
    states = Remembering(reader, 3)
    first = states(histories_of([5, 6]))
    np.testing.assert_array_equal(first, [[11, 2]])
    assert states(histories_of([5, 6])) is first
    np.testing.assert_array_equal(states(histories_of([5, 6, 7])), [[18, 3]])
    np.testing.assert_array_equal(states(histories_of([6, 5])), [[11, 2]])
    assert reader.asked == [[[5, 6]], [[5, 6, 7]], [[6, 5]]]


def test_only_what_is_read_of_a_history_tells_it_from_others() -> None:
    reader = Reader()
    states = Remembering(reader, 3)
    assert states(histories_of([1, 2, 3, 4])) is states(histories_of([9, 9, 2, 3, 4]))
    assert reader.asked == [[[2, 3, 4]]]


def test_somebody_without_a_history_is_remembered_too() -> None:
    reader = Reader()
    states = Remembering(reader, 3)
    assert states(histories_of([])) is states(histories_of([]))
    assert reader.asked == [[[]]]


def test_a_batch_is_read_as_it_is_and_not_remembered() -> None:
    reader = Reader()
    states = Remembering(reader, 3)
    np.testing.assert_array_equal(states(histories_of([1], [2, 2])), [[1, 1], [4, 2]])
    states(histories_of([1]))
    assert reader.asked == [[[1], [2, 2]], [[1]]]


def test_a_copy_has_nothing_to_remember() -> None:
    states = Remembering(Reader(), 3)
    states(histories_of([5]))
    for own in (copy.deepcopy(states), copy.copy(states)):
        reader = own._read
        assert isinstance(reader, Reader)
        asked = len(reader.asked)
        own(histories_of([5]))
        assert len(reader.asked) == asked + 1


def test_nobody_writes_into_what_is_remembered() -> None:
    states = Remembering(Reader(), 3)
    with pytest.raises(ValueError, match="read-only"):
        states(histories_of([1]))[0, 0] = 7
