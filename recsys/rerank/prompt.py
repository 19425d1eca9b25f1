"""Prompts as data: a text file with named sections becomes what the language model reads of a user and the candidates.

[context]   what is known of the user: {profile}, {persona}, {request}, {vectors} (soft tokens of the history), and
            {recent} and {evidence}, titles; a line whose only filling is empty is left out
[item]      one title of the history, {title}; they are joined by ", "
[empty]     packed: the same prompt saying nothing of the user: what a title's likelihood is measured against
[answer]    packed, endpoint: one candidate as it is scored: {title}
[candidate] the others: one candidate of a list, {label} and {title}, on a line of its own
[task]      the others: the list, {candidates}, its length {n}, and what is to be done with it
[lead]      the others: how an answer begins that is read from log probabilities, after the task

What users and catalogs wrote stays on one line, bounded, in quotes that it cannot close: it is material, and must not
read as part of the prompt.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from recsys.errors import SpecError

TITLE_CHARS = 100
PROFILE_CHARS = 600
REQUEST_CHARS = 500
CONTEXT_CHARS = 2000
SEPARATOR = ", "
PACKED = ("context", "item", "empty", "answer")
LISTED = ("context", "item", "candidate", "task", "lead")
ENDPOINT = ("context", "item", "answer")
_SLOT = re.compile(r"\{(profile|persona|vectors|recent|evidence|request|title|label|candidates|n)\}")
_SECTION = re.compile(r"^\[(context|item|empty|answer|candidate|task|lead)\]\n", re.MULTILINE)
# Controls, what nobody sees, and what is for private use.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\U000f0000-\U0010ffff]+"
)
_QUOTES = str.maketrans({'"': "'", "“": "'", "”": "'", "„": "'", "«": "'", "»": "'"})


@dataclass(frozen=True)
class About:
    """What a prompt says of a user, each part maybe empty: words about them and about people like them, their own
    words, and titles of their history, oldest first: the last ones, and those that are near the candidates.

    vectors : the history's items as soft tokens
    """

    profile: str = ""
    recent: Sequence[str] = ()
    evidence: Sequence[str] = ()
    request: str = ""
    persona: str = ""
    vectors: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt file. `prompt_id` is its name and the start of its text's hash, so that an edit is another prompt."""

    prompt_id: str
    text: str
    sections: Mapping[str, str]

    @classmethod
    def read(cls, name: str, sections: Sequence[str] = PACKED) -> "Prompt":
        """The packaged prompt of that name. Errors: `SpecError` naming those there are, or a missing section."""
        folder = resources.files("recsys.rerank") / "prompts"
        known = sorted(file.name.removesuffix(".txt") for file in folder.iterdir() if file.name.endswith(".txt"))
        if name not in known:
            raise SpecError(f"reranker.prompt: there is no prompt '{name}' (there are: {', '.join(known)})")
        return cls.parse(name, (folder / f"{name}.txt").read_text("utf-8"), sections)

    @classmethod
    def parse(cls, name: str, text: str, sections: Sequence[str] = PACKED) -> "Prompt":
        """A prompt from its file's text. Errors: `SpecError` naming a section that is missing."""
        parts = _SECTION.split(text)
        found = {section: body.removesuffix("\n") for section, body in zip(parts[1::2], parts[2::2], strict=True)}
        for section in sections:
            if section not in found:
                raise SpecError(f"prompt '{name}': section [{section}] is missing")
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return cls(f"{name}@{digest}", text, found)

    @property
    def name(self) -> str:
        """The file's name without the hash."""
        return self.prompt_id.partition("@")[0]

    @property
    def empty(self) -> str:
        """The packed prompt that says nothing of a user."""
        return self.sections["empty"]

    def says(self, slot: str) -> bool:
        """Whether the context has a place for this."""
        return f"{{{slot}}}" in self.sections["context"]

    def render(self, about: About) -> str:
        """The context of a user, or `empty` (where the prompt has it) if nothing is known; the oldest titles give way
        where the titles and the profile would grow beyond `CONTEXT_CHARS`."""
        profile, request = plain(about.profile, PROFILE_CHARS), plain(about.request, REQUEST_CHARS)
        persona = plain(about.persona, PROFILE_CHARS)
        recent, evidence = self._items(about.recent), self._items(about.evidence)
        while not _bounded(profile, recent, evidence):
            recent.pop(0)
        if not (profile or persona or recent or evidence or request or about.vectors) and "empty" in self.sections:
            return self.empty
        values = {
            "profile": profile,
            "persona": persona,
            "vectors": about.vectors,
            "recent": SEPARATOR.join(recent),
            "evidence": SEPARATOR.join(evidence),
            "request": request,
        }
        lines = [line for line in self.sections["context"].split("\n") if not _void(line, values)]
        return _fill("\n".join(lines), **values)

    def render_answer(self, title: str, longest: int = TITLE_CHARS) -> str:
        """What is scored for an item."""
        return _fill(self.sections["answer"], title=plain(title, longest))

    def render_candidate(self, label: str, title: str, longest: int = TITLE_CHARS) -> str:
        """One line of a list of candidates."""
        return _fill(self.sections["candidate"], label=label, title=plain(title, longest))

    def render_task(self, candidates: Sequence[str], *, lead: bool) -> str:
        """What is to be done with these lines of candidates; with the beginning of the answer where `lead`."""
        text = _fill(self.sections["task"], candidates="\n".join(candidates), n=str(len(candidates)))
        return f"{text}\n{self.sections['lead']}" if lead else text

    def bounded(self, about: About) -> bool:
        """Whether `render` shows all titles of a user."""
        profile = plain(about.profile, PROFILE_CHARS)
        return _bounded(profile, self._items(about.recent), self._items(about.evidence))

    def _items(self, titles: Sequence[str]) -> list[str]:
        return [_fill(self.sections["item"], title=plain(title, TITLE_CHARS)) for title in titles]


def _bounded(profile: str, recent: Sequence[str], evidence: Sequence[str]) -> bool:
    shown = (*recent, *evidence)
    return not recent or len(profile) + sum(len(item) + len(SEPARATOR) for item in shown) <= CONTEXT_CHARS


def shortened(about: About, fits: Callable[[About], bool]) -> About | None:
    """What of a user still fits: the oldest titles give way first, then the nearest ones, the persona, the oldest soft
    tokens, the profile's end; the request never does. None where even that is too long."""
    while not fits(about):
        if about.recent:
            about = replace(about, recent=about.recent[1:])
        elif about.evidence:
            about = replace(about, evidence=about.evidence[1:])
        elif about.persona:
            about = replace(about, persona="")
        elif about.vectors:
            about = replace(about, vectors=about.vectors[1:])
        elif about.profile:
            about = replace(about, profile=about.profile[: len(about.profile) // 2])
        else:
            return None
    return about


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
