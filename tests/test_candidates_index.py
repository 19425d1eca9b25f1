"""The vector index: exact where small, approximate by size, honest about what it finds, clear where it cannot work."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import GeneratorContract
from recsys.candidates import ContentConfig, index, nearest
from recsys.candidates.base import Floats
from recsys.candidates.index import VectorIndex, choose, n_lists
from recsys.errors import BundleError, SpecError

APPROXIMATE = ["ivf", "hnsw", "pq"]


def clustered(n: int, dim: int, seed: int = 0) -> Floats:
    """Unit vectors around n / 50 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n // 50, dim))
    vectors = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.standard_normal((n, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture(scope="module")
def vectors() -> Floats:
    return clustered(4000, 32)


@pytest.fixture(scope="module")
def uneven(vectors: Floats) -> Floats:
    """Lengths as factors have them: log-normal, the longest some twenty times the usual one."""
    return np.asarray(vectors * np.random.default_rng(1).lognormal(0, 0.8, (len(vectors), 1)), dtype=np.float32)


@pytest.fixture(scope="module")
def queries() -> Floats:
    return clustered(100, 32, seed=2)


def recall(found: np.ndarray, vectors: Floats, queries: Floats) -> float:
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, : found.shape[1]]
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, best, strict=True)]))


def test_the_kind_goes_by_size() -> None:
    assert choose(50_000, 384) == choose(300_000, 64) == choose(1, 1) == "exact"
    assert choose(60_000, 384) == choose(1_000_000, 384) == "ivf"
    assert choose(3_000_000, 384) == "pq"
    assert n_lists(100_000) == 512
    assert n_lists(1_000_000) == 2048
    assert n_lists(1_000) == 16


def test_a_small_index_is_exact_whatever_is_asked_for(vectors: Floats, queries: Floats) -> None:
    assert VectorIndex.build(vectors).report["kind"] == "exact"
    few = VectorIndex.build(vectors[:999], kind="pq")
    assert few.exact
    assert recall(few.search(queries, 7)[1], vectors[:999], queries) == 1.0


def test_size_alone_makes_it_approximate(vectors: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "EXACT", 100_000)
    assert VectorIndex.build(vectors).report["kind"] == "ivf"
    monkeypatch.setattr(index, "PACKED", 120_000)
    assert VectorIndex.build(vectors).report["kind"] == "pq"


@pytest.mark.parametrize("lengths", ["even", "uneven"])
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_recall_that_is_reported_is_that_of_the_search(
    kind: Any, lengths: str, vectors: Floats, uneven: Floats, queries: Floats
) -> None:
    given = vectors if lengths == "even" else uneven
    built = VectorIndex.build(given, kind=kind, recall=0.9, queries=queries)
    assert built.report["recall@100"] >= 0.9
    scores, codes = built.search(queries, 100)
    assert recall(codes, given, queries) == pytest.approx(built.report["recall@100"], abs=0.002)
    tolerance = 0.2 if kind == "pq" else 1e-4
    own = np.einsum("qd,qnd->qn", queries, given[codes])
    assert np.abs(scores - own).max() < tolerance * np.abs(own).max()


def test_more_recall_takes_more_effort_and_all_lists_find_all(uneven: Floats) -> None:
    little, all_of_it = (VectorIndex.build(uneven, kind="ivf", recall=r) for r in (0.5, 1.0))
    assert little.report["nprobe"] < all_of_it.report["nprobe"] <= n_lists(len(uneven))
    assert little.report["recall@100"] < all_of_it.report["recall@100"] == 1.0


def test_a_recall_that_cannot_be_reached_is_told(
    uneven: Floats, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(index, "MOST_EFFORT", 16)
    with caplog.at_level(logging.WARNING):
        built = VectorIndex.build(uneven, kind="hnsw", recall=1.0)
    assert built.report["recall@100"] < 1.0
    assert "below 1.00" in caplog.text


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_second_build_is_the_same_to_the_last_bit_with_any_number_of_threads(
    kind: Any, uneven: Floats, tmp_path: Path
) -> None:
    import faiss
    from threadpoolctl import threadpool_limits

    saved = []
    for n in (1, 2, 4):
        with threadpool_limits(n):
            VectorIndex.build(uneven, kind=kind).save(tmp_path / "index.faiss")
            assert faiss.omp_get_max_threads() == n
        saved.append((tmp_path / "index.faiss").read_bytes())
    assert saved[0] == saved[1] == saved[2]


@pytest.mark.parametrize("kind", ["exact", *APPROXIMATE])
def test_save_load_search_equals_search(kind: Any, uneven: Floats, queries: Floats, tmp_path: Path) -> None:
    built = VectorIndex.build(uneven, kind=kind)
    built.save(tmp_path / "index.faiss")
    loaded = VectorIndex.load(tmp_path / "index.faiss", dim=32)
    assert loaded.report == built.report
    for one, other in zip(built.search(queries, 50), loaded.search(queries, 50), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["exact", *APPROXIMATE])
def test_vectors_of_an_odd_width_are_searched_by_their_own(kind: Any) -> None:
    vectors = clustered(2000, 15)
    built = VectorIndex.build(vectors, kind=kind)
    assert recall(built.search(vectors[:50], 1)[1], vectors, vectors[:50]) > 0.9
    with pytest.raises(SpecError, match="15 dimensions, the query has 16"):
        built.search(np.ones((1, 16), dtype=np.float32), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(bad: float, vectors: Floats) -> None:
    broken = vectors.copy()
    broken[77, 3] = bad
    with pytest.raises(SpecError, match="row 77 is not finite"):
        VectorIndex.build(broken, kind="ivf")


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_file_of_another_dimension_is_refused(kind: Any, vectors: Floats, tmp_path: Path) -> None:
    file = tmp_path / "index.faiss"
    VectorIndex.build(vectors, kind=kind).save(file)
    with pytest.raises(BundleError, match="32 dimensions, expected 16"):
        VectorIndex.load(file, dim=16)
    report = file.with_suffix(".json")
    report.write_text(json.dumps({**json.loads(report.read_text()), "dim": 16}))
    with pytest.raises(BundleError, match="32 dimensions, expected 16"):
        VectorIndex.load(file, dim=16)


def test_a_file_that_does_not_fit_its_report_is_refused(vectors: Floats, tmp_path: Path) -> None:
    file, report = tmp_path / "index.faiss", tmp_path / "index.json"
    VectorIndex.build(vectors).save(file)
    report.write_text(json.dumps({**json.loads(report.read_text()), "items": 7}))
    with pytest.raises(BundleError, match="does not fit its report"):
        VectorIndex.load(file, dim=32)
    report.unlink()
    with pytest.raises(BundleError, match="refit it"):
        VectorIndex.load(file, dim=32)


def test_without_a_gpu_auto_falls_back_and_cuda_says_what_to_install(vectors: Floats, tmp_path: Path) -> None:
    import faiss

    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("faiss-gpu is installed")
    built = VectorIndex.build(vectors, device="auto")
    assert built.report["device"] == "cpu"
    built.save(tmp_path / "index.faiss")
    for ask in (
        lambda: VectorIndex.build(vectors, device="cuda"),
        lambda: VectorIndex.load(tmp_path / "index.faiss", dim=32, device="cuda"),
    ):
        with pytest.raises(SpecError, match=r"exclude each other.*recsys\[gpu\]"):
            ask()


class FaissOnGpu:
    """The real faiss, which says that it has GPUs; a copy on a GPU is a copy that is marked."""

    def __init__(self, gpus: int) -> None:
        import faiss

        self._faiss, self.gpus, self.searched = faiss, gpus, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._faiss, name)

    def StandardGpuResources(self) -> None:  # noqa: N802  # as faiss calls it
        return None

    def get_num_gpus(self) -> int:
        return self.gpus

    def index_cpu_to_gpu(self, resources: None, device: int, index: Any) -> Any:
        fake = self

        class OnGpu:
            def search(self, queries: Floats, n: int) -> Any:
                fake.searched.append(n)
                return index.search(queries, n)

        return OnGpu()


def test_with_a_gpu_the_search_runs_there_up_to_what_it_can(
    vectors: Floats, queries: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FaissOnGpu(gpus=1)
    monkeypatch.setattr(index, "_faiss", lambda: fake)
    built = VectorIndex.build(vectors, kind="ivf", device="cuda")
    assert built.report["device"] == "cuda"
    built.search(queries, 200)
    built.search(queries, 3000)
    assert fake.searched == [200]
    built.save(tmp_path / "index.faiss")
    assert VectorIndex.load(tmp_path / "index.faiss", dim=32).report["device"] == "cuda"
    assert VectorIndex.build(vectors, kind="hnsw").report["device"] == "cpu"
    with pytest.raises(SpecError, match="'hnsw' runs on the CPU only"):
        VectorIndex.build(vectors, kind="hnsw", device="cuda")


def test_a_gpu_wheel_without_a_gpu_says_so(vectors: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_faiss", lambda: FaissOnGpu(gpus=0))
    with pytest.raises(SpecError, match="sees no GPU"):
        VectorIndex.build(vectors, device="cuda")
    assert VectorIndex.build(vectors).report["device"] == "cpu"


class TestContentThroughLists(GeneratorContract):
    """The whole contract with an approximate index, whose lists are all looked into: small enough to find all."""

    config = ContentConfig()
    margin = 0.08

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def large(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(index, "EXACT", 0)
            patch.setattr(index, "FEWEST", 0)
            patch.setattr(index, "LEAST_EFFORT", 10**6)
            patch.setattr(nearest, "PART", 1.0)
            yield

    def test_it_is_approximate(self, generator: Any) -> None:
        assert generator.report["index"]["kind"] == "ivf"
        assert not generator.index.exact
