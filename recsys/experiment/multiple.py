"""Adjusted p-values for several comparisons."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from recsys.experiment.moments import Floats

Correction = Literal["holm", "bh", "by", "none"]


def adjust(p: Sequence[float], how: Correction) -> Floats:
    """p-values adjusted for their number; NaN ones stay so and do not count.

    holm   : of the chance of any false one (Holm, 1979)
    bh, by : of the share of false ones among those found, for tests that are independent or positively dependent
             (Benjamini and Hochberg, 1995), or any (Benjamini and Yekutieli, 2001)
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = values.copy()
    known = np.isfinite(values)
    if how != "none" and known.any():
        adjusted[known] = (
            _holm(values[known]) if how == "holm" else stats.false_discovery_control(values[known], method=how)
        )
    return adjusted


def _holm(p: Floats) -> Floats:
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    found = np.empty_like(stepped)
    found[order] = stepped
    return found
