"""Versions of profiles and edits: one suite for every store, and what is special about each."""

import dataclasses
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.errors import DataError, StorageError
from recsys.profiles import sqlstore
from recsys.profiles.edits import Edit
from recsys.profiles.parquetstore import ParquetStore
from recsys.profiles.versions import ProfileStore, Version, open_store


def version(user: Any, as_of: int, text: str = "", **more: Any) -> Version:
    return Version(user, as_of, text or f"{user} at {as_of}", ("likes|genres|War|lift=2.0|n=3",), **more)


def every_byte(folder: Path) -> bytes:
    """The raw bytes of all files, and what Parquet files hold once they are read."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    tables = [
        str(pl.read_parquet(path).to_dict(as_series=False)).encode() for path in files if path.suffix == ".parquet"
    ]
    return b"".join([path.read_bytes() for path in files] + tables)


class StoreContract:
    """What every store keeps to; `uri` says where it is, below a folder of its own."""

    uri: str

    @pytest.fixture
    def store(self, tmp_path: Path) -> ProfileStore:
        return self.again(tmp_path)

    def again(self, tmp_path: Path) -> ProfileStore:
        """The same store as another process would open it."""
        found = open_store(self.uri.format(tmp_path / "state"))
        assert isinstance(found, ProfileStore)
        return found

    def test_nothing_is_made_before_the_first_write(self, store: ProfileStore, tmp_path: Path) -> None:
        assert store.versions(1) == []
        assert store.as_of([1, 2], 5)["text"].to_list() == [None, None]
        assert len(store.edits()) == len(store.edits(["a"])) == store.forget([1]) == 0
        assert store.buried([1, 2]).to_list() == [False, False]
        store.put([])
        assert list(tmp_path.iterdir()) == []

    def test_a_version_comes_back_as_it_was(self, store: ProfileStore, tmp_path: Path) -> None:
        text = 'Films “à clef”, 日本映画 and \U0001f600; it\'s 100 % "quoted"\n\\ and two lines'
        said = Version(17, -5, text, ("a|b", 'c "d"'), '{"events":3}', "abcd", "write@1", "lm@2", "persona")
        store.put([said])
        assert self.again(tmp_path).versions(17) == [said]
        (row,) = store.as_of([17], -5).to_dicts()
        assert row == {**dataclasses.asdict(said), "claims": list(said.claims)}

    def test_versions_stand_beside_each_other_oldest_first(self, store: ProfileStore) -> None:
        store.put([version("u", 30), version("u", 10)])
        store.put([version("u", 20), version("v", 5)])
        assert [v.as_of for v in store.versions("u")] == [10, 20, 30]

    def test_the_youngest_that_is_no_younger_than_the_moment(self, store: ProfileStore) -> None:
        store.put([version("u", at) for at in (10, 20, 30)] + [version("v", 15)])
        for at, expected in ((9, None), (10, "u at 10"), (19, "u at 10"), (20, "u at 20"), (10**12, "u at 30")):
            assert store.as_of(["u"], at)["text"].to_list() == [expected]
        many = store.as_of(pl.Series(["v", "w", "u", "v", "u"]), pl.Series([15, 99, 29, 14, 5]))
        assert many["user_id"].to_list() == ["v", "w", "u", "v", "u"]
        assert many["text"].to_list() == ["v at 15", None, "u at 20", None, None]
        assert many["claims"].to_list()[0] == ["likes|genres|War|lift=2.0|n=3"]

    def test_everybody_at_once_equals_one_by_one(self, store: ProfileStore) -> None:
        store.put([version(user, at) for user in range(50) for at in range(user % 5)])
        users, moments = pl.Series(range(60)).shuffle(seed=0), pl.Series([u % 4 for u in range(60)])
        together = store.as_of(users, moments)
        alone = pl.concat(store.as_of([u], at) for u, at in zip(users, moments, strict=True))
        assert together.equals(alone)
        assert together["text"].null_count() == 10 + sum(u < 50 and u % 5 == 0 for u in range(50))

    def test_what_is_put_again_takes_its_place_and_the_last_put_wins_a_tie(self, store: ProfileStore) -> None:
        store.put([version(1, 10, "old"), version(1, 10, "other prompt", prompt_id="p")])
        store.put([version(1, 10, "new"), version(1, 10, "newest")])
        assert [v.text for v in store.versions(1)] == ["other prompt", "newest"]
        assert store.as_of([1], 10)["text"].to_list() == ["newest"]

    def test_ids_keep_their_type(self, store: ProfileStore) -> None:
        store.put([version(17, 1, "a number"), version("17", 1, "a text"), version("str:17", 1, "a trap")])
        store.edit(17, Edit(1, "say", text="a number"))
        store.edit("17", Edit(1, "say", text="a text"))
        assert [v.text for v in store.versions(17)] == ["a number"]
        assert store.versions("17")[0].user_id == "17"
        assert store.as_of([17], 1).schema["user_id"] == pl.Int64
        assert store.as_of(["17", "str:17"], 1)["text"].to_list() == ["a text", "a trap"]
        assert store.edits([17]).rows() == [(17, 1, "say", "", "", "a number")]
        with pytest.raises(StorageError, match="either kind by name"):
            store.edits()
        assert store.forget([17]) == 2
        assert store.edits()["user_id"].to_list() == ["17"]
        assert len(store.versions("17")) == len(store.versions("str:17")) == 1

    def test_edits_come_oldest_first_up_to_a_moment(self, store: ProfileStore) -> None:
        edits = [
            (2, Edit(20, "pin", "genres", "War")),
            (1, Edit(10, "say", text="no gore")),
            (2, Edit(20, "forget", "g", "War")),
            (2, Edit(20, "pin", "genres", "War")),
            (2, Edit(30, "withdraw", "genres", "War")),
        ]
        for user, edit in edits:
            store.edit(user, edit)
        assert store.edits()["action"].to_list() == ["say", "pin", "forget", "pin", "withdraw"]
        assert store.edits([2], at=20)["action"].to_list() == ["pin", "forget", "pin"], (
            "each counts, also a repeated one"
        )
        assert store.edits([1]).rows() == [(1, 10, "say", "", "", "no gore")]
        assert len(store.edits([3])) == len(store.edits([])) == len(store.edits(at=9)) == 0

    def test_of_what_was_said_contact_details_are_not_kept(self, store: ProfileStore, tmp_path: Path) -> None:
        store.edit(1, Edit(1, "say", text="no gore, write to me@example.org"))
        assert store.edits([1])["text"].to_list() == ["no gore, write to [e-mail]"]
        assert b"example.org" not in every_byte(tmp_path)

    def test_a_forgotten_user_is_in_no_byte_and_the_others_stay(self, store: ProfileStore, tmp_path: Path) -> None:
        for at in range(20):
            both = [version(user, at, f"{user} adores zeppelins {at} " * 40) for user in ("walrus", "otter")]
            store.put([*both, version("walrus", 100 + at, "only the walrus and zeppelins")])
            store.edit("walrus", Edit(at, "say", text="more brimstone please"))
        assert b"brimstone" in every_byte(tmp_path)
        assert store.forget(["walrus", "nobody"]) == 60
        left = every_byte(tmp_path)
        assert b"walrus" not in left
        assert b"brimstone" not in left
        assert [v.as_of for v in store.versions("otter")] == list(range(20))
        assert store.versions("walrus") == []
        assert store.forget(["walrus"]) == 0

    def test_who_is_buried_is_known_by_a_salted_hash_alone(self, store: ProfileStore, tmp_path: Path) -> None:
        store.bury(["walrus", "otter"], 1700000000)
        store.bury(["walrus", "seal"], 1800000000)
        asked = pl.Series("x", ["seal", "gull", "otter", "walrus", None])
        assert self.again(tmp_path).buried(asked).to_list() == [True, False, True, True, False]
        assert store.buried([17]).to_list() == [False]
        bytes_ = every_byte(tmp_path)
        assert all(name not in bytes_ for name in (b"walrus", b"otter", b"seal"))

    def test_threads_may_write_at_once(self, store: ProfileStore) -> None:
        def write(n: int) -> None:
            store.put([version(n % 4, n), version("shared", 1, str(n))])
            store.edit(n % 4, Edit(n, "say", text=str(n)))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(40)))
        for user in range(4):
            assert [v.as_of for v in store.versions(user)] == list(range(user, 40, 4))
        assert len(store.versions("shared")) == 1
        assert store.edits([0, 1, 2, 3])["at"].to_list() == list(range(40))

    def test_moments_must_match_users(self, store: ProfileStore) -> None:
        with pytest.raises(DataError, match="2 users are asked for as of 1 moments"):
            store.as_of([1, 2], pl.Series([5]))


class TestParquetStore(StoreContract):
    uri = "{}"

    def test_many_writes_become_one_file(self, store: Any, tmp_path: Path) -> None:
        for at in (1, 2, 2):
            store.put([version("u", at), version("v", at)])
            store.edit("u", Edit(at, "say", text="x"))
        before = store.versions("u"), store.as_of(["u", "v"], 1).rows(), store.edits().rows()
        store.compact()
        assert (store.versions("u"), store.as_of(["u", "v"], 1).rows(), store.edits().rows()) == before
        assert len(list((tmp_path / "state").rglob("*.parquet"))) == 2

    def test_an_interrupted_compaction_shows_nothing_twice(self, store: Any, monkeypatch: Any) -> None:
        for at in (1, 2):
            store.put([version("u", at)])
            store.edit("u", Edit(at, "say", text="x"))

        def fail(path: Path, **_: object) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", fail)
            with pytest.raises(StorageError, match="Permission denied"):
                store.compact()
        assert len(store.versions("u")) == len(store.edits()) == 2

    def test_what_a_killed_writer_left_is_forgotten_too(self, store: Any, tmp_path: Path) -> None:
        store.put([version("otter", 1)])
        part = tmp_path / "state" / "versions"
        (part / ".0badcafe.00001-x.parquet").write_bytes(b"PAR1 walrus")
        assert len(store.versions("otter")) == 1, "a half-written file is none of the store's"
        store.forget(["walrus"])
        assert b"walrus" not in every_byte(tmp_path)

    @pytest.mark.parametrize("body", [b"no parquet", b"", pl.DataFrame({"a": [1]})])
    def test_foreign_files_are_refused(self, store: Any, tmp_path: Path, body: Any) -> None:
        foreign = tmp_path / "state" / "versions" / "mine.parquet"
        foreign.parent.mkdir(parents=True)
        if isinstance(body, bytes):
            foreign.write_bytes(body)
        else:
            body.write_parquet(foreign)
        for ask in (lambda: store.versions("u"), lambda: store.as_of(["u"], 1), lambda: store.forget(["u"])):
            with pytest.raises(StorageError, match="state"):
                ask()

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text("mine")
        for ask in (lambda s: s.versions("u"), lambda s: s.put([version("u", 1)])):
            with pytest.raises(StorageError, match="state"):
                ask(ParquetStore(tmp_path / "state"))


class TestSqlStore(StoreContract):
    uri = "sqlite:///{}/recsys.db"

    def test_a_log_written_ahead_is_emptied_too(self, store: Any, tmp_path: Path, monkeypatch: Any) -> None:
        store.put([version("otter", 1)])
        file = tmp_path / "state" / "recsys.db"
        with sqlite3.connect(file) as reader:
            reader.execute("pragma journal_mode = wal")
        store.put([version("walrus", at, "zeppelins " * 300) for at in range(50)])
        open_ = sqlite3.connect(file)  # keeps the log's files there
        open_.execute("select count(*) from profile_versions").fetchone()
        store.put([version("walrus", 99)])
        assert b"walrus" in (file.parent / "recsys.db-wal").read_bytes()
        store.forget(["walrus"])
        assert b"walrus" not in every_byte(tmp_path)
        open_.execute("begin")
        open_.execute("select count(*) from profile_versions").fetchone()
        store.put([version("walrus", 1)])
        monkeypatch.setattr(sqlstore, "_WAIT_S", 0.1)
        with pytest.raises(StorageError, match=r"locked|is being read"):
            self.again(tmp_path).forget(["walrus"])
        open_.close()
        store.forget(["walrus"])
        assert b"walrus" not in every_byte(tmp_path)

    def test_what_is_deleted_is_overwritten_before_the_file_is_tidied(
        self, store: Any, tmp_path: Path, monkeypatch: Any
    ) -> None:
        store.put([version("walrus", at, "zeppelins " * 300) for at in range(50)] + [version("otter", 1)])
        monkeypatch.setattr(type(store), "_scour", lambda _: None)
        store.forget(["walrus"])
        assert b"walrus" not in every_byte(tmp_path)
        assert b"zeppelins" not in every_byte(tmp_path)

    def test_a_failed_call_leaves_nothing_of_it(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        store.put([version("u", 1)])
        rows = sqlstore.version_rows([version("u", 2), version("u", 3)])
        monkeypatch.setattr(sqlstore, "version_rows", lambda _: [rows[0], {**rows[1], "text": None}])
        with pytest.raises(StorageError, match="NOT NULL"):
            store.put([])
        assert [v.as_of for v in store.versions("u")] == [1]

    @pytest.mark.parametrize("make", ["bytes", "columns"])
    def test_a_foreign_database_is_refused(self, store: Any, tmp_path: Path, make: str) -> None:
        file = tmp_path / "state" / "recsys.db"
        file.parent.mkdir()
        if make == "bytes":
            file.write_bytes(b"this is no database, " * 100)
        else:
            with sqlite3.connect(file) as other:
                other.execute("create table profile_versions (mine text)")
        for ask in (lambda: store.versions("u"), lambda: store.put([version("u", 1)])):
            with pytest.raises(StorageError, match="check RECSYS_STATE_URI"):
                ask()

    def test_a_database_with_other_tables_may_be_shared(self, store: Any, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        with sqlite3.connect(tmp_path / "state" / "recsys.db") as other:
            other.execute("create table events (mine text)")
        assert store.versions("u") == []
        store.put([version("u", 1)])
        assert len(store.versions("u")) == 1

    def test_an_error_shows_no_row(self, store: Any, tmp_path: Path) -> None:
        store.put([version("u", 1)])
        with sqlite3.connect(tmp_path / "state" / "recsys.db") as other:
            other.execute("create trigger t before insert on profile_versions begin select raise(abort, 'no'); end")
        with pytest.raises(StorageError) as error:
            store.put([version("u", 2, "what nobody may read")])
        assert "nobody may read" not in str(error.value) + repr(error.value.__cause__)
