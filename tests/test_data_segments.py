"""Segments of users: read from the log or from a table of users, only where something asks for them."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from folders import ITEMS, folder

from recsys.data.check import check_dataset
from recsys.data.importers import import_dataset
from recsys.data.ingest import dataset_from_frames, read_dataset
from recsys.errors import DataError, SpecError

LOG = "user_id,item_id,timestamp\n1,1,100\n1,2,200\n2,1,100\n3,2,100\n"
TOML = '[columns]\nsegment = "job"\n'


def with_users(tmp_path: Path, users: Any, toml: str | None = TOML, log: Any = LOG, items: Any = ITEMS) -> Path:
    if isinstance(users, pl.DataFrame):
        users.write_parquet(tmp_path / "users.parquet")
    else:
        (tmp_path / "users.csv").write_text(users, encoding="utf-8")
    return folder(tmp_path, log, items, toml)


def segments(path: Path) -> list[Any]:
    """Those of users 1, 1, 2 and 3."""
    return read_dataset(path).log.frame["segment"].to_list()


def test_a_column_of_the_log_is_each_events_own_and_blanks_are_null(tmp_path: Path) -> None:
    path = folder(tmp_path, "user_id,item_id,timestamp,segment\n1,2,200, FR \n1,1,100,DE\n2,1,100,\n3,2,100,  \n")
    assert segments(path) == ["DE", "FR", None, None]
    assert "2 segments; 2 users without one" in read_dataset(path).notes


def test_a_table_of_users_gives_segments_where_the_toml_names_a_column(tmp_path: Path) -> None:
    path = with_users(tmp_path, "user_id,job,age\n2,nurse,40\n1,baker,30\n9,judge,50\n")
    assert segments(path) == ["baker", "baker", "nurse", None]
    notes = read_dataset(path).notes
    assert "2 segments; 1 user without one" in notes
    assert "ignored columns of users.csv: age" in notes
    assert not any("ignored files" in note for note in notes)


def test_a_table_of_users_gives_segments_where_a_column_is_called_so(tmp_path: Path) -> None:
    assert segments(with_users(tmp_path, "user_id,segment\n1,7\n2,8\n", toml=None)) == ["7", "7", "8", None]


def test_nothing_of_the_users_is_read_where_nothing_asks(tmp_path: Path) -> None:
    data = read_dataset(with_users(tmp_path, "user_id,job\n1,baker\n1,baker\n", toml=None))
    assert "segment" not in data.log.frame.columns
    assert "ignored files: users.csv" in data.notes


def test_the_logs_own_segments_go_before_the_users(tmp_path: Path) -> None:
    path = with_users(tmp_path, "user_id,segment\n1,b\n", toml=None, log="user_id,item_id,segment\n1,1,a\n")
    assert segments(path) == ["a"]
    assert "ignored files: users.csv" in read_dataset(path).notes


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int64, pl.UInt16])
def test_integers_become_text_and_ids_of_any_width_meet(tmp_path: Path, dtype: Any) -> None:
    users = pl.DataFrame({"user_id": [1, 2], "job": [20, None]}, schema={"user_id": pl.Int32, "job": dtype})
    assert segments(with_users(tmp_path, users)) == ["20", "20", None, None]


def test_ids_are_text_in_both_tables_where_either_needs_it(tmp_path: Path) -> None:
    assert segments(with_users(tmp_path, "user_id,job\n1,a\n2,b\nx7,c\n")) == ["a", "a", "b", None]


def test_an_attribute_of_the_items_by_either_name_stays_what_it_is(tmp_path: Path) -> None:
    items = "item_id,title,job,segment\n1,One,clerk,s\n2,Two,cook,t\n"
    data = read_dataset(with_users(tmp_path, "user_id,job\n1,baker\n", items=items))
    assert data.catalog.frame["job"].to_list() == ["clerk", "cook"]
    assert data.catalog.frame["segment"].to_list() == ["s", "t"]
    assert data.log.frame["segment"].to_list() == ["baker", "baker", None, None]


def test_segments_survive_where_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    path = with_users(tmp_path, "user_id,job\n2,b\n1,a\n", log="user_id,item_id\n2,1\n1,2\n1,1\n")
    frame = read_dataset(path).log.frame
    assert frame.select("user_id", "item_id", "ts", "segment").rows() == [
        (1, 2, 0, "a"),
        (1, 1, 1, "a"),
        (2, 1, 0, "b"),
    ]


CASES: dict[str, tuple[Any, str]] = {
    "user twice": (
        "user_id,job\n1,a\n2,b\n1,a\n",
        "users.csv, row 3, column 'user_id': value '1' repeats the user_id of an earlier row",
    ),
    "no user": ("user_id,job\n1,a\n,b\n", "users.csv, row 2, column 'user_id': is missing"),
    "no user column": ("uid,job\n1,a\n", "users.csv, column 'user_id': is missing (found: uid, segment)"),
    "other ids": (
        pl.DataFrame({"user_id": ["1"], "job": ["a"]}),
        "users.parquet, column 'user_id': is text here but integer in interactions.parquet; give both the same type",
    ),
    "ids of no kind": (pl.DataFrame({"user_id": [1.5], "job": ["a"]}), "column 'user_id': is Float64; ids are"),
    "no group": (
        pl.DataFrame({"user_id": [1], "job": [0.5]}),
        "users.parquet, column 'segment': is Float64, expected strings or integers",
    ),
    "no such column": ("user_id,age\n1,2\n", "dataset.toml: [columns] segment = 'job': no file has such a column"),
    "no rows": ("user_id,job\n", "users.csv: the table has no rows"),
    "nobody of the log": (
        "user_id,job\n101,a\n102,b\n",
        "users.csv, column 'user_id': value '101' no row is of a user of interactions.csv, whose ids are such as '1'; "
        "do both tables use the same user ids?",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_users_is_said_in_one_line(tmp_path: Path, case: str) -> None:
    users, message = CASES[case]
    log = pl.DataFrame({"user_id": [1], "item_id": [1]}) if isinstance(users, pl.DataFrame) else LOG
    with pytest.raises(DataError) as raised:
        read_dataset(with_users(tmp_path, users, log=log))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_segment_in_memory_of_no_usable_type_is_refused() -> None:
    events = pl.DataFrame({"user_id": [1], "item_id": [1], "segment": [True]})
    items = pl.DataFrame({"item_id": [1], "title": ["a"]})
    with pytest.raises(DataError, match="column 'segment': is Boolean, expected strings or integers"):
        dataset_from_frames("memory", events, items)


def test_bad_users_are_set_aside_and_an_import_writes_the_segments_into_the_log(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = with_users(tmp_path / "in", "user_id,job\n1,a\n2,b\n,c\n")
    assert check_dataset(path).violations.select("file", "row", "column").rows() == [("users.csv", 3, "user_id")]
    done = import_dataset(path, tmp_path / "out", quarantine=tmp_path / "bad.parquet")
    assert done.quarantined == 1
    assert pl.read_parquet(tmp_path / "bad.parquet")["file"].to_list() == ["users.csv"]
    assert segments(tmp_path / "out") == ["a", "a", "b", None]


def test_an_import_takes_a_segment_only_where_it_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = folder(tmp_path / "in", LOG.replace("timestamp", "timestamp,country").replace("00\n", "00,FR\n"))
    import_dataset(path, tmp_path / "plain")
    assert "segment" not in read_dataset(tmp_path / "plain").log.frame.columns
    import_dataset(path, tmp_path / "mapped", mapping={"segment": ["country"]})
    assert segments(tmp_path / "mapped") == ["FR"] * 4


def test_a_mapped_segment_is_taken_from_the_users_table_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = with_users(tmp_path / "in", "id,job,age\n1,baker,30\n2,,40\n", toml=None)
    done = import_dataset(path, tmp_path / "out", mapping={"segment": ["job"]})
    assert segments(tmp_path / "out") == ["baker", "baker", None, None]
    assert "ignored columns of users.csv: age" in done.notes


def test_a_mapped_segment_is_taken_from_beside_named_files_and_from_recbole(tmp_path: Path) -> None:
    one = with_users(tmp_path, "user_id,job\n1,baker\n", toml=None, items=ITEMS.replace("title", "title,job"))
    log = one / "interactions.csv"
    import_dataset(log, tmp_path / "out", items=one / "items.csv", mapping={"segment": ["job"]})
    assert segments(tmp_path / "out") == ["baker", "baker", None, None]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "x.inter").write_text("user_id:token\titem_id:token\n1\t1\n1\t2\n2\t1\n3\t2\n")
    (tmp_path / "r" / "x.item").write_text("item_id:token\ttitle:token_seq\n1\tOne\n2\tTwo\n")
    (tmp_path / "r" / "x.user").write_text("user_id:token\tgender:token\n1\tF\n3\tM\n")
    import_dataset(tmp_path / "r", tmp_path / "again", mapping={"segment": ["gender"]})
    assert segments(tmp_path / "again") == ["F", "F", None, "M"]


def test_a_users_table_is_imported_as_it_is_checked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = with_users(tmp_path / "in", "user_id,segment\n1,a\n", toml=None, log=LOG.replace("user_id", "uid"))
    import_dataset(path, tmp_path / "out", mapping={"user_id": ["uid"]})
    assert segments(tmp_path / "out") == ["a", "a", None, None]


def test_a_mapped_segment_that_only_items_have_is_no_segment(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    items = "item_id,title,job\n1,One,clerk\n2,Two,cook\n"
    path = with_users(tmp_path / "in", "user_id,age\n1,30\n", toml=None, items=items)
    message = r"--map segment=job: interactions.csv and users.csv have no such column \(found: age, item_id, timestamp"
    with pytest.raises(SpecError, match=message):
        import_dataset(path, tmp_path / "out", mapping={"segment": ["job"]})


def test_users_of_whom_some_are_in_the_log_are_no_strangers(tmp_path: Path) -> None:
    assert segments(with_users(tmp_path, "user_id,job\n8,a\n9,b\n3,c\n")) == [None, None, None, "c"]
