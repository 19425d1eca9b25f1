"""Ids to codes and back."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.vocab import Histories, Vocab
from recsys.tables import Catalog, Queries

ints = st.integers(-(2**63), 2**63 - 1)
texts = st.text(max_size=6)


def vocab(ids: list[int] | list[str], dtype: pl.DataType | type[pl.DataType]) -> Vocab:
    return Vocab(pl.Series(ids, dtype=dtype).unique().sort())


def queries(*histories: list[int], dtype: type[pl.DataType] = pl.Int64) -> Queries:
    n = [len(h) for h in histories]
    return Queries(
        pl.DataFrame(
            {
                "query_id": range(len(n)),
                "user_id": range(len(n)),
                "at": [99] * len(n),
                "history": list(histories),
                "weights": [[float(i) for i in range(k)] for k in n],
                "times": [list(range(k)) for k in n],
                "request": [""] * len(n),
            },
            schema_overrides={
                "history": pl.List(dtype),
                "weights": pl.List(pl.Float64),
                "times": pl.List(pl.Int64),
            },
        )
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(ints, max_size=30), st.lists(ints, max_size=30))
def test_integers_come_back_and_strangers_are_minus_one(known: list[int], asked: list[int]) -> None:
    v = vocab(known, pl.Int64)
    codes = v.encode(pl.Series(asked + known, dtype=pl.Int64))
    assert codes.dtype == np.int32
    assert [c >= 0 for c in codes] == [i in set(known) for i in asked + known]
    assert v.decode(codes[codes >= 0]).to_list() == [i for i in asked + known if i in set(known)]


@settings(deadline=None, max_examples=50)
@given(st.lists(texts, max_size=30), st.lists(texts, max_size=30))
def test_strings_come_back_and_strangers_are_minus_one(known: list[str], asked: list[str]) -> None:
    v = vocab(known, pl.String)
    codes = v.encode(pl.Series(asked + known, dtype=pl.String))
    assert [c >= 0 for c in codes] == [i in set(known) for i in asked + known]
    assert v.decode(codes[codes >= 0]).to_list() == [i for i in asked + known if i in set(known)]


def test_nulls_and_ids_of_another_type_are_unknown() -> None:
    v = vocab([1, 2], pl.Int64)
    assert v.encode(pl.Series([None, 2], dtype=pl.Int64)).tolist() == [-1, 1]
    assert v.encode(pl.Series(["1", "2"])).tolist() == [-1, -1]
    assert vocab([], pl.Int64).encode(pl.Series([1])).tolist() == [-1]


def test_codes_follow_the_ascending_order_of_the_catalog() -> None:
    catalog = Catalog(pl.DataFrame({"item_id": ["b", "a", "10", "9"], "title": ["t"] * 4, "text": ["t"] * 4}))
    v = Vocab.of_items(catalog)
    assert v.ids.to_list() == ["10", "9", "a", "b"]
    assert v.encode(catalog.frame["item_id"]).tolist() == [3, 2, 0, 1]


def test_histories_leave_strangers_out_and_keep_the_rest_aligned() -> None:
    h = vocab([10, 20, 30], pl.Int64).histories(queries([30, 99, 10], [], [99], [20]))
    assert len(h) == 4
    assert h.indptr.tolist() == [0, 2, 2, 2, 3]
    assert h.items.tolist() == [2, 0, 1]
    assert h.weights.tolist() == [0.0, 2.0, 0.0]
    assert h.times.tolist() == [0, 2, 0]
    assert h.rows().tolist() == [0, 0, 3]
    assert h.lags().tolist() == [1, 0, 0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=8), st.integers(1, 4))
def test_slices_add_up_to_the_whole(histories: list[list[int]], size: int) -> None:
    whole = vocab(list(range(0, 10, 2)), pl.Int64).histories(queries(*histories))
    parts = [whole.slice(start, start + size) for start in range(0, len(whole), size)]
    assert sum(map(len, parts)) == len(whole)
    for column in ("items", "weights", "times"):
        assert np.concatenate([getattr(p, column) for p in parts]).tolist() == getattr(whole, column).tolist()
    assert np.concatenate([np.diff(p.indptr) for p in parts]).tolist() == np.diff(whole.indptr).tolist()
    assert np.concatenate([p.lags() for p in parts]).tolist() == whole.lags().tolist()


def test_a_batch_of_histories_equals_singles() -> None:
    v, batch = vocab([1, 2, 3], pl.Int64), queries([1, 2], [3], [], [2, 2, 9])
    whole = v.histories(batch)
    for row, single in enumerate(batch.batches(1)):
        alone, part = v.histories(single), whole.slice(row, row + 1)
        assert alone.items.tolist() == part.items.tolist()
        assert alone.indptr.tolist() == part.indptr.tolist()


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String])
def test_no_history_at_all_is_an_empty_matrix(dtype: type[pl.DataType]) -> None:
    h = vocab([], dtype).histories(queries([], [], dtype=dtype))
    assert h.indptr.tolist() == [0, 0, 0]
    assert len(h.items) == len(h.rows()) == len(h.lags()) == 0


def test_what_is_made_of_histories_is_made_once_for_each_reader_and_anew_for_others() -> None:
    histories = vocab([1, 2, 3], pl.Int64).histories(queries([1, 2], [3]))
    asked: list[int] = []

    def read(them: Histories) -> int:
        asked.append(len(them))
        return len(them)

    assert [histories.derive("one", read) for _ in range(3)] == [2, 2, 2]
    assert histories.derive("other", read) == 2
    assert histories.slice(0, 1).derive("one", read) == 1
    assert asked == [2, 2, 1]


def test_segments_go_with_their_queries() -> None:
    batch = queries([1, 2], [3], [])
    whole = vocab([1, 2, 3], pl.Int64).histories(Queries(batch.frame.with_columns(segment=pl.Series(["a", None, "b"]))))
    parts = (whole, whole.slice(1, 9), whole.take(np.array([2, 0])), whole.without(np.array([0])))
    assert [part.segments.to_list() for part in parts if part.segments is not None] == [
        ["a", None, "b"],
        [None, "b"],
        ["b", "a"],
        ["a", None, "b"],
    ]
    bare = vocab([1, 2, 3], pl.Int64).histories(batch)
    assert [part.segments for part in (bare, bare.slice(0, 1), bare.take(np.array([1])))] == [None] * 3
