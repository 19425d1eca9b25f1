"""What changed between two versions of a profile, in words, read from their claims alone.

A stored version is its text and its claims ("likes|genres|Horror|lift=3.1|n=12", see `template.claim`), so old versions
can be compared without the evidence that they were written from.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from recsys.data.words import facet_name, join, quoted, titled
from recsys.profiles.evidence import Evidence
from recsys.profiles.population import LESSER, POPULAR
from recsys.profiles.rhythm import OFTEN, PACE, SELDOM
from recsys.profiles.template import claim
from recsys.profiles.versions import Version

STEP = 1.25
"""By this factor a lift must change to be called stronger or weaker; less is what a few events do."""

# kind of claim -> what is said of values that are new, gone, stronger and weaker; "common" has no strength of its own.
_VALUES: Mapping[str, tuple[str, str, str | None, str | None]] = {
    "likes": ("new among your tastes: {}", "faded from your tastes: {}", "stronger taste: {}", "weaker taste: {}"),
    "era": ("new leaning: {}", "no longer a leaning: {}", "stronger leaning: {}", "weaker leaning: {}"),
    "common": ("now among what you often choose: {}", "no longer among what you often choose: {}", None, None),
    "recent": ("lately you turn more to {}", "no longer a recent turn: {}", None, None),
    "dislikes": (
        "now rated lower than the rest: {}",
        "no longer rated lower than the rest: {}",
        "rated lower still: {}",
        "rated less low than before: {}",
    ),
    "pinned": ("you asked us to count on {}", "you took back that we count on {}", None, None),
    "forgotten": ("you asked us not to count on {}", "you took back that we do not count on {}", None, None),
    "undisliked": ("you told us that you have nothing against {}", "you took back what you said of {}", None, None),
}
# The same for what is named by an id or in the user's words.
_NAMES: Mapping[str, tuple[str, str]] = {
    "anchor": ("new among your most telling choices: {}", "no longer among your most telling choices: {}"),
    "latest": ("you last chose {}", ""),
    "said": ("you told us {}", "you took back {}"),
}
# The same for claims about the user alone, by kind and value.
_LEANINGS: Mapping[tuple[str, str], str] = {
    ("reach", LESSER): "look beyond what is popular more than most",
    ("reach", POPULAR): "keep to what is popular more than most",
    (PACE, OFTEN): "come back more often than most",
    (PACE, SELDOM): "come back less often than most",
}
_OF_OTHERS = ("persona", "everybody")  # no change of the user's
_ERA = re.compile(r"\d{3}0s")


@dataclass(frozen=True)
class _Claims:
    """Claims by kind: values with their lifts (None where they have none), names, leanings in words, and the number of
    events."""

    values: Mapping[str, Mapping[tuple[str, str], float | None]]
    names: Mapping[str, Sequence[str]]
    leanings: Sequence[str]
    others: Sequence[str]
    events: int

    @classmethod
    def read(cls, claims: Sequence[str]) -> "_Claims":
        values: dict[str, dict[tuple[str, str], float | None]] = {}
        names: dict[str, list[str]] = {}
        leanings, others, events = [], [], 0
        for text in claims:
            kind, *rest = text.split("|")
            if kind in _VALUES and len(rest) >= 2:
                values.setdefault(kind, {})[rest[0], rest[1]] = _number(rest, "lift=")
            elif kind in _NAMES and rest:
                names.setdefault(kind, []).append("|".join(rest))
            elif kind == "events":
                events = int(_number(rest, "n=") or 0)
            elif len(rest) >= 2 and (kind, rest[1]) in _LEANINGS:
                leanings.append(_LEANINGS[kind, rest[1]])
            elif kind not in _OF_OTHERS:
                others.append(text)
        return cls(values, names, leanings, others, events)


def diff(
    old: Evidence | Sequence[str],
    new: Evidence | Sequence[str],
    *,
    titles: Mapping[str, str] | None = None,
    noun: str = "choice",
) -> list[str]:
    """What is different in `new`, one line each; empty where nothing is that a profile would say.

    old, new : claims, or evidence, whose claims are then all of it
    titles   : of items by their id as text; an item without one is called by its id
    noun     : what an event is called ("rating")

    A line can be of several values. Claims of a kind that is not known here are told as they are.
    """
    before, after = _Claims.read(_claims(old)), _Claims.read(_claims(new))
    lines = _edits(before, after)
    for kind in ("likes", "era", "common", "recent", "dislikes"):
        lines += _compare(kind, before.values.get(kind, {}), after.values.get(kind, {}))
    for kind in ("anchor", "latest"):
        lines += _named(kind, before, after, lambda item: titled((titles or {}).get(item, item)))
    lines += [f"you now {text}" for text in after.leanings if text not in before.leanings]
    lines += [f"you no longer {text}" for text in before.leanings if text not in after.leanings]
    lines += [f"new: {text}" for text in after.others if text not in before.others]
    lines += [f"gone: {text}" for text in before.others if text not in after.others]
    if more := after.events - before.events:
        lines.append(f"{abs(more)} {'more' if more > 0 else 'fewer'} {noun}{'' if abs(more) == 1 else 's'}")
    return lines


def claims_of(evidence: Evidence) -> list[str]:
    """Every claim that the evidence bears out; a profile's text makes those that it has room for."""
    parts = {
        "likes": evidence.tastes,
        "era": evidence.eras,
        "common": evidence.common,
        "reach": evidence.reach,
        "recent": evidence.recent,
        "dislikes": evidence.dislikes,
        PACE: evidence.rhythm,
    }
    values = [claim(kind, trait) for kind, traits in parts.items() for trait in traits]
    anchors = [f"anchor|{item.item_id}" for item in evidence.anchors]
    latest = [f"latest|{item.item_id}" for item in evidence.latest[:1]]
    return [f"events|n={evidence.events}", *values, *anchors, *latest]


EDITED = ("said|", "pinned|", "forgotten|", "undisliked|")
"""How the claims begin that tell what the user changed, which no evidence holds."""


def claims_of_version(version: Version) -> Sequence[str]:
    """All that a stored version knows: what the user changed, and every claim of its evidence, also those that its
    text has no room for; the text's claims where the evidence was not kept or is of another release."""
    try:
        evidence = Evidence.read(version.evidence)
    except (ValueError, TypeError, KeyError, AttributeError):
        return version.claims
    return [*(claim for claim in version.claims if claim.startswith(EDITED)), *claims_of(evidence)]


def _claims(version: Evidence | Sequence[str]) -> Sequence[str]:
    return claims_of(version) if isinstance(version, Evidence) else version


def _number(fields: Sequence[str], name: str) -> float | None:
    """The number of the field that begins with `name`; None where there is none, or it is no number."""
    for field in fields:
        if field.startswith(name):
            try:
                return float(field.removeprefix(name))
            except ValueError:
                return None
    return None


def _edits(before: _Claims, after: _Claims) -> list[str]:
    """What the user changed in between."""
    lines = _named("said", before, after, quoted)
    for kind in ("pinned", "forgotten", "undisliked"):
        lines += _compare(kind, before.values.get(kind, {}), after.values.get(kind, {}))
    return lines


def _compare(
    kind: str, before: Mapping[tuple[str, str], float | None], after: Mapping[tuple[str, str], float | None]
) -> list[str]:
    came, went, rose, fell = _VALUES[kind]
    new, gone = [v for v in after if v not in before], [v for v in before if v not in after]
    lines = [text.format(_names(values)) for text, values in ((came, new), (went, gone)) if values]
    for text, factor in ((rose, 1), (fell, -1)):
        changed = [v for v in after if v in before and _steps(before[v], after[v]) == factor]
        if text and changed:
            parts = [f"{_names([v])} ({before[v]:.1f} to {after[v]:.1f} times the usual)" for v in changed]
            lines.append(text.format(join(parts)))
    return lines


def _steps(before: float | None, after: float | None) -> int:
    """1 where a lift rose by `STEP` or more, -1 where it fell so, else 0."""
    if not before or not after:
        return 0
    return (after >= STEP * before) - (before >= STEP * after)


def _named(kind: str, before: _Claims, after: _Claims, name: Callable[[str], str]) -> list[str]:
    old, new = before.names.get(kind, ()), after.names.get(kind, ())
    came, went = _NAMES[kind]
    lines = []
    for text, group in ((came, [x for x in new if x not in old]), (went, [x for x in old if x not in new])):
        if text and group:
            lines.append(text.format(join([name(one) for one in group])))
    return lines


def _names(values: Sequence[tuple[str, str]]) -> str:
    """Values in words. A claim does not say of which kind its value is; a decade shows."""
    return join([facet_name(a, value, "era" if _ERA.fullmatch(value) else "value") for a, value in values])
