"""Matrix factorisation that learns to rank pairs: Bayesian personalised ranking (Rendle et al., UAI 2009).

Users are aggregated from their query's history, so unseen users and fresh events need no refit: scale * the weighted
mean of the history's item factors, the scale that by least squares brings such means nearest to the learned users. On
tune this clearly beat the learned users themselves (ml-100k, ml-1m, MovieTweetings; 64 factors), and over most settings
also a ridge fold-in and a matrix learned between the two (ml-100k, MovieTweetings).
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import (
    Codes,
    Config,
    Floats,
    Ints,
    Source,
    Spread,
    Variants,
    decayed,
    product,
    product_at,
)
from recsys.candidates.cooccurrence import user_items
from recsys.data.vocab import Histories, Vocab
from recsys.errors import SpecError
from recsys.tables import Catalog, InteractionLog

# Factors beyond it are no model: log-odds of thousands.
LARGEST = 1e3


class BprConfig(Config):
    """iterations: passes over the log; decay, length: how a query's history fades."""

    kind: Literal["bpr"] = "bpr"
    factors: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    regularization: float = Field(default=0.01, ge=0)
    iterations: int = Field(default=100, ge=1)
    decay: float = Field(default=1.0, ge=0)
    length: int = Field(default=500, ge=1)
    exclude_seen: bool = True

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, from one fit, which is slow."""
        fitted = self.fit(log, catalog, seed=seed)
        tries = [self.model_copy(update={"decay": decay}) for decay in (0.7, 1.0, 1.5)]
        return [(config, Bpr(fitted.vocab, config, fitted.item_factors, fitted.scale)) for config in tries]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Bpr":
        """On one thread: implicit's threads write over each other's factors, and no two fits would be the same.

        Errors: `SpecError` where the learning rate is so high that the factors grow without end.
        """
        import scipy.sparse as sp
        from implicit.cpu.bpr import BayesianPersonalizedRanking
        from implicit.recommender_base import ModelFitError

        vocab = Vocab.of_items(catalog)
        met = user_items(vocab, log)
        if not met.nnz:
            return Bpr(vocab, self, np.zeros((len(vocab), self.factors + 1), dtype=np.float32), 0.0)
        model = BayesianPersonalizedRanking(
            factors=self.factors,
            learning_rate=self.learning_rate,
            regularization=self.regularization,
            iterations=self.iterations,
            num_threads=1,
            random_state=seed,
        )
        # implicit raises at NaN, in its own words, and lets factors pass that grow without end.
        with suppress(ModelFitError):
            model.fit(sp.csr_matrix(met), show_progress=False)
        if not np.abs(model.item_factors).max() < LARGEST:
            raise SpecError(f"bpr: the factors grow without end with learning_rate {self.learning_rate:g}; lower it")
        return Bpr(vocab, self, model.item_factors, _scale(met, model.user_factors, model.item_factors))


def _scale(met: Any, users: Floats, items: Floats) -> float:
    """The least-squares c of users = c * mean of the factors of what they met; 0 where there is nothing to fit.

    users, items : (users, factors + 1) and (items, factors + 1); the last columns are implicit's ones and biases.
    """
    counts = np.maximum(np.diff(met.indptr), 1)[:, None]
    means = ((met @ items)[:, :-1] / counts).astype(np.float64)
    square = np.einsum("uf,uf->", means, means)
    return float(np.einsum("uf,uf->", means, users[:, :-1]) / square) if square > 0 else 0.0


class Bpr(Source):
    """scores = user factors times item factors, plus the item's bias; without events or history, 0.

    item_factors : (items, factors + 1) float32; the last column holds the biases.
    """

    kind: ClassVar[str] = "bpr"
    floor: ClassVar[float] = 0.0

    def __init__(self, vocab: Vocab, config: BprConfig, item_factors: Floats, scale: float) -> None:
        super().__init__(vocab, config.exclude_seen)
        self.config, self.scale = config, scale
        self.item_factors = np.ascontiguousarray(item_factors, dtype=np.float32)
        self._spread = Spread.of(self.item_factors)

    def users(self, histories: Histories) -> Floats:
        """(queries, factors + 1), the last being 1, which counts the item's bias; zero for an empty history."""
        weights = decayed(histories, len(self.vocab), decay=self.config.decay, length=self.config.length)
        totals = np.asarray(weights.sum(axis=1), dtype=np.float32).reshape(-1, 1)
        users = np.asarray(weights @ self.item_factors) * np.float32(self.scale) / np.where(totals > 0, totals, 1)
        users[:, -1] = totals[:, 0] > 0
        return np.asarray(users, dtype=np.float32)

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return product(self.users(histories), self.item_factors)

    def scores_at(self, histories: Histories, at: Ints, codes: Codes) -> Floats:
        return product_at(self.users(histories), self.item_factors, codes)

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        return self._spread.moments(self.users(histories))

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"item_factors": self.item_factors}

    def options(self) -> Mapping[str, Any]:
        return {"config": self.config.model_dump(), "scale": self.scale}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> "Bpr":
        return cls(vocab, BprConfig(**options["config"]), arrays["item_factors"], options["scale"])
