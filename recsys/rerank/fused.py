"""The reranker around any judge: its opinion and what the candidates bring, added up with weights learned on tune.

The first `depth` candidates are reordered; the rest keep their order behind them. Queries of different kinds (regimes)
have weights of their own, where there was enough to learn them from: with a request in words the text says more, and
the history less, than without one.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from recsys.data.files import atomic_folder
from recsys.data.split import Questions
from recsys.data.vocab import history_lengths
from recsys.errors import BundleError
from recsys.rerank.fallback import BLOCK
from recsys.rerank.features import Feature, Ranked, compute, popularity, present
from recsys.rerank.fusion import Array, Ints, LinearFusion, Lists, fit_fusion
from recsys.rerank.fusion import follow as followed
from recsys.rerank.judge import Judge, LMSource, readable
from recsys.tables import Candidates, Catalog, Id, InteractionLog, Profiles, Queries

log = logging.getLogger(__name__)

Regime = Literal["plain", "request", "told"]
REGIMES: tuple[Regime, ...] = ("plain", "request", "told")
ENOUGH = 50  # lists with an answer from which on a regime has weights of its own; "plain" always has
_FORMAT = 2
_FILE = "reranker.json"


class FusedConfig(BaseModel):
    """What every reranker with a judge is built with.

    depth      : candidates per query that are reordered
    reach      : for who asks in words, so many times as many: what is wanted may stand far down
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
    reach: int = Field(default=1, ge=1, le=100)
    features: tuple[Feature, ...] = Field(
        default=("score", "log_rank", "lm", "log_popularity", "content"), min_length=1
    )
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
        follow: Collection[Regime] = (),
    ) -> "Fused":
        """Learn the fusion's weights on `questions`, whose `candidates` and `profiles` must come from parts that had
        not seen the answers; `log` (popularity) must not hold them either.

        follow : regimes in which the judge's opinion is an order in itself, learned from one that has earned its place:
                 it is taken as it is, unless the candidates' own is better
        Errors: those of the judge.
        """
        names = tuple(dict.fromkeys(("score", *present(self.features, candidates))))
        regimes = regimes_of(questions.queries)
        ranked = Ranked.of(questions.queries, candidates)
        own = regimes[ranked.asked]
        heads = ranked.head(depths(own, self.depth, self.reach))
        answers = heads.answers(questions.truth)
        ids = questions.queries.frame["query_id"].gather(heads.asked).cast(pl.String)
        held = np.array([row for row in ids.arg_sort() if answers[row] >= 0], dtype=np.int64)
        counts = popularity(log)
        chosen: dict[Regime, Ints] = {}
        with_answer: dict[Regime, int] = {}
        for regime in REGIMES:
            some = held[own[held] == regime]
            with_answer[regime] = len(some)
            if regime == "plain" or len(some) >= ENOUGH:
                places = np.sort(np.random.default_rng(seed).permutation(len(some))[: self.tune_users])
                chosen[regime] = some[places]
        read = heads.take(np.concatenate(list(chosen.values())))
        opinions = np.zeros((len(read.frame), 2))
        if len(read) and ("lm" in names or getattr(judge, "limits", False)):
            frames = read.frames()
            judge.prepare(frames, catalog)
            opinions = _told(judge.opinions(frames, questions.queries, profiles, catalog))
        fusions: dict[Regime, LinearFusion] = {}
        reports: dict[Regime, dict[str, Any]] = {}
        last = 0
        for regime, some in chosen.items():
            lists = np.arange(last, last + len(some))
            last += len(some)
            learned = lists_to_learn(names, read.take(lists), opinions[read.rows(lists)], counts, answers[some])
            n, held_there = int((regimes == regime).sum()), with_answer[regime]
            if regime in follow and "lm" in names and len(learned):
                fusions[regime], report = followed(learned, "score", "lm", n, held_there)
            if regime not in fusions or report.gain < 0:
                fusions[regime], report = fit_fusion(
                    learned,
                    base="score",
                    lm_features=("lm",),
                    grid=self.l2,
                    certainty=self.certainty,
                    queries=n,
                    with_answer=held_there,
                    seed=seed,
                )
            reports[regime] = report.as_dict()
        told = {**reports.pop("plain"), **({"regimes": reports} if reports else {})}
        return Fused(judge, self.depth, fusions, counts, told, self.reach)


@dataclass(frozen=True)
class Fused:
    """A fitted reranker; made by `FusedConfig.fuse` or `load`.

    depth   : candidates per query that are reordered; with a request, `reach` times as many
    fusions : weights by regime; "plain" is there, and stands in for those that are not
    counts  : events by item, for popularity
    report  : what the fit of "plain" found, as plain values; under "regimes" that of the others, by name
    """

    judge: Judge
    depth: int
    fusions: Mapping[Regime, LinearFusion]
    counts: Mapping[Id, int]
    report: Mapping[str, Any] = field(default_factory=dict)
    reach: int = 1

    @property
    def limits(self) -> bool:
        """Whether the judge says what a request means, which holds whatever its opinion is worth."""
        return bool(getattr(self.judge, "limits", False))

    @property
    def asks(self) -> bool:
        """Whether the judge's opinion counts at all."""
        return self.limits or any(fusion.uses("lm") for fusion in self.fusions.values())

    @property
    def block(self) -> int:
        """Queries that `Fallback` asks about at once; a judge may say."""
        return int(getattr(self.judge, "block", BLOCK))

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles, catalog: Catalog) -> Candidates:
        """The same candidates, the first ones of each query in the fused order, served by "reranker".

        Where the judge's answer is not finite, a query keeps its candidates as they came; the log says how many.
        Errors: `ModelError` when the model fails; `UnknownItemError` for a candidate outside the catalog;
        `DataError` for one whose query is not asked.
        """
        lists = Ranked.of(queries, candidates)
        regimes = regimes_of(queries)[lists.asked]
        heads = lists.head(depths(regimes, self.depth, self.reach))
        known = np.array([regime if regime in self.fusions else "plain" for regime in regimes.tolist()], np.str_)
        told = np.zeros((len(heads.frame), 2))
        uses = np.isin(known, [name for name, fusion in self.fusions.items() if fusion.uses("lm")])
        asked = np.flatnonzero(uses | (regimes == "request") & self.limits)
        if len(asked):
            told[heads.rows(asked)] = _told(self.judge.opinions(heads.take(asked).frames(), queries, profiles, catalog))
        lm, limits = told.T
        sound = np.ones(len(lists), dtype=bool)
        sound[heads.lists[~np.isfinite(told).all(axis=1)]] = False
        scores = np.zeros(len(heads.frame))
        for regime, fusion in self.fusions.items():
            own = np.flatnonzero(sound & (known == regime))
            rows = heads.rows(own)
            names = [name for name in fusion.weights if fusion.uses(name)]
            scores[rows] = fusion.scores(compute(names, heads.take(own), self.counts, lm[rows]), limits[rows])
        if not sound.all():
            log.warning(
                "%d of %d queries keep the candidates' order: no finite opinion by %s",
                int((~sound).sum()),
                len(lists),
                self.judge.model_id,
            )
        return Candidates(_reordered(lists, heads, scores, sound))

    def save(self, path: Path) -> None:
        """Write JSON, Parquet and the judge's files into the new folder `path`. Errors: `StorageError`."""
        facts = {
            "format": _FORMAT,
            "kind": self.judge.kind,
            "depth": self.depth,
            "reach": self.reach,
            "weights": {regime: dict(fusion.weights) for regime, fusion in self.fusions.items()},
            "sharpness": {regime: fusion.sharpness for regime, fusion in self.fusions.items()},
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
                    f"not '{kind}' and {_FORMAT}: refit"
                )
            fusions: dict[Regime, LinearFusion] = {
                regime: LinearFusion(
                    {str(name): float(weight) for name, weight in facts["weights"][regime].items()},
                    float(facts["sharpness"][regime]),
                )
                for regime in REGIMES
                if regime in facts["weights"] or regime == "plain"
            }
            depth, reach, report = int(facts["depth"]), int(facts.get("reach", 1)), dict(facts["report"])
            counts = dict(pl.read_parquet(path / "counts.parquet").select("item_id", "events").iter_rows())
        uses_lm = any(fusion.uses("lm") for fusion in fusions.values())
        return cls(load_judge(path / "judge", lm if uses_lm else None), depth, fusions, counts, report, reach)


def regimes_of(queries: Queries) -> npt.NDArray[np.str_]:
    """The regime of each query: it asks for something in words, or there is no history and only a profile can tell."""
    asked = zip(queries.frame["request"], history_lengths(queries).tolist(), strict=True)
    return np.array(["request" if request.strip() else "plain" if n else "told" for request, n in asked], dtype=np.str_)


def depths(regimes: npt.NDArray[np.str_], depth: int, reach: int) -> Ints:
    """How many candidates of each list are reordered."""
    return np.where(regimes == "request", reach * depth, depth)


def _told(opinions: Iterable[Array]) -> Array:
    """(rows, 2): a judge's opinions, one list after the other, and the limits beside them, 0 where it gives none."""
    columns = [opinion if opinion.ndim == 2 else np.stack([opinion, np.zeros(len(opinion))], 1) for opinion in opinions]
    return np.concatenate(columns)


def lists_to_learn(names: Sequence[str], heads: Ranked, told: Array, counts: Mapping[Id, int], answers: Ints) -> Lists:
    """Features of candidate lists with their answers' rows; lists with a broken opinion are left out."""
    sound = np.ones(len(heads), dtype=bool)
    sound[heads.lists[~np.isfinite(told).all(axis=1)]] = False
    if not sound.all():
        log.warning("%d of %d lists left out: no finite number", int((~sound).sum()), len(heads))
    kept = np.flatnonzero(sound)
    lm, limits = told[heads.rows(kept)].T
    features = compute(names, heads.take(kept), counts, lm)
    values = np.stack([features[name] for name in names], axis=1)
    return Lists(tuple(names), values, heads.sizes[kept], answers[kept], limits)


def _reordered(lists: Ranked, heads: Ranked, scores: Array, sound: npt.NDArray[np.bool_]) -> pl.DataFrame:
    """The candidates, the heads of sound lists by fused score; the rest follow below, as far apart as they were.

    Scores that differ by rounding only are ties, and ties keep the candidates' order.
    """
    rounded = np.round(scores, 9)
    best_first = np.lexsort((-rounded, heads.lists))
    if heads is lists and sound.all():  # all there is, as mostly where one asks at a time
        order, after, ranks = best_first, rounded[best_first], lists.places + 1
        frame = lists.frame[pl.Series(order.astype(np.uint32))]
        served_by = pl.Series("served_by", ["reranker"], dtype=pl.String).new_from_index(0, len(frame))
    else:
        order, after, head = _with_the_rest(lists, heads, rounded, best_first, sound)
        frame = lists.frame[pl.Series(order)]
        ranks = np.where(np.repeat(sound, lists.sizes), lists.places + 1, frame["rank"].to_numpy())
        served_by = frame["served_by"].zip_with(pl.Series(~head), pl.Series(["reranker"], dtype=pl.String))
    # Column by column: for one request a query of polars costs more than all of this.
    for column in (pl.Series("score", after), pl.Series("rank", ranks), served_by):
        frame.replace_column(frame.get_column_index(column.name), column)
    return frame


def _with_the_rest(
    lists: Ranked, heads: Ranked, rounded: Array, best_first: Ints, sound: npt.NDArray[np.bool_]
) -> tuple[Ints, Array, npt.NDArray[np.bool_]]:
    """(rows,) the row that comes in each place, its score, and whether a sound head's."""
    lowest = np.minimum.reduceat(rounded, heads.starts) if len(heads) else rounded
    row = np.arange(len(lists.frame))
    heard = np.repeat(sound, lists.sizes)
    inside = lists.places < np.repeat(heads.sizes, lists.sizes)
    head, tail = inside & heard, ~inside & heard
    moved = heard[inside]  # of the heads' rows
    order = row.copy()
    order[head] = row[inside][best_first][moved]
    before = lists.frame["score"].to_numpy()
    after = before.copy()
    after[head] = rounded[best_first][moved]
    of = lists.lists[tail]
    after[tail] = lowest[of] - 1 - (before[(lists.starts + heads.sizes)[of]] - before[tail])
    return order, after, head
