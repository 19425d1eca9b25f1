"""What the reader learns from: histories with a target at every place, an item named at some places, profiles alone.

The item that is named is like the answer. A profile is written from the first part of a history, and answered by items
of the rest: nothing that a text says is younger than what it predicts. The titles that a profile names are read as if
they were a history: what is known of items need not be learned again from their names.
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
from recsys.networks.items import centred, item_vectors
from recsys.networks.pairs import cooccurrence
from recsys.networks.training import Batch
from recsys.protocols import Floats, Ints, ProfileSource, TextEncoder
from recsys.rerank.hearing import Mentions
from recsys.rerank.requests import PLAIN, Facets, Request, Wording, Writer
from recsys.tables import Catalog, InteractionLog, Queries, query_histories

if TYPE_CHECKING:
    from recsys.rerank.interpret import Words

# Sentences of a profile that are read.
SENTENCES = 10
# Size of the factors by which one item is likened to another in requests.
LIKENESS = 64
# Requests for one item at most.
PER_ITEM = 48
# Shares of a history after which its profile is written.
EARLIEST, LATEST = 0.2, 0.8
# Profiles in a batch at most, and answers of each.
PROFILES, ANSWERS = 32, 8
# Share of a profile's sentences, and of the titles it names, that are left out, drawn anew each time: else profiles are
# learned by heart.
UNSAID = 0.3
# Titles in a profile that are read, the first ones.
NAMED = 12
# Share of the profiles that are not learned from, and say when to stop; so many at most.
KEPT, MOST_KEPT = 0.1, 500
_SENTENCE = re.compile(r"(?<=[.!?…]) +(?=[^a-z])")


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


def named_in(texts: Sequence[str], mentions: Mentions) -> Histories:
    """The items whose titles each text names, in its order, as if they were its history."""
    found = [mentions.all(text, NAMED) if text else [] for text in texts]
    indptr = np.cumsum([0, *map(len, found)], dtype=np.int64)
    items = np.array([code for codes in found for code in codes], dtype=np.int32)
    return Histories(indptr, items, np.ones(len(items), dtype=np.float32), np.zeros(len(items), dtype=np.int64))


def padded(histories: Histories) -> Batch:
    """ "named" (n, longest) codes, zero behind the last, and "named_sizes" (n,)."""
    import torch

    sizes = np.diff(histories.indptr)
    items = np.zeros((len(sizes), int(sizes.max(initial=0))), dtype=np.int64)
    items[np.arange(items.shape[1]) < sizes[:, None]] = histories.items
    return {"named": torch.from_numpy(items), "named_sizes": torch.from_numpy(sizes)}


def writer_of(catalog: Catalog, vocab: Vocab, histories: Histories) -> Writer:
    """Who writes requests for the items of a catalog, in all phrasings that are taught."""
    likeness = (item_vectors(catalog, vocab), cooccurrence(histories, len(vocab), LIKENESS))
    facets = Facets.of(catalog, vocab, histories.items)
    return Writer(facets, Wording.read(), np.hstack([centred(vectors) for vectors in likeness]), PLAIN)


def requests_for(writer: Writer, wish: Codes, asking: Ints, seed: int) -> list[str]:
    """For each of `wish` (n,), item codes, a request where `asking` holds its row and there is an item; else ""."""
    asking = asking[wish[asking] >= 0]
    texts = [""] * len(wish)
    for row, request in zip(asking, writer.write(wish[asking], seed) if len(asking) else [], strict=True):
        texts[row] = request.text
    return texts


def with_texts(queries: Queries, requests: list[str], withheld: npt.NDArray[np.bool_]) -> Queries:
    """The same queries with these requests, some of them with no history to read."""
    hidden = pl.Series(withheld)
    return Queries(
        queries.frame.with_columns(
            pl.Series("request", requests, dtype=pl.String),
            *(
                pl.when(hidden).then(pl.col(name).list.head(0)).otherwise(pl.col(name)).alias(name)
                for name in ("history", "weights", "times")
            ),
        )
    )


@dataclass(frozen=True)
class Library:
    """Requests whose meaning is known, and their tokens."""

    requests: Sequence[Request]
    words: "Words"

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
        return cls(requests, Words.of([request.text for request in requests], encoder))


@dataclass(frozen=True)
class Told:
    """Profiles, the items that they name, and what came after them: profile p is answered by
    items[indptr[p]:indptr[p + 1]]."""

    sentences: Sentences
    named: Histories
    items: Codes
    indptr: Ints

    @classmethod
    def write(
        cls,
        log: InteractionLog,
        vocab: Vocab,
        describe: ProfileSource,
        encoder: TextEncoder,
        mentions: Mentions,
        n: int,
        seed: int,
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
        texts = describe.as_of(asked).frame["text"].to_list()
        told = cls(Sentences.of(texts, encoder), named_in(texts, mentions), later.items, later.indptr)
        return told.take(np.flatnonzero(np.diff(told.indptr)))

    def take(self, rows: npt.NDArray[np.integer]) -> "Told":
        """Some of the profiles."""
        sizes = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        place = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], sizes)
        sentences = Sentences(self.sentences.vectors, self.sentences.places[rows])
        return Told(sentences, self.named.take(rows), self.items[place], indptr)

    def split(self) -> tuple["Told", "Told"]:
        """Those that are learned from, and those that are kept to say when to stop."""
        kept = min(round(KEPT * len(self)), MOST_KEPT)
        return self.take(np.arange(kept, len(self))), self.take(np.arange(kept))

    def draw(self, rng: np.random.Generator, n: int) -> Batch:
        """`n` of the profiles, with some of their sentences, of the items that they name, and of their answers."""
        import torch

        chosen = rng.choice(len(self), min(n, len(self)), replace=False)
        picked = [rng.integers(self.indptr[p], self.indptr[p + 1], ANSWERS) for p in chosen]
        sentences = self.sentences.take(chosen)
        said = sentences["sentences_mask"]
        kept = said & torch.from_numpy(rng.random(said.shape) >= UNSAID)
        named = self.named.take(chosen)
        return {
            **sentences,
            **padded(named.without(np.flatnonzero(rng.random(len(named.items)) < UNSAID))),
            "sentences_mask": torch.where(kept.any(dim=1, keepdim=True), kept, said),
            "told": torch.from_numpy(np.repeat(np.arange(len(chosen)), ANSWERS)),
            "told_targets": torch.from_numpy(self.items[np.concatenate(picked)].astype(np.int64)),
        }

    def __len__(self) -> int:
        return len(self.indptr) - 1


class Lessons:
    """One epoch's batches: `Chunks` of histories, with an item named at a share of the places, and profiles beside."""

    def __init__(
        self,
        histories: Histories,
        near: Codes,
        told: Told | None,
        *,
        length: int,
        batch: int,
        share: float,
        rng: np.random.Generator,
    ) -> None:
        """near : (items, n) others that are like each; share : of the places at which one of them is named."""
        self._chunks = Chunks(histories, length, batch, rng)
        self._near, self._told, self._share, self._rng = near, told, share, rng

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        for chunk in self._chunks:
            batch: dict[str, Any] = dict(chunk)
            batch |= self._likened(batch["targets"].numpy())
            if self._told is not None and len(self._told):
                # Each profile about once in an epoch, however many batches that has: else they are learned by heart.
                batch |= self._told.draw(self._rng, min(PROFILES, -(-len(self._told) // len(self))))
            yield batch

    def _likened(self, targets: npt.NDArray[np.int64]) -> Batch:
        import torch

        chosen = (targets >= 0) & (self._rng.random(targets.shape) < self._share)
        if not chosen.any() or not self._near.shape[1]:
            return {}
        which = self._rng.integers(0, self._near.shape[1], int(chosen.sum()))
        named = self._near[targets[chosen], which]
        return {"asked": torch.from_numpy(np.argwhere(chosen)), "like": torch.from_numpy(named.astype(np.int64))}
