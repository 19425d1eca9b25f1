"""How a request is put and cut before it is read."""

import re
from functools import lru_cache

# Words of a request that are read together.
PIECE = 24
# Where a refusal begins in the middle of a sentence: "a comedy without romance", "comedy no romance". A comma tells
# best where a want ends, and people leave it out.
_RUN_ON = re.compile(
    r"(?<=\w) (?=(but (no|not|nothing|never|without)|without|except|excluding|minus|lacking|free of|and not|other than"
    r"|(and|with) no|(that|which) (is|are|has|have) (no|not)|(apart|aside) from)\b)"
)
_BARE = re.compile(
    r"(?<![\w'’])(?!(am|and|are|be|but|can|could|did|do|does|had|has|have|i['’]d|if|is|just|may|might|must|please"
    r"|preferably|rather|really|should|that|was|were|which|why|will|with|would|\d+) )([\w'’]+) (?=(no|not) \w)",
    re.IGNORECASE,
)
# What a catalog's items are, whichever: to a text encoder a film is nearer to a documentary than to anything else.
_NOUN = r"(?:(?:motion picture|movie|film|flick)s?)"
_ONLY = re.compile(r"\bnothing but\b", re.IGNORECASE)
# Refusals that are heard rightly where what is wanted comes first and is read apart; others are as well heard in one
# piece (notebooks/LOG.md).
_TURNS = tuple(
    (re.compile(pattern, re.IGNORECASE), into)
    for pattern, into in (
        (r"\b(that|which) (is|are|was|were)n['’]t\b", r"\1 \2 not"),
        (
            r"^(no|not|nothing) (?!but\b|only\b|just\b)([^,.;!?]+?),? but (?!no\b|not\b|nothing\b|also\b|without\b)"
            r"([^.;!?]+)$",
            r"\3 but \1 \2",
        ),
        (r"^(no|not|nothing) ([^,.;!?]+?), (?:just|only) ([^,.;!?]+)$", r"\3 but \1 \2"),
        (r",? (?:rather than|instead of|as opposed to) ", " but not "),
    )
)
_APART = re.compile(r",? (?=(?:but|and) (?:not|no|nothing) )", re.IGNORECASE)
_PIECES = re.compile(r"(?<=[.;!?])\s+|\n+")


def put_plainly(request: str, names: tuple[str, ...]) -> str:
    """The request with "one" for words that say what all items are ("a good movie"), unless they are part of one of the
    `names` of values ("film noir"), and "only" for "nothing but"."""
    return _nouns(names).sub(lambda found: found["value"] or "one", _ONLY.sub("only", request))


@lru_cache(64)
def _nouns(names: tuple[str, ...]) -> re.Pattern[str]:
    noun = re.compile(rf"\b{_NOUN}\b", re.IGNORECASE)
    # A value's name in either number.
    said = [noun.sub(lambda found: found[0].rstrip("s"), name) for name in names if noun.search(name)]
    parts = [rf"{r'[ -]'.join(map(re.escape, re.split(r'[ -]+', name)))}s?" for name in said]
    return re.compile(rf"\b(?:(?P<value>{'|'.join(parts) or '(?!)'})|{_NOUN})\b", re.IGNORECASE)


def pieces_of(request: str) -> list[str]:
    """A request in pieces as long as those of training: whole if it is short, else as many of its sentences together as
    fit, since one may be about the other ("Horror? No thanks."); a long one is cut at every `PIECE` words. "But not
    that" is read apart."""
    text = request.strip()
    for pattern, into in _TURNS:
        text = pattern.sub(into, text)
    return [piece for part in _APART.split(text) for piece in _short(set_apart(part))]


def _short(text: str) -> list[str]:
    found: list[list[str]] = [[]]
    for sentence in _PIECES.split(text):
        words = sentence.split()
        if found[-1] and len(found[-1]) + len(words) > PIECE:
            found.append([])
        found[-1] += words
    return [" ".join(words[at : at + PIECE]) for words in found for at in range(0, max(len(words), 1), PIECE)]


def set_apart(request: str) -> str:
    """The request with a comma before each refusal that runs on from what is wanted."""
    return _BARE.sub(r"\2, ", _RUN_ON.sub(", ", request))
