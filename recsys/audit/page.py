"""The audit as files: audit.json for scripts, audit.html for people, which asks for nothing from outside."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from recsys.audit.freshness import Freshness
from recsys.audit.run import Audit, Sample
from recsys.data.counted import counted
from recsys.data.files import atomic_file
from recsys.data.words import article_first
from recsys.profiles.evidence import TRAITS
from recsys.report.svg import ACCENT, GRID, INK, SERIES, SOFT, Plot, figure, to_svg

QUERIES: Mapping[str, str] = {
    "profile": "the profile",
    "template": "the template's text",
    "titles": "titles of the last 10 items",
    "stranger": "another user's profile",
    "history": "mean vector of the history",
    "popular": "popularity",
}
LIES: Mapping[str, str] = {
    "value": "a taste that is none",
    "disliked": "a like told as a dislike",
    "title": "an item never chosen",
    "number": "a wrong number or share",
    "strength": "a wrong comparison",
    "shift": "a turn that there was not",
    "all": "all",
}

# What a lift is against, where it is not what others choose (`profiles.evidence`).
AGAINST: Mapping[str, str] = {"recent": "as often as before", "dislikes": "the share in all choices"}
LEVELS: Mapping[str, str] = {
    "user": "the user's own choices",
    "persona": "what people like the user like",
    "global": "what everybody likes",
}


def write_audit(out: Path, found: Audit) -> tuple[Path, Path]:
    """Write audit.json and audit.html into the folder `out`; gives back their paths. Errors: `StorageError`."""
    files = out / "audit.json", out / "audit.html"
    texts = json.dumps(found.as_dict(), indent=1, ensure_ascii=False) + "\n", render(found)
    for file, text in zip(files, texts, strict=True):
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return files


def render(found: Audit) -> str:
    """The page as text. Every value from outside is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("recsys.audit", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": _share, "traits": _traits}
    return environment.get_template("page.html.j2").render(
        found=found,
        figures=found.as_dict(),
        css=(resources.files("recsys.report") / "templates" / "report.css").read_text("utf-8"),
        headlines=_headlines(found),
        plots=[_useful(found), _fresh(found.freshness, found.refresh)],
        queries=QUERIES,
        lies=LIES,
        levels=LEVELS,
    )


def _headlines(found: Audit) -> list[tuple[str, str]]:
    """What is to be seen first: a figure, and what it is."""
    told, useful, kept = found.truth, found.usefulness, found.freshness.at(found.refresh)
    steered = None if isinstance(found.steering, str) else found.steering.rate
    rows = [
        (_share(told.precision), "of the claims are borne out"),
        (_share(None if told.caught is None else told.caught["all"]), f"of {told.lies} planted lies are caught"),
        (
            f"{useful.recall['profile'][0]:.3f}",
            f"recall@100 of the profile; {useful.recall['stranger'][0]:.3f} of a stranger's",
        ),
        (_share(kept.skipped), "of the regenerations are skipped"),
        (_share(steered), "of the edits steer"),
    ]
    if found.written is not None:
        rows.insert(1, (_share(found.written.false_texts), "of the model's own texts were false before repair"))
    return rows


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _traits(sample: Sample) -> list[tuple[str, str]]:
    """The evidence in rows: the part, and what is in it with lifts and counts."""
    rows = []
    for part in TRAITS:
        if traits := getattr(sample.evidence, part):
            against, noun = AGAINST.get(part, "the usual"), "day" if part == "rhythm" else "event"
            rows.append(
                (part, ", ".join(f"{t.value} ({t.lift:.1f} times {against}, {counted(t.n, noun)})" for t in traits))
            )
    for part in ("anchors", "latest"):
        if items := getattr(sample.evidence, part):
            rows.append((part, "; ".join(article_first(item.title) for item in items)))
    return rows


def _useful(found: Audit) -> Plot:
    recall = dict(found.usefulness.recall)
    if found.written is None:
        del recall["template"]  # it is the profile
    names, means = list(recall), [mean for mean, _ in recall.values()]
    spread = [[mean - low for mean, (low, _) in recall.values()], [high - mean for mean, (_, high) in recall.values()]]
    title = "What each query finds"
    alt = "; ".join(f"{QUERIES[name]} {mean:.3f}" for name, mean in zip(names, means, strict=True))
    with figure(2.7) as (drawn, axis):
        colours = [ACCENT if name == "profile" else SERIES[1] for name in names]
        axis.barh(range(len(names)), means, color=colours, height=0.62)
        axis.errorbar(means, range(len(names)), xerr=spread, fmt="none", ecolor=INK, capsize=2.5, elinewidth=1.2)
        axis.set_yticks(range(len(names)), [QUERIES[name] for name in names])
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_xlabel("recall@100")
        axis.grid(axis="x")
        svg = to_svg(drawn, "useful", title, alt)
    caption = (
        f"Mean over {found.usefulness.users:,} users of the share of what they chose next that is among the first 100 "
        f"of {found.usefulness.items:,} items; bars are 95% intervals."
    )
    return Plot("useful", title, caption, alt, svg)


def _fresh(found: Freshness, refresh: float) -> Plot:
    title = "Texts that are not written anew, and what that costs"
    kept = found.kept
    alt = "; ".join(f"threshold {k.threshold:g}: {k.skipped:.0%} skipped, {k.change.delta:+.4f}" for k in kept)
    with figure(2.9) as (drawn, axis):
        skipped = [k.skipped for k in kept]
        change = [k.change.delta for k in kept]
        low = [max(0.0, k.change.delta - k.change.ci95[0]) for k in kept]
        high = [max(0.0, k.change.ci95[1] - k.change.delta) for k in kept]
        axis.axhline(0, color=GRID, linewidth=1)
        axis.errorbar(skipped, change, yerr=[low, high], fmt="o-", color=SERIES[1], capsize=2.5, elinewidth=1.2)
        for k in kept:
            axis.annotate(
                "never" if k.threshold > 1 else f"{k.threshold:g}",
                (k.skipped, 1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(-2, 3),
                rotation=55,  # neighbours lie close together
                color=ACCENT if k is found.at(refresh) else SOFT,
                fontweight="bold" if k is found.at(refresh) else "normal",
            )
        axis.set_xlabel("share of regenerations that are skipped")
        axis.set_ylabel("change of recall@100")
        axis.margins(x=0.14, y=0.2)
        axis.grid(axis="y")
        svg = to_svg(drawn, "fresh", title, alt)
    caption = (
        f"{found.users:,} users' histories told in {found.steps} steps; each point is a threshold (above it, bold "
        "for this bundle) of how far the evidence may move before a text is written anew. Against always doing so, "
        "paired by user; bars are 95% intervals."
    )
    return Plot("fresh", title, caption, alt, svg)
