"""Bounds on years in a request: "before 1970", "nothing older than the nineties", "between 1970 and 1985".

A network that knows decades by their names takes "before 1970" for a wish for the 1970s, so bounds are read by rule,
in English, and taken out of what the network reads.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from recsys.rerank.requests import TENS

_WORDS = {word: 1920 + 10 * place for place, word in enumerate(TENS)}
# A year, or a decade: "1994", "the 1990s", "the 90's", "the nineties".
_YEAR = r"(?:1[89]|20)\d\d"
_WHEN = rf"(?:the\s+)?(?P<{{0}}>{_YEAR}(?:['’]?s)?|['’]?\d0['’]?s|{'|'.join(_WORDS)})\b"
_ONE, _TWO = _WHEN.format("one"), _WHEN.format("two")
_NOT = (
    r"(?:no|not|nothing|none|never|(?:don['’]?t|do not) (?:want|like)|avoid|skip|hate|dislike|except(?: for)?|without"
    r"|exclud(?:e|ing)|leave out|(?:can['’]?t|cannot) stand|(?:sick|tired) of)\s+"
    r"(?:(?:anything|something|films?|movies?|books?|titles?|items?|ones?|stuff|that|which|is|are|was|were|of|the)\s+)"
    r"{0,3}"
)
_FROM = r"(?:(?:that (?:came|come|comes)|that (?:was|were|is|are)|from|made|released|out|dated)\s+){0,2}"
_BEFORE = r"(?:before|prior to|earlier than|older than|pre[- ])\s*"
_AFTER = r"(?:after|later than|newer than|more recent than|younger than|post[- ])\s*"
_TO = r"(?:to|until|till|up to|through|and not (?:after|later than)|[-–])"
_NOW = r"(?:now|today|(?:the )?present(?: day)?|this year)\b"
_ON = r"(?:onwards?|(?:or|and) (?:later|newer|after|younger)|on(?=\s*(?:$|[,.;!?]|and\b|but\b|please\b)))"


@dataclass(frozen=True)
class Years:
    """From `first` to `last`, both included; None where it is open. As text it is empty where both are."""

    first: int | None = None
    last: int | None = None

    def __str__(self) -> str:
        if self.first is None and self.last is None:
            return ""
        if self.first == self.last:
            return f"of {self.first}"
        if self.first is None:
            return f"until {self.last}"
        return f"since {self.first}" if self.last is None else f"from {self.first} to {self.last}"


Span = tuple[int, int]
Rules = tuple[tuple[str, Callable[[Span, Span], tuple[int | None, int | None]]], ...]
# What a pattern that names one span, or two, leaves open.
_REFUSALS: Rules = (
    (rf"not before (?:and|or) (?:not )?after\s+{_ONE}", lambda a, b: a),
    (rf"{_NOT}{_FROM}{_BEFORE}{_ONE}", lambda a, b: (a[0], None)),
    (rf"{_NOT}{_FROM}{_AFTER}{_ONE}", lambda a, b: (None, a[1])),
)
_WISHES: Rules = (
    (rf"{_FROM}between\s+{_ONE}\s+(?:and|to)\s+{_TWO}", lambda a, b: (a[0], b[1])),
    (rf"from\s+{_ONE}\s*{_TO}\s*{_TWO}", lambda a, b: (a[0], b[1])),
    (rf"from\s+{_ONE}\s*{_TO}\s*{_NOW}", lambda a, b: (a[0], None)),
    (rf"{_FROM}{_BEFORE}{_ONE}", lambda a, b: (None, a[0] - 1)),
    (rf"{_FROM}{_AFTER}{_ONE}", lambda a, b: (a[1] + 1, None)),
    (rf"{_FROM}since\s+{_ONE}", lambda a, b: (a[0], None)),
    (rf"{_FROM}(?:up to|until|till|no later than)\s+{_ONE}", lambda a, b: (None, a[1])),
    (rf"(?:from\s+)?{_ONE}\s+{_ON}", lambda a, b: (a[0], None)),
    (rf"(?:from\s+)?{_ONE}\s+(?:or|and) (?:earlier|older|before)\b", lambda a, b: (None, a[1])),
    # A year that something is about, or one of several, is no bound.
    (
        rf"(?:from|(?:made|released|out) in|dated)\s+(?:the year\s+)?(?P<one>{_YEAR})(?!['’]?s)\b"
        rf"(?!\s*(?:,|or|and|{_TO})\s*(?:the\s+)?['’]?\d)",
        lambda a, b: a,
    ),
)
# In the same clause, these turn a wish into something else, which is left to be read as it stands: "no horror from
# before 1980", "never seen before the nineties", "before 1980? no thanks".
_TURNED = re.compile(
    r"\b(?:no|not|none|nothing|nobody|never|without|avoid|skip|seen|(?:any|every)thing but|all but|exclud\w+|except"
    r"|omit\w*|hate|dislike|cannot|(?:ca|do|does|is|are|wo)n['’]?t|\w+n['’]t|(?:other|rather) than|instead of"
    r"|(?:apart|aside) from|(?:sick|tired) of)\b[^,;.!?]*$",
    re.IGNORECASE,
)
_TURNED_BEHIND = re.compile(
    r"\s*(?:\?\s*no\b|(?:is|are|was|were)(?:n['’]?t|\s+not)\b|(?:don['’]?t|do not)\b|bores?\b)", re.IGNORECASE
)
_HEAD, _TAIL = re.compile(r"^and\b\s*", re.IGNORECASE), re.compile(r"\b(?:but|and|or)$", re.IGNORECASE)
_LOOSE = " \t,;.-()"
_PATTERNS = tuple(
    (re.compile(rf"(?<![\w'’]){pattern}", re.IGNORECASE), bounds, turns)
    for rules, turns in ((_REFUSALS, False), (_WISHES, True))
    for pattern, bounds in rules
)


def years_in(request: str) -> tuple[str, Years | None]:
    """The request without the bounds on years that it names, and these; None where it names none, or such as leave
    nothing."""
    first: int | None = None
    last: int | None = None
    rest = request
    for pattern, bounds, turns in _PATTERNS:
        place = 0
        while match := pattern.search(rest, place):
            start, end = match.span()
            if turns and (_TURNED.search(rest[:start]) or _TURNED_BEHIND.match(rest, end)):
                place = end
                continue
            spans = [_span(found) for found in match.groupdict().values()]
            low, high = bounds(spans[0], spans[-1])
            first = max((year for year in (first, low) if year is not None), default=None)
            last = min((year for year in (last, high) if year is not None), default=None)
            before = rest[:start].rstrip()
            rest, place = f"{before} {rest[end:].lstrip()}", len(before)
    if (first is None and last is None) or (first is not None and last is not None and first > last):
        return request, None
    return _TAIL.sub("", _HEAD.sub("", rest.strip(_LOOSE), count=1)).strip(_LOOSE), Years(first, last)


def _span(said: str) -> Span:
    """The years of a year or a decade; of two digits in the last century, but for the 00s and the 10s."""
    word = said.lower()
    if word in _WORDS:
        return _WORDS[word], _WORDS[word] + 9
    digits = re.sub(r"\D", "", word)
    if len(digits) == 4:
        year = int(digits)
        return (year, year + 9) if word.endswith("s") else (year, year)
    start = int(digits) + (2000 if int(digits) < 20 else 1900)
    return start, start + 9
