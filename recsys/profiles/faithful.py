"""Is a text that a model wrote about a user true to the evidence? A small, strict reader: when in doubt it rejects.

It knows the catalog's names. Every attribute value or title of the catalog that the text names must be in the
evidence, on the side (liked or disliked) on which the text puts it; so must every number. Every sentence must name
something of the evidence, for what names nothing cannot be checked. The text must speak to "you", be of a sensible
length, and repeat neither itself nor its instructions.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from recsys.data.words import TITLE_LIMIT, facet_name, one_line, value_name
from recsys.profiles.evidence import Evidence, Trait
from recsys.profiles.population import Known
from recsys.profiles.template import Phrases

MIN_WORDS, MAX_WORDS = 12, 120
_LONGEST_NAME = 8  # words of a title or value that are looked up
_ECHO = 7  # consecutive words that make an echo of the instructions, or a repetition
_ENOUGH = 3  # things of the evidence that a text must name (all of them where there are fewer)
_MARK = "\u25a1"  # stands for a title of the evidence while the rest is read
_TOKEN = re.compile(r"[^\W_]+(?:['’.\-&][^\W_]+)*")
_QUOTED = re.compile(r'["“]([^"“”]*)["”](\s*\((?:1[89]|20)\d\d\))?')
_ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|L'|El|Il|Der|Die|Das)$")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_CLAUSE = re.compile(r"[;:]\s+|,?\s+\b(?:but|although|though|while|whereas|yet|however)\b")
_OTHERS = re.compile(
    r"\b(I|I'm|I've|[Mm]e|[Mm]y|[Mm]ine|[Hh]e|[Ss]he|[Hh]is|[Hh]er|[Hh]im|[Tt]he (?:user|reader|person)|AI"
    r"|[Aa]ssistant)\b"
)
_YOU = re.compile(r"\byou\b|\byour\b", re.IGNORECASE)
_NEGATIVE = re.compile(
    r"\b(dislik\w*|hat(e|es|ed)|avoid\w*|lower|low|less|least|not|never|hardly|harder|rarely|seldom|poorly|\w+n't)\b",
    re.IGNORECASE,
)
_QUOTE = re.compile('["“”„«»]')
_YEAR = re.compile(r"\s*\((1[89]|20)\d\d\)$")


@dataclass(frozen=True)
class Checker:
    """Names of a catalog, ready to be found in texts; see `of`.

    values : a value as it may be written (casefolded) -> the (attribute, value) pairs it may stand for
    titles : titles without their year
    common : words of the instructions and phrasings, which are no names when they stand alone
    echoes : runs of `_ECHO` words of the instructions
    """

    values: dict[str, set[tuple[str, str]]]
    titles: frozenset[str]
    common: frozenset[str]
    echoes: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, known: Known, phrases: Phrases, instructions: str) -> "Checker":
        """Learn the catalog's names, and the wording that a model was given."""
        values: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for attribute, value, kind in known.population.values.select("attribute", "value", "kind").iter_rows():
            for form in _forms(attribute, value, kind):
                values[form].add((attribute, value))
        titles = {_YEAR.sub("", one_line(t, TITLE_LIMIT)) for t in known.titles}
        given = _words(instructions.casefold())
        said = _words(" ".join(p for kind in phrases.kinds.values() for p in kind).casefold())
        return cls(dict(values), frozenset(titles), frozenset((*given, *said)), frozenset(_runs(given)))

    def fault(self, text: str, evidence: Evidence) -> str | None:
        """Why the text may not be shown, in a word or two and the name at fault; None where nothing is wrong."""
        words = text.split()
        if not words:
            return "empty"
        if not MIN_WORDS <= len(words) <= MAX_WORDS:
            return "length"
        bare, foreign = _without_titles(text, evidence)
        if foreign:
            return f"title: {foreign}"
        runs = _runs(_words(bare.casefold()))
        if len(set(runs)) < len(runs) or not self.echoes.isdisjoint(runs):
            return "echo"
        if not _YOU.search(bare) or _OTHERS.search(bare):
            return "person"
        return self._unsupported(bare, evidence)

    def _unsupported(self, bare: str, evidence: Evidence) -> str | None:
        liked = _pairs((*evidence.tastes, *evidence.eras, *evidence.common, *evidence.recent))
        low = _pairs(evidence.dislikes)
        numbers = _numbers(evidence)
        named: list[str] = [_MARK] * bare.count(_MARK)
        for sentence in _SENTENCE.split(bare):
            before = len(named) - sentence.count(_MARK)
            for clause in _CLAUSE.split(sentence):
                found, fault = self._read(clause, low if _NEGATIVE.search(clause) else liked, numbers)
                if fault is not None:
                    return fault
                named += found
            if len(named) == before:
                return f"nothing named: {sentence}"
        there = len(liked | low) + len({i.item_id for i in (*evidence.anchors, *evidence.latest)})
        titles = named.count(_MARK)
        enough = len({n for n in named if n != _MARK}) + titles >= min(_ENOUGH, there)
        return None if enough else "too little named"

    def _read(self, clause: str, allowed: set[tuple[str, str]], numbers: set[str]) -> tuple[list[str], str | None]:
        """What a clause names that is allowed there, and the first thing that is not."""
        tokens = _words(clause)
        found: list[str] = []
        at = 0
        while at < len(tokens):
            size, name = self._name_at(tokens, at)
            if name is not None:
                if not self.values.get(name.casefold(), set()) & allowed:
                    return found, f"{'value' if name.casefold() in self.values else 'title'}: {name}"
                found.append(name.casefold())
            elif digits := re.findall(r"\d+", tokens[at]):
                if not set(digits) <= numbers:
                    return found, f"number: {tokens[at]}"
                found.append(tokens[at])
            at += size
        return found, None

    def _name_at(self, tokens: list[str], at: int) -> tuple[int, str | None]:
        """The longest catalog name that starts there, and its number of words; (1, None) where there is none.

        A title of one word counts only where it is capitalised in mid-sentence: "Heat", but not "You" or "heat".
        """
        for size in range(min(_LONGEST_NAME, len(tokens) - at), 0, -1):
            name = " ".join(tokens[at : at + size])
            alone = size == 1 and name.casefold() in self.common
            if name.casefold() in self.values and not alone:
                return size, name
            if name in self.titles and (size > 1 or (at > 0 and name[:1].isupper() and not alone)):
                return size, name
        return 1, None


def _words(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + _ECHO]) for i in range(len(words) - _ECHO + 1)]


def _forms(attribute: str, value: str, kind: str) -> set[str]:
    """The ways in which a facet may be written, casefolded: with and without plural, decades short and long."""
    spoken = [facet_name(attribute, value, kind)] if kind == "number" else [value, value_name(attribute, value)]
    base = {" ".join(_words(text)).casefold() for text in spoken}
    forms = set(base)
    for form in base:
        if re.fullmatch(r"\d{3}0s", form):
            forms |= {form[2:], f"{form[:-1]}'s"}
        else:
            forms |= {f"{form}s", f"{form[:-1]}ies" if form.endswith("y") else f"{form}es"}
            forms |= {form.replace("-", " "), form.replace("sci-fi", "science fiction")}
    return forms - {""}


def _without_titles(text: str, evidence: Evidence) -> tuple[str, str]:
    """The text with a mark for each of the evidence's titles, and the first quoted name that is not one of them."""
    names = {form for i in (*evidence.anchors, *evidence.latest) for form in _title_forms(i.title)}
    folded = {name.casefold() for name in names}
    for quote, year in _QUOTED.findall(text):
        name = quote.strip().rstrip(".,;")
        if f"{name}{year and f' {year.strip()}'}".casefold() not in folded:
            return text, quote
    bare = _QUOTED.sub(f" {_MARK} ", text)
    for name in sorted(names, key=lambda n: (-len(n), n)):
        bare = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", f" {_MARK} ", bare)
    return bare, ""


def _title_forms(title: str) -> set[str]:
    """A title as people write it: with or without its year, a trailing article left, moved to the front, or dropped."""
    plain = _QUOTE.sub("'", title)
    year = _YEAR.search(plain)
    stem = _YEAR.sub("", plain)
    stems = {stem}
    if moved := _ARTICLE.match(stem):
        stems |= {moved[1], f"{moved[2]} {moved[1]}"}
    return stems | ({f"{s} {year[0].strip()}" for s in stems} if year else set())


def _pairs(traits: Iterable[Trait]) -> set[tuple[str, str]]:
    return {(t.attribute, t.value) for t in traits}


def _numbers(e: Evidence) -> set[str]:
    traits = (*e.tastes, *e.eras, *e.common, *e.recent, *e.dislikes)
    return {str(n) for n in (e.events, e.liked, e.disliked, *(t.n for t in traits))}
