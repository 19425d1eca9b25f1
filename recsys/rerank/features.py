"""What a reranker knows of each candidate besides the language model's opinion: features by name, list by list.

score          : the candidate score
log_rank       : minus the natural log of the candidate's place
log_popularity : natural log of 1 + the item's events in the log that the reranker was fitted on
content        : the score of the source "content" (its lowest in the list where it has none), where there is one
score_NAME     : the same of any other source
lm             : the judge's opinion, given by the caller

All are standardised within the list, so weights compare and no query outweighs another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.vocab import Codes, Vocab
from recsys.errors import DataError, UnknownItemError
from recsys.rerank.fusion import Array, Ints, standardise
from recsys.tables import Candidates, Catalog, Id, InteractionLog, Queries, Truth

Feature = Literal["score", "log_rank", "lm", "log_popularity", "content"]
_CONTENT = "score_content"
QUIET_UP_TO = 20  # queries up to which no progress bar is shown


def popularity(log: InteractionLog) -> dict[Id, int]:
    """Events by item."""
    return dict(log.frame.group_by("item_id").len().sort("item_id").iter_rows())


def present(features: Sequence[Feature], candidates: Candidates) -> tuple[Feature, ...]:
    """The features that these candidates can have."""
    return tuple(f for f in features if f != "content" or _CONTENT in candidates.frame.columns)


def all_of_one(queries: Queries, candidates: Candidates) -> bool:
    """Whether there is one query and some candidates, all of them its own. One query at a time is how the endpoint
    asks, and a join would cost as much as all the rest."""
    asked = candidates.frame["query_id"]
    return len(queries) == 1 and len(asked) > 0 and bool((asked == queries.frame["query_id"][0]).all())


def require_asked(queries: Queries, candidates: Candidates) -> None:
    """Errors: `DataError` where a candidate's query is not among the queries."""
    if all_of_one(queries, candidates):
        return
    strangers = candidates.frame.join(queries.frame, on="query_id", how="anti")
    if len(strangers):
        raise DataError(f"Candidates: query_id {strangers['query_id'][0]!r} is not among the queries")


@dataclass(frozen=True)
class Ranked:
    """Candidate lists one after the other, each best first, in the order of their queries; no list is empty.

    frame : the candidates
    asked : (lists,) the row of each list's query among the queries
    sizes : (lists,) rows of each list
    """

    frame: pl.DataFrame
    asked: Ints
    sizes: Ints

    @classmethod
    def of(cls, queries: Queries, candidates: Candidates) -> Self:
        """All candidates. Errors: `DataError` where a candidate's query is not among the queries."""
        if all_of_one(queries, candidates):
            only = candidates.frame
            return cls.joined([only if only["rank"].is_sorted() else only.sort("rank", maintain_order=True)])
        rows = queries.frame.select("query_id").with_row_index("_asked")
        frame = candidates.frame.join(rows, on="query_id", how="left").sort("_asked", "rank", maintain_order=True)
        if frame["_asked"].null_count():
            require_asked(queries, candidates)
        asked, sizes = np.unique(frame["_asked"].to_numpy(), return_counts=True)
        return cls(frame.drop("_asked"), asked.astype(np.int64), sizes.astype(np.int64))

    @classmethod
    def joined(cls, frames: Sequence[pl.DataFrame]) -> Self:
        """Lists of one query each, none empty, as they are."""
        sizes = np.array([len(frame) for frame in frames], dtype=np.int64)
        return cls(pl.concat(frames), np.arange(len(frames)), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def sources(self) -> list[str]:
        """The columns of single sources' scores."""
        return [name for name in self.frame.columns if name.startswith("score_")]

    @property
    def starts(self) -> Ints:
        """(lists,) the row at which each begins."""
        return np.asarray(np.cumsum(self.sizes) - self.sizes, dtype=np.int64)

    @property
    def lists(self) -> Ints:
        """(rows,) the list of each row."""
        return np.repeat(np.arange(len(self)), self.sizes)

    @property
    def places(self) -> Ints:
        """(rows,) 0 for the best of each list, then 1, and so on."""
        return _places(self.sizes)

    def head(self, n: int | Ints) -> Self:
        """The first `n` of each list; n : one number, or (lists,)."""
        if (self.sizes <= n).all():
            return self
        sizes = np.minimum(self.sizes, n)
        return type(self)(self.frame.filter(self.places < np.repeat(sizes, self.sizes)), self.asked, sizes)

    def take(self, lists: npt.NDArray[np.integer]) -> Self:
        """Some of the lists, in the order given."""
        if np.array_equal(lists, np.arange(len(self))):
            return self
        return type(self)(self.frame[self.rows(lists)], self.asked[lists], self.sizes[lists])

    def rows(self, lists: npt.NDArray[np.integer]) -> Ints:
        """The rows of some of the lists, in the order given."""
        sizes = self.sizes[lists]
        return np.asarray(_places(sizes) + np.repeat(self.starts[lists], sizes), dtype=np.int64)

    def frames(self) -> list[pl.DataFrame]:
        """A frame for each list, without a copy."""
        return [self.frame.slice(at, size) for at, size in zip(self.starts, self.sizes, strict=True)]

    def answers(self, truth: Truth) -> Ints:
        """(lists,) the place of the query's answer in its list; -1 where the list does not hold it."""
        found = self.frame.select("query_id", "item_id").with_columns(
            pl.Series("place", self.places), pl.Series("list", self.lists)
        )
        found = found.join(truth.frame, on=["query_id", "item_id"], how="semi")
        places = np.full(len(self), -1, dtype=np.int64)
        places[found["list"].to_numpy()] = found["place"].to_numpy()
        return places


def _places(sizes: Ints) -> Ints:
    """0, 1, 2, ... within each of some lists of these sizes, one after the other."""
    return np.asarray(np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes), dtype=np.int64)


def candidate_codes(vocab: Vocab, items: pl.Series) -> Codes:
    """The codes of candidates. Errors: `UnknownItemError` naming the first that the vocabulary lacks."""
    codes = vocab.encode(items)
    if (codes < 0).any():
        stranger = items[int(np.flatnonzero(codes < 0)[0])]
        raise UnknownItemError(f"candidate item_id {stranger!r} is not in the catalog")
    return codes


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


def compute(names: Sequence[str], lists: Ranked, counts: Mapping[Id, int], lm: Array | None = None) -> dict[str, Array]:
    """The named features of each row of the lists. lm : (rows,).

    Errors: `DataError` where "content" is asked for and these candidates have no such source.
    """
    return dict(zip(names, standardise(raw(names, lists, counts, lm), lists.sizes).T, strict=True))


def raw(names: Sequence[str], lists: Ranked, counts: Mapping[Id, int], lm: Array | None = None) -> Array:
    """(rows, names) the same as they are, not standardised. Errors: as of `compute`."""
    found = np.empty((len(lists.frame), len(names)))
    sources = lists.sources
    for column, name in enumerate(names):
        if name == "score":
            found[:, column] = lists.frame["score"].to_numpy()
        elif name == "log_rank":
            found[:, column] = -np.log1p(lists.places)
        elif name == "log_popularity":
            items = lists.frame["item_id"].to_list()
            events = np.fromiter((counts.get(item, 0) for item in items), dtype=np.float64, count=len(items))
            found[:, column] = np.log1p(events)
        elif name == "lm" and lm is not None:
            found[:, column] = lm
        elif (source := _CONTENT if name == "content" else name) in sources:
            given = lists.frame[source].to_numpy()  # nulls become NaN
            lowest = np.nan_to_num(np.fmin.reduceat(given, lists.starts)) if len(given) else given
            found[:, column] = np.where(np.isnan(given), np.repeat(lowest, lists.sizes), given)
        else:
            raise DataError(f"candidates lack the feature '{name}' that the reranker was fitted with")
    return found
