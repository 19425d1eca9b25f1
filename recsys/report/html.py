"""The HTML report: one file that asks for nothing from outside and runs no script."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recsys.data.files import atomic_file
from recsys.report import plots, words
from recsys.report.data import ReportData, SourceRow


def write_report(out: Path, data: ReportData) -> Path:
    """Write the report to the file `out`, whole or not at all, and give back its path.

    Errors: `StorageError` where it cannot be written.
    """
    page = render_report(data)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def render_report(data: ReportData) -> str:
    """The page as text. Every value from outside is escaped; the same data give the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("recsys.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "signed": words.signed,
        "spread": words.spread,
        "percent": words.percent,
        "p_value": words.p_value,
        "rank": words.rank,
        "stage": words.stage_name,
        "short": words.short,
        "label": words.label,
        "claim": words.claim,
    }
    finding = words.reranker_finding(data.metrics)
    body, per_query = data.metrics, data.per_query
    if finding.direction == "absent":
        stages = {name: found for name, found in body["stages"].items() if name != "reranked"}
        body, per_query = {**body, "stages": stages, "lift": {}}, per_query.drop("reranked", strict=False)
    return environment.get_template("report.html.j2").render(
        data=data,
        body=body,
        finding=finding,
        measured=words.measured(body.get("data", {}), data.dataset, str(body["split"]), len(data.per_query)),
        summary=list(_summary(body, per_query)),
        metrics={
            name: label for name, label in words.METRICS.items() if any(name in s for s in body["stages"].values())
        },
        lift=body.get("lift", {}),
        compared=words.compared,
        fusion_words=_fusion_words(data.sources),
        plots=plots.all_plots(body, per_query, data.activity),
        counts={words.label(k): _value(v) for k, v in body.get("data", {}).items() if not isinstance(v, list | dict)},
        spent=dict(_spent(body)),
    )


def _summary(body: Mapping[str, Any], per_query: pl.DataFrame) -> Iterator[str]:
    stages = set(body["stages"])
    if len(per_query) and {"candidates", "popular"} <= stages & set(per_query.columns):
        yield words.candidates_finding(per_query)
    if "candidates" in stages:
        yield words.in_plain_terms(body)


def _fusion_words(sources: Sequence[SourceRow]) -> str:
    """Which single sources the fusion beats, and which not, in a sentence."""
    groups: dict[str, list[str]] = {"better": [], "none": [], "worse": []}
    for row in sources:
        groups[words.direction(row.advantage.ci95)].append(row.name)
    parts = {
        "better": "ranks measurably better than {}",
        "none": "shows no measurable difference from {}",
        "worse": "ranks measurably worse than {}",
    }
    said = [parts[way].format(_listed(names)) for way, names in groups.items() if names]
    return f"By NDCG@10 the fusion {'; it '.join(said)}." if said else ""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _spent(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Time and memory of the run."""
    spent = body.get("seconds", {})
    if spent:
        yield "Time", words.duration(float(spent.get("total", sum(spent.values()))))
    if body.get("peak_rss_mb") is not None:
        yield "Peak memory", words.memory(float(body["peak_rss_mb"]))


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
