"""What the sources share whose score is the inner product of a user's vector and an item's: lists through an index."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.candidates.base import (
    Codes,
    Floats,
    Ints,
    Source,
    Spread,
    candidate_frame,
    product,
    product_at,
    top_n,
)
from recsys.candidates.index import VectorIndex
from recsys.data.vocab import Histories, Vocab, place_in_group
from recsys.tables import Queries

# 80 MB of vectors on each side while pairs are scored.
PAIRS = 50_000
# An approximate index looks into a part of the catalog: beyond this share of it, all items are scored instead.
PART = 0.1
# Scores nearer to each other than this may be equal ones, added up in another order.
SAME = 1e-5


class Nearest(Source):
    """scores = the user's vector times the items'.

    Its lists come from a vector index, the scores in them are exact. In a catalog so large that the index is
    approximate (see `index`), a list may miss a near item, and a short list may differ from the head of a long one.
    """

    def __init__(self, vocab: Vocab, exclude_seen: bool, vectors: Floats, index: VectorIndex | None = None) -> None:
        """vectors : (items, dim), of any length; index : over these vectors, built here where none is given."""
        super().__init__(vocab, exclude_seen)
        self.vectors, self.index = vectors, index or VectorIndex.build(vectors)
        self._spread = Spread.of(vectors)

    @abstractmethod
    def _users(self, histories: Histories) -> Floats:
        """(queries, dim); zero where nothing is known, and then nothing is proposed."""

    def users(self, histories: Histories) -> Floats:
        """(queries, dim) vectors of the users, worked out once for a batch; not to be written to."""
        found: Floats = histories.derive(self, self._users)
        return found

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return product(self.users(histories), self.vectors)

    def scores_at(self, histories: Histories, at: Ints, codes: Codes) -> Floats:
        return product_at(self.users(histories), self.vectors, codes)

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        return self._spread.moments(self.users(histories))

    def propose(self, histories: Histories, at: Ints, n: int) -> tuple[Codes, Codes]:
        """Through the index."""
        rows, codes, _ = self._best(histories, n)
        return rows, codes

    def _generate(self, queries: Queries, n: int) -> pl.DataFrame:
        rows, codes, values = self._best(self.vocab.histories(queries), n)
        return candidate_frame(queries, self.vocab, rows, codes, values).with_columns(source=pl.lit(self.name))

    def _best(self, histories: Histories, n: int) -> tuple[Codes, Codes, Floats]:
        """Rows, codes and scores of the `n` best items of each history that says anything, best first."""
        users = self.users(histories)
        if self.index.exact:
            # One product reads the vectors once, as a flat scan does, and gives a query the same bits alone and in a
            # batch; for many users it is faster.
            scores = product(users, self.vectors)
            scores[~users.any(axis=1)] = -np.inf
            rows, codes = top_n(scores, n, seen=histories if self.exclude_seen else None)
            return rows, codes, scores[rows, codes]
        known = np.flatnonzero(users.any(axis=1))
        # Enough neighbours that `n` are left when the seen ones have gone.
        longest = int(np.diff(histories.indptr).max(initial=0))
        codes = self._neighbours(users[known], n + (longest if self.exclude_seen else 0))
        rows, flat = np.repeat(known, codes.shape[1]), codes.ravel()
        wanted = flat >= 0
        if self.exclude_seen:
            pair = rows * len(self.vocab) + flat
            wanted &= ~np.isin(pair, histories.rows().astype(np.int64) * len(self.vocab) + histories.items)
        rows, flat = rows[wanted], flat[wanted]
        # FAISS adds up in another order for a batch than for a single query: the pairs are scored again, one by one.
        values = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), PAIRS):
            part = slice(start, start + PAIRS)
            values[part] = np.einsum("pd,pd->p", users[rows[part]], self.vectors[flat[part]])
        order = np.lexsort((flat, -values, rows))
        rows, flat, values = rows[order], flat[order], values[order]
        keep = place_in_group(rows) < n
        return rows[keep], flat[keep], values[keep]

    def _neighbours(self, users: Floats, n: int) -> npt.NDArray[np.int64]:
        """Codes of about the `n` nearest items; of equals at the end of the list, none is left out by chance."""
        size, wanted = len(self.index), n + 1
        while wanted <= PART * size:
            found, codes = self.index.search(users, wanted)
            complete = (found > found[:, -1:] + SAME).sum(axis=1) >= n
            if (complete | (codes[:, -1] < 0)).all():  # -1: the index finds no more
                return codes
            wanted *= 4
        return np.broadcast_to(np.arange(size), (len(users), size))

    def save(self, path: Path) -> None:
        super().save(path)
        self.index.save(path / "index.faiss")

    @classmethod
    def load(cls, path: Path) -> Self:
        vocab, arrays, options = cls.stored(path)
        index = VectorIndex.load(path / "index.faiss", dim=arrays["vectors"].shape[1])
        return cls.restore(vocab, arrays, options, index)

    @classmethod
    @abstractmethod
    def restore(cls, vocab: Vocab, arrays: Any, options: Any, index: VectorIndex | None = None) -> Self:
        """The inverse of `arrays`, among them "vectors", and `options`."""
