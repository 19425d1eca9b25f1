"""The whole audit of one bundle, step by step."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl

from recsys.audit.freshness import THRESHOLDS, Freshness, freshness
from recsys.audit.truth import Truth, truth
from recsys.audit.usefulness import Cut, Remembered, Retrieval, Usefulness, usefulness
from recsys.bundle import Bundle, stored_spec
from recsys.errors import SpecError
from recsys.lm import load_encoder
from recsys.profiles import EvidenceProfiles, SummaryReport, summarize
from recsys.profiles.evidence import Evidence
from recsys.profiles.store import Store
from recsys.profiles.summarize import Way
from recsys.protocols import LanguageModel, TextEncoder
from recsys.settings import Settings
from recsys.spec import with_vectors
from recsys.steering import Steering, steering
from recsys.tables import Queries

log = logging.getLogger(__name__)

SHOWN = 20  # profiles that the page shows beside their evidence


@dataclass(frozen=True)
class Sample:
    """A profile beside what it was written of."""

    user: str
    text: str
    written: str
    level: str
    evidence: Evidence


@dataclass(frozen=True)
class Audit:
    """All that was found. written : what came of letting a model write, where one did; steering : why, where it could
    not be tried."""

    bundle: str
    users: int
    seed: int
    refresh: float
    truth: Truth
    usefulness: Usefulness
    freshness: Freshness
    steering: Steering | str
    written: SummaryReport | None
    samples: Sequence[Sample]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """What audit.json holds."""
        steered = None if isinstance(self.steering, str) else self.steering
        kept = self.freshness.at(self.refresh)
        written = self.written
        return {
            "bundle": self.bundle,
            "users": self.users,
            "seed": self.seed,
            "claim_precision": self.truth.precision,
            "raw_lm_failure_rate": None if written is None else written.false_texts,
            "planted_caught": None if self.truth.caught is None else self.truth.caught["all"],
            "usefulness": self.usefulness.as_dict(),
            "steer_rate": None if steered is None else steered.rate,
            "skipped_regenerations": kept.skipped,
            "seconds": round(self.seconds, 1),
            "tokens": {
                "prompt": 0 if written is None else written.prompt_tokens,
                "completion": 0 if written is None else written.completion_tokens,
            },
            "faithfulness": self.truth.as_dict(),
            "freshness": {"refresh": self.refresh, **self.freshness.as_dict()},
            "steering": {"why_not": self.steering}
            if steered is None
            else {
                "cases": len(steered.cases),
                "by_action": dict(steered.by_action),
                "rank_correlation_of_the_rest": None if math.isnan(steered.correlation) else steered.correlation,
            },
            "written": None if written is None else written.as_dict(),
        }


def audit(
    bundle: Bundle,
    settings: Settings,
    *,
    users: int = 1000,
    edits: int = 200,
    lies: int = 200,
    lm: LanguageModel | None = None,
    lm_users: int = 0,
    prompt: Way | None = None,
    seed: int = 0,
    encoder: TextEncoder | None = None,
    progress: bool = True,
) -> Audit:
    """Weigh the profiles of a bundle by `users` drawn from its log.

    lm, lm_users, prompt : a model that writes for so many of them, and how; only those are weighed then
    encoder : of texts; by default the one that the bundle's recipe names

    The parts that tell of usefulness are fitted anew without what is held out, by the bundle's own recipe.
    Errors: `SpecError` for a log that is too small; those of the encoder and of the model.
    """
    from tqdm import tqdm

    started = time.perf_counter()
    spec = stored_spec(bundle.path, bundle.manifest)
    own = bundle.recommender.profiles
    assert isinstance(own, EvidenceProfiles)  # there is no other kind in a bundle
    with tqdm(total=6 + len(THRESHOLDS), desc="audit", unit="step", disable=None if progress else True) as bar:

        @contextmanager
        def step(name: str, steps: int = 1) -> Iterator[None]:
            bar.set_postfix_str(name)
            at = time.perf_counter()
            yield
            log.info("%s: %.1f s", name, time.perf_counter() - at)
            bar.update(steps)

        with step("text vectors"):
            encoder = encoder or load_encoder(spec.encoder, settings)
            catalog = with_vectors(bundle.catalog, encoder, settings.cache_dir)
            vectors = Remembered(encoder)
        sampled = lm_users if lm is not None and lm_users else users
        with step("profiles before the cut"):
            cut = Cut.of(bundle.log, sampled, seed)
            early = _fitted(bundle, own, cut, seed)
            template = early.with_store(Store.empty()).as_of(cut.queries).frame["text"].to_list()
        written: SummaryReport | None = None
        texts = template
        if lm is not None and lm_users:
            early, written = summarize(early, cut.queries, lm, lm_users, prompt=prompt)
            texts = early.as_of(cut.queries).frame["text"].to_list()
        with step("usefulness"):
            useful = usefulness(Retrieval.of(cut, catalog, vectors), texts, template, seed=seed)
        with step("faithfulness"):
            told = truth(early, early.evidence(cut.queries), texts, lies=lies, seed=seed)
        later = Cut.of(bundle.log, users, seed, share=0.8)
        fresh = freshness(
            later,
            Retrieval.of(later, catalog, vectors),
            _fitted(bundle, own, later, seed),
            seed=seed,
            step=lambda: (bar.set_postfix_str("freshness"), bar.update())[0],
        )
        with step("steering"):
            try:
                steered: Steering | str = steering(bundle.recommender, bundle.queries(), own.known, edits, seed)
            except SpecError as error:
                steered = str(error)
        with step("samples"):
            samples = _samples(bundle, own, seed) if written is None else _samples_of(early, cut.queries, seed)
    return Audit(
        bundle.name,
        len(cut.queries),
        seed,
        own.config.refresh,
        told,
        useful,
        fresh,
        steered,
        written,
        samples,
        time.perf_counter() - started,
    )


def _fitted(bundle: Bundle, own: EvidenceProfiles, cut: Cut, seed: int) -> EvidenceProfiles:
    """Profiles by the bundle's recipe and wording, that know nothing of what is held out."""
    rated = bool(bundle.manifest["data"]["rated"])
    config = own.config.model_copy(update={"wording": "phrases"})  # a file of one's own need not be there any more
    fitted = config.fit(cut.before, bundle.catalog, rated=rated, seed=seed)
    return EvidenceProfiles(own.config, fitted.known, Store.empty(), own.phrases, fitted.personas)


def _samples(bundle: Bundle, own: EvidenceProfiles, seed: int) -> list[Sample]:
    everybody = bundle.queries()
    return _samples_of(own, everybody, seed)


def _samples_of(profiles: EvidenceProfiles, queries: Queries, seed: int) -> list[Sample]:
    chosen = queries.frame.sample(min(SHOWN, len(queries)), seed=seed, shuffle=True)
    some = Queries(chosen.sort(pl.col("history").list.len()))
    rows = profiles.as_of(some).frame.iter_rows(named=True)
    return [
        Sample(str(row["user_id"]), row["text"], row["prompt_id"], row["level"], e)
        for row, e in zip(rows, profiles.evidence(some), strict=True)
    ]
