"""What item-to-item sources share: who met what, an item's nearest items by cosine, and scoring by a sparse matrix."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Config, Floats, Ints, Source, decayed, top_n
from recsys.data.vocab import Histories, Vocab
from recsys.tables import InteractionLog, query_histories

# 16 MB of float32 counts at a time, whatever the catalog's size.
BLOCK_CELLS = 4_000_000
# A matrix that is kept as a plain array too, 100 MB, up to 5,000 items.
DENSE_CELLS = 25_000_000


class ItemToItemConfig(Config):
    """decay, length: how a query's history fades; with decay = 0 all its events count alike."""

    decay: float = Field(default=1.0, ge=0)
    length: int = Field(default=500, ge=1)
    exclude_seen: bool = True


class ItemToItem(Source):
    """scores = history weights (see `decayed`) @ matrix; an item without events or an empty history scores 0.

    matrix : (items, items) CSR; row i holds what item i of a history says for every other item.
    """

    floor: ClassVar[float] = 0.0
    config_type: ClassVar[type[ItemToItemConfig]]

    def __init__(self, vocab: Vocab, config: ItemToItemConfig, matrix: Any) -> None:
        super().__init__(vocab, config.exclude_seen)
        self.config, self.matrix = config, matrix
        # In small catalogs plain rows add up several times faster than sparse ones.
        self._table = matrix.toarray() if len(vocab) ** 2 <= DENSE_CELLS else matrix

    def faded(self) -> list[tuple[ItemToItemConfig, Self]]:
        """The same matrix under histories that fade slowly, as usual and fast: worth trying, and no fit is needed."""
        tries = []
        for decay in (0.7, 1.0, 1.5):
            other = copy.copy(self)
            other.config = self.config.model_copy(update={"decay": decay})
            tries.append((other.config, other))
        return tries

    def scores(self, histories: Histories, at: Ints) -> Floats:
        weights = decayed(histories, len(self.vocab), decay=self.config.decay, length=self.config.length)
        sums = weights @ self._table
        return np.asarray(sums if isinstance(sums, np.ndarray) else sums.toarray(), dtype=np.float32)

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"data": self.matrix.data, "indices": self.matrix.indices, "indptr": self.matrix.indptr}

    def options(self) -> Mapping[str, Any]:
        return {"config": self.config.model_dump()}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> Self:
        import scipy.sparse as sp

        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        matrix = sp.csr_array(parts, shape=(len(vocab), len(vocab)))
        return cls(vocab, cls.config_type(**options["config"]), matrix)


def user_items(vocab: Vocab, log: InteractionLog) -> Any:
    """(users, items) CSR array of ones: who met what. Meeting an item again adds nothing: one user, one voice."""
    import scipy.sparse as sp

    histories = vocab.histories(query_histories(log))
    ones = np.ones(len(histories.items), dtype=np.float32)
    met = sp.csr_array((ones, (histories.rows(), histories.items)), shape=(len(histories), len(vocab)))
    met.sum_duplicates()
    met.data[:] = 1
    return met


def nearest(met: Any, n: int, *, shrink: float) -> Any:
    """(items, items) CSR array: row j holds the `n` items nearest to j among those met by the same users.

    nearness of i and j = c_ij / (sqrt(c_i * c_j) + shrink), c counting users: the cosine of their columns of `met`,
    less for pairs that few users met. Of equals the lower code is nearer. Memory: BLOCK_CELLS counts at a time beside
    the answer; time: every count of the (items, items) square is looked at once.
    """
    import scipy.sparse as sp

    n_items = met.shape[1]
    by_item = met.T.tocsr()
    norms = np.sqrt(np.diff(by_item.indptr)).astype(np.float32)
    size = max(1, BLOCK_CELLS // max(n_items, 1))
    blocks = [sp.csr_array((0, n_items), dtype=np.float32)]
    for start in range(0, n_items, size):
        counts = (by_item[start : start + size] @ met).toarray()
        own = np.arange(len(counts))
        counts[own, start + own] = 0
        near = np.full_like(counts, -np.inf)
        np.divide(counts, np.outer(norms[start : start + size], norms) + np.float32(shrink), out=near, where=counts > 0)
        rows, columns = top_n(near, n, seen=None)
        blocks.append(sp.csr_array((near[rows, columns], (rows, columns)), shape=counts.shape))
    return sp.vstack(blocks, format="csr")
