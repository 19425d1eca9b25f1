"""What evidence rests on, in sums that add up: the tally of a history plus that of what came after is that of both.

So a profile is brought up to date at the cost of the new events, and equals one that is made from the whole history.
Counts are kept of every facet. Items are kept of the last `POOL` distinct ones: in a longer history, no older item is
an anchor or shown in support of a taste, however the tally came about.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.vocab import Histories
from recsys.profiles.population import Known
from recsys.profiles.rhythm import DAY

POOL = 500
TABLES = ("users", "facets", "pool", "window")


@dataclass(frozen=True)
class Tally:
    """users : row, events, liked_events, low_events, first, last (times), days: on how many there were events
    facets : row, facet, n, n_liked, n_low: events that carry the facet
    pool   : row, item, place, weight: the last `POOL` distinct items, each with the place (from 0) and weight
        of its last event
    window : row, item, place: the last `recent` events

    `row` is the place of a user among those that are tallied together.
    """

    users: pl.DataFrame
    facets: pl.DataFrame
    pool: pl.DataFrame
    window: pl.DataFrame
    recent: int

    USERS: ClassVar = ("row", "events", "liked_events", "low_events", "days", "first", "last")

    @classmethod
    def of(cls, histories: Histories, known: Known, recent: int) -> "Tally":
        """Count the events of histories whose items are codes of `known`'s catalog."""
        places = np.arange(len(histories.items)) - np.repeat(histories.indptr[:-1], np.diff(histories.indptr))
        frame = {
            "row": histories.rows(),
            "item": histories.items,
            "weight": histories.weights,
            "place": places,
            "time": histories.times,
        }
        events = pl.DataFrame(frame).with_columns(*opinions(known))
        sums = [pl.col(flag).sum().cast(pl.Int64) for flag in ("liked", "low")]
        span = {"first": pl.col("time").min(), "last": pl.col("time").max()}
        days = (pl.col("time") // DAY).n_unique().cast(pl.Int64).alias("days")
        users = events.group_by("row").agg(
            pl.len().cast(pl.Int64).alias("events"), *(s.name.suffix("_events") for s in sums), days, **span
        )
        users = users.select(cls.USERS)
        pairs = events.select("row", "item", "liked", "low").join(known.facets, on="item")
        facets = pairs.group_by("row", "facet").agg(
            pl.len().cast(pl.Int64).alias("n"), *(s.name.prefix("n_") for s in sums)
        )
        pool = events.select("row", "item", "place", "weight")
        return cls(users, facets, pool, events.select("row", "item", "place"), recent)._bounded()

    def __add__(self, later: "Tally") -> "Tally":
        """These histories, and what came after them."""
        before = self.users.select("row", before="events")
        moved = [
            frame.join(before, on="row", how="left")
            .with_columns(pl.col("place") + pl.col("before").fill_null(0))
            .drop("before")
            for frame in (later.pool, later.window)
        ]
        counts = ("events", "liked_events", "low_events")
        # a day that both have events on is one
        both = (pl.len() > 1) & (pl.col("last").first() // DAY == pl.col("first").last() // DAY)
        users = (
            pl.concat([self.users, later.users])
            .group_by("row")
            .agg(
                *(pl.col(name).sum() for name in counts),
                pl.col("days").sum() - both.cast(pl.Int64),
                pl.col("first").min(),
                pl.col("last").max(),
            )
            .select(self.USERS)
        )
        facets = pl.concat([self.facets, later.facets]).group_by("row", "facet").sum()
        pool, window = pl.concat([self.pool, moved[0]]), pl.concat([self.window, moved[1]])
        return Tally(users, facets, pool, window, self.recent)._bounded()

    def take(self, rows: npt.NDArray[np.integer]) -> "Tally":
        """The users at these rows, numbered anew in the order given."""
        return self._each(_numbers(rows), swap=True)

    def placed(self, rows: npt.NDArray[np.integer]) -> "Tally":
        """The same users, each at its row of a larger table: user r at rows[r]."""
        return self._each(_numbers(rows), swap=False)

    def beside(self, other: "Tally") -> "Tally":
        """All users of both, none of whom is in both; `other`'s take the place of the same rows here."""
        taken = other.users.select("row")
        kept = [getattr(self, name).join(taken, on="row", how="anti") for name in TABLES]
        return self._with(pl.concat([mine, getattr(other, name)]) for mine, name in zip(kept, TABLES, strict=True))

    def _each(self, numbers: pl.DataFrame, *, swap: bool) -> "Tally":
        old, new = ("there", "row") if swap else ("row", "there")
        keys = numbers.select(pl.col(old).alias("row"), pl.col(new).alias("to"))
        frames = (getattr(self, name) for name in TABLES)
        return self._with(f.join(keys, on="row").with_columns(row="to").drop("to") for f in frames)

    def _with(self, frames: Iterable[pl.DataFrame]) -> "Tally":
        users, facets, pool, window = frames
        return Tally(users, facets, pool, window, self.recent)

    def _bounded(self) -> "Tally":
        last = self.pool.sort("row", "place", descending=[False, True]).unique(["row", "item"], keep="first")
        pool = last.sort("row", "place", descending=[False, True]).group_by("row", maintain_order=True).head(POOL)
        window = self.window.sort("row", "place").group_by("row", maintain_order=True).tail(self.recent)
        return Tally(self.users, self.facets, pool, window, self.recent)


def _numbers(rows: npt.NDArray[np.integer]) -> pl.DataFrame:
    here = np.arange(len(rows), dtype=np.int32)
    return pl.DataFrame({"row": here, "there": rows.astype(np.int32)})


def opinions(known: Known) -> list[pl.Expr]:
    """liked, low: what an event's `weight` says by the population's thresholds."""
    like_at, dislike_at = known.population.like_at, known.population.dislike_at
    weight = pl.col("weight").cast(pl.Float32)
    liked = pl.lit(True) if like_at is None else weight.ge(np.float32(like_at))
    low = pl.lit(False) if dislike_at is None else weight.le(np.float32(dislike_at))
    return [liked.alias("liked"), low.alias("low")]
