"""Profiles to learn from: what they say, the titles that they name, and what their users chose afterwards.

A profile is written from the first part of a history, and answered by the rest: nothing that it says is younger than
what it predicts. The titles that it names are read as if they were a history: what is known of items need not be
learned again from their names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.vocab import Codes, Histories, Vocab
from recsys.networks.training import Batch
from recsys.protocols import Floats, Ints, ProfileSource, TextEncoder
from recsys.rerank.mentions import Mentions
from recsys.tables import InteractionLog, Queries, query_histories

# Sentences of a profile that are read, and titles, the first ones.
SENTENCES, NAMED = 10, 12
# Shares of a history after which its profile is written.
EARLIEST, LATEST = 0.2, 0.8
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

    def without(self, unsaid: npt.NDArray[np.bool_]) -> "Told":
        """The same, but that some of the items are not named. unsaid : by place in `named`."""
        return replace(self, named=self.named.without(np.flatnonzero(unsaid)))

    def split(self) -> tuple["Told", "Told"]:
        """Those that are learned from, and those that are kept to say when to stop."""
        kept = min(round(KEPT * len(self)), MOST_KEPT)
        return self.take(np.arange(kept, len(self))), self.take(np.arange(kept))

    def __len__(self) -> int:
        return len(self.indptr) - 1
