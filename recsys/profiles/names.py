"""The names of a catalog, found in running text: values of its attributes and titles, as people write them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import polars as pl

from recsys.data.words import MEASURES, TITLE_LIMIT, article_first, attribute_name, facet_name, one_line, value_name
from recsys.profiles.evidence import Evidence
from recsys.profiles.lexicon import Lexicon
from recsys.profiles.phrases import Phrases
from recsys.profiles.population import Known
from recsys.tables import Id

Pair = tuple[str, str]
_LONGEST = 8  # words of a title or value that are looked up
_SURE = 3  # words from which on a title is one in lower case as well
_FIRST_MARK = 0xE000  # private-use characters stand for titles while the rest is read
_LAST_MARK = 0xF8FF
_TOKEN = re.compile(r"[^\W_]+(?:['’.\-&][^\W_]+)*")
_QUOTED = re.compile(r"""["“„«]([^"“”„«»]*)["”“»](?:\s*(\((?:1[89]|20)\d\d\)))?|(?<!\w)'([^'\n]{2,60})'(?!\w)""")
_YEAR = re.compile(r"\s*\((1[89]|20)\d\d\)$")
_ALIAS = re.compile(r"\s*\([^()]*\)")
_DETERMINERS = frozenset(("your", "our", "the", "this", "a", "my"))


@dataclass(frozen=True)
class Mention:
    """A name that a text names, where it stands in its clause: a value (with the facets it may stand for), a title
    (with the evidence's items of that title; none where it is no title of the evidence), or a word that is neither."""

    kind: str
    name: str
    start: int
    end: int
    pairs: frozenset[Pair] = frozenset()
    items: frozenset[Id] = frozenset()


@dataclass(frozen=True)
class Masked:
    """A text whose titles are marks, single characters; `titles` says what each stands for."""

    text: str
    titles: dict[str, tuple[str, frozenset[Id]]] = field(default_factory=dict)

    def restore(self, part: str) -> str:
        """A part of the masked text as it was."""
        return "".join(self.titles[c][0] if c in self.titles else c for c in part)


@dataclass(frozen=True)
class Names:
    """values : a value as it may be written (casefolded) -> the (attribute, value) pairs it may stand for
    titles : titles as words between spaces, without their year; folded: the long ones in lower case
    attributes : the names of attributes, casefolded
    plain : words which are no names when they stand alone
    known : the catalog, which says what an item is
    """

    values: dict[str, frozenset[Pair]]
    titles: frozenset[str]
    folded: frozenset[str]
    attributes: frozenset[str]
    plain: frozenset[str]
    lexicon: Lexicon
    known: Known

    @classmethod
    def of(cls, known: Known, phrases: Phrases, lexicon: Lexicon) -> "Names":
        """Learn the catalog's names, as the wording and the language say them."""
        values: dict[str, set[Pair]] = defaultdict(set)
        attributes = set()
        spoken = {int(start): word for word, start in lexicon.amounts["decades"].items()}
        for attribute, value, kind in known.population.values.select("attribute", "value", "kind").iter_rows():
            if kind == "reach":  # told in sentences of the wording alone, which are true where the template says them
                continue
            attributes.add(attribute_name(attribute).casefold())
            said = {phrases.names.get(value.casefold(), value)}
            for form in _forms(attribute, value, kind, said, spoken):
                values[form].add((attribute, value))
        titles = {" ".join(_TOKEN.findall(form)[:_LONGEST]) for title in known.titles for form in title_forms(title)}
        said_words = {w for kind in phrases.kinds.values() for p in kind for w in _TOKEN.findall(p.casefold())}
        return cls(
            {form: frozenset(pairs) for form, pairs in values.items()},
            frozenset(titles - {""}),
            frozenset(title.casefold() for title in titles if len(title.split()) >= _SURE),
            frozenset(attributes),
            lexicon.plain | said_words,
            lexicon,
            known,
        )

    def carries(self, title: Mention, value: Mention) -> bool:
        """Whether an item of that title carries the value."""
        codes = pl.Series(self.known.vocab.encode(pl.Series(sorted(title.items, key=str))))
        held = self.known.facets.filter(pl.col("item").is_in(codes.implode()))
        pairs = self.known.population.values.join(held, on="facet", how="semi").select("attribute", "value").rows()
        return not value.pairs.isdisjoint(pairs)

    def mask(self, text: str, evidence: Evidence) -> Masked:
        """Put a mark for every quoted title, and for every title of the evidence that stands without quotes."""
        own: dict[str, set[Id]] = defaultdict(set)
        for item in (*evidence.anchors, *evidence.latest):
            for form in title_forms(item.title):
                own[form.casefold()].add(item.item_id)
        marks: dict[str, tuple[str, frozenset[Id]]] = {}

        def mark(said: str, items: Iterable[Id]) -> str:
            place = chr(min(_FIRST_MARK + len(marks), _LAST_MARK))
            marks[place] = (said, frozenset(items))
            return place

        def quoted(found: re.Match[str]) -> str:
            name = (found[1] if found[3] is None else found[3]).strip()
            bare = name.rstrip(".,;!?")
            for form in (f"{name} {found[2]}", name) if found[2] else (name,):
                if form.casefold() in own:
                    return mark(found[0], own[form.casefold()])
            if bare.casefold() in self.values:
                return f" {bare} {name[len(bare) :]}"
            # the end of the sentence may stand inside the quotes
            ends = name[len(bare) :] if not found[2] else ""
            said = found[0].replace(f"{ends}{found[0][-1]}", found[0][-1]) if ends else found[0]
            return mark(said, own.get(bare.casefold(), ()) if not found[2] else ()) + ends

        clean = "".join(c for c in text if not _FIRST_MARK <= ord(c) <= _LAST_MARK)
        clean = _QUOTED.sub(quoted, clean)
        forms = {form for item in (*evidence.anchors, *evidence.latest) for form in title_forms(item.title)}
        for form in sorted(forms, key=lambda form: (-len(form), form)):
            alone = len(form.split()) == 1
            if alone and (form.casefold() in self.plain or form.casefold() in self.values or not form[:1].isupper()):
                continue
            pattern = rf"(?<!\w){re.escape(form)}(?!\w)"
            clean = re.sub(pattern, lambda m: mark(m[0], own[m[0].casefold()]), clean)
        return Masked(clean, marks)

    def mentions(self, clause: str, masked: Masked, *, opens: bool) -> Iterator[Mention]:
        """The names of a clause in order. opens: it begins a sentence, where any word is capitalised."""
        for place, char in enumerate(clause):
            if char in masked.titles:
                said, items = masked.titles[char]
                yield Mention("title", said.strip("\"“”„«»'"), place, place + 1, items=items)
        found = list(_TOKEN.finditer(clause))
        tokens = [match[0] for match in found]
        at = 0
        while at < len(tokens):
            size, kind, pairs = self._name_at(tokens, at, opens=opens and at == 0)
            if kind:
                start, end = found[at].start(), found[at + size - 1].end()
                yield Mention(kind, clause[start:end], start, end, pairs)
            at += size

    def _name_at(self, tokens: list[str], at: int, *, opens: bool) -> tuple[int, str, frozenset[Pair]]:
        """The longest name that starts there: number of its words, kind ("" for none), what it may stand for.

        A title of one word counts only where it is capitalised: "Heat", but not "heat". So does any other capitalised
        word in mid-sentence that is no word of the language: a name that neither catalog nor evidence knows.
        """
        for size in range(min(_LONGEST, len(tokens) - at), 0, -1):
            some = tokens[at : at + size]
            name = " ".join(some)
            plain = size == 1 and name.casefold() in self.plain
            spoken_of = at > 0 and tokens[at - 1].casefold() in _DETERMINERS
            if name.casefold() in self.values and not (plain and spoken_of):
                eras = all(value.endswith("0s") for _, value in self.values[name.casefold()])
                return size, "era" if eras else "value", self.values[name.casefold()]
            if size >= _SURE and name.casefold() in self.folded:
                return size, "title", frozenset()
            if name in self.titles and not plain and all(word[:1].isupper() or word[:1].isdigit() for word in some):
                return size, "number" if name.isdigit() else "title", frozenset()
        return 1, self._word(tokens[at], opens=opens), frozenset()

    def _word(self, token: str, *, opens: bool) -> str:
        if any(c.isdigit() for c in token):
            return "number"
        folded = token.casefold().replace("’", "'")
        known = folded in self.plain or folded.split("'")[0] in self.plain or folded in self.attributes
        if any(ord(c) > 0x24F for c in token if c != "’"):
            return "language"
        if known:
            return ""
        if token[:1].isupper() and not opens:
            return "name"
        return "" if self.lexicon.knows(folded) else "word"


def title_forms(title: str) -> set[str]:
    """A title as people write it: with or without its year and what stands in brackets, a trailing article left,
    moved to the front, or dropped."""
    plain = re.sub('["“”„«»]', "'", one_line(title, TITLE_LIMIT))
    year = _YEAR.search(plain)
    stem = _YEAR.sub("", plain)
    stems = {stem, _ALIAS.sub("", stem).strip()} - {""}
    for one in tuple(stems):
        if (spoken := article_first(one)) != one:
            stems |= {spoken, *([] if "(" in one else [one.rpartition(", ")[0]])}
    return stems | ({f"{s} {year[0].strip()}" for s in stems} if year else set())


def _forms(attribute: str, value: str, kind: str, said: set[str], decades: dict[int, str]) -> set[str]:
    """The ways in which a facet may be written, casefolded: with and without plural, decades short and long."""
    spoken = {facet_name(attribute, value, kind)} if kind in MEASURES else {value, value_name(attribute, value), *said}
    base = {" ".join(_TOKEN.findall(text)).casefold() for text in spoken}
    forms = set(base)
    for form in base:
        if re.fullmatch(r"\d{3}0s", form):
            start = int(form[:-1])
            forms |= {f"{form[:-1]}'s", f"{form[:-1]}’s"}
            forms |= {form[2:], f"{form[2:-1]}'s", decades.get(start, "")} if start < 2000 else {decades.get(start, "")}
        else:
            forms |= {f"{form}s", f"{form[:-1]}ies" if form.endswith("y") else f"{form}es"}
            forms |= {form.replace("-", " "), form.replace("sci-fi", "science fiction")}
    return forms - {""}
