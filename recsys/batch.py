"""Slates for many users, written as Parquet shards: the offline door.

`OUT/part-00000.parquet`, `part-00001.parquet`, ... hold `shard_size` users each, in the order of the user list; a shard
is there whole or not at all, so an interrupted run goes on where it stopped. `OUT/_run.json` says what the shards
belong to (bundle, k, users, ...), and a run that differs in any of it refuses to mix. `OUT/_SUCCESS.json` appears last.
Users whom the reranker failed have the candidates' order; they count as `not_reranked`, and a rerun tries them again.
Requests in words, and what users changed in their profiles, belong to the run like its users: others are another run.
Of their text nothing is kept.
Read the result with `pl.read_parquet("OUT/part-*.parquet")`.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from recsys.bundle import Bundle
from recsys.data.files import atomic_file
from recsys.data.requests import clean_request
from recsys.errors import DataError, SpecError, StorageError, UnknownUserError
from recsys.recommender import check_k
from recsys.rerank import Identity, heard
from recsys.tables import Id, Queries, Slates

log = logging.getLogger(__name__)

RUN, SUCCESS = "_run.json", "_SUCCESS.json"
COLUMNS = ("user_id", "item_id", "rank", "score", "propensity", "served_by", "reason")


@dataclass(frozen=True)
class UserList:
    """The users to serve, each once, in the order given; and what of the file was left out."""

    ids: list[Id]
    repeated: int = 0
    unknown: list[tuple[int, str]] = field(default_factory=list)
    """(line, id) of every id that the log does not hold."""


@dataclass(frozen=True)
class BatchReport:
    """What lies in `out` (users, rows, ...) and what this run added (`written` users in `seconds`)."""

    out: Path
    users: int
    rows: int
    empty: int
    """Users for whom the recommender had no item at all."""
    reranked: int
    """Users with at least one row whose order comes from the reranker."""
    not_reranked: int
    """Users whom the reranker should have served and failed: all their rows are in the candidates' order."""
    requests: int
    """Users with a request in words."""
    unread: int
    """Those of them whose request had no part in the order of their rows."""
    shards: int
    written: int
    seconds: float


def read_users(text: str, bundle: Bundle, *, skip_unknown: bool = False) -> UserList:
    """`all`, or a file of user ids: CSV or Parquet with a column `user_id`, else one id per line.

    A repeated id is taken once and counted. Line numbers count from 1, a CSV's header and a Parquet's row 1 included.

    Errors: `DataError` for a file that is missing, empty, not UTF-8 or without the column; `UnknownUserError` for ids
    that the log does not hold (the first one, with its line, and how many there are), unless `skip_unknown`.
    """
    known = bundle.log.frame["user_id"].unique().sort()
    if text == "all":
        return UserList(known.to_list())
    path = Path(text)
    lines = _lines(path)
    as_text = known.cast(pl.String)
    by_text: dict[str, Id] = dict(zip(as_text.to_list(), known.to_list(), strict=True))
    unknown = [(line, name) for line, name in lines if name not in by_text]
    if unknown and not skip_unknown:
        line, name = unknown[0]
        raise UnknownUserError(
            f"{path} line {line}: user '{name[:100]}' is not in the bundle's log"
            f" ({len(unknown)} of {len(lines)} ids are not); correct the file or use --skip-unknown"
        )
    found = [by_text[name] for _, name in lines if name in by_text]
    if not found:
        raise DataError(f"{path}: holds no user id that the bundle's log knows")
    ids = list(dict.fromkeys(found))
    return UserList(ids, repeated=len(found) - len(ids), unknown=unknown)


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line, id as text) of every id in a user file, blank lines left out."""
    try:
        if path.suffix == ".parquet":
            column = _column(pl.read_parquet(path), path)
            lines = list(enumerate(column, start=1))
        elif path.suffix == ".csv":
            column = _column(pl.read_csv(path, infer_schema=False, truncate_ragged_lines=True), path)
            lines = list(enumerate(column, start=2))
        else:
            text = path.read_text(encoding="utf-8-sig")
            lines = list(enumerate((line.strip() for line in text.splitlines()), start=1))
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a user list: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line}: is not UTF-8; convert the file") from error
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as a user list: {str(error).splitlines()[0]}") from error
    lines = [(line, name) for line, name in lines if name]
    if not lines:
        raise DataError(f"{path}: holds no user ids")
    return lines


def _column(frame: pl.DataFrame, path: Path) -> list[str]:
    if "user_id" not in frame.columns:
        raise DataError(f"{path}: column 'user_id' is missing (found: {', '.join(frame.columns)})")
    return frame["user_id"].cast(pl.String).fill_null("").to_list()


def run_batch(
    bundle: Bundle,
    users: Sequence[Id],
    *,
    k: int,
    out: Path,
    rerank_users: int | None = None,
    shard_size: int = 256,
    restart: bool = False,
    progress: bool = True,
    requests: Mapping[Id, str] | None = None,
) -> BatchReport:
    """Write the top `k` of every user into `out`; a rerun skips the users who are there, except `not_reranked` ones.

    With `rerank_users` only the first so many of `users` are reranked; the others get the candidate order and
    `served_by` "candidates". Neither `shard_size` nor an interruption changes a slate.

    requests : what some of `users` ask for in words; the log says where the bundle's reranker does not read them

    Errors: `SpecError` for a bad `k`, an empty or repeating user list, a request by nobody of it; `DataError` for a
    request that is too long or no valid Unicode; `StorageError` when `out` holds another run's
    shards (unless `restart`, which removes them), anything else, or cannot be written; `UnknownUserError`.
    """
    check_k(k, bundle.catalog)
    if shard_size < 1 or (rerank_users is not None and rerank_users < 0):
        raise SpecError("--shard-size must be at least 1 and --rerank-users at least 0")
    if not users or len(set(users)) < len(users):
        raise SpecError("the list of users is empty or names a user twice")
    requests = {user: text for user, request in (requests or {}).items() if (text := clean_request(request))}
    if strangers := requests.keys() - set(users):
        raise SpecError(f"{len(strangers)} of {len(requests)} requests are by users who are not in the list of users")
    run = {
        "bundle": bundle.manifest["hash"],
        "k": k,
        "users": _digest(list(users)),
        "rerank_users": rerank_users,
        "shard_size": shard_size,
        # As a run that knows no requests, where there are none.
        "requests": _digest([requests.get(user, "") for user in users]) if requests else None,
        "edits": _digest(bundle.recommender.edits.frame.rows()) if len(bundle.recommender.edits) else None,
    }
    _claim(out, run, restart=restart)
    deaf = heard.unread(bundle.recommender.reranker)
    if requests and deaf:
        log.warning("none of %d requests is read: %s", len(requests), deaf)
    limit = len(users) if rerank_users is None else rerank_users
    if isinstance(bundle.recommender.reranker, Identity):
        limit = 0
    shards = [
        _Shard(out / f"part-{number:05d}.parquet", users[first : first + shard_size], max(0, limit - first))
        for number, first in enumerate(range(0, len(users), shard_size))
    ]
    todo = [(shard, some) for shard in shards if (some := _todo(shard))]
    started = time.perf_counter()
    for shard, some in _with_progress(todo, show=progress):
        frame = _slates(bundle, shard, some, k, requests)
        with atomic_file(shard.path) as temporary:
            frame.write_parquet(temporary)
    seconds = time.perf_counter() - started
    counts = _count(shards, requests, deaf=deaf is not None)
    _write_json(out / SUCCESS, {**counts, "run": run})
    return BatchReport(out, **counts, written=sum(len(some) for _, some in todo), seconds=seconds)


@dataclass(frozen=True)
class _Shard:
    path: Path
    users: Sequence[Id]
    rerank: int
    """How many of its users, the first ones, are to be reranked."""


def _todo(shard: _Shard) -> list[Id]:
    """The users to be served: all of a shard that is not there, else those whom the reranker failed."""
    return _not_reranked(shard, _read(shard)) if shard.path.exists() else list(shard.users)


def _not_reranked(shard: _Shard, frame: pl.DataFrame) -> list[Id]:
    """Users that were to be reranked and have rows, but none by the reranker."""
    failed = set(frame["user_id"]) - set(frame.filter(pl.col("served_by") == "reranker")["user_id"])
    return [user for user in shard.users[: shard.rerank] if user in failed]


def _with_progress(todo: list[tuple[_Shard, list[Id]]], *, show: bool) -> Iterator[tuple[_Shard, list[Id]]]:
    """The work under a progress bar that counts users (only on a terminal)."""
    from tqdm import tqdm

    with tqdm(
        total=sum(len(some) for _, some in todo), unit="user", desc="batch", disable=None if show else True
    ) as bar:
        for shard, some in todo:
            yield shard, some
            bar.update(len(some))


def _slates(bundle: Bundle, shard: _Shard, todo: list[Id], k: int, requests: Mapping[Id, str]) -> pl.DataFrame:
    """The shard's rows, users in its order, then rank: those of `todo` computed, the others as they are there."""
    rerank = set(shard.users[: shard.rerank])
    parts = []
    if len(todo) < len(shard.users):
        parts.append(_read(shard, COLUMNS).filter(~pl.col("user_id").is_in(todo)))
    for recommender, some in (
        (bundle.recommender, [user for user in todo if user in rerank]),
        (bundle.recommender.candidates_only(), [user for user in todo if user not in rerank]),
    ):
        if some:
            queries = bundle.queries(some, [requests.get(user, "") for user in some])
            parts.append(_rows(queries, recommender.recommend(queries, k)))
    places = {user: place for place, user in enumerate(shard.users)}
    rows = pl.concat(parts)
    return rows.sort(rows["user_id"].replace_strict(places), "rank")


def _rows(queries: Queries, slates: Slates) -> pl.DataFrame:
    order = queries.frame.select("query_id", "user_id").with_row_index("place")
    rows = order.join(slates.frame, on="query_id", how="inner").sort("place", "rank")
    return rows.select(COLUMNS)


def _claim(out: Path, run: dict[str, Any], *, restart: bool) -> None:
    """Make `out` this run's own: a new folder, an unfinished one of the same run, or one to start over."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out}: is a file, not a folder; choose another --out")
    state = out / RUN
    if not state.exists():
        if out.is_dir() and any(out.iterdir()):
            raise StorageError(f"{out}: is not empty and holds no batch run; choose another --out")
    elif not restart:
        before = _read_json(state)
        differ = ", ".join(name.replace("_", "-") for name in run if before.get(name) != run[name])
        if differ:
            raise StorageError(f"{out}: holds shards of another run ({differ} differ); use another --out or --restart")
    # A killed run can leave a temporary file; it must not meet a reader's glob. The success mark goes before any shard.
    stale = [*out.glob(".*.part-*.parquet"), *out.glob(SUCCESS), *(out.glob("part-*.parquet") if restart else ())]
    try:
        for file in stale:
            file.unlink()
    except OSError as error:
        raise StorageError(f"{file}: cannot be removed: {error.strerror}") from error
    _write_json(state, run)


def _count(shards: list[_Shard], requests: Mapping[Id, str], *, deaf: bool) -> dict[str, int]:
    """What the shards hold."""
    rows = served = reranked = failed = unread = 0
    for shard in shards:
        frame = _read(shard)
        rows, served = rows + len(frame), served + frame["user_id"].n_unique()
        by_reranker = set(frame.filter(pl.col("served_by") == "reranker")["user_id"])
        reranked += len(by_reranker)
        unread += len(requests.keys() & (set(frame["user_id"]) - (set() if deaf else by_reranker)))
        failed += len(_not_reranked(shard, frame))
    users = sum(len(shard.users) for shard in shards)
    counts = {"users": users, "rows": rows, "empty": users - served, "reranked": reranked, "not_reranked": failed}
    return {**counts, "requests": len(requests), "unread": unread, "shards": len(shards)}


def _read(shard: _Shard, columns: Sequence[str] = ("user_id", "served_by")) -> pl.DataFrame:
    """Some columns of a shard. Errors: `StorageError` where it is damaged or holds other users than it should."""
    try:
        frame = pl.read_parquet(shard.path, columns=list(columns))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StorageError(f"{shard.path}: is damaged; remove it and run the same command again") from error
    if set(frame["user_id"]) - set(shard.users):
        raise StorageError(f"{shard.path}: holds other users than this run's; use another --out or --restart")
    return frame


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: is damaged; use another --out or --restart") from error
    return value if isinstance(value, dict) else {}
