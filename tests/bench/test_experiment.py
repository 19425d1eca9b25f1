"""Do the intervals and p-values of `recsys.experiment` keep their promises, and how fast are many rows read?

Each table holds a promise beside what was counted; the band is what chance allows in 99 of 100 runs of the bench.

BENCH_SEEDS=5000, BENCH_LOOKS=2000 and BENCH_RUNS=500 are seeds of the A/A test, of peeking and of logs about another
policy; BENCH_ROWS=100000000 the rows of the speed test, which writes them as Parquet into BENCH_TMP (a temporary
folder, else), some 6 GB, and removes them.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from scipy import stats

from recsys.experiment import Experiment, Mean, Proportion, Quantile, Ratio, analyze
from recsys.experiment.effects import Effect
from recsys.experiment.interleave import (
    Shown,
    optimized,
    preference,
    probabilistic,
    sessions_needed,
    team_draft,
)
from recsys.experiment.moments import Moments
from recsys.experiment.offpolicy import Logged, value_of
from recsys.experiment.pooled import quantile_estimate
from recsys.experiment.sequential import always_valid_p, boundaries, halfwidth, msprt_p
from recsys.experiment.simulate import People, Softmax

SEEDS = int(os.environ.get("BENCH_SEEDS", "5000"))
LOOKS = int(os.environ.get("BENCH_LOOKS", "2000"))
RUNS = int(os.environ.get("BENCH_RUNS", "500"))
ROWS = int(os.environ.get("BENCH_ROWS", "100000000"))
PLAN = Experiment.model_validate(
    {
        "name": "bench",
        "control": "A",
        "shares": {"A": 0.5, "B": 0.5},
        "metrics": [{"name": "m", "kind": "mean", "column": "x"}],
    }
)
Floats = npt.NDArray[np.float64]
# Of a seed, units and a lift: the effect measured, and the true one.
World = Callable[[np.random.Generator, int, float], tuple[Effect, float]]


def measured(metric: Any, control: Floats, treatment: Floats) -> Effect:
    pair = metric.estimates(Moments.of(control), Moments.of(treatment))[:2]
    return metric.effect(*pair, PLAN.confidence, PLAN.planned)


def mean(rng: np.random.Generator, n: int, lift: float) -> tuple[Effect, float]:
    control, treatment = rng.normal(1, 1, (n, 1)), rng.normal(1 + lift, 1, (n, 1))
    return measured(Mean(name="m", column="x"), control, treatment), lift


def cuped(rng: np.random.Generator, n: int, lift: float) -> tuple[Effect, float]:
    before = rng.normal(size=2 * n)
    after = 0.7 * before + np.sqrt(1 - 0.49) * rng.normal(size=2 * n) + lift * (np.arange(2 * n) >= n)
    both = np.stack([after, before], axis=1)
    return measured(Mean(name="m", column="x", covariate="y"), both[:n], both[n:]), lift


def heavy(rng: np.random.Generator, n: int, lift: float) -> tuple[Effect, float]:
    """Revenue: most pay nothing, few pay a lot."""
    pays, much = rng.random(2 * n) < 0.3, rng.lognormal(0, 1.2, 2 * n)
    values = (pays * much * np.where(np.arange(2 * n) >= n, 1 + lift, 1))[:, None]
    return measured(Mean(name="m", column="x"), values[:n], values[n:]), lift * 0.3 * float(np.exp(0.72))


def proportion(rng: np.random.Generator, n: int, lift: float) -> tuple[Effect, float]:
    draws = [(rng.random((n, 1)) < p).astype(float) for p in (0.1, 0.1 + lift)]
    return measured(Proportion(name="m", column="x"), *draws), lift


def pooled(rng: np.random.Generator, n: int, lift: float) -> tuple[Effect, float]:
    draws = [(rng.random((n, 1)) < p).astype(float) for p in (0.1, 0.1 + lift)]
    return measured(Proportion(name="m", column="x", test="pooled"), *draws), lift


def ratio(rng: np.random.Generator, n: int, lift: float) -> tuple[Effect, float]:
    """Clicks of impressions, which come in clusters: users differ in how many they have, and how often they click."""
    sides = []
    for p in (0.1, 0.1 + lift):
        seen = 1 + rng.poisson(rng.gamma(2, 5, n))
        sides.append(np.stack([rng.binomial(seen, rng.beta(8 * p, 8 * (1 - p), n)), seen], axis=1).astype(float))
    return measured(Ratio(name="m", numerator="x", denominator="y"), *sides), lift


def quantile(rng: np.random.Generator, n: int, lift: float) -> tuple[Effect, float]:
    """Of rows that come in clusters: 0.9, of values that are lognormal by user and by row."""
    found = []
    for shift in (0.0, lift):
        rows = 1 + rng.poisson(3, n)
        unit = np.repeat(np.arange(n), rows)
        values = np.exp(0.5 * rng.normal(size=n)[unit] + rng.normal(size=len(unit))) + shift
        edge = np.quantile(values, 0.9)
        below = np.stack([np.bincount(unit, values <= edge, n), rows], axis=1).astype(float)
        found.append(quantile_estimate(0.9, np.sort(values), Moments.of(below)))
    metric = Quantile(name="m", column="x", q=0.9)
    return metric.effect(found[0], found[1], PLAN.confidence, PLAN.planned), lift


WORLDS: dict[str, World] = {
    "mean": mean,
    "mean, CUPED": cuped,
    "mean, heavy tails": heavy,
    "proportion": proportion,
    "proportion, pooled": pooled,
    "ratio, clustered": ratio,
    "quantile, clustered": quantile,
}


def band(rate: float, n: int) -> tuple[float, float]:
    low, high = stats.binom.ppf([0.005, 0.995], n, rate) / n
    return float(low), float(high)


def test_a_a() -> None:
    """No effect: 5% false alarms, and p-values that are uniform."""
    rows, low_high = [], band(0.05, SEEDS)
    for name, world in WORLDS.items():
        n = 2000 if "heavy" in name else 1000
        p = np.array([world(np.random.default_rng((seed, 1)), n, 0.0)[0].p for seed in range(SEEDS)])
        uniform = stats.kstest(p, "uniform").pvalue if "proportion" not in name else np.nan
        rows.append({"metric": name, "units": 2 * n, "false": float((p < 0.05).mean()), "KS p": float(uniform)})
    table = pl.DataFrame(rows)
    print(f"\nA/A, {SEEDS} seeds, at 5%; band {low_high[0]:.4f} to {low_high[1]:.4f}\n{table}")
    assert table["false"].is_between(*low_high).all()
    assert (table["KS p"].fill_nan(1.0) > 0.001).all()


def test_coverage() -> None:
    """How often 95% intervals hold the truth where there is an effect, by units an arm."""
    lifts = {"mean": 0.1, "mean, CUPED": 0.1, "mean, heavy tails": 0.1, "quantile, clustered": 0.3}
    rows = []
    for name, world in WORLDS.items():
        row: dict[str, Any] = {"metric": name}
        for n in (100, 300, 1000, 3000):
            found = [world(np.random.default_rng((seed, 2)), n, lifts.get(name, 0.02)) for seed in range(SEEDS // 2)]
            row[f"{n}"] = float(np.mean([e.ci[0] <= true <= e.ci[1] for e, true in found]))
        rows.append(row)
    table = pl.DataFrame(rows)
    print(f"\ncoverage of 95% intervals, {SEEDS // 2} seeds, by units an arm (wanted: .935 to .965)\n{table}")
    assert table["3000"].is_between(0.935, 0.965).all()


def test_cuped_explains_what_it_should() -> None:
    """Correlation .7 leaves 1 - .49 of the variance."""
    left = []
    for seed in range(200):
        rng = np.random.default_rng((seed, 3))
        before = rng.normal(size=4000)
        both = np.stack([0.7 * before + np.sqrt(0.51) * rng.normal(size=4000), before], axis=1)
        metric = Mean(name="m", column="x", covariate="y")
        left.append(1 - metric.estimates(Moments.of(both[:2000]), Moments.of(both[2000:]))[2])
    print(f"\nCUPED, correlation .7: {np.mean(left):.1%} of the variance left (wanted: 51% +- 3)")
    assert abs(np.mean(left) - 0.51) < 0.03


def test_peeking() -> None:
    """100 looks at an A/A test: how often any of them stops it."""
    looks, step, alpha = 100, 50, 0.05
    stops = dict.fromkeys(["fixed", "sequential", "sequential p", "mSPRT", "O'Brien-Fleming, 5 looks", "Pocock, 5"], 0)
    few = [20, 40, 60, 80, 100]
    edges = {
        "O'Brien-Fleming, 5 looks": boundaries([k / 100 for k in few], alpha, "obrien-fleming"),
        "Pocock, 5": boundaries([k / 100 for k in few], alpha, "pocock"),
    }
    for seed in range(LOOKS):
        rng = np.random.default_rng((seed, 4))
        arms = rng.exponential(size=(2, looks * step))
        count = step * np.arange(1, looks + 1)
        sums, squares = (np.cumsum(x, axis=1)[:, count - 1] for x in (arms, arms**2))
        values = sums / count
        spreads = (squares / count - values**2) * count / (count - 1)
        effects, errors = values[1] - values[0], np.sqrt(spreads.sum(axis=0) / count)
        z, both = effects / errors, zip(effects, errors, 2 * count, strict=True)
        wide = [(halfwidth(se, int(n), alpha, 5000), e, se, int(n)) for e, se, n in both]
        stops["fixed"] += bool((2 * stats.norm.sf(np.abs(z)) < alpha).any())
        stops["sequential"] += any(abs(e) > w for w, e, _, _ in wide)
        stops["sequential p"] += any(always_valid_p(e, se, n, alpha, 5000) < alpha for _, e, se, n in wide)
        stops["mSPRT"] += any(msprt_p(e, se, 0.05) < alpha for _, e, se, _ in wide)
        for name, edge in edges.items():
            stops[name] += bool((np.abs(z[np.array(few) - 1]) > edge).any())
    high = band(alpha, LOOKS)[1]
    table = pl.DataFrame([{"method": k, "any false stop": v / LOOKS} for k, v in stops.items()])
    print(f"\npeeking, {looks} looks, {LOOKS} seeds; allowed {high:.4f}\n{table}")
    assert (table.filter(pl.col("method") != "fixed")["any false stop"] <= high).all()


# Other policies, and mixed lists.


def test_off_policy() -> None:
    """Logs of one policy about another, on made-up people: how often intervals hold the truth."""
    people, k = People.made(users=200, items=20, seed=0), 3
    known = np.log(people.likes / (1 - people.likes))
    error = np.random.default_rng(0).normal(size=known.shape)
    old, new = Softmax(known + 1.5 * error, 1.5), Softmax(known + 0.7 * error, 0.9)
    # A model that is off: too low, and blind to a part of the taste.
    model = 0.8 * people.likes + 0.2 * people.likes.mean()
    every = np.arange(200)
    single = float((new.firsts(every) * people.likes).sum(axis=1).mean())
    cascade = People(people.likes, model="cascade")
    crowd = np.repeat(every, 2000)
    slates = float(cascade.expected(crowd, new.draw(crowd, k, np.random.default_rng(1))).sum(axis=1).mean())
    found: dict[str, list[tuple[float, bool]]] = {}
    for run in range(RUNS):
        rng = np.random.default_rng((run, 5))
        users = rng.integers(0, 200, 3000)
        shown = old.draw(users, 1, rng)
        one = Logged(
            people.click(users, shown, rng),
            old.chances(users, shown),
            new.chances(users, shown),
            shown=np.take_along_axis(model[users], shown, axis=1),
            wanted=(new.firsts(users) * model[users]).sum(axis=1, keepdims=True),
        )
        several = old.draw(users, k, rng)
        many = Logged(cascade.click(users, several, rng), old.chances(users, several), new.chances(users, several))
        logs: list[tuple[str, Logged, tuple[Any, ...], float]] = [
            ("one item", one, ("ips", "snips", "dm", "dr", "switch-dr"), single),
            (f"slates of {k}", many, ("ips", "snips", "rips"), slates),
        ]
        for what, log, names, true in logs:
            for name in names:
                value = value_of(log, name)
                held = value.ci[0] <= true <= value.ci[1]
                found.setdefault(f"{what}: {name}", []).append((value.value - true, held))
    rows = []
    for name, values in found.items():
        off, holds = np.array(values).T
        rmse, bias = float(np.sqrt((off**2).mean())), float(off.mean())
        rows.append({"estimator": name, "bias": bias, "RMSE": rmse, "interval holds": float(holds.mean())})
    table = pl.DataFrame(rows)
    print(
        f"\noff-policy, {RUNS} logs of 3,000 sessions; the truth is {single:.4f} (one), {slates:.4f} (slates)\n{table}"
    )
    by_name = {row["estimator"]: row for row in rows}
    for name in ("one item: ips", "one item: dr", f"slates of {k}: rips"):
        assert 0.93 <= by_name[name]["interval holds"] <= 0.97
    assert by_name["one item: dr"]["RMSE"] < by_name["one item: ips"]["RMSE"]
    assert by_name[f"slates of {k}: rips"]["RMSE"] < by_name[f"slates of {k}: ips"]["RMSE"]
    # Where the log never showed half of what there is, nothing is answered.
    blind = known.copy()
    blind[:, ::2] = -60
    rng = np.random.default_rng(2)
    users = rng.integers(0, 200, 3000)
    shown = Softmax(blind).draw(users, 1, rng)
    log = Logged(people.click(users, shown, rng), Softmax(blind).chances(users, shown), new.chances(users, shown))
    refused = value_of(log, "ips").refused
    print(f"without support: {refused}")
    assert refused


def test_interleaving() -> None:
    """Sessions until a test with 80% power tells two rankers apart: mixed lists against an A/B test."""
    rows = []
    for seed in range(5):
        people = People.made(users=300, items=40, seed=seed)
        rng = np.random.default_rng((seed, 6))
        noise = rng.normal(size=people.likes.shape)
        known = np.log(people.likes / (1 - people.likes))
        poor, good = (np.argsort(-(known + level * noise), axis=1) for level in (0.9, 0.6))
        users = rng.integers(0, 300, 20_000)
        sides = [people.click(users, ranking[users][:, :10], rng).sum(axis=1) for ranking in (poor, good)]
        spread = float(np.sqrt(2 * (sides[0].var() + sides[1].var())))
        row = {"world": seed, "A/B": ((1.96 + 0.84) * spread / float(sides[1].mean() - sides[0].mean())) ** 2}
        for name, mix, n, k in (("team draft", team_draft, 6000, 10), ("probabilistic", probabilistic, 2000, 10)):
            lists = [mix([poor[u], good[u]], k, rng) for u in users[:n]]
            row[name] = _needed(people, users[:n], lists, rng)
        lists = [optimized(poor[u], good[u], 5, rng) for u in users[:1500]]
        row["optimized, 5"] = _needed(people, users[:1500], lists, rng)
        rows.append(row)
    table = pl.DataFrame(rows)
    times = {name: float((table["A/B"] / table[name]).median()) for name in table.columns[2:]}  # type: ignore[arg-type]
    print(f"\ninterleaving: sessions for a power of 80%\n{table}\ntimes fewer than A/B, median: {times}")
    assert min(times.values()) >= 10


def _needed(people: People, users: Any, lists: list[Shown], rng: np.random.Generator) -> float:
    clicks = people.click(users, np.stack([shown.items for shown in lists]), rng)
    scores = np.stack([shown.score(c) for shown, c in zip(lists, clicks, strict=True)])
    assert preference(scores).mean > 0  # the same winner
    return sessions_needed(scores[:, 1] - scores[:, 0])


# Speed and memory.


def write_rows(folder: Path, rows: int, metrics: int = 20) -> None:
    """Parquet of exposures, in files of a few million rows; a unit has ten, in any order."""
    folder.mkdir(parents=True)
    part, units = 2_000_000, max(rows // 10, 1)
    for at in range(0, rows, part):
        rng = np.random.default_rng(at)
        n = min(part, rows - at)
        unit = rng.integers(0, units, n)
        data: dict[str, Any] = {"user_id": unit, "variant": np.where((unit * 2654435761) % 1000 < 500, "A", "B")}
        for k in range(metrics):  # counts, and every fourth an amount
            own = rng.poisson(0.3, n)
            data[f"m{k}"] = own * rng.lognormal(0, 0.5, n) if k % 4 == 2 else own.astype(np.int32)
        pl.DataFrame(data).write_parquet(folder / f"{at // part:05d}.parquet")


def plan_of(metrics: int = 20) -> Experiment:
    kinds = [
        {"name": f"ratio {k}", "kind": "ratio", "numerator": f"m{k}", "denominator": "m0"}
        if k % 4 == 3
        else {"name": f"mean {k}", "kind": "mean", "column": f"m{k}"}
        for k in range(metrics)
    ]
    return Experiment.model_validate({"name": "big", "control": "A", "shares": {"A": 0.5, "B": 0.5}, "metrics": kinds})


def by_pandas(folder: Path, metrics: int = 20) -> float:
    """The same in pandas, checks and all, as most would write it. Returns an effect, to be compared."""
    import pandas as pd

    frame = pd.read_parquet(folder)
    names = [f"m{k}" for k in range(metrics)]
    frame = frame[frame["variant"].isin(["A", "B"])]
    assert not frame[names].isna().sum().any()
    assert not (frame[names] < 0).sum().any()
    assert (frame.groupby("user_id")["variant"].nunique() == 1).all()
    units = frame.groupby(["user_id", "variant"], as_index=False)[names].sum()
    sizes = units["variant"].value_counts()
    stats.chisquare([sizes["A"], sizes["B"]])
    control, treatment = (units[units["variant"] == name] for name in ("A", "B"))
    found = 0.0
    for k, name in enumerate(names):
        for side in (control, treatment):
            assert side[name].max() < side[name].sum()
        if k % 4 == 3:
            parts = []
            for side in (control, treatment):
                y, x = side[name], side["m0"]
                r = y.mean() / x.mean()
                parts.append((r, (y.var() - 2 * r * y.cov(x) + r * r * x.var()) / x.mean() ** 2 / len(side)))
            stats.norm.sf(abs(parts[1][0] - parts[0][0]) / np.sqrt(parts[0][1] + parts[1][1]))
        else:
            stats.ttest_ind(treatment[name], control[name], equal_var=False).confidence_interval()
        if k == 1:
            found = float(treatment[name].mean() - control[name].mean())
    return found


@pytest.mark.timeout(3 * 3600)
def test_many_rows() -> None:
    """Wall seconds and peak memory, each in a process of its own, one after the other."""
    folder = Path(tempfile.mkdtemp(prefix="bench-ab-", dir=os.environ.get("BENCH_TMP")))
    try:
        write_rows(folder / "tenth", ROWS // 10)
        pandas, ours = (timed(how, folder / "tenth") for how in ("pandas", "recsys"))
        print(f"\n{ROWS // 10:,} rows, 20 metrics: pandas {pandas}, recsys {ours}")
        print(f"ratio of wall time {pandas['seconds'] / ours['seconds']:.1f}, of CPU {pandas['cpu'] / ours['cpu']:.1f}")
        assert ours["effect"] == pytest.approx(pandas["effect"], rel=1e-6)
        shutil.rmtree(folder / "tenth")
        write_rows(folder / "all", ROWS)
        whole = timed("recsys", folder / "all")
        print(f"{ROWS:,} rows: {whole}")
        assert whole["gigabytes"] < 3
        assert pandas["seconds"] > 5 * ours["seconds"]
    finally:
        shutil.rmtree(folder)


def timed(how: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, how, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, cpu, memory, effect = map(float, done.stdout.split()[-4:])
    return {"seconds": seconds, "cpu": cpu, "gigabytes": memory, "effect": effect}


if __name__ == "__main__":
    import pandas  # noqa: F401  # loading it is no part of the time

    start = time.perf_counter()
    if sys.argv[1] == "pandas":
        effect = by_pandas(Path(sys.argv[2]))
    else:
        effect = analyze(plan_of(), pl.scan_parquet(Path(sys.argv[2]) / "*.parquet")).comparisons[1].effect.effect
    took = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6, effect)
