"""Ids to dense codes and back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.tables import Catalog, Queries

Codes = npt.NDArray[np.int32]


def place_in_group(sorted_groups: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """0, 1, 2, ... within each run of equal values."""
    if not len(sorted_groups):
        return np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]])
    sizes = np.diff(np.r_[starts, len(sorted_groups)])
    return np.arange(len(sorted_groups)) - np.repeat(starts, sizes)


def history_lengths(queries: Queries) -> npt.NDArray[np.int64]:
    """(queries,) events of each history."""
    histories = queries.frame["history"]
    if len(histories) == 1:  # as the endpoint asks: a query of polars would cost more than the answer
        return np.array([len(histories[0])], dtype=np.int64)
    return histories.list.len().to_numpy().astype(np.int64)


def _flat(lists: pl.Series) -> pl.Series:
    """The elements of all lists, one after the other."""
    return lists[0] if len(lists) == 1 else lists.list.explode(empty_as_null=False)


@dataclass(frozen=True)
class Histories:
    """The histories of a batch of queries as codes, in CSR form: query q owns items[indptr[q]:indptr[q + 1]].

    Oldest first. Items outside the vocabulary are left out. `segments` holds the queries' own, one each, as they are
    written (String, or null), and is None where the queries have none.
    """

    indptr: npt.NDArray[np.int64]
    items: Codes
    weights: npt.NDArray[np.float32]
    times: npt.NDArray[np.int64]
    segments: pl.Series | None = None
    _derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def derive(self, reader: object, read: Callable[["Histories"], Any]) -> Any:
        """What `read` makes of these histories for `reader`: worked out once, and kept as long as they are."""
        if reader not in self._derived:
            self._derived[reader] = read(self)
        return self._derived[reader]

    def rows(self) -> Codes:
        """The query of each event."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.indptr))

    def lags(self) -> Codes:
        """How many events ago each event was: 0 for the last one."""
        ends = np.repeat(self.indptr[1:], np.diff(self.indptr))
        return (ends - 1 - np.arange(len(self.items))).astype(np.int32)

    def slice(self, start: int, stop: int) -> "Histories":
        """The queries from `start` up to, not including, `stop`."""
        stop = min(stop, len(self))
        lo, hi = self.indptr[start], self.indptr[stop]
        own = None if self.segments is None else self.segments[start:stop]
        indptr = self.indptr[start : stop + 1] - lo
        return Histories(indptr, self.items[lo:hi], self.weights[lo:hi], self.times[lo:hi], own)

    def take(self, queries: npt.NDArray[np.integer]) -> "Histories":
        """Some of the queries, in the order given."""
        sizes = np.diff(self.indptr)[queries]
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        place = np.arange(indptr[-1]) + np.repeat(self.indptr[queries] - indptr[:-1], sizes)
        own = None if self.segments is None else self.segments.gather(queries)
        return Histories(indptr, self.items[place], self.weights[place], self.times[place], own)

    def without(self, events: npt.NDArray[np.integer]) -> "Histories":
        """All queries, without the events at these places."""
        keep = np.ones(len(self.items), dtype=bool)
        keep[events] = False
        indptr = np.concatenate([[0], np.cumsum(keep)])[self.indptr]
        return Histories(indptr, self.items[keep], self.weights[keep], self.times[keep], self.segments)


@dataclass(frozen=True)
class Vocab:
    """Distinct ids in ascending order; an id's code is its place."""

    ids: pl.Series

    @classmethod
    def of_items(cls, catalog: Catalog) -> "Vocab":
        """The items of a catalog."""
        return cls(catalog.frame["item_id"].unique().sort())

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, ids: pl.Series) -> Codes:
        """The codes of `ids`; -1 for unknown ones and nulls."""
        if ids.dtype != self.ids.dtype or not len(ids):
            return np.full(len(ids), -1, dtype=np.int32)
        if not len(self.ids):
            return np.full(len(ids), -1, dtype=np.int32)
        last = len(self.ids) - 1
        if ids.dtype == pl.Int64 and not ids.null_count():
            # Without the set-up of a query, which costs more than looking up a request's candidates.
            known, wanted = self.ids.to_numpy(), ids.to_numpy()
            codes = np.minimum(np.searchsorted(known, wanted), last)
            return np.where(known[codes] == wanted, codes, -1).astype(np.int32)
        codes = np.minimum(self.ids.search_sorted(ids).to_numpy().astype(np.int64), last)
        same = (self.ids.gather(codes) == ids).fill_null(False).to_numpy()
        return np.where(same, codes, -1).astype(np.int32)

    def decode(self, codes: npt.NDArray[np.integer]) -> pl.Series:
        """The ids of `codes`, which must all be known (>= 0)."""
        return self.ids.gather(codes)

    def histories(self, queries: Queries) -> Histories:
        """Encode every history, leaving out items that the vocabulary does not hold."""
        frame = queries.frame
        lengths = history_lengths(queries)
        rows = np.repeat(np.arange(len(frame)), lengths)
        codes = self.encode(_flat(frame["history"]))
        known = codes >= 0
        counts = np.bincount(rows[known], minlength=len(frame))
        return Histories(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            codes[known],
            _flat(frame["weights"]).to_numpy()[known].astype(np.float32),
            _flat(frame["times"]).to_numpy()[known],
            frame["segment"] if "segment" in frame.columns else None,
        )
