"""Splits: fit, tune and test logs whose union is the whole log, and the questions that each held-out part asks.

`leave-last`: a user's last event is test, the one before is tune, the rest is fit (users with two events have no
tune event; users with one are only in fit). `time`: two dates cut the log, fit < tune < test. In both, a held-out
part asks one question per user who has events in it: the user's last event there, with everything before it in the
canonical order (time, then item id) as history.
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from recsys.errors import DataError, SpecError
from recsys.tables import InteractionLog, Queries, Truth

SplitKind = Literal["leave-last", "time"]


@dataclass(frozen=True)
class Questions:
    """Queries with their held-out answers, row for row."""

    queries: Queries
    truth: Truth

    def __len__(self) -> int:
        return len(self.queries)

    def sample(self, n: int | None, seed: int) -> "Questions":
        """`n` of the questions, chosen by seed, in their own order; all of them where there are not more."""
        if n is None or n >= len(self):
            return self
        chosen = self.queries.frame.select("query_id").sample(n, seed=seed)
        keep = pl.col("query_id").is_in(chosen["query_id"].implode())
        return Questions(Queries(self.queries.frame.filter(keep)), Truth(self.truth.frame.filter(keep)))


@dataclass(frozen=True)
class Split:
    """Three disjoint logs that add up to the whole. `cuts`: the moments at which tune and test begin (`time` only)."""

    kind: SplitKind
    fit: InteractionLog
    tune: InteractionLog
    test: InteractionLog
    cuts: tuple[int, ...] = ()

    @property
    def known(self) -> InteractionLog:
        """Everything before test: fit and tune."""
        return InteractionLog.of(pl.concat([self.fit.frame, self.tune.frame]))

    def questions(self, part: Literal["tune", "test"]) -> Questions:
        """The questions of a held-out part; histories reach into every earlier event of the user, never beyond."""
        if part == "tune":
            return ask(InteractionLog.of(pl.concat([self.fit.frame, self.tune.frame])), self.tune)
        return ask(InteractionLog.of(pl.concat([self.fit.frame, self.tune.frame, self.test.frame])), self.test)


def ask(log: InteractionLog, held_out: InteractionLog) -> Questions:
    """One question per user of `held_out`: their last event of `log`, with all their earlier events as history.

    `log` must hold `held_out` as its youngest part, user by user.
    """
    users = held_out.frame.select(pl.col("user_id").unique(maintain_order=True))
    frame = (
        log.frame.join(users, on="user_id", how="semi", maintain_order="left")
        .group_by("user_id", maintain_order=True)
        .agg(
            # Of the moment of the question: a segment is known before the answer is.
            pl.col("segment").last() if "segment" in log.frame.columns else [],
            at=pl.col("ts").last(),
            answer=pl.col("item_id").last(),
            history=pl.col("item_id").slice(0, pl.len() - 1),
            weights=pl.col("weight").slice(0, pl.len() - 1),
            times=pl.col("ts").slice(0, pl.len() - 1),
        )
        .with_columns(query_id=pl.col("user_id"), request=pl.lit(""))
    )
    return Questions(
        Queries(frame.select(Queries.held(frame))),
        Truth(frame.select("query_id", item_id="answer")),
    )


def split_log(
    log: InteractionLog, kind: SplitKind, *, clock: str = "time", shares: tuple[float, float] = (0.1, 0.1)
) -> Split:
    """Split a log. For `time`, `shares` are the shares of events that go to tune and to test.

    Errors: `SpecError` for a time split of a log without timestamps, or with too few moments to cut at.
    """
    if not len(log):
        raise DataError("the log is empty: there is nothing to split")
    if kind == "leave-last":
        return _leave_last(log)
    if clock != "time":
        raise SpecError("split 'time' needs a timestamp column; this log has none, use 'leave-last'")
    ts = log.frame["ts"].sort()
    tune_at = int(ts[int(len(ts) * (1 - sum(shares)))])
    test_at = int(ts[int(len(ts) * (1 - shares[1]))])
    part = {
        "fit": log.frame.filter(pl.col("ts") < tune_at),
        "tune": log.frame.filter(pl.col("ts").is_between(tune_at, test_at, closed="left")),
        "test": log.frame.filter(pl.col("ts") >= test_at),
    }
    for name, frame in part.items():
        if not len(frame):
            raise SpecError(f"split 'time' leaves no events for {name}: too many events share one timestamp")
    fit, tune, test = (InteractionLog(frame) for frame in part.values())
    return Split("time", fit, tune, test, cuts=(tune_at, test_at))


def _leave_last(log: InteractionLog) -> Split:
    from_end = pl.len().over("user_id") - 1 - pl.int_range(pl.len()).over("user_id")
    size = pl.len().over("user_id")
    part = pl.when((from_end == 0) & (size >= 2)).then(2).when((from_end == 1) & (size >= 3)).then(1).otherwise(0)
    frame = log.frame.with_columns(part=part)
    fit, tune, test = (InteractionLog(frame.filter(pl.col("part") == p).drop("part")) for p in (0, 1, 2))
    if not len(test):
        raise DataError("every user has one event only: leave-last needs users with at least two")
    return Split("leave-last", fit, tune, test)


def k_core(log: InteractionLog, k: int) -> InteractionLog:
    """The largest part of the log in which every user and every item has at least `k` events.

    Errors: `DataError` when nothing is left.
    """
    frame = log.frame
    while True:
        kept = frame.filter((pl.len().over("user_id") >= k) & (pl.len().over("item_id") >= k))
        if len(kept) == len(frame):
            break
        frame = kept
    if not len(frame):
        raise DataError(f"no user and item have {k} events each: nothing is left after --k-core {k}")
    return InteractionLog(frame)
