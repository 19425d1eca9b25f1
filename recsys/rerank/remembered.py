"""What single histories came to is remembered, so that who asks again is not read again.

The endpoint asks for one user at a time, and the same user asks for another page, or in other words, before anything
new has happened. A batch is not remembered: it asks once for everybody.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from recsys.data.vocab import Codes, Histories
from recsys.protocols import Floats

Read = Callable[[Histories], Floats]
# Users whose state is kept, the last that asked: half a kilobyte each.
STATES = 4096


def remembering(read: Read, length: int) -> Read:
    """The same reader of histories. Nobody may write into what it gives.

    read : (histories, dim) of some histories, of which it reads the last `length` items and nothing else
    """

    @lru_cache(STATES)
    def one(items: bytes) -> Floats:
        codes: Codes = np.frombuffer(items, dtype=np.int32)
        n = len(codes)
        found = read(Histories(np.array([0, n]), codes, np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.int64)))
        found.setflags(write=False)
        return found

    def states(histories: Histories) -> Floats:
        if len(histories) != 1:
            return read(histories)
        return one(histories.items[max(len(histories.items) - length, 0) :].astype(np.int32).tobytes())

    return states
