"""The profile source: evidence computed from each query, the LM's text where one is stored for it, else the template.

No text is generated at request time, so batch and endpoint give the same profile.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.data.files import atomic_folder
from recsys.errors import BundleError
from recsys.profiles.evidence import Bounds, Evidence, collect
from recsys.profiles.personas import AMONG, Personas
from recsys.profiles.population import Known, Population, thresholds
from recsys.profiles.reasons import Reasons
from recsys.profiles.store import Store
from recsys.profiles.template import TEMPLATE, Phrases, profile
from recsys.tables import Catalog, InteractionLog, Profiles, Queries, query_histories


class ProfilesConfig(BaseModel):
    """How profiles are made.

    like_at, dislike_at : weights from which up, and to which down, an event is a like or a dislike; "auto" takes the
        median weight and the 10th percentile (where that is lower). Unrated logs have likes only.
    top, recent, shrinkage : tastes kept; how many last events count as recent; prior events that pull lifts to 1
    lm_users : how many users an LM writes for in one run (0: template only)
    personas : how many kinds of people to tell apart (0: none); prompts may be told a user's (reranker.conditions)
    prompt   : "choose" (the LM chooses among given phrasings by likelihood) or "write" (it writes freely from the
        facts, checked; for models of a billion parameters and more)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["evidence"] = "evidence"
    like_at: float | Literal["auto"] = "auto"
    dislike_at: float | Literal["auto"] | None = "auto"
    top: int = Field(default=4, ge=1, le=8)
    recent: int = Field(default=20, ge=3)
    shrinkage: float = Field(default=3.0, gt=0)
    lm_users: int = Field(default=0, ge=0)
    personas: int = Field(default=0, ge=0, le=100)
    prompt: Literal["choose", "write"] = "choose"

    def fit(self, log: InteractionLog, catalog: Catalog, *, rated: bool, seed: int) -> "EvidenceProfiles":
        """Fit the population statistics on `log`, and the personas on some of its users, drawn by `seed`."""
        like_at, dislike_at = thresholds(log, self.like_at, self.dislike_at, rated=rated)
        population = Population.fit(log, catalog, like_at=like_at, dislike_at=dislike_at)
        fitted = EvidenceProfiles(self, Known(population, catalog), Store.empty(), Phrases.read())
        if not self.personas:
            return fitted
        users = query_histories(log).frame
        some = Queries(users.sample(min(AMONG, len(users)), seed=seed))
        return replace(fitted, personas=Personas.fit(fitted.evidence(some), self.personas, seed))


@dataclass(frozen=True)
class EvidenceProfiles:
    """Implements `protocols.ProfileSource`."""

    config: ProfilesConfig
    known: Known
    store: Store
    phrases: Phrases
    personas: Personas | None = None

    @property
    def bounds(self) -> Bounds:
        """How much evidence is kept of a query."""
        return Bounds(self.config.top, self.config.recent, shrinkage=self.config.shrinkage)

    @cached_property
    def reasons(self) -> Reasons:
        """What explains slates from the same population."""
        return Reasons(self.known)

    def evidence(self, queries: Queries) -> list[Evidence]:
        """The evidence of each query, in the order of the queries."""
        return collect(queries, self.known, self.bounds)

    def as_of(self, queries: Queries) -> Profiles:
        """One profile per query, in order, from the query's history alone."""
        found = self.evidence(queries)
        hashes = pl.Series("evidence_hash", [e.hash for e in found], dtype=pl.String)
        written = self.store.lookup(hashes)
        told = [profile(e, self.phrases) for e in found]
        by_template = pl.Series("template", [text for text, _ in told], dtype=pl.String)
        last = pl.Series("last", [e.last for e in found], dtype=pl.Int64)
        persona = [] if self.personas is None else [self.personas.describe(found)]
        return Profiles(
            queries.frame.select("query_id", "user_id", "at")
            .with_columns(
                pl.coalesce(last, "at").alias("as_of"),
                pl.coalesce(written["text"], by_template).alias("text"),
                pl.Series("claims", [claims for _, claims in told], dtype=pl.List(pl.String)),
                hashes,
                written["prompt_id"].fill_null(TEMPLATE),
                written["model_id"].fill_null(TEMPLATE),
                *persona,
            )
            .drop("at")
        )

    def with_store(self, store: Store) -> "EvidenceProfiles":
        """The same source over another store of texts."""
        return replace(self, store=store)

    def save(self, path: Path) -> None:
        """Write into the new folder `path`. Errors: `StorageError`."""
        with atomic_folder(path) as temporary:
            (temporary / "config.json").write_text(self.config.model_dump_json(indent=1))
            self.known.population.save(temporary)
            self.store.save(temporary / "texts.parquet")
            if self.personas is not None:
                self.personas.save(temporary)

    @classmethod
    def load(cls, path: Path, catalog: Catalog) -> "EvidenceProfiles":
        """Read what `save` wrote, beside the catalog. Errors: `BundleError` when it is missing or altered."""
        try:
            config = ProfilesConfig.model_validate_json((path / "config.json").read_text())
            population = Population.load(path)
        except (
            OSError,
            ValidationError,
            json.JSONDecodeError,
            KeyError,
            TypeError,
            pl.exceptions.PolarsError,
        ) as error:
            raise BundleError(f"{path}: not saved profiles: {(str(error) or repr(error)).splitlines()[0]}") from error
        personas = Personas.load(path) if config.personas else None
        return cls(config, Known(population, catalog), Store.load(path / "texts.parquet"), Phrases.read(), personas)
