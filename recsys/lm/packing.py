"""How answers share one copy of their prompt in one sequence."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt


def layout(n_prefix: int, lengths: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Positions (n,) and who sees whom (n, n), query by key, of a prompt followed by answers of these lengths."""
    groups = np.concatenate([np.full(n_prefix, -1), np.repeat(np.arange(len(lengths)), lengths)])
    places = np.concatenate([np.arange(n_prefix), *(n_prefix + np.arange(n) for n in lengths)])
    order = np.arange(len(groups))
    earlier = order[:, None] >= order[None, :]
    return places, earlier & ((groups[None, :] == -1) | (groups[:, None] == groups[None, :]))


def chunks(answers: Sequence[Sequence[int]], limit: int) -> Iterator[list[int]]:
    """Indices of the non-empty answers in order, as many at a time as stay within `limit` tokens (at least one)."""
    chunk: list[int] = []
    size = 0
    for i, ids in enumerate(answers):
        if chunk and size + len(ids) > limit:
            yield chunk
            chunk, size = [], 0
        if ids:
            chunk.append(i)
            size += len(ids)
    if chunk:
        yield chunk
