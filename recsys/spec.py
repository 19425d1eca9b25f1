"""WHAT is built: a TOML recipe becomes checked configs, and configs become a fitted `Recommender`.

The reranker learns on tune's users, whose candidates come from a generator and profiles fitted before tune; both are
then refitted on everything known. So no part ever learns from an answer that it is later asked for.
"""

import hashlib
import logging
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.candidates import AnyGeneratorConfig, FusionConfig
from recsys.candidates.trainable import HeadStart, fit_generator
from recsys.data.files import atomic_file
from recsys.data.ingest import Dataset
from recsys.data.split import Questions, Split, ask, split_log
from recsys.errors import SpecError
from recsys.lm import EncoderConfig, LMConfig, load_encoder, load_lm, resolved
from recsys.policy import TopConfig
from recsys.profiles import EvidenceProfiles, ProfilesConfig, summarize
from recsys.profiles.standing import carried
from recsys.protocols import LanguageModel, Reranker, TextEncoder
from recsys.recommender import Recommender, propose
from recsys.rerank import AnyRerankerConfig, Fallback, Identity, IdentityConfig, SequenceConfig, StudentConfig
from recsys.rerank.lessons import with_requests
from recsys.rerank.prompted import PromptedConfig
from recsys.rerank.train import School, train_sequence
from recsys.settings import Settings
from recsys.tables import Candidates, Catalog, InteractionLog, Queries, query_histories

log = logging.getLogger(__name__)


class Spec(BaseModel):
    """A recipe. Every section has defaults; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "recommender"
    depth: int = Field(default=100, ge=1, description="candidates per query")
    generator: AnyGeneratorConfig = Field(default_factory=FusionConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    lm: LMConfig = Field(default_factory=LMConfig)
    profiles: ProfilesConfig = Field(default_factory=ProfilesConfig)
    reranker: AnyRerankerConfig = Field(default_factory=IdentityConfig)
    policy: TopConfig = Field(default_factory=TopConfig)

    def needs_vectors(self) -> bool:
        """Whether a part reads the catalog's text vectors."""
        return self.generator.reads_text or self.reranker.reads_text

    def needs_lm(self) -> bool:
        """Whether a part asks a language model while it is fitted."""
        return self.reranker.needs_lm or (self.lm.kind != "none" and self.profiles.lm_users > 0)


def load_spec(path: Path) -> Spec:
    """Read a TOML recipe. Errors: `SpecError` naming the file and the field."""
    try:
        return Spec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SpecError(f"{path}: the spec cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: this is not valid TOML ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SpecError(f"{path}: {where}: {first['msg']}") from error


@dataclass(frozen=True)
class Training:
    """What may be learned from what: parts fitted on `before` meet `tune`'s questions; all is refitted on `known`."""

    before: InteractionLog
    tune: Questions
    known: InteractionLog

    @classmethod
    def of_split(cls, split: Split) -> Self:
        """For an evaluation: test stays unseen."""
        return cls(split.fit, split.questions("tune"), split.known)

    @classmethod
    def of_log(cls, interactions: InteractionLog) -> Self:
        """For production: everything is known, each user's last event is the question."""
        split = split_log(interactions, "leave-last")
        return cls(split.known, ask(interactions, split.test), interactions)


@dataclass(frozen=True)
class Fitted:
    """A fitted line, and what the fitting found out: reports and seconds per step.

    `spec` is the recipe with nothing left to the machine: a bundle carries it, so that it loads alike elsewhere.
    """

    recommender: Recommender
    spec: Spec
    tuning: Mapping[str, Any]
    seconds: Mapping[str, float]


@dataclass
class Clock:
    """Seconds per named step, said as they pass."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step; a name used twice adds up."""
        log.info("%s ...", name)
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 3)
        log.info("%s: %.1f s", name, took)


def fit(
    dataset: Dataset,
    spec: Spec,
    settings: Settings,
    *,
    seed: int,
    training: Training | None = None,
    lm: LanguageModel | None = None,
    before: EvidenceProfiles | None = None,
) -> Fitted:
    """Fit every part of the line on a dataset; by default for production, on all of its log.

    lm : replaces the spec's language model (a recorded or scripted one in tests)
    before : an earlier line's profiles: what a model wrote for them, and still stands, is not written again
    """
    asked = spec.reranker.teacher if isinstance(spec.reranker, StudentConfig) else spec.reranker
    if isinstance(asked, PromptedConfig):
        asked.read_prompt()  # what is wrong with it should not come up after everything else was fitted
    clock = Clock()
    concrete = resolved(spec.lm, settings).model_copy(update={"record": False})
    if lm is None and spec.needs_lm():
        with clock.step("load language model"):
            lm = load_lm(concrete.model_copy(update={"record": spec.lm.record}), settings)
    if lm is None and spec.reranker.needs_lm:
        raise SpecError(f"reranker.kind = '{spec.reranker.kind}' needs a language model: set lm.kind")
    training = training or Training.of_log(dataset.log)
    catalog = dataset.catalog
    encoder: TextEncoder | None = None
    if spec.needs_vectors():
        with clock.step("embed catalog"):
            encoder = load_encoder(spec.encoder, settings)
            catalog = with_vectors(catalog, encoder, settings.cache_dir)
    tuning: dict[str, Any] = {}
    start: HeadStart | None = None
    reranker: Reranker = Identity()
    if not isinstance(spec.reranker, IdentityConfig):
        reach = spec.reranker.reach
        with clock.step("fit candidates before tune"):
            early = fit_generator(spec.generator, training.before, catalog, seed=seed, settings=settings)
            start = HeadStart(early, training.tune)
        with clock.step("fit profiles before tune"):
            early_profiles = spec.profiles.fit(training.before, catalog, rated=dataset.rated, seed=seed)

        def generate(queries: Queries) -> Candidates:
            return Candidates(propose(early, queries, spec.depth, reach).frame)

        with clock.step("fit reranker on tune"):
            questions = training.tune.sample(3 * spec.reranker.tune_users, seed)
            described = early_profiles.as_of(questions.queries)
            student = spec.reranker if isinstance(spec.reranker, StudentConfig) else None
            config = spec.reranker if not isinstance(spec.reranker, StudentConfig) else spec.reranker.teacher
            # A student is weighed by tune's answers, so its teacher must not have learned from them.
            known = training.before if student is not None else training.known

            def school() -> School:
                assert encoder is not None  # whoever goes to school reads text, so the catalog was embedded
                return School(training.before, known, catalog, early_profiles, generate, encoder, settings)

            if isinstance(config, SequenceConfig):
                fitted = train_sequence(config, school(), questions, described, seed=seed)
            else:
                assert lm is not None  # asked for above
                if isinstance(config, PromptedConfig) and "request" in config.conditions:
                    questions = with_requests(questions, catalog, training.before, seed)
                proposed = generate(questions.queries)
                fitted = config.fit(
                    questions, proposed, described, catalog, training.before, lm, seed=seed, settings=settings
                )
            if student is not None:
                from recsys.rerank.distil import train_student

                fitted = train_student(student, school(), fitted, training.tune, seed=seed)
        reranker, tuning["reranker"] = Fallback(fitted), fitted.report
    with clock.step("fit candidates"):
        generator = fit_generator(spec.generator, training.known, catalog, seed=seed, settings=settings, start=start)
    tuning["generator"] = getattr(generator, "report", {})
    with clock.step("fit profiles"):
        profiles = spec.profiles.fit(training.known, catalog, rated=dataset.rated, seed=seed)
    if lm is not None and spec.profiles.lm_users:
        with clock.step("write profiles"):
            everybody = query_histories(training.known)
            some = everybody.frame.sample(min(spec.profiles.lm_users, len(everybody)), seed=seed, shuffle=True)
            if before is not None:
                profiles = profiles.with_store(carried(before, profiles, everybody.frame["user_id"]))
            profiles, summary = summarize(profiles, Queries(some), lm, spec.profiles.lm_users)
        tuning["profiles"] = summary.as_dict()
    recommender = Recommender(
        catalog=catalog,
        generator=generator,
        profiles=profiles,
        reranker=reranker,
        policy=spec.policy.build(),
        reasons=profiles.reasons,
        depth=spec.depth,
    )
    return Fitted(recommender, spec.model_copy(update={"lm": concrete}), tuning, clock.seconds)


def with_vectors(catalog: Catalog, encoder: TextEncoder, cache_dir: Path) -> Catalog:
    """The catalog with a unit vector of each item's text; vectors are kept in the cache by (model, texts)."""
    if "embedding" in catalog.frame.columns:
        return catalog
    texts = catalog.frame["text"].to_list()
    digest = hashlib.sha256("\0".join([encoder.model_id, *texts]).encode()).hexdigest()[:32]
    stored = cache_dir / "embeddings" / f"{digest}.npy"
    if stored.exists():
        vectors = np.load(stored, allow_pickle=False)
    else:
        vectors = encoder.embed(texts)
        with atomic_file(stored) as path, path.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
    column = pl.Series("embedding", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
    return Catalog(catalog.frame.with_columns(column))
