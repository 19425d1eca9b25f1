"""What another policy would have earned, from the log of one that drew at random and wrote down with what chance.

For one action a session: IPS (Horvitz and Thompson, 1952), SNIPS (Swaminathan and Joachims, NeurIPS 2015), the direct
method, DR (Dudik, Langford and Li, ICML 2011) and Switch-DR (Wang, Agarwal and Dudik, ICML 2017). For slates: IPS of
whole slates; IIPS, where clicks depend on item and place only (Li et al., KDD 2018); RIPS, where they depend on the
places above as well (McInerney et al., KDD 2020); and Cascade-DR, which has a model, too (Kiyohara et al., WSDM 2022).

An estimate is only as good as the log's support: what the new policy would do and the old one never did cannot be
known. Weights average to 1 where all is covered, so a mean that is not 1 beyond chance, or a handful of sessions that
count for all, is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from recsys.errors import DataError, SpecError
from recsys.experiment.moments import Floats, clustered

Estimator = Literal["ips", "snips", "dm", "dr", "switch-dr", "iips", "rips", "cascade-dr"]
MODELLED: tuple[Estimator, ...] = ("dm", "dr", "switch-dr", "cascade-dr")
# Below so many sessions that count, or below this share of those there are, nothing is concluded; p-value of the mean
# weight being 1.
ENOUGH, SHARE, COVERED = 30, 0.001, 1e-4


@dataclass(frozen=True)
class Logged:
    """Sessions, and what two policies thought of what was shown.

    reward  : (sessions, k) at each place
    logging : (sessions, k) the chance with which each item was drawn at its place, given those above it
    target  : the same for the policy in question
    single  : for "iips": (sessions, k, 2) the chances of item and place, whatever is above, of both policies
    shown   : for estimators with a model: (sessions, k) the reward that it expects from a place on, of what was shown
              there and above, where the policy in question goes on
    wanted  : (sessions, k) the mean of the same over what the policy in question would show at this place
    cluster : (sessions,) whose session it is; sessions of one user are not independent
    """

    reward: Floats
    logging: Floats
    target: Floats
    single: Floats | None = None
    shown: Floats | None = None
    wanted: Floats | None = None
    cluster: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for name in ("logging", "target", "reward"):
            values = getattr(self, name)
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
                raise DataError(f"session {row}: {name} is missing")
        if not (self.logging > 0).all() or (self.logging > 1).any():
            row = int(np.flatnonzero(~((self.logging > 0) & (self.logging <= 1)).all(axis=1))[0])
            raise DataError(f"session {row}: logging propensities must lie in (0, 1]; what was shown had some chance")
        if (self.target < 0).any() or (self.target > 1).any():
            raise DataError("target propensities must lie in [0, 1]")


# Columns of rows, one for each place of a session's slate, and what they are in `Logged`.
NEEDED = {"reward": "reward", "propensity": "logging", "target": "target"}
MAYBE = {"shown": "shown", "wanted": "wanted"}
SINGLE = ("item_propensity", "item_target")


def logged_of(rows: pl.LazyFrame) -> Logged:
    """Of rows: session, place (from 1), reward, propensity, target; maybe shown and wanted; item_propensity and
    item_target ("single"); user_id (the cluster). Short slates are as if nothing had been shown below.

    Errors: `DataError` naming the column that is missing, or the session whose value is.
    """
    there = rows.collect_schema().names()
    if lacking := [name for name in ("session", "place", *NEEDED) if name not in there]:
        raise DataError(f"no column '{lacking[0]}'; the rows need session, place, {', '.join(NEEDED)}")
    extra = [name for name in (*MAYBE, *SINGLE) if name in there]
    schema = rows.collect_schema()
    for name in (*NEEDED, *extra):
        if not schema[name].is_numeric():
            raise DataError(f"column '{name}' holds {schema[name]}, not numbers")
    numbers = [*NEEDED, *extra]
    own = ["user_id"] if "user_id" in there else []
    frame = rows.select("session", "place", *own, *(pl.col(name).cast(pl.Float64) for name in numbers)).collect()
    if frame.is_empty():
        raise DataError("there are no rows, so nothing is known of any policy")
    frame = frame.sort("session", "place", maintain_order=True)
    for name in numbers:
        if (wrong := frame.filter(~pl.col(name).is_finite().fill_null(False))).height:
            raise DataError(f"session {wrong['session'][0]}, place {wrong['place'][0]}: '{name}' is missing")
    for name in ("propensity", *(["item_propensity"] if "item_propensity" in extra else [])):
        if (wrong := frame.filter((pl.col(name) <= 0) | (pl.col(name) > 1))).height:
            raise DataError(
                f"session {wrong['session'][0]}, place {wrong['place'][0]}: '{name}' is {wrong[name][0]:g}; what was "
                "shown was drawn with some chance, in (0, 1]"
            )
    if frame.select(pl.struct("session", "place").is_duplicated().any()).item():
        twice = frame.filter(pl.struct("session", "place").is_duplicated())
        raise DataError(f"session {twice['session'][0]}: place {twice['place'][0]} is there twice")
    session = frame["session"].rle_id().to_numpy()
    starts = np.flatnonzero(np.r_[True, session[1:] != session[:-1]])
    place = np.arange(len(session)) - starts[session]
    shape = (len(starts), int(place.max()) + 1)

    def spread(name: str, empty: float) -> Floats:
        values = np.full(shape, empty)
        values[session, place] = frame[name].to_numpy()
        return values

    arrays: dict[str, Any] = {NEEDED[name]: spread(name, 0.0 if name == "reward" else 1.0) for name in NEEDED}
    arrays |= {name: spread(name, 0.0) for name in MAYBE if name in extra}
    if set(SINGLE) <= set(extra):
        arrays["single"] = np.stack([spread(name, 1.0) for name in SINGLE], axis=2)
    if own:
        arrays["cluster"] = frame["user_id"].gather(starts).rank("dense").to_numpy()
    return Logged(**arrays)


def possible(logged: Logged) -> tuple[Estimator, ...]:
    """The estimators for which the log has what they need."""
    found: list[Estimator] = ["ips", "snips"]
    if logged.reward.shape[1] > 1:
        found += ["rips", *(["iips"] if logged.single is not None else [])]  # type: ignore[list-item]
    if logged.shown is not None and logged.wanted is not None:
        found += ["dm", "dr", "switch-dr", *(["cascade-dr"] if logged.reward.shape[1] > 1 else [])]  # type: ignore[list-item]
    return tuple(found)


@dataclass(frozen=True)
class Value:
    """A policy's mean reward a session.

    value, se, ci : NaN where it is refused
    effective     : sessions that the weights are worth, (sum w)**2 / sum w**2 (Kish); sessions : that there are
    mean_weight, largest : of the weights; clipped : share of those that were cut
    refused       : why it is not answered; empty where it is
    """

    estimator: Estimator
    value: float
    se: float
    ci: tuple[float, float]
    sessions: int
    effective: float
    mean_weight: float
    largest: float
    clipped: float
    refused: str = ""


def value_of(
    logged: Logged,
    estimator: Estimator = "snips",
    *,
    confidence: float = 0.95,
    clip: float = np.inf,
    switch: float = 10.0,
) -> Value:
    """Estimate it.

    clip   : larger weights are set to this; makes estimates steadier and biased
    switch : "switch-dr": above this weight only the model counts
    Errors: `SpecError` where the log lacks what the estimator needs.
    """
    if estimator in MODELLED and (logged.shown is None or logged.wanted is None):
        raise SpecError(f"{estimator} needs a model's expectations: shown and wanted")
    if estimator == "iips" and logged.single is None:
        raise SpecError("iips needs the chances of item and place: single")
    raw = _weights(logged, estimator)
    each = _each(logged, estimator, np.minimum(raw, clip), switch)
    value, se = _mean(each, logged.cluster)
    if estimator == "snips":
        total = np.minimum(raw[:, 0], clip)
        value = value / float(total.mean()) if total.any() else np.nan
        se = _mean(each - total * value, logged.cluster)[1] / max(float(total.mean()), 1e-300)
    own = raw.mean(axis=1)
    mean_weight, error = _mean(own, logged.cluster)
    effective = float(own.sum() ** 2 / max((own**2).sum(), 1e-300))
    refused = "" if estimator == "dm" else _refused(len(own), effective, mean_weight, error)
    if refused:
        value = se = np.nan
    half = float(stats.norm.ppf((1 + confidence) / 2)) * se
    return Value(
        estimator,
        value,
        se,
        (value - half, value + half),
        len(own),
        effective,
        mean_weight,
        float(raw.max(initial=0)),
        float((raw > clip).mean()),
        refused,
    )


def compare(logged: Logged, estimators: Sequence[Estimator], **options: float) -> pl.DataFrame:
    """A row for each estimator, with what it says of the log's own policy ("logged"), the mean reward, beside it."""
    rows = [vars(value_of(logged, estimator, **options)) for estimator in estimators]
    frame = pl.DataFrame([{**row, "low": row["ci"][0], "high": row["ci"][1]} for row in rows]).drop("ci")
    return frame.with_columns(logged=pl.lit(float(logged.reward.sum(axis=1).mean())))


def _weights(logged: Logged, estimator: Estimator) -> Floats:
    """(sessions, 1 or k): by how much each place's reward is to be weighed."""
    if estimator == "iips":
        assert logged.single is not None
        return np.asarray(logged.single[:, :, 1] / logged.single[:, :, 0], dtype=np.float64)
    ratio = np.asarray(np.cumprod(logged.target / logged.logging, axis=1), dtype=np.float64)
    return ratio if estimator in ("rips", "cascade-dr") else ratio[:, -1:]


def _each(logged: Logged, estimator: Estimator, weights: Floats, switch: float) -> Floats:
    """(sessions,) whose mean is the estimate (for "snips" before it is divided by the mean weight)."""
    reward = logged.reward if weights.shape[1] > 1 else logged.reward.sum(axis=1, keepdims=True)
    if estimator not in MODELLED:
        return np.asarray((weights * reward).sum(axis=1))
    assert logged.shown is not None
    assert logged.wanted is not None
    expected = logged.wanted[:, 0]
    if estimator == "dm":
        return expected
    if estimator == "cascade-dr":
        onward = np.concatenate([logged.wanted[:, 1:], np.zeros((len(expected), 1))], axis=1)
        return np.asarray(expected + (weights * (logged.reward + onward - logged.shown)).sum(axis=1))
    used = np.where(weights <= switch, weights, 0.0) if estimator == "switch-dr" else weights
    return np.asarray(expected + used[:, 0] * (reward[:, 0] - logged.shown[:, 0]))


def _mean(each: Floats, cluster: npt.NDArray[Any] | None) -> tuple[float, float]:
    """The mean and its standard error, with clusters of sessions as what is independent."""
    n, mean = len(each), float(each.mean())
    apart = clustered(each - mean, cluster)
    groups = len(apart)
    return mean, float(np.sqrt((apart**2).sum() * groups / max(groups - 1, 1))) / n


def _refused(sessions: int, effective: float, mean_weight: float, error: float) -> str:
    if effective < max(ENOUGH, SHARE * sessions):
        return (
            f"the log's {sessions} sessions are worth only {effective:.0f} for this policy: it does mostly what was "
            "hardly ever shown. Log with more exploration, or ask about a policy that is nearer to the log's"
        )
    if abs(mean_weight - 1) > float(stats.norm.isf(COVERED / 2)) * error + 1e-9:
        return (
            f"weights average {mean_weight:.3f} instead of 1: some of what this policy does was never shown, or the "
            "propensities are not those that were drawn from"
        )
    return ""
