"""What a user's own words ask for: the catalog's values that they name, and whether more or less of each is wanted.

A pure reader without a model, so that what somebody says of themselves is understood the same way everywhere and can be
shown back. It knows the catalog's names and a few dozen words of liking and refusing. A text is cut into sentences and
these into pieces (at commas, "and", "or", "but"); the nearest such word before a name in its piece decides, else one
right after it ("westerns bore me"), else, in a list, what decided on the name before ("no horror or westerns"). A name
that stands alone is a wish for more. What this reader is not sure of it leaves out: of "no romantic comedies" neither
romance nor comedy is refused.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from recsys.data.requests import MAX_REQUEST
from recsys.data.words import MEASURES, facet_name, value_name
from recsys.profiles.population import Known

Direction = Literal["more", "less"]
LONGEST = 8  # words of a name that are looked up

# Other words for what some catalogs call a value, by the value as `_normal` writes it.
_ALSO = {
    "animation": ("animated", "cartoon", "cartoons"),
    "biography": ("biopic", "biopics"),
    "childrens": ("children", "kids"),
    "film noir": ("noir",),
    "history": ("historical",),
    "horror": ("scary movie", "scary movies", "scary film", "scary films"),
    "romance": ("romantic",),
    "sci fi": ("science fiction", "scifi"),
    "science fiction": ("sci fi", "scifi"),
}

# All of these as `_normal` writes them: lower case, no apostrophes, hyphens as spaces.
_LIKED_AFTER_ALL = (
    r"cant get enough(?: of)?|not enough|(?:never|not)(?: get| getting)? (?:tired|sick|bored) (?:of|by|with)"
    r"|not (?:only|just|merely)|never miss|nothing (?:beats|better than|like)|why not"
    r"|(?:no|any) (?:problem|issue)s? with"
    r"|(?:cant|couldnt) live without|(?:wont|wouldnt|never) say no to|not (?:opposed|averse) to"
    r"|(?:dont|never) (?:forget|skip|hide|drop|remove|stop|avoid|ignore)"
)
_NEITHER = r"(?:dont|doesnt|not) (?:mind|hate|dislike|bother|bothered)|no matter"
_AGAINST = (
    r"no|not|non|none|nothing|nor|neither|never|nope|without|less|fewer|least|lower|low|minus|anti|hat(?:e|es|ed|ing)"
    r"|dislik\w*|detest\w*|loath\w*|despis\w*|avoid\w*|skip\w*|hid(?:e|ing)|drop|remov\w*|forget|ignore|stop|ban|block"
    r"|exclud\w*|except|sick of|tired of|bored (?:of|by|with)|fed up|over with|enough|too (?:much|many)"
    r"|(?:do|does|did|wo|would|is|are|was|ca|could|should|have|has)nt|cannot|no longer|used to|instead of|rather than"
    r"|hardly|harder|rarely|seldom|poorly|scared of|afraid of|allergic to"
)
_TOWARDS = (
    r"more|lov\w*|lik(?:e|es|ed|ing)|enjoy\w*|ador\w*|prefer\w*|want\w*|need|crav\w*|into|fans? of|fond of|keen on"
    r"|favou?rites?|interested in|looking for|show|give|recommend\w*|suggest\w*|only|especially|mostly|crazy about"
    r"|mad about|mood for|appreciate|yes|watch\w*|read\w*|play\w*"
)
_CUE = re.compile(
    rf"\b(?:(?P<liked>{_LIKED_AFTER_ALL})|(?P<neither>{_NEITHER})|(?P<no>{_AGAINST})|(?P<yes>{_TOWARDS}))\b"
)
_COPULA = (
    r"^(?:(?:movies|films|titles|stuff|shows|books|games|is|are|was|were|just|really|so|such|a|always|get|gets) )*"
)
_AFTER_YES = re.compile(
    _COPULA + r"(?:not (?:bad|boring)|never (?:bores?|disappoints?|gets? old)|great|good|fine|nice|fun|best|the best"
    r"|awesome|amazing|wonderful|lovely|welcome|ok|okay|perfect|rocks?|rules?|yes|my (?:thing|jam|favou?rites?)"
    r"|more(?: please| often)?$)"
)
_AFTER_NO = re.compile(
    _COPULA + r"(?:not|isnt|arent|wasnt|never|no|nope|less|too|free$|out$|bor(?:e|es|ing)|sucks?|awful|terrible|bad"
    r"|dull|overrated|annoy\w*|stupid|scares?|(?:can|must|should|has to|have to) (?:go|stop|disappear))\b"
)
_WORDS = re.compile(r"\w+")
_SMALL = frozenset(
    _WORDS.findall(
        "a about all also an any at both do either else even for from genre genres i im in it its item items kind kinds"
        " lot lots me movie movies film films much now of oh on one ones other please really series show shows so some"
        " sort sorts stuff that the them then these thing things this those thank thanks title titles to too very you"
    )
)
# Words that carry a sentence and are nobody's name for a value while they stand alone.
_FUNCTION = _SMALL | frozenset(
    _WORDS.findall(
        "and but or no not more less nothing never love like likes hate want need only yes stop skip avoid is are was"
        " my your be been can will would have has had if as by we he she they who what when where why how with out up"
        " us new good bad best well"
    )
)
_OWNERS = frozenset({"my", "our", "his", "her", "their"})
_NO_LONGER = re.compile(r"\b(?:any ?more|any longer|these days|at all)\b")
_ANYTHING_BUT = re.compile(r"\b(?:anything|everything|all) but\b")
_CONTRAST = re.compile(r"\b(?:but|however|although|though|while|whereas|yet)\b")
_PIECE = re.compile(r",|/|\+|\b(?:and|or|nor|plus|because|since)\b")
_NAME = re.compile(r"@(\d+)")
_WORD = re.compile(r"[^\W_]+|[,.;!?/\n+]")
_QUOTED = re.compile(r'["“”„«»]([^"“”„«»\n]*)["“”„«»]')
_DASH = re.compile(r"\s[-–—]+\s|—")
_SMILES = {"👎": "no", "🚫": "no", "❌": "no", "🤮": "no", "👍": "yes", "❤": "yes", "♥": "yes", "😍": "yes"}


class Value(NamedTuple):
    """An attribute value of the catalog."""

    attribute: str
    value: str


@dataclass(frozen=True)
class Wish:
    """More or less of an attribute value."""

    attribute: str
    value: str
    direction: Direction

    @property
    def of(self) -> Value:
        """What it is about."""
        return Value(self.attribute, self.value)


def understand(text: str, known: "Known | Listener") -> list[Wish]:
    """What `text` asks for, in the order in which it is said; empty where nothing of it is understood.

    At most `MAX_REQUEST` characters are read. Of a value that is named again the last word counts; a word that several
    attributes use for a value stands for each of them.
    """
    listener = Listener.of(known)
    found: dict[Value, Wish] = {}
    for values, direction in listener.hear(text[:MAX_REQUEST]):
        for value in values:
            found.pop(value, None)
            found[value] = Wish(*value, direction)
    return list(found.values())


@dataclass(frozen=True)
class Listener:
    """`understand` for one population; worth keeping, for it collects the catalog's names only once."""

    known: Known

    @classmethod
    def of(cls, known: "Known | Listener") -> "Listener":
        """One for the population; itself where it is one."""
        return known if isinstance(known, Listener) else cls(known)

    @cached_property
    def kinds(self) -> dict[Value, str]:
        """The values that the population tells apart, each with its kind of facet."""
        rows = self.known.population.values.select("attribute", "value", "kind").iter_rows()
        return {Value(attribute, value): kind for attribute, value, kind in rows}

    @cached_property
    def names(self) -> dict[str, tuple[Value, ...]]:
        """The values by every way in which they may be written."""
        found: dict[str, list[Value]] = defaultdict(list)
        for value, kind in self.kinds.items():
            for form in _forms(*value, kind):
                found[form].append(value)
        return {form: tuple(values) for form, values in found.items()}

    def named(self, words: str) -> tuple[Value, ...]:
        """The values that `words` as a whole is a name of ("Horror", "sci fi", "the 50s"); empty for none."""
        form = " ".join(_tokens(words))
        return self.names.get(form) or self.names.get(form.removeprefix("the "), ())

    def hear(self, text: str) -> list[tuple[tuple[Value, ...], Direction]]:
        """What `text` names, place by place, with what is wanted of it."""
        said: list[tuple[Value, ...]] = []
        told = _Told()
        for sentence in re.split(r"[.;!?\n]", self._with_marks(text, said)):
            told.begin()
            for clause in _CONTRAST.split(_ANYTHING_BUT.sub("except", _NO_LONGER.sub("", sentence))):
                told.last = None
                for piece in _PIECE.split(clause):
                    told.read(" ".join(piece.split()))
        return [(said[place], direction) for place, direction in sorted(told.directions.items())]

    def _with_marks(self, text: str, said: list[tuple[Value, ...]]) -> str:
        """The text in plain words, with "@0", "@1", ... in place of names, which are put into `said`."""
        tokens = _tokens(_QUOTED.sub(lambda quote: quote[1] if self.named(quote[1]) else " ", text))
        parts, at = [], 0
        while at < len(tokens):
            size, values = self._name_at(tokens, at)
            if values:
                parts.append(f"@{len(said)}")
                said.append(values)
            else:
                parts.append(tokens[at])
            at += size
        return " ".join(parts)

    def _name_at(self, tokens: list[str], at: int) -> tuple[int, tuple[Value, ...]]:
        """The longest name that starts there; what is somebody's ("my family") is none."""
        if at and tokens[at - 1] in _OWNERS:
            return 1, ()
        for size in range(min(LONGEST, len(tokens) - at), 0, -1):
            if values := self.names.get(" ".join(tokens[at : at + size])):
                return size, values
        return 1, ()


class _Told:
    """What has been made of the pieces so far.

    directions : by number of the name
    last       : what decided on the list that a piece may go on with; None where nothing did
    open       : the names of the last piece that had no word of liking or refusing
    """

    def __init__(self) -> None:
        self.directions: dict[int, Direction] = {}
        self.last: Direction | None = None
        self.open: list[int] = []

    def begin(self) -> None:
        """A new sentence: lists end, but a "no thanks" may still speak of what was named just before."""
        self.last = None

    def read(self, piece: str) -> None:
        names = [(int(mark[1]), mark.start(), mark.end()) for mark in _NAME.finditer(piece)]
        if not names:
            self._verdict(piece)
            return
        groups = self._groups(piece, names)
        self.open = []
        for place, (members, cue, bare) in enumerate(groups):
            behind = piece[names[-1][2] :].strip() if place == len(groups) - 1 else ""
            cue = _behind(behind) or cue or (self.last if bare and _is_small(behind) else None)
            if cue is None:
                self.open += members
            if cue != "neither" and not (cue == "less" and len(members) > 1):
                self.directions |= dict.fromkeys(members, "less" if cue == "less" else "more")
            self.last = cue if cue in ("more", "less") else None  # type: ignore[assignment]  # mypy: not narrowed by in

    def _groups(self, piece: str, names: list[tuple[int, int, int]]) -> list[tuple[list[int], str | None, bool]]:
        """Names that stand together ("90s comedies"), the cue before them, and whether there are but small words."""
        groups: list[tuple[list[int], str | None, bool]] = []
        end = 0
        for number, start, stop in names:
            gap = piece[end:start].strip()
            cue = _cue(gap)
            if groups and (gap in ("than", "over", "more than") or (gap == "to" and "prefer" in piece[:start])):
                groups.append(([number], "less", False))
            elif groups and cue is None:
                groups[-1][0].append(number)
            else:
                groups.append(([number], cue, _is_small(gap)))
            end = stop
        return groups

    def _verdict(self, piece: str) -> None:
        """A piece without names: a word on what was named before it, or the beginning of a list."""
        cue = _cue(piece)
        if cue is None or not _is_small(_CUE.sub(" ", piece)):
            return
        for number in self.open:
            self.directions.pop(number, None)
            if cue != "neither":
                self.directions[number] = "less" if cue == "less" else "more"
        if not self.open and cue != "neither":
            self.last = "less" if cue == "less" else "more"
        self.open = []


def _cue(words: str) -> str | None:
    """What the words before a name ask for: "more", "less", "neither", None. "Don't want" and "no more" refuse."""
    state = None
    for found in _CUE.finditer(words):
        if found["liked"]:
            state = "more"
        elif found["neither"]:
            state = "neither"
        elif found["no"]:
            state = "less"
        elif state is None:
            state = "more"
    return state


def _behind(words: str) -> str | None:
    """What the words behind a name say of it."""
    if _AFTER_YES.search(words):
        return "more"
    return "less" if _AFTER_NO.search(words) else None


def _is_small(words: str) -> bool:
    return _SMALL.issuperset(words.split())


def _normal(text: str) -> str:
    """In lower case, without apostrophes and hyphens, signs of liking in words."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    for sign, word in _SMILES.items():
        plain = plain.replace(sign, f" {word} ")
    plain = _DASH.sub(" , ", re.sub(r"['’‘`´]", "", plain)).replace("&", " and ")
    return re.sub(r"(?<=\w)[-‐‑–](?=\w)", " ", plain)


def _tokens(text: str) -> list[str]:
    return _WORD.findall(_normal(text))


def _forms(attribute: str, value: str, kind: str) -> set[str]:
    """The ways in which a value may be written, as `_tokens` joins them: with and without plural, decades in short."""
    spoken = [facet_name(attribute, value, kind)] if kind in MEASURES else [value, value_name(attribute, value)]
    forms = {" ".join(_tokens(text)) for text in spoken}
    if kind == "era":
        return forms | {form[2:] for form in forms if re.fullmatch(r"\d{3}0s", form)}
    if kind == "value":
        forms |= {form for one in list(forms) for form in _numbers(one)}
        forms |= {other for one in list(forms) for other in _ALSO.get(one, ())}
    return {form for form in forms if form and form not in _FUNCTION and re.search(r"\w", form)}


def _numbers(form: str) -> Iterable[str]:
    """Singular and plural, by the rules that cover most names."""
    if len(form) < 4 or not form[-1].isalpha():
        return
    if form.endswith("ies"):
        yield f"{form[:-3]}y"
    elif form.endswith("s"):
        if not form.endswith("ss"):
            yield form[:-1]
    elif form.endswith("y") and form[-2] not in "aeiou":
        yield f"{form[:-1]}ies"
    else:
        yield f"{form}s"
