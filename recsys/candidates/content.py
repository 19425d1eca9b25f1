"""Content: items whose text is near the recency-weighted mean text of the history; works for items without events."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.candidates.base import Config, Floats, Variants, decayed
from recsys.candidates.index import VectorIndex
from recsys.candidates.nearest import Nearest
from recsys.data.vocab import Histories, Vocab
from recsys.errors import SpecError
from recsys.tables import Catalog, InteractionLog

# A row that differs from the mean of all by less than this differs by rounding.
ROUNDING = 1e-4


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
        one = self.fit(log, catalog, seed=seed)
        return [(c, Content(one.vocab, c.exclude_seen, one.vectors, c.decay, c.length, one.index)) for c in tries]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Content":
        vocab = Vocab.of_items(catalog)
        vectors = centred(item_vectors(catalog, vocab))
        return Content(vocab, self.exclude_seen, vectors, self.decay, self.length)


def item_vectors(catalog: Catalog, vocab: Vocab) -> Floats:
    """(items, dim) text vectors in the vocabulary's order. Errors: `SpecError` when the catalog has none."""
    if "embedding" not in catalog.frame.columns:
        raise SpecError("the catalog has no text vectors: name an encoder in the spec, under [encoder]")
    frame = pl.DataFrame({"item_id": vocab.ids}).join(
        catalog.frame.select("item_id", "embedding"), on="item_id", how="left", maintain_order="left"
    )
    vectors = np.ascontiguousarray(frame["embedding"].to_numpy(), dtype=np.float32)
    if not np.isfinite(vectors).all():
        item = frame["item_id"][int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
        raise SpecError(f"catalog: item {item!r}: its embedding has numbers that are not finite")
    return vectors


def centred(vectors: Floats) -> Floats:
    """Unit vectors of what sets each row apart from the mean of all; zero for a row that is the mean itself.

    Texts of one catalog share most of their vector, whatever they say; without that part cosines tell them apart (Mu &
    Viswanath, "All-but-the-top", ICLR 2018).
    """
    apart = vectors - vectors.mean(axis=0, keepdims=True)
    norms = np.linalg.norm(apart, axis=1, keepdims=True)
    return np.asarray(apart * (norms > ROUNDING) / np.maximum(norms, ROUNDING), dtype=np.float32)


class Content(Nearest):
    """scores = cosine of the item's vector and the user's, both without what all texts share; 0 for no history."""

    kind: ClassVar[str] = "content"

    def __init__(
        self,
        vocab: Vocab,
        exclude_seen: bool,
        vectors: Floats,
        decay: float,
        length: int,
        index: VectorIndex | None = None,
    ) -> None:
        super().__init__(vocab, exclude_seen, vectors, index)
        self.decay, self.length = decay, length

    @property
    def report(self) -> Mapping[str, Any]:
        """What the index is, and what it finds of the exact neighbours."""
        return {"index": dict(self.index.report)}

    def _users(self, histories: Histories) -> Floats:
        """Unit vectors; zero for an empty history."""
        weights = decayed(histories, len(self.vocab), decay=self.decay, length=self.length)
        users = np.asarray(weights @ self.vectors, dtype=np.float32)
        norms = np.linalg.norm(users, axis=1, keepdims=True)
        return np.asarray(users / np.where(norms > 0, norms, 1), dtype=np.float32)

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"vectors": self.vectors}

    def options(self) -> Mapping[str, Any]:
        return {"decay": self.decay, "length": self.length}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Any, options: Any, index: VectorIndex | None = None) -> Self:
        return cls(vocab, options["exclude_seen"], arrays["vectors"], options["decay"], options["length"], index)
