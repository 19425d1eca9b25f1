"""Two rankers in one list: each session compares them, so it takes far fewer sessions than an A/B test.

Team draft (Radlinski, Kurup and Joachims, CIKM 2008; for more than two, Schuth et al., CIKM 2014), probabilistic
(Hofmann, Whiteson and de Rijke, CIKM 2011) and optimized interleaving (Radlinski and Craswell, WSDM 2013). A click
gives credit to who put the item there, or would have put it high; the ranker with more credit has won the session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import optimize, stats

from recsys.errors import DataError, SpecError
from recsys.experiment.moments import Floats, clustered
from recsys.experiment.multiple import adjust

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
    """Of sessions' credited (sessions, 2). cluster : (sessions,) whose session it is; of one user they are added up."""
    apart = scores[:, 1] - scores[:, 0]
    wins, losses = int((apart > 0).sum()), int((apart < 0).sum())
    values = clustered(apart, cluster)
    n, mean = len(values), float(values.mean())
    se = float(values.std(ddof=1)) / n**0.5 if n > 1 else np.nan
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * se if n > 1 else np.nan
    p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if se > 0 else 1.0 if mean == 0 else np.nan
    return Preference(mean, se, (mean - half, mean + half), p, wins, losses, len(apart) - wins - losses)


def sessions_needed(apart: Floats, power: float = 0.8, alpha: float = 0.05) -> float:
    """Sessions after which a test of such differences (sessions,) finds it, by their mean and deviation so far."""
    z = stats.norm.isf(alpha / 2) + stats.norm.ppf(power)
    return float((z * apart.std(ddof=1) / max(abs(apart.mean()), 1e-300)) ** 2)


METHODS = ("team-draft", "probabilistic", "optimized")


def lists_of(rankings: Mapping[str, pl.DataFrame], k: int, method: str = "team-draft", seed: int = 0) -> pl.DataFrame:
    """Mix rankings into a list for each user that all of them know: user_id, rank, item_id, and "credit <name>" of each
    ranker for a click there.

    rankings : by name: user_id, item_id, rank (from 1). Randomness comes from the seed and the user
    Errors: `DataError` for a missing column; `SpecError` for rankings that cannot be mixed this way.
    """
    if len(rankings) < 2 or (method == "optimized" and len(rankings) > 2):
        raise SpecError(f"{method} needs {'two rankings' if method == 'optimized' else 'two rankings or more'}")
    _same_ids({f"ranking '{name}'": frame for name, frame in rankings.items()})
    by_user = {}
    for name, frame in rankings.items():
        if lacking := [c for c in ("user_id", "item_id", "rank") if c not in frame.columns]:
            raise DataError(f"ranking '{name}': no column '{lacking[0]}'")
        by_user[name] = frame.sort("user_id", "rank").group_by("user_id", maintain_order=True).agg("item_id")
    together = reduce(
        lambda one, other: one.join(other, on="user_id"),
        [frame.rename({"item_id": name}) for name, frame in by_user.items()],
    ).sort("user_id")
    if together.is_empty():
        raise DataError("no user is in all rankings")
    items = pl.concat([frame["item_id"] for frame in rankings.values()]).unique().sort()
    found = []
    for row in together.iter_rows(named=True):
        codes = [items.search_sorted(pl.Series(row[name], dtype=items.dtype)).to_numpy() for name in rankings]
        own = blake2b(str(row["user_id"]).encode(), digest_size=8).digest()
        rng = np.random.default_rng((seed, int.from_bytes(own, "big")))
        if method == "optimized":
            shown = optimized(codes[0], codes[1], k, rng)
        else:
            shown = (team_draft if method == "team-draft" else probabilistic)(codes, k, rng)
        credit = {f"credit {name}": shown.credit[:, own] for own, name in enumerate(rankings)}
        own_list = {"rank": np.arange(1, k + 1), "item_id": items.gather(shown.items), **credit}
        found.append(
            pl.DataFrame(own_list).select(
                pl.lit(row["user_id"], dtype=together["user_id"].dtype).alias("user_id"), pl.all()
            )
        )
    return pl.concat(found)


def _same_ids(frames: Mapping[str, pl.DataFrame]) -> None:
    """Errors: `DataError` for ids of different types, which would never meet."""
    (first, one), *others = frames.items()
    for name, frame in others:
        for column in ("user_id", "item_id"):
            if column in frame.columns and column in one.columns and frame[column].dtype != one[column].dtype:
                raise DataError(f"'{column}' is {one[column].dtype} in {first}, {frame[column].dtype} in {name}")


def judged(lists: pl.DataFrame, clicks: pl.DataFrame, confidence: float = 0.95) -> pl.DataFrame:
    """Which ranker the clicks prefer, a row for each pair: mean credit of "other" over "one" a list, its interval, p
    (Holm's for all pairs), and how many lists each won.

    lists : as of `lists_of`; clicks : user_id, item_id; several on one item count as one
    Errors: `DataError` for a missing column, or fewer than two rankers.
    """
    for what, frame, columns in (
        ("lists", lists, ("user_id", "item_id", "rank")),
        ("clicks", clicks, ("user_id", "item_id")),
    ):
        if lacking := [c for c in columns if c not in frame.columns]:
            raise DataError(f"{what}: no column '{lacking[0]}'")
    credited = [name for name in lists.columns if name.startswith("credit ")]
    if len(credited) < 2:
        raise DataError("lists: needs two columns 'credit <name>' or more, as `recsys ab interleave` writes them")
    _same_ids({"lists": lists, "clicks": clicks})
    clicked = clicks.select("user_id", "item_id").unique().with_columns(clicks=1)
    if clicked.join(lists, on=["user_id", "item_id"], how="semi").is_empty():
        raise DataError("no click is on an item of the lists: are these the clicks on them?")
    scored = (
        lists.join(clicked, on=["user_id", "item_id"], how="left")
        .group_by("user_id", maintain_order=True)
        .agg((pl.col(name) * pl.col("clicks").fill_null(0)).sum() for name in credited)
    )
    rows: list[dict[str, Any]] = []
    for one, other in combinations(credited, 2):
        found = preference(scored.select(one, other).to_numpy().astype(np.float64), confidence)
        rows.append(
            {
                "one": one.removeprefix("credit "),
                "other": other.removeprefix("credit "),
                "mean": found.mean,
                "low": found.ci[0],
                "high": found.ci[1],
                "p": found.p,
                "other wins": found.wins,
                "one wins": found.losses,
                "ties": found.ties,
            }
        )
    return pl.DataFrame(rows).with_columns(p=pl.Series(adjust([row["p"] for row in rows], "holm")))
