"""The report's plots as inline SVG: theme-aware, readable by a screen reader, the same bytes for the same data.

Matplotlib draws in placeholder colours, which are then replaced by the page's CSS variables; so one drawing serves
the light and the dark scheme. Text stays text, in the page's font.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys import metrics
from recsys.report import words

# Placeholder colour in the drawing -> CSS variable on the page.
INK, SOFT, GRID, ACCENT = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010207", "#010208", "#010209")
MARKERS = ("s", "o", "D")
LINES = ("-", "-", (0, (4, 2)))
VARIABLES = {
    **{INK: "ink", SOFT: "soft", GRID: "grid", ACCENT: "accent"},
    **{colour: f"series-{i}" for i, colour in enumerate(SERIES)},
}
WIDTH = 4.9
BUCKETS = 4
DEPTH = 100
# Smallest movement of each class, in places; the same downwards.
MOVES = (1, 4, 11, 21, 51)


@dataclass(frozen=True)
class Plot:
    """A drawing with its title, its caption, and the text that stands for it where it can't be seen."""

    key: str
    title: str
    caption: str
    alt: str
    svg: str


@contextmanager
def _figure(height: float, **subplots: Any) -> Iterator[tuple[Any, Any]]:
    """A figure outside pyplot's global state, drawn under the report's own settings."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        **{"font.size": 10, "legend.fontsize": 10, "text.parse_math": False},
        **{"text.color": INK, "axes.labelcolor": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK},
        **{"axes.edgecolor": GRID, "xtick.color": GRID, "ytick.color": GRID, "grid.color": GRID},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.major.size": 0},
        **{"axes.axisbelow": True, "grid.linewidth": 0.7, "legend.frameon": False, "axes.unicode_minus": True},
        **{"svg.fonttype": "none", "svg.hashsalt": "recsys", "lines.markersize": 5.5, "lines.linewidth": 1.8},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(**subplots)


def _svg(figure: Any, key: str, title: str, alt: str) -> str:
    """The figure as an <svg> element: own id space, CSS colours, title and description, nothing from outside."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r"<!--.*?-->\s*", "", buffer.getvalue(), flags=re.DOTALL)
    body = text[text.index(">", text.index("<svg ")) + 1 :]
    box = re.search(r'viewBox="([^"]+)"', text)
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", body)
    for colour, name in VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    head = (
        f'<svg viewBox="{box.group(1) if box else ""}" role="img" aria-labelledby="{key}-title {key}-alt" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-alt">{escape(alt)}</desc>'
    )
    return head + body.strip()


def all_plots(body: Mapping[str, Any], per_query: pl.DataFrame, activity: pl.DataFrame) -> list[Plot]:
    """The plots that the data allow, in the report's order.

    body: metrics.json; per_query and activity: as in `ReportData`.
    """
    made = [
        quality(body["stages"]),
        recall_curve(per_query, list(body["stages"])),
        activity_lift(per_query, activity),
        rank_changes(per_query),
        seconds(body.get("seconds", {})),
    ]
    return [plot for plot in made if plot]


def quality(stages: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    """Each metric with its interval, a marker per stage."""
    groups = [["ndcg@10", "recall@10", "mrr@10"], ["recall@50", "recall@100"]]
    drawn = [[name for name in group if any(name in s for s in stages.values())] for group in groups]
    drawn = [group for group in drawn if group]
    if not drawn:
        return None
    title = "Quality by stage"
    step = 0.24
    with _figure(3.9, nrows=len(drawn), squeeze=False, height_ratios=[len(g) for g in drawn]) as (figure, axes):
        for axis, group in zip(axes[:, 0], drawn, strict=True):
            for i, (stage, found) in enumerate(stages.items()):
                shown = [(row, name) for row, name in enumerate(group) if name in found]
                centre = [found[name] for _, name in shown]
                bounds = [found["ci95"][name] for _, name in shown]
                axis.errorbar(
                    centre,
                    [row + (i - (len(stages) - 1) / 2) * step for row, _ in shown],
                    xerr=_errors(centre, bounds),
                    fmt=MARKERS[_look(stage, i)],
                    color=SERIES[_look(stage, i)],
                    label=words.stage_name(stage),
                    capsize=2.5,
                    elinewidth=1.4,
                )
            axis.set_yticks(range(len(group)), [words.METRICS[name][0] for name in group])
            axis.set_ylim(len(group) - 0.5, -0.5)
            axis.set_xlim(left=0)
            axis.grid(axis="x")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.4)
        alt = "; ".join(
            f"{words.METRICS[name][0]}: "
            + ", ".join(f"{words.stage_name(s)} {words.number(f[name], 3)}" for s, f in stages.items() if name in f)
            for group in drawn
            for name in group
        )
        return Plot(
            "quality",
            title,
            "Means over users; bars are 95% intervals. Stages are judged on the same users, so compare two of them by "
            "the interval of their difference, not by whether these bars overlap.",
            alt,
            _svg(figure, "quality", title, alt),
        )


def recall_curve(per_query: pl.DataFrame, stages: Sequence[str]) -> Plot | None:
    """Share of users whose hidden item is among the first k, for every k."""
    stages = [stage for stage in stages if stage in per_query.columns]
    if not stages or not len(per_query):
        return None
    title = "Recall by list length"
    ks = np.arange(1, DEPTH + 1)
    with _figure(3.1) as (figure, axis):
        ends = []
        for i, stage in enumerate(stages):
            shares = [float(metrics.recall(per_query[stage], int(k)).mean()) for k in ks]
            ends.append(f"{words.stage_name(stage)} {shares[9]:.0%} of users at 10 and {shares[-1]:.0%} at {DEPTH}")
            axis.plot(
                ks,
                shares,
                color=SERIES[_look(stage, i)],
                label=words.stage_name(stage),
                linestyle=LINES[_look(stage, i)],
                marker=MARKERS[_look(stage, i)],
                markevery=[0, 4, 9, 19, 49, 99],
            )
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(_share)
        axis.set_xlabel("first k of the list (log scale)")
        axis.grid()
        axis.legend(loc="upper left")
        alt = "; ".join(ends)
        caption = "Share of users whose hidden item is among the first k. A reranker can only reorder: where its list "
        caption += "holds all candidates, its curve ends where theirs does."
        return Plot("recall", title, caption, alt, _svg(figure, "recall", title, alt))


def activity_lift(per_query: pl.DataFrame, activity: pl.DataFrame) -> Plot | None:
    """NDCG@10 of reranked minus candidates, for users with little and with much history."""
    if not _has(per_query, "reranked") or not len(activity):
        return None
    known = per_query.join(activity, on="query_id", how="inner").sort("events", "query_id")
    buckets = list(_buckets(known))
    if not buckets:
        return None
    title = "Reranker’s lift by user activity"
    found = [
        metrics.paired(metrics.ndcg(b["reranked"], 10), metrics.ndcg(b["candidates"], 10), seed=0) for b in buckets
    ]
    names = [_range_name(b["events"]) for b in buckets]
    with _figure(2.9) as (figure, axis):
        centre = [f.delta for f in found]
        axis.axvline(0, color=SOFT, linewidth=1)
        axis.errorbar(
            centre,
            range(len(found)),
            xerr=_errors(centre, [f.ci95 for f in found]),
            fmt="o",
            color=ACCENT,
            capsize=2.5,
            elinewidth=1.4,
        )
        axis.set_yticks(range(len(found)), [f"{n} events\n{f.n:,} users" for n, f in zip(names, found, strict=True)])
        axis.set_ylim(len(found) - 0.5, -0.5)
        widest = max((abs(b) for f in found for b in f.ci95), default=0.0) or 0.01
        axis.set_xlim(-1.15 * widest, 1.15 * widest)
        axis.locator_params(axis="x", nbins=6)
        axis.set_xlabel("NDCG@10, reranked minus candidates")
        axis.grid(axis="x")
        alt = "; ".join(
            f"{n} events: {words.signed(f.delta)} ({words.spread(f.ci95, sign=True)})"
            for n, f in zip(names, found, strict=True)
        )
        caption = (
            "Users in equal groups by the length of their history; 95% intervals, not corrected for looking at "
            f"{len(found)} groups."
        )
        return Plot("activity", title, caption, alt, _svg(figure, "activity", title, alt))


def rank_changes(per_query: pl.DataFrame) -> Plot | None:
    """How many places the reranker moved each hidden item that the candidates hold."""
    if not _has(per_query, "reranked"):
        return None
    both = per_query.drop_nulls(["candidates", "reranked"])
    if not len(both):
        return None
    title = "Where the reranker moved the hidden item"
    moved = (both["candidates"] - both["reranked"]).to_numpy()
    counts, names = _move_counts(moved), _move_names()
    up, down = int((moved > 0).sum()), int((moved < 0).sum())
    with _figure(3.6) as (figure, axis):
        colours = [SERIES[0] if i == len(MOVES) else ACCENT for i in range(len(counts))]
        bars = axis.barh(range(len(counts)), counts, color=colours, height=0.72)
        axis.bar_label(bars, [f"{count:,}" for count in counts], padding=4)
        axis.set_yticks(range(len(counts)), names)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("users")
        axis.margins(x=0.12)
        axis.grid(axis="x")
        moves = f"moved up for {up:,}, down for {down:,}, unchanged for {len(both) - up - down:,}"
        alt = "; ".join(f"{name}: {count:,}" for name, count in zip(reversed(names), reversed(counts), strict=True))
        caption = (
            f"Places in the list, for the {len(both):,} of {len(per_query):,} users whose hidden item is among the "
            f"candidates: {moves}."
        )
        return Plot("moves", title, caption, alt, _svg(figure, "moves", title, alt))


def seconds(spent: Mapping[str, float]) -> Plot | None:
    """Seconds per step."""
    steps = {name: float(value) for name, value in spent.items() if name != "total"}
    if not steps:
        return None
    title = "Time per step"
    with _figure(0.8 + 0.3 * len(steps)) as (figure, axis):
        bars = axis.barh(range(len(steps)), list(steps.values()), color=ACCENT, height=0.62)
        axis.bar_label(bars, [words.duration(s) for s in steps.values()], padding=4)
        axis.set_yticks(range(len(steps)), list(steps))
        axis.invert_yaxis()
        axis.margins(x=0.26)
        axis.set_xlabel("seconds")
        axis.grid(axis="x")
        alt = "; ".join(f"{name}: {words.duration(value)}" for name, value in steps.items())
        caption = "Wall-clock time of each step of this run, in the order of the steps."
        return Plot("seconds", title, caption, alt, _svg(figure, "seconds", title, alt))


def _has(per_query: pl.DataFrame, stage: str) -> bool:
    return stage in per_query.columns and "candidates" in per_query.columns and len(per_query) > 0


def _look(stage: str, place: int) -> int:
    """Which colour and marker a stage has, the same in every plot."""
    return list(words.STAGES).index(stage) if stage in words.STAGES else place % len(SERIES)


def _share(value: float, _: int) -> str:
    return f"{value:.0%}"


def _errors(centre: Sequence[float], bounds: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """(2, n) distances from the centre down and up; never negative, which rounding could make them."""
    low, high = np.array(bounds, dtype=float).reshape(-1, 2).T
    middle = np.array(centre, dtype=float)
    sides: npt.NDArray[np.float64] = np.stack([middle - low, high - middle])
    return sides.clip(min=0)


def _buckets(known: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Up to BUCKETS groups of about equal size by `events`; users with equally many events are never parted."""
    if not len(known):
        return
    cuts = [known["events"].quantile(i / BUCKETS, "nearest") for i in range(1, BUCKETS)]
    edges = sorted({int(cut) for cut in cuts if cut is not None})
    bucket = pl.Series("bucket", np.searchsorted(edges, known["events"].to_numpy()))
    yield from known.with_columns(bucket).partition_by("bucket", maintain_order=True, include_key=False)


def _range_name(events: pl.Series) -> str:
    low, high = int(events.to_numpy().min()), int(events.to_numpy().max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _move_counts(moved: npt.NDArray[np.float64]) -> list[int]:
    """Users per class of movement, from far down to far up; half a place (a tie) counts as a whole one."""
    whole = np.sign(moved) * np.ceil(np.abs(moved))
    edges = [*(0.5 - size for size in reversed(MOVES)), *(size - 0.5 for size in MOVES)]
    return [int(count) for count in np.bincount(np.digitize(whole, edges), minlength=len(edges) + 1)]


def _move_names() -> list[str]:
    sizes = [*(f"{a}–{b - 1}" for a, b in pairwise(MOVES)), f"{MOVES[-1]} or more"]
    return [*(f"down {size}" for size in reversed(sizes)), "unchanged", *(f"up {size}" for size in sizes)]
