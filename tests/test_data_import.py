"""Foreign formats in, the public format out."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.data.importers import import_dataset
from recsys.data.ingest import Dataset, read_dataset
from recsys.data.readers import detect
from recsys.errors import DataError, SpecError

FLAGS = "0|0|0|0|0|1|0|0|1" + "|0" * 10  # Comedy, Drama
FORMATS: dict[str, dict[str, str | bytes]] = {
    "ml-1m": {
        "ratings.dat": "1::10::5::978300760\n2::20::3::978302109\n",
        "movies.dat": "10::Café: A Love (1995)::Comedy|Drama\n20::M (1931)::Comedy\n".encode("latin-1"),
        "users.dat": "1::F::1::10::48067\n",
    },
    "ml-10m": {
        "ratings.dat": "1::10::5::978300760\n2::20::3::978302109\n",
        "movies.dat": "10::Café: A Love (1995)::Comedy|Drama\n20::M (1931)::Comedy\n",
    },
    "ml-100k": {
        "u.data": "1\t10\t5\t978300760\n2\t20\t3\t978302109\n",
        "u.item": f"10|Café: A Love (1995)|01-Jan-1995||http://x|{FLAGS}\n"
        f"20|M (1931)|01-Jan-1931||http://y|0|0|0|0|0|1{'|0' * 13}\n".encode("latin-1"),
    },
    "ml-latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,10,5.0,978300760\n2,20,3.0,978302109\n",
        "movies.csv": "movieId,title,genres\n10,Café: A Love (1995),Comedy|Drama\n20,M (1931),Comedy\n",
        "links.csv": "movieId,imdbId\n10,1\n",
    },
    "recbole": {
        "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t10\t5\t978300760\n2\t20\t3\t978302109\n",
        "x.item": "item_id:token\tmovie_title:token_seq\tyear:token\tgenre:token_seq\n"
        "10\tCafé: A Love (1995)\t1995\tComedy Drama\n20\tM (1931)\t1931\tComedy\n",
    },
    "csv": {
        "reviews.csv": "Customer ID,asin,stars,event time\n1,10,5,2000-12-31T22:12:40Z\n2,20,3,2000-12-31T22:35:09Z\n",
        "products.csv": "id,Product Name,genres,year\n"
        "10,Café: A Love (1995),Comedy|Drama,1995\n20,M (1931),Comedy,1931\n",
    },
    "semicolons": {
        "events.csv": "user;item;score;ts\n1;10;5;978300760\n2;20;3;978302109\n",
        "items.csv": "item;title;genres;year\n10;Café: A Love (1995);Comedy|Drama;1995\n20;M (1931);Comedy;1931\n",
    },
    "jsonl": {
        "reviews.jsonl": '{"user": 1, "asin": 10, "overall": 5, "unixReviewTime": 978300760, "text": "good"}\n'
        '{"user": 2, "asin": 20, "overall": 3, "unixReviewTime": 978302109}\n',
        "meta.jsonl": '{"asin": 10, "title": "Café: A Love (1995)", "genres": ["Comedy", "Drama"], "year": 1995}\n'
        '{"asin": 20, "title": "M (1931)", "genres": ["Comedy"], "year": 1931}\n',
    },
}


def lay_out(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def load(src: Path, tmp_path: Path, **options: Any) -> Dataset:
    import_dataset(src, tmp_path / "out", **options)
    return read_dataset(tmp_path / "out")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_dataset(tmp_path: Path, form: str) -> None:
    data = load(lay_out(tmp_path / "src", FORMATS[form]), tmp_path)
    assert data.log.frame.rows() == [
        (1, 10, "interaction", 5.0, 978300760),
        (2, 20, "interaction", 3.0, 978302109),
    ]
    items = data.catalog.frame
    assert items["item_id"].to_list() == [10, 20]
    assert items["title"].to_list() == ["Café: A Love (1995)", "M (1931)"]
    assert items["genres"].to_list() == [["Comedy", "Drama"], ["Comedy"]]
    assert items["year"].to_list() == [1995, 1931]
    assert (data.clock, data.rated) == ("time", True)
    assert data.licence.startswith("MovieLens") == form.startswith("ml-")


def test_parquet_files_are_imported_by_name(tmp_path: Path) -> None:
    pl.DataFrame({"who": ["a"], "what": ["x"], "when": [5]}).write_parquet(tmp_path / "clicks.parquet")
    pl.DataFrame({"what": ["x"], "label": ["X"]}).write_parquet(tmp_path / "things.parquet")
    names = {"user_id": ["who"], "item_id": ["what"], "timestamp": ["when"], "title": ["label"]}
    data = load(tmp_path / "clicks.parquet", tmp_path, items=tmp_path / "things.parquet", mapping=names, name="shop")
    assert data.log.frame.rows() == [("a", "x", "interaction", 1.0, 5)]
    assert data.catalog.frame["title"].to_list() == ["X"]
    assert data.name == "shop"


def test_a_mapping_goes_before_the_usual_names(tmp_path: Path) -> None:
    src = lay_out(
        tmp_path / "src", {"log.csv": "user,uid,item\n1,a,10\n", "items.csv": "item,title,caption\n10,No,Yes\n"}
    )
    data = load(src, tmp_path, mapping={"user_id": ["uid"], "title": ["caption"]})
    assert data.log.frame["user_id"].to_list() == ["a"]
    assert data.catalog.frame["title"].to_list() == ["Yes"]


def test_position_weight_and_event_survive(tmp_path: Path) -> None:
    src = lay_out(
        tmp_path / "src",
        {
            "interactions.csv": "user_id,item_id,position,weight,event\n1,10,2,0.5,view\n1,20,1,2,buy\n",
            "items.csv": "item_id,title\n10,A\n20,B\n",
        },
    )
    data = load(src, tmp_path)
    assert data.log.frame.rows() == [(1, 20, "buy", 2.0, 1), (1, 10, "view", 0.5, 2)]
    assert (data.clock, data.rated) == ("position", False)


def test_the_files_order_survives_where_there_is_no_time(tmp_path: Path) -> None:
    src = lay_out(
        tmp_path / "src",
        {"interactions.csv": "user_id,item_id\n1,20\n1,10\n1,20\n", "items.csv": "item_id,title\n10,A\n20,B\n"},
    )
    assert load(src, tmp_path).log.frame["item_id"].to_list() == [20, 10, 20]


def test_a_folders_own_toml_is_followed_and_not_overruled(tmp_path: Path) -> None:
    src = lay_out(
        tmp_path / "src",
        {
            "interactions.csv": "who,item_id\nx,10\n",
            "items.csv": "item_id,title\n10,A\n",
            "dataset.toml": 'licence = "ours"\n[columns]\nuser_id = "who"\n',
        },
    )
    with pytest.raises(SpecError, match=r"--map: .*dataset\.toml maps the names already"):
        load(src, tmp_path, mapping={"user_id": ["who"]})
    data = load(src, tmp_path)
    assert (data.log.frame["user_id"].to_list(), data.licence) == (["x"], "ours")


def test_other_ratings_and_movies_are_not_taken_for_movielens(tmp_path: Path) -> None:
    src = lay_out(
        tmp_path / "src",
        {"ratings.csv": "user,movie_id,stars\n1,10,4\n", "movies.csv": "movie_id,title\n10,A\n"},
    )
    assert detect(src) == "csv"
    assert load(src, tmp_path).licence == ""


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        ({"notes.txt": "x"}, {}, "no known format; looked for MovieLens"),
        ({"events.csv": "user,item\n1,1\n"}, {}, "holds none of items, movies"),
        ({"u.data": "1\t1\t1\t1\n", "u.item": ""}, {}, r"u\.item: the file is empty"),
        ({"ratings.dat": "1::1::1::1\n"}, {"form": "movielens"}, r"movies\.dat: no such file"),
        ({"a.inter": "user_id:token\titem_id:token\n1\t1\n"}, {}, r"a\.item: no such file"),
        ({"a.inter": "", "b.inter": ""}, {}, r"holds 2 \.inter files"),
        (
            {"ratings.dat": "1::1::1::1\n2::1::2::3::4\n", "movies.dat": "1::A (1990)::B\n"},
            {},
            r"ratings\.dat, row 2, column 'timestamp': value '3::4' is not a time",
        ),
        ({"events.jsonl": "{broken\n", "items.csv": "item,title\n1,A\n"}, {}, r"none of items|events\.jsonl"),
        ({"events.jsonl": "{broken\n", "items.jsonl": "{broken\n"}, {}, r"events\.jsonl: cannot be read"),
        ({"events.csv": "user;item\n1;1\n", "items.csv": "a;b\n1;2\n"}, {}, "column 'item_id': is missing"),
        (
            {"events.csv": "user;item\n1;1;1\n", "items.csv": "item;title\n1;2\n"},
            {},
            r"events\.csv, row 1: has 3 fields, the header has 2",
        ),
        (
            {"events.csv": "user;item\n1;1\n", "items.csv": "item;title;tags\n1;2;caf\xe9\n".encode("latin-1")},
            {},
            r"items\.csv, row 1, column 'tags': byte 0xe9",
        ),
    ],
    ids=range(12),
)
def test_what_cannot_be_imported_is_said_in_one_line(
    tmp_path: Path, files: dict[str, str | bytes], options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        load(lay_out(tmp_path / "src", files), tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_wrong_mappings_are_named(tmp_path: Path) -> None:
    src = lay_out(tmp_path / "src", FORMATS["csv"])
    with pytest.raises(SpecError, match="--map usr: unknown column; known are user_id"):
        load(src, tmp_path, mapping={"usr": ["x"]})
    with pytest.raises(SpecError, match=r"--map user_id=who: reviews\.csv and products\.csv have no such column"):
        load(src, tmp_path, mapping={"user_id": ["who"]})
    with pytest.raises(SpecError, match="MovieLens files have fixed names"):
        load(lay_out(tmp_path / "ml", FORMATS["ml-1m"]), tmp_path, mapping={"user_id": ["who"]})


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        load(tmp_path / "nowhere", tmp_path)
    src = lay_out(tmp_path / "src", FORMATS["csv"])
    with pytest.raises(DataError, match="name the file of items with --items"):
        load(src / "reviews.csv", tmp_path)
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        load(src / "reviews.csv", tmp_path, items=src / "gone.csv")


def test_nothing_is_written_where_no_good_row_is_left(tmp_path: Path) -> None:
    files = {"events.csv": "user,item,ts\n1,1,soon\n", "items.csv": "item,title\n1,A\n"}
    with pytest.raises(DataError, match="no good row is left"):
        load(lay_out(tmp_path / "src", files), tmp_path, quarantine=tmp_path / "q.csv")
    assert not (tmp_path / "out").exists()
    assert len(pl.read_csv(tmp_path / "q.csv")) == 1
