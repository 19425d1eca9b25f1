"""A table that exists has passed its schema: each kind of wrong frame is refused with the column and the row."""

import polars as pl
import pytest

from recsys.errors import DataError
from recsys.tables import Candidates, Catalog, InteractionLog, Queries, Slates, adhoc_query, query_histories

QUERY = adhoc_query([1, 2, 3], user_id=7, at=50).frame


def test_a_missing_column_and_a_wrong_type_are_named():
    with pytest.raises(DataError, match="column 'text' is missing"):
        Catalog(pl.DataFrame({"item_id": [1], "title": ["a"]}))
    with pytest.raises(DataError, match="column 'item_id' is Float64, expected Int64 or String"):
        Catalog(pl.DataFrame({"item_id": [1.5], "title": ["a"], "text": ["a"]}))


def test_a_null_and_a_number_that_is_none_are_named_with_their_row():
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, None], "event": "x", "weight": 1.0, "ts": [1, 2]})
    with pytest.raises(DataError, match="'item_id' is null in row 1"):
        InteractionLog(frame)
    with pytest.raises(DataError, match="'weight' is not finite in row 0"):
        InteractionLog(frame.with_columns(item_id=pl.lit(1, dtype=pl.Int64), weight=pl.Series([float("nan"), 1.0])))


def test_a_repeated_key_is_named():
    with pytest.raises(DataError, match=r"key \(item_id\) = \(4,\) repeats, first in row 0"):
        Catalog(pl.DataFrame({"item_id": [4, 4], "title": ["a", "b"], "text": ["a", "b"]}))


def test_a_query_holds_nothing_younger_than_itself():
    with pytest.raises(DataError, match="younger than 'at' in row 0"):
        Queries(QUERY.with_columns(times=pl.Series([[1, 2, 51]])))
    assert len(Queries(QUERY.with_columns(times=pl.Series([[1, 2, 50]])))) == 1


@pytest.mark.parametrize("column", ["weights", "times"])
def test_the_lists_of_a_query_are_parallel(column):
    with pytest.raises(DataError, match=f"'{column}' is not parallel to 'history' in row 0"):
        Queries(QUERY.with_columns(pl.col(column).list.head(2)))


def test_a_propensity_lies_above_zero_and_not_above_one():
    slate = pl.DataFrame(
        {"query_id": [1], "item_id": [1], "rank": [1], "score": [0.0], "served_by": ["candidates"], "reason": [""]}
    )
    for wrong in (0.0, 1.5):
        with pytest.raises(DataError, match=r"outside \(0, 1\] in row 0"):
            Slates(slate.with_columns(propensity=pl.lit(wrong)))
    assert len(Slates(slate.with_columns(propensity=pl.lit(1.0)))) == 1


def test_an_empty_table_is_a_table():
    schema = {"query_id": pl.Int64, "item_id": pl.Int64, "score": pl.Float64, "rank": pl.Int64}
    assert len(Candidates(pl.DataFrame(schema={**schema, "source": pl.String, "served_by": pl.String}))) == 0


def test_a_segment_may_be_absent_or_null_and_is_text():
    frame = pl.DataFrame({"user_id": [2, 1, 1], "item_id": [1, 2, 1], "event": "x", "weight": 1.0, "ts": [1, 9, 5]})
    assert "segment" not in query_histories(InteractionLog.of(frame)).frame.columns
    log = InteractionLog.of(frame.with_columns(segment=pl.Series([None, "later", "before"]), session=1))
    assert log.frame.columns == [*InteractionLog.COLUMNS, "segment"]
    assert query_histories(log).frame.select("user_id", "segment").rows() == [(1, "later"), (2, None)]
    for table, whole in ((InteractionLog, log.frame), (Queries, QUERY)):
        with pytest.raises(DataError, match="column 'segment' is Int64, expected String"):
            table(whole.with_columns(segment=pl.lit(7, dtype=pl.Int64)))


def test_a_bare_question_has_a_segment_only_where_one_is_given():
    assert "segment" not in QUERY.columns
    assert adhoc_query([], segment="FR").frame["segment"].to_list() == ["FR"]
