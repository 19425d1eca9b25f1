"""Metrics of slates: the rows are items shown, several make a slate, and the unit that saw them is the cluster.

All are ratios: what a unit's slates have together, over how many they are, so that who sees many slates counts for more
but never as several. The order of items is the column `rank`, from 1.
"""

import math
from typing import Literal

import polars as pl
from pydantic import Field

from recsys.experiment.metrics import OfTotals, Total


class _OfSlates(OfTotals):
    """k : places from the top that count; rank : the column of places."""

    rank: str = "rank"
    k: int = Field(default=10, ge=1, le=1000)

    @property
    def _top(self) -> pl.Expr:
        return pl.col(self.rank) <= self.k


class ClickRate(_OfSlates):
    """CTR@k: clicks in the first k places over how many items were shown there.

    column : clicks; rows without a value do not count
    """

    kind: Literal["ctr_at_k"] = "ctr_at_k"
    column: str

    @property
    def values(self) -> tuple[Total, ...]:
        reads, own = (self.column, self.rank), pl.col(self.column).filter(self._top)
        of = f"({self.column}, {self.rank}, {self.k})"
        return Total(f"clicks{of}", reads, own.sum()), Total(f"places{of}", reads, own.count())


class ClickGain(_OfSlates):
    """NDCG@k with clicks as what is relevant, over slates with a click (Jarvelin and Kekalainen, TOIS 2002).

    column : clicks, more than zero for a click; slate : tells a unit's slates apart
    A slate has at most 1, also where several of its rows claim one place.
    """

    kind: Literal["ndcg_at_k"] = "ndcg_at_k"
    column: str
    slate: str

    @property
    def values(self) -> tuple[Total, ...]:
        clicked = pl.col(self.column) > 0
        gain = (clicked / (pl.col(self.rank) + 1).log(2)).filter(self._top).sum().alias("gain")
        by_slate = (gain, clicked.sum().clip(upper_bound=self.k).alias("clicks"))
        best = [math.fsum(1 / math.log2(place + 1) for place in range(1, n + 1)) for n in range(1, self.k + 1)]
        ideal = pl.col("clicks").replace_strict(list(range(1, self.k + 1)), best, default=None, return_dtype=pl.Float64)
        name, some = f"({self.column}, {self.rank}, {self.k}, {self.slate})", pl.col("clicks") > 0
        return (
            self._total(f"gain{name}", (pl.col("gain") / ideal).clip(upper_bound=1).sum(), by_slate),
            self._total(f"clicked{name}", some.sum().cast(pl.Float64), by_slate),
        )

    def _total(self, name: str, expr: pl.Expr, by_slate: tuple[pl.Expr, ...]) -> Total:
        reads = (self.column, self.rank)
        return Total(name, reads, expr, labels=(self.slate,), slates=self.slate, by_slate=by_slate)

    @property
    def _test(self) -> str:
        return "slates with a click, delta method"


class Diversity(_OfSlates):
    """The share of pairs of a slate's first k items that differ in a category (intra-list diversity), over slates.

    category : the column of an item's one category; slate : tells a unit's slates apart
    """

    kind: Literal["diversity_at_k"] = "diversity_at_k"
    category: str
    slate: str

    @property
    def values(self) -> tuple[Total, ...]:
        own = pl.col(self.category).filter(self._top & pl.col(self.category).is_not_null())
        by_slate = (
            own.len().cast(pl.Float64).alias("shown"),
            own.unique_counts().cast(pl.Float64).pow(2).sum().alias("same"),
        )
        shown, same, pairs = pl.col("shown"), pl.col("same"), pl.col("shown") > 1
        differ = ((shown**2 - same) / (shown * (shown - 1))).filter(pairs).sum()
        name = f"({self.category}, {self.rank}, {self.k}, {self.slate})"
        return (
            self._total(f"differ{name}", differ, by_slate),
            self._total(f"slates{name}", pairs.sum().cast(pl.Float64), by_slate),
        )

    def _total(self, name: str, expr: pl.Expr, by_slate: tuple[pl.Expr, ...]) -> Total:
        labels = (self.category, self.slate)
        return Total(name, (self.rank,), expr, labels=labels, slates=self.slate, by_slate=by_slate)

    @property
    def _test(self) -> str:
        return "pairs within slates, delta method"
