"""What single histories came to is remembered, so that who asks again is not read again.

The endpoint asks for one user at a time, and the same user asks for another page, or in other words, before anything
new has happened. A batch is not remembered: it asks once for everybody.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from recsys.data.vocab import Codes, Histories
from recsys.protocols import Floats

Read = Callable[[Histories], Floats]
# Users whose state is kept, the last that asked: one or two kilobytes each.
STATES = 4096


class Remembering:
    """The same reader of histories. Nobody may write into what it gives; a copy of it has nothing to remember yet."""

    def __init__(self, read: Read, length: int) -> None:
        """read : (histories, dim) of some histories, of which it reads the last `length` items and nothing else; as
        long as this lives, the same of the same."""
        self._read, self._length = read, length
        self._one = lru_cache(STATES)(self._read_one)

    def __call__(self, histories: Histories) -> Floats:
        """(histories, dim)."""
        if len(histories) != 1:
            return self._read(histories)
        return self._one(histories.items[max(len(histories.items) - self._length, 0) :].astype(np.int32).tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return Remembering, (self._read, self._length)

    def _read_one(self, items: bytes) -> Floats:
        codes: Codes = np.frombuffer(items, dtype=np.int32)
        n = len(codes)
        found = self._read(
            Histories(np.array([0, n]), codes, np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.int64))
        )
        found.setflags(write=False)
        return found
