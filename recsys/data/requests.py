"""Requests in words as they come from outside: one text, or a file of them by user.

What people ask for is personal: no message here repeats it.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys.data.words import one_line
from recsys.errors import DataError, UnknownUserError
from recsys.tables import Id

MAX_REQUEST = 500
"""Characters of a request."""
COLUMNS = ("user_id", "request")


def clean_request(text: str) -> str:
    """The request on one line, without control and invisible characters; empty where nothing else is in it.

    Errors: `DataError` for one that is too long or no valid Unicode.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError("a request must be valid Unicode")
    if len(text) > MAX_REQUEST:
        raise DataError(f"a request may have {MAX_REQUEST} characters, this one has {len(text)}: shorten it")
    return one_line(text, MAX_REQUEST)


def read_requests(path: Path, users: Mapping[str, Id]) -> dict[Id, str]:
    """The requests of a Parquet or CSV file with the columns `user_id` and `request`; other columns are ignored, and
    rows with an empty request are left out.

    users : id by its text, of those who are served

    Errors: `DataError` and `UnknownUserError` naming the file and, where one is at fault, row (from 1, without the
    header) and column.
    """
    frame = _table(path)
    for column in COLUMNS:
        if column not in frame.columns:
            raise DataError(f"{path}: column '{column}' is missing (found: {', '.join(frame.columns)})")
    if not len(frame):
        raise DataError(f"{path}: holds no requests")
    if frame["request"].dtype != pl.String:
        raise DataError(f"{path}, column 'request': is {frame['request'].dtype}, expected text")
    ids, texts = frame["user_id"].cast(pl.String).str.strip_chars(), frame["request"].fill_null("")
    empty = ids.is_null() | (ids == "")
    if empty.any():
        raise DataError(f"{_row(path, empty)}, column 'user_id': is empty")
    unknown = ~ids.is_in(list(users))
    if unknown.any():
        raise UnknownUserError(
            f"{_row(path, unknown)}, column 'user_id': user '{one_line(ids.filter(unknown)[0], 100)}' is not among the"
            f" users that are served ({unknown.sum()} of {len(ids)} rows are not); correct the file or --users"
        )
    repeated = ~ids.is_first_distinct()
    if repeated.any():
        again = ids.filter(repeated)[0]
        raise DataError(
            f"{_row(path, repeated)}, column 'user_id': user '{one_line(again, 100)}' asks again, first in row"
            f" {_first(ids == again)}; keep one request for each user"
        )
    long = texts.str.len_chars() > MAX_REQUEST
    if long.any():
        raise DataError(f"{_row(path, long)}, column 'request': has more than {MAX_REQUEST} characters: shorten it")
    cleaned = [clean_request(text) for text in texts]
    return {users[name]: text for name, text in zip(ids, cleaned, strict=True) if text}


def _table(path: Path) -> pl.DataFrame:
    if path.suffix not in (".parquet", ".csv"):
        raise DataError(f"{path}: requests come as .parquet or .csv with the columns user_id and request")
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as requests: {error.strerror or error}") from error
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{path}: is empty: requests come with the columns user_id and request") from error
    except pl.exceptions.PolarsError as error:
        if path.suffix == ".csv" and (row := _ragged(path)):
            raise DataError(
                f"{path} row {row}: has another number of columns than the header; put a request with commas in quotes"
            ) from error
        raise DataError(f"{path}: cannot be read as requests: is it {path.suffix[1:]}, in UTF-8?") from error


def _ragged(path: Path) -> int:
    """The first row of a CSV that has more or fewer fields than its header; 0 where none has."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        width = len(next(rows, []))
        return next((number for number, row in enumerate(rows, start=1) if len(row) not in (0, width)), 0)


def _first(mask: pl.Series) -> int:
    return int(mask.arg_true()[0]) + 1


def _row(path: Path, mask: pl.Series) -> str:
    return f"{path} row {_first(mask)}"
