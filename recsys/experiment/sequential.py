"""Looking early without fooling oneself: intervals and p-values that hold at every look, and boundaries for a few.

- Asymptotic confidence sequences by Robbins' normal mixture: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
  "Time-uniform central limit theory and asymptotic confidence sequences" (Annals of Statistics, 2024); the tuning is
  Howard, Ramdas, McAuliffe and Sekhon's (Annals of Statistics, 2021).
- mSPRT: Johari, Koomen, Pekelis and Walsh, "Peeking at A/B tests" (KDD 2017): the same mixture with its variance given
  on the effect's own scale.
- Group-sequential boundaries by error spending: Lan and DeMets (Biometrika, 1983), integrated as by Armitage, McPherson
  and Rowe (1969).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, stats

from recsys.errors import SpecError
from recsys.experiment.moments import Floats

# Points of each integral, and the |z| beyond which nothing is counted.
NODES, FAR = 400, 12.0

Spending = Literal["obrien-fleming", "pocock"]


def mixture(alpha: float, planned: float) -> float:
    """The mixture's standard deviation with which the sequence is tightest at `planned` units."""
    two = -2 * math.log(alpha)
    return math.sqrt((two + math.log(two + 1)) / planned)


def halfwidth(se: float, n: int, alpha: float, planned: float) -> float:
    """Half the width of the confidence sequence at `n` units, where the fixed interval has the standard error `se`."""
    spread = n * mixture(alpha, planned) ** 2
    return se * math.sqrt(2 * (spread + 1) / spread * math.log(math.sqrt(spread + 1) / alpha))


def always_valid_p(effect: float, se: float, n: int, alpha: float, planned: float) -> float:
    """The p-value that belongs to the confidence sequence tuned for `alpha`; at most 1."""
    spread = n * mixture(alpha, planned) ** 2
    log_evidence = (effect / se) ** 2 * spread / (2 * (spread + 1)) - math.log(spread + 1) / 2
    return math.exp(min(0.0, -log_evidence))


def msprt_p(effect: float, se: float, tau: float) -> float:
    """mSPRT's p-value at one look, for a prior N(0, `tau`**2) of the effect; the smallest of all looks may be used."""
    spread = (tau / se) ** 2
    log_evidence = (effect / se) ** 2 * spread / (2 * (spread + 1)) - math.log(spread + 1) / 2
    return math.exp(min(0.0, -log_evidence))


def spent(share: float, alpha: float, kind: Spending) -> float:
    """How much of a two-sided `alpha` may be spent by the time that a `share` of the information is there."""
    if kind == "obrien-fleming":
        return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(share)))
    return alpha * math.log(1 + (math.e - 1) * share)


def boundaries(shares: Sequence[float], alpha: float = 0.05, kind: Spending = "obrien-fleming") -> Floats:
    """Critical |z| at each look, two-sided.

    shares : of the planned information at each look, rising, the last 1 or less
    Errors: `SpecError` for shares that do not rise within (0, 1].
    """
    return np.array(_boundaries(tuple(map(float, shares)), alpha, kind))


@lru_cache(maxsize=1000)
def _boundaries(shares: tuple[float, ...], alpha: float, kind: Spending) -> tuple[float, ...]:
    if not shares or any(b <= a for a, b in zip([0.0, *shares], shares, strict=False)) or shares[-1] > 1:
        raise SpecError(f"looks must be shares of the information that rise within (0, 1], not {list(shares)}")
    found: list[float] = []
    before = last = 0.0
    # Where the score, z times the root of the information, is among those who went on: at these points, so likely.
    points, mass = np.zeros(1), np.ones(1)
    for share in shares:
        root, step = math.sqrt(share), math.sqrt(share - last)
        z = _critical(points, mass, root, step, spent(share, alpha, kind) - before)
        found.append(z)
        before, last = spent(share, alpha, kind), share
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        edge = min(z, FAR) * root
        fresh = nodes * edge
        mass = weights * edge * (stats.norm.pdf((fresh[:, None] - points) / step) / step @ mass)
        points = fresh
    return tuple(found)


def boundary_at(share: float, looks: Sequence[float], alpha: float = 0.05, kind: Spending = "obrien-fleming") -> float:
    """Critical |z| at this share of the information, where looks were planned at shares; infinite before the first.

    The look is the last one planned that is reached; those before it are taken to have been as planned.
    """
    reached = [look for look in looks if look <= share + 1e-9]
    return float(boundaries([*reached[:-1], share], alpha, kind)[-1]) if reached else math.inf


def _critical(points: Floats, mass: Floats, root: float, step: float, to_spend: float) -> float:
    """The |z| that is crossed with this probability by who did not cross before."""

    def over(z: float) -> float:
        edge = z * root
        tails = stats.norm.sf((edge - points) / step) + stats.norm.cdf((-edge - points) / step)
        return float(mass @ tails) - to_spend

    return float(optimize.brentq(over, 0, FAR)) if over(FAR) < 0 else math.inf
