"""Answers in words become orders, whatever they are; sorters need only answers."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.rerank.parse import label, named, parse
from recsys.rerank.sorting import heap_of_pairs, heap_of_sets, in_rounds, sliding_pairs, sliding_windows

LABELS = st.sampled_from(["letters", "numbers"])


@given(st.text(max_size=400), st.integers(0, 30), LABELS)
def test_any_text_gives_a_permutation(text: str, n: int, labels: Any) -> None:
    assert sorted(parse(text, n, labels)) == list(range(n))


@given(st.text("ABCDEabcde[]()123450 >.,\n", max_size=80), st.integers(0, 6), LABELS)
def test_so_does_any_text_that_looks_like_an_answer(text: str, n: int, labels: Any) -> None:
    assert sorted(parse(text, n, labels)) == list(range(n))


@given(st.permutations(range(8)), LABELS, st.sampled_from(["[{}] > ", "{}, ", "({})\n", "{}. ", "{} >"]))
def test_a_written_order_is_read_back(order: list[int], labels: Any, form: str) -> None:
    text = "".join(form.format(label(place, labels)) for place in order)
    assert parse(text, 8, labels) == order


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[C] > [A]", [2, 0, 1, 3]),
        ("B. > [A]", [1, 0, 2, 3]),
        ("[C] The Mask > [A] Jaws", [2, 0, 1, 3]),
        ("C > a > B", [2, 0, 1, 3]),
        ("The best is C, then A.", [2, 0, 1, 3]),
        ("I would say that [B] suits a person who ...", [1, 0, 2, 3]),
        ("b", [1, 0, 2, 3]),
        ("<think>A? or D? [D]</think> [B]", [1, 0, 2, 3]),
        ("<think>[D] > [C] and so on without end", [0, 1, 2, 3]),
        ("[B] > [B] > [Z] > [A]", [1, 0, 2, 3]),
        ("I'm sorry.", [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
    ],
)
def test_letters_as_models_write_them(text: str, expected: list[int]) -> None:
    assert parse(text, 4) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[3] > [1]", [2, 0, 1]), ("3, 1", [2, 0, 1]), ("[2] 12 Angry Men (1957)", [1, 0, 2]), ("1999", [0, 1, 2])],
)
def test_numbers_as_models_write_them(text: str, expected: list[int]) -> None:
    assert parse(text, 3, "numbers") == expected


def test_nothing_named_is_told_apart_from_the_first_named() -> None:
    assert named("nothing of use", 3) == []
    assert named("[A]", 3) == [0]


def perfect(values: list[float], calls: list[int]) -> Any:
    """Answers for a model that knows each item's value."""

    def ask(waiting: list[tuple[int, tuple[int, ...]]]) -> list[Any]:
        calls.append(len(waiting))
        return [sorted(range(len(shown)), key=lambda place: -values[shown[place]]) for _, shown in waiting]

    return ask


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40, unique=True), st.integers(1, 12), st.integers(3, 6))
def test_every_sorter_brings_the_best_to_the_top(values: list[int], top: int, width: int) -> None:
    n, best = len(values), sorted(range(len(values)), key=lambda i: -values[i])[:top]
    sets = {
        "pairs": lambda: sliding_pairs(range(n), top),
        "heap of pairs": lambda: heap_of_pairs(range(n), top),
        "heap of sets": lambda: heap_of_sets(range(n), width, top),
    }
    for name, make in sets.items():
        asked = perfect([float(v) for v in values], [])
        (order,) = in_rounds([make()], lambda w, asked=asked: [answer[0] for answer in asked(w)])  # type: ignore[misc]
        assert order is not None
        assert sorted(order) == list(range(n)), name
        assert order[:top] == best, name
    (order,) = in_rounds([sliding_windows(range(n), 2 * width, width)], perfect([float(v) for v in values], []))
    assert order is not None
    assert sorted(order) == list(range(n))
    assert order[: min(width, top)] == best[: min(width, top)]


def test_setwise_asks_less_than_pairs() -> None:
    values = np.random.default_rng(0).permutation(64).astype(float).tolist()
    asked: dict[str, list[int]] = {"pairs": [], "sets": []}
    in_rounds([heap_of_pairs(range(64), 10)], lambda w: [a[0] for a in perfect(values, asked["pairs"])(w)])
    in_rounds([heap_of_sets(range(64), 6, 10)], lambda w: [a[0] for a in perfect(values, asked["sets"])(w)])
    assert len(asked["sets"]) < len(asked["pairs"]) / 2


def test_sorters_of_many_lists_advance_together_and_one_that_is_given_up_stops_alone() -> None:
    calls: list[int] = []
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 0.0]
    ask = perfect(values, calls)

    def without_the_second(waiting: Any) -> Any:
        return [None if i == 1 else answer[0] for (i, _), answer in zip(waiting, ask(waiting), strict=True)]

    orders = in_rounds([sliding_pairs(range(n), 2) for n in (6, 6, 3, 1)], without_the_second)
    assert orders[0] is not None
    assert orders[0][:2] == [0, 2]
    assert orders[1] is None
    assert orders[2] == [0, 2, 1]
    assert orders[3] == [0]
    assert calls[0] == 3  # the list of one asks nothing
    assert len(calls) == 5 + 4
    assert math.isclose(sum(calls), 9 + 1 + 3)
