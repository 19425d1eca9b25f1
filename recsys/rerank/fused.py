"""The reranker around any judge: its opinion and what the candidates bring, added up with weights learned on tune.

The first `depth` candidates are reordered; the rest keep their order behind them. Queries of different kinds (regimes)
have weights of their own, where there was enough to learn them from: with a request in words the text says more, and
the history less, than without one.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from recsys.data.files import atomic_folder
from recsys.data.split import Questions
from recsys.errors import BundleError
from recsys.rerank.features import Feature, compute, lists_of, popularity, present
from recsys.rerank.fusion import Array, LinearFusion, Lists, fit_fusion
from recsys.rerank.judge import Judge, LMSource, readable
from recsys.tables import Candidates, Catalog, Id, InteractionLog, Profiles, Queries

log = logging.getLogger(__name__)

Regime = Literal["plain", "request", "told"]
REGIMES: tuple[Regime, ...] = ("plain", "request", "told")
ENOUGH = 50  # lists with an answer from which on a regime has weights of its own; "plain" always has
_FORMAT = 1
_FILE = "reranker.json"


class FusedConfig(BaseModel):
    """What every reranker with a judge is built with.

    depth      : candidates per query that are reordered
    features   : what is fused; those that the candidates lack are left out at fit
    tune_users : how many of tune's queries of each regime, among those whose answer is in their list, the judge reads
        at fit
    l2         : ridges to choose among
    certainty  : by how many standard errors learned weights must beat the candidates' order on held-out lists
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_lm: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False

    depth: int = Field(default=30, ge=1, le=1000)
    features: tuple[Feature, ...] = ("score", "log_rank", "lm", "log_popularity", "content")
    tune_users: int = Field(default=300, ge=1)
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0), min_length=1)
    certainty: float = Field(default=1.0, ge=0)

    def fuse(
        self,
        judge: Judge,
        questions: Questions,
        candidates: Candidates,
        profiles: Profiles,
        catalog: Catalog,
        log: InteractionLog,
        *,
        seed: int,
    ) -> "Fused":
        """Learn the fusion's weights on `questions`, whose `candidates` and `profiles` must come from parts that had
        not seen the answers; `log` (popularity) must not hold them either.

        Errors: those of the judge.
        """
        names = tuple(dict.fromkeys(("score", *present(self.features, candidates))))
        answers = dict(questions.truth.frame.select("query_id", "item_id").iter_rows())
        regimes = regimes_of(questions.queries)
        heads = [rows.head(self.depth) for rows in lists_of(questions.queries, candidates)]
        held = sorted((h for h in heads if _answer_row(h, answers) >= 0), key=lambda h: str(h["query_id"][0]))
        counts = popularity(log)
        chosen: dict[Regime, list[pl.DataFrame]] = {}
        with_answer: dict[Regime, int] = {}
        for regime in REGIMES:
            own = [head for head in held if regimes[head["query_id"][0]] == regime]
            with_answer[regime] = len(own)
            if regime == "plain" or len(own) >= ENOUGH:
                places = np.sort(np.random.default_rng(seed).permutation(len(own))[: self.tune_users])
                chosen[regime] = [own[i] for i in places]
        read = [head for some in chosen.values() for head in some]
        if read and "lm" in names:
            judge.prepare(read, catalog)
            opinions = iter(list(judge.opinions(read, questions.queries, profiles, catalog)))
        else:
            opinions = iter([np.zeros(len(head)) for head in read])
        fusions: dict[Regime, LinearFusion] = {}
        reports: dict[Regime, dict[str, Any]] = {}
        for regime, some in chosen.items():
            fusions[regime], report = fit_fusion(
                lists_to_learn(names, some, [next(opinions) for _ in some], counts, answers),
                base="score",
                lm_features=("lm",),
                grid=self.l2,
                certainty=self.certainty,
                queries=sum(own == regime for own in regimes.values()),
                with_answer=with_answer[regime],
                seed=seed,
            )
            reports[regime] = report.as_dict()
        told = {**reports.pop("plain"), **({"regimes": reports} if reports else {})}
        return Fused(judge, self.depth, fusions, counts, told)


@dataclass(frozen=True)
class Fused:
    """A fitted reranker; made by `FusedConfig.fuse` or `load`.

    depth   : candidates per query that are reordered
    fusions : weights by regime; "plain" is there, and stands in for those that are not
    counts  : events by item, for popularity
    report  : what the fit of "plain" found, as plain values; under "regimes" that of the others, by name
    """

    judge: Judge
    depth: int
    fusions: Mapping[Regime, LinearFusion]
    counts: Mapping[Id, int]
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Whether the judge's opinion counts at all."""
        return any(fusion.uses("lm") for fusion in self.fusions.values())

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles, catalog: Catalog) -> Candidates:
        """The same candidates, the first `depth` of each query in the fused order, served by "reranker".

        Where the judge's answer is not finite, a query keeps its candidates as they came; the log says how many.
        Errors: `ModelError` when the model fails; `UnknownItemError` for a candidate outside the catalog;
        `DataError` for one whose query is not asked.
        """
        regimes = regimes_of(queries)
        lists = list(lists_of(queries, candidates))
        heads = [rows.head(self.depth) for rows in lists]
        fusions = [self.fusions.get(regimes[head["query_id"][0]], self.fusions["plain"]) for head in heads]
        asked = [head for head, fusion in zip(heads, fusions, strict=True) if fusion.uses("lm")]
        opinions = iter(list(self.judge.opinions(asked, queries, profiles, catalog)) if asked else [])
        done = [candidates.frame.clear()]
        broken = 0
        for rows, head, fusion in zip(lists, heads, fusions, strict=True):
            lm = next(opinions) if fusion.uses("lm") else None
            if lm is not None and not np.isfinite(lm).all():
                broken += 1
                done.append(rows)
                continue
            features = compute([name for name in fusion.weights if fusion.uses(name)], head, self.counts, lm)
            done.append(_reordered(rows, fusion.scores(features)))
        if broken:
            log.warning(
                "%d of %d queries keep the candidates' order: no finite opinion by %s",
                broken,
                len(lists),
                self.judge.model_id,
            )
        return Candidates(pl.concat(done))

    def save(self, path: Path) -> None:
        """Write JSON, Parquet and the judge's files into the new folder `path`. Errors: `StorageError`."""
        facts = {
            "format": _FORMAT,
            "kind": self.judge.kind,
            "depth": self.depth,
            "weights": {regime: dict(fusion.weights) for regime, fusion in self.fusions.items()},
            "report": dict(self.report),
        }
        items = pl.DataFrame({"item_id": list(self.counts), "events": list(self.counts.values())})
        with atomic_folder(path) as folder:
            (folder / _FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
            items.write_parquet(folder / "counts.parquet")
            self.judge.save(folder / "judge")

    @classmethod
    def load(cls, path: Path, kind: str, load_judge: Callable[[Path, LMSource | None], Judge], lm: LMSource) -> "Fused":
        """Read the folder of a reranker of that kind; where the fitted weights do not use the judge's opinion, no
        language model is asked for.

        Errors: `BundleError` for a folder that is damaged or of another kind or format, and those of the judge.
        """
        with readable(path, f"a reranker of kind '{kind}'"):
            facts = json.loads((path / _FILE).read_text("utf-8"))
            if (facts["kind"], facts["format"]) != (kind, _FORMAT):
                raise BundleError(
                    f"{path / _FILE}: is a reranker of kind '{facts['kind']}' and format {facts['format']}, "
                    f"not '{kind}' and {_FORMAT}"
                )
            fusions: dict[Regime, LinearFusion] = {
                regime: LinearFusion({str(name): float(weight) for name, weight in facts["weights"][regime].items()})
                for regime in REGIMES
                if regime in facts["weights"] or regime == "plain"
            }
            depth, report = int(facts["depth"]), dict(facts["report"])
            counts = dict(pl.read_parquet(path / "counts.parquet").select("item_id", "events").iter_rows())
        uses_lm = any(fusion.uses("lm") for fusion in fusions.values())
        return cls(load_judge(path / "judge", lm if uses_lm else None), depth, fusions, counts, report)


def regimes_of(queries: Queries) -> dict[Id, Regime]:
    """The regime of each query: it asks for something in words, or there is no history and only a profile can tell."""
    regime = (
        pl.when(pl.col("request").str.strip_chars() != "")
        .then(pl.lit("request"))
        .when(pl.col("history").list.len() == 0)
        .then(pl.lit("told"))
        .otherwise(pl.lit("plain"))
    )
    return dict(queries.frame.select("query_id", regime.alias("regime")).iter_rows())


def lists_to_learn(
    names: Sequence[str],
    heads: Sequence[pl.DataFrame],
    opinions: Iterable[Array],
    counts: Mapping[Id, int],
    answers: Mapping[Id, Id],
) -> Lists:
    """Features of candidate lists with their answers' rows; lists with a broken opinion are left out."""
    values, sizes, rows = [], [], []
    for head, lm in zip(heads, opinions, strict=True):
        if np.isfinite(lm).all():
            features = compute(names, head, counts, lm)
            values.append(np.stack([features[name] for name in names], axis=1))
            sizes.append(len(head))
            rows.append(_answer_row(head, answers))
    if len(sizes) < len(heads):
        log.warning("%d of %d lists left out: no finite number", len(heads) - len(sizes), len(heads))
    table = np.concatenate(values) if values else np.zeros((0, len(names)))
    return Lists(tuple(names), table, np.array(sizes, dtype=np.int64), np.array(rows, dtype=np.int64))


def _reordered(rows: pl.DataFrame, scores: Array) -> pl.DataFrame:
    """One query's candidates with the first ones by fused score; the rest follow below, as far apart as they were.

    Scores that differ by rounding only are ties, and ties keep the candidates' order.
    """
    rounded = np.round(scores, 9)
    order = np.argsort(-rounded, kind="stable")
    rest = np.arange(len(scores), len(rows))
    tail = rows["score"].to_numpy()[len(scores) :]
    below = rounded.min() - 1 - (tail[0] - tail if len(tail) else tail)
    served_by = pl.Series(["reranker"] * len(scores) + rows["served_by"].to_list()[len(scores) :], dtype=pl.String)
    sorted_rows: pl.DataFrame = rows[np.concatenate([order, rest]).tolist()]
    return sorted_rows.with_columns(
        score=pl.Series(np.concatenate([rounded[order], below])),
        rank=pl.int_range(1, len(rows) + 1, dtype=pl.Int64),
        served_by=served_by,
    )


def _answer_row(rows: pl.DataFrame, answers: Mapping[Id, Id]) -> int:
    """The row of the query's answer; -1 where the list does not hold it."""
    found = (rows["item_id"] == answers[rows["query_id"][0]]).arg_true()
    return int(found[0]) if len(found) else -1
