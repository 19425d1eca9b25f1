"""What a fusion's parts are worth on held-out questions: each source alone, and the fusion without it."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from recsys.candidates.fusion import Fusion
from recsys.data.split import Questions
from recsys.metrics import average_popularity, coverage, ndcg, paired, recall, target_ranks
from recsys.tables import Candidates, Catalog, InteractionLog

# Cormack, Clarke & Büttcher's constant.
RRF = 60


def reciprocal_ranks(lists: Mapping[str, Candidates], n: int) -> Candidates:
    """Fusion without learning: score = sum over sources of 1 / (60 + rank), of the items that a list holds.

    Source: Cormack, Clarke & Büttcher, "Reciprocal rank fusion outperforms Condorcet", SIGIR 2009. Ties go to the lower
    item id.
    """
    columns = ["query_id", "item_id", "rank"]
    found = pl.concat([candidates.frame.select(columns) for candidates in lists.values()])
    scored = found.group_by("query_id", "item_id").agg(score=(1.0 / (RRF + pl.col("rank"))).sum())
    ranked = (
        scored.sort("query_id", "score", "item_id", descending=[False, True, False])
        .with_columns(rank=pl.int_range(1, pl.len() + 1).over("query_id"))
        .filter(pl.col("rank") <= n)
    )
    return Candidates(ranked.with_columns(source=pl.lit("reciprocal ranks"), served_by=pl.lit("candidates")))


def compare_sources(
    fusion: Fusion,
    fused: pl.DataFrame,
    questions: Questions,
    catalog: Catalog,
    log: InteractionLog,
    *,
    n: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One row per source, and one for reciprocal-rank fusion of all of them.

    fused : the rank of each question's answer in the fusion's own list (`target_ranks`)
    log   : what the fusion was fitted on, for the popularity of what is proposed
    n     : length of the lists that are compared

    Keys: source, weight, ndcg@10, recall@100, coverage@100, popularity@10; delta, relative, ci95 and p of the fusion's
    NDCG@10 against this row's; and under "without" the same of the fusion against a fusion that never had this source.
    """
    own = ndcg(fused["rank"], 10)
    lists = {name: source.generate(questions.queries, n) for name, source in fusion.sources.items()}
    lists["reciprocal ranks"] = reciprocal_ranks(lists, n)
    without = fusion.without_each(questions.queries, n) if len(fusion.sources) > 1 else {}
    rows = []
    for name, candidates in lists.items():
        ranks = target_ranks(candidates, questions.truth, by="score")["rank"]
        row = {
            "source": name,
            "weight": fusion.report["weights"].get(name),
            "ndcg@10": float(ndcg(ranks, 10).mean()),
            "recall@100": float(recall(ranks, 100).mean()),
            "coverage@100": coverage(candidates, catalog, 100),
            "popularity@10": average_popularity(candidates, log, 10),
            **paired(own, ndcg(ranks, 10), seed=seed).row(),
            "without": None,
        }
        if name in without:
            rest = target_ranks(without[name], questions.truth, by="score")["rank"]
            row["without"] = {
                "ndcg@10": float(ndcg(rest, 10).mean()),
                "recall@100": float(recall(rest, 100).mean()),
                **paired(own, ndcg(rest, 10), seed=seed).row(),
            }
        rows.append(row)
    return rows
