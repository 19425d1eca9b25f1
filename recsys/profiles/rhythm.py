"""How often a user comes back, beside other people: the mean number of days from one day with choices to the next.

Many logs hold one sitting of each user, of which nothing can be said; so nothing is said of who came on fewer than
`DAYS` days, or where times are places in a history.
"""

import math
from dataclasses import dataclass

import polars as pl

DAY = 86_400  # seconds
PACE, OFTEN, SELDOM = "pace", "often", "seldom"
DAYS = 4  # with events, from which on there is a rhythm
_PEOPLE = 20  # fewer are no yardstick
_TENTH = 0.1  # of all people, at either end, are told
_FAR = 1.5  # times the middle, since in a log of equals the tenth is like everybody


@dataclass(frozen=True)
class Paces:
    """Days between visits: of the tenth of people who come most often, of the middle one of those who come back, and
    of the tenth who come least often. None where the people there came too rarely to tell.
    """

    often_at: float | None = None
    middle: float | None = None
    seldom_at: float | None = None

    @classmethod
    def of(cls, events: pl.DataFrame) -> "Paces":
        """From `user_id` and `ts` (seconds) of everybody's events. Who came on too few days comes least often."""
        day = pl.col("ts") // DAY
        people = events.group_by("user_id").agg(days=day.n_unique(), span=day.max() - day.min())
        gap = pl.when(pl.col("days") >= DAYS).then(pl.col("span") / (pl.col("days") - 1)).otherwise(math.inf)
        gaps = people.select(gap.alias("gap"))["gap"].sort()
        again = gaps.filter(gaps.is_finite())
        if len(gaps) < _PEOPLE or not len(again):
            return cls()
        ends = (gaps.quantile(q, "nearest") for q in (_TENTH, 1 - _TENTH))
        often, seldom = (None if end is None or math.isinf(end) else float(end) for end in ends)
        return cls(often, float(again.quantile(0.5, "nearest") or 1.0), seldom)

    def told(self, days: int, first: int, last: int) -> tuple[str, float] | None:
        """OFTEN or SELDOM, and how many times as often as the middle person; None where it is nothing to speak of.

        days : on which there were events; first, last : times of the first and the last event (seconds)
        """
        if days < DAYS or self.middle is None:
            return None
        gap = (last // DAY - first // DAY) / (days - 1)
        times = round(self.middle / gap, 2)
        if self.often_at is not None and gap <= self.often_at and times >= _FAR:
            return OFTEN, times
        if self.seldom_at is not None and gap >= self.seldom_at and times * _FAR <= 1:
            return SELDOM, times
        return None
