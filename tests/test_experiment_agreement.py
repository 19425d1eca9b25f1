"""The analysis agrees with what experts trust: tea-tasting, statsmodels, scipy, and formulas of gbstats and confseq."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tea_tasting as tt
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.proportion import proportions_ztest

from recsys.experiment import Experiment, analyze
from recsys.experiment.multiple import adjust
from recsys.experiment.power import detectable, power, sample_size
from recsys.experiment.readout import Comparison, Readout
from recsys.experiment.sequential import always_valid_p, halfwidth

CLOSE = 1e-6
METRICS: list[dict[str, Any]] = [
    {"name": "clicks", "kind": "mean", "column": "clicks"},
    {"name": "cuped", "kind": "mean", "column": "clicks", "covariate": "pre_clicks"},
    {"name": "bought", "kind": "proportion", "column": "bought"},
    {"name": "pooled", "kind": "proportion", "column": "bought", "test": "pooled"},
    {"name": "ctr", "kind": "ratio", "numerator": "clicks", "denominator": "impressions"},
    {
        "name": "ctr cuped",
        "kind": "ratio",
        "numerator": "clicks",
        "denominator": "impressions",
        "covariate": "pre_clicks",
        "covariate_denominator": "pre_impressions",
    },
    {"name": "slow", "kind": "quantile", "column": "seconds", "q": 0.9},
]


def exposures(n: int = 3000, seed: int = 0, lift: float = 0.1) -> pl.DataFrame:
    """Several rows a unit; heavy and light units; a covariate from before."""
    rng = np.random.default_rng(seed)
    treated, taste = rng.random(n) < 0.4, rng.gamma(2, 1, n)
    pre_impressions = 1 + rng.poisson(20, n)
    pre = rng.poisson(taste * pre_impressions * 0.05)
    unit = np.repeat(np.arange(n), rng.integers(1, 6, n))
    impressions = rng.integers(1, 10, len(unit))
    clicks = rng.binomial(impressions, np.clip(taste * 0.05 * (1 + lift * treated), 0, 1)[unit])
    return pl.DataFrame(
        {
            "user_id": unit,
            "variant": np.where(treated, "B", "A")[unit],
            "clicks": clicks,
            "impressions": impressions,
            "pre_clicks": pre[unit],
            "pre_impressions": pre_impressions[unit],
            "bought": (clicks > 2).astype(int),
            "seconds": rng.lognormal(0, 1, len(unit)) * (1 + taste)[unit],
        }
    )


def plan(metrics: list[dict[str, Any]] | None = None, **changes: Any) -> Experiment:
    given = {
        "name": "e",
        "control": "A",
        "shares": {"A": 0.6, "B": 0.4},
        "metrics": METRICS if metrics is None else metrics,
    }
    return Experiment.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return exposures()


@pytest.fixture(scope="module")
def readout(rows: pl.DataFrame) -> Readout:
    return analyze(plan(), rows.lazy())


@pytest.fixture(scope="module")
def units(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("user_id").agg(
        pl.col("variant", "pre_clicks", "pre_impressions").first(),
        pl.col("clicks", "impressions").sum(),
        pl.col("bought").max(),
    )


def by_name(readout: Readout) -> dict[str, Comparison]:
    return {c.metric.name: c for c in readout.comparisons}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("clicks", tt.Mean("clicks")),
        ("cuped", tt.Mean("clicks", covariate="pre_clicks")),
        ("bought", tt.Mean("bought")),
        ("ctr", tt.RatioOfMeans("clicks", "impressions")),
        ("ctr cuped", tt.RatioOfMeans("clicks", "impressions", "pre_clicks", "pre_impressions")),
        ("pooled", tt.Proportion("bought", method="norm", correction=False)),
    ],
)
def test_effects_are_tea_tastings(name: str, metric: Any, readout: Readout, units: pl.DataFrame) -> None:
    theirs = tt.Experiment(m=metric, variant="variant").analyze(units, control="A")["m"]
    ours = by_name(readout)[name].effect
    found = (ours.effect, *ours.ci, ours.p, ours.relative, *ours.relative_ci)
    expected = (
        theirs.effect_size,
        theirs.effect_size_ci_lower,
        theirs.effect_size_ci_upper,
        theirs.pvalue,
        theirs.rel_effect_size,
        theirs.rel_effect_size_ci_lower,
        theirs.rel_effect_size_ci_upper,
    )
    if name == "pooled":  # their relative interval is pooled, too, on the scale of odds of nothing; ours is Welch's way
        found, expected = found[:5], expected[:5]
    assert found == pytest.approx(expected, rel=CLOSE)
    if hasattr(theirs, "statistic"):
        assert ours.effect / ours.se == pytest.approx(theirs.statistic, rel=CLOSE)


def test_the_pooled_test_is_statsmodels(readout: Readout, units: pl.DataFrame) -> None:
    counts = units.group_by("variant").agg(pl.col("bought").sum(), pl.len()).sort("variant", descending=True)
    z, p = proportions_ztest(counts["bought"].to_numpy(), counts["len"].to_numpy())
    ours = by_name(readout)["pooled"].effect
    assert (ours.effect / ours.se, ours.p) == pytest.approx((z, p), rel=CLOSE)


def test_welch_is_scipys(readout: Readout, units: pl.DataFrame) -> None:
    values = [units.filter(pl.col("variant") == name)["clicks"].to_numpy() for name in ("B", "A")]
    theirs = stats.ttest_ind(*values, equal_var=False)
    ours = by_name(readout)["clicks"].effect
    assert (ours.p, *ours.ci) == pytest.approx((theirs.pvalue, *theirs.confidence_interval()), rel=CLOSE)
    assert ours.df == pytest.approx(theirs.df, rel=CLOSE)


def test_a_quantile_is_gbstats(rows: pl.DataFrame, readout: Readout) -> None:
    """By its published formulas (`QuantileClusteredStatistic`), variant by variant."""
    comparison, z = by_name(readout)["slow"], stats.norm.ppf(0.975)
    errors = []
    for name in ("A", "B"):
        own = rows.filter(pl.col("variant") == name)
        values, n = own["seconds"].to_numpy(), len(own)
        found = np.quantile(values, 0.9)
        apart = z * math.sqrt(0.9 * 0.1 / n)
        low, high = np.quantile(values, [0.9 - apart, 0.9 + apart])
        clusters = own.group_by("user_id").agg((pl.col("seconds") <= found).sum().alias("s"), pl.len().alias("n"))
        s, m = clusters["s"].to_numpy().astype(float), clusters["n"].to_numpy().astype(float)
        spread = np.cov(s, m)
        share = s.mean() / m.mean()
        variance = (spread[0, 0] - 2 * share * spread[0, 1] + share**2 * spread[1, 1]) / (len(s) * m.mean() ** 2)
        independent = (n - 1) * ((high - low) / (2 * z)) ** 2
        errors.append(independent * variance / (0.9 * 0.1 / n) / n)
        assert comparison.estimates[name].value == pytest.approx(found, rel=CLOSE)
    assert comparison.effect.se == pytest.approx(math.sqrt(sum(errors)), rel=CLOSE)


def test_the_sample_ratio_is_tea_tastings(readout: Readout, units: pl.DataFrame) -> None:
    metric = tt.SampleRatio({"A": 0.6, "B": 0.4}, method="norm", correction=False)
    theirs = tt.Experiment(m=metric, variant="variant").analyze(units, control="A")["m"]
    assert readout.ratio.p == pytest.approx(theirs.pvalue, rel=CLOSE)
    counts = [readout.ratio.counts[name] for name in ("A", "B")]
    assert readout.ratio.p == pytest.approx(
        stats.chisquare(counts, [0.6 * sum(counts), 0.4 * sum(counts)]).pvalue, rel=CLOSE
    )


@pytest.mark.parametrize(("effect", "se", "n"), [(0.3, 0.1, 500), (-0.02, 0.011, 20_000), (0.0, 1.0, 30)])
def test_sequential_intervals_are_gbstats_and_confseqs(effect: float, se: float, n: int) -> None:
    """By their formulas: equations 9, 155 and 161 of Waudby-Smith et al., and the boundary of Howard et al."""
    alpha, planned = 0.05, 5000
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / planned)
    wide = math.sqrt(se**2 * n) * math.sqrt(
        2 * (n * rho**2 + 1) * math.log(math.sqrt(n * rho**2 + 1) / alpha) / (n * rho) ** 2
    )
    assert halfwidth(se, n, alpha, planned) == pytest.approx(wide, rel=CLOSE)
    squared = n * rho**2
    evidence = math.exp(rho**2 * effect**2 * n / se**2 / (2 * (squared + 1))) / math.sqrt(squared + 1)
    assert always_valid_p(effect, se, n, alpha, planned) == pytest.approx(min(1, 1 / evidence), rel=CLOSE)
    # confseq's two-sided normal mixture bounds a sum with variance v = n; ours is that of a mean of unit deviation.
    mixed = planned / (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha)))
    bound = math.sqrt((n + mixed) * (math.log1p(n / mixed) + 2 * math.log(1 / alpha)))
    assert halfwidth(1 / math.sqrt(n), n, alpha, planned) == pytest.approx(bound / n, rel=CLOSE)


@pytest.mark.parametrize(("how", "theirs"), [("holm", "holm"), ("bh", "fdr_bh"), ("by", "fdr_by")])
def test_adjusted_p_values_are_statsmodels(how: Any, theirs: str) -> None:
    p = np.random.default_rng(0).random(40) ** 3
    p[3] = p[4]
    np.testing.assert_allclose(adjust(p, how), multipletests(p, method=theirs)[1], rtol=CLOSE)
    with_gap = np.append(p, np.nan)
    np.testing.assert_allclose(adjust(with_gap, how)[:-1], adjust(p, how))
    assert math.isnan(adjust(with_gap, how)[-1])


@pytest.mark.parametrize(("effect", "treated"), [(0.1, 0.5), (0.02, 0.5), (0.3, 0.2)])
def test_power_and_sample_size_are_statsmodels(effect: float, treated: float) -> None:
    variance, ratio = 4.0, treated / (1 - treated)
    n = sample_size(effect, variance, 0.8, 0.05, treated)
    theirs = TTestIndPower().solve_power(effect / 2, power=0.8, alpha=0.05, ratio=ratio)
    assert n * (1 - treated) == pytest.approx(theirs, rel=CLOSE)
    assert power(effect, variance, (1 - treated) * n, treated * n) == pytest.approx(0.8, rel=CLOSE)
    assert detectable(n, variance, 0.8, 0.05, treated) == pytest.approx(effect, rel=CLOSE)


def test_sample_size_is_tea_tastings(units: pl.DataFrame) -> None:
    theirs = tt.Mean("clicks", effect_size=0.05, power=0.8).solve_power(units, "n_obs")[0].n_obs
    variance = float(units["clicks"].var())  # type: ignore[arg-type]
    assert math.ceil(sample_size(0.05, variance)) == pytest.approx(theirs, abs=1)


def test_any_cut_of_the_units_gives_the_same(rows: pl.DataFrame, readout: Readout, tmp_path: Path) -> None:
    """Parts in files, rows in another order, one file or many: sufficient statistics add up."""
    from recsys.experiment.rows import rows_of
    from recsys.experiment.units import moments_of, read

    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=3)
    shuffled[: len(rows) // 3].write_parquet(tmp_path / "a.parquet")
    shuffled[len(rows) // 3 :].write_parquet(tmp_path / "b.parquet")
    again = analyze(plan(), pl.scan_parquet(tmp_path / "*.parquet"))
    for one, other in zip(readout.comparisons, again.comparisons, strict=True):
        assert one.effect.effect == pytest.approx(other.effect.effect, rel=1e-9)
        assert one.effect.p == pytest.approx(other.effect.p, rel=1e-9)
    own = rows_of(rows.lazy(), plan())
    with read(own, plan(), cells=5000) as (_, _, parts):
        assert len(parts.parts) > 3
        moments, _, _ = moments_of(parts, plan().metrics[1], ["A", "B"])
        pair = plan().metrics[1].estimates(moments[("A",)], moments[("B",)])
    assert pair[1].value - pair[0].value == pytest.approx(by_name(readout)["cuped"].effect.effect, rel=1e-9)
