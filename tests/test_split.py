"""Splits: nothing is lost, nothing looks ahead."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys.data.ingest import Dataset
from recsys.data.split import Split, ask, k_core, split_log
from recsys.errors import DataError, SpecError
from recsys.tables import InteractionLog

Event = tuple[int, int, int]
events = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(0, 12)), min_size=1, max_size=60
)  # user, item, ts: small ranges, so that ties and repeats are common


def log_of(rows: list[Event]) -> InteractionLog:
    return InteractionLog.of(
        pl.DataFrame(
            {
                "user_id": [r[0] for r in rows],
                "item_id": [r[1] for r in rows],
                "event": ["interaction"] * len(rows),
                "weight": [float(i) for i in range(len(rows))],
                "ts": [r[2] for r in rows],
            }
        )
    )


def parts(split: Split) -> pl.DataFrame:
    return pl.concat([split.fit.frame, split.tune.frame, split.test.frame])


def try_split(log: InteractionLog, kind: Any) -> Split | None:
    try:
        return split_log(log, kind)
    except (DataError, SpecError):
        return None


@pytest.mark.parametrize("kind", ["leave-last", "time"])
@settings(deadline=None, max_examples=60)
@given(rows=events)
def test_fit_tune_and_test_add_up_to_the_log(kind: str, rows: list[Event]) -> None:
    log = log_of(rows)
    split = try_split(log, kind)
    if split is None:
        return
    columns = log.frame.columns
    assert_frame_equal(parts(split).sort(columns), log.frame.sort(columns))
    assert_frame_equal(split.known.frame.sort(columns), pl.concat([split.fit.frame, split.tune.frame]).sort(columns))


@settings(deadline=None, max_examples=60)
@given(rows=events)
def test_a_time_split_is_strictly_ordered(rows: list[Event]) -> None:
    split = try_split(log_of(rows), "time")
    if split is None:
        return
    ts = {name: getattr(split, name).frame["ts"] for name in ("fit", "tune", "test")}
    assert ts["fit"].max() < ts["tune"].min()
    assert ts["tune"].max() < ts["test"].min()


@settings(deadline=None, max_examples=60)
@given(rows=events)
def test_leave_last_holds_out_the_last_two_events_of_each_user(rows: list[Event]) -> None:
    log = log_of(rows)
    split = try_split(log, "leave-last")
    if split is None:
        assert log.frame["user_id"].is_unique().all()
        return
    for (user,), history in log.frame.group_by("user_id", maintain_order=True):
        mine = {name: getattr(split, name).frame.filter(pl.col("user_id") == user) for name in ("fit", "tune", "test")}
        n = len(history)
        assert [len(mine[name]) for name in ("fit", "tune", "test")] == [
            max(n - 2, 1),
            1 if n >= 3 else 0,
            1 if n >= 2 else 0,
        ]
        assert_frame_equal(pl.concat(list(mine.values())), history)


@pytest.mark.parametrize("kind", ["leave-last", "time"])
@pytest.mark.parametrize("part", ["tune", "test"])
@settings(deadline=None, max_examples=60)
@given(rows=events)
def test_a_question_sees_all_that_came_before_its_answer_and_nothing_else(
    kind: str, part: Any, rows: list[Event]
) -> None:
    log = log_of(rows)
    split = try_split(log, kind)
    if split is None or not len(split.tune):
        return
    visible = split.known if part == "tune" else log
    questions = split.questions(part)
    held = getattr(split, part).frame
    assert sorted(questions.queries.frame["user_id"]) == sorted(held["user_id"].unique())
    asked = questions.queries.frame.join(questions.truth.frame, on="query_id")
    for row in asked.iter_rows(named=True):
        mine = visible.frame.filter(pl.col("user_id") == row["user_id"])
        assert row["query_id"] == row["user_id"]
        assert [*row["history"], row["item_id"]] == mine["item_id"].to_list()
        assert row["weights"] == mine["weight"].to_list()[:-1]
        assert row["times"] == mine["ts"].to_list()[:-1]
        assert row["at"] == mine["ts"][-1]
        answer = held.filter(pl.col("user_id") == row["user_id"]).tail(1)
        assert (row["item_id"], row["at"]) == (answer["item_id"].item(), answer["ts"].item())


@settings(deadline=None, max_examples=40)
@given(rows=events, seed=st.integers(0, 3))
def test_the_order_of_rows_in_the_source_changes_nothing(rows: list[Event], seed: int) -> None:
    log = log_of(rows)
    shuffled = InteractionLog.of(
        log.frame.unique(["user_id", "ts", "item_id"]).sample(fraction=1.0, shuffle=True, seed=seed)
    )
    plain = InteractionLog.of(shuffled.frame.sort("ts", "item_id", "user_id"))
    one, two = try_split(shuffled, "leave-last"), try_split(plain, "leave-last")
    assert (one is None) == (two is None)
    if one and two:
        for name in ("fit", "tune", "test"):
            assert_frame_equal(getattr(one, name).frame, getattr(two, name).frame)


def test_ties_in_time_break_by_item_id() -> None:
    split = split_log(log_of([(1, 5, 7), (1, 3, 7), (1, 4, 7)]), "leave-last")
    assert [getattr(split, name).frame["item_id"].item() for name in ("fit", "tune", "test")] == [3, 4, 5]


def test_users_with_one_or_two_events_are_fitted_and_asked_as_far_as_they_go() -> None:
    split = split_log(log_of([(1, 1, 0), (2, 1, 0), (2, 2, 1)]), "leave-last")
    assert split.fit.frame.select("user_id", "item_id").rows() == [(1, 1), (2, 1)]
    assert len(split.tune) == 0
    assert split.test.frame.select("user_id", "item_id").rows() == [(2, 2)]


def test_a_question_of_a_new_user_has_an_empty_history() -> None:
    log = log_of([(1, 1, 0), (1, 2, 1), (2, 3, 5)])
    late = InteractionLog(log.frame.filter(pl.col("ts") >= 5))
    questions = ask(log, late)
    assert questions.queries.frame["history"].to_list() == [[]]
    assert questions.truth.frame.rows() == [(2, 3)]


def test_an_empty_log_and_lone_events_are_named_errors() -> None:
    with pytest.raises(DataError, match="the log is empty"):
        split_log(log_of([(1, 1, 1)]).with_frame(log_of([(1, 1, 1)]).frame.clear()), "leave-last")
    with pytest.raises(DataError, match="every user has one event only"):
        split_log(log_of([(1, 1, 1), (2, 1, 1)]), "leave-last")


def test_a_time_split_needs_a_clock_and_distinct_moments() -> None:
    log = log_of([(1, i, 5) for i in range(20)])
    with pytest.raises(SpecError, match="needs a timestamp column"):
        split_log(log, "time", clock="position")
    with pytest.raises(SpecError, match="too many events share one timestamp"):
        split_log(log, "time")


def test_the_shares_of_a_time_split_are_shares_of_events() -> None:
    split = split_log(log_of([(i % 7, i % 11, i) for i in range(200)]), "time", shares=(0.2, 0.1))
    assert [len(split.fit), len(split.tune), len(split.test)] == [140, 40, 20]


@settings(deadline=None, max_examples=60)
@given(rows=events, k=st.integers(1, 4))
def test_a_k_core_is_the_largest_part_where_all_have_k_events(rows: list[Event], k: int) -> None:
    log = log_of(rows)
    left = list(rows)  # the definition, one removal at a time
    while True:
        users, items = [r[0] for r in left], [r[1] for r in left]
        poor = [r for r in left if users.count(r[0]) < k or items.count(r[1]) < k]
        if not poor:
            break
        left.remove(poor[0])
    if not left:
        with pytest.raises(DataError, match=f"k-core {k}"):
            k_core(log, k)
        return
    core = k_core(log, k)
    assert sorted(core.frame.select("user_id", "item_id", "ts").rows()) == sorted(left)
    assert_frame_equal(core.frame, InteractionLog.of(core.frame).frame)


def test_a_sample_of_questions_keeps_pairs_and_order(world: Dataset) -> None:
    questions = split_log(world.log, "leave-last").questions("test")
    sample = questions.sample(20, seed=3)
    assert len(sample) == 20
    assert sample.queries.frame["query_id"].to_list() == sample.truth.frame["query_id"].to_list()
    kept = questions.queries.frame.filter(pl.col("query_id").is_in(sample.queries.frame["query_id"].implode()))
    assert_frame_equal(kept, sample.queries.frame)
    assert_frame_equal(questions.sample(20, seed=3).truth.frame, sample.truth.frame)
    assert questions.sample(20, seed=4).truth.frame.rows() != sample.truth.frame.rows()
    assert questions.sample(None, seed=3) is questions
    assert questions.sample(10_000, seed=3) is questions


def test_the_world_splits_by_both_kinds(world: Dataset) -> None:
    for kind in ("leave-last", "time"):
        split = split_log(world.log, kind, clock=world.clock)  # type: ignore[arg-type]
        assert len(parts(split)) == len(world.log)
        assert len(split.questions("tune"))
        assert len(split.questions("test"))


def test_a_question_has_the_segment_of_its_moment_and_logs_without_segments_ask_without() -> None:
    frame = pl.DataFrame(
        {"user_id": [1, 1, 1, 2, 2], "item_id": [1, 2, 3, 1, 2], "ts": [1, 2, 3, 1, 2], "event": "x", "weight": 1.0}
    )
    moved = InteractionLog.of(frame.with_columns(segment=pl.Series(["home", "home", "away", None, None])))
    split = split_log(moved, "leave-last")
    assert split.questions("test").queries.frame["segment"].to_list() == ["away", None]
    assert split.questions("tune").queries.frame["segment"].to_list() == ["home"]
    assert split.known.frame["segment"].to_list() == ["home", "home", None]
    assert k_core(moved, 1).frame["segment"].to_list() == moved.frame["segment"].to_list()
    assert "segment" not in split_log(InteractionLog.of(frame), "leave-last").questions("test").queries.frame.columns
