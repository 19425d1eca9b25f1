"""How profiles are worded: data files of phrasings, one kind of sentence to a section, in any tone or language.

A file has a section for each kind of sentence, and [words] for what joins names; [names] may translate the catalog's
values and attributes. The packaged `phrases` is the measure: every file has its kinds, each with the same {slots}.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

from recsys.data.words import MEASURES, VALUE_LIMIT, attribute_name, facet_name, one_line, titled, topical
from recsys.errors import SpecError
from recsys.profiles.rhythm import PACE

_SLOT = re.compile(r"\{(\w+)\}")
_HEAD = re.compile(r"\[([\w-]+)\]")
_WORDS = {
    "language": (),
    "reading": (),
    "and": (),
    "comma": (),
    "decade": ("start",),
    "measure": ("name",),
    "pace": (),
    "attributed": ("name", "attribute"),
    "rating": (),
    "ratings": ("n",),
    "choice": (),
    "choices": ("n",),
}
_DEFAULT = "phrases"


@dataclass(frozen=True)
class Sentence:
    """One sentence of a profile in all its phrasings, the template's first, and the claims that it rests on."""

    kind: str
    phrasings: tuple[str, ...]
    claims: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The template's phrasing."""
        return self.phrasings[0]


@dataclass(frozen=True)
class Phrases:
    """The phrasings of each kind of sentence; `prompt_id` names the file's content ("name@hash"), `text` is it.

    words : what joins names; names : how values and attributes of the catalog are said, casefolded -> said
    """

    prompt_id: str
    kinds: Mapping[str, tuple[str, ...]]
    words: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    @classmethod
    def read(cls, wording: str | Path = _DEFAULT) -> "Phrases":
        """A packaged wording by its name ("phrases", "phrases-brief", "phrases-de"), or a file by its path (".txt").

        "[kind]" lines are followed by the kind's phrasings; "#" starts a comment.

        Errors: `SpecError` naming file, kind and slot: a kind that is missing or unknown, a phrasing with other slots.
        """
        if isinstance(wording, Path) or wording.endswith(".txt"):
            try:
                text = Path(wording).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise SpecError(f"{wording}: cannot be read as a wording: {error}") from error
            return cls.parse(text, str(wording))
        return cls.parse(_packaged(wording), wording)

    @classmethod
    def parse(cls, text: str, wording: str | Path) -> "Phrases":
        """What `read` would give for the same name or path, from its content (as a bundle keeps it)."""
        where = str(wording)
        found = sections(text, where)
        words, names = (_pairs(found.pop(part, []), f"{where}: [{part}]") for part in ("words", "names"))
        slots = _slots_of_kinds()
        if wrong := sorted(set(found) ^ set(slots)):
            raise SpecError(f"{where}: [{wrong[0]}] {'is missing' if wrong[0] in slots else 'is no kind of sentence'}")
        for kind, phrasings in found.items():
            if not phrasings:
                raise SpecError(f"{where}: [{kind}] has no phrasing")
            for phrasing in phrasings:
                _same_slots(phrasing, slots[kind], f"{where}: [{kind}] {phrasing!r}")
        if wrong := sorted(set(words) ^ set(_WORDS)):
            known = "is missing" if wrong[0] in _WORDS else "is unknown"
            raise SpecError(f"{where}: [words] {wrong[0]!r} {known}")
        for word, said in words.items():
            _same_slots(said, _WORDS[word], f"{where}: [words] {word}")
        kinds = {kind: tuple(phrasings) for kind, phrasings in found.items()}
        names = {name.casefold(): said for name, said in names.items()}
        return cls(_id(Path(where).stem, text), kinds, words, names, text)

    def say(self, kind: str, claims: Sequence[str] = (), **slots: str) -> Sentence:
        """A sentence of that kind."""
        return Sentence(kind, tuple(_fill(phrasing, slots) for phrasing in self.kinds[kind]), tuple(claims))

    def count(self, n: int, *, rated: bool) -> str:
        """ "53 ratings" or "1 choice"."""
        word = "rating" if rated else "choice"
        return self.words[word] if n == 1 else _fill(self.words[f"{word}s"], {"n": str(n)})

    def join(self, parts: Sequence[str]) -> str:
        """ "a", "a and b", "a, b and c"; empty for nothing."""
        if len(parts) < 2:
            return "".join(parts)
        return f"{self.words['comma'].join(parts[:-1])} {self.words['and']} {parts[-1]}"

    def facet(self, attribute: str, value: str, kind: str) -> str:
        """A facet in running text: "horror", "the 1990s", "items with price 10 to 20", "Sony (brand)"."""
        if kind == PACE:
            return self.words["pace"]
        said = self.names.get(value.casefold())
        if kind == "era":
            return said or _fill(self.words["decade"], {"start": value.removesuffix("s")})
        if kind == "reach":
            return said or facet_name(attribute, value, kind)
        owner = self.names.get(attribute.casefold()) or attribute_name(attribute)
        if kind in MEASURES:
            return _fill(self.words["measure"], {"name": f"{owner} {said or value}"})
        if topical(attribute):
            # plurals and lower case are English; elsewhere a value stands as the catalog has it unless it is translated
            plain = (
                facet_name(attribute, value, kind) if self.words["language"] == "en" else one_line(value, VALUE_LIMIT)
            )
            return said or plain
        name = said or facet_name(attribute, value, kind).rsplit(" (", 1)[0]
        return _fill(self.words["attributed"], {"name": name, "attribute": owner})

    def titles(self, titles: Sequence[str]) -> str:
        """Quoted titles, joined."""
        return self.join([titled(title) for title in titles])

    @cached_property
    def fixed(self) -> dict[str, str]:
        """The file's sentences without slots and their kinds: what they say is true where the template says it."""
        told = ((kind, s) for kind, some in self.kinds.items() for p in some for s in re.split(r"(?<=[.!?])\s+", p))
        return {sentence: kind for kind, sentence in told if not _SLOT.search(sentence)}


def read_prompt(name: str) -> tuple[str, str]:
    """The id ("name@hash") and the text of a packaged prompt file. Errors: `SpecError` where there is none."""
    text = _packaged(name)
    return _id(name, text), text


def sections(text: str, where: str) -> dict[str, list[str]]:
    """ "[section]" lines with the lines that follow; comments ("#") and empty lines are left out.

    Errors: `SpecError` for a line before the first section, and for a section that comes twice.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if head := _HEAD.fullmatch(line):
            if head[1] in found:
                raise SpecError(f"{where}: [{head[1]}] comes twice")
            lines = found[head[1]] = []
        elif lines is None:
            raise SpecError(f"{where}: {line[:40]!r} stands before the first [kind]")
        else:
            lines.append(line)
    return found


def _packaged(name: str) -> str:
    folder = resources.files("recsys.profiles") / "prompts"
    file = folder / f"{name}.txt"
    if not re.fullmatch(r"[\w-]+", name) or not file.is_file():
        known = sorted(f.name[:-4] for f in folder.iterdir() if f.name.startswith(_DEFAULT))
        raise SpecError(f"{name!r} is no packaged wording ({', '.join(known)}); a file's path ends in .txt")
    return file.read_text("utf-8")


def _id(name: str, text: str) -> str:
    return f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _slots_of_kinds() -> dict[str, tuple[str, ...]]:
    """The slots of each kind in the packaged English, the measure for every other file."""
    found = sections(_packaged(_DEFAULT), _DEFAULT)
    kinds = (kind for kind in found if kind not in ("words", "names"))
    return {kind: tuple(sorted(_SLOT.findall(found[kind][0]))) for kind in kinds}


def _same_slots(phrasing: str, slots: Sequence[str], where: str) -> None:
    has = sorted(_SLOT.findall(phrasing))
    if has != sorted(slots):
        wanted = " ".join(f"{{{slot}}}" for slot in slots) or "none"
        wrong = sorted(set(has) ^ set(slots)) or sorted(slots)
        raise SpecError(f"{where}: slot {{{wrong[0]}}}: the slots of this kind, each once, are {wanted}")


def _pairs(lines: Sequence[str], where: str) -> dict[str, str]:
    """ "word = what is said"; double quotes around what is said keep its spaces."""
    found = {}
    for line in lines:
        word, equals, said = (part.strip() for part in line.partition("="))
        if not equals or not word or not said:
            raise SpecError(f"{where}: {line[:40]!r} is not of the form: word = what is said")
        found[word] = said[1:-1] if len(said) > 1 and said[0] == said[-1] == '"' else said
    return found


def _fill(phrasing: str, slots: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda m: slots[m[1]], phrasing)
