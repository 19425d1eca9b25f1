"""Two rankers in one list: each session compares them, so it takes far fewer sessions than an A/B test.

Team draft (Radlinski, Kurup and Joachims, CIKM 2008; for more than two, Schuth et al., CIKM 2014), probabilistic
(Hofmann, Whiteson and de Rijke, CIKM 2011) and optimized interleaving (Radlinski and Craswell, WSDM 2013). A click
gives credit to who put the item there, or would have put it high; the ranker with more credit has won the session.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from recsys.errors import SpecError
from recsys.experiment.moments import Floats

Ints = npt.NDArray[np.int64]
# Of probabilistic interleaving: the chance of rank r is proportional to r ** -STEEP (Hofmann et al.).
STEEP = 3.0


@dataclass(frozen=True)
class Shown:
    """A list of items (k,), and the credit (k, rankers) that a click on each gives."""

    items: Ints
    credit: Floats

    def score(self, clicks: Floats) -> Floats:
        """(rankers,) of clicks (k,)."""
        return np.asarray(clicks @ self.credit)


def team_draft(rankings: Sequence[Ints], k: int, rng: np.random.Generator) -> Shown:
    """In each round the rankers, in random order, put their best item that is not there yet; a click is theirs."""
    items: list[int] = []
    credit = np.zeros((k, len(rankings)))
    places = [0] * len(rankings)
    while len(items) < k:
        before = len(items)
        for team in rng.permutation(len(rankings)):
            ranking = rankings[team]
            while places[team] < len(ranking) and int(ranking[places[team]]) in items:
                places[team] += 1
            if places[team] < len(ranking) and len(items) < k:
                credit[len(items), team] = 1
                items.append(int(ranking[places[team]]))
        if len(items) == before:
            raise SpecError(f"the rankings hold fewer than {k} items together")
    return Shown(np.array(items), credit)


def probabilistic(rankings: Sequence[Ints], k: int, rng: np.random.Generator) -> Shown:
    """At each place a ranker by chance draws from its softmax over ranks; a click is shared by how likely each was to
    put the item there, which does away with the luck of the draw. Rankings of the same items."""
    orders = [np.argsort(ranking, kind="stable") for ranking in rankings]
    names = np.sort(np.asarray(rankings[0]))
    if any(not np.array_equal(np.sort(ranking), names) for ranking in rankings) or len(names) < k:
        raise SpecError(f"probabilistic interleaving needs rankings of the same items, {k} or more")
    # (rankers, items in ascending order) the chance of each by its rank.
    chance = np.stack([(order + 1.0) ** -STEEP for order in orders])
    items, credit = [], []
    for _ in range(k):
        share = chance / chance.sum(axis=1, keepdims=True)
        own = share[rng.integers(len(rankings))]
        item = int(rng.choice(len(names), p=own / own.sum()))
        credit.append(share[:, item] / share[:, item].sum())
        items.append(int(names[item]))
        chance[:, item] = 0
    return Shown(np.array(items), np.stack(credit))


def optimized(one: Ints, other: Ints, k: int, rng: np.random.Generator) -> Shown:
    """Of all lists that take from the tops of both, draw one so that users who click at random prefer neither, and
    those who do not are told apart best. Credit is how much higher a ranker has the item."""
    lists, chances, credit = _optimized(tuple(map(int, one)), tuple(map(int, other)), k)
    drawn = int(rng.choice(len(lists), p=chances))
    apart = credit[drawn]
    return Shown(np.array(lists[drawn]), np.stack([np.maximum(apart, 0), np.maximum(-apart, 0)], axis=1))


@lru_cache(maxsize=10_000)
def _optimized(one: tuple[int, ...], other: tuple[int, ...], k: int) -> tuple[list[tuple[int, ...]], Floats, Floats]:
    lists = _merges(one, other, k)
    ranks = [{item: place for place, item in enumerate(ranking)} for ranking in (one, other)]

    def gain(item: int) -> float:
        # Linear rank difference: how much higher the first has it.
        return float(min(ranks[1].get(item, k), k) - min(ranks[0].get(item, k), k))

    credit = np.array([[gain(item) for item in listed] for listed in lists])
    # Whoever looks at the first m places, for any m, and clicks at random, has no preference on average.
    sums = np.cumsum(credit, axis=1)
    # Sensitivity: the spread of credit within a list; equal credit tells nothing.
    worth = (credit**2).sum(axis=1)
    equal = np.vstack([sums.T, np.ones(len(lists))])
    found = optimize.linprog(-worth, A_eq=equal, b_eq=np.append(np.zeros(k), 1.0), bounds=(0, 1), method="highs")
    if not found.success:  # no mixture is free of bias: the fairest of them
        slack = np.hstack([equal, np.vstack([np.eye(k), np.zeros((1, k))]), np.vstack([-np.eye(k), np.zeros((1, k))])])
        price = np.concatenate([np.zeros(len(lists)), np.ones(2 * k)])
        found = optimize.linprog(price, A_eq=slack, b_eq=np.append(np.zeros(k), 1.0), bounds=(0, None), method="highs")
    chances = np.maximum(found.x[: len(lists)], 0)
    return lists, chances / chances.sum(), credit


def _merges(one: Sequence[int], other: Sequence[int], k: int) -> list[tuple[int, ...]]:
    """All lists of k in which each item is the next of one of the rankings that is not there yet."""
    found: list[tuple[int, ...]] = [()]
    for _ in range(k):
        longer: dict[tuple[int, ...], None] = {}
        for listed in found:
            for ranking in (one, other):
                fresh = next((item for item in ranking if item not in listed), None)
                if fresh is not None:
                    longer[(*listed, fresh)] = None
        found = list(longer)
    if not found:
        raise SpecError(f"the rankings hold fewer than {k} items together")
    return found


@dataclass(frozen=True)
class Preference:
    """Of the second ranker over the first: mean credit of a session, its interval, p-value, and who won how often."""

    mean: float
    se: float
    ci: tuple[float, float]
    p: float
    wins: int
    losses: int
    ties: int


def preference(scores: Floats, confidence: float = 0.95, cluster: npt.NDArray[np.int64] | None = None) -> Preference:
    """Of sessions' credits (sessions, 2). cluster : (sessions,) whose session it is; of one user they are added up."""
    apart = scores[:, 1] - scores[:, 0]
    wins, losses = int((apart > 0).sum()), int((apart < 0).sum())
    values = apart if cluster is None else np.bincount(np.unique(cluster, return_inverse=True)[1], weights=apart)
    n, mean = len(values), float(values.mean())
    se = float(values.std(ddof=1)) / n**0.5 if n > 1 else np.nan
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * se if n > 1 else np.nan
    p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if se > 0 else 1.0 if mean == 0 else np.nan
    return Preference(mean, se, (mean - half, mean + half), p, wins, losses, len(apart) - wins - losses)


def sessions_needed(apart: Floats, power: float = 0.8, alpha: float = 0.05) -> float:
    """Sessions after which a test of such differences (sessions,) finds it, by their mean and deviation so far."""
    z = stats.norm.isf(alpha / 2) + stats.norm.ppf(power)
    return float((z * apart.std(ddof=1) / max(abs(apart.mean()), 1e-300)) ** 2)
