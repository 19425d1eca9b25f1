"""What requests in words mean for the items of a catalog; any judge can be held to it.

Bounds on years are read by rule (`years`). The rest of a request is put plainly and cut into pieces (`clauses`), whose
tokens say which values it wants and refuses (`interpret`); a title that it names is found as it is written, and what is
like its item comes first (`likeness`); of a request that names nothing, the likeness of its words to items' texts is
read.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import BundleError, ModelError, RecsysError, SpecError
from recsys.lm.weights import same_weights
from recsys.networks.training import Batch
from recsys.protocols import Floats, Ints, TextEncoder
from recsys.rerank.clauses import pieces_of, put_plainly
from recsys.rerank.likeness import Likeness
from recsys.rerank.mentions import MASK, Mentions
from recsys.rerank.years import Years, years_in
from recsys.tables import Queries

if TYPE_CHECKING:
    from recsys.rerank.interpret import Interpreter, Words

EncoderSource = Callable[[], TextEncoder]
# From here on a meaning is told to who asked.
SURE = 0.5
# What is read where nothing else is left of a request.
_NOTHING = "anything"
_FACTS, _ITEMS, _ARRAYS = "ear.json", "items.parquet", "ear.safetensors"


def no_encoder() -> TextEncoder:
    """For where there is none. Errors: `SpecError`."""
    raise SpecError("no text encoder is given")


@dataclass(frozen=True)
class Asked:
    """What some requests mean.

    like     : (requests,) codes of the items that they name, -1 for none
    meanings : as of `Interpreter.meanings`, with "like_years"; "unlike" (requests,) codes of items that are named to be
               refused, -1 for none; "itself" (requests,) whether an item that is named is wanted itself; "first_year"
               and "last_year" (requests,), infinite where open; and "alike" (requests, dim), to be multiplied with the
               texts of items: the shorter, the more is understood otherwise
    """

    like: Ints
    meanings: Batch

    def __len__(self) -> int:
        return len(self.like)

    def take(self, rows: npt.NDArray[np.integer]) -> "Asked":
        """Some of them."""
        import torch

        chosen = torch.from_numpy(rows)
        return Asked(self.like[rows], {name: value[chosen] for name, value in self.meanings.items()})


@dataclass(frozen=True)
class Ear:
    """What it takes to interpret a request, and to say how well an item fits.

    learned : false where nothing was learned of requests: they are not read
    names   : of the values; vectors : (values, dim) their encodings
    eras    : (values,) whether it is a decade
    carried : (items, values) 0 or 1; years : (items,) NaN where not known
    likeness: of items to each other, and to the words of requests that name nothing
    """

    learned: bool
    interpreter: "Interpreter"
    names: tuple[str, ...]
    vectors: Floats
    eras: npt.NDArray[np.bool_]
    carried: Floats
    years: Floats
    mentions: Mentions
    likeness: Likeness

    def hear(self, requests: Sequence[str], encoder: TextEncoder) -> Asked:
        """Interpret what people wrote, piece by piece: a value is wanted or refused where one of the pieces says so.
        A title is sought in the whole, since it may hold a full stop; who asks with nothing but a value's name wants
        it."""
        import torch

        rests, spans = zip(*map(self._years, requests), strict=True)
        split, words = _read_whole([put_plainly(rest, self.names) or _NOTHING for rest in rests], encoder)
        starts = np.cumsum([0, *map(len, split)])[:-1]
        pieces = np.array([[len(pieces)] for pieces in split], dtype=np.float32)
        vectors = np.asarray(np.add.reduceat(words.means(), starts) / pieces, dtype=np.float32)
        each = self.interpreter.meanings(words, self.vectors)
        most = {name: torch.from_numpy(np.maximum.reduceat(value.numpy(), starts)) for name, value in each.items()}
        alone = {_bare(name): place for place, name in enumerate(self.names)}
        for row, rest in enumerate(rests):
            if (place := alone.get(_bare(rest))) is not None:
                most["wants"][row, place], most["refuses"][row] = 1.0, 0.0
        return self._asked(requests, vectors, most, spans)

    def _years(self, request: str) -> tuple[str, Years]:
        """The request without bounds on years, and these; none where no item is within. Titles hold no bounds."""
        masked, titles = self.mentions.masked(request)
        rest, found = years_in(masked)
        first, last = (-np.inf, np.inf) if found is None else (found.first or -np.inf, found.last or np.inf)
        if found is None or not ((self.years >= first) & (self.years <= last)).any():
            return request, Years()
        for title in titles:
            rest = rest.replace(MASK, title, 1)
        return rest, found

    def _asked(self, requests: Sequence[str], vectors: Floats, meanings: Batch, spans: Sequence[Years]) -> Asked:
        import torch

        like = np.array([self.mentions.find(text) for text in requests], dtype=np.int64)
        unlike = np.array([self.mentions.find(text, turned_down=True) for text in requests], dtype=np.int64)
        years = np.where(like >= 0, self.years[like], np.nan).astype(np.float32)
        spoken = meanings["wants"] + meanings["refuses"]
        sure = spoken.amax(1).numpy() if spoken.shape[1] else np.zeros(len(like))
        vague = np.where((like >= 0) | (unlike >= 0), 0.0, 1.0 - sure)[:, None].astype(np.float32)
        alike = torch.from_numpy(vague * self.likeness.towards(vectors))
        named = {"like_years": torch.from_numpy(years), "unlike": torch.from_numpy(unlike)}
        bounds = {
            "first_year": torch.tensor([span.first or -np.inf for span in spans], dtype=torch.float32),
            "last_year": torch.tensor([span.last or np.inf for span in spans], dtype=torch.float32),
            "itself": torch.tensor([self.mentions.itself(text) for text in requests], dtype=torch.bool),
        }
        return Asked(like, {**meanings, **named, **bounds, "alike": alike})

    def fits(self, asked: Asked, codes: npt.NDArray[np.integer] | None = None) -> Floats:
        """(requests, items) by how much the log probability of items, all or those of `codes`, rises by what is asked;
        up to a constant of the request."""
        import torch

        from recsys.rerank.interpret import STRICT, log_fits

        some: Any = np.arange(len(self.years)) if codes is None else codes
        carried, years, eras = (torch.from_numpy(x) for x in (self.carried[some], self.years[some], self.eras))
        alike = self.likeness.of_words(asked.meanings["alike"].numpy(), some)
        first, last = (asked.meanings[name].numpy()[:, None] for name in ("first_year", "last_year"))
        outside = (np.isfinite(first) | np.isfinite(last)) & ~((self.years[some] >= first) & (self.years[some] <= last))
        # Who wants something like an item does not want that item.
        liked = np.where(asked.meanings["itself"].numpy(), -1, asked.like)
        gone = outside | (asked.meanings["unlike"].numpy()[:, None] == some) | (liked[:, None] == some)
        found = log_fits(asked.meanings, carried, years, eras).numpy() + alike + np.log(STRICT) * gone
        return np.asarray(found + self.likeness.to_named(asked.like, some), dtype=np.float32)

    def told(self, asked: Asked) -> list[dict[str, Any]]:
        """What requests are taken to mean, to be shown to who asked: the values that each "wants" and "refuses" (a list
        of names; refused items by their title), "like" (a title or None), "than" ("newer", "older" or None),
        "first_year" and "last_year" (None where open)."""
        found = []
        for row, code in enumerate(asked.like):
            said = {
                name: [value for value, p in zip(self.names, asked.meanings[name][row], strict=True) if p > SURE]
                for name in ("wants", "refuses")
            }
            like = self.mentions.titles[code] if code >= 0 else None
            if (refused := int(asked.meanings["unlike"][row])) >= 0:
                said["refuses"].append(self.mentions.titles[refused])
            than = next((name for name in ("newer", "older") if like and asked.meanings[name][row] > SURE), None)
            bounds = {name: float(asked.meanings[name][row]) for name in ("first_year", "last_year")}
            years = {name: int(year) if np.isfinite(year) else None for name, year in bounds.items()}
            found.append({**said, "like": like, "than": than, **years})
        return found

    def save(self, folder: Path) -> None:
        """Write JSON, Parquet and safetensors into the new `folder`."""
        from safetensors.numpy import save_file

        folder.mkdir()
        learned = {f"interpreter.{k}": v.detach().numpy() for k, v in self.interpreter.state_dict().items()}
        arrays = {
            **learned,
            "names": self.vectors,
            "carried": self.carried.astype(np.uint8),
            "texts": self.likeness.texts.astype(np.float16),
            "met": self.likeness.met.astype(np.float16),
            "centre": self.likeness.centre,
        }
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / _ARRAYS)
        eras = [name for name, era in zip(self.names, self.eras, strict=True) if era]
        facts = {"learned": self.learned, "values": self.names, "eras": eras, "likeness": self.likeness.keen}
        facts["idle"] = self.likeness.idle
        (folder / _FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
        titles = pl.Series("title", self.mentions.titles, dtype=pl.String)
        pl.DataFrame({"title": titles, "year": self.years}).write_parquet(folder / _ITEMS)

    @classmethod
    def load(cls, folder: Path) -> "Ear":
        """Read the folder, within `judge.readable`. Errors: `BundleError` where it is of another version."""
        import torch
        from safetensors.numpy import load_file

        from recsys.rerank.interpret import Interpreter

        facts = json.loads((folder / _FACTS).read_text("utf-8"))
        items = pl.read_parquet(folder / _ITEMS)
        arrays = load_file(folder / _ARRAYS)
        interpreter = Interpreter(arrays["names"].shape[1])
        prefix = "interpreter."
        state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
        try:
            interpreter.load_state_dict(state)
            met, eras = arrays["met"].astype(np.float32), np.isin(facts["values"], facts["eras"])
        except (RuntimeError, KeyError) as error:
            raise BundleError(f"{folder}: what it knows of requests is of another version: refit") from error
        return cls(
            bool(facts["learned"]),
            interpreter.eval(),
            tuple(map(str, facts["values"])),
            arrays["names"],
            eras,
            arrays["carried"].astype(np.float32),
            items["year"].to_numpy().astype(np.float32),
            Mentions.of(items["title"].to_list()),
            Likeness(
                arrays["texts"].astype(np.float32),
                met,
                arrays["centre"],
                float(facts["likeness"]),
                float(facts["idle"]),
            ),
        )


def _read_whole(requests: Sequence[str], encoder: TextEncoder) -> tuple[list[list[str]], "Words"]:
    """The pieces of each request, and their tokens. A piece of rare words may have more tokens than are read: it is
    halved, so that no end of a request is lost, where a refusal often stands."""
    from recsys.rerank.interpret import LONGEST, Words

    split = [pieces_of(text) for text in requests]
    while True:
        words = Words.of([piece for text in split for piece in text], encoder)
        full = iter(np.diff(words.indptr) >= LONGEST)
        shorter = [[half for piece in text for half in (_halves(piece) if next(full) else (piece,))] for text in split]
        if shorter == split:
            return split, words
        split = shorter


def _bare(text: str) -> str:
    return " ".join(text.strip(" .,;!?").casefold().replace("-", " ").split())


def _halves(piece: str) -> tuple[str, ...]:
    words = piece.split()
    middle = len(words) // 2
    return (" ".join(words[:middle]), " ".join(words[middle:])) if middle else (piece,)


def summoned(encoder: EncoderSource, encoder_id: str) -> TextEncoder:
    """The text encoder of that id. Errors: `ModelError` where it is not to be had, or is another one."""
    try:
        found = encoder()
    except RecsysError as error:
        raise ModelError(f"{encoder_id}: texts cannot be read: {error}") from error
    if not same_weights(encoder_id, found.model_id):
        raise ModelError(
            f"{encoder_id}: texts cannot be read: '{found.model_id}' is there in its place: put it back, or refit"
        )
    return found


def listen(ear: Ear, queries: Queries, encoder: EncoderSource, encoder_id: str) -> tuple[Ints, Asked]:
    """The rows of the queries that ask for something in words, and what; none where requests were not learned.

    Errors: `ModelError` where there are some and the text encoder is not to be had.
    """
    requests = queries.frame["request"].str.strip_chars()
    rows = np.flatnonzero((requests != "").to_numpy()) if ear.learned else np.zeros(0, dtype=np.int64)
    if not len(rows):
        return rows, Asked(np.zeros(0, dtype=np.int64), {})
    return rows, ear.hear(requests.gather(rows).to_list(), summoned(encoder, encoder_id))
