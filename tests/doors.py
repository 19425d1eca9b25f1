"""Bundles for the doors' tests: a hand-made one that remembers what it was asked, and a small real one."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from checks import words
from recsys import bundle as bundles
from recsys.bundle import Bundle
from recsys.data.ingest import Dataset
from recsys.errors import ModelError, UnknownItemError, UnknownUserError
from recsys.profiles.edits import Edits
from recsys.protocols import LanguageModel
from recsys.rerank import Fallback, Fused
from recsys.rerank.fusion import LinearFusion
from recsys.settings import Settings
from recsys.spec import Spec, fit
from recsys.tables import Catalog, Id, InteractionLog, Queries, Slates, adhoc_query, query_histories

USERS = [7, 3, 11, 5, 2, 13]
ITEMS = list(range(100, 112))


@dataclass(frozen=True)
class FakeRecommender:
    """Ranks unseen items by their distance from the last one. `asked` and `requests` record every call."""

    served_by: str = "reranker"
    items: list[Id] = field(default_factory=lambda: ITEMS)
    reranker: object = "anything but Identity"
    down: set[Id] = field(default_factory=set)
    """Users whom the reranker fails: they get the candidates' order, as `Fallback` serves them."""
    asked: list[list[Id]] = field(default_factory=list)
    requests: list[list[str]] = field(default_factory=list)
    edits: Edits = field(default_factory=Edits.none)
    fail_on: Id | None = None
    failure: BaseException | None = None

    def candidates_only(self) -> "FakeRecommender":
        return replace(self, served_by="candidates")

    def recommend(self, queries: Queries, k: int) -> Slates:
        users = queries.frame["user_id"].to_list()
        self.asked.append(users)
        self.requests.append(queries.frame["request"].to_list())
        if self.failure is not None and self.fail_on in users:
            raise self.failure
        rows: list[dict[str, Any]] = []
        for row in queries.frame.iter_rows(named=True):
            last = row["history"][-1] if row["history"] else self.items[0]
            items = sorted(
                (i for i in self.items if i not in row["history"]), key=lambda i, last=last: (abs(i - last), i)
            )
            rows += [
                {
                    "query_id": row["query_id"],
                    "item_id": item,
                    "rank": rank,
                    "score": 1.0 / rank,
                    "propensity": 1.0,
                    "served_by": "candidates" if row["user_id"] in self.down else self.served_by,
                    "reason": f"near {last}",
                }
                for rank, item in enumerate(items[:k], start=1)
            ]
        schema: dict[str, Any] = {
            "query_id": queries.frame["query_id"].dtype,
            "item_id": pl.Int64,
            "rank": pl.Int64,
            "score": pl.Float64,
            "propensity": pl.Float64,
            "served_by": pl.String,
            "reason": pl.String,
        }
        return Slates(pl.DataFrame(rows, schema=schema))


@dataclass(frozen=True)
class FakeBundle:
    """As much of a `Bundle` as the doors use."""

    path: Path
    manifest: dict[str, Any]
    recommender: FakeRecommender
    log: InteractionLog
    catalog: Catalog

    @property
    def name(self) -> str:
        return f"fake-{self.manifest['hash'][:12]}"

    def heeding(self, store: object, users: list[Id] | None = None) -> "FakeBundle":
        return self

    def queries(self, users: list[Id] | None = None, requests: list[str] | None = None) -> Queries:
        every = query_histories(self.log)
        if users is None:
            return every
        parts = []
        for user in users:
            row = every.frame.filter(pl.col("user_id").cast(pl.String) == str(user))
            if not len(row):
                raise UnknownUserError(f"user '{user}' is not in the log of bundle {self.path}")
            parts.append(row)
        found = pl.concat(parts)
        return Queries(found if requests is None else found.with_columns(request=pl.Series(requests, dtype=pl.String)))

    def adhoc(
        self, history: list[Id], *, user_id: Id | None = None, segment: str | None = None, request: str = ""
    ) -> Queries:
        for item in history:
            if item not in ITEMS:
                raise UnknownItemError(f"item '{item}' is not in the catalog of bundle {self.path}")
        query = adhoc_query(history, user_id=user_id, dtype=pl.Int64, segment=segment)
        return Queries(query.frame.with_columns(request=pl.lit(request)))


def fake_bundle(folder: Path, recommender: FakeRecommender | None = None, *, mark: str = "one") -> Bundle:
    """A bundle in `folder`; `mark` tells two of them apart."""
    recommender = recommender or FakeRecommender()
    items = recommender.items
    events = [(user, item, n) for user in USERS for n, item in enumerate(items[user % 5 : user % 5 + 3])]
    log = InteractionLog.of(
        pl.DataFrame(
            {
                "user_id": [user for user, _, _ in events],
                "item_id": [item for _, item, _ in events],
                "event": "interaction",
                "weight": 1.0,
                "ts": [n for _, _, n in events],
            }
        )
    )
    titles = [f"Item {item}" for item in items]
    catalog = Catalog(pl.DataFrame({"item_id": items, "title": titles, "text": titles}))
    manifest = {"name": "fake", "hash": hashlib.sha256(mark.encode()).hexdigest()}
    bundle: Any = FakeBundle(folder, manifest, recommender, log, catalog)
    return bundle


def real_bundle(folder: Path, dataset: Dataset, lm: LanguageModel | None = None) -> Bundle:
    """A real line, fitted in a second, written and loaded again; with the packed reranker where there is an `lm`."""
    settings = Settings(cache_dir=folder / "cache", offline=True)
    sources = [{"kind": "transitions"}, {"kind": "popular"}]
    recipe: dict[str, Any] = {"generator": {"kind": "fusion", "sources": sources}, "lm": {"kind": "none"}, "depth": 30}
    if lm is not None:
        recipe["reranker"] = {"kind": "packed", "depth": 8, "tune_users": 20}
    spec = Spec.model_validate(recipe)
    fitted = fit(dataset, spec, settings, seed=0, lm=lm)
    path = bundles.write(folder / "bundle", fitted.recommender, dataset, spec=spec)
    return bundles.load(path, settings, lm=lm)


@dataclass(frozen=True)
class Ears:
    """A judge that likes what a request names, and dislikes what follows a "no"."""

    kind = "ears"
    model_id = "test/ears"
    down: bool = False

    def prepare(self, heads: Any, catalog: Any) -> None: ...

    def understood(self, requests: Any) -> list[dict[str, Any]]:
        found = []
        for said in map(words, requests):
            refuses = [word for before, word in pairwise(said) if before == "no"]
            names = [w for w in said if w in ("western", "horror", "comedy") and w not in refuses]
            found.append(
                {"wants": names, "refuses": refuses, "like": None, "than": None, "first_year": None, "last_year": None}
            )
        return found

    def opinions(self, heads: Any, queries: Queries, profiles: Any, catalog: Any) -> Iterator[Any]:
        if self.down:
            raise ModelError("the endpoint is gone")
        genres = dict(catalog.frame.select("item_id", "genres").iter_rows())
        requests = dict(queries.frame.select("query_id", "request").iter_rows())
        for head in heads:
            (meaning,) = self.understood([requests[head["query_id"][0]]])
            own = [[g.lower() for g in genres[item]] for item in head["item_id"]]
            likes = [sum(g in meaning["wants"] for g in some) for some in own]
            hates = [sum(g in meaning["refuses"] for g in some) for some in own]
            yield np.subtract(likes, hates, dtype=np.float64)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


NO_OPINION = LinearFusion({"score": 1.0, "lm": 0.0})
OPINION = LinearFusion({"score": 0.1, "lm": 10.0})


def listening(judge: Any, **fusions: LinearFusion) -> Fallback:
    return Fallback(Fused(judge, 30, {"plain": OPINION, **fusions}, {}))  # type: ignore[arg-type]
