"""Quality of the candidates on real data, under the protocol that the floors were frozen with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

SPEC = Path(__file__).parents[2] / "pipelines" / "specs" / "candidates.toml"

# dataset -> floors of NDCG@10 and recall@100; leave-last, 5-core, full ranking, everybody is asked about
FLOORS = {"ml-100k": (0.090, 0.59), "movietweetings-100k-5core": (0.123, 0.56)}


@pytest.mark.weights
@pytest.mark.parametrize("name", FLOORS)
def test_the_fused_candidates_reach_the_frozen_floors(
    name: str, real_data: Callable[[str], Path], encoder: Any, weights_settings: Any
) -> None:
    from recsys.data.ingest import read_dataset
    from recsys.evaluate import evaluate
    from recsys.spec import load_spec

    found = evaluate(read_dataset(real_data(name)), load_spec(SPEC), weights_settings, core=5, seed=0)
    candidates = found.metrics["stages"]["candidates"]
    print(f"\n{name}: ndcg@10 {candidates['ndcg@10']:.4f} {candidates['ci95']['ndcg@10']}")
    print(f"recall@100 {candidates['recall@100']:.4f}; seconds {found.metrics['seconds']}")
    print(pl.DataFrame(found.metrics["sources"]))
    ndcg, recall = FLOORS[name]
    assert candidates["ndcg@10"] >= ndcg
    assert candidates["recall@100"] >= recall
