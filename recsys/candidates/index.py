"""Nearest neighbours by inner product with FAISS; the only module that imports it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.errors import BundleError, SpecError

Floats = npt.NDArray[np.float32]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise SpecError(
            "faiss is not installed: install one of the extras recsys[cpu] and recsys[gpu]; "
            "the two faiss wheels exclude each other"
        ) from error
    return faiss


class VectorIndex:
    """An exact inner-product index over item vectors; positions are item codes."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: Floats) -> "VectorIndex":
        """vectors : (items, dim) float32, finite. Errors: `SpecError` for NaN or infinite vectors."""
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise SpecError(f"item vectors: row {row} is not finite")
        index = _faiss().IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: Floats, n: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Scores and codes, each (queries, min(n, items)), best first.

        Errors: `SpecError` when the queries' dimension is not the index's.
        """
        if queries.shape[1] != self._index.d:
            raise SpecError(f"the index holds vectors of {self._index.d} dimensions, the query has {queries.shape[1]}")
        scores, codes = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), min(n, len(self)))
        return scores, codes

    def save(self, path: Path) -> None:
        _faiss().write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, *, dim: int) -> "VectorIndex":
        """Errors: `BundleError` for an unreadable file or vectors of another dimension."""
        try:
            index = _faiss().read_index(str(path))
        except RuntimeError as error:
            raise BundleError(f"{path}: this is no readable FAISS index") from error
        if index.d != dim:
            raise BundleError(f"{path}: holds vectors of {index.d} dimensions, expected {dim}")
        return cls(index)
