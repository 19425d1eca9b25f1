"""EASE, item kNN and BPR against answers worked out by hand, and on input that has little to learn from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from checks import assert_same_candidates
from contracts import GeneratorContract
from recsys.candidates import Bpr, BprConfig, EaseConfig, Fusion, FusionConfig, ItemKnnConfig, cooccurrence, ease
from recsys.candidates.cooccurrence import nearest, user_items
from recsys.candidates.ease import closed_form, on_neighbours
from recsys.data.vocab import Vocab
from recsys.errors import SpecError
from recsys.tables import Catalog, InteractionLog, Queries, adhoc_query

ALL = [EaseConfig(), EaseConfig(max_items=1), ItemKnnConfig(), BprConfig(factors=4, iterations=5)]
each = pytest.mark.parametrize("config", ALL, ids=["ease", "ease on neighbours", "itemknn", "bpr"])


def log_of(*histories: list[int]) -> InteractionLog:
    """One user per history."""
    events = [(user, item, ts) for user, items in enumerate(histories) for ts, item in enumerate(items)]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "ts"], orient="row")
    return InteractionLog.of(frame.with_columns(event=pl.lit("interaction"), weight=pl.lit(1.0)))


def catalog_of(n: int) -> Catalog:
    return Catalog(pl.DataFrame({"item_id": range(n)}).with_columns(title=pl.lit("a"), text=pl.lit("a")))


def ask(*history: int) -> Queries:
    return adhoc_query(history, at=99, dtype=pl.Int64)


def answer(config: Any, log: InteractionLog, catalog: Catalog, *history: int) -> dict[int, float]:
    found = config.fit(log, catalog, seed=0).generate(ask(*history), 10).frame
    return dict(found.select("item_id", "score").iter_rows())


@pytest.fixture(scope="module")
def met() -> Any:
    """(301, 60) CSR of ones: 60 items, some far more frequent than others; one user met them all."""
    rng = np.random.default_rng(0)
    histories = [np.unique(rng.zipf(1.3, size) % 60).tolist() for size in rng.integers(1, 40, 300)]
    return user_items(Vocab.of_items(catalog_of(60)), log_of(*histories, list(range(60))))


# Counts of users: items 0 and 1 by two each, once together; item 2 by one, with item 0.
THREE = log_of([0, 1], [0, 2], [1])


def test_ease_is_the_closed_form() -> None:
    # G + I = [[3, 1, 1], [1, 3, 0], [1, 0, 2]]; its inverse is the first of these over 13.
    inverse = np.array([[6, -2, -3], [-2, 5, 1], [-3, 1, 8]]) / 13
    config = EaseConfig(regularization=1, decay=0)
    assert answer(config, THREE, catalog_of(3), 0) == pytest.approx({1: 2 / 5, 2: 3 / 8})
    fitted = config.fit(THREE, catalog_of(3), seed=0)
    expected = -inverse / np.diag(inverse) + np.eye(3)
    np.testing.assert_allclose(fitted.matrix.toarray(), expected, atol=1e-6)
    # B_12 is negative: item 1 speaks against item 2, which is not proposed.
    assert answer(config, THREE, catalog_of(3), 1) == pytest.approx({0: 2 / 6})


def test_ease_counts_a_history_by_recency() -> None:
    config = EaseConfig(regularization=1, decay=1, exclude_seen=False)
    scores = config.fit(THREE, catalog_of(3), seed=0).generate(ask(0, 1), 3).frame
    assert dict(scores.select("item_id", "score").iter_rows()) == pytest.approx(
        {0: 2 / 6, 1: 2 / 5 / 2, 2: 3 / 8 / 2 - 1 / 8}
    )


def test_item_knn_scores_by_cosine() -> None:
    config = ItemKnnConfig(shrink=0)
    assert answer(config, THREE, catalog_of(3), 0) == pytest.approx({1: 1 / 2, 2: 1 / 2**0.5})
    assert answer(config, THREE, catalog_of(3), 1, 2) == pytest.approx({0: 1 / 2 / 2 + 1 / 2**0.5})
    shrunk = ItemKnnConfig(shrink=2)
    assert answer(shrunk, THREE, catalog_of(3), 0) == pytest.approx({1: 1 / 4, 2: 1 / (2**0.5 + 2)})


def test_an_item_keeps_its_nearest_neighbours_and_of_equals_the_first() -> None:
    one = ItemKnnConfig(shrink=0, neighbours=1)
    # Item 0 is nearest to item 2; to items 1 and 2 no other is nearer than item 0.
    assert answer(one, THREE, catalog_of(3), 1) == {}
    assert set(answer(one, THREE, catalog_of(3), 0)) == {1, 2}
    equal = log_of([0, 1], [0, 2], [0, 3])
    assert answer(one, equal, catalog_of(4), 1) == pytest.approx({0: 1 / 3**0.5})
    assert answer(one, equal, catalog_of(4), 2) == {}


def test_meeting_an_item_again_adds_nothing_to_what_is_learned() -> None:
    again = log_of([0, 1, 0, 0], [0, 2, 2], [1])
    for config in (EaseConfig(regularization=1), ItemKnnConfig()):
        assert answer(config, again, catalog_of(3), 0) == answer(config, THREE, catalog_of(3), 0)


def test_bpr_users_are_the_scaled_weighted_mean_of_their_items() -> None:
    factors = np.array([[1, 0, 0.5], [0, 2, 0], [3, 1, -0.25]], dtype=np.float32)
    bpr = Bpr(Vocab.of_items(catalog_of(3)), BprConfig(factors=2, decay=1), factors, 2.0)
    users = bpr.users(bpr.vocab.histories(ask(0, 1)))
    # Weights 1/2 and 1 over their sum, times 2.
    np.testing.assert_allclose(users, [[2 / 3, 8 / 3, 1]], rtol=1e-6)
    assert bpr.generate(ask(0, 1), 3).frame["score"].to_list() == pytest.approx([2 + 8 / 3 - 0.25])
    assert not bpr.users(bpr.vocab.histories(ask())).any()


def test_bpr_puts_the_items_of_ones_own_group_first() -> None:
    rng = np.random.default_rng(0)
    histories = [(rng.permutation(10)[:6] + 10 * (user % 2)).tolist() for user in range(60)]
    bpr = BprConfig(factors=4, learning_rate=0.05).fit(log_of(*histories), catalog_of(21), seed=0)
    assert bpr.scale > 0
    found = bpr.generate(ask(10, 11, 12), 5).frame["item_id"].to_list()
    assert len(found) == 5
    assert set(found) <= set(range(13, 20))


@pytest.mark.parametrize("rate", [1.0, 1e3])
def test_bpr_says_so_when_it_diverges(world_split: Any, world: Any, rate: float) -> None:
    with pytest.raises(SpecError, match="lower it"):
        BprConfig(learning_rate=rate).fit(world_split.fit, world.catalog, seed=0)


def test_ease_says_when_its_ridge_is_too_small() -> None:
    with pytest.raises(SpecError, match="raise it"):
        EaseConfig(regularization=1e-12).fit(log_of(*[[0, 1]] * 50), catalog_of(2), seed=0)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (EaseConfig, {"regularization": 0}),
        (EaseConfig, {"max_items": 0}),
        (ItemKnnConfig, {"neighbours": 0}),
        (ItemKnnConfig, {"shrink": -1}),
        (BprConfig, {"factors": 0}),
        (BprConfig, {"iterations": 0}),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        kind(**wrong)


@each
def test_users_of_one_event_teach_nothing_but_do_no_harm(config: Any) -> None:
    scores = answer(config, log_of([0], [1], [1], [2]), catalog_of(3), 0)
    assert np.isfinite(list(scores.values())).all()
    if config.kind != "bpr":  # which still learns what is popular
        assert scores == {}


@each
def test_a_catalog_of_one_item_is_answered(config: Any) -> None:
    assert answer(config, log_of([0], [0]), catalog_of(1), 0) == {}
    again = answer(config.model_copy(update={"exclude_seen": False}), log_of([0], [0]), catalog_of(1), 0)
    assert np.isfinite(list(again.values())).all()


@each
def test_a_log_without_any_item_of_the_catalog_leaves_nothing_to_propose(config: Any) -> None:
    assert answer(config, log_of([7, 8], [9]), catalog_of(3), 0) == {}


@each
def test_items_without_events_are_not_proposed(config: Any) -> None:
    histories = [[0, 2, 4, 6], [0, 2, 4], [2, 4, 6], [0, 6]]
    fitted = config.fit(log_of(*histories), catalog_of(9), seed=0)
    found = fitted.generate(ask(0), 9).frame
    assert len(found)
    assert set(found["item_id"]) <= {2, 4, 6}
    assert fitted.generate(ask(1), 9).frame["item_id"].to_list() == [] or config.kind == "bpr"


def test_where_all_items_are_neighbours_the_approximation_is_ease(met: Any) -> None:
    np.testing.assert_allclose(on_neighbours(met, 20.0, 60).toarray(), closed_form(met, 20.0), atol=2e-6)


def test_on_few_neighbours_each_item_solves_its_own_least_squares(met: Any) -> None:
    found, near = on_neighbours(met, 20.0, 7), nearest(met, 7, shrink=0.0)
    dense = met.toarray().astype(np.float64)
    for item in range(60):
        support = near[[item]].indices
        chosen = dense[:, support]
        expected = np.linalg.solve(chosen.T @ chosen + 20 * np.eye(len(support)), chosen.T @ dense[:, item])
        np.testing.assert_allclose(found[:, [item]].toarray()[support, 0], expected, atol=1e-5)
        assert found[:, [item]].nnz == len(support) <= 7


def test_the_approximation_is_near_the_exact_answer(world_split: Any, world: Any) -> None:
    """On the world, of the first ten 78% were the same, from a sixth of the catalog as neighbours."""
    queries = world_split.questions("test").queries
    exact, near = (
        EaseConfig(max_items=most, neighbours=40).fit(world_split.known, world.catalog, seed=0).generate(queries, 10)
        for most in (20_000, 1)
    )
    assert len(exact.frame.join(near.frame, on=["query_id", "item_id"])) >= 0.7 * len(exact)


def test_max_items_counts_the_items_with_events() -> None:
    three = EaseConfig(regularization=1, max_items=3, neighbours=1)
    exact = EaseConfig(regularization=1)
    assert answer(three, THREE, catalog_of(500), 0) == answer(exact, THREE, catalog_of(500), 0)
    fewer = three.model_copy(update={"max_items": 2})
    # One neighbour alone: B_01 = G_01 / (G_00 + 1).
    assert answer(fewer, THREE, catalog_of(500), 0) == pytest.approx({1: 1 / 3, 2: 1 / 3})


@pytest.mark.parametrize("cells", [1, 600, 10**9])
def test_the_size_of_the_blocks_changes_nothing(met: Any, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = nearest(met, 9, shrink=1.0), closed_form(met, 5.0), on_neighbours(met, 5.0, 9)
    monkeypatch.setattr(cooccurrence, "BLOCK_CELLS", cells)
    monkeypatch.setattr(ease, "BLOCK_CELLS", cells)
    monkeypatch.setattr(ease, "SUPPORT", cells)
    near, exact, sparse = nearest(met, 9, shrink=1.0), closed_form(met, 5.0), on_neighbours(met, 5.0, 9)
    assert np.array_equal(near.toarray(), expected[0].toarray())
    np.testing.assert_allclose(exact, expected[1], atol=1e-6)
    np.testing.assert_allclose(sparse.toarray(), expected[2].toarray(), atol=1e-6)


def test_only_small_weights_are_dropped(met: Any) -> None:
    weights = closed_form(met, 5.0)
    kept = ease._largest(weights)
    least = ease.SMALLEST * np.abs(weights).max()
    assert 0 < kept.nnz < np.count_nonzero(weights)
    np.testing.assert_array_equal(kept.toarray(), np.where(np.abs(weights) >= least, weights, 0))


@each
def test_settings_worth_trying_are_fitted_as_they_say(config: Any) -> None:
    tries = config.variants(THREE, catalog_of(3), seed=0)
    assert len({tried.decay for tried, _ in tries}) == len(tries) == 3
    for tried, source in tries:
        fresh = tried.fit(THREE, catalog_of(3), seed=0).generate(ask(0, 1), 3).frame
        assert source.generate(ask(0, 1), 3).frame.equals(fresh)


def test_they_work_inside_a_fusion(world_split: Any, world: Any, tmp_path: Path) -> None:
    sources = (EaseConfig(), ItemKnnConfig(), BprConfig(factors=8, iterations=5))
    fusion = FusionConfig(sources=sources).fit(world_split.known, world.catalog, seed=0)
    assert fusion.report["weights"].keys() == {"ease", "itemknn", "bpr"}
    queries = world_split.questions("test").queries
    fusion.save(tmp_path)
    assert_same_candidates(Fusion.load(tmp_path).generate(queries, 10), fusion.generate(queries, 10))


class TestEaseOnNeighbours(GeneratorContract):
    """The approximation for large catalogs."""

    config = EaseConfig(max_items=1, neighbours=40)
    margin = 0.25


class TestSparseItemKnn(GeneratorContract):
    """Scores from sparse rows, as in a large catalog."""

    config = ItemKnnConfig()
    margin = 0.25

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def large(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cooccurrence, "DENSE_CELLS", 0)
            yield

    def test_it_is_sparse(self, generator: Any) -> None:
        assert not isinstance(generator._table, np.ndarray)
