"""Small pieces of English that profiles and reasons are built from: clean strings, quoted titles, lists of names."""

import re
from collections.abc import Sequence

TITLE_LIMIT = 60
VALUE_LIMIT = 40
MEASURES = ("band", "number")
"""Kinds of facets whose value is a number, which says nothing without its attribute."""

# control characters, zero-width spaces, bidirectional marks; the joiners U+200C and U+200D stay, emoji need them
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\s]+")
_QUOTES = re.compile('["“”„«»]')
_TOPICAL = re.compile(
    r"(genre|categor|tag|type|topic|style|subject|mood|theme|class|kind|keyword|section|department|label)(y|s|es|ies)?"
)

_ARTICLE = re.compile(r"([^()]*), (The|A|An|Le|La|Les|L'|El|Il|Der|Die|Das)( \(.*)?")

# genre words that people put in the plural when they speak of liking them; others ("horror", "crime") have none
_COUNTABLE = frozenset({"biography", "comedy", "documentary", "drama", "musical", "mystery", "thriller", "western"})
# and words that do not stand alone: "you like family" says something else
_OF_TITLES = frozenset({"adult", "family", "short", "war"})
_SAID = {"film-noir": "film noir", "game-show": "game shows", "talk-show": "talk shows"}


def one_line(text: str, limit: int) -> str:
    """`text` without line breaks, control and invisible characters, at most `limit` characters ("…" where cut)."""
    clean = _INVISIBLE.sub(" ", text).strip()
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip() + "…"


def quoted(title: str, limit: int = TITLE_LIMIT) -> str:
    """A title in straight double quotes, on one line; quotes inside become single, so that it cannot break out."""
    return '"' + one_line(_QUOTES.sub("'", title), limit) + '"'


def article_first(title: str) -> str:
    """A title as it is spoken: "Matrix, The (1999)" is "The Matrix (1999)"; any other as it is."""
    found = _ARTICLE.fullmatch(title)
    if not found:
        return title
    stem, article, rest = found.groups(default="")
    gap = "" if article.endswith("'") else " "
    return f"{article}{gap}{stem}{rest}"


def titled(title: str, limit: int = TITLE_LIMIT) -> str:
    """A title in running text: as it is spoken, `quoted`."""
    return quoted(article_first(one_line(title, limit)), limit)


def join(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; empty for nothing."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def topical(attribute: str) -> bool:
    """Whether values of the attribute speak for themselves ("horror"), so that its name need not be said."""
    return any(_TOPICAL.fullmatch(word) for word in re.split(r"[^a-z]+", attribute.lower()))


def attribute_name(attribute: str) -> str:
    """A column name as people would say it: "prod_brand" -> "prod brand"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", attribute)
    return one_line(re.sub(r"[^\w%$€£+#]+|_+", " ", spaced).lower(), VALUE_LIMIT) or "attribute"


def value_name(attribute: str, value: str) -> str:
    """A value as people would say it: topical values in lower case unless they are acronyms or proper-looking."""
    clean = one_line(_QUOTES.sub("'", value), VALUE_LIMIT)
    if not topical(attribute) or re.search(r"[A-Z]{2}|[a-z][A-Z]", clean):
        return clean
    clean = clean.lower()
    if clean in _COUNTABLE:
        return f"{clean[:-1]}ies" if clean.endswith("y") else f"{clean}s"
    return f"{clean} titles" if clean.endswith("'s") or clean in _OF_TITLES else _SAID.get(clean, clean)


def facet_name(attribute: str, value: str, kind: str) -> str:
    """A facet in running text: "horror", "the 1990s", "popular titles", "price 10 to 20", "Sony (brand)"."""
    if kind == "era":
        return f"the {value}"
    if kind == "reach":
        return f"{value} titles"
    if kind in MEASURES:
        return f"{attribute_name(attribute)} {value}"
    name = value_name(attribute, value)
    return name if topical(attribute) else f"{name} ({attribute_name(attribute)})"
