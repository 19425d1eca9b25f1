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
from recsys.profiles.edits import Edits
from recsys.profiles.evidence import Evidence
from recsys.profiles.store import Store
from recsys.profiles.summarize import Way
from recsys.profiles.template import TEMPLATE
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
    """All that was found.

    truth    : of the bundle's own texts as they are shown now; of the model's texts at the cut, where one wrote
    by_model : how many of these texts a model wrote, the others being the template's
    steering : why, where it could not be tried
    written  : what came of letting a model write, where one did
    """

    bundle: str
    users: int
    seed: int
    refresh: float
    truth: Truth
    by_model: int
    usefulness: Usefulness
    freshness: Freshness
    steering: Steering | str
    written: SummaryReport | None
    samples: Sequence[Sample]
    seconds: float

    @property
    def unmeasured(self) -> str | None:
        """Why it is not known how often a model's own text is wrong; None where it is."""
        if self.written is not None:
            return None
        if self.by_model:
            return "a bundle keeps only what was repaired of its model's texts: let it write some by --lm-users"
        return "no model wrote: all texts are the template's (--lm-users lets one write)"

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
            "raw_lm_failure_why_null": self.unmeasured,
            "planted_caught": None if self.truth.caught is None else self.truth.caught["all"],
            "usefulness": self.usefulness.as_dict(),
            "steer_rate": None if steered is None else steered.rate,
            "skipped_regenerations": kept.skipped,
            "seconds": round(self.seconds, 1),
            "tokens": {
                "prompt": 0 if written is None else written.prompt_tokens,
                "completion": 0 if written is None else written.completion_tokens,
            },
            "faithfulness": {**self.truth.as_dict(), "by_model": self.by_model},
            "freshness": {"refresh": self.refresh, **self.freshness.as_dict()},
            "steering": {"why_not": self.steering}
            if steered is None
            else {
                "cases": len(steered.cases),
                "by_action": dict(steered.by_action),
                "share": _shares(steered),
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

    The parts that tell of usefulness are fitted anew without what is held out, by the bundle's own recipe; texts that a
    model wrote of whole histories are no part of them, so "profile" is the template's where no model writes now.
    Errors: `SpecError` for a log that is too small; those of the encoder and of the model.
    """
    from tqdm import tqdm

    started = time.perf_counter()
    spec = stored_spec(bundle.path, bundle.manifest)
    own = bundle.recommender.profiles
    assert isinstance(own, EvidenceProfiles)  # there is no other kind in a bundle
    own = own.with_edits(Edits.none())  # what users say of themselves is not for the checker to doubt
    thresholds = sorted({*THRESHOLDS, own.config.refresh})
    with tqdm(total=6 + len(thresholds), desc="audit", unit="step", disable=None if progress else True) as bar:

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
            shipped, asked = (own, _everything(bundle, cut)) if written is None else (early, cut.queries)
            shown = shipped.as_of(asked).frame
            told = truth(shipped, shipped.evidence(asked), shown["text"].to_list(), lies=lies, seed=seed)
            by_model = int((shown["model_id"] != TEMPLATE).sum())
        later = Cut.of(bundle.log, users, seed, share=0.8)
        fresh = freshness(
            later,
            Retrieval.of(later, catalog, vectors),
            _fitted(bundle, own, later, seed),
            seed=seed,
            thresholds=thresholds,
            step=lambda: (bar.set_postfix_str("freshness"), bar.update())[0],
        )
        with step("steering"):
            try:
                steered: Steering | str = steering(bundle.recommender, bundle.queries(), own.known, edits, seed)
            except SpecError as error:
                steered = str(error)
        with step("samples"):
            samples = _samples(shipped, bundle.queries() if written is None else cut.queries, seed)
    return Audit(
        bundle.name,
        len(cut.queries),
        seed,
        own.config.refresh,
        told,
        by_model,
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


def _shares(steered: Steering) -> dict[str, list[float]]:
    """By action the mean share of a slate's items that carry the edited value, before and after."""
    means = steered.cases.group_by("action").agg(pl.col("before").mean(), pl.col("after").mean()).sort("action")
    return {action: [before, after] for action, before, after in means.iter_rows()}


def _everything(bundle: Bundle, cut: Cut) -> Queries:
    """The cut's users with their whole histories, now."""
    everybody = bundle.queries().frame
    return Queries(cut.queries.frame.select("user_id").join(everybody, on="user_id", maintain_order="left"))


def _samples(profiles: EvidenceProfiles, queries: Queries, seed: int) -> list[Sample]:
    chosen = queries.frame.sample(min(SHOWN, len(queries)), seed=seed, shuffle=True)
    some = Queries(chosen.sort(pl.col("history").list.len()))
    rows = profiles.as_of(some).frame.iter_rows(named=True)
    return [
        Sample(str(row["user_id"]), row["text"], row["prompt_id"], row["level"], e)
        for row, e in zip(rows, profiles.evidence(some), strict=True)
    ]
