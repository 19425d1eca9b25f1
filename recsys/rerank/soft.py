"""Collaborative vectors as soft tokens of a language model: a past item in one token, by what it is met with.

A title takes a dozen tokens and says what an item is; the factors of its co-occurrence take one, and say what else
those choose who choose it. A projector, learned together with LoRA (`lora`), puts them among the model's token
embeddings (CoLLM: Zhang et al., 2023; LLaRA: Liao et al., SIGIR 2024). In a prompt a soft token is one character that
Unicode leaves to private use (`lm.local`); what users and catalogs wrote is cleared of such characters
(`prompt.plain`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from recsys.data.vocab import Vocab
from recsys.lm.local import SOFT
from recsys.networks.pairs import cooccurrence
from recsys.protocols import Floats
from recsys.rerank.judge import readable
from recsys.tables import Id, InteractionLog, query_histories

# Size of an item's vector, and items that have one at most: so many characters there are.
DIM, MOST = 64, len(SOFT)
_ITEMS, _PROJECTOR = "soft.parquet", "soft.safetensors"


@dataclass(frozen=True, eq=False)
class SoftTokens:
    """ids : (items,) ascending; vectors : (items, dim) float32 of unit length; weight (width, dim) and bias (width,) of
    the projector, None before it is learned."""

    ids: pl.Series
    vectors: Floats
    weight: Floats | None = None
    bias: Floats | None = None

    @classmethod
    def of(cls, log: InteractionLog) -> "SoftTokens":
        """Vectors of the items of a log, of the most frequent ones where it has more than can be told apart."""
        counts = log.frame.group_by("item_id").len().sort("len", "item_id", descending=[True, False])
        vocab = Vocab(counts["item_id"].head(MOST).sort())
        vectors = cooccurrence(vocab.histories(query_histories(log)), len(vocab), DIM)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return cls(vocab.ids, vectors)

    def said(self, items: Sequence[Id]) -> str:
        """Items as characters, in their order; those that have no vector are left out."""
        codes = Vocab(self.ids).encode(pl.Series(items, dtype=self.ids.dtype))
        return "".join(chr(SOFT[code]) for code in codes if code >= 0)

    def save(self, folder: Path) -> None:
        """Write into an existing folder what was learned."""
        assert self.weight is not None
        assert self.bias is not None
        vectors = pl.Series("vector", self.vectors, dtype=pl.Array(pl.Float32, self.vectors.shape[1]))
        pl.DataFrame([self.ids.alias("item_id"), vectors]).write_parquet(folder / _ITEMS)
        save_file({"weight": self.weight, "bias": self.bias}, folder / _PROJECTOR)

    @classmethod
    def load(cls, folder: Path) -> "SoftTokens | None":
        """Read what `save` wrote; None where nothing was. Errors: `BundleError` where it is damaged."""
        if not (folder / _ITEMS).exists():
            return None
        with readable(folder / _ITEMS, "soft tokens"):
            frame, learned = pl.read_parquet(folder / _ITEMS), load_file(folder / _PROJECTOR)
            found = cls(frame["item_id"], frame["vector"].to_numpy(), learned["weight"], learned["bias"])
            if learned["weight"].shape != (len(learned["bias"]), found.vectors.shape[1]):
                raise ValueError("vectors and projector are of different sizes")
            return found
