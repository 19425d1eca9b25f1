"""From rows to units: one streaming pass that totals each unit's rows, and surveys them.

Units are taken in parts by the hash of their id, so that a part fits in memory, however many there are. The moments of
parts add up (`moments`).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.experiment.design import Experiment
from recsys.experiment.metrics import EXPOSED, Linear, Proportion, Total
from recsys.experiment.moments import Floats, Moments
from recsys.experiment.rows import CODE, Survey, asked, kept, told

# Totals that are held at once, over all units of a part: .3 GB, and some four times as much while they are summed.
CELLS = 36_000_000
# Units whose moments are taken at once: what a core's cache holds.
CHUNK = 50_000
# Names of a units' frame beside the totals.
VARIANT, OTHER, FIRST, _GROUP = "|variant", "|other", "|first", "|group"
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
    _joint: dict[str | None, dict[Group, Moments]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def frames(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """One part after the other."""
        for part in self.parts:
            yield (part.select(columns) if columns else part).collect()

    def counts(self, *labels: str) -> pl.DataFrame:
        """Units ("units") by the columns named and VARIANT."""
        by = [*labels, VARIANT]
        frame = pl.concat([f.group_by(by).len("units") for f in self.frames(by)])
        return frame.group_by(by).agg(pl.col("units").sum()).sort(by)

    @cached_property
    def whole(self) -> list[str]:
        """The totals that no unit lacks."""
        names = [name for name, kind in self.parts[0].collect_schema().items() if kind == pl.Float64]
        gaps = [part.select(pl.col(names).null_count()).collect() for part in self.parts]
        return [name for name in names if not any(frame[name][0] for frame in gaps)]

    def joint(self, label: str | None) -> dict[Group, Moments]:
        """Moments of all that is `whole`, by variant, or by value of a label and variant: worked out once."""
        if label not in self._joint:
            by, found = [*([label] if label else []), VARIANT], dict[Group, Moments]()
            for frame in self.frames([*by, *self.whole]):
                _add(found, frame, by, self.whole)
            self._joint[label] = found
        return self._joint[label]

    def column(self, name: str) -> pl.Series:
        """Of all units, without what is missing."""
        return pl.concat([frame.to_series() for frame in self.frames([name])]).drop_nulls()


@contextmanager
def read(
    rows: pl.LazyFrame, plan: Experiment, variants: Sequence[str] | None = None, cells: int = CELLS
) -> Iterator[tuple[pl.LazyFrame, Survey, Units]]:
    """The rows that count, what was found among all, and the units' totals, as of `units_of`.

    Rows are read once where they are as they should be, as most are: units are totalled along with the survey.
    Errors: `DataError` as of `told`, or for what cannot be read.
    """
    try:
        n = int(rows.select(pl.col(plan.unit).approx_n_unique()).collect(engine="streaming").item())
        asking = asked(rows, plan)
        if _parts(n, plan, cells) > 1:
            hoped, surveyed = None, pl.collect_all(asking, engine="streaming")
        else:
            *surveyed, hoped = pl.collect_all([*asking, _query(rows, plan, None)], engine="streaming")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"the data cannot be read ({str(error).splitlines()[0]})") from error
    found = told(surveyed, rows, plan, n, variants)
    rows = kept(rows, plan, found)
    with units_of(rows, plan, found, cells, hoped if found.tidy else None) as units:
        yield rows, found, units


@contextmanager
def units_of(
    rows: pl.LazyFrame, plan: Experiment, found: Survey, cells: int = CELLS, ready: pl.DataFrame | None = None
) -> Iterator[Units]:
    """Total the rows of each unit. More units than `cells` allows are kept in files until this context ends.

    rows : as of `kept`; ready : what `read` has totalled already
    """
    totals = [total for total in totals_of(plan) if total.slates is not None]
    parts = 1 if ready is not None else _parts(found.units, plan, cells)
    frames, mixed = [], []
    with tempfile.TemporaryDirectory(prefix="recsys-units-") as folder:
        for part in range(parts):
            own = rows if parts == 1 else rows.filter(pl.col(plan.unit).hash(0) % parts == part)
            frame = _query(own, plan, found).collect(engine="streaming") if ready is None else ready
            one = frame[VARIANT] == frame[OTHER]
            mixed.append(frame.filter(~one)[plan.unit])
            names = pl.Series(list(plan.shares), dtype=pl.Enum(list(plan.shares)))
            frame = frame if one.all() else frame.filter(one)
            frame = frame.drop(OTHER).with_columns(names.gather(frame[VARIANT]).alias(VARIANT))
            frame = _with_slates(frame, own, plan.unit, totals)
            if parts > 1:
                frame.write_parquet(Path(folder) / f"{part}.parquet")
            frames.append(frame.lazy() if parts == 1 else pl.scan_parquet(Path(folder) / f"{part}.parquet"))
            del frame
        yield Units(frames, pl.concat(mixed), found.last)


def _parts(units: int, plan: Experiment, cells: int) -> int:
    return max(1, -(-units * (len(totals_of(plan)) + len(plan.unit_labels) + 4) // cells))


def _query(rows: pl.LazyFrame, plan: Experiment, found: Survey | None) -> pl.LazyFrame:
    """Each unit's totals. found : None where there are hoped to be no gaps."""
    gaps = set(found.missing) if found is not None else set()
    own = [total for total in totals_of(plan) if total.slates is None]
    named = {t.name: t.name if gaps & {*t.columns} or t.gapless is None else t.alias or t.name for t in own}
    summed = {named[t.name]: t.expr if gaps & {*t.columns} or t.gapless is None else t.gapless for t in own}
    kept_columns = [plan.unit, VARIANT, OTHER, *([FIRST] if plan.time else []), *map(of, plan.unit_labels)]
    return (
        rows.group_by(plan.unit)
        .agg(
            pl.col(CODE).min().alias(VARIANT),
            pl.col(CODE).max().alias(OTHER),
            *([pl.col(EXPOSED).min().alias(FIRST)] if plan.time else []),
            *(_one(label) for label in plan.unit_labels),
            *(expr.cast(pl.Float64).alias(name) for name, expr in summed.items()),
        )
        .select(*kept_columns, *(pl.col(same).alias(name) for name, same in named.items()))
    )


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
    own = [total.name for total in metric.totals]
    by = [*([label] if label else []), VARIANT]
    found: dict[Group, Moments] = {}
    left_out = filled = 0
    if isinstance(metric, Proportion):
        _check(units, metric, own[0])
    if not metric.winsorize and not metric.span and set(own) <= set(units.whole):
        places = [units.whole.index(name) for name in own]
        found = {group: moments.take(places) for group, moments in units.joint(label).items()}
    else:
        for ready, without, lacking in _ready(units, metric, by[:-1]):
            left_out, filled = left_out + without, filled + lacking
            _add(found, ready, by, own)
    if label is None:
        found = {(name,): Moments.none(len(own)) for name in names} | found
    return {group: moments for group, moments in found.items() if group[-1] in names}, left_out, filled


def _add(found: dict[Group, Moments], frame: pl.DataFrame, by: Sequence[str], own: Sequence[str]) -> None:
    """Moments of a part's units, to what there is of each group."""
    if by == [VARIANT]:
        codes = frame[VARIANT].to_physical().to_numpy()
        keys: list[Group] = [(name,) for name in frame.schema[VARIANT].categories]  # type: ignore[attr-defined]  # of an Enum
    else:
        groups = frame.select(by).unique(maintain_order=True).with_row_index(_GROUP)
        codes = frame.select(by).join(groups, on=by, how="left", maintain_order="left")[_GROUP].to_numpy()
        keys = [tuple(map(str, key)) for key in groups.drop(_GROUP).iter_rows()]
    for at in range(0, len(frame), CHUNK):
        part = codes[at : at + CHUNK]
        order = np.argsort(part, kind="stable")
        values = frame.slice(at, CHUNK).select(own).to_numpy()[order]
        starts = np.searchsorted(part[order], np.arange(len(keys) + 1))
        for key, start, end in zip(keys, starts, starts[1:], strict=False):
            if end > start:
                moments = Moments.of(values[start:end])
                found[key] = found[key] + moments if key in found else moments


def _check(units: Units, metric: Proportion, name: str) -> None:
    odd = units.column(name).unique()
    if len(odd := odd.filter(~odd.is_in([0.0, 1.0]))):
        raise DataError(
            f"column '{metric.column}' (proportion '{metric.name}') holds {odd[0]:g}; only 0 and 1 may be there"
        )


def values_of(units: Units, metric: Linear, name: str) -> Floats:
    """(units, totals) of a variant. Errors: as of `moments_of`."""
    own = [total.name for total in metric.totals]
    if isinstance(metric, Proportion):
        _check(units, metric, own[0])
    parts = [ready.filter(pl.col(VARIANT) == name).select(own).to_numpy() for ready, _, _ in _ready(units, metric, [])]
    return np.concatenate(parts)


def _ready(units: Units, metric: Linear, labels: Sequence[str]) -> Iterator[tuple[pl.DataFrame, int, int]]:
    """By part: VARIANT, labels and the metric's totals, how many units are left out, how many lack a covariate."""
    own = [total.name for total in metric.totals]
    measured, covariates = own[: len(metric.values)], own[len(metric.values) :]
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
