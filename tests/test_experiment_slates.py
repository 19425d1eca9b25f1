"""Metrics of slates, coverage and retention: each equals its definition by hand, and keeps its rate of false alarms."""

import math
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from test_experiment import half

from recsys.errors import DataError
from recsys.experiment import analyze
from recsys.experiment.readout import Comparison

START = date(2026, 3, 1)
CTR3 = {"name": "ctr", "kind": "ctr_at_k", "column": "clicked", "k": 3}
NDCG3 = {"name": "ndcg", "kind": "ndcg_at_k", "column": "clicked", "slate": "slate", "k": 3}
DIVERSE = {"name": "diverse", "kind": "diversity_at_k", "category": "genre", "slate": "slate", "k": 4}
COVERED = {"name": "covered", "kind": "coverage", "item": "item", "items": 60, "users": 20}


def shown(n: int = 200, seed: int = 0, spread: float = 1.0) -> pl.DataFrame:
    """Slates of five items; users have one to four, and tastes of their own. spread : of what B shows beside A."""
    rng = np.random.default_rng(seed)
    treated, taste = rng.random(n) < 0.5, rng.beta(2, 6, n)
    owner = np.repeat(np.arange(n), rng.integers(1, 5, n))
    rows = []
    for slate, user in enumerate(owner):
        reach = int(40 * (spread if treated[user] else 1.0))
        items = rng.choice(reach, 5, replace=False)
        rows += [(user, "AB"[int(treated[user])], slate, place + 1, int(i)) for place, i in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "variant", "slate", "rank", "item"], orient="row")
    clicked = rng.random(len(frame)) < taste[frame["user_id"].to_numpy()] * 0.9 ** frame["rank"].to_numpy()
    genre = (pl.col("item") % 4).replace_strict({0: "a", 1: "b", 2: "c", 3: "d"}).alias("genre")
    return frame.with_columns(pl.Series("clicked", clicked.astype(int)), genre)


def only(frame: pl.DataFrame, metric: dict[str, Any], **changes: Any) -> Comparison:
    shares = changes.pop("shares", {"A": 0.5, "B": 0.5})
    return analyze(half(metric, **changes).model_copy(update={"shares": shares}), frame.lazy()).comparisons[0]


def test_clicks_at_k_are_those_of_the_first_places() -> None:
    frame = shown()
    found = only(frame, CTR3)
    for name in "AB":
        own = frame.filter((pl.col("variant") == name) & (pl.col("rank") <= 3))
        assert found.estimates[name].value == pytest.approx(own["clicked"].mean())


def test_click_gain_is_ndcg_of_slates_with_a_click() -> None:
    frame = shown()
    found = only(frame, NDCG3)
    for name in "AB":
        gains = []
        for (_,), slate in frame.filter(pl.col("variant") == name).partition_by("slate", as_dict=True).items():
            clicks = slate.sort("rank")["clicked"].to_list()
            if any(clicks):
                dcg = sum(c / math.log2(place + 2) for place, c in enumerate(clicks[:3]))
                best = sum(1 / math.log2(place + 2) for place in range(min(sum(clicks), 3)))
                gains.append(dcg / best)
        assert found.estimates[name].value == pytest.approx(np.mean(gains))


def test_a_slate_whose_rows_claim_one_place_has_a_gain_of_at_most_one() -> None:
    first = shown().with_columns(rank=pl.lit(1), clicked=pl.lit(1))
    assert only(first, NDCG3).estimates["A"].value == pytest.approx(1.0)


def test_diversity_is_the_share_of_pairs_that_differ() -> None:
    frame = shown()
    found = only(frame, DIVERSE)
    for name in "AB":
        shares = []
        for (_,), slate in frame.filter(pl.col("variant") == name).partition_by("slate", as_dict=True).items():
            genres = slate.sort("rank")["genre"].to_list()[:4]
            pairs = [(a, b) for i, a in enumerate(genres) for b in genres[i + 1 :]]
            shares.append(np.mean([a != b for a, b in pairs]))
        assert found.estimates[name].value == pytest.approx(np.mean(shares))


def test_coverage_is_what_some_users_see_together_on_average() -> None:
    frame = shown()
    found = only(frame, COVERED)
    own = frame.filter(pl.col("variant") == "B")
    seen = [set(part["item"]) for part in own.partition_by("user_id")]
    rng = np.random.default_rng(0)
    drawn = [len(set().union(*(seen[i] for i in rng.choice(len(seen), 20, replace=False)))) for _ in range(4000)]
    assert found.estimates["B"].value == pytest.approx(np.mean(drawn) / 60, rel=0.005)


def test_a_variant_that_shows_more_of_the_catalog_covers_more_whatever_its_share() -> None:
    frame = shown(600, spread=1.4)
    assert only(frame, COVERED).decision == "better"
    fewer = frame.filter((pl.col("variant") == "A") | (pl.col("user_id") % 3 == 0))
    found = only(fewer, COVERED, shares={"A": 0.75, "B": 0.25})
    assert found.decision == "better"
    assert found.estimates["B"].value == pytest.approx(only(frame, COVERED).estimates["B"].value, abs=0.03)


def test_coverage_of_more_users_than_there_are_is_not_concluded_and_too_many_items_are_refused() -> None:
    assert only(shown(30), {**COVERED, "users": 100}).decision == "not concluded"
    with pytest.raises(DataError, match=r"holds \d+ items; coverage 'covered' says 10"):
        only(shown(), {**COVERED, "items": 10})


@pytest.mark.parametrize(
    "metric", [CTR3, NDCG3, DIVERSE, {**COVERED, "users": 5}], ids=lambda metric: str(metric["kind"])
)
def test_without_an_effect_p_values_are_uniform(metric: dict[str, Any]) -> None:
    """Users, not impressions, are what is independent."""
    p = [only(shown(120, seed), metric).effect.p for seed in range(120)]
    assert np.mean(np.array(p) < 0.05) <= stats.binom.ppf(0.999, 120, 0.05) / 120
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_units_without_a_slate_or_a_click_do_not_count() -> None:
    frame = shown().with_columns(
        slate=pl.when(pl.col("user_id") < 20).then(None).otherwise(pl.col("slate")),
    )
    readout = analyze(half(NDCG3), frame.lazy())
    assert any("20 units have no value of 'ndcg'" in warning for warning in readout.warnings)
    kept = only(frame.filter(pl.col("user_id") >= 20), NDCG3)
    assert readout.comparisons[0].effect.effect == pytest.approx(kept.effect.effect)


# Retention.


def test_retention_counts_who_came_back_and_waits_for_the_others() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for user in range(300):
        first = int(rng.integers(0, 6))
        rows.append((user, first))
        rows += [(user, first + d) for d in range(1, 10) if rng.random() < 0.2]
    frame = pl.DataFrame(rows, schema=["user_id", "d"], orient="row").filter(pl.col("d") < 10)
    frame = frame.with_columns(
        ts=pl.lit(START) + pl.duration(days=pl.col("d")),
        variant=pl.when(pl.col("user_id") % 2 == 0).then(pl.lit("A")).otherwise(pl.lit("B")),
    )
    metric = {"name": "back", "kind": "retention", "days": [3, 5]}
    readout = analyze(half(metric, time="ts"), frame.lazy())
    last = int(frame["d"].max())  # type: ignore[arg-type]
    for name, even in (("A", 0), ("B", 1)):
        back = []
        for (user,), own in frame.partition_by("user_id", as_dict=True).items():
            first = own["d"].min()
            if int(user) % 2 == even and first + 5 <= last:  # type: ignore[call-overload, operator]
                back.append(any(3 <= d - first <= 5 for d in own["d"]))  # type: ignore[operator]
        assert readout.comparisons[0].estimates[name].value == pytest.approx(np.mean(back))
        assert readout.comparisons[0].estimates[name].n == len(back)
    assert any("were not seen for 5 days" in warning for warning in readout.warnings)


def test_retention_may_ask_for_something_to_have_happened() -> None:
    days = [START, START + timedelta(days=7), START + timedelta(days=8)]
    frame = pl.DataFrame(
        {
            "user_id": [1, 1, 2, 2, 3, 3, 4, 4],
            "variant": ["A", "A", "A", "A", "B", "B", "B", "B"],
            "ts": [days[0], days[1], days[0], days[1], days[0], days[1], days[0], days[2]],
            "clicks": [0, 3, 2, 0, 0, 1, 5, 5],
        }
    )
    found = only(frame, {"name": "back", "kind": "retention", "column": "clicks"}, time="ts")
    assert {name: e.value for name, e in found.estimates.items()} == {"A": 0.5, "B": 0.5}
