"""What a reranker knows of each candidate besides the language model's opinion: features by name, list by list.

score          : the candidate score
log_rank       : minus the natural log of the candidate's place
log_popularity : natural log of 1 + the item's events in the log that the reranker was fitted on
content        : the score of the source "content" (its lowest in the list where it has none), where there is one
lm             : the judge's opinion, given by the caller

All are standardised within the list, so weights compare and no query outweighs another.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl

from recsys.errors import DataError, UnknownItemError
from recsys.rerank.fusion import Array, standardise
from recsys.tables import Candidates, Catalog, Id, InteractionLog, Queries

Feature = Literal["score", "log_rank", "lm", "log_popularity", "content"]
_CONTENT = "score_content"
QUIET_UP_TO = 20  # queries up to which no progress bar is shown


def popularity(log: InteractionLog) -> dict[Id, int]:
    """Events by item."""
    return dict(log.frame.group_by("item_id").len().sort("item_id").iter_rows())


def present(features: Sequence[Feature], candidates: Candidates) -> tuple[Feature, ...]:
    """The features that these candidates can have."""
    return tuple(f for f in features if f != "content" or _CONTENT in candidates.frame.columns)


def require_asked(queries: Queries, candidates: Candidates) -> None:
    """Errors: `DataError` where a candidate's query is not among the queries."""
    strangers = candidates.frame.join(queries.frame, on="query_id", how="anti")
    if len(strangers):
        raise DataError(f"Candidates: query_id {strangers['query_id'][0]!r} is not among the queries")


def lists_of(queries: Queries, candidates: Candidates) -> Iterator[pl.DataFrame]:
    """The candidates of each query that has any, in the order of the queries, best first.

    Errors: `DataError` where a candidate's query is not among the queries.
    """
    require_asked(queries, candidates)
    by_query = candidates.frame.sort("rank").partition_by("query_id", as_dict=True)
    for query_id in queries.frame["query_id"]:
        if (query_id,) in by_query:
            yield by_query[(query_id,)]


def texts_of(catalog: Catalog, candidates: Sequence[pl.DataFrame], queries: pl.DataFrame, column: str) -> dict[Id, str]:
    """Title or text of all candidates, and of the histories' items that the catalog holds.

    Errors: `UnknownItemError` naming the first candidate that the catalog lacks.
    """
    seen = queries["history"].list.explode(empty_as_null=False)
    listed = [item for rows in candidates for item in rows["item_id"]]
    wanted = catalog.frame["item_id"].is_in({*seen, *listed})
    texts: dict[Id, str] = dict(catalog.frame.filter(wanted).select("item_id", column).iter_rows())
    for item in listed:
        if item not in texts:
            raise UnknownItemError(f"candidate item_id {item!r} is not in the catalog")
    return texts


def compute(
    names: Sequence[str], rows: pl.DataFrame, counts: Mapping[Id, int], lm: Array | None = None
) -> dict[str, Array]:
    """The named features of one query's candidates, given best first.

    Errors: `DataError` where "content" is asked for and these candidates have no such source.
    """
    values: dict[str, Array] = {}
    for name in names:
        if name == "score":
            raw = rows["score"].to_numpy()
        elif name == "log_rank":
            raw = -np.log(np.arange(1, len(rows) + 1))
        elif name == "log_popularity":
            raw = np.log1p([counts.get(item, 0) for item in rows["item_id"]])
        elif name == "lm" and lm is not None:
            raw = lm
        elif name == "content" and _CONTENT in rows.columns:
            raw = rows[_CONTENT].fill_null(strategy="min").fill_null(0.0).to_numpy()
        else:
            raise DataError(f"candidates lack the feature '{name}' that the reranker was fitted with")
        values[name] = standardise(np.asarray(raw, dtype=np.float64))
    return values
