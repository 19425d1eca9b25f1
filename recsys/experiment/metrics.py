"""What is measured: each metric says which totals of a unit it needs, and how a variant's totals become an estimate.

The unit of the analysis is the unit that was assigned (a user), whatever the rows are (exposures, days): rows of a unit
are totalled first, so that impressions of one user never count as independent.
"""

from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats

from recsys.experiment.effects import Estimate, adjusted, ratios
from recsys.experiment.moments import Floats, Moments

Role = Literal["primary", "secondary", "guardrail"]


class Total(NamedTuple):
    """What is made of a column's values in a unit's rows: their sum, whether any is 1 ("any"), or their mean."""

    how: Literal["sum", "any", "mean"]
    column: str

    def __str__(self) -> str:
        return f"{self.how}({self.column})"


class _Metric(BaseModel):
    """What all metrics have.

    direction : where better lies
    margin    : the loss, on the metric's own scale, that is not to be reached: it is tested for non-inferiority
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    role: Role = "primary"
    direction: Literal["up", "down"] = "up"
    margin: float | None = Field(default=None, ge=0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the data, that it reads."""
        raise NotImplementedError

    @property
    def method(self) -> str:
        """In words, as the readout has it."""
        raise NotImplementedError


class _Linear(_Metric):
    """A metric whose estimates follow from the moments of its units' totals.

    covariate : one or more columns that were known before (CUPED); a prediction from such columns makes it CUPAC. They
                are the unit's own, so the mean over the unit's rows is taken; a unit without one gets all units' mean
    winsorize : units' totals above this quantile of all units' totals are set to it
    """

    covariate: str | list[str] | None = None
    winsorize: float | None = Field(default=None, gt=0.5, lt=1)

    @property
    def covariates(self) -> tuple[Total, ...]:
        """What explains variance away."""
        given = [self.covariate] if isinstance(self.covariate, str) else self.covariate or []
        return tuple(Total("mean", column) for column in given)

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
        return tuple(total.column for total in self.totals)

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


class Mean(_Linear):
    """The mean over units of the total of a column, such as clicks per user."""

    kind: Literal["mean"] = "mean"
    column: str

    @property
    def values(self) -> tuple[Total, ...]:
        return (Total("sum", self.column),)


class Proportion(_Linear):
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

    @property
    def values(self) -> tuple[Total, ...]:
        return (Total("any", self.column),)

    @property
    def _test(self) -> str:
        return "z, pooled" if self.test == "pooled" else "Welch"


class Ratio(_Linear):
    """The total of one column over the total of another, such as clicks per impression, with the unit as the cluster.

    covariate_denominator : where the covariate is a ratio, too: its denominator, of which units' totals are the sums;
                            the one covariate is then its numerator
    """

    kind: Literal["ratio"] = "ratio"
    numerator: str
    denominator: str
    covariate_denominator: str | None = None

    @model_validator(mode="after")
    def _one_to_one(self) -> Self:
        if self.covariate_denominator and len(self.covariates) != 1:
            raise ValueError("covariate_denominator needs exactly one covariate, its numerator")
        return self

    @property
    def values(self) -> tuple[Total, ...]:
        return Total("sum", self.numerator), Total("sum", self.denominator)

    @property
    def totals(self) -> tuple[Total, ...]:
        own = super().totals
        return (*own, Total("mean", self.covariate_denominator)) if self.covariate_denominator else own

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


class Quantile(_Metric):
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


Metric = Annotated[Mean | Proportion | Ratio | Quantile, Field(discriminator="kind")]

# A quantile's variance is brought to the column's scale by the quantiles that a normal interval of this level is apart.
LEVEL = 0.975


def quantile_estimate(q: float, values: Floats, below: Moments) -> Estimate:
    """A quantile over rows in one variant.

    The variance is that of the share of rows at or below it, with units as clusters (delta method), brought to the
    column's scale by the quantiles that lie that far apart (Deng, Knoblich and Lu, KDD 2018; as gbstats does). NaN
    where the rows are too few to have those.
    values : (rows,) ascending; below : over units, of how many rows lie at or below the quantile, and of how many
    """
    n = len(values)
    z = float(stats.norm.ppf(LEVEL))
    apart = z * np.sqrt(q * (1 - q) / n)
    if n < 2 or below.n < 2 or not apart < min(q, 1 - q):
        return Estimate(below.n, float(_at(values, q)) if n else np.nan, np.nan)
    low, high = _at(values, q - apart), _at(values, q + apart)
    independent = ((high - low) / (2 * z)) ** 2 * (n - 1) / n
    _, spread = ratios(below, 1)
    of_share = float(spread[0, 0]) / below.n
    return Estimate(below.n, float(_at(values, q)), independent * of_share / (q * (1 - q) / n) * below.n)


def _at(ascending: Floats, q: float) -> float:
    """Between the two values around it, as numpy's default has it."""
    place = q * (len(ascending) - 1)
    lower = int(place)
    upper = min(lower + 1, len(ascending) - 1)
    return float(ascending[lower] + (ascending[upper] - ascending[lower]) * (place - lower))
