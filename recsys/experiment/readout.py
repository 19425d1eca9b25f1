"""What an analysis found: as an object with tidy frames, as JSON for scripts, as Markdown."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recsys.data.files import atomic_file
from recsys.experiment.design import Experiment
from recsys.experiment.effects import Effect, Estimate
from recsys.experiment.metrics import Metric
from recsys.experiment.units import Survey


@dataclass(frozen=True)
class SampleRatio:
    """Whether units came in the shares planned. p is of the chi-square test, sequential_p may be read at every look."""

    p: float
    sequential_p: float
    counts: Mapping[str, int]
    ok: bool


@dataclass(frozen=True)
class Comparison:
    """One metric in one treatment against the control.

    estimates : of every variant, before covariates; effect : after them; variance_reduction : by them, of the effect
    """

    metric: Metric
    variant: str
    estimates: Mapping[str, Estimate]
    effect: Effect
    p_adjusted: float
    variance_reduction: float
    decision: str


@dataclass(frozen=True)
class Readout:
    """All that was found. refusals: why nothing is concluded; warnings: what was left out or looks odd."""

    plan: Experiment
    ratio: SampleRatio
    comparisons: tuple[Comparison, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    survey: Survey

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each metric and treatment."""
        return pl.DataFrame(
            [
                {
                    "metric": c.metric.name,
                    "role": c.metric.role,
                    "variant": c.variant,
                    "control": c.estimates[self.plan.control].value,
                    "treatment": c.estimates[c.variant].value,
                    "effect": c.effect.effect,
                    "low": c.effect.ci[0],
                    "high": c.effect.ci[1],
                    "p": c.effect.p,
                    "p_adjusted": c.p_adjusted,
                    "relative": c.effect.relative,
                    "decision": c.decision,
                }
                for c in self.comparisons
            ]
        )

    @property
    def decision(self) -> str:
        """In a sentence: what the primary metrics and the guardrails say together."""
        if self.refusals:
            return "Nothing can be concluded: " + self.refusals[0]
        said = []
        for name in self.plan.treatments:
            own = [c for c in self.comparisons if c.variant == name]
            harm = [
                c for c in own if c.decision == "broken" or (c.decision == "worse" and c.metric.role != "secondary")
            ]
            gain = [c for c in own if c.metric.role == "primary" and c.decision == "better"]
            unsure = [c for c in own if c.decision == "open"]
            if harm:
                said.append(f"{name} does harm: {_names(harm)}.")
            elif gain and unsure:
                said.append(
                    f"{name} is better in {_names(gain)}, but harm is not ruled out in {_names(unsure)}: go on."
                )
            elif gain:
                said.append(f"{name} is better than {self.plan.control}: {_names(gain)}.")
            else:
                said.append(f"No gain of {name} over {self.plan.control} is shown.")
        return " ".join(said)

    def as_dict(self) -> dict[str, Any]:
        """What `readout.json` holds. Effects are treatment minus control on the metric's scale; None for no figure."""
        return {
            "experiment": self.plan.name,
            "decision": self.decision,
            "srm": {
                "p": self.ratio.p,
                "sequential_p": self.ratio.sequential_p,
                "counts": dict(self.ratio.counts),
                "ok": self.ratio.ok,
            },
            "metrics": [_row(c) for c in self.comparisons],
            "refusals": list(self.refusals),
            "warnings": list(self.warnings),
            "confidence": self.plan.confidence,
            "rows": self.survey.rows,
        }

    def as_json(self) -> str:
        """`as_dict`, as text."""
        return json.dumps(_finite(self.as_dict()), indent=2, allow_nan=False) + "\n"

    def as_markdown(self) -> str:
        """For a message or a ticket."""
        plan, percent = self.plan, f"{self.plan.confidence:.0%}"
        lines = [f"# {plan.name}", "", f"**{self.decision}**", ""]
        lines += [f"> {sentence}" for sentence in self.refusals]
        counts = ", ".join(f"{name} {n}" for name, n in self.ratio.counts.items())
        state = "as planned" if self.ratio.ok else "NOT as planned"
        lines += [f"Units: {counts} ({state}, p = {self.ratio.p:.3g}).", ""]
        lines += [
            f"| metric | variant | {plan.control} | effect | {percent} interval | relative | p, adjusted | decision |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for c in self.comparisons:
            e, own = c.effect, c.estimates[plan.control].value
            lines.append(
                f"| {c.metric.name} | {c.variant} | {short(own)} | {short(e.effect)} | {short(e.ci[0])} to "
                f"{short(e.ci[1])} | {as_percent(e.relative)} | {short(c.p_adjusted)} | {c.decision} |"
            )
        if self.warnings:
            lines += ["", "## Worth knowing", "", *(f"- {warning}" for warning in self.warnings)]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """`readout.json`, `readout.md` and `readout.html` into `folder`, which is made. Errors: `StorageError`."""
        from recsys.experiment.page import page

        for name, text in (("json", self.as_json()), ("md", self.as_markdown()), ("html", page(self))):
            with atomic_file(folder / f"readout.{name}") as file:
                file.write_text(text, encoding="utf-8")


def _row(c: Comparison) -> dict[str, Any]:
    e = c.effect
    return {
        "name": c.metric.name,
        "role": c.metric.role,
        "variant": c.variant,
        "n": {name: own.n for name, own in c.estimates.items()},
        "mean": {name: own.value for name, own in c.estimates.items()},
        "effect": e.effect,
        "se": e.se,
        "ci": list(e.ci),
        "p": e.p,
        "p_adjusted": c.p_adjusted,
        "relative": e.relative,
        "relative_ci": list(e.relative_ci),
        "sequential_ci": list(e.sequential_ci),
        "sequential_p": e.sequential_p,
        "variance_reduction": c.variance_reduction,
        "method": c.metric.method,
        "decision": c.decision,
    }


def _finite(value: Any) -> Any:
    """With None for what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _names(comparisons: list[Comparison]) -> str:
    return ", ".join(f"{c.metric.name} ({as_percent(c.effect.relative)})" for c in comparisons)


def short(value: float) -> str:
    """A figure as people read it."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def as_percent(value: float) -> str:
    """A share, with its sign."""
    return "-" if math.isnan(value) else f"{value:+.2%}"
