"""How well does the checker catch what is false? Planted lies: true profiles with one false sentence in each.

The wordings are data (`prompts/lies.txt`), none of them the template's own, so that reading is tested and not the
matching of strings. A share of lies caught is worth as much as its wordings are unlike those that the checker was built
on: those after "---" were written when it was finished.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.data.words import TITLE_LIMIT, one_line
from recsys.errors import SpecError
from recsys.profiles.evidence import Evidence, Trait
from recsys.profiles.names import Pair
from recsys.profiles.phrases import Phrases, read_prompt, sections
from recsys.profiles.population import Known
from recsys.profiles.template import ENOUGH, sentences

KINDS = ("value", "disliked", "title", "number", "strength", "shift")
_FIVE, _FAR, _PLAIN = 5.0, 2.0, 1.25
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class Lie:
    """A false sentence of one kind in an otherwise true text about the user that `evidence` describes.

    text : the whole; sentence : the false one; held_out : its wording was written after the checker
    """

    kind: str
    sentence: str
    text: str
    evidence: Evidence
    held_out: bool


def plant(evidence: Sequence[Evidence], known: Known, phrases: Phrases, n: int = 200, *, seed: int = 0) -> list[Lie]:
    """`n` lies about these users, kind after kind and wording after wording in turn, in texts of the template.

    Users of few events are left out. Errors: `SpecError` where too few users have what can be lied about.
    """
    rng = np.random.default_rng(seed)
    wordings = _wordings()
    people = [e for e in evidence if e.events >= ENOUGH and (e.tastes or e.common)]
    found: list[Lie] = []
    used: Counter[str] = Counter()
    misses = 0
    while len(found) < n:
        kind = KINDS[len(found) % len(KINDS)]
        wording, held_out = wordings[kind][used[kind] % len(wordings[kind])]
        if not people or misses > 100 * n:
            raise SpecError(f"plant: none of {len(people)} users can be lied about by {wording!r}")
        person = people[int(rng.integers(len(people)))]
        false = _false(wording, kind, person, known, phrases, rng)
        if false is None:
            misses += 1
            continue
        used[kind] += 1
        true = [rng.choice(list(s.phrasings)).item() for s in sentences(person, phrases)]
        true.insert(int(rng.integers(len(true) + 1)), false)
        found.append(Lie(kind, false, " ".join(true), person, held_out))
    return found


def caught(lies: Sequence[Lie], finds: Callable[[Lie], bool]) -> Mapping[str, float]:
    """Share of the lies that `finds` says to have found, by kind and for "all"; kinds without lies are left out."""
    hits: dict[str, list[bool]] = {}
    for lie in lies:
        for kind in (lie.kind, "all"):
            hits.setdefault(kind, []).append(finds(lie))
    return {kind: sum(some) / len(some) for kind, some in hits.items()}


def _wordings() -> dict[str, list[tuple[str, bool]]]:
    """For each kind its wordings, and whether the checker had not seen them; in turn, one of either half."""
    found = {}
    for kind, lines in sections(read_prompt("lies")[1], "lies.txt").items():
        at = lines.index("---") if "---" in lines else len(lines)
        found[kind] = [(line, place > at) for place, line in enumerate(lines) if line != "---"]
    return found


def _false(
    wording: str, kind: str, e: Evidence, known: Known, phrases: Phrases, rng: np.random.Generator
) -> str | None:
    """The wording with its slots filled so that it is false of the user; None where it cannot be."""
    slot = _slots(kind, e, known, phrases, rng)
    try:
        text = wording.format_map(slot)
    except KeyError:
        return None
    return text[:1].upper() + text[1:]


def _slots(kind: str, e: Evidence, known: Known, phrases: Phrases, rng: np.random.Generator) -> dict[str, str]:
    """What can be put into wordings of that kind; what the user lacks for it is not there."""

    def one(traits: Sequence[Trait]) -> Trait | None:
        return traits[int(rng.integers(len(traits)))] if traits else None

    def say(name: str, trait: Trait | None) -> dict[str, str]:
        return {} if trait is None else {name: phrases.facet(trait.attribute, trait.value, trait.kind)}

    liked = [t for t in (*e.tastes, *e.common) if t.kind == "value"]
    if kind == "value":
        return say("value", one(_foreign(e, known, "value")))
    if kind == "disliked":
        low = {_key(t) for t in e.dislikes}
        return say("value", one([t for t in liked if _key(t) not in low]))
    if kind == "title":
        own = {i.title for i in (*e.anchors, *e.latest)}
        others = [t for t in known.titles if one_line(t, TITLE_LIMIT) not in own and '"' not in t]
        return {"title": one_line(others[int(rng.integers(len(others)))], TITLE_LIMIT)} if others else {}
    if kind == "number":
        return _numbers(one(liked), e, phrases, rng)
    if kind == "strength":
        first = {_key(t) for t in (*e.tastes[:1], *sorted(e.tastes, key=lambda t: -t.lift)[:1])}
        above = {_key(t): t.lift for t in e.tastes}
        mild = [t for t in liked if above.get(_key(t), 0.0) < _PLAIN + 0.5 and _key(t) not in first]
        if not e.tastes:  # of who has no taste that stands out, any comparison is false
            mild = list(e.common)
        return say("mild", one(mild)) | say("decade", one(_foreign(e, known, "era")))
    shifted = {_key(t) for t in e.recent}
    return say("steady", one([t for t in liked if _key(t) not in shifted]))


def _foreign(e: Evidence, known: Known, kind: str) -> list[Trait]:
    """Values of the catalog that are nowhere in the evidence, and whose name is not part of one that is."""
    own = {_key(t) for t in (*e.tastes, *e.eras, *e.common, *e.recent, *e.dislikes)}
    rows = known.population.values.filter(kind=kind).select("attribute", "value", "kind").iter_rows()
    return [Trait(a, v, k, 1.0, 0) for a, v, k in rows if (a, v) not in own]


def _numbers(trait: Trait | None, e: Evidence, phrases: Phrases, rng: np.random.Generator) -> dict[str, str]:
    """Numbers that are none of the user's, and a share that the value is far from."""
    if trait is None:
        return {}
    own = {e.events, e.liked, e.disliked, *(t.n for t in (*e.tastes, *e.eras, *e.common, *e.recent, *e.dislikes))}
    n = next(k for k in iter(lambda: int(rng.integers(6, 600)), None) if k not in own)
    tens = next(k for k in iter(lambda: int(rng.integers(2, 10)), None) if 10 * k not in own)
    share = trait.n / max(e.liked, 1)
    percent = int(100 * ((share + 0.5) % 1))
    name = phrases.facet(trait.attribute, trait.value, trait.kind)
    return {"n": str(n), "spelled": _TENS[tens], "percent": str(percent), "liked": name}


def _key(trait: Trait) -> Pair:
    return trait.attribute, trait.value
