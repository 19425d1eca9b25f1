"""Profiles through time in a database: SQLite by default, PostgreSQL by its address. One transaction to a call.

SQLite runs with `secure_delete`: what is deleted is overwritten with zeros. Loading this module loads SQLAlchemy.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    MetaData,
    NullPool,
    PrimaryKeyConstraint,
    Select,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from recsys.errors import SpecError, StorageError
from recsys.profiles.edits import Edit
from recsys.profiles.versions import (
    EDITS,
    ERASURES,
    VERSION_KEY,
    VERSIONS,
    Ids,
    Version,
    as_versions,
    asking,
    edit_row,
    edits_frame,
    is_buried,
    keys_of,
    tombstones,
    version_rows,
    youngest,
)
from recsys.tables import Id

_CHUNK = 5000  # users to a query, which bounds memory and stays below SQLite's 32,766 parameters
_WAIT_S = 30  # for another writer
_CONNECT_S = 10  # for a database server to answer at all
_META = MetaData()


def _table(name: str, schema: Mapping[str, Any], key: Sequence[str], *more: str) -> Table:
    """A table of these columns. Lists are kept as JSON; a key's texts have no length, but are short."""
    typed = {c: BigInteger if t == pl.Int64 else String if c in key else Text for c, t in schema.items()}
    columns = [
        Column(column, kind, nullable=False) for column, kind in {**typed, **dict.fromkeys(more, String)}.items()
    ]
    return Table(name, _META, *columns, PrimaryKeyConstraint(*key))


_VERSIONS = _table("profile_versions", VERSIONS, VERSION_KEY)
_EDITS = _table("profile_edits", EDITS, ("user", "id"), "id")
_ERASURES = _table("profile_erasures", ERASURES, ("digest",))


@dataclass(frozen=True)
class SqlStore:
    """Implements `versions.ProfileStore`. Threads may share it.

    Errors: `SpecError` on first use for an address that is none, or whose driver is not installed.
    """

    url: str = field(repr=False)  # it may hold a password

    def put(self, versions: Iterable[Version]) -> None:
        rows = [{**row, "claims": json.dumps(row["claims"])} for row in version_rows(versions)]
        if rows:
            insert = self._insert(_VERSIONS)
            changed = {c.name: insert.excluded[c.name] for c in _VERSIONS.columns if c.name not in VERSION_KEY}
            with self._writing() as connection:
                connection.execute(insert.on_conflict_do_update(index_elements=VERSION_KEY, set_=changed), rows)

    def versions(self, user_id: Id) -> list[Version]:
        return as_versions(self._rows(_VERSIONS, VERSIONS, users=keys_of([user_id])))

    def as_of(self, user_ids: Ids, at: int | pl.Series) -> pl.DataFrame:
        asked = asking(user_ids, at)
        latest = asked["at"].max()
        if latest is None:
            return youngest(user_ids, at, pl.DataFrame(schema=VERSIONS))
        return youngest(user_ids, at, self._rows(_VERSIONS, VERSIONS, _VERSIONS.c.as_of <= latest, asked["user"]))

    def edit(self, user_id: Id, edit: Edit) -> None:
        row = {**edit_row(user_id, edit, time.time_ns()), "id": uuid.uuid4().hex}
        with self._writing() as connection:
            connection.execute(_EDITS.insert(), row)

    def edits(self, user_ids: Ids | None = None, at: int | None = None) -> pl.DataFrame:
        users = None if user_ids is None else keys_of(user_ids)
        early = None if at is None else _EDITS.c.at <= at
        return edits_frame(self._rows(_EDITS, EDITS, early, users), user_ids)

    def forget(self, user_ids: Ids) -> int:
        """In PostgreSQL the rows are vacuumed; its write-ahead log and backups are its administrator's to expire."""
        if self._absent:
            return 0
        removed = 0
        with self._writing() as connection:
            for users in _chunks(keys_of(user_ids)):
                for table in (_VERSIONS, _EDITS):
                    removed += connection.execute(delete(table).where(table.c.user.in_(users))).rowcount
        self._scour()
        return removed

    def bury(self, user_ids: Ids, at: int) -> None:
        insert = self._insert(_ERASURES).on_conflict_do_nothing(index_elements=["digest"])
        with self._writing() as connection:
            salt = connection.execute(select(_ERASURES.c.salt).order_by(_ERASURES.c.digest).limit(1)).scalar()
            if rows := tombstones(user_ids, at, salt):
                connection.execute(insert, rows)

    def buried(self, user_ids: Ids) -> pl.Series:
        return is_buried(user_ids, self._rows(_ERASURES, ERASURES))

    @cached_property
    def _address(self) -> URL:
        try:
            url = make_url(self.url)
            url.get_dialect()
        except (ArgumentError, NoSuchModuleError, ValueError):
            # The message of the library repeats the address, password and all.
            raise SpecError("the store's address cannot be read: give sqlite:///FILE or postgresql://...") from None
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise SpecError(f"{self._shown(url)}: profiles are kept in sqlite:///FILE, postgresql://..., or a folder")
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise SpecError(f"{self._shown(url)}: names no file: give sqlite:///FILE")
        return url

    @staticmethod
    def _shown(url: URL) -> str:
        """The address as messages show it: without password and options, which may hold one too."""
        return url.set(query={}).render_as_string(hide_password=True)

    @property
    def _file(self) -> Path | None:
        url = self._address
        return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None

    @property
    def _absent(self) -> bool:
        return self._file is not None and not self._file.exists()

    @cached_property
    def _engine(self) -> Engine:
        try:
            if self._file is None:
                patient = {"connect_timeout": _CONNECT_S} if self._by_psycopg else {}
                return create_engine(self._address, pool_pre_ping=True, connect_args=patient, hide_parameters=True)
            # A connection to a call: threads and forked processes share none, and none stays open.
            waiting = {"timeout": _WAIT_S}
            engine = create_engine(self._address, poolclass=NullPool, connect_args=waiting, hide_parameters=True)
        except ImportError as error:
            raise SpecError(f"{self._shown(self._address)}: `pip install {error.name}`, its driver") from error
        event.listen(engine, "connect", _overwrite)
        return engine

    @property
    def _by_psycopg(self) -> bool:
        """Whether the driver takes libpq's options, and the address sets none of its own."""
        return self._address.get_driver_name().startswith("psycopg") and "connect_timeout" not in self._address.query

    def _insert(self, table: Table) -> Any:
        return (sqlite if self._file is not None else postgresql).insert(table)

    def _rows(
        self,
        table: Table,
        schema: Mapping[str, Any],
        where: ColumnElement[bool] | None = None,
        users: pl.Series | None = None,
    ) -> pl.DataFrame:
        """The table's rows of `users` (keys) or of everybody, where `where` holds."""
        wanted = select(*(table.c[name] for name in schema))
        wanted = wanted if where is None else wanted.where(where)
        parts = [pl.DataFrame(schema=schema)]
        if self._absent:
            return parts[0]
        with self._errors(), self._engine.connect() as connection:
            if not inspect(connection).has_table(table.name):
                return parts[0]
            each = [wanted] if users is None else [wanted.where(table.c.user.in_(some)) for some in _chunks(users)]
            parts += [_frame(connection, some, schema) for some in each]
        return pl.concat(parts)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One transaction, in a database that has the tables."""
        with self._errors():
            if self._file is not None:
                self._file.absolute().parent.mkdir(parents=True, exist_ok=True)
            with self._engine.begin() as connection:
                for table in _META.sorted_tables:
                    connection.execute(CreateTable(table, if_not_exists=True))
            with self._engine.begin() as connection:
                yield connection

    def _scour(self) -> None:
        """Leave nothing of deleted rows between the live ones, nor in a write-ahead log."""
        with self._errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if self._file is None:
                for table in (_VERSIONS, _EDITS):
                    connection.execute(text(f"VACUUM {table.name}"))
                return
            connection.execute(text("VACUUM"))
            busy = connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).scalar()
        if busy:
            raise StorageError(f"{self._shown(self._address)}: is being read, so its log keeps old pages: forget again")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """One line for what the database and its driver raise, without rows and passwords."""
        shown = self._shown(self._address)
        try:
            yield
        except (SQLAlchemyError, OSError, pl.exceptions.PolarsError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            line = (str(cause) or repr(cause)).splitlines()[0]
            raise StorageError(
                f"{shown}: cannot be used as a store of profiles: {line}; check RECSYS_STATE_URI"
            ) from error


def _overwrite(connection: Any, record: Any) -> None:
    """SQLite: a connection that overwrites what it deletes."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _frame(connection: Connection, wanted: Select[Any], schema: Mapping[str, Any]) -> pl.DataFrame:
    lists = [name for name, dtype in schema.items() if isinstance(dtype, pl.List)]
    stored = {name: pl.String() if name in lists else dtype for name, dtype in schema.items()}
    rows = pl.DataFrame([tuple(row) for row in connection.execute(wanted)], schema=stored, orient="row")
    return rows.with_columns(pl.col(name).str.json_decode(schema[name]) for name in lists)


def _chunks(users: pl.Series) -> list[list[str]]:
    each = users.unique(maintain_order=True).to_list()
    return [each[start : start + _CHUNK] for start in range(0, len(each), _CHUNK)]
