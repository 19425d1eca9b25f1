"""Rankings that keep to what users asked for: refused values go behind everything else, wished for ones move up.

It runs after any reranker, or none, and only moves the items that an edit is about: all others keep their order.

- Less of a value: every item that carries it goes behind every item that carries nothing refused.
- More of a value: its j-th item in the ranking, at rank r, moves to where rank min(r / lift, every * (j - 1/2)) would
  be. The first part brings up what is near the top anyway; the second makes sure that about one item in `every` + 1
  from the top down carries the value, however far down the reranker had it. With several values, these share that part
  of the ranking. An item that is both wished for and refused is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from recsys.profiles.population import Known
from recsys.profiles.wishes import Wish
from recsys.tables import Candidates, Id


@dataclass(frozen=True)
class Strength:
    """How far what is wished for moves up; refusals are strict at any strength.

    lift  : by this factor ranks get better, 1 or more
    every : so many other items stand between two that carry a wished for value, at most
    reach : so many times the usual number of candidates are looked through for it
    """

    lift: float = 3.0
    every: int = 3
    reach: int = 10


def steer(
    ranked: Candidates, wishes: Mapping[Id, Sequence[Wish]], known: Known, strength: Strength = Strength()
) -> Candidates:
    """The same items of each query, in the order that its wishes ask for; queries without wishes stay as they are.

    The scores of a query stay at their places: what moves up to a place gets the score that stood there, so that a
    score never says more than the order. Values that the population does not know change nothing.
    """
    asked = _facets(wishes, known, ranked.frame.schema["query_id"])
    rows = ranked.frame.with_row_index("row").join(asked.select("query_id").unique(), on="query_id", how="semi")
    if not len(rows):
        return ranked
    rows = rows.select("row", "query_id", "rank", pl.Series("item", known.vocab.encode(rows["item_id"])))
    carried = rows.join(asked, on="query_id").join(known.facets, on=["item", "facet"], how="semi")
    refused = carried.filter("less").select("row").unique().with_columns(refused=pl.lit(True))
    wished = (
        carried.filter(~pl.col("less"))
        .join(refused, on="row", how="anti")
        .with_columns(place=pl.col("rank").rank("ordinal").over("query_id", "facet"))
        .with_columns(fair=strength.every * (pl.col("values") * (pl.col("place") - 1) + 0.5))
        .group_by("row")
        .agg(to=pl.min_horizontal(pl.col("rank") / strength.lift, "fair").min())
    )
    moved = (
        rows.join(refused, on="row", how="left")
        .join(wished, on="row", how="left")
        .with_columns(pl.col("refused").fill_null(False), pl.coalesce("to", pl.col("rank").cast(pl.Float64)))
        .sort("query_id", "refused", "to", "rank", "row")
    )
    # What stands at a place now takes the row, the rank and the score of what stood there before.
    places = rows.sort("query_id", "rank", "row")
    taken = ranked.frame[moved["row"]].with_columns(ranked.frame[places["row"]].select("rank", "score"))
    new = ranked.frame.with_row_index("row").join(places.select("row"), on="row", how="anti")
    both = pl.concat([new, taken.with_columns(places["row"]).select(new.columns)])
    return ranked.with_frame(both.sort("row").drop("row"))


def extend(ranked: Candidates, deeper: Candidates) -> Candidates:
    """Ranked candidates, each query's followed by what `deeper` has besides, in its order.

    `deeper` is of some of the queries. A score is cut to the lowest before it, so that scores still follow the order.
    """
    first = (
        ranked.frame.with_row_index("row")
        .group_by("query_id")
        .agg(pl.col("row").min(), last=pl.col("rank").max(), lowest=pl.col("score").min())
    )
    rest = deeper.frame.join(ranked.frame, on=["query_id", "item_id"], how="anti", maintain_order="left")
    rest = rest.join(first.drop("row"), on="query_id", how="left", maintain_order="left").with_columns(
        pl.min_horizontal("score", "lowest"),
        rank=pl.col("last").fill_null(0) + pl.col("rank").rank("ordinal").over("query_id").cast(pl.Int64),
    )
    both = pl.concat([ranked.frame, rest.select(ranked.frame.columns)])
    placed = both.join(first.select("query_id", "row"), on="query_id", how="left", maintain_order="left")
    return ranked.with_frame(placed.sort("row", maintain_order=True, nulls_last=True).drop("row"))


def _facets(wishes: Mapping[Id, Sequence[Wish]], known: Known, query_id: pl.DataType) -> pl.DataFrame:
    """query_id, facet, less (bool), values (how many values the query wishes for): of the values that are known."""
    rows = [(q, w.attribute, w.value, w.direction == "less") for q, some in wishes.items() for w in some]
    schema: dict[str, Any] = {"query_id": query_id, "attribute": pl.String, "value": pl.String, "less": pl.Boolean}
    return (
        pl.DataFrame(rows, schema=schema, orient="row")
        .join(known.population.values.select("attribute", "value", "facet"), on=["attribute", "value"])
        .with_columns(values=(~pl.col("less")).sum().over("query_id").cast(pl.Int64))
        .select("query_id", "facet", "less", "values")
    )
