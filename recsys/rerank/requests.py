"""Requests in words, written from what the catalog says of an item, so that a reader of requests can be trained.

A request is truthful about its item: the item has what is wanted and lacks what is refused. Six kinds and their
mixtures are written: a value, two values, a decade, some refusals, "like that one", "like that one but newer or older".
The wording is data (`phrases/requests.txt`), so that other languages and held-out paraphrases are other files.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.facets import Column, expand, plan
from recsys.data.vocab import Codes, Vocab
from recsys.data.words import MEASURES, facet_name, one_line, topical, value_name
from recsys.errors import SpecError
from recsys.protocols import Floats
from recsys.tables import Catalog

KINDS = ("want", "two", "want era", "era", "want no", "no", "none", "want none", "like", "like than", "want era no")
# Only where the wording has phrases for it: a decade is refused.
PAST = ("past", "want past")
SLOTS = re.compile(r"\{(want|also|era|no|other|like)\}")
# A value of fewer items is too rare to be asked for, or to be refused.
FEWEST = 3
# Values of one attribute that can be asked for, the most frequent ones.
MOST_VALUES = 200
# Items among which the one that a request likens its own to is sought, and how many of the nearest may be it.
AMONG, NEAREST = 1000, 3
# How often a refusal comes before what is wanted; and how often one that can go on without a comma does: "a comedy
# without romance".
FIRST, RUN_ON = 0.15, 0.5
_RUNS_ON = re.compile(
    r"(and|apart|as|aside|but|except|excluding|free of|lacking|minus|no|not|nothing|other than|provided|so long|that"
    r"|which|with|without) "
)
# Values that are refused together at most, and how often more than two are where that can be said.
MOST_REFUSED, MORE = 4, 0.3
# How often the plainest phrasing of a kind is taught, and no opening or no closing: people are short.
PLAIN = 0.2
# "the 1990s" is also said in words.
TENS = ("twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")
DECADES = dict(zip(range(20, 100, 10), TENS, strict=True))
_PHRASES = resources.files("recsys.rerank") / "phrases"
_YEAR = r"\((1[89]\d\d|20\d\d)\)\s*$"


@dataclass(frozen=True)
class Request:
    """A request and what it means. `wants`, `refuses`: facet codes; `like`: an item code or -1; `than`: 1 for newer
    than it, -1 for older, 0 where that is not asked."""

    text: str
    wants: tuple[int, ...] = ()
    refuses: tuple[int, ...] = ()
    like: int = -1
    than: int = 0
    kind: str = ""


@dataclass(frozen=True)
class Facets:
    """What the items of a vocabulary can be asked for by.

    names   : (facets,) how each is said; spoken : other ways to say it
    eras    : (facets,) whether it is a decade
    carried : (items, facets) bool
    years   : (items,) NaN where not known
    titles  : (items,) without the year behind them
    """

    names: tuple[str, ...]
    spoken: tuple[tuple[str, ...], ...]
    eras: npt.NDArray[np.bool_]
    carried: npt.NDArray[np.bool_]
    years: Floats
    titles: tuple[str, ...]

    @classmethod
    def of(cls, catalog: Catalog, vocab: Vocab, events: Codes) -> "Facets":
        """events : the item code of each event, by which bands of numbers are weighed."""
        counts = np.bincount(events, minlength=len(vocab))
        by_row = np.zeros(len(catalog), dtype=np.int64)
        by_row[:] = counts[vocab.encode(catalog.frame["item_id"])]
        columns = plan(catalog, by_row)
        carried = expand(catalog, vocab, columns)
        sizes = carried.group_by("attribute", "value", "kind").agg(items=pl.len()).filter(pl.col("items") >= FEWEST)
        place = pl.struct(-pl.col("items").cast(pl.Int64), "value").rank("ordinal").over("attribute")
        sizes = sizes.filter(place <= MOST_VALUES).sort("attribute", "value").with_row_index("code")
        places = carried.join(sizes, on=["attribute", "value", "kind"])
        table = np.zeros((len(vocab), len(sizes)), dtype=bool)
        table[places["item"].to_numpy(), places["code"].to_numpy()] = True
        spoken = [ways_to_say(*row) for row in sizes.select("attribute", "value", "kind").iter_rows()]
        eras = (sizes["kind"] == "era").to_numpy()
        frame = pl.DataFrame({"item_id": vocab.ids}).join(
            catalog.frame, on="item_id", how="left", maintain_order="left"
        )
        titles = frame["title"].str.replace(_YEAR, "").str.strip_chars()
        return cls(
            tuple(ways[0] for ways in spoken),
            tuple(spoken),
            eras,
            table,
            _years(frame, columns),
            tuple(one_line(title, 200) for title in titles),
        )

    def __len__(self) -> int:
        return len(self.names)

    def fits(self, request: Request) -> npt.NDArray[np.bool_]:
        """(items,) whether the item is what the request says."""
        ok = self.carried[:, list(request.wants)].all(axis=1) & ~self.carried[:, list(request.refuses)].any(axis=1)
        if request.than:
            with np.errstate(invalid="ignore"):
                ok &= request.than * (self.years - self.years[request.like]) > 0
        return np.asarray(ok)


def ways_to_say(attribute: str, value: str, kind: str) -> tuple[str, ...]:
    """How a facet is said, its name first."""
    if kind == "era":
        decade = int(value.rstrip("s"))
        ways = [f"the {value}"]
        if 1920 <= decade < 2000:
            ways += [f"the {DECADES[decade % 100]}", f"the {decade % 100}s"]
        return tuple(ways)
    if kind in MEASURES:
        return (facet_name(attribute, value, kind),)
    plain = one_line(value, 40)
    return tuple(dict.fromkeys((plain.lower() if topical(attribute) else plain, value_name(attribute, value))))


def _years(frame: pl.DataFrame, columns: Sequence[Column]) -> Floats:
    source = next((c.source for c in columns if c.kind == "era"), None)
    if source is None:
        return np.full(len(frame), np.nan, dtype=np.float32)
    text = frame[source].cast(pl.String)
    year = text.str.extract(_YEAR) if source == "title" else text.str.strip_suffix("s")
    return year.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy().astype(np.float32)


@dataclass(frozen=True)
class Wording:
    """Phrasings by kind, the plainest first."""

    phrases: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path | None = None) -> "Wording":
        """The packaged wording, or a file's. Errors: `SpecError` naming the file and the kind that it lacks."""
        source = path or _PHRASES / "requests.txt"
        found = _phrases(source)
        for needed in ("open", "close", "want", "two", "era", "no", "none", "like", "newer", "older"):
            if needed not in found:
                raise SpecError(f"{source}: the kind [{needed}] is missing")
        return cls(found)

    @classmethod
    def more(cls) -> "Wording":
        """Packaged refusals that catalogs' own training has beside the others."""
        return cls(_phrases(_PHRASES / "refusals.txt"))

    def __add__(self, other: "Wording") -> "Wording":
        both = {**self.phrases, **other.phrases}
        return Wording({kind: (*self.phrases.get(kind, ()), *other.phrases.get(kind, ())) for kind in both})

    def split(self) -> tuple["Wording", "Wording"]:
        """Nine tenths of the phrasings of each kind, the plainest among them, and the rest: at least one on either
        side. The same whoever asks, so that what was learned elsewhere (`shipped`) has not seen the rest, either."""
        most, rest = {}, {}
        for kind, lines in self.phrases.items():
            order = [0, *(1 + np.random.default_rng([0, len(lines)]).permutation(len(lines) - 1))]
            cut = min(len(lines) - 1, -(-9 * len(lines) // 10)) or len(lines)
            most[kind] = tuple(lines[i] for i in order[:cut])
            rest[kind] = tuple(lines[i] for i in order[cut:]) or most[kind]
        return Wording(most), Wording(rest)


def _phrases(source: Path | Traversable) -> dict[str, tuple[str, ...]]:
    """The lines below each [kind]; "-" is nothing said."""
    found: dict[str, list[str]] = {}
    kind = ""
    for line in source.read_text("utf-8").splitlines():
        if line.startswith("["):
            kind = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            found.setdefault(kind, []).append("" if line == "-" else line)
    return {kind: tuple(lines) for kind, lines in found.items()}


@dataclass(frozen=True)
class Writer:
    """Writes requests.

    near  : (items, dim) vectors whose product says how like items are; first those of their texts, then of who meets
            them
    plain : how often the first phrasing of a kind is taken, beside its turn among the others
    """

    facets: Facets
    wording: Wording
    near: Floats
    plain: float = 0.0

    def write(self, items: Codes, seed: int) -> list[Request]:
        """One request for each of `items`, which may repeat; the same for the same arguments."""
        draw = random.Random(seed)
        rng = np.random.default_rng(seed)
        refused = self._refused(len(items), rng)
        like = self.alike(items, rng)
        return [self._one(int(item), no, other, draw) for item, no, other in zip(items, refused, like, strict=True)]

    def _refused(self, n: int, rng: np.random.Generator) -> Codes:
        """(requests, `MOST_REFUSED`) facets to refuse, drawn by the root of how many items have them: the rare need no
        refusal."""
        weights = np.sqrt(self.facets.carried.sum(axis=0)) * ~self.facets.eras
        if not weights.sum():
            return np.full((n, MOST_REFUSED), -1, dtype=np.int32)
        return rng.choice(len(weights), (n, MOST_REFUSED), p=weights / weights.sum()).astype(np.int32)

    def alike(self, items: Codes, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        """(items, NEAREST) others that are near each; fewer columns where there are fewer."""
        some = rng.choice(len(self.near), min(AMONG, len(self.near)), replace=False)
        distinct, place = np.unique(items, return_inverse=True)
        found = np.zeros((len(distinct), min(NEAREST, len(some))), dtype=np.intp)
        for start in range(0, len(distinct), 4096):
            block = distinct[start : start + 4096]
            closeness = self.near[block] @ self.near[some].T
            closeness[block[:, None] == some[None]] = -np.inf
            found[start : start + 4096] = some[np.argsort(-closeness, axis=1, kind="stable")[:, : found.shape[1]]]
        return found[place]

    def _one(self, item: int, refused: Codes, others: npt.NDArray[np.intp], draw: random.Random) -> Request:
        facets, say = self.facets, self._say
        own = np.flatnonzero(facets.carried[item])
        values, eras = [int(f) for f in own if not facets.eras[f]], [int(f) for f in own if facets.eras[f]]
        other_eras = [int(f) for f in np.flatnonzero(facets.eras & ~facets.carried[item])] if eras else []
        lacked = list(dict.fromkeys(int(f) for f in refused if f >= 0 and not facets.carried[item, f]))
        others = others[others != item]
        able = {"want": bool(values), "two": len(values) > 1, "era": bool(eras), "like": len(others) > 0}
        able |= {"no": bool(lacked), "none": len(lacked) > 1}
        able["than"] = able["like"]
        able["past"] = bool(other_eras) and "no era" in self.wording.phrases
        kind = draw.choice([k for k in (*KINDS, *PAST) if all(able[part] for part in k.split())] or [""])
        parts = kind.split()
        request = Request("", kind=kind)
        head, opened = "", True
        if "want" in parts or "two" in parts:
            chosen = draw.sample(values, 2 if "two" in parts else 1)
            request = replace(request, wants=tuple(chosen))
            said = [draw.choice(facets.spoken[f]) for f in chosen]
            head = say("two" if "two" in parts else "want", draw, want=said[0], also=said[-1])
        if "era" in parts:
            era = draw.choice(eras)
            request = replace(request, wants=(*request.wants, era))
            head = f"{head} {say('era', draw, era=draw.choice(facets.spoken[era]))}".strip()
        if "like" in parts:
            request, head = self._liken(request, item, [int(o) for o in others], draw)
        if "no" in parts or "none" in parts:
            many = "none" in parts and len(lacked) > 2 and draw.random() < MORE
            request = replace(request, refuses=tuple(lacked if many else lacked[: 2 if "none" in parts else 1]))
            said = [draw.choice(facets.spoken[f]) for f in request.refuses]
            refusal = say("none" if "none" in parts else "no", draw, no=said[0], other=said[-1])
            if many:
                refusal = self._refuse_all(said, draw)
            said_first = not head or draw.random() < FIRST
            head = f"{refusal}, {head}".strip(", ") if said_first else _behind(head, refusal, draw)
            opened = not said_first  # "looking for i hate horror" is nobody's English
        if "past" in parts:
            request = replace(request, refuses=(draw.choice(other_eras),))
            refusal = say("no era", draw, era=draw.choice(facets.spoken[request.refuses[0]]))
            head, opened = (_behind(head, refusal, draw) if head else refusal), bool(head)
        opening = say("open", draw) if opened else ""
        closing = say("close", draw)
        text = f"{opening} {head} {closing}".strip().replace(" ,", ",")
        return replace(request, text=text)

    def _liken(self, request: Request, item: int, others: list[int], draw: random.Random) -> tuple[Request, str]:
        years = self.facets.years
        dated = [o for o in others if np.isfinite(years[o] - years[item]) and years[o] != years[item]]
        than = bool(dated) and "than" in request.kind.split()
        like = draw.choice(dated if than else others)
        head = self._say("like", draw, like=self.facets.titles[like])
        request = replace(request, like=like, kind="like than" if than else "like")
        if than:
            request = replace(request, than=1 if years[item] > years[like] else -1)
            head = f"{head} {self._say('newer' if request.than > 0 else 'older', draw)}"
        return request, head

    def _refuse_all(self, said: Sequence[str], draw: random.Random) -> str:
        """Several values at once: "no a, no b, no c", or "no a, b or c"."""
        if draw.random() < 0.5:
            return self._say("no", draw, no=f"{', '.join(said[:-1])}{draw.choice([' or', ' and', ','])} {said[-1]}")
        phrase = draw.choice([one for one in self.wording.phrases["no"] if one.endswith(" {no}")] or ["no {no}"])
        each = [phrase.replace("{no}", value) for value in said]
        return f"{', '.join(each[:-1])}{draw.choice([' and', ','])} {each[-1]}"

    def _say(self, kind: str, draw: random.Random, **slots: str) -> str:
        phrases = self.wording.phrases[kind]
        phrase = phrases[0] if draw.random() < self.plain else draw.choice(phrases)
        return SLOTS.sub(lambda match: slots[match[1]], phrase)


def _behind(head: str, refusal: str, draw: random.Random) -> str:
    """What is wanted and then a refusal, with a comma or, where English allows it, also without."""
    run_on = _RUNS_ON.match(refusal) and draw.random() < RUN_ON
    return (" " if run_on else ", ").join([head, refusal])
