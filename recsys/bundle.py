"""A fitted line as a folder: every part's files, the log and the catalog it knows, and a manifest with their hashes.

Nothing in it is pickled, and a bundle with one altered, missing or added file does not load. Model weights are not
in it: the manifest names them, and they are resolved on loading.
"""

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from recsys import __version__
from recsys.candidates import load_generator
from recsys.data import files
from recsys.data.files import atomic_folder
from recsys.data.ingest import Dataset
from recsys.data.requests import clean_request
from recsys.errors import BundleError, SpecError, UnknownItemError, UnknownUserError
from recsys.lm import load_encoder, load_lm
from recsys.lm.recent import RecentEncoder
from recsys.lm.weights import resolve
from recsys.profiles import EvidenceProfiles
from recsys.profiles.edits import Edits
from recsys.profiles.versions import ProfileStore
from recsys.protocols import LanguageModel
from recsys.recommender import Recommender
from recsys.rerank import Fallback, Identity, load_reranker
from recsys.settings import Settings
from recsys.spec import Spec
from recsys.tables import Catalog, Id, InteractionLog, Queries, adhoc_query, query_histories

FORMAT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. `liked` is the weight of an event that is known only by its item: it counts as liked."""

    path: Path
    manifest: Mapping[str, Any]
    recommender: Recommender
    log: InteractionLog
    catalog: Catalog
    liked: float = 1.0

    @property
    def name(self) -> str:
        """Name and short hash, as answers cite it."""
        return f"{self.manifest['name']}-{self.manifest['hash'][:12]}"

    @property
    def now(self) -> int:
        """The moment just after the last event known: when a question without a moment of its own is asked."""
        return int(self.log.frame["ts"].max() or 0) + 1  # type: ignore[arg-type]  # ts is Int64

    def heeding(self, store: ProfileStore, users: Sequence[Id] | None = None) -> "Bundle":
        """The same bundle, which keeps to what some users of its log (all by default) changed in their profiles.

        Whatever a change's stamp, it was made before now. Errors: `StorageError` where the store cannot be read;
        `UnknownUserError` for an id that cannot be one of the log's.
        """
        dtype = self.log.frame["user_id"].dtype
        who = self.log.frame["user_id"].unique() if users is None else _cast(users, dtype, "user_id", UnknownUserError)
        edits = store.edits(who)
        if not len(edits):
            return self
        known = Edits(edits.with_columns(pl.col("at").clip(upper_bound=self.now)))
        return replace(self, recommender=self.recommender.with_edits(known))

    def queries(self, users: Sequence[Id] | None = None, requests: Sequence[str] | None = None) -> Queries:
        """One query per stored user (all by default), now, with the user's whole history; in the order given.

        requests : what each of `users` asks for in words, in their order; empty for nothing in particular

        Errors: `UnknownUserError` naming the first id that the log does not hold; `SpecError` for requests that are
        not one for each user, each named once; `DataError` for a request that is too long or no valid Unicode.
        """
        if requests is not None and (users is None or not len(set(users)) == len(users) == len(requests)):
            raise SpecError("requests must be as many as users, each of whom is named once")
        dtype = self.log.frame["user_id"].dtype
        events = self.log.frame
        if users is not None:
            wanted = _cast(users, dtype, "user_id", UnknownUserError)
            known = wanted.is_in(events["user_id"].unique().implode())
            if not known.all():
                missing = users[int((~known).arg_true()[0])]
                raise UnknownUserError(f"user_id {missing!r} is not in the log of bundle {self.path}")
            events = events.join(wanted.to_frame(), on="user_id", how="semi", maintain_order="left")
        found = query_histories(InteractionLog(events)).frame.with_columns(at=pl.lit(self.now, dtype=pl.Int64))
        if users is not None:
            found = wanted.unique(maintain_order=True).to_frame().join(found, on="user_id", maintain_order="left")
            if requests is not None:
                cleaned = [clean_request(request) for request in requests]
                found = found.with_columns(request=pl.Series(cleaned, dtype=pl.String))
        return Queries(found.select(Queries.held(found)))

    def adhoc(
        self, history: Sequence[Id], *, user_id: Id | None = None, segment: str | None = None, request: str = ""
    ) -> Queries:
        """One query, now, from a bare list of items, oldest first; a segment that nobody had counts as none.

        Errors: `UnknownItemError` naming the first item that the catalog does not hold; `DataError` for a request
        that is too long or no valid Unicode.
        """
        dtype = self.catalog.frame["item_id"].dtype
        items = _cast(history, dtype, "history", UnknownItemError)
        known = items.is_in(self.catalog.frame["item_id"].implode())
        if not known.all():
            place = int((~known).arg_true()[0])
            raise UnknownItemError(f"history[{place}] = {history[place]!r} is not in the catalog of bundle {self.path}")
        query = adhoc_query(
            items.to_list(), user_id=user_id, at=self.now, weight=self.liked, dtype=dtype, segment=segment
        )
        return Queries(query.frame.with_columns(request=pl.lit(clean_request(request))))


def _cast(values: Sequence[Id], dtype: Any, field: str, error: type[Exception]) -> pl.Series:
    """Ids as the stored type: text from a command line becomes the log's integers, and the other way round."""
    texts = pl.Series("user_id", [str(v) for v in values], dtype=pl.String)
    cast = texts.cast(dtype, strict=False)
    # Strictly: "007" is no other way to write 7.
    foreign = (cast.cast(pl.String) != texts).fill_null(True)
    if foreign.any():
        kind = "whole number" if dtype == pl.Int64 else "text"
        raise error(f"{field}: {values[int(foreign.arg_true()[0])]!r} is no {kind}, as this bundle's ids are")
    return cast


def refuse_taken(path: Path, *, replace: bool = False) -> None:
    """Raise `StorageError` where a bundle may not be written: a file, or a folder with something in it.

    With `replace` an older bundle may be there, and nothing else: no folder of the user's own is ever removed.
    """
    files.refuse_taken(path, replace=replace and (path / MANIFEST).is_file())


def write(
    path: Path,
    recommender: Recommender,
    dataset: Dataset,
    *,
    spec: Spec,
    known: InteractionLog | None = None,
    metrics: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Write a bundle into the new folder `path`, whole or not at all.

    `known` is the log that the parts were fitted on (by default the dataset's whole log).
    Errors: `StorageError` when the folder is taken (see `refuse_taken`) or cannot be written.
    """
    interactions = known or dataset.log
    refuse_taken(path, replace=replace)
    with atomic_folder(path, replace=replace) as folder:
        recommender.catalog.frame.drop("embedding", strict=False).write_parquet(folder / "catalog.parquet")
        interactions.frame.write_parquet(folder / "log.parquet")
        recommender.generator.save(folder / "generator")
        recommender.profiles.save(folder / "profiles")
        recommender.reranker.save(folder / "reranker")
        hashes = _hashes(folder)
        manifest = {
            "format": FORMAT,
            "name": spec.name,
            "recsys": __version__,
            "python": platform.python_version(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "spec": spec.model_dump(mode="json"),
            "data": {
                "name": dataset.name,
                "clock": dataset.clock,
                "rated": dataset.rated,
                "users": interactions.frame["user_id"].n_unique(),
                "items": len(recommender.catalog),
                "events": len(interactions),
            },
            "metrics": dict(metrics or {}),
            "files": hashes,
        }
        (folder / MANIFEST).write_text(_sealed(manifest))
    return path


@contextmanager
def rewriting(path: Path) -> Iterator[Path]:
    """A copy of the bundle to change files in; on success it takes the bundle's place, its manifest made anew.

    Killed at any moment, it leaves the old bundle or the new one, at worst under a hidden name (see `settle`).

    Errors: `BundleError` for what is no sound bundle; `StorageError` when it cannot be written.
    """
    path = path.resolve()
    manifest = read_manifest(path)
    with atomic_folder(path, replace=True) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        yield folder
        users = pl.read_parquet(folder / "log.parquet", columns=["user_id"])["user_id"]
        data = {**manifest["data"], "users": users.n_unique(), "events": len(users)}
        (folder / MANIFEST).write_text(_sealed({**manifest, "data": data, "files": _hashes(folder)}))


def settle(path: Path) -> None:
    """After a write that was killed: a bundle that stood aside comes back, and half-written or old copies are removed.

    For who is alone in writing there. Errors: `StorageError`.
    """
    path = path.resolve()
    hidden = re.compile(rf"\.[0-9a-f]{{8}}\.(old\.)?{re.escape(path.name)}")
    with files.storage_errors(path):
        beside = [(f, hidden.fullmatch(f.name)) for f in path.parent.glob(".*") if f.is_dir()]
        for folder, found in sorted((f, found) for f, found in beside if found):
            if found[1] and not path.exists():
                folder.rename(path)
            else:
                shutil.rmtree(folder)


def load(path: Path, settings: Settings, *, lm: LanguageModel | None = None) -> Bundle:
    """Check every file's hash, then load. `lm` replaces the language model that the spec names.

    Errors: `BundleError` for a folder that is no bundle, is of another format, or was altered; `WeightsError` when
    the language model that it names is not to be had.
    """
    manifest = read_manifest(path)
    spec = stored_spec(path, manifest)
    catalog = Catalog(pl.read_parquet(path / "catalog.parquet"))
    interactions = InteractionLog(pl.read_parquet(path / "log.parquet"))
    reranker = load_reranker(
        spec.reranker.kind,
        path / "reranker",
        lambda: lm or load_lm(spec.lm, settings),
        cache(lambda: RecentEncoder(load_encoder(spec.encoder, settings))),  # asked for with every text that is read
        lambda name: resolve(name, settings),
    )
    profiles = EvidenceProfiles.load(path / "profiles", catalog)
    recommender = Recommender(
        catalog=catalog,
        generator=load_generator(spec.generator.kind, path / "generator"),
        profiles=profiles,
        reranker=reranker if isinstance(reranker, Identity) else Fallback(reranker),
        policy=spec.policy.build(),
        reasons=profiles.reasons,
        depth=spec.depth,
    )
    like_at = profiles.known.population.like_at
    return Bundle(path, manifest, recommender, interactions, catalog, liked=1.0 if like_at is None else like_at)


def stored_spec(path: Path, manifest: Mapping[str, Any]) -> Spec:
    """The recipe of a bundle. Errors: `BundleError` where this version has other fields."""
    try:
        return Spec.model_validate(manifest["spec"])
    except ValidationError as error:
        wrote = manifest.get("recsys", "another version")
        raise BundleError(
            f"{path}: was written by recsys {wrote}, whose specs {__version__} cannot read: refit it"
        ) from error


def load_profiles(path: Path) -> EvidenceProfiles:
    """A bundle's profiles alone, after every file has been checked. Errors: `BundleError`."""
    read_manifest(path)
    return EvidenceProfiles.load(path / "profiles", Catalog(pl.read_parquet(path / "catalog.parquet")))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle, after every file has been checked against it.

    Errors: `BundleError`, naming the first file that is missing, added or altered.
    """
    try:
        text = (path / MANIFEST).read_text()
        manifest = json.loads(text)
        stated: dict[str, str] = manifest["files"]
        version = manifest["format"]
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no bundle here ({MANIFEST} is missing); `recsys fit` writes one") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}/{MANIFEST}: cannot be read as a bundle's manifest ({error!r})") from error
    if version != FORMAT:
        raise BundleError(f"{path}: is a bundle of format {version}; this version reads format {FORMAT}: refit it")
    if text != _sealed(manifest):
        raise BundleError(f"{path}/{MANIFEST}: was altered after it was written; refit, or restore a copy")
    found = _hashes(path)
    for file in sorted(stated.keys() | found.keys()):
        if file not in found:
            raise BundleError(f"{path}/{file}: is missing from the bundle; refit, or restore a copy")
        if file not in stated:
            raise BundleError(f"{path}/{file}: does not belong to the bundle; remove it")
        if stated[file] != found[file]:
            raise BundleError(f"{path}/{file}: was altered after it was written; refit, or restore a copy")
    return dict(manifest)


def _sealed(manifest: Mapping[str, Any]) -> str:
    """The manifest's text, with the hash of all its other fields."""
    body = {key: value for key, value in manifest.items() if key != "hash"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "hash": digest}, indent=1)


def _hashes(folder: Path) -> dict[str, str]:
    found = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.relative_to(folder).as_posix() != MANIFEST)
    return {f.relative_to(folder).as_posix(): files.sha256_of(f) for f in found}
