"""What the sources do only in large catalogs, on small data: their bounds on memory are lowered for the test."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from contracts import GeneratorContract
from recsys.candidates import AlsConfig, PopularConfig, TransitionsConfig, als, popular, transitions
from recsys.candidates.base import top_n
from recsys.candidates.mips import LongestFirst
from recsys.candidates.transitions import Transitions
from recsys.data.vocab import Histories
from recsys.networks.pairs import count_pairs


@pytest.fixture(scope="module")
def histories() -> Histories:
    """400 histories of 0 to 60 events over 90 items, some far more frequent than others."""
    rng = np.random.default_rng(0)
    indptr = np.r_[0, np.cumsum(rng.integers(0, 61, 400))]
    n = int(indptr[-1])
    items = (rng.zipf(1.3, n) % 90).astype(np.int32)
    return Histories(indptr, items, np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.int64))


def plain_count(histories: Histories, n_items: int, window: int) -> Any:
    """The definition: distance by distance, all events at once."""
    import scipy.sparse as sp

    rows, items = histories.rows(), histories.items
    total = sp.csr_array((n_items, n_items), dtype=np.float32)
    for distance in range(1, window + 1):
        same = rows[distance:] == rows[:-distance]
        weight = np.full(same.sum(), 1.0 / distance, dtype=np.float32)
        place = (items[:-distance][same], items[distance:][same])
        total = total + sp.coo_array((weight, place), shape=total.shape).tocsr()
    return total


@pytest.mark.parametrize("at_once", [1, 1_000, 50_000, 10**9])
def test_pairs_counted_block_by_block_have_the_same_bits(histories: Histories, at_once: int) -> None:
    expected = plain_count(histories, 90, 50)
    found = count_pairs(histories, 90, 50, at_once=at_once)
    assert found.nnz > 3_000
    for part in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(found, part), getattr(expected, part))


def test_a_large_catalog_keeps_each_items_heaviest_targets(histories: Histories) -> None:
    expected = plain_count(histories, 90, 50).toarray()
    found = count_pairs(histories, 90, 50, at_once=10_000, most=7 * 90).toarray()
    for kept, row in zip(found, expected, strict=True):
        best = np.lexsort((np.arange(90), -row))[:7]
        assert np.array_equal(np.flatnonzero(kept), np.sort(best[row[best] > 0]))
        assert np.array_equal(kept[best], row[best])


def test_no_events_are_no_pairs() -> None:
    nothing = np.zeros(0)
    empty = Histories(np.zeros(3, np.int64), nothing.astype(np.int32), nothing.astype(np.float32), nothing.astype(int))
    assert count_pairs(empty, 5, 50).nnz == 0
    assert count_pairs(empty.slice(0, 0), 0, 50).shape == (0, 0)


def test_variants_share_one_count_of_pairs(world: Any) -> None:
    tries = TransitionsConfig().variants(world.log, world.catalog, seed=0)
    assert len({id(source.pairs) for _, source in tries if isinstance(source, Transitions)}) == 1
    assert len({source.options()["config"]["target_damping"] for _, source in tries}) == 3


class TestSparseTransitions(GeneratorContract):
    """Pairs as sparse rows."""

    config = TransitionsConfig()
    margin = 0.24

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def large(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transitions, "DENSE_CELLS", 0)
            yield

    def test_it_is_sparse(self, generator: Any) -> None:
        assert not isinstance(generator._table, np.ndarray)


class TestCoarseTrending(GeneratorContract):
    """One row of the table for several days."""

    config = PopularConfig(half_life=10.0)
    margin = -0.05  # the world has no trends: a recency window only throws counts away

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def large(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(popular, "MAX_CELLS", 30_000)
            yield

    def test_its_rows_are_several_days(self, generator: Any) -> None:
        assert generator.width > 2 * popular.DAY
        assert generator.counts.size < 3 * 30_000


class TestLargeAls(GeneratorContract):
    """The longest item factors first, as far as they are needed."""

    config = AlsConfig()
    margin = 0.15

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def large(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(als, "LARGE", 0)
            yield


def skewed(n: int, dim: int) -> np.ndarray:
    """Vectors whose lengths fall as popularity does."""
    rng = np.random.default_rng(2)
    lengths = (np.arange(n) + 1.0) ** -0.7
    return np.asarray(rng.standard_normal((n, dim)) * rng.permutation(lengths)[:, None], dtype=np.float32)


@pytest.fixture(scope="module")
def asked() -> Histories:
    """60 histories of 0 to 40 events, over 5,000 items."""
    rng = np.random.default_rng(1)
    indptr = np.r_[0, np.cumsum(rng.integers(0, 41, 60))]
    n = int(indptr[-1])
    return Histories(indptr, rng.integers(0, 5_000, n, dtype=np.int32), np.ones(n, np.float32), np.zeros(n, np.int64))


@pytest.mark.parametrize("n", [1, 50, 700, 4_990, 9_000])
def test_the_longest_first_are_searched_exactly(asked: Histories, n: int) -> None:
    vectors, users = skewed(5_000, 16), np.random.default_rng(3).standard_normal((60, 16)).astype(np.float32)
    users[:5] = 0
    rows, codes = LongestFirst.of(vectors).best(users, n, seen=asked)
    scores = users @ vectors.T
    scores[scores <= 0] = -np.inf
    expected_rows, expected = top_n(scores, n, seen=asked)
    assert np.array_equal(rows, expected_rows)
    assert (codes == expected).mean() > 0.999  # products that are nearly equal may round apart
    assert rows.min() == 5


def test_of_the_shortest_most_are_not_looked_at(asked: Histories) -> None:
    found, users = LongestFirst.of(skewed(5_000, 16)), np.random.default_rng(3).standard_normal((60, 16))
    assert found._products(users.astype(np.float32), 50).shape[1] < 2_500
    assert found._products(np.zeros((3, 16), np.float32), 50).shape[1] == 0
    rows, _ = found.best(np.zeros((60, 16), np.float32), 10, seen=asked)
    assert len(rows) == 0
