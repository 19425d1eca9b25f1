"""The listwise fit: it finds what is there, and keeps the candidates' order where nothing is."""

import math

import numpy as np
import pytest

from recsys.rerank.fusion import Lists, fit_fusion, ndcg, standardise

GRID = (0.003, 0.03, 0.3, 1.0)
SIZE = 20


def made_lists(n: int, truth: dict[str, float], seed: int = 0) -> Lists:
    """Lists of noise features whose answers are drawn from the softmax with these true weights."""
    rng = np.random.default_rng(seed)
    names = tuple(truth)
    values = np.concatenate([np.stack([standardise(rng.normal(size=SIZE)) for _ in names], axis=1) for _ in range(n)])
    scores = (values @ np.array(list(truth.values()))).reshape(n, SIZE)
    gumbel = rng.gumbel(size=scores.shape)
    return Lists(names, values, np.full(n, SIZE), (scores + gumbel).argmax(axis=1), np.zeros(len(values)))


def fitted(lists: Lists, **changes: object) -> tuple[dict[str, float], object]:
    facts = {"base": "score", "lm_features": ("lm",), "grid": GRID, "certainty": 1.0, "seed": 0}
    asked = {"queries": 2 * len(lists), "with_answer": len(lists)}
    fusion, report = fit_fusion(lists, **{**facts, **asked, **changes})  # type: ignore[arg-type]
    return dict(fusion.weights), report


def test_a_feature_that_says_who_the_answer_is_gets_its_weight_and_lifts_ndcg() -> None:
    weights, report = fitted(made_lists(300, {"score": 1.0, "lm": 0.8}))
    assert 0.5 < weights["lm"] / weights["score"] < 1.1
    assert report.gain > 0  # type: ignore[attr-defined]
    assert report.without_lm < report.reranked  # type: ignore[attr-defined]
    assert "reranked" in report.verdict  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
def test_features_of_pure_noise_never_make_the_order_much_worse_on_new_lists(seed: int) -> None:
    truth = {"score": 1.0, "lm": 0.0, "log_popularity": 0.0, "log_rank": 0.0}
    weights, _ = fitted(made_lists(100, truth, seed))
    new = made_lists(4000, truth, seed=100 + seed)
    fused = ndcg(new, new.values @ np.array([weights[name] for name in new.names])).mean()
    assert fused >= ndcg(new, new.values[:, 0]).mean() - 0.01


def test_most_noise_is_refused_outright() -> None:
    truth = {"score": 1.0, "lm": 0.0}
    kept = [fitted(made_lists(100, truth, seed))[0]["lm"] == 0.0 for seed in range(8)]
    assert sum(kept) >= 5


def test_more_certainty_keeps_more_often_to_the_candidates() -> None:
    lists = made_lists(80, {"score": 1.0, "lm": 0.8})
    assert fitted(lists, certainty=0.0)[0]["lm"] > 0
    assert fitted(lists, certainty=50.0)[0]["lm"] == 0.0


def test_without_any_answer_in_the_lists_the_prior_is_kept() -> None:
    empty = Lists(
        ("score", "lm"), np.zeros((0, 2)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    )
    weights, report = fitted(empty, queries=40, with_answer=0)
    assert weights == {"score": 1.0, "lm": 0.0}
    assert "none of 40" in report.verdict  # type: ignore[attr-defined]


def test_one_list_is_too_few_to_learn_from() -> None:
    weights, report = fitted(made_lists(1, {"score": 1.0, "lm": 5.0}))
    assert weights == {"score": 1.0, "lm": 0.0}
    assert report.l2 is None  # type: ignore[attr-defined]


def test_the_fit_is_deterministic() -> None:
    lists = made_lists(120, {"score": 1.0, "lm": 0.5})
    assert fitted(lists) == fitted(lists)


def test_a_lists_scale_of_scores_changes_nothing_because_features_are_standardised() -> None:
    values = np.array([3.0, 1.0, 7.0])
    assert np.allclose(standardise(values), standardise(1000 * values - 5))
    assert standardise(np.full(4, 2.5)).tolist() == [0.0] * 4
    assert standardise(np.array([-1e300, 1e300])).tolist() == [0.0, 0.0]


def test_ndcg_is_the_expected_one_where_scores_tie() -> None:
    lists = Lists(("score",), np.zeros((6, 1)), np.array([3, 3]), np.array([0, 2]), np.zeros(6))
    scores = np.array([3.0, 2.0, 1.0, 5.0, 5.0, 5.0])
    assert ndcg(lists, scores).tolist() == pytest.approx([1.0, 1 / math.log2(3)])


def test_the_gain_counts_queries_without_their_answer_as_zero() -> None:
    lists = made_lists(300, {"score": 1.0, "lm": 0.8})
    all_hit = fitted(lists, queries=300, with_answer=300)[1]
    half_hit = fitted(lists, queries=600, with_answer=300)[1]
    assert half_hit.gain == pytest.approx(all_hit.gain / 2)  # type: ignore[attr-defined]
    assert half_hit.candidates == pytest.approx(all_hit.candidates / 2)  # type: ignore[attr-defined]


def test_limits_are_added_as_log_probabilities_and_nothing_is_learned_to_make_up_for_them() -> None:
    """Lists drawn from the softmax of features plus limits: the weights are found as if the limits were not there."""
    rng = np.random.default_rng(5)
    lists = made_lists(400, {"score": 1.5, "lm": 0.0}, seed=5)
    limits = np.where(rng.random(len(lists.values)) < 0.3, np.log(1e-4), 0.0)
    scores = (1.5 * lists.values[:, 0] + limits).reshape(-1, SIZE)
    answers = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    limited = Lists(lists.names, lists.values, lists.sizes, answers, limits)
    fusion, report = fit_fusion(
        limited,
        base="score",
        lm_features=("lm",),
        grid=GRID,
        certainty=1.0,
        queries=len(lists),
        with_answer=len(lists),
        seed=0,
    )
    assert abs(fusion.sharpness - 1.5) < 0.2
    assert abs(fusion.weights["lm"]) < 0.1
    assert report.reranked > report.candidates + 0.05
    assert abs(report.without_lm - report.candidates) < 0.02
    features = {"score": limited.values[:, 0], "lm": limited.values[:, 1]}
    fused = fusion.scores(features, limits)
    plain = fusion.scores(features)
    np.testing.assert_allclose(fused - plain, limits / fusion.sharpness)
