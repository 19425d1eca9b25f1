"""Directional item-to-item transitions: what tends to come soon after what.

For items i before j in one user's history, T[i, j] sums 1 / distance over distances up to `window`. A query scores
j by sum over its last items i of (1 + lag)^-decay * T[i, j] / (pop_i^source_damping * pop_j^target_damping).
A plain first-order Markov chain (Rendle et al., FPMC, WWW 2010) widened to a window; on dense logs it is stronger
than much heavier order-blind models.
"""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Codes, Config, Floats, Ints, Source, Variants, decayed, top_n
from recsys.data.vocab import Histories, Vocab
from recsys.networks.pairs import count_pairs
from recsys.tables import Catalog, InteractionLog, query_histories

SMALLEST = 1e-3
# Pairs of items that are kept as a plain array, 100 MB, up to 5,000 items.
DENSE_CELLS = 25_000_000


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
        return [(config, counted.with_config(config)) for config in tries]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Transitions":
        vocab = Vocab.of_items(catalog)
        histories = vocab.histories(query_histories(log))
        popularity = np.bincount(histories.items, minlength=len(vocab)).astype(np.float32)
        return Transitions(vocab, self, count_pairs(histories, len(vocab), self.window), popularity)


def _logs(shares: Floats) -> Floats:
    return np.asarray(np.log(np.float32(SMALLEST) + shares), dtype=np.float32)


class Transitions(Source):
    """scores = log(0.001 + s / max s) for the sum s of damped transitions from the query's last items."""

    kind: ClassVar[str] = "transitions"
    floor: ClassVar[float] = float(np.log(np.float32(SMALLEST)))

    def __init__(self, vocab: Vocab, config: TransitionsConfig, pairs: Any, popularity: Floats) -> None:
        super().__init__(vocab, config.exclude_seen)
        self.pairs, self.popularity = pairs, popularity
        # In small catalogs the pairs are dense enough that plain rows add up faster than sparse ones.
        self._table = pairs.toarray() if len(vocab) ** 2 <= DENSE_CELLS else pairs
        self._configure(config)

    def _configure(self, config: TransitionsConfig) -> None:
        self.config = config
        self._source = (self.popularity + 1) ** np.float32(-config.source_damping)
        self._target = (self.popularity + 5) ** np.float32(-config.target_damping)

    def with_config(self, config: TransitionsConfig) -> "Transitions":
        """The same counts of pairs, under another damping and decay."""
        other = copy.copy(self)
        other._configure(config)
        return other

    def _shares(self, histories: Histories) -> Any:
        """(queries, items) s / max s, which `_logs` makes scores of: CSR, or an array in small catalogs."""
        return histories.derive(self, self._read)

    def _read(self, histories: Histories) -> Any:
        weights = decayed(histories, len(self.vocab), decay=self.config.decay, length=self.config.length)
        weights.data *= self._source[weights.indices]
        sums = weights @ self._table
        if isinstance(sums, np.ndarray):
            sums *= self._target
            best = sums.max(axis=1, keepdims=True, initial=0.0)
            return sums / np.where(best > 0, best, 1)
        sums.data *= self._target[sums.indices]
        sizes = np.diff(sums.indptr)
        best = np.maximum.reduceat(sums.data, sums.indptr[:-1][sizes > 0]) if sums.nnz else sums.data
        sums.data /= np.repeat(best, sizes[sizes > 0])
        return sums

    def scores(self, histories: Histories, at: Ints) -> Floats:
        shares = self._shares(histories)
        return _logs(shares if isinstance(shares, np.ndarray) else shares.toarray())

    def propose(self, histories: Histories, at: Ints, n: int) -> tuple[Codes, Codes]:
        """From the sums that are not zero, where they are sparse."""
        if isinstance(self._table, np.ndarray):
            return super().propose(histories, at, n)
        shares = self._shares(histories)
        sizes = np.diff(shares.indptr)
        filled = np.arange(sizes.max(initial=0)) < sizes[:, None]
        scores, codes = np.full(filled.shape, -np.inf, dtype=np.float32), np.zeros(filled.shape, dtype=np.intp)
        scores[filled], codes[filled] = _logs(shares.data), shares.indices
        if self.exclude_seen:
            hidden = np.zeros(shares.shape, dtype=np.bool_)
            hidden[histories.rows(), histories.items] = True
            scores[np.take_along_axis(hidden, codes, axis=1)] = -np.inf
        return top_n(scores, n, codes=codes, above=self.floor)

    def scores_at(self, histories: Histories, at: Ints, codes: Codes) -> Floats:
        shares = self._shares(histories)
        dense = shares if isinstance(shares, np.ndarray) else shares.toarray()
        return _logs(dense[:, codes] if codes.ndim == 1 else np.take_along_axis(dense, codes, axis=1))

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        """In closed form where the sums are sparse: all the other items lie at the floor."""
        if isinstance(self._table, np.ndarray):
            return super().moments(histories, at)
        shares = self._shares(histories)
        above = _logs(shares.data).astype(np.float64) - self.floor
        rows = np.repeat(np.arange(len(histories)), np.diff(shares.indptr))
        mean = np.bincount(rows, above, minlength=len(histories)) / len(self.vocab)
        square = np.bincount(rows, above**2, minlength=len(histories)) / len(self.vocab)
        return (mean + self.floor).astype(np.float32), np.sqrt(np.maximum(square - mean**2, 0)).astype(np.float32)

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
