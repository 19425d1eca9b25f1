"""What is measured: each metric says which totals of a unit it needs, and how a variant's totals become an estimate.

The unit of the analysis is the unit that was assigned (a user), whatever the rows are (exposures, days): rows of a unit
are totalled first, so that impressions of one user never count as independent.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from recsys.experiment.effects import Effect, Estimate, adjusted, compare, ratios
from recsys.experiment.moments import Floats, Moments

Role = Literal["primary", "secondary", "guardrail"]
# Columns of the rows, where the plan names a time: the day of a row, and of its unit's exposure, as the row has it.
DAY, EXPOSED = "|day", "|exposed"


@dataclass(frozen=True)
class Total:
    """What is made of the rows of a unit; totals of one name are one.

    columns : numbers that are read; labels : columns of anything else
    expr    : over a unit's rows; where there are `slates`, over its slates
    gapless : the same where no value is missing, and cheaper; alias: the total that it then equals
    slates  : the column that tells a unit's slates apart; by_slate: what is made of the rows of each
    """

    name: str
    columns: tuple[str, ...]
    expr: pl.Expr
    gapless: pl.Expr | None = None
    alias: str | None = None
    labels: tuple[str, ...] = ()
    slates: str | None = None
    by_slate: tuple[pl.Expr, ...] = ()


def total(column: str) -> Total:
    """The sum. That of nothing but gaps is not known, and not zero."""
    own = pl.col(column)
    return Total(f"sum({column})", (column,), pl.when(own.count() > 0).then(own.sum()), own.sum())


def paired(column: str, other: str) -> Total:
    """The sum over rows that have a value of the other column, too: a row counts for both sides of a ratio or none."""
    own = pl.col(column).filter(pl.col(column).is_not_null() & pl.col(other).is_not_null())
    known = pl.when(own.count() > 0).then(own.sum())
    return Total(f"sum({column} with {other})", (column, other), known, pl.col(column).sum(), f"sum({column})")


class BaseMetric(BaseModel):
    """What all metrics have.

    direction : where better lies
    margin    : the loss, on the metric's own scale, that is not to be reached: it is tested for non-inferiority
    prior     : standard deviation of effects that are to be expected, on the metric's own scale, around zero: pulls the
                Bayesian readout towards none; without it that one knows nothing beforehand
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    role: Role = "primary"
    direction: Literal["up", "down"] = "up"
    margin: float | None = Field(default=None, ge=0)
    prior: float | None = Field(default=None, gt=0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of numbers, that it reads."""
        raise NotImplementedError

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns of anything else, that it reads."""
        return ()

    @property
    def method(self) -> str:
        """In words, as the readout has it."""
        raise NotImplementedError

    def effect(self, control: Estimate, treatment: Estimate, confidence: float, planned: int) -> Effect:
        """Treatment minus control, by the metric's test. planned : see `effects.compare`."""
        return compare(control, treatment, confidence, planned)


class Linear(BaseMetric):
    """A metric whose estimates follow from the moments of its units' totals.

    covariate : one or more columns that were known before (CUPED); a prediction from such columns makes it CUPAC. They
                are the unit's own, so the mean over the unit's rows is taken; a unit without one gets all units' mean
    winsorize : units' totals above this quantile of all units' totals are set to it
    """

    covariate: str | list[str] | None = None
    winsorize: float | None = Field(default=None, gt=0.5, lt=1)

    @field_validator("covariate")
    @classmethod
    def _each_once(cls, given: str | list[str] | None) -> str | list[str] | None:
        if isinstance(given, list) and len(set(given)) < len(given):
            raise ValueError("names a column twice")
        return given

    @model_validator(mode="after")
    def _known_before(self) -> Self:
        own = {column for value in self.values for column in value.columns}
        if both := own & {column for covariate in self.covariates for column in covariate.columns}:
            raise ValueError(f"covariate: '{min(both)}' is what is measured; a covariate was known before")
        return self

    @property
    def covariates(self) -> tuple[Total, ...]:
        """What explains variance away."""
        given = [self.covariate] if isinstance(self.covariate, str) else self.covariate or []
        return tuple(Total(f"mean({column})", (column,), pl.col(column).mean()) for column in given)

    @property
    def values(self) -> tuple[Total, ...]:
        """What is measured."""
        raise NotImplementedError

    @property
    def totals(self) -> tuple[Total, ...]:
        """The columns of the moments that it is estimated from."""
        return (*self.values, *self.covariates)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for own in self.totals for column in own.columns))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for own in self.totals for label in own.labels))

    @property
    def span(self) -> int:
        """Days after its first exposure that a unit must have been seen for; 0 where any unit counts."""
        return 0

    @property
    def method(self) -> str:
        return self._test + (", CUPED" if self.covariates else "") + (", winsorized" if self.winsorize else "")

    @property
    def _test(self) -> str:
        return "Welch"

    def estimates(self, control: Moments, treatment: Moments) -> tuple[Estimate, Estimate, float]:
        """Of both, to be compared, and how much less variance their difference has than without covariates.

        The moments are of `totals`.
        """
        plain = [(*self.linear(moments, 1), moments.n) for moments in (control, treatment)]
        before = [Estimate(n, float(value[0]), float(spread[0, 0])) for value, spread, n in plain]
        if not self.covariates:
            return before[0], before[1], 0.0
        k = 1 + len(self.covariates)
        own, other = ((*self.linear(moments, k), moments.n) for moments in (control, treatment))
        after = adjusted(own, other, self.linear(control + treatment, k))
        wide, narrow = (sum(e.variance / e.n for e in pair) for pair in (before, after))
        return *after, 1 - narrow / wide if wide > 0 else 0.0

    def linear(self, moments: Moments, k: int) -> tuple[Floats, Floats]:
        """The metric and its first covariates (k,) in one variant, and the covariance (k, k) of one unit's share."""
        return moments.mean[:k], moments.covariance[:k, :k]


class Mean(Linear):
    """The mean over units of the total of a column, such as clicks per user."""

    kind: Literal["mean"] = "mean"
    column: str

    @property
    def values(self) -> tuple[Total, ...]:
        return (total(self.column),)


class Proportion(Linear):
    """The share of units for which a column of 0 and 1 (or false and true) is 1 in any row.

    test : "welch": as a mean of zeros and ones; "pooled": the z-test with one variance for both, without a correction
           for continuity
    """

    kind: Literal["proportion"] = "proportion"
    column: str
    test: Literal["welch", "pooled"] = "welch"
    winsorize: None = None

    @model_validator(mode="after")
    def _one_or_other(self) -> Self:
        if self.test == "pooled" and self.covariates:
            raise ValueError("test = 'pooled' takes no covariate")
        return self

    def effect(self, control: Estimate, treatment: Estimate, confidence: float, planned: int) -> Effect:
        """Treatment minus control."""
        if self.test == "welch":
            return super().effect(control, treatment, confidence, planned)
        share = (control.n * control.value + treatment.n * treatment.value) / (control.n + treatment.n)
        return compare(control, treatment, confidence, planned, normal=True, pooled=share * (1 - share))

    @property
    def values(self) -> tuple[Total, ...]:
        return (Total(f"any({self.column})", (self.column,), pl.col(self.column).max()),)

    @property
    def _test(self) -> str:
        return "z, pooled" if self.test == "pooled" else "Welch"


class OfTotals(Linear):
    """A total over a total: with the unit as the cluster, whatever is divided.

    covariate_denominator : where the covariate is a ratio, too: its denominator, of which units' totals are the sums;
                            the one covariate is then its numerator
    """

    covariate_denominator: str | None = None

    @model_validator(mode="after")
    def _one_to_one(self) -> Self:
        if self.covariate_denominator and len(self.covariates) != 1:
            raise ValueError("covariate_denominator needs exactly one covariate, its numerator")
        return self

    @property
    def totals(self) -> tuple[Total, ...]:
        below = self.covariate_denominator
        more = (Total(f"mean({below})", (below,), pl.col(below).mean()),) if below else ()
        return (*super().totals, *more)

    @property
    def _test(self) -> str:
        return "delta method"

    def linear(self, moments: Moments, k: int) -> tuple[Floats, Floats]:
        if self.covariate_denominator or k == 1:
            return ratios(moments, k)
        (value,), _ = ratios(moments, 1)
        gradient = np.zeros((k, len(moments.mean)))
        with np.errstate(divide="ignore", invalid="ignore"):
            gradient[0, :2] = 1 / moments.mean[1], -value / moments.mean[1]
        gradient[np.arange(1, k), np.arange(2, k + 1)] = 1
        return np.append(value, moments.mean[2 : k + 1]), gradient @ moments.covariance @ gradient.T


class Ratio(OfTotals):
    """The total of one column over the total of another, such as clicks per impression."""

    kind: Literal["ratio"] = "ratio"
    numerator: str
    denominator: str

    @model_validator(mode="after")
    def _not_one(self) -> Self:
        if self.numerator == self.denominator:
            raise ValueError(f"denominator: is the numerator, too ('{self.numerator}')")
        return self

    @property
    def values(self) -> tuple[Total, ...]:
        return paired(self.numerator, self.denominator), paired(self.denominator, self.numerator)


class Retention(Linear):
    """The share of units that came back: with a row, some days after the first exposure.

    The plan names the time. Units that were not yet seen for so long are left out.
    days   : from the first to the last day that count, both whole; 0 is the day of the first exposure
    column : where given, only rows in which it is above zero are a return
    """

    kind: Literal["retention"] = "retention"
    days: tuple[int, int] = (7, 7)
    column: str | None = None
    winsorize: None = None

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if not 0 <= self.days[0] <= self.days[1]:
            raise ValueError(f"days: must be [from, to], from 0 on, not {list(self.days)}")
        return self

    @property
    def values(self) -> tuple[Total, ...]:
        age = (pl.col(DAY) - pl.col(EXPOSED).min()).dt.total_days()
        back = age.is_between(*self.days)
        columns: tuple[str, ...] = ()
        if self.column is not None:
            back, columns = back & (pl.col(self.column) > 0), (self.column,)
        name = f"back({self.column or ''}, {self.days[0]}, {self.days[1]})"
        return (Total(name, columns, back.fill_null(False).any().cast(pl.Float64)),)

    @property
    def span(self) -> int:
        return self.days[1]
