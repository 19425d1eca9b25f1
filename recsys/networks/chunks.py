"""Histories as batches: cut into chunks at offsets drawn anew each epoch; and held out, to say when to stop."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.vocab import Codes, Histories, place_in_group
from recsys.metrics import ndcg
from recsys.networks.training import Batch
from recsys.protocols import Floats

# Chunks whose lengths differ by less are not told apart when they are put side by side.
NEAR = 10


def held_out(histories: Histories, n: int, seed: int) -> npt.NDArray[np.int64]:
    """The places of `n` users, drawn by seed, who have two events left when their last one is held out."""
    able = np.flatnonzero(np.diff(histories.indptr) >= 3)
    return np.sort(np.random.default_rng(seed).choice(able, min(n, len(able)), replace=False))


def hold_out(histories: Histories, n: int, seed: int) -> tuple[Histories, Histories, Codes]:
    """The histories without the last event of `n` users, drawn by seed; and those users' histories and answers.

    Only users who have two events left to learn from are asked.
    """
    chosen = held_out(histories, n, seed)
    last = histories.indptr[chosen + 1] - 1
    learned = histories.without(last)
    return learned, learned.take(chosen), histories.items[last]


def answer_gains(scores: Floats, histories: Histories, answers: Codes) -> npt.NDArray[np.float64]:
    """NDCG@10 of each answer among the items that its history has not met.

    scores : (histories, items); what was met is struck out in place. A tie counts at its expected rank; an answer that
    had been met before counts as if it had not.
    """
    own = scores[np.arange(len(answers)), answers][:, None]
    scores[histories.rows(), histories.items] = -np.inf
    ties = np.maximum((scores == own).sum(axis=1) - 1, 0)
    return ndcg(pl.Series(1 + (scores > own).sum(axis=1) + ties / 2), 10)


class Chunks:
    """One epoch's batches: histories cut into chunks of at most `length` + 1 events, of like length side by side.

    Each is {"items", "targets"}, (batch, time) codes, padded on the right with 0 and -1.
    """

    def __init__(self, histories: Histories, length: int, batch: int, rng: np.random.Generator) -> None:
        self._items = histories.items
        lengths = np.diff(histories.indptr)
        # A history that fits is taken whole; a longer one is cut at a random offset. Chunks share one event: the last
        # of one is asked after, the first of the next is only read.
        offsets = np.where(lengths > length + 1, rng.integers(0, length, len(lengths)), 0)
        counts = np.where(lengths >= 2, -(-(lengths - 1 + offsets) // length), 0)
        users = np.repeat(np.arange(len(lengths)), counts)
        starts = place_in_group(users) * length - offsets[users]
        begin = np.maximum(starts, 0) + histories.indptr[users]
        end = np.minimum(starts + length + 1, lengths[users]) + histories.indptr[users]
        keep = end - begin >= 2
        begin, end = begin[keep], end[keep]
        order = rng.permutation(len(begin))
        order = order[np.argsort(-(-(end - begin)[order] // NEAR), kind="stable")]
        self._begin, self._end = begin[order], end[order]
        self._starts = rng.permutation(np.arange(0, len(begin), batch))
        self._batch = batch

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        import torch

        for start in self._starts:
            begin, end = self._begin[start : start + self._batch], self._end[start : start + self._batch]
            place = begin[:, None] + np.arange((end - begin).max() - 1)
            inside = place < end[:, None] - 1
            place = np.where(inside, place, 0)
            yield {
                "items": torch.from_numpy(np.where(inside, self._items[place], 0).astype(np.int64)),
                "targets": torch.from_numpy(np.where(inside, self._items[place + 1], -1).astype(np.int64)),
            }


def in_parts(batch: Batch, parts: int) -> list[tuple[Batch, float]]:
    """A batch of histories in exactly so many parts, each with its share of the targets.

    batch : as of `Chunks`; "asked" (n, 2), rows and places, and "like" (n,), where they are there, go with their rows.
    Where there are more parts than histories, the first comes again for nothing: with a share of 0.
    """
    import torch

    items, targets = batch["items"], batch["targets"]
    answers = (targets >= 0).sum(dim=1)
    found: list[tuple[Batch, float]] = []
    for start, end in pairwise(len(items) * part // parts for part in range(parts + 1)):
        rows = slice(start, end) if end > start else slice(0, 1)
        part = {"items": items[rows], "targets": targets[rows]}
        if "asked" in batch:
            row = batch["asked"][:, 0]
            own = (row >= rows.start) & (row < rows.stop)
            if own.any():
                part |= {"asked": batch["asked"][own] - torch.tensor([rows.start, 0]), "like": batch["like"][own]}
        found.append((part, float(answers[start:end].sum() / answers.sum())))
    return found
