"""What the reader learns from: histories with a target at every place, an item named at some places that is like it.

And requests whose meaning is known. What it learns of profiles: `told`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.split import Questions
from recsys.data.vocab import Codes, Histories, Vocab
from recsys.networks.chunks import Chunks
from recsys.networks.items import centred, item_vectors
from recsys.networks.pairs import cooccurrence
from recsys.networks.training import Batch
from recsys.protocols import Ints, TextEncoder
from recsys.rerank.requests import PLAIN, Facets, Request, Wording, Writer
from recsys.rerank.worlds import said_otherwise
from recsys.tables import Catalog, InteractionLog, Queries, query_histories

if TYPE_CHECKING:
    from recsys.rerank.interpret import Words

# Size of the factors by which one item is likened to another in requests.
LIKENESS = 64
# Requests for one item at most.
PER_ITEM = 48


def writer_of(catalog: Catalog, vocab: Vocab, histories: Histories) -> Writer:
    """Who writes requests for the items of a catalog, in all phrasings that are taught. Items are likened by who meets
    them and, where the catalog has text vectors, by their texts."""
    met = cooccurrence(histories, len(vocab), LIKENESS)
    likeness = [centred(met) * met.any(axis=1, keepdims=True)]  # whom nobody met is like nobody
    if "embedding" in catalog.frame.columns:
        likeness.insert(0, centred(item_vectors(catalog, vocab)))
    facets = Facets.of(catalog, vocab, histories.items)
    facets = replace(facets, spoken=said_otherwise(facets.spoken))
    return Writer(facets, Wording.read(), np.hstack(likeness).astype(np.float32), PLAIN)


def with_requests(questions: Questions, catalog: Catalog, log: InteractionLog, seed: int) -> Questions:
    """The same questions, every other one with a request that is true of its answer: by these it is learned what an
    opinion that reads requests is worth. As they are where the catalog has no values to name. log : without answers."""
    vocab = Vocab.of_items(catalog)
    writer = writer_of(catalog, vocab, vocab.histories(query_histories(log)))
    if not len(writer.facets):
        return questions
    answers = vocab.encode(questions.truth.frame["item_id"])
    some = np.random.default_rng(seed).permutation(len(answers)) % 2 == 0
    texts = requests_for(writer, answers, np.flatnonzero(some), seed)
    return Questions(with_texts(questions.queries, texts, np.zeros(len(texts), dtype=bool)), questions.truth)


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
        return cls(requests, Words.of_requests(requests, encoder))


class Lessons:
    """One epoch's batches: `Chunks` of histories, with an item named at a share of the places."""

    def __init__(
        self,
        histories: Histories,
        near: Codes,
        *,
        length: int,
        batch: int,
        share: float,
        rng: np.random.Generator,
    ) -> None:
        """near : (items, n) others that are like each; share : of the places at which one of them is named."""
        self._chunks = Chunks(histories, length, batch, rng)
        self._near, self._share, self._rng = near, share, rng

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        for chunk in self._chunks:
            batch: dict[str, Any] = dict(chunk)
            batch |= self._likened(batch["targets"].numpy())
            yield batch

    def _likened(self, targets: npt.NDArray[np.int64]) -> Batch:
        import torch

        chosen = (targets >= 0) & (self._rng.random(targets.shape) < self._share)
        if not chosen.any() or not self._near.shape[1]:
            return {}
        which = self._rng.integers(0, self._near.shape[1], int(chosen.sum()))
        named = self._near[targets[chosen], which]
        return {"asked": torch.from_numpy(np.argwhere(chosen)), "like": torch.from_numpy(named.astype(np.int64))}
