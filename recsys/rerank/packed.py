"""The packed judge: one pass of a language model over a user's candidates.

Its opinion of a candidate is the length-normalised pointwise mutual information of the title with the user: mean
log-likelihood per token after what is known of the user, less the same after a prompt that says nothing of the user.
(Raw likelihood mostly says which titles are common.) All candidates of a user share one copy of the prompt in one
forward pass (`lm.local`); each is judged alone, so their order changes nothing.

With `adapter`, the model is tuned first (`rerank.lora`), on questions that the fusion never sees; prompt and prior are
then read by the tuned model. The condition "vectors" adds the history's items as soft tokens (`soft`), which are
learned with it.

With `contrast` w, the profile is weighed by what it changes: with + w * (with - without the profile), as in
classifier-free guidance (Sanchez et al., "Stay on topic with classifier-free guidance", ICML 2024).
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field
from tqdm import tqdm

from recsys.data.split import Questions
from recsys.protocols import LanguageModel
from recsys.rerank.adapter import ENOUGH, Adapter, AdapterConfig, Lesson, chosen, local
from recsys.rerank.evidence import Evidence
from recsys.rerank.features import QUIET_UP_TO, Ranked
from recsys.rerank.fusion import Array
from recsys.rerank.judge import LMSource, readable
from recsys.rerank.prompt import PACKED, About, Prompt
from recsys.rerank.prompted import Case, Prompted, PromptedConfig
from recsys.rerank.soft import SoftTokens
from recsys.settings import Settings
from recsys.tables import Candidates, Catalog, Id, InteractionLog, Profiles, Queries, Truth

log = logging.getLogger(__name__)

_FILE = "priors.parquet"
_ADAPTER = "adapter"
_PRIOR_BATCH = 128


class PackedConfig(PromptedConfig):
    """How the packed reranker is built.

    vectors     : last items of the history that are given as soft tokens, where `conditions` name them
    contrast    : weight of what the profile changes in the model's opinion; 0 reads it once
    prior_items : a catalog of at most so many items has all priors computed at fit; beyond, items met later cost one
        small pass each, once
    adapter     : the model is tuned to put candidates in order; None takes it as it is
    """

    sections: ClassVar[tuple[str, ...]] = PACKED

    kind: Literal["packed"] = "packed"
    prompt: str = "pmi-v1"
    vectors: int = Field(default=50, ge=1, le=500)
    contrast: float = 0.0
    prior_items: int = Field(default=20_000, ge=0)
    adapter: AdapterConfig | None = None

    def judge(self, prompt: Prompt, lm: LanguageModel, evidence: Evidence) -> "PackedJudge":
        """See `PromptedConfig.judge`."""
        return PackedJudge(self, prompt, lm, evidence)


@dataclass(frozen=True)
class PackedJudge(Prompted):
    """priors : mean log-likelihood per token of each title met so far after the prompt's empty side; grows by use.
    soft : the soft tokens that are learned, or were."""

    kind: ClassVar[str] = "packed"
    config_type: ClassVar[type[PromptedConfig]] = PackedConfig

    config: PackedConfig
    priors: dict[str, float] = field(default_factory=dict)
    adapter: Adapter | None = None
    soft: SoftTokens | None = None

    def taught(
        self,
        questions: Questions,
        candidates: Candidates,
        profiles: Profiles,
        catalog: Catalog,
        known: InteractionLog,
        *,
        seed: int,
        settings: Settings | None,
    ) -> tuple[Self, Questions, dict[str, Any]]:
        """With `adapter`, around a tuned model; it learned on the lists of some users, whose questions are not left.

        Errors: `SpecError` where the model cannot be trained here; those of `lora.train_adapter`.
        """
        config = self.config.adapter
        if config is None:
            return self, questions, {}
        model = local(self.lm)
        heads = Ranked.of(questions.queries, candidates).head(self.config.depth)
        heads = heads.take(np.flatnonzero(heads.answers(questions.truth) >= 0))
        learns = chosen(questions.queries, heads.asked, config.lists, seed)
        ids = questions.queries.frame["query_id"].gather(heads.asked).cast(pl.String)
        # In an order that depends on the questions alone.
        rows = np.array([row for row in ids.arg_sort() if learns[heads.asked[row]]], dtype=np.int64)
        soft = SoftTokens.of(known) if "vectors" in self.config.conditions else None
        # What fits is counted as by the model that will have soft tokens, whichever ids these get.
        learning = replace(self, soft=soft, lm=replace(model, soft=0)) if soft else self
        lessons = learning._lessons(heads.take(rows[: config.lists]), questions, profiles, catalog)
        if len(lessons) < ENOUGH:
            log.warning("reranker.adapter: %d lists with an answer are too few to learn from", len(lessons))
            return self, questions, {}
        from recsys.rerank.lora import train_adapter

        queries, truth = (table.frame.filter(~learns) for table in (questions.queries, questions.truth))
        left = Questions(Queries(queries), Truth(truth))
        adapter, report = train_adapter(config, lessons, self.prompt.empty, model, settings, soft, seed=seed)
        if adapter is None:
            return self, left, {"adapter": report}
        learned = replace(self, lm=adapter.on(self.lm), adapter=adapter, soft=adapter.soft, priors={})
        return learned, left, {"adapter": report}

    def _lessons(self, heads: Ranked, questions: Questions, profiles: Profiles, catalog: Catalog) -> list[Lesson]:
        """Of lists that hold their answer."""
        cases = self.cases(heads.frames(), questions.queries, profiles, catalog)
        lessons = []
        for case, place in zip(map(self.fitting, cases), heads.answers(questions.truth), strict=True):
            texts = [self._answer(text) for text in case.items]
            wrong = tuple(sorted(set(texts) - {texts[place]}))
            plain = self.prompt.render(replace(case.about, vectors="")) if case.about.vectors else None
            lessons.append(Lesson(self.prompt.render(case.about), texts[place], wrong, plain))
        return [lesson for lesson in lessons if lesson.wrong]

    def prepare(self, heads: Sequence[pl.DataFrame], catalog: Catalog) -> None:
        """Score the priors of the catalog's titles; of a large catalog only those that the lists hold."""
        listed = pl.col("item_id").is_in({item for head in heads for item in head["item_id"]})
        met = catalog.frame if len(catalog) <= self.config.prior_items else catalog.frame.filter(listed)
        shown = met["title" if self.config.candidate == "title" else "text"]
        answers = sorted({self._answer(text) for text in shown} - self.priors.keys())
        batches = [answers[i : i + _PRIOR_BATCH] for i in range(0, len(answers), _PRIOR_BATCH)]
        self._score_priors(tqdm(batches, desc="LM reads titles", disable=len(answers) <= QUIET_UP_TO or None))

    def judge(self, cases: Sequence[Case]) -> list[Array | None]:
        """PMI of each candidate. Scored in an order that is not the list's, so that rounding does not depend on it."""
        answers = [[self._answer(text) for text in case.items] for case in cases]
        orders = [sorted(set(row)) for row in answers]
        abouts = [[case.about, *self._without(case.about)] for case in cases]
        prompts = [self.prompt.render(about) for row in abouts for about in row]
        scores = iter(self.score(prompts, [order for row, order in zip(abouts, orders, strict=True) for _ in row]))
        opinions: list[Array | None] = []
        for row, order, listed in zip(answers, orders, abouts, strict=True):
            read = [next(scores) for _ in listed]
            means = [np.array([s.mean for s in found]) for found in read if found is not None]
            if len(means) < len(read):
                opinions.append(None)
                continue
            self._score_priors([answer] for answer in order if answer not in self.priors)
            with np.errstate(invalid="ignore"):  # a model may say that everything is impossible
                with_user = means[0] - np.array([self.priors.get(answer, np.nan) for answer in order])
                if len(means) > 1:
                    with_user = with_user + self.config.contrast * (means[0] - means[1])
            found = dict(zip(order, with_user, strict=True))
            opinions.append(np.array([found[answer] for answer in row]))
        return opinions

    def fits(self, case: Case, about: About, room: int) -> bool:
        """See `Prompted.fits`: a prompt and the longest answer."""
        (longest,) = self.longest_of(case.items)
        return self.within(self.prompt.render(about) + self._answer(longest), room)

    def vectors(self, history: Sequence[Id]) -> str:
        """See `Prompted.vectors`."""
        return self.soft.said(history[-self.config.vectors :]) if self.soft else ""

    def _without(self, about: About) -> list[About]:
        return [replace(about, profile="")] if self.config.contrast and about.profile else []

    def _answer(self, text: str) -> str:
        return self.prompt.render_answer(text, self.longest)

    def _score_priors(self, batches: Iterable[list[str]]) -> None:
        for batch in batches:
            (scores,) = self.score([self.prompt.empty], [batch])
            if scores is not None:  # unpaid: tried again where the title is met next
                self.priors.update({a: s.mean for a, s in zip(batch, scores, strict=True)})

    def save(self, folder: Path) -> None:
        """Write JSON, Parquet, and what was learned."""
        super().save(folder)
        if self.adapter is not None:
            self.adapter.save(folder / _ADAPTER)
        known = sorted(self.priors.items())
        priors = pl.DataFrame(known, schema={"answer": pl.String, "prior": pl.Float64}, orient="row")
        priors.write_parquet(folder / _FILE)

    @classmethod
    def load(cls, folder: Path, lm: LMSource | None) -> Self:
        """Read the folder. Errors: `BundleError` where it is damaged or was fitted with another language model."""
        adapter = Adapter.load(folder / _ADAPTER) if (folder / _ADAPTER).exists() else None
        judge = super().load(folder, _adapted(lm, adapter))
        with readable(folder, "a packed judge"):
            judge.priors.update(pl.read_parquet(folder / _FILE).select("answer", "prior").iter_rows())
        return replace(judge, adapter=adapter, soft=adapter.soft if adapter else None)


def _adapted(lm: LMSource | None, adapter: Adapter | None) -> LMSource | None:
    """The same source of a language model, with what was learned on it."""
    if lm is None or adapter is None:
        return lm
    given, learned = lm, adapter

    def source() -> LanguageModel | None:
        model = given()
        return None if model is None else learned.on(model)

    return source
