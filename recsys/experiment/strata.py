"""The moments that variants are compared by: plain ones, or as if strata had come in the same shares in all."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from recsys.experiment.design import Experiment
from recsys.experiment.metrics import Linear
from recsys.experiment.moments import Moments, stratified
from recsys.experiment.segments import OTHER, gathered
from recsys.experiment.units import Units, moments_of, of


@dataclass(frozen=True)
class Used:
    """A metric's moments by variant: `plain` ones, and those `used` to compare.

    left_out : units without a value; filled: that got the mean of all for a covariate; small: strata put together
    """

    plain: Mapping[str, Moments]
    used: Mapping[str, Moments]
    left_out: int
    filled: int
    small: tuple[str, ...] = ()


def used_of(units: Units, metric: Linear, plan: Experiment) -> Used:
    """Errors: as of `moments_of`."""
    found, left_out, filled = moments_of(units, metric, list(plan.shares))
    plain = {name: found[(name,)] for name in plan.shares}
    if plan.strata is None:
        return Used(plain, plain, left_out, filled)
    strata, small = _strata(units, metric, plan, plan.strata)
    return Used(plain, stratified(strata) if strata else plain, left_out, filled, tuple(small))


def _strata(
    units: Units, metric: Linear, plan: Experiment, column: str
) -> tuple[dict[str, dict[str, Moments]], list[str]]:
    """Moments by stratum and variant, and the strata that are too small in some variant to stand alone: those are one,
    OTHER, and where that is too small they join the largest."""
    moments, _, _ = moments_of(units, metric, list(plan.shares), of(column))
    every = {value for value, _ in moments}
    small = sorted(every - set(_whole(gathered(moments, every), plan)))
    strata = gathered(moments, every - set(small))
    if small and OTHER not in _whole(strata, plan):
        rest = strata.pop(OTHER)
        if strata:
            largest = max(strata.values(), key=lambda own: sum(m.n for m in own.values()))
            for variant, own in rest.items():
                largest[variant] = largest[variant] + own
    return strata, small


def _whole(strata: Mapping[str, Mapping[str, Moments]], plan: Experiment) -> Iterable[str]:
    """The strata with two units or more in every variant."""
    return [s for s, own in strata.items() if all(v in own and own[v].n >= 2 for v in plan.shares)]
