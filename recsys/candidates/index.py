"""Nearest neighbours by inner product with FAISS; the only module that imports it.

Exact where small, approximate by size. Measured (`tests/bench/test_index.py`) on 100,000 vectors of 384 dimensions in
clusters: a flat scan reads them all, 12 ms a query; an inverted file (Sivic & Zisserman, ICCV 2003) finds 95% of the
hundred nearest in 0.2 ms, is built in 10 s, and is bit for bit the same with any number of threads; HNSW (Malkov &
Yashunin, TPAMI 2020) answers as fast, but takes twice as long to build, and more memory. From a few millions on,
product quantisation (Jégou et al., TPAMI 2011) with 8-bit refinement takes a third of the memory for a hundredth of the
recall. An approximate index measures its own recall when it is built.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recsys.data.files import atomic_file
from recsys.errors import BundleError, SpecError

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Kind = Literal["exact", "ivf", "hnsw", "pq"]
Device = Literal["auto", "cpu", "cuda"]

# Numbers (vectors times dimensions) up to which all are read for each query: 50,000 vectors of 384 dimensions.
EXACT = 20_000_000
# Numbers from which the vectors themselves are too large to hold twice: 4 GB, 2.6 million vectors of 384 dimensions.
PACKED = 1_000_000_000
# Fewer vectors than this are searched exactly, whatever is asked for: too few to learn lists and codes from.
FEWEST = 1000
# Vectors per list that the lists' centres are learned from; FAISS asks for 39 to 256.
PER_LIST = 64
# Sampled queries, and how many neighbours of each, by which the recall is measured.
QUERIES, DEPTH = 200, 100
# Candidates of kind "pq" that are refined, for each neighbour that is wanted: unit vectors need 4, uneven ones 20.
REFINED = 20
# What is doubled until the recall is reached: the parameter's name in FAISS.
EFFORT: Mapping[str, str] = {"ivf": "nprobe", "pq": "nprobe", "hnsw": "efSearch"}
LEAST_EFFORT, MOST_EFFORT = 16, 4096
# What FAISS computes on a GPU, and the most neighbours that it finds there.
ON_GPU, MOST_ON_GPU = ("exact", "ivf"), 2048
# Scores nearer to each other than this are of equals, added up in another order.
SAME = 1e-5


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
    """An inner-product index over item vectors; positions are item codes. `build` makes one, `search` asks it.

    report : kind, items, dim, device, factory (what FAISS was asked for), and for an approximate kind also recall@100
             against exact search, its effort (`nprobe` lists or `efSearch` nodes visited) and the queries sampled
    """

    def __init__(self, index: Any, report: Mapping[str, Any], *, device: Device = "auto") -> None:
        self._index, place = index, _device(device, report["kind"])
        self.report: Mapping[str, Any] = {**report, "device": place}
        self._on_gpu = None
        if place == "cuda":
            faiss = _faiss()
            self._on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)

    @classmethod
    def build(
        cls,
        vectors: Floats,
        *,
        kind: Kind | Literal["auto"] = "auto",
        device: Device = "auto",
        recall: float = 0.95,
        queries: Floats | None = None,
        seed: int = 0,
    ) -> "VectorIndex":
        """vectors : (items, dim) float32, finite, of any length.

        kind    : "auto" goes by size (`choose`); fewer than 1,000 vectors are always searched exactly.
        recall  : an approximate index visits so many lists or nodes that it finds this share of the 100 nearest.
        queries : (queries, dim) to measure that with; by default mixtures of three items each, sampled by `seed`.
        Errors: `SpecError` for NaN or infinite vectors, and for a GPU that is asked for and cannot be used.
        """
        from threadpoolctl import threadpool_limits

        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise SpecError(f"item vectors: row {row} is not finite")
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        n, dim = vectors.shape
        chosen: Kind = choose(n, dim) if kind == "auto" or n < FEWEST else kind
        _device(device, chosen)  # before the work begins
        report: dict[str, Any] = {"kind": chosen, "items": n, "dim": dim}
        if chosen == "exact":
            report["factory"] = "Flat"
            index = _faiss().IndexFlatIP(dim)
            index.add(vectors)
            return cls(index, report, device=device)
        widened = _widened(vectors)
        asked = _mixtures(vectors, seed) if queries is None else np.ascontiguousarray(queries, dtype=np.float32)
        # By one thread: with several, sums round otherwise, and a graph's edges depend on which thread comes first.
        with threadpool_limits(1):
            index, report["factory"] = _trained(widened, chosen, seed)
            index.add(widened)
            tuned = cls(index, report, device="cpu")._tuned(vectors, asked, recall)
        return cls(index, {**report, **tuned}, device=device)

    def __len__(self) -> int:
        return int(self.report["items"])

    @property
    def exact(self) -> bool:
        """Whether every neighbour is found."""
        return bool(self.report["kind"] == "exact")

    def search(self, queries: Floats, n: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Scores and codes, each (queries, min(n, items)), best first.

        An approximate index may miss neighbours, and where it finds fewer than that the last codes are -1; the scores
        of kind "pq" are approximate, too. Errors: `SpecError` when the queries' dimension is not the index's.
        """
        if queries.shape[1] != self.report["dim"]:
            raise SpecError(
                f"the index holds vectors of {self.report['dim']} dimensions, the query has {queries.shape[1]}"
            )
        n = min(n, len(self))
        padded = np.zeros((len(queries), self._index.d), dtype=np.float32)
        padded[:, : queries.shape[1]] = queries
        index = self._on_gpu if self._on_gpu is not None and n <= MOST_ON_GPU else self._index
        # Kind "pq" refines some candidates for each that is wanted: with few wanted, there would be too few of them.
        scores, codes = index.search(padded, n if self.exact else min(max(n, DEPTH), len(self)))
        return scores[:, :n], codes[:, :n]

    def _tuned(self, vectors: Floats, queries: Floats, recall: float) -> dict[str, Any]:
        """Double the effort until the recall is reached; what was found is for the report."""
        faiss, name, depth = _faiss(), EFFORT[self.report["kind"]], min(DEPTH, len(self))
        best, _ = faiss.knn(queries, vectors, depth, metric=faiss.METRIC_INNER_PRODUCT)
        # A neighbour counts by its score, so that equals may stand for each other (as in ann-benchmarks).
        bound = best[:, -1:] - SAME * np.maximum(1, np.abs(best[:, -1:]))
        most = self._lists() or MOST_EFFORT
        effort, reached = min(LEAST_EFFORT, most), 0.0
        while True:
            faiss.ParameterSpace().set_index_parameter(self._index, name, effort)
            _, codes = self.search(queries, depth)
            own = np.einsum("qd,qnd->qn", queries, vectors[codes])
            reached = float(((own >= bound) & (codes >= 0)).mean())
            if reached >= recall or effort >= most:
                break
            effort = min(2 * effort, most)
        if reached < recall:
            log.warning("vector index '%s': recall@%d is %.3f, below %.2f", self.report["kind"], depth, reached, recall)
        return {f"recall@{DEPTH}": round(reached, 4), name: effort, "queries": len(queries)}

    def _lists(self) -> int:
        """How many lists an inverted file has; 0 for other kinds."""
        return n_lists(len(self)) if self.report["kind"] in ("ivf", "pq") else 0

    def save(self, path: Path) -> None:
        """Write the index, and its report beside it with the suffix .json."""
        with atomic_file(path) as file:
            _faiss().write_index(self._index, str(file))
        with atomic_file(path.with_suffix(".json")) as file:
            file.write_text(json.dumps({k: v for k, v in self.report.items() if k != "device"}, indent=1))

    @classmethod
    def load(cls, path: Path, *, dim: int, device: Device = "auto") -> "VectorIndex":
        """Errors: `BundleError` for an unreadable file or vectors of another dimension; `SpecError` as `build`."""
        try:
            index = _faiss().read_index(str(path))
            report = json.loads(path.with_suffix(".json").read_text())
            kind, width = report["kind"], int(report["dim"])
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: this is no readable FAISS index with its report: refit it") from error
        if index.d - width not in (0, 1, 2):  # what `_widened` adds
            width = index.d
        if width != dim:
            raise BundleError(f"{path}: holds vectors of {width} dimensions, expected {dim}")
        if index.ntotal != report["items"] or (kind == "exact" and index.d != dim):
            raise BundleError(f"{path}: does not fit its report {path.with_suffix('.json').name}: refit it")
        return cls(index, report, device=device)


def choose(n: int, dim: int) -> Kind:
    """The kind of index for `n` vectors: exact up to 20 million numbers, product-quantised from a thousand million."""
    if n * dim <= EXACT:
        return "exact"
    return "ivf" if n * dim < PACKED else "pq"


def n_lists(n: int) -> int:
    """2 sqrt(n), as a power of two; fewer where a list would have too few vectors to learn its centre from."""
    return int(2 ** round(np.log2(min(2 * np.sqrt(n), n / PER_LIST))))


def _device(wanted: Device, kind: Kind) -> Literal["cpu", "cuda"]:
    """Where to search. Errors: `SpecError` for a GPU that is asked for and cannot be used."""
    if wanted == "cpu":
        return "cpu"
    faiss = _faiss()
    built_for_it = hasattr(faiss, "StandardGpuResources")
    there = built_for_it and faiss.get_num_gpus() > 0
    if there and kind in ON_GPU:
        return "cuda"
    if wanted == "auto":
        return "cpu"
    if not built_for_it:
        raise SpecError(
            "device 'cuda': faiss-cpu is installed, which knows no GPU. The two faiss wheels exclude each other: "
            "uninstall faiss-cpu, then install the extra recsys[gpu]; or use device 'auto' or 'cpu'"
        )
    if not there:
        raise SpecError("device 'cuda': faiss sees no GPU; use device 'auto' or 'cpu'")
    raise SpecError(f"device 'cuda': an index of kind '{kind}' runs on the CPU only; use one of {', '.join(ON_GPU)}")


def _widened(vectors: Floats) -> Floats:
    """(items, dim + 1 or 2): all of one length, by a further coordinate that no query has, and of an even width.

    Inner products stay as they are, and become cosines up to a factor, which clusters and graphs are made for: without
    it long vectors lie near everything (Bachrach et al., "Speeding up the Xbox recommender", RecSys 2014). Vectors
    that are of one length already, as texts' are, stay as they are; an even width can be cut into pairs.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    longest = float(squares.max())
    missing = np.sqrt(np.maximum(longest - squares, 0))
    further = [missing[:, None]] if float(squares.min()) < 0.999 * longest else []
    if (vectors.shape[1] + len(further)) % 2:
        further.append(np.zeros((len(vectors), 1), dtype=np.float32))
    return np.ascontiguousarray(np.hstack([vectors, *further]), dtype=np.float32) if further else vectors


def _trained(vectors: Floats, kind: Kind, seed: int) -> tuple[Any, str]:
    """An empty index whose lists and codes are learned from a sample of the vectors, and its name in FAISS."""
    faiss, (n, dim) = _faiss(), vectors.shape
    lists = n_lists(n)
    factory = {
        "ivf": f"IVF{lists},Flat",
        "pq": f"IVF{lists},PQ{dim // 2}x4fs,Refine(SQ8)",
        "hnsw": "HNSW32,Flat",
    }[kind]
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if kind != "hnsw":
        if kind == "pq":
            index.k_factor = REFINED
        size = min(n, max(PER_LIST * lists, 10_000))
        sample = np.sort(np.random.default_rng(seed).choice(n, size, replace=False))
        index.train(vectors[sample])
    return index, factory


def _mixtures(vectors: Floats, seed: int) -> Floats:
    """(queries, dim) sums of three items weighted 1, 1/2, 1/3: harder than a history, whose items are alike."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, len(vectors), (QUERIES, 3))
    weights = np.array([1, 1 / 2, 1 / 3], dtype=np.float32)
    return np.ascontiguousarray(np.einsum("k,qkd->qd", weights, vectors[items]), dtype=np.float32)
