"""What a clause says of two things together: that one is preferred, that one is an example of the other."""

import re
from collections.abc import Iterator

from recsys.profiles.names import Mention

# Comparisons with the user's own other choices.
_OWN = re.compile(r"(?:[\w-]+\s+)?than (?:the rest|(?:the )?usual|(?:your )?other (?!\w*people|user|view|read|listen))")
_REVERSED = re.compile(r"\bthan (?:yours|you(?!\w|['’]| (?:used|did|once|ever|have|had|were)\b))")
_PEOPLE = re.compile(
    r"\b(?:people|others|most(?! recent)|(?:every|any|no)(?:one|body| one)|user|viewer|peer|average)s?\b"
)
_PREFERRED = re.compile(r"\s+(?:[\w-]+\s+)*(?:over|than)\s+(?:the\s+)?")
_KIND = r"(?:\s+(?:film|movie|book|game|album|title|one)s?)?"
_SUCH_AS = re.compile(rf"{_KIND}(?:\s+|,?\s+(?:such as|like|including|especially|above all|notably)\s+)")
_FOR_EXAMPLE = re.compile(r",?\s*(?:for example|for instance|above all|in particular|especially)\b")
_ONE_OF = re.compile(
    r",?\s+(?:(?:and|or)\s+(?:\w+\s+)?other|(?:one )?of (?:the|your)?(?:\s*many)?|from(?: the)?|an?|another)\s+"
)


def reversed_in(text: str) -> Iterator[str]:
    """What compares others with the user, rather than the user with them: "more than you"."""
    return (found[0] for found in _REVERSED.finditer(text.lower()))


def speaks_of_people(text: str) -> bool:
    """Whether other people are spoken of, so that a comparison is with them, and not with what was before."""
    return _PEOPLE.search(text.lower()) is not None


def is_own(text: str, start: int) -> bool:
    """Whether the comparison that starts there is with other choices of the same user: "lower than the rest"."""
    return _OWN.match(text.lower(), start) is not None


def prefers(first: Mention, second: Mention, text: str) -> bool:
    """Whether one is put above the other: "dramas over horror", "you prefer dramas to horror"."""
    between = text[first.end : second.start].lower()
    to = between.strip() == "to" and "prefer" in text[: first.start].lower()
    return to or _PREFERRED.fullmatch(between) is not None


def example(first: Mention, second: Mention, text: str) -> tuple[Mention, Mention] | None:
    """The title and the value that it is said to be an example of (`horror such as "Alien"`); None where it is not."""
    low = text.lower()
    between = low[first.end : second.start]
    if second.kind == "title" and first.kind != "title" and second.items:
        behind = between.strip() == "," and _FOR_EXAMPLE.match(low, second.end)
        return (second, first) if behind or _SUCH_AS.fullmatch(between) else None
    if first.kind == "title" and second.kind != "title" and first.items and _ONE_OF.fullmatch(between):
        return first, second
    return None
