"""Catalogs that do not exist, so that what requests mean is learned once for all catalogs (`shipped`).

A value is read by its name (`interpret`), so a network that has heard requests for films, food and furniture knows how
people ask, whatever the catalog; and it has heard of much that a given catalog has no value for, which is to be
answered by silence. What can be asked for is data (`phrases/values.txt`), with other ways to say it beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recsys.errors import SpecError
from recsys.rerank.requests import Facets, Wording, Writer, ways_to_say

# Decades that items are from.
DECADES = range(1900, 2030, 10)
# Share of items that have a decade, and values of an item at most.
DATED, MOST = 0.7, 4
# Attributes whose values are made-up names of people and firms, so many each; and how often one is drawn beside others.
MAKERS = ("brand", "director", "author", "artist", "actor", "publisher", "studio")
MADE_UP, RARELY = 8, 0.25
_FIRST = "Ada Boris Carla Diego Elif Farid Greta Hugo Ines Jonas Kenji Lena Marek Noor Olga Pavel Rosa Sven Tariq Yuki"
_LAST = "Abara Bergman Castillo Dvorak Eriksen Fontaine Grimaldi Haddad Ivanova Jansen Kowalski Lindqvist Moreau Novak"
_START = "Al Bel Cor Dal Er Fen Gal Hel Kar Lum Mar Nor Or Pel Quin Ros Sol Tor Vel Zan"
_END = "ia on ex um is ando ara eo ith"
_TITLES = (
    "The {a} {b}",
    "{a} of the {b}",
    "{a} and {b}",
    "{a}",
    "A {b} Called {a}",
    "My {a}",
    "{a} {b}",
    "No More {a}",
)
_WORDS = (
    "Night River House Garden Empire Letter Shadow Summer Winter Machine Island Stranger Mirror Road Dream Fire Stone "
    "King Daughter Ocean Secret Train Clock Storm Flower Ghost Bridge Music Star Silence"
)


@dataclass(frozen=True)
class Value:
    """One thing to ask for. kind : as of `facets.Kind`; domain : of the catalogs that have it."""

    domain: str
    attribute: str
    name: str
    kind: str
    also: tuple[str, ...] = ()


def read_values(path: Path | None = None) -> tuple[Value, ...]:
    """The packaged values, or a file's. Errors: `SpecError` naming the file and the line."""
    source = path or resources.files("recsys.rerank") / "phrases" / "values.txt"
    found, domain = [], ""
    for number, line in enumerate(source.read_text("utf-8").splitlines(), 1):
        if line.startswith("["):
            domain = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            attribute, colon, values = line.partition(":")
            if not colon or not domain:
                raise SpecError(f'{source}, line {number}: not "attribute: value | value" below a [kind of catalog]')
            for value in values.split("|"):
                name, _, also = value.partition("=")
                ways = tuple(way.strip() for way in also.split(",") if way.strip())
                found.append(Value(domain, attribute.strip(), name.strip(), "value", ways))
    return tuple(found)


def said_otherwise(spoken: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """A catalog's values, each by its names, with the other ways to say those that are known here and mean one thing:
    who learns the catalog's own requests does not forget that something scary is horror."""
    ways: dict[str, list[tuple[str, ...]]] = {}
    for value in read_values():
        ways.setdefault(value.name.lower(), []).append(value.also)
    known = {name: found[0] for name, found in ways.items() if len(found) == 1}
    return tuple((*said, *known.get(said[0].lower(), ())) for said in spoken)


def made_up(rng: np.random.Generator) -> tuple[Value, ...]:
    """Names of people and firms, and bands of numbers."""

    def pick(words: str) -> str:
        return str(rng.choice(words.split()))

    found = []
    for attribute in MAKERS:
        firm = attribute in ("brand", "publisher", "studio")
        names = {pick(_START) + pick(_END) if firm else f"{pick(_FIRST)} {pick(_LAST)}" for _ in range(MADE_UP)}
        found += [Value("anything", attribute, name, "value") for name in sorted(names)]
    for attribute in ("price", "pages", "minutes", "year"):
        low = int(rng.integers(1, 50))
        edges = [low, low * 2, low * 5, low * 12]
        bands = [f"{a} to {b}" for a, b in pairwise(edges)] + [f"over {edges[-1]}"]
        found += [Value("anything", attribute, band, "band") for band in bands]
    return tuple(found)


def world(items: int, wording: Wording, plain: float, seed: int) -> Writer:
    """Who writes requests for `items` items that do not exist, in the given wording."""
    rng = np.random.default_rng(seed)
    values = [*read_values(), *made_up(rng)]
    eras = [Value("anything", "year", f"{decade}s", "era") for decade in DECADES]
    known = [*values, *eras]
    ways = [ways_to_say(v.attribute, v.name, v.kind) for v in known]
    spoken = tuple((*said, *v.also) for said, v in zip(ways, known, strict=True))
    carried = np.zeros((items, len(known)), dtype=bool)
    domains = sorted({v.domain for v in values} - {"anything"})
    chance = {d: np.array([(v.domain == d) + RARELY * (v.domain == "anything") for v in values]) for d in domains}
    decade = rng.integers(0, len(eras), items)
    dated = rng.random(items) < DATED
    for item, domain in enumerate(rng.choice(domains, items)):
        weights = chance[domain] / chance[domain].sum()
        carried[item, rng.choice(len(values), int(rng.integers(1, MOST + 1)), replace=False, p=weights)] = True
    carried[np.flatnonzero(dated), len(values) + decade[dated]] = True
    years = np.where(dated, np.array(DECADES)[decade] + rng.integers(0, 10, items), np.nan).astype(np.float32)
    return Writer(
        Facets(
            tuple(said[0] for said in ways),
            spoken,
            np.array([v.kind == "era" for v in known]),
            carried,
            years,
            tuple(_title(values, rng) for _ in range(items)),
        ),
        wording,
        _unrelated(items, rng),
        plain,
    )


def _title(values: list[Value], rng: np.random.Generator) -> str:
    """Some hold the name of a value: nobody who names them asks for it."""
    words = _WORDS.split()
    a, b = str(rng.choice(words)), str(rng.choice(words))
    if rng.random() < 0.3:
        a = values[int(rng.integers(len(values)))].name.title()
    return str(rng.choice(_TITLES)).format(a=a, b=b)


def _unrelated(items: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    vectors = rng.normal(size=(items, 8)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
