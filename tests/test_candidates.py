"""Each source against an answer worked out by hand; what all of them share stands in the contract suite."""

import numpy as np
import polars as pl
import pytest

from recsys.candidates import AlsConfig, ContentConfig, FusionConfig, PopularConfig, TransitionsConfig
from recsys.candidates.base import place_in_group, product, top_n
from recsys.candidates.index import VectorIndex
from recsys.candidates.weights import standardised
from recsys.errors import BundleError, SpecError
from recsys.tables import Catalog, InteractionLog, Queries, adhoc_query, query_histories

DAY = 86_400


def log_of(*events: tuple[int, int, int]) -> InteractionLog:
    users, items, ts = zip(*events, strict=True)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "ts": ts}, schema_overrides={"ts": pl.Int64})
    return InteractionLog.of(frame.with_columns(event=pl.lit("interaction"), weight=pl.lit(1.0)))


def catalog_of(n: int, vectors: np.ndarray | None = None) -> Catalog:
    frame = pl.DataFrame({"item_id": range(n), "title": [f"Item {i}" for i in range(n)]})
    frame = frame.with_columns(text=pl.col("title"))
    if vectors is not None:
        frame = frame.with_columns(embedding=pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])))
    return Catalog(frame)


def ask(history: list[int], at: int = 10 * DAY) -> Queries:
    return adhoc_query(history, at=at, dtype=pl.Int64)


def items(generator, queries: Queries, n: int = 10) -> list[int]:
    return generator.generate(queries, n).frame["item_id"].to_list()


def test_top_n_breaks_ties_by_the_lower_column_and_leaves_out_what_has_no_score():
    scores = np.array([[1, 3, 3, 2, -np.inf], [0, 0, 0, 0, 0]], dtype=np.float32)
    rows, columns = top_n(scores, 3, seen=None)
    assert rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert columns.tolist() == [1, 2, 3, 0, 1, 2]
    rows, columns = top_n(np.full((1, 3), -np.inf, dtype=np.float32), 2, seen=None)
    assert len(rows) == len(columns) == 0


def test_places_count_from_zero_within_each_run():
    assert place_in_group(np.array([4, 4, 7, 9, 9, 9])).tolist() == [0, 1, 0, 0, 1, 2]


def test_a_product_has_the_same_bits_for_one_row_as_for_many():
    rng = np.random.default_rng(0)
    users, vectors = (rng.standard_normal((n, 48)).astype(np.float32) for n in (64, 997))
    together = product(users, vectors)
    assert all(np.array_equal(product(users[i : i + 1], vectors)[0], together[i]) for i in range(64))


def test_popular_orders_by_count_and_proposes_only_items_that_somebody_met():
    generator = PopularConfig().fit(log_of((1, 2, 0), (2, 2, 0), (1, 3, 1)), catalog_of(5), seed=0)
    assert items(generator, ask([])) == [2, 3]
    assert items(generator, ask([2])) == [3]


def test_trending_sees_only_whole_days_before_the_moment_of_the_query():
    log = log_of((1, 0, 0), (2, 0, 10), (3, 1, 5 * DAY), (4, 1, 5 * DAY), (5, 1, 5 * DAY + 9))
    trending = PopularConfig(half_life=1.0).fit(log, catalog_of(2), seed=0)
    assert items(trending, ask([], at=5 * DAY + DAY // 2)) == [0]
    assert items(trending, ask([], at=6 * DAY)) == [1, 0]
    assert items(trending, ask([], at=0)) == []


def test_trending_halves_a_count_after_its_half_life():
    log = log_of((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (1, 1, 4 * DAY))
    trending = PopularConfig(half_life=2.0).fit(log, catalog_of(2), seed=0)
    scores = trending.generate(ask([], at=5 * DAY), 2).frame.sort("item_id")["score"].to_numpy()
    counts = np.exp(scores) - 0.5
    # Four events five days ago against one event a day ago: 4 * 2^-2.5 and 2^-0.5.
    assert counts == pytest.approx([4 * 2**-2.5, 2**-0.5], rel=1e-5)


def test_transitions_are_directional_and_fade_with_distance():
    log = log_of(*[(user, item, item) for user in (1, 2) for item in (0, 1, 2)])
    plain = TransitionsConfig(source_damping=0, target_damping=0).fit(log, catalog_of(4), seed=0)
    assert plain.pairs.toarray()[0].tolist() == [0, 2, 1, 0]
    assert plain.pairs.toarray()[2].tolist() == [0, 0, 0, 0]
    assert items(plain, ask([0])) == [1, 2]
    assert items(plain, ask([2])) == []


def test_als_puts_the_items_of_ones_own_group_first():
    rng = np.random.default_rng(0)
    events = [(u, int(i), t) for u in range(60) for t, i in enumerate(rng.permutation(10)[:6] + 10 * (u % 2))]
    als = AlsConfig(factors=4).fit(log_of(*events), catalog_of(21), seed=0)
    assert set(items(als, ask([10, 11, 12]), 5)) <= set(range(10, 20))
    assert items(als, ask([])) == []


def test_content_finds_near_texts_of_items_that_nobody_met():
    vectors = np.array([[1, 0], [0.8, 0.6], [-0.8, -0.6], [-1, 0]], dtype=np.float32)  # their mean is zero
    content = ContentConfig().fit(log_of((1, 0, 0)), catalog_of(4, vectors), seed=0)
    found = content.generate(ask([0]), 3).frame
    assert found["item_id"].to_list() == [1, 2, 3]
    assert found["score"].to_list() == pytest.approx([0.8, -0.8, -1.0], abs=1e-6)


def test_content_without_vectors_says_what_to_set():
    with pytest.raises(SpecError, match=r"\[encoder\]"):
        ContentConfig().fit(log_of((1, 0, 0)), catalog_of(2), seed=0)


def test_the_index_agrees_with_an_exact_search():
    rng = np.random.default_rng(1)
    vectors, queries = (rng.standard_normal((n, 16)).astype(np.float32) for n in (300, 20))
    _, codes = VectorIndex.build(vectors).search(queries, 7)
    assert np.array_equal(codes, np.argsort(-(queries @ vectors.T), axis=1)[:, :7])


def test_the_index_refuses_vectors_that_do_not_fit(tmp_path):
    index = VectorIndex.build(np.eye(3, dtype=np.float32))
    with pytest.raises(SpecError, match="3 dimensions, the query has 2"):
        index.search(np.ones((1, 2), dtype=np.float32), 1)
    with pytest.raises(SpecError, match="row 1 is not finite"):
        VectorIndex.build(np.array([[1.0], [np.nan]], dtype=np.float32))
    index.save(tmp_path / "index.faiss")
    with pytest.raises(BundleError, match="expected 5"):
        VectorIndex.load(tmp_path / "index.faiss", dim=5)
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(BundleError, match="no readable FAISS index"):
        VectorIndex.load(tmp_path / "index.faiss", dim=3)


def test_standardised_rows_have_mean_zero_and_a_silent_source_counts_nothing():
    z = standardised(np.array([[1, 2, 3], [5, 5, 5]], dtype=np.float32))
    assert z[0] == pytest.approx([-1.2247449, 0, 1.2247449])
    assert z[1].tolist() == [0, 0, 0]


def chains(n_users: int = 80) -> InteractionLog:
    """Everybody walks a ring of 12 items from a start of their own: transitions know it all, popularity nothing."""
    return log_of(*[(u, (u + step) % 12, step) for u in range(n_users) for step in range(7)])


def test_the_fusion_trusts_the_source_that_is_right():
    sources = (TransitionsConfig(window=1), PopularConfig())
    fusion = FusionConfig(sources=sources).fit(chains(), catalog_of(12), seed=0)
    assert fusion.report["weights"]["transitions"] > 3 * abs(fusion.report["weights"]["popular"])
    assert fusion.report["heldout_ndcg@10"]["fusion"] > 0.95
    assert items(fusion, ask([3, 4, 5]), 1) == [6]


def test_the_fusion_says_each_sources_own_score():
    fusion = FusionConfig(sources=(TransitionsConfig(), PopularConfig())).fit(chains(), catalog_of(13), seed=0)
    found = fusion.generate(ask([3]), 12)
    assert found.source_scores == ["score_transitions", "score_popular"]
    never_met = found.frame.filter(pl.col("item_id") == 12)
    assert never_met["score_popular"].to_list() == [None]
    assert found.frame["source"].is_in(["transitions", "popular"]).all()


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(SpecError, match="same name"):
        FusionConfig(sources=(PopularConfig(), PopularConfig())).fit(chains(), catalog_of(12), seed=0)


def test_where_nobody_has_two_events_all_sources_count_alike():
    fusion = FusionConfig(sources=(TransitionsConfig(), PopularConfig())).fit(
        log_of((1, 0, 0), (2, 1, 0), (3, 1, 0)), catalog_of(3), seed=0
    )
    assert fusion.report["weights"] == {"transitions": 0.5, "popular": 0.5}
    assert items(fusion, ask([]), 2) == [1, 0]


def test_a_user_without_history_gets_what_is_popular_even_where_its_learned_weight_is_negative():
    fusion = FusionConfig(sources=(TransitionsConfig(), PopularConfig())).fit(
        log_of(*[(u, i, i) for u in range(9) for i in range(2 + u % 3)]), catalog_of(5), seed=0
    )
    fusion.weights = np.array([1.0, -1.0])
    assert items(fusion, ask([]), 4) == [0, 1, 2, 3]


def test_items_outside_the_vocabulary_are_passed_over():
    generator = PopularConfig().fit(chains(), catalog_of(6), seed=0)
    frame = query_histories(chains()).frame.head(1)
    assert set(items(generator, Queries(frame))) <= set(range(6))
