"""Offline evaluation: fit on the past, ask about held-out events, rank the whole catalog, say how sure we are.

Stages, in the order of the line: `popular` (all-time counts, the floor for everything), `candidates` (the spec's
generator), `reranked` (what the recommender shows). Every stage answers the same queries, so differences are paired.
"""

import json
import logging
import platform
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from recsys.candidates import Fusion, PopularConfig
from recsys.candidates.comparison import compare_sources
from recsys.data.files import atomic_file
from recsys.data.ingest import Dataset
from recsys.data.split import Questions, SplitKind, k_core, split_log
from recsys.metrics import average_popularity, mrr, ndcg, paired, recall, stage_metrics, target_ranks
from recsys.protocols import LanguageModel
from recsys.settings import Settings
from recsys.spec import Clock, Fitted, Spec, Training, fit
from recsys.tables import Candidates, InteractionLog, Profiles, Queries, Slates

log = logging.getLogger(__name__)

# Deep enough that ties around rank 100 are counted at their expected rank.
DEPTH = 200
LIFTED = ("ndcg@10", "recall@10", "mrr@10")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and what a report or a bundle needs of it."""

    metrics: Mapping[str, Any]
    per_query: pl.DataFrame
    sources: list[dict[str, Any]]
    fitted: Fitted
    known: InteractionLog
    questions: Questions
    profiles: Profiles
    slates: Slates


def evaluate(
    dataset: Dataset,
    spec: Spec,
    settings: Settings,
    *,
    split: SplitKind = "leave-last",
    core: int | None = None,
    sample_users: int | None = None,
    seed: int = 0,
    k: int = 10,
    lm: LanguageModel | None = None,
) -> Evaluation:
    """Fit on fit and tune, answer test's questions, compare the stages.

    `core` filters to the k-core before splitting; `sample_users` samples the users asked about, by seed, while
    everybody is fitted on. Errors: `DataError` and `SpecError` as `fit` and the splits raise them.
    """
    clock = Clock()
    interactions = k_core(dataset.log, core) if core else dataset.log
    parts = split_log(interactions, split, clock=dataset.clock)
    fitted = fit(dataset, spec, settings, seed=seed, training=Training.of_split(parts), lm=lm)
    recommender, catalog = fitted.recommender, fitted.recommender.catalog
    questions = parts.questions("test").sample(sample_users, seed)
    queries, truth = questions.queries, questions.truth
    with clock.step("generate candidates"):
        floor = PopularConfig(exclude_seen=spec.generator.exclude_seen)
        popular = floor.fit(parts.known, catalog, seed=seed).generate(queries, DEPTH)
        candidates = recommender.generator.generate(queries, max(DEPTH, recommender.depth, k))
    with clock.step("describe users"):
        profiles = recommender.profiles.as_of(queries)
    with clock.step("rerank"):
        # As many candidates as the recommender would ask for.
        head = pl.col("rank") <= max(recommender.depth, k)
        ranked = recommender.rerank(queries, Candidates(candidates.frame.filter(head)), profiles)
    with clock.step("explain"):
        slates = recommender.present(queries, ranked, min(k, len(catalog)))
    lists = {"popular": popular, "candidates": candidates, "reranked": _followed(ranked, candidates)}
    # By score at every stage: a tie counts at its expected rank in all, so that no stage gains by how ties fall.
    ranks = {stage: target_ranks(listed, truth, by="score") for stage, listed in lists.items()}
    with clock.step("compare stages"):
        stages = {
            stage: stage_metrics(ranks[stage]["rank"], listed, catalog, seed=seed) for stage, listed in lists.items()
        }
        lift = _lift(ranks, seed)
        for stage, listed in lists.items():
            stages[stage]["popularity@10"] = average_popularity(listed, parts.known, 10)
        sources = []
        if isinstance(recommender.generator, Fusion):
            sources = compare_sources(
                recommender.generator, ranks["candidates"], questions, catalog, parts.known, n=DEPTH, seed=seed
            )
    per_query = questions.truth.frame.join(
        queries.frame.select("query_id", "user_id"), on="query_id", maintain_order="left"
    ).select("query_id", "user_id", "item_id")
    for stage, found in ranks.items():
        per_query = per_query.join(
            found.select("query_id", pl.col("rank").alias(stage)), on="query_id", how="left", maintain_order="left"
        )
    described = describe(dataset, interactions, questions, exclude_seen=spec.generator.exclude_seen)
    if split == "time":
        described["test_from"] = datetime.fromtimestamp(parts.cuts[1], UTC).isoformat(timespec="minutes")
    if spec.generator.exclude_seen and described["answers_already_met"] > 0.05:
        log.warning(
            "%.0f%% of the answers are items that the user had met before, which are never proposed: "
            "set generator.exclude_seen = false where items come again",
            100 * described["answers_already_met"],
        )
    metrics = {
        "data": described,
        "split": split,
        "stages": stages,
        "lift": lift,
        "seconds": {**fitted.seconds, **clock.seconds},
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "sources": sources,
        "tuning": dict(fitted.tuning),
        "run": {"spec": spec.model_dump(mode="json"), "seed": seed, "k_core": core, "versions": _versions()},
    }
    return Evaluation(metrics, per_query, sources, fitted, parts.known, questions, profiles, slates)


def _followed(ranked: Candidates, candidates: Candidates) -> Candidates:
    """The reranked candidates, followed by those that lay beyond the recommender's depth, in their own order.

    Ties stay ties: the rest is moved down as a whole, and only where a reranker's scores would otherwise mix with it.
    """
    rest = candidates.frame.join(ranked.frame, on=["query_id", "item_id"], how="anti", maintain_order="left")
    lowest = ranked.frame.group_by("query_id").agg(lowest=pl.col("score").min())
    highest = pl.col("score").max().over("query_id")
    overlap = pl.when(highest > pl.col("lowest")).then(highest - pl.col("lowest") + 1).otherwise(0.0)
    moved = rest.join(lowest, on="query_id", how="left", maintain_order="left").with_columns(
        pl.col("score") - overlap.fill_null(0.0)
    )
    return Candidates(pl.concat([ranked.frame, moved.select(ranked.frame.columns)]))


def _lift(ranks: Mapping[str, pl.DataFrame], seed: int) -> dict[str, Any]:
    """Reranked against candidates, paired by query."""
    functions = {"ndcg": ndcg, "recall": recall, "mrr": mrr}
    found = {}
    for name in LIFTED:
        metric, k = name.split("@")
        new, old = (functions[metric](ranks[stage]["rank"], int(k)) for stage in ("reranked", "candidates"))
        found[name] = paired(new, old, seed=seed).row()
    return found


def describe(
    dataset: Dataset, interactions: InteractionLog, questions: Questions, *, exclude_seen: bool
) -> dict[str, Any]:
    """What the figures stand on, in numbers and notes."""
    users, items = interactions.frame["user_id"].n_unique(), interactions.frame["item_id"].n_unique()
    histories = questions.queries.frame
    answers = histories.join(questions.truth.frame, on="query_id").select(
        met=pl.col("history").list.contains(pl.col("item_id")),
        known=pl.col("item_id").is_in(dataset.catalog.frame["item_id"].implode()),
    )
    reach = pl.col("known") & ~pl.col("met") if exclude_seen else pl.col("known")
    return {
        "name": dataset.name,
        "clock": dataset.clock,
        "rated": dataset.rated,
        "users": users,
        "items": items,
        "catalog": len(dataset.catalog),
        "events": len(interactions),
        "density": len(interactions) / (users * items),
        "queries": len(questions),
        "queries_without_history": histories.filter(pl.col("history").list.len() == 0).height,
        "answers_already_met": float(answers["met"].mean() or 0.0),  # type: ignore[arg-type]  # a mean of booleans
        "answers_within_reach": float(answers.select(reach.mean()).item() or 0.0),
        "notes": list(dataset.notes),
    }


def _versions() -> dict[str, str]:
    names = ("recsys", "polars", "torch", "transformers", "implicit", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write_results(found: Evaluation, out: Path) -> None:
    """Write metrics.json, per_query.parquet and slates.parquet into `out`, each whole or not at all."""
    with atomic_file(out / "per_query.parquet") as path:
        found.per_query.write_parquet(path)
    with atomic_file(out / "slates.parquet") as path:
        with_users(found.slates, found.questions.queries).write_parquet(path)
    with atomic_file(out / "metrics.json") as path:
        path.write_text(json.dumps(found.metrics, indent=1, default=str))


def with_users(slates: Slates, queries: Queries) -> pl.DataFrame:
    """Slates with the user of each query, in the columns that batch writes."""
    return slates.frame.join(queries.frame.select("query_id", "user_id"), on="query_id", maintain_order="left").select(
        "user_id", "item_id", "rank", "score", "propensity", "served_by", "reason"
    )
