"""Metrics against an independent implementation and by hand; intervals and p values against simulated truth."""

import math
from collections.abc import Sequence

import ir_measures
import numpy as np
import polars as pl
import pytest

from recsys import metrics
from recsys.errors import DataError
from recsys.tables import Candidates, Catalog, Truth


def lists(rows: Sequence[tuple[int, int, float]]) -> Candidates:
    """Candidates from (query, item, score); ranks follow the order of the rows."""
    frame = pl.DataFrame(rows, schema={"query_id": pl.Int64, "item_id": pl.Int64, "score": pl.Float64}, orient="row")
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("query_id")
    return Candidates(frame.with_columns(rank=rank, source=pl.lit("x"), served_by=pl.lit("candidates")))


def answers(*rows: tuple[int, int]) -> Truth:
    return Truth(pl.DataFrame(rows, schema={"query_id": pl.Int64, "item_id": pl.Int64}, orient="row"))


def items(n: int) -> Catalog:
    schema = {"item_id": pl.Int64, "title": pl.String, "text": pl.String}
    return Catalog(pl.DataFrame({"item_id": range(n), "title": ["t"] * n, "text": ["t"] * n}, schema=schema))


def random_lists(seed: int, queries: int, n_items: int, length: int) -> tuple[Candidates, Truth]:
    """Lists of distinct scores in random order, and an answer per query that is in some of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for query in range(queries):
        chosen = rng.choice(n_items, length, replace=False)
        scores = np.sort(rng.normal(size=length))[::-1]
        rows += [(query, int(item), float(score)) for item, score in zip(chosen, scores, strict=True)]
    return lists(rows), answers(*((query, int(rng.integers(n_items))) for query in range(queries)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, 10, 50, 100])
def test_every_metric_of_every_query_equals_an_independent_implementation(seed: int, k: int) -> None:
    candidates, truth = random_lists(seed, queries=60, n_items=150, length=120)
    ranks = metrics.target_ranks(candidates, truth, by="score")
    ours = {
        ir_measures.nDCG @ k: metrics.ndcg(ranks["rank"], k),
        ir_measures.R @ k: metrics.recall(ranks["rank"], k),
        ir_measures.RR @ k: metrics.mrr(ranks["rank"], k),
    }
    assert 0 < ranks["rank"].null_count() < len(ranks)
    qrels = [ir_measures.Qrel(str(q), str(i), 1) for q, i in truth.frame.iter_rows()]
    run = [
        ir_measures.ScoredDoc(str(q), str(i), s)
        for q, i, s in candidates.frame.select("query_id", "item_id", "score").iter_rows()
    ]
    seen = 0
    for theirs in ir_measures.iter_calc(list(ours), qrels, run):
        assert ours[theirs.measure][int(theirs.query_id)] == pytest.approx(theirs.value, abs=1e-9)
        seen += 1
    assert seen == 3 * len(truth)


def test_stage_metrics_equal_an_independent_implementation() -> None:
    candidates, truth = random_lists(9, queries=80, n_items=130, length=110)
    ranks = metrics.target_ranks(candidates, truth, by="rank")["rank"]
    found = metrics.stage_metrics(ranks, candidates, items(130), seed=0)
    measures = {
        "ndcg@10": ir_measures.nDCG @ 10,
        "recall@10": ir_measures.R @ 10,
        "mrr@10": ir_measures.RR @ 10,
        "recall@50": ir_measures.R @ 50,
        "recall@100": ir_measures.R @ 100,
    }
    qrels = [ir_measures.Qrel(str(q), str(i), 1) for q, i in truth.frame.iter_rows()]
    run = [
        ir_measures.ScoredDoc(str(r["query_id"]), str(r["item_id"]), r["score"]) for r in candidates.frame.to_dicts()
    ]
    theirs = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    for name, measure in measures.items():
        assert found[name] == pytest.approx(theirs[measure], abs=1e-9)
        lower, upper = found["ci95"][name]
        assert 0 <= lower < found[name] < upper <= 1
    assert list(found) == [
        "ndcg@10",
        "recall@10",
        "mrr@10",
        "recall@50",
        "recall@100",
        "coverage@10",
        "coverage@100",
        "ci95",
    ]
    assert list(found["ci95"]) == list(measures)


def test_a_tie_counts_at_its_expected_rank() -> None:
    candidates = lists([(1, 10, 3.0), (1, 11, 2.0), (1, 12, 2.0), (1, 13, 2.0), (1, 14, 1.0)])
    by_score = [
        metrics.target_ranks(candidates, answers((1, i)), by="score")["rank"].item() for i in (10, 11, 12, 13, 14)
    ]
    assert by_score == [1.0, 3.0, 3.0, 3.0, 5.0]
    two = lists([(1, 10, 0.5), (1, 11, 0.5)])
    assert metrics.target_ranks(two, answers((1, 10)), by="score")["rank"].item() == 1.5


def test_a_model_that_gives_everything_the_same_score_gains_nothing_by_it() -> None:
    flat = lists([(1, item, 0.0) for item in range(101)])
    for item in (0, 50, 100):
        rank = metrics.target_ranks(flat, answers((1, item)), by="score")["rank"]
        assert rank.item() == 51.0
        assert metrics.recall(rank, 50).item() == 0.0


def test_by_rank_takes_the_order_as_served() -> None:
    candidates = lists([(1, 10, 0.5), (1, 11, 0.5), (1, 12, 0.9)])
    ranks = [metrics.target_ranks(candidates, answers((1, i)), by="rank")["rank"].item() for i in (10, 11, 12)]
    assert ranks == [1.0, 2.0, 3.0]


def test_a_query_without_candidates_or_without_its_item_is_kept_with_a_null_in_the_order_of_the_truth() -> None:
    candidates = lists([(1, 10, 2.0), (1, 11, 1.0), (7, 99, 1.0)])
    found = metrics.target_ranks(candidates, answers((3, 10), (1, 11), (7, 10)), by="score")
    assert found.to_dict(as_series=False) == {
        "query_id": [3, 1, 7],
        "item_id": [10, 11, 10],
        "rank": [None, 2.0, None],
    }
    assert found.schema["rank"] == pl.Float64
    assert metrics.recall(found["rank"], 10).tolist() == [0.0, 1.0, 0.0]


def test_ids_of_another_type_are_an_error_and_not_a_miss() -> None:
    truth = Truth(pl.DataFrame({"query_id": ["1"], "item_id": [10]}))
    with pytest.raises(DataError, match="column 'query_id' is String in one and Int64 in the other"):
        metrics.target_ranks(lists([(1, 10, 1.0)]), truth, by="rank")


def test_metrics_by_hand() -> None:
    ranks = [1.0, 2.0, 2.5, 10.0, 10.5, None]
    assert metrics.ndcg(ranks, 10) == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(3.5), 1 / math.log2(11), 0, 0])
    assert metrics.mrr(ranks, 10) == pytest.approx([1, 0.5, 0.4, 0.1, 0, 0])
    assert metrics.recall(ranks, 10).tolist() == [1, 1, 1, 1, 0, 0]
    assert metrics.recall(ranks, 2).tolist() == [1, 1, 0, 0, 0, 0]
    assert metrics.recall(np.array([1.0, np.nan]), 5).tolist() == [1, 0]
    assert metrics.recall(pl.Series([None, 3], dtype=pl.Int64), 5).tolist() == [0, 1]
    assert metrics.ndcg([], 10).tolist() == []


def test_coverage_counts_each_catalog_item_once_and_strangers_never() -> None:
    candidates = lists([(1, 0, 3.0), (1, 1, 2.0), (1, 2, 1.0), (2, 0, 3.0), (2, 77, 2.0), (2, 3, 1.0)])
    assert metrics.coverage(candidates, items(8), 2) == 2 / 8
    assert metrics.coverage(candidates, items(8), 3) == 4 / 8
    assert metrics.coverage(candidates, items(0), 3) == 0


@pytest.mark.parametrize("n", [60, 300])
def test_the_interval_of_a_mean_covers_the_true_mean_at_its_rate_and_stays_in_bounds(n: int) -> None:
    rng = np.random.default_rng(n)
    ranks = np.floor(np.exp(rng.uniform(0, 7, size=200_000)))
    population = metrics.ndcg(ranks, 10)
    samples = rng.choice(population, size=(300, n))
    intervals = [metrics.mean_interval(sample, seed=i) for i, sample in enumerate(samples)]
    covered = np.mean([lower <= population.mean() <= upper for lower, upper in intervals])
    assert 0.91 <= covered <= 0.98
    assert min(lower for lower, _ in intervals) >= 0


def test_a_higher_confidence_gives_a_wider_interval_around_the_mean() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    narrow, wide = metrics.mean_interval(values, 0.8), metrics.mean_interval(values, 0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


def test_the_paired_interval_covers_the_true_difference_at_its_rate() -> None:
    rng = np.random.default_rng(4)
    ranks = np.floor(np.exp(rng.uniform(0, 6, size=200_000)))
    moved = np.maximum(1, ranks - rng.integers(-2, 4, size=len(ranks)))
    base, better = metrics.ndcg(ranks, 10), metrics.ndcg(moved, 10)
    covered = []
    for seed in range(300):
        users = rng.integers(len(ranks), size=200)
        lower, upper = metrics.paired(better[users], base[users], seed=seed).ci95
        covered.append(lower <= better.mean() - base.mean() <= upper)
    assert 0.91 <= np.mean(covered) <= 0.98


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(6, size=(2, 400, 40)).astype(float)
    p = np.array([metrics.paired(a[i], b[i], seed=i).p for i in range(400)])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs(np.mean(p <= level) - level) < 4 * math.sqrt(level * (1 - level) / 400)


def test_p_of_a_few_differences_is_the_exact_one() -> None:
    # Of the 2^5 sign patterns of five equal differences two are as extreme as the observed one.
    assert metrics.paired([1.0] * 5, [0.0] * 5, seed=0).p == pytest.approx(2 / 32, abs=0.01)
    assert metrics.paired([0.0] * 5, [1.0] * 5, seed=0).p == pytest.approx(2 / 32, abs=0.01)


def test_p_is_never_zero() -> None:
    found = metrics.paired([1.0] * 200, [0.0] * 200, seed=0)
    assert found.p == 1 / (metrics.RESAMPLES + 1)
    assert found.delta == 1
    assert found.relative is None


def test_no_difference_anywhere_is_no_evidence() -> None:
    values = [0.0, 0.5, 1.0]
    assert metrics.paired(values, values, seed=0) == metrics.Paired(0.0, 0.0, (0.0, 0.0), 1.0, 3)
    assert metrics.paired([0.0], [0.0], seed=0).p == 1


def test_differences_that_cancel_leave_p_at_one() -> None:
    gains = [0.1, 0.2, 0.3, -0.1, -0.2, -0.3]
    assert metrics.paired(gains, [0.0] * 6, seed=3).p == 1


def test_a_comparison_reports_delta_relative_and_n() -> None:
    found = metrics.paired([0.3, 0.5, 0.4], [0.2, 0.2, 0.2], seed=0)
    assert (found.delta, found.relative) == pytest.approx((0.2, 1.0))
    assert found.n == 3
    assert found.row() == {"delta": found.delta, "relative": found.relative, "ci95": list(found.ci95), "p": found.p}


def test_the_order_of_queries_changes_nothing() -> None:
    rng = np.random.default_rng(6)
    a, b, order = rng.uniform(size=500), rng.uniform(size=500), rng.permutation(500)
    assert metrics.paired(a, b, seed=1) == metrics.paired(a[order], b[order], seed=1)
    assert metrics.mean_interval(a, seed=1) == metrics.mean_interval(a[order], seed=1)
    assert metrics.paired(a, b, seed=1) != metrics.paired(a, b, seed=2)


def test_equal_values_leave_no_doubt_about_their_mean() -> None:
    assert metrics.mean_interval([0.04] * 12) == pytest.approx((0.04, 0.04))


def test_many_distinct_values_are_resampled_in_blocks_to_the_normal_interval() -> None:
    values = np.random.default_rng(7).normal(size=3000)
    assert len(values) * metrics.RESAMPLES > metrics.BLOCK_COUNTS
    lower, upper = metrics.mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (lower, upper) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "no queries were evaluated"),
        ([1.0, 2.0], [1.0], "2 values against 1"),
        ([1.0, math.nan], [1.0, 1.0], "metric of query 1 is not a finite number"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.paired(a, b, seed=0)
