"""The packed reranker: one pass of a language model over a user's candidates, fused with what the candidates bring.

The model's opinion of a candidate is the length-normalised pointwise mutual information of its title with the user:
mean log-likelihood per token after the user's profile and recent titles, less the same after a prompt that says
nothing of the user. (Raw likelihood mostly says which titles are common.) All candidates of a user share one copy of
the prompt in one forward pass (`lm.local`); each is judged alone, so their order changes nothing.

The first `depth` candidates are reordered; the rest keep their order behind them.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from polars.exceptions import PolarsError
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from recsys.data.files import atomic_folder
from recsys.data.split import Questions
from recsys.errors import BundleError, ModelError, SpecError
from recsys.protocols import LanguageModel, Score
from recsys.rerank.features import QUIET_UP_TO, Feature, compute, lists_of, popularity, present, titles_of
from recsys.rerank.fusion import Array, LinearFusion, Lists, fit_fusion
from recsys.rerank.prompt import Prompt
from recsys.tables import Candidates, Catalog, Id, InteractionLog, Profiles, Queries

log = logging.getLogger(__name__)

_FILE = "reranker.json"
_PRIOR_BATCH = 128


class PackedConfig(BaseModel):
    """How the packed reranker is built.

    depth       : candidates per query that are reordered
    recent      : the last titles of the history in the prompt
    prompt      : a prompt file of this package, without ".txt"
    features    : what is fused; those that the candidates lack are left out at fit
    tune_users  : how many of tune's queries, among those whose answer is in their list, the model reads at fit
    l2          : ridges to choose among
    certainty   : by how many standard errors learned weights must beat the candidates' order on held-out lists
    prior_items : a catalog of at most so many items has all priors computed at fit; beyond, items met later cost one
        small pass each, once
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["packed"] = "packed"
    depth: int = Field(default=30, ge=1, le=1000)
    recent: int = Field(default=10, ge=0, le=100)
    prompt: str = "pmi-v1"
    features: tuple[Feature, ...] = ("score", "log_rank", "pmi", "log_popularity", "content")
    tune_users: int = Field(default=300, ge=1)
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0), min_length=1)
    certainty: float = Field(default=1.0, ge=0)
    prior_items: int = Field(default=20_000, ge=0)

    def fit(
        self,
        questions: Questions,
        candidates: Candidates,
        profiles: Profiles,
        catalog: Catalog,
        log: InteractionLog,
        lm: LanguageModel,
        *,
        seed: int,
    ) -> "PackedReranker":
        """Learn the fusion's weights on `questions`, whose `candidates` and `profiles` must come from parts that had
        not seen the answers; `log` (popularity) must not hold them either.

        Errors: `ModelError` when the language model fails; `SpecError` for an unknown prompt.
        """
        names = tuple(dict.fromkeys(("score", *present(self.features, candidates))))
        untrained = LinearFusion(dict.fromkeys(names, 1.0))
        reranker = PackedReranker(self, Prompt.read(self.prompt), lm, untrained, popularity(log))
        answers = dict(questions.truth.frame.select("query_id", "item_id").iter_rows())
        heads = [rows.head(self.depth) for rows in lists_of(questions.queries, candidates)]
        held = sorted((h for h in heads if _answer_row(h, answers) >= 0), key=lambda h: str(h["query_id"][0]))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(held))[: self.tune_users])
        lists = reranker.lists([held[i] for i in chosen], questions.queries, profiles, catalog, answers)
        fusion, report = fit_fusion(
            lists,
            base="score",
            lm_features=("pmi",),
            grid=self.l2,
            certainty=self.certainty,
            queries=len(questions),
            with_answer=len(held),
            seed=seed,
        )
        return PackedReranker(self, reranker.prompt, lm, fusion, reranker.counts, reranker.priors, report.as_dict())


@dataclass(frozen=True)
class PackedReranker:
    """A fitted packed reranker; made by `PackedConfig.fit` or `load`.

    counts : events by item, for popularity
    priors : mean log-likelihood per token of each title met so far after the prompt's empty side; grows by use
    report : what the fit found, as plain values
    """

    config: PackedConfig
    prompt: Prompt
    lm: LanguageModel
    fusion: LinearFusion
    counts: Mapping[Id, int]
    priors: dict[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles, catalog: Catalog) -> Candidates:
        """The same candidates, the first `depth` of each query in the fused order, served by "reranker".

        Where the model's answer is not finite, a query keeps its candidates as they came; the log says how many.
        Errors: `ModelError` when the model fails; `UnknownItemError` for a candidate outside the catalog;
        `DataError` for one whose query is not asked.
        """
        lists = list(lists_of(queries, candidates))
        heads = [rows.head(self.config.depth) for rows in lists]
        opinions = self._opinions(heads, queries, profiles, catalog)
        done = [candidates.frame.clear()]
        broken = 0
        for rows, head, pmi in zip(lists, heads, opinions, strict=True):
            if not np.isfinite(pmi).all():
                broken += 1
                done.append(rows)
                continue
            features = compute([n for n in self.fusion.weights if self.fusion.uses(n)], head, self.counts, pmi)
            done.append(_reordered(rows, self.fusion.scores(features)))
        if broken:
            log.warning(
                "%d of %d queries keep the candidates' order: %s answered no finite number",
                broken,
                len(lists),
                self.lm.model_id,
            )
        return Candidates(pl.concat(done))

    def lists(
        self,
        heads: Sequence[pl.DataFrame],
        queries: Queries,
        profiles: Profiles,
        catalog: Catalog,
        answers: Mapping[Id, Id],
    ) -> Lists:
        """Features of candidate lists with their answers' rows, to learn from; lists with a broken answer of the
        model are left out."""
        names = tuple(self.fusion.weights)
        if heads and self.fusion.uses("pmi"):
            listed = pl.col("item_id").is_in({item for head in heads for item in head["item_id"]})
            met = catalog.frame if len(catalog) <= self.config.prior_items else catalog.frame.filter(listed)
            self._learn_priors(met["title"])
        values, sizes, rows = [], [], []
        for head, pmi in zip(heads, self._opinions(heads, queries, profiles, catalog), strict=True):
            if np.isfinite(pmi).all():
                features = compute(names, head, self.counts, pmi)
                values.append(np.stack([features[name] for name in names], axis=1))
                sizes.append(len(head))
                rows.append(_answer_row(head, answers))
        if len(sizes) < len(heads):
            log.warning("%d of %d lists left out: no finite number", len(heads) - len(sizes), len(heads))
        table = np.concatenate(values) if values else np.zeros((0, len(names)))
        return Lists(names, table, np.array(sizes, dtype=np.int64), np.array(rows, dtype=np.int64))

    def _opinions(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> Iterable[Array]:
        """The model's PMI of each row of each list; zeros, without asking it, where it counts nothing."""
        if not self.fusion.uses("pmi"):
            return [np.zeros(len(head)) for head in heads]
        titles = titles_of(catalog, heads, queries.frame)
        histories = dict(queries.frame.select("query_id", "history").iter_rows())
        texts = dict(profiles.frame.select("query_id", "text").iter_rows())
        bar = tqdm(heads, desc="LM reads", unit="user", leave=None, disable=len(heads) <= QUIET_UP_TO or None)
        opinions = []
        for head in bar:
            query_id = head["query_id"][0]
            known = [titles[item] for item in histories[query_id] if item in titles]
            recent = known[max(len(known) - self.config.recent, 0) :]
            context = self.prompt.render(texts.get(query_id, ""), recent)
            opinions.append(self._pmi(context, [titles[item] for item in head["item_id"]]))
        return opinions

    def _pmi(self, context: str, titles: Sequence[str]) -> Array:
        """Scored in an order that does not depend on the list's: so rounding does not, either."""
        answers = [self.prompt.render_answer(title) for title in titles]
        order = sorted(set(answers))
        (scores,) = self.lm.score([context], [order])
        for answer in order:
            if answer not in self.priors:
                self._score_priors([[answer]])
        found = {a: s.mean - self.priors[a] for a, s in zip(order, scores, strict=True)}
        return np.array([found[answer] for answer in answers])

    def _learn_priors(self, titles: Iterable[str]) -> None:
        answers = sorted({self.prompt.render_answer(title) for title in titles} - self.priors.keys())
        batches = [answers[i : i + _PRIOR_BATCH] for i in range(0, len(answers), _PRIOR_BATCH)]
        self._score_priors(tqdm(batches, desc="LM reads titles", disable=len(answers) <= QUIET_UP_TO or None))

    def _score_priors(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            (scores,) = self.lm.score([self.prompt.empty], [batch])
            self.priors.update({a: s.mean for a, s in zip(batch, scores, strict=True)})

    def save(self, path: Path) -> None:
        """Write JSON and Parquet into the new folder `path`. Errors: `StorageError`."""
        facts = {
            "format": 1,
            "kind": "packed",
            "config": self.config.model_dump(mode="json"),
            "prompt": {"id": self.prompt.prompt_id, "text": self.prompt.text},
            "lm": self.lm.model_id,
            "weights": dict(self.fusion.weights),
            "report": dict(self.report),
        }
        items = pl.DataFrame({"item_id": list(self.counts), "events": list(self.counts.values())})
        known = sorted(self.priors.items())
        priors = pl.DataFrame(known, schema={"answer": pl.String, "prior": pl.Float64}, orient="row")
        with atomic_folder(path) as folder:
            (folder / _FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
            items.write_parquet(folder / "counts.parquet")
            priors.write_parquet(folder / "priors.parquet")

    @classmethod
    def load(cls, path: Path, lm: Callable[[], LanguageModel | None]) -> "PackedReranker":
        """Read the folder around the language model that it was fitted with; where the fitted weights do not use the
        model, none is asked for.

        Errors: `BundleError` for a folder that is damaged or no packed reranker, for no language model, or for
        another one than it was fitted with: weights and priors are worth nothing with another.
        """
        try:
            facts = json.loads((path / _FILE).read_text("utf-8"))
            config = PackedConfig.model_validate(facts["config"])
            prompt = Prompt.parse(str(facts["prompt"]["id"]).partition("@")[0], facts["prompt"]["text"])
            fusion = LinearFusion({str(name): float(weight) for name, weight in facts["weights"].items()})
            fitted_with, report = str(facts["lm"]), dict(facts["report"])
            counts = dict(pl.read_parquet(path / "counts.parquet").select("item_id", "events").iter_rows())
            priors = dict(pl.read_parquet(path / "priors.parquet").select("answer", "prior").iter_rows())
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            SpecError,
            PolarsError,
        ) as error:
            raise BundleError(f"{path}: is not readable as a packed reranker ({error})") from error
        if prompt.prompt_id != facts["prompt"]["id"]:
            raise BundleError(f"{path / _FILE}: the prompt's text is not that of {facts['prompt']['id']}")
        if not fusion.uses("pmi"):
            return cls(config, prompt, Unasked(fitted_with), fusion, counts, priors, report)
        model = lm()
        if model is None or model.model_id != fitted_with:
            given = f"'{model.model_id}' is given" if model else "none is given"
            raise BundleError(f"{path}: was fitted with the language model '{fitted_with}', but {given}: refit")
        return cls(config, prompt, model, fusion, counts, priors, report)


@dataclass(frozen=True)
class Unasked:
    """Stands for a language model whose opinion counts nothing, so that its weights need not be there."""

    model_id: str

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        raise ModelError(f"{self.model_id} was not loaded")

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        raise ModelError(f"{self.model_id} was not loaded")


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
