"""What an analysis found: as an object with tidy frames, as JSON for scripts, as Markdown."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from recsys.data.files import atomic_file
from recsys.experiment.bayes import Posterior
from recsys.experiment.design import Experiment, Metric
from recsys.experiment.effects import Effect, Estimate
from recsys.experiment.overtime import Change, Look
from recsys.experiment.rows import Survey
from recsys.experiment.segments import Part, Spread


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

    estimates : of every variant, before covariates and strata; effect : after them; variance_reduction : by them
    boundary  : |z| to be crossed at this look, where the plan has looks; infinite before the first
    bootstrap_se : by resampling units, where the plan asks for it
    """

    metric: Metric
    variant: str
    estimates: Mapping[str, Estimate]
    effect: Effect
    p_adjusted: float
    variance_reduction: float
    decision: str
    posterior: Posterior
    boundary: float | None = None
    bootstrap_se: float | None = None
    stratified: bool = False

    @property
    def method(self) -> str:
        """In words."""
        return self.metric.method + (", post-stratified" if self.stratified else "")


@dataclass(frozen=True)
class Readout:
    """All that was found.

    refusals : why nothing is concluded; warnings : what was left out or looks odd
    parts, spreads : effects by segment, and whether they differ; looks: up to each day; changes: novelty
    served : which stage answered: variant, served_by, rows, share
    """

    plan: Experiment
    ratio: SampleRatio
    comparisons: tuple[Comparison, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    survey: Survey
    parts: tuple[Part, ...] = ()
    spreads: tuple[Spread, ...] = ()
    looks: tuple[Look, ...] = ()
    changes: tuple[Change, ...] = ()
    served: pl.DataFrame = field(default_factory=pl.DataFrame)

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
    def segments(self) -> pl.DataFrame:
        """A row for each metric, treatment and value of a segment."""
        return pl.DataFrame([_part(part) for part in self.parts])

    @property
    def over_time(self) -> pl.DataFrame:
        """A row for each metric, treatment and day: the effect up to then, with the interval that holds at any look."""
        return pl.DataFrame([_look(look) for look in self.looks])

    @property
    def decision(self) -> str:
        """In a sentence: what the primary metrics and the guardrails say together."""
        if self.refusals:
            return "Nothing can be concluded: " + self.refusals[0]
        return " ".join(self._of(name) for name in self.plan.treatments)

    def _of(self, name: str) -> str:
        """Of one treatment. Secondary metrics decide nothing."""
        own = [c for c in self.comparisons if c.variant == name and c.metric.role != "secondary"]
        harm = [c for c in own if c.decision in ("broken", "worse")]
        primary = [c for c in own if c.metric.role == "primary"]
        gain = [c for c in primary if c.decision == "better"]
        held = [c for c in primary if c.decision == "not worse"]
        unsure = [c for c in own if c.decision in ("open", "not concluded")]
        if harm:
            return f"{name} does harm: {_names(harm)}."
        if (gain or held) and unsure:
            what = "better" if gain else "not worse"
            return f"{name} is {what} in {_names(gain or held)}, but harm is not ruled out in {_names(unsure)}: go on."
        if gain:
            return f"{name} is better than {self.plan.control}: {_names(gain)}."
        if held:
            return f"{name} is not worse than {self.plan.control}: {_names(held)}."
        if primary and all(c.decision == "not concluded" for c in primary):
            return f"Nothing can be concluded of {name}: {_names(primary)}."
        yet = " yet" if self.plan.looks and sum(self.ratio.counts.values()) < self.plan.planned else ""
        return f"No gain of {name} over {self.plan.control} is shown{yet}."

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
            "segments": [_part(part) for part in self.parts],
            "heterogeneity": [_spread(spread) for spread in self.spreads],
            "over_time": [_look(look) for look in self.looks],
            "novelty": [_change(change) for change in self.changes],
            "served_by": self.served.to_dicts(),
            "confidence": self.plan.confidence,
            "rows": self.survey.rows,
        }

    def as_json(self) -> str:
        """`as_dict`, as text."""
        return json.dumps(finite(self.as_dict()), indent=2, allow_nan=False) + "\n"

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
        shown = [part for part in self.parts if part.p_adjusted < 1 - plan.confidence]
        if shown:
            lines += ["", "## For whom (p adjusted for all segments)", ""]
            lines += [
                f"- {part.segment} = {part.value}: {part.metric.name} of {part.variant} {short(part.effect.effect)} "
                f"(drawn in {short(part.shrunk)}), p = {short(part.p_adjusted)}"
                for part in shown
            ]
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
        "method": c.method,
        "decision": c.decision,
        "bayes": {"better": c.posterior.better, "loss": c.posterior.loss, "ci": list(c.posterior.ci)},
        **({"boundary": c.boundary} if c.boundary is not None else {}),
        **({"bootstrap_se": c.bootstrap_se} if c.bootstrap_se is not None else {}),
    }


def _part(part: Part) -> dict[str, Any]:
    e = part.effect
    return {
        "metric": part.metric.name,
        "variant": part.variant,
        "segment": part.segment,
        "value": part.value,
        "n": sum(part.n.values()),
        "effect": e.effect,
        "ci": list(e.ci),
        "p": e.p,
        "p_adjusted": part.p_adjusted,
        "shrunk": part.shrunk,
        "shrunk_ci": list(part.shrunk_ci),
    }


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "metric": spread.metric.name,
        "variant": spread.variant,
        "segment": spread.segment,
        "q": spread.q,
        "p": spread.p,
        "p_adjusted": spread.p_adjusted,
        "deviation": spread.deviation,
    }


def _look(look: Look) -> dict[str, Any]:
    e = look.effect
    return {
        "metric": look.metric.name,
        "variant": look.variant,
        "day": look.day.isoformat(),
        "n": look.units,
        "effect": e.effect,
        "ci": list(e.ci),
        "sequential_ci": list(e.sequential_ci),
    }


def _change(c: Change) -> dict[str, Any]:
    return {
        "metric": c.metric.name,
        "variant": c.variant,
        "days": c.days,
        "n": c.n,
        "early": c.early,
        "late": c.late,
        "change": c.change,
        "ci": list(c.ci),
        "p": c.p,
        "p_adjusted": c.p_adjusted,
    }


def finite(value: Any) -> Any:
    """A value of dicts, lists and numbers with None for what JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _names(comparisons: list[Comparison]) -> str:
    return ", ".join(f"{c.metric.name} ({as_percent(c.effect.relative)})" for c in comparisons)


def short(value: float) -> str:
    """A figure as people read it."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def as_percent(value: float) -> str:
    """A share, with its sign."""
    return "-" if math.isnan(value) else f"{value:+.2%}"


def as_share(value: float) -> str:
    """A share, to be read as a chance."""
    return "-" if math.isnan(value) else f"{value:.1%}"
