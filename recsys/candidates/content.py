"""Content: items whose text is near the recency-weighted mean text of the history; works for items without events."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Config, Floats, Variants, decayed
from recsys.candidates.index import VectorIndex
from recsys.candidates.nearest import Nearest
from recsys.data.vocab import Histories, Vocab
from recsys.networks.items import centred, item_vectors
from recsys.tables import Catalog, InteractionLog


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
