"""Sorting by a model that compares a few items at a time.

A sorter is a generator: it yields the items that it wants compared (indices, in the order to be shown), is sent the
answer, and returns the order. So the sorters of many users advance together (`in_rounds`), and a model behind an
address is asked for all of them at once.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

R = TypeVar("R")
Shown = tuple[int, ...]
Sorter = Generator[Shown, R, list[int]]


def in_rounds(
    sorters: Sequence[Sorter[R]], ask: Callable[[list[tuple[int, Shown]]], Sequence[R | None]]
) -> list[list[int] | None]:
    """Run sorters to their ends, with one call of `ask` per round for all that are under way.

    ask : gets (which sorter, what it shows) and gives one answer each; None gives a sorter up

    Returns each sorter's order; None of those given up.
    """
    orders: list[list[int] | None] = [None] * len(sorters)
    answers: dict[int, R] = {}
    waiting: list[tuple[int, Shown]] = []
    running = list(range(len(sorters)))
    while running:
        for i in running:
            try:
                waiting.append((i, sorters[i].send(answers[i]) if i in answers else next(sorters[i])))
            except StopIteration as done:
                orders[i] = done.value
        if not waiting:
            break
        replies = ask(waiting)
        answers = {i: reply for (i, _), reply in zip(waiting, replies, strict=True) if reply is not None}
        for i, _ in waiting:
            if i not in answers:
                sorters[i].close()
        running, waiting = list(answers), []
    return orders


def sliding_windows(order: Sequence[int], width: int, stride: int) -> Sorter[Sequence[int]]:
    """Windows from the tail to the head, each reordered in place, so that the best items rise all the way (Sun et
    al., "Is ChatGPT good at search?", EMNLP 2023). The answer is a permutation of the places shown."""
    current = list(order)
    start = max(len(current) - width, 0)
    while len(current) > 1:
        shown = tuple(current[start : start + width])
        answer = yield shown
        current[start : start + width] = [shown[place] for place in answer]
        if start == 0:
            break
        start = max(start - stride, 0)
    return current


def sliding_pairs(order: Sequence[int], passes: int) -> Sorter[int]:
    """Bubble passes from the tail; each brings the best of the rest to its place (Qin et al., PRP-Sliding-K, NAACL
    2024). The answer is the place, 0 or 1, of the better one."""
    current = list(order)
    for first in range(min(passes, len(current) - 1)):
        for at in range(len(current) - 1, first, -1):
            better = yield (current[at - 1], current[at])
            if better == 1:
                current[at - 1], current[at] = current[at], current[at - 1]
    return current


def heap_of_sets(order: Sequence[int], width: int, top: int) -> Sorter[int]:
    """The best `top` by a heap whose node and children, `width` in all, are compared at once (Zhuang et al., setwise
    heap sort, SIGIR 2024). The answer is the place of the best. The rest stays as it was."""
    return (yield from _heap_sort(order, width - 1, top, lambda shown: _best_of_set(shown)))


def heap_of_pairs(order: Sequence[int], top: int) -> Sorter[int]:
    """The best `top` by a binary heap and pairs (Qin et al., PRP-Sorting). The answer is as of `sliding_pairs`."""
    return (yield from _heap_sort(order, 2, top, _best_by_pairs))


def _best_of_set(shown: Shown) -> Generator[Shown, int, int]:
    return (yield shown)


def _best_by_pairs(shown: Shown) -> Generator[Shown, int, int]:
    best = 0
    for at in range(1, len(shown)):
        if (yield (shown[best], shown[at])) == 1:
            best = at
    return best


def _heap_sort(
    order: Sequence[int], children: int, top: int, best: Callable[[Shown], Generator[Shown, int, int]]
) -> Sorter[int]:
    heap = list(order)

    def sink(node: int) -> Generator[Shown, int, None]:
        while True:
            first = children * node + 1
            family = [node, *range(first, min(first + children, len(heap)))]
            if len(family) == 1:
                return
            won = family[(yield from best(tuple(heap[at] for at in family)))]
            if won == node:
                return
            heap[node], heap[won] = heap[won], heap[node]
            node = won

    for node in range((len(heap) - 2) // children, -1, -1):
        yield from sink(node)
    taken: list[int] = []
    while heap and len(taken) < top:
        taken.append(heap[0])
        last = heap.pop()
        if heap:
            heap[0] = last
            if len(taken) < top:
                yield from sink(0)
    return [*taken, *(item for item in order if item not in set(taken))]
