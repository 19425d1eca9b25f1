"""Experiments: plans, assignment, what is refused, and what is flagged."""

import json
import math
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from test_experiment_agreement import exposures, plan

from recsys.errors import DataError, SpecError
from recsys.experiment import Experiment, analyze
from recsys.experiment.assign import points, takes_part, variants_of
from recsys.experiment.validity import ratio_p, sequential_ratio_p

CLICKS = {"name": "clicks", "kind": "mean", "column": "clicks"}
CTR = {"name": "ctr", "kind": "ratio", "numerator": "clicks", "denominator": "impressions"}
TOML = """
[experiment]
name = "reranker-on"
control = "A"
shares = { A = 0.6, B = 0.4 }
[[metric]]
name = "clicks_per_user"
kind = "mean"
column = "clicks"
covariate = "pre_clicks"
[[metric]]
name = "ctr"
kind = "ratio"
numerator = "clicks"
denominator = "impressions"
role = "guardrail"
margin = 0.01
"""


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return exposures()


def units(n: int, seed: int = 0, **columns: Any) -> pl.DataFrame:
    """One row a unit, half of them in B."""
    rng = np.random.default_rng(seed)
    variant = np.where(rng.permutation(n) < n // 2, "B", "A")
    return pl.DataFrame({"user_id": np.arange(n), "variant": variant, "clicks": rng.poisson(2.0, n), **columns})


def half(*metrics: dict[str, Any], **changes: Any) -> Experiment:
    return plan(list(metrics) or [CLICKS], shares={"A": 0.5, "B": 0.5}, **changes)


# Assignment.


def test_assignment_stays_what_it_is() -> None:
    """Golden: who had a variant yesterday has it tomorrow, in every release."""
    found = points([17, "17", "ann", "Zoë", ""], "reranker-on")
    golden = [0.752918778543695, 0.752918778543695, 0.2978311223247999, 0.67443640425511, 0.39792884203447676]
    assert found.tolist() == golden
    assert variants_of([17, "ann", "Zoë"], {"A": 0.5, "B": 0.5}, "reranker-on") == ["B", "A", "B"]


def test_assignment_is_uniform_over_salts() -> None:
    """Chi-square over 1,000 salts: the p-values are uniform themselves."""
    shares = {"A": 0.5, "B": 0.3, "C": 0.2}
    p = []
    for salt in range(1000):
        found = variants_of(range(500), shares, f"salt {salt}")
        p.append(ratio_p({name: found.count(name) for name in shares}, shares))
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 0.025


def test_experiments_are_independent_of_each_other() -> None:
    one, other = (np.array(variants_of(range(20_000), {"A": 0.5, "B": 0.5}, salt)) for salt in ("one", "other"))
    table = [[int(((one == a) & (other == b)).sum()) for a in "AB"] for b in "AB"]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_a_layer_keeps_experiments_apart() -> None:
    first = half(name="first", layer="ranking", traffic=[0, 0.4]).assign(range(5000))
    second = half(name="second", layer="ranking", traffic=[0.4, 1]).assign(range(5000))
    assert all((a is None) != (b is None) for a, b in zip(first, second, strict=True))
    assert 0.35 < np.mean(takes_part(range(5000), "ranking", (0, 0.4))) < 0.45


# Plans.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": {"A": 1.0}}, "needs two variants"),
        ({"shares": {"A": 0.5, "B": 0.6}}, "sum to 1, not 1.1"),
        ({"control": "C"}, r"'C' is none of shares \(A, B\)"),
        ({"metrics": []}, "metric"),
        ({"metrics": [CLICKS, CLICKS]}, "'clicks' is there twice"),
        ({"start": date(2026, 1, 1)}, "time: name the column"),
        ({"time": "ts", "start": date(2026, 2, 1), "end": date(2026, 1, 1)}, "is before start"),
        ({"traffic": [0.5, 0.2], "layer": "l"}, "traffic: must be a part"),
        ({"traffic": [0.0, 0.2]}, "layer: name it"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_plan_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**({"metrics": [CLICKS], "shares": {"A": 0.5, "B": 0.5}} | change))


def test_a_plan_is_read_from_toml_and_its_problems_name_file_and_field(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    file.write_text(TOML)
    read = Experiment.read(file)
    assert [metric.name for metric in read.metrics] == ["clicks_per_user", "ctr"]
    file.write_text(TOML.replace('kind = "mean"', 'kind = "medium"'))
    with pytest.raises(SpecError, match=r"exp.toml: metric.0: .*'medium'"):
        Experiment.read(file)
    file.write_text(TOML + "\n[extra]\n")
    with pytest.raises(SpecError, match=r"unknown table \[extra\]"):
        Experiment.read(file)
    file.write_text("[experiment")
    with pytest.raises(SpecError, match="is not TOML"):
        Experiment.read(file)
    with pytest.raises(SpecError, match="cannot be read"):
        Experiment.read(tmp_path / "none.toml")


# What is refused, and what is flagged.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": [{**CLICKS, "column": "klicks"}]}, r"no column 'klicks' \(metric 'clicks'\).*there are"),
        ({"unit": "uid"}, r"no column 'uid' \(unit\)"),
        ({"time": "ts"}, r"no column 'ts' \(time\)"),
        ({"time": "seconds"}, "holds Float64, not dates or times"),
        (
            {"variant": "user_id", "unit": "seconds", "metrics": [{**CLICKS, "column": "variant"}]},
            "holds String, not numb",
        ),
        ({"metrics": [{"name": "c", "kind": "proportion", "column": "clicks"}]}, "only 0 and 1 may be there"),
        ({"shares": {"A": 0.5, "B": 0.3, "C": 0.2}}, "no rows of variant 'C' in column 'variant'; .* are A, B"),
    ],
)
def test_data_that_do_not_fit_the_plan_are_refused(change: dict[str, Any], message: str, rows: pl.DataFrame) -> None:
    with pytest.raises(DataError, match=message):
        analyze(plan(**({"metrics": [CLICKS]} | change)), rows.lazy())


def test_a_broken_ratio_refuses_to_conclude() -> None:
    frame = units(4000)
    gone = frame.filter((pl.col("variant") == "A") | (pl.col("user_id") % 5 > 0))
    readout = analyze(half(), gone.lazy())
    assert not readout.ratio.ok
    assert readout.decision.startswith("Nothing can be concluded: Sample-ratio mismatch")
    assert {c.decision for c in readout.comparisons} == {"not concluded"}
    assert readout.ratio.sequential_p < 0.001


def test_the_ratio_check_for_every_look_holds() -> None:
    """Of 400 runs with 60 looks each, no more than chance allows are ever stopped at 5%; a skewed one always is."""
    stopped = skewed = 0
    shares = {"A": 0.5, "B": 0.5}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        for share in (0.5, 0.55):
            cut = np.cumsum(rng.random(6000) < share)[99::100]
            looks = [sequential_ratio_p({"A": int(a), "B": 100 * (k + 1) - int(a)}, shares) for k, a in enumerate(cut)]
            stopped += share == 0.5 and min(looks) < 0.05
            skewed += share != 0.5 and min(looks) < 0.05
    assert stopped <= stats.binom.ppf(0.995, 400, 0.05)
    assert skewed == 400


def test_units_in_two_arms_are_left_out_and_counted_or_refused() -> None:
    frame = units(1000)
    other = frame.head(5).with_columns(variant=pl.lit("A")), frame.head(5).with_columns(variant=pl.lit("B"))
    readout = analyze(half(), pl.concat([frame, *other]).lazy())
    assert "5 units were in more than one variant; they are left out." in readout.warnings
    assert sum(readout.ratio.counts.values()) == 995
    many = frame.head(200).with_columns(variant=pl.lit("A")), frame.head(200).with_columns(variant=pl.lit("B"))
    readout = analyze(half(), pl.concat([frame, *many]).lazy())
    assert any("the assignment does not hold" in sentence for sentence in readout.refusals)


def test_missing_and_negative_values_are_flagged_and_do_not_count() -> None:
    frame = units(400).with_columns(pl.col("clicks").cast(pl.Float64))
    broken = frame.with_columns(
        pl.when(pl.col("user_id") < 10)
        .then(None)
        .when(pl.col("user_id") < 20)
        .then(float("nan"))
        .when(pl.col("user_id") < 30)
        .then(-1.0)
        .otherwise("clicks")
        .alias("clicks")
    )
    readout = analyze(half(), broken.lazy())
    assert "Column 'clicks' has 20 missing values; they do not count." in readout.warnings
    assert "Column 'clicks' has 10 values below zero; they count as they are." in readout.warnings
    assert "20 units have no value of 'clicks'; they are left out of it." in readout.warnings
    assert sum(e.n for e in readout.comparisons[0].estimates.values()) == 380
    clean = analyze(half(), broken.filter(pl.col("user_id") >= 20).lazy()).comparisons[0].effect
    assert readout.comparisons[0].effect.effect == pytest.approx(clean.effect)


def test_a_covariate_that_a_tenth_lacks_still_helps() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=4000)
    frame = units(4000).with_columns(
        clicks=pl.Series(before + rng.normal(size=4000)),
        before=pl.Series(before).scatter(np.arange(0, 4000, 10), None),
    )
    readout = analyze(half({**CLICKS, "covariate": "before"}), frame.lazy())
    assert "400 units lack a covariate of 'clicks'; they got the mean of the others." in readout.warnings
    assert 0.4 < readout.comparisons[0].variance_reduction < 0.5


def test_a_covariate_that_differed_before_is_flagged() -> None:
    frame = units(4000).with_columns(before=pl.col("clicks") + (pl.col("variant") == "B"))
    readout = analyze(half({**CLICKS, "covariate": "before"}), frame.lazy())
    assert any("'before' differed before the experiment" in warning for warning in readout.warnings)


def test_no_variance_gives_no_interval_and_says_so() -> None:
    readout = analyze(half(), units(100).with_columns(clicks=pl.lit(3)).lazy())
    effect = readout.comparisons[0].effect
    assert (effect.effect, effect.p) == (0, 1)
    assert math.isnan(effect.ci[0])
    assert readout.comparisons[0].decision == "no difference shown"
    assert any("no variance" in warning for warning in readout.warnings)
    apart = analyze(half(), units(100).with_columns(clicks=(pl.col("variant") == "B").cast(pl.Int8)).lazy())
    assert apart.comparisons[0].effect.effect == 1
    assert apart.comparisons[0].decision == "not concluded"


def test_one_unit_an_arm_is_not_concluded_from() -> None:
    readout = analyze(half(CLICKS, CTR), units(2).with_columns(impressions=pl.lit(5)).lazy())
    assert {c.decision for c in readout.comparisons} == {"not concluded"}


def test_a_ratio_may_have_units_without_a_denominator_but_not_only_such() -> None:
    frame = units(1000).with_columns(impressions=pl.when(pl.col("user_id") % 3 == 0).then(0).otherwise(9))
    frame = frame.with_columns(clicks=pl.min_horizontal("clicks", "impressions"))
    found = analyze(half(CTR), frame.lazy()).comparisons[0]
    totals = frame.group_by("variant").agg(pl.col("clicks").sum() / pl.col("impressions").sum()).rows()
    assert {name: e.value for name, e in found.estimates.items()} == pytest.approx(dict(totals))
    none = analyze(half(CTR), frame.with_columns(impressions=pl.lit(0)).lazy())
    assert none.comparisons[0].decision == "not concluded"
    assert none.as_dict()["metrics"][0]["effect"] is not None
    json.loads(none.as_json())


def test_a_bot_is_pointed_out_and_winsorizing_takes_it_in() -> None:
    frame = units(2000).with_columns(clicks=pl.when(pl.col("user_id") == 7).then(5000).otherwise("clicks"))
    readout = analyze(half(), frame.lazy())
    assert any("One unit has" in warning and "winsorize" in warning for warning in readout.warnings)
    capped = analyze(half({**CLICKS, "winsorize": 0.99}), frame.lazy())
    assert not any("One unit has" in warning for warning in capped.warnings)
    assert capped.comparisons[0].effect.se < readout.comparisons[0].effect.se / 10


def test_rows_outside_the_dates_and_of_strangers_are_left_out_and_counted() -> None:
    start = datetime(2026, 1, 1)
    frame = units(1200).with_columns(ts=pl.Series([start + timedelta(hours=i) for i in range(1200)]))
    strange = frame.head(7).with_columns(variant=pl.lit("C"), user_id=pl.col("user_id") + 5000)
    nobody = frame.head(3).with_columns(user_id=pl.lit(None, dtype=pl.Int64))
    experiment = half(time="ts", start=date(2026, 1, 3), end=date(2026, 1, 20))
    readout = analyze(experiment, pl.concat([frame, strange, nobody]).lazy())
    assert readout.survey.days == 18
    assert sum(readout.ratio.counts.values()) == 18 * 24
    assert readout.survey.outside == 1200 - 18 * 24 + 7
    short = analyze(half(time="ts", min_days=60), frame.lazy())
    assert "the plan asks for 60" in short.refusals[0]


def test_latecomers_are_pointed_out() -> None:
    days = np.concatenate([np.zeros(500), np.full(500, 20)])
    frame = units(1000).with_columns(ts=pl.Series([date(2026, 1, 1) + timedelta(days=int(d)) for d in days]))
    assert any("came in the last tenth" in w for w in analyze(half(time="ts"), frame.lazy()).warnings)


def test_ten_arms_are_compared_with_one_and_corrected_for() -> None:
    rng = np.random.default_rng(0)
    names = [f"v{k}" for k in range(10)]
    frame = pl.DataFrame(
        {"user_id": np.arange(5000), "variant": rng.choice(names, 5000), "clicks": rng.poisson(2.0, 5000)}
    )
    experiment = plan([CLICKS], shares=dict.fromkeys(names, 0.1), control="v0")
    readout = analyze(experiment, frame.lazy())
    assert [c.variant for c in readout.comparisons] == names[1:]
    smallest = min(c.effect.p for c in readout.comparisons)
    assert min(c.p_adjusted for c in readout.comparisons) == pytest.approx(min(1, 9 * smallest))
