"""What a user's own words ask for: the catalog's values that they name, and whether more or less of each is wanted.

A pure reader without a model, so that what somebody says of themselves is understood the same way everywhere and can be
shown back. It knows the catalog's names and a few dozen words of liking and refusing. A text is cut into sentences and
these into pieces (at commas, "and", "or", "but"). In a piece, what is said right behind a name decides ("westerns bore
me"), else the words before it, among which refusing ones win ("don't want"), else, in a list, what decided on the name
before ("no horror or westerns"). A name that stands alone is a wish for more. What this reader is not sure of it leaves
out: of "no romantic comedies" neither romance nor comedy is refused, and "dramas put me to sleep" it does not know.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from recsys.data.requests import MAX_REQUEST
from recsys.data.words import MEASURES, facet_name, value_name
from recsys.profiles.cues import CUE, FUNCTION, cue_behind, cue_of, is_plain, is_small, tokens_of
from recsys.profiles.population import Known

Direction = Literal["more", "less"]
LONGEST = 8  # words of a name that are looked up

# Other words for what some catalogs call a value, by the value as `tokens_of` has it.
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

_OWNERS = frozenset({"my", "our", "his", "her", "their"})
_NO_LONGER = re.compile(r"\b(?:any ?more|any longer|these days|at all)\b")
_ANYTHING_BUT = re.compile(r"\b(?:anything|everything|all) but\b")
_CONTRAST = re.compile(r"\b(?:but|however|although|though|while|whereas|yet)\b")
_PIECE = re.compile(r",|/|\+|\b(?:and|or|nor|plus|because|since)\b")
_NAME = re.compile(r"@(\d+)")
_QUOTED = re.compile(r'["“”„«»]([^"“”„«»\n]*)["“”„«»]')


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
        form = " ".join(tokens_of(words))
        return self.names.get(form) or self.names.get(form.removeprefix("the "), ())

    def hear(self, text: str) -> list[tuple[tuple[Value, ...], Direction]]:
        """What `text` names, place by place, with what is wanted of it."""
        said: list[tuple[Value, ...]] = []
        told = _Told()
        for sentence in re.split(r"[.;!?\n]", self._with_marks(text, said)):
            for clause in _CONTRAST.split(_ANYTHING_BUT.sub("except", _NO_LONGER.sub("", sentence))):
                told.last = None  # lists end here; a "No thanks." may still speak of what was named just before
                for piece in _PIECE.split(clause):
                    told.read(" ".join(piece.split()))
        return [(said[place], direction) for place, direction in sorted(told.directions.items())]

    def _with_marks(self, text: str, said: list[tuple[Value, ...]]) -> str:
        """The text in plain words, with "@0", "@1", ... in place of names, which are put into `said`."""
        tokens = tokens_of(_QUOTED.sub(lambda quote: quote[1] if self.named(quote[1]) else " ", text))
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
    open       : the names of the last list that no word of liking or refusing was about
    """

    def __init__(self) -> None:
        self.directions: dict[int, Direction] = {}
        self.last: Direction | None = None
        self.open: list[int] = []

    def read(self, piece: str) -> None:
        names = [(int(mark[1]), mark.start(), mark.end()) for mark in _NAME.finditer(piece)]
        if not names:
            self._verdict(piece)
            return
        groups = self._groups(piece, names)
        if not is_small(groups[0][2]):
            self.open = []
        for place, (members, cue, gap) in enumerate(groups):
            behind = piece[names[-1][2] :].strip() if place == len(groups) - 1 else ""
            cue = cue_behind(behind) or cue or (self.last if is_small(f"{gap} {behind}") else None)
            self.open = [*self.open, *members] if cue is None else []
            unsure = len(members) > 1 if cue == "less" else cue is None and not (is_plain(gap) and is_small(behind))
            if not unsure:
                self._tell(members, cue)
            self.last = None if cue in (None, "neither") else _direction(cue)

    def _tell(self, names: list[int], cue: str | None) -> None:
        """What is wanted of some names; a name alone is a wish for more, and "neither" is no wish."""
        for name in names:
            if cue == "neither":
                self.directions.pop(name, None)
            else:
                self.directions[name] = _direction(cue)

    def _groups(self, piece: str, names: list[tuple[int, int, int]]) -> list[tuple[list[int], str | None, str]]:
        """Names that stand together ("90s comedies"), the cue before them, and the words that it is from."""
        groups: list[tuple[list[int], str | None, str]] = []
        end = 0
        for number, start, stop in names:
            gap = piece[end:start].strip()
            cue = cue_of(gap)
            if groups and (gap in ("than", "over", "more than") or (gap == "to" and "prefer" in piece[:start])):
                groups.append(([number], "less", gap))
            elif groups and cue is None:
                groups[-1][0].append(number)
            else:
                groups.append(([number], cue, gap))
            end = stop
        return groups

    def _verdict(self, piece: str) -> None:
        """A piece without names: a word on what was named before it, or the beginning of a list."""
        cue = cue_of(piece)
        if cue is None or not is_small(CUE.sub(" ", piece)):
            return
        self._tell(self.open, cue)
        if not self.open and cue != "neither":
            self.last = _direction(cue)
        self.open = []


def _forms(attribute: str, value: str, kind: str) -> set[str]:
    """The ways in which a value may be written, as words of `tokens_of`: singular and plural, decades in short."""
    told = facet_name(attribute, value, kind)
    spoken = [told] if kind in MEASURES else [value, value_name(attribute, value), told]
    forms = {" ".join(tokens_of(text)) for text in spoken}
    if kind == "era":
        return forms | {form[2:] for form in forms if re.fullmatch(r"\d{3}0s", form)}
    if kind == "value":
        forms |= {form for one in list(forms) for form in _numbers(one)}
        forms |= {other for one in list(forms) for other in _ALSO.get(one, ())}
    return {form for form in forms if form and form not in FUNCTION and re.search(r"\w", form)}


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


def _direction(cue: str | None) -> Direction:
    return "less" if cue == "less" else "more"
