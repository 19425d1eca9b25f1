"""Everything that can be wrong with a dataset folder: one line that names the file, the row and the column."""

import re
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from folders import folder

from recsys.data.check import check_dataset
from recsys.data.ingest import dataset_from_frames, read_dataset
from recsys.errors import DataError

LOG = "user_id,item_id,rating,timestamp\n1,1,5,100\n"
FUTURE = int(time.time()) + 3 * 86_400


def bad_log(*rows: str) -> dict[str, Any]:
    return {"interactions": LOG + "".join(f"{row}\n" for row in rows)}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "null user": (bad_log(",1,5,100"), "interactions.csv, row 2, column 'user_id': is missing"),
    "blank item": (bad_log("2,  ,5,100"), "interactions.csv, row 2, column 'item_id': value '  ' is missing"),
    "short row": (bad_log("2"), "interactions.csv, row 2, column 'item_id': is missing (3 violations in all)"),
    "blank line": (bad_log("", "1,1,1,1"), "interactions.csv, row 2, column 'item_id': is missing"),
    "no number": (bad_log("2,1,good,100"), "row 2, column 'rating': value 'good' is not a number"),
    "null rating": (bad_log("2,1,,100"), "row 2, column 'rating': is missing"),
    "NaN rating": (bad_log("1,1,1,1", "2,1,NaN,100"), "row 3, column 'rating': value 'NaN' is not a finite number"),
    "infinite rating": (bad_log("2,1,inf,100"), "row 2, column 'rating': value 'inf' is not a finite number"),
    "no time": (bad_log("2,1,5,soon"), "row 2, column 'timestamp': value 'soon' is not a time"),
    "null time": (bad_log("2,1,5,"), "row 2, column 'timestamp': is missing"),
    "negative time": (bad_log("2,1,5,-7"), "row 2, column 'timestamp': value '-7' is negative: before 1970"),
    "future": (bad_log(f"2,1,5,{FUTURE}"), f"row 2, column 'timestamp': value '{FUTURE}' lies in the future"),
    "too wide": (bad_log("2,1,5,100,9"), "interactions.csv, row 2: has 5 fields, the header has 4"),
    "open quote": (bad_log('2,1,5,"100', "3,1,5,100"), "interactions.csv"),
    "no column": (
        {"interactions": "uid,item_id\n1,1\n"},
        "column 'user_id': is missing (found: uid, item_id); name it",
    ),
    "no rows": ({"interactions": "user_id,item_id\n"}, "interactions.csv: the table has no rows"),
    "no items": ({"items": "item_id,title\n"}, "items.csv: the table has no rows"),
    "no header": ({"interactions": ""}, "interactions.csv: the file is empty; it needs a header line"),
    "no title": ({"items": "item_id,title\n1,One\n2,  \n"}, "items.csv, row 2, column 'title': value '  ' is missing"),
    "null title": (
        {"items": "item_id,title\n1,\n2,b\n"},
        "items.csv, row 1, column 'title': is missing: an item needs",
    ),
    "no title column": (
        {"items": "item_id,name\n1,a\n"},
        "items.csv, column 'title': is missing (found: item_id, name)",
    ),
    "item twice": (
        {"items": "item_id,title\n1,a\n2,b\n1,c\n"},
        "items.csv, row 3, column 'item_id': value '1' repeats the item_id of an earlier row",
    ),
    "null item": ({"items": "item_id,title\n1,a\n,b\n"}, "items.csv, row 2, column 'item_id': is missing"),
    "strangers": ({"items": "item_id,title\n8,a\n9,b\n"}, "no event is on an item of items.csv; do both tables use"),
    "Latin-1": (
        {"items": "item_id,title\n1,a\n2,Café\n".encode("latin-1")},
        "items.csv, row 2, column 'title': byte 0xe9",
    ),
    "broken Parquet": ({"interactions.parquet": b"PAR1 nothing"}, "interactions.parquet: cannot be read"),
    "broken TOML": ({"toml": "name = \n"}, "dataset.toml: not valid TOML"),
    "unknown field": ({"toml": "nmae = 'x'\n"}, "dataset.toml: field 'nmae'"),
    "unknown column": ({"toml": "[columns]\nusr = 'x'\n"}, "dataset.toml: field 'columns.usr'"),
    "wrong type": ({"toml": "name = 3\n"}, "dataset.toml: field 'name'"),
    "column not there": (
        {"toml": "[columns]\nevent = 'kind'\n"},
        "[columns] event = 'kind': no file has such a column",
    ),
    "ignored not there": (
        {"toml": "ignore = ['stok', 'title', 'x']\n"},
        "dataset.toml: ignore: items.csv has no column 'stok', 'x' (found: item_id, title)",
    ),
    "ignored but needed": ({"toml": "ignore = ['title']\n"}, "dataset.toml: ignore: 'title' cannot be left out"),
    "list not there": ({"toml": "[lists]\ntags = ';'\n"}, "[lists] tags: items.csv has no such column"),
}


def dataset(tmp_path: Path, changes: dict[str, Any]) -> Path:
    folder(tmp_path, LOG, "item_id,title\n1,One\n2,Two\n")
    for name, content in changes.items():
        if name.endswith(".parquet"):
            (tmp_path / f"{name.removesuffix('.parquet')}.csv").unlink()
        path = tmp_path / {"toml": "dataset.toml"}.get(name, name if "." in name else f"{name}.csv")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_a_bad_folder_is_refused_in_one_line_that_says_where(tmp_path: Path, case: str) -> None:
    changes, expected = CASES[case]
    with pytest.raises(DataError) as caught:
        read_dataset(dataset(tmp_path, changes))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_the_check_finds_what_reading_refuses(tmp_path: Path, case: str) -> None:
    path = dataset(tmp_path, CASES[case][0])
    with pytest.raises(DataError) as refused:
        read_dataset(path)
    if "recsys data check" not in str(refused.value):  # a file that cannot be decoded has no rows to list
        with pytest.raises(DataError, match=re.escape(str(refused.value))):
            check_dataset(path)
        return
    report = check_dataset(path)
    assert not report.usable
    first = report.violations.row(0, named=True)
    assert f"{first['file']}" in str(refused.value)
    assert first["reason"] in str(refused.value)


PARQUET: dict[str, tuple[str, list[Any], str]] = {
    "float id": ("user_id", [1.0, 2.0], "column 'user_id': is Float64; ids are integers or strings"),
    "date id": ("item_id", [b"1", b"2"], "column 'item_id': is Binary; ids are integers or strings"),
    "null id": ("user_id", [None, 1], "row 1, column 'user_id': is missing"),
    "empty id": ("user_id", ["", "b"], "row 1, column 'user_id': value '' is missing"),
    "list rating": ("rating", [[1], [2]], "column 'rating': is List(Int64), expected numbers"),
    "NaN": ("weight", [1.0, float("nan")], "row 2, column 'weight': value 'NaN' is not a finite number"),
    "boolean time": ("timestamp", [True, False], "column 'timestamp': is Boolean, expected Unix seconds or dates"),
    "NaN time": ("timestamp", [1.0, float("nan")], "row 2, column 'timestamp': value 'NaN' is not a time"),
    "half position": ("position", [1.0, 1.5], "row 2, column 'position': value '1.5' is not an integer"),
    "null event": ("event", ["a", None], "row 2, column 'event': is missing"),
    "list event": ("event", [["a"], ["b"]], "column 'event': is List(String), expected strings"),
}


@pytest.mark.parametrize("case", PARQUET)
def test_a_bad_parquet_column_is_refused(case: str) -> None:
    column, values, expected = PARQUET[case]
    log = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]} | {column: values})
    with pytest.raises(DataError) as caught:
        dataset_from_frames("d", log, pl.DataFrame({"item_id": [1, 2], "title": ["a", "b"]}))
    assert f"interactions, {expected}" in str(caught.value)


def test_an_id_beyond_64_bits_is_refused() -> None:
    log = pl.DataFrame({"user_id": pl.Series([1, 2**64 - 1], dtype=pl.UInt64), "item_id": [1, 1]})
    with pytest.raises(DataError, match=r"row 2, column 'user_id': value '18446744073709551615' does not fit a 64-bit"):
        dataset_from_frames("d", log, pl.DataFrame({"item_id": [1], "title": ["a"]}))


def test_item_ids_of_two_types_are_refused(tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": [1], "item_id": [1]})
    with pytest.raises(DataError, match="items, column 'item_id': is text here but integer in interactions; give both"):
        dataset_from_frames("d", log, pl.DataFrame({"item_id": ["1"], "title": ["a"]}))
    with pytest.raises(DataError, match=r"items\.csv, column 'item_id': is text here but integer"):
        read_dataset(folder(tmp_path, log, "item_id,title\n1,a\n007,b\n"))


def test_a_title_that_is_no_text_is_refused() -> None:
    log = pl.DataFrame({"user_id": [1], "item_id": [1]})
    with pytest.raises(DataError, match="items, column 'title': is Int64, expected strings"):
        dataset_from_frames("d", log, pl.DataFrame({"item_id": [1], "title": [1984]}))


def test_a_date_before_1970_is_a_violation_and_one_bad_date_is_found_among_good_ones(tmp_path: Path) -> None:
    rows = "1,1,2020-01-01\n1,1,1969-12-31\n1,1,2020-02-30\n1,1,2020-01-02T03:04:05Z\n"
    report = check_dataset(folder(tmp_path, f"user_id,item_id,timestamp\n{rows}"))
    assert report.violations.select("row", "value", "reason").rows() == [
        (2, "1969-12-31", "is negative: before 1970"),
        (3, "2020-02-30", "is not a time: neither Unix seconds nor a date such as 2024-05-01T12:00:00Z"),
    ]


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither interactions\.parquet nor interactions\.csv"):
        read_dataset(tmp_path)
    folder(tmp_path, LOG)
    pl.DataFrame({"item_id": [1], "title": ["a"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"holds both items\.parquet and items\.csv; keep one"):
        read_dataset(tmp_path)


def test_a_damaged_parquet_file_is_a_named_error_whatever_its_reader_raises(tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": range(500), "item_id": [1, 2] * 250})
    folder(tmp_path, log)
    path = tmp_path / "interactions.parquet"
    whole = path.read_bytes()
    schema = whole.index(b"ARROW:schema") + 20
    for damaged in (whole[:schema] + b"%" + whole[schema + 1 :], whole[: len(whole) // 2], whole[:-8] + b"\0" * 8):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"^interactions\.parquet: cannot be read: ") as caught:
            read_dataset(tmp_path)
        assert "\n" not in str(caught.value)
