"""The same figures for those who ask how likely it is that the treatment is better, and what a wrong choice would cost.

Means and ratios: a normal posterior, from the effect and its standard error and a normal prior around no effect (flat
where the metric names none). Proportions as they are, without covariates, strata or a prior: Beta(1, 1) before, in each
variant.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import integrate, stats

from recsys.experiment.effects import NAN, Effect, Estimate
from recsys.experiment.metrics import BaseMetric, Proportion

# Points of the grid on which two betas are compared, and how far from the mean it reaches, in deviations.
POINTS, REACH = 4001, 10.0


@dataclass(frozen=True)
class Posterior:
    """Of the treatment's effect.

    better : the chance that it is on the metric's better side
    loss   : what is lost on average, on the metric's scale, if the treatment is chosen (0 where it is not worse)
    ci     : the central credible interval of the effect
    """

    better: float
    loss: float
    ci: tuple[float, float]


UNKNOWN = Posterior(math.nan, math.nan, NAN)


def posterior(
    metric: BaseMetric,
    control: Estimate,
    treatment: Estimate,
    effect: Effect,
    confidence: float,
    *,
    stratified: bool = False,
) -> Posterior:
    """Of one comparison; NaN where there is no standard error."""
    up = metric.direction == "up"
    if isinstance(metric, Proportion) and not metric.covariates and metric.prior is None and not stratified:
        return _betas(control, treatment, confidence, up=up)
    if not (math.isfinite(effect.se) and effect.se > 0):
        return UNKNOWN
    kept = 1.0 if metric.prior is None else metric.prior**2 / (metric.prior**2 + effect.se**2)
    mean, deviation = kept * effect.effect, math.sqrt(kept) * effect.se
    z = (mean if up else -mean) / deviation
    half = float(stats.norm.ppf((1 + confidence) / 2)) * deviation
    loss = deviation * float(stats.norm.pdf(z) - z * stats.norm.sf(z))
    return Posterior(float(stats.norm.cdf(z)), loss, (mean - half, mean + half))


def _betas(control: Estimate, treatment: Estimate, confidence: float, *, up: bool) -> Posterior:
    own = []
    for e in (control, treatment):
        hits = round(e.value * e.n)
        own.append(stats.beta(1 + hits, 1 + e.n - hits))
    low = max(0.0, min(b.mean() - REACH * b.std() for b in own))
    high = min(1.0, max(b.mean() + REACH * b.std() for b in own))
    grid = np.linspace(low, high, POINTS)
    (density, other_density), (below, other_below) = [b.pdf(grid) for b in own], [b.cdf(grid) for b in own]
    higher = float(np.clip(integrate.simpson(other_density * below, x=grid), 0, 1))
    # E max(control - treatment, 0) is the integral of P(treatment < x < control).
    fall = float(integrate.simpson((1 - below) * other_below, x=grid))
    rise = float(integrate.simpson((1 - other_below) * below, x=grid))
    apart = np.linspace(-1, 1, 2 * POINTS - 1) * (high - low)
    # P(treatment - control <= d), by the convolution of what is on the grid.
    mass = np.convolve(other_density, density[::-1])
    total = np.cumsum(mass) / mass.sum()
    ends = [float(np.interp(q, total, apart)) for q in ((1 - confidence) / 2, (1 + confidence) / 2)]
    return Posterior(higher if up else 1 - higher, fall if up else rise, (ends[0], ends[1]))
