"""Content: items whose text is near the recency-weighted mean text of the history; works for items without events."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.candidates.base import (
    Config,
    Floats,
    Ints,
    Source,
    Variants,
    candidate_frame,
    decayed,
    place_in_group,
    product,
)
from recsys.candidates.index import VectorIndex
from recsys.data.vocab import Histories, Vocab
from recsys.errors import SpecError
from recsys.tables import Catalog, InteractionLog, Queries

# 80 MB of vectors on each side while pairs are scored.
PAIRS = 50_000
# Cosines nearer to each other than this may be equal ones, added up in another order.
SAME = 1e-5


class ContentConfig(Config):
    """decay, length: how a query's history fades. The catalog must carry the column `embedding`."""

    kind: Literal["content"] = "content"
    decay: float = Field(default=1.0, ge=0)
    length: int = Field(default=10, ge=1)
    exclude_seen: bool = True

    @property
    def reads_text(self) -> bool:
        return True

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, fitted: short memories and long ones."""
        tries = [
            self.model_copy(update={"decay": decay, "length": length})
            for decay, length in ((1.0, 10), (0.5, 50), (0.0, 200))
        ]
        return [(config, config.fit(log, catalog, seed=seed)) for config in tries]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Content":
        vocab = Vocab.of_items(catalog)
        return Content(vocab, self.exclude_seen, item_vectors(catalog, vocab), self.decay, self.length)


def item_vectors(catalog: Catalog, vocab: Vocab) -> Floats:
    """(items, dim) text vectors in the vocabulary's order. Errors: `SpecError` when the catalog has none."""
    if "embedding" not in catalog.frame.columns:
        raise SpecError("the catalog has no text vectors: name an encoder in the spec, under [encoder]")
    frame = pl.DataFrame({"item_id": vocab.ids}).join(
        catalog.frame.select("item_id", "embedding"), on="item_id", how="left", maintain_order="left"
    )
    return np.ascontiguousarray(frame["embedding"].to_numpy(), dtype=np.float32)


class Content(Source):
    """scores = cosine of the item's vector and the user's; 0 for an empty history."""

    kind: ClassVar[str] = "content"

    def __init__(self, vocab: Vocab, exclude_seen: bool, vectors: Floats, decay: float, length: int) -> None:
        super().__init__(vocab, exclude_seen)
        self.vectors, self.decay, self.length = vectors, decay, length
        self.index = VectorIndex.build(vectors)

    def users(self, histories: Histories) -> Floats:
        """(queries, dim) unit vectors; zero for an empty history."""
        weights = decayed(histories, len(self.vocab), decay=self.decay, length=self.length)
        users = np.asarray(weights @ self.vectors, dtype=np.float32)
        norms = np.linalg.norm(users, axis=1, keepdims=True)
        return np.asarray(users / np.where(norms > 0, norms, 1), dtype=np.float32)

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return product(self.users(histories), self.vectors)

    def _generate(self, queries: Queries, n: int) -> pl.DataFrame:
        """Through the index: enough neighbours that `n` are left when the seen ones have gone."""
        histories = self.vocab.histories(queries)
        users = self.users(histories)
        filled = np.flatnonzero(np.diff(histories.indptr))
        longest = int(np.diff(histories.indptr).max(initial=0))
        codes = self._nearest(users[filled], n + (longest if self.exclude_seen else 0))
        rows, flat = np.repeat(filled, codes.shape[1]), codes.ravel()
        if self.exclude_seen:
            pair = rows * len(self.vocab) + flat
            met = np.isin(pair, histories.rows().astype(np.int64) * len(self.vocab) + histories.items)
            rows, flat = rows[~met], flat[~met]
        # FAISS adds up in another order for a batch than for a single query: the pairs are scored again, one by one.
        values = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), PAIRS):
            part = slice(start, start + PAIRS)
            values[part] = np.einsum("pd,pd->p", users[rows[part]], self.vectors[flat[part]])
        order = np.lexsort((flat, -values, rows))
        rows, flat, values = rows[order], flat[order], values[order]
        keep = place_in_group(rows) < n
        frame = candidate_frame(queries, self.vocab, rows[keep], flat[keep], values[keep])
        return frame.with_columns(source=pl.lit(self.name))

    def _nearest(self, users: Floats, n: int) -> npt.NDArray[np.int64]:
        """Codes of at least the `n` nearest items; of equals at the end of the list, none is left out by chance."""
        wanted = n + 1
        while True:
            found, codes = self.index.search(users, wanted)
            complete = (found > found[:, -1:] + SAME).sum(axis=1)
            if wanted >= len(self.index) or complete.min(initial=n) >= n:
                return codes
            wanted *= 4

    def save(self, path: Path) -> None:
        super().save(path)
        self.index.save(path / "index.faiss")

    @classmethod
    def load(cls, path: Path) -> Self:
        loaded = super().load(path)
        loaded.index = VectorIndex.load(path / "index.faiss", dim=loaded.vectors.shape[1])
        return loaded

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"vectors": self.vectors}

    def options(self) -> Mapping[str, Any]:
        return {"decay": self.decay, "length": self.length}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> Self:
        return cls(vocab, options["exclude_seen"], arrays["vectors"], options["decay"], options["length"])
