"""Directional item-to-item transitions: what tends to come soon after what.

For items i before j in one user's history, T[i, j] sums 1 / distance over distances up to `window`. A query scores
j by sum over its last items i of (1 + lag)^-decay * T[i, j] / (pop_i^source_damping * pop_j^target_damping).
A plain first-order Markov chain (Rendle et al., FPMC, WWW 2010) widened to a window; on dense logs it is stronger
than much heavier order-blind models.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Config, Floats, Ints, Source, Variants, decayed
from recsys.data.vocab import Histories, Vocab
from recsys.tables import Catalog, InteractionLog, query_histories

SMALLEST = 1e-3


class TransitionsConfig(Config):
    """window: how many events apart two items may be; decay, length: how a query's history fades; damping: powers
    by which popular sources and targets are held down."""

    kind: Literal["transitions"] = "transitions"
    window: int = Field(default=50, ge=1)
    decay: float = Field(default=1.0, ge=0)
    length: int = Field(default=100, ge=1)
    source_damping: float = Field(default=0.5, ge=0, le=1)
    target_damping: float = Field(default=0.3, ge=0, le=1)
    exclude_seen: bool = True

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, fitted from one count of pairs."""
        counted = self.fit(log, catalog, seed=seed)
        tries = [
            self.model_copy(update={"decay": decay, "target_damping": damping})
            for decay in (0.7, 1.0)
            for damping in (0.0, 0.3, 0.5)
        ]
        return [(config, Transitions(counted.vocab, config, counted.pairs, counted.popularity)) for config in tries]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Transitions":
        vocab = Vocab.of_items(catalog)
        histories = vocab.histories(query_histories(log))
        popularity = np.bincount(histories.items, minlength=len(vocab)).astype(np.float32)
        return Transitions(vocab, self, _count_pairs(histories, len(vocab), self.window), popularity)


def _count_pairs(histories: Histories, n_items: int, window: int) -> Any:
    import scipy.sparse as sp

    rows, items = histories.rows(), histories.items
    total = sp.csr_array((n_items, n_items), dtype=np.float32)
    for distance in range(1, window + 1):
        same_user = rows[distance:] == rows[:-distance]
        if not same_user.any():
            break
        first, second = items[:-distance][same_user], items[distance:][same_user]
        weight = np.full(len(first), 1.0 / distance, dtype=np.float32)
        total = total + sp.coo_array((weight, (first, second)), shape=(n_items, n_items)).tocsr()
    return total


class Transitions(Source):
    """scores = log(0.001 + s / max s) for the sum s of damped transitions from the query's last items."""

    kind: ClassVar[str] = "transitions"
    floor: ClassVar[float] = float(np.log(np.float32(SMALLEST)))

    def __init__(self, vocab: Vocab, config: TransitionsConfig, pairs: Any, popularity: Floats) -> None:
        import scipy.sparse as sp

        super().__init__(vocab, config.exclude_seen)
        self.config, self.pairs, self.popularity = config, pairs, popularity
        self._matrix = (
            (
                sp.diags_array((popularity + 1) ** -config.source_damping)
                @ pairs
                @ sp.diags_array((popularity + 5) ** -config.target_damping)
            )
            .tocsr()
            .astype(np.float32)
        )

    def scores(self, histories: Histories, at: Ints) -> Floats:
        weights = decayed(histories, len(self.vocab), decay=self.config.decay, length=self.config.length)
        sums = (weights @ self._matrix).toarray()
        best = sums.max(axis=1, keepdims=True, initial=0.0)
        scores: Floats = np.log(np.float32(SMALLEST) + sums / np.where(best > 0, best, 1)).astype(np.float32)
        return scores

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {
            "data": self.pairs.data,
            "indices": self.pairs.indices,
            "indptr": self.pairs.indptr,
            "popularity": self.popularity,
        }

    def options(self) -> Mapping[str, Any]:
        return {"config": self.config.model_dump()}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> "Transitions":
        import scipy.sparse as sp

        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        pairs = sp.csr_array(parts, shape=(len(vocab), len(vocab)))
        return cls(vocab, TransitionsConfig(**options["config"]), pairs, arrays["popularity"])
