"""What single histories came to is remembered, so that who asks again is not read again.

The endpoint asks for one user at a time, and the same user asks for another page, or in other words, before anything
new has happened: then nothing is read. Where something has happened, a reader that can go on from what it has read is
given the new events only. A batch is not remembered: it asks once for everybody.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from recsys.data.vocab import Codes, Histories
from recsys.protocols import Floats

Read = Callable[[Histories], Floats]
# What is kept of a history to go on from, one array for each block of the network.
Kept = tuple[Floats, ...]
# From what was kept, None for nothing, and the items (n,) that follow: the state (1, dim) after them, and what to keep.
Follow = Callable[[Kept | None, Codes], tuple[Floats, Kept]]
# Users whose state is kept, the last that asked: one or two kilobytes each.
STATES = 4096
# Bytes that are kept to go on from, of the users that asked last: 200 kilobytes each for 100 events, 128 dimensions and
# two blocks.
FOLLOWED = 64_000_000
# New events up to which a reader goes on.
NEW = 8


class Remembering:
    """The same reader of histories. Nobody may write into what it gives; a copy of it has nothing to remember yet."""

    def __init__(self, read: Read, length: int, follow: Follow | None = None) -> None:
        """read : (histories, dim) of some histories, of which it reads the last `length` items and nothing else; as
        long as this lives, the same of the same. follow : the same for one, event by event."""
        self._read, self._length, self._follow = read, length, follow
        self._one = lru_cache(STATES)(self._read_one)
        self._kept, self._bytes, self._lock = OrderedDict[bytes, Kept](), 0, Lock()

    def __call__(self, histories: Histories) -> Floats:
        """(histories, dim)."""
        if len(histories) != 1:
            return self._read(histories)
        items = histories.items[max(len(histories.items) - self._length, 0) :].astype(np.int32).tobytes()
        found = self._one(items)
        with self._lock:
            if items in self._kept:
                self._kept.move_to_end(items)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Remembering, (self._read, self._length, self._follow)

    def _read_one(self, items: bytes) -> Floats:
        codes: Codes = np.frombuffer(items, dtype=np.int32)
        n = len(codes)
        if self._follow is None:
            ones, zeros = np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.int64)
            found = self._read(Histories(np.array([0, n]), codes, ones, zeros))
        else:
            kept, new = self._before(items)
            found, kept = self._follow(kept, codes[n - new :])
            if n < self._length:  # else the next event moves what is read
                with self._lock:
                    self._kept[items] = kept
                    self._bytes += _size(kept)
                    while self._bytes > FOLLOWED:
                        self._bytes -= _size(self._kept.popitem(last=False)[1])
        found.setflags(write=False)
        return found

    def _before(self, items: bytes) -> tuple[Kept | None, int]:
        """What was kept of the same history some events ago, which is kept no longer, and how many are new: all where
        there is nothing."""
        size = np.dtype(np.int32).itemsize
        with self._lock:
            for new in range(1, min(NEW, len(items) // size) + 1):
                if (kept := self._kept.pop(items[: -new * size], None)) is not None:
                    self._bytes -= _size(kept)
                    return kept, new
        return None, len(items) // size


def _size(kept: Kept) -> int:
    return sum(part.nbytes for part in kept)
