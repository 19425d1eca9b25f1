"""Fusion: one score from several sources, s = sum_f w_f * z_f, where z_f is a source's score standardised per query.

Everything is learned on events that the sources had not seen: each user's last event of the given log is held out,
the sources' few settings are chosen by NDCG@10 there, the weights by the listwise softmax over the catalog
(Cao et al., ListNet, ICML 2007) with a light ridge; then the sources are refitted on the whole log.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.candidates.als import AlsConfig
from recsys.candidates.base import Config, Floats, Ints, Scorer, Source, block_rows, candidate_frame, top_n
from recsys.candidates.content import ContentConfig
from recsys.candidates.popular import PopularConfig
from recsys.candidates.sources import SOURCES, SourceConfig
from recsys.candidates.transitions import TransitionsConfig
from recsys.data.split import Questions, split_log
from recsys.data.vocab import Histories
from recsys.errors import BundleError, SpecError
from recsys.metrics import ndcg, target_ranks
from recsys.tables import Candidates, Catalog, InteractionLog, Queries

# 240 MB of standardised scores while the weights are learned.
FIT_CELLS = 60_000_000
FIT_ITEMS = 20_000
# What a source counts before anything is learned, and for a query without history: there, learned weights mislead,
# since popularity's may be negative to offset the popularity inside the other sources, which are then silent.
PRIOR = 0.5


class FusionConfig(Config):
    """l2: ridge on the weights; tune_sources: choose the sources' settings too; tune_queries: how many held-out
    events at most, sampled by seed."""

    kind: Literal["fusion"] = "fusion"
    sources: tuple[SourceConfig, ...] = (
        TransitionsConfig(),
        PopularConfig(),
        PopularConfig(half_life=3.0),
        AlsConfig(),
        ContentConfig(),
    )
    l2: float = Field(default=0.001, ge=0)
    tune_sources: bool = True
    tune_queries: int = Field(default=2000, ge=1)
    exclude_seen: bool = True

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Fusion":
        """Where no user has two events, nothing can be held out: the sources stay as configured, and all count alike.

        Errors: `SpecError` where two sources have one name.
        """
        # Whether seen items may come again is the fusion's to say; its sources are tuned and compared under one rule.
        configs: list[Any] = [source.model_copy(update={"exclude_seen": self.exclude_seen}) for source in self.sources]
        weights = np.full(len(configs), PRIOR)
        heldout: dict[str, float] = {}
        asked = 0
        if log.frame["user_id"].n_unique() < len(log):
            inner = split_log(log, "leave-last")
            room = FIT_CELLS // (len(self.sources) * max(1, min(len(catalog), FIT_ITEMS)))
            questions = inner.questions("test").sample(min(self.tune_queries, max(room, 1)), seed)
            chosen = [self._choose(config, inner.known, catalog, questions, seed) for config in configs]
            tuned = by_name([source for _, source, _ in chosen])
            weights, reached = learn_weights(list(tuned.values()), questions, self, seed)
            configs = [config for config, _, _ in chosen]
            heldout = {**dict(zip(tuned, (value for _, _, value in chosen), strict=True)), "fusion": reached}
            asked = len(questions)
        sources = by_name([config.fit(log, catalog, seed=seed) for config in configs])
        report = {
            "weights": dict(zip(sources, weights.tolist(), strict=True)),
            "heldout_ndcg@10": heldout,
            "settings": {name: config.model_dump() for name, config in zip(sources, configs, strict=True)},
            "heldout_queries": asked,
        }
        return Fusion(sources, weights, self.exclude_seen, report)

    def _choose(
        self, config: Any, log: InteractionLog, catalog: Catalog, questions: Questions, seed: int
    ) -> tuple[Any, Source, float]:
        """The best of a source's variants on the held-out questions; the first of equals."""
        tries = config.variants(log, catalog, seed=seed) if self.tune_sources else []
        tries = tries or [(config, config.fit(log, catalog, seed=seed))]
        scored = [(c, s, heldout_ndcg(s.generate(questions.queries, 50), questions)) for c, s in tries]
        return max(scored, key=lambda t: t[2])


def by_name(sources: Sequence[Source]) -> dict[str, Source]:
    """Sources by their names. Errors: `SpecError` where two have the same."""
    named = {source.name: source for source in sources}
    if len(named) < len(sources):
        names = ", ".join(source.name for source in sources)
        raise SpecError(f"generator.sources: two sources have the same name ({names})")
    return named


def heldout_ndcg(candidates: Candidates, questions: Questions) -> float:
    """Mean NDCG@10 of one held-out item per query."""
    return float(ndcg(target_ranks(candidates, questions.truth, by="score")["rank"], 10).mean())


def standardised(scores: Floats) -> Floats:
    """Each row to mean 0 and deviation 1; a constant row, where a source knows nothing, to 0."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    return np.where(deviation > 1e-6, centred / np.maximum(deviation, 1e-6), 0).astype(np.float32)


def learn_weights(
    sources: list[Source], questions: Questions, config: FusionConfig, seed: int
) -> tuple[npt.NDArray[np.float64], float]:
    """The listwise weights and the NDCG@10 that they reach on the same questions."""
    from scipy.optimize import minimize

    vocab = sources[0].vocab
    histories = vocab.histories(questions.queries)
    at = questions.queries.frame["at"].to_numpy()
    answers = vocab.encode(questions.truth.frame["item_id"])
    rows = np.arange(len(answers))
    seen = np.zeros((len(answers), len(vocab)), dtype=bool)
    if config.exclude_seen:
        seen[histories.rows(), histories.items] = True
    usable = (answers >= 0) & ~seen[rows, np.maximum(answers, 0)]
    prior = np.full(len(sources), PRIOR)
    if not usable.any():
        return prior, 0.0
    # Beyond FIT_ITEMS the softmax runs over a shared sample of items that holds every answer.
    columns = np.arange(len(vocab))
    if len(vocab) > FIT_ITEMS:
        sample = np.random.default_rng(seed).choice(len(vocab), FIT_ITEMS, replace=False)
        columns = np.union1d(sample, answers[usable])
    z = np.stack([_sampled(s, histories, at, columns) for s in sources], axis=-1)[usable]
    hidden = seen[:, columns][usable]
    target = np.searchsorted(columns, answers[usable])
    index = np.arange(len(z))
    wanted = z[index, target].mean(axis=0)

    def loss(w: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        # BLAS may raise the flag of an invalid operation in lanes that it pads; the sums themselves are checked below.
        with np.errstate(invalid="ignore"):
            s = z @ w.astype(np.float32)
        s[hidden] = -np.inf
        s -= s.max(axis=1, keepdims=True)
        p = np.exp(s)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        value = float(np.mean(np.log(total[:, 0]) - s[index, target])) + config.l2 * float(((w - prior) ** 2).sum())
        expected = np.einsum("qi,qif->f", p, z, optimize=True) / len(z)
        return value, (expected - wanted).astype(np.float64) + 2 * config.l2 * (w - prior)

    weights = np.asarray(minimize(loss, prior, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x)
    if not np.isfinite(weights).all():
        raise SpecError("generator.sources: a source gives scores that are not finite")
    with np.errstate(invalid="ignore"):
        fused = z @ weights.astype(np.float32)
    fused[hidden] = -np.inf
    own = fused[index, target][:, None]
    ranks = 1 + (fused > own).sum(axis=1) + ((fused == own).sum(axis=1) - 1) / 2
    return weights, float(ndcg(ranks, 10).sum() / max(len(questions), 1))


def _sampled(source: Source, histories: Histories, at: Ints, columns: npt.NDArray[np.intp]) -> Floats:
    """Standardised scores of some items, scored in blocks of queries so that memory is bounded by `columns`."""
    size = block_rows(len(source.vocab))
    starts = range(0, len(histories), size)
    blocks = (source.scores(histories.slice(i, i + size), at[i : i + size]) for i in starts)
    return np.concatenate([standardised(block)[:, columns] for block in blocks])


class Fusion(Scorer):
    """The fitted fusion. `report` says the weights and what each source reached on the held-out events."""

    kind: ClassVar[str] = "fusion"

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: npt.NDArray[np.float64],
        exclude_seen: bool,
        report: Mapping[str, Any],
    ) -> None:
        super().__init__(next(iter(sources.values())).vocab, exclude_seen)
        self.sources, self.weights, self.report = dict(sources), weights, dict(report)

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return self._add_up(self._parts(histories, {n: s.scores(histories, at) for n, s in self.sources.items()}))

    def _parts(self, histories: Histories, raw: Mapping[str, Floats]) -> list[Floats]:
        """Each source's weighted, standardised scores."""
        empty = np.diff(histories.indptr)[:, None] == 0
        return [
            np.where(empty, np.float32(PRIOR), np.float32(weight)) * standardised(raw[name])
            for name, weight in zip(raw, self.weights, strict=True)
        ]

    @staticmethod
    def _add_up(parts: list[Floats]) -> Floats:
        return np.asarray(sum(parts[1:], parts[0].copy()), dtype=np.float32)

    def _generate(self, queries: Queries, n: int) -> pl.DataFrame:
        histories = self.vocab.histories(queries)
        at = queries.frame["at"].to_numpy()
        raw = {name: source.scores(histories, at) for name, source in self.sources.items()}
        parts = self._parts(histories, raw)
        total = self._add_up(parts)
        rows, codes = top_n(total, n, seen=histories if self.exclude_seen else None)
        speaker = np.argmax(np.stack([part[rows, codes] for part in parts]), axis=0)
        own = {f"score_{name}": raw[name][rows, codes].astype(np.float64) for name in raw}
        return (
            candidate_frame(queries, self.vocab, rows, codes, total[rows, codes])
            .with_columns(pl.Series("source", list(raw)).gather(speaker))
            .with_columns(**own)
            .with_columns(
                pl.when(pl.col(f"score_{name}") > source.floor).then(pl.col(f"score_{name}")).alias(f"score_{name}")
                for name, source in self.sources.items()
            )
        )

    def save(self, path: Path) -> None:
        """One folder per source, and the weights and the report in fusion.json."""
        path.mkdir(parents=True, exist_ok=True)
        for name, source in self.sources.items():
            source.save(path / name)
        body = {
            "kind": self.kind,
            "exclude_seen": self.exclude_seen,
            "sources": {name: source.kind for name, source in self.sources.items()},
            "weights": self.weights.tolist(),
            "report": self.report,
        }
        (path / "fusion.json").write_text(json.dumps(body, indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Errors: `BundleError` where the folder holds no readable fusion."""
        try:
            body = json.loads((path / "fusion.json").read_text())
            kinds = {name: SOURCES[kind] for name, kind in body["sources"].items()}
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"{path}: this is no readable fusion ({error!r})") from error
        sources = {name: kind.load(path / name) for name, kind in kinds.items()}
        return cls(sources, np.asarray(body["weights"]), body["exclude_seen"], body["report"])
