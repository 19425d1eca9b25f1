"""What a text claims about a user, claim by claim, and whether the evidence supports it. A pure, strict reader.

A text is cut into sentences, these into clauses. A clause puts what it names (values, decades, titles, numbers) on the
liked or the disliked side, and may compare ("far more than most"), place in time ("lately"), rank ("favourite") or
give a share ("half of"); each is a claim about what it names. Whatever the reader cannot place is unsupported: a clause
whose attitude it does not know, a capitalised name that nobody gave it, a subject that the catalog lacks. The words it
reads by are data (`lexicon`).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from recsys.profiles import pairs
from recsys.profiles.evidence import Evidence
from recsys.profiles.lexicon import Lexicon
from recsys.profiles.names import Masked, Mention, Names
from recsys.profiles.support import Facts, Told

_SENTENCE = re.compile(r"(?<=[.!?…])[\"”')\]]*\s+|\n+")
_CUT = re.compile(r"[;:—–]\s*|\s-\s")
_TIMES = re.compile(r"(\d+(?:\.\d+)?|[a-z]+)(?:\s+times\b|[- ]?fold\b|x\b)", re.IGNORECASE)
_FAR, _MORE = 2.0, 1.0
_STRANGE = ("name", "language", "word")
_COMPARISONS = ("times", "factors", "far", "more")
_MARKS = ("alike", "recent", "faded", "often", "most")


@dataclass(frozen=True)
class Claim:
    """One checkable claim.

    kind     : value, era, title, number, comparative, recency, superlative, share; wording (a sentence of the wording
               that names nothing: "you come back more often than most"); or what the reader cannot take for true:
               name, word, topics, language, unknown
    name     : what it is about, as the text has it
    polarity : liked, disliked or unclear: where the text puts it
    why      : what is wrong where it is not supported
    """

    sentence: int
    kind: str
    name: str
    polarity: str
    supported: bool
    why: str = ""


@dataclass(frozen=True)
class Reading:
    """A text's sentences, its claims in order, what it truly tells of the evidence, and each sentence's fault."""

    sentences: tuple[str, ...]
    claims: tuple[Claim, ...]
    told: frozenset[Told]
    faults: tuple[str | None, ...]

    @property
    def precision(self) -> float:
        """Supported claims over all claims; 1 where there is none."""
        return sum(c.supported for c in self.claims) / len(self.claims) if self.claims else 1.0

    def coverage(self, evidence: Evidence) -> float:
        """Share of the strongest evidence that the text tells truly; 1 where there is none."""
        wanted = Facts.of(evidence).strongest
        return sum(fact in self.told for fact in wanted) / len(wanted) if wanted else 1.0


@dataclass(frozen=True)
class _Clause:
    """mentions, and what is said of all of them; `comparisons` are (start, end, lift that is needed)."""

    text: str
    mentions: tuple[Mention, ...]
    attitude: str
    comparisons: tuple[tuple[int, int, float], ...] = ()
    shares: tuple[float, ...] = ()
    marks: frozenset[str] = frozenset()
    strange: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reader:
    """Reads texts by a catalog's names and a language's words.

    fixed : sentences of the wording that name nothing, by kind; they may stand where the template would say them
    """

    names: Names
    lexicon: Lexicon
    fixed: Mapping[str, str] = field(default_factory=dict)

    def read(self, text: str, evidence: Evidence) -> Reading:
        """All claims of the text, checked against the evidence."""
        masked, facts = self.names.mask(text, evidence), Facts.of(evidence)
        sentences = [part for part in _SENTENCE.split(masked.text.strip()) if part.strip()]
        claims: list[Claim] = []
        told: set[Told] = set()
        faults: list[str | None] = []
        for place, sentence in enumerate(sentences):
            found: list[Claim] = []
            whole = masked.restore(sentence).strip()
            if (kind := self.fixed.get(whole)) is not None:
                why = facts.worded(kind)
                claims.append(Claim(place, "wording", kind, "liked", not why, why))
                faults.append(f"wording: {kind}" if why else None)
                continue
            for clause in self._clauses(sentence, masked):
                some, true = self._judge(place, clause, facts)
                found += some
                told |= true
            claims += found
            faults.append(self._fault(whole, sentence, found))
        shown = tuple(masked.restore(sentence).strip() for sentence in sentences)
        return Reading(shown, tuple(claims), frozenset(told), tuple(faults))

    def _fault(self, shown: str, sentence: str, claims: list[Claim]) -> str | None:
        if self.lexicon.has("others", sentence):
            return "person"
        for claim in claims:
            if not claim.supported:
                return f"{claim.kind}: {claim.name}"
        named = any(c.kind in ("value", "era", "title", "number") for c in claims)
        return None if named else f"nothing named: {shown}"

    def _clauses(self, sentence: str, masked: Masked) -> list[_Clause]:
        """The clauses; what one without names says is said of the nearest one with names, earlier ones first."""
        cuts = {0, len(sentence), *(m.end() for m in _CUT.finditer(sentence))}
        whole = self.lexicon.spans("dislike", sentence)  # "anything but" is not cut at its "but"
        ends = (start for start, _ in self.lexicon.spans("clauses", sentence))
        cuts |= {at for at in ends if not any(start < at < end for start, end in whole)}
        # a comma before "you" ends what leads up to it: "While you avoid westerns, you love horror"
        commas = (m.end() for m in re.finditer(r",\s+", sentence))
        cuts |= {at for at in commas if self.lexicon.words["you"].match(sentence, at)}
        edges = sorted(cuts)
        parts = [sentence[a:b] for a, b in itertools.pairwise(edges)]
        clauses = [self._clause(part, masked, opens=place == 0) for place, part in enumerate(parts) if part.strip()]
        named = [place for place, clause in enumerate(clauses) if clause.mentions]
        for place, clause in enumerate(clauses):
            if not clause.mentions and named:
                target = max((n for n in named if n < place), default=named[0])
                clauses[target] = _with(clauses[target], clause)
                clauses[place] = replace(clause, comparisons=(), shares=(), marks=frozenset())
        return self._attitudes(clauses)

    def _attitudes(self, clauses: list[_Clause]) -> list[_Clause]:
        """A clause without an attitude has that of the one before it, the first ones that of the next."""
        known = [c.attitude for c in clauses if c.attitude]
        before = known[0] if known else ""
        found = []
        for clause in clauses:
            before = clause.attitude or before
            found.append(replace(clause, attitude=before))
        return found

    def _clause(self, text: str, masked: Masked, *, opens: bool) -> _Clause:
        lexicon = self.lexicon
        found = list(self.names.mentions(text, masked, opens=opens))
        mentions = [m for m in found if m.kind not in _STRANGE]
        strange = [(m.kind, m.name) for m in found if m.kind in _STRANGE]
        rest = _blank(text, [(m.start, m.end) for m in mentions if m.kind != "number"])
        rest = re.sub(rf"\((?:{'|'.join(map(re.escape, sorted(self.names.attributes)))})\)", _spaces, rest)
        idioms = lexicon.spans("idioms", rest)
        rest = _blank(rest, idioms)
        strange += [(kind, rest[a:b]) for kind in ("unknown", "topics") for a, b in lexicon.spans(kind, rest)]
        strange += [("unknown", said) for said in pairs.reversed_in(rest)]
        ops = self._operators(rest)
        compared = [(a, b) for a, b, kind, _ in ops if kind in _COMPARISONS]
        # "like nobody else" compares, and is no negation
        if lexicon.has("dislike", plain := _blank(rest, compared)):
            attitude = "disliked"
            strange += [("unknown", turned)] if (turned := self._turned(plain)) else []
        else:
            liked = idioms or lexicon.has("like", rest)
            attitude = "liked" if liked else "chosen" if lexicon.has("choose", rest) else ""
        rest = _blank(rest, [(a, b) for a, b, kind, _ in ops if kind in ("times", "factors", "shares")])
        mentions = [m for m in mentions if m.kind != "number" or rest[m.start : m.end].strip()]
        mentions += _spelled(rest, lexicon)
        return _Clause(
            text,
            tuple(sorted(mentions, key=lambda m: m.start)),
            attitude,
            tuple((a, b, value) for a, b, kind, value in ops if kind in _COMPARISONS),
            tuple(value for _, _, kind, value in ops if kind == "shares"),
            frozenset(kind for _, _, kind, _ in ops if kind in _MARKS and not (compared and kind == "alike")),
            tuple(strange),
        )

    def _turned(self, text: str) -> str:
        """The negation by which a clause with words of dislike speaks of none; empty where it does speak of one."""
        lexicon = self.lexicon
        words = [text[a:b] for a, b in lexicon.spans("dislike", text)]
        turns = [word for word in words if lexicon.words["negation"].fullmatch(word)]
        if not turns or (len(words) == 1 and (lexicon.has("like", text) or not lexicon.has("acts", text))):
            return ""
        return turns[0]

    def _operators(self, rest: str) -> list[tuple[int, int, str, float]]:
        """Comparisons, shares and marks in order, with their values; of those that overlap the first and longest."""
        lexicon = self.lexicon
        found = [(a, b, "times", times) for a, b, times in _times(rest, lexicon)]
        found += [(a, b, kind, value) for kind in ("factors", "shares") for a, b, value in lexicon.values(kind, rest)]
        needs = {"far": _FAR, "more": _MORE}
        found += [(a, b, k, needs.get(k, 0.0)) for k in ("far", "more", *_MARKS) for a, b in lexicon.spans(k, rest)]
        kept: list[tuple[int, int, str, float]] = []
        for one in sorted(found, key=lambda op: (op[0], -op[1])):
            if not kept or one[0] >= kept[-1][1]:
                kept.append(one)
        return kept

    def _judge(self, place: int, clause: _Clause, facts: Facts) -> tuple[list[Claim], set[Told]]:
        """The clause's claims, and what of them is true of the evidence."""
        claims: list[Claim] = []
        told: set[Told] = set()
        side = "disliked" if clause.attitude == "disliked" else "liked"
        polarity = side if clause.attitude else "unclear"
        values = [m for m in clause.mentions if m.kind in ("value", "era")]
        for mention in clause.mentions:
            if mention.kind == "number":
                why = facts.number(mention, clause.text, values, side, self.lexicon)
            elif not clause.attitude:
                why = "neither liked nor disliked"
            else:
                why = facts.named(mention, clause.attitude, clause.marks)
            claims.append(Claim(place, mention.kind, mention.name, polarity, not why, why))
            if not why:
                told |= facts.told(mention, side, clause.marks)
        claims += [Claim(place, kind, name, "unclear", False, "not in the evidence") for kind, name in clause.strange]
        claims += [
            Claim(place, kind, name, polarity, not why, why) for kind, name, why in self._said_of(clause, facts, side)
        ]
        return claims, told

    def _said_of(self, clause: _Clause, facts: Facts, side: str) -> Iterator[tuple[str, str, str]]:
        """(kind, name, what is wrong) of every comparison, time, rank and share in the clause."""
        named = [m for m in clause.mentions if m.kind != "number"]
        if not named:
            return
        for need, some in _assigned(clause.comparisons, named) if side == "liked" else ():
            for mention in some:
                against = clause.marks - {"recent"} if pairs.speaks_of_people(clause.text) else clause.marks
                yield "comparative", mention.name, facts.compared(mention, need, against)
        if side == "disliked" and any(not pairs.is_own(clause.text, start) for start, _, _ in clause.comparisons):
            yield "comparative", named[0].name, "what others dislike is not known"
        for first, second in itertools.pairwise(named):
            if pairs.prefers(first, second, clause.text):
                yield "comparative", first.name, "which of two is liked better is not known"
            if (told := pairs.example(first, second, clause.text)) and not self.names.carries(*told):
                yield "title", told[0].name, f"not of {told[1].name}"
        if clause.marks & {"recent", "faded"}:
            for mention in named:
                yield "recency", mention.name, facts.recent(mention, clause.marks)
        if clause.marks & {"most", "often", "alike"}:
            yield "superlative", named[0].name, facts.ranked(named, side, clause.marks)
        for share in clause.shares:
            for mention in named:
                yield "share", mention.name, facts.shared(mention, share, side)


def _assigned(
    comparisons: Iterable[tuple[int, int, float]], named: list[Mention]
) -> Iterator[tuple[float, list[Mention]]]:
    """Which names each comparison is about: those before it, or those after it, whichever fits; else all of them."""
    groups: list[tuple[int, int, float]] = []
    for start, end, need in comparisons:
        if groups and not any(groups[-1][1] <= m.start < start for m in named):
            first, last, most = groups[-1]
            groups[-1] = (first, max(last, end), max(most, need))
        else:
            groups.append((start, end, need))
    starts = [-1, *(end for _, end, _ in groups)]
    before = [[m for m in named if a <= m.start < g[0]] for a, g in zip(starts, groups, strict=False)]
    after_all = [m for m in named if groups and m.start >= groups[-1][1]]
    for (_, _, need), some in zip(groups, before, strict=True):
        yield need, some if all(before) and not after_all and len(groups) > 1 else named


def _times(rest: str, lexicon: Lexicon) -> Iterator[tuple[int, int, float]]:
    """ "five times", "3x", "tenfold", "many times" with the lift that they need."""
    for match in _TIMES.finditer(rest):
        word = match[1].casefold()
        if word.replace(".", "", 1).isdigit():
            yield *match.span(), float(word)
        elif word in lexicon.amounts["numbers"] or word in ("many", "several"):
            yield *match.span(), lexicon.amounts["numbers"].get(word, _FAR)


def _with(clause: _Clause, other: _Clause) -> _Clause:
    """The clause, of which the other, without names of its own, says more. Its places are after all names."""
    far = len(clause.text)
    added = tuple((far + start, far + end, need) for start, end, need in other.comparisons)
    return replace(
        clause,
        attitude="disliked" if other.attitude == "disliked" else clause.attitude or other.attitude,
        comparisons=(*clause.comparisons, *added),
        shares=(*clause.shares, *other.shares),
        marks=clause.marks | other.marks,
    )


def _spelled(rest: str, lexicon: Lexicon) -> list[Mention]:
    """Numbers in words, neighbours taken together: "two hundred and fifty"."""
    runs: list[tuple[int, int]] = []
    for start, end, _ in lexicon.values("numbers", rest):
        if runs and re.fullmatch(r"[\s-]*(?:and\s+)?", rest[runs[-1][1] : start]):
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return [Mention("number", rest[start:end], start, end) for start, end in runs]


def _spaces(found: re.Match[str]) -> str:
    return " " * len(found[0])


def _blank(text: str, spans: Iterable[tuple[int, int]]) -> str:
    for start, end in spans:
        text = text[:start] + " " * (end - start) + text[end:]
    return text
