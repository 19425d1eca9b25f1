"""An experiment as it was planned: who is assigned what, what is measured, and when it may be concluded."""

import math
import tomllib
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys.errors import SpecError
from recsys.experiment.assign import takes_part, variants_of
from recsys.experiment.metrics import Linear, Mean, Proportion, Ratio, Retention
from recsys.experiment.multiple import Correction
from recsys.experiment.pooled import Coverage, Quantile
from recsys.experiment.sequential import Spending
from recsys.experiment.slates import ClickGain, ClickRate, Diversity

Metric = Annotated[
    Mean | Proportion | Ratio | Quantile | Retention | ClickRate | ClickGain | Diversity | Coverage,
    Field(discriminator="kind"),
]


class Experiment(BaseModel):
    """The plan.

    unit, variant : columns of the data; `unit` is who was assigned
    control       : the variant that others are compared with; shares : of units, by variant; they sum to 1
    salt          : of the assignment; the name, where none is given
    layer, traffic: the part [from, to) of a layer's units that takes part; experiments of one layer whose parts do not
                    overlap share no unit
    time, start, end : the column of an exposure's time, and the days (both whole) on which rows count; others are left
                    out, and counted
    exposed       : the column of the moment when a row's unit was exposed; rows from before it are left out, and
                    counted. Without it a unit is exposed by its first row
    min_days      : before so many days no decision is given
    segments      : columns by whose values effects are told apart, too, with one correction for all of them
    strata        : the column by whose values units are post-stratified: variants are compared as if all had units of
                    each value in the same shares
    served_by     : the column that says which stage answered, to see how much of a variant it really was
    confidence    : of every interval; correction : of p-values, for all comparisons together
    planned       : units at which sequential intervals are tightest; any number holds, but it must not depend on what
                    has come in
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    unit: str = "user_id"
    variant: str = "variant"
    control: str
    shares: dict[str, float]
    salt: str = ""
    layer: str = ""
    traffic: tuple[float, float] = (0.0, 1.0)
    time: str | None = None
    start: date | None = None
    end: date | None = None
    exposed: str | None = None
    min_days: int = Field(default=0, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    correction: Correction = "holm"
    planned: int = Field(default=10_000, ge=1)
    looks: tuple[float, ...] = ()
    spending: Spending = "obrien-fleming"
    segments: tuple[str, ...] = ()
    strata: str | None = None
    served_by: str | None = None
    bootstrap: int = Field(default=0, ge=0, le=100_000)
    metrics: tuple[Metric, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.shares) < 2:
            raise ValueError("shares: needs two variants or more")
        if self.control not in self.shares:
            raise ValueError(f"control: '{self.control}' is none of shares ({', '.join(self.shares)})")
        wrong = [name for name, share in self.shares.items() if not 0 < share < 1]
        if wrong or not math.isclose(sum(self.shares.values()), 1, abs_tol=1e-6):
            raise ValueError(f"shares: must lie between 0 and 1 and sum to 1, not {sum(self.shares.values()):g}")
        if not 0 <= self.traffic[0] < self.traffic[1] <= 1:
            raise ValueError(f"traffic: must be a part [from, to] of [0, 1], not {list(self.traffic)}")
        if self.layer and self.layer == (self.salt or self.name):
            raise ValueError(
                f"layer: '{self.layer}' is what variants are drawn by, too; another name, or a salt, keeps them apart"
            )
        self._apart()
        if self.traffic != (0.0, 1.0) and not self.layer:
            raise ValueError("layer: name it, since traffic is given")
        names = [metric.name for metric in self.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"metric: '{twice[0]}' is there twice")
        dated = ("start", "end", "min_days", "exposed")
        if not self.time and (given := [name for name in dated if getattr(self, name)]):
            raise ValueError(f"time: name the column of an exposure's time, since {given[0]} is given")
        if not self.time and (back := [metric.name for metric in self.metrics if isinstance(metric, Retention)]):
            raise ValueError(f"time: name the column of an exposure's time, for retention '{back[0]}'")
        if self.looks and "planned" not in self.model_fields_set:
            raise ValueError("planned: say how many units the looks are shares of")
        if self.looks and self.looks[-1] != 1:
            raise ValueError(f"looks: the last must be 1, not {self.looks[-1]:g}")
        if any(b <= a for a, b in zip((0.0, *self.looks), self.looks, strict=False)):
            raise ValueError(f"looks: must rise from above 0 to 1, not {list(self.looks)}")
        if self.start and self.end and self.end < self.start:
            raise ValueError(f"end: {self.end} is before start: {self.start}")
        return self

    def _apart(self) -> None:
        """Errors: `ValueError` for a column that is used as two things that it cannot both be."""
        used = {"unit": self.unit, "variant": self.variant, "time": self.time, "exposed": self.exposed}
        columns = [column for column in used.values() if column]
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise ValueError(f"'{twice[0]}' is named as two of unit, variant, time and exposed")
        others = {f"metric '{m.name}'": (*m.columns, *m.labels) for m in self.metrics} | self.labels
        for what, own in others.items():
            for column in own:
                if taken := [name for name, other in used.items() if other == column]:
                    raise ValueError(f"{what}: '{column}' is the {taken[0]} already")
        if self.strata and (pooled := [m.name for m in self.metrics if getattr(m, "test", "") == "pooled"]):
            raise ValueError(f"strata: '{pooled[0]}' is tested with one variance for all units (test = 'pooled')")

    @property
    def treatments(self) -> tuple[str, ...]:
        """The variants but the control."""
        return tuple(name for name in self.shares if name != self.control)

    @property
    def unit_labels(self) -> tuple[str, ...]:
        """Columns that say of which kind a unit is, each once."""
        return tuple(dict.fromkeys([*self.segments, *([self.strata] if self.strata else [])]))

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The plan's own columns of anything but numbers, by what they are."""
        served = (self.served_by,) if self.served_by else ()
        return {"segments": self.segments, "strata": (self.strata,) if self.strata else (), "served_by": served}

    @property
    def linear(self) -> tuple[Linear, ...]:
        """The metrics that follow from totals of units."""
        return tuple(metric for metric in self.metrics if isinstance(metric, Linear))

    def assign(self, units: Sequence[object]) -> list[str | None]:
        """The variant of each unit, by its hash; None for who does not take part."""
        found: list[str | None] = list(variants_of(units, self.shares, self.salt or self.name))
        if self.layer:
            inside = takes_part(units, self.layer, self.traffic)
            found = [name if own else None for name, own in zip(found, inside, strict=True)]
        return found

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of a TOML file with a table `experiment` and tables `metric`. Errors: `SpecError` naming the field."""
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: is not TOML ({error})") from error
        if extra := sorted(content.keys() - {"experiment", "metric"}):
            raise SpecError(f"{path}: unknown table [{extra[0]}]; there are [experiment] and [[metric]]")
        if not isinstance(content.get("experiment", {}), dict) or not isinstance(content.get("metric", []), list):
            raise SpecError(f"{path}: needs a table [experiment] and tables [[metric]]")
        try:
            return cls.model_validate({**content.get("experiment", {}), "metrics": content.get("metric", [])})
        except ValidationError as error:
            raise SpecError(f"{path}: {'; '.join(_problems(error))}") from error


def _problems(error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]).replace("metrics", "metric")
        said = problem["msg"].removeprefix("Value error, ")
        yield f"{place}: {said}" if place else said
