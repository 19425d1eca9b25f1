"""Profiles through time and what users changed in them: what is kept, and the one interface of what keeps it.

A version is a profile as of a moment and is never changed; a newer one stands beside it. Ids keep their type: the
users 17 and "17" are two. A store that is not there yet is empty, and nothing is made before the first write.
"""

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import polars as pl

from recsys.errors import DataError, SpecError, StorageError
from recsys.profiles.edits import Edit, Edits
from recsys.profiles.privacy import scrub
from recsys.tables import Id

Level = Literal["user", "persona", "global"]
Ids = Sequence[Id] | pl.Series

_TEXTS = {name: pl.String() for name in ("evidence", "evidence_hash", "prompt_id", "model_id", "level")}
# `user` is an id with its type (see `key_of`); `written` is the wall clock in ns, which orders what is of one moment.
VERSIONS: Mapping[str, Any] = {
    **{"user": pl.String(), "as_of": pl.Int64(), "text": pl.String(), "claims": pl.List(pl.String)},
    **{**_TEXTS, "written": pl.Int64()},
}
EDITS: Mapping[str, Any] = {
    **{"user": pl.String(), "at": pl.Int64()},
    **{name: pl.String() for name in ("action", "attribute", "value", "text")},
    "written": pl.Int64(),
}
ERASURES: Mapping[str, Any] = {"digest": pl.String(), "salt": pl.String(), "at": pl.Int64()}
VERSION_KEY = ("user", "as_of", "prompt_id", "model_id")


@dataclass(frozen=True)
class Version:
    """One user's profile as of a moment. Its key is (user_id, as_of, prompt_id, model_id).

    as_of    : time of the youngest event it rests on, on the log's clock
    claims   : short machine-readable statements that the text rests on
    evidence : what it was written of, as JSON; evidence_hash: that evidence's hash
    level    : how far it is the user's own

    Errors: `DataError` for what no store can keep: a number beyond Int64, text with NUL or half a character.
    """

    user_id: Id
    as_of: int
    text: str
    claims: Sequence[str] = ()
    evidence: str = "{}"
    evidence_hash: str = ""
    prompt_id: str = "template"
    model_id: str = "template"
    level: Level = "user"

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", tuple(self.claims))
        _check("Version", {field.name: getattr(self, field.name) for field in fields(self)})
        if self.level not in get_args(Level):
            raise DataError(f"Version: level '{self.level}' is none of {', '.join(get_args(Level))}")


@runtime_checkable
class ProfileStore(Protocol):
    """Versions, edits and erasures of users. Every method may raise `StorageError` (out of reach, corrupt, foreign)."""

    def put(self, versions: Iterable[Version]) -> None:
        """Keep some versions, all or none; one with the key of an older one takes its place."""

    def versions(self, user_id: Id) -> list[Version]:
        """Every version of a user, oldest first; of one moment, the last one put is last."""

    def as_of(self, user_ids: Ids, at: int | pl.Series) -> pl.DataFrame:
        """For each of `user_ids`, in order, the youngest version with `as_of` <= `at` (one moment, or one for each).

        Columns: user_id and the fields of `Version`; all but user_id are null where there is none.
        """

    def edit(self, user_id: Id, edit: Edit) -> None:
        """Keep an edit; edits are only ever added. Contact details in its words are not kept (`privacy.scrub`).

        Errors: `DataError` for one that `Edits` refuses, or that no store can keep.
        """

    def edits(self, user_ids: Ids | None = None, at: int | None = None) -> pl.DataFrame:
        """Edits up to and with `at`, oldest first, of some users or of all: the rows of `Edits`."""

    def forget(self, user_ids: Ids) -> int:
        """Remove every version and edit of some users, from the files' bytes too; how many rows that were.

        Once it returns, nothing of them is left; interrupted, it is to be run again.
        """

    def bury(self, user_ids: Ids, at: int) -> None:
        """Record that users were erased at `at` (Unix seconds): salted SHA-256 of the id and the time, nothing else."""

    def buried(self, user_ids: Ids) -> pl.Series:
        """For each of `user_ids`, in order, whether an erasure is recorded (Boolean, named "erased")."""


def open_store(uri: str) -> ProfileStore:
    """The store at `sqlite:///FILE`, at `postgresql://...`, or in a folder (batch: Parquet, one writer at a time).

    Opens nothing yet. Errors: `SpecError` for any other address, or one whose database driver is not installed.
    """
    scheme = uri.partition("://")[0].partition("+")[0] if "://" in uri else ""
    if scheme in ("sqlite", "postgresql"):
        from recsys.profiles.sqlstore import SqlStore

        return SqlStore(uri)
    if "://" in uri or not uri:
        raise SpecError(f"no store for '{scheme}://...': give sqlite:///FILE, postgresql://..., or a folder")
    from pathlib import Path

    from recsys.profiles.parquetstore import ParquetStore

    return ParquetStore(Path(uri))


def key_of(user_id: Id) -> str:
    """An id as text that keeps its type: "int:17", "str:17"."""
    return f"str:{user_id}" if isinstance(user_id, str) else f"int:{user_id}"


def keys_of(user_ids: Ids) -> pl.Series:
    """`key_of` of each id, as a String series named "user"."""
    ids = user_ids if isinstance(user_ids, pl.Series) else pl.Series([key_of(u) for u in user_ids], dtype=pl.String)
    if isinstance(user_ids, pl.Series):
        kind = "str:" if ids.dtype == pl.String else "int:"
        ids = (kind + ids.cast(pl.String)).fill_null("")  # nobody, whom no key names
    return ids.alias("user")


def id_of(key: str) -> Id:
    """The id that `key_of` made the key of."""
    return key[4:] if key.startswith("str:") else int(key[4:])


def ids_of(keys: pl.Series) -> pl.Series:
    """The ids of keys, Int64 or String. Errors: `StorageError` where there are both, which fit in no column."""
    kinds = set(keys.str.slice(0, 4).unique().drop_nulls().to_list())
    if len(kinds) > 1:
        raise StorageError("this store has users with numbers and with texts for ids: ask for either kind by name")
    return keys.str.slice(4).cast(pl.Int64 if kinds == {"int:"} else pl.String).alias("user_id")


def version_row(version: Version, written: int) -> dict[str, Any]:
    """A version as a row of `VERSIONS`."""
    values = {field.name: getattr(version, field.name) for field in fields(version)}
    return {"user": key_of(values.pop("user_id")), **values, "claims": list(version.claims), "written": written}


def edit_row(user_id: Id, edit: Edit, written: int) -> dict[str, Any]:
    """An edit as a row of `EDITS`. Errors: `DataError` for one that `Edits` refuses, or that no store can keep."""
    values = {field.name: getattr(edit, field.name) for field in fields(edit)}
    _check("Edit", {"user_id": user_id, **values})
    Edits.of(user_id, edit)
    return {"user": key_of(user_id), **values, "text": scrub(edit.text), "written": written}


def version_rows(versions: Iterable[Version]) -> list[dict[str, Any]]:
    """Rows of `VERSIONS`, one to a key, written now, in their order."""
    now = time.time_ns()
    rows = (version_row(version, now + place) for place, version in enumerate(versions))
    return list({tuple(row[name] for name in VERSION_KEY): row for row in rows}.values())


def as_versions(rows: pl.DataFrame) -> list[Version]:
    """Versions from rows of `VERSIONS`, oldest first."""
    found = rows.sort("as_of", "written").drop("written").iter_rows(named=True)
    return [Version(user_id=id_of(row.pop("user")), **row) for row in found]


def youngest(user_ids: Ids, at: int | pl.Series, rows: pl.DataFrame) -> pl.DataFrame:
    """What `ProfileStore.as_of` gives, from the rows of `VERSIONS` that may matter."""
    asked = asking(user_ids, at)
    fit = asked.join(rows, on="user").filter(pl.col("as_of") <= pl.col("at"))
    best = fit.sort("row", "as_of", "written").unique("row", keep="last").drop("user", "at", "written")
    found = asked.select("row").join(best, on="row", how="left", maintain_order="left").drop("row")
    return found.insert_column(0, _given(user_ids))


def asking(user_ids: Ids, at: int | pl.Series) -> pl.DataFrame:
    """row, user, at: who is asked for as of when."""
    keys = keys_of(user_ids)
    moments = at.cast(pl.Int64).alias("at") if isinstance(at, pl.Series) else pl.lit(at, dtype=pl.Int64).alias("at")
    if isinstance(at, pl.Series) and len(at) != len(keys):
        raise DataError(f"{len(keys)} users are asked for as of {len(at)} moments: give one moment, or one for each")
    return keys.to_frame().with_columns(moments).with_row_index("row")


def edits_frame(rows: pl.DataFrame, user_ids: Ids | None) -> pl.DataFrame:
    """What `ProfileStore.edits` gives, from rows of `EDITS`."""
    rows = rows.sort("at", "written")
    ids = ids_of(rows["user"])
    if not len(rows) and user_ids is not None:
        ids = _given(user_ids).clear()
    return rows.drop("user", "written").insert_column(0, ids)


def _given(user_ids: Ids) -> pl.Series:
    if isinstance(user_ids, pl.Series):
        return user_ids.alias("user_id")
    return ids_of(keys_of(user_ids))


def tombstones(user_ids: Ids, at: int, salt: str | None) -> list[dict[str, Any]]:
    """Rows of `ERASURES`, with a new salt where the store has none yet."""
    salt = salt or secrets.token_hex(16)
    return [{"digest": _digest(salt, key), "salt": salt, "at": at} for key in keys_of(user_ids).unique()]


def is_buried(user_ids: Ids, rows: pl.DataFrame) -> pl.Series:
    """Whether each id has a row among rows of `ERASURES`; every salt is tried, there is seldom more than one."""
    keys = keys_of(user_ids)
    found = pl.repeat(False, len(keys), dtype=pl.Boolean, eager=True)
    for (salt,), some in rows.group_by("salt"):
        digests = pl.Series([_digest(str(salt), key) for key in keys], dtype=pl.String)
        found = found | digests.is_in(some["digest"].implode())
    return found.alias("erased")


def _digest(salt: str, key: str) -> str:
    return hashlib.sha256(f"{salt}\0{key}".encode()).hexdigest()


def _check(name: str, row: Mapping[str, Any]) -> None:
    """What one store could keep and another could not is refused by all."""
    for field, value in row.items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, bool) or not isinstance(part, int | str):
                raise DataError(f"{name}: {field} is {type(part).__name__}, expected a whole number or text")
            if isinstance(part, int) and not -(2**63) <= part < 2**63:
                raise DataError(f"{name}: {field} is beyond 64 bits")
            if isinstance(part, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in part):
                raise DataError(f"{name}: {field} holds a character that no store keeps (NUL, or half of one)")
