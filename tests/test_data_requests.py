"""Requests from outside: one text cleaned, and files of them whose every fault is named by file, row and column."""

from pathlib import Path

import polars as pl
import pytest

from recsys.data.requests import MAX_REQUEST, clean_request, read_requests
from recsys.errors import DataError, RecsysError, UnknownUserError

USERS = {"5": 5, "3": 3, "13": 13}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("no horror", "no horror"),
        ("  no\n\thorror\x00\u202e\ufeff ", "no horror"),
        ("", ""),
        (" \n\u200b ", ""),
        ("قصة خفيفة 👨‍👩‍👧", "قصة خفيفة 👨‍👩‍👧"),
        ("x" * MAX_REQUEST, "x" * MAX_REQUEST),
    ],
)
def test_a_request_is_one_line_of_what_can_be_read(given: str, kept: str) -> None:
    assert clean_request(given) == kept
    assert clean_request(kept) == kept


@pytest.mark.parametrize("given", ["secret" * 100, "\ud800secret"])
def test_what_is_no_request_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(DataError, match="a request") as caught:
        clean_request(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_is_read_by_its_columns_and_empty_requests_are_none(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"requests{suffix}"
    frame = pl.DataFrame(
        {"request": ["light, no horror", None, " war\nfilms "], "user_id": [13, 5, 3], "asked_at": ["x", "y", "z"]}
    )
    frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path)
    assert read_requests(path, USERS) == {13: "light, no horror", 3: "war films"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,request\n5,x\nnobody,secret\n99,\n", "row 2, column 'user_id': user 'nobody' is not among .*2 of 3"),
        ("user_id,request\n5,secret\n3,x\n5,x\n", "row 3, column 'user_id': user '5' asks again, first in row 1"),
        ("user_id,request\n5,secret\n,secret\n", "row 2, column 'user_id': is empty"),
        (f"user_id,request\n5,{'secret' * 100}\n", "row 1, column 'request': has more than 500 characters"),
        ("user_id,request\n5,a\n3,secret, no horror\n", "row 2: has another number of columns than the header; put"),
        ("user_id,wish\n5,secret\n", "column 'request' is missing"),
        ("user,request\n5,secret\n", "column 'user_id' is missing"),
        ("user_id,request\n", "holds no requests"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_every_fault_of_a_csv_is_named_and_no_request_is_repeated(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(content)
    with pytest.raises(RecsysError, match=message) as caught:
        read_requests(path, USERS)
    assert str(caught.value).startswith(str(path))
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, UnknownUserError) == ("is not among" in message)


def test_other_faults_of_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"user_id,request\n5,\xff\xfe\n")
    (tmp_path / "no.parquet").write_text("user_id,request")
    pl.DataFrame({"user_id": [5], "request": [1]}).write_parquet(tmp_path / "numbers.parquet")
    pl.DataFrame({"user_id": [5], "request": [1]}).write_json(tmp_path / "some.json")
    for name, message in {
        "bytes.csv": "cannot be read as requests: is it csv, in UTF-8",
        "no.parquet": "cannot be read as requests: is it parquet",
        "numbers.parquet": "column 'request': is Int64, expected text",
        "some.json": "come as .parquet or .csv",
        "missing.csv": "No such file",
    }.items():
        with pytest.raises(DataError, match=message):
            read_requests(tmp_path / name, USERS)
