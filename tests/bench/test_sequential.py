"""The sequential source alone: what the items' text is worth to it, and what the order of ties.

Half of MovieLens' events share their second with another of the same user; ties break by item id everywhere, and an
order that is the same for everybody can be learned. `at random` gives each event a fraction of a second of its own.

BENCH_SEEDS=0,1,2 trains anew.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from recsys.candidates import SequentialConfig
from recsys.candidates.trainable import fit_generator
from recsys.data.split import k_core, split_log
from recsys.metrics import ndcg, paired, recall, target_ranks
from recsys.tables import Catalog, InteractionLog

SEEDS = [int(seed) for seed in os.environ.get("BENCH_SEEDS", "0").split(",")]
DATASETS = ["ml-100k", "movietweetings-100k-5core", "ml-1m"]

Floats = npt.NDArray[np.float64]


def fresh_ties(log: InteractionLog, seed: int) -> InteractionLog:
    """The same log, with ties in random order."""
    fraction = np.random.default_rng(seed).integers(0, 1_000_000, len(log))
    return InteractionLog.of(log.frame.with_columns(ts=pl.col("ts") * 1_000_000 + pl.Series(fraction)))


def measured(
    config: SequentialConfig, log: InteractionLog, catalog: Catalog, seed: int, settings: Any
) -> tuple[Floats, Floats]:
    """NDCG@10 and recall@100 of each user's last event."""
    split = split_log(log, "leave-last")
    source = fit_generator(config, split.known, catalog, seed=seed, settings=settings)
    questions = split.questions("test")
    ranks = target_ranks(source.generate(questions.queries, 200), questions.truth, by="score")["rank"]
    return ndcg(ranks, 10), recall(ranks, 100)


def told(what: str, found: dict[str, list[tuple[Floats, Floats]]], base: str) -> None:
    rows = []
    for name, runs in found.items():
        gain, hit = (np.mean([run[place] for run in runs], axis=0) for place in (0, 1))
        row = {"sequential": name, "seeds": len(runs), "ndcg@10": float(gain.mean()), "recall@100": float(hit.mean())}
        for label, place, own in (("ndcg@10", 0, gain), ("recall@100", 1, hit)):
            other = np.mean([run[place] for run in found[base]], axis=0)
            pair = paired(own, other, seed=0).row()
            low, high = pair["ci95"]
            row[f"{label} less {base}"] = f"{pair['delta']:+.4f} [{low:+.4f}, {high:+.4f}]"
        rows.append(row)
    with pl.Config(tbl_cols=-1, tbl_width_chars=160, fmt_str_lengths=60):
        print(f"\n{what}", pl.DataFrame(rows), sep="\n")


@pytest.mark.weights
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", DATASETS)
def test_what_text_is_worth(name: str, real_data: Callable[[str], Path], encoder: Any, weights_settings: Any) -> None:
    from recsys.data.ingest import read_dataset
    from recsys.spec import with_vectors

    dataset = read_dataset(real_data(name))
    catalog = with_vectors(dataset.catalog, encoder, weights_settings.cache_dir)
    log = k_core(dataset.log, 5)
    found = {
        label: [measured(SequentialConfig(use_text=text), log, catalog, seed, weights_settings) for seed in SEEDS]
        for label, text in (("with text", True), ("without", False))
    }
    told(f"{name}, text", found, "without")
    assert min(run[0].mean() for runs in found.values() for run in runs) > 0


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_what_the_order_of_ties_is_worth(name: str, real_data: Callable[[str], Path], weights_settings: Any) -> None:
    from recsys.data.ingest import read_dataset

    dataset = read_dataset(real_data(name))
    log = k_core(dataset.log, 5)
    config = SequentialConfig(use_text=False)
    found = {
        "ties by item id": [measured(config, log, dataset.catalog, seed, weights_settings) for seed in SEEDS],
        "ties at random": [
            measured(config, fresh_ties(log, seed), dataset.catalog, seed, weights_settings) for seed in SEEDS
        ],
    }
    told(f"{name}, ties", found, "ties by item id")
    assert min(run[0].mean() for runs in found.values() for run in runs) > 0
