"""What the reader learns from: histories with a target at every place, requests at some places, profiles alone.

A position that comes with a request is asked in words that are true of its answer. A profile is written from the first
part of a history, and answered by items of the rest: nothing that a text says is younger than what it predicts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.vocab import Codes, Histories, Vocab
from recsys.networks.chunks import Chunks
from recsys.networks.training import Batch
from recsys.protocols import Floats, Ints, ProfileSource, TextEncoder
from recsys.rerank.requests import Request, Writer
from recsys.tables import InteractionLog, Queries, query_histories

if TYPE_CHECKING:
    from recsys.rerank.interpret import Interpreter, Words

# Words of a request that are read together.
PIECE = 18
# Sentences of a profile that are read.
SENTENCES = 10
# Requests for one item at most.
PER_ITEM = 48
# Shares of a history after which its profile is written.
EARLIEST, LATEST = 0.2, 0.8
# Profiles in a batch at most, and answers of each.
PROFILES, ANSWERS = 32, 8
# "Matrix, The" as catalogs sort it.
_TURNED = re.compile(r"(.+), (The|A|An|Le|La|Les|Der|Die|Das|Il|El)")
_QUOTES = "\"'“”„«»"
_PIECES = re.compile(r"(?<=[.;!?])\s+|\n+")
_SENTENCE = re.compile(r"(?<=[.!?…]) +(?=[^a-z])")


def pieces_of(request: str) -> list[str]:
    """A request in pieces as long as those of training: its sentences, and long ones in turn at every `PIECE` words."""
    found = []
    for sentence in _PIECES.split(request.strip()):
        words = sentence.split()
        found += [" ".join(words[at : at + PIECE]) for at in range(0, len(words), PIECE)]
    return found or [""]


def sentences_of(text: str) -> list[str]:
    """The first sentences of a profile."""
    return [s for s in _SENTENCE.split(text.strip()) if s][:SENTENCES]


@dataclass(frozen=True)
class Sentences:
    """Sentences of some texts, encoded once each.

    vectors : (sentences, dim); places : (texts, SENTENCES) rows of `vectors`, -1 where there is no sentence
    """

    vectors: Floats
    places: Ints

    @classmethod
    def of(cls, texts: Sequence[str], encoder: TextEncoder) -> "Sentences":
        """Encode texts."""
        split = [sentences_of(text) for text in texts]
        known = {sentence: i for i, sentence in enumerate(sorted({s for text in split for s in text}))}
        places = np.full((len(texts), SENTENCES), -1, dtype=np.int64)
        for row, text in enumerate(split):
            places[row, : len(text)] = [known[s] for s in text]
        return cls(encoder.embed(list(known)), places)

    def take(self, rows: npt.NDArray[np.integer]) -> Batch:
        """ "sentences" (n, s, dim) and "sentences_mask" (n, s) of some texts."""
        import torch

        places = self.places[rows]
        places = places[:, : max(1, int((places >= 0).sum(axis=1).max(initial=1)))]
        vectors = self.vectors[np.maximum(places, 0)] if len(self.vectors) else np.zeros((*places.shape, 1), "float32")
        return {"sentences": torch.from_numpy(vectors), "sentences_mask": torch.from_numpy(places >= 0)}


@dataclass(frozen=True)
class Mentions:
    """Finds the catalog's titles in a text. codes : item code by title, without the year; titles : by code."""

    codes: dict[str, int]
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
        return cls(codes, tuple(titles), max((title.count(" ") + 1 for title in codes), default=0))

    def find(self, text: str) -> int:
        """The code of the longest title in the text, -1 where there is none; written as the catalog writes it. A single
        word that begins a sentence has its capital from there, and counts only in quotes."""
        words = text.split()
        for size in range(min(self.longest, len(words)), 0, -1):
            for start in range(len(words) - size + 1):
                phrase = " ".join(words[start : start + size])
                bare = phrase.strip(_QUOTES)
                first = start == 0 or words[start - 1].endswith((".", "!", "?", ";", ":"))
                if size == 1 and first and bare == phrase.rstrip(_QUOTES):
                    continue
                for said in (bare, bare.rstrip(",.;!?").rstrip(_QUOTES)):
                    if said in self.codes:
                        return self.codes[said]
        return -1


@dataclass(frozen=True)
class Asked:
    """Requests as the reader takes them.

    vectors : (requests, dim); like : (requests,) codes of the items that they name, -1 for none
    meanings : as of `Interpreter.meanings`, with "like_years"
    """

    vectors: Floats
    like: Ints
    meanings: Batch

    @classmethod
    def of(cls, texts: Sequence[str], words: "Words", ear: "Ear") -> "Asked":
        """Interpret requests whose tokens are encoded."""
        return cls._of(texts, words.means(), ear.interpreter.meanings(words, ear.vectors), ear)

    @classmethod
    def heard(cls, texts: Sequence[str], encoder: TextEncoder, ear: "Ear") -> "Asked":
        """Interpret what people wrote, piece by piece: a value is wanted or refused where one of the pieces says so.
        A title is sought in the whole, since it may hold a full stop."""
        import torch

        from recsys.rerank.interpret import Words

        split = [pieces_of(text) for text in texts]
        words = Words.of([piece for text in split for piece in text], encoder)
        starts = np.cumsum([0, *map(len, split)])[:-1]
        vectors = np.add.reduceat(words.means(), starts)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        each = ear.interpreter.meanings(words, ear.vectors)
        most = {name: torch.from_numpy(np.maximum.reduceat(value.numpy(), starts)) for name, value in each.items()}
        return cls._of(texts, vectors, most, ear)

    @classmethod
    def _of(cls, texts: Sequence[str], vectors: Floats, meanings: Batch, ear: "Ear") -> "Asked":
        import torch

        like = np.array([ear.mentions.find(text) for text in texts], dtype=np.int64)
        years = np.where(like >= 0, ear.years[like], np.nan).astype(np.float32)
        return cls(vectors, like, {**meanings, "like_years": torch.from_numpy(years)})

    def take(self, rows: npt.NDArray[np.integer]) -> Batch:
        """What the reader reads of some of them."""
        import torch

        return {
            "request": torch.from_numpy(self.vectors[rows]),
            "like": torch.from_numpy(self.like[rows]),
            **{name: value[torch.from_numpy(rows)] for name, value in self.meanings.items()},
        }


@dataclass(frozen=True)
class Ear:
    """What it takes to interpret a request.

    learned : false where nothing was learned of requests
    names   : of the values; vectors : (values, dim) their encodings
    years   : (items,) NaN where not known
    """

    learned: bool
    interpreter: "Interpreter"
    names: tuple[str, ...]
    vectors: Floats
    years: Floats
    mentions: "Mentions"


@dataclass(frozen=True)
class Library:
    """Requests by the item that they are true of: item i has those from indptr[i] to indptr[i + 1]."""

    requests: Sequence[Request]
    words: "Words"
    indptr: Ints

    @classmethod
    def write(
        cls, writer: Writer, frequency: npt.NDArray[np.integer], encoder: TextEncoder, n: int, seed: int
    ) -> "Library":
        """Write about `n` requests for the items that have events, up to `PER_ITEM` each."""
        from recsys.rerank.interpret import Words

        known = np.flatnonzero(frequency > 0)
        per_item = int(np.clip(n // max(len(known), 1), 1, PER_ITEM))
        if len(known) > n:
            weights = np.sqrt(frequency[known])
            rng = np.random.default_rng(seed)
            known = rng.choice(known, n, replace=False, p=weights / weights.sum())
        items = np.sort(np.repeat(known, per_item)).astype(np.int32)
        requests = writer.write(items, seed)
        words = Words.of([request.text for request in requests], encoder)
        return cls(requests, words, np.searchsorted(items, np.arange(len(frequency) + 1)).astype(np.int64))


@dataclass(frozen=True)
class Told:
    """Profiles and what came after them: profile p is answered by items[indptr[p]:indptr[p + 1]]."""

    sentences: Sentences
    items: Codes
    indptr: Ints

    @classmethod
    def write(
        cls, log: InteractionLog, vocab: Vocab, describe: ProfileSource, encoder: TextEncoder, n: int, seed: int
    ) -> "Told":
        """Profiles of `n` users with four events or more, each as of a moment within the history, drawn by seed."""
        rng = np.random.default_rng(seed)
        frame = query_histories(log).frame.filter(pl.col("history").list.len() >= 4)
        frame = frame.sample(min(n, len(frame)), seed=seed)
        length = frame["history"].list.len().to_numpy().astype(np.int64)
        cut = np.clip((length * rng.uniform(EARLIEST, LATEST, len(length))).astype(np.int64), 1, length - 1)
        frame = frame.with_columns(cut=pl.Series(cut, dtype=pl.Int64))
        heads = [pl.col(name).list.head(pl.col("cut")) for name in ("history", "weights", "times")]
        asked = Queries(frame.with_columns(heads).with_columns(at=pl.col("times").list.last()).drop("cut"))
        rest = [pl.col(name).list.slice(pl.col("cut")) for name in ("history", "weights", "times")]
        later = vocab.histories(Queries(frame.with_columns(rest).drop("cut")))
        return cls(Sentences.of(describe.as_of(asked).frame["text"].to_list(), encoder), later.items, later.indptr)

    def draw(self, rng: np.random.Generator, n: int) -> Batch:
        """`n` of the profiles with some of their answers."""
        import torch

        able = np.flatnonzero(np.diff(self.indptr))
        chosen = rng.choice(able, min(n, len(able)), replace=False)
        picked = [rng.integers(self.indptr[p], self.indptr[p + 1], ANSWERS) for p in chosen]
        return {
            **self.sentences.take(chosen),
            "told": torch.from_numpy(np.repeat(np.arange(len(chosen)), ANSWERS)),
            "told_targets": torch.from_numpy(self.items[np.concatenate(picked)].astype(np.int64)),
        }

    def __len__(self) -> int:
        return int((np.diff(self.indptr) > 0).sum())


class Lessons:
    """One epoch's batches: `Chunks` of histories, with a request at a share of the places, and profiles beside them."""

    def __init__(
        self,
        histories: Histories,
        asked: Asked | None,
        indptr: Ints,
        told: Told | None,
        *,
        length: int,
        batch: int,
        share: float,
        rng: np.random.Generator,
    ) -> None:
        """asked : the requests of a library; indptr : which of them each item has."""
        self._chunks = Chunks(histories, length, batch, rng)
        self._requests, self._indptr, self._told, self._share, self._rng = asked, indptr, told, share, rng

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        for chunk in self._chunks:
            batch: dict[str, Any] = dict(chunk)
            if self._requests is not None:
                batch |= self._asked(batch["targets"].numpy(), self._requests)
            if self._told is not None and len(self._told):
                # Each profile about once in an epoch, however many batches that has: else they are learned by heart.
                batch |= self._told.draw(self._rng, min(PROFILES, -(-len(self._told) // len(self))))
            yield batch

    def _asked(self, targets: npt.NDArray[np.int64], requests: Asked) -> Batch:
        import torch

        first = self._indptr[np.maximum(targets, 0)]
        number = self._indptr[np.maximum(targets, 0) + 1] - first
        chosen = (targets >= 0) & (number > 0) & (self._rng.random(targets.shape) < self._share)
        if not chosen.any():
            return {}
        rows = first[chosen] + (self._rng.random(int(chosen.sum())) * number[chosen]).astype(np.int64)
        return {"asked": torch.from_numpy(np.argwhere(chosen)), **requests.take(rows)}
