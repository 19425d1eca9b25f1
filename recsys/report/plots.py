"""The report's plots: what each shows, its caption, and the text that stands for it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys import metrics
from recsys.report import words
from recsys.report.svg import ACCENT, SERIES, SOFT, Plot, figure, to_svg

MARKERS = ("s", "o", "D")
LINES = ("-", "-", (0, (4, 2)))
BUCKETS = 4
DEPTH = 100
LONGEST_STEP = 32
# Smallest movement of each class, in places; the same downwards.
MOVES = (1, 4, 11, 21, 51)


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
    shown = [[name for name in group if any(name in s for s in stages.values())] for group in groups]
    shown = [group for group in shown if group]
    if not shown:
        return None
    title = "Quality by stage"
    step = 0.24
    with figure(3.9, nrows=len(shown), squeeze=False, height_ratios=[len(g) for g in shown]) as (drawn, axes):
        for axis, group in zip(axes[:, 0], shown, strict=True):
            for i, (stage, found) in enumerate(stages.items()):
                there = [(row, name) for row, name in enumerate(group) if name in found]
                centre = [found[name] for _, name in there]
                bounds = [found["ci95"][name] for _, name in there]
                axis.errorbar(
                    centre,
                    [row + (i - (len(stages) - 1) / 2) * step for row, _ in there],
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
        drawn.legend(handles, labels, loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.4)
        alt = "; ".join(
            f"{words.METRICS[name][0]}: "
            + ", ".join(f"{words.stage_name(s)} {words.number(f[name], 3)}" for s, f in stages.items() if name in f)
            for group in shown
            for name in group
        )
        return Plot(
            "quality",
            title,
            "Means over users; bars are 95% intervals. Stages are judged on the same users, so compare two of them by "
            "the interval of their difference, not by whether these bars overlap.",
            alt,
            to_svg(drawn, "quality", title, alt),
        )


def recall_curve(per_query: pl.DataFrame, stages: Sequence[str]) -> Plot | None:
    """Share of users whose hidden item is among the first k, for every k."""
    stages = [stage for stage in stages if stage in per_query.columns]
    if not stages or not len(per_query):
        return None
    title = "Recall by list length"
    ks = np.arange(1, DEPTH + 1)
    with figure(3.1) as (drawn, axis):
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
        return Plot("recall", title, caption, alt, to_svg(drawn, "recall", title, alt))


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
    with figure(2.9) as (drawn, axis):
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
        return Plot("activity", title, caption, alt, to_svg(drawn, "activity", title, alt))


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
    with figure(3.6) as (drawn, axis):
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
        return Plot("moves", title, caption, alt, to_svg(drawn, "moves", title, alt))


def seconds(spent: Mapping[str, float]) -> Plot | None:
    """Seconds per step."""
    steps = {words.short(name, LONGEST_STEP): float(value) for name, value in spent.items() if name != "total"}
    if not steps:
        return None
    title = "Time per step"
    with figure(0.8 + 0.3 * len(steps)) as (drawn, axis):
        bars = axis.barh(range(len(steps)), list(steps.values()), color=ACCENT, height=0.62)
        axis.bar_label(bars, [words.duration(s) for s in steps.values()], padding=4)
        axis.set_yticks(range(len(steps)), list(steps))
        axis.invert_yaxis()
        axis.margins(x=0.26)
        axis.set_xlabel("seconds")
        axis.grid(axis="x")
        alt = "; ".join(f"{name}: {words.duration(value)}" for name, value in steps.items())
        caption = "Wall-clock time of each step of this run, in the order of the steps."
        return Plot("seconds", title, caption, alt, to_svg(drawn, "seconds", title, alt))


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
