"""Who gets which variant: from a hash, so that it is the same everywhere and always, without a store.

The unit's point in [0, 1) is BLAKE2b, of eight bytes and big-endian, of the salt, a zero byte and the unit's text, of
which the first 53 bits are divided by 2**53; variants lie there side by side in the order of their shares. Golden
vectors in the tests hold this for good.
Another salt gives points that have nothing to do with these. So an experiment's own salt says who gets what, and its
layer's who takes part: experiments of one layer with parts that do not overlap never share a unit, and those of
different layers are independent.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.experiment.moments import Floats


def points(units: Iterable[object], salt: str) -> Floats:
    """(units,) of [0, 1). A unit is taken as its text: 17 and "17" are one.

    Errors: `DataError` for a unit that is missing or a float, whose text is not the id's.
    """
    head = blake2b(salt.encode() + b"\0", digest_size=8)
    found = []
    for unit in units:
        if unit is None or isinstance(unit, float):
            raise DataError(f"unit {unit!r}: units must be whole numbers or text, and none may be missing")
        own = head.copy()
        own.update(str(unit).encode())
        found.append(int.from_bytes(own.digest(), "big"))
    # Of 64 bits a float keeps 53: the others would round up to 1.
    return (np.array(found, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) / 2.0**53


def variants_of(units: Iterable[object], shares: Mapping[str, float], salt: str) -> list[str]:
    """The variant of each unit."""
    names = list(shares)
    edges = np.cumsum(list(shares.values()))[:-1]
    return [names[place] for place in np.searchsorted(edges, points(units, salt), side="right")]


def takes_part(units: Iterable[object], layer: str, traffic: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """(units,) whether each has its point of the layer within `traffic`."""
    place = points(units, layer)
    return (place >= traffic[0]) & (place < traffic[1])
