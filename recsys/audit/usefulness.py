"""Does a profile, with no history beside it, find what its user goes on to choose?

Everybody's history is cut in the middle. A sampled user's profile is written as of the cut, by parts that were fitted
without what anybody chose afterwards, and is the query of a retrieval by text embeddings over the catalog. Texts are
compared without what all of them share, as by the source `content`. What a profile finds is compared with what other
queries find: the text that a template writes, titles, another user's profile, popularity.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.vocab import Vocab
from recsys.errors import SpecError
from recsys.metrics import Paired, mean_interval, paired
from recsys.networks.items import centred, item_vectors
from recsys.protocols import TextEncoder
from recsys.tables import Catalog, Id, InteractionLog, Queries, query_histories

DEPTH = 100
FEWEST = 4  # events that a history must have to be cut
BATCH = 256  # texts that are embedded at once
TITLES = 10  # of the last items, joined to a query

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cut:
    """Histories, cut: what was before, of everybody, and what some sampled users chose after.

    before : the first part of each history, so that no figure depends on how many are sampled; the whole of those with
        fewer than `FEWEST` events
    queries : one for each sampled user, at the cut, in order
    after  : for each query the items held out, none of them met before
    """

    before: InteractionLog
    queries: Queries
    after: Sequence[Sequence[Id]]

    @classmethod
    def of(cls, log: InteractionLog, users: int, seed: int, share: float = 0.5) -> "Cut":
        """`share` of each history is before the cut. Errors: `SpecError` where nobody has enough events."""
        sizes = log.frame.group_by("user_id").agg(n=pl.len())
        able = sizes.filter(pl.col("n") >= FEWEST).sort("user_id")
        if len(able) < 2:
            raise SpecError(f"profiles cannot be weighed: {len(able)} users have {FEWEST} events or more, 2 are needed")
        chosen = able.sample(min(users, len(able)), seed=seed, shuffle=True)["user_id"].sort()
        place, size = pl.int_range(pl.len()).over("user_id"), pl.len().over("user_id")
        late = (size >= FEWEST) & (place >= (size * share).ceil().clip(upper_bound=size - 1))
        rows = log.frame.with_columns(late=late)
        before = InteractionLog(rows.filter(~pl.col("late")).drop("late"))
        histories = query_histories(before).frame
        own = chosen.to_frame().join(histories, on="user_id", how="left", maintain_order="left")
        queries = Queries(own.select(Queries.held(own)))
        late_rows = rows.filter(pl.col("late") & pl.col("user_id").is_in(chosen.implode()))
        later = late_rows.group_by("user_id", maintain_order=True).agg(pl.col("item_id").unique())
        found = dict(later.select("user_id", "item_id").iter_rows())
        met = dict(own.select("user_id", "history").iter_rows())
        return cls(before, queries, [[i for i in found[user] if i not in set(met[user])] for user in chosen])


class Remembered:
    """Vectors of texts by an encoder, each worked out once: an audit asks for most of its texts many times."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._vectors: dict[str, Floats] = {}

    def embed(self, texts: Sequence[str]) -> Floats:
        """(texts, dim), of unit length."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        for at in range(0, len(new), BATCH):
            some = new[at : at + BATCH]
            self._vectors |= dict(zip(some, self._encoder.embed(some), strict=True))
        return np.stack([self._vectors[text] for text in texts])


@dataclass(frozen=True)
class Retrieval:
    """What is asked of a catalog by text.

    vectors : (items, dim) unit vectors of what sets the items' texts apart from their mean, in the order of `vocab`
    shared  : (dim,) that mean; titles : by item
    """

    cut: Cut
    vocab: Vocab
    vectors: Floats
    shared: Floats
    titles: Mapping[Id, str]
    encoder: Remembered

    @classmethod
    def of(cls, cut: Cut, catalog: Catalog, encoder: Remembered) -> "Retrieval":
        """Over a catalog with text vectors."""
        vocab = Vocab.of_items(catalog)
        titles = dict(catalog.frame.select("item_id", "title").iter_rows())
        vectors = item_vectors(catalog, vocab)
        return cls(cut, vocab, centred(vectors), vectors.mean(axis=0), titles, encoder)

    def by_text(self, texts: Sequence[str]) -> Floats:
        """(queries, items) likeness of the texts."""
        return np.asarray((self.encoder.embed(texts) - self.shared) @ self.vectors.T, dtype=np.float32)

    def by_history(self) -> Floats:
        """(queries, items) likeness of the mean of the histories' item vectors."""
        means = np.stack([self._mean(history) for history in self.cut.queries.frame["history"]])
        return np.asarray(means @ self.vectors.T, dtype=np.float32)

    def by_popularity(self) -> Floats:
        """(queries, items) events before the cut."""
        codes = self.vocab.encode(self.cut.before.frame["item_id"])
        counts = np.bincount(codes[codes >= 0], minlength=len(self.vocab)).astype(np.float32)
        return np.broadcast_to(counts, (len(self.cut.queries), len(self.vocab)))

    def recall(self, scores: Floats) -> npt.NDArray[np.float64]:
        """(queries,) the share of what was held out that is among the first `DEPTH` items, those met before left out.

        Ties keep the catalog's order. NaN where nothing that the catalog holds was held out.
        """
        found = np.full(len(scores), np.nan)
        for row, (met, after) in enumerate(zip(self.cut.queries.frame["history"], self.cut.after, strict=True)):
            wanted = self._codes(after)
            if not len(wanted):
                continue
            own = np.array(scores[row], dtype=np.float32)
            own[self._codes(met)] = -np.inf
            best = np.argsort(-own, kind="stable")[:DEPTH]
            found[row] = np.isin(wanted, best).mean()
        return found

    def _codes(self, items: Any) -> npt.NDArray[np.int64]:
        codes = self.vocab.encode(pl.Series(items)) if len(items) else np.zeros(0, dtype=np.int64)
        return np.asarray(codes[codes >= 0], dtype=np.int64)

    def _mean(self, history: Any) -> Floats:
        codes = self._codes(history)
        return self.vectors[codes].mean(axis=0) if len(codes) else np.zeros(self.vectors.shape[1], dtype=np.float32)


@dataclass(frozen=True)
class Usefulness:
    """Recall@100 by kind of query, over the same users and in a catalog of so many items.

    recall  : the mean and its 95% interval; over : the profile's minus each other kind's, paired by user
    """

    users: int
    items: int
    recall: Mapping[str, tuple[float, tuple[float, float]]]
    over: Mapping[str, Paired]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kinds = {name: {"recall@100": mean, "ci95": list(ci)} for name, (mean, ci) in self.recall.items()}
        return {
            "users": self.users,
            "items": self.items,
            **kinds,
            "profile_minus": {name: pair.row() for name, pair in self.over.items()},
        }


def usefulness(retrieval: Retrieval, profiles: Sequence[str], template: Sequence[str], *, seed: int) -> Usefulness:
    """Compare what queries find: "profile", "template" (the same where no model wrote), "titles" of the last items,
    "stranger" (another user's profile), "history" (mean of the items' vectors) and "popular".

    profiles, template : a text for each of the cut's queries
    Errors: `SpecError` where nothing that was held out is in the catalog.
    """
    other = strangers(len(profiles), seed)
    titles = _titles(retrieval)
    scores = {
        "profile": retrieval.by_text(profiles),
        "template": retrieval.by_text(template),
        "titles": retrieval.by_text(titles),
        "stranger": retrieval.by_text([profiles[row] for row in other]),
        "history": retrieval.by_history(),
        "popular": retrieval.by_popularity(),
    }
    found = {name: retrieval.recall(own) for name, own in scores.items()}
    sound = np.isfinite(found["profile"])
    if not sound.any():
        raise SpecError("profiles cannot be weighed: nothing that users went on to choose is in the catalog")
    found = {name: values[sound] for name, values in found.items()}
    recall = {name: (float(values.mean()), mean_interval(values, seed=seed)) for name, values in found.items()}
    over = {name: paired(found["profile"], found[name], seed=seed) for name in found if name != "profile"}
    items = len(retrieval.vocab)
    if items <= DEPTH:
        log.warning("the catalog has %d items: any query finds all among its first %d", items, DEPTH)
    return Usefulness(int(sound.sum()), items, recall, over)


def strangers(n: int, seed: int) -> list[int]:
    """For each of n rows another one, each once: a cycle through all of them in a random order."""
    order = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return [int(row) for row in other]


def _titles(retrieval: Retrieval) -> list[str]:
    titles = retrieval.titles
    histories = retrieval.cut.queries.frame["history"]
    return ["; ".join(titles[item] for item in history[-TITLES:] if item in titles) for history in histories]
