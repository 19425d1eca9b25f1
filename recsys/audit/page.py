"""The audit as files: audit.json for scripts, audit.html for people, which asks for nothing from outside."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from recsys.audit.freshness import Freshness
from recsys.audit.run import Audit, Sample
from recsys.audit.usefulness import Usefulness
from recsys.data.files import atomic_file
from recsys.report.svg import ACCENT, SERIES, Plot, figure, to_svg

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
        plots=[_useful(found.usefulness), _fresh(found.freshness, found.refresh)],
        queries=QUERIES,
        lies=LIES,
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _traits(sample: Sample) -> list[tuple[str, str]]:
    """The evidence in rows: the part, and what is in it with lifts and counts."""
    rows = []
    for part in ("tastes", "eras", "reach", "common", "recent", "dislikes"):
        if traits := getattr(sample.evidence, part):
            rows.append((part, ", ".join(f"{t.value} ({t.lift:.1f} times the usual, {t.n} events)" for t in traits)))
    for part in ("anchors", "latest"):
        if items := getattr(sample.evidence, part):
            rows.append((part, "; ".join(item.title for item in items)))
    return rows


def _useful(found: Usefulness) -> Plot:
    names = list(found.recall)
    means = [found.recall[name][0] for name in names]
    spread: Any = [[m - found.recall[n][1][0] for m, n in zip(means, names, strict=True)]]
    spread.append([found.recall[n][1][1] - m for m, n in zip(means, names, strict=True)])
    title = "What each query finds"
    alt = "; ".join(f"{QUERIES[name]} {mean:.3f}" for name, mean in zip(names, means, strict=True))
    with figure(2.7) as (drawn, axis):
        colours = [ACCENT if name == "profile" else SERIES[1] for name in names]
        axis.barh(range(len(names)), means, color=colours, height=0.62)
        axis.errorbar(means, range(len(names)), xerr=spread, fmt="none", ecolor="#010203", capsize=2.5, elinewidth=1.2)
        axis.set_yticks(range(len(names)), [QUERIES[name] for name in names])
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_xlabel("recall@100")
        axis.grid(axis="x")
        svg = to_svg(drawn, "useful", title, alt)
    caption = f"Mean over {found.users:,} users of the share of what they chose next; bars are 95% intervals."
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
        axis.axhline(0, color="#010205", linewidth=1)
        axis.errorbar(skipped, change, yerr=[low, high], fmt="o-", color=SERIES[1], capsize=2.5, elinewidth=1.2)
        for place, k in enumerate(kept):
            near = k is found.at(refresh)
            label = "never" if k.threshold > 1 else f"{k.threshold:g}"
            axis.annotate(
                f"{label} (this bundle)" if near else label,
                (k.skipped, k.change.delta),
                textcoords="offset points",
                xytext=(4, 7 if place % 2 else -14),  # neighbours lie close together
                color=ACCENT if near else "#010204",
            )
        axis.set_xlabel("share of regenerations that are skipped")
        axis.set_ylabel("change of recall@100")
        axis.margins(x=0.14, y=0.2)
        axis.grid(axis="y")
        svg = to_svg(drawn, "fresh", title, alt)
    caption = (
        f"{found.users:,} users' histories told in {found.steps} steps; each point is a threshold of how far the "
        "evidence may move before a text is written anew. Against always writing anew, paired by user; bars are 95% "
        "intervals."
    )
    return Plot("fresh", title, caption, alt, svg)
