"""Items without any event: all interactions of a tenth of the items that test asks about are hidden from the fit.

BENCH_SEEDS=0,1,2 draws the hidden items anew; the figures are means over the draws.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.candidates import ContentConfig, TwoTowerConfig
from recsys.candidates.cold import cold_codes
from recsys.data.split import Questions, Split, ask
from recsys.metrics import mean_interval, recall, target_ranks
from recsys.tables import Candidates, InteractionLog

SEEDS = [int(seed) for seed in os.environ.get("BENCH_SEEDS", "0").split(",")]
SHARE = 0.1
DEPTH = 200  # deep enough that ties around rank 100 are counted at their expected rank
BAR = 5.0  # times random's recall@100 in the whole catalog


def hide(split: Split, seed: int) -> tuple[InteractionLog, Questions, pl.Series]:
    """What is left to learn from, the questions whose answer is hidden, and the hidden items.

    The hidden items are gone from the histories, too: nobody has ever met them.
    """
    asked = split.test.frame["item_id"].unique().sort()
    chosen = np.random.default_rng(seed).choice(len(asked), round(SHARE * len(asked)), replace=False)
    hidden = asked.gather(np.sort(chosen))
    gone = pl.col("item_id").is_in(hidden.implode())
    known = InteractionLog(split.known.frame.filter(~gone))
    held_out = InteractionLog(split.test.frame.filter(gone))
    return known, ask(InteractionLog.of(pl.concat([known.frame, held_out.frame])), held_out), hidden


def random_recall(questions: Questions, items: int) -> float:
    """Expected recall@100 of the unseen items in any order."""
    return float((100 / (items - questions.queries.frame["history"].list.n_unique())).clip(0, 1).mean())  # type: ignore[arg-type]


def among(source: Any, questions: Questions, codes: Any) -> Candidates:
    """The cold items alone, in the source's order."""
    queries = questions.queries.frame
    scores = source.scores_at(source.vocab.histories(questions.queries), queries["at"].to_numpy(), codes)
    items = source.vocab.decode(codes)
    frame = pl.DataFrame(
        {
            "query_id": queries["query_id"].gather(np.repeat(np.arange(len(queries)), len(codes))),
            "item_id": pl.concat([items] * len(queries)),
            "score": scores.ravel().astype(np.float64),
        }
    )
    place = pl.col("score").rank("ordinal", descending=True).over("query_id").cast(pl.Int64)
    return Candidates(frame.with_columns(rank=place, source=pl.lit(source.name), served_by=pl.lit("candidates")))


@pytest.mark.weights
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["ml-1m", "movietweetings-100k-5core"])
def test_items_without_events_are_found(
    name: str, real_data: Callable[[str], Path], encoder: Any, weights_settings: Any
) -> None:
    from recsys.candidates.trainable import fit_generator
    from recsys.data.ingest import read_dataset
    from recsys.data.split import k_core, split_log
    from recsys.spec import with_vectors

    dataset = read_dataset(real_data(name))
    catalog = with_vectors(dataset.catalog, encoder, weights_settings.cache_dir)
    split = split_log(k_core(dataset.log, 5), "leave-last")
    rows = []
    for seed in SEEDS:
        known, questions, hidden = hide(split, seed)
        for config in (ContentConfig(), TwoTowerConfig()):
            source = fit_generator(config, known, catalog, seed=seed, settings=weights_settings)
            cold = cold_codes(known, source.vocab)
            assert set(hidden) <= set(source.vocab.decode(cold))
            ranks = target_ranks(source.generate(questions.queries, DEPTH), questions.truth, by="score")["rank"]
            found, base = recall(ranks, 100), random_recall(questions, len(catalog))
            own = target_ranks(among(source, questions, source.vocab.encode(hidden)), questions.truth, by="score")
            low, high = mean_interval(found)
            rows.append(
                {
                    "seed": seed,
                    "source": source.name,
                    "questions": len(questions),
                    "hidden": len(hidden),
                    "recall@100": float(found.mean()),
                    "ci95": f"{low:.3f} to {high:.3f}",
                    "random": base,
                    "ratio": float(found.mean()) / base,
                    "among hidden recall@10": float(recall(own["rank"], 10).mean()),
                    "among hidden random": 10 / len(hidden),
                }
            )
    table = pl.DataFrame(rows)
    means = table.group_by("source").agg(pl.col("recall@100", "random", "ratio", "among hidden recall@10").mean())
    print(f"\n{name}, {len(catalog):,} items; recall@100 in the whole catalog, and @10 among the hidden items")
    with pl.Config(tbl_cols=-1, tbl_width_chars=160):
        print(table, means.sort("source"), sep="\n")
    assert means["ratio"].max() >= BAR  # type: ignore[operator]
