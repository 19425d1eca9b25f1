"""The fusion's weights: a listwise softmax over the catalog on held-out events (Cao et al., ListNet, ICML 2007).

Few users give few held-out events, so the weights are held near a prior by a ridge, and what a source is worth is
always said on the same events, learned without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.candidates.base import Floats, Ints, Source, block_rows
from recsys.data.split import Questions
from recsys.errors import SpecError
from recsys.metrics import ndcg

Weights = npt.NDArray[np.float64]

# 240 MB of standardised scores while the weights are learned.
FIT_CELLS = 60_000_000
FIT_ITEMS = 20_000
# What a source counts before anything is learned, and for a query without history: there, learned weights mislead,
# since popularity's may be negative to offset the popularity inside the other sources, which are then silent.
PRIOR = 0.5


def standardised(scores: Floats, mean: Floats | None = None, deviation: Floats | None = None) -> Floats:
    """Each row to mean 0 and deviation 1; a constant row, where a source knows nothing, to 0.

    mean, deviation : (rows,) where `scores` (rows, some items) are but a part of what they are measured over.
    """
    mean = scores.mean(axis=1) if mean is None else mean
    centred = scores - mean[:, None]
    spread = (centred.std(axis=1) if deviation is None else deviation)[:, None]
    return np.where(spread > 1e-6, centred / np.maximum(spread, 1e-6), 0).astype(np.float32)


@dataclass(frozen=True)
class Heldout:
    """What the sources say of events that they had not seen.

    z      : (questions, items, sources) standardised scores
    hidden : (questions, items) items that are never proposed, since the user has met them
    target : (questions,) place of the answer among the items
    asked  : questions that were asked; those whose answer no source could ever propose are not in z
    """

    z: Floats
    hidden: npt.NDArray[np.bool_]
    target: Ints
    asked: int

    @classmethod
    def of(cls, sources: Sequence[Source], questions: Questions, *, exclude_seen: bool, seed: int) -> Self:
        """Score the questions. Beyond 20,000 items, on a sample of items, shared by all, that holds every answer.

        Errors: `SpecError` where a source gives scores that are not finite.
        """
        vocab = sources[0].vocab
        histories = vocab.histories(questions.queries)
        at = questions.queries.frame["at"].to_numpy()
        answers = vocab.encode(questions.truth.frame["item_id"])
        columns = np.arange(len(vocab))
        if len(vocab) > FIT_ITEMS:
            sample = np.random.default_rng(seed).choice(len(vocab), FIT_ITEMS, replace=False)
            columns = np.union1d(sample, answers[answers >= 0])
        place = np.full(len(vocab) + 1, -1)
        place[columns] = np.arange(len(columns))
        hidden = np.zeros((len(answers), len(columns)), dtype=bool)
        if exclude_seen:
            met = place[histories.items]
            hidden[histories.rows()[met >= 0], met[met >= 0]] = True
        target = place[answers]
        usable = np.flatnonzero(target >= 0)
        usable = usable[~hidden[usable, target[usable]]]
        histories, at = histories.take(usable), at[usable]
        z = np.empty((len(usable), len(columns), len(sources)), dtype=np.float32)
        size = block_rows(len(vocab))
        for start in range(0, len(usable), size):
            part = slice(start, start + size)
            for f, source in enumerate(sources):
                scores = standardised(source.scores(histories.slice(part.start, part.stop), at[part]))
                z[part, :, f] = scores[:, columns] if len(columns) < len(vocab) else scores
        if not np.isfinite(z).all():
            raise SpecError("generator.sources: a source gives scores that are not finite")
        return cls(z, hidden[usable], target[usable], len(questions))

    def __len__(self) -> int:
        return len(self.z)

    def learn(self, l2: float, without: int | None = None) -> Weights:
        """(sources,) weights; that of the source `without` is 0. The prior where there is nothing to learn from."""
        from scipy.optimize import minimize

        n = self.z.shape[2]
        prior = np.full(n, PRIOR)
        used = np.arange(n) != without
        prior[~used] = 0.0
        if not len(self):
            return prior
        index = np.arange(len(self))
        wanted = self.z[index, self.target].mean(axis=0)

        def loss(w: Weights) -> tuple[float, Weights]:
            w = np.where(used, w, 0.0)
            s = self._fused(w)
            s -= s.max(axis=1, keepdims=True)
            p = np.exp(s)
            total = p.sum(axis=1, keepdims=True)
            p /= total
            value = float(np.mean(np.log(total[:, 0]) - s[index, self.target])) + l2 * float(((w - prior) ** 2).sum())
            expected = np.einsum("qi,qif->f", p, self.z, optimize=True) / len(self)
            slope = (expected - wanted).astype(np.float64) + 2 * l2 * (w - prior)
            return value, np.where(used, slope, 0.0)

        found = minimize(loss, prior, jac=True, method="L-BFGS-B", options={"maxiter": 60})
        return np.where(used, found.x, 0.0)

    def gains(self, weights: Weights) -> npt.NDArray[np.float64]:
        """NDCG@10 of each question that is in z."""
        fused = self._fused(weights)
        own = fused[np.arange(len(self)), self.target][:, None]
        ranks = 1 + (fused > own).sum(axis=1) + ((fused == own).sum(axis=1) - 1) / 2
        return ndcg(pl.Series(ranks, dtype=pl.Float64), 10)

    def reached(self, weights: Weights) -> float:
        """Mean NDCG@10 over all that was asked."""
        return float(self.gains(weights).sum() / max(self.asked, 1))

    def _fused(self, weights: Weights) -> Floats:
        # BLAS may raise the flag of an invalid operation in lanes that it pads; z was checked to be finite.
        with np.errstate(invalid="ignore"):
            fused: Floats = self.z @ weights.astype(np.float32)
        fused[self.hidden] = -np.inf
        return fused
