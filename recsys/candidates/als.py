"""Implicit-feedback matrix factorisation by alternating least squares (Hu, Koren & Volinsky, ICDM 2008).

Users are folded in from their query's history, so unseen users and fresh events need no refit.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.candidates.base import (
    Codes,
    Config,
    Floats,
    Ints,
    Source,
    Spread,
    Variants,
    candidate_frame,
    decayed,
    product,
    product_at,
)
from recsys.candidates.mips import LongestFirst
from recsys.data.vocab import Histories, Vocab
from recsys.settings import default_threads
from recsys.tables import Catalog, InteractionLog, Queries, query_histories

# Items beyond which a query's best are found without scoring the whole catalog, which then takes milliseconds.
LARGE = 20_000


class AlsConfig(Config):
    """alpha: confidence of an event over no event; decay, length: how a query's history fades at fold-in;
    weighted: multiply an event's confidence by its weight over the log's mean weight."""

    kind: Literal["als"] = "als"
    factors: int = Field(default=64, ge=1)
    regularization: float = Field(default=0.05, ge=0)
    alpha: float = Field(default=5.0, gt=0)
    iterations: int = Field(default=15, ge=1)
    decay: float = Field(default=1.0, ge=0)
    length: int = Field(default=500, ge=1)
    weighted: bool = False
    exclude_seen: bool = True

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, fitted: only this one, since ALS is the slowest source to fit."""
        return [(self, self.fit(log, catalog, seed=seed))]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Als":
        import scipy.sparse as sp
        from threadpoolctl import threadpool_limits

        vocab = Vocab.of_items(catalog)
        histories = vocab.histories(query_histories(log))
        confidence = np.ones(len(histories.items), dtype=np.float32)
        if self.weighted and len(confidence):
            confidence = np.maximum(histories.weights / max(float(histories.weights.mean()), 1e-9), 0)
        events = sp.csr_matrix(
            (confidence, (histories.rows(), histories.items)), shape=(len(histories), len(vocab)), dtype=np.float32
        )
        model = _model(self.factors, self.regularization, self.alpha, iterations=self.iterations, seed=seed)
        # BLAS threads below implicit's own would only fight for the same cores.
        with threadpool_limits(1, "blas"):
            model.fit(events, show_progress=False)
        return Als(
            vocab, self.exclude_seen, model.item_factors, self.regularization, self.alpha, self.decay, self.length
        )


def _model(factors: int, regularization: float, alpha: float, *, iterations: int, seed: int) -> Any:
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    # implicit warns about BLAS threads when it is built; it runs its own threads, with BLAS held at one (see `fit`).
    with threadpool_limits(1, "blas"):
        return AlternatingLeastSquares(
            factors=factors,
            regularization=regularization,
            alpha=alpha,
            iterations=iterations,
            random_state=seed,
            num_threads=default_threads(),
        )


class Als(Source):
    """scores = folded-in user factors times item factors; an item without events or an empty history scores 0."""

    kind: ClassVar[str] = "als"
    floor: ClassVar[float] = 0.0

    def __init__(
        self,
        vocab: Vocab,
        exclude_seen: bool,
        item_factors: Floats,
        regularization: float,
        alpha: float,
        decay: float,
        length: int,
    ) -> None:
        super().__init__(vocab, exclude_seen)
        self.item_factors = np.ascontiguousarray(item_factors, dtype=np.float32)
        self.regularization, self.alpha, self.decay, self.length = regularization, alpha, decay, length
        self._spread = Spread.of(self.item_factors)
        self._longest_first = LongestFirst.of(self.item_factors)
        # An unfitted model around the learned factors: its compiled fold-in needs nothing else.
        self._model = _model(self.item_factors.shape[1], regularization, alpha, iterations=1, seed=0)
        self._model.item_factors = self.item_factors

    def users(self, histories: Histories) -> Floats:
        """(queries, factors): the exact least-squares factors of each history; zero for an empty one."""
        found: Floats = histories.derive(self, self._users)
        return found

    def _users(self, histories: Histories) -> Floats:
        weights = decayed(histories, len(self.vocab), decay=self.decay, length=self.length)
        users = self._model.recalculate_user(np.arange(len(histories)), weights)
        return np.where(np.diff(histories.indptr)[:, None] > 0, users, 0).astype(np.float32)

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return product(self.users(histories), self.item_factors)

    def propose(self, histories: Histories, at: Ints, n: int) -> tuple[Codes, Codes]:
        """Exactly the best, in a large catalog too."""
        if len(self.vocab) <= LARGE:
            return super().propose(histories, at, n)
        return self._longest_first.best(self.users(histories), n, seen=histories if self.exclude_seen else None)

    def _generate(self, queries: Queries, n: int) -> pl.DataFrame:
        if len(self.vocab) <= LARGE:
            return super()._generate(queries, n)
        histories = self.vocab.histories(queries)
        rows, codes = self.propose(histories, queries.frame["at"].to_numpy(), n)
        values = np.einsum("pd,pd->p", self.users(histories)[rows], self.item_factors[codes])
        order = np.lexsort((codes, -values, rows))
        frame = candidate_frame(queries, self.vocab, rows[order], codes[order], values[order])
        return frame.with_columns(source=pl.lit(self.name))

    def scores_at(self, histories: Histories, at: Ints, codes: Codes) -> Floats:
        return product_at(self.users(histories), self.item_factors, codes)

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        return self._spread.moments(self.users(histories))

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"item_factors": self.item_factors}

    def options(self) -> Mapping[str, Any]:
        return {
            "regularization": self.regularization,
            "alpha": self.alpha,
            "decay": self.decay,
            "length": self.length,
        }

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> Self:
        numbers = (options["regularization"], options["alpha"], options["decay"], options["length"])
        return cls(vocab, options["exclude_seen"], arrays["item_factors"], *numbers)
