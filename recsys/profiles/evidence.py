"""What a user's history says about the user, in numbers: a pure function of queries, catalog and population.

A taste is an attribute value that the user chooses oftener than people in general. With n choices that carry the
value where E were expected from the population, its lift is shrunk towards 1 by the gamma-Poisson estimate
(n + a) / (E + a) (DuMouchel 1999, with a fixed prior a), and tastes are ordered by how far n stands above E in
standard deviations, (n - E) / sqrt(E + a): a lift of 3 from two events does not outrank one of 2 from fifty.
Everything is counted in whole events and rounded before it is compared, so batch and single agree to the last digit.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import asdict, dataclass

import polars as pl

from recsys.data.words import TITLE_LIMIT, one_line
from recsys.profiles.population import Known
from recsys.profiles.rhythm import PACE
from recsys.profiles.tally import Tally, opinions
from recsys.tables import Id, Queries

_CHUNK = 4096  # queries at a time, which bounds memory
MIN_LIFT = 1.25
_MIN_Z = 1.0  # standard deviations above what was expected
_MIN_SUPPORT = 2
_MANY = 10  # likes from which on two of them are too few to be told
ENOUGH = 5  # events from which on there is more to say than how little is known
_WEEK = 7 * 86_400  # seconds
_SHIFT_EVENTS = 6  # a history shorter than this has no "before" to shift from


@dataclass(frozen=True)
class Trait:
    """One attribute value that stands out: lift over what was expected, n supporting events, a few of the items (none
    that profiles do not name)."""

    attribute: str
    value: str
    kind: str
    lift: float
    n: int
    items: tuple[Id, ...] = ()


@dataclass(frozen=True)
class Item:
    """An item of the history, with its title on one line."""

    item_id: Id
    title: str


@dataclass(frozen=True)
class Evidence:
    """What is known of one query's user as of the query; every tuple is bounded, strongest first.

    events, liked, disliked : number of events on catalog items, and of those at the like and dislike thresholds
    first, last : time of the first and last event; None where there is none
    tastes   : values liked oftener than the population likes them
    eras     : the same for decades
    reach    : the same for popular and for lesser-known items: how far the user looks beyond what everybody meets
    rhythm   : whether the user comes back more or less often than most (lift: times as often as the middle person)
    common   : what most of the choices are, whatever the population does (lift still against the population)
    recent   : values oftener among the last events than before, and not among the dislikes
    dislikes : values oftener among the user's low ratings than among all of the user's events
    anchors  : the most telling liked items; latest: the last items, newest first; none whose title is sensitive
    """

    events: int = 0
    liked: int = 0
    disliked: int = 0
    rated: bool = False
    first: int | None = None
    last: int | None = None
    tastes: tuple[Trait, ...] = ()
    eras: tuple[Trait, ...] = ()
    reach: tuple[Trait, ...] = ()
    rhythm: tuple[Trait, ...] = ()
    common: tuple[Trait, ...] = ()
    recent: tuple[Trait, ...] = ()
    dislikes: tuple[Trait, ...] = ()
    anchors: tuple[Item, ...] = ()
    latest: tuple[Item, ...] = ()

    @property
    def usual(self) -> tuple[Trait, ...]:
        """What is common; what came up once is not, but where there is hardly more than one event."""
        return tuple(t for t in self.common if t.n >= _MIN_SUPPORT or self.events < ENOUGH)

    @property
    def pace(self) -> float | None:
        """Events a week from the first to the last; None where that is less than a week, or times are not known."""
        if self.first is None or self.last is None or self.last - self.first < _WEEK:
            return None
        return self.events / ((self.last - self.first) / _WEEK)

    @property
    def json(self) -> str:
        """All of it, on one line; see `read`."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> "Evidence":
        """What `json` gave. Errors: `ValueError`, `TypeError` or `KeyError` for anything else."""
        found = json.loads(text)
        found.setdefault("rhythm", ())  # which older evidence lacks
        for name in TRAITS:
            found[name] = tuple(Trait(**{**trait, "items": tuple(trait["items"])}) for trait in found[name])
        for name in ("anchors", "latest"):
            found[name] = tuple(Item(**item) for item in found[name])
        return cls(**found)

    @property
    def hash(self) -> str:
        """The same for the same evidence in every process: SHA-256 of its JSON with sorted keys, 16 hex digits.

        The span is left out: no text speaks of it, and a visitor without stored times has a new one at every call.
        """
        told = {name: value for name, value in asdict(self).items() if name not in ("first", "last")}
        text = json.dumps(told, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# Its parts that hold traits, in the order in which they are shown. What counts is events; of rhythm, days.
TRAITS = ("tastes", "eras", "reach", "rhythm", "common", "recent", "dislikes")


@dataclass(frozen=True)
class Bounds:
    """How much evidence is kept, and how strongly lifts are shrunk (prior events)."""

    top: int = 4
    recent: int = 20
    anchors: int = 3
    shrinkage: float = 3.0


def collect(queries: Queries, known: Known, bounds: Bounds) -> list[Evidence]:
    """One `Evidence` per query, in the order of the queries, from the query's own history alone."""
    histories = known.vocab.histories(queries)
    found: list[Evidence] = []
    for start in range(0, len(histories), _CHUNK):
        some = histories.slice(start, start + _CHUNK)
        found += weigh(Tally.of(some, known, bounds.recent), len(some), known, bounds)
    return found


def weigh(tally: Tally, n: int, known: Known, bounds: Bounds) -> list[Evidence]:
    """What the tally of `n` histories says, by row."""
    size = pl.col("events")
    late = pl.when(size >= _SHIFT_EVENTS).then(pl.min_horizontal(pl.lit(bounds.recent), size // 2)).otherwise(0)
    users = tally.users.with_columns(late_events=late.cast(pl.Int64))
    lag = pl.col("events") - 1 - pl.col("place")
    window = tally.window.join(users.select("row", "events", "late_events"), on="row")
    window = window.filter(lag < pl.col("late_events")).select("row", "item", "place", late=pl.lit(True))
    recent = window.join(known.facets, on="item")
    n_late = recent.group_by("row", "facet").agg(n_late=pl.len().cast(pl.Int64))
    counts = (
        tally.facets.join(n_late, on=["row", "facet"], how="left")
        .with_columns(pl.col("n_late").fill_null(0))
        .join(users, on="row")
        .join(known.population.values, on="facet")
    )
    pool = tally.pool.with_columns(*opinions(known))
    pairs = pool.join(known.facets, on="item")
    named = ~pl.col("item").is_in(known.unnamed.implode()) if len(known.unnamed) else pl.lit(True)
    traits = _traits(counts, pairs.filter(named), recent.filter(named), known, bounds)
    fit = pool.filter(named)
    more = 2 * bounds.anchors  # some of which may have one title
    anchors = _items(_anchors(pairs, fit, counts, bounds.shrinkage, more), known, bounds.anchors)
    latest = _items(_latest(fit, more), known, bounds.anchors)
    columns = ("row", "events", "liked_events", "low_events", "days", "first", "last")
    totals = {row: rest for row, *rest in users.select(columns).iter_rows()}
    rated = known.population.like_at is not None
    found = []
    for row in range(n):
        events, liked, low, days, first, last = totals.get(row, (0, 0, 0, 0, None, None))
        found.append(
            Evidence(
                events=events,
                liked=liked,
                disliked=low,
                rated=rated,
                first=first,
                last=last,
                rhythm=_rhythm(days, first, last, known),
                **{name: tuple(by_row.get(row, ())) for name, by_row in traits.items()},
                anchors=tuple(anchors.get(row, ())),
                latest=tuple(latest.get(row, ())),
            )
        )
    return found


def _rhythm(days: int, first: int | None, last: int | None, known: Known) -> tuple[Trait, ...]:
    told = None if first is None or last is None else known.population.paces.told(days, first, last)
    return () if told is None else (Trait(PACE, told[0], PACE, told[1], days),)


def _lift(n: str, expected: pl.Expr, prior: float) -> list[pl.Expr]:
    """lift and z of a count against what was expected (both rounded), and the count as `support`."""
    count = pl.col(n)
    return [
        count.alias("support"),
        ((count + prior) / (expected + prior)).round(2).alias("lift"),
        ((count - expected) / (expected + prior).sqrt()).round(6).alias("z"),
    ]


def _traits(
    counts: pl.DataFrame, pairs: pl.DataFrame, recent: pl.DataFrame, known: Known, bounds: Bounds
) -> dict[str, dict[int, list[Trait]]]:
    """For each part of the evidence, its traits by query row."""
    a = bounds.shrinkage
    liked = counts.with_columns(_lift("n_liked", pl.col("liked_events") * pl.col("liked_share"), a))
    before = pl.col("events") - pl.col("late_events")
    rate = (pl.col("n") - pl.col("n_late") + a * pl.col("share")) / (before + a)
    turned = counts.filter(pl.col("late_events") > 0).with_columns(_lift("n_late", pl.col("late_events") * rate, a))
    usual = pl.col("n") * pl.col("low_events") / pl.col("events")
    taste = (pl.col("lift") >= MIN_LIFT).alias("taste")  # what is liked oftener than by others is no dislike
    low = liked.filter(pl.col("low_events") > 0).with_columns(taste).with_columns(_lift("n_low", usual, a))
    stands_out = (pl.col("lift") >= MIN_LIFT) & (pl.col("z") >= _MIN_Z) & (pl.col("support") >= _MIN_SUPPORT)
    stands_out &= (pl.col("support") > _MIN_SUPPORT) | (pl.col("liked_events") < _MANY)
    era, reach = pl.col("kind") == "era", pl.col("kind") == "reach"
    high, poor = pairs.filter("liked"), pairs.filter("low")
    clearly = stands_out & ~reach & (pl.col("support") > _MIN_SUPPORT)  # of two events neither is told
    disliked = low.filter(clearly & ~pl.col("taste"))
    # Who meets a value more often of late and thinks poorly of it has not turned to it.
    shifts = turned.filter(clearly).join(disliked, on=["row", "facet"], how="anti")
    parts = {
        "tastes": (liked.filter(stands_out & ~era & ~reach), "z", bounds.top, high),
        "eras": (liked.filter(stands_out & era), "z", 2, high),
        "reach": (liked.filter(stands_out & reach), "z", 1, high),
        "common": (liked.filter((pl.col("support") > 0) & (pl.col("kind") == "value")), "support", 3, high),
        "recent": (shifts, "z", 3, recent),
        "dislikes": (disliked, "z", 3, poor),
    }
    return {name: _top(frame, by, k, support, known) for name, (frame, by, k, support) in parts.items()}


def _top(frame: pl.DataFrame, by: str, k: int, support: pl.DataFrame, known: Known) -> dict[int, list[Trait]]:
    """The k strongest traits of each row; ties break by support, then name. Items: the three latest that support."""
    best = (
        frame.sort("row", by, "support", "attribute", "value", descending=[False, True, True, False, False])
        .group_by("row", maintain_order=True)
        .head(k)
    )
    items = (
        support.join(best.select("row", "facet"), on=["row", "facet"], how="semi")
        .sort("row", "facet", "place", descending=[False, False, True])
        .group_by("row", "facet", maintain_order=True)
        .agg(pl.col("item").unique(maintain_order=True).head(3))
    )
    best = best.join(items, on=["row", "facet"], how="left", maintain_order="left")
    found: dict[int, list[Trait]] = defaultdict(list)
    columns = ("row", "attribute", "value", "kind", "lift", "support", "item")
    for row, attribute, value, kind, lift, n, codes in best.select(columns).iter_rows():
        ids = tuple(known.vocab.ids[code] for code in codes or ())  # None: its items are too old to be kept
        found[row].append(Trait(attribute, value, kind, lift, n, ids))
    return found


def _anchors(pairs: pl.DataFrame, pool: pl.DataFrame, counts: pl.DataFrame, prior: float, top: int) -> pl.DataFrame:
    """row, item: the liked items that carry most of the user's tastes, most telling first.

    An item tells the sum of its facets' log lifts over the root of their number (many facets say little each), and
    half a point more where the user gave it the highest weight. Ties break by recency.
    """
    ordinary = counts.filter(pl.col("kind") != "reach")  # being obscure makes no item telling
    lifts = ordinary.select(
        "row",
        "facet",
        gain=((pl.col("n_liked") + prior) / (pl.col("liked_events") * pl.col("liked_share") + prior)).log().clip(0),
    )
    told = (
        pairs.filter("liked")
        .join(lifts, on=["row", "facet"])
        .group_by("row", "item")
        .agg(telling=pl.col("gain").sum() / pl.len().sqrt())
    )
    favourite = (pl.col("weight") == pl.col("weight").max().over("row")).cast(pl.Float64)
    return (
        pool.filter("liked")
        .with_columns(favourite=favourite)
        .join(told, on=["row", "item"], how="left")
        .with_columns(score=(pl.col("telling").fill_null(0) + 0.5 * pl.col("favourite")).round(6))
        .sort("row", "score", "place", descending=[False, True, True])
        .group_by("row", maintain_order=True)
        .head(top)
        .select("row", "item")
    )


def _latest(pool: pl.DataFrame, top: int) -> pl.DataFrame:
    """row, item: the last distinct items, newest first."""
    newest = pool.sort("row", "place", descending=[False, True])
    return newest.group_by("row", maintain_order=True).head(top).select("row", "item")


def _items(chosen: pl.DataFrame, known: Known, top: int) -> dict[int, list[Item]]:
    """The first `top` of each row that have titles of their own: a catalog may hold one thing twice."""
    found: dict[int, list[Item]] = defaultdict(list)
    for row, code in chosen.iter_rows():
        title = one_line(known.titles[code], TITLE_LIMIT)
        if len(found[row]) < top and all(item.title != title for item in found[row]):
            found[row].append(Item(known.vocab.ids[code], title))
    return found
