"""Titles of the catalog that a request or a profile names."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# "Matrix, The" as catalogs sort it.
_TURNED = re.compile(r"(.+), (The|A|An|Le|La|Les|Der|Die|Das|Il|El)")
MASK = "\x00"
_QUOTES = "\"'“”„«»"
# What stands before a title that is not wanted: "but not Star Wars", "nothing like it".
_TURNED_DOWN = re.compile(
    r"(?<!why )\b(no|not|nothing|never|without|except|excluding|hate|dislike|(any|every)thing but|other than"
    r"|(apart|aside) from|do(es)?n['’]t (like|want)|(?<!not )unlike)( another| for| like| more)?$"
)
# Behind these a title is sought in any case: "something like titanic but newer"; one of a single word, where it ends.
_LIKENED = re.compile(r"\b(like|similar to|(newer|older|better|more recent) than|reminds me of|in the vein of)$")
_PLAINLY = re.compile(
    r"(^|\b(something|anything|things?|stuff|movies?|films?|shows?|books?|games?|songs?|ones?|more|much|just|not"
    r"|nothing) )like$|\b(similar to|than|reminds me of|in the vein of)$"
)
# Who says this before a title, or "again" behind it, wants the item itself.
_ITSELF = re.compile(
    r"\b(watch|rewatch|see|show me|play|find( me)?|open|read|get me|looking for|where is|called|titled|named)$"
)
_ENDS = re.compile(r"(but|and|or|only|just|newer|older|please|except|with|without|from)\b.*|", re.DOTALL)


@dataclass(frozen=True)
class Mentions:
    """Finds the catalog's titles in a text. codes : item code by title, without the year; spoken : the same in lower
    case; titles : by code."""

    codes: dict[str, int]
    spoken: dict[str, int]
    titles: tuple[str, ...]
    longest: int

    @classmethod
    def of(cls, titles: Sequence[str]) -> "Mentions":
        """Titles in lower case throughout, or of one sign, are left out: they are words like others. "Matrix, The" is
        found as "The Matrix", too. Where two items share a title, the first one has it."""
        codes: dict[str, int] = {}
        for code, title in enumerate(titles):
            if len(title) > 1 and not title.islower():
                codes.setdefault(title, code)
        for title, code in list(codes.items()):
            if turned := _TURNED.fullmatch(title):
                codes.setdefault(f"{turned[2]} {turned[1]}", code)
        spoken: dict[str, int] = {}
        for title, code in codes.items():
            spoken.setdefault(title.lower(), code)
        return cls(codes, spoken, tuple(titles), max((title.count(" ") + 1 for title in codes), default=0))

    def find(self, text: str, *, turned_down: bool = False) -> int:
        """The code of the longest title in the text that is not, or that is, `turned_down`: "but not Star Wars"; -1
        where there is none; see `_found`."""
        return self._best(text.split(), turned_down)[2]

    def itself(self, text: str) -> bool:
        """Whether the title that `find` finds is asked for itself: "show me Star Wars again"."""
        words = text.split()
        start, size, code = self._best(words, False)
        behind = words[start + size : start + size + 1]
        return code >= 0 and (
            bool(_ITSELF.search(_before(words, start))) or [word.strip(".,;!?").lower() for word in behind] == ["again"]
        )

    def masked(self, text: str) -> tuple[str, list[str]]:
        """The text with a sign in place of each title, and what stood there, in order."""
        words = text.split()
        titles: list[str] = []
        for start, size, _ in list(self._found(words, spoken=True))[::-1]:
            titles.insert(0, " ".join(words[start : start + size]))
            words[start : start + size] = [MASK]
        return " ".join(words), titles

    def _best(self, words: Sequence[str], turned_down: bool) -> tuple[int, int, int]:
        found = [
            (size, -start, code)
            for start, size, code in self._found(words, spoken=True)
            if turned_down == bool(_TURNED_DOWN.search(_before(words, start)))
        ]
        size, start, code = max(found, default=(0, 0, -1))
        return -start, size, code

    def all(self, text: str, most: int) -> list[int]:
        """The codes of the first titles in the text, `most` at most, in the order in which they are named."""
        return list(dict.fromkeys(code for *_, code in self._found(text.split())))[:most]

    def _found(self, words: Sequence[str], *, spoken: bool = False) -> Iterator[tuple[int, int, int]]:
        """Start and length in words of the longest title that begins there, one behind the other, and its code; written
        as the catalog writes it or, where `spoken`, in any case behind what likens (`_LIKENED`). A single word that
        begins a sentence has its capital from there, and counts only in quotes."""
        start = 0
        while start < len(words):
            size, code = self._longest(words, start)
            if not size and spoken:
                size, code = self._spoken(words, start)
            if size:
                yield start, size, code
            start += max(size, 1)

    def _longest(self, words: Sequence[str], start: int) -> tuple[int, int]:
        for size in range(min(self.longest, len(words) - start), 0, -1):
            phrase = " ".join(words[start : start + size])
            bare = phrase.strip(_QUOTES)
            first = start == 0 or words[start - 1].endswith((".", "!", "?", ";", ":"))
            if size == 1 and first and bare == phrase.rstrip(_QUOTES):
                continue
            for said in (bare, bare.rstrip(",.;!?").rstrip(_QUOTES)):
                if said in self.codes:
                    return size, self.codes[said]
        return 0, -1

    def _spoken(self, words: Sequence[str], start: int) -> tuple[int, int]:
        before = _before(words, start)
        if not _LIKENED.search(before):
            return 0, -1
        for size in range(min(self.longest, len(words) - start), 0, -1):
            said = " ".join(words[start : start + size]).lower()
            bare = said.strip(_QUOTES).rstrip(",.;!?").rstrip(_QUOTES)
            if bare not in self.spoken:
                continue
            ends = bare != said or _ENDS.fullmatch(" ".join(words[start + size :]).lower())
            if size > 1 or (ends and _PLAINLY.search(before)):
                return size, self.spoken[bare]
        return 0, -1


def _before(words: Sequence[str], start: int) -> str:
    return " ".join(words[max(start - 4, 0) : start]).lower()
