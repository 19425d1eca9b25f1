"""What a model's words say about an order: pure, and content with anything.

Candidates are labelled A, B, C, ... or 1, 2, 3, ...; models answer `[B] > [A]`, `B, A`, `1. B`, a sentence, or nothing
of use. Whatever they say, `parse` gives a permutation: what was named, in its order, then the rest as it was.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

Labels = Literal["letters", "numbers"]
MOST_LETTERS = 26
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
# What is meant as a label: it stands in brackets, or beside a ">". A bare one may be a word, and counts where none is.
_MARKED = {
    "letters": (r"[\[({]\s*([A-Za-z])\s*[\])}]", r"(?<![\w'’])([A-Za-z])\W{0,3}(?=>)|>\W{0,3}([A-Za-z])(?![\w'’])"),
    "numbers": (r"[\[({]\s*([0-9]{1,4})\s*[\])}]", r"(?<!\w)([0-9]{1,4})\W{0,3}(?=>)|>\W{0,3}([0-9]{1,4})(?!\w)"),
}
_BARE = {
    "letters": (r"(?<![\w'’])([A-Z])(?![\w'’])", r"(?<![\w'’])([a-z])(?![\w'’])"),
    "numbers": (r"(?<![\w.])([0-9]{1,4})(?!\w)",),
}


def label(place: int, labels: Labels) -> str:
    """The label of the candidate shown at this place, from 0."""
    return chr(ord("A") + place) if labels == "letters" else str(place + 1)


def named(text: str, n: int, labels: Labels = "letters") -> list[int]:
    """The places of the candidates that a text names, each once, in its order; maybe none."""
    said = _THOUGHT.sub(" ", text)
    read: Callable[[str], int] = _letter if labels == "letters" else _number

    def places(pattern: str) -> list[int]:
        found = (read(match[match.lastindex or 0]) for match in re.finditer(pattern, said))
        return list(dict.fromkeys(place for place in found if 0 <= place < n))

    marked = max(map(places, _MARKED[labels]), key=len)
    return marked or next((found for pattern in _BARE[labels] if (found := places(pattern))), [])


def parse(text: str, n: int, labels: Labels = "letters") -> list[int]:
    """A permutation of range(n): the places that the text names, then the others as they were."""
    found = named(text, n, labels)
    return [*found, *sorted(set(range(n)) - set(found))]


def by_score(scores: Mapping[int, float]) -> list[int]:
    """Places by falling score; equals as they were."""
    return sorted(scores, key=lambda place: (-scores[place], place))


def _letter(text: str) -> int:
    return ord(text.upper()) - ord("A")


def _number(text: str) -> int:
    return int(text) - 1
