"""Prompts as data: a text file with named sections becomes what the language model reads of a user and an item.

[context] what is known of the user: {profile} and {recent}, the recent titles; a line whose only filling is empty is
          left out
[item]    one recent title, {title}; they are joined by ", "
[empty]   the same prompt saying nothing of the user: what a title's likelihood is measured against
[answer]  what is scored: {title}

What users and catalogs wrote stays on one line, bounded, in quotes that it cannot close: it is material, and must not
read as part of the prompt.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from recsys.errors import SpecError

TITLE_CHARS = 100
PROFILE_CHARS = 600
CONTEXT_CHARS = 2000
SEPARATOR = ", "
_SLOT = re.compile(r"\{(profile|recent|title)\}")
_SECTION = re.compile(r"^\[(context|item|empty|answer)\]\n", re.MULTILINE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]+")
_QUOTES = str.maketrans({'"': "'", "“": "'", "”": "'", "„": "'", "«": "'", "»": "'"})


@dataclass(frozen=True)
class Prompt:
    """A prompt file. `prompt_id` is its name and the start of its text's hash, so that an edit is another prompt."""

    prompt_id: str
    text: str
    context: str
    item: str
    empty: str
    answer: str

    @classmethod
    def read(cls, name: str) -> "Prompt":
        """The packaged prompt of that name. Errors: `SpecError` naming those there are."""
        folder = resources.files("recsys.rerank") / "prompts"
        known = sorted(file.name.removesuffix(".txt") for file in folder.iterdir() if file.name.endswith(".txt"))
        if name not in known:
            raise SpecError(f"reranker.prompt: there is no prompt '{name}' (there are: {', '.join(known)})")
        return cls.parse(name, (folder / f"{name}.txt").read_text("utf-8"))

    @classmethod
    def parse(cls, name: str, text: str) -> "Prompt":
        """A prompt from its file's text. Errors: `SpecError` naming a section that is missing."""
        parts = _SECTION.split(text)
        found = {section: body.removesuffix("\n") for section, body in zip(parts[1::2], parts[2::2], strict=True)}
        for section in ("context", "item", "empty", "answer"):
            if section not in found:
                raise SpecError(f"prompt '{name}': section [{section}] is missing")
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return cls(f"{name}@{digest}", text, **found)

    @property
    def name(self) -> str:
        """The file's name without the hash."""
        return self.prompt_id.partition("@")[0]

    def render(self, profile: str, recent_titles: Sequence[str]) -> str:
        """The context of a user, or `empty` where nothing is known; the oldest titles give way where it would grow
        beyond `CONTEXT_CHARS`."""
        about = plain(profile, PROFILE_CHARS)
        items = [_fill(self.item, title=plain(title, TITLE_CHARS)) for title in recent_titles]
        while items and len(about) + sum(len(item) + len(SEPARATOR) for item in items) > CONTEXT_CHARS:
            items.pop(0)
        if not about and not items:
            return self.empty
        values = {"profile": about, "recent": SEPARATOR.join(items)}
        lines = [line for line in self.context.split("\n") if not _void(line, values)]
        return _fill("\n".join(lines), **values)

    def render_answer(self, title: str) -> str:
        """What is scored for an item."""
        return _fill(self.answer, title=plain(title, TITLE_CHARS))


def plain(text: str, longest: int) -> str:
    """Someone's text on one line without control characters, with single quotes only, cut at a word near `longest`."""
    line = " ".join(_UNPRINTABLE.sub(" ", text).split()).translate(_QUOTES)
    if len(line) <= longest:
        return line
    return line[: longest + 1].rsplit(" ", 1)[0][:longest].rstrip()


def _fill(template: str, **values: str) -> str:
    """Fill the slots in one go, so that a slot's name inside a value stays what it is."""
    return _SLOT.sub(lambda match: values.get(match[1], match[0]), template)


def _void(line: str, values: dict[str, str]) -> bool:
    """Whether a line has slots and all of them are empty."""
    slots: list[str] = _SLOT.findall(line)
    return bool(slots) and not any(values.get(slot) for slot in slots)
