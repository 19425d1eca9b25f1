"""Metrics of a variant's rows together, which no unit has alone: quantiles, and how much of the catalog is shown."""

from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field
from scipy import special, stats

from recsys.errors import DataError
from recsys.experiment.effects import Estimate, ratios
from recsys.experiment.metrics import BaseMetric
from recsys.experiment.moments import Floats, Moments


class Pooled(BaseMetric):
    """A metric whose estimate needs all rows of a variant, with the unit as the cluster."""

    def estimate(self, rows: pl.LazyFrame, unit: str) -> Estimate:
        """Of the rows of one variant. unit : the column of units."""
        raise NotImplementedError


class Quantile(Pooled):
    """A quantile over rows, such as the median seconds of an answer, with the unit as the cluster."""

    kind: Literal["quantile"] = "quantile"
    column: str
    q: float = Field(default=0.5, gt=0, lt=1)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def method(self) -> str:
        return f"{self.q:g} quantile over rows, units as clusters"

    def estimate(self, rows: pl.LazyFrame, unit: str) -> Estimate:
        own = rows.filter(pl.col(self.column).is_not_null())
        values = own.select(self.column).collect(engine="streaming").to_series().sort().to_numpy()
        edge = float(np.quantile(values, self.q)) if len(values) else np.nan
        below = own.group_by(unit).agg((pl.col(self.column) <= edge).sum().alias("below"), pl.len().alias("of"))
        counts = below.select("below", "of").collect(engine="streaming").to_numpy().astype(np.float64)
        return quantile_estimate(self.q, values, Moments.of(counts))


class Coverage(Pooled):
    """The share of the catalog that the slates of some units show together.

    Of `users` units drawn from the variant, on average over all such draws, so that variants of different sizes
    compare: more units see more items (rarefaction: Hurlbert, Ecology 1971). It is a U-statistic, and its variance that
    of its projection on single units (Hoeffding, 1948), which is too large where `users` is a good part of a variant's.
    NaN where a variant has fewer units.
    item  : the column of items shown; items : how many the catalog has
    """

    kind: Literal["coverage"] = "coverage"
    item: str
    items: int = Field(ge=1)
    users: int = Field(default=100, ge=1)

    @property
    def columns(self) -> tuple[str, ...]:
        return ()

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.item,)

    @property
    def method(self) -> str:
        return f"share of the catalog that {self.users} units see together"

    def estimate(self, rows: pl.LazyFrame, unit: str) -> Estimate:
        seen = rows.select(unit, self.item).drop_nulls().unique().collect(engine="streaming")
        n = int(rows.select(pl.col(unit).n_unique()).collect(engine="streaming").item())
        if n < self.users:
            return Estimate(n, np.nan, np.nan)
        by_item = seen.group_by(self.item).len("units")
        if len(by_item) > self.items:
            raise DataError(
                f"column '{self.item}' holds {len(by_item)} items; coverage '{self.name}' says {self.items}"
            )
        units = by_item["units"].to_numpy().astype(np.float64)
        missed = _none(n, units, self.users)
        # How much likelier the item is to be seen where the unit is among those drawn: Hajek's projection, but for a
        # constant.
        slope = self.users * _none(n - 1, units, self.users - 1)
        shares = seen.join(by_item.with_columns(pl.Series("slope", slope)), on=self.item).group_by(unit)
        each = np.zeros(n)
        found = shares.agg(pl.col("slope").sum())["slope"].to_numpy()
        each[: len(found)] = found
        return Estimate(n, float((1 - missed).sum()) / self.items, float(each.var(ddof=1)) / self.items**2)


def _none(n: int, units: Floats, drawn: int) -> Floats:
    """The chance that none of so many units, drawn from `n`, is among the `units` (items,) that saw an item."""
    left = n - units

    def log_choose(of: Floats) -> Floats:
        return np.asarray(special.gammaln(of + 1) - special.gammaln(of - drawn + 1))

    possible = left >= drawn
    chance = np.exp(log_choose(np.where(possible, left, drawn)) - log_choose(np.array(float(n))))
    return np.where(possible, chance, 0.0)


# A quantile's variance is brought to the column's scale by the quantiles that a normal interval of this level is apart.
LEVEL = 0.975
# Share of rows with the quantile's own value, in units of how far apart those quantiles are, above which values are too
# coarse for it (counts, whole seconds).
COARSE = 0.5


def quantile_estimate(q: float, values: Floats, below: Moments) -> Estimate:
    """A quantile over rows in one variant.

    The variance is that of the share of rows at or below it, with units as clusters (delta method), brought to the
    column's scale by the quantiles that lie that far apart (Deng, Knoblich and Lu, KDD 2018; as gbstats does). NaN
    where the rows are too few to have those, or so many of them have this very value that these lie on a step.
    values : (rows,) ascending; below : over units, of how many rows lie at or below the quantile, and of how many
    """
    n = len(values)
    z = float(stats.norm.ppf(LEVEL))
    apart = z * np.sqrt(q * (1 - q) / n)
    value = float(_at(values, q)) if n else np.nan
    tied = (np.searchsorted(values, value, "right") - np.searchsorted(values, value, "left")) / max(n, 1)
    if n < 2 or below.n < 2 or not apart < min(q, 1 - q) or tied > COARSE * apart:
        return Estimate(below.n, value, np.nan)
    low, high = _at(values, q - apart), _at(values, q + apart)
    independent = ((high - low) / (2 * z)) ** 2 * (n - 1) / n
    _, spread = ratios(below, 1)
    of_share = float(spread[0, 0]) / below.n
    return Estimate(below.n, value, independent * of_share / (q * (1 - q) / n) * below.n)


def _at(ascending: Floats, q: float) -> float:
    """Between the two values around it, as numpy's default has it."""
    place = q * (len(ascending) - 1)
    lower = int(place)
    upper = min(lower + 1, len(ascending) - 1)
    return float(ascending[lower] + (ascending[upper] - ascending[lower]) * (place - lower))
