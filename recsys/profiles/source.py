"""The profile source: evidence computed from each query, the LM's text where one is stored for it, else the template.

No text is generated at request time, so batch and endpoint give the same profile. What users changed comes first, and
what they do not want counted is not said.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.data.files import atomic_folder
from recsys.errors import BundleError, SpecError
from recsys.profiles.edits import Edit, Edits, apply
from recsys.profiles.edits import sentences as led_by
from recsys.profiles.evidence import ENOUGH, Bounds, Evidence, collect
from recsys.profiles.fresh import drift
from recsys.profiles.levels import Levels
from recsys.profiles.personas import AMONG, Personas
from recsys.profiles.population import Known, Population, thresholds
from recsys.profiles.privacy import Sensitive
from recsys.profiles.reasons import Reasons
from recsys.profiles.store import Store
from recsys.profiles.template import TEMPLATE, Phrases, profile
from recsys.profiles.versions import Version
from recsys.profiles.wishes import Listener
from recsys.tables import Catalog, Id, InteractionLog, Profiles, Queries, query_histories

_WRITTEN = {
    **{name: pl.String() for name in ("text", "evidence_hash", "prompt_id", "model_id")},
    **{"as_of": pl.Int64(), "claims": pl.List(pl.String)},
}


class ProfilesConfig(BaseModel):
    """How profiles are made.

    like_at, dislike_at : weights from which up, and to which down, an event is a like or a dislike; "auto" takes the
        median weight and the 10th percentile (where that is lower). Unrated logs have likes only.
    top, recent, shrinkage : tastes kept; how many last events count as recent; prior events that pull lifts to 1
    refresh : how far the evidence may move (see `fresh.drift`) before a text that an LM wrote no longer stands for it
    lm_users : how many users an LM writes for in one run (0: template only)
    personas : how many kinds of people to tell apart (0: none); who has chosen little is described by theirs, and
        prompts may be told it (reranker.conditions)
    prompt   : "choose" (the LM chooses among given phrasings by likelihood), "phrase" (it says one fact at a time in
        other words) or "write" (it writes freely from the facts); both are checked and repaired, and are for models of
        a billion parameters and more
    wording  : of the sentences: "phrases", "phrases-playful", "phrases-de", or a file of your own (a path, .txt)
    sensitive : what is never said of anybody; words and attributes may be added to the packaged list
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["evidence"] = "evidence"
    like_at: float | Literal["auto"] = "auto"
    dislike_at: float | Literal["auto"] | None = "auto"
    top: int = Field(default=4, ge=1, le=8)
    recent: int = Field(default=20, ge=3)
    shrinkage: float = Field(default=3.0, gt=0)
    refresh: float = Field(default=0.3, ge=0, le=1)
    lm_users: int = Field(default=0, ge=0)
    personas: int = Field(default=8, ge=0, le=100)
    prompt: Literal["choose", "phrase", "write"] = "choose"
    wording: str = Field(default="phrases", min_length=1)
    sensitive: Sensitive = Field(default_factory=Sensitive)

    def fit(self, log: InteractionLog, catalog: Catalog, *, rated: bool, seed: int) -> "EvidenceProfiles":
        """Fit the population statistics on `log`, and the personas on some of its users, drawn by `seed`."""
        like_at, dislike_at = thresholds(log, self.like_at, self.dislike_at, rated=rated)
        population = Population.fit(log, catalog, like_at=like_at, dislike_at=dislike_at)
        hidden = self.sensitive.hidden(population.values)
        known = Known(population.without(hidden), catalog, self.sensitive)
        fitted = EvidenceProfiles(self, known, Store.empty(), Phrases.read(self.wording))
        if not self.personas:
            return fitted
        users = query_histories(log).frame
        some = Queries(users.sample(min(AMONG, len(users)), seed=seed))
        return replace(fitted, personas=Personas.fit(fitted.evidence(some), self.personas, seed))


@dataclass(frozen=True)
class EvidenceProfiles:
    """Implements `protocols.ProfileSource`.

    store : what a model wrote; edits : what users changed, which no bundle holds
    """

    config: ProfilesConfig
    known: Known
    store: Store
    phrases: Phrases
    personas: Personas | None = None
    edits: Edits = field(default_factory=Edits.none)

    @property
    def bounds(self) -> Bounds:
        """How much evidence is kept of a query."""
        return Bounds(self.config.top, self.config.recent, shrinkage=self.config.shrinkage)

    @cached_property
    def levels(self) -> Levels:
        """What stands in for the tastes of who has chosen too little."""
        return Levels(self.known.population, self.personas, self.phrases)

    @cached_property
    def reasons(self) -> Reasons:
        """What explains slates from the same population."""
        return Reasons(self.known)

    @cached_property
    def listener(self) -> Listener:
        """What reads users' own words."""
        return self.reasons.listener

    def evidence(self, queries: Queries) -> list[Evidence]:
        """The evidence of each query, in the order of the queries, as its user wants it counted."""
        return self._counted(queries, collect(queries, self.known, self.bounds), self.edits.as_of(queries))

    def versions(self, queries: Queries) -> list[Version]:
        """The profiles of queries that are some user's, as a store keeps them."""
        evidence = [e.json for e in self.evidence(queries)]
        rows = self.as_of(queries).frame.drop("query_id", "persona", strict=False).iter_rows(named=True)
        kept = zip(rows, evidence, strict=True)
        return [Version(**row, evidence=told) for row, told in kept if row["user_id"] is not None]

    def _counted(self, queries: Queries, found: list[Evidence], own: Mapping[Id, Sequence[Edit]]) -> list[Evidence]:
        if not own:
            return found
        asked = queries.frame["query_id"]
        return [
            apply(e, own[query], self.listener, pins=False) if query in own else e
            for e, query in zip(found, asked, strict=True)
        ]

    def as_of(self, queries: Queries) -> Profiles:
        """One profile per query, in order, from the query's history alone."""
        own = self.edits.as_of(queries)
        whole = collect(queries, self.known, self.bounds)
        found = self._counted(queries, whole, own)
        asked = queries.frame.select("query_id", "user_id", "at")
        changed = self.edits.last(queries)
        since = [_latest(e.last, changed.get(query)) for e, query in zip(found, asked["query_id"], strict=True)]
        levels, company = self.levels.of(found)
        plain = [
            profile(e, self.phrases, beside, partial=_says_less(e, all_of_it))
            for e, beside, all_of_it in zip(found, company, whole, strict=True)
        ]
        template = pl.DataFrame(
            {
                "as_of": pl.Series(since, dtype=pl.Int64).fill_null(asked["at"]),
                "text": pl.Series([text for text, _ in plain], dtype=pl.String),
                "claims": pl.Series([claims for _, claims in plain], dtype=pl.List(pl.String)),
                "evidence_hash": pl.Series([e.hash for e in found], dtype=pl.String),
                "prompt_id": pl.repeat(TEMPLATE, len(found), dtype=pl.String, eager=True),
                "model_id": pl.repeat(TEMPLATE, len(found), dtype=pl.String, eager=True),
            }
        )
        edited = asked["query_id"].is_in(list(own))
        written = self._written(found, template["evidence_hash"], asked["user_id"], edited)
        persona = [] if self.personas is None else [self.personas.describe(found)]
        told = template.select(pl.coalesce(written[name], name) for name in template.columns)
        frame = pl.concat([asked.drop("at"), told], how="horizontal")
        if own:
            frame = self._led(frame, own)
        return Profiles(frame.with_columns(pl.Series("level", levels, dtype=pl.String), *persona))

    def _led(self, frame: pl.DataFrame, own: Mapping[Id, Sequence[Edit]]) -> pl.DataFrame:
        """Profiles led by what their users said and changed."""
        first = {query: led_by(edits, self.listener, self.phrases) for query, edits in own.items()}
        rows = frame.select("query_id", "text", "claims").iter_rows()
        texts, claims = [], []
        for query, text, said in rows:
            lead = first.get(query, [])
            texts.append(" ".join([*(s.text for s in lead), text]))
            claims.append([*(claim for s in lead for claim in s.claims), *said])
        return frame.with_columns(
            pl.Series("text", texts, dtype=pl.String), pl.Series("claims", claims, dtype=pl.List(pl.String))
        )

    def _written(
        self, found: Sequence[Evidence], hashes: pl.Series, users: pl.Series, edited: pl.Series
    ) -> pl.DataFrame:
        """What a model wrote of each evidence, or of what it was and has not moved far from since; null elsewhere.

        edited : whose evidence is counted otherwise than it was: what was written of another may say what it should not
        """
        if not len(self.store):
            return pl.DataFrame(schema=_WRITTEN).clear(len(found))
        rows = []
        last = pl.Series([e.last for e in found], dtype=pl.Int64)
        stored = self.store.lookup(hashes, users, last).iter_rows(named=True)
        for now, row, changed in zip(found, stored, edited, strict=True):
            told = None if row["text"] is None or now.events < ENOUGH else Evidence.read(row["evidence"])
            if told is not None and told.hash == now.hash:
                rows.append({**row, "as_of": None, "claims": None})
            # No text rests on more than the history that is asked about, whatever its clock says.
            elif (
                told is not None
                and not changed
                and told.events <= now.events
                and drift(told, now) < self.config.refresh
            ):
                rows.append({**row, "claims": profile(told, self.phrases)[1]})
            else:
                rows.append(dict.fromkeys(_WRITTEN))
        return pl.DataFrame(rows, schema=_WRITTEN)

    def stands(self, queries: Queries, found: Sequence[Evidence]) -> list[bool]:
        """Whether a stored text still stands for each query. found : their `evidence`."""
        hashes = pl.Series([e.hash for e in found], dtype=pl.String)
        edited = queries.frame["query_id"].is_in(list(self.edits.as_of(queries)))
        return self._written(found, hashes, queries.frame["user_id"], edited)["text"].is_not_null().to_list()

    def with_edits(self, edits: Edits) -> "EvidenceProfiles":
        """The same source beside what users changed; what follows from the population alone is not worked out anew."""
        other = replace(self, edits=edits)
        vars(other).update(levels=self.levels, reasons=self.reasons)
        return other

    def with_store(self, store: Store) -> "EvidenceProfiles":
        """The same source over another store of texts."""
        return replace(self, store=store)

    def save(self, path: Path) -> None:
        """Write into the new folder `path`. Errors: `StorageError`."""
        with atomic_folder(path) as temporary:
            (temporary / "config.json").write_text(self.config.model_dump_json(indent=1))
            (temporary / "wording.txt").write_text(self.phrases.text, "utf-8")
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
            phrases = Phrases.parse((path / "wording.txt").read_text("utf-8"), config.wording)
        except (
            OSError,
            UnicodeDecodeError,
            SpecError,
            ValidationError,
            json.JSONDecodeError,
            KeyError,
            TypeError,
            pl.exceptions.PolarsError,
        ) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            message = f"{path}: not saved profiles, or of another version of recsys: {reason}: fit the bundle again"
            raise BundleError(message) from error
        personas = Personas.load(path) if config.personas else None
        return cls(
            config, Known(population, catalog, config.sensitive), Store.load(path / "texts.parquet"), phrases, personas
        )


def _says_less(counted: Evidence, whole: Evidence) -> bool:
    """Whether the user does not want some of it counted."""
    return len(counted.tastes) + len(counted.common) < len(whole.tastes) + len(whole.common)


def _latest(*times: int | None) -> int | None:
    """The youngest of some moments; None where there is none."""
    return max((at for at in times if at is not None), default=None)
