"""Experiments in parts: segments, strata, days; the same figures by other means; who answered; planned looks."""

import math
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from test_experiment import CLICKS, CTR, half, units

from recsys.experiment import Experiment, analyze
from recsys.experiment.bayes import posterior
from recsys.experiment.effects import Effect, Estimate, compare
from recsys.experiment.metrics import Mean, Proportion
from recsys.experiment.overtime import Change
from recsys.experiment.readout import Readout
from recsys.experiment.segments import MOST, OTHER, shrink
from recsys.experiment.sequential import boundaries, boundary_at

START = date(2026, 3, 1)


def by_country(n: int, seed: int, lifts: dict[str, float], **columns: Any) -> pl.DataFrame:
    """A row a unit; clicks differ by country, and so does the lift."""
    rng = np.random.default_rng(seed)
    names = list(lifts)
    country = rng.integers(len(names), size=n)
    treated = rng.random(n) < 0.5
    level = 2.0 + 3 * country
    clicks = rng.poisson(level + treated * np.array(list(lifts.values()))[country])
    labels = pl.Series("country", [names[c] for c in country])
    variant = np.where(treated, "B", "A")
    return pl.DataFrame({"user_id": np.arange(n), "variant": variant, "clicks": clicks, **columns}).with_columns(labels)


# Segments.


def test_segments_are_each_analysed_as_if_alone() -> None:
    frame = by_country(4000, 0, {"DE": 0.5, "FR": 0.0, "IT": 0.0}, impressions=np.arange(4000) % 9 + 1)
    readout = analyze(half(CLICKS, CTR, segments=["country"]), frame.lazy())
    assert readout.segments.height == 6
    for part in readout.parts:
        own = frame.filter(pl.col("country") == part.value)
        alone = analyze(half(CLICKS if part.metric.name == "clicks" else CTR), own.lazy()).comparisons[0]
        assert part.effect.effect == pytest.approx(alone.effect.effect)
        assert part.effect.se == pytest.approx(alone.effect.se)


def effects_of(values: Any, errors: Any) -> list[Effect]:
    return [
        compare(Estimate(10**6, 0.0, 1e-9), Estimate(10**6, float(v), float(e) ** 2 * 1e6), 0.95, 1000)
        for v, e in zip(values, errors, strict=True)
    ]


def test_shrinking_gives_what_is_published_of_the_eight_schools() -> None:
    """Rubin's data, with a flat prior of the deviation: posterior means as in Gelman et al., Bayesian Data Analysis."""
    seen, errors = [28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]
    (q, p, deviation), drawn = shrink(effects_of(seen, errors), 0.95)
    np.testing.assert_allclose([at for at, _ in drawn], [11.4, 7.9, 6.1, 7.6, 5.1, 6.1, 10.6, 8.4], atol=0.35)
    assert deviation == pytest.approx(6.6, abs=0.5)
    weight = 1 / np.array(errors) ** 2
    assert q == pytest.approx(weight @ (np.array(seen) - weight @ seen / weight.sum()) ** 2, rel=1e-3)
    assert p == pytest.approx(stats.chi2.sf(q, 7))


def test_drawn_in_effects_are_nearer_the_truth_and_their_intervals_hold() -> None:
    """Twelve values with true effects around .1: the whole point of shrinking."""
    plain = better = held = 0.0
    rng = np.random.default_rng(0)
    for _ in range(200):
        truth = rng.normal(0.1, 0.05, 12)
        seen = truth + rng.normal(0, 0.1, 12)
        _, drawn = shrink(effects_of(seen, np.full(12, 0.1)), 0.95)
        at = np.array([a for a, _ in drawn])
        plain, better = plain + ((seen - truth) ** 2).sum(), better + ((at - truth) ** 2).sum()
        held += np.mean([low <= t <= high for t, (_, (low, high)) in zip(truth, drawn, strict=True)])
    assert better < 0.6 * plain
    assert 0.93 < held / 200 < 0.98


def test_of_many_segments_without_an_effect_none_is_shown_whatever_the_correction() -> None:
    shown = 0
    for seed in range(40):
        frame = by_country(1500, seed, {f"c{i}": 0.0 for i in range(15)})
        readout = analyze(half(segments=["country"], correction="none"), frame.lazy())
        shown += any(part.p_adjusted < 0.05 for part in readout.parts)
        assert min(part.effect.p for part in readout.parts) < 0.5
    assert shown <= stats.binom.ppf(0.995, 40, 0.05)


def test_segments_that_differ_are_said_to_and_others_are_not() -> None:
    differ = analyze(half(segments=["country"]), by_country(6000, 1, {"DE": 1.0, "FR": 0.0, "IT": 0.0}).lazy())
    assert differ.spreads[0].p_adjusted < 0.001
    assert differ.spreads[0].deviation > 0.2
    p = [
        analyze(half(segments=["country"]), by_country(600, s, {"DE": 0.3, "FR": 0.3}).lazy()).spreads[0].p
        for s in range(150)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_rare_values_are_one_and_units_with_several_or_none_stand_apart() -> None:
    frame = by_country(3000, 0, {f"c{i:02d}": 0.0 for i in range(MOST + 5)})
    frame = frame.with_columns(
        pl.when(pl.col("user_id") < 300).then(None).otherwise(pl.col("country")).alias("country")
    )
    moved = frame.filter(pl.col("user_id") >= 2700).with_columns(country=pl.lit("elsewhere"))
    readout = analyze(half(segments=["country"]), pl.concat([frame, moved]).lazy())
    values = {part.value for part in readout.parts}
    assert len(values) == MOST + 1
    assert {OTHER, "(unknown)", "(several)"} <= values
    assert sum(sum(part.n.values()) for part in readout.parts) == 3000


def test_a_ratio_that_is_broken_in_one_segment_is_pointed_out() -> None:
    frame = by_country(4000, 0, {"DE": 0.0, "FR": 0.0})
    lost = frame.filter(~((pl.col("country") == "DE") & (pl.col("variant") == "B") & (pl.col("user_id") % 3 == 0)))
    readout = analyze(half(segments=["country"]), lost.lazy())
    assert any("Sample-ratio mismatch where 'country' is DE" in warning for warning in readout.warnings)


# Strata.


def test_post_stratified_is_its_formula_and_explains_what_strata_do() -> None:
    frame = by_country(3000, 0, {"DE": 0.3, "FR": 0.3, "IT": 0.3})
    plain, found = (analyze(half(strata=s), frame.lazy()).comparisons[0] for s in (None, "country"))
    total, effect, variance = len(frame), 0.0, 0.0
    for (_,), part in frame.partition_by("country", as_dict=True).items():
        share = len(part) / total
        a, b = (part.filter(pl.col("variant") == v)["clicks"].to_numpy() for v in "AB")
        effect += share * (b.mean() - a.mean())
        variance += share**2 * (a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    assert found.effect.effect == pytest.approx(effect)
    assert found.effect.se == pytest.approx(math.sqrt(variance))
    assert found.variance_reduction == pytest.approx(1 - variance / plain.effect.se**2)
    assert found.variance_reduction > 0.3
    assert "post-stratified" in found.method


def test_strata_with_covariates_and_ratios_keep_their_rate() -> None:
    p: dict[str, list[float]] = {"cuped": [], "ratio": []}
    for seed in range(150):
        rng = np.random.default_rng((seed, 9))
        frame = by_country(400, seed, {"DE": 0.0, "FR": 0.0}).with_columns(
            pre=pl.col("clicks") + pl.Series(rng.normal(0, 1, 400)), shown=pl.Series(rng.integers(5, 30, 400))
        )
        readout = analyze(
            half({**CLICKS, "name": "cuped", "covariate": "pre"}, CTR | {"denominator": "shown"}, strata="country"),
            frame.lazy(),
        )
        for own, c in zip(p.values(), readout.comparisons, strict=True):
            own.append(c.effect.p)
    for own in p.values():
        assert stats.kstest(own, "uniform").pvalue > 0.001


def test_strata_too_small_to_stand_alone_are_put_together() -> None:
    frame = by_country(1000, 0, {"DE": 0.0, "FR": 0.0}).with_columns(
        country=pl.when(pl.col("user_id") < 2).then(pl.lit("LU")).otherwise(pl.col("country"))
    )
    readout = analyze(half(strata="country"), frame.lazy())
    assert any("too small" in warning and "LU" in warning for warning in readout.warnings)
    assert math.isfinite(readout.comparisons[0].effect.se)


# The same by other means.


def test_a_normal_posterior_is_its_formula() -> None:
    control, treatment = Estimate(1000, 1.0, 4.0), Estimate(1000, 1.2, 4.0)
    effect = compare(control, treatment, 0.95, 1000)
    metric = Mean(name="m", column="x", prior=0.1)
    found = posterior(metric, control, treatment, effect, 0.95)
    precision = 1 / effect.se**2 + 1 / 0.1**2
    mean, deviation = effect.effect / effect.se**2 / precision, precision**-0.5
    assert found.better == pytest.approx(stats.norm.cdf(mean / deviation))
    draws = np.random.default_rng(0).normal(mean, deviation, 400_000)
    assert found.loss == pytest.approx(np.maximum(-draws, 0).mean(), rel=0.05)
    assert np.mean(found.ci) == pytest.approx(mean)
    flat = posterior(Mean(name="m", column="x"), control, treatment, effect, 0.95)
    assert flat.better > found.better
    down = posterior(Mean(name="m", column="x", direction="down"), control, treatment, effect, 0.95)
    assert down.better == pytest.approx(1 - flat.better)
    assert down.loss > flat.loss


@pytest.mark.parametrize(("a", "b", "n"), [(0.1, 0.13, 500), (0.5, 0.48, 60), (0.0, 0.02, 100)])
def test_two_betas_are_compared_as_draws_of_them_are(a: float, b: float, n: int) -> None:
    control, treatment = Estimate(n, a, a * (1 - a)), Estimate(n, b, b * (1 - b))
    metric = Proportion(name="m", column="x")
    found = posterior(metric, control, treatment, compare(control, treatment, 0.95, 1000), 0.95)
    rng = np.random.default_rng(0)
    one, other = (rng.beta(1 + round(p * n), 1 + n - round(p * n), 1_000_000) for p in (a, b))
    assert found.better == pytest.approx((other > one).mean(), abs=0.003)
    assert found.loss == pytest.approx(np.maximum(one - other, 0).mean(), rel=0.02, abs=1e-5)
    np.testing.assert_allclose(found.ci, np.quantile(other - one, [0.025, 0.975]), atol=0.002)


def test_resampling_agrees_with_the_formula_and_says_where_it_does_not() -> None:
    rng = np.random.default_rng(0)
    frame = units(1500, x=rng.normal(size=1500), shown=rng.integers(1, 9, 1500)).with_columns(
        clicks=pl.col("clicks") + pl.col("x")
    )
    metrics = [{**CLICKS, "name": "cuped", "covariate": "x"}, CTR | {"denominator": "shown"}]
    readout = analyze(half(*metrics, bootstrap=800), frame.lazy())
    for c in readout.comparisons:
        assert c.bootstrap_se == pytest.approx(c.effect.se, rel=0.1)
    assert not [warning for warning in readout.warnings if "Resampling" in warning]
    few = units(300).with_columns(
        shown=pl.when(pl.col("user_id") % 30 == 7).then(300).otherwise(0), clicks=pl.col("clicks") * 40
    )
    odd = analyze(half(CTR | {"denominator": "shown"}, bootstrap=800), few.lazy())
    assert [warning for warning in odd.warnings if "Resampling" in warning]


# Days.


def visits(seed: int, lift: float, fresh: float = 0.0, n: int = 1500, days: int = 12) -> pl.DataFrame:
    """A row a visit; units come in over the first days and are at their busiest on the day they come; what is `fresh`
    of the lift is there in the first three days only."""
    rng = np.random.default_rng(seed)
    treated, first = rng.random(n) < 0.5, rng.integers(0, 4, n)
    rows = []
    for day in range(days):
        here = np.flatnonzero((first == day) | ((first < day) & (rng.random(n) < 0.4)))
        gain = treated[here] * (lift + fresh * (day - first[here] < 3))
        clicks = rng.poisson(2 * (1 + gain))
        rows.append(
            pl.DataFrame(
                {"user_id": here, "variant": np.where(treated, "B", "A")[here], "clicks": clicks, "impressions": 10}
            ).with_columns(ts=pl.lit(START + timedelta(days=day)))
        )
    return pl.concat(rows)


def test_the_effect_up_to_a_day_is_that_of_the_rows_up_to_it() -> None:
    frame = visits(0, 0.1)
    readout = analyze(half(CLICKS, CTR | {"role": "secondary"}, time="ts"), frame.lazy())
    assert {look.metric.name for look in readout.looks} == {"clicks"}
    assert [look.day for look in readout.looks] == [START + timedelta(days=d) for d in range(12)]
    for look in readout.looks[3::4]:
        own = analyze(half(time="ts"), frame.filter(pl.col("ts") <= look.day).lazy()).comparisons[0].effect
        assert look.effect.effect == pytest.approx(own.effect)
        assert look.effect.sequential_ci == pytest.approx(own.sequential_ci)
    assert readout.looks[-1].effect.effect == pytest.approx(readout.comparisons[0].effect.effect)


def _changes(seed: int, lift: float, fresh: float = 0.0) -> tuple[Readout, tuple[Change, ...]]:
    readout = analyze(half(CLICKS, CTR, time="ts"), visits(seed, lift, fresh).lazy())
    return readout, readout.changes


def test_a_lift_that_wears_off_is_pointed_out_and_one_that_lasts_is_not() -> None:
    readout, found = _changes(0, 0.15, fresh=0.4)
    assert [c.metric.name for c in found] == ["clicks", "ctr"]
    assert all(c.days == 3 and c.p_adjusted < 0.01 and c.early > c.late for c in found)
    assert any("wears off" in warning for warning in readout.warnings)
    p = [c.p for seed in range(30) for c in _changes(seed, 0.3)[1][:1]]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_rows_from_before_a_units_exposure_are_left_out_and_counted() -> None:
    frame = visits(0, 0.0).with_columns(exposed=pl.lit(START + timedelta(days=2)))
    readout = analyze(half(time="ts", exposed="exposed"), frame.lazy())
    early = frame.filter(pl.col("ts") < pl.col("exposed"))
    assert readout.survey.early == len(early) > 0
    assert any("before their unit's exposure" in warning for warning in readout.warnings)
    kept = analyze(half(time="ts"), frame.filter(pl.col("ts") >= pl.col("exposed")).lazy())
    assert readout.comparisons[0].effect.effect == pytest.approx(kept.comparisons[0].effect.effect)
    assert readout.comparisons[0].effect.se == pytest.approx(kept.comparisons[0].effect.se)


# Who answered.


def test_a_variant_that_another_stage_answered_for_is_pointed_out() -> None:
    frame = units(4000).with_columns(
        served=pl.when((pl.col("variant") == "B") & (pl.col("user_id") % 10 == 0))
        .then(pl.lit("candidates"))
        .otherwise(pl.lit("reranker"))
    )
    readout = analyze(half(served_by="served"), frame.lazy())
    shares = {(row["variant"], row["served_by"]): row["share"] for row in readout.served.iter_rows(named=True)}
    assert shares["A", "reranker"] == 1
    assert shares["B", "candidates"] == pytest.approx(0.1, abs=0.02)
    warned = [warning for warning in readout.warnings if "served by" in warning]
    assert len(warned) == 1
    assert "by candidates" in warned[0]


# Planned looks.


def looking(n: int, planned: int, looks: tuple[float, ...], shift: float, seed: int = 0) -> Readout:
    frame = units(n, seed).with_columns(clicks=pl.col("clicks") + shift * (pl.col("variant") == "B"))
    return analyze(half(looks=looks, planned=planned), frame.lazy())


def test_a_look_is_decided_by_its_boundary() -> None:
    looks = (0.25, 0.5, 0.75, 1.0)
    edges = boundaries(looks)
    early = looking(1000, 4000, looks, 0.2)
    assert early.comparisons[0].boundary == pytest.approx(edges[0])
    assert early.comparisons[0].effect.p < 0.05
    assert early.comparisons[0].decision == "no difference shown"
    assert early.decision.endswith("yet.")
    assert looking(1000, 4000, looks, 1.0).comparisons[0].decision == "better"
    assert looking(500, 4000, looks, 1.0).comparisons[0].boundary == math.inf
    late = looking(4400, 4000, looks, 0.2)
    assert late.comparisons[0].boundary == pytest.approx(edges[-1])
    assert late.comparisons[0].decision == "better"
    # Between planned looks the error is spent as far as the information goes.
    assert boundary_at(0.6, looks) == pytest.approx(boundaries([0.25, 0.6])[-1])


def test_planned_looks_keep_their_error_over_all_of_them() -> None:
    looks, alarms = (0.5, 1.0), 0
    for seed in range(120):
        frame = units(800, seed)
        plan = half(looks=looks, planned=800, spending="pocock")
        alarms += any(
            analyze(plan, part.lazy()).comparisons[0].decision in ("better", "worse")
            for part in (frame.sample(400, seed=seed), frame)
        )
    assert alarms <= stats.binom.ppf(0.995, 120, 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"looks": (0.5, 1.0)}, "planned: say how many units"),
        ({"looks": (0.5, 0.9), "planned": 100}, "looks: the last must be 1"),
        ({"looks": (0.9, 0.5, 1.0), "planned": 100}, "looks: must rise"),
        ({"exposed": "ts"}, "time: name the column .* exposed"),
        ({"metrics": [{"name": "r", "kind": "retention"}]}, "time: name the column .* retention 'r'"),
    ],
)
def test_wrong_plans_of_parts_are_refused(change: dict[str, Any], message: str) -> None:
    base = {"name": "e", "control": "A", "shares": {"A": 0.5, "B": 0.5}, "metrics": [CLICKS]}
    with pytest.raises(ValueError, match=message):
        Experiment.model_validate(base | change)
