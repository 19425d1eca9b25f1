"""What the dataset format accepts, and what comes out of it."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from folders import ITEMS, folder
from polars.testing import assert_frame_equal

from recsys.data.ingest import Dataset, dataset_from_frames, read_dataset
from recsys.tables import InteractionLog


def events(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]} | columns)


def times(tmp_path: Path, stamps: Any) -> Dataset:
    return read_dataset(folder(tmp_path, events(timestamp=stamps)))


def items_of(tmp_path: Path, items: Any, toml: str | None = None) -> Dataset:
    return read_dataset(folder(tmp_path, "user_id,item_id\n1,1\n", items, toml))


def test_a_csv_with_all_columns_becomes_a_log_in_canonical_order(tmp_path: Path) -> None:
    data = read_dataset(
        folder(tmp_path, "event,rating,timestamp,item_id,user_id\nbuy,5,20,2,1\nview,4.5,10,2,1\nview,1,20,1,1\n")
    )
    assert data.log.frame.rows() == [
        (1, 2, "view", 4.5, 10),
        (1, 1, "view", 1.0, 20),
        (1, 2, "buy", 5.0, 20),
    ]
    assert (data.clock, data.rated, data.name) == ("time", True, tmp_path.name)
    assert data.catalog.frame.rows() == [(1, "One", "One"), (2, "Two", "Two")]


def test_what_is_not_given_gets_its_default_and_the_files_order_is_noted(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, "user_id,item_id\n2,2\n1,2\n2,1\n2,2\n"))
    assert data.log.frame.rows() == [
        (1, 2, "interaction", 1.0, 0),
        (2, 2, "interaction", 1.0, 0),
        (2, 1, "interaction", 1.0, 1),
        (2, 2, "interaction", 1.0, 2),
    ]
    assert (data.clock, data.rated) == ("position", False)
    assert "no timestamp or position: the order of a user's events is the order in the file" in data.notes
    assert "1 event is exactly equal to an earlier one: kept" in data.notes


def test_a_position_gives_the_order_and_is_no_clock(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, events(position=[9, 3], weight=[2, 3])))
    assert data.log.frame.select("item_id", "ts", "weight").rows() == [(2, 3, 3.0), (1, 9, 2.0)]
    assert (data.clock, data.rated) == ("position", False)


def test_a_timestamp_goes_before_a_position_and_a_rating_before_a_weight(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, events(position=[9, 3], timestamp=[5, 6], weight=[1, 1], rating=[3, 4])))
    assert data.log.frame.select("ts", "weight").rows() == [(5, 3.0), (6, 4.0)]
    assert [note for note in data.notes if "'position' is not used" in note or "'weight' is not used" in note] != []


@pytest.mark.parametrize(
    ("written", "ids", "dtype"),
    [
        (["7", "12"], [7, 12], pl.Int64),
        (["-3", "0"], [-3, 0], pl.Int64),
        (["007", "12"], ["007", "12"], pl.String),
        (["+7", "12"], ["+7", "12"], pl.String),
        (["1.0", "2"], ["1.0", "2"], pl.String),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"], pl.String),
        (["ä b", "x|y"], ["ä b", "x|y"], pl.String),
    ],
)
def test_ids_of_a_csv_come_back_as_they_were_written(
    tmp_path: Path, written: list[str], ids: list[Any], dtype: type[pl.DataType]
) -> None:
    rows = "".join(f"u{i},{i}\n" for i in written)
    data = read_dataset(
        folder(tmp_path, f"user_id,item_id\n{rows}", "item_id,title\n" + "".join(f"{i},T\n" for i in written))
    )
    assert data.log.frame["item_id"].dtype == data.catalog.frame["item_id"].dtype == dtype
    assert sorted(data.log.frame["item_id"]) == sorted(ids)
    assert sorted(data.log.frame["user_id"]) == sorted(f"u{i}" for i in written)


def test_item_ids_are_strings_in_both_tables_where_either_needs_it(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, "user_id,item_id\n1,1\n1,2\n", "item_id,title\n1,One\n2,Two\n0A,Three\n"))
    assert data.log.frame["item_id"].to_list() == ["1", "2"]
    assert data.catalog.frame["item_id"].to_list() == ["0A", "1", "2"]
    assert data.log.frame["user_id"].dtype == pl.Int64


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.Int32, pl.UInt64])
def test_integer_ids_of_any_width_become_int64(tmp_path: Path, dtype: type[pl.DataType]) -> None:
    frame = events().cast({"item_id": dtype, "user_id": dtype})
    data = read_dataset(folder(tmp_path, frame, pl.DataFrame({"item_id": [1, 2], "title": ["a", "b"]})))
    assert data.log.frame.schema["item_id"] == data.log.frame.schema["user_id"] == pl.Int64


def test_categorical_ids_and_a_csv_beside_a_parquet_fit_together(tmp_path: Path) -> None:
    frame = events(item_id=["1", "2"]).cast({"item_id": pl.Categorical})
    data = read_dataset(folder(tmp_path, frame, ITEMS))
    assert data.log.frame["item_id"].to_list() == data.catalog.frame["item_id"].to_list() == ["1", "2"]


MOMENT = datetime(2024, 5, 1, 12, 0, 0)
SECONDS = int(MOMENT.replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    "stamp",
    [
        SECONDS,
        float(SECONDS) + 0.75,
        SECONDS * 1_000 + 250,
        SECONDS * 1_000_000,
        SECONDS * 1_000_000_000,
        MOMENT,
        MOMENT.replace(tzinfo=UTC),
        str(SECONDS),
        f"{SECONDS}.9",
        f"{SECONDS * 1000}",
        "2024-05-01T12:00:00Z",
        "2024-05-01T14:00:00+02:00",
        "2024-05-01T12:00:00",
        "2024-05-01 12:00:00.5",
        "2024-05-01 12:00",
    ],
    ids=str,
)
def test_every_way_to_write_a_moment_is_the_same_second(tmp_path: Path, stamp: Any) -> None:
    data = times(tmp_path, [stamp, stamp])
    assert data.log.frame["ts"].to_list() == [SECONDS, SECONDS]
    assert data.clock == "time"


def test_dates_are_midnight_utc_and_zero_is_a_time(tmp_path: Path) -> None:
    assert times(tmp_path, [date(1970, 1, 2), date(1970, 1, 1)]).log.frame["ts"].to_list() == [0, 86_400]


def test_times_of_another_unit_or_without_a_zone_are_noted(tmp_path: Path) -> None:
    assert any("milliseconds" in note for note in times(tmp_path, [SECONDS * 1000] * 2).notes)
    assert any("UTC" in note for note in times(tmp_path, [MOMENT, MOMENT]).notes)


def test_attributes_are_typed_and_lists_are_split(tmp_path: Path) -> None:
    data = items_of(
        tmp_path,
        "item_id,title,tags,price,size,code,empty\n1,One,a| b ||c,1.50,3,007,\n2,Two,a,2,4,12,\n3,Three,,,,,\n",
    )
    frame = data.catalog.frame
    assert frame.schema["tags"] == pl.List(pl.String)
    assert frame["tags"].to_list() == [["a", "b", "c"], ["a"], None]
    assert frame["price"].to_list() == [1.5, 2.0, None]
    assert frame["size"].to_list() == [3, 4, None]
    assert frame["code"].to_list() == ["007", "12", None]
    assert data.catalog.attributes == ["tags", "price", "size", "code"]
    assert "item column 'empty' is empty: left out" in data.notes
    assert frame["text"].to_list() == [
        "One. tags: a, b, c. price: 1.5. size: 3. code: 007",
        "Two. tags: a. price: 2. size: 4. code: 12",
        "Three",
    ]


def test_parquet_attributes_of_every_type_come_through(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": [1, 2],
            "title": ["One", " Two\n lines "],
            "tags": [["a", None, "b"], []],
            "year": pl.Series([1999.0, float("nan")]),
            "live": [True, False],
            "day": [date(2020, 1, 2), None],
            "huge": pl.Series([2**64 - 1, 1], dtype=pl.UInt64),
            "raw": [b"x", b"y"],
            "nested": [{"a": 1}, {"a": 2}],
        }
    )
    data = items_of(tmp_path, items)
    frame = data.catalog.frame
    assert frame["tags"].to_list() == [["a", "b"], []]
    assert frame["year"].to_list() == [1999.0, None]
    assert frame["huge"].to_list() == [str(2**64 - 1), "1"]
    assert frame["text"][0] == f"One. tags: a, b. year: 1999. live: true. day: 2020-01-02. huge: {2**64 - 1}"
    assert frame["text"][1] == "Two lines. live: false. huge: 1"
    assert {"raw", "nested"}.isdisjoint(frame.columns)
    assert sum("left out" in note for note in data.notes) == 2


def test_prose_goes_into_the_text_and_not_among_the_attributes(tmp_path: Path) -> None:
    long = "A tale of one and of another that goes on for quite a long while until it ends at last."
    barred = long.replace("and", "| and")
    data = items_of(tmp_path, f"item_id,title,overview,blurb,maker\n1,One,Short,{barred},Acme\n2,Two,,{long},\n")
    assert data.catalog.attributes == ["maker"]
    assert data.catalog.frame["text"].to_list() == [f"One. maker: Acme. Short. {barred}", f"Two. {long}"]


def test_tags_with_spaces_between_are_split_and_noted_but_names_are_not(tmp_path: Path) -> None:
    tags = ["Drama", "Comedy", "War", "Drama Comedy", "Drama War", "Comedy War", "War Drama"]
    names = ["United States", "France", "United Kingdom", "France", "United States", "Spain", "Spain"]
    items = pl.DataFrame({"item_id": range(7), "title": ["t"] * 7, "genres": tags, "country": names})
    data = items_of(tmp_path, items)
    assert data.catalog.frame["genres"][3].to_list() == ["Drama", "Comedy"]
    assert data.catalog.frame.schema["country"] == pl.String
    assert "item column 'genres' looks like lists separated by spaces: split" in data.notes


def test_a_toml_maps_columns_and_separators_and_names_the_licence(tmp_path: Path) -> None:
    data = read_dataset(
        folder(
            tmp_path,
            "uid,movie,user_id\nu1,m1,old\n",
            "id,name,tags\nm1,One,a;b\n",
            'name = "shop"\nlicence = "ours"\n[columns]\nuser_id = "uid"\nitem_id = ["movie", "id"]\ntitle = "name"\n'
            '[lists]\ntags = ";"\n',
        )
    )
    assert (data.name, data.licence) == ("shop", "ours")
    assert data.log.frame["user_id"].to_list() == ["u1"]
    assert data.catalog.frame["tags"].to_list() == [["a", "b"]]


def test_extra_files_and_columns_are_ignored_with_a_note(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "users.parquet")
    (tmp_path / "README.md").write_text("x")
    data = read_dataset(folder(tmp_path, "user_id,item_id,session\n1,1,9\n"))
    assert "ignored files: users.parquet" in data.notes
    assert "ignored columns of interactions.csv: session" in data.notes


def test_orphans_stay_in_the_log_and_are_noted(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path, "user_id,item_id\n1,1\n1,99\n2,99\n"))
    assert data.log.frame["item_id"].to_list() == [1, 99, 99]
    assert any(note.startswith("2 events are on 1 item that the items table lacks") for note in data.notes)


def test_a_byte_order_mark_quotes_and_line_breaks_in_values_are_fine(tmp_path: Path) -> None:
    data = items_of(tmp_path, '\ufeffitem_id,title\r\n1,"One, ""quoted""\nand broken"\r\n')
    assert data.catalog.frame.row(0) == (1, 'One, "quoted"\nand broken', 'One, "quoted" and broken')


def test_a_title_of_ten_thousand_characters_is_kept_and_cut_in_the_text(tmp_path: Path) -> None:
    data = items_of(tmp_path, f"item_id,title,maker,about\n1,{'x' * 10_000},Acme,{'word ' * 2_000}\n")
    assert len(data.catalog.frame["title"][0]) == 10_000
    assert data.catalog.frame["text"][0].startswith("x" * 300 + ". maker: Acme. word")
    assert len(data.catalog.frame["text"][0]) == 2_000
    assert any("1 title is longer than 300 characters" in note for note in data.notes)
    assert any("1 item text is longer than 2,000 characters" in note for note in data.notes)


def test_parquet_and_csv_give_the_same_dataset(tmp_path: Path, tiny: Dataset) -> None:
    again = tmp_path / "again"
    again.mkdir()
    log = tiny.log.frame.rename({"weight": "rating", "ts": "timestamp"}).drop("event")
    items = tiny.catalog.frame.drop("text")
    data = read_dataset(folder(again, log, items))
    assert_frame_equal(data.log.frame, tiny.log.frame)
    assert_frame_equal(data.catalog.frame.drop("text"), items)


def test_the_order_of_rows_in_the_file_changes_nothing_where_there_is_time(tiny: Dataset) -> None:
    log = tiny.log.frame.rename({"weight": "rating", "ts": "timestamp"}).drop("event")
    shuffled = dataset_from_frames(
        "tiny",
        log.sample(fraction=1, shuffle=True, seed=1),
        tiny.catalog.frame.sample(fraction=1, shuffle=True, seed=2),
    )
    assert_frame_equal(shuffled.log.frame, tiny.log.frame)
    assert_frame_equal(shuffled.catalog.frame.select("item_id", "title"), tiny.catalog.frame.select("item_id", "title"))


def test_a_log_is_in_canonical_order(tiny: Dataset) -> None:
    assert_frame_equal(tiny.log.frame, InteractionLog.of(tiny.log.frame.reverse()).frame)


@pytest.mark.parametrize(
    ("name", "events", "users", "items", "genre"),
    [
        ("ml-100k", 100_000, 943, 1_682, "Animation"),
        ("ml-1m", 1_000_209, 6_040, 3_883, "Animation"),
        ("movietweetings-100k-5core", 68_055, 4_333, 2_414, "Horror"),
    ],
)
def test_real_data_is_read_whole(real_data: Any, name: str, events: int, users: int, items: int, genre: str) -> None:
    data = read_dataset(real_data(name))
    assert (len(data.log), data.log.frame["user_id"].n_unique(), len(data.catalog)) == (events, users, items)
    assert genre in data.catalog.frame["genres"][0].to_list()
    assert (data.clock, data.rated) == ("time", True)
