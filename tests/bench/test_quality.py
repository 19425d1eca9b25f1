"""Quality of the candidates on real data, under the protocol that the floors were frozen with.

BENCH_SEEDS (default "0") names the seeds, comma-separated; the floors hold for the mean over them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

SPEC = Path(__file__).parents[2] / "pipelines" / "specs" / "candidates.toml"
SEEDS = [int(seed) for seed in os.environ.get("BENCH_SEEDS", "0").split(",")]

# dataset -> floors: NDCG@10 and recall@100 of the fusion; NDCG@10 of the sequential source alone.
# Leave-last, 5-core, full ranking, everybody is asked about.
FLOORS = {
    "ml-100k": (0.110, 0.64, 0.0),
    "movietweetings-100k-5core": (0.138, 0.59, 0.0),
    "ml-1m": (0.185, 0.68, 0.165),
}

SHOWN = ["source", "ndcg@10", "recall@100", "coverage@100", "popularity@10"]


def interval(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{row['delta']:+.4f} [{low:+.4f}, {high:+.4f}]"


@pytest.mark.weights
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("split", ["leave-last", "time"])
@pytest.mark.parametrize("name", FLOORS)
def test_the_fused_candidates_reach_the_frozen_floors(
    name: str, split: Any, real_data: Callable[[str], Path], encoder: Any, weights_settings: Any
) -> None:
    from recsys.data.ingest import read_dataset
    from recsys.evaluate import evaluate
    from recsys.spec import load_spec

    dataset, spec = read_dataset(real_data(name)), load_spec(SPEC)
    rows, pairs = [], []
    for seed in SEEDS:
        found = evaluate(dataset, spec, weights_settings, split=split, core=5, seed=seed)
        fused = {"source": "fusion", **found.metrics["stages"]["candidates"]}
        rows += [{"seed": seed, **{key: row[key] for key in SHOWN}} for row in [fused, *found.sources]]
        pairs += [
            {
                "seed": seed,
                "source": row["source"],
                "fusion minus source": interval(row),
                "fusion minus fusion without it": interval(row["without"]) if row["without"] else "",
            }
            for row in found.sources
        ]
        print(f"\n{name}, {split}, seed {seed}: fusion {fused['ci95']}")
        print(f"seconds {found.metrics['seconds']}, peak {found.metrics['peak_rss_mb']} MB")
    means = pl.DataFrame(rows).group_by("source", maintain_order=True).agg(pl.col(SHOWN[1:]).mean(), seeds=pl.len())
    with pl.Config(tbl_rows=100, fmt_str_lengths=60, tbl_width_chars=140):
        print(pl.DataFrame(rows), means, pl.DataFrame(pairs))
    reached = {row["source"]: row for row in means.iter_rows(named=True)}
    if split == "leave-last":
        ndcg, recall, sequential = FLOORS[name]
        assert reached["fusion"]["ndcg@10"] >= ndcg
        assert reached["fusion"]["recall@100"] >= recall
        assert reached["sequential"]["ndcg@10"] >= sequential
