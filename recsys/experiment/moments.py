"""Sufficient statistics of units, which add up: shards, days and machines can each count their own.

After gbstats' frozen statistics and the pairwise update of Chan, Golub and LeVeque (1979), which loses no digits where
means are large beside deviations, as sums of squares do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """How many units, the mean (k,) of each column over them, and the sums (k, k) of products of deviations from it."""

    n: int
    mean: Floats
    scatter: Floats

    @classmethod
    def none(cls, k: int) -> Self:
        """Of no units."""
        return cls(0, np.zeros(k), np.zeros((k, k)))

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Of units (n, k)."""
        n, k = values.shape
        if not n:
            return cls.none(k)
        mean = values.mean(axis=0)
        apart = values - mean
        return cls(n, mean, apart.T @ apart)

    def take(self, columns: Sequence[int]) -> "Moments":
        """Of some of the columns."""
        return Moments(self.n, self.mean[columns], self.scatter[np.ix_(columns, columns)])

    def __add__(self, other: "Moments") -> "Moments":
        if not self.n or not other.n:
            return other if not self.n else self
        n = self.n + other.n
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.n / n)
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, mean, scatter)

    @property
    def covariance(self) -> Floats:
        """(k, k), unbiased; NaN for fewer than two units."""
        return self.scatter / (self.n - 1) if self.n > 1 else np.full_like(self.scatter, np.nan)


def stratified(strata: Mapping[str, Mapping[str, Moments]]) -> dict[str, Moments]:
    """Moments of each variant as if strata had come in the same shares in all of them: those of all units together.

    strata : by stratum and variant; each has two units or more in every variant
    The variance is that of the post-stratified mean (Miratrix, Sekhon and Yu, JRSS B 2013): what strata explain does
    not count. So all that is estimated from moments is post-stratified.
    """
    sizes = {stratum: sum(own.n for own in variants.values()) for stratum, variants in strata.items()}
    total = sum(sizes.values())
    found = {}
    for name in next(iter(strata.values())):
        own = {stratum: variants[name] for stratum, variants in strata.items()}
        n = sum(moments.n for moments in own.values())
        weights = {stratum: size / total for stratum, size in sizes.items()}
        mean = sum((weights[s] * m.mean for s, m in own.items()), np.zeros(()))
        of_mean = sum((weights[s] ** 2 * m.covariance / m.n for s, m in own.items()), np.zeros(()))
        found[name] = Moments(n, mean, of_mean * n * (n - 1))
    return found


def clustered(values: Floats, cluster: npt.NDArray[Any] | None) -> Floats:
    """(clusters,) sums of values (rows,) over the rows of each cluster; the values themselves where there is none."""
    if cluster is None:
        return values
    return np.bincount(np.unique(cluster, return_inverse=True)[1], weights=values).astype(np.float64)
