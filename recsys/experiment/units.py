"""From rows to units: one streaming pass that totals each unit's rows.

Units are taken in parts by the hash of their id, so that a part fits in memory, however many there are. The moments of
parts add up (`moments`).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.experiment.design import Experiment
from recsys.experiment.metrics import EXPOSED, Linear, Proportion, Total
from recsys.experiment.moments import Floats, Moments
from recsys.experiment.rows import Survey

# Totals that are held at once, over all units of a part: half a gigabyte.
CELLS = 60_000_000
# Names of a units' frame beside the totals.
VARIANT, OTHER, FIRST = "|variant", "|other", "|first"
# What stands for a label that a unit has several values of, or none.
SEVERAL, UNKNOWN = "(several)", "(unknown)"
# By what moments are kept apart: a variant, or a label's value and a variant.
Group = tuple[str, ...]


def of(label: str) -> str:
    """The column of a units' frame that holds a label of the plan."""
    return f"of({label})"


@dataclass(frozen=True)
class Units:
    """Units' totals, in parts: frames with VARIANT, FIRST (day of the first exposure, where the plan has a time), the
    plan's labels (see `of`) and a column for each `Total`, by its name. Units that were in more than one variant are
    not among them.

    mixed : the ids of those; last : the last day of the data, where the plan has a time
    """

    parts: Sequence[pl.LazyFrame]
    mixed: pl.Series
    last: Any = None

    def frames(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """One part after the other."""
        for part in self.parts:
            yield (part.select(columns) if columns else part).collect()

    def counts(self, *labels: str) -> pl.DataFrame:
        """Units ("units") by the columns named and VARIANT."""
        by = [*labels, VARIANT]
        frame = pl.concat([f.group_by(by).len("units") for f in self.frames(by)])
        return frame.group_by(by).agg(pl.col("units").sum()).sort(by)

    def column(self, name: str) -> pl.Series:
        """Of all units, without what is missing."""
        return pl.concat([frame.to_series() for frame in self.frames([name])]).drop_nulls()


@contextmanager
def units_of(rows: pl.LazyFrame, plan: Experiment, found: Survey, cells: int = CELLS) -> Iterator[Units]:
    """Total the rows of each unit. More units than `cells` allows are kept in files until this context ends."""
    totals = totals_of(plan)
    aggregates = [
        pl.col(plan.variant).min().alias(VARIANT),
        pl.col(plan.variant).max().alias(OTHER),
        *([pl.col(EXPOSED).min().alias(FIRST)] if plan.time else []),
        *(_one(label) for label in plan.unit_labels),
        *(_expression(total, found) for total in totals if total.slates is None),
    ]
    parts = max(1, -(-found.units * (len(aggregates) + 1) // cells))
    frames, mixed = [], []
    with tempfile.TemporaryDirectory(prefix="recsys-units-") as folder:
        for part in range(parts):
            own = rows if parts == 1 else rows.filter(pl.col(plan.unit).hash(0) % parts == part)
            frame = own.group_by(plan.unit).agg(aggregates).collect(engine="streaming")
            one = frame[VARIANT] == frame[OTHER]
            mixed.append(frame.filter(~one)[plan.unit])
            frame = frame.filter(one).drop(OTHER)
            frame = _with_slates(frame, own, plan.unit, [total for total in totals if total.slates is not None])
            if parts > 1:
                frame.write_parquet(Path(folder) / f"{part}.parquet")
            frames.append(frame.lazy() if parts == 1 else pl.scan_parquet(Path(folder) / f"{part}.parquet"))
            del frame
        yield Units(frames, pl.concat(mixed), found.last)


def totals_of(plan: Experiment) -> list[Total]:
    """All that the plan's metrics need, each once."""
    return list({total.name: total for metric in plan.linear for total in metric.totals}.values())


def _one(label: str) -> pl.Expr:
    own = pl.col(label)
    return (
        pl.when(own.min() == own.max())
        .then(own.min())
        .when(own.count() == 0)
        .then(pl.lit(UNKNOWN))
        .otherwise(pl.lit(SEVERAL))
        .alias(of(label))
    )


def _expression(total: Total, found: Survey) -> pl.Expr:
    gaps = any(column in found.missing for column in total.columns)
    expr = total.expr if gaps or total.gapless is None else total.gapless
    return expr.alias(total.name)


def _with_slates(frame: pl.DataFrame, rows: pl.LazyFrame, unit: str, totals: Sequence[Total]) -> pl.DataFrame:
    """Beside what is there: totals of slates. Rows without a slate do not count."""
    own = {id(total.by_slate): [t for t in totals if t.by_slate is total.by_slate] for total in totals}
    for some in own.values():
        slates = some[0].slates
        assert slates is not None
        of_slates = rows.filter(pl.col(slates).is_not_null()).group_by(unit, slates).agg(some[0].by_slate)
        of_units = of_slates.group_by(unit).agg(total.expr.alias(total.name) for total in some)
        frame = frame.join(of_units.collect(engine="streaming"), on=unit, how="left")
    return frame


def moments_of(
    units: Units, metric: Linear, names: Sequence[str], label: str | None = None
) -> tuple[dict[Group, Moments], int, int]:
    """Of the metric's totals over the units of each variant, or of each value of a label and variant; how many units
    are left out since a value is missing; how many got the mean of all for a covariate that is.

    label : a column of the units' frames
    Errors: `DataError` for a proportion's value that is neither 0 nor 1.
    """
    found: dict[Group, Moments] = {} if label else {(name,): Moments.none(len(metric.totals)) for name in names}
    left_out = filled = 0
    own = [total.name for total in metric.totals]
    for ready, without, lacking in _ready(units, metric, [label] if label else []):
        left_out, filled = left_out + without, filled + lacking
        for key, frame in ready.partition_by([*([label] if label else []), VARIANT], as_dict=True).items():
            if key[-1] in names:
                group = tuple(map(str, key))
                moments = Moments.of(frame.select(own).to_numpy())
                found[group] = found[group] + moments if group in found else moments
    return found, left_out, filled


def values_of(units: Units, metric: Linear, name: str) -> Floats:
    """(units, totals) of a variant. Errors: as of `moments_of`."""
    own = [total.name for total in metric.totals]
    parts = [ready.filter(pl.col(VARIANT) == name).select(own).to_numpy() for ready, _, _ in _ready(units, metric, [])]
    return np.concatenate(parts)


def _ready(units: Units, metric: Linear, labels: Sequence[str]) -> Iterator[tuple[pl.DataFrame, int, int]]:
    """By part: VARIANT, labels and the metric's totals, how many units are left out, how many lack a covariate."""
    own = [total.name for total in metric.totals]
    measured, covariates = own[: len(metric.values)], own[len(metric.values) :]
    if isinstance(metric, Proportion):
        odd = units.column(own[0]).unique()
        if len(odd := odd.filter(~odd.is_in([0.0, 1.0]))):
            raise DataError(
                f"column '{metric.column}' (proportion '{metric.name}') holds {odd[0]:g}; only 0 and 1 may be there"
            )
    caps = {n: units.column(n).quantile(metric.winsorize, "linear") for n in measured} if metric.winsorize else {}
    means = {name: units.column(name).mean() for name in covariates}
    seen = [FIRST] if metric.span else []
    for frame in units.frames(list(dict.fromkeys([VARIANT, *labels, *seen, *own]))):
        known = frame.drop_nulls(measured)
        if metric.span:
            known = known.filter((pl.lit(units.last) - pl.col(FIRST)).dt.total_days() >= metric.span)
        lacking = (
            int(known.select(pl.any_horizontal(pl.col(n).is_null() for n in covariates).sum()).item()) if means else 0
        )
        ready = known.with_columns(
            *(pl.col(name).clip(upper_bound=cap) for name, cap in caps.items()),
            *(pl.col(name).fill_null(mean if mean is not None else 0.0) for name, mean in means.items()),
        )
        yield ready, len(frame) - len(known), lacking
