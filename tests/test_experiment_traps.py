"""What would mislead an analyst, each found by reading an analysis with doubt: it is refused, or said aloud."""

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_experiment import CLICKS, CTR, TOML, half, units
from test_experiment_parts import by_country
from test_experiment_slates import NDCG3, only, shown
from typer.testing import CliRunner, Result

from recsys.cli import app
from recsys.errors import DataError, SpecError
from recsys.experiment import Experiment, analyze
from recsys.experiment.bayes import posterior
from recsys.experiment.effects import Estimate, compare
from recsys.experiment.interleave import judged, lists_of
from recsys.experiment.metrics import Proportion
from recsys.experiment.power import needed


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ab", *map(str, arguments)])


# Values.


def test_a_quantile_of_counts_is_not_concluded_from() -> None:
    """Its value is one of a few steps: an interval would be a point."""
    readout = analyze(half({"name": "m", "kind": "quantile", "column": "clicks"}), units(2000).lazy())
    assert readout.comparisons[0].decision == "not concluded"
    assert any("one and the same value" in warning for warning in readout.warnings)


def test_a_row_without_one_side_of_a_ratio_counts_for_neither() -> None:
    frame = units(4000, impressions=10).with_columns(clicks=pl.col("clicks").cast(pl.Float64))
    gaps = (pl.col("variant") == "A") & (pl.col("user_id") % 5 == 0)
    twice = pl.concat([frame, frame.with_columns(clicks=pl.when(gaps).then(None).otherwise(pl.col("clicks")))])
    found = analyze(half(CTR), twice.lazy()).comparisons[0]
    whole = twice.drop_nulls()
    for name in "AB":
        own = whole.filter(pl.col("variant") == name)
        assert found.estimates[name].value == pytest.approx(own["clicks"].sum() / own["impressions"].sum())


def test_what_one_variant_lacks_more_often_is_not_concluded() -> None:
    frame = units(4000).with_columns(
        clicks=pl.when((pl.col("variant") == "A") & (pl.col("clicks") < 2)).then(None).otherwise(pl.col("clicks"))
    )
    readout = analyze(half(), frame.lazy())
    assert readout.ratio.ok
    assert readout.comparisons[0].decision == "not concluded"
    assert any("in one variant more than in another" in warning for warning in readout.warnings)
    assert readout.decision.startswith("Nothing can be concluded of B")


def test_narrow_floats_are_added_up_as_wide_ones() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(400), 300)
    values = rng.normal(1e4, 1, len(unit))
    frame = pl.DataFrame({"user_id": unit, "variant": np.where(unit % 2, "B", "A"), "clicks": values})
    wide = analyze(half(), frame.with_columns(pl.col("clicks").cast(pl.Float32).cast(pl.Float64)).lazy())
    narrow = analyze(half(), frame.with_columns(pl.col("clicks").cast(pl.Float32)).lazy())
    assert narrow.comparisons[0].effect.effect == pytest.approx(wide.comparisons[0].effect.effect, rel=1e-9)


def test_whole_numbers_too_large_for_their_type_do_not_wrap() -> None:
    frame = units(200).with_columns(clicks=pl.lit(2_000_000_000, pl.Int32))
    readout = analyze(half(), pl.concat([frame, frame]).lazy())
    assert readout.comparisons[0].estimates["A"].value == 4e9


@pytest.mark.parametrize(
    ("column", "message"), [("clicks", "'clicks' holds an infinite"), ("pre", "'pre' holds an infinite")]
)
def test_infinite_values_are_named(column: str, message: str) -> None:
    frame = units(100, pre=1.0).with_columns(pl.col("clicks").cast(pl.Float64))
    frame = frame.with_columns(pl.when(pl.col("user_id") == 3).then(np.inf).otherwise(pl.col(column)).alias(column))
    with pytest.raises(DataError, match=message):
        analyze(half({**CLICKS, "covariate": "pre"}), frame.lazy())


def test_places_are_from_one() -> None:
    with pytest.raises(DataError, match=r"'rank' .* holds 0; ranks are from 1"):
        only(shown().with_columns(pl.col("rank") - 1), NDCG3)


def test_metrics_of_two_rankings_of_the_same_slates_are_two() -> None:
    frame = shown().with_columns(other=6 - pl.col("rank"))
    both = analyze(half(NDCG3, {**NDCG3, "name": "other", "rank": "other"}), frame.lazy())
    alone = only(frame, {**NDCG3, "rank": "other"})
    assert both.comparisons[1].estimates["A"].value == pytest.approx(alone.estimates["A"].value)
    assert both.comparisons[0].estimates["A"].value != pytest.approx(alone.estimates["A"].value)


# Units.


@pytest.mark.parametrize(("n", "b"), [(30, 1), (3, 2), (2, 1)])
def test_arms_of_one_or_two_units_give_no_figure_and_no_fault(n: int, b: int) -> None:
    frame = units(n).with_columns(
        variant=pl.when(pl.col("user_id") < b).then(pl.lit("B")).otherwise(pl.lit("A")), impressions=10
    )
    readout = analyze(half(CLICKS, CTR), frame.lazy())
    assert [c.decision for c in readout.comparisons] == ["not concluded"] * 2
    assert readout.as_json()


def test_a_metric_without_any_value_takes_no_other_with_it() -> None:
    frame = units(2000, x=pl.Series([None] * 2000, dtype=pl.Float64))
    frame = frame.with_columns(clicks=pl.col("clicks") + (pl.col("variant") == "B"))
    readout = analyze(half(CLICKS, {"name": "x", "kind": "mean", "column": "x", "role": "guardrail"}), frame.lazy())
    assert [c.decision for c in readout.comparisons] == ["better", "not concluded"]
    assert "harm is not ruled out in x" in readout.decision


def test_many_small_segments_do_not_cry_wolf() -> None:
    warned = 0
    for seed in range(20):
        frame = by_country(2000, seed, {f"c{i}": 0.0 for i in range(200)})
        rng = np.random.default_rng(seed)
        frame = frame.with_columns(variant=pl.Series(np.where(rng.random(2000) < 0.02, "B", "A")))
        plan = half(segments=["country"]).model_copy(update={"shares": {"A": 0.98, "B": 0.02}})
        warned += any("where 'country'" in warning for warning in analyze(plan, frame.lazy()).warnings)
    assert warned <= 1


def test_rows_that_one_variant_has_twice_are_pointed_out() -> None:
    frame = units(2000)
    doubled = pl.concat([frame, frame.filter(pl.col("variant") == "B")])
    assert any("logged twice" in warning for warning in analyze(half(), doubled.lazy()).warnings)
    assert not any("logged twice" in warning for warning in analyze(half(), frame.lazy()).warnings)


def test_among_many_rows_those_of_some_units_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.experiment.validity.LOOKED_AT", 1000)
    frame = units(4000)
    doubled = pl.concat([frame, frame.filter(pl.col("variant") == "B")])
    found = next(warning for warning in analyze(half(), doubled.lazy()).warnings if "logged twice" in warning)
    assert "A 0.0%, B 50.0%" in found


# Days.


def test_days_are_those_of_the_times_zone() -> None:
    frame = units(400).with_columns(
        ts=pl.lit(datetime(2026, 1, 2, 8)).dt.replace_time_zone("Asia/Tokyo").cast(pl.Datetime("us", "Asia/Tokyo"))
    )
    readout = analyze(half(time="ts", start=date(2026, 1, 2)), frame.lazy())
    assert readout.survey.outside == 0
    with pytest.raises(DataError, match="400 rows lie outside these days"):
        analyze(half(time="ts", start=date(2026, 1, 3)), frame.lazy())


def test_the_last_look_is_the_headline_with_strata_too() -> None:
    frame = by_country(3000, 0, {"DE": 0.3, "FR": 0.3, "IT": 0.3})
    days = pl.Series([date(2026, 1, 1) + timedelta(days=i % 5) for i in range(3000)])
    readout = analyze(half(time="ts", strata="country"), frame.with_columns(days.alias("ts")).lazy())
    assert readout.looks[-1].effect.effect == pytest.approx(readout.comparisons[0].effect.effect)
    assert readout.looks[-1].effect.se == pytest.approx(readout.comparisons[0].effect.se)


# Decisions.


def test_a_primary_metric_may_be_not_worse_and_a_secondary_one_decides_nothing() -> None:
    frame = units(4000, seconds=1.0).with_columns(
        seconds=pl.col("clicks") + (pl.col("variant") == "B").cast(pl.Float64)
    )
    margin = half({**CLICKS, "margin": 0.3})
    assert analyze(margin, frame.lazy()).decision.startswith("B is not worse than A: clicks")
    slower = {"name": "s", "kind": "mean", "column": "seconds", "direction": "down", "role": "secondary", "margin": 0.1}
    assert "harm" not in analyze(half({**CLICKS, "margin": 0.3}, slower), frame.lazy()).decision


def test_margins_take_nothing_from_what_is_tested() -> None:
    frame = units(4000, seconds=1.0).with_columns(clicks=pl.col("clicks") + 0.1 * (pl.col("variant") == "B"))
    guards = [
        {"name": f"g{i}", "kind": "mean", "column": "seconds", "role": "guardrail", "margin": 0.1} for i in range(4)
    ]
    alone, among = (analyze(half(CLICKS, *own), frame.lazy()).comparisons[0] for own in ([], guards))
    assert among.p_adjusted == pytest.approx(alone.p_adjusted)


def test_before_the_last_look_guardrails_go_by_what_holds_at_any_look() -> None:
    frame = units(1000).with_columns(seconds=pl.col("clicks") - 0.4 * (pl.col("variant") == "B"))
    guard = {"name": "g", "kind": "mean", "column": "seconds", "role": "guardrail"}
    early = analyze(half(CLICKS, guard, looks=(0.5, 1.0), planned=4000), frame.lazy())
    late = analyze(half(CLICKS, guard), frame.lazy())
    assert late.comparisons[1].effect.p < 0.025
    assert late.comparisons[1].decision == "worse"
    assert early.comparisons[1].decision == "no difference shown"


def test_a_prior_counts_for_proportions_too() -> None:
    control, treatment = Estimate(1000, 0.1, 0.09), Estimate(1000, 0.14, 0.12)
    effect = compare(control, treatment, 0.95, 1000)
    flat, firm = (
        posterior(Proportion(name="m", column="x", prior=prior), control, treatment, effect, 0.95)
        for prior in (None, 0.0001)
    )
    assert flat.better > 0.99
    assert firm.better < 0.6


# Plans.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "e", "traffic": [0.0, 0.5]}, "layer: 'e' is what variants are drawn by"),
        ({"segments": ["variant"]}, "segments: 'variant' is the variant already"),
        ({"served_by": "user_id"}, "served_by: 'user_id' is the unit already"),
        ({"unit": "variant"}, "'variant' is named as two of"),
        ({"metrics": [{**CLICKS, "column": "user_id"}]}, "metric 'clicks': 'user_id' is the unit already"),
        ({"metrics": [{**CLICKS, "covariate": "clicks"}]}, "covariate: 'clicks' is what is measured"),
        ({"metrics": [{**CLICKS, "covariate": ["a", "a"]}]}, "covariate: names a column twice|names a column twice"),
        ({"metrics": [{**CTR, "denominator": "clicks"}]}, "denominator: is the numerator"),
        (
            {"strata": "c", "metrics": [{"name": "p", "kind": "proportion", "column": "x", "test": "pooled"}]},
            "strata: 'p' is tested with one variance",
        ),
    ],
)
def test_plans_that_cannot_be_meant_are_refused(change: dict[str, Any], message: str) -> None:
    base = {"name": "e", "control": "A", "shares": {"A": 0.5, "B": 0.5}, "metrics": [CLICKS]}
    with pytest.raises(ValueError, match=message):
        Experiment.model_validate(base | change)


def test_a_plan_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_text("experiment = 3\n")
    with pytest.raises(SpecError, match=r"needs a table \[experiment\]"):
        Experiment.read(tmp_path / "exp.toml")


def test_a_history_from_before_serves_a_dated_plan_and_counts_what_is_decided() -> None:
    rng = np.random.default_rng(0)
    frame = units(2000).drop("variant").with_columns(ts=pl.lit(date(2025, 12, 1)), seconds=pl.Series(rng.random(2000)))
    dated = half(time="ts", start=date(2026, 1, 1), end=date(2026, 2, 1))
    alone = needed(dated, frame.lazy(), 0.05)
    seconds = {"name": "s", "kind": "mean", "column": "seconds"}
    both = needed(half(CLICKS, seconds), frame.lazy(), 0.05)
    assert both["units"][0] > 1.1 * alone["units"][0]  # Holm
    guarded = needed(half(CLICKS, {**seconds, "margin": 0.02}), frame.lazy(), 0.05)
    assert guarded["units"][0] == alone["units"][0]
    assert guarded["effect"][1] == 0.02
    with pytest.raises(SpecError, match="metric 's': no sample size"):
        needed(half(CLICKS, seconds), frame.with_columns(seconds=1.0).lazy(), 0.05)


# Ids and files.


def test_units_of_a_csv_are_text_and_floats_and_gaps_are_no_units(tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_text(TOML)
    (tmp_path / "units.csv").write_text("user_id\n0017\n17\n\n18\n")
    out = tmp_path / "out.csv"
    done = run("assign", tmp_path / "exp.toml", "--units", tmp_path / "units.csv", "--out", out)
    assert done.exit_code == 0, done.output
    assert [line.split(",")[0] for line in out.read_text().split()] == ["user_id", "0017", "17", "18"]
    with pytest.raises(DataError, match=r"unit 17\.0"):
        half().assign([17.0])
    with pytest.raises(DataError, match="unit None"):
        half().assign([None])


@pytest.mark.parametrize(
    "command",
    [
        ["check", "EXP", "--data", "none.csv"],
        ["analyze", "EXP", "--data", "none.parquet", "--out", "out"],
        ["assign", "EXP", "--units", "none.csv", "--out", "o.csv"],
        ["ope", "--data", "none.csv"],
        ["interleave", "--ranking", "a=none.csv", "--ranking", "b=none.csv", "--out", "o.parquet"],
    ],
)
def test_files_that_are_not_there_are_named(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_text(TOML)
    done = run(*(str(tmp_path / "exp.toml") if word == "EXP" else word for word in command))
    assert isinstance(done.exception, DataError)
    assert "there is no such file" in str(done.exception)


def test_csv_and_shards_of_mixed_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_text(TOML)
    head = "user_id,variant,clicks,impressions,pre_clicks\n"
    rows = [f"u{i},{'AABAB'[i % 5]},{i % 4},9,{i % 3}\n" for i in range(400)]
    rows[150], rows[160] = "u150,A,0.5,9,1\n", "u160,A,NA,9,1\n"
    (tmp_path / "rows.CSV").write_text(head + "".join(rows))
    done = run("check", tmp_path / "exp.toml", "--data", tmp_path / "rows.CSV")
    assert done.exit_code == 0, done.output
    assert "'clicks' has 1 missing values" in done.output.replace("\n", " ")
    shards = tmp_path / "shards"
    shards.mkdir()
    frame = pl.read_csv(tmp_path / "rows.CSV", null_values=["NA"], infer_schema_length=None).fill_null(0)
    frame[:200].with_columns(pl.col("impressions").cast(pl.Int32)).write_parquet(shards / "a.parquet")
    frame[200:].write_parquet(shards / "b.parquet")
    done = run("check", tmp_path / "exp.toml", "--data", shards)
    assert done.exit_code == 0, done.output


def test_policies_without_rows_or_numbers_are_refused(tmp_path: Path) -> None:
    log = {"session": [1], "place": [1], "reward": [1.0], "propensity": ["x"], "target": [0.5]}
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    assert "'propensity' holds String, not numbers" in str(run("ope", "--data", tmp_path / "log.parquet").exception)
    pl.DataFrame(log).with_columns(propensity=0.5).clear().write_parquet(tmp_path / "log.parquet")
    assert "there are no rows" in str(run("ope", "--data", tmp_path / "log.parquet").exception)


def test_a_users_mixed_list_does_not_depend_on_who_else_there_is() -> None:
    rng = np.random.default_rng(0)

    def ranking(users: range) -> pl.DataFrame:
        rows = [(u, i, r + 1) for u in users for r, i in enumerate(np.random.default_rng(u).permutation(9).tolist())]
        return pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row")

    one = ranking(range(50))
    other = one.with_columns(rank=10 - pl.col("rank"))
    everyone = lists_of({"a": one, "b": other}, 4)
    some = lists_of({"a": one.filter(pl.col("user_id") > 20), "b": other}, 4)
    assert everyone.filter(pl.col("user_id") > 20).equals(some)
    with pytest.raises(DataError, match="'item_id' is Int64 in ranking 'a', String in ranking 'b'"):
        lists_of({"a": one, "b": other.with_columns(pl.col("item_id").cast(pl.String))}, 4)
    strange = pl.DataFrame({"user_id": [1], "item_id": [int(rng.integers(100, 200))]})
    with pytest.raises(DataError, match="no click is on an item"):
        judged(everyone, strange)
