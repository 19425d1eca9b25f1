"""The terminal's table: quality per stage with its interval, and the verdict beneath."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recsys.report import words

if TYPE_CHECKING:
    from rich.table import Table


def stage_table(metrics: Mapping[str, Any]) -> "Table":
    """A row per metric, a column per stage, from the content of metrics.json; 80 columns suffice."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    finding = words.reranker_finding(metrics)
    table = Table(
        title=Text("Quality per stage, with 95% intervals"),
        caption=Text(" ".join([f"{finding.headline}.", *finding.sentences])),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("", no_wrap=True)
    stages = {
        name: found for name, found in metrics["stages"].items() if name != "reranked" or finding.direction != "absent"
    }
    for stage in stages:
        table.add_column(Text(words.stage_name(stage)), justify="left", no_wrap=True)
    for name, (label, _) in words.METRICS.items():
        cells = [_cell(stage, name) for stage in stages.values()]
        if any(cells):
            table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def _cell(stage: Mapping[str, Any], name: str) -> str:
    if name not in stage:
        return ""
    bounds = stage["ci95"].get(name)
    interval = f" [{_brief(bounds[0])}, {_brief(bounds[1])}]" if bounds else ""
    return f"{words.number(stage[name])}{interval}"


def _brief(value: float) -> str:
    """Four characters, without the zero before the point: three stages have to fit in 80 columns."""
    return f"{value:.3f}".removeprefix("0")[:4]
