"""Why an item is on a slate: a short reason that rests on something that is really in the user's history.

A history item supports a recommended item by the attribute values they share, rare ones counting more (idf, over the
root of what the history item carries), by the steps that many people took from one to the other, and the more the
younger it is. Only liked events support. Going down a slate, a history item that has been named counts half as much,
so that one film does not explain a whole slate. Where nothing supports an item, the reason says so honestly. What the
user asked for, and the item has, comes first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from recsys.data.words import VALUE_LIMIT, facet_name, one_line, titled, value_name
from recsys.profiles.population import Known, popular_from
from recsys.profiles.wishes import Listener
from recsys.tables import Catalog, Id, Queries, Slates

LIMIT = 100
_TITLE = 46
_VALUE = 26
_CHUNK = 512  # queries at a time, which bounds memory
_KEPT = 8  # supporting history items kept of each slate item
_TELLING = 2.0  # nats of shared rarity from which on shared attributes are a better reason than a usual step
_FAINT = 0.3  # nats below which a shared decade, say, is a worse reason than the item's popularity
_MEASURE = 0.25  # what a shared decade, number or band counts beside a shared name, by its rarity
_HALF_LIFE = 50  # events after which a history item supports three quarters as much
_AS_ASKED = 3  # at most so many of the values asked for are named
_GROUP = 40


@dataclass(frozen=True)
class Reasons:
    """Explains slates from histories, beside one population."""

    known: Known

    def explain(
        self,
        queries: Queries,
        slates: Slates,
        catalog: Catalog,
        wanted: Mapping[Id, Sequence[str]] | None = None,
        segments: Collection[str] = (),
    ) -> Slates:
        """The same slates, rows in the same order, with `reason` filled: at most 100 characters on one line.

        Titles come from `catalog`. A slate whose query is not among `queries` is explained as for an empty history.
        wanted   : by query_id, the values that the user asked for, by name
        segments : those whose own counts had a part in the choice of items, so that a reason may name them
        """
        lines = slates.frame.select("query_id", "rank").with_row_index("line")
        lines = lines.with_columns(pl.Series("item", self.known.vocab.encode(slates.frame["item_id"])))
        asked = self._asked(lines, wanted) if wanted else {}
        rows = queries.frame.select("query_id").with_row_index("row")
        lines = lines.join(rows, on="query_id", how="left", maintain_order="left").drop("query_id")
        titles = dict(catalog.frame.select("item_id", "title").iter_rows())
        group = self._group(lines, queries, segments) if segments and "segment" in queries.frame.columns else {}
        reasons = [self._alone(code, empty=True) for code in lines["item"]]
        supported = set()
        for start in range(0, len(queries), _CHUNK):
            some = lines.filter(pl.col("row").is_between(start, start + _CHUNK - 1)).with_columns(pl.col("row") - start)
            found = self._support(some, Queries(queries.frame.slice(start, _CHUNK)))
            for line, item, empty, again, before, shared, users, values in found.iter_rows():
                if again:
                    reasons[line] = "You have chosen this before"
                    supported.add(line)
                elif before is None or (shared < _FAINT and not users and (line in group or self._is_popular(item))):
                    reasons[line] = group.get(line) or self._alone(item, empty=empty)
                else:
                    title = titled(titles.get(self.known.vocab.ids[before], self.known.titles[before]), _TITLE)
                    reasons[line] = self._because(title, shared, users, values)
                    supported.add(line)
        for line, text in asked.items():
            both = f"{text}. {reasons[line]}"
            reasons[line] = both if line in supported and len(both) <= LIMIT else text
        return slates.with_frame(slates.frame.with_columns(pl.Series("reason", reasons, dtype=pl.String)))

    @cached_property
    def listener(self) -> Listener:
        """What reads the users' own words, beside the same population."""
        return Listener(self.known)

    @cached_property
    def _weights(self) -> pl.DataFrame:
        """item, facet, idf, size: each item's facets, their rarity in nats, and the root of its summed rarity."""
        weight = pl.when(pl.col("kind") == "value").then(1.0).otherwise(_MEASURE)
        told = self.known.population.values.filter(pl.col("kind") != "reach")  # popularity is spoken of on its own
        idf = told.select("facet", idf=(-pl.col("share").log() * weight).round(9))
        return self.known.facets.join(idf, on="facet").with_columns(size=pl.col("idf").sum().over("item").sqrt())

    @cached_property
    def _names(self) -> dict[int, str]:
        """What each facet is called in a reason: the value as the catalog has it, a number with its attribute."""
        rows = self.known.population.values.select("facet", "attribute", "value", "kind").iter_rows()
        return {
            facet: one_line(value if kind in ("value", "era") else facet_name(attribute, value, kind), _VALUE)
            for facet, attribute, value, kind in rows
        }

    @cached_property
    def _spoken(self) -> pl.DataFrame:
        """spoken, facet: what each facet may be called by who asks for it, in lower case."""
        rows = self.known.population.values.select("facet", "attribute", "value", "kind").iter_rows()
        named = [
            {"spoken": name.casefold(), "facet": facet}
            for facet, attribute, value, kind in rows
            for name in {one_line(value, VALUE_LIMIT), value_name(attribute, value), facet_name(attribute, value, kind)}
        ]
        return pl.DataFrame(named, schema={"spoken": pl.String, "facet": pl.Int32})

    def _asked(self, lines: pl.DataFrame, wanted: Mapping[Id, Sequence[str]]) -> dict[int, str]:
        """What the item of a line has of what was asked for, in words; lines whose item has nothing of it are not
        there."""
        spoken = pl.DataFrame(
            {
                "query_id": pl.Series([query for query, names in wanted.items() for _ in names]),
                "spoken": pl.Series([name.casefold() for names in wanted.values() for name in names], dtype=pl.String),
            }
        ).cast({"query_id": lines.schema["query_id"]})
        found = (
            lines.join(spoken.with_row_index("place").join(self._spoken, on="spoken"), on="query_id")
            .join(self.known.facets, on=["item", "facet"], how="semi")
            .sort("line", "place", "facet")
            .unique(["line", "spoken"], keep="first", maintain_order=True)
            .group_by("line", maintain_order=True)
            .agg(pl.col("facet").head(_AS_ASKED))
        )
        return {line: self._fitting("As you asked: ", facets) for line, facets in found.iter_rows()}

    @cached_property
    def _steps(self) -> pl.DataFrame:
        """before, item (codes), users: the population's usual steps."""
        follows, vocab = self.known.population.follows, self.known.vocab
        before, after = (pl.Series(vocab.encode(follows[c]), dtype=pl.Int32) for c in ("before", "after"))
        return pl.DataFrame({"before": before, "item": after, "users": follows["users"]}).filter(
            (pl.col("before") >= 0) & (pl.col("item") >= 0)
        )

    def _group(self, lines: pl.DataFrame, queries: Queries, segments: Collection[str]) -> dict[int, str]:
        """The lines whose item is popular within the segment of who asks, in words."""
        favourites = self.known.population.favourites
        codes = pl.Series("item", self.known.vocab.encode(favourites["item_id"]), dtype=lines.schema["item"])
        liked = favourites.select("segment", codes).filter(pl.col("segment").is_in(list(segments)))
        asked = queries.frame.select("segment").with_row_index("row")
        found = lines.join(asked, on="row").join(liked, on=["segment", "item"], how="semi")
        return {
            line: f"Popular with people in your group ({one_line(segment, _GROUP)})"
            for line, segment in found.select("line", "segment").iter_rows()
        }

    @cached_property
    def _popular_from(self) -> float:
        """Events from which on an item is popular."""
        items = self.known.population.items
        return float(items.select(popular_from(pl.col("events"))).item()) if len(items) else np.inf

    def _is_popular(self, item: int) -> bool:
        return item >= 0 and bool(self.known.events[item] >= self._popular_from)

    def _support(self, lines: pl.DataFrame, queries: Queries) -> pl.DataFrame:
        """Every line with its supporting item `before` (null for none), what they share, and what the history is."""
        histories = self.known.vocab.histories(queries)
        events = pl.DataFrame(
            {
                "row": histories.rows().astype(np.uint32),
                "before": histories.items,
                "lag": histories.lags(),
                "weight": histories.weights,
            }
        )
        like_at = self.known.population.like_at
        liked = events if like_at is None else events.filter(pl.col("weight") >= pl.lit(like_at, pl.Float32))
        liked = liked.filter(~pl.col("before").is_in(self.known.unnamed.implode()))  # a reason names it
        liked = liked.group_by("row", "before").agg(pl.col("lag").min())
        chosen = self._choose(self._scores(lines, liked), lines)
        past = events.select("row", item="before").unique().with_columns(again=pl.lit(True))
        full = events.select("row").unique().with_columns(empty=pl.lit(False))
        return (
            lines.join(chosen, on="line", how="left", maintain_order="left")
            .join(self._shared_values(chosen, lines), on="line", how="left", maintain_order="left")
            .join(past, on=["row", "item"], how="left", maintain_order="left")
            .join(full, on="row", how="left", maintain_order="left")
            .with_columns(pl.col("again").fill_null(False), pl.col("empty").fill_null(True))
            .select("line", "item", "empty", "again", "before", "shared", "users", "values")
        )

    def _scores(self, lines: pl.DataFrame, liked: pl.DataFrame) -> pl.DataFrame:
        """line, row, rank, before, shared, users, score: the best few supporting items of every line, best first."""
        own = lines.join(self._weights, on="item").select("line", "row", "item", "facet")
        theirs = liked.join(self._weights, left_on="before", right_on="item")
        shared = (
            own.join(theirs, on=["row", "facet"])
            .filter(pl.col("before") != pl.col("item"))
            .group_by("line", "before")
            .agg(shared=pl.col("idf").sum(), size=pl.col("size").first())
        )
        steps = lines.join(self._steps, on="item").join(liked, on=["row", "before"], how="semi")
        recency = 0.5 + 0.5 * (-pl.col("lag") * np.log(2) / _HALF_LIFE).exp()
        attributes = (pl.col("shared") / pl.col("size")).fill_null(0)
        usual = 0.25 * pl.col("users").log1p().fill_null(0)
        return (
            shared.join(steps.select("line", "before", "users"), on=["line", "before"], how="full", coalesce=True)
            .join(lines.select("line", "row", "rank"), on="line")
            .join(liked, on=["row", "before"])
            .with_columns(score=((attributes + usual) * recency).round(6))
            .with_columns(pl.col("shared").fill_null(0.0), pl.col("users").fill_null(0))
            .sort("line", "score", "lag", "before", descending=[False, True, False, False])
            .group_by("line", maintain_order=True)
            .head(_KEPT)
        )

    def _choose(self, scores: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
        """line, before, shared, users: one supporting item a line; each use of an item in a slate halves its score."""
        used = pl.DataFrame(schema={"row": lines.schema["row"], "before": pl.Int32, "times": pl.UInt32})
        picked = [scores.clear().select("line", "row", "before", "shared", "users")]
        for rank in sorted(scores["rank"].unique()):
            now = (
                scores.filter(pl.col("rank") == rank)
                .join(used, on=["row", "before"], how="left", maintain_order="left")
                .with_columns(pl.col("score") * 0.5 ** pl.col("times").fill_null(0))
                .sort("line", "score", descending=[False, True], maintain_order=True)
                .unique("line", keep="first", maintain_order=True)
                .select("line", "row", "before", "shared", "users")
            )
            picked.append(now)
            used = pl.concat(picked).group_by("row", "before").agg(times=pl.len())
        return pl.concat(picked).drop("row")

    def _shared_values(self, chosen: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
        """line, values: the facets that the line's item shares with its supporting item, the rarest first."""
        facets = self._weights.select("item", "facet", "idf")
        return (
            chosen.select("line", "before")
            .join(lines.select("line", "item"), on="line")
            .join(facets, on="item")
            .join(facets.select("item", "facet"), left_on=["before", "facet"], right_on=["item", "facet"])
            .sort("line", "idf", "facet", descending=[False, True, False])
            .group_by("line", maintain_order=True)
            .agg(values=pl.col("facet").head(3))
        )

    def _because(self, title: str, shared: float, users: int, values: list[int] | None) -> str:
        if users and (shared < _TELLING or not values):
            return f"Often chosen soon after {title}"
        verb = "liked" if self.known.population.like_at is not None else "chose"
        return self._fitting(f"Because you {verb} {title}: also ", values or [])

    def _fitting(self, text: str, facets: Sequence[int]) -> str:
        """The text with as many facets as fit."""
        names = [self._names[facet] for facet in facets]
        return text + ", ".join(n for i, n in enumerate(names) if len(text) + len(", ".join(names[: i + 1])) <= LIMIT)

    def _alone(self, item: int, *, empty: bool) -> str:
        """What can be said of an item that nothing in the history supports."""
        if self._is_popular(item):
            return "Popular with people here"
        return "A first suggestion, before we know you" if empty else "A step beyond what you have chosen so far"
