"""The fusion beyond the contract: the pool of a large catalog, places for cold items, and what each part is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from checks import assert_same_candidates, assert_well_formed, with_word_vectors
from recsys.candidates import ContentConfig, Fusion, FusionConfig, PopularConfig, TransitionsConfig
from recsys.candidates.cold import cold_codes, places_kept, with_places_kept
from recsys.candidates.comparison import compare_sources, reciprocal_ranks
from recsys.candidates.trainable import HeadStart
from recsys.candidates.weights import Heldout, standardised
from recsys.data.split import Questions
from recsys.data.vocab import Vocab
from recsys.errors import BundleError
from recsys.metrics import target_ranks
from recsys.tables import Candidates, Catalog, InteractionLog, Queries

CONFIG = FusionConfig(sources=(TransitionsConfig(window=5), PopularConfig(), ContentConfig()), tune_sources=False)


@pytest.fixture(scope="module")
def catalog(world: Any) -> Catalog:
    return with_word_vectors(world.catalog)


@pytest.fixture(scope="module")
def fusion(world_split: Any, catalog: Catalog) -> Fusion:
    return CONFIG.fit(world_split.known, catalog, seed=0)


@pytest.fixture(scope="module")
def questions(world_split: Any) -> Questions:
    found: Questions = world_split.questions("test")
    return found


def fitted_as(fusion: Fusion, **changes: Any) -> Fusion:
    """The same sources and weights under another config."""
    config = fusion.config.model_copy(update=changes)
    return Fusion(config, fusion.sources, fusion.weights, fusion.report, fusion.cold)


def test_a_pool_that_holds_everything_gives_what_scoring_everything_gives(fusion: Fusion, questions: Questions) -> None:
    pooled = fitted_as(fusion, pool_above=1)
    assert_same_candidates(pooled.generate(questions.queries, 50), fusion.generate(questions.queries, 50))


def test_a_small_pool_still_finds_most_and_a_short_list_heads_a_long_one(
    fusion: Fusion, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.candidates.fusion.POOL", 20)
    pooled = fitted_as(fusion, pool_above=1)
    ten = pooled.generate(questions.queries, 10).frame
    whole = fusion.generate(questions.queries, 10).frame
    assert len(ten.join(whole, on=["query_id", "item_id"])) > 0.9 * len(whole)
    twenty = pooled.generate(questions.queries, 20).frame
    assert_same_candidates(Candidates(twenty.filter(pl.col("rank") <= 10)), Candidates(ten))


@pytest.mark.parametrize(
    ("n", "share", "start", "ranks"),
    [(30, 0.1, 11, [20, 30]), (10, 0.1, 11, []), (6, 0.5, 1, [2, 4, 6]), (12, 0.25, 5, [8, 12]), (9, 0.0, 1, [])],
)
def test_the_places_kept_are_every_so_many_and_the_same_for_every_length(
    n: int, share: float, start: int, ranks: list[int]
) -> None:
    assert places_kept(n, share, start).tolist() == ranks
    assert set(places_kept(n - 1, share, start)) <= set(places_kept(n, share, start))


def hide(log: InteractionLog, items: list[Any]) -> InteractionLog:
    return InteractionLog.of(log.frame.filter(~pl.col("item_id").is_in(items)))


@pytest.fixture(scope="module")
def some_cold(world_split: Any, catalog: Catalog) -> tuple[Fusion, set[Any]]:
    hidden = catalog.frame["item_id"].sort().gather_every(10).to_list()
    return CONFIG.fit(hide(world_split.known, hidden), catalog, seed=0), set(hidden)


def test_cold_items_get_their_share_and_the_first_places_stay_as_they_were(
    some_cold: tuple[Fusion, set[Any]], questions: Questions
) -> None:
    fusion, hidden = some_cold
    keeping = fitted_as(fusion, cold_share=0.2)
    found = keeping.generate(questions.queries, 40)
    assert_well_formed(found, questions.queries, 40)
    places = found.frame.filter(pl.col("item_id").is_in(hidden)).group_by("query_id").agg("rank").sort("query_id")
    assert places["rank"].list.sort().to_list() == [[15, 20, 25, 30, 35, 40]] * len(questions)
    # The first ten are those of the plain fusion, but for cold items, which there came by their own strength.
    head = pl.col("rank") <= 10
    plain = fusion.generate(questions.queries, 20).frame.filter(~pl.col("item_id").is_in(hidden))
    plain = plain.filter(pl.int_range(pl.len()).over("query_id") < 10)
    key = ["query_id", "item_id"]
    assert found.frame.filter(head).select(key).sort(key).equals(plain.select(key).sort(key))
    shorter = keeping.generate(questions.queries, 25)
    assert_same_candidates(shorter, Candidates(found.frame.filter(pl.col("rank") <= 25)))


def test_where_there_are_fewer_cold_items_than_places_warm_ones_move_up() -> None:
    def listed(items: str, score: float) -> pl.DataFrame:
        schema = {"item_id": pl.String, "rank": pl.Int64}
        rows = pl.DataFrame({"item_id": list(items), "rank": range(1, len(items) + 1)}, schema=schema)
        return rows.with_columns(query_id=pl.lit(1, pl.Int64), score=score - pl.col("rank").cast(pl.Float64))

    found = with_places_kept(listed("abcdef", 10), listed("Z", -100), 6, 0.5, 1)
    assert found["item_id"].to_list() == list("aZbcde")
    assert found["rank"].to_list() == [1, 2, 3, 4, 5, 6]
    assert found["score"].to_list() == [9.0, 8.5, 8.0, 7.0, 6.0, 5.0]
    assert with_places_kept(listed("a", 10), listed("Z", 0), 3, 0.5, 1)["item_id"].to_list() == ["a", "Z"]
    many = with_places_kept(listed("ab", 10), listed("VWXYZ", 0), 6, 0.5, 1)
    assert many["item_id"].to_list() == list("aVbWXY")
    assert many["score"].n_unique() == 6
    assert many["score"].to_list() == sorted(many["score"], reverse=True)
    assert with_places_kept(listed("", 10), listed("Z", 0), 3, 0.5, 1)["item_id"].to_list() == ["Z"]


@pytest.mark.parametrize("n", [5, 30, 1000])
@pytest.mark.parametrize("events", [0, 40])
def test_the_rest_of_the_list_is_cold_where_the_warm_items_end(
    world_split: Any, catalog: Catalog, questions: Questions, n: int, events: int
) -> None:
    config = CONFIG.model_copy(update={"cold_share": 0.1, "exclude_seen": False})
    fusion = config.fit(InteractionLog(world_split.known.frame.head(events)), catalog, seed=0)
    asked = Queries(questions.queries.frame.head(5))
    found = fusion.generate(asked, n)
    assert_well_formed(found, asked, n)
    assert len(found) == 5 * min(n, len(catalog))
    assert found.frame.group_by("query_id").agg(pl.col("score").n_unique())["score"].min() > 0.3 * min(n, len(catalog))


def test_the_best_cold_item_is_the_one_most_like_the_history(
    some_cold: tuple[Fusion, set[Any]], questions: Questions, catalog: Catalog
) -> None:
    fusion, hidden = some_cold
    found = fitted_as(fusion, cold_share=0.5, cold_from=1).generate(questions.queries, 2)
    first = found.frame.filter(pl.col("rank") == 2)
    assert set(first["item_id"]) <= hidden
    content = fusion.sources["content"].generate(questions.queries, len(catalog)).frame
    best = content.filter(pl.col("item_id").is_in(hidden)).group_by("query_id", maintain_order=True).first()
    assert first.join(best, on=["query_id", "item_id"]).height == len(questions)


def test_cold_means_no_event_at_all(world_split: Any, catalog: Catalog) -> None:
    vocab = Vocab.of_items(catalog)
    gone = [vocab.ids[3], vocab.ids[8]]
    assert {3, 8} <= set(cold_codes(hide(world_split.known, gone), vocab).tolist())
    assert set(vocab.decode(cold_codes(world_split.known, vocab))).isdisjoint(world_split.known.frame["item_id"])


def test_reciprocal_ranks_add_up_over_the_lists() -> None:
    def listed(*items: str) -> Candidates:
        rows = pl.DataFrame({"item_id": items, "score": 1.0, "rank": range(1, len(items) + 1)})
        said = {"source": pl.lit("x"), "served_by": pl.lit("candidates")}
        return Candidates(rows.with_columns(query_id=pl.lit(1, pl.Int64), **said))

    found = reciprocal_ranks({"x": listed("a", "b", "c"), "y": listed("c", "b")}, 2).frame
    assert found["item_id"].to_list() == ["c", "b"]
    assert found["score"].to_list() == pytest.approx([1 / 61 + 1 / 63, 2 / 62])


def test_a_source_that_knows_nothing_is_worth_nothing_and_the_one_that_knows_is_worth_much(
    fusion: Fusion, questions: Questions, catalog: Catalog, world_split: Any
) -> None:
    fused = target_ranks(fusion.generate(questions.queries, 50), questions.truth, by="score")
    rows = compare_sources(fusion, fused, questions, catalog, world_split.known, n=50, seed=0)
    assert [row["source"] for row in rows] == ["transitions", "popular", "content", "reciprocal ranks"]
    worth = {row["source"]: row["without"]["delta"] for row in rows if row["without"]}
    assert worth["transitions"] > 0.05
    assert abs(worth["popular"]) < 0.02
    assert rows[-1]["weight"] is None
    for row in rows:
        assert 0 < row["coverage@100"] <= 1
        assert row["popularity@10"] > 0
    json.dumps(rows)


def test_a_fusion_learned_without_a_source_gives_it_no_weight(fusion: Fusion, questions: Questions) -> None:
    assert fusion.report["without"]["popular"][1] == 0.0
    without = fusion.without_each(questions.queries, 10)
    bare = fitted_as(fusion)
    bare.weights = np.array(fusion.report["without"]["popular"])
    assert_same_candidates(without["popular"], bare.generate(questions.queries, 10))


def test_weights_stay_at_the_prior_under_a_heavy_ridge_and_leave_it_under_a_light_one(
    fusion: Fusion, world_split: Any
) -> None:
    asked = world_split.questions("tune")
    heldout = Heldout.of(list(fusion.sources.values()), asked, exclude_seen=True, seed=0)
    assert heldout.learn(1e6) == pytest.approx([0.5, 0.5, 0.5], abs=1e-3)
    assert np.abs(heldout.learn(1e-6) - 0.5).max() > 0.3
    assert heldout.reached(heldout.learn(1e-3)) > heldout.reached(np.array([0.0, 1.0, 0.0]))


def test_a_head_start_leaves_only_the_last_fit_to_do(world_split: Any, catalog: Catalog, monkeypatch: Any) -> None:
    early = CONFIG.fit(world_split.fit, catalog, seed=0)
    fits = []
    fit = TransitionsConfig.fit
    monkeypatch.setattr(TransitionsConfig, "fit", lambda *a, **k: fits.append(a[1]) or fit(*a, **k))
    start = HeadStart(early, world_split.questions("tune"))
    later = CONFIG.train(world_split.known, catalog, seed=0, start=start)
    assert [len(log) for log in fits] == [len(world_split.known)]
    whole = CONFIG.fit(world_split.known, catalog, seed=0)
    # Under leave-last tune's questions are the last events of all that is known: both ways learn from the same.
    assert later.weights == pytest.approx(whole.weights, abs=1e-3)


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan"), 0.0]])
def test_broken_weights_are_refused(fusion: Fusion, tmp_path: Path, weights: list[float]) -> None:
    fusion.save(tmp_path)
    body = json.loads((tmp_path / "fusion.json").read_text())
    (tmp_path / "fusion.json").write_text(json.dumps({**body, "weights": weights}))
    with pytest.raises(BundleError, match="must be as many numbers"):
        Fusion.load(tmp_path)


def test_part_of_a_row_is_standardised_as_the_whole_row_is() -> None:
    scores = np.array([[1.0, 2.0, 3.0, 10.0]], dtype=np.float32)
    part = standardised(scores[:, 1:3], scores.mean(axis=1), scores.std(axis=1))
    assert part == pytest.approx(standardised(scores)[:, 1:3])


def test_a_visitor_without_history_is_answered_from_the_pool(fusion: Fusion, questions: Questions) -> None:
    frame = questions.queries.frame.head(1).with_columns(pl.col("history", "weights", "times").list.head(0))
    pooled = fitted_as(fusion, pool_above=1)
    assert_same_candidates(pooled.generate(Queries(frame), 10), fusion.generate(Queries(frame), 10))
