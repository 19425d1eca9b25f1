"""What a report is made of: plain values, in the shapes that the evaluation hands over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from recsys.metrics import Paired
from recsys.tables import Id


@dataclass(frozen=True)
class SourceRow:
    """A single candidate source beside the fusion, on the same queries.

    advantage    : the fusion's NDCG@10 minus this source's, paired by query
    contribution : the fusion's NDCG@10 minus that of a fusion that never had this source; None for a baseline
    """

    name: str
    ndcg10: float
    recall100: float
    coverage100: float
    popularity10: float
    advantage: Paired
    contribution: Paired | None


@dataclass(frozen=True)
class Weights:
    """The fitted weights of one part (the fusion, the reranker) and a sentence that says what they mean."""

    part: str
    verdict: str
    weights: Mapping[str, float]


@dataclass(frozen=True)
class HistoryRow:
    """One event of a user. when: a date, or a position in the user's history."""

    title: str
    weight: float | None
    when: str


@dataclass(frozen=True)
class SlateRow:
    """One recommended item. held_out: whether this is the item that the user really met next."""

    title: str
    score: float
    served_by: str
    reason: str
    held_out: bool = False


@dataclass(frozen=True)
class UserPage:
    """One user, shown in full.

    history : the recent events, newest first; events : how many there are in all
    model   : who wrote the profile ("template" without an LM)
    claims  : the statements of evidence that the profile rests on
    ranks   : stage -> rank of the held-out item, None where the stage's list does not hold it
    """

    user_id: Id
    history: Sequence[HistoryRow]
    events: int
    profile: str
    model: str
    claims: Sequence[str]
    slate: Sequence[SlateRow]
    held_out: str
    ranks: Mapping[str, float | None]


@dataclass(frozen=True)
class DictionaryRow:
    """One column of the dataset."""

    table: str
    column: str
    type: str
    meaning: str
    example: str


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows.

    dataset    : its name
    metrics    : the content of metrics.json
    per_query  : query_id, user_id, item_id, and per stage of `metrics["stages"]` a Float64 column of that name with
                 the rank of the held-out item, null where the stage's list does not hold it
    activity   : query_id, events (how many events the query's history holds); empty where it is not known
    run        : what else to say about how it was run (command, seed, versions), in the order given
    spec       : the spec's text
    weight_name: what a history's weight is called ("Rating" where it was one)
    """

    dataset: str
    metrics: Mapping[str, Any]
    per_query: pl.DataFrame
    activity: pl.DataFrame
    sources: Sequence[SourceRow]
    weights: Sequence[Weights]
    users: Sequence[UserPage]
    dictionary: Sequence[DictionaryRow]
    notes: Sequence[str]
    licence: str
    run: Mapping[str, str] = field(default_factory=dict)
    spec: str = ""
    weight_name: str = "Weight"
