"""Fusion: one score from several sources, s = sum_f w_f * z_f, where z_f is a source's score standardised per query.

Everything is learned on events that the sources had not seen: each user's last event of the given log is held out,
the sources' few settings are chosen by NDCG@10 there, the weights as `weights` describes; then the sources are fitted
again on the whole log.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.candidates.als import AlsConfig
from recsys.candidates.base import (
    Codes,
    Floats,
    Ints,
    Scorer,
    Source,
    block_rows,
    candidate_frame,
    top_n,
)
from recsys.candidates.cold import cold_codes, with_places_kept
from recsys.candidates.content import ContentConfig
from recsys.candidates.popular import PopularConfig
from recsys.candidates.sources import SOURCES, SourceConfig
from recsys.candidates.trainable import HeadStart, Trainable, fit_generator
from recsys.candidates.transitions import TransitionsConfig
from recsys.candidates.weights import FIT_CELLS, FIT_ITEMS, PRIOR, Heldout, Weights, standardised
from recsys.data.split import Questions, split_log
from recsys.data.vocab import Histories, place_in_group
from recsys.errors import BundleError, SpecError
from recsys.metrics import ndcg, target_ranks
from recsys.settings import Settings
from recsys.tables import Candidates, Catalog, InteractionLog, Queries

SAME_NAME = "generator.sources: two sources have the same name ({})"
# What each source proposes in a large catalog, whatever shorter list is asked for: so a short one heads a long one.
POOL = 500


class FusionConfig(Trainable):
    """l2: ridge on the weights; tune_sources: choose the sources' settings too; tune_queries: how many held-out
    events at most, sampled by seed; cold_share: share of the places from `cold_from` on that items without any event
    take; pool_above: items beyond which only those that some source proposes are scored."""

    kind: Literal["fusion"] = "fusion"
    sources: tuple[SourceConfig, ...] = Field(
        default=(
            TransitionsConfig(),
            PopularConfig(),
            PopularConfig(half_life=3.0),
            AlsConfig(),
            ContentConfig(),
        ),
        min_length=1,
    )
    l2: float = Field(default=0.001, ge=0)
    tune_sources: bool = True
    tune_queries: int = Field(default=2000, ge=1)
    cold_share: float = Field(default=0.0, ge=0, lt=1)
    cold_from: int = Field(default=11, ge=1)
    pool_above: int = Field(default=50_000, ge=1)
    exclude_seen: bool = True

    @property
    def reads_text(self) -> bool:
        return any(source.reads_text for source in self.sources)

    def train(
        self,
        log: InteractionLog,
        catalog: Catalog,
        *,
        seed: int,
        settings: Settings | None = None,
        start: HeadStart | None = None,
    ) -> "Fusion":
        """Where no user has two events, nothing can be held out: the sources stay as configured, and all count alike.

        With a head start its sources, already tuned, answer its questions, so that only the last fit is left to do.
        Errors: `SpecError` where two sources have one name.
        """
        tuned: dict[str, Source] = {}
        # Whether seen items may come again is the fusion's to say; its sources are tuned and compared under one rule.
        configs: list[Any] = [source.model_copy(update={"exclude_seen": self.exclude_seen}) for source in self.sources]
        if len({(config.kind, getattr(config, "half_life", None) is None) for config in configs}) < len(configs):
            raise SpecError(SAME_NAME.format(", ".join(config.kind for config in configs)))
        alone: list[float] = []
        questions: Questions | None = None
        if start is not None and isinstance(start.generator, Fusion) and len(start.questions):
            tuned, configs = start.generator.sources, list(start.generator.config.sources)
            questions = self._affordable(start.questions, catalog, seed)
            alone = [heldout_ndcg(source.generate(questions.queries, 50), questions) for source in tuned.values()]
        elif log.frame["user_id"].n_unique() < len(log):
            inner = split_log(log, "leave-last")
            questions = self._affordable(inner.questions("test"), catalog, seed)
            chosen = [self._choose(config, inner.known, catalog, questions, seed, settings) for config in configs]
            configs, alone = [config for config, _, _ in chosen], [value for _, _, value in chosen]
            tuned = {source.name: source for _, source, _ in chosen}
        report: dict[str, Any] = {"heldout_ndcg@10": {}, "heldout_queries": 0, "without": {}}
        weights = np.full(len(configs), PRIOR)
        if questions is not None:
            heldout = Heldout.of(list(tuned.values()), questions, exclude_seen=self.exclude_seen, seed=seed)
            weights = heldout.learn(self.l2)
            report = {
                "heldout_ndcg@10": {**dict(zip(tuned, alone, strict=True)), "fusion": heldout.reached(weights)},
                "heldout_queries": len(questions),
                "without": {name: heldout.learn(self.l2, without=f).tolist() for f, name in enumerate(tuned)},
            }
            del heldout
        heads = [HeadStart(source, questions) for source in tuned.values()] if questions else [None] * len(configs)
        fitted = [
            fit_generator(config, log, catalog, seed=seed, settings=settings, start=head)
            for config, head in zip(configs, heads, strict=True)
        ]
        sources = {source.name: source for source in fitted}
        report["weights"] = dict(zip(sources, weights.tolist(), strict=True))
        report["settings"] = {name: config.model_dump() for name, config in zip(sources, configs, strict=True)}
        chosen_as = self.model_copy(update={"sources": tuple(configs)})
        return Fusion(chosen_as, sources, weights, report, cold_codes(log, next(iter(sources.values())).vocab))

    def _affordable(self, questions: Questions, catalog: Catalog, seed: int) -> Questions:
        """As many of the questions as there is memory for."""
        room = FIT_CELLS // (len(self.sources) * max(1, min(len(catalog), FIT_ITEMS)))
        return questions.sample(min(self.tune_queries, max(room, 1)), seed)

    def _choose(
        self,
        config: Any,
        log: InteractionLog,
        catalog: Catalog,
        questions: Questions,
        seed: int,
        settings: Settings | None,
    ) -> tuple[Any, Source, float]:
        """The best of a source's variants on the held-out questions; the first of equals."""
        tries = []
        if self.tune_sources and not isinstance(config, Trainable):
            tries = config.variants(log, catalog, seed=seed)
        tries = tries or [(config, fit_generator(config, log, catalog, seed=seed, settings=settings))]
        scored = [(c, s, heldout_ndcg(s.generate(questions.queries, 50), questions)) for c, s in tries]
        return max(scored, key=lambda t: t[2])


def heldout_ndcg(candidates: Candidates, questions: Questions) -> float:
    """Mean NDCG@10 of one held-out item per query."""
    return float(ndcg(target_ranks(candidates, questions.truth, by="score")["rank"], 10).mean())


class Fusion(Scorer):
    """The fitted fusion. `report` says the weights, what each source reached on the held-out events, and the weights
    learned without each."""

    kind: ClassVar[str] = "fusion"

    def __init__(
        self,
        config: FusionConfig,
        sources: Mapping[str, Source],
        weights: Weights,
        report: Mapping[str, Any],
        cold: Codes,
    ) -> None:
        """config : with the sources' settings as they were chosen; cold : codes of the items without any event."""
        super().__init__(next(iter(sources.values())).vocab, config.exclude_seen)
        self.config, self.sources, self.weights = config, dict(sources), weights
        self.report, self.cold = dict(report), cold

    def scores(self, histories: Histories, at: Ints) -> Floats:
        raw = {name: source.scores(histories, at) for name, source in self.sources.items()}
        return _sum(self._weighted(histories, [standardised(scores) for scores in raw.values()], self.weights))

    def _weighted(self, histories: Histories, z: Sequence[Floats], weights: Weights) -> list[Floats]:
        empty = np.diff(histories.indptr)[:, None] == 0
        return [
            # Without history learned weights mislead; but a source that was left out stays out, its weight is 0.
            np.where(empty, np.float32(PRIOR if weight else 0.0), np.float32(weight)) * part
            for part, weight in zip(z, weights, strict=True)
        ]

    def _read(self, histories: Histories, at: Ints, codes: Codes | None) -> tuple[list[Floats], list[Floats]]:
        """Each source's own and standardised scores, of all items or of `codes`."""
        if codes is None:
            raw = [source.scores(histories, at) for source in self.sources.values()]
            return raw, [standardised(scores) for scores in raw]
        raw, z = [], []
        for source in self.sources.values():
            raw.append(source.scores_at(histories, at, codes))
            mean, deviation = source.moments(histories, at)
            z.append(standardised(raw[-1], mean, deviation))
        return raw, z

    def _pool(self, histories: Histories, at: Ints, n: int) -> Codes | None:
        """(queries, m) codes worth scoring, ascending, -1 where a query has fewer; None for the whole catalog.

        In a large catalog only what some source puts among its own first: standing nowhere, an item does not win.
        """
        if len(self.vocab) <= self.config.pool_above:
            return None
        size = max(n, POOL)
        found = [source.propose(histories, at, size) for source in self.sources.values()]
        width = len(self.vocab)
        pairs = np.unique(np.concatenate([rows.astype(np.int64) * width + codes for rows, codes in found]))
        rows, codes = pairs // width, pairs % width
        place = place_in_group(rows)
        pool = np.full((len(histories), int(place.max(initial=-1)) + 1), -1)
        pool[rows, place] = codes
        return pool

    def _generate(self, queries: Queries, n: int) -> pl.DataFrame:
        return next(self._candidates(queries, n, [self.weights]))

    def _candidates(self, queries: Queries, n: int, weightings: Sequence[Weights]) -> Iterator[pl.DataFrame]:
        """The candidates of some queries under each of several weightings, with places kept for cold items."""
        share, start = self.config.cold_share, self.config.cold_from
        histories = self.vocab.histories(queries)
        if not len(self.cold) or not share:
            yield from self._lists(queries, histories, n, weightings)
            return
        warm = self._lists(queries, histories, n, weightings, barred=self.cold)
        cold = self._lists(queries, histories, n, weightings, among=self.cold)
        for some, others in zip(warm, cold, strict=True):
            yield with_places_kept(some, others, n, share, start)

    def _lists(
        self,
        queries: Queries,
        histories: Histories,
        n: int,
        weightings: Sequence[Weights],
        *,
        among: Codes | None = None,
        barred: Codes | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The same without such places: `among` some items, or with some `barred`."""
        at = queries.frame["at"].to_numpy()
        codes = self._pool(histories, at, n) if among is None else np.repeat(among[None], len(histories), axis=0)
        raw, z = self._read(histories, at, codes)
        hidden = self._hidden(histories, codes, barred)
        for weights in weightings:
            parts = self._weighted(histories, z, weights)
            total = _sum(parts)
            total[hidden] = -np.inf
            rows, columns = top_n(total, n, seen=None)
            speaker = np.argmax(np.stack([part[rows, columns] for part in parts]), axis=0)
            items = columns if codes is None else codes[rows, columns]
            frame = candidate_frame(queries, self.vocab, rows, items, total[rows, columns])
            yield frame.with_columns(pl.Series("source", list(self.sources)).gather(speaker)).with_columns(
                _own_scores(name, source, scores[rows, columns])
                for (name, source), scores in zip(self.sources.items(), raw, strict=True)
            )

    def _hidden(self, histories: Histories, codes: Codes | None, barred: Codes | None) -> npt.NDArray[np.bool_]:
        """Which of `codes` (of all items where None) are not to be proposed."""
        width = len(self.vocab)
        everywhere = np.zeros(width + 1, dtype=bool)
        everywhere[-1] = True  # what stands for nothing, -1
        if barred is not None:
            everywhere[barred] = True
        if codes is None:
            hidden = np.repeat(everywhere[None, :-1], len(histories), axis=0)
            if self.exclude_seen:
                hidden[histories.rows(), histories.items] = True
            return hidden
        hidden = everywhere[codes]
        if self.exclude_seen:
            met = histories.rows().astype(np.int64) * width + histories.items
            hidden |= np.isin(np.arange(len(codes))[:, None] * width + codes, met)
        return hidden

    def without_each(self, queries: Queries, n: int) -> dict[str, Candidates]:
        """The candidates of a fusion without each of its sources in turn, its weights learned without it."""
        weightings = [np.asarray(weights) for weights in self.report["without"].values()]
        blocks = [
            list(self._candidates(batch, n, weightings)) for batch in queries.batches(block_rows(len(self.vocab)))
        ]
        lists = zip(*blocks, strict=True)
        return {name: Candidates(pl.concat(parts)) for name, parts in zip(self.report["without"], lists, strict=True)}

    def save(self, path: Path) -> None:
        """One folder per source, and the weights and the report in fusion.json."""
        path.mkdir(parents=True, exist_ok=True)
        for name, source in self.sources.items():
            source.save(path / name)
        body = {
            "config": self.config.model_dump(),
            "sources": {name: source.kind for name, source in self.sources.items()},
            "weights": self.weights.tolist(),
            "report": self.report,
        }
        (path / "fusion.json").write_text(json.dumps(body, indent=1))
        np.save(path / "cold.npy", self.cold, allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Errors: `BundleError` where the folder holds no readable fusion."""
        try:
            body = json.loads((path / "fusion.json").read_text())
            kinds = {name: SOURCES[kind] for name, kind in body["sources"].items()}
            config, weights = FusionConfig(**body["config"]), np.asarray(body["weights"], dtype=np.float64)
            report, cold = body["report"], np.load(path / "cold.npy", allow_pickle=False)
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise BundleError(f"{path}: this is no readable fusion ({error!r})") from error
        if len(weights) != len(kinds) or not np.isfinite(weights).all():
            raise BundleError(f"{path}: fusion.json has {len(kinds)} sources, whose weights must be as many numbers")
        sources = {name: kind.load(path / name) for name, kind in kinds.items()}
        return cls(config, sources, weights, report, cold)


def _own_scores(name: str, source: Source, scores: Floats) -> pl.Series:
    """A source's own scores as a column; null where it has no evidence."""
    told = np.where(scores > source.floor, scores.astype(np.float64), np.nan)
    return pl.Series(f"score_{name}", told, nan_to_null=True)


def _sum(parts: Sequence[Floats]) -> Floats:
    return np.asarray(sum(parts[1:], parts[0].copy()), dtype=np.float32)
