"""Trials on made-up people, and the commands that ask about policies, mix rankings and try plans."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from test_experiment import CTR, TOML, half
from typer.testing import CliRunner, Result

from recsys.cli import app
from recsys.errors import DataError, SpecError
from recsys.experiment import analyze
from recsys.experiment.interleave import judged, lists_of
from recsys.experiment.offpolicy import logged_of, possible, value_of
from recsys.experiment.simulate import People, Softmax
from recsys.experiment.trial import fixed_of, people_of, rankers, trial


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ab", *map(str, arguments)])


# Trials.


def test_intervals_of_trials_hold_the_truth_and_the_better_ranker_is_better_in_truth() -> None:
    held, gains = [], []
    for seed in range(60):
        plan = half(CTR, salt=str(seed))
        people = People.made(300, 60, seed=seed)
        found = trial(plan, people, rankers(people, plan, 0.2, seed), days=7, seed=seed)
        effect = analyze(plan, found.rows.lazy()).comparisons[0].effect
        gain = (found.truth["B"] - found.truth["A"]) / 10
        gains.append(gain)
        held.append(effect.ci[0] <= gain <= effect.ci[1])
    assert np.mean(gains) > 0.005
    assert np.mean(held) >= stats.binom.ppf(0.005, 60, 0.95) / 60


def test_a_trials_rows_are_what_an_experiment_writes() -> None:
    plan = half(CTR, time="day", unit="uid", variant="arm")
    people = People.made(100, 30, seed=0)
    found = trial(plan, people, rankers(people, plan, 0.2), k=5, days=3).rows
    assert {"uid", "arm", "day", "session", "item_id", "rank", "propensity", "clicks", "impressions"} <= {
        *found.columns
    }
    assert found["day"].n_unique() == 3
    assert found.group_by("session").agg(pl.col("rank").sort()).filter(pl.col("rank").list.len() != 5).is_empty()
    assigned = dict(zip(range(100), plan.assign(range(100)), strict=True))
    assert all(assigned[uid] == arm for uid, arm in found.select("uid", "arm").unique().iter_rows())
    assert found["propensity"].is_between(0, 1, closed="right").all()


def test_slates_of_two_rankers_are_tried_on_people_whose_likes_are_known() -> None:
    rng = np.random.default_rng(0)
    likes = pl.DataFrame(
        [(f"u{u}", f"i{i}", float(c)) for u in range(80) for i, c in enumerate(rng.beta(1, 5, 20))],
        schema=["user_id", "item_id", "chance"],
        orient="row",
    )
    people, ids = people_of(likes)
    best = likes.sort("chance", descending=True).group_by("user_id", maintain_order=True).head(5)
    worst = likes.sort("chance").group_by("user_id", maintain_order=True).head(5)
    slates = {
        name: own.with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))
        for name, own in (("A", worst), ("B", best))
    }
    shows = {name: fixed_of(own, ids, name) for name, own in slates.items()}
    for name, own in slates.items():  # each user's own slate, in its order
        first = own.filter((pl.col("user_id") == "u7") & (pl.col("rank") == 1))["item_id"][0]
        assert ids[1][int(shows[name].slates[ids[0].index_of("u7"), 0])] == first  # type: ignore[arg-type]
    plan = half(CTR)
    found = trial(plan, people, shows, k=5, ids=ids)
    assert found.truth["B"] > 2 * found.truth["A"]
    assert {*found.rows["user_id"].unique()} <= {*likes["user_id"]}
    with pytest.raises(DataError, match="slates of A: none for user u0"):
        fixed_of(slates["A"].filter(pl.col("user_id") != "u0"), ids, "A")
    with pytest.raises(SpecError, match="variant 'B' has nobody"):
        trial(plan, people, {"A": shows["A"]}, ids=ids)
    with pytest.raises(DataError, match="chance of user u0, item i0 is not in"):
        people_of(likes.with_columns(chance=pl.lit(1.5)))


def test_a_plan_is_tried_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_text(TOML)
    rows = tmp_path / "rows.parquet"
    done = run("simulate", tmp_path / "exp.toml", "--out", rows, "--users", 1500, "--lift", 0.5, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert "B: " in done.output
    done = run("analyze", tmp_path / "exp.toml", "--data", rows, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "readout.json").read_text())["metrics"][0]["decision"] == "better"
    with pytest.raises(SpecError, match="belong together"):
        raise run("simulate", tmp_path / "exp.toml", "--out", rows, "--slates", "A=x").exception or AssertionError


# Policies.


def logged(n: int = 3000, k: int = 2) -> tuple[pl.DataFrame, People, Softmax, Softmax]:
    people = People.made(40, 8, seed=1)
    known = np.log(people.likes)
    old, new = Softmax(known, 2.0), Softmax(known, 1.0)
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, n)
    slates = old.draw(users, k, rng)
    rows = {
        "session": np.repeat(np.arange(n), k),
        "place": np.tile(np.arange(1, k + 1), n),
        "reward": people.click(users, slates, rng).ravel(),
        "propensity": old.chances(users, slates).ravel(),
        "target": new.chances(users, slates).ravel(),
        "user_id": np.repeat(users, k),
    }
    return pl.DataFrame(rows), people, old, new


def test_a_log_is_read_from_rows_in_any_order_and_short_slates_are_no_gap() -> None:
    frame, *_ = logged()
    found = logged_of(frame.lazy())
    assert found.reward.shape == (3000, 2)
    assert possible(found) == ("ips", "snips", "rips")
    again = logged_of(frame.sample(fraction=1.0, shuffle=True, seed=1).lazy())
    assert value_of(again, "rips").ci == pytest.approx(value_of(found, "rips").ci)
    # A session of one place is worth what its one place is.
    short = frame.filter((pl.col("session") % 2 == 0) | (pl.col("place") == 1))
    cut = logged_of(short.lazy())
    odd = np.arange(3000) % 2 == 1
    np.testing.assert_allclose(cut.reward[odd].sum(axis=1), found.reward[odd, 0])
    np.testing.assert_allclose(cut.logging[odd, 1], 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("propensity").replace(pl.col("propensity").first(), 0.0), "session 0, place 1: 'propensity' is 0"),
        (pl.when(pl.col("session") > 3).then("propensity").alias("propensity"), "session 0, place 1.*is missing"),
        (pl.lit(1).alias("place"), "session 0: place 1 is there twice"),
    ],
)
def test_a_log_that_is_not_sound_is_refused_naming_the_session(change: pl.Expr, message: str) -> None:
    with pytest.raises(DataError, match=message):
        logged_of(logged()[0].with_columns(change).lazy())


def test_a_policy_is_asked_about_from_the_command_line(tmp_path: Path) -> None:
    frame, people, _, new = logged()
    frame.write_parquet(tmp_path / "log.parquet")
    done = run("ope", "--data", tmp_path / "log.parquet", "--out", tmp_path / "ope.json")
    assert done.exit_code == 0, done.output
    found = {row["estimator"]: row for row in json.loads((tmp_path / "ope.json").read_text())}
    everyone = np.repeat(np.arange(40), 2000)
    true = people.expected(everyone, new.draw(everyone, 2, np.random.default_rng(5))).sum(axis=1).mean()
    assert found["rips"]["low"] < true < found["rips"]["high"]
    frame.with_columns(target=(pl.col("propensity") < 0.02).cast(pl.Float64)).write_parquet(tmp_path / "log.parquet")
    done = run("ope", "--data", tmp_path / "log.parquet")
    assert done.exit_code == 3
    assert "ips is refused" in done.output
    frame.drop("target").write_parquet(tmp_path / "log.parquet")
    assert "no column 'target'" in str(run("ope", "--data", tmp_path / "log.parquet").exception)


# Rankings.


def ranking(seed: int, users: int = 60, items: int = 12, first: str = "") -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [(u, f"i{i}", r + 1) for u in range(users) for r, i in enumerate(rng.permutation(items))]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row")


@pytest.mark.parametrize("method", ["team-draft", "probabilistic", "optimized"])
def test_lists_hold_items_of_both_and_clicks_on_ones_say_who_is_preferred(method: str, tmp_path: Path) -> None:
    for name, seed in (("old", 1), ("new", 2)):
        ranking(seed).write_parquet(tmp_path / f"{name}.parquet")
    pairs = [x for name in ("old", "new") for x in ("--ranking", f"{name}={tmp_path / name}.parquet")]
    lists, clicks = tmp_path / "lists.parquet", tmp_path / "clicks.parquet"
    done = run("interleave", *pairs, "--out", lists, "-k", 4, "--method", method)
    assert done.exit_code == 0, done.output
    found = pl.read_parquet(lists)
    assert found.group_by("user_id").agg(pl.col("item_id").n_unique())["item_id"].to_list() == [4] * 60
    # Users who click what "new" put first.
    top = ranking(2).filter(pl.col("rank") <= 2).select("user_id", "item_id")
    top.write_parquet(clicks)
    done = run("interleave", "--lists", lists, "--clicks", clicks)
    assert done.exit_code == 0, done.output
    (row,) = judged(found, top).rows(named=True)
    assert (row["one"], row["other"]) == ("old", "new")
    assert row["low"] > 0
    assert row["p"] < 0.001
    again = lists_of({"old": ranking(1), "new": ranking(2)}, 4, method)
    assert again.equals(found)


def test_three_rankings_are_compared_in_pairs() -> None:
    rankings = {name: ranking(seed) for seed, name in enumerate("abc")}
    found = judged(lists_of(rankings, 6), ranking(2).filter(pl.col("rank") == 1))
    assert [(row["one"], row["other"]) for row in found.iter_rows(named=True)] == [("a", "b"), ("a", "c"), ("b", "c")]
    with pytest.raises(SpecError, match="two rankings"):
        lists_of(rankings, 6, "optimized")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranking", "a=x.parquet"], "give --ranking NAME=FILE twice"),
        (["--ranking", "a", "--out", "o.parquet"], "'a' must be NAME=FILE"),
        (["--ranking", "a=x", "--ranking", "a=y", "--out", "o.parquet"], "'a' is given twice"),
        (["--ranking", "a=x", "--out", "o", "--method", "best"], "must be one of team-draft"),
    ],
)
def test_wrong_options_of_interleaving_say_what_to_do(arguments: list[str], message: str) -> None:
    assert message in str(run("interleave", *arguments).exception)


def test_lists_and_clicks_without_their_columns_are_refused() -> None:
    lists: dict[str, Any] = {"a": ranking(0), "b": ranking(1)}
    with pytest.raises(DataError, match="ranking 'b': no column 'rank'"):
        lists_of({**lists, "b": lists["b"].drop("rank")}, 4)
    with pytest.raises(DataError, match="lists: needs two columns"):
        judged(ranking(0), ranking(0))
    with pytest.raises(DataError, match="clicks: no column 'item_id'"):
        judged(lists_of(lists, 4), ranking(0).drop("item_id"))


# Files.


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "exp.toml").write_text(TOML)
    bad = tmp_path / "rows.csv"
    bad.write_text("user_id,variant,clicks,impressions,pre_clicks\n" + "1,A,1,2,3\n" * 200 + "1,A,x,2,3\n")
    for command in (["analyze", "--out", tmp_path / "out"], ["check"]):
        done = run(command[0], tmp_path / "exp.toml", "--data", bad, *command[1:])
        assert isinstance(done.exception, DataError)
    assert not (tmp_path / "out").exists()
    (tmp_path / "rows.parquet").write_bytes(b"PAR1nothing")
    assert isinstance(run("check", tmp_path / "exp.toml", "--data", tmp_path / "rows.parquet").exception, DataError)
