"""Popularity by segment for users without history: what a gender, an age band or an occupation is worth.

A random fifth of the users at a time leaves the log altogether. They are asked about with an empty history and their
segment; right is whatever they met, ever. For each half of them the prior is chosen on the other half, by NDCG@10, so
that in the end every user was reported on once. Gains are paired by user with popularity over everybody.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from recsys.candidates import PopularConfig
from recsys.metrics import paired, target_ranks
from recsys.tables import Candidates, Catalog, InteractionLog, Queries, Truth

FOLDS = 5
PRIORS = (30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0)
AGES = [18, 25, 35, 45, 50, 56]  # the bands of ml-1m, which ml-100k's years are cut into
SEGMENTS = {
    "gender": ["gender"],
    "age": ["age"],
    "occupation": ["occupation"],
    "gender+age": ["gender", "age"],
    "gender+occupation": ["gender", "occupation"],
    "gender+age+occupation": ["gender", "age", "occupation"],
}


def with_segments(log: InteractionLog, users: pl.DataFrame, columns: list[str]) -> InteractionLog:
    age = pl.sum_horizontal(pl.col("age").cast(pl.Int64) >= edge for edge in AGES)
    joined = pl.concat_str(pl.col(columns).cast(pl.String), separator=", ")
    known = users.with_columns(age=age).select(pl.col("user_id").cast(log.frame["user_id"].dtype), segment=joined)
    return InteractionLog.of(log.frame.join(known, on="user_id", how="left"))


def newcomers(log: InteractionLog) -> tuple[Queries, Truth]:
    """Each user of the log as at their first event: an empty history, the segment, and all their items as answers."""
    users = log.frame.group_by("user_id", maintain_order=True).agg(
        at=pl.col("ts").min(), segment=pl.col("segment").first()
    )
    none = {"history": log.frame["item_id"].dtype, "weights": pl.Float64, "times": pl.Int64}
    empty = [pl.lit([], dtype=pl.List(dtype)).alias(name) for name, dtype in none.items()]
    frame = users.with_columns(*empty, query_id=pl.col("user_id"), request=pl.lit(""))
    truth = log.frame.select(query_id="user_id", item_id="item_id").unique(maintain_order=True)
    return Queries(frame.select(Queries.held(frame))), Truth(truth)


def figures(candidates: Candidates, truth: Truth) -> dict[str, npt.NDArray[np.float64]]:
    """Of each user, in the order of `truth`: NDCG@10 over all right items (Järvelin & Kekäläinen 2002), recall@100."""
    ideal = np.cumsum(1 / np.log2(np.arange(2, 12)))
    found = target_ranks(candidates, truth, by="rank").group_by("query_id", maintain_order=True)
    per_user = found.agg(
        gain=(1 / (1 + pl.col("rank").filter(pl.col("rank") <= 10)).log(2)).sum(),
        hits=(pl.col("rank") <= 100).sum(),
        answers=pl.len(),
    )
    gain, hits, answers = (per_user[name].to_numpy() for name in ("gain", "hits", "answers"))
    return {"ndcg@10": gain / ideal[np.minimum(answers, 10) - 1], "recall@100": hits / answers}


def answered(config: Any, log: InteractionLog, catalog: Catalog, asked: tuple[Queries, Truth]) -> dict[str, Any]:
    source = config.fit(log, catalog, seed=0)
    return figures(source.generate(asked[0], 100), asked[1])


def half_answered(
    log: InteractionLog, catalog: Catalog, fold: pl.Series, reported: pl.Series
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Figures of the users `reported` by segment and by everybody, and the prior, chosen on the fold's other users."""
    out = pl.col("user_id").is_in(fold.implode())
    mine = pl.col("user_id").is_in(reported.implode())
    known = InteractionLog(log.frame.filter(~out))
    tune, report = (newcomers(InteractionLog(log.frame.filter(some))) for some in (out & ~mine, mine))
    tries = [PopularConfig(by_segment=True, prior=prior) for prior in PRIORS]
    tuned = [answered(config, known, catalog, tune)["ndcg@10"].mean() for config in tries]
    chosen = tries[int(np.argmax(tuned))]
    return answered(chosen, known, catalog, report), answered(PopularConfig(), known, catalog, report), chosen.prior


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["ml-1m", "ml-100k"])
def test_popularity_by_segment_for_users_without_history(name: str, real_data: Callable[[str], Path]) -> None:
    from recsys.data.ingest import read_dataset

    folder = real_data(name)
    dataset, users = read_dataset(folder), pl.read_parquet(folder / "users.parquet")
    shuffled = dataset.log.frame["user_id"].unique().sort().sample(fraction=1.0, seed=0, shuffle=True)
    rows = []
    for segment, columns in SEGMENTS.items():
        log = with_segments(dataset.log, users, columns)
        found = []
        for number in range(FOLDS):
            fold = shuffled.gather_every(FOLDS, number)
            found += [half_answered(log, dataset.catalog, fold, fold.gather_every(2, half)) for half in (0, 1)]
        row = {"segment": segment, "segments": log.frame["segment"].n_unique()}
        for metric in ("ndcg@10", "recall@100"):
            own, base = (np.concatenate([parts[side][metric] for parts in found]) for side in (0, 1))
            gain = paired(own, base, seed=0)
            low, high = gain.ci95
            row |= {metric: own.mean(), f"everybody's {metric}": base.mean()}
            row |= {f"gain in {metric}": f"{gain.delta:+.4f} [{low:+.4f}, {high:+.4f}]"}
            assert len(own) == len(shuffled)
        rows.append({**row, "priors": " ".join(f"{prior:g}" for _, _, prior in found)})
    with pl.Config(tbl_cols=-1, tbl_rows=100, tbl_width_chars=240, fmt_str_lengths=100):
        print(f"\n{name}: {len(dataset.log):,} events, {len(shuffled):,} users", pl.DataFrame(rows), sep="\n")
