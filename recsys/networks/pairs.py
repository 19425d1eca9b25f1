"""What stands near what in histories: counts of pairs, and the factors that item vectors start from."""

from itertools import pairwise
from typing import Any

import numpy as np

from recsys.data.vocab import Histories, place_in_group
from recsys.protocols import Floats

# Pairs of events that are counted at once: some 300 MB while they are.
PAIRS_AT_ONCE = 10_000_000
# Pairs of items that are kept, 800 MB; every pair of up to 10,000 items.
MAX_PAIRS = 100_000_000
# How far apart two items still stand near each other, for the factors.
WINDOW = 50
# Items up to which factors are those of a dense matrix.
DENSE = 1000


def count_pairs(
    histories: Histories, n_items: int, window: int, *, at_once: int = PAIRS_AT_ONCE, most: int = MAX_PAIRS
) -> Any:
    """(items, items) CSR: the sum of 1 / distance over all pairs of events at most `window` apart in one history.

    Counted for some source items at a time, about `at_once` pairs of events, so that memory is bounded. Where the
    catalog has more than `most` pairs of items, each source keeps its `most` / items heaviest targets.
    """
    import scipy.sparse as sp

    items = histories.items
    by_item = np.argsort(items, kind="stable")
    # How many later events of the same history lie within the window of each event.
    ahead = np.minimum(histories.lags(), window)
    events = np.searchsorted(items[by_item], np.arange(n_items + 1))
    pairs = np.cumsum(np.bincount(items, weights=ahead, minlength=n_items))
    cuts = np.searchsorted(pairs, np.arange(at_once, ahead.sum(), at_once))
    blocks = []
    for first, last in pairwise(np.unique(np.r_[0, cuts, n_items])):
        source = by_item[events[first] : events[last]]
        block = sp.csr_array((last - first, n_items), dtype=np.float32)
        for distance in range(1, window + 1):
            source = source[ahead[source] >= distance]
            if not len(source):
                break
            weight = np.full(len(source), 1.0 / distance, dtype=np.float32)
            place = (items[source] - first, items[source + distance])
            block = block + sp.coo_array((weight, place), shape=block.shape).tocsr()
        blocks.append(_heaviest(block, max(most // n_items, 1)))
    return sp.vstack(blocks, format="csr") if blocks else sp.csr_array((n_items, n_items), dtype=np.float32)


def _heaviest(block: Any, most: int) -> Any:
    """A CSR block with at most its `most` greatest values in each row; of equals, the lower columns."""
    import scipy.sparse as sp

    sizes = np.diff(block.indptr)
    if sizes.max(initial=0) <= most:
        return block
    rows = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    # Positive floats sort as their bits do.
    order = np.argsort((rows << np.uint64(32)) | ~block.data.view(np.uint32), kind="stable")
    kept = np.sort(order[place_in_group(rows) < most])
    indptr = np.r_[0, np.cumsum(np.minimum(sizes, most))]
    return sp.csr_array((block.data[kept], block.indices[kept], indptr), shape=block.shape)


def cooccurrence(histories: Histories, n_items: int, dim: int) -> Floats:
    """(items, dim) factors of the logarithm of how much oftener than by chance two items stand near each other.

    The positive pointwise mutual information of word embeddings (Levy & Goldberg, NIPS 2014), on items.
    """
    import scipy.sparse as sp
    from scipy.sparse.linalg import svds

    pairs = count_pairs(histories, n_items, WINDOW)
    near = (pairs + pairs.T).tocoo()
    total = np.asarray(near.sum(axis=1)).ravel() + 1
    lift = np.log1p(near.data * total.sum() / (total[near.row] * total[near.col]))
    matrix = sp.csr_array((lift.astype(np.float32), (near.row, near.col)), shape=near.shape)
    found = np.zeros((n_items, dim), dtype=np.float32)
    rank = min(dim, n_items - 1, matrix.nnz)
    if rank > 0:
        if n_items > DENSE:
            left, values, _ = svds(matrix, k=rank, v0=np.ones(n_items, dtype=np.float32))
        else:  # ARPACK is not the same twice where factors weigh alike, as in few data they may
            found_values, vectors = np.linalg.eigh(matrix.toarray())
            largest = np.argsort(np.abs(found_values), kind="stable")[-rank:]
            left, values = vectors[:, largest], np.abs(found_values[largest])
        # The sign of a singular vector is the library's whim: its largest entry is made positive.
        left *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
        found[:, :rank] = left * np.sqrt(np.maximum(values, 0))
    return found
