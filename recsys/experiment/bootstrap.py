"""Standard errors once more, by resampling units: a check of the formulas, not a replacement.

Each unit counts as often as a Poisson draw says, as resampling with replacement has it for many units (Chamandy,
Muralidharan, Najmi and Naidu, 2012), so units can be taken in parts.
"""

from collections.abc import Sequence

import numpy as np

from recsys.experiment.metrics import Linear
from recsys.experiment.moments import Floats, Moments
from recsys.experiment.units import Units, values_of

# Draws that are held at once.
DRAWS = 4_000_000


def resampled(units: Units, metric: Linear, names: Sequence[str], runs: int, seed: int = 0) -> dict[str, Floats]:
    """(runs,) effects of each treatment, covariates and all; NaN where a resample has none.

    names : the control first
    """
    rng = np.random.default_rng(seed)
    moments = {name: _moments(values_of(units, metric, name), runs, rng) for name in names}
    found = {}
    for name in names[1:]:
        pairs = zip(moments[names[0]], moments[name], strict=True)
        values = [metric.estimates(control, treatment)[:2] for control, treatment in pairs]
        with np.errstate(invalid="ignore"):
            found[name] = np.array([treatment.value - control.value for control, treatment in values])
    return found


def _moments(values: Floats, runs: int, rng: np.random.Generator) -> list[Moments]:
    """Of units (n, k), in each resample."""
    n, k = values.shape
    # Around the mean, so that sums of squares lose no digits.
    middle = values.mean(axis=0) if n else np.zeros(k)
    apart = values - middle
    squares = (apart[:, :, None] * apart[:, None, :]).reshape(n, k * k)
    terms = np.concatenate([np.ones((n, 1)), apart, squares], axis=1)
    sums = np.zeros((runs, terms.shape[1]))
    step = max(1, DRAWS // max(runs, 1))
    for at in range(0, n, step):
        some = terms[at : at + step]
        sums += rng.poisson(1.0, (runs, len(some))).astype(np.float64) @ some
    found = []
    for row in sums:
        count, mean = row[0], row[1 : k + 1] / max(row[0], 1)
        scatter = row[k + 1 :].reshape(k, k) - count * np.outer(mean, mean)
        found.append(Moments(int(count), middle + mean, scatter))
    return found
