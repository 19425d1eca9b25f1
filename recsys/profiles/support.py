"""What evidence supports: each question that the reader of claims asks has its answer here, "" or what is wrong."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from recsys.profiles.evidence import MIN_LIFT, Evidence, Trait
from recsys.profiles.lexicon import Lexicon
from recsys.profiles.names import Mention, Pair
from recsys.profiles.population import LESSER, POPULAR
from recsys.profiles.rhythm import OFTEN, PACE, SELDOM

Told = tuple[str, object]
"""A fact that a text tells: ("likes" | "recent" | "dislikes", (attribute, value)), ("title", item) or ("count", n)."""

_PERCENT = 0.015  # a percentage may be rounded
_APART = re.compile(r"[,;:]|\b(?:and|but|so)\b", re.IGNORECASE)
_THEY = re.compile(r"\b(?:them|these|those|such)\b", re.IGNORECASE)
_OUT_OF = re.compile(r"\b(?:of|from)(?:\s+(?:all|the|your|these))*\s+$", re.IGNORECASE)
_ENOUGH = 5  # events below which tastes are not told


@dataclass(frozen=True)
class Facts:
    """The evidence, by what is asked of it. An empty answer means: supported."""

    evidence: Evidence

    @classmethod
    def of(cls, evidence: Evidence) -> "Facts":
        """The facts of one user."""
        return cls(evidence)

    @cached_property
    def strongest(self) -> tuple[Told, ...]:
        """What a good profile tells: the first tastes (else what is common), decade, title, shift and dislike."""
        e = self.evidence
        tastes = e.tastes[:2] if e.events >= _ENOUGH else ()
        eras, recent = (e.eras[:1], e.recent[:1]) if e.events >= _ENOUGH else ((), ())
        likes = [("likes", _pair(t)) for t in (*(tastes or e.usual[:1]), *eras)]
        titles = [("title", item.item_id) for item in e.anchors[:1]]
        shifts = [("recent", _pair(t)) for t in recent]
        return (*likes, *titles, *shifts, *(("dislikes", _pair(t)) for t in e.dislikes[:1]))

    def worded(self, kind: str) -> str:
        """Whether a sentence of that kind of the wording, which names nothing, is true of the user."""
        e = self.evidence
        true = {
            "nothing": not e.events,
            "little": 0 < e.events < _ENOUGH,
            "little-unnamed": 0 < e.events < _ENOUGH,
            "titles-only": bool(e.liked) and not e.common,
            "varied": bool(e.common) and not e.usual,
            **{f"reach-{value}": any(t.value == value for t in e.reach) for value in (POPULAR, LESSER)},
            **{f"{PACE}-{value}": any(t.value == value for t in e.rhythm) for value in (OFTEN, SELDOM)},
        }
        return "" if true.get(kind, True) else "not so of this user"

    def named(self, mention: Mention, attitude: str, marks: frozenset[str]) -> str:
        """Whether a value or title may be named on that side."""
        e = self.evidence
        if mention.kind == "title":
            anchors = {item.item_id for item in e.anchors}
            chosen = anchors | {item.item_id for item in e.latest}
            if attitude == "disliked":
                return "no title is known to be disliked"
            # of the last choices only those among the anchors are known to be liked, unless nothing is ever rated
            allowed = anchors if attitude == "liked" and e.rated else chosen
            return "" if mention.items & allowed else "not a title of the evidence on this side"
        if attitude == "disliked":
            return "" if self._of(mention, e.dislikes) else "not disliked"
        liked = (*e.tastes, *e.eras, *e.common, *(e.recent if "recent" in marks else ()))
        return "" if self._of(mention, liked) else "not liked"

    def told(self, mention: Mention, side: str, marks: frozenset[str]) -> set[Told]:
        """The facts that a supported mention tells."""
        if mention.kind == "title":
            return {("title", item) for item in mention.items}
        if mention.kind == "number":
            return {("count", mention.name)}
        kind = "dislikes" if side == "disliked" else "recent" if "recent" in marks else "likes"
        return {(kind, pair) for pair in mention.pairs}

    def compared(self, mention: Mention, need: float, marks: frozenset[str]) -> str:
        """Whether a lift of more than 1, or of `need`, stands behind "more than others"."""
        e = self.evidence
        pool = e.recent if "recent" in marks else (*e.tastes, *e.eras)
        lifts = [t.lift for t in self._of(mention, pool)]
        if not lifts:
            return "not more than others"
        return "" if max(lifts) > 1.0 and round(max(lifts), 1) >= need else f"lift {max(lifts):.1f}"

    def recent(self, mention: Mention, marks: frozenset[str]) -> str:
        """Whether a value is chosen oftener of late, or a title was chosen last. Nothing is known to have faded."""
        if "faded" in marks:
            return "nothing is known to have faded"
        if mention.kind == "title":
            return "" if mention.items & {item.item_id for item in self.evidence.latest} else "not a last choice"
        return "" if self._of(mention, self.evidence.recent) else "no recent shift"

    def ranked(self, named: Sequence[Mention], side: str, marks: frozenset[str]) -> str:
        """Whether what is called first is first; "alike" is true of who has no taste that stands out."""
        e = self.evidence
        values = [m for m in named if m.kind != "title"]
        if "alike" in marks:
            own = (*e.tastes, *(t for t in e.common if t.lift >= MIN_LIFT))
            return "" if values and not any(self._of(m, own) for m in values) else "a taste of its own"
        if not values:
            return "" if all(m.items & {item.item_id for item in e.anchors} for m in named) else "not a first title"
        if side == "disliked":
            first: tuple[Trait, ...] = e.dislikes[:1]
        elif "recent" in marks:
            first = e.recent[:1]
        else:
            first = (*e.tastes[:1], *sorted(e.tastes, key=lambda t: -t.lift)[:1], *e.eras[:1])
            first = (*first, *(e.common if "most" not in marks else ()))
        return "" if any(self._of(m, first) for m in values) else "not the first"

    def shared(self, mention: Mention, share: float, side: str) -> str:
        """Whether a value has at least that share of what is liked (or disliked)."""
        found = self._shares(mention, side)
        return "" if found and max(found) >= share else "not so large a share"

    def number(self, number: Mention, clause: str, values: Sequence[Mention], side: str, lexicon: Lexicon) -> str:
        """Whether a number is one of the evidence: a total, the support of a value beside it, or a share."""
        after = clause[number.end :]
        amount = _amount(number.name, lexicon)
        if amount is None:
            return "not a number of the evidence"
        if after.lstrip().startswith("%") or lexicon.words["percent"].match(after.lstrip()):
            shares = [share for value in values for share in self._shares(value, side)]
            return "" if any(abs(share - amount / 100) <= _PERCENT for share in shares) else "not its share"
        supports = {t.n for value in values for t in self._pool(value, side)}
        partial = re.match(r"\s*(?:of|are|were|is|was)\b|\s*$", after) and values
        near = any(0 <= value.start - number.end <= 1 for value in values)
        totals = set() if partial or near else self._totals(number, clause, values, lexicon)
        return "" if amount in supports | totals else "not a number of the evidence"

    def _totals(self, number: Mention, clause: str, values: Sequence[Mention], lexicon: Lexicon) -> set[int]:
        """The totals that a number may be. It counts ratings, titles or the like, and says nothing of the values that
        the clause names; beside a word of liking or disliking it is what was liked or disliked."""
        counted = lexicon.words["counted"].pattern
        noun = re.compile(rf"\s+(?:[\w'’-]+\s+){{0,3}}?{counted}", re.IGNORECASE).match(clause, number.end)
        if noun is None:
            return set()
        for value in values:
            before = value.start < number.start
            between = clause[value.end : number.start] if before else clause[noun.end() : value.start]
            if not _APART.search(between) or (before and _THEY.search(clause, number.end)):
                return set()
        e = self.evidence
        start = max((m.end() for m in _APART.finditer(clause, 0, number.start)), default=0)
        end = min((m.start() for m in _APART.finditer(clause, noun.end())), default=len(clause))
        if _OUT_OF.search(clause, start, number.start):
            return {e.events}
        part = f"{clause[start : number.start]} {clause[number.end : end]}"
        for section in ("idioms", "choose", "counted"):
            part = lexicon.without(section, part)
        return {e.disliked if lexicon.has("dislike", part) else e.liked if lexicon.has("like", part) else e.events}

    def _of(self, mention: Mention, traits: Sequence[Trait]) -> list[Trait]:
        return [t for t in traits if _pair(t) in mention.pairs]

    def _pool(self, mention: Mention, side: str) -> list[Trait]:
        e = self.evidence
        return self._of(mention, e.dislikes if side == "disliked" else (*e.tastes, *e.eras, *e.common))

    def _shares(self, mention: Mention, side: str) -> list[float]:
        whole = self.evidence.disliked if side == "disliked" else self.evidence.liked
        return [t.n / whole for t in self._pool(mention, side) if whole]


def _pair(trait: Trait) -> Pair:
    return trait.attribute, trait.value


def _amount(text: str, lexicon: Lexicon) -> int | None:
    """A number in digits or words; None for anything else with digits in it."""
    if re.fullmatch(r"\d{1,3}(?:[,.]\d{3})+|\d+", text):
        return int(re.sub(r"\D", "", text))
    total = current = 0
    for word in re.split(r"[\s-]+", text.casefold()):
        value = int(lexicon.amounts["numbers"].get(word, -1))
        if value < 0 and word != "and":
            return None
        if value >= 100:
            current = max(current, 1) * value
            total, current = (total + current, 0) if value >= 1000 else (total, current)
        elif value >= 0:
            current += value
    return total + current
