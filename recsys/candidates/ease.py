"""EASE: the linear item-to-item model that best rebuilds everybody's items from their other items, in closed form.

Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019: with G the (items, items) counts of users who
met both and P = (G + regularization * I)^-1, the weights are B_ij = -P_ij / P_jj, and 0 where i = j.

Exact up to `max_items` items with events: 4 bytes for each cell of their square, in place (1.6 GB at 20,000), and
items^3 operations. Beyond, the same least squares item by item, over each item's `neighbours` nearest items alone
(SLIM on selected features: Ning & Karypis, ICDM 2011): weights outside them are 0, and the k inside are the best for
that support; where all items are each other's neighbours it is EASE itself. Memory there: SUPPORT^2 counts and
`nearest`'s block beside the answer of items * k weights; time: `nearest`'s, and items * k^3 operations.
Measured on one core, 2 million events: 20,000 items exactly 85 s and 2.2 GB, 50,000 by neighbours 65 s and 0.4 GB.

Weights below SMALLEST of the largest are dropped, a quarter (ml-100k) to five sixths (MovieTweetings) of them: on tune
that moved NDCG@10 by at most 0.0011 either way and kept 97 of the first 100 items.
"""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from recsys.candidates.base import Floats, Variants
from recsys.candidates.cooccurrence import BLOCK_CELLS, ItemToItem, ItemToItemConfig, nearest, user_items
from recsys.data.vocab import Vocab, place_in_group
from recsys.errors import SpecError
from recsys.tables import Catalog, InteractionLog

SMALLEST = 0.005
# 100 MB of counts among the neighbours of the items that are solved together.
SUPPORT = 5_000


class EaseConfig(ItemToItemConfig):
    """regularization: ridge on the weights, in users; max_items: up to how many items with events the closed form is
    exact; neighbours: how many items may speak for one beyond that."""

    kind: Literal["ease"] = "ease"
    regularization: float = Field(default=500.0, gt=0)
    max_items: int = Field(default=20_000, ge=1)
    neighbours: int = Field(default=100, ge=1)

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, from one fit."""
        return self.fit(log, catalog, seed=seed).faded()

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Ease":
        """Errors: `SpecError` where `regularization` is too small for the counts."""
        import scipy.sparse as sp

        vocab = Vocab.of_items(catalog)
        met = user_items(vocab, log)
        known = np.flatnonzero(np.bincount(met.indices, minlength=len(vocab)))
        met = met[:, known]
        if len(known) <= self.max_items:
            weights = closed_form(met, self.regularization)
        else:
            weights = on_neighbours(met, self.regularization, self.neighbours)
        kept = _largest(weights).tocoo()
        cells = (kept.data, (known[kept.row], known[kept.col]))
        return Ease(vocab, self, sp.csr_array(cells, shape=(len(vocab), len(vocab))))


class Ease(ItemToItem):
    """scores = sum over the history of B_ij, weighted by recency; with decay = 0 and no repeats, EASE itself."""

    kind: ClassVar[str] = "ease"
    config_type = EaseConfig


def closed_form(met: Any, regularization: float) -> Floats:
    """(items, items) weights B of the (users, items) array `met` of ones, in which every item occurs."""
    from scipy.linalg import lapack

    n = met.shape[1]
    by_item = met.T.tocsr()
    square = np.empty((n, n), dtype=np.float32)
    for rows in _blocks(n):
        square[rows] = (by_item[rows] @ met).toarray()
    square[np.diag_indices(n)] += np.float32(regularization)
    # LAPACK reads columns, so that the transpose is inverted where it stands, by Cholesky; of a symmetric matrix it
    # fills one triangle.
    factor, failed = lapack.spotrf(square.T, lower=0, overwrite_a=1) if n else (square.T, 0)
    if failed:
        raise SpecError(f"ease: regularization {regularization:g} is too small for these counts; raise it")
    inverse = (lapack.spotri(factor, lower=0, overwrite_c=1)[0] if n else factor).T
    for rows in _blocks(n):
        rest = slice(rows.stop, n)
        inverse[rows, rest] = inverse[rest, rows].T
        corner = np.tril(inverse[rows, rows])
        inverse[rows, rows] = corner + np.tril(corner, -1).T
    inverse /= -np.diag(inverse).copy()
    np.fill_diagonal(inverse, 0)
    return np.asarray(inverse, dtype=np.float32)


def on_neighbours(met: Any, regularization: float, n: int) -> Any:
    """(items, items) sparse weights; column j solves (G_NN + regularization * I) b = G_Nj over j's `n` nearest N."""
    import scipy.sparse as sp

    near, by_item = nearest(met, n, shrink=0.0), met.T.tocsr()
    n_items, width = met.shape[1], int(np.diff(near.indptr).max(initial=1))
    own, size = np.arange(width), max(1, SUPPORT // width)
    columns = []
    for start in range(0, n_items, size):
        block = near[start : start + size].tocoo()
        support, place = np.unique(block.col, return_inverse=True)
        # The last place, where nobody stands, fills up the items that have fewer neighbours: its counts are 0.
        users = sp.vstack([by_item[support], sp.csr_array((1, met.shape[0]), dtype=np.float32)], format="csr")
        chosen = np.full((block.shape[0], width), len(support))
        slot = place_in_group(block.row)
        chosen[block.row, slot] = place
        among = (users @ users.T).toarray()[chosen[:, :, None], chosen[:, None, :]]
        among[:, own, own] += np.float32(regularization)
        towards = (users @ by_item[start : start + size].T).toarray()[chosen, np.arange(len(chosen))[:, None]]
        solved = np.linalg.solve(among, towards[:, :, None])[block.row, slot, 0]
        columns.append(sp.csr_array((solved, (block.row, block.col)), shape=block.shape))
    return sp.vstack(columns, format="csr").T


def _largest(weights: Any) -> Any:
    """What is left when the small weights have gone: sparse, whether `weights` is sparse or dense."""
    import scipy.sparse as sp

    n = weights.shape[0]
    if sp.issparse(weights):
        kept = weights.tocsr(copy=True)
        kept.data[np.abs(kept.data) < SMALLEST * np.abs(kept.data).max(initial=0)] = 0
        kept.eliminate_zeros()
        return kept
    least = SMALLEST * max(weights.max(initial=0), -weights.min(initial=0))
    blocks = [sp.csr_array(np.where(np.abs(weights[rows]) >= least, weights[rows], 0)) for rows in _blocks(n)]
    return sp.vstack([sp.csr_array((0, n), dtype=np.float32), *blocks], format="csr")


def _blocks(n: int) -> list[slice]:
    size = max(1, BLOCK_CELLS // max(n, 1))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
