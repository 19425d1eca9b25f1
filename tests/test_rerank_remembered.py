"""A history that is asked about again is not read again, and comes to the same."""

import copy

import numpy as np
import pytest

from recsys.data.vocab import Codes, Histories
from recsys.protocols import Floats
from recsys.rerank import remembered
from recsys.rerank.remembered import Kept, Remembering


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


class Follower:
    """Sums up items; what it keeps is the sum so far, of how many."""

    def __init__(self) -> None:
        self.given: list[tuple[bool, list[int]]] = []

    def __call__(self, kept: Kept | None, items: Codes) -> tuple[Floats, Kept]:
        self.given.append((kept is not None, items.tolist()))
        before = np.zeros((1, 2), dtype=np.float32) if kept is None else kept[0]
        found = before + np.array([[items.sum(), len(items)]], dtype=np.float32)
        return found, (found.copy(),)


def test_only_new_events_are_read() -> None:
    reader, follower = Reader(), Follower()
    states = Remembering(reader, 100, follower)
    for items in ([1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5], [9, 2, 3, 4, 5, 6]):
        np.testing.assert_array_equal(states(histories_of(items)), [[sum(items), len(items)]])
    assert follower.given == [(False, [1, 2]), (True, [3]), (True, [4, 5]), (False, [9, 2, 3, 4, 5, 6])]
    assert not reader.asked


def test_the_first_event_follows_on_none() -> None:
    follower = Follower()
    states = Remembering(Reader(), 100, follower)
    states(histories_of([]))
    np.testing.assert_array_equal(states(histories_of([7])), [[7, 1]])
    assert follower.given == [(False, []), (True, [7])]


def test_many_new_events_are_read_with_the_rest() -> None:
    follower = Follower()
    states = Remembering(Reader(), 100, follower)
    states(histories_of([1]))
    states(histories_of(list(range(1, 2 + remembered.NEW))))
    states(histories_of(list(range(1, 3 + 2 * remembered.NEW))))
    assert [known for known, _ in follower.given] == [False, True, False]


def test_where_what_is_read_moves_on_it_is_read_anew() -> None:
    follower = Follower()
    states = Remembering(Reader(), 3, follower)
    for items in ([1, 2], [1, 2, 3], [1, 2, 3, 4]):
        states(histories_of(items))
    assert follower.given == [(False, [1, 2]), (True, [3]), (False, [2, 3, 4])]
    assert not states._kept, "nobody can go on from a full history"


def test_how_to_go_on_is_kept_of_the_last_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "FOLLOWED", 2 * 8)  # two numbers each
    follower = Follower()
    states = Remembering(Reader(), 100, follower)
    for items in ([1], [2], [1], [3], [2, 5], [3], [1, 5], [3, 5]):
        states(histories_of(items))
    fresh = [items for known, items in follower.given if not known]
    assert fresh == [[1], [2], [3], [2, 5], [1, 5]], "1 was asked for after 2, and 3 after 2 and 5"
    assert follower.given[-1] == (True, [5])
    assert len(states._kept) == 2
