"""Cells and columns of items that a user did not mean as data, and what is said about them."""

from pathlib import Path

import polars as pl
import pytest
from folders import folder

from recsys.data.check import check_dataset
from recsys.data.counted import counted
from recsys.data.importers import import_dataset
from recsys.data.ingest import Dataset, dataset_from_frames, read_dataset
from recsys.errors import DataError

LOG = "user_id,item_id\n1,1\n"


def priced(tmp_path: Path, *prices: str, toml: str | None = None) -> Dataset:
    rows = "".join(f"{i},T{i},{price}\n" for i, price in enumerate(prices, 1))
    return read_dataset(folder(tmp_path, LOG, f"item_id,title,price\n{rows}", toml))


def about_price(data: Dataset) -> list[str]:
    return [note for note in data.notes if "'price'" in note]


@pytest.mark.parametrize("word", ["", "NA", "N/A", "n/a", "NULL", "null", "None", "nan", "NaN", "-", " n/a "])
def test_a_word_for_nothing_leaves_a_column_of_numbers_numeric(tmp_path: Path, word: str) -> None:
    data = priced(tmp_path, "9.5", word, "12")
    assert data.catalog.frame["price"].to_list() == [9.5, None, 12.0]
    assert "price" not in data.catalog.frame["text"][1]
    said = [f"item column 'price': 1 cell with '{word.strip()}': read as empty"] if word.strip() else []
    assert about_price(data) == said


def test_words_for_nothing_are_empty_in_text_lists_and_prose_but_not_in_titles(tmp_path: Path) -> None:
    items = "item_id,title,maker,tags,plot\n1,None,n/a,-,NULL\n2,Nana,NAB,a|NA,A plot\n"
    frame = read_dataset(folder(tmp_path, LOG, items)).catalog.frame
    assert frame.drop("item_id", "text").rows() == [("None", None, None), ("Nana", "NAB", ["a", "NA"])]
    assert frame["text"][0] == "None"


def test_a_column_of_nothing_but_such_words_is_left_out(tmp_path: Path) -> None:
    data = priced(tmp_path, "n/a", "-", "")
    assert data.catalog.attributes == []
    assert about_price(data)[-1] == "item column 'price' is empty: left out"


def test_such_words_are_what_they_say_where_the_file_has_types() -> None:
    items = pl.DataFrame({"item_id": [1, 2], "title": ["a", "b"], "code": ["NA", "DE"]})
    data = dataset_from_frames("d", pl.DataFrame({"user_id": [1], "item_id": [1]}), items)
    assert data.catalog.frame["code"].to_list() == ["NA", "DE"]


def test_an_import_empties_such_cells_too(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    priced(tmp_path / "src", "9", "n/a")
    notes = import_dataset(tmp_path / "src", tmp_path / "out").notes
    assert "item column 'price': 1 cell with 'n/a': read as empty" in notes
    assert read_dataset(tmp_path / "out").catalog.frame["price"].to_list() == [9, None]


def test_one_price_with_a_currency_is_named_with_its_row(tmp_path: Path) -> None:
    prices = [f"{i}.25" for i in range(161)]
    prices[3], prices[11] = "n/a", "$95.86"
    data = priced(tmp_path, *prices)
    expected = "item column 'price': 159 of 160 values are numbers; row 12 is '$95.86': read as text"
    assert data.catalog.frame.schema["price"] == pl.String
    assert expected in data.notes
    assert expected in check_dataset(tmp_path).notes


def test_the_row_that_is_named_is_the_row_of_the_file_where_earlier_rows_are_bad(tmp_path: Path) -> None:
    rows = "1,,1\n" + "".join(f"{i},T,{i}\n" for i in range(2, 40)) + "40,T,free\n"
    report = check_dataset(folder(tmp_path, "user_id,item_id\n1,2\n", f"item_id,title,price\n{rows}"))
    assert any("38 of 39 values are numbers; row 40 is 'free'" in note for note in report.notes)


@pytest.mark.parametrize(("numbers", "words", "told"), [(19, 1, True), (18, 1, False), (20, 0, False), (0, 5, False)])
def test_a_column_is_told_of_from_95_percent_numbers_on(tmp_path: Path, numbers: int, words: int, told: bool) -> None:
    data = priced(tmp_path, *map(str, range(numbers)), *["free"] * words)
    assert (about_price(data) != []) == told


def test_a_toml_leaves_item_columns_out_and_this_is_noted(tmp_path: Path) -> None:
    toml = 'ignore = ["stock", "tags"]\n[columns]\nitem_id = ["item_id", "id"]\n[lists]\ntags = ";"\n'
    data = read_dataset(folder(tmp_path, LOG, "id,title,stock,tags,maker\n1,One,7,a;b,Acme\n", toml))
    assert data.catalog.frame.rows() == [(1, "One", "One. maker: Acme", "Acme")]
    assert "ignored columns of items.csv: stock, tags" in data.notes


def test_events_of_an_item_that_is_set_aside_are_counted_and_become_orphans(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    log = "user_id,item_id\n1,1\n1,2\n2,2\n2,99\n,2\n"
    src = folder(tmp_path / "src", log, "item_id,title\n1,One\n2,\n1,Again\n")
    before = check_dataset(src)
    assert before.stats is not None
    assert before.stats.orphans == (1, 1)
    assert "2 events are on items whose own rows are bad: orphans once those rows are set aside" in before.notes
    done = import_dataset(src, tmp_path / "out", quarantine=tmp_path / "q.csv")
    assert (done.events, done.items, done.quarantined, done.orphaned) == (4, 1, 3, 2)
    after = check_dataset(tmp_path / "out")
    assert after.usable
    assert any(note.startswith("3 events are on 2 items that the items table lacks") for note in after.notes)


def test_an_import_whose_every_event_would_be_an_orphan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    src = folder(tmp_path / "src", "user_id,item_id\n1,2\n1,99\n", "item_id,title\n1,One\n2,\n")
    with pytest.raises(DataError, match="no event is left on an item that was not set aside"):
        import_dataset(src, tmp_path / "out", quarantine=tmp_path / "q.csv")
    assert not (tmp_path / "out").exists()


def test_counts_agree_with_their_words() -> None:
    assert [counted(n, "day") for n in (0, 1, 2_000)] == ["0 days", "1 day", "2,000 days"]
    assert [counted(n, "event is", "events are") for n in (1, 2)] == ["1 event is", "2 events are"]
