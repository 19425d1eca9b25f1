"""The words of one language by which the checker reads a text. They are data: a file of sections in `prompts`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from recsys.errors import SpecError
from recsys.profiles.phrases import read_prompt, sections

WORDS = (
    *("you", "others", "idioms", "dislike", "negation", "like", "choose", "acts", "recent", "faded", "more", "far"),
    *("most", "often", "alike", "counted", "percent", "clauses", "unknown", "topics", "plain", "neutral"),
)
AMOUNTS = ("factors", "shares", "numbers", "decades")


@dataclass(frozen=True)
class Lexicon:
    """words   : for each section a pattern that finds its entries as whole words, whatever their case
    amounts : for each section with values, the entries' values
    """

    words: Mapping[str, re.Pattern[str]]
    amounts: Mapping[str, Mapping[str, float]]
    entries: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, language: str) -> "Lexicon":
        """The packaged words of a language ("en").

        Errors: `SpecError` naming file, section and entry.
        """
        name = f"reading-{language}"
        return cls.parse(read_prompt(name)[1], f"{name}.txt")

    @classmethod
    def parse(cls, text: str, where: str) -> "Lexicon":
        """Read sections of entries between commas, "*" standing for any ending. Errors: as `read`."""
        found = {
            section: tuple(entry for line in lines for part in line.split(",") if (entry := part.strip()))
            for section, lines in sections(text, where).items()
        }
        if wrong := sorted(set(found) ^ {*WORDS, *AMOUNTS}):
            raise SpecError(f"{where}: [{wrong[0]}] is missing or unknown")
        amounts = {section: _amounts(found[section], f"{where}: [{section}]") for section in AMOUNTS}
        entries = {**found, **{section: tuple(values) for section, values in amounts.items()}}
        return cls({section: _pattern(some) for section, some in entries.items()}, amounts, entries)

    @cached_property
    def plain(self) -> frozenset[str]:
        """Single words of any section but the topics, casefolded, which are no names where they stand alone."""
        told = (
            entry
            for section, some in self.entries.items()
            if section not in ("topics", "decades", "neutral")
            for entry in some
        )
        return frozenset(
            word.casefold() for entry in told for word in re.findall(r"[^\W_]+\*?", entry) if word[-1] != "*"
        )

    @cached_property
    def _known(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """Every word of the entries, and every stem."""
        found = {w for some in self.entries.values() for e in some for w in re.findall(r"[^\W_]+\*?", e.casefold())}
        return frozenset(w for w in found if w[-1] != "*"), tuple(sorted(w[:-1] for w in found if w[-1] == "*"))

    def knows(self, word: str) -> bool:
        """Whether the word, casefolded, is in some section, alone or in an entry of several words."""
        words, stems = self._known
        return all(len(part) < 3 or part in words or part.startswith(stems) for part in re.split(r"[\W_]+", word))

    def has(self, section: str, text: str) -> bool:
        """Whether the text has an entry of the section."""
        return self.words[section].search(text) is not None

    def spans(self, section: str, text: str) -> list[tuple[int, int]]:
        """Where entries of the section stand in the text."""
        return [match.span() for match in self.words[section].finditer(text)]

    def without(self, section: str, text: str) -> str:
        """The text with blanks where it has entries of the section."""
        return self.words[section].sub(" ", text)

    def values(self, section: str, text: str) -> list[tuple[int, int, float]]:
        """Where entries of the section stand, with their values; an entry with "*" has that of its stem."""
        amounts = self.amounts[section]

        def value(found: str) -> float:
            word = " ".join(found.casefold().split())
            stem = max((e for e in amounts if e.endswith("*") and word.startswith(e[:-1])), key=len, default=word)
            return amounts.get(word, amounts.get(stem, 0.0))

        return [(*match.span(), value(match[0])) for match in self.words[section].finditer(text)]


def _amounts(entries: tuple[str, ...], where: str) -> dict[str, float]:
    found = {}
    for entry in entries:
        word, _, value = entry.partition("=")
        try:
            found[word.strip().casefold()] = float(value)
        except ValueError:
            raise SpecError(f"{where}: {entry!r} has no number after '='") from None
    return found


def _pattern(entries: tuple[str, ...]) -> re.Pattern[str]:
    """Longest entries first, so that "far more" is found before "far"."""
    ordered = sorted(set(entries), key=lambda entry: (-len(entry), entry))
    forms = [r"[\w’'-]*".join(map(_literal, entry.split("*"))) for entry in ordered]
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE)


def _literal(part: str) -> str:
    return r"\s+".join(re.escape(word).replace("'", "['’]") for word in re.split(" ", part))
