"""The six tables that flow through the line: frozen wrappers over Polars frames.

A table that exists has passed its schema: constructing one checks columns, types, nulls, finite numbers and the key,
and raises `DataError` naming the column and the first bad row. Ids are Int64 or String, as the user gave them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import polars as pl

from recsys.errors import DataError

Id = int | str
ID = (pl.Int64, pl.String)
IDS = (pl.List(pl.Int64), pl.List(pl.String))
_Allowed = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """A checked frame. Subclasses name their columns, the ones that may be absent or null, and the key."""

    frame: pl.DataFrame

    COLUMNS: ClassVar[Mapping[str, _Allowed]] = {}
    OPTIONAL: ClassVar[Mapping[str, _Allowed]] = {}
    NULLABLE: ClassVar[frozenset[str]] = frozenset()
    KEY: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        held = dict(zip(self.frame.columns, self.frame.get_columns(), strict=True))
        for column, allowed in {**self.COLUMNS, **self.OPTIONAL}.items():
            if (series := held.get(column)) is None:
                if column in self.OPTIONAL:
                    continue
                raise DataError(f"{name}: column '{column}' is missing (found: {', '.join(held)})")
            if series.dtype not in allowed:
                raise DataError(f"{name}: column '{column}' is {series.dtype}, expected {_names(allowed)}")
            if column not in self.NULLABLE and series.null_count():
                raise DataError(f"{name}: column '{column}' is null in row {_first(series.is_null())}")
            # A sum is finite only where all are; a sum that overflows says nothing.
            if series.dtype.is_float() and not (math.isfinite(series.sum()) or series.is_finite().all()):
                raise DataError(f"{name}: column '{column}' is not finite in row {_first(~series.is_finite())}")
        # One column of the key that never repeats settles it, and is looked at far faster than the key.
        if self.KEY and held[self.KEY[-1]].n_unique() < len(self.frame):
            repeated = self.frame.select(pl.struct(self.KEY).is_duplicated()).to_series()
            if repeated.any():
                row = _first(repeated)
                key = self.frame.select(self.KEY).row(row)
                raise DataError(f"{name}: key ({', '.join(self.KEY)}) = {key} repeats, first in row {row}")

    def __len__(self) -> int:
        return len(self.frame)

    @classmethod
    def held(cls, frame: pl.DataFrame) -> list[str]:
        """The columns of this kind of table: all that it must have, and of the optional ones those of `frame`."""
        return [*cls.COLUMNS, *(column for column in cls.OPTIONAL if column in frame.columns)]

    def with_frame(self, frame: pl.DataFrame) -> Self:
        """The same kind of table over another frame."""
        return type(self)(frame)


def _names(allowed: _Allowed) -> str:
    return " or ".join(str(a) for a in allowed)


def _first(mask: pl.Series) -> int:
    return int(mask.fill_null(True).arg_true()[0])


class InteractionLog(Table):
    """Who met what, when. Columns:

    user_id, item_id : Int64 or String
    event            : String, the kind of event ("interaction" where the source has none)
    weight           : Float64, the rating or weight (1.0 where the source has none)
    ts               : Int64, Unix seconds; or the position in the user's history where the source has no time
    segment          : optional; String or null, the group of the user that is known before any history (country, age
                       band, device), as of the event

    Rows are in canonical order: user_id, ts, then item_id. This is how ties in time break, everywhere.
    Repeated (user, item) rows are legitimate.
    """

    COLUMNS = {"user_id": ID, "item_id": ID, "event": (pl.String,), "weight": (pl.Float64,), "ts": (pl.Int64,)}
    OPTIONAL = {"segment": (pl.String,)}
    NULLABLE = frozenset({"segment"})

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """Build from a frame in any row order."""
        return cls(frame.select(cls.held(frame)).sort("user_id", "ts", "item_id", maintain_order=True))


class Catalog(Table):
    """What can be recommended: item_id, title, text (what a text model reads), then any attribute columns.

    An attribute is String, a number, or List(String) for several values (genres, tags). The optional column
    `embedding`, Array(Float32, dim), holds a unit vector of each text; it is not an attribute.
    """

    COLUMNS = {"item_id": ID, "title": (pl.String,), "text": (pl.String,)}
    KEY = ("item_id",)

    @property
    def attributes(self) -> list[str]:
        return [c for c in self.frame.columns if c not in self.COLUMNS and c != "embedding"]


class Queries(Table):
    """Questions to the recommender, one row each: what is visible of a user at a moment, and nothing younger.

    query_id : Int64 or String, unique
    user_id  : Int64 or String; null for an anonymous visitor
    at       : Int64, the moment of the question, on the log's clock
    history  : List(item_id), oldest first; may be empty
    weights  : List(Float64), parallel to history
    times    : List(Int64), parallel to history, none above `at`
    request  : String, the user's own words; may be empty
    segment  : optional; String, the group of the user at that moment; null where it is not known
    """

    COLUMNS = {
        "query_id": ID,
        "user_id": ID,
        "at": (pl.Int64,),
        "history": IDS,
        "weights": (pl.List(pl.Float64),),
        "times": (pl.List(pl.Int64),),
        "request": (pl.String,),
    }
    OPTIONAL = {"segment": (pl.String,)}
    NULLABLE = frozenset({"user_id", "segment"})
    KEY = ("query_id",)

    def __post_init__(self) -> None:
        super().__post_init__()
        length = self.frame["history"].list.len()
        for column in ("weights", "times"):
            uneven = length != self.frame[column].list.len()
            if uneven.any():
                raise DataError(f"Queries: column '{column}' is not parallel to 'history' in row {_first(uneven)}")
        younger = (self.frame["times"].list.max() > self.frame["at"]).fill_null(False)
        if younger.any():
            raise DataError(f"Queries: column 'times' holds an event younger than 'at' in row {_first(younger)}")

    def batches(self, size: int) -> Iterator["Queries"]:
        """The same queries in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield Queries(self.frame.slice(start, size))


class Truth(Table):
    """The held-out answer of each query: query_id, item_id."""

    COLUMNS = {"query_id": ID, "item_id": ID}
    KEY = ("query_id", "item_id")


class Profiles(Table):
    """Who the user of each query is, in words, as of the query's moment.

    query_id, user_id (null if anonymous), as_of : Int64 (the youngest event used, or the query's `at`)
    text          : String, second person
    claims        : List(String), short machine-readable statements the text rests on
    evidence_hash : String, hash of the evidence that the text was written from
    prompt_id, model_id : String, which prompt and model wrote it ("template" for both without an LM)
    persona       : String, may be absent: what is said of people like this one, empty where nothing is
    level         : String, may be absent: how far the profile is one's own, "user", "persona" or "global"
    """

    COLUMNS = {
        "query_id": ID,
        "user_id": ID,
        "as_of": (pl.Int64,),
        "text": (pl.String,),
        "claims": (pl.List(pl.String),),
        "evidence_hash": (pl.String,),
        "prompt_id": (pl.String,),
        "model_id": (pl.String,),
    }
    OPTIONAL = {"persona": (pl.String,), "level": (pl.String,)}
    NULLABLE = frozenset({"user_id"})
    KEY = ("query_id",)


class Candidates(Table):
    """Items proposed for each query, best first: query_id, item_id, score, rank (1-based), source, served_by.

    source    : the generator, or the source inside a fusion, that speaks for the item most
    served_by : the stage that answered: "reranker", or "candidates" where none was asked or it failed. A reranker
                whose fitted weights keep the order that came in has answered, too.

    A generator may add a column `score_NAME` per source: that source's own score, null where it has none.
    """

    COLUMNS = {
        "query_id": ID,
        "item_id": ID,
        "score": (pl.Float64,),
        "rank": (pl.Int64,),
        "source": (pl.String,),
        "served_by": (pl.String,),
    }
    KEY = ("query_id", "item_id")

    @property
    def source_scores(self) -> list[str]:
        return [c for c in self.frame.columns if c.startswith("score_")]


class Slates(Table):
    """What is shown: query_id, item_id, rank (1-based), score, propensity in (0, 1], served_by, reason."""

    COLUMNS = {
        "query_id": ID,
        "item_id": ID,
        "rank": (pl.Int64,),
        "score": (pl.Float64,),
        "propensity": (pl.Float64,),
        "served_by": (pl.String,),
        "reason": (pl.String,),
    }
    KEY = ("query_id", "item_id")

    def __post_init__(self) -> None:
        super().__post_init__()
        outside = ~self.frame["propensity"].is_between(0, 1, closed="right")
        if outside.any():
            raise DataError(f"Slates: column 'propensity' is outside (0, 1] in row {_first(outside)}")


def query_histories(log: InteractionLog) -> Queries:
    """One query per user of `log`, at the user's last event, with the whole log as history; query_id = user_id.

    A user's segment is that of the last event.
    """
    frame = log.frame.group_by("user_id", maintain_order=True).agg(
        pl.col("segment").last() if "segment" in log.frame.columns else [],
        at=pl.col("ts").max(),
        history=pl.col("item_id"),
        weights=pl.col("weight"),
        times=pl.col("ts"),
    )
    frame = frame.with_columns(query_id=pl.col("user_id"), request=pl.lit(""))
    return Queries(frame.select(Queries.held(frame)))


def adhoc_query(
    history: Sequence[Id],
    *,
    user_id: Id | None = None,
    query_id: Id = "adhoc",
    at: int = 0,
    weight: float = 1.0,
    dtype: Any = None,
    segment: str | None = None,
) -> Queries:
    """One query from a bare list of items (oldest first), as the endpoint gets it; all of one weight, all `at`."""
    dtype = dtype or (pl.String if any(isinstance(i, str) for i in history) else pl.Int64)
    n = len(history)
    return Queries(
        pl.DataFrame(
            {
                "query_id": [query_id],
                "user_id": [user_id],
                "at": [at],
                "history": [list(history)],
                "weights": [[weight] * n],
                "times": [[at] * n],
                "request": [""],
                **({} if segment is None else {"segment": [segment]}),
            },
            schema_overrides={
                "user_id": pl.String if isinstance(user_id, str) or user_id is None else pl.Int64,
                "history": pl.List(dtype),
                "weights": pl.List(pl.Float64),
                "times": pl.List(pl.Int64),
            },
        )
    )
