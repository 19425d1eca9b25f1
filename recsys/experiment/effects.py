"""From two variants' estimates to an effect: Welch's interval, its relative form, and one that holds at every look."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recsys.experiment.moments import Floats, Moments
from recsys.experiment.sequential import always_valid_p, halfwidth


@dataclass(frozen=True)
class Estimate:
    """A metric in one variant: units, its value, and the variance of one unit's share in it, so that the value's own
    variance is `variance / n`."""

    n: int
    value: float
    variance: float


@dataclass(frozen=True)
class Effect:
    """Treatment minus control on the metric's own scale. NaN where the data do not allow a figure.

    se            : standard error; df : Welch's degrees of freedom, infinite for a normal interval
    ci, p         : two-sided, at the confidence asked for, for one look at the end
    relative      : treatment over control, minus one; NaN, as is its interval, where the control is not positive
    sequential_ci : holds at all looks together; sequential_p : may be read at any of them
    """

    effect: float
    se: float
    df: float
    ci: tuple[float, float]
    p: float
    relative: float
    relative_ci: tuple[float, float]
    sequential_ci: tuple[float, float]
    sequential_p: float


NAN = (math.nan, math.nan)
# A relative interval that reaches this far on the logarithm's scale says nothing: a value is not told from zero.
UNTOLD = 20.0


def compare(
    control: Estimate, treatment: Estimate, confidence: float, planned: int, *, normal: bool = False, pooled: float = 0
) -> Effect:
    """Welch's test (Biometrika, 1947) of two estimates.

    The relative interval is symmetric on the logarithm's scale (delta method), where both values are positive.
    planned : units of both variants at which the sequential interval is tightest
    normal  : a normal interval instead of Student's; pooled : variance of a unit in both, where it is taken as one
    """
    effect = treatment.value - control.value
    own = [pooled or e.variance for e in (control, treatment)]
    if min(control.n, treatment.n) < 2:
        return Effect(effect, math.nan, math.nan, NAN, math.nan, math.nan, NAN, NAN, math.nan)
    parts = [v / e.n for v, e in zip(own, (control, treatment), strict=True)]
    variance = sum(parts)
    if not (math.isfinite(variance) and variance > 0):
        # No unit differs from another: there is nothing to compare the effect with.
        certain = 1.0 if effect == 0 and variance == 0 else math.nan
        relative = effect / control.value if control.value > 0 else math.nan
        return Effect(effect, math.sqrt(max(variance, 0)), math.nan, NAN, certain, relative, NAN, NAN, certain)
    se = math.sqrt(variance)
    df = math.inf if normal else _degrees(parts, control, treatment)
    level, alpha = (1 + confidence) / 2, 1 - confidence
    half = se * _quantile(level, df)
    p = 2 * (stats.norm.sf(abs(effect) / se) if math.isinf(df) else stats.t.sf(abs(effect) / se, df))
    relative, relative_ci = math.nan, NAN
    if control.value > 0:
        relative = treatment.value / control.value - 1
        if treatment.value > 0:
            relative_ci = _relative(control, treatment, own, level, normal=normal)
    n = control.n + treatment.n
    wide = halfwidth(se, n, alpha, planned)
    return Effect(
        effect,
        se,
        df,
        (effect - half, effect + half),
        float(p),
        relative,
        relative_ci,
        (effect - wide, effect + wide),
        always_valid_p(effect, se, n, alpha, planned),
    )


def _relative(
    control: Estimate, treatment: Estimate, own: list[float], level: float, *, normal: bool
) -> tuple[float, float]:
    parts = [v / e.value**2 / e.n for v, e in zip(own, (control, treatment), strict=True)]
    total = sum(parts)
    df = math.inf if normal else _degrees(parts, control, treatment)
    reach = math.sqrt(total) * _quantile(level, df)
    if reach > UNTOLD:
        return NAN
    apart = math.exp(reach)
    ratio = treatment.value / control.value
    return ratio / apart - 1, ratio * apart - 1


def _degrees(parts: list[float], control: Estimate, treatment: Estimate) -> float:
    """Of freedom, by Welch and Satterthwaite, of the sum of two variances of means."""
    return sum(parts) ** 2 / sum(p**2 / (e.n - 1) for p, e in zip(parts, (control, treatment), strict=True))


def _quantile(level: float, df: float) -> float:
    return float(stats.norm.ppf(level) if math.isinf(df) else stats.t.ppf(level, df))


def adjusted(
    control: tuple[Floats, Floats, int], treatment: tuple[Floats, Floats, int], total: tuple[Floats, Floats]
) -> tuple[Estimate, Estimate]:
    """CUPED (Deng, Xu, Kohavi and Walker, WSDM 2013), for any number of covariates.

    Each of these is values (1 + c,), of the metric and its covariates, and their covariance (1 + c, 1 + c), over a
    variant's units or both variants' together. A covariate without any variance changes nothing.
    """
    values, covariance = total
    coefficients = np.linalg.pinv(covariance[1:, 1:], hermitian=True) @ covariance[1:, 0]
    contrast = np.concatenate([[1.0], -coefficients])
    found = []
    for own, spread, n in (control, treatment):
        value = own[0] - float(coefficients @ (own[1:] - values[1:]))
        found.append(Estimate(n, float(value), float(contrast @ spread @ contrast)))
    return found[0], found[1]


def ratios(moments: Moments, pairs: int) -> tuple[Floats, Floats]:
    """Ratios of means (pairs,) of columns 0 over 1, 2 over 3 and so on, and the covariance (pairs, pairs) of one unit's
    share in them, by the delta method (Deng, Knoblich and Lu, KDD 2018). NaN where a denominator's mean is zero."""
    tops, bottoms = moments.mean[0 : 2 * pairs : 2], moments.mean[1 : 2 * pairs : 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = tops / bottoms
        gradient = np.zeros((pairs, len(moments.mean)))
        rows = np.arange(pairs)
        gradient[rows, 2 * rows], gradient[rows, 2 * rows + 1] = 1 / bottoms, -values / bottoms
        return values, gradient @ moments.covariance @ gradient.T
