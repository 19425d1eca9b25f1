"""From an evaluation to the report's plain data: who is shown, and what each number is called."""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl

from recsys.data.ingest import Dataset
from recsys.evaluate import Evaluation
from recsys.metrics import Paired
from recsys.report import words
from recsys.report.data import DictionaryRow, HistoryRow, ReportData, SlateRow, SourceRow, UserPage, Weights

SHOWN_USERS = 3
SHOWN_EVENTS = 12
MEANING = {
    "user_id": "who acted",
    "item_id": "on what; joins the two tables",
    "event": "the kind of event",
    "weight": "the rating or weight of the event; 1 where the source has none",
    "ts": "when: Unix seconds, or the position in the user's history where the source has no time",
    "title": "the item's name, shown to people and read by models",
    "text": "title and attributes as one text, read by the text encoder",
}


def report_data(found: Evaluation, dataset: Dataset) -> ReportData:
    """Everything that the report shows of one evaluation."""
    metrics, tuning = found.metrics, found.metrics["tuning"]
    run = metrics["run"]
    return ReportData(
        dataset=dataset.name,
        metrics=metrics,
        per_query=found.per_query,
        activity=found.questions.queries.frame.select("query_id", events=pl.col("history").list.len()),
        sources=[_source(row, metrics["data"]["queries"]) for row in found.sources],
        weights=[
            *_fusion(tuning.get("generator", {})),
            *_reranker(tuning.get("reranker", {}), run["spec"]["reranker"]["kind"]),
        ],
        users=_users(found, dataset),
        dictionary=_dictionary(dataset),
        notes=dataset.notes,
        licence=dataset.licence,
        run={
            "seed": str(run["seed"]),
            "k-core": str(run["k_core"] or "none"),
            "cores": str(os.cpu_count()),
            **{f"version of {name}": number for name, number in run["versions"].items()},
        },
        spec=json.dumps(run["spec"], indent=1),
        weight_name="Rating" if dataset.rated else "Weight",
    )


def _source(row: Mapping[str, Any], n: int) -> SourceRow:
    return SourceRow(
        name=row["source"],
        ndcg10=row["ndcg@10"],
        recall100=row["recall@100"],
        coverage100=row["coverage@100"],
        popularity10=row["popularity@10"],
        advantage=_paired(row, n),
        contribution=_paired(row["without"], n) if row["without"] else None,
    )


def _paired(row: Mapping[str, Any], n: int) -> Paired:
    low, high = row["ci95"]
    return Paired(row["delta"], row["relative"], (low, high), row["p"], n)


def _fusion(report: Mapping[str, Any]) -> Iterator[Weights]:
    if "weights" not in report:
        return
    if not report["heldout_queries"]:
        yield Weights("fusion", "Nobody had two events to learn from, so all sources count alike.", report["weights"])
        return
    heldout = {name: value for name, value in report["heldout_ndcg@10"].items() if name != "fusion"}
    best = max(heldout, key=lambda name: heldout[name])
    verdict = (
        f"Learned on {report['heldout_queries']} held-out events before test. There the best single source was "
        f"{best} (NDCG@10 {heldout[best]:.3f}); the fusion reached {report['heldout_ndcg@10']['fusion']:.3f} on the "
        "events that its weights were learned on. A negative weight offsets what other sources already contain."
    )
    yield Weights("fusion", verdict, report["weights"])


def _reranker(report: Mapping[str, Any], kind: str) -> Iterator[Weights]:
    """The weights of every kind of query that has its own."""
    fits = {"plain": report, **report.get("regimes", {})} if "weights" in report else {}
    others = [served for regime, (_, served) in words.REGIMES.items() if regime not in fits]
    for regime, (part, _) in words.REGIMES.items():
        if regime in fits:
            verdict = words.learned(fits[regime], kind)
            if regime == "plain" and others:
                verdict += f" The same weights serve {' and '.join(others)}: there were too few of them to learn from."
            named = {words.input_name(name, kind): weight for name, weight in fits[regime]["weights"].items()}
            yield Weights(part, verdict, named)


def _users(found: Evaluation, dataset: Dataset) -> list[UserPage]:
    """Three of the evaluated users: first those whose profile an LM wrote, then in the order of the queries."""
    profiles = found.profiles.frame.with_columns(plain=pl.col("model_id") == "template")
    chosen = profiles.sort("plain", maintain_order=True).head(SHOWN_USERS)
    titles = dict(dataset.catalog.frame.select("item_id", "title").iter_rows())
    names = {str(item): title for item, title in titles.items()}
    ranks = {row["query_id"]: row for row in found.per_query.iter_rows(named=True)}
    asked = found.questions.queries.frame.join(chosen.select("query_id"), on="query_id", how="semi")
    queries = {row["query_id"]: row for row in asked.iter_rows(named=True)}
    pages = []
    for profile in chosen.iter_rows(named=True):
        query, rank = queries[profile["query_id"]], ranks[profile["query_id"]]
        slate = found.slates.frame.filter(pl.col("query_id") == profile["query_id"]).sort("rank")
        events = list(zip(query["history"], query["weights"], query["times"], strict=True))[-SHOWN_EVENTS:]
        pages.append(
            UserPage(
                user_id=profile["user_id"],
                history=[
                    HistoryRow(titles.get(item, str(item)), weight if dataset.rated else None, _when(ts, dataset.clock))
                    for item, weight, ts in reversed(events)
                ],
                events=len(query["history"]),
                profile=profile["text"],
                model=profile["model_id"],
                claims=[_named(claim, names) for claim in profile["claims"]],
                slate=[
                    SlateRow(
                        titles[row["item_id"]],
                        row["score"],
                        row["served_by"],
                        row["reason"],
                        held_out=row["item_id"] == rank["item_id"],
                    )
                    for row in slate.iter_rows(named=True)
                ],
                held_out=titles.get(rank["item_id"], str(rank["item_id"])),
                ranks={stage: rank[stage] for stage in found.metrics["stages"]},
            )
        )
    return pages


def _named(claim: str, names: Mapping[str, str]) -> str:
    """A claim about an item says its id; here also its title."""
    kind, _, ending = claim.rpartition("|")
    return f"{claim} ({names[ending]})" if kind in ("anchor", "latest") and ending in names else claim


def _when(ts: int, clock: str) -> str:
    return datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d") if clock == "time" else f"event {ts + 1}"


def _dictionary(dataset: Dataset) -> list[DictionaryRow]:
    rows = []
    for table, frame in (("interactions", dataset.log.frame), ("items", dataset.catalog.frame)):
        for column in frame.columns:
            values = frame[column].drop_nulls()
            example = "" if not len(values) else values[0]
            text = ", ".join(map(str, example)) if isinstance(example, pl.Series) else str(example)
            rows.append(
                DictionaryRow(
                    table, column, str(frame[column].dtype), MEANING.get(column, "attribute of the item"), text
                )
            )
    return rows
