"""The user's own past items that are nearest to the candidates at hand: by text vectors where they are known, else by
the words that texts share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.protocols import Floats
from recsys.rerank.judge import readable
from recsys.tables import Catalog, Id

_FILE = "evidence.parquet"
_WORD = r"\w{3,}"


@dataclass(frozen=True)
class Evidence:
    """vectors : item_id and embedding, Array(Float32, dim), unit rows; None where the catalog had none at fit."""

    vectors: pl.DataFrame | None = None

    @classmethod
    def of(cls, catalog: Catalog) -> "Evidence":
        """Keep the catalog's vectors: a bundle's catalog has none."""
        if "embedding" not in catalog.frame.columns:
            return cls()
        return cls(catalog.frame.select("item_id", "embedding"))

    def nearest(
        self, histories: Sequence[Sequence[Id]], candidates: Sequence[Sequence[Id]], n: int, catalog: Catalog
    ) -> list[list[Id]]:
        """For each history (oldest first, items of the catalog), its at most `n` items that come nearest to any of the
        candidates, in the history's order; the later of equals. An item without a vector is far from all."""
        items = list(dict.fromkeys(item for row in (*histories, *candidates) for item in row))
        place = {item: i for i, item in enumerate(items)}
        space = self._dense(items, catalog) if self.vectors is not None else _sparse(items, catalog)
        found: list[list[Id]] = []
        for history, listed in zip(histories, candidates, strict=True):
            past = list(dict.fromkeys(reversed(history)))  # latest first: ties go to the later item
            if not past:
                found.append([])
                continue
            near = (space[[place[i] for i in past]] @ space[[place[i] for i in listed]].T).max(axis=1)
            near = near if isinstance(near, np.ndarray) else near.toarray().ravel()
            chosen = sorted(np.argsort(-np.round(near, 6), kind="stable")[:n].tolist(), reverse=True)
            found.append([past[i] for i in chosen])
        return found

    def _dense(self, items: Sequence[Id], catalog: Catalog) -> Floats:
        assert self.vectors is not None
        wanted = pl.DataFrame({"item_id": pl.Series(items, dtype=catalog.frame.schema["item_id"])})
        known = wanted.join(self.vectors, on="item_id", how="left", maintain_order="left")["embedding"]
        there = known.is_not_null().to_numpy()
        rows: Floats = known.drop_nulls().to_numpy()
        out: Floats = np.zeros((len(items), rows.shape[-1]), dtype=np.float32)
        out[there] = rows
        return out

    def save(self, folder: Path) -> None:
        """Write the vectors into an existing folder, where there are any."""
        if self.vectors is not None:
            self.vectors.write_parquet(folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> "Evidence":
        """Read what `save` wrote. Errors: `BundleError` where it is damaged."""
        if not (folder / _FILE).exists():
            return cls()
        with readable(folder / _FILE, "vectors of items"):
            return cls(pl.read_parquet(folder / _FILE).select("item_id", "embedding"))


def _sparse(items: Sequence[Id], catalog: Catalog) -> Any:
    """(items, words) CSR: the words of each item's text, rows of unit length, so that products are cosines."""
    from scipy.sparse import csr_matrix

    wanted = pl.DataFrame({"item_id": pl.Series(items, dtype=catalog.frame.schema["item_id"])}).with_row_index("row")
    words = (
        wanted.join(catalog.frame.select("item_id", "text"), on="item_id", how="left")
        .select("row", word=pl.col("text").fill_null("").str.to_lowercase().str.extract_all(_WORD).list.unique())
        .explode("word", empty_as_null=False)
        .with_columns(column=pl.col("word").rank("dense") - 1, size=pl.len().over("row"))
    )
    rows: npt.NDArray[np.int64] = words["row"].to_numpy().astype(np.int64)
    columns = words["column"].to_numpy().astype(np.int64)
    values = 1.0 / np.sqrt(words["size"].to_numpy().astype(np.float32))
    return csr_matrix((values, (rows, columns)), shape=(len(items), int(columns.max(initial=0)) + 1))
