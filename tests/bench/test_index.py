"""The kinds of vector index at several sizes: recall against exact search, building, memory, and single queries.

BENCH_INDEX=100000,200000,1000000 sets the sizes (1,000,000 vectors of 384 dimensions take 6 GB and some minutes).
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.candidates.index import Floats, Kind, VectorIndex, choose

SIZES = [int(size) for size in os.environ.get("BENCH_INDEX", "50000").split(",")]
KINDS: tuple[Kind, ...] = ("exact", "ivf", "hnsw", "pq")
# What is stored: unit vectors as texts have them, and factors of very different lengths.
SHAPES = {"texts": 384, "factors": 64}
HNSW_UP_TO = 200_000  # a graph of more takes many minutes
RECALL = 0.95


def clustered(n: int, dim: int, seed: int) -> tuple[Floats, Any]:
    """Unit vectors in n / 200 clusters of unlike sizes, of 32 dimensions embedded in `dim`; and each one's cluster."""
    rng = np.random.default_rng(seed)
    inner = 32
    spread = (np.arange(1, inner + 1) ** -0.5)[:, None] * rng.standard_normal((inner, dim))
    centres = rng.standard_normal((n // 200, inner))
    cluster = np.sort(rng.choice(len(centres), n, p=rng.dirichlet(np.ones(len(centres)))))
    vectors = np.empty((n, dim), dtype=np.float32)
    for start in range(0, n, 50_000):
        some = cluster[start : start + 50_000]
        points = (centres[some] + 0.6 * rng.standard_normal((len(some), inner))) @ spread
        points += 0.15 * rng.standard_normal(points.shape)
        vectors[start : start + len(some)] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return vectors, cluster


def histories(vectors: Floats, cluster: Any, n: int, seed: int) -> Floats:
    """Unit vectors of users: nine items of up to three clusters, in any order, weighted 1, 1/2, 1/3, ..."""
    rng = np.random.default_rng(seed)
    tastes = cluster[rng.integers(0, len(vectors), (n, 3))].repeat(3, axis=1)
    first, last = np.searchsorted(cluster, tastes), np.searchsorted(cluster, tastes, side="right")
    items = rng.permuted(rng.integers(first, last), axis=1)
    users = np.einsum("k,qkd->qd", 1 / np.arange(1, 10), vectors[items])
    return np.asarray(users / np.linalg.norm(users, axis=1, keepdims=True), dtype=np.float32)


def measured(vectors: Floats, queries: Floats, kind: Kind, best: Any, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    index = VectorIndex.build(vectors, kind=kind, recall=RECALL)
    building = time.perf_counter() - start
    codes = index.search(queries, 100)[1]
    took = []
    for query in queries:
        start = time.perf_counter()
        index.search(query[None], 100)
        took.append(1e3 * (time.perf_counter() - start))
    index.save(folder / "index.faiss")
    return {
        "kind": kind,
        "effort": index.report.get("nprobe") or index.report.get("efSearch"),
        "reported": index.report.get("recall@100", 1.0),
        "recall@100": float(np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(codes, best, strict=True)])),
        "build s": building,
        "MB": (folder / "index.faiss").stat().st_size / 2**20,
        "p50 ms": float(np.quantile(took, 0.5)),
        "p99 ms": float(np.quantile(took, 0.99)),
    }


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_kinds_of_index(size: int, shape: str, tmp_path: Path) -> None:
    vectors, cluster = clustered(size, SHAPES[shape], seed=0)
    queries = histories(vectors, cluster, 500, seed=1)
    if shape == "factors":
        vectors *= np.random.default_rng(2).lognormal(0, 0.8, (size, 1)).astype(np.float32)
    best = VectorIndex.build(vectors, kind="exact").search(queries, 100)[1]
    rows = []
    for kind in KINDS:
        if kind != "hnsw" or size <= HNSW_UP_TO:
            rows.append(measured(vectors, queries, kind, best, tmp_path))
            assert rows[-1]["recall@100"] >= RECALL - 0.03
    print(f"\n{size:,} {shape} of {SHAPES[shape]} dimensions; by size: {choose(size, SHAPES[shape])}")
    print(pl.DataFrame(rows))
