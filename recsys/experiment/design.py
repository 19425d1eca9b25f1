"""An experiment as it was planned: who is assigned what, what is measured, and when it may be concluded."""

import math
import tomllib
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys.errors import SpecError
from recsys.experiment.assign import takes_part, variants_of
from recsys.experiment.metrics import Metric
from recsys.experiment.multiple import Correction


class Experiment(BaseModel):
    """The plan.

    unit, variant : columns of the data; `unit` is who was assigned
    control       : the variant that others are compared with; shares : of units, by variant; they sum to 1
    salt          : of the assignment; the name, where none is given
    layer, traffic: the part [from, to) of a layer's units that takes part; experiments of one layer whose parts do not
                    overlap share no unit
    time, start, end : the column of an exposure's time, and the days (both whole) on which rows count; others are left
                    out, and counted
    min_days      : before so many days no decision is given
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
    min_days: int = Field(default=0, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    correction: Correction = "holm"
    planned: int = Field(default=10_000, ge=1)
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
        if self.traffic != (0.0, 1.0) and not self.layer:
            raise ValueError("layer: name it, since traffic is given")
        names = [metric.name for metric in self.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"metric: '{twice[0]}' is there twice")
        if (self.start or self.end or self.min_days) and not self.time:
            raise ValueError("time: name the column of an exposure's time, since start, end or min_days is given")
        if self.start and self.end and self.end < self.start:
            raise ValueError(f"end: {self.end} is before start: {self.start}")
        return self

    @property
    def treatments(self) -> tuple[str, ...]:
        """The variants but the control."""
        return tuple(name for name in self.shares if name != self.control)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the data, that are read."""
        own = [self.unit, self.variant, *([self.time] if self.time else [])]
        return tuple(dict.fromkeys([*own, *(column for metric in self.metrics for column in metric.columns)]))

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
        try:
            return cls.model_validate({**content.get("experiment", {}), "metrics": content.get("metric", [])})
        except ValidationError as error:
            raise SpecError(f"{path}: {'; '.join(_problems(error))}") from error


def _problems(error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]).replace("metrics", "metric")
        said = problem["msg"].removeprefix("Value error, ")
        yield f"{place}: {said}" if place else said
