"""Numbers and findings in words. Pure functions: what the page and the terminal say, and nothing about how it looks.

A finding is called by its interval: where the interval covers zero there is "no measurable difference", whatever
the sign of the estimate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from recsys import metrics

METRICS: Mapping[str, tuple[str, str]] = {
    "ndcg@10": ("NDCG@10", "1 / log2(1 + rank) of the hidden item if it is among the first 10, else 0"),
    "recall@10": ("Recall@10", "share of users whose hidden item is among the first 10"),
    "mrr@10": ("MRR@10", "1 / rank of the hidden item if it is among the first 10, else 0"),
    "recall@50": ("Recall@50", "share of users whose hidden item is among the first 50"),
    "recall@100": ("Recall@100", "share of users whose hidden item is among the first 100"),
    "coverage@10": ("Coverage@10", "share of the catalog that stands in anyone's first 10"),
    "coverage@100": ("Coverage@100", "share of the catalog that stands in anyone's first 100"),
    "popularity@10": ("Popularity@10", "mean number of events of the items in the first 10: the higher, the more bias"),
}
STAGES: Mapping[str, str] = {"popular": "Popular", "candidates": "Candidates", "reranked": "Reranked"}
LONGEST = 240
LM = "the language model"
REGIMES: Mapping[str, tuple[str, str]] = {
    "plain": ("reranker", "all others"),
    "request": ("reranker, where there is a request in words", "queries with a request in words"),
    "told": ("reranker, where there is no history", "users without history"),
}
"""Kinds of queries with weights of their own: what the part is called, and whom it serves."""
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Finding:
    """A headline, the sentences that bear it out, and which way it points."""

    headline: str
    sentences: Sequence[str]
    direction: Literal["better", "worse", "none", "absent"]


def stage_name(stage: str) -> str:
    """How a stage is called on the page."""
    return STAGES.get(stage, stage)


def short(text: str, length: int = LONGEST) -> str:
    """Text on one line, cut at `length` characters with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def label(key: str) -> str:
    """A key as a label."""
    return key[:1].upper() + key[1:].replace("_", " ")


def claim(text: str) -> str:
    """A claim of evidence, whose fields are parted by `|`, for people."""
    return short(text.replace("|", " · ").replace("=", " ") if "|" in text else text)


def number(value: float | None, digits: int = 4) -> str:
    """A plain number, or a dash where there is none."""
    return "–" if value is None else f"{value:z,.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 4) -> str:
    """A difference, with its sign; zero has none."""
    sign = "" if round(value, digits) == 0 else "+"
    return f"{value:{sign}z.{digits}f}".replace("-", MINUS)


def spread(bounds: Sequence[float], *, sign: bool = False, digits: int = 4) -> str:
    """An interval."""
    lower, upper = (signed(b, digits) if sign else number(b, digits) for b in bounds)
    return f"{lower} to {upper}"


def percent(share: float | None, digits: int = 1) -> str:
    """A relative difference, with its sign; a dash where the baseline is zero."""
    return "–" if share is None else f"{signed(100 * share, digits)}%"


def p_value(p: float) -> str:
    """A p value to three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def rank(value: float | None) -> str:
    """A rank; a half appears where ties were counted at their expected rank."""
    return "not in the list" if value is None else f"{value:g}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def memory(megabytes: float) -> str:
    """Megabytes for people."""
    return f"{megabytes:,.0f} MB"


def direction(bounds: Sequence[float]) -> Literal["better", "worse", "none"]:
    """Which way an interval of a difference points; "none" where it covers or touches zero."""
    lower, upper = bounds
    return "better" if lower > 0 else "worse" if upper < 0 else "none"


def compared(bounds: Sequence[float], first: str, second: str) -> str:
    """A comparison in a few words: which of the two is better."""
    return {"better": f"{first} better", "worse": f"{second} better", "none": "no measurable difference"}[
        direction(bounds)
    ]


def measured(data: Mapping[str, Any], dataset: str, split: str, users: int) -> str:
    """What was hidden from whom, and among how many items it had to be found."""
    hidden = {
        "leave-last": "the last item each of them met was hidden",
        "time": (
            f"the last item each of them met from {data.get('test_from', 'a cut-off date')} on was hidden; the fitted "
            "parts know nothing from that moment on, but what the user did before the hidden item counts as history"
        ),
    }.get(split, f"an item each was held out (split “{split}”)")
    items = data.get("catalog", data.get("items"))
    among = f" among {items:,} items" if isinstance(items, int) else ""
    # The usual protocol, but not the world's: what other users did later is known to the counts and the factors.
    caution = (
        " Under this split the parts also learn from what other users did after a hidden event; “time” is stricter."
        if split == "leave-last"
        else ""
    )
    return (
        f"For {users:,} users of {short(dataset, 80)}, {hidden}. Each stage then ranked the catalog for them, "
        f"and the figures say how near the top the hidden item came{among}.{caution}{ceiling(data)}"
    )


def ceiling(data: Mapping[str, Any]) -> str:
    """How many hidden items can be found at all, where it is not all of them."""
    reachable = data.get("answers_within_reach", 1.0)
    if reachable == 1.0:
        return ""
    return (
        f" At most {reachable:.1%} of the hidden items can be found: the others were met before by the same user "
        "(never proposed unless the recipe sets exclude_seen = false) or are not in the catalog."
    )


def reranker_finding(body: Mapping[str, Any]) -> Finding:
    """Did the reranker beat the candidates that it was given? From metrics.json."""
    lift = body.get("lift", {}).get("ndcg@10")
    kind = body.get("run", {}).get("spec", {}).get("reranker", {}).get("kind")
    if not lift or "reranked" not in body["stages"] or kind == "identity":
        return Finding("No reranker was part of this run", ["The candidates were served in their own order."], "absent")
    before, after = (body["stages"][s]["ndcg@10"] for s in ("candidates", "reranked"))
    bounds, way = lift["ci95"], direction(lift["ci95"])
    relative = f", {percent(lift['relative'])}" if lift["relative"] is not None else ""
    facts = (
        f"NDCG@10 went from {number(before)} to {number(after)}: a difference of {signed(lift['delta'])}{relative} "
        f"(95% interval {spread(bounds, sign=True)}; p {_equals(lift['p'])})."
    )
    fit = body.get("tuning", {}).get("reranker", {})
    found = [f"What the fit found: {learned(fit, kind)}"] if "weights" in fit else []
    if way != "none":
        return Finding(f"The reranker orders the candidates {way} than they came", [facts, *found], way)
    headline = "The reranker makes no measurable difference"
    if bounds[0] == bounds[1] == 0:
        return Finding(headline, [facts, "It changed no user's NDCG@10.", *found], way)
    widest = max(abs(b) for b in bounds)
    limit = (
        f"The interval covers zero. With this many users an effect of up to about {number(widest, 3)} either way "
        "cannot be ruled out."
    )
    return Finding(headline, [facts, limit, *found], way)


def reader(kind: str | None) -> str:
    """Whose opinion of the candidates a reranker of that kind adds to theirs."""
    return {"sequence": "the sequence network", "endpoint": "the server's reranker"}.get(kind or "", LM)


def learned(found: Mapping[str, Any], kind: str | None) -> str:
    """What a fit of the reranker's weights found. found: as `recsys.rerank.fusion.FusionReport` gives it."""
    if not found["lists"]:
        nothing = f"the hidden item was in none of {found['queries']:,} lists to learn from"
        return f"The order of the candidates is kept: {nothing}."
    on_lists = f"{found['lists']:,} lists of tune, cross-validated"
    if found["l2"] is None:
        return (
            f"The order of the candidates is kept: no weights beat it beyond noise, and {reader(kind)} counts for "
            f"nothing ({on_lists})."
        )
    weights = found["weights"]
    return (
        f"NDCG@10 {number(found['candidates'])} as the candidates came, {number(found['reranked'])} reranked, "
        f"{number(found['without_lm'])} with the same inputs but without {reader(kind)}, whose weight is "
        f"{number(weights.get('lm', 0.0), 3)} beside the candidate score's {number(weights['score'], 3)} ({on_lists})."
    )


def input_name(name: str, kind: str | None) -> str:
    """What an input of the reranker is called on the page."""
    return f"opinion of {reader(kind)}" if name == "lm" else name


def candidates_finding(per_query: pl.DataFrame, seed: int = 0) -> str:
    """Do the candidates beat recommending what is popular? One sentence."""
    ours, popular = (metrics.ndcg(per_query[s], 10) for s in ("candidates", "popular"))
    found = metrics.paired(ours, popular, seed=seed)
    facts = (
        f"NDCG@10 {number(float(ours.mean()))} against {number(float(popular.mean()))}, "
        f"difference {signed(found.delta)}, 95% interval {spread(found.ci95, sign=True)}"
    )
    verb = {
        "better": "rank better than popularity alone",
        "worse": "rank worse than popularity alone",
        "none": "show no measurable difference from popularity alone",
    }[direction(found.ci95)]
    return f"The candidates {verb} ({facts})."


def in_plain_terms(body: Mapping[str, Any]) -> str:
    """What the last stage's recall means for a person."""
    stage = "reranked" if "reranked" in body["stages"] else "candidates"
    found = body["stages"][stage]
    return (
        f"In plain terms: the item that a user really met next is among the first ten for {found['recall@10']:.0%} "
        f"of users, and among the first hundred for {found['recall@100']:.0%}."
    )


def _equals(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"
