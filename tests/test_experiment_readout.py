"""Experiments: decisions, power, looking early, and what a reader gets."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from test_experiment import CLICKS, CTR, TOML, half, units
from test_experiment_agreement import exposures, plan
from typer.testing import CliRunner

from recsys.cli import app
from recsys.errors import DataError, SpecError
from recsys.experiment import Readout, analyze
from recsys.experiment.power import a_a, needed, sample_size
from recsys.experiment.sequential import boundaries, msprt_p


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return exposures()


# Decisions.


@pytest.mark.parametrize(
    ("lift", "direction", "expected"),
    [(0.5, "up", "better"), (0.5, "down", "worse"), (-0.5, "up", "worse"), (0.0, "up", "no difference shown")],
)
def test_decisions_follow_the_direction(lift: float, direction: str, expected: str) -> None:
    frame = units(4000).with_columns(clicks=pl.col("clicks") + lift * (pl.col("variant") == "B"))
    assert analyze(half({**CLICKS, "direction": direction}), frame.lazy()).comparisons[0].decision == expected


@pytest.mark.parametrize(
    ("loss", "margin", "expected"), [(0.0, 0.3, "not worse"), (0.6, 0.3, "broken"), (0.3, 0.3, "open")]
)
def test_a_guardrail_is_not_worse_broken_or_open(loss: float, margin: float, expected: str) -> None:
    frame = units(4000).with_columns(clicks=pl.col("clicks") - loss * (pl.col("variant") == "B"))
    metric = {**CLICKS, "role": "guardrail", "margin": margin}
    found = analyze(half(metric), frame.lazy())
    assert found.comparisons[0].decision == expected
    assert ("does harm" in found.decision) == (expected == "broken")


def test_where_a_value_is_not_told_from_zero_there_is_no_relative_interval() -> None:
    from recsys.experiment.effects import Estimate, compare

    found = compare(Estimate(100, 0.07, 0.6), Estimate(100, 0.0002, 0.5), 0.95, 10_000)
    assert math.isfinite(found.relative)
    assert math.isnan(found.relative_ci[0])
    assert math.isfinite(found.ci[0])


# Power.


def test_what_is_needed_is_said_by_metric_and_covariates_help(rows: pl.DataFrame) -> None:
    experiment = half(CLICKS, {**CLICKS, "name": "cuped", "covariate": "pre_clicks"}, CTR, correction="none")
    table = needed(experiment, rows.lazy().drop("variant"), 0.05, daily=100)
    clicks, with_cuped, _ = table.rows(named=True)
    totals = rows.group_by("user_id").agg(pl.col("clicks").sum())["clicks"]
    expected = sample_size(0.05 * float(totals.mean()), float(totals.var()))  # type: ignore[arg-type]
    assert clicks["units"] == math.ceil(expected)
    assert with_cuped["units"] == pytest.approx(clicks["units"] * (1 - with_cuped["explained"]), rel=0.01)
    assert clicks["days"] == math.ceil(clicks["units"] / 100)


def test_an_effect_that_no_sample_tells_is_refused() -> None:
    with pytest.raises(SpecError, match="no sample size tells"):
        sample_size(0.0, 1.0)
    with pytest.raises(SpecError, match="takes more than"):
        sample_size(1e-9, 1.0)


def test_splits_of_ones_own_history_keep_the_promise(rows: pl.DataFrame) -> None:
    table = a_a(half(CLICKS, CTR), rows.lazy().drop("variant"), runs=400)
    assert (table["false"] <= table["high"]).all()
    assert (table["uniform"] > 0.001).all()


# Looking early.


def test_boundaries_are_the_published_ones() -> None:
    """Five equal looks at 5%, two-sided, by Lan and DeMets' spending functions (as in the package ldbounds)."""
    looks = [0.2, 0.4, 0.6, 0.8, 1.0]
    np.testing.assert_allclose(boundaries(looks), [4.8769, 3.3569, 2.6803, 2.2898, 2.0310], atol=2e-4)
    np.testing.assert_allclose(boundaries(looks, kind="pocock"), [2.4380, 2.4268, 2.4101, 2.3966, 2.3859], atol=2e-4)
    assert boundaries([1.0])[0] == pytest.approx(stats.norm.isf(0.025), abs=1e-6)
    with pytest.raises(SpecError, match="rise"):
        boundaries([0.5, 0.4])


def test_msprt_is_its_formula() -> None:
    tau, se, effect = 0.1, 0.05, 0.2
    ratio = math.sqrt(se**2 / (se**2 + tau**2)) * math.exp(effect**2 * tau**2 / (2 * se**2 * (se**2 + tau**2)))
    assert msprt_p(effect, se, tau) == pytest.approx(1 / ratio)
    assert msprt_p(0.0, se, tau) == 1


# What a reader gets.


def test_the_files_hold_the_contract(tmp_path: Path, rows: pl.DataFrame) -> None:
    (tmp_path / "exp.toml").write_text(TOML)
    rows.write_parquet(tmp_path / "rows.parquet")
    arguments = [str(tmp_path / "exp.toml"), "--data", str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["ab", "analyze", *arguments])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "readout.json").read_text())
    assert {"p", "counts", "ok"} <= found["srm"].keys()
    keys = "name variant n mean effect se ci p p_adjusted relative relative_ci sequential_ci variance_reduction method"
    for row in found["metrics"]:
        assert {*keys.split(), "decision"} <= row.keys()
        assert row["ci"][0] < row["effect"] < row["ci"][1]
        assert row["sequential_ci"][0] < row["ci"][0]
        assert row["n"] == found["srm"]["counts"]
    assert found["metrics"][0]["variance_reduction"] > 0.1
    assert isinstance(found["warnings"], list)
    page = (tmp_path / "out" / "readout.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "out" / "readout.md").read_text().startswith("# reranker-on")


def test_names_from_outside_are_escaped() -> None:
    from recsys.experiment.page import page

    name = "<b>&"
    readout = analyze(half({**CLICKS, "name": name}, name=name), units(100).lazy())
    assert name not in page(readout)
    assert "&lt;b&gt;&amp;" in page(readout)


def test_the_command_line_designs_assigns_and_checks(tmp_path: Path, rows: pl.DataFrame) -> None:
    (tmp_path / "exp.toml").write_text(TOML)
    file = tmp_path / "rows.csv"
    rows.write_csv(file)
    run = CliRunner().invoke
    done = run(app, ["ab", "design", str(tmp_path / "exp.toml"), "--history", str(file), "--aa", "20"])
    assert done.exit_code == 0, done.output
    assert "explained" in done.output
    out = tmp_path / "assigned.parquet"
    done = run(app, ["ab", "assign", str(tmp_path / "exp.toml"), "--units", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(out)["user_id"].n_unique() == rows["user_id"].n_unique()
    done = run(app, ["ab", "check", str(tmp_path / "exp.toml"), "--data", str(file)])
    assert (done.exit_code, "may be read" in done.output) == (0, True)
    assert "effect" not in done.output
    skewed = rows.filter((pl.col("variant") == "A") | (pl.col("user_id") % 3 > 0))
    skewed.write_csv(file)
    done = run(app, ["ab", "check", str(tmp_path / "exp.toml"), "--data", str(file)])
    assert done.exit_code == 3
    done = run(app, ["ab", "check", str(tmp_path / "exp.toml"), "--data", str(tmp_path / "none.parquet")])
    assert isinstance(done.exception, DataError)


def test_the_frame_is_tidy(rows: pl.DataFrame) -> None:
    readout: Readout = analyze(plan(), rows.lazy())
    assert readout.frame.height == 7
    assert readout.frame.columns[:3] == ["metric", "role", "variant"]
