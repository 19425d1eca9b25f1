"""How stores are opened, and what none of them keeps."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from recsys.errors import DataError, SpecError
from recsys.profiles import sqlstore
from recsys.profiles.edits import Edit
from recsys.profiles.parquetstore import ParquetStore
from recsys.profiles.sqlstore import SqlStore
from recsys.profiles.versions import Version, open_store
from recsys.settings import Settings

ROOT = Path(__file__).parents[1]


def test_the_address_says_which_store(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), ParquetStore)
    assert isinstance(open_store("sqlite:///x.db"), SqlStore)
    assert isinstance(open_store("postgresql+psycopg://me@host/db"), SqlStore)
    assert isinstance(open_store(Settings().state_uri), SqlStore)


@pytest.mark.parametrize(
    "uri", ["mysql://u:hunter2@host/db", "s3://bucket", "", "://", "sqlite://", "sqlite:///:memory:"]
)
def test_another_address_is_refused(uri: str) -> None:
    with pytest.raises(SpecError, match="give sqlite:///FILE") as error:
        open_store(uri).versions(1)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hunter2@host:port/db",
        "postgresql+nonesuch://me:hunter2@host/db",
        "postgresql+psycopg2cffi://me:hunter2@host/db?password=hunter2",
    ],
)
def test_a_password_is_never_shown(uri: str) -> None:
    store = open_store(uri)
    with pytest.raises(SpecError) as error:
        store.versions(1)
    assert "hunter2" not in str(error.value) + repr(store)
    assert "hunter2" not in repr(Settings(state_uri=uri))


def test_what_one_store_could_not_keep_none_takes(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(DataError, match="no store keeps"):
            Version("u", 1, bad)
        with pytest.raises(DataError, match="no store keeps"):
            Version("u", 1, "text", ["fine", bad])
        with pytest.raises(DataError, match="no store keeps"):
            store.edit("u", Edit(1, "say", text=bad))
    with pytest.raises(DataError, match="as_of is beyond 64 bits"):
        Version("u", 2**63, "text")
    wrong: Any
    for wrong in (1.5, None, True):
        with pytest.raises(DataError, match="user_id is"):
            Version(wrong, 1, "text")
    wrong = "erase"
    with pytest.raises(DataError, match="column 'action' is none of pin, forget, say, withdraw"):
        store.edit("u", Edit(1, wrong))
    with pytest.raises(DataError, match="level 'erase' is none of"):
        Version("u", 1, "text", level=wrong)


def test_postgresql_gets_what_it_understands() -> None:
    """Without a server: the statements as that dialect writes them. `user` is a word of its own there."""
    dialect: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in (sqlstore._VERSIONS, sqlstore._EDITS, sqlstore._ERASURES):
        made = str(CreateTable(table, if_not_exists=True).compile(dialect=dialect))
        assert "CREATE TABLE IF NOT EXISTS profile_" in made
        assert '"user"' in made or table is sqlstore._ERASURES
    assert "as_of BIGINT NOT NULL" in str(CreateTable(sqlstore._VERSIONS).compile(dialect=dialect))


def test_sqlalchemy_is_loaded_only_for_a_database() -> None:
    code = "import sys, recsys.profiles.versions as v; v.open_store('x'); assert 'sqlalchemy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
