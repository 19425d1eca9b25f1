"""One score from several features, s = sum_f w_f * x_f, learned on lists whose answer is known.

The loss is the listwise softmax (Cao et al., ListNet, ICML 2007) plus a ridge that pulls towards a prior: the order
that the lists came in, that is, weight on the feature `base` and none elsewhere. The ridge is chosen by
cross-validation, and the prior itself is kept unless the best ridge beats it on held-out lists by more than
`certainty` standard errors: with a few hundred lists, anything less is noise and would make the order worse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys import metrics

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CUTOFF = 10
FOLDS = 5
FLAT, SHARP = 0.1, 20.0  # bounds of the prior's weight


@dataclass(frozen=True)
class Lists:
    """Candidate lists that hold their answer.

    values  : (rows, features), one list after the other, standardised within each list
    sizes   : (lists,), rows of each list
    answers : (lists,), the row of the answer within its list
    limits  : (rows,), log probability that a row is what was asked for at all; 0 where nothing is said of that
    """

    names: tuple[str, ...]
    values: Array
    sizes: Ints
    answers: Ints
    limits: Array

    def __len__(self) -> int:
        return len(self.sizes)

    def only(self, names: Sequence[str]) -> "Lists":
        """The same lists with these features, and without limits."""
        columns = [self.names.index(name) for name in names]
        return Lists(tuple(names), self.values[:, columns], self.sizes, self.answers, np.zeros(len(self.values)))

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Lists":
        """Some of the lists."""
        rows = np.repeat(chosen, self.sizes)
        return Lists(self.names, self.values[rows], self.sizes[chosen], self.answers[chosen], self.limits[rows])

    @property
    def starts(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)


@dataclass(frozen=True)
class FusionReport:
    """What the fit found; NDCG@10 is cross-validated and averaged over all queries asked, answer in the list or not.

    weights     : in units of the prior's weight on the base feature
    l2          : the chosen ridge; None where the prior was kept
    queries     : asked; `with_answer` of them had it in their list; `lists` of these were used
    without_lm  : NDCG@10 of the same fit without the LM's features: what the LM adds is `reranked` less this
    gain, ci95  : reranked less candidates, with a normal 95% interval over queries
    """

    weights: Mapping[str, float]
    l2: float | None
    queries: int
    with_answer: int
    lists: int
    candidates: float
    reranked: float
    without_lm: float
    gain: float
    ci95: tuple[float, float]
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "ci95": list(self.ci95)}


@dataclass(frozen=True)
class LinearFusion:
    """Fitted weights by feature name. A feature of weight 0 need not be computed.

    sharpness : natural-log odds in one unit of score, by which log probabilities are brought to the same scale
    """

    weights: Mapping[str, float]
    sharpness: float = 1.0

    def uses(self, name: str) -> bool:
        """Whether the feature counts."""
        return self.weights.get(name, 0.0) != 0.0

    def scores(self, features: Mapping[str, Array], limits: Array | None = None) -> Array:
        """The fused score of each row; every feature that counts must be there. `limits` as in `Lists`."""
        terms = np.stack([w * features[name] for name, w in self.weights.items() if w != 0.0])
        fused = np.asarray(terms.sum(axis=0), dtype=np.float64)
        return fused if limits is None else fused + limits / self.sharpness


def standardise(values: Array, sizes: Ints | None = None) -> Array:
    """Each list's values to mean 0 and deviation 1; to 0 where all are equal.

    values : (rows,) or (rows, features); sizes : (lists,) rows of each list, none empty, one list after the other; None
             for one list
    """
    if not len(values):
        return values
    sizes = np.array([len(values)]) if sizes is None else sizes
    starts = np.cumsum(sizes) - sizes
    of = sizes if values.ndim == 1 else sizes[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        centred = values - np.repeat(np.add.reduceat(values, starts) / of, sizes, axis=0)
        deviation = np.sqrt(np.add.reduceat(centred**2, starts) / of)
        rounding = 1e-9 * np.maximum(1.0, np.maximum.reduceat(np.abs(values), starts))
        tells = np.isfinite(deviation) & (deviation > rounding)
        scaled = centred / np.repeat(np.where(tells, deviation, 1.0), sizes, axis=0)
    return np.where(np.repeat(tells, sizes, axis=0), scaled, 0.0)


def fit_fusion(
    lists: Lists,
    *,
    base: str,
    lm_features: Sequence[str],
    grid: Sequence[float],
    certainty: float,
    queries: int,
    with_answer: int,
    seed: int,
) -> tuple[LinearFusion, FusionReport]:
    """Learn the weights; deterministic. `queries` and `with_answer`: how many questions the lists were taken from.

    Without lists (no answer is in any list) the prior is returned.
    """
    kept = {name: float(name == base) for name in lists.names}
    if not len(lists):
        verdict = f"The order of the candidates is kept: the answer was in none of {queries} lists to learn from."
        return LinearFusion(kept), FusionReport(
            kept, None, queries, with_answer, 0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), verdict
        )
    folds = np.random.default_rng(seed).permutation(len(lists)) % min(FOLDS, len(lists))
    l2, candidates, reranked = _choose(lists, base, grid, certainty, folds)
    others = [name for name in lists.names if name not in lm_features]
    without_lm = _choose(lists.only(others), base, grid, certainty, folds)[2]
    prior = _prior(lists, base)
    if l2 is not None:
        found = _fit(lists, prior, l2)
        kept = dict(zip(lists.names, (found / prior.max()).tolist(), strict=True))
    share = with_answer / max(queries, 1)
    gain, half = _interval(reranked - candidates, share, queries)
    report = FusionReport(
        kept,
        l2,
        queries,
        with_answer,
        len(lists),
        share * float(candidates.mean()),
        share * float(reranked.mean()),
        share * float(without_lm.mean()),
        gain,
        (gain - half, gain + half),
        "",
    )
    return LinearFusion(kept, float(prior.max())), replace(
        report, verdict=_verdict(report, base, lm_features, limited=bool(lists.limits.any()))
    )


def follow(lists: Lists, base: str, name: str, queries: int, with_answer: int) -> tuple[LinearFusion, FusionReport]:
    """One feature's order as it is, with nothing learned: that of a model which learned another's order, and what that
    is worth beside the lists as they came (`base`). Needs lists; the rest is as of `fit_fusion`."""
    candidates, reranked = (ndcg(lists, lists.values[:, lists.names.index(feature)]) for feature in (base, name))
    share = with_answer / max(queries, 1)
    gain, half = _interval(reranked - candidates, share, queries)
    before, after = share * float(candidates.mean()), share * float(reranked.mean())
    verdict = (
        f"NDCG@{CUTOFF} {before:.4f} as the candidates came, {after:.4f} in the order learned from the teacher "
        f"({len(lists)} lists of tune)."
    )
    weights = {feature: float(feature == name) for feature in lists.names}
    return LinearFusion(weights), FusionReport(
        weights,
        None,
        queries,
        with_answer,
        len(lists),
        before,
        after,
        before,
        gain,
        (gain - half, gain + half),
        verdict,
    )


def ndcg(lists: Lists, scores: Array) -> Array:
    """NDCG@10 of each list's one answer; a tie counts at its expected place."""
    answers = scores[lists.starts + lists.answers]
    own = np.repeat(answers, lists.sizes)
    above = np.add.reduceat((scores > own).astype(np.float64), lists.starts)
    tied = np.add.reduceat((scores == own).astype(np.float64), lists.starts)
    places = above + (tied + 1) / 2
    return metrics.ndcg(places, CUTOFF)


def _choose(
    lists: Lists, base: str, grid: Sequence[float], certainty: float, folds: Ints
) -> tuple[float | None, Array, Array]:
    """The ridge (None: keep the prior), and each list's held-out NDCG@10 under the prior and under the choice."""
    unchanged = ndcg(lists, lists.values[:, lists.names.index(base)])
    if folds.max() == 0:
        return None, unchanged, unchanged
    prior_loss, prior_quality = _held_out(lists, base, None, folds)
    tries = []
    for l2 in grid:
        loss, quality = _held_out(lists, base, l2, folds)
        tries.append((float((prior_loss - loss).mean()), l2, prior_loss - loss, quality))
    gain, l2, gains, quality = max(tries, key=lambda t: t[:2])
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    if gain > certainty * error and quality.mean() >= prior_quality.mean():
        return l2, unchanged, quality
    return None, unchanged, prior_quality


def _held_out(lists: Lists, base: str, l2: float | None, folds: Ints) -> tuple[Array, Array]:
    """Loss and NDCG@10 of each list by weights learned on the other folds."""
    loss, quality = np.zeros(len(lists)), np.zeros(len(lists))
    for fold in range(int(folds.max()) + 1):
        train, held = lists.take(folds != fold), lists.take(folds == fold)
        prior = _prior(train, base)
        weights = prior if l2 is None else _fit(train, prior, l2)
        scores = held.values @ weights + held.limits
        loss[folds == fold] = _losses(held, scores)[0]
        quality[folds == fold] = ndcg(held, scores)
    return loss, quality


def _prior(lists: Lists, base: str) -> Array:
    """The order that the lists came in, at the sharpness that fits them best: a sharper or flatter softmax orders the
    same, and other features should not be bent to make up for it."""
    from scipy.optimize import minimize_scalar

    only = np.array([float(name == base) for name in lists.names])
    best = minimize_scalar(
        lambda t: float(_losses(lists, t * (lists.values @ only) + lists.limits)[0].mean()),
        bounds=(FLAT, SHARP),
        method="bounded",
    )
    return only * float(best.x)


def _fit(lists: Lists, prior: Array, l2: float) -> Array:
    from scipy.optimize import minimize

    rows = lists.starts + lists.answers

    def objective(weights: Array) -> tuple[float, Array]:
        losses, shares = _losses(lists, lists.values @ weights + lists.limits)
        expected = np.add.reduceat(shares[:, None] * lists.values, lists.starts, axis=0)
        slope = (expected - lists.values[rows]).mean(axis=0)
        away = weights - prior
        return float(losses.mean() + l2 * away @ away), slope + 2 * l2 * away

    return np.asarray(minimize(objective, prior, jac=True, method="L-BFGS-B").x, dtype=np.float64)


def _losses(lists: Lists, scores: Array) -> tuple[Array, Array]:
    """Negative log-likelihood of each list's answer, and each row's softmax share within its list."""
    top = np.repeat(np.maximum.reduceat(scores, lists.starts), lists.sizes)
    weights = np.exp(scores - top)
    sums = np.add.reduceat(weights, lists.starts)
    rows = lists.starts + lists.answers
    return np.log(sums) - (scores - top)[rows], weights / np.repeat(sums, lists.sizes)


def _interval(gains: Array, share: float, queries: int) -> tuple[float, float]:
    """Mean and half-width (normal, 95%) of a gain over all queries, of which a share has it and the rest has 0."""
    mean = share * float(gains.mean())
    variance = share * float((gains**2).mean()) - mean**2
    return mean, 1.96 * math.sqrt(max(variance, 0.0) / max(min(queries, round(len(gains) / max(share, 1e-9))), 1))


def _verdict(report: FusionReport, base: str, lm_features: Sequence[str], *, limited: bool) -> str:
    on_lists = f"{report.lists} lists of tune, cross-validated"
    if report.l2 is None and limited:
        return (
            f"What requests mean is held to: NDCG@{CUTOFF} {report.candidates:.4f} as the candidates came, "
            f"{report.reranked:.4f} with it; beyond that no weights were better than noise ({on_lists})."
        )
    if report.l2 is None:
        return (
            "The order of the candidates is kept: on tune no weights beat it beyond noise "
            f"({on_lists}); the model counts nothing."
        )
    lm = sum(report.weights.get(name, 0.0) for name in lm_features)
    return (
        f"NDCG@{CUTOFF} {report.candidates:.4f} as the candidates came, {report.reranked:.4f} reranked, "
        f"{report.without_lm:.4f} with the same features but without the model, whose weight is {lm:.3f} beside the "
        f"candidate score's {report.weights[base]:.3f} ({on_lists})."
    )
