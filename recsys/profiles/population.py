"""What people in general choose: the yardstick against which one user's tastes stand out.

Fitted once from a log and a catalog, never from the queries that are described later.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.facets import Column, expand, plan
from recsys.data.vocab import Vocab
from recsys.data.words import one_line
from recsys.profiles.privacy import Sensitive
from recsys.profiles.rhythm import Paces
from recsys.tables import Catalog, InteractionLog

_SAYS_NOTHING = 0.95  # share of items above which a value tells nobody from anybody
_FOLLOW_WINDOW = 3  # events after one in which another counts as chosen soon after it
_FOLLOW_USERS = 3  # people who must have taken a step before it is called "often"
_FOLLOW_LIFT = 3.0  # and how much oftener than by chance
_POPULAR = 0.9  # items from this quantile of events on are called popular
REACH, POPULAR, LESSER = "popularity", "popular", "lesser-known"  # an attribute that every catalog has, and its values
_GROUP_USERS = 3  # people of a segment who must have met an item before it is called popular there


_TABLES = ("values", "items", "follows", "favourites")


@dataclass(frozen=True)
class Population:
    """Shares of facets, popularity of items and usual next steps in the log it was fitted on.

    like_at, dislike_at : thresholds on weights; None where every event counts as a like, or nothing as a dislike
    paces   : how often people come back
    columns : how the catalog's attributes are read
    values  : facet (Int32), attribute, value, kind, share (of events), liked_share (of liked events)
    items   : item_id, events; only items of the catalog that occur
    follows : before, after (item ids), users: steps from an event to one of the next few that
              many users took, far above chance
    favourites : segment, item_id: what is popular within each segment by that segment's own events
    """

    like_at: float | None
    dislike_at: float | None
    paces: Paces
    columns: tuple[Column, ...]
    values: pl.DataFrame
    items: pl.DataFrame
    follows: pl.DataFrame
    favourites: pl.DataFrame

    @classmethod
    def fit(
        cls, log: InteractionLog, catalog: Catalog, *, like_at: float | None, dislike_at: float | None
    ) -> "Population":
        """Count the log's events on catalog items; events on other items are left out."""
        vocab = Vocab.of_items(catalog)
        items = pl.Series(vocab.encode(log.frame["item_id"]))
        events = log.frame.select("user_id", "weight", "ts", *(["segment"] if "segment" in log.frame.columns else []))
        events = events.with_columns(item=items).filter(pl.col("item") >= 0)
        liked = pl.lit(True) if like_at is None else pl.col("weight") >= like_at
        counts = events.group_by("item").agg(events=pl.len().cast(pl.Int64), liked=liked.sum().cast(pl.Int64))
        per_code = np.zeros(len(vocab), dtype=np.float64)
        per_code[counts["item"].to_numpy()] = counts["events"].to_numpy()
        columns = plan(catalog, per_code[vocab.encode(catalog.frame["item_id"])])
        return cls(
            like_at,
            dislike_at,
            Paces.of(events),
            columns,
            _values(pl.concat([expand(catalog, vocab, columns), _reach(per_code)]), counts, len(catalog)),
            counts.sort("item").select(item_id=vocab.decode(counts["item"].sort().to_numpy()), events="events"),
            _follows(events, vocab),
            _favourites(events, vocab),
        )

    def without(self, hidden: pl.Series) -> "Population":
        """The same without some of the facets, which are then known of nobody. hidden : a mask over `values`"""
        kept = (
            self.values.filter(~hidden)
            .drop("facet")
            .with_row_index("facet")
            .with_columns(pl.col("facet").cast(pl.Int32))
        )
        return replace(self, values=kept)

    def save(self, path: Path) -> None:
        """Write population.json and four Parquet files into the existing folder `path`."""
        head = {
            "like_at": self.like_at,
            "dislike_at": self.dislike_at,
            "paces": asdict(self.paces),
            "columns": [asdict(c) for c in self.columns],
        }
        (path / "population.json").write_text(json.dumps(head, indent=1))
        for name in _TABLES:
            getattr(self, name).write_parquet(path / f"{name}.parquet")

    @classmethod
    def load(cls, path: Path) -> "Population":
        """Read what `save` wrote."""
        head = json.loads((path / "population.json").read_text())
        columns = tuple(Column(**{**c, "edges": tuple(c["edges"])}) for c in head["columns"])
        frames = (pl.read_parquet(path / f"{name}.parquet") for name in _TABLES)
        return cls(head["like_at"], head["dislike_at"], Paces(**head.get("paces", {})), columns, *frames)


@dataclass(frozen=True)
class Known:
    """A population beside a catalog: which item carries which of the population's facets.

    sensitive : what is not to be said of anybody, titles included
    """

    population: Population
    catalog: Catalog
    sensitive: Sensitive = field(default_factory=lambda: Sensitive(packaged=False))

    @cached_property
    def vocab(self) -> Vocab:
        """The catalog's items as codes."""
        return Vocab.of_items(self.catalog)

    @cached_property
    def facets(self) -> pl.DataFrame:
        """item (Int32 code), facet (Int32): every item's facets that the population knows."""
        wide = pl.concat([self._expanded, _reach(self.events)])
        known = self.population.values.select("attribute", "value", "facet")
        return wide.join(known, on=["attribute", "value"]).select("item", "facet").sort("item", "facet")

    @cached_property
    def _expanded(self) -> pl.DataFrame:
        return expand(self.catalog, self.vocab, self.population.columns)

    @cached_property
    def titles(self) -> list[str]:
        """Title of each item code."""
        order = self.vocab.encode(self.catalog.frame["item_id"]).argsort()
        return self.catalog.frame["title"].gather(order).to_list()

    @cached_property
    def unnamed(self) -> pl.Series:
        """The codes of items that are not to be named in profiles: by their titles, because they have none, or by what
        they are about. An attribute that is sensitive by its name hides no item, since each may have a value of it."""
        titles = pl.Series(self.titles, dtype=pl.String)
        blank = pl.Series([not one_line(title, 2) for title in titles], dtype=pl.Boolean)
        by_title = (self.sensitive.faulty(titles) | blank).arg_true().cast(pl.Int32)
        by_value = self._expanded.filter(self.sensitive.faulty(self._expanded["value"]))["item"]
        return pl.concat([by_title, by_value]).unique().sort()

    @cached_property
    def events(self) -> np.ndarray:
        """(items,) events of each item code in the population."""
        counts = np.zeros(len(self.vocab), dtype=np.int64)
        codes = self.vocab.encode(self.population.items["item_id"])
        counts[codes[codes >= 0]] = self.population.items["events"].to_numpy()[codes >= 0]
        return counts


def _reach(events: np.ndarray) -> pl.DataFrame:
    """item, attribute, value, kind: whether an item is popular or lesser-known, as if the catalog said so.

    events : (items,) of each item code; only items that anybody has met decide where popularity begins
    """
    counts = pl.DataFrame({"events": events}).cast(pl.Int64).with_row_index("item")
    starts = counts.filter(pl.col("events") > 0).select(popular_from(pl.col("events"))).item()
    popular = pl.col("events") >= (math.inf if starts is None else starts)
    value = pl.when(popular).then(pl.lit(POPULAR)).otherwise(pl.lit(LESSER))
    return counts.select(pl.col("item").cast(pl.Int32), attribute=pl.lit(REACH), value=value, kind=pl.lit("reach"))


def popular_from(events: pl.Expr) -> pl.Expr:
    """Events from which on an item is popular: the top tenth of items, where that stands above the middle."""
    return pl.max_horizontal(events.quantile(_POPULAR, "linear"), events.median() + 1)


def thresholds(
    log: InteractionLog, like_at: float | str, dislike_at: float | str | None, *, rated: bool
) -> tuple[float | None, float | None]:
    """Resolve "auto": likes from the median weight up, dislikes up to the 10th percentile where that is lower.

    An unrated log has neither: every event counts as a like.
    """
    if not rated or not len(log):
        return None, None
    weights = log.frame["weight"]
    like = _percentile(weights, 0.5) if isinstance(like_at, str) else like_at
    if not isinstance(dislike_at, str):
        return like, dislike_at
    low = _percentile(weights, 0.1)
    return like, low if low < like else None


def _percentile(weights: pl.Series, share: float) -> float:
    return float(np.percentile(weights.to_numpy(), 100 * share, method="lower"))


def _values(facets: pl.DataFrame, counts: pl.DataFrame, items: int) -> pl.DataFrame:
    """Number the useful facets and give each its share, smoothed by one event so that no share is 0 or 1."""
    total, total_liked = int(counts["events"].sum()), int(counts["liked"].sum())
    return (
        facets.join(counts, on="item", how="left")
        .group_by("attribute", "value", "kind")
        .agg(carriers=pl.len(), events=pl.col("events").sum(), liked=pl.col("liked").sum())
        .filter(pl.col("carriers").is_between(2, max(2, _SAYS_NOTHING * items)))
        .sort("attribute", "value")
        .with_row_index("facet")
        .select(
            pl.col("facet").cast(pl.Int32),
            "attribute",
            "value",
            "kind",
            share=(pl.col("events") + 1) / (total + 2),
            liked_share=(pl.col("liked") + 1) / (total_liked + 2),
        )
    )


def _follows(events: pl.DataFrame, vocab: Vocab) -> pl.DataFrame:
    """Steps a -> b to one of a user's next few events, by at least `_FOLLOW_USERS` people and far above chance."""
    steps = pl.concat(
        events.select("user_id", "item", after=pl.col("item").shift(-ahead).over("user_id")).drop_nulls()
        for ahead in range(1, _FOLLOW_WINDOW + 1)
    )
    steps = steps.filter(pl.col("item") != pl.col("after")).unique()
    total = len(steps)
    kept = (
        steps.group_by("item", "after")
        .agg(users=pl.len().cast(pl.Int64))
        .with_columns(out=pl.col("users").sum().over("item"), into=pl.col("users").sum().over("after"))
        .filter(pl.col("users") >= _FOLLOW_USERS)
        .filter(pl.col("users") * total >= _FOLLOW_LIFT * pl.col("out") * pl.col("into"))
        .sort("item", "after")
    )
    return pl.DataFrame(
        {
            "before": vocab.decode(kept["item"].to_numpy()),
            "after": vocab.decode(kept["after"].to_numpy()),
            "users": kept["users"],
        }
    )


def _favourites(events: pl.DataFrame, vocab: Vocab) -> pl.DataFrame:
    """What several people of a segment met, and oftener than the most of what was met there."""
    if "segment" not in events.columns:
        return pl.DataFrame(schema={"segment": pl.String, "item_id": vocab.ids.dtype})
    counts = events.drop_nulls("segment").group_by("segment", "item")
    found = (
        counts.agg(events=pl.len(), users=pl.col("user_id").n_unique())
        .filter(pl.col("events") >= popular_from(pl.col("events")).over("segment"))
        .filter(pl.col("users") >= _GROUP_USERS)
        .sort("segment", "item")
    )
    return found.select("segment", item_id=vocab.decode(found["item"].to_numpy()))
